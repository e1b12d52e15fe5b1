"""lm-eval's model under guidance: equal to lm-eval at γ = 1, to the oracle elsewhere."""

from __future__ import annotations

import shutil
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("lm_eval", reason="the extra eval is not installed")

from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM

import textguide
from tests.marks import NEEDS_SMOLLM2
from textguide import CAIF, CFG, Guidance, cli
from textguide.eval import GuidedLM
from textguide.guidance import ContrastiveDecoding, as_guidance
from textguide.reference import decoding
from textguide.support.errors import ModelUnavailableError, UnknownModelError

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")

PAIRS = [
    ("The cat sat on the", " mat"),
    ("The cat sat on the", " red chair"),
    ("A", " b"),
    ("", "nothing before this"),
    ("Trailing space ", "here"),
    ("Question: what is it?\nAnswer:", " a dragon"),
]


def requests(pairs: list[tuple[str, str]]) -> list[Any]:
    return [Instance("loglikelihood", {}, pair, n, ("task", n, 1)) for n, pair in enumerate(pairs)]


def guided(folder: str, **options: Any) -> GuidedLM:
    return GuidedLM(pretrained=folder, batch_size=3, device="cpu", dtype="float32", **options)


@pytest.fixture(scope="module")
def plain(tiny_model: str) -> HFLM:
    return HFLM(pretrained=tiny_model, batch_size=3, device="cpu", dtype="float32")


def test_scale_one_equals_lm_eval(tiny_model: str, plain: HFLM) -> None:
    expected = plain.loglikelihood(requests(PAIRS), disable_tqdm=True)
    for options in ({}, {"scale": 1.0}, {"settings": [CFG(2.0), None, CFG(1.0)]}):
        lm = guided(tiny_model, **options)
        for number, setting in enumerate(lm.settings):
            if setting == CFG(2.0):
                continue
            lm.current = number
            ours = lm.loglikelihood(requests(PAIRS), disable_tqdm=True)
            for (value, greedy), (other, other_greedy) in zip(ours, expected, strict=True):
                assert value == pytest.approx(other, abs=1e-4)
                assert greedy == other_greedy


def test_guided_equals_the_oracle(tiny_model: str, plain: HFLM) -> None:
    scales = [1.5, 0.5, 3.0]
    lm = guided(tiny_model, settings=[CFG(scale) for scale in scales])
    for lm.current, scale in enumerate(scales):
        ours = lm.loglikelihood(requests(PAIRS), disable_tqdm=True)
        for (context, continuation), (value, greedy) in zip(PAIRS, ours, strict=True):
            if context:
                prompt, target = plain._encode_pair(context, continuation)
            else:
                prompt, target = [plain.prefix_token_id], plain.tok_encode(continuation)
            expected, top = decoding.score(plain.model, prompt, target, CFG(scale), [prompt[-1:]])
            assert value == pytest.approx(sum(expected), abs=1e-3)
            assert greedy == top


def test_paper_mode(tiny_model: str, plain: HFLM) -> None:
    lm = guided(tiny_model, scale=1.5, renormalize=False)
    ours = lm.loglikelihood(requests(PAIRS[:1]), disable_tqdm=True)[0][0]
    prompt, target = plain._encode_pair(*PAIRS[0])
    cond, _ = decoding.score(plain.model, prompt, target, None, [])
    uncond, _ = decoding.score(plain.model, prompt[-1:], target, None, [])
    assert ours == pytest.approx(1.5 * sum(cond) - 0.5 * sum(uncond), abs=1e-3)


def test_sweep_runs_the_model_once_and_equals_separate_runs(tiny_model: str) -> None:
    settings: list[Guidance | None] = [None, CFG(1.25), CFG(2.0), CFG(1.5, negative_prompt="A dog stood by the")]
    lm = guided(tiny_model, settings=settings)
    calls = []
    lm.model.register_forward_pre_hook(lambda *_: calls.append(1))
    answers = []
    for lm.current in range(len(settings)):
        answers.append(lm.loglikelihood(requests(PAIRS), disable_tqdm=True))
        if lm.current == 0:
            first = len(calls)
    assert len(calls) == first
    for setting, together in zip(settings, answers, strict=True):
        alone = guided(tiny_model, settings=[setting]).loglikelihood(requests(PAIRS), disable_tqdm=True)
        assert alone == together
    assert answers[1] != answers[2] != answers[3]


