"""ESC-50: 2,000 clips in five folds, in the official layout, or in a layout with a folder and a JSON file a fold."""

from __future__ import annotations

import logging
import os
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from embstore._engine.lazy import cached_property
from embstore_fl.datasets.base import SUFFIX, AudioSource, csv_lines, files_in, read_json
from embstore_fl.datasets.listed import Listed
from embstore_fl.errors import DatasetLayoutError

logger = logging.getLogger("embstore")

_TABLE: Final = "meta/esc50.csv"
_LABELS: Final = "class_labels.json"
_COLUMNS: Final = ("filename", "fold", "target", "category")
_FOLDERS: Final = tuple(range(5))


class ESC50(AudioSource):
    """Clips such as ``1-100032-A-0.wav``, with the keys ``1-100032-A-0:dog``.

    The files decide the layout. The official one has ``meta/esc50.csv`` beside ``audio/*.wav``, and folds 1 to 5. The
    other has ``class_labels.json`` and ``fold00.json`` to ``fold04.json`` beside ``audio/fold00/`` to
    ``audio/fold04/``, and folds 0 to 4. Labels come from the table, or from ``class_labels.json``.

    Parameters
    ----------
    root : path_like
    name : str, optional

    Raises
    ------
    DatasetLayoutError
        Neither layout, or a file with contradictory or malformed content.
    """

    default_name = "ESC50"

    def __init__(self, root: str | os.PathLike[str], *, name: str | None = None) -> None:
        super().__init__(root, name=name)
        self.official = (self.root / _TABLE).exists()
        if not self.official and not (self.root / _LABELS).exists():
            raise DatasetLayoutError(self.root, f"expected {_TABLE}, or {_LABELS} and fold00.json to fold04.json in it")

    @cached_property
    def _clips(self) -> list[Listed]:
        """All listed clips, sorted by label and name."""
        clips = list(_from_table(self.root) if self.official else _from_folders(self.root, self.labels))
        there = {folder: set(files_in(folder)) for folder in {os.path.dirname(clip.path) for clip in clips}}
        found = [clip for clip in clips if clip.audio_filename in there[os.path.dirname(clip.path)]]
        if len(found) < len(clips):
            gone = len(clips) - len(found)
            logger.warning("%s: %d of %d listed clips are missing", self.root, gone, len(clips))
        return sorted(found, key=lambda clip: (self.labels[clip.class_name], clip.file_id))

    @cached_property
    def labels(self) -> Mapping[str, int]:
        """Label of each class."""
        if not self.official:
            path = self.root / _LABELS
            found = read_json(path, dict)
            if not all(isinstance(label, int) for label in found.values()) or len({*found.values()}) != len(found):
                raise DatasetLayoutError(path, "expected a different number for each class")
            return dict(found)
        labels: dict[str, int] = {}
        for clip in _from_table(self.root):
            if labels.setdefault(clip.class_name, clip.about[0]) != clip.about[0]:
                raise DatasetLayoutError(self.root / _TABLE, f"{clip.class_name!r} has several targets")
        if len({*labels.values()}) != len(labels):
            raise DatasetLayoutError(self.root / _TABLE, "a target stands for several categories")
        return labels

    @cached_property
    def folds(self) -> tuple[int, ...]:
        """Folds of the listed clips."""
        return tuple(sorted({int(clip.group) for clip in self._clips if clip.group is not None}))

    def listing(self, classes: Collection[str] | None = None) -> list[Listed]:
        """Return the clips of these classes. Default: all classes."""
        return [clip for clip in self._clips if classes is None or clip.class_name in classes]

    def details(self, listed: Listed) -> dict[str, Any]:
        """Return the clip's fold."""
        return {"fold": listed.group, "image_filename": "", "video_filename": "", "ytid": "", "start_second": 0}


def _from_table(root: Path) -> Iterator[Listed]:
    path = root / _TABLE
    names, *lines = csv_lines(path) or [[]]
    if missing := [name for name in _COLUMNS if name not in names]:
        raise DatasetLayoutError(path, f"it has no column {', '.join(missing)}")
    for number, line in enumerate(lines, 2):
        try:
            row = dict(zip(names, line, strict=True))
            name, fold, target = row["filename"], int(row["fold"]), int(row["target"])
        except ValueError as error:
            raise DatasetLayoutError(path, f"line {number}: expected {', '.join(names)}, found {line}") from error
        yield Listed(row["category"], name.removesuffix(SUFFIX), f"{root}/audio/{name}", fold, (target,))


def _from_folders(root: Path, labels: Mapping[str, int]) -> Iterator[Listed]:
    """Read the five files of the folds. A missing file is logged, and its fold is empty."""
    for fold in _FOLDERS:
        path = root / f"fold{fold:02d}.json"
        if not path.exists():
            logger.warning("%s: it is missing, and its fold is empty", path)
            continue
        for name, classes in read_json(path, dict).items():
            if not isinstance(classes, list) or len(classes) != 1 or classes[0] not in labels:
                raise DatasetLayoutError(path, f"{name!r}: expected one class of {_LABELS}, found {classes!r}")
            yield Listed(classes[0], name.removesuffix(SUFFIX), f"{root}/audio/fold{fold:02d}/{name}", fold)
