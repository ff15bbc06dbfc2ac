"""The section ``auth`` of a connector file: a list of ways, of which the credentials choose."""

from __future__ import annotations

from typing import Any, cast

from services.contracts.yaml_source import Node
from services.stage_service.sources.compiling import Compiling
from services.stage_service.subscriptions.connectors.connector import CREDENTIALS, Auth, Grant

WAYS = ("bearer", "header", "query", "oauth2")


def read_auth(node: Node, compiling: Compiling) -> tuple[Auth, ...]:
    """Read ``auth``; mistakes are noted."""
    nodes = node.items()
    if not nodes:
        node.refuse("'auth' is empty", f"Name a way: {', '.join(WAYS)}.")
    return tuple(auth for each in nodes if (auth := _way(each, compiling)) is not None)


def _way(node: Node, compiling: Compiling) -> Auth | None:
    fields = node.mapping(WAYS)
    if len(fields) != 1:
        node.refuse("each item of 'auth' is one way", f"Write one of {', '.join(WAYS)}.")
        return None
    kind, inner = next(iter(fields.items()))
    if kind == "bearer":
        return Auth("bearer", (inner.text("access_token"),))
    if kind == "oauth2":
        return _oauth2(inner, compiling)
    said = inner.mapping(("name", "from"), ("name", "from"))
    if "name" not in said or "from" not in said:
        return None
    return Auth(cast("Any", kind), (said["from"].text("api_key"),), said["name"].text("x-api-key"))


def _oauth2(node: Node, compiling: Compiling) -> Auth | None:
    fields = node.mapping(
        ("grant", "token_url", "audience", "scope", "base_from"), ("grant", "token_url")
    )
    if "grant" not in fields or "token_url" not in fields:
        return None
    grant = cast("Grant", fields["grant"].one_of(CREDENTIALS, "grant", "refresh_token"))
    if grant == "jwt_bearer" and "audience" not in fields:
        node.refuse("'jwt_bearer' has no 'audience'", "Name who the assertion is for.")
    return Auth(
        "oauth2", CREDENTIALS[grant], grant=grant,
        token_url=compiling.template(fields["token_url"]),
        audience=compiling.template(fields["audience"]) if "audience" in fields else None,
        scope=fields["scope"].text() if "scope" in fields else None,
        base_from=fields["base_from"].text() if "base_from" in fields else None,
    )  # fmt: skip
