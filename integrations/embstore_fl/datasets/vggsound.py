"""VGGSound: clips from YouTube, listed in ``vggsound.csv`` with class and official split."""

from __future__ import annotations

import logging
import os
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

from embstore._engine.lazy import cached_property
from embstore.errors import DuplicateKeysError
from embstore_fl.datasets.base import SUFFIX, AudioSource, csv_lines
from embstore_fl.datasets.listed import Listed
from embstore_fl.errors import DatasetLayoutError

logger = logging.getLogger("embstore")

_TABLE: Final = "vggsound.csv"


class _Row(NamedTuple):
    """A row of the table."""

    file_id: str
    class_name: str
    split: str


class VGGSound(AudioSource):
    """Clips ``<YouTube id>_<first second, six digits>.wav`` of the table, in any folder below the root.

    A class's name is in lower case, with ``_`` for blanks. A label is the index of the class among all sorted names of
    the table, independent of the clips on disk. Many clips are no longer on YouTube: missing clips are skipped, and
    their number is logged.

    Parameters
    ----------
    root : path_like
    name : str, optional
    table : path_like, optional
        Default: ``vggsound.csv`` below the root.

    Raises
    ------
    DatasetLayoutError
        The table is missing, or a line of it is not (id, second, label, "train" or "test").
    DuplicateKeysError
        On listing, if two files have the same name.
    """

    default_name = "VGGSound"
    official_splits = ("train", "test")

    def __init__(
        self,
        root: str | os.PathLike[str],
        *,
        name: str | None = None,
        table: str | os.PathLike[str] | None = None,
    ) -> None:
        super().__init__(root, name=name)
        self.table = self.root / _TABLE if table is None else Path(table).absolute()
        if not self.table.is_file():
            raise DatasetLayoutError(self.table, "expected the table of classes, found no such file")

    def class_name(self, written: str) -> str:
        """Return the name of a class in keys.

        Examples
        --------
        >>> VGGSound.class_name(None, "Playing acoustic guitar")
        'playing_acoustic_guitar'
        """
        return written.strip().lower().replace(" ", "_")

    @cached_property
    def _rows(self) -> list[_Row]:
        rows = []
        for number, cells in enumerate(csv_lines(self.table), 1):
            try:
                ytid, start, label, split = cells
                if split not in self.official_splits:
                    raise ValueError(split)
                rows.append(_Row(f"{ytid}_{int(start):06d}", self.class_name(label), split))
            except ValueError as error:
                reason = f"line {number}: expected an id, a second, a label and train or test, found {cells}"
                raise DatasetLayoutError(self.table, reason) from error
        return rows

    @cached_property
    def labels(self) -> Mapping[str, int]:
        """Label of each class: its index among all sorted classes of the table."""
        return {name: label for label, name in enumerate(sorted({row.class_name for row in self._rows}))}

    def listing(self, classes: Collection[str] | None = None) -> list[Listed]:
        """Return the clips of these classes that exist on disk. Default: all classes."""
        files = self._files()
        rows = list(dict.fromkeys(self._rows))  # without repeated lines
        wanted = [row for row in rows if classes is None or row.class_name in classes]
        there = [Listed(r.class_name, r.file_id, files[r.file_id], r.split) for r in wanted if r.file_id in files]
        if len(there) < len(wanted):
            logger.info("%s: %d of %d listed clips are missing", self.root, len(wanted) - len(there), len(wanted))
        return sorted(there, key=lambda clip: (self.labels[clip.class_name], clip.file_id))

    def _files(self) -> dict[str, str]:
        """Return the paths of all WAV files by file_id."""
        found: dict[str, str] = {}
        for path in sorted(_below(str(self.root))):
            file_id = os.path.basename(path)[: -len(SUFFIX)]
            if file_id in found:
                raise DuplicateKeysError([file_id], path=self.root, found_at=(found[file_id], path))
            found[file_id] = path
        return found

    def details(self, listed: Listed) -> dict[str, Any]:
        """Return the clip's YouTube id, first second and official split."""
        ytid, _, start = listed.file_id.rpartition("_")
        names = {"image_filename": "", "video_filename": f"{listed.file_id}.mp4"}
        return {**names, "ytid": ytid, "start_second": int(start), "official_split": listed.group}


def _below(root: str) -> Iterator[str]:
    for folder, folders, names in os.walk(root):
        folders[:] = [name for name in folders if not name.startswith(".")]
        yield from (f"{folder}/{name}" for name in names if name.lower().endswith(SUFFIX) and not name.startswith("."))
