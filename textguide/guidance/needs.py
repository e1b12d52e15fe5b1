"""What a guidance needs from the place in which it runs; ``places.py`` lists the places."""

from __future__ import annotations

from enum import Enum


class Need(Enum):
    """Something that a guidance does; the value ends the sentence "this guidance …"."""

    PROMPT = "reads another prompt"
    SYSTEM = "replaces the system prompt of a chat"
    EDIT = "reads a changed version of the prompt"
    MODEL = "runs another model"
    PART = "runs a part of the model, or the model with a change inside"
    CANDIDATES = "weights candidates by the texts that they make"
    REWARD = "calls a reward on the texts that candidates make"
    VALUE = "estimates the value of prefixes that the model would continue"
    CONSTRAINT = "draws tokens under a constraint"
    WEIGHTS = "weights whole texts and moves them between rows"
    FORK = "forks texts"
    CLASS_LOG_PROBS = "calls a classifier on the text so far"
    LIKELIHOODS = "weights its branches by the probability that they gave to the text so far"
    ROWS = "contrasts texts that are generated together"
    CANVAS = "masks tokens of a text again"
    ESTIMATE = "calls a predictor on the text that a canvas of masks becomes"
    IMAGE = "changes the image"
