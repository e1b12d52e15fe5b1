"""The oracles of masked diffusion: one step, the sampler and the likelihood as the plainest loops that can be right.

One row at a time, no padding, no batch, float64 arithmetic token by token; see :mod:`textguide.reference.decoding`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from fractions import Fraction
from itertools import combinations, permutations
from typing import Any

import torch

from ..guidance import ACFG, BranchGuidance
from ..guidance.text_reweighting import TextReweighting
from . import decoding
from .decoding import Distribution, guided_distribution, normalized, schedule_multiplier

Read = Callable[[Sequence[int]], list[Distribution]]
"""Token ids of a row to one distribution a position."""
Other = tuple[Read, Sequence["int | None"], int]
"""What an extra branch reads: its model, its text with None for every position to fill, the mask of its model."""
Reweigh = Callable[[Distribution, list[int], int, float], Distribution]
"""From the distribution of a position, the row, the position and the progress to another distribution."""


def reader(
    model: Any,
    forbidden: Sequence[int],
    *,
    shifted: bool = False,
    prefix: Sequence[int] = (),
    suffix: Sequence[int] = (),
) -> Read:
    """Reads rows with a torch model.

    Args:
        forbidden: tokens whose logit is −∞.
        shifted: logits at ``j`` are the distribution of token ``j + 1``.
        prefix, suffix: the frame that is read around a row, and dropped from the answer.
    """

    def read(ids: Sequence[int]) -> list[Distribution]:
        row = torch.tensor([[*prefix, *ids, *suffix]])
        with torch.no_grad():
            logits = model(input_ids=row, attention_mask="full" if shifted else torch.ones_like(row)).logits[0]
        scores = logits.double().tolist()
        if shifted:
            scores = [scores[0], *scores[:-1]]
        scores = scores[len(prefix) : len(prefix) + len(ids)]
        return [
            normalized([-math.inf if t in forbidden else s for t, s in enumerate(distribution)])
            for distribution in scores
        ]

    return read


def scale_at(guidance: ACFG, s: float) -> float:
    """γ(s)."""
    if s < guidance.start or s > guidance.stop:
        return 1.0
    return 1 + (guidance.scale - 1) * schedule_multiplier(guidance.schedule, s)


def mixed(cond: Distribution, uncond: Distribution, scale: float) -> Distribution:
    """``lu + γ (lc − lu)``, normalised; a token that either branch forbids keeps ``lc``."""
    return normalized(
        [lc if -math.inf in (lc, lu) else lu + scale * (lc - lu) for lc, lu in zip(cond, uncond, strict=True)]
    )


def remasked(distributions: Sequence[Distribution], candidates: Sequence[int], ratio: float) -> list[int]:
    """Algorithm 1, lines 3 to 5: the ⌈ρ|C|⌉ candidates with the lowest top probability."""
    count = math.ceil(Fraction(str(ratio)) * len(candidates))
    order = sorted(candidates, key=lambda j: (math.exp(max(distributions[j])), j))
    return sorted(order[:count])


def step(
    read: Read,
    ids: Sequence[int],
    mask: int,
    given: Sequence[int],
    guidance: BranchGuidance | None,
    total: int,
    others: Sequence[Other] | None = None,
    reweigh: Reweigh | None = None,
) -> tuple[dict[int, Distribution], list[int]]:
    """One denoising step: the guided distribution of every masked position, and what was masked again.

    Args:
        ids: the row.
        given: positions of the prompt.
        total: how many positions had to be filled at the start.
        others: what each extra branch reads; None: the prompt masked.
        reweigh: what becomes of the combined distribution of a position.
    """
    holes = [j for j, token in enumerate(ids) if token == mask and j not in given]
    done = total - len(holes)
    progress = min(1.0, done / (total - 1)) if total > 1 else 0.0
    if isinstance(guidance, ACFG):
        guided, lost = algorithm_1(read, ids, mask, given, guidance, holes, progress)
    else:
        guided, lost = combined(read, ids, mask, given, guidance, holes, progress, others), []
    if reweigh is not None:
        guided = {j: reweigh(distribution, list(ids), j, progress) for j, distribution in guided.items()}
    return guided, lost


def combined(
    read: Read,
    ids: Sequence[int],
    mask: int,
    given: Sequence[int],
    guidance: BranchGuidance | None,
    holes: Sequence[int],
    progress: float,
    others: Sequence[Other] | None,
) -> dict[int, Distribution]:
    """The distributions of the branches, put together position by position."""
    cond = read(ids)
    if guidance is None:
        return {j: cond[j] for j in holes}
    targets = [j for j in range(len(ids)) if j not in given]
    if others is None:
        others = [(read, [mask if j in given else None for j in range(len(ids))], mask)] * len(guidance.branches)
    answers: list[dict[int, Distribution]] = []
    for reader, text, own_mask in others:
        places = [place for place, token in enumerate(text) if token is None]
        row = [0 if token is None else token for token in text]
        for place, target in zip(places, targets, strict=True):
            row[place] = own_mask if ids[target] == mask else ids[target]
        said = reader(row)
        answers.append({target: said[place] for place, target in zip(places, targets, strict=True)})
    return {
        j: normalized(guided_distribution(guidance, [cond[j], *(said[j] for said in answers)], progress)) for j in holes
    }


def algorithm_1(
    read: Read,
    ids: Sequence[int],
    mask: int,
    given: Sequence[int],
    guidance: ACFG,
    holes: Sequence[int],
    progress: float,
) -> tuple[dict[int, Distribution], list[int]]:
    """Algorithm 1 of arXiv 2505.20199."""
    distributions = read(ids)
    scale = scale_at(guidance, progress)
    filled = [j for j in range(len(ids)) if j not in holes]
    scope = {"all": filled, "prompt": list(given), "generated": [j for j in filled if j not in given]}
    lost = remasked(distributions, scope[guidance.remask_scope], guidance.remask_ratio) if scale != 1.0 else []
    if not lost:
        return {j: distributions[j] for j in holes}, []
    other = read([mask if j in lost else token for j, token in enumerate(ids)])
    return {j: mixed(distributions[j], other[j], scale) for j in holes}, lost


def reweighed(
    guidances: Sequence[TextReweighting],
    mask: int,
    given: Sequence[int],
    end: int | None,
    *,
    index: Callable[[Sequence[int]], int],
    text_of: Callable[[Sequence[int]], str],
    score: Callable[[Any, str], float],
) -> Reweigh:
    """Reweighting at a masked position: ``p(x) · exp(weight · score(text)) / Z``, with the candidate in the text.

    Args:
        given: positions of the prompt.
        end: the text ends in front of the first such token that is filled in; None: it is the whole row.
        index: number of the step, from the row as it is.
        text_of: the text of token ids.
        score: the guidance's score of a text.
    """

    def read(guidance: TextReweighting, row: Sequence[int], place: int, candidate: int) -> str:
        shown: list[int] = []
        for j, token in enumerate(row):
            token = candidate if j == place else token
            if token == end and j not in given:
                break
            if j == place or (token != mask and (j not in given or guidance.include_prompt)):
                shown.append(token)
        return text_of(shown)

    def reweigh(distribution: Distribution, row: list[int], place: int, s: float) -> Distribution:
        # The rule itself is that of texts that grow; the candidate represents the text that it makes.
        return decoding.reweighed(
            guidances,
            distribution,
            (),
            (),
            index(row),
            s,
            text_of=lambda tokens: str(tokens[-1]),
            score=lambda guidance, token: score(guidance, read(guidance, row, place, int(token))),
        )

    return reweigh


def generate(
    read: Read,
    prompt: Sequence[int],
    mask: int,
    length: int,
    steps: int,
    block: int,
    guidance: BranchGuidance | None,
    others: Sequence[Other] | None = None,
    reweigh: Reweigh | None = None,
) -> list[int]:
    """Greedy, the most confident positions first, equal shares a step: the new tokens."""
    ids = [*prompt, *[mask] * length]
    blocks = [[len(prompt) + number * block + i for i in range(block)] for number in range(length // block)]
    return fill(read, ids, mask, blocks, steps, guidance, others, reweigh)[len(prompt) :]


def infill(
    read: Read,
    text: Sequence[int],
    mask: int,
    steps: int,
    guidance: BranchGuidance | None,
    others: Sequence[Other] | None = None,
    reweigh: Reweigh | None = None,
) -> list[int]:
    """The same for the masks of a text: the whole text."""
    return fill(
        read, text, mask, [[j for j, token in enumerate(text) if token == mask]], steps, guidance, others, reweigh
    )


def fill(
    read: Read,
    text: Sequence[int],
    mask: int,
    blocks: Sequence[Sequence[int]],
    steps: int,
    guidance: BranchGuidance | None,
    others: Sequence[Other] | None,
    reweigh: Reweigh | None,
) -> list[int]:
    """The row with the positions of the blocks filled, one block after the other."""
    ids, targets = list(text), [j for inside in blocks for j in inside]
    given = [j for j in range(len(ids)) if j not in targets]
    for number, inside in enumerate(blocks):
        turns = min(steps // len(blocks) + (number < steps % len(blocks)), len(inside))
        for turn in range(turns):
            quota = len(inside) // turns + (turn < len(inside) % turns)
            distributions, _ = step(read, ids, mask, given, guidance, len(targets), others, reweigh)
            holes = [j for j in inside if ids[j] == mask]
            holes.sort(key=lambda j: (-max(distributions[j]), j))
            for j in holes[:quota]:
                ids[j] = max(range(len(distributions[j])), key=distributions[j].__getitem__)
    return ids


def any_order_log_likelihood(
    read: Read,
    prompt: Sequence[int],
    target: Sequence[int],
    mask: int,
    guidance: BranchGuidance | None = None,
    others: Sequence[Other] | None = None,
    reweigh: Reweigh | None = None,
) -> float:
    """Mean over all orders of the log-probability of writing ``target`` in that order, by enumeration."""
    given = list(range(len(prompt)))
    total = []
    for order in permutations(range(len(target))):
        ids = [*prompt, *[mask] * len(target)]
        value = 0.0
        for place in order:
            distributions, _ = step(read, ids, mask, given, guidance, len(target), others, reweigh)
            value += distributions[len(prompt) + place][target[place]]
            ids[len(prompt) + place] = target[place]
        total.append(value)
    return sum(total) / len(total)


def masked_log_likelihood(
    read: Read,
    prompt: Sequence[int],
    target: Sequence[int],
    mask: int,
    guidance: BranchGuidance | None = None,
    others: Sequence[Other] | None = None,
    reweigh: Reweigh | None = None,
) -> float:
    """The Monte Carlo estimate's mean by enumeration of every set of masked tokens; equals the mean over orders."""
    given, n = list(range(len(prompt))), len(target)
    total = 0.0
    for k in range(1, n + 1):
        sets = list(combinations(range(n), k))
        for hidden in sets:
            ids = [*prompt, *[mask if i in hidden else token for i, token in enumerate(target)]]
            distributions, _ = step(read, ids, mask, given, guidance, n, others, reweigh)
            total += n / k * sum(distributions[len(prompt) + i][target[i]] for i in hidden) / len(sets) / n
    return total


