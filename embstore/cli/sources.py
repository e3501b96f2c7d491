"""Options that choose samples: a folder, a table, or a data set in its published layout."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from embstore.cli.datasets import Dataset, DatasetName
from embstore.cli.options import PATH

if TYPE_CHECKING:
    from embstore import Source


def names(text: str) -> list[str]:
    """Split names at the commas."""
    found = [name.strip() for name in text.split(",") if name.strip()]
    if not found:
        raise click.BadParameter(f"expected names, with commas between them, found {text!r}")
    return found


def _classes(text: str) -> list[str | int]:
    """Split classes at the commas. Digits are the number of a class."""
    return [int(name) if name.isdigit() else name for name in names(text)]


_TABLE: Final = {
    **{"path_column": "path", "text_column": "text", "class_column": "class_name", "id_column": "file_id"},
    **{"column": "columns", "root": "root"},
}
_DATASET: Final = {
    **{"classes": "selected_classes", "exclude": "excluded_classes", "samples_per_class": "num_samples_per_class"},
    **{"nodes": "num_nodes", "node": "node_split_id", "splits": "splits", "seed": "seed"},
}
_KINDS: Final = {"a folder": {"pattern": "pattern", "suffix": "suffixes"}, "a table": _TABLE, "a data set": _DATASET}
"""Options of each kind of source, with the names of its parameters."""

SOURCE: Final = (
    click.argument("source", type=PATH),
    click.option("--name", help="Name of the data set, a part of the config. Required without --dataset."),
    click.option("--pattern", help="Layout of a folder, as '{class}_*.flac' (default: a sub-folder for each class)."),
    click.option("--suffix", multiple=True, metavar=".EXT", help="Only files with this suffix. May be repeated."),
    click.option("--path-column", metavar="NAME", help="Column of file names in a table."),
    click.option("--text-column", metavar="NAME", help="Column of texts in a table."),
    click.option("--class-column", metavar="NAME", help="Column of classes in a table."),
    click.option("--id-column", metavar="NAME", help="Column of file_ids in a table: the first part of a key."),
    click.option(
        "--column", multiple=True, metavar="NAME", help="Column of a table to store beside the rows. May be repeated."
    ),
    click.option("--root", type=PATH, help="Folder that the file names of a table are relative to."),
    click.option("--dataset", type=DatasetName(), help="Data set whose layout SOURCE has."),
    click.option(
        "--classes", type=_classes, metavar="NAMES", help="Only these classes of a data set, by name or number."
    ),
    click.option("--exclude", type=_classes, metavar="NAMES", help="All classes of a data set but these."),
    click.option("--samples-per-class", type=int, metavar="N", help="Most samples for each class of a data set."),
    click.option("--nodes", type=int, metavar="N", help="Number of nodes that a data set is split into."),
    click.option("--node", type=int, metavar="I", help="Only this node of the split, from 0."),
    click.option("--splits", type=names, metavar="NAMES", help="Splits of a data set: train,val,test (default: all)."),
    click.option("--seed", type=int, help="Seed of the split into nodes."),
)


def name_of(given: dict[str, Any]) -> str:
    """Return the given name, or that of the data set."""
    name: str | None = given["name"]
    if name is not None:
        return name
    if given["dataset"] is None:
        raise click.UsageError("Missing option '--name'.")
    return str(source_of(given).name)


def is_part(given: dict[str, Any]) -> bool:
    """Return True if only a part of a data set is chosen. Rows of other samples are then expected."""
    return any(given[name] not in (None, ()) for name in _DATASET)


def source_of(given: dict[str, Any]) -> Source:
    """Return the samples that the options choose.

    Raises
    ------
    ValueError
        An option belongs to another kind of source.
    """
    place: Path = given["source"]
    table = place.suffix.lower() in (".csv", ".tsv", ".parquet")
    kind = "a data set" if given["dataset"] is not None else "a table" if table else "a folder"
    for other, options in _KINDS.items():
        for name in options if other != kind else ():
            if given[name] not in (None, ()):
                raise ValueError(f"--{name.replace('_', '-')} is for {other}, but {place} is read as {kind}")
    own = {parameter: given[option] for option, parameter in _KINDS[kind].items() if given[option] not in (None, ())}
    if kind == "a data set":
        if given["name"] is not None:
            raise ValueError("--name is for a folder or a table: a data set has its own")
        dataset: Dataset = given["dataset"]
        return dataset.source(place, own)
    from embstore.sources import Folder, Table

    return (Folder if kind == "a folder" else Table)(place, name=name_of(given), **own)
