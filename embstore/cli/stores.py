"""The commands on one store: `info`, `ls`, `get`, `verify`, `salvage`, `compact`, `merge`."""

from __future__ import annotations

import contextlib
import itertools
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from embstore._engine.sizes import size
from embstore.cli.caches import print_entries
from embstore.cli.exits import DONE, PARTLY
from embstore.cli.options import (
    OUTPUT,
    PATH,
    PLACE,
    STORE,
    command,
    if_exists,
    open_place,
    opens_store,
    selected,
    selection,
    storage_options,
    to_json,
    verbose,
)
from embstore.cli.output import is_terminal, print_answer, print_json, print_pairs, print_table, printable

if TYPE_CHECKING:
    from embstore import Cache, EmbeddingStore

_SHOWN: Final = 50
_SHOWN_CLASSES: Final = 12
_BLOCK_ROWS: Final = 65_536
_TERMINAL_ROWS: Final = 1_000
"""Rows of a table laid out at once: rich takes a second for ten times as many."""


def _cache_at(place: str, storage: dict[str, Any]) -> Cache | None:
    """Return the cache at a place, or None if it is something else."""
    import embstore
    from embstore._engine.io.object_store import is_bucket
    from embstore._engine.io.urls import is_url, local_path
    from embstore.errors import NotAStoreError

    if is_url(place):
        if not is_bucket(place):
            return None
        with contextlib.suppress(NotAStoreError), embstore.open(place, storage_options=storage):
            return None
        cache = embstore.Cache(place, storage_options=storage)
        return cache if len(cache) else None
    path = local_path(place)
    found = path.is_dir() and not (path / "zarr.json").exists() and any(path.glob("*.zarr"))
    return embstore.Cache(path) if found and not storage else None


@command("info")
@STORE
@storage_options
@to_json
def info(store: str, storage: list[tuple[str, Any]], as_json: bool) -> None:
    """Show a store: its rows, classes, fields, columns and config.

    Settings at the defaults of the model's class are left out. -v shows all.

    STORE is a path or a URL. Of a cache, the stores are listed.
    """
    if cache := _cache_at(store, dict(storage)):
        print_entries(cache, as_json=as_json)
        return
    from embstore._engine.format.config import flattened, shown
    from embstore.encoders import notable_settings

    with open_place(store, storage=dict(storage)) as opened:
        record, counts = opened.snapshot.record, _class_counts(opened)
        if as_json:
            print_json(
                {
                    **{"path": opened.path, "rows": len(opened), "deleted": record.dead, "nbytes": opened.nbytes},
                    **{"classes": counts, "fields": opened.fields, "columns": opened.columns},
                    **{"compression": record.compression, "fingerprint": record.fingerprint},
                    **{"config": record.config, "provenance": record.provenance, "commit_id": record.commit_id},
                }
            )
            return
        dead = f", and {record.dead:,} deleted" if record.dead else ""
        names = list(itertools.islice(counts, _SHOWN_CLASSES))
        more = f", … {len(counts) - len(names):,} more" if len(counts) > len(names) else ""
        listed = ": " + ", ".join(f"{name} ({counts[name]:,})" for name in names) if names else ""
        every = flattened(record.config)
        pairs = every if verbose() else notable_settings(record.config)
        left = len(every) - len(pairs)
        print_pairs(
            [
                ("store", str(opened.path)),
                ("rows", f"{len(opened):,}{dead}"),
                ("size", size(opened.nbytes) + (f" before {record.compression}" if record.compression else "")),
                ("classes", f"{len(counts):,}{listed}{more}"),
                *(("field", f"{name} {_shape(spec)}") for name, spec in opened.fields.items()),
                *(("column", f"{name} {spec.dtype}") for name, spec in record.columns.items()),
                ("config", record.fingerprint),
                *((f"  {name}", repr(value) if verbose() else shown(value)) for name, value in pairs.items()),
                *([("", f"{left:,} more at their defaults, which -v shows")] if left else []),
                *((f"made with {name}", value) for name, value in record.provenance.items()),
            ]
        )


