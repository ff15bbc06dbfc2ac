"""Sends one lead event: python send_event.py ada@example.com"""

import os
import sys

from baton.client import Client, Event

url = os.environ.get("BATON_URL", "http://127.0.0.1:8080")
event = Event("demo.requested", "/examples", {"email": sys.argv[1], "company": "Example"})

with Client(url, os.environ["BATON_API_KEY"]) as baton:
    result = baton.send(event)

print(result.status, result.lead_id)
for transition in result.transitions:
    print(f"{transition.from_} -> {transition.to}: {transition.explanation}")
