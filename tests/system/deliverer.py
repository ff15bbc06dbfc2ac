"""``python -m tests.system.deliverer SINCE RATE``: 'baton serve subscriptions' whose clock runs faster.

All that were given the same SINCE (seconds since 1970) agree about the time.
"""

from __future__ import annotations

import sys
import time
from datetime import UTC, datetime

from services.baton.serve import serve
from services.contracts.logs import configure_logs
from services.stage_service.delivering import create_delivering_app
from services.stage_service.settings import StageSettings


def main() -> None:
    """Run it."""
    since, rate = float(sys.argv[1]), float(sys.argv[2])

    def now() -> datetime:
        return datetime.fromtimestamp(since + (time.time() - since) * rate, UTC)

    settings = StageSettings()
    configure_logs("json", settings.log_level, "subscriptions")
    app = create_delivering_app(settings, now=now)
    serve(app, settings.host, settings.subscriptions_port, 0.0)


if __name__ == "__main__":
    main()
