"""Statistics against enumeration, closed forms and published values."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from textguide.eval.statistics import intervals
from textguide.eval.statistics.intervals import (
    calibration_bins,
    expected_calibration_error,
    flip_matrix,
    holm,
    mcnemar,
    mean_interval,
    paired_bootstrap,
    perplexity_interval,
    select_scale,
)
from textguide.eval.statistics.resampling import resampled_means, resampled_ratios


def binary(right: int, n: int) -> list[int]:
    return [1] * right + [0] * (n - right)


# Newcombe 1998, Statistics in Medicine 17:857, table I, method 3 (Wilson without continuity correction).
@pytest.mark.parametrize(
    ("right", "n", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_published(right: int, n: int, low: float, high: float) -> None:
    interval = mean_interval(binary(right, n))
    assert (round(interval.low, 4), round(interval.high, 4)) == (low, high)
    assert interval.mean == right / n


@given(st.integers(0, 60), st.integers(1, 60), st.floats(0.5, 0.999))
def test_wilson_solves_its_equation(right: int, n: int, confidence: float) -> None:
    """The ends are where |p̂ − p| = z √(p(1 − p)/n)."""
    right = min(right, n)
    z = intervals.normal_quantile(confidence)
    interval = mean_interval(binary(right, n), confidence)
    for end in (interval.low, interval.high):
        assert (right / n - end) ** 2 == pytest.approx(z * z * end * (1 - end) / n, abs=1e-12)
    assert 0 <= interval.low <= interval.mean <= interval.high <= 1


def test_standard_error_is_that_of_a_sample() -> None:
    assert mean_interval([1, 0, 0, 1, 1]).stderr == pytest.approx(math.sqrt(0.6 * 0.4 / 4))
    assert math.isnan(mean_interval([1]).stderr)
    normal = mean_interval([1.0, 2.0, 4.0], method="normal")
    assert normal.high - normal.mean == pytest.approx(1.959964 * np.std([1, 2, 4], ddof=1) / math.sqrt(3))


def test_default_method_follows_the_values() -> None:
    assert mean_interval([0, 1, 1]) == mean_interval([0, 1, 1], method="wilson")
    assert mean_interval([0, 1, 1.5]) == mean_interval([0, 1, 1.5], method="bootstrap")


@pytest.mark.parametrize("few", [True, False])
def test_resampled_means_follow_the_exact_distribution(few: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against all 4⁴ samples of four items, whether counts or items are drawn."""
    x = np.array([0.0, 1.0, 1.0, 5.0])
    if not few:
        monkeypatch.setattr("textguide.eval.statistics.resampling._FEW_VALUES", 0)
        monkeypatch.setattr("textguide.eval.statistics.resampling._CHUNK", 1000)
    exact: dict[float, Fraction] = {}
    for sample in itertools.product(x, repeat=4):
        exact[sum(sample) / 4] = exact.get(sum(sample) / 4, Fraction(0)) + Fraction(1, 256)
    drawn = resampled_means(x, 20_000, seed=1)
    assert len(drawn) == 20_000
    seen, counts = np.unique(drawn, return_counts=True)
    assert set(seen) == set(exact)
    expected = np.array([float(exact[value]) * 20_000 for value in seen])
    chi_square = float(((counts - expected) ** 2 / expected).sum())
    # 99.9% point of χ² with k degrees of freedom, by Wilson and Hilferty's cube
    k = len(seen) - 1
    assert chi_square < k * (1 - 2 / (9 * k) + 3.09 * math.sqrt(2 / (9 * k))) ** 3


def test_bootstrap_is_seeded() -> None:
    x = np.random.default_rng(0).lognormal(size=200)
    assert mean_interval(x, seed=3) == mean_interval(x, seed=3)
    assert mean_interval(x, seed=3) != mean_interval(x, seed=4)


def test_bootstrap_coverage_on_skewed_values() -> None:
    """Nominal 90% on a log-normal; the spread of 300 runs is 1.7 points."""
    generator = np.random.default_rng(5)
    truth = math.exp(0.18)
    hits = 0
    for _ in range(300):
        interval = mean_interval(generator.lognormal(0.0, 0.6, size=80), 0.9, resamples=1000)
        hits += interval.low <= truth <= interval.high
    assert 0.85 <= hits / 300 <= 0.94


def test_paired_bootstrap_level_and_coverage() -> None:
    """Without a difference p < 0.1 in a tenth of the runs, and the interval holds 0 in the others."""
    generator = np.random.default_rng(6)
    small = held = 0
    for _ in range(400):
        common = generator.normal(size=60) * 5
        result = paired_bootstrap(
            common + generator.normal(size=60), common + generator.normal(size=60), 500, confidence=0.9
        )
        small += result.p < 0.1
        held += result.low <= 0 <= result.high
    assert 0.06 <= small / 400 <= 0.15
    assert 0.85 <= held / 400 <= 0.94


