"""Faults that were mended, put back one at a time: ``python -m tests.fuzzing.faults`` shows that the fuzzer finds each.

Every fault is the mended function as it was, or without its check.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any
from unittest import mock

import torch

from textguide.engine import branch_inputs
from textguide.forward import probes
from textguide.forward.model_adapter import ModelAdapter
from textguide.forward.probes import Padding
from textguide.logits_processors import branches, hf

from . import models
from .cases import Case, draw
from .running import Outcome, run


@dataclass(frozen=True)
class Fault:
    """A fault.

    Args:
        name: what was wrong.
        put_back: a context in which it is wrong again.
        narrowed: restricts a random case to those that may show it, so that few are needed.
    """

    name: str
    put_back: Callable[[], Any]
    narrowed: Callable[[Case], Case]


@contextlib.contextmanager
def _property(name: str, value: Callable[[ModelAdapter], Any]) -> Iterator[None]:
    """Another property of model adapters; models are built anew, so that nothing is remembered about them."""
    with mock.patch.object(ModelAdapter, name, property(value)):
        yield


def _exact_in_training(known: ModelAdapter) -> Padding:
    """The verdict of a model in training mode, which was kept."""
    kept = known.__dict__
    if "verdict" not in kept:
        kept["verdict"] = Padding.EXACT if known.base.training else probes.padding(known)
    verdict: Padding = kept["verdict"]
    return verdict


def _exact_in_half_precision(known: ModelAdapter) -> Padding:
    return Padding.EXACT if known.base.dtype == torch.bfloat16 else probes.padding(known)


def _strips_padding(ids: Any, call: Any, config: Any) -> list[list[int]]:
    rows = []
    for row in ids.tolist():
        start = next((n for n, token in enumerate(row) if token != config.pad_token_id), len(row) - 1)
        rows.append(row[start:])
    return rows


def _padding_blind_to_forbidden(known: ModelAdapter) -> Padding:
    with torch.no_grad():
        logits = known.base(torch.tensor([[5, 6]])).logits if not known.is_encoder_decoder else torch.zeros(1)
    if bool(logits.isinf().any()):
        raise ValueError(f"{known.name} keeps state outside its cache")
    return probes.padding(known)


CHANGES = ("bart-decoder", "roformer")
FAULTS = (
    Fault(
        "a run in training mode leaves the verdict that padding is exact",
        lambda: _property("padding", _exact_in_training),
        lambda case: replace(case, model=CHANGES[case.seed % 2], mode="trained", entry="generate", masked=False),
    ),
    Fault(
        "padding is judged with the tolerance of bfloat16",
        lambda: _property("padding", _exact_in_half_precision),
        lambda case: replace(
            case,
            model="roformer",
            dtype="bfloat16",
            rule="cfg",
            fields={"scale": 3.0},
            entry="generate",
            mode="eval",
            classifier=0.0,
        ),
    ),
    Fault(
        "a begin token that is also the padding token is stripped",
        lambda: mock.patch.object(branches, "prompt_rows", _strips_padding),
        lambda case: replace(
            case,
            model="llama",
            rule="contrastive",
            fields={"alpha": 0.0},
            negatives=None,
            entry="drop_in",
            prompts=[[1, *row[1:], 7] for row in case.prompts],
            pad_is_bos=True,
            options={},
            classifier=0.0,
            dtype="float32",
        ),
    ),
    Fault(
        "rotary embeddings that change are not checked",
        lambda: mock.patch.object(ModelAdapter, "check_lengths"),
        lambda case: replace(
            case,
            model="phi3-longrope",
            entry="score",
            rule="cfg",
            fields={"scale": 2.0},
            dtype="float32",
            prompts=[row[:5] for row in case.prompts],
            negatives=[[5, 9, 33, 7, 20, 21, 8, 12, 17, 30, 3]],
            continuations=[[7, 8, 9, 10] for _ in case.prompts],
            options={},
            classifier=0.0,
        ),
    ),
    Fault(
        "models that are not causal are scored",
        lambda: mock.patch.object(ModelAdapter, "check_direction"),
        lambda case: replace(
            case,
            model="gemma3-bidirectional",
            entry="score",
            dtype="float32",
            options={},
            masked=False,
            continuations=[[7, 8, 9, 10] for _ in case.prompts],
        ),
    ),
    Fault(
        "forbidden tokens refuse a model",
        lambda: _property("padding", _padding_blind_to_forbidden),
        lambda case: replace(case, masked=True, model="llama", entry="generate", dtype="float32"),
    ),
    Fault(
        "guidance_scale= of transformers guides a second time",
        lambda: mock.patch.object(hf, "_refuse_other_guidance"),
        lambda case: replace(
            case, model="llama", entry="drop_in", rule="cfg", fields={"scale": 2.0}, options={"guidance_scale": 2.0}
        ),
    ),
    Fault(
        "a text is compared with a chat",
        lambda: mock.patch.object(branch_inputs, "check_templates"),
        lambda case: Case(entry="chat", seed=case.seed),
    ),
)


def found(fault: Fault, cases: int = 60, seed: int = 0, wide: bool = False) -> tuple[int, Case, Outcome] | None:
    """The first of random cases that shows the fault: its number, the case, and what differs; None if none does.

    Args:
        wide: run the cases as they are drawn.
    """
    for number in range(cases):
        case = draw(number, seed)
        if not wide:
            case = fault.narrowed(case)
        if case.entry in ("lookup", "speculation"):
            continue
        models.build.cache_clear()
        with fault.put_back():
            outcome = run(case)
        models.build.cache_clear()
        if outcome.kind == "FINDING":
            return number, case, outcome
    return None


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--wide", type=int, help="run up to this many cases as they are drawn, whatever the fault")
    wide = parser.parse_args().wide
    torch.set_num_threads(1)
    missed = 0
    for fault in FAULTS:
        first = found(fault) if wide is None else found(fault, wide, wide=True)
        if first is None:
            missed += 1
            print(f"MISSED {fault.name}")
            continue
        number, case, outcome = first
        clean = run(case)
        print(
            f"found after {number + 1} cases: {fault.name}\n  {outcome.detail}\n  mended: {clean.kind} {clean.detail}"
        )
    return int(missed > 0)


if __name__ == "__main__":
    sys.exit(main())
