"""Probes see the architecture: neither its mode, nor its dtype, nor forbidden tokens, nor the length of its windows."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers as tf

import textguide
from textguide import CFG, CFGLogitsProcessor, GuidanceLogitsProcessor, guided_decoding
from textguide.forward import probes
from textguide.forward.exact_passes import evaluation_mode, in_float32
from textguide.forward.model_adapter import Padding, adapter
from textguide.guidance import ContrastiveDecoding
from textguide.reference import decoding

from ..architectures import ENCODER_DECODER, NAMES, Tokenizer, build
from .test_model_adapter import IDS, bart, recurrent_gemma, roformer, seeded, trocr

PROMPTS = [[7], [11, 4, 52, 9], [5, 9, 33, 7, 20, 41, 8]]
NEGATIVES = [[17, 18, 19], [9, 9, 25, 7, 7, 13, 40, 21], [50]]


def _largest_error(model: Any) -> float:
    """The largest difference between the log-probabilities of a padded batch and the oracle's."""
    out = textguide.generate(model, Tokenizer(), PROMPTS, CFG(1.5, NEGATIVES), max_new_tokens=4)
    worst = 0.0
    for row, (prompt, negative) in enumerate(zip(PROMPTS, NEGATIVES, strict=True)):
        written: list[int] = []
        for token, log_prob in zip(out.new_tokens[row], out.log_probs[row].tolist(), strict=True):
            both = [decoding.next_log_probs(model, [*one, *written]) for one in (prompt, negative)]
            right = decoding.guided_distribution(CFG(1.5), both, 0.0)
            worst = max(worst, abs(right[token] - log_prob))
            written.append(token)
    return worst


# -- training mode ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("builder", [bart, roformer, trocr])
def test_a_run_in_training_mode_leaves_no_wrong_verdict(builder: Callable[[], Any]) -> None:
    model = seeded(builder).train()
    textguide.generate(model, Tokenizer(), PROMPTS, CFG(1.5, NEGATIVES), max_new_tokens=1)
    assert adapter(model).padding is Padding.CHANGES
    assert _largest_error(model.eval()) < 5e-4


def test_state_outside_the_cache_is_refused_in_training_mode() -> None:
    model = seeded(recurrent_gemma).train()
    with pytest.raises(ValueError, match="RecurrentGemmaForCausalLM keeps state outside its cache"):
        textguide.generate(model, Tokenizer(), [[5, 6]], CFG(1.5), max_new_tokens=2)


def _fail(model: Any) -> None:
    assert not any(module.training for module in model.modules())
    raise RuntimeError("stop")


def test_the_mode_of_every_module_is_restored() -> None:
    model = seeded(bart).train()
    model.model.decoder.layers[0].eval()
    before = [module.training for module in model.modules()]
    assert adapter(model).padding is Padding.CHANGES
    assert [module.training for module in model.modules()] == before
    with pytest.raises(RuntimeError, match="stop"), evaluation_mode(model):
        _fail(model)
    assert [module.training for module in model.modules()] == before


# -- half precision --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_padding_that_half_precision_would_hide_is_found(dtype: torch.dtype) -> None:
    assert adapter(seeded(roformer, 2.5).to(dtype)).padding is Padding.CHANGES


@pytest.mark.parametrize("name", NAMES)
def test_passes_in_float32_are_those_of_a_copy_in_float32(name: str) -> None:
    model = copy.deepcopy(build(name)).to(torch.bfloat16)
    ids = torch.tensor([PROMPTS[2]])
    inputs = {"input_ids": ids, **({"decoder_input_ids": ids} if name in ENCODER_DECODER else {})}
    with torch.no_grad():
        expected = copy.deepcopy(model).float()(**inputs).logits
        with in_float32(model), torch.autocast("cpu", torch.bfloat16, enabled=False):
            found = model(**inputs).logits
        rounded = model(**inputs).logits
    torch.testing.assert_close(found, expected, atol=2e-6, rtol=0)
    assert not torch.equal(rounded.float(), expected)
    assert {weight.dtype for weight in model.parameters()} == {torch.bfloat16}


# -- forbidden tokens, and logits that are not numbers ---------------------------------------------------------------


class _Masked(torch.nn.Module):
    """A head that forbids the last tokens of the vocabulary."""

    def __init__(self, head: Any, value: float) -> None:
        super().__init__()
        self.head = head
        self.value = value

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        logits = self.head(states).clone()
        logits[..., 60:] = self.value
        return logits


@pytest.mark.parametrize("value", [float("-inf"), torch.finfo(torch.float32).min, -65504.0, -1e9])
def test_forbidden_tokens_neither_refuse_a_model_nor_hide_its_padding(value: float) -> None:
    model = copy.deepcopy(build("llama"))
    model.lm_head = _Masked(model.lm_head, value)
    assert adapter(model).padding is Padding.EXACT
    assert adapter(model).reads_chunks
    assert adapter(model).is_causal
    out = textguide.generate(model, Tokenizer(), [[5, 6]], CFG(1.5, [9]), max_new_tokens=3)
    both = [decoding.next_log_probs(model, one) for one in ([5, 6], [9])]
    assert out.new_tokens[0][0] == max(range(60), key=decoding.guided_distribution(CFG(1.5), both, 0.0).__getitem__)
    changed = seeded(bart)
    changed.lm_head = _Masked(changed.lm_head, value)
    assert adapter(changed).padding is Padding.CHANGES