def test_paired_bootstrap_sees_through_common_noise() -> None:
    common = np.random.default_rng(0).normal(size=100) * 100
    noise = np.random.default_rng(1).normal(size=100) * 0.1
    result = paired_bootstrap(common + 0.1 + noise, common)
    assert result.p < 0.001
    assert result.low > 0
    assert result.difference == pytest.approx(0.1 + noise.mean())


def test_paired_bootstrap_p_against_enumeration() -> None:
    """All resamples of five differences, counted."""
    d = np.array([1.0, 1.0, 0.0, -1.0, 1.0])
    means = np.array([sum(sample) / 5 for sample in itertools.product(d, repeat=5)])
    exact = float(np.mean(np.abs(means - 0.4) >= 0.4 - 1e-12))
    assert paired_bootstrap(d, np.zeros(5), resamples=200_000).p == pytest.approx(exact, abs=0.005)


def test_paired_bootstrap_of_nothing() -> None:
    assert paired_bootstrap([1, 0, 1], [1, 0, 1]) == (0.0, 0.0, 0.0, 1.0)


@given(st.integers(0, 40), st.integers(0, 40), st.integers(0, 5))
def test_mcnemar_is_the_binomial_test(b: int, c: int, same: int) -> None:
    first = [1] * b + [0] * c + [1] * (same + 1)
    second = [0] * b + [1] * c + [1] * (same + 1)
    result = mcnemar(first, second)
    n = b + c
    observed = math.comb(n, b)
    # two-sided by "no more probable than what was seen", which for p = ½ is the doubled tail
    exact = Fraction(sum(math.comb(n, k) for k in range(n + 1) if math.comb(n, k) <= observed), 2**n)
    assert (result.b, result.c, result.method) == (b, c, "exact")
    assert result.p == pytest.approx(float(exact), rel=1e-12)
    assert mcnemar(second, first).p == result.p


def test_mcnemar_published() -> None:
    """Approval ratings in Agresti, Categorical Data Analysis, table 10.1: 150 and 86 discordant pairs."""
    first = [1] * 150 + [0] * 86
    result = mcnemar(first, [1 - x for x in first])
    assert (result.b, result.c) == (150, 86)
    assert result.p == pytest.approx(3.7159361395713866e-05)  # SciPy's binomtest(86, 236)


def test_mcnemar_branches_agree_where_they_meet(monkeypatch: pytest.MonkeyPatch) -> None:
    first = [1] * 530 + [0] * 470
    second = [1 - x for x in first]
    exact = mcnemar(first, second)
    monkeypatch.setattr(intervals, "EXACT_DISCORDANT", 999)
    approximate = mcnemar(first, second)
    assert (exact.method, approximate.method) == ("exact", "chi-square")
    assert approximate.p == pytest.approx(exact.p, rel=0.01)


def test_mcnemar_handles_many_discordant_pairs() -> None:
    result = mcnemar([1] * 4000 + [0] * 3900, [0] * 4000 + [1] * 3900)
    assert result.p == pytest.approx(math.erfc(math.sqrt(99**2 / 7900 / 2)))


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


def test_perplexity_of_equal_items_is_exact() -> None:
    interval = perplexity_interval([math.log(7)] * 5)
    assert interval == pytest.approx((7, 0, 7, 7))


def test_perplexity_weighs_by_words() -> None:
    interval = perplexity_interval([2.0, 12.0, 4.0], [1, 6, 2], method="normal")
    assert interval == pytest.approx((math.exp(2), 0, math.exp(2), math.exp(2)))
    interval = perplexity_interval([2.0, 9.0], [1, 3], method="normal")
    assert interval.mean == pytest.approx(math.exp(11 / 4))
    residual = 2.0 - 11 / 4
    stderr = math.sqrt(2 * 2 * residual**2) / 4
    assert interval.stderr == pytest.approx(math.exp(11 / 4) * stderr)
    assert interval.high == pytest.approx(math.exp(11 / 4 + 1.959964 * stderr), rel=1e-6)


def test_perplexity_coverage() -> None:
    generator = np.random.default_rng(9)
    hits = {"bootstrap": 0, "normal": 0}
    for _ in range(200):
        words = generator.integers(5, 50, size=60)
        nll = words * generator.gamma(4.0, 0.5, size=60)
        for method in hits:
            interval = perplexity_interval(nll, words, 0.9, method, resamples=400)
            hits[method] += interval.low <= math.exp(2) <= interval.high
    assert all(0.83 <= count / 200 <= 0.95 for count in hits.values()), hits


def test_ratios_are_resampled_together() -> None:
    ratios = resampled_ratios(np.array([1.0, 10.0]), np.array([1.0, 10.0]), 100, 0)
    assert (ratios == 1).all()


def test_infinite_perplexity_is_infinite() -> None:
    assert perplexity_interval([800.0, 900.0]).mean == math.inf


