"""Every guidance on every architecture: all ways in agree with each other and with the oracle."""

from __future__ import annotations

import dataclasses
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch

import textguide
from textguide import CFG, CFGLogitsProcessor, Guidance, GuidanceLogitsProcessor, guided_decoding
from textguide.engine.branch_inputs import branch_rows, empty_source
from textguide.forward.model_adapter import adapter
from textguide.guidance import BranchGuidance
from textguide.guidance.places import place
from textguide.guidance.views import EarlyExit, MaskedHeads, View, WithoutBlocks
from textguide.reference import decoding
from textguide.support.errors import GuidanceHadNoEffectWarning

from .architectures import ENCODER_DECODER, NAMES, PAD, RECURRENT, Tokenizer, build
from .guidance import oracles

PROMPTS = ([5, 9, 33, 7, 20, 41, 8, 12], [11, 4, 52], [30, 31, 5, 6, 44])
NEGATIVES = ([17, 18, 19], [9, 9, 25, 7, 7, 13, 40, 21, 3, 6], [50])
NEW = 9

# The tests of the methods add theirs.
SETTINGS: dict[str, Guidance] = {
    "last-token": CFG(1.5),
    "strong": CFG(4.0, schedule="linear"),
    "negative": CFG(2.0, negative_prompt=NEGATIVES[0]),
    "negatives": CFG(0.5, negative_prompt=NEGATIVES, renormalize=False),
    "window": CFG(2.5, start=0.3, stop=0.7, schedule="cosine", max_scale=3.0),
}
oracles.collect()
SETTINGS |= oracles.SETTINGS
PER_ROW = ("negative_prompt", "context")


def for_rows(guidance: Guidance, rows: Sequence[int]) -> Any:
    """The guidance for these of the prompts."""
    changes = {}
    for name in PER_ROW:
        given = getattr(guidance, name, None)
        if isinstance(given, tuple) and isinstance(given[0], (str, tuple)):
            changes[name] = tuple(given[row] for row in rows)
    return dataclasses.replace(guidance, **changes)  # type: ignore[type-var]


@dataclass
class Case:
    model: Any
    name: str
    guidance: Guidance

    @property
    def is_encoder_decoder(self) -> bool:
        return self.name in ENCODER_DECODER

    @property
    def models(self) -> dict[str, Any]:
        names = sorted({branch.model for branch in self.guidance.branches if branch.model})  # type: ignore[attr-defined]
        return {model: build(self.name, seed) for seed, model in enumerate(names, start=1)}

    def negatives(self, row: int) -> list[list[int]]:
        empty = empty_source(self.model.config) if self.is_encoder_decoder else None
        guidance = for_rows(self.guidance, (row,))
        branches = branch_rows(guidance, cond=[list(PROMPTS[row])], tokenizer=Tokenizer(), empty_source=empty)
        return [rows[0] for rows in branches]

    def oracle(self, row: int) -> tuple[list[int], list[list[float]]]:
        key = (self.name, self.guidance, row)
        if key not in _ORACLES:
            start = [self.model.config.decoder_start_token_id] if self.is_encoder_decoder else list(PROMPTS[row])
            source = list(PROMPTS[row]) if self.is_encoder_decoder else None
            _ORACLES[key] = decoding.generate(
                self.model, start, self.guidance, self.negatives(row), NEW, source=source, models=self.models
            )
        return _ORACLES[key]

    def inputs(self, rows: tuple[int, ...] = (0, 1, 2)) -> dict[str, torch.Tensor]:
        width = max(len(PROMPTS[r]) for r in rows)
        ids, mask = [], []
        for r in rows:
            pad = width - len(PROMPTS[r])
            row, keep = list(PROMPTS[r]), [1] * len(PROMPTS[r])
            left = not self.is_encoder_decoder
            ids.append([PAD] * pad + row if left else row + [PAD] * pad)
            mask.append([0] * pad + keep if left else keep + [0] * pad)
        return {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask)}


_ORACLES: dict[Any, Any] = {}


@pytest.fixture(params=NAMES)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


