"""The canvas as a page: every step, re-masked positions, escaped text."""

from __future__ import annotations

import re

import pytest

from textguide import ACFG, diffusion

from . import tiny


def test_page_shows_every_step() -> None:
    model, words = tiny.build("llada")
    guidance = ACFG(2.0, 0.5)
    out = diffusion.generate(model, words, "ab", gen_length=4, guidance=guidance, keep_history=True)
    page = diffusion.picture_page(model, words, out, guidance)
    rows = re.findall(r"<tr>.*?</tr>", page)
    assert len(rows) == len(out.history) == 4
    for row, step in zip(rows, out.history, strict=True):
        assert row.count('class="p r"') + row.count('class="f r"') == int(step.remasked[0].sum())
        assert row.count("new") == 1
    assert "http" not in page
    assert "remask_ratio=0.5" in page


def test_needs_a_history() -> None:
    model, words = tiny.build("llada")
    out = diffusion.generate(model, words, "ab", gen_length=2)
    with pytest.raises(ValueError, match="keep_history=True"):
        diffusion.picture_page(model, words, out)
    kept = diffusion.generate(model, words, "ab", gen_length=2, keep_history=True)
    with pytest.raises(ValueError, match="row=3 is none of the 1 rows"):
        diffusion.picture_page(model, words, kept, row=3)
