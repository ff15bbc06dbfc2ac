"""What every JSON body of a request keeps to: its members, and text that PostgreSQL can hold."""

from __future__ import annotations

from typing import Annotated, cast

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
    waiting = [value]  # no recursion: what is sent may be nested deeper than that reaches
    while waiting:
        each = waiting.pop()
        if isinstance(each, str):
            if "\x00" in each:
                return True
        elif isinstance(each, dict):
            members = cast("dict[object, object]", each)
            waiting += members.keys()
            waiting += members.values()
        elif isinstance(each, list):
            waiting += cast("list[object]", each)
    return False
