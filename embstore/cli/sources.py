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


_FOLDER: Final = ("pattern", "suffix")
_TABLE: Final = ("path_column", "text_column", "class_column", "id_column", "root")
_DATASET: Final = ("classes", "exclude", "samples_per_class", "nodes", "node", "splits", "seed")
_KINDS: Final = {"a folder": _FOLDER, "a table": _TABLE, "a data set": _DATASET}

SOURCE: Final = (
    click.argument("source", type=PATH),
    click.option("--name", help="Name of the data set, a part of the config. Required without --dataset."),
    click.option("--pattern", help="Layout of a folder, as '{class}_*.flac' (default: a sub-folder for each class)."),
    click.option("--suffix", multiple=True, metavar=".EXT", help="Only files with this suffix. May be repeated."),
    click.option("--path-column", metavar="NAME", help="Column of file names in a table."),
    click.option("--text-column", metavar="NAME", help="Column of texts in a table."),
    click.option("--class-column", metavar="NAME", help="Column of classes in a table."),
    click.option("--id-column", metavar="NAME", help="Column of file_ids in a table: the first part of a key."),
    click.option("--root", type=PATH, help="Folder that the file names of a table are relative to."),
    click.option("--dataset", type=DatasetName(), help="Data set whose layout SOURCE has."),
    click.option("--classes", type=names, metavar="NAMES", help="Only these classes of a data set, by name or number."),
    click.option("--exclude", type=names, metavar="NAMES", help="All classes of a data set but these."),
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
    if kind == "a data set":
        return _dataset(given)
    from embstore.sources import Folder, Table

    name = name_of(given)
    if kind == "a folder":
        return Folder(place, name=name, pattern=given["pattern"], suffixes=list(given["suffix"]) or None)
    return Table(
        place,
        name=name,
        path=given["path_column"],
        text=given["text_column"],
        class_name=given["class_column"],
        file_id=given["id_column"],
        root=given["root"],
    )


def _dataset(given: dict[str, Any]) -> Source:
    def numbers(found: list[str] | None) -> list[str | int] | None:
        return None if found is None else [int(name) if name.isdigit() else name for name in found]

    if given["name"] is not None:
        raise ValueError("--name is for a folder or a table: a data set has its own")
    dataset: Dataset = given["dataset"]
    selection = {
        "selected_classes": numbers(given["classes"]),
        "excluded_classes": numbers(given["exclude"]),
        "num_samples_per_class": given["samples_per_class"],
        "num_nodes": given["nodes"],
        "node_split_id": given["node"],
        "splits": given["splits"],
        "seed": given["seed"],
    }
    return dataset.source(given["source"], {name: value for name, value in selection.items() if value is not None})
