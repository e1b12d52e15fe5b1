"""Every guidance whose branches are prompts, edits or other denoisers: each way in equals the oracle."""

from __future__ import annotations

import dataclasses
from collections import Counter
from functools import lru_cache
from typing import Any

import pytest
import torch

from textguide import CFG, diffusion
from textguide.constraints import Regex
from textguide.diffusion import Denoiser, denoiser
from textguide.diffusion.branches import branch_texts, canvas_rows
from textguide.diffusion.canvas import for_generation
from textguide.diffusion.guiding import Guide, checked_guidance
from textguide.diffusion.likelihood import masked_log_likelihoods
from textguide.guidance import (
    AWRS,
    BetaCFG,
    BranchGuidance,
    ContextAware,
    ContrastiveDecoding,
    DExperts,
    DoLa,
    Formula,
    Guidance,
)
from textguide.guidance.edits import Shuffled, Unrelated
from textguide.guidance.places import place
from textguide.reference import diffusion as reference

from ..guidance import oracles
from . import tiny
from .test_denoisers import oracle_of
from .test_generation import allowed, p_value, written

oracles.collect()
PROMPTS = ("abce", "fghabk", "ll")
PASSAGES = ("b", "gh", "l")
TEXTS = ("ab[MASK]ce[MASK]", "[MASK]ghabk[MASK][MASK]", "ll[MASK]")
SETTINGS: dict[str, Any] = {
    "negatives": CFG(2.0, negative_prompt=["kk", "abcabc", "d"]),
    "not-normalised": CFG(0.5, renormalize=False),
    "bounded": CFG(2.5, start=0.3, stop=0.7, schedule="cosine", max_scale=3.0),
    **{name: one for name, one in oracles.SETTINGS.items() if isinstance(one, BranchGuidance)},
}
REFUSED = {name for name, one in SETTINGS.items() if place("diffusion").reason(one) is not None}
RUN = sorted(SETTINGS.keys() - REFUSED)
KINDS = ("bert", "llada", "dream")


def setting(name: str) -> Any:
    found = SETTINGS[name]
    return dataclasses.replace(found, context=PASSAGES) if isinstance(found, ContextAware) else found


def for_row(guidance: Any, row: int) -> Any:
    """The guidance for one of the rows."""
    given = {name: getattr(guidance, name, None) for name in ("negative_prompt", "context")}
    changes = {name: value[row] for name, value in given.items() if isinstance(value, tuple) and len(value) == 3}
    return dataclasses.replace(guidance, **changes) if changes else guidance


def models_of(kind: str, guidance: Any) -> dict[str, Any]:
    names = sorted({branch.model for branch in guidance.branches if branch.model})
    return {name: tiny.build(kind, seed=seed)[0] for seed, name in enumerate(names, start=1)}


def others_of(
    kind: str, guidance: Any, made: Denoiser, prompt: str, holes: int = 0, models: Any = None
) -> list[reference.Other]:
    """What each branch reads, written out; ``holes`` 0: the text holds its masks itself."""
    given = models_of(kind, guidance) if models is None else models
    models = {name: denoiser(model, made.tokenizer) for name, model in given.items()}
    found = []
    for branch in guidance.branches:
        model = models.get(branch.model, made)
        ids = made.encode(prompt)
        if branch.same_prompt:
            text: list[Any] = ids
        elif isinstance(branch.edit, (Shuffled, Unrelated)):
            known = branch.edit.apply([token for token in ids if token != tiny.MASK], prompt, made.encode)
            text = [token if token == tiny.MASK else known.pop(0) for token in ids]
        elif branch.edit is not None:
            text = branch.edit.apply(ids, prompt, made.encode)
        elif branch.prompt is not None:
            text = made.encode(branch.prompt)
        elif holes:
            text = [tiny.MASK] * len(ids)
        else:
            found.append((oracle_of(model), [None if t == tiny.MASK else tiny.MASK for t in ids], tiny.MASK))
            continue
        text = [*text, *[None] * holes] if holes else [None if t == tiny.MASK else t for t in text]
        found.append((oracle_of(model), text, tiny.MASK))
    return found


def tolerance(guidance: Any) -> float:
    return 2e-4 * max(1.0, getattr(guidance, "scale", 2.0))


