"""Kept blocks: exact where attention is causal between blocks, an approximation where it is not."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from textguide import ACFG, CFG, diffusion
from textguide.diffusion.samplers import EntropyBound
from textguide.guidance import Formula

from . import tiny


def opened(block: int | None, start: int = 3) -> Any:
    torch.manual_seed(0)
    return tiny.LLaDAModelLM(tiny.VOCABULARY).eval() if block is None else _block(block, start)


def _block(block: int, start: int) -> Any:
    model = tiny.LLaDAModelLM(tiny.VOCABULARY)
    model.block, model.start = block, start
    return model.eval()


def of_blocks(kind: str, seed: int = 3) -> Any:
    torch.manual_seed(seed)
    model = tiny.Opened(tiny.VOCABULARY).eval()
    model.config.model_type, model.config.block_size = kind, 4
    return model


PROMPTS = ["abc", "lkh"]


@pytest.mark.parametrize(
    "guidance",
    [
        None,
        CFG(2.0),
        CFG(2.0, schedule="linear"),
        CFG(2.0, negative_prompt="kkk"),
        Formula("cond - 0.2*last - P('bbb')"),
    ],
    ids=str,
)
def test_exact_where_attention_is_causal_between_blocks(guidance: Any) -> None:
    model, words = opened(4), tiny.tokenizer()
    options: dict[str, Any] = {"gen_length": 12, "block_length": 4, "guidance": guidance, "temperature": 1.0, "seed": 0}
    plain = diffusion.generate(model, words, PROMPTS, **options)
    cached = diffusion.generate(model, words, PROMPTS, cache=True, **options)
    assert torch.equal(plain.sequences, cached.sequences)
    assert cached.passes == plain.passes


UNLIKE = ["abc", "ab", "lkhgfe", "d"]


@pytest.mark.parametrize("sampler", [None, EntropyBound(0.2)], ids=["quota", "eb"])
@pytest.mark.parametrize("kind", ["sdar", "fast-dllm"])
@pytest.mark.parametrize(
    "guidance",
    [None, CFG(2.0, negative_prompt="kkkkk"), CFG(2.0, start=0.5), Formula("cond - 0.2*last + 0.5*M('m')")],
    ids=["plain", "negative", "window", "two models"],
)
def test_exact_for_models_of_blocks_behind_prompts_of_any_length(guidance: Any, kind: str, sampler: Any) -> None:
    model, other, words = of_blocks(kind), of_blocks(kind, seed=4), tiny.tokenizer()
    options: dict[str, Any] = {"gen_length": 12, "guidance": guidance, "sampler": sampler, "models": {"m": other}}
    plain = diffusion.generate(model, words, UNLIKE, **options)
    read = [0]
    hook = model.register_forward_pre_hook(
        lambda _, args, kwargs: read.__setitem__(0, read[0] + kwargs["input_ids"].numel()), with_kwargs=True
    )
    cached = diffusion.generate(model, words, UNLIKE, cache=True, **options)
    hook.remove()
    assert torch.equal(plain.sequences, cached.sequences)
    assert read[0] < plain.tokens


GAPS = ["ab[MASK]c[MASK][MASK]def", "a[MASK]b", "abcdefgh[MASK]i[MASK]"]


@pytest.mark.parametrize("guidance", [None, CFG(2.0), CFG(2.0, negative_prompt="k[MASK]")], ids=str)
@pytest.mark.parametrize("kind", ["sdar", "fast-dllm"])
@pytest.mark.parametrize("cache", [True, "delayed:refresh=1", "delayed:reads=block"])
def test_gaps_are_filled_as_without_it(cache: Any, kind: str, guidance: Any) -> None:
    model, words = of_blocks(kind), tiny.tokenizer()
    texts = [GAPS[1]] if guidance is not None and guidance.negative_prompt else GAPS
    plain = diffusion.infill(model, words, texts, guidance=guidance)
    cached = diffusion.infill(model, words, texts, guidance=guidance, cache=cache)
    assert torch.equal(plain.sequences, cached.sequences)
    assert cached.passes == plain.passes


def test_the_tail_alone_is_read() -> None:
    model, words = opened(4), tiny.tokenizer()
    lengths = []
    model.register_forward_pre_hook(
        lambda _, args, kwargs: lengths.append(kwargs["input_ids"].shape[1]), with_kwargs=True
    )
    made = diffusion.denoiser(model, words, probe=False)
    diffusion.generate(made, words, PROMPTS, gen_length=8, block_length=4, early_end=False, cache=True)
    assert lengths == [11, 8, 8, 8, 11, 4, 4, 4]


def test_bidirectional_models_are_approximated() -> None:
    """The error is real: at the second step of a block the prompt would be read anew."""
    model, words = opened(None), tiny.tokenizer()
    made = diffusion.denoiser(model, words)
    ids = torch.tensor([[5, 6, 7, 1, 1, 1, 1]])
    attention = torch.ones_like(ids, dtype=torch.bool)
    _, past = made(ids, attention, keep=True)
    past.crop(-4)
    ids[0, 3] = 9
    exact, _ = made(ids, attention)
    tail, _ = made(ids[:, 3:], attention, past=past, keep=True)
    error = (torch.log_softmax(tail, -1) - torch.log_softmax(exact[:, 3:], -1))[..., 5:].abs().max()
    assert 1e-3 < float(error) < 10
    out = diffusion.generate(made, words, PROMPTS, gen_length=8, block_length=4, cache=True, guidance=CFG(1.5))
    assert not (out.sequences == tiny.MASK).any()


@pytest.mark.parametrize("guidance", [None, CFG(2.0), CFG(2.0, start=0.5), CFG(2.0, negative_prompt="kkk")], ids=str)
@pytest.mark.parametrize("seed", [7, 8, 13])
def test_a_row_is_what_it_is_alone(guidance: Any, seed: int) -> None:
    """Rows that finish their blocks in different steps, where kept values depend on when they were read."""
    torch.manual_seed(seed)
    model, words = tiny.LLaDAModelLM(tiny.VOCABULARY).eval(), tiny.tokenizer()
    options: dict[str, Any] = {"gen_length": 6, "block_length": 3, "guidance": guidance, "cache": True}
    options |= {"sampler": EntropyBound(0.1), "warn": False}
    prompts = ["ab", "kl", "cdefg", "e"]
    together = diffusion.generate(model, words, prompts, **options)
    alone = [diffusion.generate(model, words, prompt, **options) for prompt in prompts]
    assert together.texts == [one.texts[0] for one in alone]


def test_what_leaves_nothing_to_keep_is_refused() -> None:
    with pytest.raises(ValueError, match="A-CFG masks parts of the prompt again"):
        diffusion.generate(opened(None), tiny.tokenizer(), PROMPTS, gen_length=8, cache=True, guidance=ACFG(2.0))