def sampling_distribution(
    read: Read,
    prompt: Sequence[int],
    mask: int,
    length: int,
    guidance: BranchGuidance | None,
    order: str,
    others: Sequence[Other] | None = None,
    reweigh: Reweigh | None = None,
) -> dict[tuple[int, ...], float]:
    """The distribution of the tokens that the sampler writes at temperature 1, one a step, for ``random`` or
    ``confidence``."""
    given = list(range(len(prompt)))
    result: dict[tuple[int, ...], float] = {}

    def walk(ids: list[int], weight: float) -> None:
        if weight == 0.0:
            return
        distributions, _ = step(read, ids, mask, given, guidance, length, others, reweigh)
        if not distributions:
            key = tuple(ids[len(prompt) :])
            result[key] = result.get(key, 0.0) + weight
            return
        if order == "random":
            for place, distribution in distributions.items():
                for token, lp in enumerate(distribution):
                    walk(
                        [token if j == place else t for j, t in enumerate(ids)],
                        weight * math.exp(lp) / len(distributions),
                    )
            return

        def draw(places: list[int], drawn: dict[int, int], share: float) -> None:
            if places:
                for token, lp in enumerate(distributions[places[0]]):
                    draw(places[1:], {**drawn, places[0]: token}, share * math.exp(lp))
                return
            best = min(drawn, key=lambda j: (-distributions[j][drawn[j]], j))
            walk([drawn[best] if j == best else t for j, t in enumerate(ids)], share)

        draw(list(distributions), {}, weight)

    walk([*prompt, *[mask] * length], 1.0)
    return result
