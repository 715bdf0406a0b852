"""Schedules: their values, their counting, and a state that survives JSON."""

from __future__ import annotations

import doctest
import json
import math

import pytest

from vaefast import schedules
from vaefast.schedules import Capacity, Cosine, Cyclical, FreeBits, Linear, Schedule

ALL = [
    Linear(0.1, 2.0, steps=7, delay=3),
    Cosine(1.0, 0.0, steps=5),
    Cyclical(0.0, 4.0, steps=21, cycles=3, ratio=0.7),
    Capacity(25.0, steps=10, delay=1),
    FreeBits(0.5, 0.1, steps=4),
]


def test_examples() -> None:
    assert doctest.testmod(schedules).failed == 0


def test_values() -> None:
    linear, cosine, cyclical, *_ = ALL
    assert [linear(s) for s in (0, 3, 10, 99)] == [0.1, 0.1, 2.0, 2.0]
    assert linear(5) == pytest.approx(0.1 + 1.9 * 2 / 7)
    assert cosine(2) == pytest.approx(0.5 + 0.5 * math.cos(math.pi * 0.4))
    rises = [cyclical(s) for s in range(7)]
    assert rises == pytest.approx([min(4 * s / 4.9, 4.0) for s in range(7)])
    assert [cyclical(s) for s in range(7, 21)] == [cyclical(s) for s in range(7)] * 2
    assert cyclical(21) == 4.0


@pytest.mark.parametrize("schedule", ALL, ids=lambda s: type(s).__name__)
def test_state_round_trip(schedule: Schedule) -> None:
    schedule.position = 0
    for _ in range(3):
        schedule.step()
    state = json.loads(json.dumps(schedule.state_dict()))
    other = type(schedule)(1.0, steps=99)
    other.load_state_dict(state)
    assert [other.step() for _ in range(30)] == [schedule.step() for _ in range(30)]
    assert repr(other) == repr(schedule) and other.position == 33


def test_refusals() -> None:
    with pytest.raises(ValueError, match="steps must be at least 1"):
        Linear(steps=0)
    with pytest.raises(ValueError, match="ratio must be in"):
        Cyclical(steps=5, ratio=0.0)
    with pytest.raises(ValueError, match="free bits must be"):
        FreeBits(-1.0, steps=2)
    with pytest.raises(ValueError, match="state of Linear must have the keys"):
        Linear(steps=2).load_state_dict(Cyclical(steps=2).state_dict())
