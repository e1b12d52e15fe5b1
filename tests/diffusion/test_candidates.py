"""Classifiers on the candidates of masked positions: each way in equals the oracle."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import pytest
import torch

from textguide import ACFG, CAIF, CFG, MaskedDiffusionCFGHook, diffusion
from textguide.classifiers import CausalClassifier, FunctionClassifier
from textguide.constraints import Regex
from textguide.diffusion import Denoiser, denoiser
from textguide.diffusion.likelihood import masked_log_likelihoods
from textguide.guidance import AWRS, BranchGuidance, Guidance, Reward, as_guidance, catalogue, split
from textguide.guidance.canvas_guidance import CanvasGuidance
from textguide.guidance.formula import Formula
from textguide.reference import diffusion as reference

from ..logits_processors.test_diffusion_hooks import foreign_loop
from . import tiny
from .test_branches import RUN, models_of, others_of
from .test_branches import SETTINGS as BRANCHES
from .test_denoisers import oracle_of
from .test_generation import allowed, p_value, written


def tone(texts: Sequence[str]) -> torch.Tensor:
    """A text's class depends on every character and on their order."""
    scores = [sum(math.sin(3 * ord(c) + i) for i, c in enumerate(text)) for text in texts]
    return torch.nn.functional.logsigmoid(torch.tensor([[-s, s] for s in scores], dtype=torch.float32))


class Spy(FunctionClassifier):
    """Remembers what it was asked."""

    def __init__(self) -> None:
        super().__init__(tone, ["low", "high"], name="spy")
        self.texts: list[str] = []

    def log_prob(self, texts: Sequence[str]) -> torch.Tensor:
        self.texts += texts
        return super().log_prob(texts)


class FromLeft(Spy, CausalClassifier):
    """Reads tokens, in a state that grows."""

    def __init__(self) -> None:
        super().__init__()
        self.name = "left"

    def start(self, ids: Sequence[Sequence[int]]) -> Any:
        raise NotImplementedError


TONE = FunctionClassifier(tone, ["low", "high"])
SETTINGS: dict[str, Any] = {
    "truncated": CAIF(TONE, "high", 2.0, top_k=4),
    "exact-away": CAIF(TONE, "high", -1.5, top_k=None),
    "behind-cfg": [CAIF(TONE, "low", 3.0, top_k=5), CFG(2.0, start=0.2)],
    "behind-acfg": [ACFG(2.0, 0.5), CAIF(TONE, "low", 3.0, top_k=5)],
    "behind-a-model": [Formula("cond + 0.5*M('amateur')"), CAIF(TONE, "high", 2.0, top_k=6)],
    "two": [CAIF(TONE, "high", 2.0, top_k=6), CAIF(TONE, 0, 4.0, top_k=3, include_prompt=False)],
    "a-reward": [CFG(1.5), Reward(lambda texts: [len(set(text)) - 2.0 * text.count("k") for text in texts], 1.5, 6)],
    "now-and-then": CAIF(TONE, 1, 3.0, 5, entropy_threshold=0.2, every=2, schedule="linear", start=0.1),
}
PROMPTS = ("abce", "ll")


def score(guidance: Any, text: str) -> float:
    if isinstance(guidance, Reward):
        return float(guidance.model([text])[0])
    return float(guidance.classifier.log_prob([text])[0, guidance.classifier.index(guidance.target)])


def oracle_parts(
    kind: str, setting: Any, made: Denoiser, prompt: str, holes: int
) -> tuple[BranchGuidance | None, list[reference.Other] | None, reference.Reweigh]:
    """Branches, what they read, and what becomes of their combination; ``holes`` 0: the text holds its masks."""
    parts = split(as_guidance(setting))
    branching: Any = parts.branching
    others = None
    if branching is not None and not isinstance(branching, ACFG):
        others = others_of(kind, branching, made, prompt, holes)
    ids = made.encode(prompt)
    given = range(len(ids)) if holes else [j for j, token in enumerate(ids) if token != tiny.MASK]
    count = holes or ids.count(tiny.MASK)
    reweigh = reference.reweighed(
        list(parts.reweighting),  # type: ignore[arg-type]
        tiny.MASK,
        given,
        made.end_id if holes else None,
        index=lambda row: count - sum(token == tiny.MASK for token in row),
        text_of=lambda tokens: made.tokenizer.decode(list(tokens), skip_special_tokens=True),
        score=score,
    )
    return branching, others, reweigh


def models_for(kind: str, setting: Any) -> dict[str, Any]:
    branching: Any = split(as_guidance(setting)).branching
    return {} if branching is None or isinstance(branching, ACFG) else models_of(kind, branching)


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("kind", ["bert", "llada"])
def test_generation_is_the_oracle_and_batch_is_single(kind: str, name: str) -> None:
    setting, made = SETTINGS[name], denoiser(*tiny.build(kind))
    options: dict[str, Any] = {"gen_length": 5, "early_end": False, "models": models_for(kind, setting)}
    out = diffusion.generate(made, None, list(PROMPTS), guidance=setting, **options)
    for row, prompt in enumerate(PROMPTS):
        branching, others, reweigh = oracle_parts(kind, setting, made, prompt, 5)
        expected = reference.generate(
            oracle_of(made), made.encode(prompt), tiny.MASK, 5, 5, 5, branching, others, reweigh
        )
        assert written(out, row) == expected
        assert written(diffusion.generate(made, None, prompt, guidance=setting, **options), 0) == expected
    assert out.effect.reweighed_steps > 0
    assert out.effect.classified_texts >= out.effect.reweighed_steps


