"""Images in guided requests: what the branches see of them. Knows no vLLM but the names of what it reads.

The images of a request are features next to its token ids, which hold a run of placeholders for each image. A branch
sees the same images, blank ones of their size, or none.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from torch import Tensor

from textguide.guidance.base import Branch, BranchGuidance
from textguide.support.checks import one_of

NEGATIVE_IMAGE = "negative_image"
"""The argument that determines what a branch without a condition sees."""
KINDS = ("blank", "text")
SAME = "same"
BLANK = "blank"
NONE = ""
"""What a branch request sees: the images, blank ones, or none."""
TESTED_WITH = ("llava",)
"""The kinds of models that were compared with transformers."""


@dataclass(frozen=True)
class Images:
    """The images of a request.

    Args:
        kind: of the model, as its configuration names it.
        without: from the prompt's token ids to those of the same prompt without images.
    """

    kind: str
    without: Callable[[Sequence[int]], list[int]]

    def check(self, guidance: BranchGuidance) -> None:
        """Refuse a guidance that changes the prompt itself.

        Raises:
            ValueError: a branch does; the message names what would work.
        """
        if any(branch.edit is not None or branch.system is not None for branch in guidance.branches):
            raise ValueError(
                f"guidance {guidance.name!r} changes the request's own prompt, which has an image: that was not tested "
                "inside vLLM; use textguide.caption, or give the branch's tokens in guidance_branch_token_ids"
            )

    def reading(self, branch: Branch, row: tuple[int, ...], ids: tuple[int, ...], kind: str) -> tuple[Any, str]:
        """The token ids that a branch reads, and what it sees.

        Args:
            branch: of the guidance.
            row: its token ids in a request without images.
            ids: those of the prompt.
            kind: what a branch without a condition sees.
        """
        if branch.same_prompt:
            return ids, SAME
        return (row, NONE) if branch.prompt is not None else self.unconditional(ids, kind)

    def unconditional(self, ids: tuple[int, ...], kind: str) -> tuple[tuple[int, ...], str]:
        """The token ids that a branch without a condition reads, and what it sees."""
        return (ids, BLANK) if kind == "blank" else (tuple(self.without(ids)), NONE)


def images_of(prompt: Any, config: Any, tokenizer: Any) -> Images | None:
    """The images of a prompt; None if it has none.

    Args:
        prompt: as vLLM holds it.
        config: vLLM's ``ModelConfig``.
        tokenizer: of the model.

    Raises:
        ValueError: it has something else than images, or the model was not tested.
    """
    placeholders = prompt.get("mm_placeholders") if isinstance(prompt, Mapping) else None
    if not placeholders:
        return None
    others = sorted(set(placeholders) - {"image"})
    if others:
        raise ValueError(f"guidance does not work with {others[0]} in the prompt: it was only tested with images")
    kind = str(config.hf_config.model_type)
    if kind not in TESTED_WITH:
        raise ValueError(
            f"guidance does not work with images of a model of kind {kind!r}: it was tested with "
            f"{', '.join(TESTED_WITH)}; use textguide.caption"
        )
    hidden: set[int] = set()
    for one in placeholders["image"]:
        hidden.update(range(one.offset, one.offset + one.length))

    def without(ids: Sequence[int]) -> list[int]:
        from textguide.captioning import families

        rest = [token for position, token in enumerate(ids) if position not in hidden]
        return families.without_image_tokens(SimpleNamespace(config=config.hf_config), tokenizer, rest or ids[-1:])

    return Images(kind, without)


def kind_of(extra: Mapping[str, Any], images: Images | None) -> str:
    """What a branch without a condition sees, from the arguments of a request.

    Raises:
        ValueError: the argument has another value, or there is no image.
    """
    kind = extra.get(NEGATIVE_IMAGE)
    if kind is None:
        return "blank"
    one_of(NEGATIVE_IMAGE, kind, KINDS)
    if images is None:
        raise ValueError(f"{NEGATIVE_IMAGE}={kind!r}: this request has no image; leave it out")
    return str(kind)


def can_be_shown(features: Sequence[Any], sees: Sequence[str]) -> bool:
    """Whether branch requests can be given what they see: blank images are made of the pixels of others."""
    if BLANK not in sees:
        return True
    return all(any(_is_pixels(*part) for part in (feature.data or {}).items()) for feature in features)


def shown(features: Sequence[Any], sees: str, config: Any) -> list[Any]:
    """The features of a branch request.

    Args:
        features: of the main request, vLLM's ``MultiModalFeatureSpec``.
        sees: ``SAME``, ``BLANK`` or ``NONE``.
        config: of the model, as transformers has it.
    """
    if sees == NONE:
        return []
    return list(features) if sees == SAME else [_blank(feature, config) for feature in features]


def _blank(feature: Any, config: Any) -> Any:
    from textguide.captioning import families

    captioner = SimpleNamespace(config=config)
    digest = hashlib.sha256()
    parts = {}
    for name, part in sorted(feature.data.items()):
        if _is_pixels(name, part):
            pixels = families.blank(captioner, part.data)
            parts[name] = dataclasses.replace(part, data=pixels)
            digest.update(f"{name} {tuple(pixels.shape)} {pixels.dtype}".encode())
        else:
            parts[name] = part
            digest.update(f"{name} {part.data!r}".encode())
    # All blank images of one size are the same image, in vLLM's caches too.
    name = f"textguide-blank-{digest.hexdigest()}"
    return dataclasses.replace(feature, data=type(feature.data)(parts), identifier=name, mm_hash=name)


def _is_pixels(name: str, part: Any) -> bool:
    return name.startswith("pixel_values") and isinstance(part.data, Tensor) and part.data.is_floating_point()
