"""Time for tests: a clock of their own, and the wall's for those beside real processes and libraries."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

BEGAN = datetime(2025, 3, 4, 9, tzinfo=UTC)
"""When tests' clocks begin; before any wall clock that a test may run beside."""


def wall() -> datetime:
    """Tell the time of the machine."""
    return datetime.now(UTC)


@dataclass
class Clock:
    """A clock that runs with `real`, `rate` times as fast, and can be set ahead; it begins at `began`."""

    rate: float = 1.0
    ahead: timedelta = timedelta()
    real: Callable[[], float] = time.monotonic
    began: datetime = BEGAN
    began_at: float = field(init=False)

    def __post_init__(self) -> None:
        self.began_at = self.real()

    def __call__(self) -> datetime:
        """Tell the time."""
        passed = (self.real() - self.began_at) * self.rate
        return self.began + timedelta(seconds=passed) + self.ahead

    def skip(self, **how_long: float) -> None:
        """Let time pass."""
        self.ahead += timedelta(**how_long)