def test_rolling_likelihood(tiny_model: str, plain: HFLM) -> None:
    texts = ["A short text.", "A longer text that has to be read in two windows. " * 8]
    asked = [Instance("loglikelihood_rolling", {}, (text,), n, ("t", n, 1)) for n, text in enumerate(texts)]
    expected = plain.loglikelihood_rolling(asked, disable_tqdm=True)
    assert guided(tiny_model).loglikelihood_rolling(asked, disable_tqdm=True) == pytest.approx(expected, abs=1e-2)
    moved = guided(tiny_model, scale=1.5, negative_prompt="x").loglikelihood_rolling(asked, disable_tqdm=True)
    assert all(abs(a - b) > 0.1 for a, b in zip(moved, expected, strict=True))


def generation(contexts: list[str], **options: Any) -> list[Any]:
    options = {"until": ["\n"], "max_gen_toks": 12, **options}
    return [Instance("generate_until", {}, (text, options), n, ("t", n, 1)) for n, text in enumerate(contexts)]


CONTEXTS = ["The cat sat on the", "A", "Question: what is it?\nAnswer:"]


def test_generation_equals_lm_eval_when_plain_and_the_oracle_when_guided(tiny_model: str, plain: HFLM) -> None:
    asked = generation(CONTEXTS)
    expected = plain.generate_until(asked, disable_tqdm=True)
    assert guided(tiny_model).generate_until(asked, disable_tqdm=True) == expected
    lm = guided(tiny_model, scale=2.5)
    ours = lm.generate_until(asked, disable_tqdm=True)
    assert ours != expected
    for context, text in zip(CONTEXTS, ours, strict=True):
        prompt = plain.tok_encode(context)
        written, _ = decoding.generate(plain.model, prompt, CFG(2.5), [prompt[-1:]], 12, end=2)
        assert text == plain.tok_decode(written).split("\n")[0]
    effect = lm.effect(0)
    assert effect is not None
    assert effect.guided_steps > 0


def test_sampled_generations_are_reproducible_and_repeats_differ(tiny_model: str) -> None:
    asked = [request for request in generation(CONTEXTS[:1], do_sample=True, temperature=1.0) for _ in range(4)]
    first = guided(tiny_model, scale=1.5).generate_until(asked, disable_tqdm=True)
    assert guided(tiny_model, scale=1.5).generate_until(asked, disable_tqdm=True) == first
    assert guided(tiny_model, scale=1.5, seed=1).generate_until(asked, disable_tqdm=True) != first
    assert len(set(first)) > 1


def test_further_models_stand_beside_the_one_that_is_scored(tiny_model: str, plain: HFLM) -> None:
    settings = [None, CFG(1.5), ContrastiveDecoding(beta=0.5, alpha=0.0)]
    with pytest.raises(ValueError, match="amateur"):
        guided(tiny_model, settings=settings).loglikelihood(requests(PAIRS), disable_tqdm=True)
    lm = guided(tiny_model, settings=settings, models={"amateur": tiny_model})
    lm.current = 2
    head = lm.models["amateur"].lm_head.weight.data
    head.copy_(head.roll(1, 0))
    ours = lm.loglikelihood(requests(PAIRS), disable_tqdm=True)
    for (context, continuation), (value, _) in zip(PAIRS, ours, strict=True):
        prompt, target = plain._encode_pair(context, continuation) if context else ([1], plain.tok_encode(continuation))
        scored = textguide.score(lm.model, lm.tokenizer, [prompt], [target], settings[2], models=lm.models)
        assert value == pytest.approx(float(scored.log_likelihood), abs=1e-3)
    texts = lm.generate_until(generation(CONTEXTS), disable_tqdm=True)
    lm.current = 0
    assert texts != lm.generate_until(generation(CONTEXTS), disable_tqdm=True)


def test_lm_evals_answer_cache_keeps_settings_apart(tiny_model: str, tmp_path: Path) -> None:
    pytest.importorskip("sqlitedict")
    from lm_eval.api.model import CachingLM

    database = str(tmp_path / "answers.db")
    fresh = {scale: guided(tiny_model, scale=scale).loglikelihood(requests(PAIRS[:2])) for scale in (1.5, 3.0)}
    for scale in (1.5, 3.0, 1.5):
        cached = CachingLM(guided(tiny_model, scale=scale), database)
        assert [tuple(a) for a in cached.loglikelihood(requests(PAIRS[:2]))] == fresh[scale]
        cached.dbdict.close()
    # The third round above was answered from the database: its model is not asked again.
    cached = CachingLM(lm := guided(tiny_model, scale=1.5), database)
    lm.model.register_forward_pre_hook(lambda *_: pytest.fail("the cache was not used"))
    cached.loglikelihood(requests(PAIRS[:2]))
    cached.dbdict.close()


