"""Models that are called in ways of their own, or whose answer changes with padding: right, or refused by name."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers as tf

import textguide
from textguide import CFG, CFGLogitsProcessor, guided_decoding
from textguide.forward.model_adapter import Padding, adapter
from textguide.guidance import DoLa, S2Guidance
from textguide.reference import decoding

from ..architectures import PAD, VOCAB, Tokenizer, build
from ..conformance import building
from ..conformance.classes import all_classes

PROMPTS = [[5, 9, 33, 7, 20, 41, 8, 12], [11, 4, 52], [30, 31, 5, 6, 44]]
NEGATIVE = [17, 18, 19, 22, 7]
IDS = {"vocab_size": VOCAB, "pad_token_id": PAD, "bos_token_id": 1, "eos_token_id": 2, "tie_word_embeddings": False}
NEW = 6


def made(model: Any, gain: float = 4.0) -> Any:
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(gain)
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = PAD
    return model.eval()


def seeded(builder: Callable[[], Any], gain: float = 4.0) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return made(builder(), gain)


def bart() -> Any:
    config = tf.BartConfig(
        d_model=32,
        decoder_layers=2,
        decoder_attention_heads=4,
        decoder_ffn_dim=48,
        encoder_layers=2,
        encoder_attention_heads=4,
        encoder_ffn_dim=48,
        max_position_embeddings=64,
        is_decoder=True,
        is_encoder_decoder=False,
        forced_eos_token_id=None,
        **IDS,
    )
    return tf.BartForCausalLM(config)


def roformer() -> Any:
    config = tf.RoFormerConfig(
        hidden_size=32,
        embedding_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=48,
        max_position_embeddings=64,
        is_decoder=True,
        **IDS,
    )
    return tf.RoFormerForCausalLM(config)


def trocr() -> Any:
    config = tf.TrOCRConfig(
        d_model=32,
        decoder_layers=2,
        decoder_attention_heads=4,
        decoder_ffn_dim=48,
        max_position_embeddings=64,
        cross_attention_hidden_size=32,
        **IDS,
    )
    return tf.TrOCRForCausalLM(config)


def phi3() -> Any:
    config = tf.Phi3Config(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        original_max_position_embeddings=16,
        rope_parameters={
            "rope_type": "longrope",
            "rope_theta": 10000.0,
            "short_factor": [1.0] * 4,
            "long_factor": [1.0, 2.0, 4.0, 8.0],
            "original_max_position_embeddings": 16,
            "factor": 4.0,
        },
        **IDS,
    )
    return tf.Phi3ForCausalLM(config)


def recurrent_gemma() -> Any:
    config = tf.RecurrentGemmaConfig(
        hidden_size=32,
        intermediate_size=96,
        num_hidden_layers=3,
        num_attention_heads=4,
        lru_width=32,
        attention_window_size=8,
        head_dim=8,
        **IDS,
    )
    return tf.RecurrentGemmaForCausalLM(config)


def bamba() -> Any:
    config = tf.BambaConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        mamba_n_heads=8,
        mamba_d_head=8,
        mamba_d_state=8,
        mamba_n_groups=1,
        mamba_chunk_size=8,
        attn_layer_indices=[1],
        max_position_embeddings=64,
        num_logits_to_keep=1,
        **IDS,
    )
    return tf.BambaForCausalLM(config)


CHANGES = {"bart": bart, "roformer": roformer, "trocr": trocr}


def together_and_alone(model: Any, guidance: Any, prompts: Any = None, **options: Any) -> None:
    """A batch of unlike lengths, each of its rows alone, and the oracle write the same."""
    prompts = PROMPTS if prompts is None else prompts
    out = textguide.generate(model, Tokenizer(), prompts, guidance, max_new_tokens=NEW, **options)
    for row, prompt in enumerate(prompts):
        alone = textguide.generate(model, Tokenizer(), [prompt], guidance, max_new_tokens=NEW, **options)
        assert out.new_tokens[row] == alone.new_tokens[0]
        negative = list(guidance.negative_prompt or prompt[-1:])
        tokens, right = decoding.generate(model, prompt, guidance, [negative], NEW)
        assert out.new_tokens[row] == tokens
        expected = torch.tensor(right)[range(NEW), tokens]
        torch.testing.assert_close(out.log_probs[row], expected.float(), atol=5e-4, rtol=1e-4)
    scored = textguide.score(model, Tokenizer(), prompts, out.new_tokens, guidance, horizon=NEW, batch_size=2)
    torch.testing.assert_close(scored.log_likelihood[0], out.log_likelihood, atol=2e-3, rtol=0)


@pytest.mark.parametrize("name", sorted(CHANGES))
@pytest.mark.parametrize("guidance", [CFG(1.5), CFG(2.0, NEGATIVE), CFG(2.5, start=0.3, stop=0.7)])
def test_rows_are_read_at_their_own_lengths_where_padding_changes_the_answer(name: str, guidance: CFG) -> None:
    model = seeded(CHANGES[name])
    assert adapter(model).padding is Padding.CHANGES
    together_and_alone(model, guidance)
    ids = torch.tensor([[PAD] * (8 - len(p)) + p for p in PROMPTS])
    common = {"input_ids": ids, "attention_mask": (ids != PAD).long(), "max_new_tokens": NEW, "do_sample": False}
    custom = model.generate(**common, custom_generate=guided_decoding(guidance))
    out = textguide.generate(model, Tokenizer(), PROMPTS, guidance, max_new_tokens=NEW)
    assert custom[:, -NEW:].tolist() == out.sequences[:, -NEW:].tolist()


def test_rows_that_move_and_leave_at_their_own_lengths() -> None:
    model = seeded(bart)
    plain = textguide.generate(model, Tokenizer(), PROMPTS, CFG(1.5), max_new_tokens=NEW)
    end = plain.new_tokens[1][2]
    out = textguide.generate(model, Tokenizer(), PROMPTS, CFG(1.5), max_new_tokens=NEW, eos_token_id=end)
    for row, tokens in enumerate(plain.new_tokens):
        assert out.new_tokens[row] == (tokens[: tokens.index(end) + 1] if end in tokens else tokens)
    fast = textguide.generate(model, Tokenizer(), PROMPTS, CFG(1.5), max_new_tokens=NEW, speculation="prompt-lookup")
    assert fast.new_tokens == plain.new_tokens


@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma3", "bloom", "opt", "t5", "bart"])
def test_models_that_padding_leaves_alone_are_found(name: str) -> None:
    assert adapter(build(name)).padding is Padding.EXACT


@pytest.mark.parametrize("name", ["mamba", "jamba"])
def test_recurrent_states_are_merged_and_never_padded(name: str) -> None:
    assert adapter(build(name)).padding is Padding.IN_CACHE


def test_half_precision_is_no_reason_to_part_rows() -> None:
    for kind in (torch.bfloat16, torch.float16):
        model = build("llama", seed=7).to(kind)
        assert adapter(model).padding is Padding.EXACT
        assert adapter(seeded(bart).to(kind)).padding is Padding.CHANGES


def test_rotary_embeddings_that_change_with_the_length() -> None:
    model = seeded(phi3)
    assert adapter(model).rotary_switch == 16
    long = [[5 + i % 40 for i in range(20)], [7 + i % 30 for i in range(25)]]
    together_and_alone(model, CFG(1.5), [*long, [11, 4, 52]])  # branches of one token beside rows beyond the switch
    together_and_alone(model, CFG(1.5), PROMPTS)
    with pytest.raises(ValueError, match=r"rotary embeddings after 16 tokens.*14 tokens with 6 new ones"):
        textguide.generate(model, Tokenizer(), [long[0][:14]], CFG(1.5), max_new_tokens=NEW)


def test_plain_runs_are_refused_if_transformers_would_read_their_text_again() -> None:
    model = seeded(phi3)
    prompt = [5 + i % 40 for i in range(14)]
    message = r"rotary embeddings after 16 tokens.*14 tokens with \d new ones"
    for guidance in (None, CFG(1.0)):
        with pytest.raises(ValueError, match=message):
            textguide.generate(model, Tokenizer(), [prompt], guidance, max_new_tokens=NEW)
        with pytest.raises(ValueError, match=message):
            model.generate(torch.tensor([prompt]), max_new_tokens=NEW, custom_generate=guided_decoding(guidance))
    plain = textguide.generate(model, Tokenizer(), [prompt], None, max_new_tokens=3).new_tokens
    assert plain == [model.generate(torch.tensor([prompt]), max_new_tokens=3)[0, 14:].tolist()]


def test_every_way_in_refuses_a_branch_that_crosses_the_switch() -> None:
    model = seeded(phi3)
    prompt, negative = [11, 4, 52], [5 + i % 40 for i in range(14)]
    guidance = CFG(1.5, negative)
    message = r"rotary embeddings after 16 tokens.*14 tokens with \d new ones"
    ids = torch.tensor([prompt])
    for extra in (
        {"custom_generate": guided_decoding(guidance)},
        {"logits_processor": [CFGLogitsProcessor(model, 1.5, negative)]},
    ):
        with pytest.raises(ValueError, match=message):
            model.generate(ids, max_new_tokens=NEW, do_sample=False, **extra)
    with pytest.raises(ValueError, match=message):
        textguide.score(model, Tokenizer(), [prompt], [[7, 8, 9, 33, 20, 41]], guidance)
    with pytest.raises(ValueError, match=message):
        textguide.score(model, Tokenizer(), [negative], [[7, 8, 9, 33]])
    # Up to the switch, all of them are exact.
    processor = CFGLogitsProcessor(model, 1.5, negative[:8])
    out = model.generate(ids, max_new_tokens=NEW, do_sample=False, logits_processor=[processor])
    tokens, _ = decoding.generate(model, prompt, CFG(1.5), [negative[:8]], NEW)
    assert out[0, 3:].tolist() == tokens


def test_state_outside_the_cache_is_refused() -> None:
    model = seeded(recurrent_gemma)
    for guidance in (CFG(1.5), CFG(1.5, NEGATIVE)):
        with pytest.raises(ValueError, match="RecurrentGemmaForCausalLM keeps state outside its cache"):
            textguide.generate(model, Tokenizer(), [NEGATIVE[::-1]], guidance, max_new_tokens=NEW)


def test_models_that_say_themselves_how_many_logits_they_keep() -> None:
    together_and_alone(seeded(bamba, 2.0), CFG(1.5))


def test_models_that_return_fewer_logits_are_read_token_by_token() -> None:
    class Short(tf.LlamaForCausalLM):  # type: ignore[misc]
        def forward(self, input_ids: Any = None, cache: Any = None, logits_to_keep: int = 0, **kwargs: Any) -> Any:
            return super().forward(input_ids, cache=cache, logits_to_keep=1, **kwargs)

    model = Short(build("llama").config).eval()
    scored = textguide.score(model, Tokenizer(), [[5, 6], [5, 6, 9, 11]], [[7, 8, 9], [7, 8]], CFG(1.5))
    for row, (prompt, text) in enumerate((([5, 6], [7, 8, 9]), ([5, 6, 9, 11], [7, 8]))):
        expected, _ = decoding.score(model, prompt, text, CFG(1.5), [prompt[-1:]])
        assert scored.log_probs[row][0].tolist() == pytest.approx(expected, abs=1e-4)


def test_scoring_keeps_no_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build("llama")
    seen: list[bool] = []
    with model.register_forward_hook(lambda _, __, out: seen.append(out.logits.requires_grad)):
        textguide.score(model, Tokenizer(), [[5, 6, 7]], [[8, 9]], CFG(1.5))
        textguide.score(model, Tokenizer(), [[5, 6, 7]], [[8, 9]])
    assert seen
    assert not any(seen)


# -- wrappers -------------------------------------------------------------------------------------------------------


def wrapped_in_lora(model: Any) -> Any:
    peft = pytest.importorskip("peft", reason="needs peft: pip install peft")
    with torch.random.fork_rng():
        torch.manual_seed(1)
        config = peft.LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj", "v_proj"], init_lora_weights=False)
        return peft.get_peft_model(model, config).eval()


def compiled(model: Any) -> Any:
    return torch.compile(model, backend="eager")


@pytest.mark.filterwarnings("ignore::FutureWarning")  # peft reads names that transformers renamed
@pytest.mark.parametrize("wrap", [wrapped_in_lora, compiled])
def test_wrapped_models(wrap: Callable[[Any], Any]) -> None:
    plain = build("llama", seed=11)
    model = wrap(plain)
    inner = adapter(model).base
    assert isinstance(inner, tf.LlamaForCausalLM)
    out = textguide.generate(model, Tokenizer(), PROMPTS, CFG(1.5), max_new_tokens=NEW)
    for row, prompt in enumerate(PROMPTS):
        assert out.new_tokens[row] == decoding.generate(inner, prompt, CFG(1.5), [prompt[-1:]], NEW)[0]
    scored = textguide.score(model, Tokenizer(), PROMPTS, out.new_tokens, CFG(1.5), horizon=NEW)
    torch.testing.assert_close(scored.log_likelihood[0], out.log_likelihood, atol=2e-3, rtol=0)
    processor = CFGLogitsProcessor(model, 1.5)
    ids = model.generate(
        input_ids=torch.tensor([PROMPTS[0]]), max_new_tokens=NEW, do_sample=False, logits_processor=[processor]
    )
    assert ids[0, -NEW:].tolist() == out.new_tokens[0]


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_prompt_tuning_is_refused() -> None:
    peft = pytest.importorskip("peft", reason="needs peft: pip install peft")
    config = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4)
    model = peft.get_peft_model(build("llama", seed=12), config)
    with pytest.raises(ValueError, match="adds learned tokens before every prompt"):
        textguide.generate(model, Tokenizer(), PROMPTS, CFG(1.5), max_new_tokens=NEW)
    with pytest.raises(ValueError, match="adds learned tokens before every prompt"):
        textguide.score(model, Tokenizer(), PROMPTS[0], [5, 6], CFG(1.5))


@pytest.mark.parametrize("guidance", [CFG(1.5), DoLa(), S2Guidance()])
def test_models_that_accelerate_offloads(guidance: Any) -> None:
    accelerate = pytest.importorskip("accelerate")
    model = build("gpt_neox", seed=13)
    expected = textguide.generate(model, Tokenizer(), PROMPTS, guidance, max_new_tokens=NEW)
    accelerate.cpu_offload(model, execution_device=torch.device("cpu"))
    out = textguide.generate(model, Tokenizer(), PROMPTS, guidance, max_new_tokens=NEW)
    assert out.new_tokens == expected.new_tokens
    accelerate.hooks.remove_hook_from_module(model, recurse=True)


def test_an_adapter_does_not_keep_its_model_alive() -> None:
    import weakref

    model = seeded(lambda: tf.GPT2LMHeadModel(tf.GPT2Config(n_embd=32, n_layer=1, n_head=4, n_positions=64, **IDS)))
    textguide.generate(model, Tokenizer(), PROMPTS, CFG(1.5), max_new_tokens=2)
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None


@pytest.mark.filterwarnings("ignore")
def test_sources_are_embedded_as_the_model_embeds_them() -> None:
    (entry,) = [one for one in all_classes() if one.name == "Florence2ForConditionalGeneration"]
    model = building.build(entry)
    ids = torch.tensor([[5, 9, 33, 7]])
    start = torch.tensor([[model.config.decoder_start_token_id]])
    with torch.no_grad():
        expected = model(input_ids=ids, decoder_input_ids=start).logits
        outputs = adapter(model).encode(ids, torch.ones_like(ids))
        found = model(encoder_outputs=outputs, attention_mask=torch.ones_like(ids), decoder_input_ids=start).logits
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
