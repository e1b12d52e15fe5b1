"""The corrected distribution is the product over whole texts, by enumeration; guidance step by step is another
distribution."""

from __future__ import annotations

import math
import random
from collections import Counter
from typing import Any

import pytest
import torch

import textguide
from textguide import AWRS, CAIF, CFG, FeynmanKac, Guidance, guided_decoding
from textguide.constraints import Regex
from textguide.guidance import APG, ContrastiveDecoding, DynamicCFG, S2Guidance, Step
from textguide.reference import decoding
from textguide.reference import smc as oracle
from textguide.smc.constrained import Constrained
from textguide.smc.population import Corrected, Weighed
from textguide.step.guided_step import guided_log_probs

from ..architectures import Tokenizer, build
from .statistics import chi_square, z_score
from .table import Text, floats, table
from .toys import END, PIECES, VOCABULARY, Strings

SIZE = len(PIECES)
LENGTH = 3
COND, OTHER = table(3, temperature=0.9), table(11, temperature=0.6)
GUIDANCE = CFG(2.0, renormalize=False)
MEMBERS = frozenset({b"ab", b"cab", b"b", b"ca", b"ba", b"bab", b"cc"})


def combined(text: Text) -> torch.Tensor:
    return guided_log_probs(GUIDANCE, torch.stack([COND(text), OTHER(text)])[:, None], Step())[0]


def run(state: Weighed, rows: int, generator: torch.Generator, combined: Any = combined) -> list[Text]:
    """The loop around a population, on the tables."""
    texts: list[Text] = [()] * rows
    for index in range(LENGTH):
        last = index == LENGTH - 1
        alive = [row for row, opened in enumerate(state.open) if opened]
        raw = torch.stack([combined(texts[row]) for row in alive])
        normaliser = raw.double().logsumexp(-1)
        state.weigh(normaliser, alive)
        scores = torch.zeros(rows, SIZE)
        scores[alive] = raw - normaliser[:, None].to(raw.dtype)
        tokens = state.choose(scores, last)
        going = state.open
        state.advance(tokens, last)
        texts = [(*text, token) if go else text for text, token, go in zip(texts, tokens.tolist(), going, strict=True)]
        ancestors = state.resample()
        if ancestors is not None:
            texts = [texts[a] for a in ancestors.tolist()]
        if not any(state.open):
            break
    return texts


def sample(
    size: int, threshold: float = 0.5, resampling: str = "stratified", populations: int = 6000, constraint: Any = None
) -> tuple[list[Text], Any]:
    generator = torch.Generator().manual_seed(4)
    rows = populations * size
    state: Weighed
    if constraint is None:
        state = Corrected(rows, size, threshold, resampling, generator, frozenset({END}))
    else:
        guidance = FeynmanKac(size, threshold, constraint, resampling).constrained
        state = Constrained(guidance, constraint.start(VOCABULARY), VOCABULARY, rows, generator, corrects=True)
    return run(state, rows, generator), state.outcome()


def exact_samples(texts: list[Text], outcome: Any, bound: float) -> list[Text]:
    """Of every population one text by weight, kept with the mean weight over its bound as probability."""
    rng = random.Random(0)
    size = len(texts) // len(outcome.log_evidence)
    kept = []
    for number, log_evidence in enumerate(outcome.log_evidence.tolist()):
        assert log_evidence <= math.log(bound) + 1e-6
        if rng.random() < math.exp(log_evidence) / bound:
            rows = range(number * size, (number + 1) * size)
            kept.append(rng.choices([texts[r] for r in rows], [math.exp(outcome.log_weights[r]) for r in rows])[0])
    return kept


def bound() -> float:
    """The largest product of normalisers."""
    largest = 1.0
    level: list[Text] = [()]
    for _ in range(LENGTH):
        largest *= max(1.0, *(float(combined(text).logsumexp(-1).exp()) for text in level))
        level = [(*text, token) for text in level for token in range(SIZE) if token != END]
    return largest


PRODUCT, EVIDENCE = oracle.tempered(floats(COND), floats(OTHER), 2.0, END, LENGTH, SIZE)


