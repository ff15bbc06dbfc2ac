"""``baton kafka``: the topics of a cluster beside what Baton declares."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from services.baton.command import fail, run

app = typer.Typer(no_args_is_help=True, help="Kafka: check the topics.")


@app.callback()
def kafka() -> None:
    """Kafka: check the topics."""


@app.command("topics")
def topics(
    servers: Annotated[
        str,
        typer.Option(
            "--bootstrap-servers", envvar="BATON_KAFKA_BOOTSTRAP_SERVERS", help="host:port, ..."
        ),
    ] = "",
) -> None:
    """Show the topics with their keys and settings, and what differs on the cluster; exit 1 then."""
    from aiokafka.errors import KafkaError
    from rich.console import Console
    from rich.table import Table

    from services.contracts.kafka import topics_of
    from services.contracts.topics import TOPICS, differences

    if not servers:
        fail("no cluster: set BATON_KAFKA_BOOTSTRAP_SERVERS, or name it by --bootstrap-servers", 2)
    try:
        found = run(topics_of(servers))
    except (KafkaError, TimeoutError) as error:
        fail(f"Kafka at {servers} does not answer: {type(error).__name__}")
    table = Table(box=None, pad_edge=False)
    for column in ("topic", "key", "partitions", "replication", "kept"):
        table.add_column(column, overflow="fold")
    for topic in TOPICS:
        there = found.get(topic.name)
        table.add_row(
            topic.name, topic.key, str(there.partitions) if there else "-",
            str(there.replication) if there else "-", topic.kept,
        )  # fmt: skip
    Console(highlight=False, width=None if os.isatty(1) else 120).print(table)
    wrong = differences(found)
    for difference in wrong:
        print(f"WRONG: {difference.told()}")
    if wrong:
        raise typer.Exit(1)
    print("as declared")
