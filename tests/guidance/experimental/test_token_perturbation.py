"""Token perturbation: the prompt in another order."""

from __future__ import annotations

import pytest

from textguide.guidance import TokenPerturbation
from textguide.guidance.edits import Shuffled
from textguide.reference import decoding

from ..oracles import mixed, oracle, settings


@oracle("token-perturbation")
def perturbed(guidance: TokenPerturbation, logps: list[list[float]], s: float) -> list[float]:
    return decoding.normalized(mixed(*logps, decoding.cfg_scale(guidance, s)))


settings(TokenPerturbation(1.0), TokenPerturbation(1.5, seed=3))


def test_same_tokens_other_order_same_end() -> None:
    ids = list(range(20))
    one = Shuffled(0).apply(ids, None, list)  # type: ignore[arg-type]
    assert sorted(one) == ids
    assert one != ids
    assert one[-1] == ids[-1]
    assert one == Shuffled(0).apply(ids, None, list)  # type: ignore[arg-type]
    assert one != Shuffled(1).apply(ids, None, list)  # type: ignore[arg-type]


def test_the_seed_is_a_number() -> None:
    with pytest.raises(ValueError, match="seed='x'"):
        TokenPerturbation(seed="x")  # type: ignore[arg-type]
