"""CAIF in every way in, against the oracle and enumeration."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest
import torch

import textguide
from textguide import CAIF, CFG, CAIFLogitsProcessor, Reward, guided_decoding
from textguide.classifiers import FunctionClassifier
from textguide.reference import decoding
from textguide.support.errors import GuidanceHadNoEffectWarning

from ..architectures import ENCODER_DECODER, NAMES, PAD, RECURRENT, VOCAB, Tokenizer, build

PROMPTS = ([5, 9, 33, 7, 20, 41, 8, 12], [11, 4, 52], [30, 31, 5, 6, 44])
NEW = 6
TOKENIZER = Tokenizer()


def tone(texts: Sequence[str]) -> torch.Tensor:
    """A text's class depends on every character and on their order."""
    scores = [sum(math.sin(3 * ord(c) + i) for i, c in enumerate(text)) for text in texts]
    return torch.nn.functional.logsigmoid(torch.tensor([[-s, s] for s in scores], dtype=torch.float32))


def length(texts: Sequence[str]) -> list[list[float]]:
    return [[math.log(x) for x in (0.2, 0.3, 0.5)][:: -1 if len(text) % 2 else 1] for text in texts]


def cheer(texts: Sequence[str]) -> list[float]:
    """A reward depends on every character and on their order."""
    return [sum(math.cos(2 * ord(c) + i) for i, c in enumerate(text)) for text in texts]


def said(guidance: Any, text: str) -> float:
    """What a guidance's scorer says of a text."""
    if isinstance(guidance, Reward):
        return cheer([text])[0]
    return float(guidance.classifier.log_prob([text])[0, guidance.classifier.index(guidance.target)])


class Spy(FunctionClassifier):
    """Remembers what it was asked."""

    def __init__(self, fn: Any = tone, labels: Sequence[str] = ("low", "high")) -> None:
        super().__init__(fn, labels, name="spy")
        self.batches: list[list[str]] = []

    def log_prob(self, texts: Sequence[str]) -> torch.Tensor:
        self.batches.append(list(texts))
        return super().log_prob(texts)


TONE = FunctionClassifier(tone, ["low", "high"])
LENGTH = FunctionClassifier(length, ["a", "b", "c"])

SETTINGS: dict[str, list[Any]] = {
    "truncated": [CAIF(TONE, "high", 2.0, top_k=7)],
    "exact-away": [CAIF(TONE, "high", -1.5, top_k=None)],
    "with-cfg": [CFG(2.0), CAIF(TONE, "low", 3.0, top_k=10)],
    "two": [CAIF(TONE, "high", 2.0, top_k=9), CAIF(LENGTH, "b", 4.0, top_k=5, include_prompt=False)],
    "reward": [Reward(cheer, 0.7, top_k=9)],
    "reward-away": [CFG(1.5), Reward(cheer, -1.0, top_k=None, schedule="linear", include_prompt=False)],
    "reward-and-classifier": [CAIF(TONE, "high", 2.0, top_k=9), Reward(cheer, 1.0, top_k=5)],
    "now-and-then": [CAIF(TONE, 1, 3.0, entropy_threshold=0.2, every=2, schedule="linear", start=0.1)],
}


def fitting(guidances: list[Any]) -> list[Any]:
    """With candidates that the tiny vocabulary has."""
    return [g if not isinstance(g, CAIF) or g.top_k != 100 else CAIF(**{**g.__dict__, "top_k": 12}) for g in guidances]


def oracle(name: str, row: int, guidances: list[Any], new: int = NEW) -> tuple[list[int], list[list[float]]]:
    model = build(name)
    cfg = next((g for g in guidances if isinstance(g, CFG)), None)
    weighing = [g for g in guidances if not isinstance(g, CFG)]
    is_encoder_decoder = name in ENCODER_DECODER
    prompt = [model.config.decoder_start_token_id] if is_encoder_decoder else list(PROMPTS[row])

    def reweigh(distribution: list[float], written: Sequence[int], index: int, s: float) -> list[float]:
        return decoding.reweighed(
            weighing, distribution, prompt, written, index, s, text_of=TOKENIZER.decode, score=said
        )

    negative = [textguide.engine.branch_inputs.empty_source(model.config)] if is_encoder_decoder else [prompt[-1:]]
    source = list(PROMPTS[row]) if is_encoder_decoder else None
    return decoding.generate(model, prompt, cfg, negative if cfg else [], new, source=source, reweigh=reweigh)


