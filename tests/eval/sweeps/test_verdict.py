"""Plain, guided and distilled side by side."""

from __future__ import annotations

from pathlib import Path

import pytest

import textguide
from textguide import AWRS
from textguide.constraints import Regex
from textguide.eval.sweeps import verdict

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated")


def test_texts_that_guidance_weighs_count_once_a_prompt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verdict, "NEW", 6)
    model, tokenizer = textguide.load("smollm2-small")
    guidance = AWRS(Regex("[a-z ]{1,3}"), particles=3)
    settings = {"steps": 1, "texts": 4, "tokens": 8, "batch_size": 2, "rank": 1}
    textguide.distill(
        model, tokenizer, guidance, tmp_path, prompts=["The", "A"], objective="likelihood", source="guided", **settings
    )
    seen: list[str] = []
    found = verdict.judge(
        model, tokenizer, guidance, str(tmp_path), prompts=["The", "A", "Once"], limit=3, repeats=1,
        measures={"letters": lambda text: float(seen.append(text) or text == text.lower())},
    )  # fmt: skip
    assert len(seen) == 9  # three prompts a way, however many particles
    assert found["texts"]["guided"]["letters"]["mean"] == 1.0
    assert found["texts"]["plain"]["letters"]["mean"] < 1.0
    assert found["tasks"] == {}
