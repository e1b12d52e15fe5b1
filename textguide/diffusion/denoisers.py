"""What the sampler needs from a masked diffusion model, and an adapter for each kind of model.

A :class:`Denoiser` reads token ids with an attention mask and returns logits ``(B, L, V)`` whose position ``j`` is the
distribution of token ``j``, whatever the convention of the model itself is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..forward.caches import accepts, cache_argument
from ..guidance.prompts import as_prompt, is_chat
from ..support.checks import brief

CLEAN = 1e-3
"""MDLM's ε: a canvas without masks has noise ``−log(1 − (1 − ε) t)`` of 0, and one that is fully masked ``−log ε``."""
LLADA_VOCABULARY = 126464
LLADA_MASK = 126336
"""LLaDA's checkpoints name no mask token; it is recognised by the size of the vocabulary."""


@dataclass(frozen=True)
class Kind:
    """How models of one kind are called; the fields are those of :class:`Denoiser`.

    Args:
        is_framed: the tokenizer puts special tokens around a text, which are not part of it.
        block_size: length of a block if the configuration does not state it, as the authors' code sets it; None:
            attention is not causal between blocks.
        mask_is_last: the mask token has the largest id of the vocabulary.
    """

    is_framed: bool = False
    shifted: bool = False
    square_mask: bool = False
    block_size: int | None = None
    additive: bool = False
    time: str | None = None
    as_mask: bool = True
    mask_is_last: bool = False


KINDS = {
    "masked-lm": Kind(is_framed=True),
    "llada": Kind(),
    "dream": Kind(shifted=True, square_mask=True),
    "sdar": Kind(block_size=4),
    "llada2": Kind(block_size=32, additive=True),
    "fast-dllm": Kind(block_size=32, shifted=True),
    "mdlm": Kind(time="timesteps", as_mask=False, mask_is_last=True),
}
RECOGNISED = ("dream", "llada2", "llada", "sdar", "fast-dllm", "mdlm")
"""Kinds that are recognised by the model's name, in this order: ``llada2`` also contains ``llada``."""