@pytest.mark.parametrize("name", RUN)
@pytest.mark.parametrize("kind", KINDS)
def test_one_step_is_the_oracle(kind: str, name: str) -> None:
    guidance, made = setting(name), denoiser(*tiny.build(kind))
    start, canvas = (for_generation(made, [made.encode(text) for text in PROMPTS], 5, 5) for _ in range(2))
    for row, filled in enumerate([{0: 6, 3: 9}, {1: 7, 2: 7, 4: 12}, {}]):
        places = canvas.target[row].nonzero()[:, 0]
        for hole, token in filled.items():
            canvas.ids[row, places[hole]] = token
    texts = branch_texts(made, guidance, canvas_rows(start), list(PROMPTS))
    guide = Guide(made, guidance, start, texts, models_of(kind, guidance))
    where = canvas.masked(made.mask_id)
    found = iter(guide.distributions(canvas, torch.arange(3), where).guided)
    for row, prompt in enumerate(PROMPTS):
        one = for_row(guidance, row)
        expected, _ = reference.step(
            oracle_of(made), canvas.text_ids(row), tiny.MASK, range(len(prompt)), one, 5,
            others_of(kind, one, made, prompt, 5),
        )  # fmt: skip
        for distribution in expected.values():
            torch.testing.assert_close(
                next(found), torch.tensor(distribution), atol=tolerance(one), rtol=1e-4, check_dtype=False
            )
    assert next(found, None) is None


@pytest.mark.parametrize("name", RUN)
@pytest.mark.parametrize("kind", KINDS)
def test_generation_is_the_oracle_and_batch_is_single(kind: str, name: str) -> None:
    guidance, made = setting(name), denoiser(*tiny.build(kind))
    if isinstance(guidance, BetaCFG):
        # A density of 0 at the first step leaves a canvas of masks alone, whose positions are all equally sure, and at
        # power 1 a step between two distributions that hardly differ has the direction of a rounding error.
        guidance = dataclasses.replace(guidance, a=1.0, power=0.5)
    options: dict[str, Any] = {"gen_length": 6, "steps": 4, "block_length": 3, "early_end": False, "warn": False}
    models = models_of(kind, guidance)
    out = diffusion.generate(made, None, list(PROMPTS), guidance=guidance, models=models, **options)
    for row, prompt in enumerate(PROMPTS):
        one = for_row(guidance, row)
        others = others_of(kind, one, made, prompt, 6)
        expected = reference.generate(oracle_of(made), made.encode(prompt), tiny.MASK, 6, 4, 3, one, others)
        assert written(out, row) == expected
        alone = diffusion.generate(made, None, prompt, guidance=one, models=models, **options)
        assert written(alone, 0) == expected


@pytest.mark.parametrize("name", RUN)
@pytest.mark.parametrize("kind", ["bert", "llada"])
def test_infilling_is_the_oracle(kind: str, name: str) -> None:
    guidance, made = setting(name), denoiser(*tiny.build(kind))
    run = {"guidance": guidance, "models": models_of(kind, guidance), "steps": 2, "warn": False}
    if any(branch.prompt is not None for branch in guidance.branches):
        with pytest.raises(ValueError, match=r"texts\[0\] has 2 masks, and the text that a branch reads instead has 0"):
            diffusion.infill(made, None, list(TEXTS), **run)
        return
    out = diffusion.infill(made, None, list(TEXTS), **run)
    for row, text in enumerate(TEXTS):
        one = for_row(guidance, row)
        others = others_of(kind, one, made, text)
        expected = reference.infill(oracle_of(made), made.encode(text), tiny.MASK, 2, one, others)
        frame = len(made.prefix_ids)
        assert out.sequences[row].tolist()[frame : frame + len(expected)] == expected


