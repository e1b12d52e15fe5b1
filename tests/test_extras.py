"""A package that is missing is reported before the work that would need it at its end."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import textguide
from textguide import CFG
from textguide.classifiers import Examples, train_causal
from textguide.support.errors import MissingExtraError

from .test_every_place import TINY


class Untouched:
    """A model that must not be run."""

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(f"{name} was read before the missing package was reported")


def distil(folder: Path) -> None:
    textguide.distill(Untouched(), TINY.tokenizer, CFG(1.5), folder / "adapter")


def head_on_hidden_states(folder: Path) -> None:
    examples = Examples(("good", "bad"), ("pos", "neg"))
    train_causal(examples, Untouched(), TINY.tokenizer, model_name="tiny")


def captions(folder: Path) -> None:
    from textguide.eval import run_captioning

    run_captioning(folder / "no-data", [None], Untouched(), None)


def plots(folder: Path) -> None:
    from textguide.eval import SweepOptions, run_sweep

    run_sweep(
        ["arc_easy"], [None], output=folder, options=SweepOptions(plots=True), model_args={"pretrained": Untouched()}
    )


def continuations(folder: Path) -> None:
    from textguide.tasks.continuations import _vader, neutral

    _vader.cache_clear()
    neutral(str(folder))


def molecules(folder: Path) -> None:
    from textguide.tasks.constrained.molecules import Molecules, _rdkit

    _rdkit.cache_clear()
    Molecules(str(folder)).items()


def documents(folder: Path) -> None:
    from textguide.tasks.constrained.json_documents import JSONDocuments

    JSONDocuments(str(folder)).items()


@pytest.mark.parametrize(
    ("package", "extra", "work"),
    [
        ("peft", "distill", distil),
        ("sklearn.linear_model", "classifiers", head_on_hidden_states),
        ("pycocoevalcap.cider.cider", "captioning", captions),
        ("vaderSentiment.vaderSentiment", "sentiment", continuations),
        ("rdkit", "molecules", molecules),
        ("jsonschema", "eval", documents),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_missing_package_is_reported_before_the_work(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, package: str, extra: str, work: Callable[[Path], None]
) -> None:
    pytest.importorskip("lm_eval", reason="the extra eval is not installed")
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtraError, match=rf"textguide\[{extra}\]"):
        work(tmp_path)


def test_plots_are_possible_before_a_sweep_begins(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("lm_eval", reason="the extra eval is not installed")
    from textguide.eval.reports import drawing

    monkeypatch.setattr(drawing, "available", lambda: False)
    with pytest.raises(MissingExtraError, match=r"textguide\[eval\]"):
        plots(tmp_path / "out")
    assert not (tmp_path / "out").exists()


def sweep_into(place: Path) -> None:
    from textguide.eval import run_sweep

    run_sweep(["sudoku4"], [None], output=place, model_args={"pretrained": Untouched()})


def tune_into(place: Path) -> None:
    from textguide.eval.sweeps import tuning

    tuning.tune(
        CFG(1.5), "lambada_mini", budget=1.0, output=place, scales=[1.0, 1.5], model_args={"pretrained": "smollm2"}
    )


def export_into(place: Path) -> None:
    from textguide.engine.exporting import export_generate

    export_generate(CFG(1.5), place)


def page_into(place: Path) -> None:
    textguide.explain(TINY.model, TINY.tokenizer, "the cat", CFG(1.5), max_new_tokens=1).save_html(place)


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="this system has no folder that nobody can write to")
@pytest.mark.parametrize("work", [sweep_into, tune_into, export_into, page_into])
def test_a_place_that_cannot_be_written_is_named_before_the_work(work: Callable[[Path], None]) -> None:
    pytest.importorskip("lm_eval", reason="the extra eval is not installed")
    with pytest.raises(OSError, match=r"/proc/nowhere\S* cannot be written: .*name another place"):
        work(Path("/proc/nowhere.html"))
