"""Whether a port is free; apart from `serve`, so that `baton up` need not load a web framework."""

from __future__ import annotations

import socket


def port_taken(host: str, port: int) -> bool:
    """Tell whether something listens on `host`:`port` already."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return True
    return False
