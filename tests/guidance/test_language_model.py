"""Language-model guidance in the matrix; the captioning room tests it on images."""

from __future__ import annotations

import pytest

from textguide.guidance import LMGuidance

from .oracles import SETTINGS

SETTINGS["lm"] = LMGuidance(1.5, prompt=[5, 6, 7])


def test_fields_are_checked() -> None:
    assert LMGuidance(2.0).beta is None
    with pytest.raises(ValueError, match="prompt is empty"):
        LMGuidance(prompt="")
    with pytest.raises(ValueError, match="alpha='x'"):
        LMGuidance("x")  # type: ignore[arg-type]
