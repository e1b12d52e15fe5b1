"""What ``textguide.generate`` asks of a vLLM engine and makes of its answers, with an engine that only listens."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import textguide
from textguide import CFG
from textguide.logits_processors.vllm_plugin import engine, further_models, options
from textguide.logits_processors.vllm_plugin.arguments import parse
from textguide.logits_processors.vllm_plugin.requests import Limits, Request
from textguide.logits_processors.vllm_plugin.reweighting import named
from textguide.support.errors import GuidanceHadNoEffectWarning, ModelUnavailableError


class Words:
    """One token a character."""

    pad_token_id, eos_token_id, bos_token_id, chat_template = 0, 1, 2, None

    def __call__(self, text):
        return SimpleNamespace(input_ids=[ord(c) for c in text])

    def decode(self, ids, **_):
        return "".join(map(chr, ids))


class Listener:
    """Stands in for a ``vllm.LLM``; writes "a", "b", … with log-probabilities −1, −2, …"""

    sampling_params = SimpleNamespace

    def __init__(self, report, classifier=None):
        self.report = report
        extras = {} if classifier is None else {"textguide": {"classifier": classifier}}
        self.llm_engine = SimpleNamespace(vllm_config=SimpleNamespace(additional_config=extras))

    def get_tokenizer(self):
        return Words()

    def textguide_generate(self, *args, **kwargs):
        return engine.generate(self, *args, **kwargs)

    def generate(self, prompts, params, use_tqdm):
        self.prompts, self.params = prompts, params
        written = [[97 + k for k in range(n + 1)] for n in range(len(prompts))]
        return [
            SimpleNamespace(
                prompt_token_ids=prompt["prompt_token_ids"],
                kv_transfer_params={"textguide": self.report},
                outputs=[
                    SimpleNamespace(
                        token_ids=row,
                        finish_reason="stop",
                        stop_reason=None if row[-1] == 97 else "b",
                        logprobs=[{token: SimpleNamespace(logprob=-1.0 - k)} for k, token in enumerate(row)],
                    )
                ],
            )
            for prompt, row in zip(prompts, written, strict=True)
        ]


def test_an_engine_is_asked_and_its_answers_are_results():
    llm = Listener({"guided_steps": 3, "mean_kl": 0.5, "max_kl": 1.0, "top_changed": 1.0})
    out = textguide.generate(
        llm, None, ["x", "yz"], CFG(2.0, ["n", "mm"], stop=0.5), max_new_tokens=9, temperature=0.5, seed=7, stop="q"
    )
    assert [prompt["prompt_token_ids"] for prompt in llm.prompts] == [[120], [121, 122]]
    assert [params.seed for params in llm.params] == [7, 8]
    for params, negative in zip(llm.params, ((110,), (109, 109)), strict=True):
        assert (params.temperature, params.max_tokens, params.stop) == (0.5, 9, ["q"])
        assert parse(SimpleNamespace(**{**vars(params), "logprobs": None}), Limits()) == Request(
            CFG(2.0, stop=0.5), (negative,), ((1, ""),), effect=True
        )
    assert out.texts == ["a", "ab"]
    assert out.new_tokens == [[97], [97, 98]]
    assert out.finish_reasons == ["eos", "stop"]
    assert out.sequences.tolist() == [[0, 120, 97, 0], [121, 122, 97, 98]]
    assert out.log_likelihood.tolist() == [-1.0, -3.0]
    assert torch.equal(out.log_probs, torch.tensor([[-1.0, 0.0], [-1.0, -2.0]]))
    assert out.effect.guided_steps == 6


def test_the_engines_classifier_may_weigh():
    llm = Listener({"guided_steps": 3, "max_kl": 1.0}, classifier="sentiment")
    caif = textguide.CAIF("sentiment", "positive", 2.0, top_k=20)
    classifier = named("sentiment")
    for guidance, scale in ((caif, 1.0), ([CFG(2.0), caif], 2.0)):
        textguide.generate(llm, None, "x", guidance)
        limits = Limits(classifier=classifier, classifier_name="sentiment")
        asked = parse(SimpleNamespace(**{**vars(llm.params[0]), "logprobs": None}), limits)
        assert asked.guidance == (None if scale == 1.0 else CFG(scale))
        assert asked.caif == (textguide.CAIF(classifier, "positive", 2.0, top_k=20),)
        assert Request.from_dict(asked.to_dict(), classifier) == asked
    with pytest.raises(ValueError, match="another classifier"):
        textguide.generate(llm, None, "x", textguide.CAIF(textguide.classifiers.resolve("sentiment"), "positive", 2.0))
    with pytest.raises(ValueError, match="caif_weight='much'"):
        parse(
            SimpleNamespace(extra_args={"caif_target": "positive", "caif_weight": "much"}),
            Limits(classifier=classifier),
        )
    with pytest.raises(ValueError, match="caif_target='happy': 'happy' is not a class"):
        parse(SimpleNamespace(extra_args={"caif_target": "happy"}), Limits(classifier=classifier))
    for values in ({"caif_weight": "x"}, {"caif_weight": True}):
        with pytest.raises(ValueError, match=r"^caif_weight="):  # and not that there is no target
            parse(SimpleNamespace(extra_args=values), Limits(classifier=classifier))
    with pytest.raises(ValueError, match=r"^caif_target=True must be the name"):
        parse(SimpleNamespace(extra_args={"caif_target": True}), Limits(classifier=classifier))
    with pytest.raises(ValueError, match="caif_target is missing"):
        parse(SimpleNamespace(extra_args={"caif_weight": 1}), Limits(classifier=classifier))
    with pytest.raises(ValueError, match="caif_target='positive': this engine has no classifier"):
        parse(SimpleNamespace(extra_args={"caif_target": "positive"}), Limits())


def test_plain_requests_ask_for_no_guidance():
    llm = Listener({})
    textguide.generate(llm, None, "x")
    assert llm.params[0].extra_args is None
    assert llm.params[0].temperature == 0.0
    textguide.generate(llm, None, "x", CFG(1.0))
    assert llm.params[0].extra_args is None


def test_guidance_that_did_nothing_warns():
    with pytest.warns(GuidanceHadNoEffectWarning, match="changed nothing"):
        textguide.generate(Listener({"guided_steps": 3}), None, "x", CFG(2.0))


@pytest.mark.parametrize(
    ("guidance", "options", "named"),
    [
        (CFG(2.0), {"num_beams": 3}, "num_beams= has no counterpart"),
        (CFG(2.0), {"batch_size": 3}, "batch_size= has no counterpart"),
        (textguide.CAIF("sentiment", "positive", 2.0), {}, "the engine has no classifier"),
        (textguide.AWRS(textguide.constraints.Regex(r"\d")), {}, "constraints"),
    ],
)
def test_what_has_no_counterpart_is_refused(guidance, options, named):
    with pytest.raises(ValueError, match=named):
        textguide.generate(Listener({}), None, "x", guidance, **options)


def test_options_that_switch_guidance_off_are_refused():
    assert options.with_guidance({"logits_processors": ["mine"]})["logits_processors"][-1] == "mine"
    assert options.with_guidance({})["async_scheduling"] is False
    assert options.with_guidance({"async_scheduling": True})["async_scheduling"] is True
    with pytest.raises(ValueError, match="enable_dbo=True does not work with guidance: two half batches could"):
        options.with_guidance({"enable_dbo": True})


def test_models_are_found_as_load_finds_them(tmp_path, monkeypatch):
    assert further_models.resolve("gpt2") == "gpt2"
    assert further_models.resolve("owner/name") == "owner/name"
    for name, part in (
        ("smollm", "did you mean 'smollm2'"),
        ("/no", "check the path"),
    ):
        with pytest.raises(ModelUnavailableError, match=part):
            further_models.resolve(name)
    pytest.importorskip("gguf", reason="the extra gguf is not installed")
    from ...models.tiny_gguf import tiny, write

    monkeypatch.setenv("TEXTGUIDE_CACHE", str(tmp_path / "cache"))
    found = Path(further_models.resolve(str(write(tmp_path / "tiny.gguf", tiny()))))
    assert found.parent == tmp_path / "cache"
    assert (found / "config.json").is_file()