@pytest.mark.parametrize("name", RUN)
@pytest.mark.parametrize("kind", ["bert", "llada"])
def test_every_draw_of_a_likelihood_is_the_oracles(kind: str, name: str) -> None:
    guidance, made = setting(name), denoiser(*tiny.build(kind))
    targets, masks = [[10, 11, 12], [5, 9], [6]], [[0, 2], [1], [0]]
    rows: Any = [[*made.encode(p), *[None] * len(t)] for p, t in zip(PROMPTS, targets, strict=True)]
    texts = branch_texts(made, guidance, rows, list(PROMPTS))
    models = models_of(kind, guidance)
    values = masked_log_likelihoods(made, guidance, rows, targets, masks, texts, models)
    for row, (value, prompt, target, mask) in enumerate(zip(values, PROMPTS, targets, masks, strict=True)):
        one = for_row(guidance, row)
        ids = [*made.encode(prompt), *[1 if i in mask else t for i, t in enumerate(target)]]
        others = others_of(kind, one, made, prompt, len(target))
        distributions, _ = reference.step(oracle_of(made), ids, tiny.MASK, range(len(prompt)), one, len(target), others)
        expected = sum(distributions[len(prompt) + i][target[i]] for i in mask) * len(target) / len(mask)
        assert value == pytest.approx(expected, abs=10 * tolerance(one), rel=1e-4)


@pytest.mark.parametrize("name", ["negatives", "formula-1", "token-perturbation", "contrastive-1", "lm"])
def test_scores_cover_the_any_order_likelihood(name: str) -> None:
    guidance, made = setting(name), denoiser(*tiny.build("llada"))
    targets, models = ["cd", "fe", "k"], models_of("llada", guidance)
    found = diffusion.score(made, None, list(PROMPTS), targets, guidance=guidance, models=models, draws=400, seed=1)
    for row, (prompt, target) in enumerate(zip(PROMPTS, targets, strict=True)):
        one = for_row(guidance, row)
        exact = reference.any_order_log_likelihood(
            oracle_of(made), made.encode(prompt), made.encode(target), tiny.MASK, one,
            others_of("llada", one, made, prompt, len(target)),
        )  # fmt: skip
        if exact == -float("inf"):
            assert float(found.log_likelihood[row]) == exact
        else:
            assert abs(float(found.log_likelihood[row]) - exact) < 4 * float(found.standard_error[row]) + 1e-3


@pytest.mark.parametrize("name", sorted(oracles.NEUTRAL))
def test_neutral_is_bit_equal_and_runs_one_pass(name: str) -> None:
    guidance: Any = oracles.NEUTRAL[name]
    if not guidance.is_neutral or not isinstance(guidance, BranchGuidance):
        pytest.skip("its neutral setting runs its branches, or it has none")
    options: dict[str, Any] = {"gen_length": 6, "temperature": 0.7, "seed": 3}
    plain, neutral = (
        diffusion.generate(*tiny.build("llada"), list(PROMPTS), guidance=one, **options) for one in (None, guidance)
    )
    assert torch.equal(plain.sequences, neutral.sequences)
    assert (neutral.passes, neutral.rows) == (plain.passes, plain.rows)


def test_all_branches_of_a_model_ride_in_one_pass() -> None:
    def cost(guidance: Any, **models: Any) -> tuple[int, int]:
        out = diffusion.generate(
            *tiny.build("llada"), list(PROMPTS), gen_length=4, guidance=guidance, models=models, early_end=False
        )
        return out.passes, out.rows

    other = tiny.build("llada", seed=1)[0]
    assert cost(Formula("cond - 0.2*last - 0.1*P('ab') + 0.1*P('k')")) == (4, 4 * 4 * 3)
    assert cost(Formula("cond + M('m') - 0.5*M('m', 'ab')"), m=other) == (8, 4 * 3 * 3)
    assert cost(DExperts(0.5), **{"expert": other, "anti-expert": tiny.build("llada", seed=2)[0]}) == (12, 36)
    # A window: half of the steps run the extra branch.
    assert cost(CFG(2.0, start=0.5)) == (4, 2 * 3 + 2 * 6)
    assert cost(Formula("2*cond")) == (4, 12)


