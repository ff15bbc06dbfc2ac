"""Settings of the stage service, read once from the environment (``BATON_*``) and ``.env``."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict


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
    pool_connections_max: int = Field(10, description="connections of the lane and the loops")
    drain_s: float = Field(
        0.0, ge=0, description="seconds that readiness fails before the service stops listening"
    )
    log_format: str = Field("auto", description="json, console, or auto: console on a terminal")
    log_level: str = Field("info", description="debug, info, warning or error")
