"""How much a visitor of the page may ask for."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """Bounds on one request, and on all of them together.

    Args:
        body: bytes of a request.
        characters: of each text in it.
        prompt_tokens: tokens of the prompt, and of what each branch reads.
        new_tokens: tokens that are written.
        particles: texts that are written together.
        candidates: tokens that a classifier scores at a step.
        questions: of a zero-shot classifier to the model at a step: candidates times labels.
        branches: passes beside the conditional one.
        scales: values of γ that a text is scored under.
        canvas: positions of a canvas.
        pixels: width and height of an image.
        rows: texts of one request to a server of canvases.
        runs: runs at once, over all visitors; further ones are told to wait.
    """

    body: int = 4_000_000
    characters: int = 8_000
    prompt_tokens: int = 1_024
    new_tokens: int = 256
    particles: int = 16
    candidates: int = 200
    questions: int = 400
    branches: int = 8
    scales: int = 64
    canvas: int = 256
    pixels: int = 4_096
    rows: int = 64
    runs: int = 6
