"""Options of a sweep; importing them does not load torch, so that the command line can describe them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from textguide.support.checks import whole_number
from textguide.support.options import named_values, option


def _none_or_text(text: str, flag: str) -> str | None:
    return None if text == "none" else text


@dataclass(frozen=True)
class SweepOptions:
    """How a sweep is run. Fields that lm-eval has too have its names.

    Args:
        data: folder with local data files; None: ``TEXTGUIDE_DATA``, or lm-eval's own tasks without it.
        limit: items per task; None: all.
        first: number of the first item, counted from 0; needs ``limit``.
        plots: draw the pictures of a results folder; None: if matplotlib is installed.
        num_fewshot: examples before each question; None: the task's own number.
        repeats: samples per item, for tasks that draw several.
        apply_chat_template: put requests into the model's chat template.
        system_instruction: a system prompt.
        log_samples: write every request and answer to ``samples.jsonl``.
        gen_kwargs: generation options instead of the tasks' own, such as ``{"max_gen_toks": 32}``.
        seed: seed of few-shot examples, sampling and the bootstrap.
        confirm_run_unsafe_code: allow HumanEval to run the model's programs.
        select_on: items on which the best setting is chosen: ``first-half``, ``second-half``, ``all``, or None.

    Raises:
        ValueError: a number is too small, or ``first`` is set without ``limit``.
    """

    data: str | None = field(default=None, metadata=option("folder with local data files [$TEXTGUIDE_DATA]"))
    limit: int | None = field(default=None, metadata=option("items per task [all]"))
    first: int = field(default=0, kw_only=True)
    plots: bool | None = field(default=None, kw_only=True)
    num_fewshot: int | None = field(default=None, metadata=option("examples before each question [the task's own]"))
    repeats: int | None = field(
        default=None, metadata=option("samples per item, for self-consistency and pass@k [the task's own]")
    )
    apply_chat_template: bool = field(default=False, metadata=option("put requests into the chat template"))
    system_instruction: str | None = field(default=None, metadata=option("system prompt", flag="--system"))
    log_samples: bool = field(
        default=False, metadata=option("write every request and answer to samples.jsonl", flag="--samples")
    )
    gen_kwargs: dict[str, Any] | None = field(
        default=None,
        metadata=option(
            "generation options instead of the tasks' own, such as max_gen_toks=32,temperature=0.7",
            metavar="NAME=VALUE,…",
            parse=named_values,
        ),
    )
    seed: int = field(default=0, metadata=option("seed of examples, sampling and the bootstrap"))
    confirm_run_unsafe_code: bool = field(
        default=False, metadata=option("allow HumanEval to run the programs that the model wrote")
    )
    select_on: str | None = field(
        default="first-half",
        metadata=option(
            "items on which the best scale is chosen: first-half, second-half, all or none", parse=_none_or_text
        ),
    )

    def __post_init__(self) -> None:
        for name in ("limit", "repeats"):
            if getattr(self, name) is not None:
                whole_number(name, getattr(self, name), 1)
        whole_number("first", self.first, 0)
        if self.first and self.limit is None:
            raise ValueError(f"first={self.first} needs limit=, the number of items from there on")
