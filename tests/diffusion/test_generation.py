"""The sampler: greedy equals the oracle, sampled distributions equal enumeration, batches equal single rows."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import pytest
import torch

from textguide import ACFG, CFG, diffusion
from textguide.constraints import Regex
from textguide.diffusion import denoiser
from textguide.reference import diffusion as reference_diffusion
from textguide.support.errors import GuidanceHadNoEffectWarning

from . import tiny
from .test_denoisers import oracle_of

PROMPTS = ["abc", "fghabk", "l"]
SETTINGS = [
    None,
    CFG(1.7),
    CFG(2.0, schedule="linear"),
    ACFG(2.0),
    ACFG(3.0, 0.5, "generated"),
    ACFG(0.5, 1.0, "prompt"),
]


def generate(kind: str, prompts: Any = PROMPTS, **options: Any) -> diffusion.DiffusionResult:
    options = {"gen_length": 8, "early_end": False, **options}
    return diffusion.generate(*tiny.build(kind), prompts, **options)


def written(out: diffusion.DiffusionResult, row: int) -> list[int]:
    return [int(token) for token in out.sequences[row][out.targets[row]]]


@pytest.mark.parametrize("guidance", SETTINGS, ids=str)
@pytest.mark.parametrize("kind", tiny.KINDS)
@pytest.mark.parametrize(("steps", "block"), [(8, 8), (4, 4), (3, 8)])
def test_greedy_is_the_oracle(kind: str, guidance: Any, steps: int, block: int) -> None:
    out = generate(kind, guidance=guidance, steps=steps, block_length=block, warn=False)
    made = denoiser(*tiny.build(kind))
    read = oracle_of(made)
    for row, prompt in enumerate(PROMPTS):
        expected = reference_diffusion.generate(read, made.encode(prompt), made.mask_id, 8, steps, block, guidance)
        assert written(out, row) == expected


@pytest.mark.parametrize("guidance", [CFG(1.0), ACFG(1.0), ACFG(2.0, 0.0), CFG(1.0, schedule="linear")], ids=str)
def test_neutral_is_bit_equal_and_runs_one_pass(guidance: Any) -> None:
    plain, neutral = (
        generate("llada", temperature=0.7, seed=3),
        generate("llada", temperature=0.7, seed=3, guidance=guidance),
    )
    assert torch.equal(plain.sequences, neutral.sequences)
    assert (neutral.passes, neutral.rows) == (plain.passes, plain.rows) == (8, 24)


def test_passes() -> None:
    assert (generate("llada", guidance=CFG(2.0)).passes, generate("llada", guidance=CFG(2.0)).rows) == (8, 48)
    assert generate("llada", guidance=ACFG(2.0)).passes == 16
    assert generate("llada", guidance=ACFG(2.0, one_pass=True)).passes == 9  # the first step runs both
    # Before anything is generated the scope is empty, and the second pass is left out.
    assert generate("llada", guidance=ACFG(2.0, remask_scope="generated")).passes == 15
    # γ(0) = 1 with a schedule that starts at 0.
    assert generate("llada", guidance=ACFG(2.0, schedule="linear")).passes == 15
    assert generate("llada", guidance=ACFG(2.0, start=0.5)).passes == 12


def distribution_of(
    guidance: Any, order: str, draws: int, vocabulary: int = 3, length: int = 3, **options: Any
) -> Counter[Any]:
    model, words = tiny.small(vocabulary)
    out = diffusion.generate(
        model, words, ["ab"] * draws, gen_length=length, temperature=1.0, order=order, seed=5, guidance=guidance,
        early_end=False, allowed=allowed(vocabulary), **options,
    )  # fmt: skip
    return Counter(tuple(written(out, row)) for row in range(draws))


def allowed(vocabulary: int) -> torch.Tensor:
    return torch.arange(5 + vocabulary) >= 5


def exact_distribution(guidance: Any, order: str, vocabulary: int = 3, length: int = 3) -> dict[Any, float]:
    made = denoiser(*tiny.small(vocabulary))
    read = reference_diffusion.reader(made.model, range(5))
    return reference_diffusion.sampling_distribution(read, made.encode("ab"), made.mask_id, length, guidance, order)


def p_value(found: Counter[Any], distribution: dict[Any, float]) -> float:
    """Of Pearson's χ², with rare outcomes pooled; Wilson and Hilferty's normal approximation."""
    draws = sum(found.values())
    common = {key: p for key, p in distribution.items() if p * draws >= 5}
    pairs = [(found[key], p * draws) for key, p in common.items()]
    pairs.append((draws - sum(o for o, _ in pairs), draws - sum(e for _, e in pairs)))
    statistic = sum((o - e) ** 2 / e for o, e in pairs if e > 1e-6)
    freedom = len(pairs) - 1
    z = ((statistic / freedom) ** (1 / 3) - (1 - 2 / (9 * freedom))) / math.sqrt(2 / (9 * freedom))
    return 0.5 * math.erfc(z / math.sqrt(2))


# The constraint removes the special tokens behind guidance; forbidding them in front as the oracle does gives the same
# distribution, because the extrapolation is token by token and both renormalise.
@pytest.mark.parametrize("order", ["random", "confidence"])
@pytest.mark.parametrize("guidance", [None, CFG(2.0), ACFG(2.0, 0.5)], ids=str)
def test_sampled_distribution_is_the_enumerated_one(guidance: Any, order: str) -> None:
    found = distribution_of(guidance, order, 3000)
    # The re-masked positions depend on top probabilities, which the special tokens take part in.
    made = denoiser(*tiny.small(3))
    read = reference_diffusion.reader(made.model, [1])
    if isinstance(guidance, ACFG):
        distribution = constrained_distribution(read, made.encode("ab"), guidance, order)
    else:
        distribution = exact_distribution(guidance, order)
    assert sum(distribution.values()) == pytest.approx(1.0)
    assert p_value(found, distribution) > 1e-3


def constrained_distribution(read: Any, prompt: list[int], guidance: Any, order: str) -> dict[Any, float]:
    """The enumeration with special tokens removed from the guided distribution alone."""
    plain_step = reference_diffusion.step

    def step(*args: Any) -> Any:
        distributions, lost = plain_step(*args)
        kept = {j: reference_diffusion.normalized([lp if t >= 5 else -math.inf for t, lp in enumerate(distribution)])
                for j, distribution in distributions.items()}  # fmt: skip
        return kept, lost

    reference_diffusion.step = step  # type: ignore[assignment]
    try:
        return reference_diffusion.sampling_distribution(read, prompt, 1, 3, guidance, order)
    finally:
        reference_diffusion.step = plain_step


def test_the_comparison_sees_a_wrong_distribution() -> None:
    assert p_value(distribution_of(CFG(2.0), "random", 3000), exact_distribution(None, "random")) < 1e-6
    assert p_value(distribution_of(None, "random", 3000), exact_distribution(None, "confidence")) < 1e-4
    assert p_value(distribution_of(CFG(1.5), "random", 3000), exact_distribution(CFG(2.0), "random")) < 1e-4


@pytest.mark.parametrize("kind", tiny.KINDS)
def test_batch_is_single(kind: str) -> None:
    made = denoiser(*tiny.build(kind, seed=1))  # with seed 0 two masks are equally sure to the last bit but one
    for guidance in (CFG(2.0), ACFG(2.0), ACFG(2.0, one_pass=True), CFG(2.0, negative_prompt="kk")):
        for order in ("confidence", "margin", "entropy"):
            options: dict[str, Any] = {"gen_length": 8, "steps": 4, "guidance": guidance, "order": order}
            together = diffusion.generate(made, None, PROMPTS, early_end=False, **options)
            for row, prompt in enumerate(PROMPTS):
                alone = diffusion.generate(made, None, [prompt], early_end=False, **options)
                assert written(alone, 0) == written(together, row)


def test_negative_prompt_rows() -> None:
    out = generate("llada", guidance=CFG(2.0, negative_prompt=["abc", "fghabk", "l"]), warn=False)
    assert torch.equal(out.sequences, generate("llada").sequences)
    with pytest.warns(GuidanceHadNoEffectWarning):
        generate("llada", guidance=CFG(2.0, negative_prompt=["abc", "fghabk", "l"]))


def test_threshold_fills_many_at_once() -> None:
    out = generate("llada", threshold=1e-6)
    assert out.steps == [1, 1, 1]
    assert out.passes == 1
    slow = generate("llada", threshold=1.0)
    assert slow.passes >= 8


def test_early_end() -> None:
    model, words = tiny.build("llada")
    only_end = torch.zeros(4, tiny.VOCABULARY, dtype=torch.bool)
    only_end[0, 6] = only_end[1, tiny.EOS] = only_end[2, 7] = only_end[3, 7] = True
    out = diffusion.generate(model, words, "ab", gen_length=4, block_length=1, allowed=only_end)
    assert (out.texts, out.passes) == (["b"], 2)
    whole = diffusion.generate(model, words, "ab", gen_length=4, block_length=1, allowed=only_end, early_end=False)
    assert (whole.texts, whole.passes) == (["b"], 4)


def test_finished_rows_leave_the_batch() -> None:
    out = diffusion.infill(*tiny.build("llada"), [[5, 1, 6, 7, 8], [1, 1, 1, 1]], steps=4)
    assert out.steps == [1, 4]
    assert (out.passes, out.rows) == (4, 5)


def test_infilling_keeps_what_was_given() -> None:
    assert diffusion.infill(*tiny.build("llada"), "ab[MASK]d").texts[0][:2] == "ab"
    for kind in tiny.KINDS:
        out = diffusion.infill(*tiny.build(kind), [[5, 6, 1, 8, 1]], guidance=ACFG(2.0))
        assert out.texts[0][:2] == "ab"
        assert out.texts[0][3] == "d"
    with pytest.raises(ValueError, match=r"texts\[0\] has no mask; write \[MASK\]"):
        diffusion.infill(*tiny.build("llada"), ["abc"])


def test_constraint_as_a_function_sees_the_canvas() -> None:
    def different(row: int, tokens: torch.Tensor) -> torch.Tensor:
        mask = torch.zeros(len(tokens), tiny.VOCABULARY, dtype=torch.bool)
        mask[:, 5:] = True
        mask[:, tokens[tokens >= 5]] = False
        return mask

    out = generate("dream", allowed=different, temperature=1.0, seed=1)
    for row in range(3):
        assert len(set(written(out, row))) == 8


def test_corrector_and_cfg_plus_plus_run() -> None:
    base = generate("llada", guidance=CFG(2.0), steps=4)
    plus = generate("llada", guidance=CFG(2.0), steps=4, positions="unconditional")
    fixed = generate("llada", guidance=CFG(2.0), steps=4, corrector=2, keep_history=True)
    assert not torch.equal(base.sequences, plus.sequences)
    assert fixed.passes == 8
    assert all(int(step.corrected[0].sum()) == 2 for step in fixed.history)
    assert not (fixed.sequences == tiny.MASK).any()


def test_stream_and_seed() -> None:
    model, words = tiny.build("llada")
    steps = list(diffusion.stream(model, words, "ab", gen_length=6, temperature=1.0, seed=2))
    assert [int(step.committed.sum()) for step in steps] == [1] * 6
    out = diffusion.generate(model, words, "ab", gen_length=6, temperature=1.0, seed=2, early_end=True)
    assert torch.equal(steps[-1].ids, out.sequences)
    other = diffusion.generate(model, words, "ab", gen_length=6, temperature=1.0, seed=3)
    assert not torch.equal(other.sequences, out.sequences)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"gen_length": 8, "block_length": 3},
            "max_new_tokens=8 is not divisible by block_length=3; use max_new_tokens=6",
        ),
        ({"gen_length": 8, "block_length": 2, "steps": 3}, "steps=3 is fewer than the 4 blocks"),
        ({"gen_length": 0}, "max_new_tokens=0 must be a whole number"),
        ({"gen_length": 500}, "and the model reads 64; shorten it"),
        ({"order": "best"}, "order='best' is unknown; use one of confidence"),
        ({"temperature": -1}, "temperature=-1 must be a number of 0 or more"),
        ({"threshold": 1.5}, r"threshold=1.5 must lie in \(0, 1\]"),
        ({"threshold": 0.5, "order": "entropy"}, "order='entropy' gives none"),
        ({"positions": "x"}, "positions='x' must be one of"),
        ({"corrector": -1}, "corrector=-1 must be"),
        ({"guidance": 2.0}, "guidance=2.0 is not a guidance"),
        ({"guidance": CFG(2.0, negative_prompt=["a", "b"])}, "negative_prompt has 2 rows and the batch has 3"),
        ({"allowed": torch.ones(3)}, "allowed has shape"),
        ({"allowed": torch.zeros(tiny.VOCABULARY, dtype=torch.bool)}, "allowed leaves no token"),
        ({"cache": True}, "cache=True needs a forward that takes past_key_values"),
        ({"seed": 1.5}, "seed=1.5 must be a whole number"),
        ({"seed": [1, 2]}, "seed has 2 numbers for 3 texts"),
    ],
)
def test_bad_input_is_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        generate("modernbert", **options)


def test_bad_prompts() -> None:
    for prompts, message in (([], "prompts is empty"), (3, "prompts must be"), ([None], "prompts must be texts")):
        with pytest.raises(ValueError, match=message):
            generate("llada", prompts)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"allowed": torch.ones(9, dtype=torch.bool)}, r"allowed has 9 tokens, and the model's vocabulary has 17"),
        ({"allowed": torch.ones(4, 9, dtype=torch.bool)}, r"allowed has 9 tokens, and the model's vocabulary has 17"),
        ({"allowed": torch.ones(2, 17, dtype=torch.bool)}, r"allowed has 2 positions, and row 0 has 4 masks to fill"),
        ({"allowed": torch.ones(1, 2, 17, dtype=torch.bool)}, r"allowed has 2 positions, and row 0 has 4 masks"),
        ({"allowed": lambda row, tokens: torch.ones(4, 9, dtype=torch.bool)}, "allowed has 9 tokens"),
        ({"constraint": Regex("[0-9]{2}")}, "no text that fits: the tokens of this model cannot write any"),
    ],
)
def test_what_does_not_fit_the_model_is_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        diffusion.generate(*tiny.build("llada"), "ab", max_new_tokens=4, **options)


@pytest.mark.parametrize(("name", "token"), [("mask_id", 999), ("mask_id", -1), ("end_id", 17)])
def test_tokens_outside_of_the_vocabulary_are_named(name: str, token: int) -> None:
    with pytest.raises(ValueError, match=rf"{name}={token} is not a token; the vocabulary of the model has 17 tokens"):
        denoiser(*tiny.build("llada"), **{name: token})


def test_a_target_with_the_mask_token_is_refused() -> None:
    with pytest.raises(ValueError, match=r"targets\[1\] has the mask token"):
        diffusion.score(*tiny.build("llada"), "ab", ["cd", "c[MASK]"])
