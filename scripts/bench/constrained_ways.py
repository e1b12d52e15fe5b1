"""The ways to a form that ``constrained_quality.py`` compares, and the domains that it compares them on."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

from textguide import AWRS
from textguide.constraints import Constraint, Regex
from textguide.constraints.automata import automaton_of
from textguide.forward.reader import scores_reader
from textguide.smc.lookahead.value import ValueLookahead, fit
from textguide.smc.rollouts import rollouts as smc_rollouts
from textguide.smc.starting import vocabulary_of
from textguide.tasks.constrained import TASKS, ConstrainedTask, Item
from textguide.tasks.constrained.text_to_sql import TextToSQL


@lru_cache(maxsize=64)
def learned(
    model: Any,
    tokenizer: Any,
    constraint: Constraint,
    ids: tuple[int, ...],
    limit: int,
    rollouts: int,
    temperature: float,
) -> ValueLookahead:
    """A value of one constraint, learned from texts behind one prompt."""
    vocabulary = vocabulary_of(model, model.generation_config, tokenizer)
    found = smc_rollouts(
        scores_reader(model), [ids], constraint, vocabulary, number=rollouts, limit=limit, temperature=temperature,
        seed=10**6, device=model.device,
    )  # fmt: skip
    return ValueLookahead(fit(found, constraint, vocabulary), vocabulary, automaton_of(constraint, vocabulary))


Make = Callable[[Constraint, argparse.Namespace], AWRS | None]


def smc(**options: Any) -> Make:
    """AWRS with the particles that were asked for."""
    return lambda constraint, asked: AWRS(constraint, particles=asked.particles, **options)


WAYS: dict[str, Make] = {
    "plain": lambda constraint, asked: None,
    "mask": lambda constraint, asked: AWRS(constraint, sampler="mask", lookahead=None),
    "mask, length": lambda constraint, asked: AWRS(constraint, sampler="mask"),
    "ASAp": smc(sampler="asap", ess_threshold=0.0, lookahead=None),
    "CARS": lambda constraint, asked: AWRS(
        constraint, particles=asked.particles, sampler="cars", max_tries=asked.tries, lookahead=None
    ),
    "AWRS": smc(lookahead=None),
    "AWRS automaton": smc(lookahead="automaton"),
    "AWRS hmm": lambda constraint, asked: AWRS(constraint, particles=asked.particles, lookahead=asked.hmm),
    "AWRS value": lambda constraint, asked: AWRS(constraint, particles=asked.particles, lookahead=asked.value),
    "CARS automaton": lambda constraint, asked: AWRS(
        constraint, particles=asked.particles, sampler="cars", max_tries=asked.tries, lookahead="automaton"
    ),
    "ASAp automaton": smc(sampler="asap", ess_threshold=0.5, lookahead="automaton"),
}


class Dates(ConstrainedTask):
    """A date behind a prompt about something else: one seed an item."""

    name = "date"
    measures = ("valid",)
    max_new_tokens = 16
    prompt = "My favourite fruit is "
    pattern = r"(19|20)[0-9]{2}-(0[1-9]|1[0-2])-(0[1-9]|[12][0-9]|3[01])"

    def items(self) -> Sequence[Item]:
        return [Item(f"{number:03d}", ({"role": "user", "content": self.prompt},), number) for number in range(200)]

    def constraint(self, item: Item) -> Constraint:
        return Regex(self.pattern)

    def check(self, item: Item, text: str) -> dict[str, float]:
        return {"valid": float(re.fullmatch(self.pattern, text) is not None)}


DOMAINS: dict[str, Callable[[Any], ConstrainedTask]] = {
    **TASKS,
    "sql-scoped": lambda data: TextToSQL(data, scoped=True),
    "date": Dates,
}
