"""What every benchmark shares: options, figures, and alternating rounds.

Machines differ and are noisy, so a speed alone says little. Every figure is the median of ratios of
neighbouring rounds: baseline, ours, baseline, ours, ... on one machine within one run.
"""

from __future__ import annotations

import statistics
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

ROUNDS_MIN = 3


@dataclass(frozen=True)
class Options:
    """How long and how often to measure."""

    quick: bool = False
    rounds: int = 0
    connections: int = 64
    leads: int = 0
    say: Callable[[str], None] = print

    def times(self, full: int = 5) -> int:
        """Give the number of rounds: as asked, else `full`, or the fewest allowed when quick."""
        return max(ROUNDS_MIN, self.rounds) if self.rounds else (ROUNDS_MIN if self.quick else full)

    def seconds(self, full: float, quick: float) -> float:
        """Give the length of a round."""
        return quick if self.quick else full


@dataclass
class Figure:
    """One measured value with its baseline: `rounds` are (baseline, ours) in the order measured."""

    name: str
    unit: str
    baseline_name: str
    rounds: list[tuple[float, float]]
    target: float | None = None
    goal: float | None = None
    at_most: bool = False
    absolute: bool = False
    note: str = ""

    @property
    def baseline(self) -> float:
        """Give the median of the baseline."""
        return statistics.median(b for b, _ in self.rounds)

    @property
    def ours(self) -> float:
        """Give the median of ours."""
        return statistics.median(o for _, o in self.rounds)

    @property
    def ratio(self) -> float:
        """Give the median of the rounds' ratios."""
        return statistics.median(o / b for b, o in self.rounds)

    @property
    def spread(self) -> tuple[float, float]:
        """Give the smallest and the largest ratio of a round."""
        ratios = [o / b for b, o in self.rounds]
        return min(ratios), max(ratios)

    @property
    def judged(self) -> float:
        """Give what is compared with the target: the ratio, or our value where it is absolute."""
        return self.ours if self.absolute else self.ratio

    def meets(self, limit: float | None) -> bool | None:
        """Tell whether `limit` is met; None without one."""
        if limit is None:
            return None
        return self.judged <= limit if self.at_most else self.judged >= limit


@dataclass
class Result:
    """What a benchmark found out."""

    key: str
    title: str
    method: str
    figures: list[Figure] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    skipped: str = ""
    measured: str = ""
    """When, with which command, and how busy the machine was."""


async def alternate(
    rounds: int,
    baseline: Callable[[int], Awaitable[float]],
    ours: Callable[[int], Awaitable[float]],
    say: Callable[[str], None],
) -> list[tuple[float, float]]:
    """Measure baseline and ours in turn, `rounds` times each; round 0 warms up and is thrown away."""
    found: list[tuple[float, float]] = []
    for number in range(rounds + 1):
        pair = (await baseline(number), await ours(number))
        if number:
            found.append(pair)
            say(f"  round {number}: baseline {pair[0]:,.1f}  ours {pair[1]:,.1f}  "
                f"ratio {pair[1] / pair[0]:.3f}")  # fmt: skip
    return found


def percentile(values: list[float], share: float) -> float:
    """Give the value that `share` of the sorted `values` do not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]
