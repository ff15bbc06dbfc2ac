"""The texts of alerts: Baton's own templates, and those of a directory that take their place.

A directory's template is read and tried at the start. One that is broken is reported with file, line and
remedy, and Baton's own is used: an alert is written whatever somebody edited. Templates run sandboxed.
"""

from __future__ import annotations

import traceback
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import structlog
from jinja2.sandbox import ImmutableSandboxedEnvironment

from services.contracts.yaml_source import Problem

SUFFIX = ".txt.j2"
BYTES_MAX = 65_536
FILES_MAX = 200
OUTPUT_CHARACTERS_MAX = 100_000
REMEDY = "Correct the template; until then Baton's own is used. The values: docs/alerts.md."

_log = structlog.get_logger("baton.notifier")


def _environment(loader: jinja2.BaseLoader) -> ImmutableSandboxedEnvironment:
    return ImmutableSandboxedEnvironment(
        loader=loader,
        undefined=jinja2.StrictUndefined,
        autoescape=False,  # plain text: there is no mark-up to escape
        trim_blocks=True,
        lstrip_blocks=True,
        auto_reload=False,
    )


_package = jinja2.PackageLoader("services.notifier")
_shipped = _environment(_package)


class Templates:
    """Renders by the names of templates, the first that exists; `directory` None: Baton's own only."""

    def __init__(self, directory: Path | None = None) -> None:
        self.problems: list[Problem] = []
        self._texts: dict[str, tuple[str, Path]] = {}
        if directory is not None:
            self._read(directory)
        own = jinja2.FunctionLoader(self._load)
        self._environment = _environment(jinja2.ChoiceLoader([own, _package]))

    @property
    def names(self) -> list[str]:
        """Give the names of the directory's templates that are in use."""
        return sorted(self._texts)

    def check(self, samples: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
        """Render every template of the directory with each of the samples of its kind of alert.

        The broken ones are put aside and reported. What is of no kind in `samples` is of a ``transition``.
        """
        for name, (_, path) in list(self._texts.items()):
            kind = name.removeprefix("subject.").partition(".")[0]
            try:
                for said in samples.get(kind, samples["transition"]):
                    self._rendered(name, said)
            except (jinja2.TemplateError, ArithmeticError, TypeError, ValueError, LookupError,
                    AttributeError, RecursionError, MemoryError) as error:  # fmt: skip
                self._put_aside(name, path, error)
        if self._environment.cache is not None:
            self._environment.cache.clear()

    def render(self, names: Iterable[str], said: Mapping[str, Any]) -> str:
        """Render the first of `names` that exists; the last must be one of Baton's own."""
        for name in names:
            if name in self._texts:
                try:
                    return self._rendered(name, said)
                except (
                    Exception
                ) as error:  # whatever somebody wrote: the alert is told all the same
                    _log.warning("template.failed", template=name, reason=type(error).__name__)
            if name in _SHIPPED:
                return _shipped.get_template(name).render(said)
        raise LookupError(f"none of the templates {list(names)} exists")

    def has(self, name: str) -> bool:
        """Tell whether there is a template of that name."""
        return name in self._texts or name in _SHIPPED

    def _rendered(self, name: str, said: Mapping[str, Any]) -> str:
        text = self._environment.get_template(name).render(said)
        if len(text) > OUTPUT_CHARACTERS_MAX:
            raise ValueError(f"it writes more than {OUTPUT_CHARACTERS_MAX} characters")
        return text

    def _read(self, directory: Path) -> None:
        if not directory.is_dir():
            self._report(Problem(str(directory), 1, 1, "it is no directory",
                                 "Set BATON_TEMPLATES_DIR to one, or unset it."))  # fmt: skip
            return
        for path in sorted(directory.glob(f"*{SUFFIX}"))[:FILES_MAX]:
            try:
                if path.stat().st_size > BYTES_MAX:
                    raise ValueError(f"larger than {BYTES_MAX} bytes")
                self._texts[path.name] = (path.read_text(encoding="utf-8"), path)
            except (OSError, ValueError) as error:
                self._report(Problem(str(path), 1, 1, str(error), REMEDY))

    def _load(self, name: str) -> tuple[str, str | None, None] | None:
        found = self._texts.get(name)
        return (found[0], str(found[1]), None) if found is not None else None

    def _put_aside(self, name: str, path: Path, error: BaseException) -> None:
        del self._texts[name]
        line = getattr(error, "lineno", None)
        if line is None:
            frames = traceback.extract_tb(error.__traceback__)
            line = next((f.lineno for f in reversed(frames) if f.filename == str(path)), None)
        message = getattr(error, "message", None) or str(error) or type(error).__name__
        self._report(Problem(str(path), line or 1, 1, message.split("\n")[0], REMEDY))

    def _report(self, problem: Problem) -> None:
        self.problems.append(problem)
        _log.warning("template.broken", problem=str(problem))


_SHIPPED = frozenset(_package.list_templates())
SHIPPED = Templates()
