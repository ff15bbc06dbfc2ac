"""Receives webhooks and verifies them, with nothing but Python: python receive_webhook.py 9000

Standard Webhooks: HMAC-SHA256 over "id.timestamp.body" with the secret that "whsec_" holds in base64.
"""

import base64
import hashlib
import hmac
import json
import os
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

KEY = base64.b64decode(os.environ["BATON_WEBHOOK_SECRET"].removeprefix("whsec_"))
TOLERANCE_S = 300
BODY_BYTES_MAX = 1024 * 1024
done: set[str] = set()  # in a database, in earnest: a delivery may come more than once


def is_signed(id: str, timestamp: str, signatures: str, body: bytes) -> bool:
    if not timestamp.isdecimal() or abs(time.time() - int(timestamp)) > TOLERANCE_S:
        return False
    digest = hmac.new(KEY, f"{id}.{timestamp}.".encode() + body, hashlib.sha256).digest()
    expected = b"v1," + base64.b64encode(digest)
    # Several, separated by spaces, while one secret replaces another.
    return any(hmac.compare_digest(expected, s.encode()) for s in signatures.split())


class Receiver(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        size = min(int(self.headers.get("content-length", 0)), BODY_BYTES_MAX)
        body = self.rfile.read(size)
        id = self.headers.get("webhook-id", "")
        timestamp = self.headers.get("webhook-timestamp", "")
        signatures = self.headers.get("webhook-signature", "")
        if not is_signed(id, timestamp, signatures, body):
            self.answer(401)
            return
        if id not in done:
            event = json.loads(body)
            print(event["type"], event["data"].get("to"), flush=True)  # the work
            done.add(id)
        self.answer(204)

    def answer(self, status: int) -> None:
        self.send_response(status)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        pass


if __name__ == "__main__":
    ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Receiver).serve_forever()
