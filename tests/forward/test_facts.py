"""Facts about architectures are what probes find, and hold for what transformers builds and nothing else."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers as tf

from textguide.forward import facts, probes
from textguide.forward.model_adapter import Padding, adapter

from ..architectures import build
from ..conformance import building
from ..conformance.classes import all_classes
from ..conformance.facts import established, text

REPORT = json.loads(facts.FILE.read_text(encoding="utf-8"))
ENTRIES = {entry.title: entry for entry in all_classes()}
SAMPLE = [
    "BartForCausalLM",
    "BertLMHeadModel",
    "BloomForCausalLM",
    "DeepseekV32ForCausalLM",
    "FalconForCausalLM (ALiBi)",
    "FSMTForConditionalGeneration",
    "Gemma3ForCausalLM",
    "Gemma4UnifiedForCausalLM",
    "JambaForCausalLM",
    "LlamaForCausalLM",
    "LlamaForCausalLM (dynamic NTK)",
    "LlavaForConditionalGeneration",
    "MistralForCausalLM (no window)",
    "PaliGemmaForConditionalGeneration",
    "Phi3ForCausalLM (long rope)",
    "Qwen2ForCausalLM (sliding window)",
    "RoFormerForCausalLM",
    "T5ForConditionalGeneration",
]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("title", SAMPLE)
def test_facts_are_what_probes_find(title: str) -> None:
    entry = ENTRIES[title]
    model = building.build(entry, seed=1)
    found = established(model)
    assert found in REPORT["classes"][entry.name], "run `python scripts/conformance.py`"
    shipped = facts.shipped(model)
    assert shipped is not None
    assert shipped.padding.name == found["padding"]
    assert (shipped.reads_chunks, shipped.is_causal) == (found["reads_chunks"], found["is_causal"])
    assert shipped.stays_padded == found["stays_padded"]


def test_the_file_is_that_of_this_version_of_transformers_and_sorted() -> None:
    assert REPORT["transformers"] == tf.__version__
    assert list(REPORT["classes"]) == sorted(REPORT["classes"])
    rows = [
        {"name": name, "variant": str(number), "facts": entry}
        for name, entries in REPORT["classes"].items()
        for number, entry in enumerate(entries)
    ]
    assert text(rows) == facts.FILE.read_text(encoding="utf-8")


def test_models_with_facts_are_not_probed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probes, "_probed", lambda *_: pytest.fail("probed"))
    model = copy.deepcopy(build("llama"))
    known = adapter(model)
    assert known.padding is Padding.EXACT
    assert known.reads_chunks
    assert known.is_causal
    assert known.keeps_own_lengths


def test_rows_stay_padded_with_other_attention_implementations() -> None:
    model = copy.deepcopy(build("llama"))
    model.config._attn_implementation = "flex_attention"
    assert adapter(model).stays_padded == "attention by flex_attention"
    assert not adapter(model).keeps_own_lengths


def test_finding_facts_draws_no_random_numbers() -> None:
    model = copy.deepcopy(build("llama"))
    before = torch.get_rng_state()
    assert adapter(model).padding is Padding.EXACT
    assert torch.equal(torch.get_rng_state(), before)


def _hooked(model: Any) -> Any:
    model.model.layers[0].register_forward_hook(lambda *_: None)
    return model


def _patched(model: Any) -> Any:
    model.model.layers[0].forward = model.model.layers[0].forward
    return model


def _prepared(model: Any) -> Any:
    model.prepare_inputs_for_generation = model.prepare_inputs_for_generation
    return model


class Head(torch.nn.Linear):
    """A layer of the user's own."""


def _with_head(model: Any) -> Any:
    model.lm_head = Head(32, 61, bias=False)
    return model


def _with_other_layer(model: Any) -> Any:
    model.model.layers[1] = torch.nn.Identity()
    return model


def _subclass(model: Any) -> Any:
    class LlamaForCausalLM(tf.LlamaForCausalLM):  # type: ignore[misc]
        pass

    return LlamaForCausalLM(model.config)


def _own_attention(model: Any) -> Any:
    model.config._attn_implementation = "my_attention"
    return model


def _of_another_kind(model: Any) -> Any:
    model.config.rope_parameters = {"rope_type": "longrope"}
    return model


CHANGES = [_hooked, _patched, _prepared, _with_head, _with_other_layer, _subclass, _own_attention, _of_another_kind]


@pytest.mark.parametrize("change", CHANGES)
def test_a_model_that_was_changed_is_probed(change: Callable[[Any], Any]) -> None:
    model = copy.deepcopy(build("llama"))
    assert facts.shipped(model) is not None
    assert facts.shipped(change(model)) is None


def test_a_class_with_a_patched_forward_is_probed(monkeypatch: pytest.MonkeyPatch) -> None:
    model = copy.deepcopy(build("llama"))

    def forward(self: Any, states: torch.Tensor) -> torch.Tensor:
        return states

    monkeypatch.setattr(type(model.model.layers[0].mlp), "forward", forward)
    assert facts.shipped(model) is None


def test_another_version_of_transformers_has_no_facts(monkeypatch: pytest.MonkeyPatch) -> None:
    facts._entries.cache_clear()
    monkeypatch.setattr(facts.transformers, "__version__", "99.0")
    try:
        assert facts.shipped(build("llama")) is None
    finally:
        facts._entries.cache_clear()


def test_models_that_accelerate_moves_keep_their_facts() -> None:
    accelerate = pytest.importorskip("accelerate")
    model = copy.deepcopy(build("llama"))
    accelerate.cpu_offload(model, execution_device=torch.device("cpu"))
    assert facts.shipped(model) is not None


def _rope(kind: str) -> dict[str, Any]:
    return {"rope_type": kind, "factor": 8.0, "rope_theta": 5e5}


@pytest.mark.parametrize(
    ("config", "found"),
    [
        (tf.LlamaConfig(attention_bias=True, tie_word_embeddings=True, hidden_act="gelu"), {}),
        (tf.LlamaConfig(rope_parameters=_rope("linear")), {}),
        (tf.LlamaConfig(rope_parameters=_rope("dynamic")), {"rope_parameters": ["dynamic"]}),
        (tf.MistralConfig(sliding_window=None), {"sliding_window": None}),
        (tf.FalconConfig(alibi=True), {"alibi": True}),
        (tf.BertConfig(is_decoder=True), {"is_decoder": True}),
        (tf.Gemma3TextConfig(use_bidirectional_attention=True), {"use_bidirectional_attention": True}),
        (tf.LlavaConfig(text_config=tf.MistralConfig()), {"text_config.model_type": "mistral"}),
    ],
)
def test_switches_change_the_mechanism(config: Any, found: dict[str, Any]) -> None:
    assert found.items() <= facts.switches(config).items()
    assert bool(facts.switches(config)) == bool(found)
