"""The waits between attempts: full jitter, growing, and about the window in all."""

from __future__ import annotations

import statistics
from random import Random

import pytest

from services.notifier.deliveries import Patience, delay_s

HOUR = Patience(tries=5, window_s=3600, timeout_s=15)


def test_the_waits_fill_the_window_on_average() -> None:
    assert sum(delay_s(n, HOUR, lambda: 0.5) for n in range(1, 5)) == pytest.approx(3600)
    random = Random(1).random
    totals = [sum(delay_s(n, HOUR, random) for n in range(1, 5)) for _ in range(2000)]
    assert statistics.mean(totals) == pytest.approx(3600, rel=0.05)


def test_the_waits_grow() -> None:
    waits = [delay_s(n, HOUR, lambda: 0.5) for n in range(1, 5)]
    assert waits == sorted(waits)
    assert waits[0] < 60


def test_jitter_is_full() -> None:
    assert delay_s(1, HOUR, lambda: 0.0) == 0
    assert delay_s(4, HOUR, lambda: 0.999) > delay_s(4, HOUR, lambda: 0.001) * 100


@pytest.mark.parametrize("tries", [1, 2, 20])
def test_any_number_of_tries(tries: int) -> None:
    patience = Patience(tries=tries, window_s=60, timeout_s=1)
    for n in range(1, tries + 3):
        assert 0 <= delay_s(n, patience, lambda: 0.999) <= 120
