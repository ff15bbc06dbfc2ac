"""Settings of the stage service, read once from the environment (``BATON_*``) and ``.env``."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, SecretStr, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from services.contracts.rates import FAILURES, quota_of


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
    playbook_files: list[Path] = Field(
        [Path("playbooks/sales.yaml")], description="playbooks published at start, as JSON list"
    )
    team_file: Path = Field(Path("playbooks/team.yaml"), description="the roster")
    sources_dir: Path = Field(Path("sources"), description="the source files")
    source_secrets: dict[str, SecretStr | list[SecretStr]] = Field(
        {}, description="secrets of sources, as a JSON object of source to secret or secrets"
    )
    encryption_key: SecretStr | None = Field(
        None, description="32 bytes in base64; several, comma-separated: the first seals"
    )
    encryption_key_file: Path | None = Field(
        None, description="a file with such keys, one a line, for the secrets of sources at rest"
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
    log_format: str = Field("auto", description="json, console, or auto: console on a terminal")
    log_level: str = Field("info", description="debug, info, warning or error")

    @field_validator("rate_limit_requests", "rate_limit_events", "rate_limit_failures")
    @classmethod
    def _is_rate(cls, text: str) -> str:
        quota_of(text)
        return text
