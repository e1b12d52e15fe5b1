"""What guidance costs in an engine that batches continuously, from what the engine does without it.

A step of an engine that writes one token for each of ``r`` rows takes ``fixed + row · r`` seconds; reading a prompt
takes another ``token`` seconds per token. Both are found by measuring plain requests (:meth:`Engine.of`).

A guided request with ``k`` branch requests is a group of ``g = 1 + k`` rows, which write the same token in the same
step. Of ``c`` clients' groups

    ``n = min(c, ⌊places / g⌋, ⌊cache / tokens of a group⌋)``

run at once. While each of them writes ``T`` tokens the engine makes ``T`` steps of ``n · g`` rows, combines ``n``
groups in each (``combine`` seconds a group), and reads ``n`` groups' prompts of ``P`` and ``Q`` tokens, as far as it
does not find them in its prefix cache:

    ``seconds = T · (fixed + row · n · g + combine · n) + token · n · (P + Q)``, ``throughput = n · T / seconds``.

``k = 0`` and ``combine = 0`` are plain requests. If ``row`` is negligible compared with ``fixed`` (a GPU with spare
capacity), guidance is free; if ``fixed`` is negligible, it costs ``1 / g`` of the throughput.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Load:
    """Requests that clients send, each of them the next one when it has its answer.

    Args:
        clients: number of concurrent clients.
        prompt: tokens of a prompt.
        new: tokens of an answer.
        branches: tokens of the prompt of each branch request.
        cached: tokens of these, and of the prompt, that the prefix cache has, over the whole group.

    Raises:
        ValueError: a number is too small.
    """

    clients: int
    prompt: int
    new: int
    branches: tuple[int, ...] = ()
    cached: int = 0

    def __post_init__(self) -> None:
        for name, least in (("clients", 1), ("prompt", 1), ("new", 1), ("cached", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name}={getattr(self, name)} must be {least} or more")
        if self.cached > self.prompt + sum(self.branches):
            raise ValueError(f"cached={self.cached} is more than the prompts of a group have tokens")

    @property
    def rows(self) -> int:
        """Of a group, g: places that it takes, and rows that the model reads for a token."""
        return 1 + len(self.branches)

    @property
    def read(self) -> int:
        """Prompt tokens of a group that are read."""
        return self.prompt + sum(self.branches) - self.cached

    @property
    def held(self) -> int:
        """Tokens of a group in the cache at its end."""
        return self.rows * self.new + self.prompt + sum(self.branches)


@dataclass(frozen=True)
class Measured:
    """What a load without guidance was measured to write, in tokens a second over all clients."""

    load: Load
    tokens_a_second: float


@dataclass(frozen=True)
class Prediction:
    """What a load is going to be like.

    Args:
        tokens_a_second: over all clients.
        groups: groups that run together, n.
        rows: that the model reads in a step, n · g.
        of_plain: throughput against the same load without its branches, on the same engine.
        limit: what keeps more groups from running: ``clients``, ``places`` or ``cache``.
    """

    tokens_a_second: float
    groups: int
    rows: int
    of_plain: float
    limit: str


@dataclass(frozen=True)
class Engine:
    """What an engine's steps take.

    Args:
        fixed: seconds of a step, whatever it does.
        row: further seconds for each row.
        token: further seconds for each token of a prompt.
        combine: further seconds for each guided group.
        places: rows that run together, ``max_num_seqs``; None: any number.
        cache: capacity of the cache in tokens; None: any number.
    """

    fixed: float
    row: float
    token: float = 0.0
    combine: float = 0.0
    places: int | None = None
    cache: int | None = None

    @classmethod
    def of(
        cls,
        measured: Sequence[Measured],
        *,
        combine: float = 0.0,
        places: int | None = None,
        cache: int | None = None,
    ) -> Engine:
        """The engine that comes nearest to what was measured of plain loads: least squares of relative errors, and
        no part below 0.

        If all loads have the same ratio of prompt to new tokens, reading and writing cannot be distinguished, and
        ``token`` is taken to be ``row``: a token that is read costs what a token costs that is written.

        Raises:
            ValueError: there are fewer than two loads, all of them have the same number of clients, or one has
                branches.
        """
        if len({one.load.clients for one in measured}) < 2:
            raise ValueError("plain throughput has to be measured with two numbers of clients or more")
        guided = [one.load for one in measured if one.load.branches]
        if guided:
            raise ValueError(f"measured={guided[0]} has branches; the model is calibrated by plain requests alone")
        told_apart = len({one.load.read / one.load.new for one in measured}) > 1
        equations = []
        for one in measured:
            load = one.load
            groups, _ = _at_once(load, places, cache)
            seconds = groups * load.new / one.tokens_a_second
            parts = [load.new, load.new * groups, load.read * groups]
            if not told_apart:
                parts = [parts[0], parts[1] + parts[2]]
            equations.append([part / seconds for part in parts])
        found = _least_squares(equations)
        fixed, row, token = found if told_apart else (*found, found[1])
        return cls(fixed, row, token, combine, places, cache)


def predict(engine: Engine, load: Load) -> Prediction:
    """The throughput of ``load``; see the head of this file."""
    rate, groups, limit = _rate(engine, load)
    plain = _rate(engine, Load(load.clients, load.prompt, load.new, cached=min(load.cached, load.prompt)))[0]
    return Prediction(rate, groups, groups * load.rows, rate / plain, limit)


def _rate(engine: Engine, load: Load) -> tuple[float, int, str]:
    groups, limit = _at_once(load, engine.places, engine.cache)
    combine = engine.combine * groups if load.branches else 0.0
    step = engine.fixed + engine.row * groups * load.rows + combine
    seconds = load.new * step + engine.token * groups * load.read
    return groups * load.new / seconds if seconds else math.inf, groups, limit


def _at_once(load: Load, places: int | None, cache: int | None) -> tuple[int, str]:
    bounds = {"clients": load.clients}
    if places is not None:
        bounds["places"] = places // load.rows
    if cache is not None:
        bounds["cache"] = cache // load.held
    limit = min(bounds, key=lambda name: bounds[name])
    if not bounds[limit]:
        raise ValueError(f"{load} does not fit: a group takes {load.rows} places and {load.held} tokens of cache")
    return bounds[limit], limit


def _least_squares(equations: Sequence[Sequence[float]]) -> list[float]:
    """``x ≥ 0`` that makes ``equations · x`` come nearest to 1, found among all sets of unknowns that are not 0."""
    import itertools

    import torch

    matrix = torch.tensor(equations, dtype=torch.float64)
    ones = torch.ones(len(equations), 1, dtype=torch.float64)
    best, chosen = math.inf, [0.0] * matrix.shape[1]
    for size in range(1, matrix.shape[1] + 1):
        for some in itertools.combinations(range(matrix.shape[1]), size):
            part = matrix[:, list(some)]
            found = torch.linalg.lstsq(part, ones, driver="gelsd").solution
            error = float((part @ found - ones).square().sum())
            if error < best - 1e-12 and bool((found >= 0).all()):
                best = error
                chosen = [0.0] * matrix.shape[1]
                for place, value in zip(some, found[:, 0].tolist(), strict=True):
                    chosen[place] = value
    return chosen
