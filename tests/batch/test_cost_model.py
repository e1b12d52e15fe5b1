"""The cost model against an engine that is simulated step by step, and its arithmetic against the formula."""

from __future__ import annotations

import pytest

from textguide.batch.cost_model import Engine, Load, Measured, predict


def simulated(engine: Engine, load: Load, answers: int = 4000) -> float:
    """Tokens a second of a closed loop in which groups come and go by themselves, step by step.

    A group that has ended makes room for the next client's, whose prompt is read in the same step.
    """
    places = engine.places if engine.places is not None else 10**9
    cache = engine.cache if engine.cache is not None else 10**9
    running: list[int] = []
    seconds, written, waiting = 0.0, 0, list(range(load.clients))
    while written < answers * load.new:
        come = 0
        while waiting and (len(running) + 1) * load.rows <= places and (len(running) + 1) * load.held <= cache:
            waiting.pop()
            # Spread over the answer at first, as clients are that have been at it for a while.
            first = not written and len(running) % load.new
            running.append(load.new - (first or 0))
            come += 1
        rows = len(running) * load.rows
        seconds += engine.fixed + engine.row * rows + engine.token * come * load.read
        seconds += engine.combine * len(running) * bool(load.branches)
        written += len(running)
        ended = sum(left == 1 for left in running)
        running = [left - 1 for left in running if left > 1]
        waiting += range(ended)
    return written / seconds


LOADS = [
    Load(clients, 24, 32, branches, cached)
    for clients in (1, 8, 32)
    for branches, cached in (((), 0), ((1,), 0), ((8,), 7), ((8, 30), 20))
]


@pytest.mark.parametrize("load", LOADS)
def test_predictions_are_what_a_simulation_measures(load: Load) -> None:
    engine = Engine(fixed=0.02, row=0.001, token=0.0004, combine=0.0003, places=40, cache=4000)
    assert predict(engine, load).tokens_a_second == pytest.approx(simulated(engine, load), rel=0.03)
    # The simulation is another engine's as soon as a part of the formula is left out.
    if load.clients == 32 and load.branches:
        wrong = Engine(engine.fixed, engine.row, engine.token, engine.combine)
        assert predict(wrong, load).tokens_a_second != pytest.approx(simulated(engine, load), rel=0.03)


@pytest.mark.parametrize("token", [0.0, 0.0003])
def test_an_engine_is_found_from_plain_throughput(token: float) -> None:
    engine = Engine(0.02, 0.0011, token, 0.0002, places=64)
    plain = [Load(1, 24, 32), Load(8, 24, 32), Load(32, 24, 32), Load(8, 120, 32), Load(90, 24, 32)]
    found = Engine.of([Measured(one, predict(engine, one).tokens_a_second) for one in plain], combine=0.0002, places=64)
    assert (found.fixed, found.row, found.token) == pytest.approx((engine.fixed, engine.row, engine.token), abs=1e-9)
    for load in LOADS:
        assert predict(found, load).tokens_a_second == pytest.approx(predict(engine, load).tokens_a_second)


def test_prompts_that_cannot_be_told_from_writing() -> None:
    plain = [Load(8, 16, 32), Load(32, 16, 32)]
    engine = Engine(0.02, 0.001, 0.001)
    found = Engine.of([Measured(one, predict(engine, one).tokens_a_second) for one in plain])
    assert (found.fixed, found.row, found.token) == pytest.approx((0.02, 0.001, 0.001))


def test_no_part_is_below_nothing() -> None:
    # Faster with more clients than any engine with a price a row: all of it is the step.
    found = Engine.of([Measured(Load(1, 8, 8), 10.0), Measured(Load(2, 8, 8), 25.0)])
    assert found.row == found.token == 0
    assert found.fixed > 0


def test_what_limits() -> None:
    engine = Engine(0.02, 0.001, places=40, cache=1000)
    loads = [Load(8, 4, 4), Load(100, 4, 4), Load(100, 4, 4, (4,)), Load(30, 60, 40)]
    assert [(predict(engine, load).groups, predict(engine, load).limit) for load in loads] == [
        (8, "clients"), (40, "places"), (20, "places"), (10, "cache"),
    ]  # fmt: skip
    assert predict(engine, loads[2]).rows == 40
    assert predict(engine, loads[2]).of_plain == pytest.approx(0.5)
    assert predict(Engine(0.02, 0.0), Load(8, 4, 4, (4,))).of_plain == 1.0
    assert predict(Engine(0.0, 0.001), Load(8, 4, 4, (4, 4))).of_plain == pytest.approx(1 / 3)


def test_refusals() -> None:
    with pytest.raises(ValueError, match="two numbers of clients"):
        Engine.of([Measured(Load(8, 4, 4), 1.0), Measured(Load(8, 9, 4), 1.0)])
    with pytest.raises(ValueError, match="has branches"):
        Engine.of([Measured(Load(8, 4, 4), 1.0), Measured(Load(9, 4, 4, (1,)), 1.0)])
    with pytest.raises(ValueError, match="does not fit: a group takes 3 places"):
        predict(Engine(1.0, 1.0, places=2), Load(1, 4, 4, (1, 1)))
    with pytest.raises(ValueError, match="clients=0 must be 1"):
        Load(0, 4, 4)
    with pytest.raises(ValueError, match="cached=6 is more"):
        Load(1, 4, 4, (1,), cached=6)
