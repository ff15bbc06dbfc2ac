"""The secrets of sources: from the environment, and from the database, where they are sealed.

``BATON_SOURCE_SECRETS`` is a JSON object of source to secret or list of secrets;
``BATON_SOURCE_SECRET_<NAME>`` is one source's, comma-separated. All of a source's secrets count, so that
one can be replaced without a delivery refused in between.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import structlog
import uuid_utils
from dotenv import dotenv_values
from pydantic import SecretStr

from services.contracts.postgres_log import Executor
from services.stage_service.encryption import Cipher, EncryptionError

PREFIX = "BATON_SOURCE_SECRET_"
SECRET_CHARACTERS_MAX = 4096
_log = structlog.get_logger("baton.sources")


def given_secrets(
    listed: Mapping[str, SecretStr | list[SecretStr]], environment: Mapping[str, str] | None = None
) -> dict[str, tuple[str, ...]]:
    """Put together the secrets that are not stored, by source: of the setting, of the environment.

    `environment` is that of the process, and ``.env``, unless given.
    """
    if environment is None:
        env_file = {k: v for k, v in dotenv_values(Path(".env")).items() if v is not None}
        environment = {**env_file, **os.environ}
    found: dict[str, tuple[str, ...]] = {}
    for source, secrets in listed.items():
        each = secrets if isinstance(secrets, list) else [secrets]
        found[source] = tuple(s.get_secret_value() for s in each if s.get_secret_value())
    for name, value in environment.items():
        if name.startswith(PREFIX):
            source = name.removeprefix(PREFIX).lower().replace("_", "-")
            parts = tuple(part.strip() for part in value.split(",") if part.strip())
            found[source] = (*found.get(source, ()), *parts)
    return found


def _place(source: str, id: str) -> str:
    return f"stage.source_secrets|{source}|{id}"


async def add_secret(connection: Executor, cipher: Cipher, source: str, secret: str) -> str:
    """Seal and store one more secret of `source`; gives its id."""
    id = str(uuid_utils.uuid7())
    await connection.execute(
        "INSERT INTO stage.source_secrets (id, source, ciphertext) VALUES ($1, $2, $3)",
        id, source, cipher.seal(secret, _place(source, id)),
    )  # fmt: skip
    return id


async def remove_secrets(connection: Executor, source: str, but: str | None = None) -> int:
    """Remove the stored secrets of `source`, except the one with the id `but`; gives how many."""
    rows = await connection.fetch(
        "DELETE FROM stage.source_secrets WHERE source = $1 AND id IS DISTINCT FROM $2 RETURNING id",
        source, but,
    )  # fmt: skip
    return len(rows)


async def stored_counts(connection: Executor) -> dict[str, int]:
    """Give how many secrets are stored, by source."""
    rows = await connection.fetch(
        "SELECT source, count(*) AS n FROM stage.source_secrets GROUP BY source"
    )
    return {row["source"]: row["n"] for row in rows}


class SourceSecrets:
    """All secrets by source, as they were at the last `refresh`."""

    def __init__(self, given: Mapping[str, tuple[str, ...]], cipher: Cipher) -> None:
        self._given = dict(given)
        self._cipher = cipher
        self._opened: dict[str, tuple[str, str]] = {}
        self._all = dict(self._given)
        self._told: set[str] = set()

    def of(self, source: str) -> tuple[str, ...]:
        """Give the secrets of `source`."""
        return self._all.get(source, ())

    async def refresh(self, connection: Executor) -> None:
        """Read the stored ones again; one that cannot be opened is logged and left out."""
        rows = await connection.fetch(
            "SELECT id::text, source, ciphertext FROM stage.source_secrets s ORDER BY s.id"
        )
        opened: dict[str, tuple[str, str]] = {}
        for row in rows:
            id, source = row["id"], row["source"]
            known = self._opened.get(id)
            if known is not None and known[0] == source:
                opened[id] = known
                continue
            try:
                opened[id] = (source, self._cipher.open(row["ciphertext"], _place(source, id)))
            except EncryptionError as error:
                if id not in self._told:
                    self._told.add(id)
                    _log.error("source.secret_sealed", source=source, reason=str(error))
        self._opened = opened
        together = dict(self._given)
        for source, secret in opened.values():
            together[source] = (*together.get(source, ()), secret)
        self._all = together