def test_batch_size_auto(tiny_model: str, plain: HFLM) -> None:
    lm = GuidedLM(pretrained=tiny_model, batch_size="auto", device="cpu", dtype="float32", scale=2.0)
    fixed = guided(tiny_model, scale=2.0)
    ours = lm.loglikelihood(requests(PAIRS), disable_tqdm=True)
    for (a, _), (b, _) in zip(ours, fixed.loglikelihood(requests(PAIRS), disable_tqdm=True), strict=True):
        assert a == pytest.approx(b, abs=1e-4)
    assert lm.generate_until(generation(CONTEXTS)) == fixed.generate_until(generation(CONTEXTS))


def test_long_contexts_are_cut_from_the_left_and_counted(tiny_model: str, plain: HFLM) -> None:
    long = [("word " * 100 + "end", " of it"), PAIRS[0]]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = plain.loglikelihood(requests(long), disable_tqdm=True)
    lm = guided(tiny_model, scale=1.0)
    ours = lm.loglikelihood(requests(long), disable_tqdm=True)
    assert [a for a, _ in ours] == pytest.approx([a for a, _ in expected], abs=1e-4)
    assert lm.truncated == 1
    with pytest.raises(ValueError, match=r"continuation of 300 tokens does not fit the model's 256 positions"):
        lm.loglikelihood(requests([("a", "x" * 300)]), disable_tqdm=True)


def test_encoder_decoder(tiny_encoder_decoder: str) -> None:
    plain = HFLM(pretrained=tiny_encoder_decoder, batch_size=2, device="cpu", dtype="float32")
    expected = plain.loglikelihood(requests(PAIRS[:3]), disable_tqdm=True)
    same = guided(tiny_encoder_decoder).loglikelihood(requests(PAIRS[:3]), disable_tqdm=True)
    assert [a for a, _ in same] == pytest.approx([a for a, _ in expected], abs=1e-3)
    lm = guided(tiny_encoder_decoder, scale=2.0)
    for (context, continuation), (value, _) in zip(PAIRS[:3], lm.loglikelihood(requests(PAIRS[:3])), strict=True):
        source, target = plain._encode_pair(context, continuation)
        log_probs, _ = decoding.score(plain.model, [0], target, CFG(2.0), [[2]], source=source)
        assert value == pytest.approx(sum(log_probs), abs=1e-3)


def test_registered_in_lm_eval(tiny_model: str) -> None:
    from lm_eval.api.registry import get_model

    lm = get_model("textguide").create_from_arg_string(
        f"pretrained={tiny_model},scale=1.5,dtype=float32", {"device": "cpu", "batch_size": 2}
    )
    assert isinstance(lm, GuidedLM)
    assert lm.setting == CFG(1.5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"guidance": "cgf:scale=2"}, "'cgf' is unknown; did you mean cfg"),
        ({"guidance": "cfg:scal=2"}, "'scal' is not a field of cfg; did you mean scale"),
        ({"guidance": "cfg:scale"}, "write scale=VALUE"),
        ({"guidance": 3}, "guidance=3 is not a guidance"),
        ({"guidance": "cfg", "scale": 2.0}, "exclude each other"),
        ({"settings": []}, "settings is empty"),
        ({"settings": [None], "scale": 2.0}, "excludes guidance="),
        ({"uncond": "nothing"}, "uncond='nothing' is unknown"),
        ({"uncond": "no-instruction", "negative_prompt": "x"}, "exclude each other"),
        ({"scale": float("inf")}, "scale=inf"),
    ],
)
def test_bad_arguments(tiny_model: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        guided(tiny_model, **options)


@pytest.mark.parametrize(
    ("name", "options", "kind", "message"),
    [
        ("tiny", {"dtype": "f16"}, ValueError, "dtype='f16' is not a floating-point type"),
        ("tiny", {"dtype": "int8"}, ValueError, "dtype='int8' is not a floating-point type"),
        ("tiny", {"device": "tpu"}, ValueError, "device='tpu' is not a torch device"),
        ("/nonexistent", {}, UnknownModelError, "model '/nonexistent' looks like a folder that does not exist"),
        ("smollm", {}, UnknownModelError, "did you mean 'smollm2'"),
        ("nothing.gguf", {}, UnknownModelError, "there is no file nothing.gguf"),
        ("nobody/has-this-model", {}, ModelUnavailableError, "the hub cannot be reached"),
    ],
)
def test_models_are_checked_as_load_checks_them(
    tiny_model: str, name: str, options: dict[str, Any], kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind, match=message) as caught:
        GuidedLM(pretrained=tiny_model if name == "tiny" else name, **{"device": "cpu", **options})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", [pytest.param("smollm2-small", marks=NEEDS_SMOLLM2)])
def test_a_small_model_by_name(name: str) -> None:
    model, tokenizer = textguide.load(name, device="cpu")
    lm = GuidedLM(pretrained=name, device="cpu", batch_size=2, scale=1.5)
    ours = lm.loglikelihood(requests([("The cat sat on the", " mat")]), disable_tqdm=True)[0][0]
    expected = textguide.score(model, tokenizer, "The cat sat on the", " mat", CFG(1.5)).log_likelihood
    assert ours == pytest.approx(float(expected[0, 0]), abs=1e-3)


def test_a_damaged_model_is_named(tiny_model: str, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_model, tmp_path / "damaged"))
    for file, content in (("tokenizer.json", b"not json"), ("model.safetensors", b"short")):
        (folder / file).write_bytes(content)
        with pytest.raises(ModelUnavailableError, match="could not be read") as caught:
            GuidedLM(pretrained=str(folder), device="cpu")
        assert str(folder) in str(caught.value)