@dataclass
class Denoiser:
    """A masked diffusion model, as the sampler sees it.

    Args:
        model: the module; called with ``input_ids`` and ``attention_mask``, returns an object with ``logits``.
        tokenizer: its tokenizer.
        mask_id: id of the mask token.
        end_id: id of the token that ends a text, or None.
        pad_id: id that fills rows up; it is never attended to.
        shifted: the model's logits at ``j`` are the distribution of token ``j + 1`` (Dream, Fast-dLLM v2); they are
            moved back here.
        square_mask: the model expects its mask as ``(B, 1, L, L)``, or the text ``"full"`` if nothing is padded
            (Dream).
        block_size: attention is causal between blocks of this many positions, counted from the beginning of the row.
            The mask passed to the model, (B, 1, L, L), expresses it (SDAR, LLaDA 2, Fast-dLLM v2), and canvases are
            filled in these blocks. None: every position attends to every other, or the model builds its own mask.
        additive: that mask is 0 and −inf instead of bool (LLaDA 2).
        time: name of the argument of the forward for the noise of each row, ``σ = −log(1 − t)`` for the share ``t`` of
            masks (MDLM); None: the model has no such argument.
        as_mask: whether the forward accepts ``attention_mask``; without it rows of different lengths are refused.
        prefix_ids, suffix_ids: tokens that frame every text, such as ``[CLS]`` and ``[SEP]``; guidance does not change
            them.
        forbidden: ids that are never generated: the mask token and, for models with a frame, its special tokens.
        max_length: the longest row that the model can read, or None if it states no limit.

    Attributes:
        passes: forward passes so far.
        rows: rows read so far, over all passes.
        tokens: positions read so far, including padding.
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
        """The device of the model."""
        return next(iter(self.model.parameters())).device

    @property
    def size(self) -> int:
        """Size of the vocabulary. If the configuration does not state it, one mask is read to find out."""
        stated = getattr(getattr(self.model, "config", None), "vocab_size", None)
        if stated is None:
            ids = torch.tensor([[self.mask_id]], device=self.device)
            stated = self(ids, torch.ones_like(ids, dtype=torch.bool))[0].shape[-1]
        return int(stated)

    @property
    def can_cache(self) -> bool:
        """Whether ``forward`` accepts ``past_key_values``, so that keys of finished blocks can be kept."""
        encoder = not getattr(getattr(self.model, "config", None), "is_decoder", True)
        return not encoder and any(accepts(self.model, name) for name in ("past_key_values", "cache"))

    @property
    def can_place(self) -> bool:
        """Whether ``forward`` accepts ``position_ids``, so that positions can be read again with the kept keys of all
        others."""
        return accepts(self.model, "position_ids")

    def __call__(
        self,
        ids: Tensor,
        attention: Tensor,
        past: Any = None,
        keep: bool = False,
        times: Tensor | None = None,
        places: Tensor | None = None,
    ) -> tuple[Tensor, Any]:
        """Logits (B, L, V) of ``ids`` (B, L), with forbidden tokens at −inf; and the cache if ``keep`` is set.

        Args:
            attention: True for real tokens, bool (B, L), or (B, past + L) with a cache.
            past: keys and values of the tokens before ``ids``.
            keep: return keys and values of what was read.
            times: noise level of each row in [0, 1], (B,), for models that read one; None: its share of masks.
            places: the positions of ``ids`` in rows of which ``past`` holds all positions in order, (B, L); None: they
                follow ``past``. With ``places`` the logits of shifted models are not moved back.
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
        logits = getattr(out, "logits", None)
        if logits is None:
            raise ValueError(
                f"model {type(self.model).__name__} returns no logits: it is a backbone without a head; load the model "
                "with its head, such as the class under AutoModelForCausalLM in the checkpoint's auto_map"
            )
        if self.shifted and places is None:
            logits = torch.cat([logits[:, :1], logits[:, :-1]], dim=1)
        logits = logits.index_fill(-1, torch.tensor(self.forbidden, device=logits.device), float("-inf"))
        return logits, _cache_of(out) if keep else None

    def noise_level(self, ids: Tensor, attention: Tensor) -> Tensor:
        """The share of masks in each row, float32 (B,)."""
        return ((ids == self.mask_id) & attention).sum(-1) / attention.sum(-1).clamp(min=1)

    def forward(self, ids: Tensor, attention: Tensor, extra: dict[str, Any]) -> Any:
        """The output of the model itself, with logits as the model places them.

        Args:
            extra: further arguments of the model's forward.
        """
        if self.as_mask:
            extra = {"attention_mask": self._mask(ids, attention, extra.get("position_ids")), **extra}
        elif not attention.all():
            raise ValueError(
                f"model {type(self.model).__name__} takes no attention_mask, so that rows cannot be padded; give "
                "prompts of one length, and guidance whose branches are as long"
            )
        with torch.no_grad():
            return self.model(input_ids=ids, **extra)

    def _mask(self, ids: Tensor, attention: Tensor, places: Tensor | None) -> Any:
        """The attention mask in the shape that the model expects."""
        new = ids.shape[1]
        if self.block_size is not None:
            position = torch.arange(attention.shape[1], device=ids.device)[None]
            if places is not None:
                position = torch.cat([position[:, :-new].expand(len(ids), -1), places], dim=1)
            block = position // self.block_size
            mask = (block[:, None, :] <= block[:, -new:, None])[:, None] & attention[:, None, None, :]
            if self.additive:
                return torch.zeros(mask.shape, device=ids.device).masked_fill(~mask, float("-inf"))
            return mask
        if self.square_mask:
            queries = attention[:, None, -new:, None]
            if places is not None:  # the outputs at padding are not used then
                queries = torch.ones_like(queries)
            return "full" if bool(attention.all()) else queries & attention[:, None, None, :]
        return attention.long()

    def _encode_text(self, text: str) -> list[int]:
        """Token ids of a text.

        Raises:
            ValueError: the tokenizer writes padding for characters that it does not know, so that nobody reads them.
        """
        ids = list(self.tokenizer(text, add_special_tokens=False).input_ids)
        if self.pad_id in ids and str(self.tokenizer.decode([self.pad_id])) not in text:
            rest = text
            for special in self.tokenizer.all_special_tokens:
                rest = rest.replace(special, "")
            encoded = {one: self.tokenizer(one, add_special_tokens=False).input_ids for one in rest}
            unknown = " ".join(one for one, own in encoded.items() if self.pad_id in own)
            raise ValueError(f"the model does not know {brief(unknown)} in the text {brief(text)}; leave that out")
        return ids

    def encode(self, prompt: Any) -> list[int]:
        """Token ids, without the frame, of a text, of token ids, or of chat messages (with the template's generation
        prompt)."""
        prompt = as_prompt(prompt)
        if prompt is None:
            raise ValueError("prompts must be texts, token ids or chat messages; give one of these per row")
        if isinstance(prompt, str):
            return self._encode_text(prompt)
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
    """The adapter for a model.

    Args:
        model: a transformers masked language model (BERT, ALBERT, ModernBERT…), a model with LLaDA's or Dream's
            interface, or a :class:`Denoiser`, which is returned unchanged.
        tokenizer: its tokenizer.
        kind: ``masked-lm``, ``llada`` (bidirectional decoder, logits in place), ``dream`` (logits shifted by one,
            square masks), ``sdar`` or ``llada2`` (causal between blocks), ``fast-dllm`` (the same, logits shifted by
            one; language models that were adapted) or ``mdlm`` (reads the noise level and no mask). None: determined
            from ``config.model_type`` and the name of the class.
        mask_id: the mask token; None: the configuration's ``mask_token_id``, or else the tokenizer's.
        end_id: the end token; None: the tokenizer's, if it has one.
        block_size: for ``sdar``, ``llada2`` and ``fast-dllm``; None: the configuration's ``block_size``, or else 4, 32
            and 32.
        probe: run two short rows to check that later tokens change earlier logits.

    Raises:
        ValueError: there is no mask token, the model is causal, or it cannot fill masks.
    """
    if isinstance(model, Denoiser):
        return model
    _refuse_random_canvas(model)
    config = getattr(model, "config", None)
    kind = _kind_of(model) if kind is None else kind
    if kind not in KINDS:
        raise ValueError(f"kind={kind!r} is unknown; use one of {', '.join(KINDS)}")
    facts = KINDS[kind]
    mask_id = _mask_of(facts, kind, config, tokenizer) if mask_id is None else mask_id
    end_id = end_id if end_id is not None else getattr(tokenizer, "eos_token_id", None)
    # A framed text has a given length: the closing token ends the row and is not generated.
    prefix, suffix = _frame(tokenizer) if facts.is_framed else ((), ())
    special = set(getattr(tokenizer, "all_special_ids", None) or []) if facts.is_framed else set()
    made = Denoiser(
        model,
        tokenizer,
        mask_id=int(mask_id),
        end_id=end_id,
        pad_id=_first_number(getattr(tokenizer, "pad_token_id", None), end_id, mask_id),
        shifted=facts.shifted,
        square_mask=facts.square_mask,
        block_size=_block_size(facts, kind, config, block_size),
        additive=facts.additive,
        time=facts.time,
        as_mask=facts.as_mask,
        prefix_ids=prefix,
        suffix_ids=suffix,
        forbidden=tuple(sorted((special | {int(mask_id)}) - {end_id})),
        max_length=_longest(model, tokenizer),
    )
    _check_ids(made, getattr(config, "vocab_size", None))
    if probe:
        _check_bidirectional(made)
    return made


