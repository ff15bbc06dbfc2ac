"""From a connector file (``connectors/{name}.yaml``) to a `Connector`, with the place of each mistake.

docs/connectors.md explains the format; `contracts/schemas/connector.schema.json` is its schema for editors.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any, cast

from services.contracts.yaml_source import Node, SourceError, nearest, read_yaml
from services.stage_service.sources.compiling import Compiling
from services.stage_service.sources.expressions import Expression
from services.stage_service.sources.source import EVIDENCE, Choice, Evidence
from services.stage_service.sources.templates import Template
from services.stage_service.subscriptions.connectors.auth_section import read_auth
from services.stage_service.subscriptions.connectors.connector import (
    MEANS,
    ROOTS,
    WINS,
    Body,
    Connector,
    Field,
    Meaning,
    Notice,
    Reading,
    Record,
    Setting,
    Step,
)

TOP_KEYS = (
    "name", "title", "evidence", "docs", "sources", "types", "config", "auth", "base", "headers",
    "values", "skip", "tell", "records", "steps", "answers",
)  # fmt: skip
STEP_KEYS = (
    "name", "when", "request", "query", "headers", "body", "take", "record", "reads", "writes",
    "fields", "creates", "settle_s", "keep_s", "answers",
)  # fmt: skip
METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE")
STEPS_MAX = 20
REMEDY = "See docs/connectors.md, 'Expressions'."

_NAME = re.compile(r"[a-z][a-z0-9-]{0,63}")
_WORD = re.compile(r"[a-z][a-z0-9_]{0,63}")
_REQUEST = re.compile(r"([A-Z]+) (/\S*)")


@lru_cache(maxsize=64)
def parse_connector(text: str, file: str) -> Connector:
    """Read a connector file; raises SourceError with every mistake: line, column and remedy."""
    return _ConnectorFile(text, file).read()


class _ConnectorFile:
    """One connector file being read; use once."""

    def __init__(self, text: str, file: str) -> None:
        self._root = read_yaml(text, file)
        self._compiling = Compiling(text, REMEDY, ROOTS)
        self._records: tuple[Record, ...] = ()

    def read(self) -> Connector:
        required = ("name", "title", "evidence", "types", "auth", "base", "steps")
        top = self._root.mapping(TOP_KEYS, required)
        self._records = tuple(
            self._record(name, node) for name, node in _members(top, "records").items()
        )
        compiling = self._compiling
        connector = Connector(
            name=self._matching(top.get("name"), _NAME, "x"),
            title=top["title"].text() if "title" in top else "",
            evidence=cast("Evidence", top["evidence"].one_of(EVIDENCE, "evidence", EVIDENCE[0]))
            if "evidence" in top
            else EVIDENCE[0],
            sources=top["sources"].texts() if "sources" in top else (),
            types=top["types"].texts() if "types" in top else (),
            settings=tuple(self._setting(n, v) for n, v in _members(top, "config").items()),
            auth=read_auth(top["auth"], compiling) if "auth" in top else (),
            base=compiling.template(top["base"]) if "base" in top else Template("", []),
            headers=self._templates(top, "headers"),
            values=self._choices(top, "values"),
            skip=tuple(self._notice(n) for n in _items(top, "skip")),
            tell=tuple(self._notice(n) for n in _items(top, "tell")),
            records=self._records,
            steps=self._steps(top["steps"]) if "steps" in top else (),
            answers=self._answers(top),
        )
        if self._root.problems:
            raise SourceError(self._root.problems)
        return connector

    def _matching(self, node: Node | None, pattern: re.Pattern[str], default: str) -> str:
        name = node.text(default) if node is not None else default
        if node is not None and not pattern.fullmatch(name):
            also = "-" if pattern is _NAME else "_"
            node.refuse(f"{name!r} is not a name", f"Use lower-case letters, digits and {also} .")
        return name

    def _setting(self, name: str, node: Node) -> Setting:
        fields = node.mapping(("about", "default", "required"), ("about",))
        if not _WORD.fullmatch(name):
            node.refuse(f"{name!r} is not a name", "Use lower-case letters, digits and _ .")
        return Setting(
            name,
            fields["about"].text() if "about" in fields else "",
            _plain(fields["default"].value) if "default" in fields else None,
            fields["required"].flag() if "required" in fields else False,
        )

    def _record(self, name: str, node: Node) -> Record:
        if not _WORD.fullmatch(name):
            node.refuse(f"{name!r} is not a name", "Use lower-case letters, digits and _ .")
        fields = node.mapping(("system", "link", "key", "fields"), ("fields",))
        names = list(_members(fields, "fields"))
        key = fields["key"].one_of(names, "field") if "key" in fields else None
        return Record(
            name,
            fields["system"].text() if "system" in fields else None,
            fields["link"].flag() if "link" in fields else "system" in fields,
            key or None,
            tuple(self._field(n, v) for n, v in _members(fields, "fields").items()),
        )

    def _field(self, name: str, node: Node) -> Field:
        """Read a field: a value, or ``{value: ..., wins: ...}``."""
        if not isinstance(node.value, dict) or "value" not in node.value:
            return Field(name, self._compiling.choice(node), "last")
        fields = node.mapping(("value", "wins"), ("value",))
        wins = fields["wins"].one_of(WINS, "side", "last") if "wins" in fields else "last"
        return Field(name, self._compiling.choice(fields["value"]), cast("Any", wins))

    def _notice(self, node: Node) -> Notice:
        fields = node.mapping(("when", "because"), ("when", "because"))
        never = self._compiling.expression(Node("false", "", 1, 1, []))
        return Notice(
            self._compiling.expression(fields["when"]) if "when" in fields else never,
            self._compiling.template(fields["because"])
            if "because" in fields
            else Template("", []),
        )

    def _steps(self, node: Node) -> tuple[Step, ...]:
        nodes = node.items()
        if not nodes:
            node.refuse("'steps' is empty", "Name at least one request.")
        if len(nodes) > STEPS_MAX:
            node.refuse(f"more than {STEPS_MAX} steps", "A delivery is a few requests.")
        steps = tuple(self._step(each) for each in nodes)
        seen: set[str] = set()
        for step, each in zip(steps, nodes, strict=True):
            if step.name in seen:
                each.refuse(f"two steps are named {step.name!r}", "Give each a name of its own.")
            seen.add(step.name)
        return steps

    def _step(self, node: Node) -> Step:
        fields = node.mapping(STEP_KEYS, ("name", "request"))
        method, path = self._request(fields["request"]) if "request" in fields else ("GET", None)
        record = self._record_of(node, fields)
        writes = "writes" in fields and fields["writes"].flag()
        reads = self._reading(fields["reads"]) if "reads" in fields else None
        if "creates" in fields and (reads is None or reads.id is None):
            fields["creates"].refuse(
                "'creates' without the new record's id", "Add 'reads: {id: ...}'."
            )
        if "keep_s" in fields and method != "GET":
            fields["keep_s"].refuse("'keep_s' of a request that is no GET", "Leave it out.")
        return Step(
            name=self._matching(fields.get("name"), _WORD, "x"),
            line=node.line,
            when=self._optional(fields, "when"),
            method=method,
            path=path or Template("", []),
            query=self._choices(fields, "query"),
            headers=self._templates(fields, "headers"),
            body=self._body(fields["body"]) if "body" in fields else None,
            take=self._choices(fields, "take"),
            record=record,
            reads=reads,
            writes=writes,
            fields=self._choices(fields, "fields"),
            creates="creates" in fields and fields["creates"].flag(),
            settle_s=fields["settle_s"].number(0, 600) if "settle_s" in fields else 0.0,
            keep_s=fields["keep_s"].number(0, 86_400) if "keep_s" in fields else 0.0,
            answers=self._answers(fields),
        )

    def _record_of(self, node: Node, fields: dict[str, Node]) -> str | None:
        """Read which record a step is about; what is said of one needs it."""
        known = [r.name for r in self._records]
        if "record" in fields:
            return fields["record"].one_of(known, "record") or None
        for key in ("reads", "writes", "fields", "creates", "settle_s"):
            if key in fields:
                fields[key].refuse(
                    f"{key!r} without 'record'",
                    f"Add a line 'record: ...'; known: {', '.join(known) or 'none'}.",
                )
        return None

    def _request(self, node: Node) -> tuple[str, Template]:
        text = node.text("GET /")
        found = _REQUEST.fullmatch(text) if "{" not in text else re.match(r"([A-Z]+) (/)", text)
        if found is None or found[1] not in METHODS:
            method = text.partition(" ")[0]
            node.refuse(
                f"{text!r} is not a request",
                nearest(method, METHODS)
                or "Write the method and a path: GET /v1/people/{known.x}.",
            )
            return "GET", Template("", [])
        path = Node(
            text[len(found[1]) + 1 :], node.file, node.line, node.column + len(found[1]) + 1,
            node.problems, node.path,
        )  # fmt: skip
        return found[1], self._compiling.template(path)

    def _reading(self, node: Node) -> Reading:
        fields = node.mapping(("id", "fields"))
        return Reading(self._optional(fields, "id"), self._optional(fields, "fields"))

    def _answers(self, fields: dict[str, Node]) -> tuple[Meaning, ...]:
        return tuple(self._meaning(node) for node in _items(fields, "answers"))

    def _meaning(self, node: Node) -> Meaning:
        fields = node.mapping(("status", "when", "means", "retry_after", "because"), ("means",))
        if "status" not in fields and "when" not in fields:
            node.refuse("it fits every answer", "Add 'status' or 'when'.")
        return Meaning(
            cast("Any", fields["means"].one_of(MEANS, "meaning", "refused"))
            if "means" in fields
            else "refused",
            tuple(int(n.number(100, 599)) for n in _items(fields, "status")),
            self._optional(fields, "when"),
            self._optional(fields, "retry_after"),
            self._compiling.template(fields["because"]) if "because" in fields else None,
        )

    def _body(self, node: Node) -> Body:
        """Compile a body; texts in it are expressions, numbers and flags stand for themselves."""
        if isinstance(node.value, dict):
            return {name: self._body(inner) for name, inner in node.mapping().items()}
        if isinstance(node.value, list):
            return [self._body(inner) for inner in node.items()]
        if node.value is None or isinstance(node.value, bool | int | float):
            return node.value
        return self._compiling.expression(node)

    def _optional(self, fields: dict[str, Node], key: str) -> Expression | None:
        return self._compiling.expression(fields[key]) if key in fields else None

    def _choices(self, fields: dict[str, Node], key: str) -> tuple[tuple[str, Choice], ...]:
        return tuple((n, self._compiling.choice(v)) for n, v in _members(fields, key).items())

    def _templates(self, fields: dict[str, Node], key: str) -> tuple[tuple[str, Template], ...]:
        return tuple((n, self._compiling.template(v)) for n, v in _members(fields, key).items())


def _items(fields: dict[str, Node], key: str) -> list[Node]:
    return fields[key].items() if key in fields else []


def _members(fields: dict[str, Node], key: str) -> dict[str, Node]:
    return fields[key].mapping() if key in fields else {}


def _plain(value: Any) -> Any:
    """Give a default as plain JSON; the YAML reader's values know their place in the file."""
    if isinstance(value, dict):
        return {str(n): _plain(v) for n, v in cast("dict[Any, Any]", value).items()}
    if isinstance(value, list):
        return [_plain(each) for each in cast("list[Any]", value)]
    if isinstance(value, bool) or value is None:
        return value
    if isinstance(value, int):
        return int(value)
    return float(value) if isinstance(value, float) else str(value)
