"""AWRS inside vLLM: what requests may ask, and that a row draws what ``Constrained`` draws, whatever interrupts it."""

from __future__ import annotations

import json
import math
import random
from collections import Counter
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from textguide.constraints import Grammar, Predicate, Regex, Vocabulary
from textguide.guidance import AWRS, CFG, Guidance
from textguide.logits_processors.vllm_plugin import constraint_arguments
from textguide.logits_processors.vllm_plugin import constraints as ours
from textguide.logits_processors.vllm_plugin.arguments import parse
from textguide.logits_processors.vllm_plugin.batch_rows import GroupRows, Member
from textguide.logits_processors.vllm_plugin.combination import GuidedRow, guide
from textguide.logits_processors.vllm_plugin.request_guidance import RequestPrompt
from textguide.logits_processors.vllm_plugin.request_state import RequestState
from textguide.logits_processors.vllm_plugin.requests import MAIN, Draw, Limits, Request
from textguide.reference import smc as reference
from textguide.smc.constrained import Constrained

from ...smc.statistics import chi_square, z_score
from ...smc.table import floats, table
from ...smc.toys import END, PIECES, VOCABULARY, Strings

MEMBERS = frozenset({b"ab", b"abc", b"cab", b"ba", b"caba"})
LENGTH = 4
COUNT = 1500
FORM = AWRS({ours.NAMED: "toys"})


def request(seed: int, **fields: Any) -> Request:
    draw = Draw(temperature=fields.pop("temperature", 1.0), seed=seed)
    return Request(draw=draw, horizon=LENGTH, awrs=FORM, limit=LENGTH, **fields)


def drawing(asked: Request, written: list[int], constraint: Strings) -> Member[GuidedRow]:
    assert asked.awrs is not None
    row = ours.ConstrainedRow(asked.awrs, constraint.start(VOCABULARY), VOCABULARY, asked.limit)
    return Member("group", MAIN, GuidedRow(asked, list, lambda: written, constraint=row))


def write(
    logits_behind: Any, constraint: Strings, seed: int, interrupted: random.Random | None = None
) -> tuple[Any, RequestState]:
    """A text and what the scheduler knows of it; tokens are thrown away, and rows made anew, now and then."""
    asked = request(seed)
    state = RequestState(asked)
    written: list[int] = []
    member = drawing(asked, written, constraint)
    while len(written) < LENGTH:
        logits = logits_behind(tuple(written))[None].clone()
        (seen,) = guide(logits, [GroupRows(0, (), member)], [len(written)])
        assert int(logits[0].argmax()) == seen.token
        if interrupted is not None and interrupted.random() < 0.3:  # nobody takes the token
            if interrupted.random() < 0.5:  # preempted
                member = drawing(asked, written, constraint)
            continue
        state.observe(False, json.loads(json.dumps(vars(seen))))
        written.append(int(seen.token))
        if seen.token == END:
            break
    return tuple(written), state


def uninterrupted(logits_behind: Any, constraint: Strings, seed: int) -> tuple[Any, float, list[str | None]]:
    """The same by the loop of ``textguide.generate``."""
    generator = torch.Generator().manual_seed(seed)
    rows = Constrained(AWRS(constraint), constraint.start(VOCABULARY), VOCABULARY, 1, generator)
    written: list[int] = []
    for position in range(LENGTH):
        tokens = rows.choose(logits_behind(tuple(written))[None], position == LENGTH - 1)
        rows.advance(tokens, position == LENGTH - 1)
        if rows.outcome().deaths[0] is not None:
            break
        written.append(int(tokens))
        if not rows.open[0]:
            break
    return tuple(written), float(rows.log_weights[0]), rows.outcome().deaths


