"""What the routes of playbooks are sent: a text in YAML, and which of two forms the answer is to have."""

from __future__ import annotations

import re
from datetime import datetime
from typing import Any

from fastapi import Request
from pydantic import Field

from services.contracts.bodies import RequestBody
from services.stage_service.errors import InvalidRequestError, NotYamlError

YAML = "application/yaml"
"""RFC 9512."""
_WEIGHT = re.compile(r"[01](?:\.[0-9]*)?")
_YAML_TYPES = (YAML, "application/x-yaml", "text/yaml", "text/x-yaml", "text/plain")
_EXAMPLE = """\
name: support
title: Support playbook
roles:
  agent: {title: Agent, does: "Answers."}
path: [asked, answered]
stages:
  asked: {title: Asked, band: tofu, focus: "A question.", goal: "An answer.", responsible: [agent]}
  answered: {title: Answered, band: bofu, focus: "An answer.", goal: "Peace.", responsible: [agent]}
rules:
  - {key: answered, from: [asked], to: answered, on: question.answered, because: "it was answered"}
"""
YAML_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "description": "a playbook, as in playbook.schema.json",
        # No type: any YAML is a text, and what a text says is judged by its checks.
        "content": {YAML: {"schema": {}, "example": _EXAMPLE}},
    }
}
"""How a route that takes a text says so."""
EITHER_FORM: dict[int | str, dict[str, Any]] = {
    200: {
        "content": {
            "application/json": {"schema": {"$ref": "#/components/schemas/WholePlaybook"}},
            YAML: {"schema": {"type": "string"}},
        },
        "headers": {"ETag": {"schema": {"type": "string"}, "description": "the version"}},
    }
}
"""How a route that gives a playbook as JSON or as its text says so."""


class Rollback(RequestBody):
    """Which version's text is to hold again, and why."""

    version: int = Field(strict=True, ge=1, le=2**31 - 1)
    message: str = Field(default="", max_length=2000)
    activate_at: datetime | None = None
    migrate: dict[str, str] = Field(
        default_factory=dict,
        max_length=200,
        description="where the journeys go on of stages that the older version did not have",
    )


async def text_in(request: Request) -> str:
    """Give the text that was sent. Raises NotYamlError for another type, InvalidRequestError."""
    type = request.headers.get("content-type", YAML).partition(";")[0].strip().lower()
    if type not in _YAML_TYPES:
        raise NotYamlError(
            f"a playbook is taken as {YAML}", field="content-type", value=type,
            remedy=f"Send the file as it is, with Content-Type: {YAML}.",
        )  # fmt: skip
    try:
        text = (await request.body()).decode()
    except UnicodeDecodeError:
        raise InvalidRequestError(
            "the text is not UTF-8", field="body", remedy="Save the file as UTF-8."
        ) from None
    if "\x00" in text:
        raise InvalidRequestError(
            "the text has a NUL character", field="body", remedy="Take it out."
        )
    return text


def wants_yaml(request: Request) -> bool:
    """Say whether ``Accept`` prefers the text to JSON (RFC 9110, 12.5.1); without a preference: JSON."""
    weights = {"json": 0.0, "yaml": 0.0}
    for item in request.headers.get("accept", "").split(","):
        type, *parameters = (part.strip().lower() for part in item.split(";"))
        weight = 1.0
        for name, _, value in (p.partition("=") for p in parameters):
            if name.strip() == "q":
                weight = float(value) if _WEIGHT.fullmatch(value) else 0.0
        form = "yaml" if type in _YAML_TYPES[:4] else "json" if type == "application/json" else ""
        if form:
            weights[form] = max(weights[form], weight)
    return weights["yaml"] > weights["json"]
