"""Constraints on a canvas: exact marginals, draws and best texts, and never a text that is out of form."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from functools import cache, lru_cache
from typing import Any

import pytest
import torch

from textguide import ACFG, CAIF, CFG, diffusion
from textguide.constraints import AllOf, Grammar, JSONSchema, Not, Predicate, Regex
from textguide.diffusion import denoiser
from textguide.diffusion.canvas import for_generation, for_infilling
from textguide.diffusion.constraints import lattice
from textguide.diffusion.constraints.base import StepDistributions
from textguide.diffusion.constraints.lookahead import LookaheadConstraint
from textguide.diffusion.constraints.regular import RegularConstraint
from textguide.diffusion.constraints.rejection import RejectionConstraint
from textguide.diffusion.constraints.resolve import canvas_constraint
from textguide.diffusion.constraints.token_classes import ClassAutomaton
from textguide.guidance.algebra import log_softmax
from textguide.reference import diffusion as reference
from textguide.reference import forms as oracles

from . import tiny
from .test_generation import p_value, written

PATTERNS = ["a+b?c*", "(ab|ba|c)*", "[^b]*", "(?=.*c)[ab]+c.*", "b"]
SAMPLERS = ["shares", "eb:gamma=0.5", "klass:confidence=0.2,divergence=9", "p2", "remdm:eta=0.4", "threshold"]


def text_of(tokens: Sequence[int], letters: str = tiny.LETTERS) -> str | None:
    """The text up to the first end token; None where it holds a special token."""
    text = ""
    for token in tokens:
        if token == tiny.EOS:
            break
        if token < 5:
            return None
        text += letters[token - 5]
    return text


def in_form(pattern: str, start: int = 2, whole: bool = False) -> oracles.InForm:
    def check(row: Sequence[int]) -> bool:
        text = text_of(row[start:])
        return text is not None and not (whole and tiny.EOS in row) and re.fullmatch(pattern, text) is not None

    return check


def small() -> tuple[Any, Any]:
    """Three letters and an end token."""
    return tiny.small(3)


@lru_cache(maxsize=8)
def said(guidance: Any, allowed: tuple[int, ...] = (tiny.EOS, 5, 6, 7)) -> oracles.At:
    """What a step says of the masked positions behind ``ab``; only some tokens can be written."""
    made = denoiser(*small())
    read = reference.reader(made.model, [tiny.MASK])

    @cache
    def at(row: tuple[int, ...]) -> Any:
        found, _ = reference.step(read, row, tiny.MASK, range(2), guidance, len(row) - 2)
        return {
            j: reference.normalized([lp if token in allowed else -math.inf for token, lp in enumerate(distribution)])
            for j, distribution in found.items()
        }

    return lambda row: at(tuple(row))


def run(constraint: Any, draws: int = 1, **options: Any) -> diffusion.DiffusionResult:
    allowed = torch.tensor([token in (tiny.EOS, 5, 6, 7) for token in range(8)])
    options = {"gen_length": 4, "early_end": False, "allowed": allowed, "seed": 3, **options}
    return diffusion.generate(*small(), ["ab"] * draws, constraint=constraint, **options)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_marginals_are_the_enumerated_ones(pattern: str) -> None:
    made = denoiser(*small())
    canvas = for_generation(made, [[5, 6]], 4, 4)
    canvas.ids[0, 3] = 6 if pattern != "b" else tiny.EOS  # a position that is filled, between masked ones
    form = canvas_constraint(made, Regex(pattern), canvas, whole=False)
    assert isinstance(form, RegularConstraint)
    row = canvas.ids[0].tolist()
    expected = oracles.shares(oracles.texts(row, said(None)(tuple(row)), in_form(pattern)))
    masked = canvas.masked(tiny.MASK)
    logits, _ = made(canvas.ids, canvas.attention)
    allowed = torch.tensor([token in (tiny.EOS, 5, 6, 7) for token in range(8)])
    logp = log_softmax(logits[masked].masked_fill(~allowed, float("-inf")))
    found = form.posterior(StepDistributions(canvas, torch.arange(1), masked, masked, logp)).exp()
    for place, distribution in zip((2, 4, 5), found.tolist(), strict=True):
        exact = oracles.marginals(expected, place)
        assert distribution == pytest.approx([exact.get(token, 0.0) for token in range(8)], abs=1e-5)
    # A filled position gets what it would get if it alone were masked.
    everywhere = canvas.target.clone()
    logp = log_softmax(logits[everywhere].masked_fill(~allowed, float("-inf")))
    again = form.posterior(StepDistributions(canvas, torch.arange(1), everywhere, masked, logp)).exp()
    assert torch.allclose(again[[0, 2, 3]], found, atol=1e-6)
    assert bool((again.sum(-1) - 1).abs().max() < 1e-5)


@pytest.mark.parametrize("guidance", [None, CFG(2.0)], ids=str)
@pytest.mark.parametrize("pattern", PATTERNS)
def test_the_greedy_text_is_the_enumerated_one(pattern: str, guidance: Any) -> None:
    out = run(Regex(pattern), 2, guidance=guidance)
    expected = oracles.greedy(said(guidance), [5, 6, 1, 1, 1, 1], tiny.MASK, in_form(pattern))
    assert [written(out, row) for row in range(2)] == [list(expected[2:])] * 2
    assert re.fullmatch(pattern, out.texts[0])


@pytest.mark.parametrize(
    ("pattern", "guidance"), [("a+b?c*", None), ("(ab|ba|c)*", CFG(2.0)), ("(?=.*c)[ab]+c.*", ACFG(2.0, 0.5))], ids=str
)
def test_the_sampled_distribution_is_the_enumerated_one(pattern: str, guidance: Any) -> None:
    """Three letters and an end token, four positions: each step draws exactly, and keeps its surest token."""
    draws = 450
    out = run(Regex(pattern), draws, temperature=1.0, guidance=guidance)
    found = Counter(tuple(written(out, row)) for row in range(draws))
    expected = oracles.generation(said(guidance), [5, 6, 1, 1, 1, 1], tiny.MASK, in_form(pattern))
    assert sum(expected.values()) == pytest.approx(1.0)
    assert p_value(found, {row[2:]: p for row, p in expected.items()}) > 1e-3
    assert all(re.fullmatch(pattern, text) for text in out.texts)


def test_the_comparison_sees_wrong_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    """Draws from left to right among what may come next, which is what masks alone do, are another distribution."""
    draws = 450
    expected = oracles.generation(said(None), [5, 6, 1, 1, 1, 1], tiny.MASK, in_form("(ab|ba|c)*"))
    flat = {row[2:]: p for row, p in expected.items()}
    plain = lattice.backward

    def blind(*args: Any, **options: Any) -> Any:
        ways = plain(*args, **options)
        return torch.where(ways.isneginf(), ways, 0.0)

    monkeypatch.setattr(lattice, "backward", blind)
    out = run(Regex("(ab|ba|c)*"), draws, temperature=1.0)
    assert p_value(Counter(tuple(written(out, row)) for row in range(draws)), flat) < 1e-6
    monkeypatch.undo()
    out = run(Regex("(ab|ba|c)*"), draws, temperature=1.5)
    assert p_value(Counter(tuple(written(out, row)) for row in range(draws)), flat) < 1e-6


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_tokens_of_a_letter_are_drawn_by_their_shares(dtype: torch.dtype) -> None:
    letters = ClassAutomaton(
        torch.tensor([1, 0, 1, 2, 1, 1, 0]), torch.zeros(2, 3, dtype=torch.long), torch.ones(2).bool(), 0, 1
    )
    probs = torch.tensor([0.1, 0.2, 0.3, 0.05, 0.05, 0.0, 0.3], dtype=dtype)
    logp = probs.log()
    found = lattice.masses(letters, logp[None])
    torch.testing.assert_close(found.exp(), torch.tensor([[0.5, 0.45, 0.05]], dtype=torch.float64), atol=1e-7, rtol=0)
    assert lattice.masses(letters, logp[None], lattice.BEST).exp().tolist()[0] == pytest.approx([0.3, 0.3, 0.05])
    count = 9000
    grid = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    ends = torch.tensor([0.0, 1 - 2**-53], dtype=torch.float64)
    for letter, shares in enumerate(({1: 0.4, 6: 0.6}, {0: 2 / 9, 2: 6 / 9, 4: 1 / 9}, {3: 1.0})):
        chosen = torch.full((count,), letter)
        drawn = Counter(lattice.tokens_of(letters, logp.expand(count, -1), chosen, grid).tolist())
        assert drawn == Counter({token: pytest.approx(share * count, abs=1) for token, share in shares.items()})
        assert lattice.tokens_of(letters, logp.expand(2, -1), chosen[:2], ends).tolist() == [min(shares), max(shares)]
        assert lattice.tokens_of(letters, logp[None], chosen[:1], None).item() == max(shares, key=lambda t: shares[t])


def test_one_draw_at_another_temperature() -> None:
    """A single step: the product of the tempered distributions, given the form."""
    draws, tempered = 450, {}
    for place, distribution in said(None)((5, 6, 1, 1, 1, 1)).items():
        tempered[place] = reference.normalized([lp / 0.6 for lp in distribution])
    expected = oracles.shares(oracles.texts([5, 6, 1, 1, 1, 1], tempered, in_form("a+b?c*")))
    out = run(Regex("a+b?c*"), draws, temperature=0.6, steps=1)
    found = Counter(tuple(written(out, row)) for row in range(draws))
    assert p_value(found, {row[2:]: p for row, p in expected.items()}) > 1e-3


def test_searching_draws_by_weights() -> None:
    """Without an automaton: with many particles the same distribution, with one another."""
    draws = 200
    made = denoiser(*small())
    expected = oracles.shares(oracles.texts([5, 6, 1, 1, 1, 1], said(None)((5, 6, 1, 1, 1, 1)), in_form("(ab|ba|c)*")))
    flat = {row[2:]: p for row, p in expected.items()}
    constraint = Predicate(
        lambda text: any(re.fullmatch("(ab|ba|c)*", text + rest) for rest in ("", "a", "b")),
        lambda text: re.fullmatch("(ab|ba|c)*", text) is not None,
    )
    canvas = for_generation(made, [[5, 6]], 4, 4)
    form = canvas_constraint(made, constraint, canvas, whole=False)
    assert isinstance(form, LookaheadConstraint)
    masked = canvas.masked(tiny.MASK)
    logp = torch.tensor([said(None)((5, 6, 1, 1, 1, 1))[j] for j in range(2, 6)])
    asked = StepDistributions(canvas, torch.arange(1), masked, masked, logp)
    chance = torch.Generator().manual_seed(0)

    def uniform(rows: Sequence[int], counts: Sequence[int], width: int) -> torch.Tensor:
        return torch.rand(sum(counts), width, generator=chance, dtype=torch.float64)

    found: dict[int, Counter[Any]] = {}
    for particles in (1, 24):
        form.particles = particles
        found[particles] = Counter(tuple(form.draw(asked, 1.0, uniform).tolist()) for _ in range(draws))
        assert set(found[particles]) <= set(flat)
    assert p_value(found[24], flat) > 1e-3
    assert p_value(found[1], flat) < 1e-3
    best = max(flat, key=flat.__getitem__)
    assert tuple(form.draw(asked, 0.0, uniform).tolist()) == best


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("guidance", [None, CFG(2.0), ACFG(2.0)], ids=str)
def test_every_sampler_ends_in_form(sampler: str, guidance: Any) -> None:
    """Under guidance, in blocks, with a corrector; regular or not; whatever was given around it."""
    model, words = tiny.build("bert" if sampler == "p2" else "llada")
    options: dict[str, Any] = {"sampler": sampler, "guidance": guidance, "temperature": 1.0, "seed": 2, "warn": False}
    pattern = "(ab|cd)*e?[f-l]{2}"
    corrector = 2 if isinstance(guidance, CFG) else 0
    out = diffusion.generate(
        model, words, ["abc", "l"] * 3, gen_length=6, block_length=3, constraint=Regex(pattern), corrector=corrector,
        **options,
    )  # fmt: skip
    assert all(re.fullmatch(pattern, text) for text in out.texts), out.texts
    texts = ["ab[MASK]d[MASK][MASK]k", "[MASK][MASK]f[MASK]", "[MASK]b[MASK][MASK]"]
    filled = diffusion.infill(model, words, texts, constraint=Regex(pattern), **options)
    assert all(re.fullmatch(pattern, text) for text in filled.texts), filled.texts
    grammar = Grammar('start: "a" start "b" | "c"')
    out = diffusion.generate(model, words, ["abc", "l"], gen_length=7, constraint=grammar, **options)
    assert all(
        re.fullmatch("(a*)c(b*)", text) and len(text) % 2 and text.index("c") * 2 + 1 == len(text) for text in out.texts
    )


@pytest.mark.parametrize(("temperature", "times"), [(1.0, 1), (0.7, 2), (0.0, 2)])
def test_ways_to_the_end_are_counted_once(temperature: float, times: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Draws and marginals of one distribution share them; at another temperature they are of two."""
    model, words = small()
    canvas = for_generation(denoiser(model, words), [[5]], 4, 4)
    form = canvas_constraint(denoiser(model, words), Regex("[ab]+c?"), canvas, False)
    assert isinstance(form, RegularConstraint)
    masked = canvas.masked(tiny.MASK)
    logp = log_softmax(torch.randn(4, model.config.vocab_size))
    asked = StepDistributions(canvas, torch.arange(1), masked, masked, logp)
    calls: list[str] = []
    counted = lattice.backward
    monkeypatch.setattr(lattice, "backward", lambda *given: (calls.append(given[-1]), counted(*given))[1])
    form.draw(asked, temperature, lambda rows, counts, width: torch.rand(sum(counts), width, dtype=torch.float64))
    form.posterior(asked)
    assert len(calls) == times