@pytest.mark.parametrize("masks", [False, True])
def test_a_row_draws_what_generate_draws(masks: bool) -> None:
    logits_behind, constraint = table(3), Strings(MEMBERS | {b"bbbbb"}, masks)  # the last one does not fit
    chance = random.Random(1)
    deaths = 0
    for seed in range(200):
        text, weight, reasons = uninterrupted(logits_behind, constraint, seed)
        # What is known of a function's answers is lost with a row; the distribution stays, as the next test shows.
        for interrupted in (None, chance) if masks else (None,):
            written, report = write(logits_behind, constraint, seed, interrupted)
            summary = report.summary()
            if reasons[0] is not None:
                deaths += 1
                assert written == (*text, END)
                assert summary["log_weight"] is None
                assert summary["death"] == reasons[0]
                continue
            assert written == text
            assert summary["log_weight"] == pytest.approx(weight, abs=1e-9)
            assert summary["death"] is None
            assert masks or summary["constraint_calls"] > 0
    assert 0 < deaths < 400


@pytest.mark.parametrize(("masks", "interrupted"), [(False, False), (False, True), (True, False)])
def test_weights_make_the_global_conditional(masks: bool, interrupted: bool) -> None:
    logits_behind, constraint = table(5), Strings(MEMBERS, masks)
    conditional, evidence = reference.global_conditional(
        floats(logits_behind),
        lambda t: 8 not in t and b"".join(PIECES[i] for i in t) in MEMBERS,
        END,
        LENGTH,
        len(PIECES),
    )
    texts, weights = [], []
    for seed in range(COUNT):
        text, report = write(logits_behind, constraint, seed, random.Random(seed) if interrupted else None)
        summary = report.summary()
        texts.append(text)
        weights.append(0.0 if summary["log_weight"] is None else math.exp(summary["log_weight"]))
    for text, share in conditional.items():
        of_text = [w if t == text else 0.0 for t, w in zip(texts, weights, strict=True)]
        assert texts.count(text) < 40 or abs(z_score(of_text, share * evidence)) < 4
    assert abs(z_score(weights, evidence)) < 3.5
    alive = Counter(t for t, w in zip(texts, weights, strict=True) if w)
    assert chi_square(alive, conditional, sum(alive.values())) < 1e-3  # without weights it is another distribution


def test_a_text_that_was_stopped_has_no_weight() -> None:
    state = RequestState(request(0))
    state.observe(False, {"kl": 0.0, "changed": False, "drawn": vars(ours.Drawn(1, -0.5, 2, False))})
    assert state.summary()["log_weight"] is None
    assert "stopping" in state.summary()["death"]
    state.observe(False, {"kl": 0.0, "changed": False, "drawn": vars(ours.Drawn(END, -0.25, 1, True))})
    assert state.summary()["log_weight"] == -0.75
    assert state.summary()["constraint_calls"] == 3


def test_a_constraint_that_fails_ends_its_text_and_nothing_else(caplog: pytest.LogCaptureFixture) -> None:
    def fails(text: str) -> bool:
        if "b" in text:
            raise RuntimeError("no")
        return True

    session = Predicate(fails).start(VOCABULARY)
    row = ours.ConstrainedRow(AWRS(Predicate(fails)), session, VOCABULARY, 9)
    scores = torch.full((1, len(PIECES)), -9.0)
    scores[0, 2] = 9.0
    drawn = row(scores, [], torch.Generator().manual_seed(0))
    assert (drawn.token, drawn.log_weight) == (END, None)
    assert drawn.death == "the constraint failed: RuntimeError: no"
    assert "a constraint failed" in caplog.text
    scores[0, 1:3] = torch.tensor([9.0, -9.0])
    assert row(scores, [], torch.Generator().manual_seed(0)).death is None
    refused = ToyConstraints({}, Tokenizer, 9).row(AWRS({"kind": "nonsense"}), [END], 9)
    assert refused(scores, [], torch.Generator()).token == END
    assert "'nonsense' is not a constraint" in str(refused(scores, [], torch.Generator()).death)


# -- requests ---------------------------------------------------------------------------------------------------------


class Tokenizer:
    """Writes single characters."""

    eos_token_id = 0


def params(**given: Any) -> SimpleNamespace:
    fields = {name: given.pop(name) for name in list(given) if not name.startswith(("awrs", "guidance"))}
    return SimpleNamespace(extra_args=given, logprobs=None, temperature=1.0, **fields)


