"""Output of commands: tables for people, JSON for programs. Only results go to standard output.

Keys, classes and paths are data, and may have any characters. Text output escapes those that end a line or control a
terminal. JSON output has them unchanged.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from os import PathLike
from typing import Any, Final

from embstore.cli.exits import DONE, PARTLY

# Control characters, line separators, and marks that reverse the direction of text.
_UNSAFE: Final = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")


def printable(text: str) -> str:
    r"""Escape characters that end the line or control the terminal.

    Examples
    --------
    >>> print(printable("two\nlines:dog"))
    two\nlines:dog
    """
    return _UNSAFE.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def is_terminal(stream: Any) -> bool:
    """Return True if a stream is a terminal. Python has None for a closed stream."""
    return stream is not None and bool(stream.isatty())


def plain(value: Any) -> Any:
    """Return a value as JSON values: paths and times as text, arrays as lists, dataclasses as objects."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, str | int) or value is None:
        return value
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(name): plain(item) for name, item in value.items()}
    if callable(as_list := getattr(value, "tolist", None)):
        return plain(as_list())
    if isinstance(value, PathLike):
        return str(value)
    if isinstance(value, Iterable):
        return [plain(item) for item in value]
    return str(value)


def print_json(value: Any) -> None:
    """Print a JSON document on one line, so that several can follow each other."""
    text = json.dumps(found := plain(value), ensure_ascii=False)
    try:
        text.encode(getattr(sys.stdout, "encoding", None) or "utf-8")
    except UnicodeEncodeError:  # the terminal lacks a character, or a path is not Unicode: escapes are JSON too
        text = json.dumps(found)
    print(text)


def print_answer(as_json: bool, facts: Mapping[str, Any], text: str) -> None:
    """Print the facts of an answer as JSON, or its text for people."""
    if as_json:
        print_json(facts)
    else:
        print("\n".join(map(printable, text.split("\n"))))


def print_result(as_json: bool, result: Any, text: str | None = None) -> int:
    """Print the attributes of a result as JSON, or its text. Return the exit status."""
    print_answer(as_json, {"ok": result.ok, **plain(result)} if as_json else {}, str(result) if text is None else text)
    return DONE if result.ok else PARTLY


def print_pairs(pairs: Iterable[tuple[str, str]]) -> None:
    """Print names and values, one pair a line."""
    pairs = [(printable(name), printable(text)) for name, text in pairs]
    width = max((len(name) for name, _ in pairs), default=0)
    for name, text in pairs:
        print(f"{name:<{width}}  {text}".rstrip())


def print_table(
    columns: Sequence[str], rows: Sequence[Sequence[str]], *, right: Sequence[str] = (), head: bool = True
) -> None:
    """Print a table: folded to the width of a terminal, plain for a pipe.

    Parameters
    ----------
    columns : sequence of str
    rows : sequence of sequence of str
    right : sequence of str
        Columns to align to the right: numbers.
    head : bool
        True to print the names of the columns. False where a table continues.
    """
    rows = [[printable(cell) for cell in row] for row in rows]
    if not is_terminal(sys.stdout):
        widths = [max(map(len, cells)) for cells in zip(columns, *rows, strict=True)]
        for row in ([columns] if head else []) + rows:
            cells = zip(columns, row, widths, strict=True)
            print("  ".join(f"{c:>{w}}" if name in right else f"{c:<{w}}" for name, c, w in cells).rstrip())
        return
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, show_header=head)
    for name in columns:
        table.add_column(name, justify="right" if name in right else "left", overflow="fold")
    for row in rows:
        table.add_row(*row)
    Console(markup=False, highlight=False, emoji=False).print(table)


def when(seconds: float) -> str:
    """Return a time as text, ``never`` for 0."""
    return datetime.fromtimestamp(seconds).isoformat(sep=" ", timespec="minutes") if seconds else "never"
