"""From a playbook's YAML to a `Playbook`: types, names and conditions, with the place of each mistake."""

from __future__ import annotations

import re
from typing import Any

from services.contracts.yaml_source import Node, Problem, SourceError, nearest, read_yaml
from services.stage_service.conditions import (
    TYPE_NAMES,
    Condition,
    ConditionError,
    Conditions,
    TypeName,
)
from services.stage_service.playbook import (
    BANDS,
    KINDS,
    FitRule,
    Gate,
    Playbook,
    Role,
    Rule,
    Signal,
    Stage,
    candidate_tables,
    digest_of,
)
from services.stage_service.playbook_checks import check_graph
from services.stage_service.playbook_clocks import read_clocks, read_handoffs
from services.stage_service.playbook_routing import read_routing
from services.stage_service.playbook_succession import read_enters, read_migrate

TOP_KEYS = (
    "name", "title", "philosophy", "competencies", "roles", "stages", "path", "attributes", "score",
    "rules", "labels", "routing", "handoffs", "clocks", "asks_for_contact", "migrate", "enters",
)  # fmt: skip
BUILT_IN: dict[str, TypeName] = {
    "event.type": "string",
    "event.source": "string",
    "event.clock": "string",
    "lead.email": "string",
    "journey.stage": "string",
    "journey.furthest_stage": "string",
    "journey.key": "string",
    "score.fit": "int",
    "score.intent": "int",
    "score.total": "int",
}
"""Variables that every condition may use besides the declared attributes."""
ROOMS = ("lead", "event", "deal")

_KEY = re.compile(r"[a-z][a-z0-9_]{0,63}")
_RULE_KEY = re.compile(r"[a-z][a-z0-9_-]{0,63}")
_EVENT_TYPE = re.compile(r"[\w.:/-]{1,256}")
_PLACEHOLDER = re.compile(r"\{([^{}]*)\}")