def test_batch_is_single() -> None:
    model, words = tiny.build("llada")
    options: dict[str, Any] = {"gen_length": 6, "steps": 3, "constraint": Regex("(ab|cd)*e?[f-l]{1,3}")}
    together = diffusion.generate(model, words, ["abc", "fghabk"], **options)
    for row, prompt in enumerate(["abc", "fghabk"]):
        assert written(diffusion.generate(model, words, prompt, **options), 0) == written(together, row)


def test_a_constraint_that_takes_everything_is_plain() -> None:
    model, words = tiny.build("llada")
    only = torch.arange(tiny.VOCABULARY) >= 5
    options: dict[str, Any] = {"gen_length": 6, "steps": 3, "allowed": only, "order": "entropy"}
    plain, free = (diffusion.generate(model, words, "abc", constraint=c, **options) for c in (None, Regex("[a-l]*")))
    assert torch.equal(plain.sequences, free.sequences)
    assert free.passes == plain.passes


def test_other_regular_constraints_and_classes_beyond_ascii() -> None:
    model, words = tiny.build("llada")
    both = AllOf(Regex("[a-f]*"), Not(Regex(".*aa.*")))
    out = diffusion.generate(model, words, ["aaa", "b"], gen_length=6, constraint=both, temperature=1.0, seed=1)
    assert all(set(text) <= set("abcdef") and "aa" not in text for text in out.texts)
    canvas = for_generation(denoiser(model, words), [[5]], 4, 4)
    assert isinstance(
        canvas_constraint(denoiser(model, words), Regex(r"\w+"), canvas, whole=False), RejectionConstraint
    )
    for temperature in (0.0, 1.0):
        out = diffusion.generate(
            model, words, ["a", "b"], gen_length=4, constraint="regex:\\w{2}[kl]", temperature=temperature, seed=1
        )
        assert all(re.fullmatch(r"\w{2}[kl]", text) for text in out.texts)
        rare = AllOf(Regex("[ab]*"), Predicate(lambda text: True, lambda text: text == "abba"))
        out = diffusion.generate(model, words, "a", gen_length=4, constraint=rare, temperature=temperature, seed=1)
        assert out.texts == ["abba"]


