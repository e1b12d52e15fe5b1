"""Random constraints of every kind: no invalid text is finished, no valid one out of reach, and weights are unbiased.

A fixed sample; ``TEXTGUIDE_FUZZ=2000`` takes that many, ``TEXTGUIDE_FUZZ_FROM`` the number of the first.
"""

from __future__ import annotations

import math
import os
import random
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from textguide.constraints import Constraint, Session, UnsatisfiableError
from textguide.guidance import AWRS
from textguide.smc.lookahead import lookahead_of

from .random_forms import MAKERS, Form, random_form, regex
from .table import Text, run, table

FIRST, COUNT = int(os.environ.get("TEXTGUIDE_FUZZ_FROM", "0")), int(os.environ.get("TEXTGUIDE_FUZZ", "36"))
POPULATIONS = 16
RARE = 1e-7
"""How often an interval may miss by chance."""
SAMPLERS: list[dict[str, Any]] = [
    {}, {"particles": 3, "ess_threshold": 1.0}, {"lookahead": None}, {"estimator": "geometric", "accepts": 3},
    {"sampler": "asap"}, {"sampler": "asap", "particles": 3}, {"sampler": "cars"},
    {"sampler": "cars", "lookahead": None}, {"sampler": "mask"}, {"max_rejects": 3, "particles": 2},
]  # fmt: skip


def reached(form: Form, constraint: Constraint, lookahead: Any) -> Iterator[tuple[Text, bool]]:
    """Texts that the session lets through within the limit, and whether they may end there."""
    ahead = lookahead_of(lookahead, constraint, form.vocabulary)
    start = constraint.start(form.vocabulary)

    def walk(session: Session, text: Text, seen: Any) -> Iterator[tuple[Text, bool]]:
        mask = session.mask()
        left = form.length - len(text)
        complete = session.is_complete(session.text)
        assert mask is None or bool(mask[0]) == complete, (form, session.text)
        yield text, complete
        if left == 1:
            return
        foreseen = None if seen is None else seen.following(left - 1)
        for token, piece in enumerate(form.vocabulary.tokens):
            follows = bool(piece) and session.is_prefix(session.text + piece)
            assert mask is None or not piece or bool(mask[token]) == follows, (form, session.text, piece)
            if follows and (foreseen is None or foreseen[token] > -math.inf):
                further = session.fork()
                further.advance(token)
                yield from walk(further, (*text, token), None if seen is None else seen.after(token))

    yield from walk(start, (), None if ahead is None else ahead.begin(()))


def texts(form: Form) -> Iterator[Text]:
    """Every text of fewer tokens than the limit."""
    tokens = range(1, len(form.pieces) + 1)

    def grow(text: Text) -> Iterator[Text]:
        yield text
        if len(text) + 1 < form.length:
            for token in tokens:
                yield from grow((*text, token))

    yield from grow(())


def spelled(form: Form, text: Text) -> str:
    return "".join(form.pieces[token - 1] for token in text)


def check(seed: int) -> tuple[str, float, float]:
    """Check one constraint; its kind, how far the mean weight lies from the truth, and the variance of that."""
    rng = random.Random(f"form {seed}")
    form = random_form(rng)
    options = dict(rng.choice(SAMPLERS))
    law = table(seed, len(form.vocabulary.tokens), rng.choice([0.5, 1.5]))
    members = {text for text in (walk if len(form.pieces) > 9 else texts)(form) if form.judge(spelled(form, text))}
    try:
        open_texts = {
            text for text, complete in reached(form, form.constraint, options.get("lookahead", "auto")) if complete
        }
    except UnsatisfiableError:
        assert not members, (seed, form)
        return form.kind, 0.0, 0.0
    assert open_texts == members, (seed, form, sorted(spelled(form, t) for t in open_texts ^ members)[:5])
    mass = {text: math.exp(sum(float(law(text[:n])[(*text, 0)[n]]) for n in range(len(text) + 1))) for text in members}
    evidence = sum(mass.values())
    guidance = AWRS(form.constraint, max_tries=30, **options)
    drawn, outcome = run(law, form.constraint, guidance, POPULATIONS, form.length, seed, form.vocabulary)
    for text, finished in zip(drawn, outcome.finished.tolist(), strict=True):
        written = text[:-1] if text[-1:] == (0,) else text  # masks force no end at the limit
        assert not finished or form.judge(spelled(form, written)), (seed, form, text)
    if not guidance.weighs:
        return form.kind, 0.0, 0.0
    if options.get("sampler") == "cars":
        assert bool(outcome.finished.all()) or evidence < 0.3, (seed, form, evidence)
        return form.kind, *frequencies(form, seed, mass, evidence, [t[:-1] for t in finished_texts(drawn, outcome)])
    values = outcome.log_evidence.exp()
    error = float(values.mean()) - evidence
    # Bernstein's inequality for numbers in [0, 1] of this mean, whose variance is at most Z (1 − Z).
    bits = math.log(2 / RARE)
    top = max(1.0, float(values.max()))
    reach = math.sqrt(2 * top * evidence * bits / POPULATIONS) + top * bits / (3 * POPULATIONS)
    assert abs(error) <= reach + 1e-6, (seed, form, options, evidence, values)
    return form.kind, error, float(values.var()) / POPULATIONS


