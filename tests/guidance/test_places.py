"""What methods need, what places lack, and the matrix of the two."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from textguide import AWRS, CAIF, CFG
from textguide.cli import main
from textguide.guidance import Composed, DoLa, FeynmanKac, Formula, Guidance, Step, catalogue
from textguide.guidance.base import AS_IN_PAPER
from textguide.guidance.needs import Need
from textguide.guidance.places import PLACES, check_place, place
from textguide.step.guided_step import guided_log_probs

from . import oracles

oracles.collect()
DOCS = Path(__file__).parents[2] / "docs"


def test_needs_are_read_off_branches() -> None:
    assert CFG(1.5).needs == {Need.PROMPT}
    assert CFG(1.5, negative_system="x").needs == {Need.SYSTEM}
    assert Formula("cond + M('a') - M('b', 'x')").needs == {Need.MODEL, Need.PROMPT}
    assert DoLa().needs == {Need.PART}
    assert Composed((CFG(1.5), CAIF("sentiment", 1), AWRS("regex:a", particles=2))).needs == {
        Need.PROMPT, Need.CANDIDATES, Need.CONSTRAINT, Need.WEIGHTS,
    }  # fmt: skip


def test_a_refusal_names_the_need_the_reason_and_the_places_that_can() -> None:
    check_place(CFG(1.5), "vllm")
    check_place(None, "vllm")
    with pytest.raises(
        ValueError, match=r"'feynman-kac' weights whole texts .*, and the probability .*; use textguide"
    ):
        check_place(FeynmanKac(), "score")


def test_every_cell_is_full_or_has_its_reason() -> None:
    rows = catalogue.matrix()
    assert [row["method"] for row in rows] == [method["name"] for method in catalogue.methods()]
    for row in rows:
        assert list(row["cells"]) == [place.name for place in PLACES]
        assert True in row["cells"].values()
        for cell in row["cells"].values():
            assert cell is True or (" " in cell and "support" not in cell and not cell.endswith("."))


def test_an_example_shows_what_all_settings_of_its_method_need() -> None:
    for name, guidance in oracles.SETTINGS.items():
        if name in Guidance.registry and name != "formula":
            assert guidance.needs <= catalogue.example(type(guidance)).needs, name


def test_examples_are_themselves() -> None:
    for method in catalogue.methods():
        example = catalogue.example(Guidance.registry[method["name"]])
        assert method["name"] in {example.name, *(part.name for part in example.parts)}
        assert not example.is_neutral or method["name"] in ("awrs", "lm")


@pytest.mark.parametrize("name", sorted(oracles.SETTINGS))
def test_what_depends_on_progress_says_so(name: str) -> None:
    guidance = oracles.SETTINGS[name]
    torch.manual_seed(0)
    logp = torch.randn(1 + len(guidance.branches), 2, 11).log_softmax(-1)  # type: ignore[attr-defined]
    told = torch.zeros(logp.shape[:2])
    said = -torch.rand(len(getattr(guidance, "classes", ())), 2)
    steps = [Step(progress, likelihoods=told, class_log_probs=said) for progress in (0.0, 0.3, 0.6, 1.0)]
    actives = {guidance.active(step) for step in steps}  # type: ignore[attr-defined]
    outcomes = [guided_log_probs(guidance, logp, step) for step in steps]  # type: ignore[attr-defined]
    moves = len(actives) > 1 or any(not torch.equal(outcomes[0], one) for one in outcomes)
    assert guidance.is_timed == moves  # type: ignore[attr-defined]


def test_the_command_prints_the_matrix(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["methods", "--matrix", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed == catalogue.matrix()
    assert main(["methods", "dola", "--matrix"]) == 0
    out = capsys.readouterr().out
    assert place("vllm").lacks[Need.PART][1:] in " ".join(out.split())
    assert "cfg" not in out


def test_methods_with_another_mechanism_than_their_paper_are_named() -> None:
    """In the list of methods, on their pages and next to the claims that they were tested for."""
    others = catalogue.other_mechanisms({"nag", "cfg", "s2"})
    assert others.keys() == {"nag", "s2"}
    rows = {method["name"]: method["mechanism"] for method in catalogue.methods()}
    assert rows["cfg"] == AS_IN_PAPER
    assert f"| {rows['nag']} |" in catalogue.markdown()
    for name, mechanism in rows.items():
        if not Guidance.registry[name].__module__.startswith("textguide.") or not Guidance.registry[name].about.paper:
            continue  # a method of a test, or without a paper
        page = (DOCS / "methods" / f"{name}.md").read_text(encoding="utf-8")
        assert f"**Mechanism:** {mechanism}" in " ".join(page.split())
