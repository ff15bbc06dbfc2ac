"""`python -m bench [a b c d e f g h i j k l]`: measure, show, and write `RESULTS.md` and `results.json`."""

from __future__ import annotations

import shlex
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer
import uvloop
from rich.console import Console
from rich.markup import escape

from bench import (
    alerts,
    batched,
    beside,
    channels,
    clocks,
    folding,
    million,
    simulating,
    single,
    subscriptions,
    verifying,
    webhooks,
)
from bench.machine import describe
from bench.measure import Options, Result
from bench.report import HERE, save

BENCHMARKS = {
    module.KEY: module
    for module in (
        single,
        batched,
        alerts,
        folding,
        million,
        webhooks,
        clocks,
        channels,
        subscriptions,
        simulating,
        beside,
        verifying,
    )
}


def main(
    which: Annotated[
        list[str] | None, typer.Argument(help="of: a b c d e f g h i j k l (all)")
    ] = None,
    *,
    quick: Annotated[bool, typer.Option("--quick", help="short rounds, few leads")] = False,
    rounds: Annotated[int, typer.Option(help="rounds of each; at least 3 (0: as it comes)")] = 0,
    connections: Annotated[int, typer.Option(help="connections of the load generator")] = 64,
    leads: Annotated[int, typer.Option(help="leads stored in (e); 0: 1,000,000")] = 0,
    out: Annotated[Path, typer.Option(help="directory of the results")] = HERE,
) -> None:
    """Measure Baton on this machine: each figure as a ratio to a baseline of the same run.

    a: single events, b: batches, c: POST to alert through Kafka, d: the fold, e: a with a million leads,
    f: a signed webhook against a, g: 10,000 clocks due in one minute, h: healthy channels beside one in
    trouble, j: a simulated playbook, k: single events beside one, l: `baton verify`.
    """
    console = Console(width=None if sys.stdout.isatty() else 150)
    wanted = list(dict.fromkeys(which or BENCHMARKS))
    unknown = [key for key in wanted if key not in BENCHMARKS]
    if unknown:
        console.print(f"unknown benchmark {unknown[0]!r}: choose from {', '.join(BENCHMARKS)}")
        raise typer.Exit(2)
    machine = describe()
    if machine["load_average_1m"] > 0.5:
        console.print(f"[yellow]the machine is busy (load average {machine['load_average_1m']})[/]")
    options = Options(quick, rounds, connections, leads,
                      lambda line: console.print(line, highlight=False))  # fmt: skip
    results: list[Result] = []
    for key in wanted:
        benchmark = BENCHMARKS[key]
        console.print(f"[bold]({key}) {benchmark.TITLE}[/]")
        began = time.monotonic()
        try:
            results.append(uvloop.run(benchmark.run(options)))
        except Exception as error:  # the others are still worth their figures
            reason = f"failed: {type(error).__name__}: {error}"
            console.print(f"  [red]{escape(reason)}[/]")
            results.append(Result(key, benchmark.TITLE, benchmark.METHOD, skipped=reason[:500]))
        console.print(f"  [dim]{time.monotonic() - began:.0f} s[/]")
    command = shlex.join(["python", "-m", "bench", *sys.argv[1:]])
    save(console, results, machine, command, f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC", out)
    missed = any(f.meets(f.target) is False for r in results for f in r.figures)
    if missed or any(r.skipped.startswith("failed") for r in results):
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
