"""Speculation writes what decoding without it writes: the same tokens, or the same distribution."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest
import torch

import textguide
from textguide import AWRS, CFG, Speculation, guided_decoding
from textguide.engine.speculation.drafts import Drafter
from textguide.engine.speculation.passes import SpeculativePasses
from textguide.reference import decoding
from textguide.reference import smc as oracle

from ...architectures import ENCODER_DECODER, NAMES, VOCAB, Tokenizer, build
from ...smc.statistics import chi_square
from ...smc.table import floats, table
from ...smc.toys import VOCABULARY

PROMPTS = ([5, 9, 33, 7, 20, 41, 8, 12], [11, 4, 52], [30, 31, 5, 6, 44])
CANNOT = {"mamba", "jamba"}
CAN = [name for name in NAMES if name not in CANNOT]
DRAFTS = ("prompt-lookup", "recycling", "both")
NEW = 30


def run(name: str, guidance: Any, prompts: Any = PROMPTS, **options: Any) -> Any:
    options.setdefault("max_new_tokens", NEW)
    return textguide.generate(build(name), Tokenizer(), [list(p) for p in prompts], guidance, **options)


def same(name: str, guidance: Any, prompts: Any = PROMPTS, draft: Any = "both", **options: Any) -> Any:
    """Runs with and without speculation, which have to agree; the one with it."""
    plain = run(name, guidance, prompts, **options)
    out = run(name, guidance, prompts, speculation=draft, **options)
    assert out.new_tokens == plain.new_tokens
    assert out.sequences.tolist() == plain.sequences.tolist()
    torch.testing.assert_close(out.log_probs, plain.log_probs, atol=1e-4, rtol=1e-5)
    assert out.effect.guided_steps == plain.effect.guided_steps
    assert out.effect.mean_kl == pytest.approx(plain.effect.mean_kl, abs=1e-4)
    assert plain.speculation is None
    report = out.speculation
    assert len(prompts) > 1 or report.steps == report.passes + report.accepted
    return out


@pytest.mark.parametrize("draft", DRAFTS)
@pytest.mark.parametrize("name", CAN)
def test_greedy_output_is_identical(name: str, draft: str) -> None:
    for guidance in (None, CFG(1.5), CFG(3.0, schedule="linear", start=0.2, stop=0.8)):
        spared = 0
        for prompts in (PROMPTS, PROMPTS[:1]):
            report = same(name, guidance, prompts, draft).speculation
            spared += report.accepted
            assert report.passes <= report.steps
        assert spared > 0 or name in {"gpt2", "opt", "bart", "gemma3"}


def foresee(monkeypatch: pytest.MonkeyPatch, texts: list[list[int]], start: int, wrong: float = 0.0) -> None:
    """Let drafts be what ``texts`` say, each token replaced by another one with probability ``wrong``."""
    rng = random.Random(0)

    def draft(self: Drafter, row: int, tokens: Sequence[int], most: int) -> list[tuple[int, str]]:
        written = len(tokens) - start
        right = texts[row][written : written + most]
        return [(rng.randrange(3, VOCAB) if rng.random() < wrong else token, "foreseen") for token in right]

    monkeypatch.setattr(Drafter, "draft", draft)


def start_of(name: str, prompts: Any) -> int:
    return 1 if name in ENCODER_DECODER else max(map(len, prompts))


@pytest.mark.parametrize("name", CAN)
def test_guesses_that_are_all_right_spare_their_passes(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    foresee(monkeypatch, run(name, CFG(1.5)).new_tokens, start_of(name, PROMPTS))
    report = same(name, CFG(1.5), draft=Speculation("both", tokens=4)).speculation
    assert report.passes == math.ceil((NEW - 1) / 5)
    assert report.acceptance == 1.0


@pytest.mark.parametrize("wrong", [0.2, 1.0])
@pytest.mark.parametrize("name", CAN)
def test_wrong_guesses_are_forgotten(name: str, wrong: float, monkeypatch: pytest.MonkeyPatch) -> None:
    foresee(monkeypatch, run(name, CFG(2.0)).new_tokens, start_of(name, PROMPTS), wrong)
    report = same(name, CFG(2.0)).speculation
    assert report.drafted > report.accepted


@pytest.mark.parametrize("name", CAN)
def test_the_same_seed_samples_the_same_text(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for seed in range(2):
        for prompts in (PROMPTS, PROMPTS[:1]):
            options = {"seed": seed, "temperature": 0.7, "top_p": 0.9, "repetition_penalty": 1.1}
            plain = run(name, CFG(1.5), prompts, **options).new_tokens
            with monkeypatch.context() as patch:
                foresee(patch, plain, start_of(name, prompts), 0.2)
                assert same(name, CFG(1.5), prompts, **options).speculation.accepted > 0


def test_rows_that_end_and_options_of_transformers() -> None:
    plain = run("llama", CFG(1.5)).new_tokens
    end = plain[0][6]
    for batch in (None, 2):
        out = same("llama", CFG(1.5), eos_token_id=end, batch_size=batch)
        assert len({len(row) for row in out.new_tokens}) > 1
    same("llama", None, eos_token_id=end)
    same("llama", CFG(1.5), num_return_sequences=2, do_sample=True, seed=1)
    same("gpt_neox", CFG(1.5), no_repeat_ngram_size=3)
    same("gpt_neox", CFG(1.5), max_new_tokens=1)
    same("gpt_neox", CFG(1.5), max_new_tokens=2)


def test_branches_leave_and_return_under_speculation() -> None:
    out = same("gpt_neox", CFG(1.01, start=0.3, stop=0.6))
    assert out.effect.unguided_steps > 0
    assert out.speculation.accepted > 0


def test_classifiers_and_constraints_see_every_position() -> None:
    classifier = textguide.classifiers.FunctionClassifier(
        lambda texts: torch.tensor(
            [[0.3 + 0.1 * (t.count("e") % 3), 0.7 - 0.1 * (t.count("e") % 3)] for t in texts]
        ).log(),
        labels=("no", "yes"),
    )
    guidance = [CFG(1.5), textguide.CAIF(classifier, "yes", 4.0, top_k=8)]
    assert same("gpt_neox", guidance, max_new_tokens=16).speculation.passes < 15


def test_particles_may_move_while_guesses_are_at_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    letters = textguide.constraints.Predicate(lambda text: not text.startswith("z"), lambda text: True)
    options: dict[str, Any] = {"vocabulary": _letters(), "seed": 0, "max_new_tokens": 12, "temperature": 0.5}
    guidance = [CFG(1.2), AWRS(letters, particles=3, ess_threshold=1.0, critic=lambda text: 0.5 * text.count("a"))]
    plain = run("llama", guidance, PROMPTS[:2], **options)
    for wrong in (0.0, 0.3):
        foresee(monkeypatch, plain.new_tokens, start_of("llama", PROMPTS[:2]), wrong)
        out = run("llama", guidance, PROMPTS[:2], speculation="recycling", **options)
        assert out.new_tokens == plain.new_tokens
        torch.testing.assert_close(out.log_weights, plain.log_weights, atol=1e-4, rtol=1e-4)
        assert out.speculation.drafted > 0


def _letters() -> Any:
    from textguide.constraints import Vocabulary

    letters = Tokenizer.letters.encode()
    rest = [b""] * (VOCAB - 3 - len(letters))
    return Vocabulary((b"", b"", b"", *(bytes([c]) for c in letters), *rest), frozenset({2}))


def test_ways_in() -> None:
    model, ids = build("llama"), torch.tensor([list(PROMPTS[0])])
    way = guided_decoding(CFG(1.5), speculation="recycling")
    common: dict[str, Any] = {"input_ids": ids, "max_new_tokens": NEW, "do_sample": False}
    plain = model.generate(**common, custom_generate=guided_decoding(CFG(1.5)))
    assert model.generate(**common, custom_generate=way).tolist() == plain.tolist()
    output = model.generate(**common, custom_generate=way, return_dict_in_generate=True)
    assert output.speculation.accepted > 0
    chunks = textguide.stream(model, Tokenizer(), list(PROMPTS[0]), CFG(1.5), max_new_tokens=9, speculation="both")
    assert [c.token for c in chunks] == plain[0, len(PROMPTS[0]) :][:9].tolist()


@pytest.mark.parametrize("name", sorted(CANNOT))
def test_models_that_cannot_go_back_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=r"speculation='both'.*cannot go back; leave speculation out"):
        run(name, CFG(1.5), speculation="both")


def test_caches_that_cannot_go_back_are_refused() -> None:
    with pytest.raises(ValueError, match=r"cache_implementation='static'.*leave one of them out"):
        run("llama", CFG(1.5), speculation="both", cache_implementation="static")
    with pytest.raises(ValueError, match="speculation='prompt-lookup' to guided_decoding"):
        run("llama", CFG(1.5), prompt_lookup_num_tokens=3)


# -- the distribution
# --------------------------------------------------------------------------------------------------------

LENGTH = 3


def distributions(top: int = 3) -> dict[tuple[int, ...], float]:
    """The distribution of three guided tokens, each drawn from the ``top`` likeliest, by enumeration."""

    def distribution(text: oracle.Text) -> Sequence[float]:
        read = [*PROMPTS[0], *text]
        conditional = decoding.next_log_probs(build("llama"), read)
        other = decoding.next_log_probs(build("llama"), [PROMPTS[0][-1], *text])
        # One temperature for all: the distribution has to be flat enough that every text is seen.
        guided = [p / 4 for p in decoding.guided_distribution(CFG(1.5), [conditional, other], 0.5)]
        kept = set(sorted(range(VOCAB), key=lambda t: -guided[t])[:top])
        normal = decoding.normalized([p if t in kept else -math.inf for t, p in enumerate(guided)])
        return [math.exp(p) for p in normal]

    return {text: p for text, p in oracle.texts(_cached(distribution), None, LENGTH, VOCAB).items() if p > 0}


def _cached(distribution: Any) -> Any:
    known: dict[Any, Any] = {}
    return lambda text: known.setdefault(text, None) or known.update({text: distribution(text)}) or known[text]


def sampled(draws: int) -> Counter[tuple[int, ...]]:
    """Texts of one row each, with the likeliest continuation as guess."""
    seen: Counter[tuple[int, ...]] = Counter()
    for seed in range(draws):
        out = run(
            "llama", CFG(1.5), PROMPTS[:1], max_new_tokens=LENGTH, temperature=4.0, top_k=3, seed=seed,
            speculation=Speculation("recycling", least=0.0),
        )  # fmt: skip
        seen[tuple(out.new_tokens[0])] += 1
    return seen


def test_the_sampled_distribution_is_the_guided_distribution(monkeypatch: pytest.MonkeyPatch) -> None:
    distribution, draws = distributions(), 900
    best = run("llama", CFG(1.5), PROMPTS[:1], max_new_tokens=LENGTH).new_tokens
    foresee(monkeypatch, best, len(PROMPTS[0]))
    seen = sampled(draws)
    assert chi_square(seen, distribution, draws) > 1e-3

    # Distributions that are handed out without a look at what was drawn: the test sees it.
    def blind(self: SpeculativePasses, ids: Any, new: int, with_branches: bool = True) -> Any:
        ahead = self._ahead
        if ahead is not None and ahead.used <= ahead.tokens.shape[1]:
            ahead.used += 1
            return ahead.logits[ahead.used - 1]
        return right(self, ids, new)

    right = SpeculativePasses.step
    monkeypatch.setattr(SpeculativePasses, "step", blind)
    assert chi_square(sampled(draws), distribution, draws) < 1e-6


def test_the_rule_of_the_oracle() -> None:
    distribution = floats(table(3, temperature=1.0))
    texts = oracle.texts(distribution, None, LENGTH, len(VOCABULARY.tokens))
    rng, draws = random.Random(0), 20_000

    def draft(text: oracle.Text) -> list[int]:
        return [sum(text) % 5, 1, 3][: 1 + len(text)]

    seen = Counter(oracle.speculative(distribution, draft, LENGTH, rng) for _ in range(draws))
    assert chi_square(seen, texts, draws) > 1e-3

    def wrong(length: int) -> oracle.Text:
        """Behind a rejection, draws from the whole distribution: the guess gets two chances."""
        text: oracle.Text = ()
        while len(text) < length:
            guess = draft(text)[0]
            kept = rng.random() < distribution(text)[guess]
            text = (*text, guess if kept else rng.choices(range(len(distribution(text))), distribution(text))[0])
        return text

    assert chi_square(Counter(wrong(LENGTH) for _ in range(draws)), texts, draws) < 1e-6
