"""What happens when a visitor presses the button: text under guidance, step by step, and texts scored again."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from ..engine import branch_inputs
from ..explanation.explaining import explain
from ..explanation.forced_tokens import ForcedTokens
from ..guidance import CFG, Guidance, parts_of, split, with_scale
from ..guidance.places import check_place
from ..guidance.scaled import Scaled
from ..guidance.spec import label
from ..scoring import score
from .asking import Asked, RefusedError, Rules, only
from .models import Models
from .turns import Attention

Send = Callable[[str, Any], None]
"""Sends an event (a name and JSON values) to the visitor; raises VisitorLeftError when nobody listens."""
PLAIN = CFG(1.0)
"""Plain decoding as a guidance that changes nothing."""


def write(models: Models, asked: Asked, rules: Rules, send: Send) -> None:
    """Continue a prompt: an event ``step`` for every token and ``end`` with the whole explanation.

    Raises:
        ValueError: something in the request does not work; the message names it.
    """
    check_lengths(models, asked, rules)
    particles = split(asked.guidance).particles
    options: dict[str, Any] = dict(asked.options)
    if asked.forced:
        if particles > 1:
            raise RefusedError("this guidance writes several texts at once, and they cannot go on from a given one")
        size = models.model.config.get_text_config(decoder=True).vocab_size
        if max(asked.forced) >= size:
            raise RefusedError(f"forced has token {max(asked.forced)}, and the model {size} tokens")
        options["logits_processor"] = [ForcedTokens(asked.forced).process]
    if particles > 1:  # the texts are written before one of them is read again
        send("status", f"writing {particles} texts, of which one is drawn by its weight")
    explanation = explain(
        models.model,
        models.tokenizer,
        asked.prompt,
        PLAIN if asked.guidance is None else asked.guidance,
        models=models.further(asked.guidance),
        progress=lambda step: send("step", step.to_dict()),
        stopping_criteria=[Attention(lambda: send("", None))],
        **options,
    )
    values = explanation.to_dict()
    plain = asked.guidance is None
    send("end", {
        **values, "kind": "text", "model": models.name, "summary": "" if plain else explanation.summary,
        "note": "" if plain else explanation.note, "guidance": None if plain else values["guidance"],
        "label": label(asked.guidance), "scorable": scorable(asked.guidance),
    })  # fmt: skip


def scorable(guidance: Guidance | None) -> str | None:
    """Why a text cannot be scored under other scales of ``guidance``; None where it can."""
    parts = list(parts_of(guidance))
    if not any(isinstance(part, Scaled) for part in parts):
        return "this guidance has no scale γ"
    if len(parts) > 1:
        return "γ moves the branches alone, and this guidance has other parts"
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
        ``scales``, ``log_probs`` (a list a scale, one number a token, in nats) and ``plain``, the same without
        guidance.

    Raises:
        ValueError: something in the request does not work; the message names it.
    """
    only(values, ("prompt", "guidance", "tokens", "scales", "horizon"))
    guidance = rules.guidance(values.get("guidance"), "score")
    why = scorable(guidance)
    if why is not None:
        raise RefusedError(why)
    tokens = rules.forced(values.get("tokens"), rules.limits.new_tokens)
    scales = _scales(values.get("scales"), rules.limits.scales)
    if not tokens:
        raise RefusedError("tokens is empty; write a text first")
    asked = Asked(rules.prompt(values.get("prompt")), guidance, {"max_new_tokens": len(tokens)})
    check_lengths(models, asked, rules)
    horizon = values.get("horizon")
    if horizon is not None and (isinstance(horizon, bool) or not isinstance(horizon, int) or horizon < 1):
        raise RefusedError(f"horizon={horizon!r} must be a whole number of 1 or more")
    assert guidance is not None
    result = score(
        models.model,
        models.tokenizer,
        asked.prompt,
        list(tokens),
        settings=[None, *(with_scale(guidance, scale) for scale in scales)],
        horizon=horizon,
        models=models.further(guidance),
    )
    plain, *rows = [[_finite(value) for value in row] for row in result.log_probs[0].tolist()]
    return {"scales": scales, "log_probs": rows, "plain": plain}


def check_lengths(models: Models, asked: Asked, rules: Rules) -> None:
    """Refuse prompts that are longer than the page takes.

    Raises:
        RefusedError: the prompt, or that of a branch, has too many tokens.
    """
    limit = rules.limits.prompt_tokens
    prompts = branch_inputs.canonical_prompts(asked.prompt, None, models.tokenizer)
    ids = branch_inputs.encode(prompts[0], models.tokenizer, "prompt")
    if len(ids) > limit:
        raise RefusedError(f"the prompt has {len(ids):,} tokens, and this server takes {limit:,}; shorten it")
    branching = split(asked.guidance).branching
    if branching is None or models.model.config.is_encoder_decoder:
        return
    rows = branch_inputs.branch_rows(branching, cond=[ids], tokenizer=models.tokenizer, prompts=prompts)
    longest = max((len(row) for branch in rows for row in branch), default=0)
    if longest > limit:
        raise RefusedError(f"a branch reads {longest:,} tokens, and this server takes {limit:,}; shorten its prompt")


def _scales(values: Any, most: int) -> list[float]:
    numbers = isinstance(values, list) and all(
        isinstance(one, (int, float)) and not isinstance(one, bool) and math.isfinite(one) for one in values
    )
    if not numbers or not 1 <= len(values) <= most:
        raise RefusedError(f"scales must be a list of 1 to {most} numbers")
    return [float(one) for one in values]


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
