"""The commands on copies of stores in buckets: `push`, `pull`, `tidy`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from embstore._engine.sizes import size
from embstore.cli.options import PATH, command, duration, quiet, storage_options, to_json
from embstore.cli.output import plain, print_answer


@command("push")
@click.argument("store", type=PATH)
@click.argument("url")
@click.option(
    "--if-exists",
    type=click.Choice(["skip", "error", "replace"]),
    default="skip",
    show_default=True,
    help="Action for keys that are stored in the bucket already.",
)
@click.option(
    "--seen-epoch", type=int, metavar="N", help="Confirm that STORE has no row that was erased in the bucket up to N."
)
@storage_options
@quiet
@to_json
def push(
    store: Path,
    url: str,
    if_exists: Any,
    seen_epoch: int | None,
    storage: list[tuple[str, Any]],
    quiet: bool,
    as_json: bool,
) -> None:
    """Add the rows of STORE to the store at URL, in a bucket. It is made if it is absent."""
    from embstore import push

    options: dict[str, Any] = {"storage_options": dict(storage) or None, "progress": False if quiet else None}
    result = push(store, url, if_exists=if_exists, seen_epoch=seen_epoch, **options)
    replaced = f", {result.replaced:,} of them in place of others" if result.replaced else ""
    text = f"{result.path}: {result.appended:,} rows added{replaced}, {result.skipped:,} skipped"
    print_answer(as_json, plain(result), text)


@command("pull")
@click.argument("url")
@click.argument("mirror", type=PATH)
@storage_options
@quiet
@to_json
def pull(url: str, mirror: Path, storage: list[tuple[str, Any]], quiet: bool, as_json: bool) -> None:
    """Make MIRROR, a copy of the store at URL that is read at the speed of a disk, or bring it up to date."""
    from embstore import pull

    options: dict[str, Any] = {"storage_options": dict(storage) or None, "progress": False if quiet else None}
    result = pull(url, mirror, **options)
    text = f"{result.fetched:,} of {result.parts:,} parts fetched, {size(result.nbytes)}"
    print_answer(as_json, plain(result), f"{result.path}: {result.rows:,} rows, {text}")


@command("tidy")
@click.argument("url")
@click.option(
    "--older-than",
    type=duration,
    required=True,
    metavar="TIME",
    help="Such as 7d or 12h. Replaced parts stay this long, for readers of earlier commits.",
)
@storage_options
@to_json
def tidy(url: str, older_than: float, storage: list[tuple[str, Any]], as_json: bool) -> None:
    """Delete objects in the bucket that no commit of the store at URL needs."""
    from embstore import tidy

    result = tidy(url, older_than=older_than, storage_options=dict(storage) or None)
    print_answer(as_json, plain(result), f"{url}: {result.objects:,} objects deleted, {size(result.nbytes)}")
