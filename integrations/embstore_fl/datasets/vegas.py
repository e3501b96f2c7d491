"""VEGAS: a folder for each of ten classes, with ``audios/``, and optional ``img/``, ``videos/``, ``video_info.csv``."""

from __future__ import annotations

import logging
import os
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from embstore._engine.lazy import cached_property
from embstore_fl.datasets.base import SUFFIX, AudioSource, csv_lines, files_in
from embstore_fl.datasets.listed import Listed

logger = logging.getLogger("embstore")

VEGAS_CLASSES: Final = (
    "baby_cry",
    "chainsaw",
    "dog",
    "drum",
    "fireworks",
    "helicopter",
    "printer",
    "rail_transport",
    "snoring",
    "water_flowing",
)
_OF_VIDEOS: Final = ("ytid", "start_second", "end_second")
_BESIDE: Final = (("image", "img", ".jpg"), ("video", "videos", ".mp4"))


class VEGAS(AudioSource):
    """Recordings ``<class>/audios/video_00001.wav``, with the keys ``video_00001:<class>``.

    Parameters
    ----------
    root : path_like
    name : str
    classes : sequence of str
        Classes in the order of their labels, for another data set with the layout of VEGAS.

    Examples
    --------
    >>> import tempfile
    >>> root = Path(tempfile.mkdtemp())
    >>> (root / "dog" / "audios").mkdir(parents=True)
    >>> _ = (root / "dog" / "audios" / "video_00001.wav").write_bytes(b"")
    >>> source = VEGAS(root)
    >>> [str(sample.key) for sample in source], source.labels["dog"]
    (['video_00001:dog'], 2)
    """

    default_name = "VEGAS"
    unique_ids = False  # the files of each class are numbered from 0

    def __init__(
        self,
        root: str | os.PathLike[str],
        *,
        name: str | None = None,
        classes: Sequence[str] = VEGAS_CLASSES,
    ) -> None:
        super().__init__(root, name=name)
        if len(set(classes)) != len(classes):
            raise ValueError(f"expected different classes, found {list(classes)!r}")
        self._classes = tuple(classes)
        self._videos: dict[str, list[tuple[str, str, str]]] = {}
        self._beside: dict[tuple[str, str], frozenset[str]] = {}

    @cached_property
    def labels(self) -> Mapping[str, int]:
        """Label of each class: its index in the list."""
        return {name: label for label, name in enumerate(self._classes)}

    def listing(self, classes: Collection[str] | None = None) -> list[Listed]:
        """Return the recordings of these classes. A class in `classes` without recordings is logged."""
        found: list[Listed] = []
        for class_name in self._classes:
            if classes is not None and class_name not in classes:
                continue
            folder = f"{self.root}/{class_name}/audios"
            names = files_in(folder)
            if not names and classes is not None:
                logger.warning("%s: no %s files", folder, SUFFIX)
            found += [Listed(class_name, name[: -len(SUFFIX)], f"{folder}/{name}") for name in names]
        return found

    def details(self, listed: Listed) -> dict[str, Any]:
        """Return paths and names of image and video, and the video's YouTube id and seconds, as far as they exist."""
        found: dict[str, Any] = {"video_id": listed.file_id}
        for kind, folder, suffix in _BESIDE:
            place, name = (listed.class_name, folder), listed.file_id + suffix
            if place not in self._beside:
                self._beside[place] = frozenset(files_in(f"{self.root}/{listed.class_name}/{folder}", suffix))
            there = name in self._beside[place]
            path = f"{self.root}/{listed.class_name}/{folder}/{name}"
            found |= {f"{kind}_path": path if there else None, f"{kind}_filename": name if there else ""}
        return found | dict(zip(_OF_VIDEOS, self._video(listed), strict=False))

    def _video(self, listed: Listed) -> tuple[Any, ...]:
        """Return the row of ``video_info.csv``. Rows and files are numbered from 0."""
        name, number = listed.class_name, listed.file_id.rpartition("_")[2]
        if name not in self._videos:
            self._videos[name] = _read_videos(self.root / name / "video_info.csv")
        rows = self._videos[name]
        if not number.isdecimal() or int(number) >= len(rows):
            return ("", 0.0)
        ytid, start, end = rows[int(number)]
        return ytid, *(float(second) if second else 0.0 for second in (start, end))


def _read_videos(path: Path) -> list[tuple[str, str, str]]:
    """Read YouTube ids, and first and last seconds. Empty if the file is missing."""
    names, *lines = (csv_lines(path) if path.exists() else []) or [[]]
    rows = [dict(zip(names, line, strict=False)) for line in lines]
    return [(row.get("YTID", ""), row.get("start_second", ""), row.get("end_second", "")) for row in rows]
