"""Constraints in the decoding loop: caches follow their particles, and the guided distribution is what is
conditioned."""

from __future__ import annotations

import json
import math
from collections import Counter
from typing import Any

import pytest
import torch
import transformers as tf

import textguide
from textguide import AWRS, CFG
from textguide.constraints import Regex, UnsatisfiableError, Vocabulary
from textguide.guidance import Composed, Guidance
from textguide.reference import decoding as plain_reference
from textguide.reference import smc as reference
from textguide.support.errors import NoParticleLeftWarning

from ..architectures import ENCODER_DECODER, EOS, NAMES, VOCAB, Tokenizer, build
from .statistics import chi_square, z_score
from .table import exact_samples
from .toys import END, PIECES, Strings

LETTERS = Vocabulary(
    tuple(
        Tokenizer.letters[i - 3].encode() if 3 <= i < 3 + len(Tokenizer.letters) else b"" for i in range(VOCAB)
    ),
    frozenset({EOS}),
)  # fmt: skip
PROMPTS = ["the dragon", "a", "once upon a time"]


class _Closed(Strings):
    """All texts over the vowels, the blank and n, at most six letters long."""

    def start(self, vocabulary: Vocabulary) -> Any:
        session = super().start(vocabulary)
        session.prefixes = _Vowels()  # type: ignore[attr-defined]
        return session


class _Vowels:
    def __contains__(self, text: bytes) -> bool:
        return set(text) <= set(b"aeiou n:.") and len(text) <= 6


VOWELS = _Closed(frozenset(bytes(v) for v in (b"ai", b"ou", b"no", b"one", b"ai no")))


def generate(name: str, guidance: Any, prompts: Any = PROMPTS, **options: Any) -> Any:
    model = build(name)
    options = {"max_new_tokens": 5, "seed": 0, "vocabulary": LETTERS, "eos_token_id": EOS, **options}
    with pytest.warns(NoParticleLeftWarning) if options.pop("dies", False) else _nothing():
        return textguide.generate(model, Tokenizer(), prompts, guidance, **options)


class _nothing:
    def __enter__(self) -> None: ...
    def __exit__(self, *_: Any) -> None: ...


