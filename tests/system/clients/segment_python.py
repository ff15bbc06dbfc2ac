"""Sends COUNT events with Segment's or RudderStack's own Python client: CLIENT URL KEY COUNT GZIP."""

from __future__ import annotations

import sys
import time
from typing import Any


def made(client: str, url: str, key: str, gzip: bool) -> Any:
    """Give the client's own Client, as its documentation makes it."""
    if client == "segment":
        from segment.analytics import Client

        return Client(key, host=url, gzip=gzip, upload_size=50, on_error=print, max_retries=20)
    from rudderstack.analytics.client import Client as RudderClient

    return RudderClient(key, host=url, gzip=gzip, upload_size=50, on_error=print)


def main() -> None:
    """Send, and wait until everything is delivered."""
    client, url, key, count, gzip = sys.argv[1:]
    analytics = made(client, url, key, gzip == "gzip")
    for n in range(int(count)):
        user = f"python-{client}-{gzip}-{n % 50}"
        if n % 10 == 0:
            analytics.identify(user, {"email": f"{user}@example.com", "company": "Example"})
        else:
            analytics.track(user, "Page Read", {"n": n})
        if n % 20 == 0:
            time.sleep(0.05)
    analytics.flush()
    analytics.join()


if __name__ == "__main__":
    main()
