"""``textguide.eager``: several texts a prompt, forked where the model hesitates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from .engine.results import GenerateResult
from .generation import generate
from .guidance import EAGer, as_guidance
from .support.showing import Block, Line, Shown, figure, table


@dataclass
class Branched(Shown):
    """What :func:`eager` returns; lists over prompts.

    Args:
        texts: the texts of each prompt, the first one never forked from another.
        new_tokens: their ids.
        log_likelihoods: guided log-probability of each.
        origins: for each text None, or the text of the same prompt that it forked from and how many tokens they share.
        tokens: tokens that were computed, shared ones once, over all prompts.
        result: everything, with a row for every branch that might have been used.
    """

    texts: list[list[str]]
    new_tokens: list[list[list[int]]]
    log_likelihoods: list[list[float]]
    origins: list[list[tuple[int, int] | None]]
    tokens: int
    result: GenerateResult

    def _shown(self) -> tuple[str, Sequence[Block]]:
        rows = [
            [
                f"{prompt}.{place + 1}",
                text,
                figure(likelihood, 2),
                "" if origin is None else f"{prompt}.{origin[0] + 1} behind {origin[1]} tokens",
            ]
            for prompt, group in enumerate(zip(self.texts, self.log_likelihoods, self.origins, strict=True), 1)
            for place, (text, likelihood, origin) in enumerate(zip(*group, strict=True))
        ]
        blocks: list[Block] = [table(["#", "text", "log-likelihood", "forked from"], rows, "llrl")]
        blocks += [Line(f"{self.tokens} tokens computed", quiet=True), Line(str(self.result.effect), quiet=True)]
        return f"{len(rows)} texts of {len(self.texts)} prompt{'s' * (len(self.texts) != 1)}", blocks


def eager(
    model: Any,
    tokenizer: Any,
    prompts: Any,
    guidance: Any = None,
    *,
    entropy_threshold: float = 2.2,
    max_branches: int = 8,
    **options: Any,
) -> Branched:
    """Continue each prompt as one text that forks where the guided distribution has much entropy; see
    :class:`textguide.EAGer`.

    Args:
        model: a transformers model.
        tokenizer: its tokenizer.
        prompts: as for :func:`textguide.generate`.
        guidance: a guidance or a list of them, without a constraint.
        entropy_threshold: nats above which a text forks.
        max_branches: most texts a prompt.
        **options: of :func:`textguide.generate`: ``max_new_tokens``, ``seed``, ``temperature``…

    Raises:
        ValueError: an argument has a value that cannot work; the message names it.

    Example:
        >>> out = textguide.eager(model, tokenizer, "The dragon", max_new_tokens=32, temperature=0.6)  # doctest: +SKIP
        >>> out.texts[0]  # doctest: +SKIP
    """
    given = as_guidance(guidance)
    parts = [] if given is None else list(getattr(given, "parts", (given,)))
    branches = EAGer(entropy_threshold, max_branches)
    result = generate(model, tokenizer, prompts, [*parts, branches], **options)
    if result.origins is None:  # one branch a prompt is plain decoding
        result.origins = [None] * len(result.texts)
    used = result.finished.tolist() if result.finished is not None else [True] * len(result.texts)
    out = Branched([], [], [], [], 0, result)
    for start in range(0, len(used), max_branches):
        rows = [row for row in range(start, start + max_branches) if used[row]]
        place = {row: number for number, row in enumerate(rows)}
        origins: list[tuple[int, int] | None] = []
        for row in rows:
            origin = result.origins[row]
            origins.append(None if origin is None else (place[origin[0]], origin[1]))
            out.tokens += len(result.new_tokens[row]) - (0 if origin is None else origin[1])
        out.origins.append(origins)
        out.texts.append(_at(result.texts, rows))
        out.new_tokens.append(_at(result.new_tokens, rows))
        out.log_likelihoods.append(result.log_likelihood[rows].tolist())
    return out


def _at(values: Sequence[Any], rows: Sequence[int]) -> list[Any]:
    return [values[row] for row in rows]