CORE = [(name, setting) for name in NAMES for setting in SETTINGS if setting not in oracles.SETTINGS]
"""Classifier-free guidance, whose settings run everything everywhere."""
TWO = ("llama", "t5")
"""Where every setting of every other method goes through every check: the loops around it know no method."""
EVERY = CORE + [(name, setting) for name in TWO for setting in oracles.SETTINGS]
FIRST = [(name, one) for name in NAMES if name not in TWO for one in oracles.SETTINGS if one in Guidance.registry]
"""The first setting of every other method meets its oracle everywhere."""


def opened(pair: tuple[str, str]) -> Case:
    name, setting = pair
    found = Case(build(name), name, SETTINGS[setting])
    views = [found.guidance.view, *(branch.view for branch in found.guidance.branches)]  # type: ignore[attr-defined]
    refused = (
        {View} if name in ENCODER_DECODER else {EarlyExit, WithoutBlocks, MaskedHeads} if name in RECURRENT else set()
    )
    if any(isinstance(view, tuple(refused)) for view in views):
        with pytest.raises(ValueError, match="needs a decoder-only transformer"):
            generate(found)
        pytest.skip("a part of this architecture cannot be run, and is refused")
    return found


@pytest.fixture(params=EVERY, ids="-".join)
def case(request: pytest.FixtureRequest) -> Case:
    return opened(request.param)


@pytest.fixture(params=EVERY + FIRST, ids="-".join)
def oracle_case(request: pytest.FixtureRequest) -> Case:
    return opened(request.param)


_WRITTEN: dict[Any, Any] = {}


def written(case: Case, rows: tuple[int, ...] = (0, 1, 2)) -> tuple[Any, list[torch.Tensor]]:
    """What greedy decoding gives, and for each row the guided log-probabilities (NEW, V): made once for all checks."""
    key = (case.name, case.guidance, rows)
    if key not in _WRITTEN:
        steps: list[list[torch.Tensor]] = [[] for _ in rows]

        def keep(view: Any) -> None:
            for row, guided in zip(view.samples, view.guided, strict=True):
                steps[row].append(guided)

        _WRITTEN[key] = generate(case, rows, observer=keep), [torch.stack(row) for row in steps]
    found: tuple[Any, list[torch.Tensor]] = _WRITTEN[key]
    return found


def generate(case: Case, rows: tuple[int, ...] = (0, 1, 2), **options: Any) -> Any:
    return textguide.generate(
        case.model, Tokenizer(), [list(PROMPTS[r]) for r in rows], for_rows(case.guidance, rows), max_new_tokens=NEW,
        models=case.models, **options,
    )  # fmt: skip


def test_one_pass_equals_oracle(oracle_case: Case) -> None:
    case = oracle_case
    out, guided = written(case)
    for row in range(len(PROMPTS)):
        tokens, oracle = case.oracle(row)
        assert out.new_tokens[row] == tokens
        expected = torch.tensor(oracle)
        # Guidance multiplies the rounding of the branches by the scale.
        tolerance = {"atol": 1e-4 * max(1.0, getattr(case.guidance, "scale", 2.0)), "rtol": 1e-5}
        torch.testing.assert_close(guided[row].double(), expected.double(), **tolerance)
        chosen = expected[range(NEW), tokens]
        torch.testing.assert_close(out.log_probs[row], chosen.float(), **tolerance)


def test_batch_equals_single_and_padded_equals_unpadded(case: Case) -> None:
    together, _ = written(case)
    for row in range(len(PROMPTS)):
        alone, _ = written(case, (row,))
        assert alone.new_tokens[0] == together.new_tokens[row]
        torch.testing.assert_close(alone.log_probs[0], together.log_probs[row], atol=1e-4, rtol=1e-5)