def run(name: str, guidances: Any, rows: Sequence[int] = (0, 1, 2), **options: Any) -> Any:
    options.setdefault("max_new_tokens", NEW)
    return textguide.generate(build(name), TOKENIZER, [list(PROMPTS[r]) for r in rows], guidances, **options)


# What is asked makes no difference to an architecture.
PAIRS = [(n, s) for n in NAMES for s in SETTINGS if not s.startswith("reward") or n in ("llama", "t5")]


@pytest.mark.filterwarnings("ignore::textguide.support.errors.GuidanceHadNoEffectWarning")  # a row with little entropy
@pytest.mark.parametrize(("name", "setting"), PAIRS)
def test_every_way_in_equals_the_oracle(name: str, setting: str) -> None:
    guidances = fitting(SETTINGS[setting])
    distributions: list[list[torch.Tensor]] = [[] for _ in PROMPTS]

    def keep(view: Any) -> None:
        for row, distribution in zip(view.samples, view.guided, strict=True):
            distributions[row].append(distribution)

    out = run(name, guidances, observer=keep)
    for row in range(len(PROMPTS)):
        tokens, expected = oracle(name, row, guidances)
        assert out.new_tokens[row] == tokens
        torch.testing.assert_close(
            torch.stack(distributions[row]).double(), torch.tensor(expected).double(), atol=3e-4, rtol=1e-4
        )
        assert run(name, guidances, (row,)).new_tokens[0] == tokens
    scored = textguide.score(
        build(name), TOKENIZER, [list(p) for p in PROMPTS], out.new_tokens, guidances, horizon=NEW, batch_size=2
    )
    torch.testing.assert_close(scored.log_likelihood[0], out.log_likelihood, atol=2e-3, rtol=0)
    assert scored.is_greedy.all()
    if name in RECURRENT or name in ENCODER_DECODER:
        return
    width = max(map(len, PROMPTS))
    inputs = {
        "input_ids": torch.tensor([[PAD] * (width - len(p)) + p for p in PROMPTS]),
        "attention_mask": torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in PROMPTS]),
    }
    common: dict[str, Any] = {**inputs, "max_new_tokens": NEW, "do_sample": False}
    custom = build(name).generate(**common, custom_generate=guided_decoding(guidances, tokenizer=TOKENIZER))
    assert custom[:, -NEW:].tolist() == out.sequences[:, -NEW:].tolist()
    weighing = [g for g in guidances if not isinstance(g, CFG)]
    cfgs = [g for g in guidances if isinstance(g, CFG)]
    processors: list[Any] = [textguide.CFGLogitsProcessor(build(name), guidance=g) for g in cfgs]
    processors.append(CAIFLogitsProcessor(build(name), TOKENIZER, guidance=weighing, horizon=NEW))
    for _ in range(2):
        drop_in = build(name).generate(**common, logits_processor=processors)
        assert drop_in[:, -NEW:].tolist() == out.sequences[:, -NEW:].tolist()


@pytest.mark.parametrize("weight", [1.0, 3.0, -2.0])
def test_sampled_distribution_is_the_enumerated_one(weight: float) -> None:
    model, prompt = build("llama"), list(PROMPTS[1])
    plain = decoding.next_log_probs(model, prompt)
    scores = [p + weight * float(tone([TOKENIZER.decode([*prompt, t])])[0, 1]) for t, p in enumerate(plain)]
    distribution = decoding.normalized(scores)

    def statistic(alpha: float) -> float:
        out = textguide.generate(
            model, TOKENIZER, [prompt] * 3000, CAIF(TONE, "high", alpha, top_k=None),
            max_new_tokens=1, do_sample=True, top_k=0, seed=0,
        )  # fmt: skip
        counts = Counter(row[0] for row in out.new_tokens)
        expected = [3000 * math.exp(p) for p in distribution]
        common = [t for t in range(VOCAB) if expected[t] >= 5]
        rare = [t for t in range(VOCAB) if expected[t] < 5]
        bins = [(counts[t], expected[t]) for t in common]
        bins.append((sum(counts[t] for t in rare), max(sum(expected[t] for t in rare), 1e-9)))
        return sum((seen - e) ** 2 / e for seen, e in bins) / (len(bins) - 1)

    assert statistic(weight) < 2.2  # the 99.9% quantile of χ²/df for 20 bins or more is below this
    assert statistic(weight * 0.5) > 2.2