def test_a_gguf_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("gguf", reason="the extra gguf is not installed")
    from tests.models.tiny_gguf import tiny, write

    monkeypatch.setenv("TEXTGUIDE_CACHE", str(tmp_path / "cache"))
    path = str(write(tmp_path / "tiny.gguf", tiny()))
    model, tokenizer = textguide.load(path, device="cpu")
    ours = GuidedLM(pretrained=path, device="cpu", scale=1.5).loglikelihood(
        requests([("ab", " ab")]), disable_tqdm=True
    )
    expected = textguide.score(model, tokenizer, "ab", [tokenizer(" ab").input_ids[1:]], CFG(1.5))
    assert ours[0][0] == pytest.approx(float(expected.log_likelihood[0, 0]), abs=1e-3)
    assert GuidedLM(pretrained=path, device="cpu", dtype="bfloat16").model.dtype == torch.bfloat16


@pytest.mark.parametrize(
    "arguments",
    [["--dtype", "f16"], ["--device", "tpu"], ["--model", "/nonexistent"], ["--model", "smolm2"]],
)
def test_the_command_says_it_in_a_line(
    arguments: list[str], tiny_model: str, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)
    asked = ["eval", "--tasks", "sudoku4", "--limit", "1", "--model", tiny_model, "--device", "cpu", *arguments]
    capfd.readouterr()
    assert cli.main(asked) == 2
    captured = capfd.readouterr()
    (line,) = captured.err.splitlines()
    assert line.startswith("textguide eval: ")
    assert arguments[1] in line


def test_classifiers_guide_likelihoods_and_generations(tiny_model: str, plain: HFLM) -> None:
    settings: list[Any] = [None, [CFG(1.5), CAIF("sentiment", "positive", 4.0, top_k=None)], "cgf"]
    with pytest.raises(ValueError, match="'cgf'"):
        guided(tiny_model, settings=settings)
    lm = guided(tiny_model, settings=settings[:2])
    answers = []
    for lm.current in range(2):
        answers.append([value for value, _ in lm.loglikelihood(requests(PAIRS[:2]), disable_tqdm=True)])
    for (context, continuation), value in zip(PAIRS[:2], answers[1], strict=True):
        prompt, target = plain._encode_pair(context, continuation)
        scored = textguide.score(lm.model, lm.tokenizer, [prompt], [target], settings[1])
        assert value == pytest.approx(float(scored.log_likelihood), abs=1e-3)
    assert answers[0] != answers[1]
    lm.current = 1
    texts = lm.generate_until(generation(CONTEXTS[:2]), disable_tqdm=True)
    lm.current = 0
    assert texts != lm.generate_until(generation(CONTEXTS[:2]), disable_tqdm=True)
    assert lm.effect(1).reweighed_steps > 0  # type: ignore[union-attr]
    named = guided(tiny_model, guidance="cfg:scale=1.5 + caif:classifier=sentiment,target=positive,weight=4,top_k=null")
    assert named.settings == [as_guidance(settings[1])]
