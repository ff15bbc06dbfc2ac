"""``baton asyncapi``: the AsyncAPI document without a running service."""

from __future__ import annotations

import os
from typing import Any

from services.stage_service.asyncapi import asyncapi


def asyncapi_document(url: str) -> dict[str, Any]:
    """Give the document of the stage service at `url`, with the Kafka that the environment names."""
    return asyncapi(url, os.environ.get("BATON_KAFKA_BOOTSTRAP_SERVERS"))