def test_a_constant_classifier_changes_nothing() -> None:
    constant = FunctionClassifier(lambda texts: [[math.log(0.3), math.log(0.7)]] * len(texts), ["a", "b"])
    plain = run("gpt2", None)
    with pytest.warns(GuidanceHadNoEffectWarning, match="every candidate"):
        same = run("gpt2", CAIF(constant, "a", 5.0, top_k=None))
    assert same.new_tokens == plain.new_tokens
    torch.testing.assert_close(same.log_probs, plain.log_probs, atol=1e-5, rtol=1e-5)
    cut = run("gpt2", CAIF(constant, "a", 5.0, top_k=4))
    assert cut.new_tokens == plain.new_tokens
    assert (cut.log_probs > plain.log_probs).all()  # the mass of the dropped tokens is shared out


def test_weight_zero_is_bit_equal_and_never_asks() -> None:
    spy = Spy()
    plain = run("llama", None, do_sample=True, seed=1)
    zero = run("llama", CAIF(spy, "high", 0.0), do_sample=True, seed=1)
    assert torch.equal(plain.log_probs, zero.log_probs)
    assert torch.equal(plain.sequences, zero.sequences)
    beside = run("llama", [CFG(1.5), CAIF(spy, "high", 0.0)])
    assert torch.equal(beside.log_probs, run("llama", CFG(1.5)).log_probs)
    scores = textguide.score(build("llama"), TOKENIZER, [[5, 6]], [[7]], CAIF(spy, "high", 0.0))
    assert torch.equal(
        scores.log_likelihood, textguide.score(build("llama"), TOKENIZER, [[5, 6]], [[7]]).log_likelihood
    )
    processor = CAIFLogitsProcessor(build("llama"), TOKENIZER, spy, "high", 0.0)
    given = torch.randn(2, VOCAB)
    assert processor(torch.ones(2, 3, dtype=torch.long), given) is given
    assert spy.batches == []


def test_weights_of_several_add_up() -> None:
    once = run("llama", CAIF(TONE, "high", 3.0, top_k=9))
    twice = run("llama", [CAIF(TONE, "high", 1.0, top_k=9), CAIF(TONE, "high", 2.0, top_k=9)])
    assert once.new_tokens == twice.new_tokens
    torch.testing.assert_close(once.log_probs, twice.log_probs, atol=1e-5, rtol=1e-5)
    spy = Spy()
    run("llama", [CAIF(spy, "high", 1.0, top_k=9), CAIF(spy, "low", 2.0, top_k=5)], max_new_tokens=1)
    assert sum(map(len, spy.batches)) == 27  # one question for both


def test_texts_are_asked_once_and_low_entropy_rows_not_at_all() -> None:
    spy = Spy()
    out = run("llama", CAIF(spy, "high", 1.0, top_k=8), rows=(0, 0, 1), max_new_tokens=1)
    asked = [text for batch in spy.batches for text in batch]
    assert len(asked) == len(set(asked)) == 16
    assert out.effect.classified_texts == 24
    entropies: list[float] = []

    def spread(view: Any) -> None:
        entropies.extend(textguide.guidance.algebra.entropy(view.cond).tolist())

    run("llama", CFG(1.0), observer=spread, max_new_tokens=1)
    between = sorted(entropies)[1]
    spy = Spy()
    out = run("llama", CAIF(spy, "high", 1.0, top_k=8, entropy_threshold=between), max_new_tokens=1)
    assert out.effect.classified_texts == 16
    assert out.effect.reweighed_steps == 2
    assert out.effect.guided_steps == 2
    assert out.effect.unguided_steps == 1