def test_custom_generate_and_drop_in_equal_one_pass(case: Case) -> None:
    if case.name in RECURRENT:
        # transformers itself reads padding into recurrent states; the drop-in sees what its loop computed.
        rows: tuple[tuple[int, ...], ...] = ((0,), (1,), (2,))
    else:
        rows = ((0, 1, 2),)
    for chosen in rows:
        out, _ = written(case, chosen)
        guidance = for_rows(case.guidance, chosen)
        common: dict[str, Any] = {**case.inputs(chosen), "max_new_tokens": NEW, "do_sample": False}
        decoding = guided_decoding(guidance, models=case.models, tokenizer=Tokenizer())
        if case.is_encoder_decoder and any(b.same_prompt or b.edit is not None for b in guidance.branches):
            with pytest.raises(ValueError, match=r"reads the prompt again"):
                case.model.generate(**common, custom_generate=decoding)
            return
        custom = case.model.generate(**common, custom_generate=decoding)
        assert custom[:, -NEW:].tolist() == out.sequences[:, -NEW:].tolist()
        if (reason := place("dropin").reason(guidance)) is not None:
            with pytest.raises(ValueError, match=re.escape(reason)):
                GuidanceLogitsProcessor(case.model, guidance, tokenizer=Tokenizer(), models=case.models, horizon=NEW)
            continue
        processor = GuidanceLogitsProcessor(
            case.model, guidance, tokenizer=Tokenizer(), models=case.models, horizon=NEW
        )
        drop_in = case.model.generate(**common, logits_processor=[processor])
        again = case.model.generate(**common, logits_processor=[processor])
        assert drop_in[:, -NEW:].tolist() == out.sequences[:, -NEW:].tolist()
        assert again.tolist() == drop_in.tolist()


def test_score_equals_what_generate_reported(case: Case) -> None:
    out, _ = written(case)
    scored = textguide.score(
        case.model,
        Tokenizer(),
        [list(p) for p in PROMPTS],
        out.new_tokens,
        case.guidance,
        horizon=NEW,
        batch_size=2,
        models=case.models,
    )
    torch.testing.assert_close(scored.log_likelihood[0], out.log_likelihood, atol=1e-3, rtol=0)
    assert scored.is_greedy.all()


def test_scale_one_is_bit_equal_to_plain_generate(name: str) -> None:
    case = Case(build(name), name, CFG(1.0))
    assert adapter(case.model).padding  # found out once per model, by passes that are not counted here
    passes = _count_rows(case.model)
    common: dict[str, Any] = {
        **case.inputs(), "max_new_tokens": NEW, "do_sample": False, "return_dict_in_generate": True,
        "output_scores": True, "output_logits": True,
    }  # fmt: skip
    with passes as plain_rows:
        plain = case.model.generate(**common)
    with passes as guided_rows:
        guided = case.model.generate(**common, custom_generate=guided_decoding(case.guidance))
    assert torch.equal(plain.sequences, guided.sequences)
    if name not in RECURRENT:
        assert guided_rows == plain_rows
        for ours, theirs in zip(guided.scores + guided.logits, plain.scores + plain.logits, strict=True):
            assert torch.equal(ours, theirs)
    drop_in = case.model.generate(**common, logits_processor=[CFGLogitsProcessor(case.model, scale=1.0)])
    assert torch.equal(drop_in.sequences, plain.sequences)
    assert all(torch.equal(a, b) for a, b in zip(drop_in.scores, plain.scores, strict=True))


@pytest.mark.parametrize("method", sorted(oracles.NEUTRAL))
def test_neutral_settings_are_bit_equal_to_plain_decoding(method: str) -> None:
    model, guidance = build("llama"), oracles.NEUTRAL[method]
    assert guidance.is_neutral
    plain, neutral = (
        textguide.generate(
            model, Tokenizer(), [list(p) for p in PROMPTS], g, max_new_tokens=NEW, do_sample=True, seed=0
        )
        for g in (None, guidance)
    )
    assert torch.equal(plain.sequences, neutral.sequences)
    assert all(torch.equal(a, b) for a, b in zip(plain.log_probs, neutral.log_probs, strict=True))


def test_every_registered_method_is_in_the_matrix() -> None:
    # CorrSynth looks across rows: no row of a batch is what it is alone. VCD needs images, A-CFG and TSG a canvas.
    # Their own tests hold them to their oracles.
    branching = {n for n, method in Guidance.registry.items() if issubclass(method, BranchGuidance)}
    branching -= {"acfg", "corrsynth", "tsg", "vcd"}
    assert branching <= {guidance.name for guidance in SETTINGS.values()}
    # CFG's neutral setting has a test of its own above; a text-only model that writes along always says something.
    assert branching - {"cfg", "lm"} <= set(oracles.NEUTRAL)
    assert branching <= set(decoding.COMBINE)