@pytest.mark.parametrize(
    ("size", "threshold", "resampling"),
    [(1, 0.5, "stratified"), (4, 0.8, "stratified"), (4, 1.0, "systematic"), (3, 0.9, "stratified")],
)
def test_the_distribution_is_the_product(size: int, threshold: float, resampling: str) -> None:
    texts, outcome = sample(size, threshold, resampling)
    drawn = exact_samples(texts, outcome, bound())
    assert len(drawn) > 400
    assert chi_square(Counter(drawn), PRODUCT, len(drawn)) > 1e-3
    assert abs(z_score(outcome.log_evidence.exp().tolist(), EVIDENCE)) < 3.5
    assert size == 1 or outcome.resamplings > 0


def test_step_by_step_guidance_is_another_distribution_and_the_test_sees_it() -> None:
    texts, outcome = sample(1)
    assert chi_square(Counter(texts), PRODUCT, len(texts)) < 1e-6
    # It is the product of the normalised distributions that was drawn.
    local = oracle.texts(lambda text: combined(text).softmax(-1).double().tolist(), None, LENGTH, SIZE)
    ended: Counter[Text] = Counter()
    for text, p in local.items():
        ended[text[: text.index(END) + 1] if END in text else text] += p  # type: ignore[assignment]
    assert chi_square(Counter(texts), ended, len(texts)) > 1e-3
    # Resampling that forgets what it did counts weights twice.
    _, outcome = sample(4, 1.0)
    assert abs(z_score((outcome.log_evidence * 1.5).exp().tolist(), EVIDENCE)) > 5


@pytest.mark.parametrize("masks", [True, False])
@pytest.mark.parametrize("size", [1, 4])
def test_under_a_constraint_it_is_the_product_given_the_constraint(size: int, masks: bool) -> None:
    texts, outcome = sample(size, populations=4000, constraint=Strings(MEMBERS, masks))

    def fits(text: Text) -> bool:
        # With a constraint, texts have to end in time, and special tokens belong to none.
        return text[-1] == END and SIZE - 1 not in text and b"".join(PIECES[t] for t in text) in MEMBERS

    kept = {text: p for text, p in PRODUCT.items() if fits(text)}
    total = sum(kept.values())
    drawn = exact_samples(texts, outcome, bound())
    assert len(drawn) > 60
    assert chi_square(Counter(drawn), {text: p / total for text, p in kept.items()}, len(drawn)) > 1e-3
    assert abs(z_score(outcome.log_evidence.exp().tolist(), EVIDENCE * total)) < 3.5


# -- a model --------------------------------------------------------------------------------------------------------

PROMPT = [5, 9, 33, 7, 20]


def generate(guidance: Any, **options: Any) -> Any:
    options.setdefault("max_new_tokens", 6)
    return textguide.generate(build("llama"), Tokenizer(), [PROMPT], guidance, **options)


def test_weights_are_the_normalisers_of_the_steps() -> None:
    out = generate([CFG(1.5), FeynmanKac(particles=3, ess_threshold=0.0)], seed=1, temperature=1.0)
    assert out.particles == len(out.texts) == 3
    assert out.finished is not None
    assert bool(out.finished.all())
    for row, tokens in enumerate(out.new_tokens):
        weight = 0.0
        for index, token in enumerate(tokens):
            cond = decoding.next_log_probs(build("llama"), [*PROMPT, *tokens[:index]])
            other = decoding.next_log_probs(build("llama"), [PROMPT[-1], *tokens[:index]])
            mixed = [o + 1.5 * (c - o) for c, o in zip(cond, other, strict=True)]
            weight += math.log(sum(math.exp(p) for p in mixed))
            assert out.log_probs[row, index].item() == pytest.approx(decoding.normalized(mixed)[token], abs=1e-3)
        assert out.log_weights[row].item() == pytest.approx(weight, abs=1e-3)
    assert len(out.weighted_sample(seed=0)) == 1


def test_particles_are_resampled_and_the_evidence_is_right() -> None:
    model = build("llama")
    size = model.config.vocab_size

    def distribution(prompt: list[int]) -> Any:
        known: dict[Text, list[float]] = {}

        def of(text: Text) -> list[float]:
            if text not in known:
                known[text] = [math.exp(p) for p in decoding.next_log_probs(model, [*prompt, *text])]
            return known[text]

        return of

    _, evidence = oracle.tempered(distribution(PROMPT), distribution(PROMPT[-1:]), 1.5, None, 2, size)
    out = textguide.generate(
        model,
        Tokenizer(),
        [PROMPT] * 400,
        [CFG(1.5), FeynmanKac(particles=4, ess_threshold=1.0)],
        max_new_tokens=2,
        seed=0,
    )
    assert abs(z_score(out.log_evidence.exp().tolist(), evidence)) < 3.5