def test_a_system_prompt_is_swapped() -> None:
    model, words = tiny.build("llada")
    words = tiny.tokenizer()
    words.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    chats = [[{"role": "system", "content": "ab"}, {"role": "user", "content": text}] for text in PROMPTS]
    options: dict[str, Any] = {"gen_length": 4, "early_end": False}
    out = diffusion.generate(model, words, chats, guidance=CFG(2.0, negative_system="kk"), **options)
    same = diffusion.generate(
        model, words, [f"ab{text}" for text in PROMPTS],
        guidance=CFG(2.0, negative_prompt=[f"kk{text}" for text in PROMPTS]), **options,
    )  # fmt: skip
    assert torch.equal(out.sequences, same.sequences)
    with pytest.raises(ValueError, match="texts or chats"):
        diffusion.generate(model, words, [[5, 6]], guidance=CFG(2.0, negative_system="kk"), **options)
    for guidance in (CFG(2.0, negative_system="kk"), CFG(2.0, negative_prompt=chats[0])):
        with pytest.raises(ValueError, match=r"makes a chat for the other branch.*plain text"):
            diffusion.generate(model, words, ["ab"], guidance=guidance, **options)


def test_another_text_with_masks_is_filled_alongside() -> None:
    made = denoiser(*tiny.build("llada"))
    guidance = CFG(2.0, negative_prompt="k[MASK]kk[MASK]")
    text = "ab[MASK]ce[MASK]"
    out = diffusion.infill(made, None, text, guidance=guidance)
    others = others_of("llada", guidance, made, text)
    expected = reference.infill(oracle_of(made), made.encode(text), tiny.MASK, 2, guidance, others)
    assert out.sequences[0].tolist() == expected


def test_a_denoiser_with_another_mask() -> None:
    """The other model calls the mask by another token; what it reads is translated."""
    made = denoiser(*tiny.build("llada"))
    other = denoiser(tiny.build("llada", seed=4)[0], made.tokenizer, mask_id=16)
    out = diffusion.generate(
        made, None, "abc", guidance="formula:cond + M('amateur')", models={"amateur": other}, gen_length=4,
        early_end=False,
    )  # fmt: skip
    others = [(oracle_of(other), [5, 6, 7, *[None] * 4], 16)]
    expected = reference.generate(oracle_of(made), [5, 6, 7], 1, 4, 4, 4, Formula("cond + M('amateur')"), others)
    assert written(out, 0) == expected


def test_reward_free_guidance_is_a_contrast() -> None:
    """RFG (arXiv 2509.25604): (1 + w) log p_tuned − w log p_reference at every masked position."""
    made = denoiser(*tiny.build("llada"))
    reference_model = tiny.build("llada", seed=7)[0]
    guidance = ContrastiveDecoding.reward_free(0.8)
    assert guidance == ContrastiveDecoding(alpha=0.0, beta=0.8, amateur="reference")
    ids = torch.tensor([[*made.encode("abc"), *[tiny.MASK] * 3]])
    canvas = for_generation(made, [made.encode("abc")], 3, 3)
    guide = Guide(made, guidance, canvas, models={"reference": reference_model})
    found = guide.distributions(canvas, torch.tensor([0]), canvas.target).guided
    everywhere = torch.ones_like(ids, dtype=torch.bool)
    tuned, base = (
        m(ids, everywhere)[0][0, 3:].log_softmax(-1) for m in (made, denoiser(reference_model, made.tokenizer))
    )
    expected = torch.where(tuned.isneginf(), tuned, 1.8 * tuned - 0.8 * base).log_softmax(-1)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def drawn(guidance: Any, order: str, draws: int, **models: Any) -> Counter[Any]:
    out = diffusion.generate(
        *tiny.small(3), ["ab"] * draws, gen_length=3, temperature=1.0, order=order, seed=5, guidance=guidance,
        models=models, early_end=False, allowed=allowed(3),
    )  # fmt: skip
    return Counter(tuple(written(out, row)) for row in range(draws))


def remembered(model: Any) -> reference.Read:
    """A reader that reads no row twice."""
    read = lru_cache(maxsize=None)(reference.reader(model, range(5)))
    return lambda ids: read(tuple(ids))


def enumerated(guidance: Any, order: str, **models: Any) -> dict[Any, float]:
    made = denoiser(*tiny.small(3))
    read = remembered(made.model)
    others = [
        (remembered(models.get(branch.model, made.model)), text, tiny.MASK)
        for branch, text in zip(
            guidance.branches,
            [one[0] for one in branch_texts(made, guidance, [[5, 6, None, None, None]], ["ab"])],
            strict=True,
        )
    ]
    return reference.sampling_distribution(read, [5, 6], tiny.MASK, 3, guidance, order, others)


