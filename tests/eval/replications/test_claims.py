"""Verdicts by rule, and what the registered claims say."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from textguide.eval.replications.advice import KINDS, advice, task_of
from textguide.eval.replications.claim import CLAIM, names, read_claim
from textguide.eval.replications.replicating import RUN, _check_unchanged, read_run
from textguide.eval.replications.verdict import VERDICTS, Effect, adjusted, effect, verdict

ROOT = Path(__file__).parents[3]


def found(difference: float, low: float, high: float) -> Effect:
    return Effect(0.5 + difference, 0.5, difference, low, high, 0.01, 100)


@pytest.mark.parametrize(
    ("difference", "low", "high", "p", "direction", "expected"),
    [
        (0.10, 0.06, 0.14, 0.01, "higher", "supported"),
        (0.04, 0.02, 0.06, 0.01, "higher", "weaker"),
        (-0.04, -0.06, -0.02, 0.01, "higher", "opposite"),
        (0.01, -0.02, 0.04, 0.5, "higher", "not seen"),
        (0.03, -0.02, 0.08, 0.5, "higher", "undecided"),
        (0.10, 0.06, 0.14, 0.06, "higher", "undecided"),  # beyond chance alone, and not after Holm
        (-0.10, -0.14, -0.06, 0.06, "higher", "not seen"),
        (-0.10, -0.14, -0.06, 0.01, "lower", "supported"),
        (0.10, 0.06, 0.14, 0.01, "lower", "opposite"),
        (0.01, -0.02, 0.04, 0.5, "same", "supported"),
        (0.01, -0.06, 0.04, 0.5, "same", "undecided"),
        (0.10, 0.06, 0.14, 0.01, "same", "opposite"),
        (0.06, 0.01, 0.11, 0.01, "same", "undecided"),
    ],
)
def test_rule(difference: float, low: float, high: float, p: float, direction: str, expected: str) -> None:
    assert expected in VERDICTS
    assert verdict(found(difference, low, high), direction, 0.05, p) == expected


def test_a_larger_family_is_stricter_and_later_runs_take_nothing_away() -> None:
    alone = adjusted({"a": 0.01, "b": 0.2}, 2)
    assert alone == {"a": pytest.approx(0.02), "b": pytest.approx(0.2)}
    partly = adjusted({"a": 0.004, "b": 0.2}, 12)
    assert partly["a"] == pytest.approx(0.048)
    chance = np.random.default_rng(0)
    for _ in range(200):
        every = dict(zip("abcdefgh", chance.uniform(0, 0.02, 8), strict=True))
        some = {name: every[name] for name in "abc"}
        before, after = adjusted(some, 8), adjusted(every, 8)
        assert all(after[name] < 0.05 for name in some if before[name] < 0.05)
    with pytest.raises(ValueError, match="family=1"):
        adjusted({"a": 0.1, "b": 0.1}, 1)


def test_effect_is_paired() -> None:
    chance = np.random.default_rng(1)
    items = chance.normal(0, 10, 300)
    one = effect(items + 0.2 + chance.normal(0, 0.1, 300), items)
    assert one.low > 0.18
    assert one.high < 0.22
    assert one.n == 300
    assert one.tested - one.baseline == pytest.approx(one.difference)


CLAIMS = names(ROOT / "replications") if (ROOT / "replications").is_dir() else []


def test_there_are_claims_of_many_papers() -> None:
    claims = [read_claim(ROOT / "replications" / name) for name in CLAIMS]
    assert len({claim.paper for claim in claims}) >= 25


@pytest.mark.parametrize("name", CLAIMS)
def test_registered_claims_can_be_planned_and_are_as_they_were_run(name: str) -> None:
    from textguide.eval.replications.kinds import kind
    from textguide.eval.replications.kinds.base import SIDES, check

    claim = read_claim(ROOT / "replications" / name)
    module = kind(claim.test["kind"])
    check(claim.test, module.FIELDS)
    assert module.plan(claim.test).tokens > 0
    assert claim.test["tested"] != claim.test["baseline"]
    assert set(claim.test) >= set(SIDES)
    run = read_run(ROOT / "replications" / name)
    if run is not None:
        _check_unchanged(claim, run["digest"])
        sides = [np.array(run["values"][side]) for side in SIDES]
        again = effect(*sides, seed=claim.test.get("seed", 0))
        assert again.difference == pytest.approx(run["effect"]["difference"])
        assert (again.low, again.high) == pytest.approx((run["effect"]["low"], run["effect"]["high"]))
        assert (run["direction"], run["least"]) == (claim.direction, claim.least)


def test_bad_claims_are_refused_by_field(tmp_path: Path) -> None:
    good = (ROOT / "replications/cfg-lambada" / CLAIM).read_text(encoding="utf-8")
    folder = tmp_path / "one"
    folder.mkdir()
    for old, new, message in (
        ("direction: higher", "direction: up", "direction='up' must be one of"),
        ("least: 0.05", "least: 0", "least=0 must be a number above 0"),
        ("read: tables", "read: heard of", "read='heard of' must be one of"),
        ("claim: >-", "sentence: >-", "'sentence' is not a field"),
        ('paper: "2306.17806"', "paper: 2306.17806", "paper=2306.17806 must be a text"),
        ("  baseline: {guidance: null}\n", "", "must have baseline"),
        ("minutes: 4", "minutes: [", "is not YAML"),
    ):
        assert old in good
        (folder / CLAIM).write_text(good.replace(old, new), encoding="utf-8")
        with pytest.raises(ValueError, match=message.replace("[", r"\[")):
            read_claim(folder)
    with pytest.raises(ValueError, match=r"does not have claim\.yaml"):
        read_claim(tmp_path)
    (folder / RUN).write_text("{}", encoding="utf-8")
    with pytest.raises(ValueError, match="was not written by"):
        read_run(folder)


def test_every_claim_has_a_kind_of_task() -> None:
    folder = ROOT / "replications"
    assert {task_of(read_claim(folder / name)) for name in names(folder)} == set(KINDS)


def test_what_to_try_first_follows_from_the_verdicts() -> None:
    folder = ROOT / "replications"
    claims = [
        read_claim(folder / name) for name in ("apg-large-scale", "cfg-lambada", "independent-condition", "s2-guidance")
    ]
    judged = {
        claim.name: {"difference": 2.0, "tested": 0.5, "baseline": 0.4, "verdict": "supported"} for claim in claims
    }
    judged["s2-guidance"]["verdict"] = "opposite"
    judged["cfg-lambada"]["difference"] = 9.0
    first = next(line for line in advice(claims, judged).splitlines() if KINDS[0] in line)
    _, _, gained, lost, undecided, _ = first.split("|")
    assert [part.split("`")[1] for part in gained.split(";")] == [
        "cfg:scale=1.5", "apg:scale=3", "independent-condition:scale=1.5",
    ]  # fmt: skip
    assert "as good as `cfg:scale=1.5`" in gained
    assert "[`apg:scale=3`](./apg-large-scale.md) 0.500 against 0.400 (`cfg:scale=3`)" in gained
    assert lost.strip() == "[`s2:scale=1.5`](./s2-guidance.md)"
    assert undecided.strip() == "–"
    assert advice(claims, judged).endswith("`apg`, `independent-condition`, `s2`.")
    assert len(advice(claims, dict.fromkeys(judged)).splitlines()) == 2