def finished_texts(drawn: list[Text], outcome: Any) -> list[Text]:
    return [text for text, finished in zip(drawn, outcome.finished.tolist(), strict=True) if finished]


def frequencies(
    form: Form, seed: int, mass: dict[Text, float], evidence: float, drawn: list[Text]
) -> tuple[float, float]:
    """Of exact draws: the share of a random half of the members against the truth, and the variance of that."""
    half = {text for text in mass if random.Random(f"{seed} {text}").random() < 0.5}
    if not drawn or not half:
        return 0.0, 0.0
    truth = sum(mass[text] for text in half) / evidence
    share = Counter(text in half for text in drawn)[True] / len(drawn)
    reach = math.sqrt(2 * truth * (1 - truth) * math.log(2 / RARE) / len(drawn)) + math.log(2 / RARE) / (3 * len(drawn))
    assert abs(share - truth) <= reach, (seed, form, share, truth)
    return share - truth, truth * (1 - truth) / len(drawn)


def walk(form: Form) -> Iterator[Text]:
    """Of many tokens: the texts that begin as documents do, since all of them would be too many."""
    tokens = range(1, len(form.pieces) + 1)
    heads = ("{",)

    def grow(text: Text) -> Iterator[Text]:
        yield text
        if len(text) + 1 < form.length:
            for token in tokens:
                longer = spelled(form, (*text, token))
                if longer.startswith(heads) and _may_be_call(longer):
                    yield from grow((*text, token))

    yield from grow(())


def _may_be_call(text: str) -> bool:
    """A call's text up to its arguments is one of two, whatever the tokens."""
    heads = [f'{{"name":"{name}","arguments":{{' for name in "fg"]
    return any(head.startswith(text[: len(head)]) for head in heads)


def test_random_constraints_of_every_kind() -> None:
    kinds, errors, variance = Counter[str](), [], 0.0
    for seed in range(FIRST, FIRST + COUNT):
        kind, error, of_it = check(seed)
        kinds[kind] += 1
        errors.append(error)
        variance += of_it
    if COUNT >= 36:
        assert len(kinds) >= len(MAKERS) - 1
    # All together: a bias too small for each to show.
    assert abs(sum(errors)) < 4.5 * math.sqrt(variance) + 1e-9
    print(f"{COUNT} constraints: {dict(kinds)}; summed error {sum(errors):.4f}, {math.sqrt(variance):.4f} expected")


def test_faults_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """A session that ends too early, one that rules a member out, and weights that leave a factor out."""
    seeds = [seed for seed in range(400) if isinstance(random_form(random.Random(f"form {seed}")), Form)]
    of_patterns = [s for s in seeds if random_form(random.Random(f"form {s}")).kind == "regex"][:12]
    kind = type(regex(random.Random(0)).constraint.start(regex(random.Random(0)).vocabulary))
    with monkeypatch.context() as patch:
        patch.setattr(kind, "is_complete", lambda self, text: True)
        assert any(_fails(seed) for seed in of_patterns)
    from textguide.smc.constrained import Constrained

    choose = Constrained.choose

    def unweighed(self: Constrained, scores: torch.Tensor, last: bool) -> torch.Tensor:
        before = self.log_weights.clone()
        tokens = choose(self, scores, last)
        self.log_weights = torch.where(self.log_weights > -math.inf, before, self.log_weights)
        return tokens

    monkeypatch.setattr(Constrained, "choose", unweighed)
    assert any(_fails(seed) for seed in of_patterns)


def _fails(seed: int) -> bool:
    try:
        check(seed)
    except AssertionError:
        return True
    return False
