"""Nothing changes without the audit: every mutating route and every command is audited, or exempt by name."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from fastapi import FastAPI
from fastapi.routing import APIRoute

from services.notifier.app import create_app as create_notifier
from services.notifier.settings import NotifierSettings
from services.stage_service.app import create_app as create_stage
from services.stage_service.settings import StageSettings
from tests.contracts.audited import (
    COMMANDS,
    COMMANDS_NOT_AUDITED,
    ROUTES,
    ROUTES_NOT_AUDITED,
)
from tests.contracts.test_public_contracts import commands

MUTATING = {"POST", "PUT", "PATCH", "DELETE"}
NOWHERE = "postgresql://nobody@127.0.0.1:9/none"


def routes(service: str, app: FastAPI) -> Iterator[tuple[str, str, str]]:
    """Every mutating route of `app`: those of its document, and the pages and buttons beside."""
    for path, methods in app.openapi()["paths"].items():
        yield from ((service, m.upper(), path) for m in methods if m.upper() in MUTATING)
    yield from (
        (service, method, route.path)
        for route in nested(app.routes)
        for method in route.methods & MUTATING
    )


def nested(found: Iterable[Any]) -> Iterator[APIRoute]:
    """All routes, those of included routers and mounts too."""
    for each in found:
        if isinstance(each, APIRoute):
            yield each
        elif hasattr(each, "original_router"):
            yield from nested(each.original_router.routes)
        elif hasattr(each, "routes"):
            yield from nested(each.routes or ())


def all_routes() -> set[tuple[str, str, str]]:
    """Every mutating route of both services."""
    stage = create_stage(StageSettings(_env_file=None, database_url=NOWHERE))
    notifier = create_notifier(NotifierSettings(_env_file=None, database_url=NOWHERE))
    return {*routes("stage", stage), *routes("notifier", notifier)}


def test_every_mutating_route_is_audited_or_says_why_not() -> None:
    found = all_routes()
    assert ("stage", "POST", "/answer/{token}") in found, "routes outside the documents are seen"
    assert ("notifier", "POST", "/slack/actions") in found
    assert found - {*ROUTES, *ROUTES_NOT_AUDITED} == set(), "say in audited.py what the audit tells"
    assert {*ROUTES, *ROUTES_NOT_AUDITED} - found == set(), "there is no such route any more"
    assert not ROUTES.keys() & ROUTES_NOT_AUDITED.keys()


def test_every_command_is_audited_or_says_why_not() -> None:
    found = set(commands())
    assert found - {*COMMANDS, *COMMANDS_NOT_AUDITED} == set(), "say in audited.py what it changes"
    assert {*COMMANDS, *COMMANDS_NOT_AUDITED} - found == set(), "there is no such command any more"