@pytest.mark.parametrize("name", SETTINGS)
def test_infilling_is_the_oracle(name: str) -> None:
    setting, made = SETTINGS[name], denoiser(*tiny.build("llada"))
    texts = ["ab[MASK]ce[MASK]", "[MASK]g[MASK][MASK]b"]
    for text in texts:
        out = diffusion.infill(made, None, text, guidance=setting, models=models_for("llada", setting), warn=False)
        branching, others, reweigh = oracle_parts("llada", setting, made, text, 0)
        ids = made.encode(text)
        expected = reference.infill(oracle_of(made), ids, tiny.MASK, ids.count(1), branching, others, reweigh)
        assert out.sequences[0].tolist() == expected


@pytest.mark.parametrize("name", [name for name in SETTINGS if name != "now-and-then"])
def test_every_draw_of_a_likelihood_is_the_oracles(name: str) -> None:
    setting, made = as_guidance(SETTINGS[name]), denoiser(*tiny.build("llada"))
    targets, masks = [[10, 11, 12], [5, tiny.EOS]], [[0, 2], [0]]
    rows: Any = [[*made.encode(p), *[None] * len(t)] for p, t in zip(PROMPTS, targets, strict=True)]
    values = masked_log_likelihoods(made, setting, rows, targets, masks, models=models_for("llada", setting))
    for value, prompt, target, mask in zip(values, PROMPTS, targets, masks, strict=True):
        branching, others, reweigh = oracle_parts("llada", setting, made, prompt, len(target))
        ids = [*made.encode(prompt), *[1 if i in mask else t for i, t in enumerate(target)]]
        given = range(len(prompt))
        distributions, _ = reference.step(
            oracle_of(made), ids, tiny.MASK, given, branching, len(target), others, reweigh
        )
        expected = sum(distributions[len(prompt) + i][target[i]] for i in mask) * len(target) / len(mask)
        assert value == pytest.approx(expected, abs=1e-2, rel=1e-3)


def drawn(setting: Any, draws: int = 2000, length: int = 3) -> Counter[Any]:
    out = diffusion.generate(
        *tiny.small(3), ["ab"] * draws, gen_length=length, temperature=1.0, order="random", seed=5, guidance=setting,
        early_end=False, allowed=allowed(3),
    )  # fmt: skip
    return Counter(tuple(written(out, row)) for row in range(draws))


def enumerated(setting: Any) -> dict[Any, float]:
    made = denoiser(*tiny.small(3))
    read = lru_cache(maxsize=None)(reference.reader(made.model, range(5)))
    branching, others, reweigh = oracle_parts("", setting, made, "ab", 3)
    if branching is not None:
        others = [(lambda ids: read(tuple(ids)), [1, 1, None, None, None], 1)]
    return reference.sampling_distribution(
        lambda ids: read(tuple(ids)), [5, 6], tiny.MASK, 3, branching, "random", others, reweigh
    )


def test_sampled_distribution_is_the_enumerated_one() -> None:
    """With the whole vocabulary; and of two candidates, which are chosen among allowed tokens."""
    for setting in ([CFG(1.5), CAIF(TONE, "high", 1.5, top_k=None)], CAIF(TONE, "low", 2.0, top_k=2)):
        found = drawn(setting)
        assert p_value(found, enumerated(setting)) > 1e-3
        # Seen to fail: another weight, none, and candidates that are read in front of the text.
        assert p_value(found, enumerated(CAIF(TONE, "high", 0.5, top_k=None))) < 1e-6
    turned = FunctionClassifier(lambda texts: tone([text[::-1] for text in texts]), ["low", "high"])
    assert p_value(drawn(CAIF(TONE, "low", 2.0, top_k=2)), enumerated(CAIF(turned, "low", 2.0, top_k=2))) < 1e-6


def test_what_the_classifier_reads() -> None:
    model, words = tiny.build("llada")
    spy = Spy()
    made = denoiser(model, words)
    setting = CAIF(spy, "high", 1.0, top_k=2)
    only = torch.zeros(5, tiny.VOCABULARY, dtype=torch.bool)
    for place, tokens in enumerate([[5, 6], [7], [8, tiny.EOS], [9], [10]]):
        only[place, tokens] = True
    order: list[set[str]] = []
    run = diffusion.stream(
        made, words, "kl", gen_length=5, block_length=1, allowed=only, guidance=setting, early_end=False
    )
    for _ in run:
        order.append(set(spy.texts))
        spy.texts.clear()
    first = next(iter(order[1]))[2]  # what was written at the first position
    # Positions are filled from left to right here; an end token stands for the text that ends.
    assert order[0] == {"kla", "klb"}
    assert order[1] == {f"kl{first}c"}
    assert order[2] == {f"kl{first}cd", f"kl{first}c"}
    # What stands in front of a mask, what stands behind it, and no mask.
    out = diffusion.infill(made, words, "a[MASK]b[MASK]c", guidance=CAIF(spy, "high", top_k=1), steps=1)
    assert {text for text in spy.texts if len(text) == 4} == set(spy.texts)
    assert all(text[0] == "a" and text[-1] == "c" and "b" in text[1:3] for text in spy.texts)
    spy.texts.clear()
    diffusion.infill(made, words, "a[MASK]b[MASK]c", guidance=CAIF(spy, "high", top_k=1, include_prompt=False), steps=1)
    assert all(len(text) == 1 for text in spy.texts)
    assert out.effect.classified_texts == 2