def test_calibration_by_hand() -> None:
    confidences = [0.1, 0.2, 0.5, 0.9, 1.0, 0.0]
    correct = [0, 1, 1, 1, 0, 0]
    parts = calibration_bins(confidences, correct, bins=2)
    assert [n for *_, n in parts] == [4, 2]
    assert [part[:2] for part in parts] == [pytest.approx((0.2, 0.5)), pytest.approx((0.95, 0.5))]
    assert expected_calibration_error(confidences, correct, 2) == pytest.approx(4 / 6 * 0.3 + 2 / 6 * 0.45)
    assert expected_calibration_error([1.0, 1.0, 0.0], [1, 1, 0]) == 0.0


@given(st.lists(st.tuples(st.floats(0, 1), st.integers(0, 1)), min_size=1), st.integers(1, 20))
def test_calibration_loses_no_item(items: list[tuple[float, int]], bins: int) -> None:
    confidences, correct = zip(*items, strict=True)
    parts = calibration_bins(confidences, correct, bins)
    assert sum(n for *_, n in parts) == len(items)
    assert 0 <= expected_calibration_error(confidences, correct, bins) <= 1


def test_flip_matrix_by_hand() -> None:
    assert flip_matrix([0, 0, 0, 1, 1, 1], [0, 1, 1, 0, 1, 1]).tolist() == [[1, 2], [1, 2]]
    assert flip_matrix([1], [1]).tolist() == [[0, 0], [0, 1]]


def test_selection_reports_on_the_other_half() -> None:
    per_item = {"1": [1, 0, 1, 0, 1], "1.5": [1, 1, 0, 0, 0], "2": [0, 0, 1, 1, 1]}
    selection = select_scale(per_item)
    assert (selection.label, selection.selected_value, selection.n_selected) == ("1.5", 1.0, 2)
    assert (selection.reported.mean, selection.n_reported, selection.warning) == (0.0, 3, "")
    selection = select_scale(per_item, "second-half")
    assert (selection.label, selection.reported.mean, selection.n_reported) == ("2", 0.0, 2)
    assert selection.reported == mean_interval([0, 0])


def test_selection_on_all_items_warns() -> None:
    per_item = {"1": [1, 0, 0, 0], "2": [0, 1, 1, 0]}
    selection = select_scale(per_item, "all")
    assert selection.label == "2"
    assert "same 4 items" in selection.warning
    assert select_scale({"1": [1, 0]}, "all").warning == ""


def test_selection_order_and_direction() -> None:
    assert select_scale({"a": [1, 0], "b": [1, 1]}).label == "a"
    assert select_scale({"a": [2.0, 0], "b": [1.0, 1]}, higher_is_better=False).label == "b"


def test_selection_compares_with_the_baseline_on_the_other_half() -> None:
    per_item = {"1": [0, 0, 1, 0, 1], "2": [1, 1, 1, 1, 1]}
    selection = select_scale(per_item, baseline="1", seed=3)
    assert selection.difference == paired_bootstrap([1, 1, 1], [1, 0, 1], seed=3)
    assert select_scale(per_item, baseline="2").difference is None
    assert select_scale(per_item).difference is None


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_selection_ignores_the_held_out_half(seed: int) -> None:
    generator = np.random.default_rng(seed)
    values = generator.integers(0, 2, size=(4, 21))
    before = select_scale({str(i): row for i, row in enumerate(values)})
    values[:, 10:] = generator.integers(0, 2, size=(4, 11))
    assert select_scale({str(i): row for i, row in enumerate(values)}).label == before.label


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: mean_interval([]), "values must be a non-empty"),
        (lambda: mean_interval([1.0, math.nan]), r"values\[1\]=nan"),
        (lambda: mean_interval([0.5], method="wilson"), "'bootstrap'"),
        (lambda: mean_interval([0.5], method="exact"), "method='exact'"),
        (lambda: mean_interval([0.5], confidence=95), "confidence=95"),
        (lambda: mean_interval([0.5], resamples=0), "resamples=0"),
        (lambda: paired_bootstrap([1, 2], [1]), "a has 2 items and b 1"),
        (lambda: mcnemar([0.5], [1]), "a must hold 0 or 1"),
        (lambda: flip_matrix([1], [2]), "b must hold 0 or 1"),
        (lambda: perplexity_interval([1.0], [0.0]), r"weights\[0\] must be above 0"),
        (lambda: perplexity_interval([1.0], [1.0, 2.0]), "weights has 2 items"),
        (lambda: perplexity_interval([1.0], method="exact"), "method='exact'"),
        (lambda: calibration_bins([1.5], [1]), "confidences must lie"),
        (lambda: calibration_bins([0.5], [0.5]), "correct must hold"),
        (lambda: calibration_bins([0.5], [1], bins=0), "bins=0"),
        (lambda: select_scale({"1": [1, 0]}, "third"), "select_on='third'"),
        (lambda: select_scale({}), "holds no label"),
        (lambda: select_scale({"1": [1]}), "select_on='all'"),
        (lambda: select_scale({"1": [1, 0], "2": [1]}), "same items"),
    ],
)
def test_bad_input_names_argument_and_value(call, message: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match=message):
        call()