def plainly(name: str, out: Any, row: int, particles: int, cfg: CFG | None) -> list[float]:
    """The log-probabilities of a row's tokens by the plainest loop."""
    tokenizer, tokens = Tokenizer(), out.new_tokens[row]
    prompt = tokenizer(PROMPTS[row // particles]).input_ids
    source = prompt if name in ENCODER_DECODER else None
    start = [int(out.sequences[row, 0])] if source is not None else prompt
    log_probs, _ = plain_reference.score(
        build(name),
        start,
        [*tokens, 0, 0, 0, 0, 0][:5],
        cfg,
        [] if cfg is None else [tokenizer("zebra").input_ids],
        source=source,
    )
    return list(log_probs[: len(tokens)])


@pytest.mark.parametrize("guided", [False, True], ids=["alone", "with CFG"])
@pytest.mark.parametrize("name", NAMES)
def test_every_particle_has_the_distribution_of_its_own_text(name: str, guided: bool) -> None:
    # Rows move between particles; a cache that stayed behind would give another distribution.
    cfg = CFG(1.5, negative_prompt="zebra") if guided else None
    awrs = AWRS(VOWELS, particles=6, ess_threshold=1.0, critic=lambda text: 2.0 * (text.count("a") - text.count("i")))
    out = generate(name, [cfg, awrs] if guided else awrs, dies=True)
    assert len(out.texts) == 3 * 6
    moved = 0
    for row, tokens in enumerate(out.new_tokens):
        expected = plainly(name, out, row, 6, cfg)
        assert out.log_probs[row, : len(tokens)].tolist() == pytest.approx(expected, abs=2e-4)
        assert out.log_likelihood[row].item() == pytest.approx(sum(expected), abs=1e-3)
        moved += row % 6 > 0 and tokens[:2] == out.new_tokens[row - 1][:2]
    assert moved > 0
    for row, text in enumerate(out.texts):
        assert set(text.replace(f"<{EOS}>", "")) <= set("aeiou n:.")
        assert out.finished[row] == (out.deaths[row] is None)
        assert (out.log_weights[row] > -math.inf) == out.finished[row]


def test_four_identical_texts_are_one_text() -> None:
    out = generate("llama", AWRS(Strings(frozenset({b"no"}), masks=True), particles=4))
    assert out.texts == ["no"] * 12
    assert out.ess.tolist() == pytest.approx([4.0] * 3)  # only weights are compared
    assert out.distinct_texts.tolist() == [1, 1, 1]
    assert out.ancestors.tolist() == [4, 4, 4]
    assert "1 of 4, 1 of 4, 1 of 4" in out._repr_html_()
    members = Strings(frozenset({b"no", b"one", b"ai", b"aa", b"nae"}), masks=True)
    some = generate("llama", AWRS(members, particles=6, ess_threshold=1.0, critic=lambda text: 9.0 * text.count("a")))
    for population in range(3):
        rows = range(6 * population, 6 * population + 6)
        assert some.distinct_texts[population] == len({some.texts[row] for row in rows if some.finished[row]})
        assert 1 <= some.ancestors[population] < 6
    plain = generate("llama", None)
    assert plain.distinct_texts is None
    assert plain.ancestors is None


def tiny() -> Any:
    config = tf.LlamaConfig(
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=32,
        vocab_size=len(PIECES),
        pad_token_id=8,
        bos_token_id=8,
        eos_token_id=END,
        tie_word_embeddings=False,
    )
    with torch.random.fork_rng():
        torch.manual_seed(2)
        model = tf.LlamaForCausalLM(config).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() > 1:
                    parameter.mul_(4.0)
    model.generation_config.eos_token_id = END
    model.generation_config.pad_token_id = 8
    return model


class Pieces(Tokenizer):
    """A tokenizer of the toy vocabulary, for token ids alone."""

    eos_token_id = END
    pad_token_id = 8

    def decode(self, ids: Any, skip_special_tokens: bool = True) -> str:
        return b"".join(PIECES[i] for i in map(int, ids)).decode()


MEMBERS = frozenset({b"ab", b"cab", b"b", b"ca", b"ba", b"bab", b"cc", b""})
TOYS = Vocabulary(PIECES, frozenset({END}))


@pytest.mark.parametrize("masks", [False, True], ids=["asked", "masked"])
@pytest.mark.parametrize("particles", [1, 4])
@pytest.mark.parametrize("guided", [False, True], ids=["alone", "with CFG"])
def test_the_guided_model_is_conditioned_exactly(particles: int, guided: bool, masks: bool) -> None:
    model, length, prompt, negative = tiny(), 3, [3, 5, 1], [6, 2]
    cfg = CFG(1.8, negative_prompt=negative) if guided else None

    def distribution(text: tuple[int, ...]) -> list[float]:
        if text not in distributions:
            progress = len(text) / (length - 1)
            rows = [plain_reference.next_log_probs(model, [*prompt, *text])]
            if cfg is not None:
                rows.append(plain_reference.next_log_probs(model, [*negative, *text]))
            tempered = [v / 1.3 for v in plain_reference.guided_distribution(cfg, rows, progress)]
            distributions[text] = [math.exp(v) for v in plain_reference.normalized(tempered)]
        return distributions[text]

    distributions: dict[tuple[int, ...], list[float]] = {}
    conditional, evidence = reference.global_conditional(
        distribution, lambda t: 8 not in t and b"".join(PIECES[i] for i in t) in MEMBERS, END, length, len(PIECES)
    )
    awrs = AWRS(Strings(MEMBERS, masks), particles=particles, ess_threshold=0.9)
    out = textguide.generate(
        model,
        Pieces(),
        [prompt] * (1500 if particles == 1 else 700),
        [cfg, awrs] if guided else awrs,
        max_new_tokens=length,
        seed=4,
        temperature=1.3,
        vocabulary=TOYS,
    )
    assert abs(z_score(out.log_evidence.exp().tolist(), evidence)) < 3.5
    drawn = exact_samples([tuple(t) for t in out.new_tokens], out)
    assert len(drawn) > 50
    assert chi_square(Counter(drawn), conditional, len(drawn)) > 1e-3
    assert (out.constraint_calls == 1500 // particles) or not masks or out.constraint_calls < 5000


def test_evidence_is_the_probability_of_the_members() -> None:
    model, length, prompt = tiny(), 3, [3, 5, 1]

    def distribution(text: tuple[int, ...]) -> list[float]:
        return [math.exp(v) for v in plain_reference.next_log_probs(model, [*prompt, *text])]

    _, wanted = reference.global_conditional(
        distribution, lambda t: 8 not in t and b"".join(PIECES[i] for i in t) in MEMBERS, END, length, len(PIECES)
    )
    options: dict[str, Any] = {"max_new_tokens": length, "vocabulary": TOYS}
    found = textguide.evidence(model, Pieces(), [prompt] * 60, Strings(MEMBERS), particles=4, populations=10, **options)
    assert found.estimates.shape == (10, 60)
    assert abs(z_score(found.estimates.flatten().tolist(), wanted)) < 3.5
    covered = sum(low <= wanted <= high for low, high in zip(found.low, found.high, strict=True))
    assert covered >= 50  # of 60 intervals of 95%
    assert "95% interval" in found._repr_html_()
    with pytest.raises(ValueError, match="populations=1 must be a whole number of 2 or more"):
        textguide.evidence(model, Pieces(), [prompt], Strings(MEMBERS), populations=1, **options)
    with pytest.raises(ValueError, match="a critic changes them"):
        textguide.evidence(model, Pieces(), [prompt], AWRS(Strings(MEMBERS), critic=len), **options)


def test_what_allows_everything_is_bit_equal_to_plain_decoding() -> None:
    plain = generate("llama", None, temperature=1.1)
    assert torch.equal(generate("llama", AWRS(), temperature=1.1).sequences, plain.sequences)
    assert generate("llama", AWRS(), temperature=1.1).log_weights is None
    # An opaque constraint that allows all draws the same tokens with weight 1 up to the forced end.
    every = Vocabulary(tuple(bytes([97 + i % 26, 97 + i // 26]) for i in range(VOCAB)), frozenset())
    opaque = Strings(frozenset({b"x"}))
    for masks in (False, True):
        session = opaque.start(every)
        session.prefixes = _Everything()  # type: ignore[attr-defined]
        constraint = _Given(session, masks)
        for sampler in ("awrs", "mask"):
            out = generate(
                "llama",
                AWRS(constraint, sampler=sampler),
                temperature=1.1,
                vocabulary=every,
                eos_token_id=None,
                top_k=50,
                top_p=1.0,
            )
            expected = generate("llama", None, temperature=1.1, eos_token_id=None, top_k=50)
            assert torch.equal(out.sequences, expected.sequences)
            assert torch.equal(out.log_probs, expected.log_probs)
            assert bool(out.finished.all())
            if sampler == "awrs":
                assert out.log_weights.abs().max() < 1e-6


class _Everything:
    def __contains__(self, text: bytes) -> bool:
        return True


class _Given(Strings):
    def __init__(self, session: Any, masks: bool) -> None:
        super().__init__(frozenset({b"x"}), masks)
        session.is_complete = lambda text: True
        object.__setattr__(self, "session", session)

    def start(self, vocabulary: Vocabulary) -> Any:
        session = self.session.fork()  # type: ignore[attr-defined]
        session.is_complete = lambda text: True
        session.mask = (lambda: torch.ones(VOCAB, dtype=torch.bool)) if self.masks else (lambda: None)
        session.fork = lambda: _Given.start(self, vocabulary) if not session.text else _copy(session)
        return session


def _copy(session: Any) -> Any:
    import copy

    return copy.copy(session)


def test_a_population_is_the_rows_of_one_prompt() -> None:
    together = generate("llama", AWRS(VOWELS, particles=3), num_return_sequences=2, dies=True)
    assert len(together.texts) == 3 * 2 * 3
    assert together.particles == 3
    assert together.log_evidence.shape == (6,)
    batches = generate("llama", AWRS(VOWELS, particles=3), batch_size=1, dies=True)
    assert batches.log_evidence.shape == (3,)
    assert len(batches.texts) == 9


def test_the_same_seed_gives_the_same_run() -> None:
    first, second = (generate("gpt2", AWRS(VOWELS, particles=4), dies=True) for _ in range(2))
    assert torch.equal(first.sequences, second.sequences)
    assert torch.equal(first.log_weights, second.log_weights)


def test_results_are_weighted() -> None:
    members = frozenset({b"a", b"e", b"no"})
    out = textguide.generate(
        tiny(), Pieces(), [[3, 5, 1]], AWRS(Strings(MEMBERS), particles=20), max_new_tokens=3, seed=1, vocabulary=TOYS
    )
    assert members
    rows = out.weighted_sample(seed=3)
    assert len(rows) == 1
    assert bool(out.finished[rows[0]])
    weights = out.log_weights.exp() / out.log_weights.exp().sum()
    expected = sum(float(w) * len(t) for w, t in zip(weights, out.texts, strict=True))
    assert out.expectation(len) == [pytest.approx(expected)]
    with pytest.raises(ValueError, match="log_weights=None"):
        generate("llama", None).weighted_sample()


def test_mask_takes_the_most_likely_allowed_token_where_nothing_samples() -> None:
    out = generate("llama", AWRS(VOWELS, sampler="mask"), ["the dragon"], eos_token_id=None, dies=True)
    ids = Tokenizer()("the dragon").input_ids
    for token in out.new_tokens[0]:
        distribution = plain_reference.next_log_probs(build("llama"), ids)
        allowed = [i for i, text in enumerate(LETTERS.tokens) if text and set(text) <= set(b"aeiou n:.")]
        assert token == max(allowed, key=distribution.__getitem__)
        ids = [*ids, token]
    assert out.log_weights is None


@pytest.mark.parametrize(
    ("guidance", "options", "message"),
    [
        (AWRS(VOWELS), {"do_sample": False}, "do_sample=False"),
        (AWRS(VOWELS, particles=2), {"cache_implementation": "static"}, "cache_implementation='static'"),
        (AWRS(VOWELS), {"num_beams": 2}, "num_beams=2"),
        (AWRS(VOWELS), {"prompt_lookup_num_tokens": 2}, "prompt_lookup_num_tokens"),
        ([AWRS(VOWELS), AWRS(VOWELS)], {}, "two guidances with a constraint"),
        (AWRS(Strings(frozenset())), {}, "matches no text at all"),
    ],
)
def test_refusals_name_the_option(guidance: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        generate("llama", guidance, PROMPTS[:1], **options)


def test_custom_generate_wants_a_row_for_every_particle() -> None:
    model = build("llama")
    ids = torch.tensor([[3, 4, 5], [6, 7, 8]])
    call = textguide.guided_decoding(AWRS(VOWELS, particles=2), vocabulary=LETTERS, warn=False)
    with pytest.raises(ValueError, match="num_return_sequences=1 must be a multiple of particles=2"):
        model.generate(ids, custom_generate=call, max_new_tokens=3, do_sample=True, eos_token_id=EOS)
    out = model.generate(
        ids,
        custom_generate=call,
        max_new_tokens=3,
        do_sample=True,
        num_return_sequences=2,
        eos_token_id=EOS,
        return_dict_in_generate=True,
        output_scores=True,
    )
    assert out.sequences.shape[0] == 4
    assert out.constraint.log_weights.shape == (4,)
    with pytest.raises(ValueError, match="stream with particles=1"):
        list(textguide.stream(model, Tokenizer(), "a", AWRS(VOWELS, particles=2), max_new_tokens=3))


def test_a_stopping_criterion_may_end_a_text_that_is_complete() -> None:
    with pytest.warns(NoParticleLeftWarning, match="of 40 prompts: a stopping criterion"):
        out = textguide.generate(
            tiny(),
            Pieces(),
            [[3, 5, 1]] * 40,
            AWRS(Strings(MEMBERS, True)),
            max_new_tokens=3,
            seed=4,
            stopping_criteria=[_After(3 + 1)],
            vocabulary=TOYS,
        )
    assert set(map(str, out.deaths)) == {"None", "a stopping criterion ended the text before it was complete"}
    for tokens, done in zip(out.new_tokens, out.finished.tolist(), strict=True):
        assert len(tokens) == 1
        assert done == (PIECES[tokens[0]] in MEMBERS)


class _After(tf.StoppingCriteria):
    def __init__(self, length: int) -> None:
        self.length = length

    def __call__(self, input_ids: Any, scores: Any, **_: Any) -> Any:
        return torch.full((input_ids.shape[0],), input_ids.shape[1] >= self.length)


# -- the value -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"particles": 0}, "particles=0"),
        ({"particles": True}, "particles=True"),
        ({"max_rejects": 0}, "max_rejects=0"),
        ({"accepts": 1}, "accepts=1"),
        ({"ess_threshold": 1.5}, "ess_threshold=1.5"),
        ({"ess_threshold": math.nan}, "ess_threshold=nan"),
        ({"sampler": "masks"}, "sampler='masks'"),
        ({"estimator": "best"}, "estimator='best'"),
        ({"resampling": "multinomial"}, "resampling='multinomial'"),
        ({"critic": "good"}, "critic='good'"),
        ({"sampler": "mask", "particles": 3}, "particles=3 needs weights"),
        ({"sampler": "mask", "critic": len}, "critic needs weights"),
    ],
)
def test_fields_are_checked(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message.replace("(", r"\(")):
        AWRS(VOWELS, **fields)


def test_as_a_value() -> None:
    awrs = AWRS({"kind": "strings", "members": ["a"]}, particles=3)
    assert hash(awrs) == hash(AWRS({"members": ["a"], "kind": "strings"}, particles=3))
    assert Guidance.from_json(awrs.to_json()) == awrs
    assert awrs.fingerprint != AWRS(awrs.constraint).fingerprint
    assert json.loads(AWRS(Strings(frozenset({b"a"}))).to_json())["constraint"]["kind"] == "strings"
    assert json.loads(AWRS(critic=len).to_json())["critic"] == "builtins:len"
    assert AWRS().is_neutral
    assert AWRS(particles=4).is_neutral
    assert not AWRS(critic=len).is_neutral
    assert not awrs.is_neutral
    both = Composed((AWRS(Strings(frozenset({b"a"}))), CFG(1.5)))
    assert [part.name for part in both.parts] == ["cfg", "awrs"]


def test_every_field_goes_to_json_and_back() -> None:
    for guidance in (AWRS("regex:a", sampler="mask"), AWRS("regex:a", particles=3, accepts=4)):
        values = guidance.to_dict()
        assert values["method"] == "awrs"
        assert Guidance.from_dict(values) == guidance


def test_a_limit_that_no_text_fits_into_is_refused_before_the_first_token() -> None:
    model, tokenizer = textguide.load("smollm2-small")
    options: dict[str, Any] = {"do_sample": True, "seed": 0}
    with pytest.raises(UnsatisfiableError, match=r"max_new_tokens=3 is too few .* shortest text needs \d+ tokens"):
        textguide.generate(model, tokenizer, ["A"], guidance=AWRS(Regex("[0-9]{40}")), max_new_tokens=3, **options)
    out = textguide.generate(model, tokenizer, ["A"], guidance=AWRS(Regex("[0-9]{2}")), max_new_tokens=3, **options)
    assert out.finished.all()
