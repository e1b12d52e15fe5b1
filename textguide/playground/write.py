"""Text under guidance, step by step, and texts that are scored again under other scales."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from ..engine import branch_inputs
from ..explanation.explaining import explain
from ..explanation.forced_tokens import ForcedTokens
from ..guidance import CFG, Guidance, parts_of, split, with_scale
from ..guidance.places import check_place
from ..guidance.scaled import Scaled
from ..guidance.spec import label
from ..scoring import score
from ..serving.errors import RefusedError
from ..serving.requests import TextRequest
from ..serving.rules import Rules
from ..serving.schema import refuse_unknown
from ..support.checks import is_number, is_whole_number
from .models import Models
from .runs import Send, let_others_run

PLAIN = CFG(1.0)
"""Plain decoding as a guidance that changes nothing."""


def write(models: Models, request: TextRequest, rules: Rules, send: Send) -> None:
    """Continue a prompt: an event ``step`` for every token and ``end`` with the whole explanation.

    Raises:
        ValueError: something in the request does not work; the message names it.
    """
    check_lengths(models, request, rules)
    particles = split(request.guidance).particles
    options: dict[str, Any] = dict(request.options)
    if request.forced:
        if particles > 1:
            raise RefusedError("this guidance writes several texts at once, and they cannot continue a given one")
        size = models.model.config.get_text_config(decoder=True).vocab_size
        if max(request.forced) >= size:
            raise RefusedError(f"forced has token {max(request.forced)}, and the model {size} tokens")
        options["logits_processor"] = [ForcedTokens(request.forced).process]
    if particles > 1:  # no step is sent before all texts are written and one of them is drawn
        send("status", f"writing {particles} texts, of which one is drawn by its weight")
    explanation = explain(
        models.model,
        models.tokenizer,
        request.prompt,
        PLAIN if request.guidance is None else request.guidance,
        models=models.further(request.guidance),
        progress=lambda step: send("step", step.to_dict()),
        stopping_criteria=let_others_run(send),
        **options,
    )
    end = {
        **explained(explanation, request.guidance),
        "model": models.name,
        "scorable": scorable(request.guidance),
    }
    send("end", end)


def explained(explanation: Any, guidance: Guidance | None) -> dict[str, Any]:
    """An explanation as JSON for the page; one of plain decoding does not mention :data:`PLAIN`."""
    values = explanation.to_dict()
    is_plain = guidance is None
    return {
        **values,
        "kind": "text",
        "summary": "" if is_plain else explanation.summary,
        "note": "" if is_plain else explanation.note,
        "guidance": None if is_plain else values["guidance"],
        "label": label(guidance),
    }


def scorable(guidance: Guidance | None) -> str | None:
    """Why a text cannot be scored under other scales of ``guidance``; None if it can."""
    parts = list(parts_of(guidance))
    if not any(isinstance(part, Scaled) for part in parts):
        return "this guidance has no scale γ"
    if len(parts) > 1:
        return "γ only acts on the branches, and this guidance has other parts"
    try:
        check_place(guidance, "score")
    except ValueError as error:
        return str(error)
    return None


def rescore(models: Models, values: Mapping[str, Any], rules: Rules) -> dict[str, Any]:
    """Score a text under several scales, from one reading of every branch.

    Args:
        values: ``prompt``, ``guidance``, ``tokens`` (ids of the text), ``scales``, and ``horizon`` (the number of
            tokens that the schedule of γ was made for).

    Returns:
        ``scales``, ``log_probs`` (a list per scale, one number per token, in nats) and ``plain``, the same without
        guidance.

    Raises:
        ValueError: something in the request does not work; the message names it.
    """
    refuse_unknown(values, ("prompt", "guidance", "tokens", "scales", "horizon"))
    guidance = rules.guidance(values.get("guidance"), "score")
    reason = scorable(guidance)
    if reason is not None:
        raise RefusedError(reason)
    tokens = rules.forced(values.get("tokens"), rules.limits.new_tokens)
    scales = _scales(values.get("scales"), rules.limits.scales)
    if not tokens:
        raise RefusedError("tokens is empty; write a text first")
    request = TextRequest(rules.prompt(values.get("prompt")), guidance, {"max_new_tokens": len(tokens)})
    check_lengths(models, request, rules)
    horizon = values.get("horizon")
    if horizon is not None and not (is_whole_number(horizon) and horizon >= 1):
        raise RefusedError(f"horizon={horizon!r} must be a whole number of 1 or more")
    assert guidance is not None
    result = score(
        models.model,
        models.tokenizer,
        request.prompt,
        list(tokens),
        settings=[None, *(with_scale(guidance, scale) for scale in scales)],
        horizon=horizon,
        models=models.further(guidance),
    )
    plain, *rows = [[finite(value) for value in row] for row in result.log_probs[0].tolist()]
    return {"scales": scales, "log_probs": rows, "plain": plain}


def check_lengths(models: Models, request: TextRequest, rules: Rules) -> None:
    """Refuse prompts that are longer than the page accepts.

    Raises:
        RefusedError: the prompt, or that of a branch, has too many tokens.
    """
    limit = rules.limits.prompt_tokens
    prompts = branch_inputs.canonical_prompts(request.prompt, None, models.tokenizer)
    ids = branch_inputs.encode(prompts[0], models.tokenizer, "prompt")
    if len(ids) > limit:
        raise RefusedError(f"the prompt has {len(ids):,} tokens, and this server takes {limit:,}; shorten it")
    branching = split(request.guidance).branching
    if branching is None or models.model.config.is_encoder_decoder:
        return
    rows = branch_inputs.branch_rows(branching, cond=[ids], tokenizer=models.tokenizer, prompts=prompts)
    longest = max((len(row) for branch in rows for row in branch), default=0)
    if longest > limit:
        raise RefusedError(f"a branch reads {longest:,} tokens, and this server takes {limit:,}; shorten its prompt")


def _scales(values: Any, most: int) -> list[float]:
    is_list = isinstance(values, list) and all(is_number(one) and math.isfinite(one) for one in values)
    if not is_list or not 1 <= len(values) <= most:
        raise RefusedError(f"scales must be a list of 1 to {most} numbers")
    return [float(one) for one in values]


def finite(value: float) -> float | None:
    """A number as JSON has it: None for ±inf and NaN."""
    return float(value) if math.isfinite(value) else None
