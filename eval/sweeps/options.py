"""How a sweep is run, and what tells two runs apart."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from textguide.guidance import Guidance, split
from textguide.guidance.spec import label as label_of

from ..results.run import as_guidances


@dataclass(frozen=True)
class SweepOptions:
    """How a sweep is run; each field is lm-eval's of that name where there is one.

    Args:
        data: folder with local data files; None: ``TEXTGUIDE_DATA``, else lm-eval's own tasks.
        limit: items a task; None: all.
        first: number of the first item, counted from 0; needs ``limit``.
        plots: draw the pictures of a results folder; None: where matplotlib is installed.
        num_fewshot: examples in front of each question; None: the task's own number.
        repeats: samples an item, for tasks that take several.
        apply_chat_template: put requests into the model's chat template.
        system_instruction: a system prompt.
        log_samples: keep every request and answer in ``samples.jsonl``.
        gen_kwargs: generation options in place of the tasks' own, such as ``{"max_gen_toks": 32}``.
        seed: of few-shot examples, sampling and the bootstrap.
        confirm_run_unsafe_code: allow HumanEval to run what the model wrote.
        select_on: which items choose the best setting: ``first-half``, ``second-half``, ``all``, or None.
    """

    data: str | None = None
    limit: int | None = None
    first: int = field(default=0, kw_only=True)
    plots: bool | None = field(default=None, kw_only=True)
    num_fewshot: int | None = None
    repeats: int | None = None
    apply_chat_template: bool = False
    system_instruction: str | None = None
    log_samples: bool = False
    gen_kwargs: dict[str, Any] | None = None
    seed: int = 0
    confirm_run_unsafe_code: bool = False
    select_on: str | None = "first-half"

    def __post_init__(self) -> None:
        if isinstance(self.first, bool) or not isinstance(self.first, int) or self.first < 0:
            raise ValueError(f"first={self.first!r} must be a whole number of 0 or more")
        if self.first and self.limit is None:
            raise ValueError(f"first={self.first} needs limit=, the number of items from there on")


def labels_of(settings: Sequence[Guidance | None]) -> list[str]:
    """A name for each setting.

    Raises:
        ValueError: one is given twice.
    """
    labels = [label_of(setting) for setting in settings]
    twice = sorted({label for label in labels if labels.count(label) > 1})
    if twice:
        raise ValueError(f"the setting {twice[0]!r} is given twice; leave one out")
    return labels


def identity_of(
    tasks: Sequence[str], settings: Sequence[Guidance | None], options: SweepOptions, model_args: dict[str, Any]
) -> dict[str, Any]:
    """What has to be equal for two runs to be one and the same. The batch size is not part of it."""
    kept = {
        key: value for key, value in vars(options).items() if key not in ("data", "log_samples", "select_on", "plots")
    }
    if options.gen_kwargs is None:  # runs that were begun before there was such an option go on
        del kept["gen_kwargs"]
    if not options.first:
        del kept["first"]
    return {
        "tasks": sorted(tasks),
        "guidances": as_guidances(list(zip(labels_of(settings), settings, strict=True))),
        "fingerprints": {label_of(s): s.fingerprint for s in settings if s is not None},
        "model": described_model(model_args),
        **_adapters(settings, model_args),
        **kept,
    }


def described_model(model_args: Mapping[str, Any]) -> dict[str, Any]:
    """What says of the model, in JSON values, whether two runs are of the same one."""
    return {key: described(value) for key, value in model_args.items()
            if key not in ("batch_size", "device", "tokenizer")}  # fmt: skip


def _adapters(settings: Sequence[Guidance | None], model_args: Mapping[str, Any]) -> dict[str, Any]:
    """What the adapters' folders hold, where there are some: they may be trained anew under the same name."""
    folders = {getattr(split(setting).branching, "distilled", None) for setting in settings} | {model_args.get("peft")}
    found = {}
    for folder in sorted(folder for folder in folders if folder):
        files = [path for path in sorted(Path(folder).glob("adapter_*")) if path.is_file()]
        found[folder] = hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()[:16]
    return {"adapters": found} if found else {}


def described(value: Any) -> Any:
    """An argument in JSON values; an object by the name of its class."""
    if isinstance(value, Mapping):
        return {str(key): described(one) for key, one in sorted(value.items())}
    return value if isinstance(value, (str, int, float, bool, type(None))) else str(type(value).__name__)
