"""How fast one endpoint is sent to: as many at once as it bears, none while it rests, one when down. Pure.

    up --(DOWN_AFTER deliveries failed, and none went through between)--> down: one attempt at a time,
                                                                          ever more rarely
    down --(one attempt went through)--> up: whatever waited for its next try is due at once

An endpoint that asks to slow down (429, 502, 504, ``Retry-After``) rests, and then takes half as many at
once; each delivery that goes through lets a fraction more in. Times are seconds of one clock, as
``datetime.timestamp`` gives; `random` gives numbers from 0 to below 1.
"""

from __future__ import annotations

from collections.abc import Callable

from services.stage_service.subscriptions.schedule import (
    RETRY_AFTER_MAX_S,
    THROTTLED,
    asked_s,
    jittered,
    probe_in_s,
    throttle_s,
)
from services.stage_service.subscriptions.subscription import Outcome

DOWN_AFTER = 5
"""Different deliveries in a row: one that never goes through says nothing of the endpoint."""


class Pace:
    """What the attempts of one subscription taught about its endpoint.

    `failing_since`: since when nothing went through, None when the last attempt did; who takes over from
    another process begins with what that one recorded, and with one attempt.
    """

    def __init__(
        self, concurrency: int, rate_per_s: float | None, failing_since: float | None, now: float,
        random: Callable[[], float],
    ) -> None:  # fmt: skip
        self._random = random
        self.configure(concurrency, rate_per_s)
        self.failing_since = failing_since
        self.failures = 0
        """Failed attempts seen here since something went through."""
        self.down = failing_since is not None
        self._limit = float(concurrency)
        self._failing: set[str] = set()
        self._rests_until = 0.0
        self._throttled = 0
        self._tokens = self._burst
        self._filled_at = now

    def configure(self, concurrency: int, rate_per_s: float | None) -> None:
        """Take over changed settings."""
        self._concurrency = concurrency
        self._rate = rate_per_s
        self._burst = max(1.0, rate_per_s or 0.0)
        self._tokens = min(getattr(self, "_tokens", self._burst), self._burst)
        self._limit = min(getattr(self, "_limit", float(concurrency)), float(concurrency))

    def free(self, now: float, sending: int) -> int:
        """Give how many attempts may begin, while `sending` are under way."""
        if self._rests_until > now + 2 * RETRY_AFTER_MAX_S:
            self._rests_until = now  # the clock was set back
        if now < self._rests_until:
            return 0
        free = (0 if sending else 1) if self.down else max(1, int(self._limit)) - sending
        if self._rate is not None and free > 0:
            passed = max(0.0, now - self._filled_at)
            self._tokens = min(self._burst, self._tokens + passed * self._rate)
            self._filled_at = now
            free = min(free, int(self._tokens))
        return free

    def began(self) -> None:
        """Count an attempt."""
        if self._rate is not None:
            self._tokens -= 1.0

    def went_through(self) -> bool:
        """Learn that an attempt succeeded; True when the endpoint was down until then."""
        was_down = self.down
        self._forget(rest=was_down)
        self._limit = min(float(self._concurrency), self._limit + 1.0 / max(1.0, self._limit))
        return was_down

    def begin_anew(self) -> None:
        """Forget what failed: somebody resumed the subscription."""
        self._forget(rest=True)

    def _forget(self, *, rest: bool) -> None:
        self.down = False
        self.failing_since = None
        self.failures = 0
        self._failing.clear()
        self._throttled = 0
        if rest:
            self._rests_until = 0.0

    def failed(self, event_id: str, outcome: Outcome, now: float) -> None:
        """Learn that an attempt to deliver `event_id` failed, in a way that time may mend."""
        self.failures += 1
        if self.failing_since is None:
            self.failing_since = now
        asked = outcome.retry_after_s is not None and not outcome.apart
        throttled = asked or outcome.status in THROTTLED
        if throttled:
            self._throttled += 1
            self._limit = max(1.0, self._limit / 2)
            rest_s = (
                throttle_s(self._throttled, self._random())
                if outcome.retry_after_s is None
                else asked_s(outcome.retry_after_s) + jittered(0.5, self._random())
            )
            self._rests_until = max(self._rests_until, now + rest_s)
        # 429 says that it is there and has enough.
        if outcome.status != 429:
            self._failing.add(event_id)
            self.down = self.down or len(self._failing) >= DOWN_AFTER
            if len(self._failing) > DOWN_AFTER:
                self._failing.clear()
        if self.down:
            probe_s = probe_in_s(now - self.failing_since, self._random())
            self._rests_until = max(self._rests_until, now + probe_s)
