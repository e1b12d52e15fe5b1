"""What differs between families of captioning models: what is seen of a run from inside, and what needs no image.

How a family prepares its inputs is its own ``generate``'s affair and stands nowhere here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..engine.branch_inputs import is_vision_encoder_decoder

IMAGE_TOKENS = (
    "image_token_id", "image_token_index", "vision_start_token_id", "vision_end_token_id", "boi_token_id",
    "eoi_token_id",
)  # fmt: skip
"""Configuration fields that name tokens which stand for an image or stand around it."""
AROUND = ("<fake_token_around_image>", "<global-img>", "<|vision_start|>", "<|vision_end|>", "<start_of_image>")
"""Tokens around images that configurations do not name."""
ONE_SIZE = ("git", "llava", "paligemma")
"""Kinds of models with placeholders (or none) whose images all have the size that the configuration names."""
_DERIVED = ("position_ids", "attention_mask", "encoder_hidden_states", "encoder_attention_mask", "inputs_embeds")


def is_seen_through(captioner: Any, model_kwargs: Mapping[str, Any]) -> bool:
    """Whether the pixels of a run cannot be seen from inside its decoding loop."""
    return "pixel_values" not in model_kwargs


def inputs_from_inside(captioner: Any, ids: Tensor, model_kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """What ``generate`` was called with, as far as its decoding loop can tell; pixels that it cannot see are 0.

    Raises:
        ValueError: the model is the inner part of a captioner, which has to be named.
    """
    kind = captioner.config.model_type
    if is_vision_encoder_decoder(captioner):
        return {
            "pixel_values": _blank(captioner.encoder.config, len(ids), ids, captioner.dtype),
            "decoder_input_ids": ids,
        }
    if kind == "blip":
        # Its generate drops the last id and replaces the first.
        longer = torch.cat([ids, ids[:, -1:]], dim=1)
        return {
            "pixel_values": _blank(captioner.vision_model.config, len(ids), ids, captioner.dtype),
            "input_ids": longer,
        }
    if kind in ("blip-2", "instructblip"):
        return {
            "pixel_values": _blank(captioner.vision_model.config, len(ids), ids, captioner.dtype),
            "input_ids": ids,
            "attention_mask": model_kwargs.get("attention_mask"),
        }
    if "encoder_hidden_states" in model_kwargs or "inputs_embeds" in model_kwargs:
        raise ValueError(
            f"{type(captioner).__name__} is the inner part of a captioner; pass "
            "captioning=Captioning(captioner=model) with the whole of it"
        )
    given = {k: v for k, v in model_kwargs.items() if isinstance(v, Tensor) and k not in _DERIVED}
    if "pixel_values" not in given:  # transformers has encoded them already
        if kind not in ONE_SIZE:
            raise ValueError(
                f"{type(captioner).__name__} does not pass the size of its images on to its decoding loop; pass "
                "captioning=Captioning(inputs=inputs) with what generate is called with"
            )
        given["pixel_values"] = _blank(captioner.config.vision_config, len(ids), ids, captioner.dtype)
    return {"input_ids": ids, "attention_mask": model_kwargs.get("attention_mask"), **given}


def blank(captioner: Any, pixels: Tensor) -> Tensor:
    """Pixels of the mean colour: 0; the smallest number above it for Idefics3 and SmolVLM, which drop images of 0."""
    if captioner.config.model_type in ("idefics2", "idefics3", "smolvlm"):
        return torch.full_like(pixels, torch.finfo(pixels.dtype).tiny)
    return torch.zeros_like(pixels)


def text_entry(captioner: Any, name: str) -> tuple[Any, bool]:
    """The model whose ``generate`` continues text without an image, and whether its rows can ride in one pass with rows
    that have one.

    Raises:
        ValueError: this captioner does nothing without an image.
    """
    kind = captioner.config.model_type
    if is_vision_encoder_decoder(captioner):
        raise ValueError(
            f"{name} does not work with {type(captioner).__name__}, which reads nothing but an image; use 'blank'"
        )
    if kind == "blip":
        return captioner.text_decoder, False  # without an image its cross-attention is left out
    if kind in ("blip-2", "instructblip"):
        return captioner.language_model, True
    return captioner, kind != "git"  # GIT counts image tokens in its mask wherever there is a cache


def image_tokens(captioner: Any, tokenizer: Any) -> frozenset[int]:
    """The tokens that stand for an image or around it."""
    named = {getattr(captioner.config, name, None) for name in IMAGE_TOKENS}
    if tokenizer is not None and hasattr(tokenizer, "get_vocab"):
        vocabulary = tokenizer.get_vocab()
        named |= {vocabulary[token] for token in AROUND if token in vocabulary}
    return frozenset(token for token in named if token is not None)


def without_image_tokens(captioner: Any, tokenizer: Any, row: Sequence[int]) -> list[int]:
    """``row`` without the tokens that stand for an image; its last token where nothing would be left."""
    hidden = image_tokens(captioner, tokenizer)
    return [token for token in row if token not in hidden] or list(row[-1:])


def with_text(
    inputs: Mapping[str, Any], hidden: frozenset[int], changes: Sequence[Callable[[list[int]], list[int]]], pad: int
) -> dict[str, Any]:
    """``inputs`` with the text of every row changed, padded on the left.

    A change that keeps the number of tokens is one of all text; another one is one of the text behind the image (in
    front of it where none stands behind).

    Args:
        hidden: tokens that stand for an image.
        changes: from the tokens of a text to others, one a row.
        pad: fills rows.
    """
    ids: Tensor = inputs["input_ids"]
    mask = inputs.get("attention_mask")
    beside = [k for k, v in inputs.items() if isinstance(v, Tensor) and v.shape == ids.shape and k != "attention_mask"]
    rows: dict[str, list[Tensor]] = {name: [] for name in [*beside, "attention_mask"]}
    for number, change in enumerate(changes):
        keep = torch.ones_like(ids[number], dtype=torch.bool) if mask is None else mask[number].bool()
        row = ids[number][keep].tolist()
        new, sources = _with_text(row, hidden, change)
        origin = torch.tensor(sources, device=ids.device)
        for name in beside:
            values = inputs[name][number][keep][origin]
            rows[name].append(torch.tensor(new, device=ids.device) if name == "input_ids" else values)
        rows["attention_mask"].append(torch.ones(len(new), dtype=torch.long, device=ids.device))
    width = max(map(len, rows["input_ids"]))
    filled = {"input_ids": pad}
    padded = {
        name: torch.stack([torch.nn.functional.pad(v, (width - len(v), 0), value=filled.get(name, 0)) for v in values])
        for name, values in rows.items()
    }
    return {**inputs, **padded}


def _with_text(row: list[int], hidden: frozenset[int], change: Callable[[list[int]], list[int]]) -> tuple[Any, Any]:
    """A row with another text, and for every token of it the place in ``row`` whose other inputs it takes."""
    text = [place for place, token in enumerate(row) if token not in hidden]
    image = [place for place, token in enumerate(row) if token in hidden]
    new = change([row[place] for place in text])
    if len(new) == len(text):
        changed = dict(zip(text, new, strict=True))
        return [changed.get(place, token) for place, token in enumerate(row)], list(range(len(row)))
    if not image:
        return new, [len(row) - 1] * len(new)
    behind = row[image[-1] + 1 :]
    if behind:
        new, first = change(behind), image[-1] + 1
        return row[:first] + new, [*range(first), *[len(row) - 1] * len(new)]
    new = change(row[: image[0]])
    return new + row[image[0] :], [*[0] * len(new), *range(image[0], len(row))]


def rows_of(inputs: Mapping[str, Any]) -> int:
    """How many rows ``inputs`` holds."""
    batched = inputs.get("input_ids", inputs["pixel_values"])
    return len(batched)


def by_image(inputs: Mapping[str, Any]) -> list[Tensor]:
    """The pixel values of each image (or row)."""
    pixels: Tensor = inputs["pixel_values"]
    if "image_grid_thw" not in inputs:
        return list(pixels)
    return list(pixels.split(inputs["image_grid_thw"].prod(1).tolist()))


def distinct(inputs: Mapping[str, Any], rows: int) -> tuple[dict[str, Any], list[int]]:
    """The rows of ``inputs`` that differ in what they read, and for each row which of them it is.

    Pixels are taken to be the same in all rows. Rows whose patches lie in one list (Qwen2-VL) are reduced to one or to
    none at all.
    """
    everyone = list(range(rows))
    texts = [v for v in inputs.values() if isinstance(v, Tensor) and not v.is_floating_point() and len(v) == rows]
    keys = [tuple(int(x) for text in texts for x in text[row].flatten()) for row in everyone]
    first = {key: row for row, key in reversed(list(enumerate(keys)))}
    chosen = sorted(first.values())
    owners = [chosen.index(first[key]) for key in keys]
    if "image_grid_thw" in inputs:
        grid, images = inputs["image_grid_thw"], len(inputs["image_grid_thw"]) // rows
        even = len(grid) % rows == 0 and torch.equal(grid, grid[:images].repeat(rows, 1))
        if len(chosen) > 1 or not even:
            return dict(inputs), everyone
        patches = int(grid[:images].prod(1).sum())
        short = {"image_grid_thw": grid[:images], "pixel_values": inputs["pixel_values"][:patches]}
        rest = {k: v[:1] if isinstance(v, Tensor) and len(v) == rows else v for k, v in inputs.items()}
        return {**rest, **short}, owners
    index = torch.tensor(chosen)
    return {
        k: v[index.to(v.device)] if isinstance(v, Tensor) and len(v) == rows else v for k, v in inputs.items()
    }, owners


def _blank(config: Any, rows: int, like: Tensor, dtype: torch.dtype) -> Tensor:
    size = getattr(config, "image_size", 224)
    height, width = (size, size) if isinstance(size, int) else size
    return torch.zeros(rows, getattr(config, "num_channels", 3), height, width, dtype=dtype, device=like.device)


def placeholder(model: Any, processor: Any) -> str | None:
    """The text that stands for an image in a prompt; None for models that caption without one."""
    if is_vision_encoder_decoder(model) or model.config.model_type in ("blip", "blip-2", "instructblip", "git"):
        return None
    token = getattr(processor, "image_token", None) or getattr(processor.tokenizer, "image_token", None)
    token = getattr(token, "content", token)
    if token is None:
        token = processor.tokenizer.convert_ids_to_tokens(
            next(getattr(model.config, name) for name in IMAGE_TOKENS if getattr(model.config, name, None) is not None)
        )
    if model.config.model_type.startswith("qwen"):
        return f"<|vision_start|>{token}<|vision_end|>"
    return str(token)


def nests_images(processor: Any) -> bool:
    """Whether the processor wants a list of images a prompt."""
    return any(name in type(processor).__name__ for name in ("Idefics", "SmolVLM"))


def captions_without_text(processor: Any) -> bool:
    """Whether the processor takes images alone."""
    return any(name in type(processor).__name__ for name in ("Blip", "Git", "TrOCR", "Donut", "Nougat", "Pix2Struct"))


def check_pixels(model: Any, processor: Any, inputs: Mapping[str, Any]) -> None:
    """Refuse pixels that the model's vision encoder was not made for.

    Raises:
        ValueError: they have another size or number of channels than the model's configuration names.
    """
    config = getattr(model.config, "vision_config", None) or getattr(model.config, "encoder", None)
    size, pixels = getattr(config, "image_size", None), inputs["pixel_values"]
    if not isinstance(size, int) or pixels.dim() != 4:
        return
    channels = getattr(config, "num_channels", 3)
    if pixels.shape[1:] != (channels, size, size):
        raise ValueError(
            f"processor ({type(processor).__name__}) gives pixels of shape {tuple(pixels.shape[1:])} and the model "
            f"takes {(channels, size, size)}; it does not belong to the model"
        )
