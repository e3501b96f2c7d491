"""The data sets by the names of the command line. Each is imported on use."""

from __future__ import annotations

import importlib
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from embstore_fl.errors import UnknownDatasetError

if TYPE_CHECKING:
    from embstore_fl.datasets.base import AudioSource
    from embstore_fl.datasets.selection import Selected

DATASETS: Final = {"vegas": "VEGAS", "esc50": "ESC50", "vggsound": "VGGSound"}
"""Classes by name. `pyproject.toml` declares the same names in the entry-point group `embstore.sources`."""


def source_for(name: str, root: str | os.PathLike[str], **selection: Any) -> AudioSource | Selected:
    """Return a data set, or a selection of it, as a source for `embstore.embed`.

    Parameters
    ----------
    name : str
        "vegas", "esc50" or "vggsound", in upper or lower case.
    root : path_like
    **selection
        Arguments of `Selection.of`. Arguments that are None are ignored.

    Raises
    ------
    UnknownDatasetError
    UnknownClassError, UnknownSplitError, NodeError, NodeRangeError, RatiosError

    Examples
    --------
    >>> source_for("imagenet", ".")
    Traceback (most recent call last):
    embstore_fl.errors.UnknownDatasetError: no data set 'imagenet'; data sets: 'vegas', 'esc50', 'vggsound'
    """
    found = DATASETS.get(name.lower().replace("-", ""))
    if found is None:
        raise UnknownDatasetError(name, DATASETS)
    kind: type[AudioSource] = getattr(importlib.import_module("embstore_fl.datasets"), found)
    given: Mapping[str, Any] = {key: value for key, value in selection.items() if value is not None}
    source = kind(root)
    return source.select(**given) if given else source
