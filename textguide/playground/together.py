"""Texts that are written together: particles under a constraint, products, forks."""

from __future__ import annotations

import math
from typing import Any

from ..engine.loop import StepView
from ..explanation.rows import RowsStep
from ..generation import generate
from ..guidance import Guidance, split
from ..guidance.spec import label
from ..serving.rules import Asked, RefusedError, Rules
from ..serving.turns import Attention
from .models import Models
from .write import Send, check_lengths


def write_together(models: Models, asked: Asked, rules: Rules, send: Send) -> None:
    """Write several texts: an event ``rows`` for every step and ``end`` with all texts and their weights.

    Raises:
        ValueError: something in the request does not work; the message names it.
    """
    if split(asked.guidance).sampling is None:
        raise RefusedError("nothing holds the texts together; give a constraint, feynman-kac, power-sampling or eager")
    if split(asked.guidance).restarts:
        raise RefusedError("sampler='cars' begins texts again, so that they do not stand side by side; take 'asap'")
    if asked.forced:
        raise RefusedError("texts that are written together cannot go on from a given one")
    check_lengths(models, asked, rules)
    steps: list[RowsStep] = []

    def observe(view: StepView) -> None:
        steps.append(RowsStep.of(view, models.tokenizer, steps[-1] if steps else None))
        send("rows", steps[-1].to_dict())

    out = generate(
        models.model,
        models.tokenizer,
        asked.prompt,
        asked.guidance,
        models=models.further(asked.guidance),
        observer=observe,
        stopping_criteria=[Attention(lambda: send("", None))],
        **asked.options,
    )
    weighed = out.log_weights is not None
    finished = [True] * len(out.texts) if out.finished is None else out.finished.tolist()
    drawn = out.weighted_sample(asked.options.get("seed", 0))[0] if weighed and any(finished) else None
    send("end", {
        "kind": "rows", "model": models.name, "label": label(asked.guidance),
        "guidance": None if asked.guidance is None else asked.guidance.to_dict(), "prompt": asked.prompt,
        "texts": out.texts, "finished": finished, "deaths": out.deaths or [None] * len(out.texts),
        "log_weights": [_finite(value) for value in out.log_weights.tolist()] if out.log_weights is not None else None,
        "log_evidence": _finite(float(out.log_evidence[0])) if out.log_evidence is not None else None,
        "ess": _finite(float(out.ess[0])) if out.ess is not None else None,
        "constraint_calls": out.constraint_calls, "constrained": is_constrained(asked.guidance),
        "drawn": drawn, "steps": [step.to_dict() for step in steps],
        "summary": str(out.effect) if out.effect.guided_steps else "",
    })  # fmt: skip


def is_constrained(guidance: Guidance | None) -> bool:
    """Whether something says which texts may be written."""
    sampling = split(guidance).sampling
    return sampling is not None and sampling.constraint is not None


def _finite(value: Any) -> float | None:
    return float(value) if math.isfinite(value) else None
