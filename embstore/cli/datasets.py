"""Data sets for ``--dataset``: installed packages declare them in the entry-point group `embstore.sources`.

An entry point is a class or a function that takes a root folder and returns a source. A source with a method `select`
can be read in part. Entry points are read when ``--dataset`` is parsed, completed or shown in help. They are loaded
when their data set is used.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from embstore.errors import EmbstoreError

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

    from embstore import Source

GROUP: Final = "embstore.sources"
_CHECKOUT: Final = "embstore_fl.datasets"


class BrokenDatasetError(EmbstoreError, ImportError):
    """A data set whose declaration does not work. Attributes: `dataset`, `package`, `reason`."""

    dataset: str
    package: str
    reason: str
    template = (
        "data set {dataset!r} of the package {package}: {reason}; "
        f"fix or remove the package's entry point in the group {GROUP}"
    )


@dataclass(frozen=True, slots=True)
class Dataset:
    """A data set that a package declares.

    Attributes
    ----------
    name : str
    package : str
        The distribution's name.
    load : callable
        Import the entry point's object.
    """

    name: str
    package: str
    load: Callable[[], Any]

    def source(self, root: Path, selection: Mapping[str, Any]) -> Source:
        """Return the data set below a folder, or the selected part of it.

        Raises
        ------
        BrokenDatasetError
            The entry point can't be loaded, does not return a source, or fails with an error that names no cause
            in the data (`EmbstoreError`, `OSError` and `ValueError` do).
        ValueError
            The data set can't be read in part.
        """
        try:
            made = self.load()
        except Exception as error:
            raise self._broken(f"it can't be imported: {type(error).__name__}: {error}") from error
        if not callable(made):
            raise self._broken(f"expected a class or a function, found {type(made).__name__}")
        try:
            source = made(root)
            if selection:
                if not hasattr(source, "select"):
                    raise ValueError(f"the data set {self.name!r} of {self.package} can only be read whole")
                source = source.select(**selection)
        except (EmbstoreError, OSError, ValueError):
            raise
        except Exception as error:
            raise self._broken(f"it failed with {type(error).__name__}: {error}") from error
        if not isinstance(getattr(source, "name", None), str) or not hasattr(source, "__iter__"):
            raise self._broken(f"expected a source, with a name and samples, found {type(source).__name__}")
        found: Source = source
        return found

    def _broken(self, reason: str) -> BrokenDatasetError:
        return BrokenDatasetError(self.name, self.package, reason)


def declared() -> tuple[dict[str, list[Dataset]], list[str]]:
    """Return the declared data sets by name, and the packages whose entry points can't be read.

    `importlib.metadata.entry_points` raises a TypeError as soon as one installed package has a malformed file of entry
    points, so the packages are read one by one.
    """
    from importlib.metadata import distributions

    found: dict[str, dict[str, Dataset]] = {}
    unreadable: list[str] = []
    for package in distributions():
        try:
            points = package.entry_points.select(group=GROUP)
        except Exception:  # any error of the parser: which one differs between versions of Python
            unreadable.append(str(package.metadata["Name"]))
            continue
        for point in points:
            name = str(package.metadata["Name"])
            # The first package of a name on the path is the one that Python imports.
            found.setdefault(point.name, {}).setdefault(name, Dataset(point.name, name, point.load))
    if not any("embstore" in packages for packages in found.values()):
        for dataset in _of_checkout():
            found.setdefault(dataset.name, {})[dataset.package] = dataset
    return {name: list(found[name].values()) for name in sorted(found)}, unreadable


def _of_checkout() -> list[Dataset]:
    """Return the data sets of a checkout that is on the path and not installed, so that no entry points exist."""
    from importlib.metadata import EntryPoint

    try:
        known: Mapping[str, str] = import_module(_CHECKOUT).DATASETS
    except ModuleNotFoundError as error:
        if error.name not in (_CHECKOUT, _CHECKOUT.partition(".")[0]):
            raise
        return []
    points = (EntryPoint(name, f"{_CHECKOUT}:{made}", GROUP) for name, made in known.items())
    return [Dataset(point.name, "embstore", point.load) for point in points]


if TYPE_CHECKING:
    _ParamType = click.ParamType[Any]
else:
    _ParamType = click.ParamType  # generic in newer versions of click alone


class DatasetName(_ParamType):
    """The name of a declared data set, converted to a `Dataset`."""

    name = "NAME"

    def get_metavar(self, param: click.Parameter, ctx: click.Context) -> str:
        """Show the names."""
        return f"[{'|'.join(declared()[0])}]"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Dataset:
        """Find the data set of a name."""
        if isinstance(value, Dataset):
            return value
        known, unreadable = declared()
        if value not in known:
            names = ", ".join(map(repr, known)) or "nothing, as no installed package declares a data set"
            hint = f"; the entry points of {', '.join(unreadable)} can't be read" if unreadable else ""
            self.fail(f"{value!r} is not one of {names}{hint}", param, ctx)
        dataset, *others = known[value]
        if others:
            packages = ", ".join(one.package for one in known[value])
            self.fail(f"{value!r} is declared by several packages: {packages}; uninstall all but one", param, ctx)
        return dataset

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        """Complete a name."""
        from click.shell_completion import CompletionItem

        return [CompletionItem(name) for name in declared()[0] if name.startswith(incomplete)]
