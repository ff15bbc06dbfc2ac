"""Running one service in this process, with a stop that loses nothing."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
import threading
import time
from typing import Any

import uvicorn
from fastapi import FastAPI

GRACEFUL_S = 10
STALLED_S = 30.0
"""How long what was sent may stay unread before the connection is broken off."""


class _Server(uvicorn.Server):
    """On a signal readiness fails first; then, after the drain, no new connections are taken."""

    def __init__(self, config: uvicorn.Config, app: FastAPI, drain_s: float) -> None:
        super().__init__(config)
        self._app = app
        self._drain_s = drain_s
        self._draining: asyncio.Task[None] | None = None

    def handle_exit(self, sig: int, frame: Any) -> None:
        """Begin to stop; a second signal stops at once."""
        house = getattr(self._app.state, "house", None)
        if self._draining is not None or house is None:
            super().handle_exit(sig, frame)
            return
        house.stopping.set()
        loop = asyncio.get_running_loop()
        self._draining = loop.create_task(self._exit_later(sig, frame))

    async def _exit_later(self, sig: int, frame: Any) -> None:
        await asyncio.sleep(self._drain_s)
        super().handle_exit(sig, frame)


def serve(
    app: FastAPI, host: str, port: int, drain_s: float, trusted_proxies: str = "",
    stall_s: float = STALLED_S,
) -> None:  # fmt: skip
    """Serve `app` until SIGTERM or SIGINT.

    The client's address and scheme are taken from X-Forwarded-* only when it comes from
    `trusted_proxies`: addresses and networks, comma-separated. After the signal, ``/readyz`` answers 503 for
    `drain_s` seconds before the listening socket closes. A client that takes nothing of what it is sent for
    `stall_s` is hung up on.
    Exits with a clear message when the port is taken.
    """
    config = uvicorn.Config(
        app, host=host, port=port, log_config=None, access_log=False, server_header=False,
        timeout_graceful_shutdown=GRACEFUL_S, lifespan="on", timeout_keep_alive=75,
        proxy_headers=bool(trusted_proxies.strip()), forwarded_allow_ips=trusted_proxies,
    )  # fmt: skip
    server = _Server(config, app, drain_s)
    if os.environ.get("BATON_SUPERVISED"):
        threading.Thread(target=_stop_with_parent, args=(os.getppid(),), daemon=True).start()
    try:
        server.run(sockets=[_listening(config, stall_s)])
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)
    if not server.started:
        sys.exit(1)


def _listening(config: uvicorn.Config, stall_s: float) -> socket.socket:
    """Give the socket to listen on; what it accepts inherits its options.

    A server can only ask that a connection be closed once all was sent, and a client that does not read keeps
    that waiting for ever. With TCP_USER_TIMEOUT (RFC 5482; Linux) the kernel ends it, as it does
    when the client's machine is gone.
    """
    listening = config.bind_socket()
    if hasattr(socket, "TCP_USER_TIMEOUT"):
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(stall_s * 1000))
    return listening


def _stop_with_parent(parent: int) -> None:
    """Stop when the supervisor is gone: killed, it cannot tell its children."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os.kill(os.getpid(), signal.SIGTERM)
