"""Tiny random models of any class of transformers, with weights that make texts depend on their prompts."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import GenerationConfig

from .classes import VARIANTS, ModelClass
from .overrides import OVERRIDES
from .shrinking import BOS, EOS, PAD, shrink

LARGEST = 6_000_000
"""Parameters of the largest model that is built."""
GAINS = (4.0, 2.0, 6.0, 8.0, 3.0, 1.0, 12.0, 20.0)
"""How much weights are enlarged: the first gain that makes a text depend on its first token."""
SENSITIVE = 0.05
BARRED = 1e20
"""Logits beyond are those of tokens that a model never writes."""
DEVIATION = 2.0
"""Standard deviation of the logits."""


class NotBuilt(Exception):
    """A tiny model cannot be made; the message says why."""


def configuration(entry: ModelClass) -> Any:
    """The tiny configuration of a class."""
    kind = entry.load()
    default = kind.config_class()
    exact = {}
    if entry.mapping == "causal" and hasattr(default, "is_decoder"):
        exact["is_decoder"] = True
    if entry.variant:
        exact |= VARIANTS[entry.name, entry.variant]
    return shrink(default, OVERRIDES.get(entry.name, OVERRIDES.get(entry.family, {})), exact)


def build(entry: ModelClass, seed: int = 0) -> Any:
    """A tiny random model of a class, in float32.

    Raises:
        NotBuilt: the class cannot be built from a small configuration.
    """
    kind = entry.load()
    try:
        config = configuration(entry)
        with torch.device("meta"):
            size = sum(p.numel() for p in kind(config).parameters())
    except ImportError as error:
        raise NotBuilt(f"needs a package that is not installed: {_line(error)}") from error
    except Exception as error:
        raise NotBuilt(f"the configuration cannot be shrunk: {type(error).__name__}: {_line(error)}") from error
    if size > LARGEST:
        raise NotBuilt(f"the configuration cannot be shrunk: {size:,} parameters are left")
    with torch.random.fork_rng(), _uninitialized_is_nan():
        torch.manual_seed(seed)
        model = kind(config).float().eval()
        _fill(model)
    ids: dict[str, Any] = {"pad_token_id": PAD, "bos_token_id": BOS}
    if config.is_encoder_decoder:
        for name, value in (("eos_token_id", EOS), ("decoder_start_token_id", EOS)):
            # A configuration made of two keeps them in its parts.
            if getattr(config, name, None) is None:
                setattr(config, name, value)
        ids["decoder_start_token_id"] = config.decoder_start_token_id
    # Without an end token every text has the same length.
    model.generation_config = GenerationConfig(**ids)
    _enlarge(model)
    _spread(model)
    if entry.family.startswith(("seamless", "m2m_100", "nllb_moe")):
        # It counts positions by the tokens that are no padding, also among what it writes: keep it from writing any.
        with torch.no_grad():
            model.lm_head.weight[PAD] = 0.0
    return model


@contextmanager
def _uninitialized_is_nan() -> Iterator[None]:
    """Memory that no initialisation writes is seen."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


@torch.no_grad()
def _fill(model: Any) -> None:
    """Give parameters that are undefined or zero (gates that start closed) small random values."""
    for tensor in [*model.parameters(), *model.buffers()]:
        if not tensor.is_floating_point():
            continue
        if not torch.isfinite(tensor).all() and isinstance(tensor, torch.nn.Parameter):
            tensor.normal_(0, 0.05)
    for tensor in model.parameters():
        if tensor.is_floating_point() and (tensor.dim() < 2 or not tensor.any()):
            tensor.add_(torch.randn_like(tensor), alpha=0.05)


@torch.no_grad()
def _enlarge(model: Any) -> None:
    """Multiply the matrices by the first gain that makes the next token depend on the first one of a prompt."""
    matrices = [p for p in model.parameters() if p.dim() > 1 and p.is_floating_point()]
    originals = [p.clone() for p in matrices]
    best, found = GAINS[0], -1.0
    for gain in GAINS:
        for p, original in zip(matrices, originals, strict=True):
            p.copy_(original * gain)
        sensitivity = _sensitivity(model)
        if sensitivity > found:
            best, found = gain, sensitivity
        if found >= SENSITIVE:
            break
    for p, original in zip(matrices, originals, strict=True):
        p.copy_(original * best)


@torch.no_grad()
def _spread(model: Any) -> None:
    """Scale what writes the logits, so that next-token distributions are neither flat nor certain."""
    head = model.get_output_embeddings()
    weight = getattr(head, "weight", None)
    if weight is None or weight is getattr(model.get_input_embeddings(), "weight", None):
        return
    logits = _logits(model, 5)
    deviation = float(logits.std()) if logits is not None else 0.0
    if deviation > 0:
        weight.mul_(DEVIATION / deviation)


def _sensitivity(model: Any) -> float:
    """Total variation between the next-token distributions behind two prompts that differ in one early token."""
    one, other = _logits(model, 5), _logits(model, 40)
    if one is None or other is None:
        return 0.0
    scale = DEVIATION / one.std().clamp(min=1e-20)
    difference = float((torch.softmax(one * scale, -1) - torch.softmax(other * scale, -1)).abs().sum() / 2)
    return difference if difference == difference else -1.0


def _logits(model: Any, second: int) -> torch.Tensor | None:
    ids = torch.tensor([[11, second, 33, 7, 20, 41, 8]])
    given = {"decoder_input_ids": torch.tensor([[EOS, 17, 9]])} if model.config.is_encoder_decoder else {}
    try:
        logits: torch.Tensor = model(input_ids=ids, use_cache=False, **given).logits[0, -1].float()
    except Exception:  # the checks will say what is wrong
        return None
    return logits[logits.abs() < BARRED]


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:240]