# Each weighs tokens one by one, so that forbidding special tokens in front or behind is the same.
SAMPLED: list[BranchGuidance] = [
    CFG(1.8, negative_prompt="ca", schedule="linear-decreasing"),
    Formula("1.2*cond - 0.6*M('amateur') + 0.4*P('cab')"),
]


@pytest.mark.parametrize("order", ["random", "confidence"])
@pytest.mark.parametrize("guidance", SAMPLED, ids=str)
def test_sampled_distribution_is_the_enumerated_one(guidance: Any, order: str) -> None:
    models = {"amateur": tiny.small(3, seed=1)[0]}
    found = drawn(guidance, order, 2500, **models)
    assert p_value(found, enumerated(guidance, order, **models)) > 1e-3


def test_the_comparison_sees_a_wrong_sampler() -> None:
    models, others = ({"amateur": tiny.small(3, seed=seed)[0]} for seed in (1, 2))
    found = drawn(SAMPLED[1], "random", 2500, **models)
    assert p_value(found, enumerated(SAMPLED[1], "random", **others)) < 1e-6
    assert p_value(found, enumerated(Formula("cond"), "random")) < 1e-6
    assert p_value(drawn(SAMPLED[0], "random", 2500), enumerated(CFG(1.8, negative_prompt="ca"), "random")) < 1e-4


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_what_a_canvas_cannot_run_says_where_it_can(name: str) -> None:
    for run in (
        lambda: diffusion.generate(*tiny.build("llada"), "ab", guidance=SETTINGS[name], gen_length=4),
        lambda: diffusion.infill(*tiny.build("llada"), "a[MASK]", guidance=SETTINGS[name]),
        lambda: diffusion.score(*tiny.build("llada"), "a", "b", guidance=SETTINGS[name]),
    ):
        with pytest.raises(ValueError, match=r"; use textguide\.generate"):
            run()


@pytest.mark.parametrize(
    ("guidance", "message"),
    [
        ("awrs:constraint=x", "positions are filled in any order; use textguide.generate"),
        ("eager", "forks texts, and rows of a canvas keep their positions; use textguide.generate"),
        ("corrsynth", "rows of a canvas are filled at their own pace"),
        (DoLa(), "its layers are not known; use textguide.generate"),
        (Formula("cond + M('m')"), r"branch model 'm' is not among models= \(given: 'other'\)"),
        (ContextAware(2.0, context="q"), "is not in the prompt"),
        (CFG(2.0, negative_prompt="a" * 80), "and the model reads 64"),
        (CFG(2.0, negative_prompt=[5, 17]), "a prompt has token id 17; the vocabulary has 17 tokens"),
    ],
)
def test_bad_guidance_is_named(guidance: Any, message: str) -> None:
    if guidance == "awrs:constraint=x":
        guidance = AWRS(Regex("a+"))
    with pytest.raises(ValueError, match=message):
        diffusion.generate(*tiny.build("modernbert"), "ab", guidance=guidance, models={"other": None}, gen_length=4)


def test_models_must_share_their_tokens() -> None:
    model, words = tiny.build("llada")
    with pytest.raises(ValueError, match="model 'm' has 16 tokens in its vocabulary and the denoiser 17"):
        diffusion.generate(model, words, "ab", guidance="formula:cond + M('m')", gen_length=2,
                           models={"m": tiny.build("llada", 16)[0]})  # fmt: skip


def test_corrector_takes_guidance_by_a_scale_alone() -> None:
    options: dict[str, Any] = {"gen_length": 4, "corrector": 1}
    out = diffusion.generate(*tiny.build("llada"), "abce", guidance=ContextAware(1.5, context="b"), **options)
    assert not (out.sequences == tiny.MASK).any()
    with pytest.raises(ValueError, match=r"dola is|apg is not lu \+ γ"):
        diffusion.generate(*tiny.build("llada"), "abce", guidance="apg:scale=2", **options)


def test_checked_guidance_keeps_what_it_is_given() -> None:
    for name in RUN:
        assert checked_guidance(SETTINGS[name]) == SETTINGS[name]
    assert checked_guidance("plain") is None
    assert isinstance(checked_guidance({"method": "cfg", "scale": 2.0}), Guidance)
