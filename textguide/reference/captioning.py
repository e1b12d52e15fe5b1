"""The oracle of captioning: guidance over what a captioner sees, as the plainest loop that can be right.

One row, no cache, no padding: for every token the whole model reads image and text again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..guidance.base import BranchGuidance
from .decoding import Distribution, guided_distribution, normalized


def next_log_probs(model: Any, inputs: Mapping[str, Any], written: Sequence[int]) -> Distribution:
    """log P(next token | image, prompt, written), as V floats.

    Args:
        model: a captioner of transformers.
        inputs: what its ``generate`` takes for one row: ``pixel_values`` (left out: it sees nothing), ``input_ids``…
        written: the tokens that were generated.
    """
    inputs = dict(inputs)
    if model.config.is_encoder_decoder:
        start = inputs.pop("decoder_input_ids", [[model.config.decoder_start_token_id]])
        ids = torch.cat([torch.as_tensor(start), torch.tensor([list(written)], dtype=torch.long)], dim=1)
        given: dict[str, Any] = {"pixel_values": inputs["pixel_values"], "decoder_input_ids": ids}
    else:
        new = torch.tensor([list(written)], dtype=torch.long)
        inputs.pop("attention_mask", None)
        given = {**inputs, "input_ids": torch.cat([inputs["input_ids"], new], dim=1)}
        for name, value in (("token_type_ids", 1), ("mm_token_type_ids", 0)):
            if name in given:  # generated tokens are text after the prompt
                given[name] = torch.cat([given[name], torch.full_like(new, value)], dim=1)
    with torch.no_grad():
        if model.config.model_type == "blip" and "pixel_values" not in given:
            logits = model.text_decoder(**given, use_cache=False).logits
        elif model.config.model_type == "blip-2" and "pixel_values" not in given:
            logits = model.language_model(**given, use_cache=False).logits
        elif model.config.model_type in ("blip", "blip-2"):
            logits = model(**given).logits
        else:
            logits = model(**given, use_cache=False).logits
    return normalized(logits[0, -1].double().tolist())


def text_log_probs(
    model: Any, prompt: Sequence[int], written: Sequence[int], index: Sequence[int], end: int, ends: Sequence[int]
) -> Distribution:
    """The distribution of a text-only model over the captioner's tokens.

    Args:
        prompt: what it reads first, in its own tokens.
        written: the captioner's tokens so far.
        index: its token for each of the captioner's; −1 if there is none.
        end: the captioner's end token, which gets the probability of all of ``ends``.
    """
    with torch.no_grad():
        row = torch.tensor([[*prompt, *(index[token] for token in written)]])
        distribution = normalized(model(input_ids=row, use_cache=False).logits[0, -1].double().tolist())
    mapped = [distribution[target] if target >= 0 else -torch.inf for target in index]
    mapped[end] = float(torch.tensor([distribution[token] for token in ends], dtype=torch.float64).logsumexp(0))
    return mapped


def generate(
    model: Any,
    conditions: Sequence[Mapping[str, Any]],
    guidance: BranchGuidance | None,
    new_tokens: int,
    text: Any = None,
) -> tuple[list[int], list[Distribution]]:
    """Greedy decoding of one row: the new tokens and the distribution of each step.

    Args:
        conditions: the inputs of the conditional branch and of each extra branch of the captioner.
        text: for language-model guidance, the distribution of the text-only model from the tokens so far.
    """
    written: list[int] = []
    distributions = []
    for step in range(new_tokens):
        branches = [next_log_probs(model, inputs, written) for inputs in conditions]
        if text is not None:
            branches.append(text(written))
        distribution = guided_distribution(guidance, branches, step / (new_tokens - 1) if new_tokens > 1 else 0.0)
        distributions.append(distribution)
        written.append(max(range(len(distribution)), key=distribution.__getitem__))
    return written, distributions


def without_image(inputs: Mapping[str, Any], image_tokens: Sequence[int]) -> dict[str, Tensor]:
    """``inputs`` of one row with neither pixels nor the tokens that stand for them."""
    kept = torch.tensor([[token for token in inputs["input_ids"][0].tolist() if token not in image_tokens]])
    found = {"input_ids": kept}
    if "token_type_ids" in inputs:
        found["token_type_ids"] = torch.zeros_like(kept)
    return found