def _check_ids(made: Denoiser, size: int | None) -> None:
    """Refuse a mask or end token that is not in the vocabulary."""
    for name, token in (("mask_id", made.mask_id), ("end_id", made.end_id)):
        if token is None or (token >= 0 and (size is None or token < size)):
            continue
        known = "" if size is None else f"; the vocabulary of the model has {size} tokens, 0 to {size - 1}"
        raise ValueError(f"{name}={token} is not a token{known}")


def _names_of(model: Any) -> str:
    """``config.model_type`` and the name of the class, in lower case."""
    model_type = getattr(getattr(model, "config", None), "model_type", "")
    return f"{model_type} {type(model).__name__}".lower()


def _refuse_random_canvas(model: Any) -> None:
    if "diffusiongemma" in _names_of(model).replace("_", ""):
        raise ValueError(
            "model is a DiffusionGemma, whose canvas starts from random tokens and holds no masks; use its own "
            "generate with textguide.logits_processors.AllowedTokensProcessor for constraints (CFG and A-CFG do not "
            "work there)"
        )


def _kind_of(model: Any) -> str:
    names = _names_of(model).replace("_", "-")
    return next((one for one in RECOGNISED if one in names), "masked-lm")


def _mask_of(facts: Kind, kind: str, config: Any, tokenizer: Any) -> int:
    """The mask token by the configuration, by the tokenizer, or by the conventions of the kind."""
    stated = getattr(config, "mask_token_id", None)
    if stated is None:
        stated = getattr(tokenizer, "mask_token_id", None)
    size = getattr(config, "vocab_size", 0)
    if stated is None and kind == "llada" and size == LLADA_VOCABULARY:
        stated = LLADA_MASK
    if stated is None and facts.mask_is_last:
        stated = size - 1
    if stated is None:
        raise ValueError(
            "the model has no mask token (neither its configuration nor its tokenizer names one), so it is not a "
            "masked diffusion model; if it is one, pass mask_id="
        )
    return int(stated)