def test_behind_an_end_no_candidate_changes_the_text() -> None:
    model, words = tiny.build("llada")
    spy = Spy()
    only = torch.zeros(3, tiny.VOCABULARY, dtype=torch.bool)
    only[0, 5] = only[1, tiny.EOS] = True
    only[2, 5:8] = True
    options: dict[str, Any] = {"gen_length": 3, "block_length": 1, "allowed": only, "early_end": False}
    diffusion.generate(model, words, "kl", guidance=CAIF(spy, "high", top_k=3), warn=False, **options)
    assert set(spy.texts) == {"kla"}


def test_neutral_is_bit_equal_and_asks_nothing() -> None:
    spy = Spy()
    options: dict[str, Any] = {"gen_length": 6, "temperature": 0.7, "seed": 3}
    plain, neutral = (
        diffusion.generate(*tiny.build("llada"), list(PROMPTS), guidance=one, **options)
        for one in (None, CAIF(spy, "high", 0.0))
    )
    assert torch.equal(plain.sequences, neutral.sequences)
    assert not spy.texts


@pytest.mark.parametrize("name", ["truncated", "behind-cfg"])
def test_the_hook_is_the_sampler(name: str) -> None:
    model, words = tiny.build("llada")
    setting = SETTINGS[name]
    expected = diffusion.generate(model, words, ["abc", "lkh"], gen_length=4, guidance=setting, early_end=False)
    prompts = torch.tensor([words(text).input_ids for text in ("abc", "lkh")])
    hook = MaskedDiffusionCFGHook(model, words, setting)
    assert torch.equal(foreign_loop(model, prompts, 4, hook, False), expected.sequences)


def test_a_classifier_by_name() -> None:
    model, words = tiny.build("llada")
    setting = "cfg:scale=1.5 + caif:classifier=sentiment,target=positive,weight=5,top_k=4"
    out = diffusion.generate(model, words, "abc", gen_length=3, guidance=setting, early_end=False)
    assert out.effect.reweighed_steps == 3
    found = diffusion.score(model, words, "ab", "cd", guidance=setting, draws=4)
    assert torch.isfinite(found.log_likelihood).all() or (found.log_likelihood == -torch.inf).any()


@pytest.mark.parametrize(
    ("setting", "options", "message"),
    [
        (CAIF(TONE, "loud"), {}, "'loud' is not a class of"),
        (CAIF(TONE, "high", top_k=40), {}, "beyond the vocabulary of 17"),
        (CAIF(TONE, "high", top_k=4), {"corrector": 1}, r"caif is not lu \+ γ"),
        (CAIF(FromLeft(), "high", top_k=4), {}, "left reads texts that grow from left to right, token by token"),
        ([CAIF(TONE, "high", top_k=4), "eager"], {}, "forks texts, and rows of a canvas keep their positions"),
    ],
)
def test_bad_settings_are_named(setting: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        diffusion.generate(*tiny.build("llada"), "ab", gen_length=3, guidance=setting, **options)


def test_a_likelihood_has_no_steps() -> None:
    with pytest.raises(ValueError, match="every=2 counts steps, and a likelihood has none"):
        diffusion.score(*tiny.build("llada"), "ab", "cd", guidance=CAIF(TONE, "high", top_k=4, every=2))


@pytest.mark.parametrize("row", catalogue.matrix(), ids=lambda row: row["method"])
def test_every_full_cell_of_the_matrix_is_run_and_every_empty_one_refused(row: dict[str, Any]) -> None:
    """The runs are those above and those of ``test_branches``, ``test_denoisers`` and ``test_generation``."""
    method, cell = row["method"], row["cells"]["diffusion"]
    if cell is True:
        parts = [part for one in SETTINGS.values() for part in getattr(as_guidance(one), "parts", (as_guidance(one),))]
        if issubclass(Guidance.registry[method], CanvasGuidance):
            return  # test_predictors, test_particles
        if method == "tsg":
            return  # test_repositories
        assert method in {part.name for part in parts} | {BRANCHES[name].name for name in RUN}
        return
    example = catalogue.example(Guidance.registry[method])
    if example.is_neutral:
        example = {"awrs": AWRS(Regex("a+"))}[method]
    with pytest.raises(ValueError, match=re.escape(cell)):
        diffusion.generate(*tiny.build("llada"), "ab", gen_length=2, guidance=example)
