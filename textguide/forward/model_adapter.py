"""How a transformers model is called, and what it cannot do.

All other files call models through :class:`ModelAdapter`. What a model's signature does not state is known for the
classes of transformers (:mod:`.facts`), and for other models found out by :mod:`.probes`, once per model: whether rows
of different lengths may share a pass, whether their caches may be merged, and whether all of its state is in the cache.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationMixin

from . import caches, facts, own_lengths, probes, small_matmul
from .facts import Facts
from .probes import Padding

_adapters: weakref.WeakKeyDictionary[Any, ModelAdapter] = weakref.WeakKeyDictionary()


def unwrapped(model: Any) -> Any:
    """The transformers model inside wrappers that only call it: PEFT, ``torch.compile``, data parallelism."""
    while True:
        inner = getattr(model, "_orig_mod", None)  # torch.compile
        if inner is None and hasattr(model, "get_base_model"):  # PEFT, whose layers are inside the model
            inner = model.get_base_model()
        if inner is None and type(model).__name__ in ("DistributedDataParallel", "DataParallel"):
            inner = model.module
        if inner is None or inner is model:
            return model
        model = inner


def adapter(model: Any) -> ModelAdapter:
    """The adapter of ``model``. There is one per model, which keeps what the probes found.

    Raises:
        ValueError: a wrapper of the model adds tokens before every prompt, which guidance cannot see.
    """
    config = getattr(model, "active_peft_config", None)
    if config is not None and getattr(config, "is_prompt_learning", False):
        raise ValueError(
            f"{type(model).__name__} adds learned tokens before every prompt ({config.peft_type}), which the branches "
            "of guidance would not read; use an adapter that changes weights, such as LoRA"
        )
    base = unwrapped(model)
    if base not in _adapters:
        _adapters[base] = ModelAdapter(base)
    return _adapters[base]


class ModelAdapter:
    """One transformers model: its sizes, its call, and what it cannot do.

    Args:
        model: a transformers model, unwrapped.
    """

    def __init__(self, model: Any) -> None:
        # A weak reference, because the dictionary of adapters must not keep its own keys alive.
        self._model = weakref.ref(model)
        # Signature and copy: see fast_copy.
        self._fast: tuple[Any, Any] = (None, None)

    # -- sizes -----------------------------------------------------------------------------------------------------

    @property
    def base(self) -> Any:
        """The model itself."""
        return self._model()

    @property
    def name(self) -> str:
        """The name of its class."""
        return type(self.base).__name__

    @property
    def is_encoder_decoder(self) -> bool:
        """Whether an encoder reads the prompt."""
        return bool(self.base.config.is_encoder_decoder)

    @property
    def text_config(self) -> Any:
        """The configuration of the part that generates text."""
        return self.base.config.get_text_config(decoder=True)

    @property
    def vocab_size(self) -> int | None:
        """Number of tokens V; None if the configuration does not state it."""
        return getattr(self.text_config, "vocab_size", None)

    @property
    def max_positions(self) -> int | None:
        """The longest text that it has positions for; None if no limit is known."""
        limit: int | None = getattr(self.text_config, "max_position_embeddings", None)
        return limit if limit is not None and limit > 0 else None

    @property
    def device(self) -> torch.device:
        """The device of token ids, also for models that are spread over devices or offloaded."""
        embeddings = self.base.get_input_embeddings() if hasattr(self.base, "get_input_embeddings") else None
        # accelerate moves inputs to the device of the hook; an offloaded weight is on the CPU or the meta device.
        hook = getattr(embeddings, "_hf_hook", None) or getattr(self.base, "_hf_hook", None)
        execution = getattr(hook, "execution_device", None)
        if execution is not None:
            return torch.device(execution)
        weight = getattr(embeddings, "weight", None)
        if isinstance(weight, Tensor):
            return weight.device
        device: torch.device = self.base.device
        return device

    @cached_property
    def has_recurrent_state(self) -> bool:
        """Whether some layer keeps a recurrent or convolutional state, which padding would enter."""
        return caches.has_recurrent_state(self.base)

    def accepts(self, argument: str) -> bool:
        """Whether ``forward`` names ``argument``."""
        return caches.accepts(self.base, argument)

    # -- the call --------------------------------------------------------------------------------------------------

    def read(
        self,
        ids: Tensor,
        cache: Any,
        *,
        mask: Tensor | None,
        positions: Tensor | None,
        keep: int = 1,
        first: bool = False,
        inputs: dict[str, Any] | None = None,
        fast: bool = False,
        call: Callable[..., Any] | None = None,
    ) -> Tensor:
        """Read new tokens after those in ``cache``, and return the last logits, (R, keep, V).

        Args:
            ids: new tokens of every row, (R, k); for an encoder-decoder those of its decoder.
            cache: a transformers cache; the new tokens are added to it.
            mask: attention mask over the cache and the new tokens, (R, T); None: no padding.
            positions: positions of the new tokens, (R, k) or (3, R, k).
            keep: number of positions whose logits are returned.
            first: whether this is the first pass of these rows.
            inputs: other inputs of the model: encoder outputs, pixel values…
            fast: use this machine's faster matrix products, which do not reproduce the bits of plain decoding.
            call: called instead of the model.

        Raises:
            ValueError: the model returned the logits of fewer than ``keep`` positions.
        """
        model = self.base
        arguments: dict[str, Any] = {caches.cache_argument(model): cache, "use_cache": True, **(inputs or {})}
        if self.is_encoder_decoder:
            if mask is not None:
                arguments["decoder_attention_mask"] = mask
        else:
            arguments["attention_mask"] = mask
            if positions is not None and self.accepts("position_ids"):
                arguments["position_ids"] = positions
        prepared = model.prepare_inputs_for_generation(ids, is_first_iteration=first, **arguments)
        # Some models put another number of logits there, such as Bamba, and some another cache.
        if self.accepts("logits_to_keep"):
            prepared["logits_to_keep"] = keep
        prepared[caches.cache_argument(model)] = cache
        if call is None:
            call = self._current_fast_copy(first) if fast else model
        if isinstance(cache, own_lengths.OwnLengthsCache):
            with own_lengths.reading_own_lengths(self._attention_configurations):
                logits: Tensor = call(**prepared, return_dict=True).logits
        else:
            logits = call(**prepared, return_dict=True).logits
        if logits.shape[1] < keep:
            raise ValueError(f"{self.name} returned the logits of {logits.shape[1]} positions instead of {keep}")
        return logits[:, -keep:]

    @property
    def fast_copy(self) -> Any:
        """A copy of the model with this machine's faster matrix products; it shares all weights.

        The model itself if there are none.
        """
        model = self.base
        if not small_matmul.helps(model):
            self._fast = (None, None)
            return model
        signature, copy = self._fast
        current = small_matmul.signature(model)
        if signature != current:
            copy = small_matmul.fast_copy(model)
            self._fast = (current, copy)
        return copy

    def _current_fast_copy(self, first: bool) -> Any:
        # fast_copy compares every module of the model with its signature, which is too slow for every step.
        if first:
            return self.fast_copy
        copy = self._fast[1]
        return self.base if copy is None else copy

    def encode(self, ids: Tensor, mask: Tensor) -> Any:
        """The encoder's outputs for sources ``ids`` (R, S), padded on the right."""
        model = self.base
        name = "_maybe_prepare_encoder_kwargs_for_generation"
        prepare = getattr(model, name, None)
        if prepare is not None and getattr(type(model), name) is not getattr(GenerationMixin, name, None):
            # Models such as Florence-2 embed the source themselves, and their encoder would use other weights.
            return prepare(ids, {"attention_mask": mask}, "input_ids", model.generation_config)["encoder_outputs"]
        return model.get_encoder()(input_ids=ids, attention_mask=mask, return_dict=True)

    # -- what it cannot do -----------------------------------------------------------------------------------------

    @cached_property
    def shipped(self) -> Facts | None:
        """What is known about the architecture; None if this model has to be probed."""
        return facts.shipped(self.base)

    @cached_property
    def padding(self) -> Padding:
        """What left padding does to its answer.

        Raises:
            ValueError: see :func:`.probes.padding`.
        """
        self.check_direction()
        return probes.padding(self) if self.shipped is None else self.shipped.padding

    @property
    def keeps_own_lengths(self) -> bool:
        """Whether rows of different lengths can share a pass without padding, see :mod:`.own_lengths`."""
        return not self.stays_padded

    @property
    def stays_padded(self) -> str:
        """Why rows of different lengths are padded if they share a pass; empty: they are not."""
        if not own_lengths.is_supported(self.text_config):
            return f"attention by {self.text_config._attn_implementation}"
        return self._stays_padded

    @cached_property
    def _stays_padded(self) -> str:
        return probes.stays_padded(self) if self.shipped is None else self.shipped.stays_padded

    @cached_property
    def _attention_configurations(self) -> list[Any]:
        return own_lengths.attention_configurations(self.base)

    @cached_property
    def reads_chunks(self) -> bool:
        """Whether several new tokens of a row may be read in one pass after a cache."""
        return probes.reads_chunks(self) if self.shipped is None else self.shipped.reads_chunks

    @cached_property
    def is_causal(self) -> bool:
        """Whether the logits of a prompt's token stay the same when more tokens follow it."""
        return probes.is_causal(self) if self.shipped is None else self.shipped.is_causal

    @cached_property
    def reads_static(self) -> bool:
        """Whether a cache of fixed shape gives the logits of one that grows; the class may ignore its free places."""
        return probes.reads_static(self)

    def check_direction(self) -> None:
        """Refuse models that the configuration makes look at later tokens: they do not write from left to right.

        Raises:
            ValueError: the logits of a token change when more tokens follow it.
        """
        config = self.text_config
        remedy = ""
        # Prefix language models such as PaliGemma have it by default: they read prompts in both directions, and write
        # from left to right.
        if getattr(config, "use_bidirectional_attention", None) and facts.changes(self.base.config, "bidirectional"):
            remedy = "use_bidirectional_attention=False"
        elif getattr(config, "is_decoder", None) is False and not self.is_encoder_decoder:
            remedy = "is_decoder=True"
        if remedy and not self.is_causal:
            raise ValueError(
                f"{self.name} is not causal: what it computes for a token changes when more tokens follow it, so that "
                f"its texts have no next-token distributions; load it with {remedy}, or use a causal model"
            )

    @property
    def selects_tokens(self) -> int | None:
        """How many earlier tokens an attention layer looks at, chosen by a score; None: all of them.

        Up to that many tokens, all are chosen. Beyond that, which of several tokens with equal scores is chosen depends
        on their positions in the pass, padding and other rows included.
        """
        return getattr(self.text_config, "index_topk", None)

    @property
    def rotary_switch(self) -> int | None:
        """The length after which the rotary embeddings of all tokens in a pass change; None if there is none."""
        config = self.text_config
        rope = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
        rules: list[dict[str, Any]] = []
        if isinstance(rope, dict):
            # Models with two kinds of attention have one dictionary for each.
            rules = [rope, *(value for value in rope.values() if isinstance(value, dict))]
        original: int | None = getattr(config, "original_max_position_embeddings", None)
        if any(rule.get("rope_type", rule.get("type")) in ("longrope", "dynamic") for rule in rules):
            named = [rule.get("original_max_position_embeddings") for rule in rules]
            return original or next(filter(None, named), None) or self.max_positions
        # Phi's models read their whole text again after that length, whatever kind of embeddings they have.
        if original is not None and original < (self.max_positions or original):
            return original
        return None

    @property
    def reads_again(self) -> bool:
        """Whether transformers' own ``generate`` reads the whole text again after :attr:`rotary_switch` tokens."""
        original = getattr(self.text_config, "original_max_position_embeddings", None)
        own = getattr(type(self.base), "prepare_inputs_for_generation", None)
        return original is not None and own is not GenerationMixin.prepare_inputs_for_generation

    def reads_chunk_up_to(self, length: int) -> bool:
        """Whether several tokens that end at position ``length`` may be read in one pass after a cache."""
        return self.reads_chunks and (self.selects_tokens is None or length <= self.selects_tokens)

    def can_share_prefix(self, shared: int, length: int) -> bool:
        """Whether texts of up to ``length`` tokens may continue a cache of the ``shared`` tokens they all start with.

        If their lengths differ, the cache has to forget some of the shared tokens for the shorter ones.
        """
        return (
            not self.is_encoder_decoder
            and self.reads_chunk_up_to(length)
            and self.is_causal
            and caches.record_past(caches.new_cache(self.base))
            and not self.needs_separate_passes([shared, length])
        )

    def why_not_in_chunks(self, shortest: int, length: int) -> str:
        """Why a prompt of ``length`` tokens cannot be read in chunks, of which the first ends after ``shortest``.

        Empty: it can.
        """
        if self.is_encoder_decoder:
            return "reads its prompt with an encoder, in one pass"
        if not self.reads_chunks:
            return "does not continue a cache by several tokens in one pass"
        if not self.is_causal:
            return "looks at the whole prompt from each of its tokens"
        if not self.reads_chunk_up_to(length):
            return f"looks at {self.selects_tokens} tokens that it selects among all that it reads in one pass"
        switch = self.rotary_switch
        if switch is not None and shortest <= switch < length:
            return f"reads prompts of more than {switch} tokens with other rotary embeddings"
        return ""

    def adopt(self, other: ModelAdapter) -> None:
        """Copy what the probes found about ``other``, of which this model is a part with fewer layers."""
        for name in ("padding", "reads_chunks", "is_causal", "has_recurrent_state"):
            self.__dict__[name] = getattr(other, name)

    def needs_separate_passes(self, lengths: Sequence[int]) -> bool:
        """Whether rows of these lengths need caches and passes of their own.

        Args:
            lengths: in tokens; for an encoder-decoder those of the sources.

        Raises:
            ValueError: see :func:`.probes.padding`.
        """
        padding = self.padding  # before the early return: it refuses models whose rows cannot take turns
        if len(set(lengths)) < 2:
            return False
        switch = self.rotary_switch
        return padding is Padding.CHANGES or (switch is not None and min(lengths) <= switch < max(lengths))

    def check_state(self) -> None:
        """Refuse models that keep state outside their cache: branches cannot take turns, and rows cannot be dropped.

        Raises:
            ValueError: see :func:`.probes.padding`.
        """
        _ = self.padding

    def check_lengths(self, lengths: Sequence[int], new: int) -> None:
        """Refuse runs that this model cannot continue exactly.

        Args:
            lengths: of the prompts, in tokens.
            new: the largest number of tokens that are generated after each of them.

        Raises:
            ValueError: the model is not causal; a row would cross the length after which rotary embeddings change, or
                become longer than the number of tokens that an image-text model selects.
        """
        self.check_direction()
        switch = self.rotary_switch
        selects = self.selects_tokens
        for length in sorted(set(lengths)):
            if selects is not None and hasattr(self.base.config, "vision_config") and length + new - 1 > selects:
                raise ValueError(
                    f"{self.name} looks at {selects} tokens that it selects by a score, and which of several equal "
                    f"scores it selects depends on the other rows of a pass: a branch of {length} tokens with "
                    f"max_new_tokens={new} is longer than that; shorten the prompt or lower max_new_tokens"
                )
            if switch is not None and length <= switch < length + new - 1:
                raise ValueError(
                    f"{self.name} switches its rotary embeddings after {switch} tokens, and earlier tokens would have "
                    f"to be read again: a branch of {length} tokens with {new} new ones crosses that length; "
                    "shorten it, or generate or score fewer tokens"
                )
