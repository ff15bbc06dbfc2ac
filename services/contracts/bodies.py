"""What every JSON body of a request keeps to: its members, and text that PostgreSQL can hold."""

from __future__ import annotations

from typing import Annotated, Any, cast

from pydantic import BaseModel, ConfigDict, Field, field_validator

Truth = Annotated[bool, Field(strict=True)]
"""``true`` or ``false``; not 1, "yes" or "off", which pydantic would read as one."""


class RequestBody(BaseModel):
    """A body that refuses members it does not know, and NUL anywhere in the others."""

    model_config = ConfigDict(extra="forbid")

    @field_validator("*", mode="before")
    @classmethod
    def _without_nul(cls, value: object) -> object:
        if _has_nul(value):
            raise ValueError("contains the character NUL (\\u0000); remove it")
        return value


def _has_nul(value: object) -> bool:
    if isinstance(value, str):
        return "\x00" in value
    if isinstance(value, dict):
        members = cast("dict[Any, Any]", value)
        return any(_has_nul(part) for member in members.items() for part in member)
    return isinstance(value, list) and any(_has_nul(part) for part in cast("list[Any]", value))
