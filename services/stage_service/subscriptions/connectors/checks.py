"""What is wrong with a subscription's `config` and `credentials` for its connector: told when it is made."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from services.contracts.problems import Defect, shown
from services.contracts.yaml_source import nearest
from services.stage_service.subscriptions.connectors.book import ConnectorBook
from services.stage_service.subscriptions.connectors.connector import Connector


def first_defect(
    book: ConnectorBook, name: str, config: Mapping[str, Any], credentials: Mapping[str, str]
) -> Defect | None:
    """Give the first mistake of a subscription that wants the connector `name`; None when it is right."""
    book.refresh()
    connector = book.connectors.get(name)
    if connector is None:
        known = ", ".join(sorted(book.connectors)) or "none"
        return Defect(
            "unknown-connector", "connector", "there is no such connector",
            nearest(name, book.connectors) or f"Known: {known}.", shown(name),
        )  # fmt: skip
    return next(iter(defects(connector, config, credentials)), None)


def defects(
    connector: Connector, config: Mapping[str, Any], credentials: Mapping[str, str]
) -> list[Defect]:
    """Give every mistake; no value of a credential is told."""
    return [
        *_of_config(connector, config),
        *_of_credentials(connector, credentials),
    ]


def _of_config(connector: Connector, config: Mapping[str, Any]) -> Iterator[Defect]:
    settings = {setting.name: setting for setting in connector.settings}
    for name, value in config.items():
        setting = settings.get(name)
        if setting is None:
            remedy = nearest(name, settings) or f"Known: {', '.join(settings)}."
            yield Defect(
                "unknown-setting", f"config.{name}", f"the connector {connector.name!r} has no such setting",
                remedy,
            )  # fmt: skip
        elif not _fits(setting.default, value):
            yield Defect(
                "wrong-type", f"config.{name}", f"must be {_kind(setting.default)}: {setting.about}",
                "See 'baton connectors list' and docs/connectors.md.", shown(value),
            )  # fmt: skip
    for setting in connector.settings:
        if setting.required and config.get(setting.name) is None:
            yield Defect(
                "missing-setting",
                f"config.{setting.name}",
                f"is needed: {setting.about}",
                "Set it.",
            )


def _of_credentials(connector: Connector, credentials: Mapping[str, str]) -> Iterator[Defect]:
    known = {name for auth in connector.auth for name in auth.credentials}
    for name in credentials:
        if name not in known:
            yield Defect(
                "unknown-setting", f"credentials.{name}", "no way to authenticate uses it",
                nearest(name, known) or f"Known: {', '.join(sorted(known))}.",
            )  # fmt: skip
    if connector.auth_for(credentials) is None:
        ways = "; or ".join(", ".join(auth.credentials) for auth in connector.auth)
        yield Defect(
            "missing-credentials",
            "credentials",
            "they are not enough to authenticate",
            f"Give {ways}.",
        )


def _fits(default: Any, value: Any) -> bool:
    if value is None or default is None:
        return True
    if isinstance(default, bool) or isinstance(value, bool):
        return isinstance(default, bool) and isinstance(value, bool)
    if isinstance(default, int | float):
        return isinstance(value, int | float)
    return isinstance(value, type(default))


def _kind(default: Any) -> str:
    names = {bool: "true or false", dict: "an object", list: "a list", str: "a text"}
    return names.get(type(default), "a number")
