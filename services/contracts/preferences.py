"""How a person wants to be alerted: at once or gathered, when, how often, by which channels. Pure.

Written in the roster as ``alerts:`` of a person; what is left out has the defaults here, which disturb
nobody's night who has said when that is, and never turn one hour into a hundred messages.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, cast

from services.contracts.yaml_source import Node

BUILT_IN_CHANNELS = ("inbox", "console", "email")
ALERT_KINDS = ("transition", "escalation", "handoff", "clock")
Deliver = Literal["immediate", "hourly", "daily"]
Within = Literal["working", "quiet-only", "always"]
DELIVER: tuple[Deliver, ...] = ("immediate", "hourly", "daily")
WITHIN: tuple[Within, ...] = ("working", "quiet-only", "always")
PER_HOUR_MAX = 30
GROUP_OVER = 3

OWN_VARIABLES = ("BATON_", "PG")
"""How names begin that a channel may not take from the environment: who may write the roster shall not
learn Baton's own secrets, nor the database's password, by naming a channel."""

_OWN = re.compile(r"\$\{(BATON_|PG)")
_APPRISE = re.compile(r"[a-z][a-z0-9+.-]*://\S+")
_TIME = re.compile(r"([01]\d|2[0-3]):[0-5]\d")


@dataclass(frozen=True)
class AlertPreferences:
    """What somebody wants of their alerts."""

    deliver: Deliver = "immediate"
    deliver_by: tuple[tuple[str, Deliver], ...] = ()
    """Another way for a kind of channel: ``email``, or a URL's scheme."""
    daily_at: str = "09:00"
    hours: Within = "working"
    """When to disturb: in working hours and outside quiet ones, only outside quiet ones, or always."""
    per_hour_max: int = PER_HOUR_MAX
    """Messages an hour and channel; what is over it is gathered into one."""
    group_over: int = GROUP_OVER
    """More messages than this within a minute become one."""
    channels: tuple[tuple[str, tuple[str, ...]], ...] = ()
    """Other channels for a kind of alert (``ALERT_KINDS``) or a role it is for."""

    def deliver_on(self, kind: str) -> Deliver:
        """Give how alerts go out by channels of `kind`."""
        return dict(self.deliver_by).get(kind, self.deliver)

    def channels_for(self, kind: str, role: str) -> tuple[str, ...] | None:
        """Give the channels of an alert of `kind` for `role`; None: the person's own."""
        chosen = dict(self.channels)
        return chosen.get(kind) or chosen.get(role)


DEFAULT_PREFERENCES = AlertPreferences()


def read_preferences(
    node: Node, roles: Sequence[str], who: str, email: str | None
) -> AlertPreferences:
    """Read a person's ``alerts``; what is wrong is noted at its place."""
    known = ("deliver", "daily_at", "hours", "per_hour_max", "group_over", "channels")
    fields = node.mapping(known)
    deliver: Deliver = "immediate"
    by: list[tuple[str, Deliver]] = []
    if "deliver" in fields and isinstance(fields["deliver"].value, dict):
        for kind, each in fields["deliver"].mapping().items():
            by.append((kind, _deliver(each)))
    elif "deliver" in fields:
        deliver = _deliver(fields["deliver"])
    daily_at = fields["daily_at"].text("09:00") if "daily_at" in fields else "09:00"
    if not _TIME.fullmatch(daily_at):
        fields["daily_at"].refuse(f"{daily_at!r} is not a time", "Write it as '09:00'.")
        daily_at = "09:00"
    within = "working"
    if "hours" in fields:
        within = fields["hours"].one_of(WITHIN, "hours of alerts", within)
    channels: list[tuple[str, tuple[str, ...]]] = []
    if "channels" in fields:
        for key, each in fields["channels"].mapping((*ALERT_KINDS, *roles)).items():
            channels.append((key, read_channels(each, who, email)))
    return AlertPreferences(
        deliver, tuple(by), daily_at, cast("Within", within),
        int(fields["per_hour_max"].number(1, 10_000)) if "per_hour_max" in fields else PER_HOUR_MAX,
        int(fields["group_over"].number(1, 10_000)) if "group_over" in fields else GROUP_OVER,
        tuple(channels),
    )  # fmt: skip


def read_channels(node: Node, who: str, email: str | None) -> tuple[str, ...]:
    """Read a list of channels of the person `who`; what is wrong is noted at its place."""
    channels: list[str] = []
    for item in node.items():
        channel = item.text("inbox")
        if channel not in BUILT_IN_CHANNELS and not _APPRISE.fullmatch(channel):
            # The value may hold a secret: it is not repeated in the error.
            item.refuse(
                "a channel is neither built in nor a URL",
                f"Use {', '.join(BUILT_IN_CHANNELS)}, or an Apprise URL such as slack://...",
            )
        if _OWN.search(channel):
            item.refuse(
                f"a channel holds a variable of Baton's own ({' and '.join(OWN_VARIABLES)}...)",
                "Set its secret in a variable of another name.",
            )
        if channel == "email" and not email:
            item.refuse(f"{who} has the channel 'email' and no address", "Add 'email: ...'.")
        channels.append(channel)
    return tuple(channels)


def _deliver(node: Node) -> Deliver:
    word = node.one_of(DELIVER, "way to deliver", "immediate")
    return cast("Deliver", word)
