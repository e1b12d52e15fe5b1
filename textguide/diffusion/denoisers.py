"""What the sampler asks of a masked diffusion model, and the adapters that give it.

A :class:`Denoiser` reads token ids with an attention mask and returns logits ``(B, L, V)`` in which position ``j`` is
the distribution of token ``j``, whatever the model's own habit is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..forward.caches import accepts, cache_argument
from ..guidance.prompts import as_prompt, is_chat

KINDS = ("masked-lm", "llada", "dream", "sdar", "llada2", "fast-dllm", "mdlm")
BLOCKS = {"sdar": 4, "llada2": 32, "fast-dllm": 32}
"""Kinds whose attention is causal between blocks, with the length of a block that their authors' code takes."""


CLEAN = 1e-3
"""MDLM's ε: a canvas without masks has noise ``−log(1 − (1 − ε) t)`` of 0, one of masks alone ``−log ε``."""


@dataclass
class Denoiser:
    """A masked diffusion model, seen by the sampler.

    Args:
        model: the module; called with ``input_ids`` and ``attention_mask``, returns an object with ``logits``.
        tokenizer: its tokenizer.
        mask_id: id of the mask token.
        end_id: id of the token that ends a text, or None.
        pad_id: id that fills rows up; never attended to.
        shifted: the model's logits at ``j`` are the distribution of token ``j + 1`` (Dream, Fast-dLLM v2), and are
            moved back here.
        square_mask: the model wants its mask as ``(B, 1, L, L)``, or the text ``"full"`` where nothing is padded
            (Dream).
        block_size: attention is causal between blocks of so many positions, counted from the beginning of the row, and
            the model is told so by its mask, (B, 1, L, L) (SDAR, LLaDA 2, Fast-dLLM v2); canvases are filled in these
            blocks. None: everything sees everything, or the model knows by itself.
        additive: that mask is 0 and −inf in place of bool (LLaDA 2).
        time: name of the argument of the forward that takes the noise of each row, ``σ = −log(1 − t)`` for the share
            ``t`` of masks (MDLM); None: it reads none.
        as_mask: whether the forward takes ``attention_mask``; without it rows of different lengths are refused.
        prefix_ids, suffix_ids: tokens that frame every text, such as ``[CLS]`` and ``[SEP]``; guidance leaves them
            alone.
        forbidden: ids that are never written: the mask token and, for models with such a frame, its special tokens.
        max_length: the longest row that the model reads, or None where it states no limit.

    Attributes:
        passes: forward passes so far.
        rows: rows read so far, over all passes.
        tokens: positions read so far, those of padding counted.
    """

    model: Any
    tokenizer: Any
    mask_id: int
    end_id: int | None
    pad_id: int
    shifted: bool = False
    square_mask: bool = False
    block_size: int | None = None
    additive: bool = False
    time: str | None = None
    as_mask: bool = True
    prefix_ids: tuple[int, ...] = ()
    suffix_ids: tuple[int, ...] = ()
    forbidden: tuple[int, ...] = ()
    max_length: int | None = None
    passes: int = field(default=0, init=False)
    rows: int = field(default=0, init=False)
    tokens: int = field(default=0, init=False)

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(iter(self.model.parameters())).device

    @property
    def size(self) -> int:
        """Tokens in the vocabulary, by a pass over one mask where the configuration does not say."""
        stated = getattr(getattr(self.model, "config", None), "vocab_size", None)
        if stated is None:
            ids = torch.tensor([[self.mask_id]], device=self.device)
            stated = self(ids, torch.ones_like(ids, dtype=torch.bool))[0].shape[-1]
        return int(stated)

    @property
    def can_cache(self) -> bool:
        """Whether ``forward`` takes ``past_key_values``, so that finished blocks can be kept."""
        encoder = not getattr(getattr(self.model, "config", None), "is_decoder", True)
        return not encoder and any(accepts(self.model, name) for name in ("past_key_values", "cache"))

    @property
    def can_place(self) -> bool:
        """Whether ``forward`` takes ``position_ids``, so that positions can be read again behind kept ones."""
        return accepts(self.model, "position_ids")

    def __call__(
        self, ids: Tensor, attention: Tensor, past: Any = None, keep: bool = False, times: Tensor | None = None,
        places: Tensor | None = None,
    ) -> tuple[Tensor, Any]:  # fmt: skip
        """Logits (B, L, V) of ``ids`` (B, L), with forbidden tokens at −inf, and the cache where one was asked for.

        Args:
            attention: bool, 1 for real tokens; (B, L), or (B, past + L) behind a cache.
            past: keys and values of the tokens in front of ``ids``.
            keep: return keys and values of what was read.
            times: noise level of each row in [0, 1], (B,), for models that read one; None: its share of masks.
            places: where ``ids`` stand in rows of which ``past`` holds all positions in order, (B, L); None: behind
                them. The logits are then those that the model gave at these places: they are not moved.
        """
        self.passes += 1
        self.rows += len(ids)
        self.tokens += ids.numel()
        extra: dict[str, Any] = {}
        if past is not None or keep:
            extra = {cache_argument(self.model): past, "use_cache": True}
            if accepts(self.model, "store_kv"):
                extra["store_kv"] = keep
        if places is not None:
            extra["position_ids"] = places
        if self.time is not None:
            level = self.noise_level(ids, attention) if times is None else times
            extra[self.time] = -torch.log1p(-(1 - CLEAN) * level)
        out = self.forward(ids, attention, extra)
        logits = out.logits
        if self.shifted and places is None:
            logits = torch.cat([logits[:, :1], logits[:, :-1]], dim=1)
        logits = logits.index_fill(-1, torch.tensor(self.forbidden, device=logits.device), float("-inf"))
        return logits, _cache_of(out) if keep else None

    def noise_level(self, ids: Tensor, attention: Tensor) -> Tensor:
        """The share of masks in each row, float32 (B,)."""
        return ((ids == self.mask_id) & attention).sum(-1) / attention.sum(-1).clamp(min=1)

    def forward(self, ids: Tensor, attention: Tensor, extra: dict[str, Any]) -> Any:
        """What the model itself returns, with its logits where it puts them; ``extra`` are arguments of its forward."""
        mask: Any = attention.long()
        new, places = ids.shape[1], extra.get("position_ids")
        if self.block_size is not None:
            place = torch.arange(attention.shape[1], device=ids.device)[None]
            if places is not None:
                place = torch.cat([place[:, :-new].expand(len(ids), -1), places], dim=1)
            block = place // self.block_size
            mask = (block[:, None, :] <= block[:, -new:, None])[:, None] & attention[:, None, None, :]
            if self.additive:
                mask = torch.zeros(mask.shape, device=ids.device).masked_fill(~mask, float("-inf"))
        elif self.square_mask:
            asks = attention[:, None, -new:, None]
            asks = asks if places is None else torch.ones_like(asks)  # what pads a row there is thrown away
            mask = "full" if bool(attention.all()) else asks & attention[:, None, None, :]
        if self.as_mask:
            extra = {"attention_mask": mask, **extra}
        elif not attention.all():
            raise ValueError(
                f"model {type(self.model).__name__} takes no attention_mask, so that rows cannot be padded; give "
                "prompts of one length, and guidance whose branches are as long"
            )
        with torch.no_grad():
            return self.model(input_ids=ids, **extra)

    def encode(self, prompt: Any) -> list[int]:
        """Token ids of a prompt without its frame: a text, ids, or chat messages (the template's generation prompt)."""
        prompt = as_prompt(prompt)
        if prompt is None:
            raise ValueError("prompts must be texts, token ids or chat messages; give a list with one of these a row")
        if isinstance(prompt, str):
            return list(self.tokenizer(prompt, add_special_tokens=False).input_ids)
        if is_chat(prompt):
            turns = [{"role": turn.role, "content": turn.content} for turn in prompt]
            ids = self.tokenizer.apply_chat_template(turns, add_generation_prompt=True)
            return list(ids["input_ids"] if hasattr(ids, "keys") else ids)
        ids = [int(token) for token in prompt]
        wrong = next((token for token in ids if not 0 <= token < self.size), None)
        if wrong is not None:
            raise ValueError(f"a prompt has token id {wrong}; the vocabulary has {self.size} tokens")
        return ids


