"""lm-eval's model for masked diffusion: likelihoods, generation, sweeps, the command line."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lm_eval.api.registry import get_model

from textguide import ACFG, CFG, diffusion
from textguide.cli import main
from textguide.diffusion.samplers import EntropyBound
from textguide.eval import DiffusionLM, SweepOptions, run_sweep
from textguide.guidance import ContrastiveDecoding

from . import tiny


def request(*arguments: Any, doc: int = 0, task: str = "t") -> Any:
    return SimpleNamespace(args=arguments, doc_id=doc, task_name=task)


def lm(**options: Any) -> DiffusionLM:
    model, words = tiny.build("llada")
    return DiffusionLM(model, tokenizer=words, draws=8, **options)


def test_registered() -> None:
    assert get_model("textguide-diffusion") is DiffusionLM


def test_likelihoods_are_those_of_score_for_every_setting() -> None:
    model, words = tiny.build("llada")
    settings = [None, CFG(2.0), ACFG(2.0)]
    guided = lm(settings=settings)
    requests = [request("ab", "cde", doc=0), request("ab", "fgh", doc=0), request("k", "c", doc=1)]
    for number, setting in enumerate(settings):
        guided.current = number
        answers = guided.loglikelihood(requests, disable_tqdm=True)
        for answer, (context, target) in zip(answers, (r.args for r in requests), strict=True):
            found = diffusion.score(model, words, context, target, guidance=setting, draws=8)
            assert answer[0] == pytest.approx(float(found.log_likelihood[0]))
        out = diffusion.generate(model, words, "k", gen_length=1, guidance=setting, early_end=False, warn=False)
        assert answers[2][1] == (out.texts == ["c"])
        assert not answers[0][1]
    passes = guided.denoiser.passes
    guided.loglikelihood(requests[:2], disable_tqdm=True)
    assert guided.denoiser.passes == passes


def test_further_denoisers_by_object_and_by_name() -> None:
    model, words = tiny.build("llada")
    other = tiny.build("llada", seed=1)[0]
    guidance = ContrastiveDecoding.reward_free(0.5)
    guided = lm(guidance=guidance, models={"reference": other}, gen_length=6)
    (answer,) = guided.loglikelihood([request("ab", "cde")], disable_tqdm=True)
    options: dict[str, Any] = {"guidance": guidance, "models": {"reference": other}}
    found = diffusion.score(model, words, "ab", "cde", draws=8, **options)
    assert answer[0] == pytest.approx(float(found.log_likelihood[0]))
    (text,) = guided.generate_until([request("ab", {"until": []})], disable_tqdm=True)
    assert text == diffusion.generate(model, words, "ab", gen_length=6, **options).texts[0]
    named = DiffusionLM("sudoku4", device="cpu", models={"reference": "sudoku4"})
    assert named.models["reference"].model.config.vocab_size == named.model.config.vocab_size


def test_repeated_requests_are_drawn_one_by_one() -> None:
    drawn = lm(gen_length=6, temperature=1.0)
    requests = [request("ab", {"until": []}) for _ in range(8)]
    texts = drawn.generate_until(requests, disable_tqdm=True)
    assert len(set(texts)) > 1
    assert drawn.generate_until(requests, disable_tqdm=True) == texts
    assert lm(gen_length=6, temperature=1.0).generate_until(requests, disable_tqdm=True) == texts


def test_generation_and_stops() -> None:
    model, words = tiny.build("llada")
    guided = lm(guidance="acfg:scale=2", gen_length=6, batch_size=1)
    requests = [request("ab", {"until": []}, doc=0), request("kl", {"until": ["z"], "max_gen_toks": 4}, doc=1)]
    first, second = guided.generate_until(requests, disable_tqdm=True)
    assert first == diffusion.generate(model, words, "ab", gen_length=6, guidance=ACFG(2.0)).texts[0]
    assert second == diffusion.generate(model, words, "kl", gen_length=4, guidance=ACFG(2.0)).texts[0]
    stop = first[2]
    cut = lm(guidance=ACFG(2.0), gen_length=6).generate_until([request("ab", {"until": [stop]})], disable_tqdm=True)
    assert cut == [first.split(stop)[0]]
    effect = guided.effect(0)
    assert effect is not None
    assert effect.guided_steps > 0


@pytest.mark.parametrize("seed", [0, 7, 13])
@pytest.mark.parametrize("cache", [True, "delayed:refresh=1", diffusion.DelayedCache(refresh=2)], ids=str)
def test_keys_are_kept_while_texts_are_written(cache: Any, seed: int) -> None:
    words = tiny.tokenizer()
    torch.manual_seed(seed)
    model = tiny.LLaDAModelLM(tiny.VOCABULARY).eval()
    options: dict[str, Any] = {"gen_length": 6, "block_length": 3, "guidance": CFG(2.0), "cache": cache}
    options["sampler"] = EntropyBound(0.1)
    asked = ["ab", "kl", "abc"]
    found = DiffusionLM(model, tokenizer=words, **options).generate_until(
        [request(text, {"until": []}, doc=n) for n, text in enumerate(asked)], disable_tqdm=True
    )
    alone = diffusion.denoiser(model, words)
    assert found == [diffusion.generate(alone, words, text, **options).texts[0] for text in asked]
    plain = DiffusionLM(model, tokenizer=words, **{**options, "cache": False})
    plain.generate_until([request("ab", {"until": []})], disable_tqdm=True)
    with pytest.raises(ValueError, match="unknown"):
        DiffusionLM(model, tokenizer=words, **{**options, "cache": "yes"}).generate_until(
            [request("ab", {"until": []})], disable_tqdm=True
        )


def test_rolling() -> None:
    model, words = tiny.build("llada")
    (value,) = lm().loglikelihood_rolling([request("abc")], disable_tqdm=True)
    assert value == pytest.approx(float(diffusion.score(model, words, "", "abc", draws=8).log_likelihood[0]))


def test_bad_arguments() -> None:
    with pytest.raises(ValueError, match="uncond='no-instruction' is for models that read from left to right"):
        lm(uncond="no-instruction")
    with pytest.raises(ValueError, match="settings= excludes guidance="):
        lm(guidance=CFG(2.0), settings=[None])
    with pytest.raises(ValueError, match="block_length=4 does not divide the task's 6 tokens"):
        lm(block_length=4, gen_length=6).generate_until([request("ab", {})], disable_tqdm=True)


def test_sweep_on_sudoku(tmp_path: Path) -> None:
    settings = [None, ACFG(1.5)]
    arguments = {"backend": "diffusion", "pretrained": "sudoku4", "steps": 4, "device": "cpu"}
    options = SweepOptions(limit=8)
    result = run_sweep(["sudoku4"], settings, output=tmp_path / "run", options=options, model_args=arguments)
    assert result is not None
    found = [result.get("sudoku4", label) for label in result.labels]
    assert [f is not None and f.metrics["solved,none"].n for f in found] == [8, 8]
    assert "sudoku4" in (tmp_path / "run" / "report.md").read_text()


def test_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["eval", "--backend", "diffusion", "--model", "sudoku4", "--tasks", "sudoku4", "--limit", "3", "--json"]
    assert main([*words, "--guidance", "acfg", "--scales", "1,2", "--backend-args", "steps=4,order=margin"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert "acfg 2" in json.dumps(found)
    contrast = ["--guidance", "contrastive:alpha=0,beta=0.5,amateur=same", "--extra-model", "same=sudoku4"]
    assert main([*words, *contrast, "--backend-args", "steps=4"]) == 0
    capsys.readouterr()
    assert main([*words, "--backend-args", "steps"]) == 2
    assert "--backend-args steps: write NAME=VALUE" in capsys.readouterr().err
    assert main(["eval", "--tasks", "sudoku4", "--backend-args", "steps=4"]) == 2
    assert "needs --backend diffusion" in capsys.readouterr().err
