"""Formulas: parsed and written, evaluated term by term, classifiers as terms."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from textguide.guidance import CAIF, CFG, Composed, Step
from textguide.guidance.base import Branch
from textguide.guidance.formula import C, Formula, M, P, Term, cond, largest, last, parse, smallest, term
from textguide.guidance.spec import parse as parse_spec
from textguide.reference import decoding
from textguide.step.guided_step import guided_log_probs

from .oracles import INF, oracle, settings


@oracle("formula")
def formula_oracle(guidance: Formula, logps: list[list[float]], s: float) -> list[float]:
    """Python's own arithmetic on every token, with a name for the value of each branch in the order of the branches."""
    names = {"last": "last", "M('amateur')": "a", "P('cab')": "p", "P('hello')": "h", "M('expert', 'bad')": "e"}
    expression = guidance.expression
    order = sorted((expression.index(spelled), name) for spelled, name in names.items() if spelled in expression)
    for spelled, name in names.items():
        expression = expression.replace(spelled, name)
    scores = []
    for values in zip(*logps, strict=True):
        scope = dict(zip(["cond", *(name for _, name in order)], values, strict=True))
        scores.append(values[0] if -INF in values else eval(expression, {"max": max, "min": min}, scope))
    return decoding.normalized(scores) if guidance.renormalize else scores


settings(
    Formula("cond"),
    Formula("1.5*cond - 0.5*last"),
    Formula("max(cond, P('cab')) + 0.3*(M('amateur') - M('expert', 'bad'))/2"),
    Formula("2*cond - 0.5*last", renormalize=False),
)


def test_python_and_text_say_the_same() -> None:
    expected = "1.5*cond - 0.5*(last + P('dull')) + max(M('a'), M('b', 'x'), 0)"
    built = 1.5 * cond - 0.5 * (last + P("dull")) + largest(M("a"), M("b", "x"), 0)
    assert str(built) == expected
    assert parse(expected) == built
    assert Formula(built) == Formula(expected)  # type: ignore[arg-type]
    assert str(-(cond - last) / 2 - smallest(cond, 1) * 3) == "-1*(cond - last)/2 - min(cond, 1)*3"
    assert str(1 - (cond - (last - 1))) == "1 - (cond - (last - 1))"


LEAVES = st.sampled_from([cond, last, P("x"), M("m"), M("m", "y")]) | st.integers(-3, 3).map(term)
TREES = st.recursive(
    LEAVES,
    lambda inner: st.builds(
        lambda kind, a, b: Term(kind, (a, b)), st.sampled_from(["+", "-", "*", "max", "min"]), inner, inner
    ),
    max_leaves=8,
)


@given(TREES)
def test_what_is_written_is_read_back_with_the_same_value(tree: Term) -> None:
    text = str(tree)
    logps = torch.randn(5, 1, 7, generator=torch.Generator().manual_seed(0)).log_softmax(-1)
    one, other = Formula(text), Formula(str(parse(text)))
    terms = len(one.branches)
    assert torch.equal(
        guided_log_probs(one, logps[: terms + 1], Step()), guided_log_probs(other, logps[: terms + 1], Step())
    )


def test_cfg_is_a_formula() -> None:
    logp = torch.randn(2, 3, 40, generator=torch.Generator().manual_seed(0)).log_softmax(-1)
    logp[0, 0, 3] = -INF
    logp[1, 1, 4] = -INF
    same = Formula("2.5*cond - 1.5*last")
    torch.testing.assert_close(guided_log_probs(same, logp, Step()), guided_log_probs(CFG(2.5), logp, Step()))
    assert same.branches == CFG().branches


def test_branches_are_what_the_terms_say_each_once() -> None:
    found = Formula("cond + P('a') - M('m') + 2*P('a') + M('m', 'b')").branches
    assert found == (Branch(prompt="a"), Branch(same_prompt=True, model="m"), Branch(prompt="b", model="m"))


def test_classifiers_are_terms_of_the_sum() -> None:
    found = Formula.of("1.5*cond - 0.5*last + 5*C('sentiment', 'positive') - C('profanity', 'toxic')")
    assert isinstance(found, Composed)
    assert found.parts == (
        Formula("1.5*cond - 0.5*last"),
        CAIF("sentiment", "positive", 5.0),
        CAIF("profanity", "toxic", -1.0),
    )
    assert Formula.of(C("sentiment", "positive") * 2) == Composed((Formula("cond"), CAIF("sentiment", "positive", 2.0)))
    assert parse_spec("formula:1.5*cond - 0.5*P('a, b') + 2*C('sentiment', 'positive')").parts[0] == Formula(  # type: ignore
        "1.5*cond - 0.5*P('a, b')"
    )
    with pytest.raises(ValueError, match="is a classifier"):
        Formula.of("max(cond, C('sentiment', 'positive'))")


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("cond +", "invalid syntax"),
        ("uncond", "uncond"),
        ("cond ** 2", "cond ** 2"),
        ("P(3)", "P(3)"),
        ("P('')", "P('')"),
        ("max(cond)", "max(cond)"),
        ("__import__('os')", "__import__"),
        ("cond.data", "cond.data"),
        ("M('a', b='c')", "M('a', b='c')"),
        ("1e999*cond", "inf"),
        ("cond/0", "cond/0 divides by 0"),
        ("cond/(2 - 2)", "cond/(2 - 2) divides by 0"),
        ("cond/max(-1, -0)", "divides by 0"),
        ("last + cond/1e-40", "divides by 1e-40"),
        ("1e30*cond", "the number=1e+30 is outside"),
        ("1e5*1e5*cond", "100000*100000=10000000000.0 is outside"),
    ],
)
def test_what_is_no_formula_is_shown(text: str, part: str) -> None:
    with pytest.raises(ValueError) as error:
        Formula(text)
    assert part in str(error.value)


def test_a_number_keeps_its_digits() -> None:
    exact = Formula(1.23456789 * cond - 0.1 * last)  # type: ignore[arg-type]
    assert exact.expression == "1.23456789*cond - 0.1*last"
    assert exact == Formula("1.23456789*cond - 0.1*last")


@pytest.mark.parametrize("text", ["+".join(["cond"] * 5000), "+".join(["cond"] * 120), "-" * 3000 + "cond"])
def test_formulas_of_many_terms_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"expression='.{,70} (has more than|is too long)"):
        Formula(text)


def test_formulas_of_ninety_terms_work() -> None:
    assert Formula("+".join(["cond"] * 90)).branches == ()
