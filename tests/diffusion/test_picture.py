"""The canvas as a page: every step, re-masked positions, escaped text."""

from __future__ import annotations

import json
import re

import pytest

from textguide import ACFG, diffusion

from . import tiny


def test_page_shows_every_step() -> None:
    model, words = tiny.build("llada")
    guidance = ACFG(2.0, 0.5)
    out = diffusion.generate(model, words, "ab", gen_length=4, guidance=guidance, keep_history=True)
    page = diffusion.picture_page(model, words, out, guidance)
    found = re.search(r'<script type="application/json" id="values">(.*?)</script>', page)
    assert found is not None
    values = json.loads(found[1])
    assert len(values["steps"]) == len(out.history) == 4
    for shown, step in zip(values["steps"], out.history, strict=True):
        assert [place for place, _ in shown["remasked"]] == step.remasked[0].nonzero()[:, 0].tolist()
        assert [place for place, _, _ in shown["filled"]] == step.committed[0].nonzero()[:, 0].tolist()
        assert step.certainty is not None
        # What is masked again is what the model is least sure of, among what is given or filled.
        before = (
            out.history[step.index - 1].ids[0] if step.index else step.ids[0].masked_fill(out.targets[0], tiny.MASK)
        )
        known = [i for i in range(len(before)) if before[i] != tiny.MASK]
        spared = [float(step.certainty[0, i]) for i in known if not step.remasked[0, i]]
        assert max((value for _, value in shown["remasked"]), default=0.0) <= min(spared, default=1.0)
    assert values["text"] == out.texts[0]
    assert values["label"] == "acfg 2 remask_ratio=0.5"


def test_needs_a_history() -> None:
    model, words = tiny.build("llada")
    out = diffusion.generate(model, words, "ab", gen_length=2)
    with pytest.raises(ValueError, match="keep_history=True"):
        diffusion.picture_page(model, words, out)
    kept = diffusion.generate(model, words, "ab", gen_length=2, keep_history=True)
    with pytest.raises(ValueError, match="row=3 is not one of the 1 rows"):
        diffusion.picture_page(model, words, kept, row=3)
