"""The documentation keeps up with the code: error codes, settings, commands, metrics, and links."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from http import HTTPStatus
from pathlib import Path
from typing import Any

import pytest
import typer.main
from prometheus_client import Counter, Gauge, Histogram

from services.baton.cli import app
from services.contracts import rates
from services.notifier import metrics as notifier_metrics
from services.notifier.settings import NotifierSettings
from services.stage_service import metrics as stage_metrics
from services.stage_service.playbook_catalogue import CHECKS
from services.stage_service.settings import StageSettings
from services.stage_service.subscriptions import metrics as subscription_metrics

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]
FRAMEWORKS = (HTTPStatus.NOT_FOUND, HTTPStatus.METHOD_NOT_ALLOWED, HTTPStatus.BAD_REQUEST)
"""What the framework answers by itself; its code is the phrase."""

_FENCE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\]\(([^)\s]+)\)")


def page(name: str) -> str:
    """The text of a page."""
    return (ROOT / name).read_text("utf-8")


def all_pages() -> str:
    """The text of all pages, and of the example of settings."""
    return "\n".join(p.read_text("utf-8") for p in PAGES) + page(".env.example")


def slugs(text: str) -> list[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", _FENCE.sub("", text), re.MULTILINE)
    return [re.sub(r"[^\w\- ]", "", h.strip().lower()).replace(" ", "-") for h in headings]


def codes_in(tree: ast.AST) -> Iterator[str]:
    """The error codes that a module names: of defects, of problems, of error types."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            name = node.func.id if isinstance(node.func, ast.Name) else ""
            index = {"Defect": 0, "problem": 1}.get(name)
            if index is not None and len(node.args) > index:
                code = node.args[index]
                if isinstance(code, ast.Constant) and isinstance(code.value, str):
                    yield code.value
        elif isinstance(node, ast.ClassDef):
            for line in node.body:
                if (
                    isinstance(line, ast.Assign)
                    and isinstance(line.targets[0], ast.Name)
                    and line.targets[0].id == "code"
                    and isinstance(line.value, ast.Constant)
                ):
                    yield str(line.value.value)


def test_every_error_code_has_its_heading() -> None:
    """A problem's `type` leads to a heading of docs/errors.md."""
    codes = {status.phrase.lower().replace(" ", "-") for status in FRAMEWORKS}
    for file in (ROOT / "services").rglob("*.py"):
        codes |= set(codes_in(ast.parse(file.read_text("utf-8"))))
    assert "missing-attribute" in codes
    assert "gate-unmet" in codes
    assert codes - set(slugs(page("docs/errors.md"))) == set()


def test_every_check_of_a_playbook_is_documented() -> None:
    """By its level: errors and warnings have a table each."""
    text = page("docs/playbook.md")
    _, errors, warnings = re.split(r"^### (?:Errors|Warnings)$", text, flags=re.MULTILINE)
    for level, part in (("error", errors), ("warning", warnings.split("\n### ")[0])):
        told = re.findall(r"^\| `([a-z-]+)` \|", part, re.MULTILINE)
        assert told == [check.id for check in CHECKS.values() if check.level == level]


@pytest.mark.parametrize("file", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_lead_somewhere(file: Path) -> None:
    """Every relative link and image exists, and so does the heading that it names."""
    for link in _LINK.findall(_FENCE.sub("", file.read_text("utf-8"))):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (file.parent / path).resolve() if path else file
        assert target.exists(), f"{link} leads nowhere"
        assert target.is_relative_to(ROOT), f"{link} leads out of the repository"
        if anchor:
            assert anchor in slugs(target.read_text("utf-8")), f"{link}: no such heading"


def test_every_setting_is_documented() -> None:
    """Each `BATON_*` setting of both services is named in the docs or in `.env.example`."""
    named = set(re.findall(r"\bBATON_[A-Z_]+\b", all_pages()))
    asked = {
        f"BATON_{n.upper()}" for n in (*StageSettings.model_fields, *NotifierSettings.model_fields)
    }
    assert asked - named == set()


def commands(command: Any, path: str) -> Iterator[str]:
    """The full names of the commands that are not hidden."""
    inner = getattr(command, "commands", None)
    if inner is None:
        yield path
        return
    for name, each in inner.items():
        if not each.hidden:
            yield from commands(each, f"{path} {name}")


def test_every_command_is_named() -> None:
    """Each command of `baton` is named in the README or the docs."""
    found = set(commands(typer.main.get_command(app), "baton"))
    assert "baton verify" in found
    text = all_pages()
    assert {name for name in found if not re.search(rf"{name}\b", text)} == set()


def test_every_metric_is_in_the_runbook() -> None:
    """Somebody who is woken by a metric finds it there."""
    names: set[str] = set()
    for module in (stage_metrics, notifier_metrics, subscription_metrics, rates):
        for value in vars(module).values():
            if isinstance(value, Counter | Gauge | Histogram):
                for metric in value.describe():
                    names.add(metric.name + ("_total" if metric.type == "counter" else ""))
    assert "baton_dead_letters_total" in names
    text = page("docs/runbook.md")
    assert {name for name in names if f"`{name}`" not in text} == set()
