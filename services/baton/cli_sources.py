"""The commands `baton sources ...`; what they do is in `sources`."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from services.baton.command import DATA, Data, database_url, fail, run

app = typer.Typer(no_args_is_help=True, help="Sources: list, test, secret.")
secret = typer.Typer(no_args_is_help=True, help="A source's secrets: set, remove.")
app.add_typer(secret, name="secret")

Directory = Annotated[
    Path | None, typer.Option("--dir", envvar="BATON_SOURCES_DIR", help="the source files")
]


def _directory(given: Path | None) -> Path:
    from services.baton.places import SOURCES

    return given if given is not None else Path("sources") if Path("sources").is_dir() else SOURCES


@app.command("list")
def sources_list(directory: Directory = None, data: Data = DATA) -> None:
    """List the sources; print every mistake in their files, and exit 1 when there is one."""
    from rich.console import Console

    from services.baton import sources

    known = os.environ.get("BATON_DATABASE_URL") or (data / "postgres").exists()
    stored = run(sources.stored_counts(database_url(data))) if known else None
    if not sources.print_list(_directory(directory), stored, Console(highlight=False)):
        raise typer.Exit(1)


@app.command("test")
def sources_test(
    name: Annotated[str, typer.Argument(help="a source, or the path of its .yaml file")],
    sample: Annotated[Path, typer.Argument(help="a body, or a whole request with suffix .http")],
    header: Annotated[list[str] | None, typer.Option(help="Name: value; repeat it")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
    directory: Directory = None,
) -> None:
    """Show the lead events that a sample delivery becomes; exit 1 when it would be quarantined."""
    from rich.console import Console

    from services.baton import sources
    from services.contracts.yaml_source import SourceError
    from services.stage_service.sources.mapping import map_delivery

    pairs = [line.partition(":") for line in header or ()]
    try:
        source = sources.source_named(_directory(directory), name)
        delivery = sources.read_sample(sample, {n.strip(): v.strip() for n, _, v in pairs})
    except OSError as error:
        fail(f"{error.filename}: {error.strerror}", 2)
    except (SourceError, ValueError) as error:
        fail(str(error), 2)
    mapped = map_delivery(source, delivery)
    if as_json:
        print(json.dumps(mapped.shown(), indent=2, ensure_ascii=False))
    else:
        sources.print_mapped(mapped, Console(highlight=False))
    if mapped.defects:
        raise typer.Exit(1)


@secret.command("set")
def secret_set(
    name: Annotated[str, typer.Argument(help="the source")],
    keep: Annotated[bool, typer.Option(help="keep the older ones valid too (rotation)")] = False,
    directory: Directory = None,
    data: Data = DATA,
) -> None:
    """Store a source's secret, sealed; it is read from standard input, never from the command line."""
    from services.baton import sources
    from services.baton.encryption_key import key_file
    from services.contracts.yaml_source import SourceError
    from services.stage_service.encryption import EncryptionError, read_cipher
    from services.stage_service.source_secrets import SECRET_CHARACTERS_MAX

    try:
        sources.source_named(_directory(directory), name)
    except (SourceError, OSError, ValueError) as error:
        fail(str(error), 2)
    if sys.stdin.isatty():
        value = typer.prompt("secret", hide_input=True, confirmation_prompt=False)
    else:
        value = sys.stdin.read()
    value = value.strip("\r\n")
    if not value or len(value) > SECRET_CHARACTERS_MAX:
        fail(f"a secret has 1 to {SECRET_CHARACTERS_MAX} characters", 2)
    named = os.environ.get("BATON_ENCRYPTION_KEY_FILE")
    file = Path(named) if named else key_file(data)
    try:
        cipher = read_cipher(
            os.environ.get("BATON_ENCRYPTION_KEY"), file if named or file.exists() else None
        )
        removed = run(sources.set_secret(database_url(data), cipher, name, value, keep=keep))
    except (EncryptionError, OSError) as error:
        fail(str(error), 2)
    older = f", {removed} older removed" if removed else ""
    print(f"{name}: set{older}; counts within 2 s. Posts go to /webhooks/{name}")


@secret.command("remove")
def secret_remove(
    name: Annotated[str, typer.Argument(help="the source")], data: Data = DATA
) -> None:
    """Remove all stored secrets of a source; its deliveries are refused then."""
    from services.baton import sources

    count = run(sources.remove_secrets(database_url(data), name))
    if not count:
        fail(f"no secret is stored for {name!r}")
    print(f"{name}: {count} removed")
