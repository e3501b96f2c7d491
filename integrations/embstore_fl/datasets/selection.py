"""Chooses the recordings of a node, with the split of each from `splits`. Opens no recording."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple, Self

from embstore.errors import DuplicateKeysError, UnknownClassError
from embstore.sources import FileSample
from embstore_fl.datasets.listed import Catalog, Listed
from embstore_fl.errors import NodeError, UnknownSplitError
from embstore_fl.splits import SPLITS, NodeShare, SplitScheme, class_order, rng_of, splits_of

logger = logging.getLogger("embstore")

_SHOWN: Final = 5


class Chosen(NamedTuple):
    """A recording of a node, and its split. The split is None if its fold is in no split."""

    listed: Listed
    split: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """A selection of recordings. The default is all of a data set.

    Attributes
    ----------
    selected_classes, excluded_classes : tuple of str or int, or None
        Names or labels.
    num_samples_per_class : int or None
        Largest number of samples of each class. The first ones of the node's share in the class's order are taken, so
        that splits keep their ratios.
    share : NodeShare or None
        The node's share. None for all samples.
    scheme : SplitScheme
    splits : tuple of str or None
        Only recordings of these splits. None for all.

    Raises
    ------
    UnknownSplitError
    ValueError
        `num_samples_per_class` is negative.
    """

    selected_classes: tuple[str | int, ...] | None = None
    excluded_classes: tuple[str | int, ...] | None = None
    num_samples_per_class: int | None = None
    share: NodeShare | None = None
    scheme: SplitScheme = field(default_factory=SplitScheme)
    splits: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if self.num_samples_per_class is not None and self.num_samples_per_class < 0:
            raise ValueError(f"expected a number of samples per class, found {self.num_samples_per_class}")
        for split in self.splits or ():
            if split not in SPLITS:
                raise UnknownSplitError("a selection", "split", split, SPLITS)

    @classmethod
    def of(
        cls,
        *,
        selected_classes: Sequence[str | int] | None = None,
        excluded_classes: Sequence[str | int] | None = None,
        num_samples_per_class: int | None = None,
        num_nodes: int | None = None,
        samples_per_node: int | None = None,
        node_split_id: int | None = None,
        splits: Sequence[str] | str | None = None,
        **scheme: Any,
    ) -> Self:
        """Return a selection from the options of commands and configuration files.

        Parameters
        ----------
        selected_classes, excluded_classes : sequence of str or int, optional
        num_samples_per_class : int, optional
            None and 0 for all.
        num_nodes, samples_per_node, node_split_id : int, optional
            Number of nodes, or samples of a class for each node, with the node's number.
        splits : str or sequence of str, optional
        **scheme
            Arguments of `SplitScheme`.

        Raises
        ------
        NodeError, NodeRangeError, RatiosError, UnknownSplitError
        """
        share = None
        if node_split_id is not None:
            share = NodeShare(node=node_split_id, num_nodes=num_nodes, samples_per_node=samples_per_node)
        elif num_nodes is not None or samples_per_node is not None:
            given = {"num_nodes": num_nodes, "samples_per_node": samples_per_node}
            if None not in given.values():
                raise NodeError(given, "expected num_nodes or samples_per_node, not both")
            raise NodeError({**given, "node_split_id": None}, "expected node_split_id, the node's number")
        return cls(
            selected_classes=None if selected_classes is None else _listed(selected_classes),
            excluded_classes=None if excluded_classes is None else _listed(excluded_classes),
            num_samples_per_class=num_samples_per_class or None,
            share=share,
            scheme=SplitScheme(**scheme),
            splits=(splits,) if isinstance(splits, str) else None if splits is None else tuple(splits),
        )

    def classes_of(self, source: Catalog) -> list[str]:
        """Return the selected classes, in the order of their labels.

        Raises
        ------
        UnknownClassError
            The data set lacks a class, or all classes are excluded.
        """
        chosen = source.classes if self.selected_classes is None else source.names_of(self.selected_classes)
        excluded = source.names_of(self.excluded_classes or ())
        left = [name for name in source.classes if name in chosen and name not in excluded]
        if not left:
            raise UnknownClassError(["(all are excluded)"], source.classes)
        return left


def _listed(classes: Sequence[str | int]) -> tuple[str | int, ...]:
    if isinstance(classes, str):
        raise TypeError(f"expected a list of classes, found {classes!r}")
    return tuple(classes)


def _check_scheme(source: Catalog, scheme: SplitScheme) -> None:
    if scheme.by == "official" and not source.official_splits:
        raise UnknownSplitError(source.name, "split", "official", ())
    for fold in [fold for folds in scheme.folds.values() for fold in folds] if scheme.by == "fold" else ():
        if fold not in source.folds:
            raise UnknownSplitError(source.name, "fold", fold, source.folds)
    if scheme.by == "fold" and not scheme.folds:
        raise UnknownSplitError(source.name, "fold", "(none was named)", source.folds)


def choose(source: Catalog, selection: Selection) -> list[Chosen]:
    """Return the recordings of a selection, sorted by class and file_id.

    Node and split of a recording are decided over all recordings of its class. They do not depend on the selected
    classes.

    Raises
    ------
    UnknownClassError
    UnknownSplitError
        The data set lacks a fold, or folds, or an official split.
    NodeRangeError
    DuplicateKeysError
    """
    _check_scheme(source, selection.scheme)
    classes = selection.classes_of(source)
    by_class: dict[str, list[Listed]] = {name: [] for name in classes}
    # Without `selected_classes` list everything, so that a class without recordings is not logged.
    for listed in source.listing(None if selection.selected_classes is None else classes):
        if listed.class_name in by_class:
            by_class[listed.class_name].append(listed)
    if selection.share is not None:
        counts = {name: len(members) for name, members in by_class.items()}
        if short := selection.share.check(counts):
            shown = ", ".join(short[:_SHOWN]) + (", …" if len(short) > _SHOWN else "")
            logger.warning("%s: node %d gets fewer samples of %s", source.name, selection.share.node, shown)
    return [chosen for name in classes for chosen in _of_class(name, by_class[name], selection)]


def _of_class(name: str, members: list[Listed], selection: Selection) -> list[Chosen]:
    members.sort(key=lambda listed: listed.file_id)  # the result must not depend on the order of the listing
    for one, other in itertools.pairwise(members):
        if one.file_id == other.file_id:
            raise DuplicateKeysError([one.key], found_at=(one.path, other.path))
    rng = rng_of(selection.scheme.seed, name)
    order = class_order([listed.group for listed in members], rng=rng)
    splits = splits_of([members[place].group for place in order], selection.scheme, rng=rng)
    start, stop = (0, len(order)) if selection.share is None else selection.share.bounds(len(order))
    if selection.num_samples_per_class:
        stop = min(stop, start + selection.num_samples_per_class)
    taken = sorted(zip(order[start:stop], splits[start:stop], strict=True))
    wanted = selection.splits
    return [Chosen(members[place], split) for place, split in taken if wanted is None or split in wanted]


class Selected:
    """Some recordings of a data set, as a source for `embstore.embed`.

    Parameters
    ----------
    base : Catalog
    chosen : Selection or list of Chosen

    Attributes
    ----------
    base : Catalog
    name : str
        Name of the whole data set, since its parts share a store.
    chosen : tuple of Chosen
    """

    def __init__(self, base: Catalog, chosen: Selection | Sequence[Chosen]) -> None:
        self.base = base
        self.name = base.name
        self.origin = getattr(base, "origin", None)
        self.chosen = tuple(choose(base, chosen) if isinstance(chosen, Selection) else chosen)

    @property
    def keys(self) -> list[str]:
        """Keys of the recordings."""
        return [chosen.listed.key for chosen in self.chosen]

    def __len__(self) -> int:
        return len(self.chosen)

    def __iter__(self) -> Iterator[FileSample]:
        listed = (chosen.listed for chosen in self.chosen)
        return self.base.samples_of(listed, empty="none of its recordings is selected")

    def __repr__(self) -> str:
        return f"<Selected: {len(self):,} recordings of {self.base!r}>"
