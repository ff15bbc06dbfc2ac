"""What the routes of subscriptions answer, for the OpenAPI document: generators make types of it."""

from __future__ import annotations

from typing import Any, cast

import msgspec

from services.stage_service.subscriptions.reads import DeliveryShown, Shown
from services.stage_service.subscriptions.secrets import SecretShown

_REF = "#/components/schemas/{name}"
_JSON = "application/json"


class Detailed(Shown, frozen=True):
    """A subscription, and what signs its deliveries."""

    secrets: list[SecretShown] = msgspec.field(default_factory=list[SecretShown])


class DeliveryWithEvent(DeliveryShown, frozen=True):
    """A delivery and what it delivers; `body` is None when the log does not reach back to it."""

    body: dict[str, Any] | None = None


class Resent(msgspec.Struct, frozen=True):
    """How many deliveries are due again."""

    resent: int


class Replayed(msgspec.Struct, frozen=True):
    """The new run, and the position after which it delivers everything."""

    run: int
    position: int


NAMES: dict[type[msgspec.Struct], str] = {
    Shown: "Subscription", Detailed: "SubscriptionWithSecrets", SecretShown: "SubscriptionSecret",
    DeliveryShown: "SubscriptionDelivery", DeliveryWithEvent: "SubscriptionDeliveryWithEvent",
    Resent: "SubscriptionResent", Replayed: "SubscriptionReplayed",
}  # fmt: skip


def schemas() -> dict[str, Any]:
    """Give the JSON Schemas of all answers, by the name that the document knows them by."""
    _, found = msgspec.json.schema_components(list(NAMES), ref_template=_REF)
    renamed = {type.__name__: name for type, name in NAMES.items()} | {
        "Health": "SubscriptionHealth"
    }
    return {renamed.get(name, name): _renamed(schema, renamed) for name, schema in found.items()}


def _renamed(value: Any, names: dict[str, str]) -> Any:
    if isinstance(value, list):
        return [_renamed(each, names) for each in cast("list[Any]", value)]
    if not isinstance(value, dict):
        return value
    items = cast("dict[str, Any]", value)
    found = {key: _renamed(each, names) for key, each in items.items() if key != "title"}
    if isinstance(reference := items.get("$ref"), str):
        own = reference.rpartition("/")[2]
        found["$ref"] = _REF.format(name=names.get(own, own))
    return found


def one(type: type[msgspec.Struct], status: int = 200, said: str = "Done") -> dict[int | str, Any]:
    """Give the ``responses`` of a route that answers one of `type`."""
    schema = {"$ref": _REF.format(name=NAMES[type])}
    return {status: {"description": said, "content": {_JSON: {"schema": schema}}}}


def many(type: type[msgspec.Struct]) -> dict[int | str, Any]:
    """Give the ``responses`` of a route that answers a page of them."""
    schema = {
        "type": "object",
        "required": ["items", "next_cursor"],
        "properties": {
            "items": {"type": "array", "items": {"$ref": _REF.format(name=NAMES[type])}},
            "next_cursor": {
                "type": ["string", "null"],
                "description": "ask again with it; null: there is no more",
            },
        },
    }
    return {200: {"description": "A page", "content": {_JSON: {"schema": schema}}}}