def test_an_end_token_stands_for_the_finished_text_and_finished_rows_are_not_asked() -> None:
    spy = Spy()
    whole = run("llama", CAIF(spy, "high", 2.0, top_k=None))
    end = whole.new_tokens[0][1]
    spy = Spy()
    out = run("llama", CAIF(spy, "high", 2.0, top_k=None), eos_token_id=end)
    lengths = [len(tokens) for tokens in out.new_tokens]
    assert min(lengths) <= 2
    assert out.effect.classified_texts == sum(lengths) * VOCAB
    model = build("llama")
    from textguide.classifiers.reweighting import Reweighter

    reweighting = Reweighter([CAIF(TONE, "high", 1.0, top_k=None)], TOKENIZER, model, [2])
    reweighting.begin([[5, 6, 7]])
    distribution = torch.log_softmax(torch.zeros(1, VOCAB), -1)
    from textguide.guidance import Step

    changed, _ = reweighting(distribution, Step(), 0, [0])
    finished = tone([TOKENIZER.decode([5, 6, 7])])[0, 1]
    going_on = tone([TOKENIZER.decode([5, 6, 7, 9])])[0, 1]
    assert (changed[0, 2] - changed[0, 9]).item() == pytest.approx((finished - going_on).item(), abs=1e-5)


def test_beams_and_return_sequences() -> None:
    model, inputs = build("llama"), {"input_ids": torch.tensor([PROMPTS[0], PROMPTS[0]])}
    caif = CAIF(TONE, "high", 2.0, top_k=12)
    processor = CAIFLogitsProcessor(model, TOKENIZER, guidance=caif)
    beams = model.generate(**inputs, num_beams=3, max_new_tokens=4, do_sample=False, logits_processor=[processor])
    assert torch.equal(beams[0], beams[1])
    alone = model.generate(
        input_ids=inputs["input_ids"][:1], num_beams=3, max_new_tokens=4, do_sample=False, logits_processor=[processor]
    )
    assert torch.equal(alone[0], beams[0])
    many = run("llama", [CFG(1.5), caif], num_return_sequences=3, do_sample=True, seed=0)
    assert len(many.texts) == 9
    assert many.effect.guided_steps == 9 * NEW


@pytest.mark.parametrize(
    ("guidance", "parts"),
    [
        (CAIF(TONE, "loud", 1.0), ["'loud'", "low", "high"]),
        (CAIF("sentimental", "positive", 1.0), ["sentimental", "sentiment"]),
        (CAIF(TONE, "low", 1.0, top_k=VOCAB + 1), [f"top_k={VOCAB + 1}", str(VOCAB), "tone"]),
        (CAIF(Spy(lambda texts: [[math.nan, 0.0]] * len(texts)), "low", 1.0, top_k=5), ["spy", "NaN"]),
        (CAIF(Spy(lambda texts: [[-1.0]] * len(texts)), "low", 1.0, top_k=5), ["spy", "shape"]),
        (CAIF(Spy(lambda texts: [[-0.7, -0.7]] * (len(texts) - 1)), "low", 1.0, top_k=5), ["spy", "rows"]),
    ],
)
def test_bad_classifiers_are_named(guidance: CAIF, parts: list[str]) -> None:
    with pytest.raises(ValueError) as caught:
        run("llama", guidance)
    for part in parts:
        assert part in str(caught.value)


def test_bad_arguments_of_the_processor() -> None:
    model = build("llama")
    with pytest.raises(ValueError, match="target"):
        CAIFLogitsProcessor(model, TOKENIZER, TONE)
    with pytest.raises(ValueError, match="guidance="):
        CAIFLogitsProcessor(model, TOKENIZER, TONE, "high", guidance=CAIF(TONE, "high"))
    with pytest.raises(ValueError, match="horizon"):
        CAIFLogitsProcessor(model, TOKENIZER, TONE, "high", 1.0, schedule="linear")
    guided = guided_decoding(CAIF(TONE, "high", 1.0, top_k=5))
    with pytest.raises(ValueError, match="tokenizer"):
        model.generate(torch.tensor([[5, 6]]), max_new_tokens=2, custom_generate=guided)
