"""A value that was fitted to rollouts: exact whatever it learned, and better where there is something to learn."""

from __future__ import annotations

import re

import torch

from textguide.constraints import Regex
from textguide.constraints.automata import automaton_of
from textguide.guidance import AWRS
from textguide.reference import smc as reference
from textguide.smc.constrained import Constrained
from textguide.smc.lookahead.value import LEAST, Features, ValueLookahead

from ..statistics import z_score
from ..table import floats, run, table
from ..toys import END, PIECES, VOCABULARY

SIZE = len(PIECES)
LENGTH = 4
PATTERN = "(ab|ca)*b|c[ab]{2}"
LAW = table(3, temperature=1.5)


def fitted(noise: float) -> ValueLookahead:
    """From texts under the constraint that are drawn one by one, their weights to go blurred."""
    automaton = automaton_of(Regex(PATTERN), VOCABULARY)
    assert automaton is not None
    features, rows = Features(SIZE), 300
    guidance = AWRS(lookahead=None)
    state = Constrained(guidance, Regex(PATTERN).start(VOCABULARY), VOCABULARY, rows, torch.Generator().manual_seed(1))
    texts: list[tuple[int, ...]] = [()] * rows
    steps = []
    for index in range(LENGTH):
        scores = torch.stack([LAW(text) for text in texts])
        before, going = state.log_weights.clone(), state.open
        tokens = state.choose(scores, index == LENGTH - 1)
        state.advance(tokens, index == LENGTH - 1)
        steps.append((going, list(texts), features(scores), tokens, state.log_weights - before))
        texts = [(*text, int(token)) if go else text for text, token, go in zip(texts, tokens, going, strict=True)]
    done, togo = state.outcome().finished, torch.zeros(rows, dtype=torch.float64)
    examples = []
    for going, written, read, tokens, gained in reversed(steps):
        for row in range(rows):
            if going[row] and done[row] and tokens[row] != END:
                place = automaton.begin
                for token in written[row]:
                    place = automaton.step(place, token)
                value = togo[row] + noise * torch.randn(())
                examples.append((torch.tensor(place), read[row], tokens[row], value))
        togo = togo + torch.where(torch.tensor(going) & done, gained, 0.0)
    assert len(examples) > 2 * LEAST
    return ValueLookahead(automaton, features, *(torch.stack(part) for part in zip(*examples, strict=True)))


def test_values_leave_the_evidence_unbiased() -> None:
    def member(text: tuple[int, ...]) -> bool:
        return SIZE - 1 not in text and bool(re.fullmatch(PATTERN, b"".join(PIECES[t] for t in text).decode()))

    _, evidence = reference.global_conditional(floats(LAW), member, END, LENGTH, SIZE)
    sizes = {}
    for noise in (0.0, 3.0):
        guidance = AWRS(particles=4, lookahead=fitted(noise), ess_threshold=0.5)
        _, outcome = run(LAW, Regex(PATTERN), guidance, 200, LENGTH, 2)
        assert abs(z_score(outcome.log_evidence.exp().tolist(), evidence)) < 3.5
        sizes[noise] = outcome.ess.mean()
    _, plain = run(LAW, Regex(PATTERN), AWRS(particles=4, lookahead=None), 200, LENGTH, 2)
    assert sizes[0.0] > plain.ess.mean()
