"""The drop-in processor where transformers' own one is wrong: beams, samples, padding, speculation, reuse."""

from __future__ import annotations

import copy
import gc
from typing import Any

import pytest
import torch
from transformers import LogitsProcessor, RepetitionPenaltyLogitsProcessor

import textguide
from textguide import CFG, CFGLogitsProcessor, GuidanceLogitsProcessor, guided_decoding
from textguide.engine.model_views import part
from textguide.guidance import ContrastiveDecoding, CorrSynth, DExperts, DoLa, ExpertEnsemble, Formula
from textguide.guidance.views import EarlyExit
from textguide.reference import decoding

from ..architectures import PAD, Tokenizer, build
from ..guidance import oracles

oracles.collect()

PROMPT = [5, 9, 33, 7, 20]
NEGATIVES = ([17, 18, 19], [9, 9, 25, 7, 7, 13])
GREEDY: dict[str, Any] = {"do_sample": False, "max_new_tokens": 8}


class Recomputed(LogitsProcessor):
    """The oracle as a processor: every row's unconditional context is re-read from the start at every step."""

    def __init__(self, model: Any, scale: float, negatives: list[list[int]] | None, prompt_length: int) -> None:
        self.model, self.scale, self.negatives, self.length = model, scale, negatives, prompt_length

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        rows = []
        for number, (row, score) in enumerate(zip(input_ids.tolist(), scores, strict=True)):
            if self.negatives is None:
                negative = [row[self.length - 1]]
            else:
                negative = self.negatives[number // (len(input_ids) // len(self.negatives))]
            uncond = decoding.next_log_probs(self.model, negative + row[self.length :])
            cond = decoding.normalized(score.double().tolist())
            rows.append(decoding.cfg(CFG(self.scale), [cond, uncond], 0.0))
        return torch.tensor(rows, dtype=scores.dtype)


def padded(rows: list[list[int]]) -> dict[str, torch.Tensor]:
    width = max(map(len, rows))
    return {
        "input_ids": torch.tensor([[PAD] * (width - len(r)) + r for r in rows]),
        "attention_mask": torch.tensor([[0] * (width - len(r)) + [1] * len(r) for r in rows]),
    }


@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma3", "bloom"])
@pytest.mark.parametrize("negatives", [None, NEGATIVES[:1], NEGATIVES])
def test_beam_search_follows_reordered_rows(name: str, negatives: Any) -> None:
    model = build(name)
    inputs = padded([PROMPT, [11, 4, 52, 8, 30]])
    ids = None if negatives is None else padded(list(negatives))
    processor = CFGLogitsProcessor(
        model,
        3.0,
        None if ids is None else ids["input_ids"],
        None if ids is None else ids["attention_mask"],
    )
    oracle = Recomputed(model, 3.0, negatives and list(negatives), 5)
    options: dict[str, Any] = {**GREEDY, "num_beams": 4, "num_return_sequences": 2}
    ours = model.generate(**inputs, **options, logits_processor=[processor])
    expected = model.generate(**inputs, **options, logits_processor=[oracle])
    assert ours.tolist() == expected.tolist()
    without_reorder = model.generate(**inputs, **options, logits_processor=[_Frozen(model, 3.0, processor)])
    assert without_reorder.tolist() != expected.tolist(), "the beams never changed places: the test has no power"


class RecomputedBranches(LogitsProcessor):
    """The oracle for any guidance: every branch of every row is re-read from the start at every step."""

    def __init__(self, guidance: Any, models: list[Any], texts: list[list[list[int]]], length: int) -> None:
        self.guidance, self.models, self.texts, self.length = guidance, models, texts, length
        self.decoding: Any = None

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        rows = []
        copies = len(input_ids) // len(self.texts[0])
        for number, (row, score) in enumerate(zip(input_ids.tolist(), scores, strict=True)):
            logps = [decoding.normalized(score.double().tolist())]
            for model, texts in zip(self.models, self.texts, strict=True):
                logps.append(decoding.next_log_probs(model, texts[number // copies] + row[self.length :]))
            told = [sum(self.told(number // copies, row, n)) for n in range(len(logps))]
            rule = decoding.COMBINE[self.guidance.name]
            rows.append(rule(self.guidance, logps, 0.0, *([told] if self.guidance.reads_likelihoods else [])))
        return torch.tensor(rows, dtype=scores.dtype)

    def told(self, prompt: int, row: list[int], branch: int) -> list[float]:
        """What a branch gave to each token of a row; the decoding model reads the prompt itself."""
        if not self.guidance.reads_likelihoods:
            return []
        model = self.models[0] if branch else self.decoding
        text = self.texts[max(branch - 1, 0)][prompt]
        written = row[self.length :]
        return [decoding.next_log_probs(model, text + written[:n])[token] for n, token in enumerate(written)]


@pytest.mark.parametrize("setting", ["three-prompts", "two-models", "early-exits", "ensemble"])
def test_beam_search_under_any_guidance(setting: str) -> None:
    model, small = build("llama"), build("llama", 1)
    prompts = [PROMPT, [11, 4, 52, 8, 30]]
    guidance: Any
    if setting == "three-prompts":
        guidance = Formula("2*cond - 0.5*last - 0.7*P('hello')")
        hello = Tokenizer()("hello").input_ids
        models, texts = [model, model], [[row[-1:] for row in prompts], [hello, hello]]
    elif setting == "two-models":
        guidance = DExperts(1.5, "a", "b")
        models, texts = [small, build("llama", 2)], [prompts, prompts]
    elif setting == "ensemble":
        guidance = ExpertEnsemble("a")
        models, texts = [small], [prompts]
    else:
        guidance = DoLa(exits=(1,))
        models, texts = [part(model, EarlyExit(1))], [prompts]
    processor = GuidanceLogitsProcessor(
        model, guidance, tokenizer=Tokenizer(), models={"a": small, "b": build("llama", 2)}
    )
    oracle = RecomputedBranches(guidance, models, texts, 5)
    oracle.decoding = model
    options: dict[str, Any] = {**GREEDY, "num_beams": 4, "num_return_sequences": 2}
    ours = model.generate(**padded(prompts), **options, logits_processor=[processor])
    expected = model.generate(**padded(prompts), **options, logits_processor=[oracle])
    plain = model.generate(**padded(prompts), **options)
    assert ours.tolist() == expected.tolist() != plain.tolist()


def test_rows_that_are_held_against_each_other_keep_their_places() -> None:
    model = build("llama")
    inputs = padded([PROMPT, [11, 4, 52, 8, 30]])
    processor = GuidanceLogitsProcessor(model, CorrSynth(2.0))
    ours = model.generate(**inputs, **GREEDY, logits_processor=[processor])
    custom = model.generate(**inputs, **GREEDY, custom_generate=guided_decoding(CorrSynth(2.0)))
    assert ours.tolist() == custom.tolist()
    with pytest.raises(ValueError, match="leave num_beams out"):
        model.generate(**inputs, **GREEDY, num_beams=4, logits_processor=[processor])


def test_system_prompts_and_edits_of_chats_need_the_prompts() -> None:
    model, tokenizer = build("llama"), Tokenizer()
    chat = [{"role": "user", "content": "say it"}]
    ids = tokenizer.apply_chat_template(chat, tokenize=True, add_generation_prompt=True, return_dict=True)["input_ids"]
    guidance = CFG(2.0, negative_system="be dull")
    with pytest.raises(ValueError, match="negative_system needs the prompts"):
        model.generate(torch.tensor([ids]), **GREEDY, logits_processor=[GuidanceLogitsProcessor(model, guidance)])
    processor = GuidanceLogitsProcessor(model, guidance, tokenizer=tokenizer, prompts=[chat])
    ours = model.generate(torch.tensor([ids]), **GREEDY, logits_processor=[processor])
    expected = textguide.generate(model, tokenizer, [chat], guidance, max_new_tokens=8)
    assert ours[0, len(ids) :].tolist() == expected.new_tokens[0]


class _Frozen(CFGLogitsProcessor):
    """A wrong processor, which takes it that rows keep their places."""

    def __init__(self, model: Any, scale: float, like: CFGLogitsProcessor) -> None:
        super().__init__(model, guidance=like.guidance)

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        run = self._last
        if run is not None and run.has_read and run.ids.shape[1] < input_ids.shape[1]:
            run.ids = input_ids[:, : run.ids.shape[1]]
        return super().__call__(input_ids, scores)


@pytest.mark.parametrize("name", ["gpt2", "opt", "llama"])
def test_left_padded_negatives(name: str) -> None:
    model = build(name)
    inputs = padded([PROMPT, [11, 4, 52, 8, 30]])
    negatives = padded(list(NEGATIVES))
    processor = CFGLogitsProcessor(model, 2.0, negatives["input_ids"], negatives["attention_mask"])
    ours = model.generate(**inputs, **GREEDY, logits_processor=[processor])
    expected = model.generate(**inputs, **GREEDY, logits_processor=[Recomputed(model, 2.0, list(NEGATIVES), 5)])
    assert ours.tolist() == expected.tolist()


def test_several_samples_a_prompt() -> None:
    model = build("gpt2")
    inputs = padded([PROMPT, [11, 4, 52, 8, 30]])
    negatives = padded(list(NEGATIVES))
    options: dict[str, Any] = {"do_sample": True, "num_return_sequences": 3, "max_new_tokens": 8, "top_k": 0}
    processor = CFGLogitsProcessor(model, 2.0, negatives["input_ids"], negatives["attention_mask"])
    torch.manual_seed(0)
    ours = model.generate(**inputs, **options, logits_processor=[processor])
    torch.manual_seed(0)
    expected = model.generate(**inputs, **options, logits_processor=[Recomputed(model, 2.0, list(NEGATIVES), 5)])
    assert ours.tolist() == expected.tolist()


@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma3", "jamba"])
def test_prompt_lookup_takes_tokens_back(name: str) -> None:
    if name == "jamba":
        with pytest.raises(ValueError, match="assisted generation"):
            build(name).generate(**padded([PROMPT]), **GREEDY, prompt_lookup_num_tokens=2)
        return
    model = build(name)
    prompt = [5, 9, 33, 5, 9, 33, 5, 9]
    plain = model.generate(**padded([prompt]), **GREEDY, logits_processor=[CFGLogitsProcessor(model, 2.0)])
    ours = model.generate(
        **padded([prompt]),
        **GREEDY,
        logits_processor=[CFGLogitsProcessor(model, 2.0)],
        prompt_lookup_num_tokens=3,
    )
    assert ours.tolist() == plain.tolist()


def test_sums_over_a_text_follow_tokens_that_are_taken_back() -> None:
    model, small = build("llama"), build("llama", 1)
    prompt = [5, 9, 33, 5, 9, 33, 5, 9]

    def write(**options: Any) -> Any:
        ensemble = GuidanceLogitsProcessor(model, ExpertEnsemble("a"), models={"a": small})
        return model.generate(**padded([prompt]), **GREEDY, logits_processor=[ensemble], **options).tolist()

    expected = textguide.generate(
        model, Tokenizer(), [prompt], ExpertEnsemble("a"), models={"a": small}, max_new_tokens=8
    )
    assert write() == write(prompt_lookup_num_tokens=3) == [prompt + expected.new_tokens[0]]
    by_hand = GuidanceLogitsProcessor(model, ExpertEnsemble("a"), models={"a": small})
    by_hand(torch.tensor([prompt]), torch.zeros(1, 61))
    run = by_hand._last
    assert run is not None
    with pytest.raises(ValueError, match="2 tokens of it were written or removed in one step"):
        run.step(torch.tensor([[*prompt, 3, 4]]), None)


def test_assisted_decoding_keeps_the_runs_of_both_models_apart() -> None:
    model, assistant = build("llama"), build("llama", seed=1)
    plain = model.generate(**padded([PROMPT]), **GREEDY, logits_processor=[CFGLogitsProcessor(model, 2.0)])
    processor = CFGLogitsProcessor(model, 2.0)
    ours = model.generate(**padded([PROMPT]), **GREEDY, logits_processor=[processor], assistant_model=assistant)
    assert ours.tolist() == plain.tolist()


def test_second_run_that_continues_the_first_ones_text() -> None:
    # The ids of such a run look just like the next step of the first; its unconditional context is another one.
    model = build("gpt2")
    shared = CFGLogitsProcessor(model, 3.0)
    ids = torch.tensor([PROMPT])
    for _ in range(6):
        fresh = CFGLogitsProcessor(model, 3.0)
        options: dict[str, Any] = {
            "do_sample": False,
            "max_new_tokens": 1,
            "attention_mask": torch.ones_like(ids),
        }
        ours = model.generate(ids, **options, logits_processor=[shared])
        expected = model.generate(ids, **options, logits_processor=[fresh])
        assert ours.tolist() == expected.tolist()
        ids = ours


def test_finished_runs_are_forgotten() -> None:
    model = build("gpt2")
    processor = CFGLogitsProcessor(model, 2.0)
    for _ in range(3):
        model.generate(**padded([PROMPT]), **GREEDY, logits_processor=[processor])
    gc.collect()
    assert not processor._runs


def test_called_by_hand() -> None:
    model = build("gpt2")
    processor = CFGLogitsProcessor(model, 2.0)
    ids = torch.tensor([PROMPT])
    oracle = Recomputed(model, 2.0, None, len(PROMPT))
    for token in (8, 30, 31):
        scores = model(ids).logits[:, -1].detach()
        torch.testing.assert_close(processor(ids, scores), oracle(ids, scores), atol=1e-4, rtol=0)
        ids = torch.cat([ids, torch.tensor([[token]])], dim=1)


def test_forbidden_tokens_stay_forbidden() -> None:
    model = build("gpt2")
    processor = CFGLogitsProcessor(model, 2.0)
    scores = torch.randn(1, 61)
    scores[0, :7] = float("-inf")
    model.lm_head.register_forward_hook(hook := _ForbidInOutput(slice(5, 10)))
    try:
        with torch.no_grad():
            out = processor(torch.tensor([PROMPT]), scores)
    finally:
        hook.active = False
        model.lm_head._forward_hooks.clear()
    assert torch.isneginf(out[0, :7]).all()
    assert torch.isfinite(out[0, 7:]).all()
    assert out.exp().sum() == pytest.approx(1.0, abs=1e-5)


class _ForbidInOutput:
    def __init__(self, tokens: slice) -> None:
        self.tokens, self.active = tokens, True

    def __call__(self, _: Any, __: Any, output: torch.Tensor) -> torch.Tensor:
        if self.active:
            output[..., self.tokens] = float("-inf")
        return output


def test_half_precision_is_combined_in_float32() -> None:
    model = build("gpt2")
    ids = torch.tensor([PROMPT])
    scores = model(ids).logits[:, -1].detach().half()
    out = CFGLogitsProcessor(model, 2.0)(ids, scores)
    expected = CFGLogitsProcessor(model, 2.0)(ids, scores.float())
    assert out.dtype == torch.float16
    assert torch.equal(out, expected.half())


def test_effect_is_reported() -> None:
    model = build("llama")
    processor = CFGLogitsProcessor(model, 2.0)
    assert processor.effect.guided_steps == 0
    model.generate(**padded([PROMPT]), **GREEDY, logits_processor=[processor])
    assert processor.effect.guided_steps == 8
    assert processor.effect.mean_kl > 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scale": float("nan")}, "scale=nan"),
        ({"scale": 1.5, "guidance": CFG(1.5)}, "pass one or the other"),
        ({"guidance": CFG(1.5, schedule="linear")}, "horizon="),
        ({"guidance": CFG(1.5, negative_system="x")}, "negative_system needs the prompts"),
        ({"guidance": "eager"}, "forks texts, and a logits processor only receives scores and cannot add rows; use"),
        ({"guidance": "beta-cfg"}, "horizon="),
        ({"negative_prompt_ids": [[]]}, "has an empty row"),
        ({"negative_prompt_ids": "bad idea"}, "needs a tokenizer"),
        (
            {
                "negative_prompt_ids": torch.tensor([[1, 2]]),
                "negative_prompt_attention_mask": torch.tensor([[1]]),
            },
            "shape of negative_prompt_ids",
        ),
    ],
)
def test_bad_arguments(options: dict[str, Any], message: str) -> None:
    model = build("gpt2")
    with pytest.raises(ValueError, match=message):
        CFGLogitsProcessor(model, **options)(torch.tensor([PROMPT]), torch.randn(1, 61))


def test_negatives_that_do_not_fit_the_batch() -> None:
    model = build("gpt2")
    processor = CFGLogitsProcessor(model, 2.0, [[1, 2], [3, 4]])
    with pytest.raises(ValueError, match=r"negative_prompt_ids has 2 rows and the batch has 3"):
        processor(torch.tensor([PROMPT] * 3), torch.randn(3, 61))


def test_models_with_different_vocabularies() -> None:
    with pytest.raises(ValueError, match="61 tokens in its vocabulary and the decoding model 70"):
        CFGLogitsProcessor(build("gpt2"), 2.0)(torch.tensor([PROMPT]), torch.randn(1, 70))


def test_a_begin_token_that_also_pads_is_read() -> None:
    model = copy.deepcopy(build("llama", seed=2))
    model.generation_config.pad_token_id = model.generation_config.bos_token_id = 1
    amateur = build("llama", seed=3)
    guidance = ContrastiveDecoding(alpha=0.0, beta=1.0)
    prompts = [[1, *PROMPT], [1, 4, 8]]
    ids = torch.tensor([prompts[0], [1, 1, 1, *prompts[1]]])
    mask = torch.tensor([[1] * 6, [0] * 3 + [1] * 3])
    processor = GuidanceLogitsProcessor(model, guidance, models={"amateur": amateur})
    out = model.generate(ids, attention_mask=mask, **GREEDY, logits_processor=[processor])
    expected = textguide.generate(model, Tokenizer(), prompts, guidance, max_new_tokens=8, models={"amateur": amateur})
    assert out[:, 6:].tolist() == expected.new_tokens
    # Without `generate` there is no mask.
    with torch.no_grad():
        scores = model(ids).logits[:, -1]
        processor.reset()
        with pytest.raises(ValueError, match=r"input_ids\[0\] begins with token 1, which pads.*attention_mask="):
            processor(torch.tensor([prompts[0], [7, 1, 1, *prompts[1]]]), scores)
        processor.reset()
        one = processor(ids[:1], scores[:1])
        cond, other = model(ids[:1]).logits[:, -1], amateur(ids[:1]).logits[:, -1]
    right = torch.log_softmax(2 * cond.log_softmax(-1) - other.log_softmax(-1), -1)
    torch.testing.assert_close(one.log_softmax(-1), right, atol=1e-4, rtol=0)


def test_transformers_does_not_guide_the_same_scores() -> None:
    model = build("llama")
    with pytest.raises(ValueError, match=r"guidance_scale=2.0 of transformers.*apply twice; leave guidance_scale= out"):
        model.generate(**padded([PROMPT]), **GREEDY, guidance_scale=2.0, logits_processor=[CFGLogitsProcessor(model)])


@pytest.mark.parametrize("negative", [None, NEGATIVES[0]])
@pytest.mark.parametrize("do_sample", [False, True])
def test_a_penalty_after_it_in_the_list_acts_as_in_transformers(negative: list[int] | None, do_sample: bool) -> None:
    model = build("llama")
    inputs = padded([PROMPT, [11, 4, 52]])
    common = {"max_new_tokens": 16, "do_sample": do_sample}
    negatives = {} if negative is None else {"negative_prompt_ids": torch.tensor([negative] * 2)}
    torch.manual_seed(3)
    theirs = model.generate(**inputs, **common, **negatives, guidance_scale=3.0, repetition_penalty=1.2)
    ours = CFGLogitsProcessor(model, guidance=CFG(3.0, negative, renormalize=False))
    penalty = RepetitionPenaltyLogitsProcessor(1.2, prompt_ignore_length=torch.tensor([0, 2]))
    torch.manual_seed(3)
    assert model.generate(**inputs, **common, logits_processor=[ours, penalty]).tolist() == theirs.tolist()