class PlaybookFile:
    """One playbook file being read; use once."""

    def __init__(self, text: str, file: str) -> None:
        self._text = text
        self._root = read_yaml(text, file)
        self._top: dict[str, Node] = {}
        self._roles: dict[str, Role] = {}
        self._stages: dict[str, Stage] = {}
        self._path: tuple[str, ...] = ()
        self._attributes: dict[str, dict[str, TypeName]] = {room: {} for room in ROOMS}
        self._conditions: Conditions | None = None
        self._variables: dict[str, TypeName] = {}

    def read(self) -> Playbook:
        """Read the whole file; raises SourceError with all problems."""
        self._top = self._root.mapping(
            TOP_KEYS, ("name", "title", "roles", "stages", "path", "rules")
        )
        self._read_attributes()
        self._read_roles()
        self._read_stages()
        rules, places = self._read_rules()
        fit, signals = self._read_score()
        attributes = {f"lead.{name}" for name in self._attributes["lead"]}
        routing = read_routing(self._top.get("routing"), self._roles, attributes, self._condition)
        taken: dict[str, Node] = {}
        handoffs = read_handoffs(self._top.get("handoffs"), self._roles, self._event_types, taken)
        clocks = read_clocks(self._top.get("clocks"), self._roles, self._stages, taken)
        asks = self._top.get("asks_for_contact")
        migrate = read_migrate(self._top.get("migrate"), self._stages)
        enters = read_enters(self._top.get("enters"))
        if not self._root.problems:
            # Names hold together, so the graph can be judged.
            check_graph(rules, self._stages, self._path, places)
        if self._root.problems:
            raise SourceError(self._root.problems)
        by_type, of_any_type = candidate_tables(rules, self._stages)
        signals_of: dict[str, tuple[Signal, ...]] = {}
        for signal in signals:
            for event_type in signal.on:
                signals_of[event_type] = (*signals_of.get(event_type, ()), signal)
        return Playbook(
            name=self._key(self._top["name"]),
            title=self._top["title"].text(),
            version=0,
            digest=digest_of(self._text),
            source=self._text,
            stages=self._stages,
            path=self._path,
            roles=self._roles,
            rules=rules,
            fit=fit,
            fit_attributes=frozenset(
                v.rpartition(".")[2] for rule in fit for v in rule.when.variables
            ),
            signals=signals_of,
            signals_by_key={s.key: s for s in signals},
            attributes=self._attributes,
            philosophy=self._texts("philosophy"),
            competencies=self._texts("competencies"),
            labels={k: n.text() for k, n in self._mapping("labels").items()},
            routing=routing,
            handoffs=handoffs,
            clocks=clocks,
            asks_for_contact=self._event_types(asks) if asks is not None else frozenset(),
            by_type=by_type,
            of_any_type=of_any_type,
            migrate=migrate,
            enters=enters,
            file=self._root.file,
        )

    def _mapping(self, key: str, known: tuple[str, ...] | None = None) -> dict[str, Node]:
        node = self._top.get(key)
        return node.mapping(known) if node is not None else {}

    def _texts(self, key: str) -> tuple[str, ...]:
        node = self._top.get(key)
        return node.texts() if node is not None else ()

    def _key(self, node: Node) -> str:
        key = node.text("x")
        if not _KEY.fullmatch(key):
            node.refuse(
                f"{key!r} is not a key", "Use lower-case letters, digits and _ .", rule="bad-name"
            )
        return key

    def _refuse_bad_keys(self, nodes: dict[str, Node], what: str) -> None:
        for key, node in nodes.items():
            if not _KEY.fullmatch(key):
                node.refuse(
                    f"{what} {key!r} is not a key", "Use lower-case letters, digits and _ .",
                    rule="bad-name",
                )  # fmt: skip

    def _read_attributes(self) -> None:
        for room, node in self._mapping("attributes", ROOMS).items():
            declared = node.mapping()
            self._refuse_bad_keys(declared, "attribute")
            for name, kind in declared.items():
                word = kind.one_of(TYPE_NAMES, "type", "string")
                if f"{room}.{name}" in BUILT_IN:
                    kind.refuse(f"{room}.{name} is built in", "Leave it out.")
                self._attributes[room][name] = next(t for t in TYPE_NAMES if t == word)
        for name, kind in BUILT_IN.items():
            room, _, attribute = name.partition(".")
            if room in self._attributes and name != "lead.email":
                self._attributes[room].setdefault(attribute, kind)
        self._variables = dict(BUILT_IN)
        for room, names in self._attributes.items():
            self._variables.update({f"{room}.{name}": kind for name, kind in names.items()})
        self._conditions = Conditions(self._variables)

    def _read_roles(self) -> None:
        nodes = self._mapping("roles")
        self._refuse_bad_keys(nodes, "role")
        for key, node in nodes.items():
            fields = node.mapping(("title", "does"), ("title", "does"))
            title, does = (fields[n].text() if n in fields else "" for n in ("title", "does"))
            self._roles[key] = Role(key, title, does)

    def _read_stages(self) -> None:
        nodes = self._mapping("stages")
        self._refuse_bad_keys(nodes, "stage")
        path_node = self._top.get("path")
        path: list[str] = []
        for item in path_node.items() if path_node is not None else ():
            key = item.one_of(nodes, "stage")
            if key in path:
                item.refuse(
                    f"stage {key!r} is twice on the path", "Name it once.", rule="duplicate-key"
                )
            if key:
                path.append(key)
        if path_node is not None and len(path) < 2 and not self._root.problems:
            path_node.refuse("the path needs a first and a last stage", "Name at least two stages.")
        self._path = tuple(path)
        for key, node in nodes.items():
            self._stages[key] = self._stage(key, node)
        for key, stage in self._stages.items():
            if stage.kind == "won" and path and key != path[-1]:
                nodes[key].refuse(
                    f"stage {key!r} is of kind 'won' and not the end of the path",
                    "Put it last in 'path'.",
                )

    def _stage(self, key: str, node: Node) -> Stage:
        known = ("title", "band", "kind", "focus", "goal", "responsible", "guidance", "next_steps",
                 "gate", "alerts", "urgent")  # fmt: skip
        fields = node.mapping(known, ("title", "band", "focus", "goal", "responsible"))
        on_path = key in self._path
        kind = "open" if on_path else "exit"
        if on_path and key == self._path[-1]:
            kind = "won"
        if "kind" in fields:
            kind = fields["kind"].one_of(KINDS, "kind", kind)
        responsible = self._names(fields, "responsible", self._roles, "role")
        if "responsible" in fields and not responsible and not self._root.problems:
            fields["responsible"].refuse(
                f"nobody is responsible in {key!r}", "Name a role.", rule="no-responsible-role"
            )
        return Stage(
            key=key,
            title=fields["title"].text() if "title" in fields else key,
            band=fields["band"].one_of(BANDS, "band", "tofu") if "band" in fields else "tofu",
            kind=kind,
            focus=fields["focus"].text() if "focus" in fields else "",
            goal=fields["goal"].text() if "goal" in fields else "",
            responsible=responsible or ("?",),
            guidance=fields["guidance"].texts() if "guidance" in fields else (),
            next_steps=fields["next_steps"].texts() if "next_steps" in fields else (),
            gate=self._gate(fields["gate"]) if "gate" in fields else Gate(),
            alerts=self._names(fields, "alerts", self._roles, "role"),
            path_index=self._path.index(key) if on_path else None,
            urgent=fields["urgent"].flag() if "urgent" in fields else False,
        )

    def _gate(self, node: Node) -> Gate:
        fields = node.mapping(("require", "reason"))
        require: list[str] = []
        for item in fields["require"].items() if "require" in fields else ():
            name = item.text()
            if name in self._variables and name.partition(".")[0] in ("lead", "deal"):
                require.append(name)
            elif name:
                known = [v for v in self._variables if v.partition(".")[0] in ("lead", "deal")]
                item.refuse(
                    f"unknown attribute {name!r}",
                    nearest(name, known) or "Declare it under 'attributes' (lead or deal).",
                    rule="undeclared-attribute",
                )
        return Gate(tuple(require), fields["reason"].flag() if "reason" in fields else False)

    def _names(
        self, fields: dict[str, Node], key: str, known: dict[str, Any], what: str
    ) -> tuple[str, ...]:
        found = [n.one_of(known, what) for n in (fields[key].items() if key in fields else ())]
        return tuple(dict.fromkeys(name for name in found if name))

    def _read_rules(self) -> tuple[tuple[Rule, ...], dict[str, Node]]:
        rules: list[Rule] = []
        places: dict[str, Node] = {"": self._top.get("stages", self._root)}
        for key, node in self._mapping("stages").items():
            places[f"stage:{key}"] = node
        for node in self._top["rules"].items() if "rules" in self._top else ():
            known = ("key", "to", "from", "on", "when", "because", "back")
            fields = node.mapping(known, ("key", "to", "from", "because"))
            if len([k for k in ("key", "to", "from", "because") if k in fields]) < 4:
                continue
            key = self._rule_key(fields["key"], places)
            if "on" not in fields and "when" not in fields:
                node.refuse(
                    f"rule {key!r} has neither 'on' nor 'when'", "Name event types or a condition.",
                    rule="no-trigger",
                )  # fmt: skip
            places[key] = node
            rules.append(
                Rule(
                    key=key,
                    to=fields["to"].one_of(self._stages, "stage"),
                    from_stages=frozenset(self._names(fields, "from", self._stages, "stage")),
                    on=self._event_types(fields["on"]) if "on" in fields else None,
                    when=self._condition(fields["when"]) if "when" in fields else None,
                    because=self._because(fields["because"]),
                    back=fields["back"].flag() if "back" in fields else False,
                )
            )
        return tuple(rules), places

    def _rule_key(self, node: Node, taken: dict[str, Any]) -> str:
        key = node.text("x")
        if not _RULE_KEY.fullmatch(key):
            node.refuse(
                f"{key!r} is not a key",
                "Use lower-case letters, digits, _ and - .",
                rule="bad-name",
            )
        if key in taken:
            node.refuse(
                f"the key {key!r} is used twice", "Give each its own.", rule="duplicate-key"
            )
        return key

    def _event_types(self, node: Node) -> frozenset[str]:
        types: set[str] = set()
        for item in node.items():
            name = item.text()
            if name and not _EVENT_TYPE.fullmatch(name):
                item.refuse(
                    f"{name!r} is not an event type", "Write it as lead.created.", rule="bad-name"
                )
            types.add(name)
        if not types:
            node.refuse(
                "no event type is named",
                "Name one, or leave 'on' out for every event.",
                rule="no-trigger",
            )
        return frozenset(types)

    def _condition(self, node: Node) -> Condition | None:
        text = node.expression()
        assert self._conditions is not None  # noqa: S101  attributes are read first
        try:
            return self._conditions.compile(text)
        except ConditionError as error:
            remedy = "See docs/playbook.md, 'Conditions'."
            if error.name is not None:
                remedy = nearest(error.name, self._variables) or (
                    "Declare it under 'attributes', or use one of the declared ones."
                )
            quoted = self._text.splitlines()[node.line - 1][node.column - 1 : node.column] in "'\""
            column = error.column + (0 if error.line > 1 else node.column - 1 + int(quoted))
            node.refuse(
                f"{node.path}: {error.reason}", remedy, line_offset=error.line - 1, column=column,
                rule="bad-condition" if error.name is None else "undeclared-attribute",
            )  # fmt: skip
            return None

    def _because(self, node: Node) -> str:
        text = node.text("of a rule")
        for name in _PLACEHOLDER.findall(text):
            if name not in self._variables:
                hint = nearest(name, self._variables) or "Use a declared variable."
                node.refuse(
                    f"unknown variable {{{name}}} in {node.path}", hint, rule="undeclared-attribute"
                )
        return text.rstrip(".")

    def _read_score(self) -> tuple[tuple[FitRule, ...], list[Signal]]:
        score = self._mapping("score", ("fit", "intent"))
        fit: list[FitRule] = []
        taken: dict[str, Any] = {}
        for node in score["fit"].items() if "fit" in score else ():
            fields = node.mapping(("key", "when", "points", "because"), ("key", "when", "points"))
            if not all(k in fields for k in ("key", "when", "points")):
                continue
            key = self._rule_key(fields["key"], taken)
            taken[key] = node
            when = self._condition(fields["when"])
            if when is not None:
                strange = [v for v in when.variables if "lead." not in v]
                if strange:
                    fields["when"].refuse(
                        f"fit rule {key!r} uses {strange[0]!r}", "Fit sees lead attributes only."
                    )
                points = int(fields["points"].number(-1000, 1000))
                because = fields["because"].text(key) if "because" in fields else key
                fit.append(FitRule(key, when, points, because))
        signals: list[Signal] = []
        for node in score["intent"].items() if "intent" in score else ():
            known = ("key", "on", "points", "half_life_days", "cap", "because")
            fields = node.mapping(known, known[:4])
            if not all(k in fields for k in known[:4]):
                continue
            key = self._rule_key(fields["key"], taken)
            taken[key] = node
            signals.append(
                Signal(
                    key,
                    self._event_types(fields["on"]),
                    fields["points"].number(0, 1000),
                    fields["half_life_days"].number(0.01, 3650),
                    fields["cap"].number(0, 10_000) if "cap" in fields else 1000.0,
                    fields["because"].text(key) if "because" in fields else key,
                )
            )
        return tuple(fit), signals


__all__ = ["PlaybookFile", "Problem"]
