"""From a source file (``sources/{name}.yaml``) to a `Source`, with the place of each mistake.

docs/sources.md explains the format; `contracts/schemas/source.schema.json` is its schema for editors.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache
from typing import Any

from services.contracts.cloudevents import URI_REFERENCE
from services.contracts.events import SOURCE
from services.contracts.yaml_source import Node, SourceError, read_yaml
from services.stage_service.sources.bodies import READERS
from services.stage_service.sources.compiling import Compiling
from services.stage_service.sources.conversions import TIME_FORMATS
from services.stage_service.sources.expressions import compile_expression
from services.stage_service.sources.functions import slug
from services.stage_service.sources.source import (
    EVIDENCE,
    Answer,
    Choice,
    EchoOf,
    EventMapping,
    Handshake,
    Source,
    Split,
    TimeOf,
    TypeTable,
)
from services.stage_service.sources.templates import Template
from services.stage_service.sources.verify_section import read_verify

TOP_KEYS = (
    "name", "title", "evidence", "docs", "source", "verify", "read", "split", "defaults", "events",
    "handshakes", "answer",
)  # fmt: skip
EVENT_KEYS = (
    "when", "ignore", "type", "id", "time", "email", "phone", "anonymous_id", "deal",
    "external_ids", "attributes", "attributes_from", "echo",
)  # fmt: skip
MEMBERS = ("email", "phone", "anonymous_id", "deal")
RESERVED = frozenset((*MEMBERS, "external_ids"))
REMEDY = "See docs/sources.md, 'Expressions'."

_NAME = re.compile(r"[a-z][a-z0-9-]{0,63}")
_SYSTEM = re.compile(r"[a-z][a-z0-9_.-]{0,63}")
_ATTRIBUTE = re.compile(r"[A-Za-z_][\w.-]{0,63}")
_SPLIT = re.compile(r"delivery((?:\.[A-Za-z_@#][\w@#-]*|\[\"[^\"]+\"\]|\[\]|\{\})*)")
_SPLIT_STEP = re.compile(r"\.([A-Za-z_@#][\w@#-]*)|\[\"([^\"]+)\"\]|(\[\]|\{\})")


@lru_cache(maxsize=512)
def parse_source(text: str, file: str) -> Source:
    """Read a source file; raises SourceError with every mistake: line, column and remedy.

    Whoever asks again for the same text gets the same source: reading is slow, and nothing of it can change.
    """
    return _SourceFile(text, file).read()


class _SourceFile:
    """One source file being read; use once."""

    def __init__(self, text: str, file: str) -> None:
        self._root = read_yaml(text, file)
        self._compiling = Compiling(text, REMEDY)

    def read(self) -> Source:
        top = self._root.mapping(
            TOP_KEYS, ("name", "title", "evidence", "verify", "read", "events")
        )
        name = self._name(top.get("name"))
        verify = read_verify(top["verify"]) if "verify" in top else ()
        defaults = top["defaults"].mapping(EVENT_KEYS[2:]) if "defaults" in top else {}
        source = Source(
            name=name,
            title=top["title"].text() if "title" in top else name,
            evidence=self._evidence(top.get("evidence")),
            event_source=self._event_source(top.get("source"), name),
            verify=verify,
            read=tuple(n.one_of(READERS, "format", "json") for n in _items(top, "read")),
            split=tuple(self._split(n) for n in _items(top, "split")) or (Split(()),),
            events=tuple(self._event(n, defaults) for n in _items(top, "events")),
            handshakes=tuple(self._handshake(n) for n in _items(top, "handshakes")),
            answer=self._answer(top["answer"]) if "answer" in top else Answer(),
            roots=frozenset(self._compiling.used),
        )
        for key in ("verify", "read", "events"):
            if key in top and not top[key].items():
                top[key].refuse(f"{key!r} is empty", "Name at least one.")
        if self._root.problems:
            raise SourceError(self._root.problems)
        return source

    def _name(self, node: Node | None) -> str:
        name = node.text("x") if node is not None else "x"
        if node is not None and not _NAME.fullmatch(name):
            node.refuse(f"{name!r} is not a name", "Use lower-case letters, digits and - .")
        return name

    def _event_source(self, node: Node | None, name: str) -> str:
        if node is None:
            return f"/sources/{name}"
        source = node.text()
        if source == SOURCE or not URI_REFERENCE.fullmatch(source):
            node.refuse(
                f"{source!r} cannot be the source of its events",
                f"Write a path or URI of its own, such as /sources/{name}.",
            )
        return source

    def _evidence(self, node: Node | None) -> Any:
        if node is None:
            return EVIDENCE[0]
        return node.one_of(EVIDENCE, "evidence", EVIDENCE[0])

    def _split(self, node: Node) -> Split:
        text = node.text("delivery")
        found = _SPLIT.fullmatch(text)
        if found is None:
            node.refuse(
                f"{text!r} is not a way to the items",
                "Write it as delivery.entries[].changes[], or delivery{}[] for each member's list.",
            )
            return Split(())
        return Split(tuple(a or b or c for a, b, c in _SPLIT_STEP.findall(found[1])))

    def _event(self, node: Node, defaults: dict[str, Node]) -> EventMapping:
        own = node.mapping(EVENT_KEYS)
        is_ignored = "ignore" in own and own["ignore"].flag()
        fields = own if is_ignored else {**defaults, **own}
        when = self._compiling.expression(own["when"]) if "when" in own else None
        if is_ignored:
            for key in own:
                if key not in ("when", "ignore"):
                    own[key].refuse(f"{key!r} beside 'ignore'", "An ignored item has only 'when'.")
            return EventMapping(node.line, when, True, None, None, None, (), (), ())
        for key in ("type", "id"):
            if key not in fields:
                node.refuse(f"the event has no {key!r}", f"Add a line '{key}: ...'.")
        return EventMapping(
            line=node.line,
            when=when,
            ignore=False,
            type=self._type(fields["type"]) if "type" in fields else None,
            id=self._compiling.template(fields["id"]) if "id" in fields else None,
            time=self._time(fields["time"]) if "time" in fields else None,
            members=(
                *((m, self._compiling.choice(fields[m])) for m in MEMBERS if m in fields),
                *self._named(own, defaults, "attributes", _ATTRIBUTE),
            ),
            external_ids=tuple(self._named(own, defaults, "external_ids", _SYSTEM)),
            attributes_from=tuple(
                self._compiling.expression(n) for n in _items(fields, "attributes_from")
            ),
            echo=self._echo(fields["echo"]) if "echo" in fields else None,
        )  # fmt: skip

    def _echo(self, node: Node) -> EchoOf:
        """Read how an item shows that it tells of what Baton itself wrote."""
        fields = node.mapping(("ours", "record", "created", "says", "says_from"))
        for key in ("created", "says", "says_from"):
            if key in fields and "record" not in fields:
                fields[key].refuse(
                    f"{key!r} without 'record'", "Name the record: record: 'contact:{item.id}'."
                )
        said = fields["says"].mapping() if "says" in fields else {}
        return EchoOf(
            ours=self._compiling.expression(fields["ours"]) if "ours" in fields else None,
            record=self._compiling.template(fields["record"]) if "record" in fields else None,
            created=self._compiling.expression(fields["created"]) if "created" in fields else None,
            says=tuple((self._key(n, name), self._compiling.choice(n)) for name, n in said.items()),
            says_from=self._compiling.expression(fields["says_from"])
            if "says_from" in fields
            else None,
        )

    def _key(self, node: Node, name: str) -> Template:
        """Compile the name of a field, which may be a template too."""
        return self._compiling.template(
            Node(name, node.file, node.line, 1, node.problems, node.path)
        )

    def _named(
        self, own: dict[str, Node], defaults: dict[str, Node], key: str, pattern: re.Pattern[str]
    ) -> Iterable[tuple[str, Choice]]:
        """Read a mapping of names to values, the default's names first unless the event has them."""
        nodes: dict[str, Node] = {}
        for fields in (defaults, own):
            if key in fields:
                nodes |= fields[key].mapping()
        for name, node in nodes.items():
            if not pattern.fullmatch(name):
                node.refuse(f"{name!r} is not a name in {key!r}", "Use letters, digits and _ .")
            elif key == "attributes" and name in RESERVED:
                node.refuse(f"{name!r} is no attribute", f"Write it as a key of the event: {name}.")
            yield name, self._compiling.choice(node)

    def _time(self, node: Node) -> TimeOf:
        if not isinstance(node.value, dict):
            return TimeOf(self._compiling.choice(node), "rfc3339")
        fields = node.mapping(("from", "format", "sent_at"), ("from",))
        format = fields["format"].text("rfc3339") if "format" in fields else "rfc3339"
        if "%" not in format and format not in TIME_FORMATS:
            fields["format"].refuse(
                f"unknown time format {format!r}",
                f"Known: {', '.join(TIME_FORMATS)}, or a pattern such as %d.%m.%Y.",
            )
        return TimeOf(
            self._compiling.choice(fields["from"]) if "from" in fields else Choice(()),
            format,
            self._compiling.choice(fields["sent_at"]) if "sent_at" in fields else None,
        )

    def _type(self, node: Node) -> Template | TypeTable:
        if not isinstance(node.value, dict):
            return self._compiling.template(node)
        fields = node.mapping(("of", "table", "otherwise"), ("of", "table"))
        table: dict[str, str] = {}
        for name, inner in (fields["table"].mapping() if "table" in fields else {}).items():
            table[name] = table[slug(name) or name] = inner.text("x")
        return TypeTable(
            self._compiling.expression(fields["of"])
            if "of" in fields
            else compile_expression("''"),
            table,
            self._compiling.template(fields["otherwise"]) if "otherwise" in fields else None,
        )

    def _handshake(self, node: Node) -> Handshake:
        known = ("method", "when", "verify", "status", "content_type", "body")
        fields = node.mapping(known, ("method",))
        method = "GET"
        if "method" in fields:
            method = fields["method"].one_of(("GET", "HEAD", "POST"), "method", "GET")
        body = fields["body"].value if "body" in fields else ""
        return Handshake(
            method=method,  # pyright: ignore[reportArgumentType]  one_of gives one of them
            when=self._compiling.expression(fields["when"]) if "when" in fields else None,
            verify=fields["verify"].flag() if "verify" in fields else True,
            status=int(fields["status"].number(200, 299)) if "status" in fields else 200,
            content_type=fields["content_type"].text() if "content_type" in fields else "text/plain",
            body=self._compiling.template(fields["body"]) if body else Template("", []),
        )  # fmt: skip

    def _answer(self, node: Node) -> Answer:
        fields = node.mapping(("status", "content_type", "body"))
        body = fields["body"].value if "body" in fields else None
        if body is not None and not isinstance(body, str):
            fields["body"].refuse("the body must be a text", "Write it in quotes.")
        default = "application/json" if body is None else "text/plain"
        return Answer(
            int(fields["status"].number(200, 299)) if "status" in fields else 200,
            fields["content_type"].text(default) if "content_type" in fields else default,
            None if body is None else str(body).encode(),
        )


def _items(fields: dict[str, Node], key: str) -> list[Node]:
    return fields[key].items() if key in fields else []
