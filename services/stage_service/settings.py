"""Settings of the stage service, read once from the environment (``BATON_*``) and ``.env``."""

from __future__ import annotations

import json
import os
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Literal

import phonenumbers
from pydantic import Field, SecretStr, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from services.contracts.rates import FAILURES, quota_of
from services.stage_service.identities import IGNORED_VALUES, SHARED_MAILBOXES, Policy
from services.stage_service.subscriptions.addresses import allowed_from


class StageSettings(BaseSettings):
    """What the stage service needs to know; frozen."""

    model_config = SettingsConfigDict(
        env_prefix="BATON_", env_file=".env", extra="ignore", frozen=True
    )

    database_url: str = Field(
        pattern="^postgres(ql)?://", description="postgresql://user:password@host:port/database"
    )
    kafka_bootstrap_servers: str | None = Field(
        None, description="host:port[,host:port]; unset: the bus is a log in PostgreSQL"
    )
    host: str = Field("127.0.0.1", description="address the stage service listens on")
    port: int = Field(8080, description="port of the stage service")
    public_url: str | None = Field(None, description="where people reach the pages")
    notifier_url: str = Field("http://127.0.0.1:8081", description="where the notifier answers")
    playbook_files: Annotated[list[Path], NoDecode] = Field(
        [Path("playbooks/sales.yaml")],
        description="playbooks published at start: a path, or a JSON list of paths",
    )
    team_file: Path = Field(
        Path("playbooks/team.yaml"), description="the roster, or the people it begins with"
    )
    roster: Literal["database", "file"] = Field(
        "database",
        description="who has the say: the database (the file is read in once, the API changes people), "
        "or the file (read again when it changes; the API only reads)",
    )
    sources_dir: Path = Field(Path("sources"), description="the source files")
    connectors_dir: Path = Field(Path("connectors"), description="the connector files")
    source_secrets: dict[str, SecretStr | list[SecretStr]] = Field(
        {}, description="secrets of sources, as a JSON object of source to secret or secrets"
    )
    encryption_key: SecretStr | None = Field(
        None, description="32 bytes in base64; several, comma-separated: the first seals"
    )
    encryption_key_file: Path | None = Field(
        None, description="a file with such keys, one a line, for the secrets of sources at rest"
    )
    subscriptions: Literal["here", "off"] = Field(
        "here",
        description="who delivers to subscriptions: the stage service too (here), or only processes of "
        "'baton serve subscriptions' (off)",
    )
    subscriptions_port: int = Field(
        8082, description="port of 'baton serve subscriptions': health and metrics"
    )
    subscriptions_allow: str = Field(
        "",
        description="networks that subscriptions may name though they are not of the public internet, "
        "as 127.0.0.0/8,10.0.0.0/8, or all",
    )
    subscriptions_http: bool = Field(
        default=False, description="subscriptions may be delivered to over plain http"
    )
    link_key: SecretStr | None = Field(
        None,
        description="reads the links that answer handoffs, the notifier's; unset: there are none",
    )
    pool_connections_max: int = Field(10, description="connections of the lane and the loops")
    rate_limit_requests: str = Field(
        "off",
        description="requests a key, like '100/s burst 200'; a key's own rate takes its place",
    )
    rate_limit_events: str = Field("off", description="events a key, like '1000/s burst 5000'")
    rate_limit_failures: str = Field(
        FAILURES, description="requests with a wrong key from one address, like '60/m burst 100'"
    )
    trusted_proxies: str = Field(
        "", description="addresses and networks, comma-separated, whose X-Forwarded-For is believed"
    )
    idempotency_keep_s: float = Field(
        86_400, gt=0, description="seconds that the answer to an Idempotency-Key is kept"
    )
    drain_s: float = Field(
        0.0, ge=0, description="seconds that readiness fails before the service stops listening"
    )
    identity_fold_plus: bool = Field(
        default=False, description="ada+news@example.com and ada@example.com are one person"
    )
    identity_fold_dots: bool = Field(
        default=False, description="at Gmail, a.da@ and ada@ are one person"
    )
    identity_keep_case: bool = Field(
        default=False, description="Ada@example.com and ada@example.com are two people"
    )
    identity_phone_region: str | None = Field(
        None,
        description="country (DE, US) of phone numbers without a country code; unset: not read",
    )
    identity_shared_mailboxes: list[str] = Field(
        sorted(SHARED_MAILBOXES), description="local parts that several people read, as JSON list"
    )
    identity_ignored_values: list[str] = Field(
        sorted(IGNORED_VALUES), description="values of ids that stand for none, as JSON list"
    )
    identity_max: int = Field(50, ge=1, description="identities that one lead may own")
    identity_automatic_merges: bool = Field(
        default=True, description="events may merge leads; false: only people do"
    )
    late_horizon_days: float = Field(
        90.0,
        ge=0,
        le=36_500,
        description="days after which recorded history is not rewritten by late events; 0: it always is",
    )
    streams_max: int = Field(
        500, ge=1, description="streams, exports and waiting polls of the feeds in one process"
    )
    streams_per_key_max: int = Field(200, ge=1, description="the same for one key")
    stream_stall_s: float = Field(
        30.0, gt=0, description="seconds after which a client that does not read is dropped"
    )
    simulation_workers: int = Field(
        max(1, (os.cpu_count() or 1) // 2), ge=1, le=1024,
        description="processes that a simulation asked for over HTTP may use; half the cores by itself",
    )  # fmt: skip
    simulation_memory_mb: int = Field(
        400, ge=200, description="what each of those processes may take, in MiB; more ends it"
    )
    log_format: str = Field("auto", description="json, console, or auto: console on a terminal")
    log_level: str = Field("info", description="debug, info, warning or error")

    @field_validator("rate_limit_requests", "rate_limit_events", "rate_limit_failures")
    @classmethod
    def _is_rate(cls, text: str) -> str:
        quota_of(text)
        return text

    @field_validator("subscriptions_allow")
    @classmethod
    def _is_networks(cls, text: str) -> str:
        allowed_from(text)
        return text

    @field_validator("playbook_files", mode="before")
    @classmethod
    def _one_or_many(cls, told: object) -> object:
        if not isinstance(told, str):
            return told
        return json.loads(told) if told.lstrip().startswith("[") else [told]

    @field_validator("identity_phone_region")
    @classmethod
    def _known_region(cls, region: str | None) -> str | None:
        if not region:
            return None
        if region.upper() not in phonenumbers.SUPPORTED_REGIONS:
            raise ValueError(f"{region!r} is no country code; write two letters, as DE or US")
        return region.upper()

    @property
    def late_horizon(self) -> timedelta | None:
        """How long history is open to late events; None: for ever."""
        return timedelta(days=self.late_horizon_days) if self.late_horizon_days else None

    @property
    def identity_policy(self) -> Policy:
        """What names a person here."""
        return Policy(
            fold_plus=self.identity_fold_plus,
            fold_dots=self.identity_fold_dots,
            keep_case=self.identity_keep_case,
            region=self.identity_phone_region,
            shared_mailboxes=frozenset(n.lower() for n in self.identity_shared_mailboxes),
            ignored_values=frozenset(v.lower() for v in self.identity_ignored_values),
            identities_max=self.identity_max,
            automatic=self.identity_automatic_merges,
        )
