"""Differences between families of captioning models: what a decoding loop receives, and what works without an image.

How a family prepares its inputs is not repeated here: its own ``generate`` does it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..engine.branch_inputs import is_vision_encoder_decoder

IMAGE_TOKENS = (
    "image_token_id",
    "image_token_index",
    "vision_start_token_id",
    "vision_end_token_id",
    "boi_token_id",
    "eoi_token_id",
)
"""Configuration fields with tokens that represent an image or surround it."""
AROUND = ("<fake_token_around_image>", "<global-img>", "<|vision_start|>", "<|vision_end|>", "<start_of_image>")
"""Tokens around images that are not in configurations."""
ONE_SIZE = ("git", "llava", "paligemma")
"""Model types whose images all have the size in the configuration."""
_DERIVED = ("position_ids", "attention_mask", "encoder_hidden_states", "encoder_attention_mask", "inputs_embeds")


def has_pixels(model_kwargs: Mapping[str, Any]) -> bool:
    """Whether the decoding loop of a run received the pixels."""
    return "pixel_values" in model_kwargs


def inputs_from_inside(captioner: Any, ids: Tensor, model_kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Reconstruct the arguments of ``generate`` from those of its decoding loop.

    Pixels that the loop did not receive are 0.

    Args:
        captioner: the model whose ``generate`` was called.
        ids: the prompt that the loop received, (R, L).
        model_kwargs: its other arguments.

    Raises:
        ValueError: the model is the inner part of a captioner, which has to be passed, or the size of its images is
            unknown.
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
            "captioning=Captioning(captioner=model) with the whole captioner"
        )
    others = {k: v for k, v in model_kwargs.items() if isinstance(v, Tensor) and k not in _DERIVED}
    if "pixel_values" not in others:  # transformers has encoded them already
        if kind not in ONE_SIZE:
            raise ValueError(
                f"{type(captioner).__name__} does not pass the size of its images to its decoding loop; pass "
                "captioning=Captioning(inputs=inputs) with the arguments of generate"
            )
        others["pixel_values"] = _blank(captioner.config.vision_config, len(ids), ids, captioner.dtype)
    return {"input_ids": ids, "attention_mask": model_kwargs.get("attention_mask"), **others}


def blank(captioner: Any, pixels: Tensor) -> Tensor:
    """Pixels of the mean colour: 0, or the smallest positive number for Idefics3 and SmolVLM, which drop zeros."""
    if captioner.config.model_type in ("idefics2", "idefics3", "smolvlm"):
        return torch.full_like(pixels, torch.finfo(pixels.dtype).tiny)
    return torch.zeros_like(pixels)


def text_entry(captioner: Any, name: str) -> tuple[Any, bool]:
    """The model whose ``generate`` continues text without an image.

    Args:
        captioner: the captioner.
        name: the option that needs it, for errors.

    Returns:
        The model, and whether its rows can share a pass with rows that have an image.

    Raises:
        ValueError: this captioner does not read text without an image.
    """
    kind = captioner.config.model_type
    if is_vision_encoder_decoder(captioner):
        raise ValueError(f"{name} does not work with {type(captioner).__name__}, which only reads images; use 'blank'")
    if kind == "blip":
        return captioner.text_decoder, False  # it skips cross-attention without an image
    if kind in ("blip-2", "instructblip"):
        return captioner.language_model, True
    return captioner, kind != "git"  # with a cache, GIT always counts image tokens in its mask


def image_tokens(captioner: Any, tokenizer: Any) -> frozenset[int]:
    """The tokens that represent an image or surround it."""
    tokens = {getattr(captioner.config, name, None) for name in IMAGE_TOKENS}
    if tokenizer is not None and hasattr(tokenizer, "get_vocab"):
        vocabulary = tokenizer.get_vocab()
        tokens |= {vocabulary[token] for token in AROUND if token in vocabulary}
    return frozenset(token for token in tokens if token is not None)


def without_image_tokens(captioner: Any, tokenizer: Any, row: Sequence[int]) -> list[int]:
    """``row`` without the tokens that represent an image; only its last token if there are no others."""
    hidden = image_tokens(captioner, tokenizer)
    return [token for token in row if token not in hidden] or list(row[-1:])


def with_text(
    inputs: Mapping[str, Any], hidden: frozenset[int], changes: Sequence[Callable[[list[int]], list[int]]], pad: int
) -> dict[str, Any]:
    """Change the text of every row of ``inputs``; rows are padded on the left.

    If a change keeps the number of tokens, it is applied to all text of the row; otherwise only to the text after the
    image, or to the text before it if there is none after it.

    Args:
        inputs: the arguments of a captioner's ``generate``.
        hidden: tokens that represent an image.
        changes: for each row, a function from the tokens of its text to other tokens.
        pad: the padding token.
    """
    ids: Tensor = inputs["input_ids"]
    mask = inputs.get("attention_mask")
    # Inputs with one value per token, such as token types.
    names = [k for k, v in inputs.items() if isinstance(v, Tensor) and v.shape == ids.shape and k != "attention_mask"]
    rows: dict[str, list[Tensor]] = {name: [] for name in [*names, "attention_mask"]}
    for number, change in enumerate(changes):
        keep = torch.ones_like(ids[number], dtype=torch.bool) if mask is None else mask[number].bool()
        tokens, sources = _with_text(ids[number][keep].tolist(), hidden, change)
        source_index = torch.tensor(sources, device=ids.device)
        for name in names:
            rows[name].append(inputs[name][number][keep][source_index])
        rows["input_ids"][-1] = torch.tensor(tokens, device=ids.device)
        rows["attention_mask"].append(torch.ones(len(tokens), dtype=torch.long, device=ids.device))
    width = max(map(len, rows["input_ids"]))
    padded = {}
    for name, values in rows.items():
        fill = pad if name == "input_ids" else 0
        padded[name] = torch.stack([F.pad(value, (width - len(value), 0), value=fill) for value in values])
    return {**inputs, **padded}


def _with_text(
    row: list[int], hidden: frozenset[int], change: Callable[[list[int]], list[int]]
) -> tuple[list[int], list[int]]:
    """Change the text of one row, as in :func:`with_text`.

    Returns:
        The new tokens, and for each the position in ``row`` whose other inputs (such as its type) it gets.
    """
    text = [position for position, token in enumerate(row) if token not in hidden]
    image = [position for position, token in enumerate(row) if token in hidden]
    last = len(row) - 1
    new = change([row[position] for position in text])
    if len(new) == len(text):
        changed = list(row)
        for position, token in zip(text, new, strict=True):
            changed[position] = token
        return changed, list(range(len(row)))
    if not image:
        return new, [last] * len(new)
    first = image[0]
    after_image = image[-1] + 1
    if after_image < len(row):
        new = change(row[after_image:])
        return row[:after_image] + new, [*range(after_image), *[last] * len(new)]
    new = change(row[:first])
    return new + row[first:], [*[0] * len(new), *range(first, len(row))]


def rows_of(inputs: Mapping[str, Any]) -> int:
    """The number of rows in ``inputs``."""
    batched = inputs.get("input_ids", inputs["pixel_values"])
    return len(batched)


def by_image(inputs: Mapping[str, Any]) -> list[Tensor]:
    """The pixel values of each image (or row)."""
    pixels: Tensor = inputs["pixel_values"]
    if "image_grid_thw" not in inputs:
        return list(pixels)
    return list(pixels.split(inputs["image_grid_thw"].prod(1).tolist()))


def distinct(inputs: Mapping[str, Any], rows: int) -> tuple[dict[str, Any], list[int]]:
    """The distinct rows of ``inputs``, and for each row the number of its copy among them.

    The pixels of all rows are assumed to be the same.
    """
    keys = _row_keys(inputs, rows)
    first: dict[tuple[int, ...], int] = {}
    for row, key in enumerate(keys):
        first.setdefault(key, row)
    chosen = sorted(first.values())
    numbers = [chosen.index(first[key]) for key in keys]
    if "image_grid_thw" in inputs:
        return _one_row(inputs, rows, numbers)
    index = torch.tensor(chosen)
    selected = {}
    for name, value in inputs.items():
        is_batched = isinstance(value, Tensor) and len(value) == rows
        selected[name] = value[index.to(value.device)] if is_batched else value
    return selected, numbers


def _row_keys(inputs: Mapping[str, Any], rows: int) -> list[tuple[int, ...]]:
    """All token ids, masks and types of each row."""
    texts = [v for v in inputs.values() if isinstance(v, Tensor) and not v.is_floating_point() and len(v) == rows]
    keys = []
    for row in range(rows):
        values: list[int] = []
        for text in texts:
            values += text[row].flatten().tolist()
        keys.append(tuple(int(value) for value in values))
    return keys


def _one_row(inputs: Mapping[str, Any], rows: int, numbers: list[int]) -> tuple[dict[str, Any], list[int]]:
    """Qwen2-VL has the patches of all images in one list: its rows are only reduced if they are all the same."""
    grid = inputs["image_grid_thw"]
    images = len(grid) // rows
    same_grids = len(grid) % rows == 0 and torch.equal(grid, grid[:images].repeat(rows, 1))
    if max(numbers) > 0 or not same_grids:
        return dict(inputs), list(range(rows))
    patches = int(grid[:images].prod(1).sum())
    selected = {}
    for name, value in inputs.items():
        selected[name] = value[:1] if isinstance(value, Tensor) and len(value) == rows else value
    selected["image_grid_thw"] = grid[:images]
    selected["pixel_values"] = inputs["pixel_values"][:patches]
    return selected, numbers


def _blank(config: Any, rows: int, like: Tensor, dtype: torch.dtype) -> Tensor:
    size = getattr(config, "image_size", 224)
    height, width = (size, size) if isinstance(size, int) else size
    return torch.zeros(rows, getattr(config, "num_channels", 3), height, width, dtype=dtype, device=like.device)


def placeholder(model: Any, processor: Any) -> str | None:
    """The text that represents an image in a prompt; None for models that caption without a prompt."""
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
    """Whether the processor expects a list of images per prompt."""
    return any(name in type(processor).__name__ for name in ("Idefics", "SmolVLM"))


def captions_without_text(processor: Any) -> bool:
    """Whether the processor accepts images without texts."""
    return any(name in type(processor).__name__ for name in ("Blip", "Git", "TrOCR", "Donut", "Nougat", "Pix2Struct"))


def check_pixels(model: Any, processor: Any, inputs: Mapping[str, Any]) -> None:
    """Refuse pixels that the model's vision encoder does not accept.

    Raises:
        ValueError: their size or number of channels differs from the model's configuration.
    """
    config = getattr(model.config, "vision_config", None) or getattr(model.config, "encoder", None)
    size = getattr(config, "image_size", None)
    pixels = inputs["pixel_values"]
    if not isinstance(size, int) or pixels.dim() != 4:
        return
    channels = getattr(config, "num_channels", 3)
    if pixels.shape[1:] != (channels, size, size):
        raise ValueError(
            f"processor ({type(processor).__name__}) returns pixels of shape {tuple(pixels.shape[1:])} and the "
            f"model accepts {(channels, size, size)}; it does not belong to the model"
        )
