"""A made-up quarter of a sales team: its people, its leads, and how each of them acts.

`roster` makes the people, `leads` the events and the answers, `reading` reads the roster a second time, apart
from Baton's own code, and `checks` compares what reached people with that reading.
"""

from __future__ import annotations

import os
import random

from tests.conftest import REQUIRE_ALL


def seed() -> int:
    """Give what ``BATON_QUARTER_SEED`` says; else one of its own in CI, and another each time elsewhere."""
    given = os.environ.get("BATON_QUARTER_SEED")
    return int(given) if given else 2028 if REQUIRE_ALL else random.randrange(1, 10**6)