def test_rows_that_end_leave_and_change_nothing_for_the_others(case: Case) -> None:
    whole, _ = written(case)
    options: dict[str, Any] = {}
    end, expected = _cut_short(whole.new_tokens)
    lengths = [len(tokens) for tokens in expected]
    if max(lengths) <= min(lengths) + 1:  # the rows of the random model repeat one token: sampled ones do not
        options = {"temperature": 20.0, "seed": 0}
        whole = generate(case, **options)
        end, expected = _cut_short(whole.new_tokens)
        lengths = [len(tokens) for tokens in expected]
    assert max(lengths) > min(lengths) + 1
    with _count_rows(case.model) as rows:
        out = generate(case, eos_token_id=end, **options)
    assert out.new_tokens == expected
    assert out.log_likelihood.tolist() == pytest.approx(
        [whole.log_probs[row, :length].sum().item() for row, length in enumerate(lengths)], abs=1e-3
    )
    staying = lengths.count(max(lengths))
    assert rows[-1] % staying == 0
    assert rows[-1] <= staying * (1 + len(case.guidance.branches))  # type: ignore[attr-defined]


def test_sampling_is_reproducible_and_equal_across_ways_in(name: str) -> None:
    case = Case(build(name), name, CFG(1.5))
    # transformers itself reads padding into recurrent states: its loop can be compared on one row alone.
    rows: tuple[int, ...] = (0,) if name in RECURRENT else (0, 1, 2)
    sampling = {"do_sample": True, "temperature": 0.9, "top_k": 0, "top_p": 0.95}
    out = generate(case, rows, seed=3, **sampling)
    again = generate(case, rows, seed=3, **sampling)
    other = generate(case, rows, seed=4, **sampling)
    assert out.new_tokens == again.new_tokens
    assert out.new_tokens != other.new_tokens
    common: dict[str, Any] = {**case.inputs(rows), "max_new_tokens": NEW, **sampling}
    torch.manual_seed(3)
    custom = case.model.generate(**common, custom_generate=guided_decoding(case.guidance))
    torch.manual_seed(3)
    drop_in = case.model.generate(**common, logits_processor=[CFGLogitsProcessor(case.model, 1.5)])
    assert custom.tolist() == drop_in.tolist()
    assert custom[:, -NEW:].tolist() == out.sequences[:, -NEW:].tolist()


def test_guidance_without_effect_warns(name: str) -> None:
    model = build(name)
    prompt = list(PROMPTS[0])
    with pytest.warns(GuidanceHadNoEffectWarning, match="same next-token distribution") as caught:
        textguide.generate(model, Tokenizer(), [prompt], CFG(1.5, negative_prompt=prompt), max_new_tokens=3)
    assert len(caught) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        textguide.generate(model, Tokenizer(), [prompt], CFG(1.5), max_new_tokens=3)


def _cut_short(texts: list[list[int]]) -> tuple[int, list[list[int]]]:
    """An end token with which the rows end at different times, and what is left of each."""

    def until(end: int) -> list[list[int]]:
        return [tokens[: tokens.index(end) + 1] if end in tokens else tokens for tokens in texts]

    def spread(end: int) -> int:
        lengths = [len(tokens) for tokens in until(end)]
        return max(lengths) - min(lengths)

    end = max(sorted({token for tokens in texts for token in tokens}), key=spread)
    return end, until(end)


class _count_rows:
    """Counts the rows of every decoder pass of a model while it is entered."""

    def __init__(self, model: Any) -> None:
        self.model = model

    def __enter__(self) -> list[int]:
        rows: list[int] = []

        def count(_: Any, args: Any, kwargs: Any) -> None:
            ids = kwargs.get("decoder_input_ids", kwargs.get("input_ids"))
            rows.append(ids.shape[0])

        self.hook = self.model.register_forward_pre_hook(count, with_kwargs=True)
        return rows

    def __exit__(self, *_: Any) -> None:
        self.hook.remove()
