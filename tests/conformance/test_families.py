"""Families of transformers that differ in mechanism: every cell is exact, or refused for the reason that is known.

``scripts/conformance.py`` does the same for all classes that transformers has, and writes docs/models.md.
"""

from __future__ import annotations

import warnings
from functools import cache

import pytest
import torch

from textguide.forward import row_batch

from .building import build
from .checks import CHECKS, Reference, reference, run
from .classes import all_classes

STATE = {"speculation": "keeps a state that cannot go back"}

FAMILIES: dict[str, dict[str, str]] = {
    "GPT2LMHeadModel": {},  # learned positions
    "OPTForCausalLM": {},  # learned positions with an offset
    "BloomForCausalLM": {},  # ALiBi
    "FalconForCausalLM (ALiBi)": {},
    "MptForCausalLM": {},  # ALiBi, no cache by default
    "LlamaForCausalLM": {},  # rotary, grouped queries
    "GPTNeoXForCausalLM": {},  # rotary on a part of each head
    "MistralForCausalLM": {},  # sliding windows
    "Gemma2ForCausalLM": {},  # windows on every other layer, soft caps
    "Gemma3ForCausalLM": {},
    "GptOssForCausalLM": {},  # attention sinks, experts
    "MixtralForCausalLM": {},  # experts
    "DeepseekV3ForCausalLM": {},  # latent attention
    "DeepseekV32ForCausalLM": {},  # chosen tokens
    "BartForCausalLM": {},  # positions by the length of the cache
    "RoFormerForCausalLM": {},
    "Phi3ForCausalLM (long rope)": {},  # rotary embeddings that change with the length
    "MambaForCausalLM": STATE,
    "JambaForCausalLM": STATE,  # states and attention
    "BambaForCausalLM": STATE,  # a number of logits of its own
    "RwkvForCausalLM": {},  # state outside transformers' Cache
    "RecurrentGemmaForCausalLM": {},  # state in its modules
    "T5ForConditionalGeneration": {},  # encoder-decoder, relative positions
    "BartForConditionalGeneration": {},
    "FSMTForConditionalGeneration": {},  # reads one token a pass
    "Florence2ForConditionalGeneration": {},  # encoder-decoder that embeds its source outside the encoder
    "LlavaForConditionalGeneration": {},  # image-text
    "ChameleonForConditionalGeneration": {},  # forbids its image tokens with the lowest number of the dtype
    "PaliGemmaForConditionalGeneration": {},  # reads prompts in both directions
    "Qwen2VLForConditionalGeneration": {},  # positions of three kinds
}
"""Classes by name, and what is refused of them beside what a whole class is refused for."""
WHOLE = {
    "RwkvForCausalLM": "does not keep its state",
    "RecurrentGemmaForCausalLM": "keeps",  # state outside its cache
    "DeepseekV32ForCausalLM": "",  # chosen tokens: what it chooses is kept in layers of a kind of their own
    "Phi3ForCausalLM (long rope)": "rotary embeddings",
}
ENTRIES = {entry.title: entry for entry in all_classes()}


@cache
def oracle(title: str) -> Reference:
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return reference(build(ENTRIES[title]))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("title", list(FAMILIES))
def test_every_check_is_exact_or_refused_for_a_known_reason(title: str) -> None:
    with torch.no_grad():
        cells = {check: run(oracle(title), check) for check in CHECKS}
    wrong = {check: cell.detail for check, cell in cells.items() if cell.result not in ("exact", "refused")}
    assert wrong == {}
    for check, cell in cells.items():
        if cell.result == "refused":
            known = FAMILIES[title].get(check) or WHOLE.get(title)
            assert known is not None, f"{check}: {cell.detail}"
            assert known in cell.detail
    if title not in WHOLE:
        assert sum(cell.result == "exact" for cell in cells.values()) >= len(CHECKS) - len(FAMILIES[title])


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("title", ["BloomForCausalLM", "MptForCausalLM", "DeepseekV3ForCausalLM", "JambaForCausalLM"])
def test_classes_that_stay_padded_do_so_whatever_the_padding(title: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(row_batch, "LEAST_PADDING", 1)
    with torch.no_grad():
        cells = {check: run(oracle(title), check) for check in ("batch", "padding", "one pass")}
    assert {cell.result for cell in cells.values()} == {"exact"}, cells