def _class_counts(store: EmbeddingStore) -> dict[str, int]:
    """Return the number of rows of each class, the largest first."""
    import numpy as np

    from embstore._engine.format.keys import UNLABELLED

    names = store.snapshot.class_names
    counts = np.bincount(store.snapshot.class_codes_of(store.snapshot.live_rows), minlength=len(names)).tolist()
    pairs = sorted(zip(names, counts, strict=True), key=lambda pair: -pair[1])
    return {name: count for name, count in pairs if count and name != UNLABELLED}


def _shape(spec: Any) -> str:
    shape = ("length", *spec.shape) if spec.ragged else spec.shape
    source = ".".join(part for part in (spec.layer, spec.pooling) if part)
    return f"{spec.dtype} ({', '.join(map(str, shape))})" + (f", {source}" if source else "")


@command("ls")
@STORE
@selection
@click.option("-l", "--long", "long", is_flag=True, help="Show the columns too.")
@click.option("-n", "--limit", type=click.IntRange(min=0), default=_SHOWN, show_default=True, help="0 lists all.")
@storage_options
@to_json
def ls(
    store: str,
    classes: list[str],
    where: list[tuple[str, str]],
    long: bool,
    limit: int,
    storage: list[tuple[str, Any]],
    as_json: bool,
) -> None:
    """List keys, or the stores of a cache. --json prints an object for each."""
    if cache := _cache_at(store, dict(storage)):
        if classes or where or long:
            raise click.UsageError(f"{store} is a cache: --class, --where and --long are for the rows of one store")
        print_entries(cache, as_json=as_json)
        return
    with open_place(store, storage=dict(storage)) as opened:
        view = selected(opened, classes, where)
        shown = view[:limit] if limit else view
        columns = list(opened.columns) if long or as_json else []
        size = _TERMINAL_ROWS if long and is_terminal(sys.stdout) else _BLOCK_ROWS
        for place, block in enumerate(shown.batches(size)):
            values = {name: block.column(name).tolist() for name in columns}
            rows = zip(block.keys, *values.values(), strict=True)
            if as_json:
                for key, *rest in rows:
                    print_json({"key": key, **dict(zip(columns, rest, strict=True))})
            elif long:
                print_table(["key", *columns], [[str(value) for value in row] for row in rows], head=not place)
            else:
                print("\n".join(printable(key) for key, *_ in rows))
        if len(shown) < len(view):
            print(f"… and {len(view) - len(shown):,} more (--limit 0 for all)", file=sys.stderr)


@command("get")
@opens_store
@click.argument("keys", nargs=-1, required=True)
@click.option("--field", help="Field to read, if there are several.")
@click.option("-o", "--output", type=OUTPUT, help="Write the rows to this .npy file, in the order of the keys.")
@to_json
def get(store: EmbeddingStore, keys: tuple[str, ...], field: str | None, output: Path | None, as_json: bool) -> None:
    """Print rows by their keys, or write them to a file.

    With - for KEYS, keys are read from standard input, one a line.
    """
    import numpy as np

    wanted = list(_typed()) if keys == ("-",) else list(keys)
    name = store.field_name(field)
    rows = store.rows_of(wanted)
    if output is not None:
        _write_npy(output, store.take(rows, name))
        print_answer(as_json, {"path": output, "rows": len(wanted)}, f"{printable(str(output))}: {len(wanted):,} rows")
        return
    for key, row in zip(wanted, rows, strict=True):
        found = store.take([row], name)
        value = (found.values if store.fields[name].ragged else found)[0]
        if as_json:
            print_json({"key": key, "value": value})
        else:
            print(printable(key), np.array2string(value, precision=5, threshold=12, edgeitems=3))


def _typed() -> Iterator[str]:
    """Yield the lines of standard input, read as UTF-8 like keys, in any encoding of the terminal."""
    for line in sys.stdin.buffer if sys.stdin is not None else ():
        if text := line.decode().removesuffix("\n").removesuffix("\r"):
            yield text


