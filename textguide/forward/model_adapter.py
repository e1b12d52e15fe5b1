"""How a transformers model is called, and what it cannot do: the one place that knows.

What a model's signature does not say is found out by reading a few tokens, once per model: whether rows of unlike
length may share a pass, whether their caches may be merged, and whether all of its state is in the cache.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationMixin

from . import caches, small_matmul
from .probes import Padding, Reading, alike, probes, tried

_BROKEN = (RuntimeError, IndexError, TypeError, AttributeError, AssertionError, ValueError)


def unwrapped(model: Any) -> Any:
    """The transformers model behind wrappers that only call it: PEFT, ``torch.compile``, data parallelism."""
    while True:
        inner = getattr(model, "_orig_mod", None)  # torch.compile
        if inner is None and hasattr(model, "get_base_model"):  # PEFT, whose layers are inside the model
            inner = model.get_base_model()
        if inner is None and type(model).__name__ in ("DistributedDataParallel", "DataParallel"):
            inner = model.module
        if inner is None or inner is model:
            return model
        model = inner


_adapters: weakref.WeakKeyDictionary[Any, ModelAdapter] = weakref.WeakKeyDictionary()


def adapter(model: Any) -> ModelAdapter:
    """The adapter of ``model``, with what was found out about it so far.

    Raises:
        ValueError: a wrapper of the model puts tokens in front that guidance cannot see.
    """
    config = getattr(model, "active_peft_config", None)
    if config is not None and getattr(config, "is_prompt_learning", False):
        raise ValueError(
            f"{type(model).__name__} reads learned tokens in front of every prompt ({config.peft_type}), which the "
            "branches of guidance would not read; use an adapter that changes weights, such as LoRA"
        )
    base = unwrapped(model)
    if base not in _adapters:
        _adapters[base] = ModelAdapter(base)
    return _adapters[base]


class ModelAdapter:
    """One transformers model: its sizes, its call, and what was found out by trying.

    Args:
        model: a transformers model, unwrapped.
    """

    def __init__(self, model: Any) -> None:
        self._model = weakref.ref(model)
        self._twin: tuple[Any, Any] = (None, None)

    # -- what it is ------------------------------------------------------------------------------------------------

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
        """The configuration of the part that writes."""
        return self.base.config.get_text_config(decoder=True)

    @property
    def vocab_size(self) -> int | None:
        """Number of tokens V, where the configuration says it."""
        return getattr(self.text_config, "vocab_size", None)

    @property
    def max_positions(self) -> int | None:
        """The longest text that it has positions for; None: no limit is known."""
        limit: int | None = getattr(self.text_config, "max_position_embeddings", None)
        return limit if limit is not None and limit > 0 else None

    @property
    def device(self) -> torch.device:
        """Where token ids go, also for models spread over devices or offloaded."""
        embeddings = self.base.get_input_embeddings() if hasattr(self.base, "get_input_embeddings") else None
        hook = getattr(embeddings, "_hf_hook", None) or getattr(self.base, "_hf_hook", None)
        execution = getattr(hook, "execution_device", None)
        if execution is not None:
            return torch.device(execution)
        weight = getattr(embeddings, "weight", None)
        found: torch.device = weight.device if isinstance(weight, Tensor) else self.base.device
        return found

    @cached_property
    def has_recurrent_state(self) -> bool:
        """Whether some layer keeps a recurrent or convolutional state, which padding would enter."""
        return caches.has_recurrent_state(self.base)

    def accepts(self, argument: str) -> bool:
        """Whether ``forward`` names ``argument``."""
        return caches.accepts(self.base, argument)

    # -- its call --------------------------------------------------------------------------------------------------

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
        """Read ``ids`` (R, k) behind what ``cache`` holds: the logits of the last ``keep`` positions, (R, keep, V).

        Args:
            ids: new tokens of every row; for an encoder-decoder those of its decoder.
            cache: a transformers cache; it is filled.
            mask: attention mask over the cache and the new tokens, (R, T); None: no padding.
            positions: of the new tokens, (R, k) or (3, R, k).
            keep: how many positions' logits are wanted.
            first: whether this is the first pass of these rows.
            inputs: what else the model reads: encoder outputs, pixel values…
            fast: need not reproduce the bits of plain decoding.
            call: replaces the model's own call.

        Raises:
            ValueError: the model returns fewer positions than it was asked for.
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
        # Some models put a number of their own there, or a cache of their own.
        if self.accepts("logits_to_keep"):
            prepared["logits_to_keep"] = keep
        prepared[caches.cache_argument(model)] = cache
        called = call if call is not None else self._fast(first) if fast else model
        logits: Tensor = called(**prepared, return_dict=True).logits
        if logits.shape[1] < keep:
            raise ValueError(f"{self.name} returned the logits of {logits.shape[1]} positions; {keep} were asked for")
        return logits[:, -keep:]

    @property
    def fast_twin(self) -> Any:
        """A twin with this machine's faster matrix products, where there are any; it shares all weights."""
        model = self.base
        if not small_matmul.helps(model):
            self._twin = (None, None)
            return model
        signature, twin = self._twin
        current = small_matmul.signature(model)
        if signature != current:
            twin = small_matmul.twin(model)
            self._twin = (current, twin)
        return twin

    def _fast(self, first: bool) -> Any:
        """:attr:`fast_twin`, which looks at every module of the model, in front of a run; within it the one at hand."""
        if first:
            return self.fast_twin
        twin = self._twin[1]
        return self.base if twin is None else twin

    def encode(self, ids: Tensor, mask: Tensor) -> Any:
        """The encoder's outputs for sources ``ids`` (R, S), padded on the right."""
        model, name = self.base, "_maybe_prepare_encoder_kwargs_for_generation"
        prepare = getattr(model, name, None)
        if prepare is not None and getattr(type(model), name) is not getattr(GenerationMixin, name, None):
            # Models such as Florence-2 embed the source themselves, and their encoder would use other weights.
            return prepare(ids, {"attention_mask": mask}, "input_ids", model.generation_config)["encoder_outputs"]
        return model.get_encoder()(input_ids=ids, attention_mask=mask, return_dict=True)

    # -- what it cannot do -----------------------------------------------------------------------------------------

    @cached_property
    def padding(self) -> Padding:
        """What left padding does to its answer, found by reading two short rows of unlike length.

        Raises:
            ValueError: it keeps state outside its cache, so that rows of two branches cannot take turns, or it cannot
                be read behind a cache at all.
        """
        if self._cannot_be_tried:
            return Padding.EXACT
        if "reference_sliding_attention" in (getattr(self.text_config, "layer_types", None) or ()):
            raise ValueError(
                f"{self.name} slides a window over what it writes and not over its prompt, so that a text that is read "
                "again gets another answer; guidance is not available for this architecture"
            )
        with torch.no_grad():
            try:
                found = tried(self)
            except _BROKEN as error:
                if str(error).startswith(self.name):  # a refusal that names the model already
                    raise
                reason = " ".join(str(error).split())[:200]
                raise ValueError(
                    f"{self.name} cannot be read behind a cache ({reason}); guidance is not available for it"
                ) from error
        # Padding would be among what it selects from.
        return found if self.selects_tokens is None else Padding.CHANGES

    @property
    def _cannot_be_tried(self) -> bool:
        """Dropout differs at every call; what reads images or sound alone cannot be tried on tokens."""
        return self.base.training or getattr(self.base, "main_input_name", "input_ids") != "input_ids"

    @property
    def selects_tokens(self) -> int | None:
        """How many of the tokens behind it an attention layer looks at, chosen by a score; None: all of them.

        Up to that many tokens all are chosen. Beyond, tokens of equal score are chosen by where they stand in the pass.
        """
        return getattr(self.text_config, "index_topk", None)

    @cached_property
    def reads_chunks(self) -> bool:
        """Whether several new tokens of a row may be read in one pass behind a cache."""
        if self.has_recurrent_state:
            return False  # not every model continues a state with a chunk
        if self._cannot_be_tried:
            return True
        with torch.no_grad():
            prompt, chunk, _ = probes(self)
            whole, parts = (Reading(self, [prompt[:1] if self.is_encoder_decoder else prompt]) for _ in range(2))
            try:
                every = whole.step([chunk], keep=len(chunk))
            except _BROKEN:
                return False
            return all(alike(self, every[:, n], parts.step([[token]])) for n, token in enumerate(chunk))

    @cached_property
    def is_causal(self) -> bool:
        """Whether what stands behind a token of a prompt leaves its logits as they are; in prefixes it may not."""
        if self.has_recurrent_state or self.is_encoder_decoder or self._cannot_be_tried:
            return True
        with torch.no_grad():
            prompt, more, _ = probes(self)
            longer = torch.tensor([[*prompt, *more]], device=self.device)
            positions = torch.arange(longer.shape[1], device=self.device)[None]
            try:
                logits = self.read(
                    longer, caches.new_cache(self.base), mask=None, positions=positions, keep=len(more) + 1, first=True
                )  # fmt: skip
            except _BROKEN:
                return False
            return alike(self, logits[:, 0].float(), Reading(self, [prompt]).logits)

    def reads_at_once(self, length: int) -> bool:
        """Whether several tokens that end at position ``length`` may be read in one pass behind a cache."""
        return self.reads_chunks and (self.selects_tokens is None or length <= self.selects_tokens)

    def goes_on_behind(self, shared: int, length: int) -> bool:
        """Whether texts of up to ``length`` tokens may be read behind a cache of the ``shared`` that they begin with.

        Where they are of unlike length, the cache has to forget some of these for the shorter ones.
        """
        return (
            not self.is_encoder_decoder
            and self.reads_at_once(length)
            and self.is_causal
            and caches.record_past(caches.new_cache(self.base))
            and not self.reads_apart([shared, length])
        )

    def adopt(self, other: ModelAdapter) -> None:
        """Take over what was found out about ``other``, of which this model is a part with fewer layers."""
        for name in ("padding", "reads_chunks", "has_recurrent_state"):
            self.__dict__[name] = getattr(other, name)

    @property
    def rotary_switch(self) -> int | None:
        """The length at which rotary embeddings change for every token of a pass, or None."""
        config = self.text_config
        rope = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
        rules = [rope, *(value for value in rope.values() if isinstance(value, dict))] if isinstance(rope, dict) else []
        own: int | None = getattr(config, "original_max_position_embeddings", None)
        if any(rule.get("rope_type", rule.get("type")) in ("longrope", "dynamic") for rule in rules):
            named = [rule.get("original_max_position_embeddings") for rule in rules]
            return own or next(filter(None, named), None) or self.max_positions
        # Phi's models read their text again behind that length, whatever their embeddings do.
        return own if own is not None and own < (self.max_positions or own) else None

    def reads_apart(self, lengths: Sequence[int]) -> bool:
        """Whether rows of these lengths need caches and passes of their own.

        Args:
            lengths: in tokens; for an encoder-decoder those of the sources.

        Raises:
            ValueError: see :attr:`padding`.
        """
        padding = self.padding  # also refuses models whose rows cannot take turns
        if len(set(lengths)) < 2:
            return False
        switch = self.rotary_switch
        return padding is Padding.CHANGES or (switch is not None and min(lengths) <= switch < max(lengths))

    def check_lengths(self, lengths: Sequence[int], new: int) -> None:
        """Refuse runs that this model cannot continue exactly.

        Args:
            lengths: of the prompts, in tokens.
            new: most tokens that are written behind them.

        Raises:
            ValueError: a row would cross the length at which rotary embeddings change, or outgrow the tokens that an
                image-text model looks at.
        """
        switch, selects = self.rotary_switch, self.selects_tokens
        for length in sorted(set(lengths)):
            if selects is not None and hasattr(self.base.config, "vision_config") and length + new - 1 > selects:
                raise ValueError(
                    f"{self.name} looks at {selects} tokens that it chooses by a score, and what it chooses among "
                    f"equal scores depends on the other rows of a pass: a branch of {length} tokens with "
                    f"max_new_tokens={new} is longer than that; shorten the prompt or lower max_new_tokens"
                )
            if switch is not None and length <= switch < length + new - 1:
                raise ValueError(
                    f"{self.name} changes its rotary embeddings behind {switch} tokens, and what was read before could "
                    f"not be continued: a branch of {length} tokens with max_new_tokens={new} crosses that length; "
                    "shorten the prompt or lower max_new_tokens"
                )
