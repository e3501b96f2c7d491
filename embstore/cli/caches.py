"""The command `cache` with its six: `ls`, `stats`, `clear`, `prune`, `pin`, `unpin`."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import click

from embstore.cli.exits import DONE, PARTLY
from embstore.cli.options import PLACE, command, duration, nbytes, pair, to_json
from embstore.cli.output import is_terminal, print_answer, print_json, print_table, printable, when

if TYPE_CHECKING:
    from embstore import Cache, CacheEntry
    from embstore.cache.prune import IfOpen, StoreUse

CACHE = click.argument("cache", type=PLACE)
_having = click.option(
    *("--having", "having"),
    type=pair,
    multiple=True,
    metavar="NAME=VALUE",
    help="Only stores whose config has this value, such as encoder.id=MIT/ast or duration=5. May be repeated.",
)


def _opened(place: str) -> Cache:
    """Open the cache at a place. Raise if it is not a folder, or is a store: a typing error would go unnoticed."""
    from embstore import Cache
    from embstore._engine.io.urls import is_url, local_path

    if is_url(place):
        return Cache(place)
    path = local_path(place)
    if not path.is_dir():
        raise FileNotFoundError(f"{path} is not a folder of stores: {'it is a file' if path.exists() else 'not found'}")
    if (path / "zarr.json").exists():
        raise ValueError(f"{path} is a store, not a cache; pass the folder that contains it")
    return Cache(path)


def print_entries(cache: Cache, having: Sequence[tuple[str, Any]] = (), *, as_json: bool) -> None:
    """Print the stores of a cache."""
    from embstore._engine.format.config import as_words
    from embstore._engine.sizes import size

    stores = cache.stats(dict(having))
    if as_json:
        for store in stores:
            print_json(_facts(store))
        return
    rows = [
        [
            *(store.path.name, f"{store.rows:,}", size(store.nbytes), str(store.config.get("dataset", ""))),
            as_words({name: value for name, value in store.differs.items() if name != "dataset"}),
            when(store.last_used) + (", pinned" if store.pinned else ""),
        ]
        for store in stores
    ]
    print_table(["store", "rows", "on disk", "dataset", "differs in", "last used"], rows, right=["rows", "on disk"])


@click.group("cache")
def cache() -> None:
    """List, count, pin and remove the stores of a cache."""


@command("ls")
@CACHE
@_having
@to_json
def ls(cache: str, having: list[tuple[str, Any]], as_json: bool) -> None:
    """List the stores: size, last use, and the attributes in which the stores of one model differ."""
    print_entries(_opened(cache), having, as_json=as_json)


@command("stats")
@CACHE
@_having
@to_json
def stats(cache: str, having: list[tuple[str, Any]], as_json: bool) -> None:
    """Show the size of each store, its hits and misses, and the time saved."""
    stores = _opened(cache).stats(dict(having))
    if as_json:
        for store in stores:
            print_json(_facts(store))
        return
    columns = ["store", "rows", "on disk", "runs", "hits", "misses", "rows served", "time saved", "last used"]
    rows = [[store.path.name, *_sums([store]), when(store.last_used)] for store in stores]
    if len(rows) > 1:
        nrows, on_disk, _, *counts = _sums(stores)  # a run may use several stores
        rows.append(["all", nrows, on_disk, "", *counts, ""])
    print_table(columns, rows, right=columns[1:-1])


def _sums(stores: Sequence[StoreUse]) -> list[str]:
    """Return rows, size, runs, hits, misses, rows served and time saved of stores, as text."""
    from embstore._engine.sizes import size

    names = ("runs", "hits", "misses", "served")
    counts = [sum(getattr(store.usage, name) for store in stores) for name in names]
    nbytes, saved = sum(store.nbytes for store in stores), sum(store.usage.seconds_saved for store in stores)
    rows = sum(store.rows for store in stores)
    return [f"{rows:,}", size(nbytes), *(f"{count:,}" for count in counts), _time(saved)]


def _facts(store: StoreUse) -> dict[str, Any]:
    usage = store.usage
    counts = {name: getattr(usage, name) for name in ("runs", "hits", "misses", "served", "encoded", "seconds_saved")}
    return {
        **{"path": store.path, "rows": store.rows, "nbytes_on_disk": store.nbytes, **counts},
        **{"last_used": store.last_used, "pinned": store.pinned, "differs": store.differs},
        "config": store.config.to_dict(),
    }


def _time(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.3g} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:,.1f} h"


def _removal(function: Callable[..., Any]) -> Callable[..., Any]:
    dry = click.option("--dry-run", is_flag=True, help="Show the stores that would be removed, and remove none.")
    yes = click.option("-y", "--yes", is_flag=True, help="Remove without asking.")
    return CACHE(_having(dry(yes(to_json(function)))))


@command("clear")
@_removal
def clear(cache: str, having: list[tuple[str, Any]], **options: bool) -> int:
    """Remove all stores, or those whose config has the given values."""
    opened = _opened(cache)
    return _remove(opened, opened.clear(dict(having), dry_run=True), "remove", **options)


@command("prune")
@_removal
@click.option("--max-size", type=nbytes, metavar="BYTES", help="Keep stores up to this size on disk, such as 100GB.")
@click.option("--unused-for", type=duration, metavar="TIME", help="Remove stores unused for this long, such as 30d.")
def prune(
    cache: str, having: list[tuple[str, Any]], max_size: int | None, unused_for: float | None, **options: bool
) -> int:
    """Remove the least recently used stores, by size or by age."""
    if max_size is None and unused_for is None:
        raise click.UsageError("prune needs --max-size or --unused-for; `cache clear` removes all")
    opened = _opened(cache)
    chosen = opened.prune(dict(having), max_nbytes=max_size, unused_for=unused_for, dry_run=True)
    return _remove(opened, chosen, "keep", **options)


def _remove(cache: Cache, chosen: list[StoreUse], if_open: IfOpen, *, dry_run: bool, yes: bool, as_json: bool) -> int:
    """Show the chosen stores, ask, and remove exactly those."""
    from embstore._engine.sizes import size

    asks = bool(chosen) and not (dry_run or yes)
    if asks and not is_terminal(sys.stdin):
        raise click.UsageError("stdin is not a terminal; pass --yes or --dry-run")
    taken = size(sum(store.nbytes for store in chosen))
    if not as_json:
        for store in chosen:
            facts = f"{store.rows:,} rows, {size(store.nbytes)}, last used {when(store.last_used)}"
            print(printable(f"{store.path.name}: {facts}"))
    removed: list[StoreUse] = []
    if not dry_run and (not asks or _agreed(f"remove {_stores(len(chosen))}, {taken}?")):
        removed = cache.remove(chosen, if_open=if_open)
    if as_json:
        print_json({"chosen": [_facts(store) for store in chosen], "removed": [store.path for store in removed]})
    elif dry_run:
        print(f"{_stores(len(chosen))}, {taken}, would be removed")
    else:
        freed = size(sum(store.nbytes for store in removed))
        print(f"{_stores(len(removed))} removed of {len(chosen):,}, {freed}")
    return DONE if dry_run or len(removed) == len(chosen) else PARTLY


def _stores(count: int) -> str:
    return "1 store" if count == 1 else f"{count:,} stores"


def _agreed(question: str) -> bool:
    """Ask a yes-or-no question at the terminal."""
    try:
        return click.confirm(question, err=True)
    except click.Abort:
        click.echo(err=True)  # end the line of the question
        raise


@command("pin")
@CACHE
@_having
@to_json
def pin(cache: str, having: list[tuple[str, Any]], as_json: bool) -> None:
    """Keep stores from being removed by prune and clear."""
    _print_pins(_opened(cache).pin(dict(having)), "pinned", as_json=as_json)


@command("unpin")
@CACHE
@_having
@to_json
def unpin(cache: str, having: list[tuple[str, Any]], as_json: bool) -> None:
    """Undo pin."""
    _print_pins(_opened(cache).unpin(dict(having)), "no longer pinned", as_json=as_json)


def _print_pins(entries: Sequence[CacheEntry], text: str, *, as_json: bool) -> None:
    lines = [f"{entry.path.name}: {text}" for entry in entries]
    print_answer(as_json, {"paths": [entry.path for entry in entries]}, "\n".join(lines))


for _command in (ls, stats, clear, prune, pin, unpin):
    cache.add_command(_command)
