"""The AsyncAPI document (3.0.0): what Baton sends, where, by which key, and what it looks like.

Made of what the code itself uses: the topics' declaration (`contracts.topics`), the Structs of the events
(`contracts.schemas`), the shape of webhooks (`contracts.webhooks`). Seen from Baton: its operations send.
"""

from __future__ import annotations

from importlib.metadata import version
from typing import Any
from urllib.parse import urlsplit

from services.contracts.events import (
    DEAD_LETTERS_TOPIC,
    HANDOFFS_TOPIC,
    LEAD_SNAPSHOT,
    LEADS_TOPIC,
    SUBSCRIPTION_STOPPED,
    TRANSITIONS_TOPIC,
)
from services.contracts.problems import DOCS
from services.contracts.schemas import OTHERS, STRUCTS, components
from services.contracts.topics import BY_NAME, TOPICS, Topic
from services.contracts.webhooks import CONTENT_TYPE, HEADERS, ThinData, WebhookEvent

ASYNCAPI = "3.0.0"
KAFKA_BINDING = HTTP_BINDING = "0.3.0"
KAFKA_CHANNEL_BINDING = "0.5.0"
_REF = "#/components/schemas/{name}"
_JSON = "application/json"
_TEXT: dict[str, Any] = {"type": "string"}
_EXAMPLE_SERVERS = "kafka.example.com:9092"


def asyncapi(public_url: str, kafka_bootstrap_servers: str | None = None) -> dict[str, Any]:
    """Give the document of the stage service at `public_url`.

    `kafka_bootstrap_servers` None: no cluster is named, and the servers stand for an example.
    """
    servers = _servers(public_url, kafka_bootstrap_servers or _EXAMPLE_SERVERS)
    brokers = [{"$ref": f"#/servers/{name}"} for name in servers if name.startswith("kafka")]
    channels = {_key(topic.name): _topic_channel(topic, brokers) for topic in TOPICS}
    channels |= _http_channels()
    return {
        "asyncapi": ASYNCAPI,
        "id": "urn:baton:stage",
        "info": {
            "title": "Baton",
            "version": version("baton"),
            "description": "What Baton publishes of leads: stage transitions, handoffs, and leads as they "
            "are. New fields and types may come; ignore what you do not know.",
            "license": {"name": "Apache-2.0", "url": "https://www.apache.org/licenses/LICENSE-2.0"},
            "externalDocs": {"url": DOCS.replace("errors.md#", "events.md")},
            "tags": [{"name": "kafka"}, {"name": "http"}, {"name": "webhooks"}],
        },
        "defaultContentType": _JSON,
        "servers": servers,
        "channels": channels,
        "operations": _operations(channels),
        "components": {
            "messages": _messages(),
            "schemas": _schemas(),
            "securitySchemes": {
                "key": {"type": "http", "scheme": "bearer", "description": "an API key with `read`"},
                "signature": {
                    "type": "httpApiKey", "name": "webhook-signature", "in": "header",
                    "description": "Standard Webhooks: verify it by the subscription's secret",
                },
            },
        },
    }  # fmt: skip


def _servers(public_url: str, bootstrap_servers: str) -> dict[str, Any]:
    url = urlsplit(public_url)
    servers: dict[str, Any] = {
        "http": {
            "host": url.netloc, "protocol": url.scheme, "pathname": url.path or "/",
            "title": "The stage service", "security": [{"$ref": "#/components/securitySchemes/key"}],
        }
    }  # fmt: skip
    for number, host in enumerate(bootstrap_servers.split(",")):
        servers[f"kafka{number or ''}"] = {
            "host": host.strip(), "protocol": "kafka", "title": "Apache Kafka",
            "description": "Any of the brokers to start from." if number == 0 else "Another.",
        }  # fmt: skip
    return servers


def _key(topic: str) -> str:
    return topic.removeprefix("baton.").replace("-", "_")