def denoiser(
    model: Any,
    tokenizer: Any,
    *,
    kind: str | None = None,
    mask_id: int | None = None,
    end_id: int | None = None,
    block_size: int | None = None,
    probe: bool = True,
) -> Denoiser:
    """The adapter for a model, chosen by what the model is.

    Args:
        model: a transformers masked language model (BERT, ALBERT, ModernBERT…), a model with LLaDA's or Dream's
            interface, or a :class:`Denoiser`, which is returned as it is.
        tokenizer: its tokenizer.
        kind: ``masked-lm``, ``llada`` (bidirectional decoder, logits in place), ``dream`` (logits shifted by one,
            square masks), ``sdar`` or ``llada2`` (causal between blocks), ``fast-dllm`` (the same, logits shifted by
            one; language models that were adapted) or ``mdlm`` (reads the noise level and no mask); None: by
            ``config.model_type`` and the names of the classes.
        mask_id: the mask token; None: the configuration's ``mask_token_id``, else the tokenizer's.
        end_id: the end token; None: the tokenizer's, if it has one.
        block_size: of ``sdar``, ``llada2`` and ``fast-dllm``; None: the configuration's ``block_size``, else 4, 32, 32.
        probe: run two short rows to see that later tokens change earlier logits.

    Raises:
        ValueError: there is no mask token, the model is causal, or it cannot be denoised from masks.
    """
    if isinstance(model, Denoiser):
        return model
    names = " ".join([str(getattr(getattr(model, "config", None), "model_type", "")), type(model).__name__]).lower()
    if "diffusiongemma" in names.replace("_", ""):
        raise ValueError(
            "model is a DiffusionGemma, whose canvas starts from random tokens and holds no masks; use its own "
            "generate with textguide.logits_processors.AllowedTokensProcessor for constraints (it can take "
            "neither CFG nor A-CFG)"
        )
    if kind is None:
        known = ("dream", "llada2", "llada", "sdar", "fast-dllm", "mdlm")
        kind = next((one for one in known if one in names.replace("_", "-")), "masked-lm")
    if kind not in KINDS:
        raise ValueError(f"kind={kind!r} is unknown; use one of {', '.join(KINDS)}")
    config = getattr(model, "config", None)
    if mask_id is None:
        mask_id = next(
            (
                value
                for value in (
                    getattr(config, "mask_token_id", None),
                    getattr(tokenizer, "mask_token_id", None),
                    126336 if kind == "llada" and getattr(config, "vocab_size", 0) == 126464 else None,
                    getattr(config, "vocab_size", 0) - 1
                    if kind == "mdlm"
                    else None,  # the last one stands for the mask
                )
                if value is not None
            ),
            None,
        )
    if mask_id is None:
        raise ValueError(
            "the model has no mask token (neither its configuration nor its tokenizer names one), so it is no masked "
            "diffusion model; if it is one, pass mask_id="
        )
    end_id = end_id if end_id is not None else getattr(tokenizer, "eos_token_id", None)
    prefix, suffix = _frame(tokenizer) if kind == "masked-lm" else ((), ())
    if end_id is None and suffix and kind == "masked-lm":
        end_id = None  # a masked language model is given its length; [SEP] closes the row and is not written
    pad_id = getattr(tokenizer, "pad_token_id", None)
    special = set(getattr(tokenizer, "all_special_ids", None) or []) if kind == "masked-lm" else set()
    if kind in BLOCKS:
        block_size = block_size or getattr(config, "block_size", None) or BLOCKS[kind]
    elif block_size is not None:
        raise ValueError(
            f"block_size={block_size} is for {' and '.join(BLOCKS)}, and this is kind={kind!r}; leave it out"
        )
    made = Denoiser(
        model,
        tokenizer,
        mask_id=int(mask_id),
        end_id=end_id,
        pad_id=int(pad_id if pad_id is not None else end_id if end_id is not None else mask_id),
        shifted=kind in ("dream", "fast-dllm"),
        square_mask=kind == "dream",
        block_size=block_size,
        additive=kind == "llada2",
        time="timesteps" if kind == "mdlm" else None,
        as_mask=kind != "mdlm",
        prefix_ids=prefix,
        suffix_ids=suffix,
        forbidden=tuple(sorted((special | {int(mask_id)}) - {end_id})),
        max_length=_longest(model, tokenizer),
    )
    if probe:
        _check_bidirectional(made)
    return made


