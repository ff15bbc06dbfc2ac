"""What `baton verify` does on the terminal: a progress bar, the report, and a repair once it is confirmed."""

from __future__ import annotations

import sys
from concurrent.futures.process import BrokenProcessPool

import asyncpg
import msgspec
from pydantic import ValidationError
from rich.console import Console
from rich.progress import Progress

from services.baton.command import run
from services.baton.repair import repair as repair_database
from services.baton.verify import verify_database
from services.contracts.audit import on_the_command_line
from services.contracts.verification import Repair, Verification
from services.stage_service.identities import Policy
from services.stage_service.settings import StageSettings

CLEAN, DIFFERENCES, NOT_CHECKED = 0, 1, 2


def command(database_url: str, workers: int, *, as_json: bool, repair: bool, yes: bool) -> int:
    """Verify, and repair where that is asked for; gives the exit code.

    A repair goes by what names a person as the service's settings say (``BATON_IDENTITY_*``).
    """
    out, console = Console(highlight=False), Console(highlight=False, stderr=True)
    try:
        report = _verified(database_url, workers, console)
        if repair and not report.clean:
            policy = StageSettings(database_url=database_url).identity_policy  # pyright: ignore[reportCallIssue]
            report = _repaired(database_url, workers, report, console, policy, yes=yes)
    except ValidationError as error:
        wrong = "; ".join(f"BATON_{str(e['loc'][0]).upper()}: {e['msg']}" for e in error.errors())
        console.print(f"the settings are not right: {wrong}", soft_wrap=True, markup=False)
        return NOT_CHECKED
    except BrokenProcessPool:
        console.print("it could not be checked: a process of it ended, most likely for want of memory",
                      soft_wrap=True, markup=False)  # fmt: skip
        return NOT_CHECKED
    except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
        console.print(f"it could not be checked: {error}", soft_wrap=True, markup=False)
        return NOT_CHECKED
    if as_json:
        sys.stdout.write(msgspec.json.format(msgspec.json.encode(report)).decode() + "\n")
    else:
        for line in report.lines():
            out.print(line, soft_wrap=True, markup=False)
    return CLEAN if report.clean else DIFFERENCES


def _verified(database_url: str, workers: int, console: Console) -> Verification:
    with Progress(console=console, transient=True) as bar:
        row = bar.add_task("folding again", total=None)
        return run(verify_database(
            database_url, workers=workers,
            progress=lambda done, total: bar.update(row, completed=done, total=total),
        ))  # fmt: skip


def _repaired(
    database_url: str, workers: int, report: Verification, console: Console, policy: Policy, *, yes: bool
) -> Verification:  # fmt: skip
    """Try the repair, ask, do it, and verify again. Whoever cannot be asked and did not say yes only sees."""
    by = on_the_command_line()
    tried = run(repair_database(database_url, report, by, dry_run=True, policy=policy))
    if not yes:
        for line in told(tried):
            console.print(line, soft_wrap=True, markup=False)
        asked = sys.stdin.isatty() and console.input("Do this? [y/N] ").strip().lower() == "y"
        if not asked:
            console.print("Nothing was changed. --yes does it without asking.", markup=False)
            report.repair = tried
            return report
    done = run(repair_database(database_url, report, by, dry_run=False, policy=policy))
    for line in told(done):
        console.print(line, soft_wrap=True, markup=False)
    after = _verified(database_url, workers, console)
    after.repair = done
    return after


def told(done: Repair) -> list[str]:
    """Say what a repair did, or would do."""
    lines = ["would repair:" if done.dry_run else "repaired:"]
    lines += [f"  {other}" for other in done.others]
    for lead in done.leads:
        lines += [f"  lead {lead.lead_id}: {finding}" for finding in lead.findings]
        for name in dict.fromkeys((*lead.before, *lead.after)):
            was, became = (
                f"in {at[0]} with {at[1]} records" if at else "not there"
                for at in (lead.before.get(name), lead.after.get(name))
            )
            lines.append(f"    journey {name}: {was} -> {became}")
        lines.append(f"    {lead.published} messages to publish; nobody is alerted")
        lines += [f"    LEFT: {finding}" for finding in lead.left]
        if lead.why_not is not None:
            lines.append(f"    nothing was done: {lead.why_not}")
    if len(lines) == 1:
        lines.append("  nothing: what is wrong cannot be proven right")
    return lines
