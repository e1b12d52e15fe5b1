"""Inputs and adapters that token ids do not tell: plain runs are transformers' own, guided ones are refused by name."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

import textguide
from textguide import CAIF, CFG, CFGLogitsProcessor, guided_decoding
from textguide.classifiers import FunctionClassifier

from ..architectures import Tokenizer, build

peft = pytest.importorskip("peft")

# Of transformers, about what PEFT asks it.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
PROMPT = [5, 9, 33, 7, 20]
INPUTS = {"input_ids": torch.tensor([PROMPT]), "attention_mask": torch.ones(1, 5, dtype=torch.long)}
OPTIONS: dict[str, Any] = {"max_new_tokens": 6, "do_sample": False}
LEARNED = {
    "PROMPT_TUNING": peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3),
    "P_TUNING": peft.PromptEncoderConfig(task_type="CAUSAL_LM", num_virtual_tokens=3, encoder_hidden_size=16),
    "PREFIX_TUNING": peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3),
}


def learned(kind: str) -> Any:
    torch.manual_seed(0)
    return peft.get_peft_model(copy.deepcopy(build("llama")), LEARNED[kind]).eval()


@pytest.mark.parametrize(
    "guidance", [CFG(1.5), CAIF(FunctionClassifier(lambda texts: [[-1.0, -0.5]] * len(texts), ("a", "b")), "a", 2.0)]
)
def test_inputs_embeds(guidance: Any) -> None:
    model = build("llama")
    inputs = {"inputs_embeds": model.get_input_embeddings()(INPUTS["input_ids"]), "attention_mask": torch.ones(1, 5)}
    plain = model.generate(**inputs, **OPTIONS, custom_generate=guided_decoding(None))
    assert torch.equal(plain, model.generate(**inputs, **OPTIONS))
    with pytest.raises(ValueError, match=r"inputs_embeds= does not work with guided decoding.*captioning=Captioning"):
        model.generate(**inputs, **OPTIONS, custom_generate=guided_decoding(guidance, tokenizer=Tokenizer()))


@pytest.mark.filterwarnings("ignore")  # of PEFT's and transformers' own
@pytest.mark.parametrize("kind", LEARNED)
def test_learned_prompts(kind: str) -> None:
    model = learned(kind)
    plain = model.generate(**INPUTS, **OPTIONS, custom_generate=guided_decoding(None))
    assert torch.equal(plain, model.generate(**INPUTS, **OPTIONS))
    with pytest.raises(ValueError, match=f"learned tokens before every prompt.*{kind}.*LoRA"):
        model.generate(**INPUTS, **OPTIONS, custom_generate=guided_decoding(CFG(1.5)))
    with pytest.raises(ValueError, match=f"learned tokens before every prompt.*{kind}.*LoRA"):
        CFGLogitsProcessor(model, 1.5)


def lora() -> tuple[Any, Any]:
    """A model with an adapter whose weights are not 0, and the same model with them merged."""
    torch.manual_seed(0)
    config = peft.LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    model = peft.get_peft_model(copy.deepcopy(build("llama")), config).eval()
    return model, copy.deepcopy(model).merge_and_unload()


def compiled() -> tuple[Any, Any]:
    model = build("llama")
    return torch.compile(model, backend="eager"), model


@pytest.mark.parametrize("wrapped", [lora, compiled])
def test_wrapped_models(wrapped: Any) -> None:
    model, plain = wrapped()
    expected = textguide.generate(plain, Tokenizer(), [PROMPT, [4, 8]], CFG(1.5), max_new_tokens=6)
    out = textguide.generate(model, Tokenizer(), [PROMPT, [4, 8]], CFG(1.5), max_new_tokens=6)
    assert out.new_tokens == expected.new_tokens
    assert (
        out.new_tokens != textguide.generate(build("llama"), Tokenizer(), [PROMPT, [4, 8]], max_new_tokens=6).new_tokens
    )
    custom = model.generate(**INPUTS, **OPTIONS, custom_generate=guided_decoding(CFG(1.5)))
    assert custom[0, 5:].tolist() == expected.new_tokens[0]
    drop_in = model.generate(**INPUTS, **OPTIONS, logits_processor=[CFGLogitsProcessor(model, 1.5)])
    assert drop_in[0, 5:].tolist() == expected.new_tokens[0]