def _cache_of(out: Any) -> Any:
    """The cache that a forward returned; the new name first, since reading the old one warns."""
    found = getattr(out, "cache", None)
    return out.past_key_values if found is None else found


def _frame(tokenizer: Any) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The special tokens that the tokenizer puts in front of and behind every text."""
    bare = list(tokenizer("", add_special_tokens=False).input_ids)
    framed = list(tokenizer("", add_special_tokens=True).input_ids)
    if bare or not framed:
        return (), ()
    closing = {getattr(tokenizer, "sep_token_id", None), getattr(tokenizer, "eos_token_id", None)} - {None}
    cut = next((i for i, token in enumerate(framed) if token in closing), len(framed))
    return tuple(framed[:cut]), tuple(framed[cut:])


def _longest(model: Any, tokenizer: Any) -> int | None:
    config = getattr(model, "config", None)
    limits = [getattr(config, name, None) for name in ("max_position_embeddings", "max_sequence_length", "n_positions")]
    stated = getattr(tokenizer, "model_max_length", None)
    limits.append(stated if isinstance(stated, int) and stated < 10**9 else None)
    return min((int(limit) for limit in limits if limit), default=None)


def _check_bidirectional(made: Denoiser) -> None:
    """Refuse a model whose earlier logits do not move when a later token does."""
    texts = [token for token in range(min(made.model.config.vocab_size, 64)) if token not in made.forbidden]
    if len(texts) < 2:
        return
    rows = [_probe(made, token) for token in texts[:2]]
    ids = torch.tensor(rows, device=made.device)
    first = len(made.prefix_ids) + 1
    training = made.model.training
    made.model.eval()
    logits, _ = made(ids, torch.ones_like(ids, dtype=torch.bool))
    made.model.train(training)
    made.passes, made.rows, made.tokens = 0, 0, 0
    distribution = torch.log_softmax(logits[:, :first].double(), -1)
    if torch.equal(distribution[0], distribution[1]):
        raise ValueError(
            f"model {type(made.model).__name__} is causal: a later token does not change what it says about an earlier "
            "one, so it cannot fill masks; use textguide.generate for it, or pass probe=False if its attention is "
            "opened elsewhere"
        )


def _probe(made: Denoiser, last: int) -> Sequence[int]:
    return [*made.prefix_ids, made.mask_id, made.mask_id, last, *made.suffix_ids]
