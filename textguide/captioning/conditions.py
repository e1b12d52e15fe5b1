"""What the branches of a captioner read: the image, a blank one, a noised one, another one, or no image at all."""

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
    """How the branches of a model that sees images are made; ``guided_decoding(…, captioning=)`` takes it.

    Args:
        unconditional: what a branch without a condition sees: ``"blank"`` (pixels of 0, the mean colour of the
            processor), ``"text"`` (the prompt without an image), ``"noise"`` (the image under noise), or an image:
            pixel values as the processor gives them, for all rows or one a row, or (in :func:`textguide.caption`)
            anything that :func:`textguide.captioning.read_image` reads.
        captioner: the model on which ``generate`` was called, needed where it hands over to an inner one (BLIP and
            BLIP-2).
        inputs: what ``generate`` was called with; default: what can be seen of it from inside, which suffices for
            ``"blank"`` and ``"text"`` where all images have one size.
        language_model: a text-only model with its tokenizer, for :class:`textguide.LMGuidance`.
        encode: makes ``inputs`` of images, for an ``unconditional`` image that is not pixels yet.
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
        """The text-only model, by the name that branches use."""
        return {} if self.language_model is None else {LANGUAGE_MODEL: self.language_model[0]}

    def reads(self, model: Any, model_kwargs: Mapping[str, Any]) -> bool:
        """Whether a run of ``model`` reads images; what says more than the default is always asked."""
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
        """What each extra branch of ``guidance`` reads.

        Args:
            model: the model that decodes.
            ids: what it begins with, (B, L).
            model_kwargs: what ``generate`` prepared for it.
            tokenizer: of the captioner.
            models: further captioners by the name that branches use; they see the same pixels.

        Raises:
            ValueError: a branch cannot be made of this model; the message says what would work.
        """
        captioner = self.captioner if self.captioner is not None else model
        known = self.inputs is not None
        inputs = dict(self.inputs or {}) or families.inputs_from_inside(captioner, ids, model_kwargs)
        inputs = {name: value for name, value in inputs.items() if value is not None and name != "labels"}
        rows = families.rows_of(inputs) if known else ids.shape[0]
        first = ids[:: max(1, ids.shape[0] // rows)]
        run = _Run(self, captioner, model, inputs, first, model_kwargs, known, models)
        return [run.source(branch, tokenizer) for branch in guidance.branches]


@dataclass
class ImageSource:
    """A branch that reads inputs of the captioner, image and all, as ``generate`` would.

    Args:
        entry: the model whose ``generate`` prepares the inputs.
        inputs: what it is called with, one row for each different one.
        owners: the row of ``inputs`` for every prompt.
        shares: see :class:`textguide.engine.branch_passes.Source`.
        is_part: whether a part of the model that decodes reads them.
    """

    entry: Any
    inputs: Inputs
    owners: list[int]
    shares: bool = True
    is_part: bool = False

    def prefill(self, model: Any, size: int) -> tuple[Rows, Tensor]:
        """The rows and the next-token logits of ``size`` rows."""
        inner, ids, kwargs = prepared(self.entry, self.inputs)
        if inner is not model and type(inner) is not type(model):
            raise ValueError(
                f"the captioner hands over to a {type(inner).__name__}, and a {type(model).__name__} decodes"
            )
        if not self.shares and kwargs.get("attention_mask") is not None:
            if not bool(kwargs["attention_mask"].all()):
                raise ValueError("unconditional='text' needs prompts of one length here; use 'blank'")
            kwargs["attention_mask"] = None
        reader = model if self.is_part else inner
        rows, logits = prefill.read_prepared(reader, ids, kwargs, fresh=True, fast=True)
        times = size // len(self.owners)
        return prefill.repeat(rows, logits, [owner for owner in self.owners for _ in range(times)])


@dataclass
class TextModelSource:
    """A text-only model behind captions, whose tokens become those of the captioner."""

    prompts: branch_inputs.Rows
    tokens: VocabularyMap
    shares: bool = False  # merged with others, rows would lose their translation

    def prefill(self, model: Any, size: int) -> tuple[Rows, Tensor]:
        """The rows and the next-token log-probabilities of ``size`` rows, over the captioner's tokens."""
        prompts = branch_inputs.expand(self.prompts, size, "prompt", copies=size // len(self.prompts))
        rows, logits = prefill.read_prompts(model, prompts, model.device, fast=True)
        return TranslatedRows(rows, self.tokens), self.tokens.distribution(logits[:, -1])


@dataclass
class TranslatedRows(Rows):
    """Rows of a model with another vocabulary: ids are translated on the way in, log-probabilities on the way out."""

    inner: Rows
    tokens: VocabularyMap

    def batches(self) -> Iterator[RowBatch]:
        """Those of the rows."""
        yield from self.inner.batches()

    def forward(self, ids: Tensor, keep: int = 1) -> Tensor:
        """Read the captioner's ``ids`` (R, k); log-probabilities (R, keep, V) over its tokens."""
        return self.tokens.distribution(self.inner.forward(self.tokens.inputs(ids).to(self.device), keep))

    def select(self, index: Tensor) -> None:
        """As of any rows."""
        self.inner.select(index)

    def split(self, index: Tensor) -> TranslatedRows:
        """As of any rows."""
        return TranslatedRows(self.inner.split(index), self.tokens)


def prepared(entry: Any, inputs: Mapping[str, Any]) -> tuple[Any, Tensor, dict[str, Any]]:
    """What ``entry.generate(**inputs)`` hands to its decoding loop: the model that decodes, its ids, and the rest."""
    taken: list[Any] = []

    def take(
        model: Any,
        input_ids: Tensor,
        logits_processor: Any,
        stopping_criteria: Any,
        generation_config: Any,
        **model_kwargs: Any,
    ) -> Tensor:
        taken[:] = [model, input_ids, model_kwargs]
        return input_ids

    with torch.no_grad():
        entry.generate(**inputs, custom_generate=take, max_new_tokens=1, do_sample=False, num_beams=1)
    return taken[0], taken[1], taken[2]


@dataclass
class _Run:
    captioning: Captioning
    captioner: Any
    model: Any
    inputs: Inputs
    ids: Tensor
    model_kwargs: Mapping[str, Any]
    known: bool
    models: Mapping[str, Any]

    @property
    def rows(self) -> int:
        return self.ids.shape[0]

    def source(self, branch: Branch, tokenizer: Any) -> branch_inputs.Rows | Source:
        if branch.model == LANGUAGE_MODEL:
            return self._text_model(branch, tokenizer)
        if isinstance(branch.edit, NoisedImage):
            return ImageSource(
                self._entry(branch), self._noised(branch.edit.share, "noise on the image"), list(range(self.rows))
            )
        if branch.edit is not None:
            return self._edited(branch.edit, tokenizer)
        if branch.system is not None:
            raise ValueError("negative_system does not work with images; give negative_prompt, or unconditional")
        if branch.prompt is not None:
            rows = branch_inputs.rows_of(branch, self.ids.tolist(), tokenizer)
            return self._without_image(rows, "negative_prompt")
        if branch.same_prompt:
            everyone = list(range(self.rows))
            return ImageSource(self._entry(branch), self.inputs, everyone, is_part=branch.view is not None)
        kind = self.captioning.unconditional
        if isinstance(kind, str) and kind == "text":
            rows = [families.without_image_tokens(self.captioner, tokenizer, row) for row in self._unpadded()]
            return self._without_image(rows, "unconditional='text'")
        if isinstance(kind, str) and kind == "blank":
            blank = {**self.inputs, "pixel_values": families.blank(self.captioner, self.inputs["pixel_values"])}
            return ImageSource(self._entry(branch), *families.distinct(blank, self.rows))
        return ImageSource(self._entry(branch), *self._other(kind))

    def _entry(self, branch: Branch) -> Any:
        return self.captioner if branch.model == SELF else self.models[branch.model]

    def _other(self, kind: Any) -> tuple[Inputs, list[int]]:
        everyone = list(range(self.rows))
        if isinstance(kind, str) and kind == "noise":
            return self._noised(NOISE, "unconditional='noise'"), everyone
        if isinstance(kind, Tensor):
            wanted = self.inputs["pixel_values"]
            if kind.shape[1:] != wanted.shape[1:] or len(wanted) % max(1, len(kind)):
                raise ValueError(
                    f"unconditional has pixel values of shape {tuple(kind.shape)}; this run has {tuple(wanted.shape)}"
                )
            repeated = kind.to(wanted).repeat(len(wanted) // len(kind), *[1] * (kind.dim() - 1))
            return {**self.inputs, "pixel_values": repeated}, everyone
        if self.captioning.encode is None:
            raise ValueError(f"unconditional={kind!r} must be one of {', '.join(KINDS)}, or pixel values")
        return dict(self.captioning.encode(kind)), everyone

    def _noised(self, share: float, name: str) -> Inputs:
        """The images under noise."""
        if not self.known and families.is_seen_through(self.captioner, self.model_kwargs):
            raise ValueError(
                f"{name} needs the pixels, which this model's generate does not pass on; give Captioning(inputs=…), or "
                "use textguide.caption"
            )
        noisy = [noised(pixels[None], share) for pixels in families.by_image(self.inputs)]
        together = torch.cat(noisy) if "image_grid_thw" not in self.inputs else torch.cat(noisy, dim=1)[0]
        return {**self.inputs, "pixel_values": together}

    def _edited(self, edit: Edit | tuple[Edit, ...], tokenizer: Any) -> Source:
        """The image with another text: tokens that stand for it stay where they are."""
        if "input_ids" not in self.inputs:
            raise ValueError(
                f"{type(self.captioner).__name__} captions without a prompt, and this guidance reads the prompt with a "
                "change; use CFG, or give prompts= where the model takes them"
            )

        def encode(prompt: Prompt) -> list[int]:
            return branch_inputs.encode(prompt, tokenizer, "the prompt of a branch")

        hidden = families.image_tokens(self.captioner, tokenizer)
        edits = branch_inputs.expand(list(edit) if isinstance(edit, tuple) else [edit], self.rows, "context")
        changes = [partial(one.apply, prompt=None, encode=encode) for one in edits]
        changed = families.with_text(self.inputs, hidden, changes, self._pad)
        return ImageSource(self.captioner, changed, list(range(self.rows)))

    @property
    def _pad(self) -> int:
        """What fills rows."""
        pad = getattr(self.captioner.generation_config, "pad_token_id", None)
        return 0 if pad is None else int(pad)

    def _without_image(self, rows: branch_inputs.Rows, name: str) -> Source:
        entry, shares = families.text_entry(self.captioner, name)
        ids, mask = prefill.pad_left(rows, self.ids.device)
        mask = torch.ones_like(ids) if mask is None else mask
        inputs: Inputs = {"input_ids": ids, "attention_mask": mask}
        if "token_type_ids" in self.inputs:
            inputs["token_type_ids"] = torch.zeros_like(ids)
        distinct, owners = families.distinct(inputs, len(rows))
        if len(rows) == 1:
            owners = [0] * self.rows
        return ImageSource(entry, distinct, owners, shares)

    def _unpadded(self) -> branch_inputs.Rows:
        mask = self.model_kwargs.get("attention_mask")
        if mask is None or mask.shape[-1] != self.ids.shape[1]:
            rows: branch_inputs.Rows = self.ids.tolist()
            return rows
        mask = mask[:: max(1, mask.shape[0] // self.rows)]
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
