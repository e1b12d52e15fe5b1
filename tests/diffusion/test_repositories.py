"""Each kind of model against the loop of its authors' repository, written out here from what that loop does.

Tiny random weights with the interfaces of the real ones; none of them ever predicts the mask, which the authors' loops
would write.
"""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from textguide import CFG, diffusion
from textguide.diffusion import denoiser
from textguide.diffusion.canvas import for_generation
from textguide.diffusion.guiding import Guide
from textguide.guidance import TimeStepGuidance

from . import tiny

NEVER = -1e9


class NoMask(torch.nn.Module):
    """A tiny model that gives the mask no chance."""

    def __init__(self, kind: str, block: int | None = None, additive: bool = False) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.inner = tiny.Opened(tiny.VOCABULARY)
        self.inner.eval()
        self.config = SimpleNamespace(**{**vars(self.inner.config), "model_type": kind})
        if block is not None:
            self.config.block_size = block
        self.additive = additive

    def forward(
        self, input_ids: Tensor, attention_mask: Any = None, position_ids: Any = None, past_key_values: Any = None,
        use_cache: bool = False, store_kv: bool = False,
    ) -> Any:  # fmt: skip
        if self.additive and attention_mask is not None:
            assert attention_mask.is_floating_point()
            attention_mask = attention_mask == 0
        out = self.inner(input_ids, attention_mask, past_key_values=past_key_values, use_cache=use_cache)
        out.logits[..., tiny.MASK] = NEVER
        return out


