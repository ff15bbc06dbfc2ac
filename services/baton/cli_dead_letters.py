"""The commands `baton dead-letters ...`: what could not be delivered."""

from __future__ import annotations

import typer

from services.baton.command import DATA, NOTIFIER_URL, Data, NotifierUrl, api_key, fail, run

app = typer.Typer(no_args_is_help=True, help="What could not be delivered: list, retry.")


@app.command("list")
def dead_letters_list(notifier_url: NotifierUrl = NOTIFIER_URL, data: Data = DATA) -> None:
    """List what could not be delivered or read."""
    from services.baton.send import dead_letters as fetch

    for line in run(fetch(notifier_url, api_key(data))):
        print(line)


@app.command("retry")
def dead_letters_retry(
    id: str, notifier_url: NotifierUrl = NOTIFIER_URL, data: Data = DATA
) -> None:
    """Deliver a dead-lettered alert again."""
    from services.baton.send import retry

    try:
        print(run(retry(notifier_url, api_key(data), id)))
    except ValueError as error:
        fail(str(error))
