"""Adapters: one step equals the oracle for every kind, batch and scope; what cannot be denoised is refused."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from textguide import ACFG, CFG
from textguide.diffusion import Denoiser, denoiser
from textguide.diffusion.canvas import for_generation, for_infilling
from textguide.diffusion.guiding import Guide
from textguide.reference import diffusion

from . import tiny

GUIDANCES = [
    None,
    CFG(1.7),
    CFG(2.5, schedule="linear"),
    ACFG(1.7),
    ACFG(2.5, 0.3, "generated"),
    ACFG(0.5, 0.5, "prompt"),
    ACFG(3.0, 1.0, schedule="cosine"),
    ACFG(2.0, 0.7, start=0.4),
]
PROMPTS = ["abc", "fghabk", "l"]


def oracle_of(made: Denoiser) -> diffusion.Read:
    return diffusion.reader(
        made.model, made.forbidden, shifted=made.shifted, prefix=made.prefix_ids, suffix=made.suffix_ids
    )


def partly_filled(made: Denoiser, texts: list[str], length: int) -> Any:
    canvas = for_generation(made, [made.encode(text) for text in texts], length, length)
    start = for_generation(made, [made.encode(text) for text in texts], length, length)
    for row, filled in enumerate([{0: 6, 3: 9}, {1: 7, 2: 7, 4: 12}, {}][: len(texts)]):
        places = canvas.target[row].nonzero()[:, 0]
        for place, token in filled.items():
            canvas.ids[row, places[place]] = token
    return start, canvas


@pytest.mark.parametrize("guidance", GUIDANCES, ids=str)
@pytest.mark.parametrize("kind", tiny.KINDS)
def test_one_step_is_algorithm_1(kind: str, guidance: Any) -> None:
    made = denoiser(*tiny.build(kind))
    read = oracle_of(made)
    start, canvas = partly_filled(made, PROMPTS, 5)
    guide = Guide(made, guidance, start)
    where = canvas.masked(made.mask_id)
    distributions = guide.distributions(canvas, torch.arange(3), where)
    found = iter(distributions.guided)
    for row in range(3):
        ids = canvas.text_ids(row)
        prompt = len(PROMPTS[row])
        expected, lost = diffusion.step(read, ids, made.mask_id, range(prompt), guidance, 5)
        for distribution in expected.values():
            assert torch.allclose(next(found), torch.tensor(distribution, dtype=torch.float32), atol=1e-4)
        frame = len(made.prefix_ids)
        assert (distributions.remasked[row].nonzero()[:, 0] - frame).tolist() == lost
    assert next(found, None) is None


@pytest.mark.parametrize("kind", tiny.KINDS)
def test_padded_rows_are_read_as_if_alone(kind: str) -> None:
    made = denoiser(*tiny.build(kind))
    for guidance in (CFG(2.0), ACFG(2.0)):
        start, canvas = partly_filled(made, PROMPTS, 5)
        where = canvas.masked(made.mask_id)
        together = Guide(made, guidance, start).distributions(canvas, torch.arange(3), where).guided
        parts = together.split(where.sum(-1).tolist())
        for row in range(3):
            one = torch.tensor([row])
            alone_start, alone = (
                for_generation(made, [made.encode(PROMPTS[row])], 5, 5),
                for_generation(made, [made.encode(PROMPTS[row])], 5, 5),
            )
            alone.ids[0] = canvas.ids[row, : alone.ids.shape[1]]
            if made.suffix_ids:  # the closing frame stands where the row ends
                assert alone.ids[0, -1] == made.suffix_ids[-1]
            distributions = Guide(made, guidance, alone_start).distributions(
                alone, torch.tensor([0]), alone.masked(made.mask_id)
            )
            assert torch.allclose(distributions.guided, parts[row], atol=1e-4), one


def test_shift_and_frame() -> None:
    bert, dream = denoiser(*tiny.build("bert")), denoiser(*tiny.build("dream"))
    assert (bert.prefix_ids, bert.suffix_ids, bert.end_id) == ((tiny.CLS,), (tiny.SEP,), None)
    assert dream.shifted
    assert dream.prefix_ids == ()
    ids = torch.tensor([[5, 6, tiny.MASK, tiny.MASK]])
    logits, _ = dream(ids, torch.ones_like(ids, dtype=torch.bool))
    raw = dream.model(ids).logits
    assert torch.equal(logits[0, 1:, 5:], raw[0, :-1, 5:])
    assert torch.isneginf(logits[..., tiny.MASK]).all()


def test_a_causal_model_is_refused() -> None:
    config = GPT2Config(vocab_size=tiny.VOCABULARY, n_embd=8, n_layer=1, n_head=1, n_positions=32)
    with pytest.raises(ValueError, match="is causal: a later token does not change"):
        denoiser(GPT2LMHeadModel(config), tiny.tokenizer())
    assert denoiser(GPT2LMHeadModel(config), tiny.tokenizer(), probe=False).mask_id == tiny.MASK


def test_what_cannot_be_denoised_is_named() -> None:
    model, words = tiny.build("modernbert")
    with pytest.raises(ValueError, match="kind='gpt' is unknown; use one of masked-lm"):
        denoiser(model, words, kind="gpt")
    blind = SimpleNamespace(mask_token_id=None, eos_token_id=2)
    with pytest.raises(ValueError, match="no mask token"):
        denoiser(model, blind)
    gemma = SimpleNamespace(config=SimpleNamespace(model_type="diffusion_gemma"))
    with pytest.raises(ValueError, match="DiffusionGemma, whose canvas starts from random tokens"):
        denoiser(gemma, words)


def test_infilling_canvas() -> None:
    made = denoiser(*tiny.build("bert"))
    canvas = for_infilling(made, [[5, 1, 6], [1]])
    assert canvas.ids.tolist() == [[3, 5, 1, 6, 4], [3, 1, 4, 0, 0]]
    assert canvas.target.sum(-1).tolist() == [1, 1]
    assert canvas.given.tolist() == [[False, True, False, True, False], [False] * 5]