def vowels(text: str) -> bool:
    """Only vowels."""
    return set(text) <= set("aeiou")


NAMES = {"vowels": f"python:{__name__}:vowels"}


class ToyConstraints(ours.EngineConstraints):
    """Over the toys' vocabulary."""

    def start(self, guidance: AWRS, ends: Any) -> tuple[Any, Vocabulary]:
        return ours.constraint_for(guidance.constraint, self.named).start(VOCABULARY), VOCABULARY


LIMITS = Limits(Tokenizer(), vocabulary=200, longest=20, constraints=ToyConstraints(NAMES, Tokenizer, 9))


def test_requests_that_are_understood() -> None:
    asked = parse(params(awrs_constraint="vowels", awrs_accepts=3, guidance_scale=2), LIMITS, RequestPrompt((4, 5)))
    assert asked is not None
    assert asked.guidance == CFG(2.0)
    assert asked.awrs == AWRS({ours.NAMED: "vowels"}, accepts=3)
    assert Request.from_dict(json.loads(json.dumps(asked.to_dict()))) == asked
    assert ours.constraint_for(asked.awrs.constraint, NAMES) == Predicate(vowels)
    alone = parse(params(awrs_constraint="vowels"), LIMITS)
    assert alone is not None
    assert alone.guidance is None
    assert alone.prompts == ()


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"awrs_regexp": "a"}, "'awrs_regexp' is not an argument of guidance; use awrs_regex"),
        ({"awrs_regex": 5}, "awrs_regex=5 must be a text"),
        ({"awrs_regex": r"(a)\1"}, "awrs_regex: pattern=.* a backreference at 3 .*; name it when the engine starts"),
        ({"awrs_regex": "("}, "awrs_regex: pattern=.* cannot be used"),
        ({"awrs_json_schema": "/etc/passwd"}, "awrs_json_schema='/etc/passwd' is not JSON"),
        ({"awrs_json_schema": "[1]"}, "awrs_json_schema: schema="),
        ({"awrs_grammar": " "}, "awrs_grammar: grammar="),
        ({"awrs_constraint": "consonants"}, "'consonants' is not a constraint of this engine; those are vowels"),
        ({"awrs_constraint": "vowels", "awrs_regex": "a"}, "awrs_regex and awrs_constraint exclude each other"),
        ({"awrs_accepts": 3}, "awrs_accepts=3 needs a constraint"),
        ({"awrs_constraint": "vowels", "awrs_accepts": 1}, "awrs_accepts=1 must be"),
        ({"awrs_constraint": "vowels", "awrs_estimator": "best"}, "awrs_estimator='best' must be one of"),
        ({"awrs_constraint": "vowels", "stop": ["."]}, "stop="),
        ({"awrs_constraint": "vowels", "ignore_eos": True}, "ignore_eos=True"),
        ({"awrs_constraint": "vowels", "min_tokens": 3}, "min_tokens=3"),
        ({"awrs_constraint": "vowels", "structured_outputs": {"regex": "a"}}, "structured_outputs="),
    ],
)
def test_what_is_wrong_is_named(given: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        parse(params(**given), LIMITS)


def test_a_grammar_is_never_read_from_a_file(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "secret.lark").write_text('start: "secret"')
    asked = constraint_arguments.awrs_of({"awrs_grammar": "secret.lark"}, {})
    assert asked is not None
    assert asked.constraint["grammar"] == "secret.lark\n"
    assert "secret" not in str(ours.constraint_for(asked.constraint, {}).to_dict()["grammar"]).replace(
        "secret.lark", ""
    )


def test_greedy_requests_and_engines_without_constraints_are_told() -> None:
    greedy = params(awrs_constraint="vowels")
    greedy.temperature = 0.0
    with pytest.raises(ValueError, match="temperature=0 does not work with awrs_constraint: its tokens are drawn"):
        parse(greedy, LIMITS)
    with pytest.raises(ValueError, match="it was started with none"):
        parse(params(awrs_constraint="vowels"))
    with pytest.raises(ValueError, match="awrs_regex='a' needs the engine's tokenizer, and this engine has none"):
        parse(params(awrs_regex="a"))
    with pytest.raises(ValueError, match=r"constraint x='python:nowhere:name': .*no module"):
        ours.engine_constraint("x", "python:nowhere:name")


def test_patterns_that_need_backtracking_are_named_at_the_start() -> None:
    twice = ours.engine_constraint("twice", r"regex:(a|b)\1")
    assert twice == Regex(r"(a|b)\1", engine="regex")
    assert ours.engine_constraint("plain", "regex:a+") == Regex("a+", engine="xgrammar")
    names = {"twice": r"regex:(a|b)\1"}
    limits = Limits(Tokenizer(), 200, 20, constraints=ToyConstraints(names, Tokenizer, 9))
    asked = parse(params(awrs_constraint="twice"), limits)
    assert asked is not None
    session = ours.constraint_for(asked.awrs.constraint, names).start(VOCABULARY)
    assert session.is_complete(b"aa")
    assert not session.is_prefix(b"ab")
    assert constraint_arguments.awrs_as_json(AWRS(twice), names)["constraint"] == {"named": "twice"}
    with pytest.raises(ValueError, match="does not travel with a request"):
        constraint_arguments.awrs_as_json(AWRS(twice), {})
    with pytest.raises(ValueError, match=r"constraint x='regex:\(': pattern="):
        ours.engine_constraint("x", "regex:(")


def arrived(guidance: AWRS, named: dict[str, str]) -> dict[str, Any]:
    """The short arguments that an engine makes of a guidance that was sent to it as JSON."""
    sent = Guidance.from_dict(json.loads(json.dumps(constraint_arguments.awrs_as_json(guidance, named))))
    assert isinstance(sent, AWRS)
    return constraint_arguments.short_arguments(sent)


def test_guidance_objects_travel_as_json() -> None:
    assert arrived(AWRS(Predicate(vowels)), NAMES) == {
        "awrs_constraint": "vowels",
        "awrs_particles": 1,
        "awrs_ess_threshold": 0.5,
        "awrs_resampling": "stratified",
        "awrs_estimator": "auto",
        "awrs_accepts": 2,
    }
    assert arrived(AWRS("regex:a+", particles=4), {})["awrs_particles"] == 4
    assert arrived(AWRS("regex:a+", max_rejects=9), {})["awrs_regex"] == "a+"
    assert arrived(AWRS("regex:a+", max_rejects=9), {})["awrs_max_rejects"] == 9
    assert arrived(AWRS("regex:x:y"), {})["awrs_regex"] == "x:y"
    schema = arrived(AWRS('json-schema:{"type": "null"}'), {})["awrs_json_schema"]
    assert json.loads(schema) == {"type": "null"}
    assert arrived(AWRS(Grammar('start: "a"\n', engine=ours.ENGINE)), {})["awrs_grammar"].startswith("start:")
    for constraint, message in (
        (AWRS("regex:a", sampler="mask"), "requests draw their tokens"),
        (AWRS("regex:a", lookahead="automaton"), "lookahead='automaton' does not work inside vLLM"),
        (AWRS(Predicate(str.isascii)), "does not travel with a request"),
    ):
        with pytest.raises(ValueError, match=message):
            constraint_arguments.awrs_as_json(constraint, NAMES)


@pytest.mark.parametrize(
    "constraint",
    [
        "python:os:system",
        "json-schema:/etc/passwd",
        "grammar:secret.lark",
        "nonsense",
        {"kind": "any-of", "parts": []},
        {"kind": "regex", "pattern": "a", "engine": "llguidance"},
        {"kind": "json-schema", "schema": {}, "lenient": True},
        {"kind": "regex"},
        {},
    ],
)
def test_a_request_brings_no_code_and_no_path(constraint: Any) -> None:
    with pytest.raises(ValueError, match=r"constraint=.* does not travel with a request"):
        constraint_arguments.short_arguments(AWRS(constraint))
