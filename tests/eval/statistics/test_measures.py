"""What a metric came to."""

from __future__ import annotations

import math

import pytest

from textguide.eval import measure


def test_measures() -> None:
    bits = measure([math.log(2) * 6, math.log(2) * 2], "bits", [3, 1])
    assert (bits.value, bits.stderr, bits.n, bits.higher_is_better) == (
        pytest.approx(2),
        pytest.approx(0),
        2,
        False,
    )
    perplexity = measure([math.log(4)] * 3, "perplexity")
    assert perplexity.value == pytest.approx(4)
    assert perplexity.stderr == pytest.approx(0)
    assert measure([0.5, 0.1], higher_is_better=False).higher_is_better is False
    with pytest.raises(ValueError, match="kind='median'"):
        measure([1.0], "median")
    with pytest.raises(ValueError, match="weights= does not work"):
        measure([1.0], weights=[2.0])