def _write_npy(path: Path, values: Any) -> None:
    """Write rows of one shape to a .npy file. Rows of a ragged field must have one length."""
    import numpy as np

    from embstore._engine.format.ragged import Padded
    from embstore._engine.io.durable import replacing

    if isinstance(values, Padded):
        if len(values.lengths) and values.lengths.min() < values.lengths.max():
            lengths = f"{values.lengths.min()} to {values.lengths.max()}"
            raise ValueError(f"expected rows of one length, found {lengths} tokens; embstore export writes an .npz")
        values = values.values
    with replacing(path) as partial, partial.open("wb") as file:  # np.save would add a suffix to a path
        np.save(file, values, allow_pickle=False)


@command("verify")
@STORE
@storage_options
@to_json
def verify(store: str, storage: list[tuple[str, Any]], as_json: bool) -> int:
    """Check every byte of a store, at a path or a URL, against its checksums."""
    from embstore import verify

    report = verify(store, storage_options=dict(storage) or None)
    problems = [{"path": p.path, "detail": p.detail, "rows": len(p.rows)} for p in report.problems]
    facts = {"path": report.path, "ok": report.ok, "rows": report.rows, "rows_affected": len(report.rows_affected)}
    print_answer(as_json, {**facts, "keys_affected": report.keys_affected, "problems": problems}, str(report))
    return DONE if report.ok else PARTLY


@command("salvage")
@STORE
@click.argument("dest", type=PATH)
@storage_options
@to_json
def salvage(store: str, dest: Path, storage: list[tuple[str, Any]], as_json: bool) -> int:
    """Copy the sound rows of a damaged store to DEST, which must not exist. The damaged store is not changed.

    STORE is a path or a URL, and DEST is a path.
    """
    from embstore import salvage

    report = salvage(store, dest, storage_options=dict(storage) or None)
    lost = len(report.rows_lost)
    facts = {"path": report.path, "rows_kept": report.rows_kept, "rows_lost": lost, "keys_lost": report.keys_lost}
    counts = printable(f"{report.path}: {report.rows_kept:,} rows kept, {lost:,} lost")
    print_answer(as_json, facts, "\n".join([counts, *(f"  {printable(key)}" for key in report.keys_lost)]))
    return PARTLY if lost else DONE


@command("compact")
@STORE
@to_json
def compact(store: str, as_json: bool) -> None:
    """Rewrite a store without its deleted rows. Older views and row numbers are no longer valid."""
    with open_place(store, writable=True) as opened:
        dead = opened.snapshot.record.dead
        opened.compact()
        facts = {"path": opened.path, "removed": dead, "rows": len(opened), "nbytes": opened.nbytes}
        text = f"{dead:,} deleted rows gone, {len(opened):,} rows left, {size(opened.nbytes)}"
        print_answer(as_json, facts, f"{printable(store)}: {text}")


@command("merge")
@click.argument("dest", type=PLACE)
@click.argument("parts", type=PLACE, nargs=-1, required=True)
@if_exists
@storage_options
@click.option("--compression", type=click.Choice(["zstd", "blosc"]), help="Compression of DEST, if it is new.")
@to_json
def merge(
    dest: str,
    parts: tuple[str, ...],
    if_exists: Any,
    storage: list[tuple[str, Any]],
    compression: Any,
    as_json: bool,
) -> None:
    """Merge the rows of stores with one config into DEST, in one commit. DEST is made if it is absent.

    All of them are paths or URLs.
    """
    from embstore import merge

    options: dict[str, Any] = {"compression": compression} if compression else {}
    result = merge(dest, *parts, if_exists=if_exists, storage_options=dict(storage) or None, **options)
    facts = {"path": dest, "appended": result.appended, "skipped": result.skipped, "replaced": result.replaced}
    replaced = f", {result.replaced:,} of them in place of others" if result.replaced else ""
    text = f"{result.appended:,} rows added{replaced}, {result.skipped:,} skipped"
    print_answer(as_json, facts, f"{printable(dest)}: {text}")
