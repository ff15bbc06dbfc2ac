"""The baseline of single events: the same body, validated by FastAPI and pydantic, and nothing done.

Run by `python -m bench.noop PORT` with the server settings of the services.
"""

from __future__ import annotations

import sys
from datetime import datetime
from typing import Literal

from fastapi import FastAPI
from pydantic import BaseModel, ConfigDict

from services.baton.serve import serve


class LeadData(BaseModel):
    """The `data` of a lead event as the load generator sends it; more members are kept."""

    model_config = ConfigDict(extra="allow")

    email: str
    name: str | None = None
    company: str | None = None
    title: str | None = None
    employees: int | None = None
    country: str | None = None
    origin: str | None = None
    url: str | None = None


class LeadEvent(BaseModel):
    """A structured CloudEvent about a lead."""

    specversion: Literal["1.0"]
    id: str
    source: str
    type: str
    time: datetime
    data: LeadData


class Answer(BaseModel):
    """What is answered."""

    status: str


app = FastAPI()


@app.post("/v1/events")
async def post_event(event: LeadEvent) -> Answer:
    """Validate and do nothing."""
    return Answer(status="ok")


@app.get("/readyz")
async def ready() -> Answer:
    """Answer that it runs."""
    return Answer(status="ok")


if __name__ == "__main__":
    serve(app, "127.0.0.1", int(sys.argv[1]), 0.0)
