"""How much one request may ask for."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """Upper bounds on one request, and on all of them together.

    Args:
        body: size of a request, in bytes.
        characters: length of each text in a request.
        prompt_tokens: tokens of the prompt, and of the prompt of each branch.
        new_tokens: tokens that are generated.
        particles: texts that are generated together.
        candidates: tokens that a classifier scores per step.
        questions: questions that a zero-shot classifier asks the model per step: candidates times labels.
        branches: forward passes besides the conditional one.
        scales: values of γ that a text is scored under.
        canvas: positions of a canvas.
        pixels: width and height of an image.
        rows: texts of one request to a server of canvases.
        runs: runs at the same time, over all clients; further ones are refused.
        constraint_bytes: size of a constraint, as it is sent.
        constraint_seconds: how long a constraint may take to compile.
        constraint_memory: bytes that compiling a constraint may take.
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
    constraint_bytes: int = 131_072
    constraint_seconds: float = 3.0
    constraint_memory: int = 2_000_000_000
