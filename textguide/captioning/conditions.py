"""The inputs of a captioner's branches: the image, a blank one, one with noise, another image, or no image."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..engine import branch_inputs
from ..engine.branch_passes import Source
from ..forward import prefill
from ..forward.row_batch import RowBatch, Rows
from ..guidance.base import SELF, Branch, BranchGuidance
from ..guidance.edits import Edit, NoisedImage
from ..guidance.language_model import LANGUAGE_MODEL
from ..guidance.prompts import Prompt
from . import families
from .images import NOISE, noised
from .vocabulary_map import VocabularyMap

KINDS = ("blank", "text", "noise")
Inputs = dict[str, Any]


@dataclass(frozen=True)
class Captioning:
    """Options for the branches of a model that sees images, for ``guided_decoding(…, captioning=)``.

    Args:
        unconditional: what a branch without a condition sees: ``"blank"`` (pixels of 0, the mean colour of the
            processor), ``"text"`` (the prompt without an image), ``"noise"`` (the image with noise), or an image:
            pixel values from the processor, for all rows or one per row, or (in :func:`textguide.caption`)
            anything that :func:`textguide.captioning.read_image` accepts.
        captioner: the model whose ``generate`` was called; needed if it calls an inner model (BLIP and BLIP-2).
        inputs: the arguments of that call. By default they are reconstructed in the decoding loop, which is enough for
            ``"blank"`` and ``"text"`` if all images have the same size.
        language_model: a text-only model with its tokenizer, for :class:`textguide.LMGuidance`.
        encode: converts an ``unconditional`` image that is not pixel values to ``inputs``.
    """

    unconditional: Any = "blank"
    captioner: Any = None
    inputs: Mapping[str, Any] | None = None
    language_model: tuple[Any, Any] | None = None
    encode: Callable[[Any], Inputs] | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        if isinstance(self.unconditional, str) and self.unconditional not in KINDS and self.encode is None:
            raise ValueError(
                f"unconditional={self.unconditional!r} must be one of {', '.join(KINDS)}, or pixel values; "
                "files and other images work in textguide.caption"
            )

    @property
    def models(self) -> dict[str, Any]:
        """The text-only model, by its name in branches."""
        return {} if self.language_model is None else {LANGUAGE_MODEL: self.language_model[0]}

    def reads(self, model: Any, model_kwargs: Mapping[str, Any]) -> bool:
        """Whether a run of ``model`` reads images. Options other than the defaults always count as reading images."""
        others = (self.captioner, self.inputs, self.language_model, self.encode)
        default = (
            isinstance(self.unconditional, str) and self.unconditional == "blank" and all(one is None for one in others)
        )
        return not default or branch_inputs.sees_images(model, model_kwargs)

    def sources(
        self,
        guidance: BranchGuidance,
        model: Any,
        ids: Tensor,
        model_kwargs: Mapping[str, Any],
        tokenizer: Any,
        models: Mapping[str, Any],
    ) -> list[branch_inputs.Rows | Source]:
        """The inputs of each extra branch of ``guidance``.

        Args:
            model: the model that decodes.
            ids: its prompt, (B, L).
            model_kwargs: its other arguments, as ``generate`` prepared them.
            tokenizer: the captioner's tokenizer.
            models: other captioners, by their names in branches; they see the same pixels.

        Raises:
            ValueError: this model does not support a branch; the message names an alternative.
        """
        captioner = self.captioner if self.captioner is not None else model
        has_inputs = self.inputs is not None
        inputs = dict(self.inputs or {}) or families.inputs_from_inside(captioner, ids, model_kwargs)
        inputs = {name: value for name, value in inputs.items() if value is not None and name != "labels"}
        rows = families.rows_of(inputs) if has_inputs else ids.shape[0]
        first = ids[:: max(1, ids.shape[0] // rows)]
        run = _Run(self, captioner, model, inputs, first, model_kwargs, has_inputs, models)
        return [run.source(branch, tokenizer) for branch in guidance.branches]


@dataclass
class ImageSource:
    """A branch that reads all inputs of the captioner, including the image, as ``generate`` does.

    Args:
        entry: the model whose ``generate`` prepares the inputs.
        inputs: its arguments, with one row for each distinct input.
        row_numbers: the row of ``inputs`` for each prompt.
        shares: see :class:`textguide.engine.branch_passes.Source`.
        is_part: whether the branch runs a view of the model that decodes.
    """

    entry: Any
    inputs: Inputs
    row_numbers: list[int]
    shares: bool = True
    is_part: bool = False

    def prefill(self, model: Any, size: int) -> tuple[Rows, Tensor]:
        """Read the inputs, and return ``size`` rows and their next-token logits."""
        inner, ids, kwargs = prepared(self.entry, self.inputs)
        if inner is not model and type(inner) is not type(model):
            raise ValueError(
                f"the captioner calls a {type(inner).__name__} and not a {type(model).__name__}, which decodes this run"
            )
        if not self.shares and kwargs.get("attention_mask") is not None:
            if not bool(kwargs["attention_mask"].all()):
                raise ValueError("unconditional='text' needs prompts of equal lengths with this model; use 'blank'")
            kwargs["attention_mask"] = None
        reader = model if self.is_part else inner
        rows, logits = prefill.read_prepared(reader, ids, kwargs, fresh=True, fast=True)
        copies = size // len(self.row_numbers)
        return prefill.repeat(rows, logits, [number for number in self.row_numbers for _ in range(copies)])


@dataclass
class TextModelSource:
    """A text-only model that guides captions. Its tokens are mapped to those of the captioner."""

    prompts: branch_inputs.Rows
    tokens: VocabularyMap
    shares: bool = False  # merged with other rows, they would lose the map

    def prefill(self, model: Any, size: int) -> tuple[Rows, Tensor]:
        """Read the prompts, and return ``size`` rows and next-token log-probabilities over the captioner's tokens."""
        prompts = branch_inputs.expand(self.prompts, size, "prompt", copies=size // len(self.prompts))
        rows, logits = prefill.read_prompts(model, prompts, model.device, fast=True)
        return MappedRows(rows, self.tokens), self.tokens.distribution(logits[:, -1])


@dataclass
class MappedRows(Rows):
    """Rows of a model with another vocabulary. Token ids are mapped before a pass, log-probabilities afterwards."""

    inner: Rows
    tokens: VocabularyMap

    def batches(self) -> Iterator[RowBatch]:
        """See :meth:`Rows.batches`."""
        yield from self.inner.batches()

    def forward(self, ids: Tensor, keep: int = 1) -> Tensor:
        """Read the captioner's ``ids`` (R, k), and return log-probabilities (R, keep, V) over its tokens."""
        return self.tokens.distribution(self.inner.forward(self.tokens.inputs(ids).to(self.device), keep))

    def select(self, index: Tensor) -> None:
        """See :meth:`Rows.select`."""
        self.inner.select(index)

    def split(self, index: Tensor) -> MappedRows:
        """See :meth:`Rows.split`."""
        return MappedRows(self.inner.split(index), self.tokens)


def prepared(entry: Any, inputs: Mapping[str, Any]) -> tuple[Any, Tensor, dict[str, Any]]:
    """The arguments of the decoding loop in ``entry.generate(**inputs)``: the model, its ids, and all others."""
    # Every family prepares its inputs in its own way. Its own generate is called with a loop that stops immediately.
    arguments: list[Any] = []

    def record(
        model: Any,
        input_ids: Tensor,
        logits_processor: Any,
        stopping_criteria: Any,
        generation_config: Any,
        **model_kwargs: Any,
    ) -> Tensor:
        arguments[:] = [model, input_ids, model_kwargs]
        return input_ids

    with torch.no_grad():
        entry.generate(**inputs, custom_generate=record, max_new_tokens=1, do_sample=False, num_beams=1)
    return arguments[0], arguments[1], arguments[2]


@dataclass
class _Run:
    """One run of a captioner, and the inputs of its branches.

    Args:
        captioning: the options.
        captioner: the model whose ``generate`` was called.
        model: the model that decodes, which may be a part of it.
        inputs: the arguments of the call.
        ids: the prompt of each row, (R, L).
        model_kwargs: the other arguments of the decoding loop.
        has_pixels: whether the pixels in ``inputs`` are those of the images.
        models: other captioners.
    """

    captioning: Captioning
    captioner: Any
    model: Any
    inputs: Inputs
    ids: Tensor
    model_kwargs: Mapping[str, Any]
    has_pixels: bool
    models: Mapping[str, Any]

    @property
    def rows(self) -> int:
        return self.ids.shape[0]

    def source(self, branch: Branch, tokenizer: Any) -> branch_inputs.Rows | Source:
        if branch.model == LANGUAGE_MODEL:
            return self._text_model(branch, tokenizer)
        if isinstance(branch.edit, NoisedImage):
            noisy = self._noised(branch.edit.share, "noise on the image")
            return ImageSource(self._entry(branch), noisy, self._all_rows)
        if branch.edit is not None:
            return self._edited(branch.edit, tokenizer)
        if branch.system is not None:
            raise ValueError("negative_system does not work with images; pass negative_prompt or unconditional")
        if branch.prompt is not None:
            rows = branch_inputs.rows_of(branch, self.ids.tolist(), tokenizer)
            return self._without_image(rows, "negative_prompt")
        if branch.same_prompt:
            return ImageSource(self._entry(branch), self.inputs, self._all_rows, is_part=branch.view is not None)
        return self._unconditional(branch, self.captioning.unconditional, tokenizer)

    def _unconditional(self, branch: Branch, kind: Any, tokenizer: Any) -> Source:
        if isinstance(kind, str) and kind == "text":
            rows = [families.without_image_tokens(self.captioner, tokenizer, row) for row in self._unpadded()]
            return self._without_image(rows, "unconditional='text'")
        if isinstance(kind, str) and kind == "blank":
            blank = {**self.inputs, "pixel_values": families.blank(self.captioner, self.inputs["pixel_values"])}
            return ImageSource(self._entry(branch), *families.distinct(blank, self.rows))
        if isinstance(kind, str) and kind == "noise":
            inputs = self._noised(NOISE, "unconditional='noise'")
        elif isinstance(kind, Tensor):
            inputs = self._with_pixels(kind)
        elif self.captioning.encode is not None:
            inputs = dict(self.captioning.encode(kind))
        else:
            raise ValueError(f"unconditional={kind!r} must be one of {', '.join(KINDS)}, or pixel values")
        return ImageSource(self._entry(branch), inputs, self._all_rows)

    @property
    def _all_rows(self) -> list[int]:
        return list(range(self.rows))

    def _entry(self, branch: Branch) -> Any:
        return self.captioner if branch.model == SELF else self.models[branch.model]

    def _with_pixels(self, pixels: Tensor) -> Inputs:
        own = self.inputs["pixel_values"]
        if pixels.shape[1:] != own.shape[1:] or len(own) % max(1, len(pixels)):
            raise ValueError(
                f"unconditional has pixel values of shape {tuple(pixels.shape)}; this run has {tuple(own.shape)}"
            )
        repeated = pixels.to(own).repeat(len(own) // len(pixels), *[1] * (pixels.dim() - 1))
        return {**self.inputs, "pixel_values": repeated}

    def _noised(self, share: float, name: str) -> Inputs:
        """The inputs with noise on the images."""
        if not self.has_pixels and not families.has_pixels(self.model_kwargs):
            raise ValueError(
                f"{name} needs the pixels, which this model's generate does not pass on; pass Captioning(inputs=…), or "
                "use textguide.caption"
            )
        noisy = [noised(pixels[None], share) for pixels in families.by_image(self.inputs)]
        # Qwen2-VL has the patches of all images in one list.
        pixels = torch.cat(noisy, dim=1)[0] if "image_grid_thw" in self.inputs else torch.cat(noisy)
        return {**self.inputs, "pixel_values": pixels}

    def _edited(self, edit: Edit | tuple[Edit, ...], tokenizer: Any) -> Source:
        """The image with another text; the tokens that represent the image do not move."""
        if "input_ids" not in self.inputs:
            raise ValueError(
                f"{type(self.captioner).__name__} captions without a prompt, and this guidance changes the prompt; use "
                "CFG, or pass prompts= if the model accepts them"
            )

        def encode(prompt: Prompt) -> list[int]:
            return branch_inputs.encode(prompt, tokenizer, "the prompt of a branch")

        hidden = families.image_tokens(self.captioner, tokenizer)
        edits = branch_inputs.expand(list(edit) if isinstance(edit, tuple) else [edit], self.rows, "context")
        changes = [partial(one.apply, prompt=None, encode=encode) for one in edits]
        changed = families.with_text(self.inputs, hidden, changes, self._pad)
        return ImageSource(self.captioner, changed, self._all_rows)

    @property
    def _pad(self) -> int:
        """The padding token."""
        pad = getattr(self.captioner.generation_config, "pad_token_id", None)
        return 0 if pad is None else int(pad)

    def _without_image(self, rows: branch_inputs.Rows, name: str) -> Source:
        entry, shares = families.text_entry(self.captioner, name)
        ids, mask = prefill.pad_left(rows, self.ids.device)
        mask = torch.ones_like(ids) if mask is None else mask
        inputs: Inputs = {"input_ids": ids, "attention_mask": mask}
        if "token_type_ids" in self.inputs:
            inputs["token_type_ids"] = torch.zeros_like(ids)
        distinct, row_numbers = families.distinct(inputs, len(rows))
        if len(rows) == 1:
            row_numbers = [0] * self.rows
        return ImageSource(entry, distinct, row_numbers, shares)

    def _unpadded(self) -> branch_inputs.Rows:
        mask = self.model_kwargs.get("attention_mask")
        if mask is None or mask.shape[-1] != self.ids.shape[1]:
            rows: branch_inputs.Rows = self.ids.tolist()
            return rows
        mask = mask[:: max(1, mask.shape[0] // self.rows)]  # rows may be repeated for several samples
        return [row[keep.bool()].tolist() for row, keep in zip(self.ids, mask, strict=True)]

    def _text_model(self, branch: Branch, tokenizer: Any) -> Source:
        if self.captioning.language_model is None:
            raise ValueError("LMGuidance needs a text-only model; pass language_model=(model, tokenizer)")
        other, other_tokenizer = self.captioning.language_model
        if tokenizer is None:
            raise ValueError("LMGuidance needs the captioner's tokenizer; pass tokenizer=")
        size = self.model.config.get_text_config(decoder=True).vocab_size
        tokens = VocabularyMap.between(tokenizer, size, other_tokenizer, other.config.get_text_config().vocab_size)
        rows = branch_inputs.rows_of(branch, [[0]] * self.rows, other_tokenizer)
        return TextModelSource(rows, tokens)