def _topic_channel(topic: Topic, brokers: list[dict[str, str]]) -> dict[str, Any]:
    configs: dict[str, Any] = {
        name: int(value) if value.lstrip("-").isdigit() else value
        for name, value in topic.configs.items()
        if name in ("retention.ms", "delete.retention.ms")
    }
    names = [*topic.types, *((_TOMBSTONE,) if topic.name == LEADS_TOPIC else ())]
    if topic.name == DEAD_LETTERS_TOPIC:
        names = [_UNREADABLE]
    return {
        "address": topic.name,
        "title": topic.title,
        "description": f"{topic.about} Key: {topic.key}. Kept: {topic.kept}.",
        "servers": brokers,
        "tags": [{"name": "kafka"}],
        "messages": {name: {"$ref": f"#/components/messages/{name}"} for name in names},
        "bindings": {
            "kafka": {
                "topic": topic.name,
                "partitions": topic.partitions,
                "topicConfiguration": {
                    "cleanup.policy": topic.configs["cleanup.policy"].split(","), **configs,
                },
                "bindingVersion": KAFKA_CHANNEL_BINDING,
            }
        },
    }  # fmt: skip


def _http_channels() -> dict[str, Any]:
    http: dict[str, Any] = {"servers": [{"$ref": "#/servers/http"}], "tags": [{"name": "http"}]}
    channels: dict[str, Any] = {}
    for topic, path in FEEDS.items():
        name = _key(topic)
        messages = {
            f"feed.{t}": {"$ref": f"#/components/messages/feed.{t}"} for t in BY_NAME[topic].types
        }
        channels |= {
            f"{name}_feed": {
                "address": path, "title": f"Feed of {name}",
                "description": f"Pages of what is on {topic}, after a position. An item is the event's data "
                "with `position`, `type` and `message_id`. See /openapi.json.",
                "messages": messages, **http,
            },
            f"{name}_stream": {
                "address": f"{path}/stream", "title": f"Stream of {name}",
                "description": "The feed as Server-Sent Events: `id` is the position, `event` the type, "
                "`data` the item. Goes on after `Last-Event-ID`.",
                "messages": messages, **http,
            },
        }  # fmt: skip
    channels["webhooks"] = {
        "address": None, "title": "Webhooks",
        "description": "Posted to the address of a subscription, signed by Standard Webhooks.",
        "messages": {
            f"webhook.{t}": {"$ref": f"#/components/messages/webhook.{t}"} for t in _webhook_types()
        },
        "tags": [{"name": "webhooks"}],
    }  # fmt: skip
    return channels


FEEDS = {TRANSITIONS_TOPIC: "/v1/transitions", HANDOFFS_TOPIC: "/v1/handoffs/feed"}
"""The topics that are read over HTTP too, and where."""


def _feed_types() -> tuple[str, ...]:
    return tuple(type for topic in FEEDS for type in BY_NAME[topic].types)


def _webhook_types() -> tuple[str, ...]:
    """Give what can be subscribed to: not snapshots, nor what becomes of subscriptions themselves."""
    return tuple(t for t in STRUCTS if t not in (LEAD_SNAPSHOT, SUBSCRIPTION_STOPPED))


def _operations(channels: dict[str, Any]) -> dict[str, Any]:
    get = {"http": {"method": "GET", "query": _QUERY, "bindingVersion": HTTP_BINDING}}
    bindings: dict[str, Any] = {
        "webhooks": {"http": {"method": "POST", "bindingVersion": HTTP_BINDING}},
        **{name: get for name in channels if name.endswith(("_feed", "_stream"))},
    }
    security = {"webhooks": [{"$ref": "#/components/securitySchemes/signature"}]}
    return {
        f"send_{name}": {
            "action": "send",
            "channel": {"$ref": f"#/channels/{name}"},
            "title": channel["title"],
            "summary": channel["description"].partition(". ")[0].rstrip(".") + ".",
            **({"bindings": bindings[name]} if name in bindings else {}),
            **({"security": security[name]} if name in security else {}),
        }
        for name, channel in channels.items()
    }


_QUERY: dict[str, Any] = {
    "type": "object",
    "properties": {
        "after": {
            "type": "integer", "minimum": 0, "description": "the last position that is done",
        }
    },
}  # fmt: skip


_TOMBSTONE = f"{LEAD_SNAPSHOT}.gone"
_UNREADABLE = "unreadable"


