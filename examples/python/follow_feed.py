"""Follows the transitions, and goes on where it stopped: python follow_feed.py place.txt

With a database of your own, keep the position in the transaction that does the work: then each is done once.
"""

import os
import sys
from pathlib import Path

from baton.client import Client

url = os.environ.get("BATON_URL", "http://127.0.0.1:8080")
place = Path(sys.argv[1])
after = int(place.read_text()) if place.exists() else 0

with Client(url, os.environ["BATON_API_KEY"]) as baton:
    for item in baton.transitions(after, follow=True):
        print(item.position, item.email, item.from_, item.to, flush=True)  # the work
        place.write_text(str(item.position))
