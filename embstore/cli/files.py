"""The commands between a store and other files: `import`, `export`, `plot`, `explore`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from embstore.cli.exits import DONE, PARTLY
from embstore.cli.options import (
    OUTPUT,
    PATH,
    PLACE,
    command,
    if_exists,
    opens_rows,
    pair,
    quiet,
    to_json,
)
from embstore.cli.output import print_result, printable

if TYPE_CHECKING:
    from embstore import View

_format = click.option(
    "--format",
    type=click.Choice(["pt", "npz", "hdf5", "safetensors", "parquet"]),
    help="Format of the file (default: by its suffix).",
)
_KEYS = click.Choice(["file_id:class", "class:file_id", "class:file_name", "file_id"])


def _config(file: Path | None, pairs: Sequence[tuple[str, Any]]) -> dict[str, Any] | None:
    """Return the config of a file, updated by NAME=VALUE pairs. Names of nested attributes have dots.

    Raises
    ------
    ValueError
        The file is not a JSON object, or a pair contradicts the nesting.
    """
    config: dict[str, Any] = {}
    if file is not None:
        try:
            config = json.loads(file.read_text(encoding="utf-8"))
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{file} is not JSON: {error}") from error
        if not isinstance(config, dict):
            raise ValueError(f"{file}: expected a JSON object, found {type(config).__name__}")
    for name, value in pairs:
        place = config
        *outer, last = name.split(".")
        for part in outer:
            place = place.setdefault(part, {})
            if not isinstance(place, dict):
                raise ValueError(f"--set {name}: {part!r} is {place!r}, and has no attributes")
        if isinstance(place.get(last), dict) and not isinstance(value, dict):
            raise ValueError(f"--set {name}: it has attributes already")
        place[last] = value
    return config or None


@command("import")
@click.argument("file", type=PATH)
@click.argument("dest", type=PLACE, required=False)
@click.option("--cache", type=PLACE, help="Cache to import to, instead of DEST.")
@click.option("--config", "config_file", type=PATH, help="JSON file of the config: all that the values depend on.")
@click.option(
    "--set",
    "pairs",
    type=pair,
    multiple=True,
    metavar="NAME=VALUE",
    help="An attribute of the config, such as encoder.id=MIT/ast. May be repeated.",
)
@_format
@click.option("--field", help="The only field to take, or a new name for the only field of the file.")
@click.option("--column", "columns", multiple=True, metavar="NAME", help="Only this one. May be repeated.")
@click.option("--keys", type=_KEYS, help="Order in names such as dog:v1, if the file does not state the class.")
@click.option("--class", "class_name", metavar="NAME", help="Class of keys without one.")
@click.option("--key-column", metavar="NAME", help="Array or column of the keys (default: key, ids, file_id, …).")
@click.option("--ragged", is_flag=True, help="Store rows of different lengths as a ragged field.")
@click.option("--cast", is_flag=True, help="Convert values to the dtype of the store, and float64 to float32.")
@if_exists
@quiet
@to_json
def import_(
    file: Path,
    dest: Path | None,
    cache: Path | None,
    config_file: Path | None,
    pairs: list[tuple[str, Any]],
    columns: list[str],
    class_name: str | None,
    cast: bool,
    quiet: bool,
    as_json: bool,
    **options: Any,
) -> int:
    """Import the rows of a .pt, .npz, .h5, .safetensors or .parquet FILE, or a folder of .npy files, to the store DEST.

    DEST is made if absent.

    The config states all that the values depend on. It comes from the file, --config or --set.
    """
    from embstore import Cache
    from embstore.exchange import import_file

    if (dest is None) == (cache is None):
        raise click.UsageError("pass either DEST, a store, or --cache, a folder of stores")
    target = Cache(cache) if cache is not None else dest
    assert target is not None
    given = _config(config_file, pairs)
    if class_name is not None:
        options["class_name"] = class_name
    try:
        result = import_file(
            file,
            target,
            config=given,
            columns=list(columns) or None,
            casting="same_kind" if cast else "no",
            progress=False if quiet else None,
            **options,
        )
    except TypeError as error:
        if given is not None or "depend on" not in str(error):
            raise
        raise click.UsageError(f"{file} does not state its config; pass --config or --set") from error
    return print_result(as_json, result)


@command("export")
@opens_rows
@click.argument("file", type=OUTPUT)
@click.option("--field", "fields", multiple=True, metavar="NAME", help="Only this one. May be repeated.")
@_format
@click.option(
    "--layout",
    type=click.Choice(["columns", "per-key"]),
    default="columns",
    show_default=True,
    help="per-key: each row as an array named after its key.",
)
@click.option(
    "--keys",
    type=click.Choice(["file_id:class", "file_id"]),
    default="file_id:class",
    show_default=True,
    help="Names of these arrays.",
)
def export(view: View, file: Path, fields: list[str], **options: Any) -> None:
    """Write rows of a store to a .pt, .npz, .h5, .safetensors or .parquet FILE, with config and columns."""
    from embstore.exchange import export_file

    export_file(view, file, fields=list(fields) or None, **options)
    print(printable(f"{file}: {len(view):,} rows"))


_METHOD = click.option(
    "--method", type=click.Choice(["pca", "umap"]), default="pca", show_default=True, help="Projection."
)
_SEED = click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of random choices.")
_FIELD = click.option("--field", help="Field to use, if there are several.")


@command("plot")
@opens_rows
@click.argument("file", type=OUTPUT)
@click.option("--color", default="class_name", show_default=True, metavar="COLUMN", help="Column of the colours.")
@click.option(
    "--max-points",
    type=click.IntRange(min=1),
    default=100_000,
    show_default=True,
    metavar="N",
    help="If there are more rows, N of them are drawn at random.",
)
@_FIELD
@_METHOD
@_SEED
def plot(view: View, file: Path, seed: int, max_points: int, **options: Any) -> None:
    """Plot rows in two dimensions: as .png, .svg or .pdf, or as an .html page that shows keys and columns on hover."""
    import numpy as np

    view.plot(file, max_points=max_points, rng=np.random.default_rng(seed), **options)
    print(printable(f"{file}: {min(len(view), max_points):,} points of {len(view):,} rows"))


@command("explore")
@opens_rows
@_FIELD
@_METHOD
@_SEED
def explore(view: View, seed: int, **options: Any) -> int:
    """Show rows in the browser with embedding-atlas, until Ctrl-C."""
    import numpy as np

    from embstore.analysis import explore

    return PARTLY if explore(view, rng=np.random.default_rng(seed), **options) else DONE
