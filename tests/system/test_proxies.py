"""Whose X-Forwarded-For is believed: nobody's, unless told."""

from __future__ import annotations

from pathlib import Path

import httpx

from tests.system.running import serving_process, until

WRONG = {"authorization": "Bearer bat_000000000000_wrong"}


def guesses(client: httpx.Client, addresses: list[str]) -> list[int]:
    """The answers to wrong keys, each said to come from another address."""
    until(lambda: client.get("/readyz").status_code == 200, "the stage service is ready")
    return [
        client.get("/v1/leads", headers={**WRONG, "x-forwarded-for": address}).status_code
        for address in addresses
    ]


def test_nobody_can_hide_behind_a_header(database_url: str, tmp_path: Path) -> None:
    """Wrong keys are counted by the address of the connection."""
    with serving_process(
        database_url, tmp_path / "log", rate_limit_failures="1/h burst 2"
    ) as client:
        addresses = [f"192.0.2.{n}" for n in range(4)]
        assert guesses(client, addresses) == [401, 401, 429, 429]


def test_a_trusted_proxy_is_believed(database_url: str, tmp_path: Path) -> None:
    """Then each sender has a count of its own; what the sender itself wrote before is not believed."""
    with serving_process(
        database_url, tmp_path / "log", rate_limit_failures="1/h burst 2",
        trusted_proxies="127.0.0.0/8",
    ) as client:  # fmt: skip
        assert guesses(client, ["192.0.2.1", "192.0.2.2", "192.0.2.3"]) == [401] * 3
        forged = [f"203.0.113.{n}, 192.0.2.9" for n in range(3)]
        assert guesses(client, forged) == [401, 401, 429]
