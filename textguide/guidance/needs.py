"""What a guidance needs of the place where it runs; ``places.py`` has the places."""

from __future__ import annotations

from enum import Enum


class Need(Enum):
    """Something that a guidance does; the value ends the sentence "this guidance …"."""

    PROMPT = "reads another prompt"
    SYSTEM = "swaps the system prompt of a chat"
    EDIT = "reads the prompt with a change"
    MODEL = "asks another model"
    PART = "runs a part of the model, or the model with a change inside"
    CANDIDATES = "weighs candidates by the texts that they make"
    REWARD = "asks a reward about the texts that candidates make"
    VALUE = "asks what a beginning leads to that the model itself would write"
    CONSTRAINT = "draws tokens under a constraint"
    WEIGHTS = "weighs whole texts against each other and moves them between rows"
    FORK = "forks texts"
    CLASS_LOG_PROBS = "asks a classifier about the text so far"
    LIKELIHOODS = "weighs its branches by what they gave to the text so far"
    ROWS = "holds texts that are written together against each other"
    CANVAS = "masks tokens of a text again"
    ESTIMATE = "asks about the whole text that a canvas of masks stands for"
    IMAGE = "changes the image"
