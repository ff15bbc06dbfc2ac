"""Text made harmless: what a lead or a person wrote becomes one line that calls nobody. Pure."""

from __future__ import annotations

import re
import unicodedata
from typing import Any, cast

LINE_CHARACTERS_MAX = 500

_CALL = re.compile(r"(?<![\w.+-])@(?=\w)")
_ODD = re.compile(r"[<@]|\]\(|^ |  | $")


def one_line(text: str, characters_max: int | None = LINE_CHARACTERS_MAX) -> str:
    """Give `text` as one harmless line.

    Control, format (bidirectional too), surrogate and line-breaking characters become spaces. ``<``, and
    ``@`` before a word, become look-alikes and ``](`` gets a space: chat services read ``<!here>`` and
    ``@everyone`` as calls to people, and ``[text](address)`` as a link.
    """
    if not text.isascii() or not text.isprintable():
        text = "".join(" " if unicodedata.category(c)[0] in "CZ" else c for c in text)
    elif not _ODD.search(text) and (characters_max is None or len(text) <= characters_max):
        return text  # most are: an alert has some fifty
    text = _CALL.sub("＠", text.replace("<", "‹").replace("](", "] ("))
    text = " ".join(text.split())
    if characters_max is not None and len(text) > characters_max:
        return text[: characters_max - 3].rstrip() + "..."
    return text


def words(key: str) -> str:
    """Give a stage or role key as words: ``lead_agent`` is "lead agent"."""
    return one_line(key.replace("_", " "))


def harmless(value: Any) -> Any:
    """Give builtins with every text in them as one harmless line."""
    if isinstance(value, str):
        return one_line(value)
    if isinstance(value, dict):
        items = cast("dict[str, Any]", value)
        return {key: harmless(item) for key, item in items.items()}
    if isinstance(value, list):
        return [harmless(item) for item in cast("list[Any]", value)]
    return value
