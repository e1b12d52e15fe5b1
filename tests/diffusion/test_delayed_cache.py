"""Keys kept inside of a block: against the plainest loop, exact where it must be, and how far off where it is not."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import DynamicCache

from textguide import ACFG, CFG, diffusion
from textguide.constraints import Regex
from textguide.diffusion import DelayedCache, cache_agreement
from textguide.forward import caches
from textguide.guidance import Formula, ParticleGibbs

from . import tiny

GIBBS = ParticleGibbs(lambda texts: [1.0] * len(texts), weight=1.0)


def model_of(kind: str, seed: int = 3) -> Any:
    torch.manual_seed(seed)
    model = (tiny.DreamModel if kind == "dream" else tiny.Opened)(tiny.VOCABULARY).eval()
    model.config.model_type = kind
    if kind in ("sdar", "fast-dllm"):
        model.config.block_size = 4
    return model


class Kept:
    """One row, whose keys and values are kept by their places."""

    def __init__(self, model: Any, block: int) -> None:
        self.model, self.block, self.known = model.inner, block, {}

    def read(self, ids: list[int], places: list[int]) -> torch.Tensor:
        others = [j for j in sorted(self.known) if j not in places]
        past = DynamicCache()
        for layer in range(2):
            if others:
                past.update(*(torch.cat([self.known[j][layer][part] for j in others], 2) for part in (0, 1)), layer)
        keys, queries = torch.tensor([*others, *places]), torch.tensor(places)
        seen = keys[None] // self.block <= queries[:, None] // self.block
        mask = torch.zeros(seen.shape).masked_fill(~seen, torch.finfo(torch.float32).min)[None, None]
        given = {caches.cache_argument(self.model): past, "use_cache": True}
        out = self.model(
            input_ids=torch.tensor([[ids[j] for j in places]]), attention_mask=mask, position_ids=queries[None], **given
        )
        for n, j in enumerate(places):
            self.known[j] = [
                (layer.keys[:, :, len(others) + n, None], layer.values[:, :, len(others) + n, None])
                for layer in past.layers
            ]
        logits = torch.full((len(ids), tiny.VOCABULARY), torch.nan)
        logits[places] = out.logits[0]
        logits[:, tiny.MASK] = -torch.inf
        return logits.log_softmax(-1)


@torch.no_grad()
def plainest(
    model: Any, prompt: list[int], length: int, scale: float, settings: DelayedCache, block: int | None = None
) -> tuple[list[int], list[float]]:
    """One token a pass, the surest; the tokens, and their probabilities in the order in which they were filled."""
    start, total = len(prompt), len(prompt) + length
    size = block or total
    rows = [[*prompt, *[tiny.MASK] * length], [tiny.MASK] * total]
    kept = [Kept(model, size) for _ in rows]
    filled: dict[int, int] = {}
    chances = []
    for first in range(start // size * size, total, size):
        inside, turn = range(max(start, first), min(first + size, total)), 0
        while tiny.MASK in [rows[0][j] for j in inside]:
            if turn == 0:
                places = list(range(min(first + size, total)))
            elif turn % settings.refresh == 0:
                places = list(range(first, min(first + size, total)))
            elif settings.reads == "block":
                places = list(range(first, min(first + size, total))) if block else list(inside)
            else:
                places = [j for j in inside if rows[0][j] == tiny.MASK or turn - filled.get(j, -99) <= settings.delay]
            cond, other = (one.read(row, places) for one, row in zip(kept, rows, strict=True))
            guided = (other + scale * (cond - other)).masked_fill(cond.isneginf(), -torch.inf).softmax(-1)
            best = max((j for j in inside if rows[0][j] == tiny.MASK), key=lambda j: float(guided[j].max()))
            chances.append(float(guided[best].max()))
            for row in rows:
                row[best] = int(guided[best].argmax())
            filled[best] = turn
            turn += 1
        filled.clear()
    return rows[0][start:], chances


SETTINGS = [
    DelayedCache(refresh=100),
    DelayedCache(refresh=3),
    DelayedCache(refresh=100, delay=3),
    DelayedCache(refresh=4, reads="block"),
]


@pytest.mark.parametrize("kind", ["llada", "sdar"])
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_every_pass_against_the_plainest_loop(kind: str, settings: DelayedCache) -> None:
    """Two prompts of unlike length in one batch: each row keeps its own."""
    model, words = model_of(kind), tiny.tokenizer()
    block = 4 if kind == "sdar" else None
    prompts = [[5, 6, 9], [8, 7, 7, 12, 6]]
    out = diffusion.generate(
        model, words, prompts, gen_length=9, guidance=CFG(1.8), cache=settings, early_end=False, keep_history=True,
        warn=False, steps=None if block is None else 100,
    )  # fmt: skip
    for row, prompt in enumerate(prompts):
        tokens, chances = plainest(model, prompt, 9, 1.8, settings, block)
        assert out.sequences[row, len(prompt) : len(prompt) + 9].tolist() == tokens
        found = [
            float(step.confidence[row][step.committed[row]]) for step in out.history if bool(step.committed[row].any())
        ]
        assert found == pytest.approx(chances, abs=2e-5)


ALL: list[dict[str, Any]] = [
    {"guidance": CFG(1.7)},
    {"guidance": CFG(1.7, negative_prompt="kkkkkk"), "temperature": 1.0},
    {"guidance": CFG(1.5), "corrector": 1},
    {"guidance": CFG(2.0, schedule="linear"), "sampler": "eb:gamma=0.5"},
    {"guidance": Formula("cond - 0.3*last + 0.2*M('m')")},
    {"sampler": "p2:eta=1", "temperature": 1.0},
    {"constraint": Regex("[a-f]{2,12}"), "temperature": 1.0},
]


@pytest.mark.parametrize(
    ("kind", "options"), [(kind, one) for kind, few in (("llada", 7), ("dream", 3), ("sdar", 3)) for one in ALL[:few]]
)
def test_a_refresh_at_every_pass_is_exact(kind: str, options: dict[str, Any]) -> None:
    found = cache_agreement(
        model_of(kind), tiny.tokenizer(), ["abc", "lkhga"], cache="delayed:refresh=1", gen_length=6,
        block_length=None if kind == "sdar" else 3, models={"m": model_of(kind, 5)}, **options,
    )  # fmt: skip
    assert found.equal_tokens == found.equal_rows == 1.0
    assert found.largest_difference < 2e-4  # sums in another order
    assert len(found.distances) >= 8


@pytest.mark.parametrize("kind", ["llada", "dream", "sdar"])
def test_the_report_tells_the_error_and_the_gain(kind: str) -> None:
    options: dict[str, Any] = {"gen_length": 12, "block_length": None if kind == "sdar" else 12, "early_end": False}
    found = cache_agreement(
        model_of(kind), tiny.tokenizer(), ["abc", "lkhga"], cache="delayed:refresh=16", guidance=CFG(1.5), **options
    )
    assert 1e-2 < found.largest_difference < 50
    assert 0 < float(found.distances.max()) <= 1
    assert found.exact.passes == found.kept.passes
    assert found.kept.tokens < 0.8 * found.exact.tokens
    assert f"{found.equal_tokens:.1%} of the tokens" in str(found)


@pytest.mark.parametrize(("kind", "cache"), [("sdar", "delayed:reads=block"), ("fast-dllm", "delayed:reads=block"),
                                             ("fast-dllm", True), ("fast-dllm", "delayed:refresh=1")])  # fmt: skip
def test_whole_blocks_are_exact_where_attention_is_causal_between_them(kind: str, cache: Any) -> None:
    """Also where logits are shifted, so that the first place of a block is read in front of it."""
    prompts = ["abc", "lkh"] if cache is True else ["abc", "lkhga"]
    found = cache_agreement(
        model_of(kind), tiny.tokenizer(), prompts, cache=cache, guidance=CFG(1.5), gen_length=12, early_end=False
    )
    assert found.equal_tokens == 1.0
    assert found.largest_difference < 2e-4
    assert found.kept.tokens < 0.75 * found.exact.tokens


def test_rows_do_not_depend_on_each_other() -> None:
    """Also where they finish, and branches rest, at different steps."""
    model, words = model_of("llada"), tiny.tokenizer()
    options: dict[str, Any] = {
        "gen_length": 12, "block_length": 6, "cache": DelayedCache(refresh=4), "threshold": 0.6,
        "guidance": CFG(1.5, start=0.3), "warn": False,
    }  # fmt: skip
    prompts = ["abc", "lkhga", "f", "ed"]
    together = diffusion.generate(model, words, prompts, **options).texts
    assert together == [diffusion.generate(model, words, [prompt], **options).texts[0] for prompt in prompts]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"guidance": ACFG(2.0)}, "cache=delayed keeps the prompt's keys, and A-CFG masks parts of the prompt again"),
        ({"cache": "delayed:refresh=0"}, "refresh=0 must be a whole number of 1 or more"),
        ({"cache": "delayed:reads=all"}, "reads='all' must be one of masked, block"),
        ({"cache": "late"}, "cache='late' is unknown; use one of "),
        ({"guidance": GIBBS, "temperature": 1.0}, "cache=delayed remembers rows"),
    ],
)
def test_what_cannot_be_kept_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        diffusion.generate(model_of("llada"), tiny.tokenizer(), "abc", gen_length=4, **{"cache": "delayed", **options})


def test_models_that_keep_nothing_are_refused_by_name() -> None:
    model, words = tiny.build("bert")
    with pytest.raises(
        ValueError, match="cache=delayed needs a forward that takes past_key_values, and BertForMaskedLM"
    ):
        diffusion.generate(model, words, "abc", gen_length=4, cache="delayed")

    class NoPlaces(tiny.LLaDAModelLM):
        def forward(self, input_ids: Any, attention_mask: Any = None, past_key_values: Any = None,
                    use_cache: bool = False) -> Any:  # type: ignore[override]  # fmt: skip
            return super().forward(input_ids, attention_mask, past_key_values, use_cache)

    with pytest.raises(ValueError, match="the forward of NoPlaces takes no position_ids; use cache=True"):
        diffusion.generate(NoPlaces(tiny.VOCABULARY).eval(), tiny.tokenizer(), "abc", gen_length=4, cache="delayed")
