"""Likelihoods: the estimate's mean is the enumeration's, and its standard error covers it."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from textguide import ACFG, CFG, diffusion
from textguide.diffusion import denoiser
from textguide.diffusion.likelihood import masked_counts, masked_log_likelihoods
from textguide.reference import diffusion as reference_diffusion

from . import tiny
from .test_denoisers import oracle_of

SETTINGS = [None, CFG(1.5), CFG(2.0, schedule="linear"), ACFG(1.5), ACFG(2.0, 0.5, "generated")]


@pytest.mark.parametrize("guidance", SETTINGS, ids=str)
@pytest.mark.parametrize("kind", ["bert", "llada", "dream"])
def test_every_draw_is_the_oracles(kind: str, guidance: Any) -> None:
    made = denoiser(*tiny.build(kind))
    prompts, targets, masks = [[5, 6], [7, 8, 9]], [[10, 11, 12], [5, 9]], [[0, 2], [1]]
    rows: Any = [[*p, *[None] * len(t)] for p, t in zip(prompts, targets, strict=True)]
    values = masked_log_likelihoods(made, guidance, rows, targets, masks)
    for value, prompt, target, mask in zip(values, prompts, targets, masks, strict=True):
        ids = [*prompt, *[1 if i in mask else t for i, t in enumerate(target)]]
        distributions, _ = reference_diffusion.step(oracle_of(made), ids, 1, range(len(prompt)), guidance, len(target))
        expected = sum(distributions[len(prompt) + i][target[i]] for i in mask) * len(target) / len(mask)
        assert value == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize("guidance", SETTINGS, ids=str)
def test_estimate_covers_the_any_order_likelihood(guidance: Any) -> None:
    model, words = tiny.build("llada")
    made = denoiser(model, words)
    targets = ["cda", "fe", "k"]
    found = diffusion.score(made, words, "ab", targets, guidance=guidance, draws=600, seed=1)
    for row, target in enumerate(targets):
        exact = reference_diffusion.any_order_log_likelihood(
            oracle_of(made), made.encode("ab"), made.encode(target), 1, guidance
        )
        subsets = reference_diffusion.masked_log_likelihood(
            oracle_of(made), made.encode("ab"), made.encode(target), 1, guidance
        )
        assert exact == pytest.approx(subsets, abs=1e-9)
        assert abs(float(found.log_likelihood[row]) - exact) < 4 * float(found.standard_error[row]) + 1e-3
    assert found.tokens.tolist() == [3, 2, 1]
    assert float(found.standard_error[2]) == pytest.approx(0.0, abs=1e-6)


def test_the_comparison_sees_wrong_weights() -> None:
    """Without the factor n/k the estimate lies far outside its own error."""
    model, words = tiny.build("llada")
    made = denoiser(model, words)
    exact = reference_diffusion.any_order_log_likelihood(oracle_of(made), made.encode("ab"), made.encode("cda"), 1)
    found = diffusion.score(made, words, "ab", "cda", draws=600, seed=1)
    generator = torch.Generator().manual_seed(1)
    counts = masked_counts(3, 600, generator)
    masks = [torch.randperm(3, generator=generator)[:k].tolist() for k in counts]
    values = masked_log_likelihoods(made, None, [[5, 6, None, None, None]] * 600, [made.encode("cda")] * 600, masks)
    wrong = sum(v * k / 3 for v, k in zip(values, counts, strict=True)) / 600
    assert abs(wrong - exact) > 4 * float(found.standard_error[0]) + 1e-3


def test_strata_are_even_and_masks_do_not_depend_on_company() -> None:
    counts = masked_counts(4, 16, torch.Generator().manual_seed(0))
    assert sorted(counts) == sorted([1, 2, 3, 4] * 4)
    model, words = tiny.build("modernbert")
    alone = diffusion.score(model, words, "ab", "cdef", guidance=ACFG(1.5), draws=8)
    beside = diffusion.score(model, words, ["l", "ab"], ["abc", "cdef"], guidance=ACFG(1.5), draws=8, batch_size=5)
    assert float(alone.log_likelihood[0]) == pytest.approx(float(beside.log_likelihood[1]), abs=1e-4)


def test_generated_scope_does_not_guide_single_tokens() -> None:
    model, words = tiny.build("llada")
    plain = diffusion.score(model, words, "ab", "c", draws=2)
    guided = diffusion.score(model, words, "ab", "c", draws=2, guidance=ACFG(2.0, remask_scope="generated"))
    assert torch.equal(plain.log_likelihood, guided.log_likelihood)


def test_negative_prompt() -> None:
    model, words = tiny.build("llada")
    plain = diffusion.score(model, words, "ab", "cd", draws=4)
    same = diffusion.score(model, words, "ab", "cd", draws=4, guidance=CFG(2.0, negative_prompt="ab"))
    other = diffusion.score(model, words, "ab", "cd", draws=4, guidance=CFG(2.0, negative_prompt="kkk"))
    assert float(same.log_likelihood[0]) == pytest.approx(float(plain.log_likelihood[0]), abs=1e-4)
    assert float(other.log_likelihood[0]) != pytest.approx(float(plain.log_likelihood[0]), abs=1e-2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"guidance": ACFG(2.0, one_pass=True)}, "one_pass=True ranks positions"),
        ({"draws": 0}, "draws=0 must be"),
        ({"targets": ["a", ""]}, r"targets\[1\] is empty"),
        ({"prompts": ["a", "b", "c"]}, "prompts has 3 rows and targets 1"),
    ],
)
def test_bad_input_is_named(options: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {"prompts": "ab", "targets": ["cd"], "draws": 2, **options}
    with pytest.raises(ValueError, match=message):
        diffusion.score(*tiny.build("llada"), **arguments)