def _block_size(facts: Kind, kind: str, config: Any, block_size: int | None) -> int | None:
    if facts.block_size is not None:
        return block_size or getattr(config, "block_size", None) or facts.block_size
    if block_size is not None:
        with_blocks = [name for name, one in KINDS.items() if one.block_size is not None]
        raise ValueError(
            f"block_size={block_size} is for {', '.join(with_blocks)}, and this is kind={kind!r}; leave it out"
        )
    return None


def _first_number(*values: int | None) -> int:
    return int(next(value for value in values if value is not None))


def _cache_of(out: Any) -> Any:
    """The cache that a forward returned; the new name first, since reading the old one warns."""
    cache = getattr(out, "cache", None)
    return out.past_key_values if cache is None else cache


def _frame(tokenizer: Any) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The special tokens that the tokenizer puts before and after every text."""
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
    limits.append(stated if isinstance(stated, int) and stated < 10**9 else None)  # transformers' "no limit" is 1e30
    return min((int(limit) for limit in limits if limit), default=None)


def _check_bidirectional(made: Denoiser) -> None:
    """Refuse a model whose earlier logits do not change with a later token."""
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
    made.passes = 0
    made.rows = 0
    made.tokens = 0
    distribution = torch.log_softmax(logits[:, :first].double(), -1)
    if torch.equal(distribution[0], distribution[1]):
        raise ValueError(
            f"model {type(made.model).__name__} is causal: a later token does not change the distribution of an "
            "earlier one, so it cannot fill masks; use textguide.generate for it, or pass probe=False if its attention "
            "is opened elsewhere"
        )


def _probe(made: Denoiser, last: int) -> Sequence[int]:
    return [*made.prefix_ids, made.mask_id, made.mask_id, last, *made.suffix_ids]
