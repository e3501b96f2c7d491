"""Options of several commands, and how their values are read."""

from __future__ import annotations

import errno
import functools
import json
import logging
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

if TYPE_CHECKING:
    from embstore import EmbeddingStore, View

_UNITS: Final = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
_SECONDS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}
_MOST_DIGITS: Final = 18
_URL: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+(://|::.*://)")  # as `remote.is_url`, which imports NumPy


class _Place(click.Path):
    """A path or URL. An empty one is refused: a shell makes it of an unset variable, and Python reads it as `.`."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not str(value).strip():
            self.fail("expected a path, found nothing", param, ctx)
        try:
            os.stat(value)
        except OSError as error:
            if error.errno in (errno.ELOOP, errno.ENAMETOOLONG):  # other errors are left to the command
                self.fail(f"{value}: {error.strerror}", param, ctx)
        return super().convert(value, param, ctx)


class _Local(_Place):
    """A path on this machine."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if _URL.match(text := str(value).removeprefix("file://")):
            self.fail(f"{text} is a URL; pass a path on this machine", param, ctx)
        return super().convert(text, param, ctx)


class _Output(_Local):
    """A file to write. A folder or a device, such as /dev/null, is refused: the file would replace it."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        path = super().convert(value, param, ctx)
        if path.exists() and not path.is_file():
            self.fail(f"{path} is not a file", param, ctx)
        return path


PATH: Final = _Local(path_type=Path)
PLACE: Final = _Place(path_type=str)
OUTPUT: Final = _Output(path_type=Path)
STORE: Final = click.argument("store", metavar="STORE", type=PLACE)


def _verbosity(_: click.Context, __: click.Parameter, count: int) -> int:
    level = [logging.WARNING, logging.INFO, logging.DEBUG][min(count, 2)]
    logging.getLogger("embstore").setLevel(level)
    return count


_verbose = click.option(
    *("-v", "--verbose"), count=True, expose_value=False, callback=_verbosity, help="Log more. Twice logs everything."
)


def verbose() -> bool:
    """Return whether -v was given."""
    return logging.getLogger("embstore").isEnabledFor(logging.INFO)


def command(name: str) -> Callable[[Callable[..., Any]], click.Command]:
    """Turn a function into a command, with the options of all commands."""
    return lambda function: click.command(name)(_verbose(function))


to_json = click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")
if_exists = click.option(
    "--if-exists",
    type=click.Choice(["error", "skip", "replace"]),
    default="error",
    show_default=True,
    help="Action for keys that are stored already.",
)
quiet = click.option("-q", "--quiet", is_flag=True, help="No progress bar.")


def _parsed(text: str) -> Any:
    """Read a value as JSON, or as text if it is not JSON."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _split(text: str, form: str) -> tuple[str, str]:
    """Split at the first equals sign."""
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise click.BadParameter(f"expected {form}, found {text!r}")
    return name, value


def condition(text: str) -> tuple[str, str]:
    """Split ``COLUMN=VALUE``. The column's dtype decides how `selected` reads the value."""
    return _split(text, "COLUMN=VALUE")


def pair(text: str) -> tuple[str, Any]:
    """Split ``NAME=VALUE``. A value that is not JSON is text."""
    name, value = _split(text, "NAME=VALUE")
    return name, _parsed(value)


storage_options = click.option(
    *("--storage", "storage"),
    type=pair,
    multiple=True,
    metavar="NAME=VALUE",
    help="Option of the file system of a URL. May be repeated.",
)


def nbytes(text: str) -> int:
    """Read a number of bytes: ``500MB``, ``10G``. Units are powers of 1000."""
    return int(_amount(text, _UNITS, "a number of bytes, such as 500MB or 10G", unit_end="b"))


def duration(text: str) -> float:
    """Read a length of time, ``30d`` or ``12h``, in seconds."""
    return _amount(text, _SECONDS, "a length of time, such as 30d or 12h")


_NUMBER: Final = re.compile(rf"(\d{{1,{_MOST_DIGITS}}}(?:\.\d{{1,{_MOST_DIGITS}}})?)\s*([a-z]*)", re.ASCII)


def _amount(text: str, units: Mapping[str, int], form: str, *, unit_end: str = "") -> float:
    """Read a number with its unit."""
    found = _NUMBER.fullmatch(text.strip().lower())
    if not found or (unit := found[2].removesuffix(unit_end)) not in units:
        raise click.BadParameter(f"expected {form}, found {text!r}")
    return float(found[1]) * units[unit]


def _class_names(ctx: click.Context, _: click.Parameter, begun: str) -> list[str]:
    """Complete the name of a class from the store on the command line. Empty if the store can't be opened."""
    from embstore.errors import EmbstoreError

    # Click's parser fails at an option that has no value yet, and then names no argument.
    place = ctx.params.get("store") or next(iter(ctx.args), "")
    try:
        with open_place(place) as store:
            return [name for name in store.classes if name.startswith(begun)]
    except (EmbstoreError, OSError, ValueError):
        return []


def selection(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that choose rows of a store."""
    classes = click.option(
        *("--class", "classes"),
        multiple=True,
        metavar="NAME",
        shell_complete=_class_names,
        help="Only rows of this class. May be repeated.",
    )
    where = click.option(
        "--where",
        type=condition,
        multiple=True,
        metavar="COLUMN=VALUE",
        help="Only rows whose column has this value, such as split=train. Several values of a column: any of them.",
    )
    return classes(where(function))


def selected(store: EmbeddingStore, classes: Sequence[str], where: Sequence[tuple[str, str]]) -> View:
    """Return the rows that the options of `selection` choose.

    Raises
    ------
    UnknownClassError, UnknownColumnError
    click.BadParameter
        The column holds numbers, and the value is not a number.
    """
    from embstore.errors import UnknownColumnError

    conditions: dict[str, list[Any]] = {}
    for name, text in where:
        if name not in store.columns:
            if name in ("class", "class_name"):
                raise click.BadParameter(f"use --class {text} to choose a class", param_hint="--where")
            raise UnknownColumnError(name, store.columns, path=store.path)
        conditions.setdefault(name, []).extend(_values(name, store.columns[name], text))
    return store.select(classes=list(classes) or None, where=conditions)


def _values(column: str, dtype: str, text: str) -> list[Any]:
    """Return the values of a condition: one, or those of a JSON list. In a column of texts, 1 is a text."""
    parsed = _parsed(text)
    given = parsed if isinstance(parsed, list) else [parsed]
    if dtype == "string":
        texts = [text] if not isinstance(parsed, list) else [json.dumps(value) for value in given]
        return [value if isinstance(value, str) else written for value, written in zip(given, texts, strict=True)]
    if not all(isinstance(value, int | float) for value in given):
        raise click.BadParameter(f"column {column!r} holds {dtype}, found {text!r}", param_hint="--where")
    return given


def open_place(place: str, *, writable: bool = False, storage: Mapping[str, Any] | None = None) -> EmbeddingStore:
    """Open the store at a path or a URL."""
    from embstore import open as open_store

    return open_store(place, "r+" if writable else "r", storage_options=storage or None)


def opens_store(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add STORE and --storage, and call the function with the open store."""

    @functools.wraps(function)
    def call(*, store: str, storage: Sequence[tuple[str, Any]], **options: Any) -> Any:
        with open_place(store, storage=dict(storage)) as opened:
            return function(opened, **options)

    return STORE(storage_options(call))


def opens_rows(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add STORE and the options that choose rows of it, and call the function with their view."""

    @functools.wraps(function)
    def call(store: EmbeddingStore, *, classes: Sequence[str], where: Sequence[tuple[str, str]], **options: Any) -> Any:
        return function(selected(store, classes, where), **options)

    return opens_store(selection(call))