def test_one_particle_without_a_product_is_plain_sampling() -> None:
    plain = generate(None, seed=3, temperature=1.0, top_k=0)
    for guidance in (FeynmanKac(particles=1), [CFG(1.0), FeynmanKac(particles=1)]):
        out = generate(guidance, seed=3, temperature=1.0)
        assert out.new_tokens == plain.new_tokens
        assert torch.equal(out.log_probs, plain.log_probs)
        assert out.log_weights.tolist() == [0.0]


def test_texts_that_end_keep_their_weights() -> None:
    out = generate([CFG(1.5), FeynmanKac(particles=6)], seed=2, max_new_tokens=20, eos_token_id=list(range(3, 20)))
    assert len({len(row) for row in out.new_tokens}) > 1
    assert out.log_weights.isfinite().all()


def test_with_speculation() -> None:
    guidance = [CFG(1.5), FeynmanKac(particles=3, ess_threshold=1.0)]
    plain = generate(guidance, seed=5, temperature=0.5, max_new_tokens=15)
    out = generate(guidance, seed=5, temperature=0.5, max_new_tokens=15, speculation="recycling")
    assert out.new_tokens == plain.new_tokens
    torch.testing.assert_close(out.log_weights, plain.log_weights, atol=1e-4, rtol=1e-4)


def test_a_constraint_by_name() -> None:
    # Its letters are the tokenizer's; the constraint reads them as bytes.
    from textguide.constraints import Vocabulary

    letters = Tokenizer.letters.encode()
    rest = [b""] * (61 - 3 - len(letters))
    vocabulary = Vocabulary((b"", b"", b"", *(bytes([c]) for c in letters), *rest), frozenset({2}))
    out = generate(
        [CFG(1.5), FeynmanKac(particles=3, constraint=Regex("[abc]{2,4}"))],
        seed=0,
        vocabulary=vocabulary,
        eos_token_id=2,
    )
    assert all(set(text) <= set("abc") for text, done in zip(out.texts, out.finished, strict=True) if done)


@pytest.mark.parametrize(
    "same", [DynamicCFG(2.0, scales=[2.0], budget=1e9), APG(2.0, parallel=1.0), S2Guidance(2.0, weight=0.0)]
)
def test_rules_that_are_cfg_have_its_weights(same: Guidance) -> None:
    """A rule that normalised before it was asked for the product would give weights of 0."""
    expected, out = (
        generate([guidance, FeynmanKac(particles=3, ess_threshold=0.0)], seed=1, max_new_tokens=6)
        for guidance in (CFG(2.0), same)
    )
    assert out.new_tokens == expected.new_tokens
    assert expected.log_weights.abs().min() > 1e-2
    torch.testing.assert_close(out.log_weights, expected.log_weights, atol=1e-4, rtol=1e-4)


def test_json() -> None:
    guidance = FeynmanKac(particles=4, constraint={"kind": "regex", "pattern": "a+"})
    assert Guidance.from_json(guidance.to_json()) == guidance


@pytest.mark.parametrize(
    ("guidance", "options", "message"),
    [
        ([CFG(1.5), FeynmanKac(particles=1)], {"do_sample": False}, "do_sample=False: FeynmanKac draws"),
        (
            [ContrastiveDecoding(), FeynmanKac()],
            {"models": {"amateur": build("gpt2")}},
            "contrastive does not have an un-normalised",
        ),
        (
            [CFG(1.5), CAIF("sentiment", "positive", 1.0, top_k=8), FeynmanKac()],
            {},
            "cannot be combined with classifiers",
        ),
        ([CFG(1.5), FeynmanKac(), AWRS("regex:a+")], {}, "two guidances with a constraint"),
    ],
)
def test_what_cannot_be_combined_says_why(guidance: Any, options: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        generate(guidance, **options)


def test_custom_generate_needs_a_row_a_particle() -> None:
    way = guided_decoding([CFG(1.5), FeynmanKac(particles=3)])
    with pytest.raises(ValueError, match="multiple of particles=3"):
        build("llama").generate(torch.tensor([PROMPT]), custom_generate=way, do_sample=True, max_new_tokens=2)


@pytest.mark.parametrize("options", [{"particles": 0}, {"ess_threshold": 2}, {"resampling": "best"}], ids=str)
def test_bad_fields(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        FeynmanKac(**options)
