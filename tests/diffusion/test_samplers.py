"""Orders and samplers: greedy runs equal the oracle, sampled ones its enumeration, and wrong ones are seen."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import pytest
import torch

from textguide import ACFG, CFG, diffusion
from textguide.constraints import Grammar, Regex
from textguide.diffusion import denoiser
from textguide.diffusion.samplers import (
    EntropyBound,
    EqualShares,
    PathPlanning,
    PositionCalibrated,
    RemaskingPosterior,
    Stability,
    Threshold,
)
from textguide.diffusion.samplers.path_planning import filled_after
from textguide.reference import diffusion as reference
from textguide.reference import samplers as oracles
from textguide.reference.decoding import Distribution

from . import tiny
from .test_denoisers import oracle_of
from .test_generation import PROMPTS, p_value, written

COUNTS = [float(1 + (3 * token) % 7) for token in range(tiny.VOCABULARY)]
SHARES = [count / sum(COUNTS) for count in COUNTS]
ORDERS: dict[Any, oracles.Certainty] = {
    "confidence": oracles.confidence,
    "margin": oracles.margin,
    "entropy": oracles.minus_entropy,
    PositionCalibrated(0.5, 0.4, torch.tensor(COUNTS)): oracles.position_calibrated(0.5, 0.4, SHARES),
}
RULES: dict[Any, oracles.Rule] = {
    EqualShares(): oracles.equal_shares,
    Threshold(0.4): oracles.threshold(0.4),
    EntropyBound(0.0): oracles.entropy_bound(0.0),
    EntropyBound(1.0): oracles.entropy_bound(1.0),
    Stability(0.3, 0.5, 1): oracles.stability(0.3, 0.5, 1),
    Stability(0.2, 1.0, 2): oracles.stability(0.2, 1.0, 2),
    PathPlanning(1.0): oracles.path_planning(1.0),
    PathPlanning(2.5): oracles.path_planning(2.5),
    RemaskingPosterior(0.0): oracles.remasking(0.0, "cap"),
    RemaskingPosterior(0.3): oracles.remasking(0.3, "cap"),
    RemaskingPosterior(0.5, "rescale"): oracles.remasking(0.5, "rescale"),
    RemaskingPosterior(1.0, "rescale", confident=True): oracles.remasking(1.0, "rescale", True),
}


HEAVY = (EqualShares(), EntropyBound(0.0), Stability(0.2, 1.0, 2), PathPlanning(2.5))
"""What is enumerated elsewhere, or takes long; greedy runs have all of them."""


def at_of(made: Any, guidance: Any, prompt: int, forbidden: Sequence[int] | None = None) -> oracles.At:
    """The guided distributions of any positions, by the oracle."""
    read = reference.reader(made.model, forbidden, prefix=made.prefix_ids) if forbidden else oracle_of(made)
    given = range(prompt)

    def at(ids: Sequence[int], places: Sequence[int]) -> dict[int, Distribution]:
        total = len(ids) - prompt
        done = total - sum(token == tiny.MASK for token in ids[prompt:])
        progress = min(1.0, done / (total - 1))
        if isinstance(guidance, ACFG):
            # What is masked again is chosen among what is filled, whatever is asked for.
            holes = [j for j in range(prompt, len(ids)) if ids[j] == tiny.MASK]
            return reference.algorithm_1(read, ids, tiny.MASK, given, guidance, holes, progress)[0]
        return reference.combined(read, ids, tiny.MASK, given, guidance, places, progress, None)

    cached = lru_cache(maxsize=None)(lambda ids, places: at(ids, places))
    return lambda ids, places: cached(tuple(ids), tuple(places))


@lru_cache(maxsize=4)
def small_at(guidance: Any) -> oracles.At:
    """Those of three tokens behind ``ab``."""
    return at_of(denoiser(*tiny.small(3)), guidance, 2, range(5))


@pytest.mark.parametrize("order", ORDERS, ids=lambda order: getattr(order, "name", order))
@pytest.mark.parametrize("sampler", [s for s in RULES if s.name != "remdm"], ids=str)
def test_greedy_is_the_oracle_and_batch_is_single(sampler: Any, order: Any) -> None:
    made = denoiser(*tiny.build("bert" if sampler.name == "p2" else "llada"))
    if order != "confidence" and sampler not in (EqualShares(), EntropyBound(1.0), PathPlanning(1.0)):
        return
    steps, block, guidance = (8, 3, CFG(1.7)) if sampler.name == "p2" else (4, 6, CFG(1.7))
    options: dict[str, Any] = {"gen_length": 6, "block_length": block, "steps": steps, "early_end": False}
    options |= {"order": order, "sampler": sampler, "guidance": guidance}
    out = diffusion.generate(made, None, PROMPTS[:2], **options)
    for row, prompt in enumerate(PROMPTS[:2]):
        ids = made.encode(prompt)
        start = len(ids)
        blocks = [list(range(start + n, start + n + block)) for n in range(0, 6, block)]
        rule = RULES[sampler]
        if sampler.name == "p2" and order == "entropy":
            rule = oracles.path_planning(sampler.eta, lambda value: value)
        found = oracles.distribution(
            at_of(made, guidance, start), [*ids, *[tiny.MASK] * 6], tiny.MASK, blocks, steps * block // 6, rule,
            ORDERS[order], revises=sampler.revises, greedy=True, history=3,
        )  # fmt: skip
        assert list(found) == [(*ids, *written(out, row))]
        assert written(diffusion.generate(made, None, prompt, **options), 0) == written(out, row)


def drawn(
    sampler: Any, guidance: Any = None, order: Any = "confidence", draws: int = 500, steps: int = 4,
    until: int | None = None,
) -> Counter[Any]:  # fmt: skip
    """What stands in the canvas at the end, or behind so many steps."""
    model, words = tiny.small(3)
    run = diffusion.stream(
        model, words, ["ab"] * draws, gen_length=4, steps=steps, temperature=1.0, seed=7, guidance=guidance,
        order=order, sampler=sampler, early_end=False, allowed=torch.arange(8) >= 5,
    )  # fmt: skip
    for step in run:
        if step.index + 1 == until:
            break
    return Counter(tuple(row) for row in step.ids[:, 2:].tolist())


def enumerated(
    rule: oracles.Rule,
    guidance: Any = None,
    certainty: Any = oracles.confidence,
    steps: int = 4,
    revises: bool = False,
    **memory: Any,
) -> dict[Any, float]:
    found = oracles.distribution(
        small_at(guidance), [5, 6, 1, 1, 1, 1], 1, [[2, 3, 4, 5]], steps, rule, certainty,
        revises=revises, **memory,
    )  # fmt: skip
    assert sum(found.values()) == pytest.approx(1.0)
    return {ids[2:]: p for ids, p in found.items()}


@pytest.mark.parametrize("sampler", [s for s in RULES if s not in HEAVY], ids=str)
def test_the_sampled_distribution_is_the_enumerated_one(sampler: Any) -> None:
    """Three tokens, four positions."""
    memory: dict[str, Any] = {"history": getattr(sampler, "history", 0), "revises": sampler.revises}
    memory["confidences"] = getattr(sampler, "confident", False)
    until = None if not sampler.revises else 2 if memory["confidences"] else 3
    assert p_value(drawn(sampler, until=until), enumerated(RULES[sampler], until=until, **memory)) > 1e-3


def test_with_guidance_other_orders_and_more_steps() -> None:
    guidance, certainty = CFG(2.0), oracles.position_calibrated(0.5, 0.4, [1 / 8] * 8)
    found = drawn(EntropyBound(0.8), guidance, PositionCalibrated(0.5, 0.4))
    assert p_value(found, enumerated(oracles.entropy_bound(0.8), guidance, certainty)) > 1e-3
    found = drawn(PathPlanning(1.0), guidance, steps=6, until=3)
    assert p_value(found, enumerated(oracles.path_planning(1.0), guidance, steps=6, revises=True, until=3)) > 1e-3


@pytest.mark.parametrize(
    ("sampler", "wrong", "until"),
    [
        (EntropyBound(1.0), oracles.entropy_bound(0.3), None),
        (Stability(0.3, 0.5, 1), oracles.stability(0.3, 0.01, 1), None),
        (Threshold(0.4), oracles.equal_shares, None),
        (PathPlanning(1.0), oracles.equal_shares, 3),
        (PathPlanning(2.5), oracles.path_planning(0.3), 3),
        (RemaskingPosterior(1.0, "rescale", confident=True), oracles.remasking(1.0, "rescale"), 2),
    ],
)
def test_the_comparison_sees_a_wrong_sampler(sampler: Any, wrong: oracles.Rule, until: int | None) -> None:
    memory: dict[str, Any] = {"history": getattr(sampler, "history", 0), "revises": sampler.revises}
    assert p_value(drawn(sampler, draws=700, until=until), enumerated(wrong, until=until, **memory)) < 1e-3


@pytest.mark.parametrize(
    ("neutral", "options"),
    [
        (EntropyBound(0.0), {}),
        (Stability(confidence=1.0), {"steps": 3}),
        (PathPlanning(0.0), {"steps": 3}),
        (EqualShares(), {"steps": 3}),
        ("threshold:value=1.0", {}),
    ],
    ids=str,
)  # fmt: skip
def test_neutral_is_bit_equal(neutral: Any, options: dict[str, Any]) -> None:
    options = {"gen_length": 8, "early_end": False, "temperature": 0.7, "seed": 3, **options}
    plain, other = (diffusion.generate(*tiny.build("llada"), PROMPTS, sampler=s, **options) for s in (None, neutral))
    assert torch.equal(plain.sequences, other.sequences)
    assert other.passes == plain.passes
    order = PositionCalibrated(0.0, float("inf"))
    ranked = diffusion.generate(*tiny.build("llada"), PROMPTS, order=order, **options)
    assert torch.equal(plain.sequences, ranked.sequences)


@pytest.mark.parametrize(
    ("sampler", "emptied"), [(RemaskingPosterior(0.3), [0.3, 0.3]), (RemaskingPosterior(0.5, "rescale"), [0.5, 0.25])],
    ids=str,
)  # fmt: skip
def test_how_much_is_masked_again(sampler: Any, emptied: list[float]) -> None:
    """Remasking leaves what is masked at any time distributed as without it; so steps are compared, not canvases."""
    model, words = tiny.small(3)
    run = diffusion.stream(model, words, ["ab"] * 600, gen_length=4, temperature=1.0, seed=1, sampler=sampler)
    before = torch.full((600, 4), tiny.MASK)
    for step in run:
        masked, now = before == tiny.MASK, step.ids[:, 2:] == tiny.MASK
        if 1 <= step.index <= 2:
            sigma, shown = emptied[step.index - 1], step.index / 4
            for found, chance in (
                (now[~masked], sigma),
                (~now[masked], (shown + 0.25 - (1 - sigma) * shown) / (1 - shown)),
            ):
                error = (chance * (1 - chance) / found.numel()) ** 0.5
                assert abs(float(found.float().mean()) - chance) < 4 * error
        before = step.ids[:, 2:].clone()
    assert not (before == tiny.MASK).any()


def test_the_loop_of_remasking() -> None:
    """Plain until the level is reached, at that level, and plain to the end; never more than there is."""
    sampler = RemaskingPosterior(0.02, "loop")
    rates = [sampler.rates(turn, 100) for turn in range(100)]
    assert [round(behind, 6) for _, _, behind in rates][-1] == 1.0
    assert {sigma for sigma, before, behind in rates if before == behind} == {0.02}
    assert all(sigma == 0.0 for sigma, before, behind in rates if before != behind)
    assert sum(sigma > 0 for sigma, _, _ in rates) == 50
    out = diffusion.generate(*tiny.build("llada"), PROMPTS, gen_length=6, steps=40, sampler=sampler, seed=1)
    assert not (out.sequences == tiny.MASK).any()
    assert out.passes <= 40


def test_what_is_emptied_is_told_and_filled_again() -> None:
    model, words = tiny.build("llada")
    steps = list(
        diffusion.stream(model, words, PROMPTS, gen_length=6, steps=12, sampler="p2:eta=3", guidance=ACFG(1.5))
    )
    assert len(steps) == 12
    emptied = torch.stack([step.emptied for step in steps if step.emptied is not None])
    assert emptied.any()
    assert not (emptied & torch.stack([step.committed for step in steps])).any()
    assert not (steps[-1].ids == tiny.MASK).any()
    assert [filled_after(4, n, 6) for n in range(7)] == [0, 1, 2, 2, 3, 4, 4]


def test_a_revised_row_ends_at_its_end_token() -> None:
    model, words = tiny.build("llada")
    only = torch.zeros(4, tiny.VOCABULARY, dtype=torch.bool)
    only[0, 6] = only[1, tiny.EOS] = only[2, 7] = only[3, 7] = True
    for sampler in ("p2", "remdm:eta=0.5"):
        out = diffusion.generate(model, words, "ab", gen_length=4, block_length=2, allowed=only, sampler=sampler)
        assert (out.texts, out.steps) == (["b"], [2])
        assert out.sequences[0, 3:].tolist() == [tiny.EOS] * 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sampler": "fast"}, "sampler='fast' is unknown; use one of eb, p2"),
        ({"sampler": 3}, "sampler=3 is unknown"),
        ({"sampler": "eb:delta=1"}, "'delta' is not a field; eb has gamma"),
        ({"sampler": "eb:gamma=much"}, "gamma='much' must be a number"),
        ({"sampler": "eb:gamma=-1"}, "gamma=-1.0 must be a number from 0"),
        ({"sampler": "eb", "threshold": 0.5}, "threshold=0.5 is a sampler of its own and sampler='eb' another"),
        ({"sampler": "klass", "order": "entropy"}, "order='entropy' gives none"),
        ({"sampler": "klass:history=0"}, "history=0 must be"),
        ({"sampler": "p2:eta=-1"}, "eta=-1.0 must be"),
        ({"sampler": "remdm:eta=2"}, "eta=2.0 must be a number from 0 to 1"),
        ({"sampler": "remdm:strategy=best"}, "strategy='best' must be one of cap"),
        ({"sampler": "remdm:strategy=loop,eta=0.5"}, "use 0.111 at most"),
        ({"sampler": "remdm:on=0.1,off=0.5"}, "1 > on > off > 0"),
        ({"sampler": "remdm:confident=maybe"}, "must be true or false"),
        ({"order": "pc:clip=0"}, "clip=0 makes all positions equal"),
        ({"order": PositionCalibrated(frequencies=torch.ones(3))}, "frequencies has 3 tokens, and the vocabulary 17"),
    ],
)
def test_bad_input_is_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        diffusion.generate(*tiny.build("llada"), "ab", gen_length=4, **options)
    with pytest.raises(ValueError, match="frequencies must be one number"):
        PositionCalibrated(frequencies=torch.zeros(3))


@pytest.mark.parametrize(
    "sampler", ["shares", "eb:gamma=0.5", "klass:confidence=0.2,divergence=9", "p2", "remdm:eta=0.4"]
)
def test_a_row_with_its_seed_draws_what_it_draws_alone(sampler: str) -> None:
    """Whatever is batched with it, under a constraint too; rows with one seed differ."""
    model, words = tiny.build("llada")
    for constraint in (None, Regex("(ab|cd)*e?[f-l]*"), Grammar('start: "a" start "b" | "c"')):
        options: dict[str, Any] = {"gen_length": 5, "temperature": 1.0, "sampler": sampler}
        options |= {"constraint": constraint, "order": "confidence" if "klass" in sampler else "random"}
        together = diffusion.generate(model, words, ["abc", "lf", "abc"], seed=[3, 4, 5], **options)
        for row, (prompt, seed) in enumerate([("abc", 3), ("lf", 4), ("abc", 5)]):
            for alone in (seed, [seed]):
                assert written(diffusion.generate(model, words, prompt, seed=alone, **options), 0) == written(
                    together, row
                )


def test_frequencies_are_turned_into_logarithms_once(monkeypatch: pytest.MonkeyPatch) -> None:
    order = PositionCalibrated(0.5, 10.0, torch.tensor([1.0, 2.0, 5.0]))
    logp, tokens, places = torch.randn(2, 3).log_softmax(-1), torch.tensor([0, 2]), torch.tensor([0, 1])
    first = order.certainty(logp, tokens, places, None)
    monkeypatch.setattr(torch.Tensor, "log", None)
    assert torch.equal(order.certainty(logp, tokens, places, None), first)
