"""lm-eval's requests on a vLLM engine, with an engine that only listens."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest

pytest.importorskip("lm_eval", reason="needs lm-eval: pip install 'textguide[eval]'")

from textguide.eval.lm_eval_models.vllm_lm import VLLMGuidedLM
from textguide.guidance import AWRS, CFG, DoLa, Formula
from textguide.logits_processors.vllm_plugin import engine as vllm_engine


class Engine:
    """Answers every prompt with its own letters backwards."""

    sampling_params = SimpleNamespace
    model_config = SimpleNamespace(max_model_len=40, dtype="float32")
    llm_engine = SimpleNamespace(vllm_config=SimpleNamespace(additional_config={}))

    def __init__(self):
        self.calls = []

    def get_tokenizer(self):
        return Letters()

    def textguide_generate(self, *args, **kwargs):
        return vllm_engine.generate(self, *args, **kwargs)

    def generate(self, prompts, params, use_tqdm):
        self.calls.append((prompts, params))
        rows = [prompt["prompt_token_ids"][::-1][: one.max_tokens] for prompt, one in zip(prompts, params, strict=True)]
        report = {"guided_steps": 2, "max_kl": 1.0}
        return [
            SimpleNamespace(
                prompt_token_ids=prompt["prompt_token_ids"],
                kv_transfer_params={"textguide": report},
                outputs=[
                    SimpleNamespace(
                        token_ids=row,
                        finish_reason="length",
                        logprobs=[{t: SimpleNamespace(logprob=-1.0)} for t in row],
                    )
                ],
            )
            for prompt, row in zip(prompts, rows, strict=True)
        ]


class Letters:
    pad_token_id, eos_token_id, bos_token_id, chat_template = 0, 1, None, None

    def __call__(self, text):
        return SimpleNamespace(input_ids=[ord(c) for c in text])

    def decode(self, ids, **_):
        return "".join(map(chr, ids))


@pytest.fixture
def engine():
    return Engine()


def request(context, **options):
    return SimpleNamespace(args=(context, options), task_name="task", doc_id=0)


def test_answers_are_cut_kept_and_asked_for_in_groups(engine):
    lm = VLLMGuidedLM(engine, settings=[None, CFG(2.0, "neg")])
    requests = [
        request("abc", max_gen_toks=5),
        request("xyz", max_gen_toks=5, until=["y"]),
        request("abc", max_gen_toks=5),
    ]
    assert lm.generate_until(requests, disable_tqdm=True) == ["cba", "z", "cba"]
    assert [len(prompts) for prompts, _ in engine.calls] == [2, 1]
    assert all(one.extra_args is None and one.temperature == 0.0 for _, params in engine.calls for one in params)
    lm.generate_until(requests, disable_tqdm=True)
    assert len(engine.calls) == 2  # kept
    lm.current = 1
    lm.generate_until(requests, disable_tqdm=True)
    assert json.loads(engine.calls[-1][1][0].extra_args["guidance"])[0]["scale"] == 2.0
    assert engine.calls[-1][1][0].extra_args["guidance_branch_token_ids"] == [[ord(c) for c in "neg"]]
    assert lm.effect(1).guided_steps == 6
    assert lm.effect(0) is None


def test_draws_and_long_contexts(engine):
    lm = VLLMGuidedLM(engine, guidance="cfg:scale=1.5", seed=3)
    lm.generate_until([request("a" * 100, max_gen_toks=10, do_sample=True, temperature=0.7)], disable_tqdm=True)
    prompts, params = engine.calls[0]
    assert len(prompts[0]["prompt_token_ids"]) == 30
    assert lm.truncated == 1
    assert params[0].temperature == 0.7
    assert params[0].seed is not None


def test_what_is_refused(engine):
    lm = VLLMGuidedLM(engine)
    with pytest.raises(ValueError, match="cannot score the likelihood task task"):
        lm.loglikelihood([request("a")])
    with pytest.raises(ValueError, match="leaves no room for 40 new tokens"):
        lm.generate_until([request("a", max_gen_toks=40)], disable_tqdm=True)
    with pytest.raises(ValueError, match="draws texts with weights"):
        VLLMGuidedLM(engine, guidance=AWRS("regex:a"))
    with pytest.raises(ValueError, match=r"'dola' .*; use "):
        VLLMGuidedLM(engine, guidance=DoLa())
    with pytest.raises(ValueError, match="uncond='no-instruction' is a negative prompt, which Formula"):
        VLLMGuidedLM(engine, guidance=Formula("2*cond - last"), uncond="no-instruction")
    with pytest.raises(ValueError, match="device='cpu'"):
        VLLMGuidedLM(engine, device="cpu")
    with pytest.raises(ValueError, match="uncond='no-instruction' and a negative prompt exclude each other"):
        VLLMGuidedLM(engine, guidance=CFG(2.0, "neg"), uncond="no-instruction")