def test_json_on_a_canvas() -> None:
    """A model of characters; the same row whatever it is batched with."""
    letters = '{}":ab10, '
    model, _ = tiny.build("modernbert", 5 + len(letters))
    words = tiny.tokenizer(letters=letters)
    schema = JSONSchema({"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"],
                         "additionalProperties": False})  # fmt: skip
    for temperature in (0.0, 1.0):
        out = diffusion.generate(model, words, ["a", "b"], gen_length=12, constraint=schema, temperature=temperature,
                                 seed=1, steps=6)  # fmt: skip
        assert all(re.fullmatch(r'\{\s*"a"\s*:\s*(0|-?[1-9]\d*|-0)\s*\}', text) for text in out.texts), out.texts


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"constraint": Regex("[ab]{9}")}, "row 0 has 4 masks to fill and it takes 9 tokens at least"),
        ({"constraint": Regex("z")}, "has no text that fits"),
        (
            {"constraint": Grammar('start: "a" start "b" | "cccccccc"')},
            "no text was found that fits the 4 masks of row 0",
        ),
        ({"constraint": 3}, "constraint=3 must be a constraint"),
        ({"constraint": Regex("a+"), "allowed": torch.arange(17) == 6}, "leaves no text for row 0"),
        ({"constraint": Regex("a+"), "guidance": CAIF("sentiment", "positive", top_k=4)}, "use top_k=None with"),
    ],
)
def test_what_cannot_be_is_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        diffusion.generate(*tiny.build("llada"), "ab", gen_length=4, **options)


def test_what_is_given_must_fit() -> None:
    with pytest.raises(ValueError, match="row 1 has 1 masks to fill around what is given"):
        diffusion.infill(*tiny.build("llada"), ["a[MASK]", "b[MASK]"], constraint=Regex("a."))
    canvas = for_infilling(denoiser(*tiny.build("llada")), [[5, 1, 7]])
    form = canvas_constraint(denoiser(*tiny.build("llada")), Regex("ab?c"), canvas, whole=True)
    assert isinstance(form, RegularConstraint)
