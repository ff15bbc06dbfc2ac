"""Settings of the notifier, read once from the environment (``BATON_*``) and ``.env``."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, SecretStr, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from services.contracts.rates import FAILURES, quota_of
from services.notifier.escalations import waits_of


class NotifierSettings(BaseSettings):
    """What the notifier needs to know; frozen."""

    model_config = SettingsConfigDict(
        env_prefix="BATON_", env_file=".env", extra="ignore", frozen=True
    )

    database_url: str = Field(
        pattern="^postgres(ql)?://", description="postgresql://user:password@host:port/database"
    )
    kafka_bootstrap_servers: str | None = Field(
        None, description="host:port[,host:port]; unset: the bus is a log in PostgreSQL"
    )
    notifier_host: str = Field("127.0.0.1", description="address the notifier listens on")
    notifier_port: int = Field(8081, description="port of the notifier")
    public_url: str = Field(
        "http://127.0.0.1:8080", description="where people reach the pages: alerts link there"
    )
    url: str | None = Field(
        None,
        description="where the notifier reaches the stage service: answers to handoffs given in Slack "
        "are passed on there; unset: BATON_PUBLIC_URL",
    )
    team_file: Path = Field(Path("playbooks/team.yaml"), description="the roster")
    smtp_url: str | None = Field(
        None,
        description="smtp://user:pass@host:port?from=baton@example.com&tls=starttls|tls|no, or an "
        "Apprise mailto(s):// URL; unset: e-mail is skipped",
    )
    delivery_tries: int = Field(5, ge=1, le=20, description="attempts before a channel is dead")
    delivery_window_s: float = Field(
        3600, gt=0, description="seconds the attempts are spread over, on average"
    )
    delivery_timeout_s: float = Field(15, gt=0, description="seconds one attempt may take")
    delivery_keep_s: float = Field(
        3 * 86_400, gt=0, description="seconds a delivery waits for a channel that does not work"
    )
    notifier_public_url: str | None = Field(
        None, description="where people reach the notifier: links to acknowledge begin with it"
    )
    link_key: SecretStr | None = Field(
        None,
        description="signs those links and the ones that answer handoffs, 32 characters at least; unset: "
        "alerts have none. The stage service has the same",
    )
    link_valid_s: float = Field(
        7 * 86_400,
        gt=0,
        description="seconds a link to acknowledge is good for, and one to answer a handoff after "
        "its deadline",
    )
    digest_keep_s: float = Field(
        90 * 86_400,
        gt=0,
        description="seconds that the text of a message that told several alerts is kept",
    )
    slack_signing_secret: SecretStr | None = Field(
        None, description="the Slack app's; set: messages have buttons, answered at /slack/actions"
    )
    slack_reply_url: str = Field(
        "https://hooks.slack.com/",
        description="where Slack takes what came of a button; its requests may name no other host",
    )
    escalate_after: str = Field(
        "",
        description="how long an alert for a role waits for an acknowledgement before it climbs, like "
        "'ae=30m, csm=4h, *=1d'; a role left out: for ever",
    )
    templates_dir: Path | None = Field(
        None, description="templates that take the place of Baton's own, by their names"
    )
    pool_connections_max: int = Field(8, ge=2, description="connections to the database")
    rate_limit_requests: str = Field(
        "off",
        description="requests a key, like '100/s burst 200'; a key's own rate takes its place",
    )
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

    @field_validator("escalate_after")
    @classmethod
    def _are_waits(cls, text: str) -> str:
        waits_of(text)
        return text

    @field_validator("rate_limit_requests", "rate_limit_failures")
    @classmethod
    def _is_rate(cls, text: str) -> str:
        quota_of(text)
        return text
