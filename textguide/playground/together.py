"""Texts that are written together: particles under a constraint, products, forks."""

from __future__ import annotations

from typing import Any

from ..engine.loop import StepView
from ..engine.results import GenerateResult
from ..explanation.rows import RowsStep
from ..generation import generate
from ..guidance import Guidance, split
from ..guidance.spec import label
from ..serving.errors import RefusedError
from ..serving.requests import TextRequest
from ..serving.rules import Rules
from .models import Models
from .runs import Send, let_others_run
from .write import check_lengths, finite


def write_together(models: Models, request: TextRequest, rules: Rules, send: Send) -> None:
    """Write several texts: an event ``rows`` for every step and ``end`` with all texts and their weights.

    Raises:
        ValueError: something in the request does not work; the message names it.
    """
    if split(request.guidance).sampling is None:
        raise RefusedError("nothing holds the texts together; give a constraint, feynman-kac, power-sampling or eager")
    if split(request.guidance).restarts:
        raise RefusedError("sampler='cars' begins texts again, so they cannot be shown side by side; use 'asap'")
    if request.forced:
        raise RefusedError("texts that are written together cannot continue a given one")
    check_lengths(models, request, rules)
    steps: list[RowsStep] = []

    def observe(view: StepView) -> None:
        steps.append(RowsStep.of(view, models.tokenizer, steps[-1] if steps else None))
        send("rows", steps[-1].to_dict())

    result = generate(
        models.model,
        models.tokenizer,
        request.prompt,
        request.guidance,
        models=models.further(request.guidance),
        observer=observe,
        stopping_criteria=let_others_run(send),
        **request.options,
    )
    end = {
        "kind": "rows",
        "model": models.name,
        "label": label(request.guidance),
        "guidance": None if request.guidance is None else request.guidance.to_dict(),
        "prompt": request.prompt,
        **_texts(result, request.options.get("seed", 0)),
        "constrained": is_constrained(request.guidance),
        "steps": [step.to_dict() for step in steps],
        "summary": str(result.effect) if result.effect.changes_distributions else "",
    }
    send("end", end)


def _texts(result: GenerateResult, seed: int) -> dict[str, Any]:
    """Texts, weights and one row that is drawn by its weight, as JSON."""
    count = len(result.texts)
    finished = [True] * count if result.finished is None else result.finished.tolist()
    values: dict[str, Any] = {
        "texts": result.texts,
        "finish_reasons": result.finish_reasons,
        "finished": finished,
        "deaths": result.deaths or [None] * count,
        "log_weights": None,
        "log_evidence": None,
        "ess": None,
        "distinct_texts": None,
        "ancestors": None,
        "constraint_calls": result.constraint_calls,
        "drawn": None,
    }
    if result.log_weights is not None:
        values["log_weights"] = [finite(value) for value in result.log_weights.tolist()]
        if any(finished):
            values["drawn"] = result.weighted_sample(seed)[0]
    if result.log_evidence is not None:
        values["log_evidence"] = finite(float(result.log_evidence[0]))
    if result.ess is not None:
        values["ess"] = finite(float(result.ess[0]))
    if result.distinct_texts is not None:
        values["distinct_texts"] = int(result.distinct_texts[0])
    if result.ancestors is not None:
        values["ancestors"] = int(result.ancestors[0])
    return values


def is_constrained(guidance: Guidance | None) -> bool:
    """Whether a constraint determines which texts may be written."""
    sampling = split(guidance).sampling
    return sampling is not None and sampling.constraint is not None