def shares(masks: int, steps: int) -> list[int]:
    """As equal as can be, the first ones one more."""
    return [masks // steps + (step < masks % steps) for step in range(steps)]


@torch.no_grad()
def llada(model: Any, prompt: list[int], length: int, steps: int, block: int, scale: float) -> list[int]:
    """LLaDA's loop: blocks, the surest tokens of each step, ``un + (scale + 1)(cond − un)`` on logits."""
    ids = [*prompt, *[tiny.MASK] * length]
    for number in range(length // block):
        inside = range(len(prompt) + number * block, len(prompt) + (number + 1) * block)
        for count in shares(block, steps // (length // block)):
            rows = [ids, [tiny.MASK if j < len(prompt) else t for j, t in enumerate(ids)]]
            cond, uncond = model(torch.tensor(rows)).logits.double()
            logits = uncond + (scale + 1) * (cond - uncond) if scale else cond
            chances = logits.softmax(-1)
            sure = {j: float(chances[j].max()) for j in inside if ids[j] == tiny.MASK}
            for j in sorted(sure, key=lambda j: -sure[j])[:count]:
                ids[j] = int(chances[j].argmax())
    return ids[len(prompt) :]


@pytest.mark.parametrize("scale", [0.0, 0.7])
@pytest.mark.parametrize(("steps", "block"), [(8, 8), (4, 4), (6, 4)])
def test_llada(steps: int, block: int, scale: float) -> None:
    model, words = NoMask("llada"), tiny.tokenizer()
    expected = llada(model, [5, 6, 9], 8, steps, block, scale)
    guidance = CFG(scale + 1) if scale else None
    out = diffusion.generate(
        model, words, [[5, 6, 9]], gen_length=8, steps=steps, block_length=block, guidance=guidance, early_end=False,
        warn=False,
    )  # fmt: skip
    assert out.sequences[0, 3:].tolist() == expected


def block_causal(length: int, block: int) -> Tensor:
    place = torch.arange(length) // block
    return place[None, :] <= place[:, None]


@torch.no_grad()
def blocks(
    model: Any, prompt: list[int], total: int, block: int, steps: int, threshold: float, additive: bool
) -> list[int]:
    """SDAR's and LLaDA 2's loop: blocks from the row's beginning, all above the threshold or a quota at least."""
    ids = [*prompt, *[tiny.MASK] * (total - len(prompt))]
    for start in range(len(prompt) // block * block, total, block):
        quotas = shares(block, steps)
        while tiny.MASK in ids[start : start + block]:
            seen = block_causal(start + block, block)[None, None]
            mask = torch.zeros(seen.shape).masked_fill(~seen, -math.inf) if additive else seen
            logits = model(torch.tensor([ids[: start + block]]), attention_mask=mask).logits[0].double()
            chances = logits.softmax(-1)
            sure = {j: float(chances[j].max()) for j in range(start, start + block) if ids[j] == tiny.MASK}
            chosen = [j for j in sure if sure[j] > threshold]
            count = quotas.pop(0) if quotas else block
            if len(chosen) < count:
                chosen = sorted(sure, key=lambda j: -sure[j])[:count]
            for j in chosen:
                ids[j] = int(chances[j].argmax())
    return ids[len(prompt) :]


@pytest.mark.parametrize("kind", ["sdar", "llada2_moe"])
@pytest.mark.parametrize(("prompt", "threshold"), [([5, 6, 9, 7], 2.0), ([5, 6], 2.0), ([5, 6, 9, 7, 8], 0.3)])
def test_blocks_from_the_beginning_of_the_row(kind: str, prompt: list[int], threshold: float) -> None:
    additive = kind != "sdar"
    model, words = NoMask(kind, block=4, additive=additive), tiny.tokenizer()
    expected = blocks(model, prompt, 12, 4, 4, threshold, additive)
    length = 12 - len(prompt)
    options: dict[str, Any] = {"threshold": threshold if threshold < 1 else None, "early_end": False, "warn": False}
    out = diffusion.generate(model, words, [prompt], gen_length=length, **options)
    assert out.sequences[0, len(prompt) :].tolist() == expected
    kept = diffusion.generate(model, words, [prompt], gen_length=length, cache=True, **options)
    assert torch.equal(kept.sequences, out.sequences)  # causal between blocks: what is kept is exact
    guided = diffusion.generate(model, words, [prompt], gen_length=length, guidance=CFG(1.5), **options)
    with_cache = diffusion.generate(model, words, [prompt], gen_length=length, guidance=CFG(1.5), cache=True, **options)
    assert torch.equal(guided.sequences, with_cache.sequences)
    with pytest.raises(ValueError, match="causal between blocks of 4"):
        diffusion.generate(model, words, [prompt], gen_length=8, block_length=8)


@torch.no_grad()
def dream(model: Any, prompt: list[int], length: int, steps: int, hook: Any) -> list[int]:
    """Dream's loop (``maskgit_plus``): logits moved by one, shares of ``1 − s/t`` of what is left, rounded down."""
    ids = torch.tensor([[*prompt, *[tiny.MASK] * length]])
    times = torch.linspace(1, 1e-3, steps + 1).tolist()
    for step in range(steps):
        logits = model(ids, "full").logits
        logits = hook(step, ids, torch.cat([logits[:, :1], logits[:, :-1]], 1))[0].double()
        masks = (ids[0] == tiny.MASK).nonzero()[:, 0].tolist()
        count = int(len(masks) * (1 - times[step + 1] / times[step])) if step < steps - 1 else len(masks)
        chances = logits.softmax(-1)
        for j in sorted(masks, key=lambda j: -float(chances[j].max()))[:count]:
            ids[0, j] = chances[j].argmax()
    return ids[0, len(prompt) :].tolist()


def test_dream() -> None:
    """The guided logits inside its loop are those of CFG by hand on logits that were moved."""
    from textguide import MaskedDiffusionCFGHook

    torch.manual_seed(3)
    model, words = tiny.DreamModel(tiny.VOCABULARY).eval(), tiny.tokenizer()

    def by_hand(step: int, ids: Tensor, logits: Tensor) -> Tensor:
        bare = ids.clone()
        bare[:, :3] = tiny.MASK
        other = model(bare, "full").logits
        other = torch.cat([other[:, :1], other[:, :-1]], 1)
        both = [one.index_fill(-1, torch.tensor([tiny.MASK]), NEVER) for one in (logits, other)]
        return both[1] + 1.7 * (both[0] - both[1])

    hook = MaskedDiffusionCFGHook(model, words, CFG(1.7))
    with torch.no_grad():
        assert dream(model, [5, 6, 9], 8, 5, hook) == dream(model, [5, 6, 9], 8, 5, by_hand)


class MDLM(torch.nn.Module):
    """MDLM's interface: token ids and the noise ``σ`` of each row, no attention mask, the last token is the mask."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(4)
        self.config = SimpleNamespace(model_type="mdlm", vocab_size=9, is_decoder=False)
        self.table = torch.nn.Embedding(9, 8)
        self.places = torch.nn.Embedding(16, 8)
        self.out = torch.nn.Linear(8, 9)
        self.seen: list[list[float]] = []

    def forward(self, input_ids: Tensor, timesteps: Tensor) -> Any:
        self.seen.append(timesteps.tolist())
        hidden = self.table(input_ids) + self.places.weight[: input_ids.shape[1]]
        mixed = torch.tanh(hidden + hidden.mean(1, keepdim=True) * (1 + timesteps[:, None, None]))
        return SimpleNamespace(logits=3 * self.out(mixed))


def test_mdlm_reads_its_noise() -> None:
    """The noise is ``−log(1 − (1 − ε) t)`` for the share t of masks; TSG reads the same canvas at more of it."""
    model = MDLM().eval()
    words = SimpleNamespace(eos_token_id=None, pad_token_id=0, mask_token_id=None)
    made = denoiser(model, words)
    assert (made.mask_id, made.time, made.as_mask) == (8, "timesteps", False)
    model.seen.clear()
    canvas = for_generation(made, [[1, 2]], 4, 4)
    canvas.ids[0, 3] = 5
    where = canvas.masked(8)

    def sigma(t: float) -> float:
        return -math.log1p(-(1 - 1e-3) * t)

    guide = Guide(made, TimeStepGuidance(2.0, shift=0.3), canvas)
    found = guide.distributions(canvas, torch.arange(1), where).guided
    assert model.seen[0] == pytest.approx([sigma(0.5), sigma(0.8)], abs=1e-5)

    def logp(t: float) -> Tensor:
        logits = model(canvas.ids, torch.tensor([sigma(t)])).logits.detach()[where]
        return torch.log_softmax(logits.index_fill(-1, torch.tensor([8]), -math.inf), -1)

    cond, noisy = logp(0.5), logp(0.8)
    expected = torch.log_softmax(torch.where(cond.isfinite(), noisy + 2 * (cond - noisy), cond), -1)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
    with pytest.raises(ValueError, match="rows cannot be padded"):
        diffusion.generate(made, None, [[1, 2], [3]], gen_length=2)


def test_without_a_time_filled_positions_are_masked_again() -> None:
    made = denoiser(*tiny.small(3))
    start, canvas = (for_generation(made, [made.encode("ab")] * 400, 4, 4) for _ in range(2))
    canvas.ids[:, 3:5] = 6  # two of four are filled
    guide = Guide(made, TimeStepGuidance(2.0, shift=0.25), start)
    guide.use(torch.Generator().manual_seed(0))
    found = guide.distributions(canvas, torch.arange(400), canvas.masked(1))
    lost = found.remasked
    assert (lost.sum(-1) == 1).all()
    assert abs(float(lost[:, 3].float().mean()) - 0.5) < 0.1  # each of them as often
    assert not lost[:, [0, 1, 2, 5]].any()
    row = int(lost[:, 4].nonzero()[0, 0])
    where = canvas.masked(1)[row]

    def logp(ids: Tensor) -> Tensor:
        logits = made(ids[None], torch.ones(1, 6, dtype=torch.bool))[0][0, where]
        return torch.log_softmax(logits, -1)

    noisier = canvas.ids[row].clone()
    noisier[4] = 1
    cond, other = logp(canvas.ids[row]), logp(noisier)
    expected = torch.log_softmax(torch.where(cond.isfinite(), other + 2 * (cond - other), cond), -1)
    torch.testing.assert_close(found.guided.view(400, 2, -1)[row], expected, atol=1e-3, rtol=1e-3)
    with pytest.raises(ValueError, match="masks positions at random"):
        diffusion.score(made, None, "ab", "cb", guidance=TimeStepGuidance(2.0))
    first, again = (
        diffusion.generate(*tiny.small(3), ["ab"], gen_length=4, guidance=TimeStepGuidance(2.0), seed=1, warn=False)
        for _ in range(2)
    )
    assert torch.equal(first.sequences, again.sequences)
