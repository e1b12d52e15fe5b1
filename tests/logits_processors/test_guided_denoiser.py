"""Guidance in loops that call ``model(ids).logits``: windows that grow, new batches, diffusers' pipeline."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from textguide import ACFG, CFG, diffusion
from textguide.guidance import ParticleGibbs
from textguide.logits_processors import GuidedDenoiser, guided_pipeline

from ..diffusion import tiny
from ..diffusion.test_repositories import NoMask, block_causal

BLOCK = 4


class Blockwise(NoMask):
    """LLaDA 2's interface: a two-dimensional mask, positions, and blocks that the model knows by itself."""

    def __init__(self) -> None:
        super().__init__("llada")
        self.inner.block = BLOCK

    @property
    def device(self) -> torch.device:
        return torch.device("cpu")


@torch.no_grad()
def window_loop(model: Any, prompt: list[int], total: int) -> list[int]:
    """Greedy, one token a step, a window that grows by blocks: a loop that knows nothing of guidance."""
    ids = [*prompt, *[tiny.MASK] * (total - len(prompt))]
    for start in range(len(prompt) // BLOCK * BLOCK, total, BLOCK):
        while tiny.MASK in ids[start : start + BLOCK]:
            shown = torch.tensor([ids[: start + BLOCK]])
            logits = model(shown, attention_mask=torch.ones_like(shown)).logits[0].double()
            chances = logits.softmax(-1)
            masks = [j for j in range(start, start + BLOCK) if ids[j] == tiny.MASK]
            best = max(masks, key=lambda j: float(chances[j].max()))
            ids[best] = int(chances[best].argmax())
    return ids


def by_hand(model: Any, prompt: int, scale: float) -> Any:
    """CFG written out: the prompt masked in the other branch."""

    def guided(ids: Tensor, attention_mask: Tensor | None = None, **_: Any) -> Any:
        bare = ids.clone()
        bare[:, :prompt] = tiny.MASK
        with torch.no_grad():
            cond, other = model(ids).logits.double(), model(bare).logits.double()
        return SimpleNamespace(logits=other + scale * (cond - other))

    return guided


@pytest.mark.parametrize("prompt", [[5, 6, 9, 7], [5, 6, 9, 7, 8, 8], [5]])
def test_a_window_that_grows(prompt: list[int]) -> None:
    model, words = Blockwise(), tiny.tokenizer()
    guided = GuidedDenoiser(model, words, CFG(1.7))
    expected = window_loop(by_hand(model, len(prompt), 1.7), prompt, 12)
    assert window_loop(guided, prompt, 12) == expected
    assert window_loop(guided, prompt, 12) == expected  # a new text begins by itself
    assert guided.effect is not None
    assert guided.effect.guided_steps > 0
    plain = GuidedDenoiser(model, words, CFG(1.0))
    assert window_loop(plain, prompt, 12) == window_loop(model, prompt, 12)
    again = GuidedDenoiser(model, words, ACFG(2.0))
    whole = diffusion.generate(
        model, words, [prompt], gen_length=12 - len(prompt) if len(prompt) > 1 else 3, guidance=ACFG(2.0), warn=False
    )
    assert whole.passes > 0
    assert tiny.MASK not in window_loop(again, prompt, 12)


@pytest.mark.parametrize(("guidance", "passes"), [(CFG(1.7), 1), (ACFG(2.0), 2)], ids=str)
def test_nothing_is_read_twice(guidance: Any, passes: int) -> None:
    """The logits of the prompt are those of the canvas as it is, from the pass that guidance reads anyway."""
    model, words = Blockwise(), tiny.tokenizer()
    made = diffusion.denoiser(model, words, kind="sdar", block_size=BLOCK)
    guided = GuidedDenoiser(made, words, guidance, probe=False)
    read: list[int] = []
    model.register_forward_pre_hook(lambda *given: read.append(1))
    ids = torch.tensor([[5, 6, 9, 7, tiny.MASK, 8, tiny.MASK, tiny.MASK]])
    guided(torch.where(ids == 8, tiny.MASK, ids))
    read.clear()
    found = guided(ids).logits
    assert len(read) == passes
    # A batch of another size may be rounded otherwise.
    torch.testing.assert_close(found[:, :4], model(ids).logits[:, :4], atol=1e-5, rtol=1e-5)
    assert made.block_size == BLOCK  # whose denoiser it is


def test_what_cannot_be_followed_is_named() -> None:
    model, words = Blockwise(), tiny.tokenizer()
    guided = GuidedDenoiser(model, words, CFG(1.5))
    ids = torch.tensor([[5, tiny.MASK]])
    with pytest.raises(ValueError, match="past_key_values= does not work with guidance"):
        guided(ids, past_key_values=object())
    with pytest.raises(ValueError, match="attention_mask has 4 dimensions"):
        guided(ids, attention_mask=block_causal(2, 4)[None, None])
    with pytest.raises(ValueError, match="fills several canvases"):
        GuidedDenoiser(model, words, ParticleGibbs(lambda texts: [0.0 for _ in texts]))
    gemma = SimpleNamespace(config=SimpleNamespace(model_type="diffusion_gemma"))
    with (
        pytest.raises(ValueError, match="DiffusionGemma, whose canvas starts from random tokens"),
        guided_pipeline(SimpleNamespace(model=gemma, tokenizer=words), CFG(1.5)),
    ):
        pass


@pytest.mark.parametrize("count", [4, 6])
def test_the_pipeline_of_diffusers(count: int) -> None:
    """``LLaDA2Pipeline``, guided: the tokens of its own loop around CFG by hand."""
    diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed")
    if not hasattr(diffusers, "LLaDA2Pipeline"):
        pytest.skip("this diffusers has no LLaDA2Pipeline")
    model, words = Blockwise(), tiny.tokenizer()
    scheduler = diffusers.BlockRefinementScheduler(block_length=BLOCK)
    pipe = diffusers.LLaDA2Pipeline(model, scheduler, words)
    pipe.set_progress_bar_config(disable=True)
    prompt = [5, 6, 9, 7, 8, 8][:count]
    options: dict[str, Any] = {
        "input_ids": torch.tensor([prompt]), "gen_length": 12 - count, "num_inference_steps": BLOCK, "threshold": 2.0,
        "editing_threshold": None, "eos_early_stop": False, "output_type": "seq", "sampling_method": "greedy",
        "mask_token_id": tiny.MASK,
    }  # fmt: skip
    with guided_pipeline(pipe, CFG(1.7)) as guided:
        first, again = (guided(**options).sequences[0].tolist() for _ in range(2))
    assert pipe.model is model
    assert first == again == window_loop(by_hand(model, count, 1.7), prompt, 12)[count:]
    assert pipe(**options).sequences[0].tolist() == window_loop(model, prompt, 12)[count:]
    with guided_pipeline(pipe, CFG(1.7)) as guided:  # edits what it filled, under guidance
        edited = guided(**{**options, "editing_threshold": 0.2})
    assert tiny.MASK not in edited.sequences[0].tolist()
    assert math.isfinite(float(edited.sequences.sum()))