def _messages() -> dict[str, Any]:
    keyed = {
        "kafka": {"key": {"type": "string", "format": "uuid"}, "bindingVersion": KAFKA_BINDING}
    }
    found: dict[str, Any] = {}
    for type, struct in STRUCTS.items():
        payload = {"$ref": _REF.format(name=struct.__name__)}
        found[type] = {
            "name": type, "title": type, "contentType": _JSON, "bindings": keyed,
            "headers": _ce_headers(type), "payload": payload,
        }  # fmt: skip
        if type in _feed_types():
            found[f"feed.{type}"] = {
                "name": type, "title": type, "contentType": _JSON, "payload": _feed_item(type, payload),
            }  # fmt: skip
        if type in _webhook_types():
            found[f"webhook.{type}"] = {
                "name": type, "title": type, "contentType": CONTENT_TYPE,
                "headers": {
                    "type": "object", "required": list(HEADERS),
                    "properties": {
                        name: {"type": "string", "description": said}
                        for name, said in HEADERS.items()
                    },
                },
                "payload": _webhook(type, payload),
            }  # fmt: skip
    found[_TOMBSTONE] = {
        "name": LEAD_SNAPSHOT, "title": "A lead that is no more", "bindings": keyed,
        "summary": "A tombstone: the value is null. Merged into another lead, or erased.",
        "headers": _ce_headers(LEAD_SNAPSHOT, gone=True), "payload": {"type": "null"},
    }  # fmt: skip
    found[_UNREADABLE] = {
        "name": _UNREADABLE, "title": "A message nobody could read",
        "contentType": "application/octet-stream",
        "headers": {
            "type": "object", "properties": {"baton_reason": _TEXT, "baton_topic": _TEXT},
        },
        "payload": {"description": "as it came"},
    }  # fmt: skip
    return found


def _subject(type: str) -> str:
    """Say what a message is about."""
    return "subscription" if type == SUBSCRIPTION_STOPPED else "lead"


def _ce_headers(type: str, *, gone: bool = False) -> dict[str, Any]:
    """Give the schema of a message's headers: the CloudEvents attributes (Kafka binding, binary mode)."""
    needed = ["ce_specversion", "ce_id", "ce_source", "ce_type", "ce_time"]
    properties: dict[str, Any] = {
        "ce_specversion": {"const": "1.0"},
        "ce_id": {"type": "string", "description": "drop repeats by it"},
        "ce_source": _TEXT,
        "ce_type": {"const": type},
        "ce_time": {"type": "string", "format": "date-time"},
        "ce_subject": {"type": "string", "description": f"the {_subject(type)}'s id, as the key"},
        "ce_traceparent": _TEXT,
        "traceparent": _TEXT,
    }
    if gone:
        properties["ce_mergedinto"] = {
            "type": "string", "format": "uuid", "description": "the lead it is part of now",
        }  # fmt: skip
    else:
        needed.append("content-type")
        properties["content-type"] = {"const": _JSON}
    return {"type": "object", "required": needed, "properties": properties}


def _feed_item(type: str, payload: dict[str, Any]) -> dict[str, Any]:
    placed: dict[str, Any] = {
        "type": "object", "required": ["position", "type", "message_id"],
        "properties": {
            "position": {"type": "integer", "minimum": 1}, "type": {"const": type}, "message_id": _TEXT,
        },
    }  # fmt: skip
    return {"allOf": [payload, placed]}


def _webhook(type: str, payload: dict[str, Any]) -> dict[str, Any]:
    thin = {"$ref": _REF.format(name=ThinData.__name__)}
    told: dict[str, Any] = {
        "type": "object",
        "properties": {"type": {"const": type}, "data": {"anyOf": [payload, thin]}},
    }
    return {"allOf": [{"$ref": _REF.format(name=WebhookEvent.__name__)}, told]}


def _schemas() -> dict[str, Any]:
    structs = list(dict.fromkeys([*STRUCTS.values(), *OTHERS.values(), ThinData]))
    _, found = components(structs, _REF)
    for schema in found.values():
        if "description" in schema:
            schema["description"] = " ".join(schema["description"].split())
    return found
