"""Schedules against their definitions."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import pytest
import torch

from textguide import CFG
from textguide.guidance import schedules
from textguide.reference import decoding

multiplier = lru_cache(maxsize=None)(decoding.schedule_multiplier)  # slow on purpose, and pure

NAMES = [
    *schedules.SCHEDULES,
    "powered-cosine:0.5",
    "powered-cosine:3",
    "clamp-linear:0.5",
    "clamp-cosine:1.75",
]
CLAMPED = [name for name in NAMES if name.startswith("clamp")]
PARAMETRIC = ["powered-cosine", "clamp-linear", "clamp-cosine"]
GRID = [i / 40 for i in range(41)]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("scale", [0.0, 1.5, 4.0])
def test_equals_the_definition(name: str, scale: float) -> None:
    progress = torch.tensor(GRID, dtype=torch.float64)[:, None]
    tensor = schedules.scale_at(name, scale, progress)
    assert isinstance(tensor, torch.Tensor)
    assert tensor.shape == progress.shape
    assert tensor.dtype == progress.dtype
    for s, from_tensor in zip(GRID, tensor[:, 0].tolist(), strict=True):
        expected = 1 + (scale - 1) * multiplier(name, s)
        value = schedules.scale_at(name, scale, s)
        assert isinstance(value, float)
        assert value == pytest.approx(expected, abs=1e-6)
        assert from_tensor == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("name", [name for name in NAMES if name not in CLAMPED])
def test_the_total_amount_of_guidance_is_that_of_a_constant(name: str) -> None:
    points = 2000
    mean = sum(schedules.scale_at(name, 3.0, (i + 0.5) / points) for i in range(points)) / points
    assert mean == pytest.approx(3.0, abs=1e-4)


@pytest.mark.parametrize("name", CLAMPED)
def test_clamped_schedules_never_fall_below_their_floor(name: str) -> None:
    floor = float(name.partition(":")[2] or 1)
    free = name.partition(":")[0].removeprefix("clamp-")
    for s in GRID:
        value = schedules.scale_at(name, 2.0, s) - 1
        assert value == pytest.approx(max(floor, schedules.scale_at(free, 2.0, s) - 1))
    assert schedules.scale_at(name, 2.0, 0.0) - 1 == pytest.approx(floor)


@pytest.mark.parametrize("name", NAMES)
def test_scale_one_is_one_everywhere(name: str) -> None:
    assert {schedules.scale_at(name, 1.0, s) for s in GRID} == {1.0}
    assert (schedules.scale_at(name, 1.0, torch.tensor(GRID)) == 1.0).all()


@pytest.mark.parametrize(
    ("name", "start", "middle", "end"),
    [
        ("constant", 1, 1, 1),
        ("linear", 0, 1, 2),
        ("linear-decreasing", 2, 1, 0),
        ("cosine", 0, 1, 2),
        ("cosine-decreasing", 2, 1, 0),
        ("sine", 0, math.pi / 2, 0),
        ("v-shape", 2, 0, 2),
        ("lambda-shape", 0, 2, 0),
        ("powered-cosine:1", 0, 1, 2),
        ("clamp-linear", 1, 1, 2),
        ("clamp-cosine:0.25", 0.25, 1, 2),
    ],
)
def test_ends_and_middle(name: str, start: float, middle: float, end: float) -> None:
    values = [schedules.scale_at(name, 2.0, s) - 1 for s in (0.0, 0.5, 1.0)]
    assert values == pytest.approx([start, middle, end], abs=1e-6)


def test_a_larger_power_rises_later() -> None:
    early, late = (schedules.scale_at(f"powered-cosine:{k}", 2.0, 0.4) for k in (1, 4))
    assert late < early


@pytest.mark.parametrize("name", PARAMETRIC)
def test_parameters(name: str) -> None:
    default = schedules.SCHEDULES[name].parameter
    for s in GRID:
        assert schedules.scale_at(name, 3.0, s) == schedules.scale_at(f"{name}:{default}", 3.0, s)
    assert schedules.scale_at(f"{name}:0.5", 3.0, 0.3) != schedules.scale_at(name, 3.0, 0.3)
    assert schedules.parse(f"{name}:1e-1")[1] == 0.1


@pytest.mark.parametrize(
    "schedule",
    ["", "Linear", "sudden", ":2", None, 3, "linear:2", "constant:", "constant:1"]
    + [f"{name}:{bad}" for name in PARAMETRIC for bad in ("", "x", "0", "-1", "nan", "inf", "1:2")],
)
def test_parse_errors_name_the_value(schedule: Any) -> None:
    with pytest.raises(ValueError) as caught:
        schedules.parse(schedule)
    assert f"schedule={schedule!r}" in str(caught.value)
    with pytest.raises(ValueError, match="schedule="):
        CFG(schedule=schedule)


def test_an_unknown_schedule_lists_the_known() -> None:
    with pytest.raises(ValueError) as caught:
        schedules.parse("sudden")
    for name in schedules.SCHEDULES:
        assert name in str(caught.value)


def test_every_schedule_has_an_oracle() -> None:
    for name in schedules.SCHEDULES:
        decoding.schedule_multiplier(name, 0.5)
    with pytest.raises(KeyError):
        decoding.schedule_multiplier("sudden", 0.5)
