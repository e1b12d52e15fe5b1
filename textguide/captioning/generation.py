"""``textguide.caption``: captions of images under guidance."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from ..constraints import Vocabulary
from ..engine.branch_inputs import is_vision_encoder_decoder
from ..engine.loop import Observer
from ..engine.request import Request
from ..engine.results import GenerateResult
from ..engine.run import Batch, Run, end_tokens
from ..guidance.places import check_place
from . import families
from .conditions import KINDS, Captioning
from .images import read_image, read_images

LONGEST = 40
"""The number of new tokens if neither the caller nor ``generation_config`` specifies one."""


def caption(
    model: Any,
    processor: Any,
    images: Any,
    guidance: Any = None,
    *,
    prompts: Any = None,
    unconditional: Any = "blank",
    language_model: tuple[Any, Any] | None = None,
    max_new_tokens: int | None = None,
    seed: int | None = None,
    batch_size: int | None = None,
    stop: str | Sequence[str] | None = None,
    include_stop: bool = True,
    do_sample: bool | None = None,
    models: Mapping[str, Any] | None = None,
    streamer: Any = None,
    observer: Observer | None = None,
    stopping_criteria: Any = None,
    vocabulary: Vocabulary | None = None,
    speculation: Any = None,
    **options: Any,
) -> GenerateResult:
    """Caption images, or answer prompts about them, under guidance (arXiv 2307.16686).

    With ``CFG(γ)`` the distribution is ``log p(w|no image) + γ (log p(w|image) − log p(w|no image))``. With γ above 1,
    captions mention more of what distinguishes this image from others. The vision encoder runs once per image and once
    for a blank image; the rows of both branches share one forward pass per step if the architecture supports it.

    Args:
        model: a captioning or vision-language model of transformers.
        processor: its processor, with an image processor and a tokenizer.
        images: a path, an image of Pillow, an array of bytes (height, width, 3), or a list with one of these per row.
        guidance: such as ``CFG(scale=2.0)``, ``"cfg:scale=2.0"`` or ``LMGuidance(alpha=5.0)``; None is plain decoding.
        prompts: a text for all rows or one per row, with the placeholder of the image if the model uses one; default:
            none for models that caption without a prompt, else only the placeholder.
        unconditional: what the branch without an image sees: ``"blank"``, ``"text"`` (no image), ``"noise"``
            or an image; see :class:`textguide.captioning.Captioning`.
        language_model: a text-only model and its tokenizer, for :class:`textguide.LMGuidance`.
        max_new_tokens: the largest number of new tokens; default: that of ``generation_config``, else 40.
        seed: as for :func:`textguide.generate`, as are all other options.
        **options: other options of :func:`textguide.generate`, such as ``temperature``.

    Raises:
        ValueError: an image cannot be read, the processor does not belong to the model, or an argument has an
            invalid value; the message names it.

    Example:
        >>> model, processor = textguide.captioning.load("drawn-scenes")
        >>> textguide.caption(model, processor, "scene.png", CFG(2.0)).texts  # doctest: +SKIP
    """
    request = Request.of(
        guidance,
        max_new_tokens,
        stop,
        do_sample,
        speculation,
        options,
        LONGEST,
        seed=seed,
        batch_size=batch_size,
        include_stop=include_stop,
        models=models,
        streamer=streamer,
        observer=observer,
        stopping_criteria=stopping_criteria,
        vocabulary=vocabulary,
    )
    return answer(model, processor, images, prompts, request, unconditional, language_model)


def answer(
    model: Any,
    processor: Any,
    images: Any,
    prompts: Any,
    request: Request,
    unconditional: Any = "blank",
    language_model: tuple[Any, Any] | None = None,
) -> GenerateResult:
    """The part of :func:`caption` after its arguments have been checked."""
    check_place(request.guidance, "caption")
    encoder = Encoder(model, processor)
    pictures = read_images(images)
    texts = encoder.texts(prompts, len(pictures))
    if request.forks:  # transformers repeats inputs for samples, but not for the branches of a fork
        pictures = [picture for picture in pictures for _ in range(request.particles)]
        texts = [text for text in texts for _ in range(request.particles)]
    run = Run.of(model, encoder.tokenizer, request)
    if model.config.model_type == "blip":  # its generate sets the end token and the padding itself
        run = replace(run, ends=end_tokens(model.config.text_config.sep_token_id), pads=False)
    size = request.rows_per_batch(len(pictures))

    def batches() -> Iterator[Batch]:
        for start in range(0, len(pictures), size):
            rows = slice(start, start + size)
            inputs = encoder(pictures[rows], texts[rows])
            reader = encoder.captioning(unconditional, language_model, inputs, texts[rows])
            yield Batch(inputs, captioning=reader)

    return run.result(batches())


class Encoder:
    """Images and prompts as the inputs of a model's ``generate``.

    Raises:
        ValueError: the processor lacks a part, or does not belong to the model.
    """

    def __init__(self, model: Any, processor: Any) -> None:
        self.model = model
        self.processor = processor
        self.tokenizer: Any = getattr(processor, "tokenizer", None)
        if self.tokenizer is None or getattr(processor, "image_processor", None) is None:
            raise ValueError(
                f"processor is a {type(processor).__name__} and lacks an image processor or a tokenizer; pass the "
                "model's processor (textguide.captioning.load, or transformers' AutoProcessor)"
            )
        size = model.config.get_text_config(decoder=True).vocab_size
        largest = max(self.tokenizer.get_vocab().values(), default=0)
        if largest >= size:
            raise ValueError(
                f"processor has token ids up to {largest} and the model {size} tokens; it does not belong to the model"
            )
        self.placeholder = families.placeholder(model, processor)

    def texts(self, prompts: Any, rows: int) -> list[str | None]:
        """One prompt per row.

        Raises:
            ValueError: they are not texts, there are too many or too few, or one lacks the placeholder of the image.
        """
        if prompts is None:
            return [self.placeholder] * rows
        texts: Sequence[Any] = [prompts] * rows if isinstance(prompts, str) else list(prompts)
        if len(texts) != rows or not all(isinstance(text, str) for text in texts):
            raise ValueError(f"prompts must be a text, or {rows} texts, one for each image; there are {len(texts)}")
        if is_vision_encoder_decoder(self.model):
            raise ValueError(f"{type(self.model).__name__} does not accept prompts; leave prompts out")
        if self.placeholder is not None:
            for number, text in enumerate(texts):
                if text.count(self.placeholder) != 1:
                    raise ValueError(
                        f"prompts[{number}]={text!r} must contain the image's placeholder {self.placeholder!r} once"
                    )
        return list(texts)

    def __call__(self, pictures: Sequence[Any], texts: Sequence[str | None]) -> dict[str, Any]:
        """The inputs of ``generate``, as tensors on the model's device."""
        arguments: dict[str, Any] = {"images": list(pictures), "return_tensors": "pt"}
        if all(text is not None for text in texts):
            arguments |= {"text": list(texts), "padding": True}
            if families.nests_images(self.processor):
                arguments["images"] = [[picture] for picture in pictures]
        elif self.placeholder is None and not families.captions_without_text(self.processor):
            arguments |= {"text": [""] * len(pictures)}
        encoded = self._processed(arguments)
        inputs = {name: value for name, value in encoded.items() if isinstance(value, Tensor) and name != "labels"}
        if "pixel_values" not in inputs:
            raise ValueError(
                f"processor ({type(self.processor).__name__}) did not return pixel_values; is it the model's own?"
            )
        if is_vision_encoder_decoder(self.model):
            inputs = {"pixel_values": inputs["pixel_values"]}
        families.check_pixels(self.model, self.processor, inputs)
        dtype = next(self.model.parameters()).dtype
        converted = {}
        for name, value in inputs.items():
            value = value.to(self.model.device)
            converted[name] = value.to(dtype) if value.is_floating_point() else value
        return converted

    def _processed(self, arguments: Mapping[str, Any]) -> Mapping[str, Any]:
        side = getattr(self.tokenizer, "padding_side", None)
        try:
            self.tokenizer.padding_side = "left"
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)  # transformers' processors use old numpy functions
                processed: Mapping[str, Any] = self.processor(**arguments)
                return processed
        except (TypeError, KeyError, AttributeError) as error:
            raise ValueError(
                f"processor ({type(self.processor).__name__}) does not accept these images and prompts "
                f"({' '.join(str(error).split())[:200]}); it may not belong to {type(self.model).__name__}"
            ) from error
        finally:
            if side is not None:
                self.tokenizer.padding_side = side

    def captioning(
        self, unconditional: Any, language_model: Any, inputs: dict[str, Any], texts: Sequence[str | None]
    ) -> Captioning:
        """The options of the branches of one batch."""

        def encode(image: Any) -> dict[str, Any]:
            return self([read_image(image, "unconditional")] * len(texts), texts)

        if isinstance(unconditional, str) and unconditional not in KINDS:
            read_image(unconditional, "unconditional")  # a file that cannot be read is refused before the run
        return Captioning(unconditional, self.model, inputs, language_model, encode)