@pytest.mark.parametrize("name", ["llama", "t5"])
def test_weights_that_are_not_numbers_are_named(name: str) -> None:
    model = copy.deepcopy(build(name))
    with torch.no_grad():
        model.get_output_embeddings().weight[7, 0] = torch.nan
    with pytest.raises(ValueError, match="NaN"):
        textguide.generate(model, Tokenizer(), [[5, 6]], CFG(1.5, [9]), max_new_tokens=3)


# -- lengths ---------------------------------------------------------------------------------------------------------


def _mistral(window: int, **options: Any) -> Any:
    sizes: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2} | IDS
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512}
    return tf.MistralForCausalLM(tf.MistralConfig(sliding_window=window, **sizes, **heads, **options)).eval()


def test_probes_are_longer_than_every_window_that_they_can_afford(monkeypatch: pytest.MonkeyPatch) -> None:
    mistral = _mistral(100)
    model = adapter(mistral)
    assert probes.reach(model) == 100
    assert probes.probe_length(model) > 100
    monkeypatch.setattr(probes, "_WORK", 50 * sum(weight.numel() for weight in mistral.parameters()))
    assert probes.probe_length(model) == 50
    assert probes.probe_length(adapter(build("llama"))) == 7


# -- models that are not causal --------------------------------------------------------------------------------------


def _bidirectional() -> Any:
    sizes: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2} | IDS
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 64}
    return tf.Gemma3ForCausalLM(tf.Gemma3TextConfig(use_bidirectional_attention=True, **sizes, **heads))


def _bert(**options: Any) -> Any:
    sizes: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2} | IDS
    return tf.BertLMHeadModel(tf.BertConfig(num_attention_heads=4, max_position_embeddings=64, **sizes, **options))


@pytest.mark.parametrize(
    ("builder", "remedy"),
    [(_bidirectional, "use_bidirectional_attention=False"), (_bert, "is_decoder=True")],
)
def test_models_that_are_not_causal_are_refused(builder: Callable[[], Any], remedy: str) -> None:
    model = seeded(builder)
    message = rf"{type(model).__name__} is not causal.*{remedy}"
    for guidance in (None, CFG(1.5)):
        with pytest.raises(ValueError, match=message):
            textguide.score(model, Tokenizer(), [[11, 4, 52, 9]], [[5, 8, 13]], guidance)
    with pytest.raises(ValueError, match=message):
        textguide.generate(model, Tokenizer(), [[11, 4, 52, 9]], CFG(1.5), max_new_tokens=3)
    with pytest.raises(ValueError, match=message):
        model.generate(
            torch.tensor([[11, 4, 52, 9]]), max_new_tokens=3, logits_processor=[CFGLogitsProcessor(model, 1.5)]
        )


def test_models_that_are_not_causal_are_refused_if_another_model_runs_the_branches() -> None:
    model = seeded(_bidirectional)
    guidance = ContrastiveDecoding()
    amateurs = {"amateur": build("llama")}
    ids = torch.tensor([[11, 4, 52, 9]])
    message = "Gemma3ForCausalLM is not causal"
    with pytest.raises(ValueError, match=message):
        textguide.generate(model, Tokenizer(), [[11, 4, 52, 9]], guidance, models=amateurs, max_new_tokens=3)
    with pytest.raises(ValueError, match=message):
        model.generate(ids, max_new_tokens=3, custom_generate=guided_decoding(guidance, models=amateurs))
    with pytest.raises(ValueError, match=message):
        GuidanceLogitsProcessor(model, guidance, models=amateurs)


def test_a_bert_that_is_a_decoder_is_not_refused() -> None:
    model = seeded(lambda: _bert(is_decoder=True))
    scored = textguide.score(model, Tokenizer(), [[11, 4, 52, 9]], [[5, 8]], CFG(1.5))
    expected, _ = decoding.score(model, [11, 4, 52, 9], [5, 8], CFG(1.5), [[9]])
    assert scored.log_probs[0][0].tolist() == pytest.approx(expected, abs=1e-4)


def test_rows_of_a_model_with_state_outside_its_cache_are_refused() -> None:
    model = seeded(recurrent_gemma)
    guidance = ContrastiveDecoding(alpha=0.0, beta=0.5)
    amateur = {"amateur": build("llama")}
    with pytest.raises(ValueError, match="keeps state outside its cache"):
        textguide.generate(model, Tokenizer(), [[26, 7]] * 2, guidance, models=amateur, max_new_tokens=5)
