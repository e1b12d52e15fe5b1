"""Hooks inside loops written as LLaDA's and Dream's are, and a processor for DiffusionGemma's."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from textguide import ACFG, CFG, MaskedDiffusionCFGHook, diffusion
from textguide.guidance import DoLa, Formula, TokenPerturbation
from textguide.logits_processors import AllowedTokensProcessor

from ..diffusion import tiny

PROMPTS = ["abc", "lkh"]


def foreign_loop(model: Any, prompts: Tensor, length: int, hook: Any, shifted: bool) -> Tensor:
    """Greedy, one token a step, the most confident first: a loop that knows nothing of guidance."""
    x = torch.cat([prompts, torch.full((len(prompts), length), tiny.MASK)], dim=1)
    for step in range(length):
        with torch.no_grad():
            logits = model(x).logits
        if shifted:
            logits = torch.cat([logits[:, :1], logits[:, :-1]], dim=1)
        logits = hook(step, x, logits).clone()
        logits[..., tiny.MASK] = -torch.inf
        top, token = logits.softmax(-1).max(-1)
        place = top.masked_fill(x != tiny.MASK, -1).argmax(-1, keepdim=True)
        x = x.scatter(1, place, token.gather(1, place))
    return x


@pytest.mark.parametrize(
    "guidance",
    [
        CFG(2.0), ACFG(2.0), ACFG(2.0, one_pass=True), ACFG(2.0, schedule="linear"), CFG(2.0, negative_prompt="kk"),
        TokenPerturbation(2.0, seed=3), Formula("1.5*cond - 0.5*M('other') + 0.1*P('k')"),
    ],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize("kind", ["llada", "dream"])
def test_the_hook_is_the_sampler(kind: str, guidance: Any) -> None:
    model, words = tiny.build(kind)
    models = {"other": tiny.build(kind, seed=1)[0]}
    hook = MaskedDiffusionCFGHook(model, words, guidance, models=models)
    options: dict[str, Any] = {"gen_length": 6, "guidance": guidance, "models": models, "early_end": False}
    expected = diffusion.generate(model, words, PROMPTS, **options)
    prompts = torch.tensor([words(text).input_ids for text in PROMPTS])
    for _ in range(2):  # a second batch starts afresh
        found = foreign_loop(model, prompts, 6, hook, kind == "dream")
        assert torch.equal(found, expected.sequences)
    assert hook.effect is not None
    assert hook.effect.mean_kl > 0


def test_neutral_and_refusals() -> None:
    model, words = tiny.build("llada")
    logits = torch.randn(1, 3, tiny.VOCABULARY)
    x = torch.tensor([[5, tiny.MASK, tiny.MASK]])
    assert torch.equal(MaskedDiffusionCFGHook(model, words, CFG(1.0))(0, x, logits), logits)
    with pytest.raises(ValueError, match="'dola' runs a part of the model"):
        MaskedDiffusionCFGHook(model, words, DoLa())
    with pytest.raises(ValueError, match="prompt_length=-1"):
        MaskedDiffusionCFGHook(model, words, CFG(2.0), prompt_length=-1)


def test_allowed_tokens_on_a_canvas() -> None:
    allowed = torch.tensor([[True, False, True], [False, True, True]])
    scores = torch.zeros(2, 2, 3)
    found = AllowedTokensProcessor(allowed)(torch.zeros(2, 1), scores, cur_step=torch.tensor(3))
    assert torch.equal(torch.isneginf(found), (~allowed).expand(2, -1, -1))
    for bad in (torch.zeros(3), torch.zeros(3, dtype=torch.bool), [True]):
        with pytest.raises(ValueError, match="allowed"):
            AllowedTokensProcessor(bad)  # type: ignore[arg-type]
