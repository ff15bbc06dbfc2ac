"""All checks of a playbook: their ids, levels, and words. docs/playbook.md has the same table."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

PREFIX = "playbook/"
"""Before each id, so that reports of several tools can be mixed."""


@dataclass(frozen=True)
class Check:
    """A check: its id (without `PREFIX`; never changed, never given to another), and its words."""

    id: str
    level: Literal["error", "warning"]
    title: str
    """What was found, in a few words."""
    remedy: str


def _all(*checks: Check) -> dict[str, Check]:
    return {check.id: check for check in checks}


_E: Literal["error"] = "error"
_W: Literal["warning"] = "warning"

CHECKS = _all(
    Check("unreadable", _E, "a file that cannot be read", "Give the path of a UTF-8 file."),
    Check("syntax", _E, "not YAML", "Correct the YAML."),
    Check("wrong-type", _E, "a value of another type than the key takes", "Write what is asked for."),
    Check("missing-key", _E, "a key that must be there is not", "Add it."),
    Check("unknown-key", _E, "a key that is not known there", "Correct it, or remove it."),
    Check("duplicate-key", _E, "one key for two things", "Give each its own."),
    Check("bad-name", _E, "a key or event type with characters it may not have", "Rename it."),
    Check("unknown-name", _E, "a stage, role or type that is not declared", "Correct it, or declare it."),
    Check("out-of-bounds", _E, "a number, text or file out of its bounds", "Keep to the bounds told."),
    Check("bad-condition", _E, "a condition that is not CEL, or compares what cannot be", "Correct it."),
    Check("undeclared-attribute", _E, "an attribute that is not declared", "Declare it, or correct it."),
    Check("no-trigger", _E, "a rule with neither 'on' nor 'when'", "Name event types or a condition."),
    Check("bad-duration", _E, "a duration that has no length", "Write 30m, 4h; 2d with 'time: wall'."),
    Check("bad-clock", _E, "a reminder or a ladder out of order", "Write the earliest first."),
    Check("no-responsible-role", _E, "a stage without a responsible role", "Name a role."),
    Check("unreachable-stage", _E, "a stage that no rule leads to", "Add a rule, or remove the stage."),
    Check("cycle", _E, "rules that one event fires in a circle", "Take a stage out of 'from'."),
    Check("moves-backwards", _E, "a rule that moves back on the path", "Say 'back: true' if meant."),
    Check("invalid", _E, "another mistake", "As the message says."),
    Check("never-fires", _W, "a rule that can never be true", "Correct its condition."),
    Check("shadowed-rule", _W, "a rule before which another always fires", "Put it above."),
    Check("overlapping-rules", _W, "two rules whose order alone decides", "Let them exclude each other."),
    Check("never-scores", _W, "a fit rule that can never be true", "Correct its condition."),
    Check("never-routes", _W, "a routing rule that can never be true", "Correct its condition."),
    Check("dead-end", _W, "an open stage that no rule leads out of", "Add a rule, or make it an exit."),
    Check("unused-role", _W, "a role that nothing uses", "Name it where it acts, or remove it."),
    Check("clock-without-escalation", _W, "a deadline that only its owner hears of", "Add 'escalate'."),
    Check("handoff-without-plan", _W, "a role that takes over without having to answer",
          "Add it to 'handoffs'."),
    Check("nobody", _W, "somebody who is not in the roster", "Correct the id, or add the person."),
    Check("role-without-people", _W, "a role that nobody has", "Give it to somebody."),
    Check("alert-to-nobody", _W, "an alert to a role that nobody has", "Alert another role."),
    Check("unseen-attribute", _W, "an attribute that no event brought lately", "Map it, or correct it."),
    Check("unseen-event-type", _W, "an event type that did not come lately", "Correct it."),
    Check("gate-never-met", _W, "a gate on what no event brings", "Ask for what is known."),
    Check("unused-label", _W, "a label of a type that nothing uses", "Correct it, or remove it."),
    Check("needless-meant", _W, "a comment '# meant:' that marks nothing", "Remove it."),
)  # fmt: skip
