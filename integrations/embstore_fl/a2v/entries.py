"""Embeddings as today's code holds them: tensors and dictionaries, with keys either way round, in one mapping."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from embstore import FieldSpec
from embstore._engine.format.keys import UNLABELLED
from embstore.exchange import Unreadable
from embstore.exchange.naming import named
from embstore.exchange.pt_entries import refusal

_VALUES = ("embeddings", "embedding")


@dataclass(kw_only=True)
class Entries:
    """Embeddings by key, and what could not be read.

    Attributes
    ----------
    values : dict of str to tensor
    unreadable : list of Unreadable
        By their keys as found, and why.
    config : mapping or None
        What the file says of how they were made.
    """

    values: dict[str, Any] = field(default_factory=dict)
    unreadable: list[Unreadable] = field(default_factory=list)
    config: Mapping[str, Any] | None = None

    def add(self, key: object, value: Any) -> None:
        """Take an entry: a tensor or an array, or a dictionary of "embedding" or "embeddings" and "class_name".

        A key is ``file_id:class``, or ``class:file name.wav``.
        """
        class_name = None
        if isinstance(value, Mapping):
            there = [name for name in _VALUES if name in value]
            class_name = value.get("class_name")
            value = value[there[0]] if len(there) == 1 else None
        if reason := refusal(_detached(value), sys.modules.get("torch")):
            self.unreadable.append(Unreadable(key, reason))
            return
        found = named(key, class_name, default=UNLABELLED)
        if isinstance(found, Unreadable):
            self.unreadable.append(found)
        elif found[1].class_name == UNLABELLED:
            self.unreadable.append(Unreadable(key, "it says no class"))
        else:
            self.values.setdefault(str(found[1]), as_tensor(value))  # a sample may be kept under both kinds of key


def as_tensor(value: Any) -> Any:
    """Return an array as a tensor over its memory, since that is what a training loop expects."""
    if not isinstance(value, np.ndarray):
        return value
    import torch

    return torch.from_numpy(value if value.flags.writeable and value.flags.c_contiguous else np.array(value))


def _detached(value: Any) -> Any:
    """Return a tensor on the CPU, and without what made it."""
    return value.detach().cpu() if hasattr(value, "detach") else value


def of_mapping(entries: Mapping[Any, Any]) -> Entries:
    """Read a mapping of today's code.

    Examples
    --------
    >>> row = np.ones(3, np.float32)
    >>> mixed = {"v1:dog": row, "dog:v2.wav": {"class_name": "dog", "embeddings": row}, "0_sample_3": row}
    >>> found = of_mapping(mixed)
    >>> list(found.values), [one.key for one in found.unreadable]
    (['v1:dog', 'v2:dog'], ['0_sample_3'])
    """
    found = Entries()
    for key, value in entries.items():
        found.add(key, value)
    return found


def as_rows(values: list[Any]) -> np.ndarray[Any, Any]:
    """Put embeddings together: ``(n, *shape) float32``."""
    out = np.empty((len(values), *values[0].shape), np.float32)
    for place, value in enumerate(values):
        value = _detached(value)
        out[place] = value.float().numpy() if hasattr(value, "float") else value
    return out


def spec_of(shape: tuple[int, ...]) -> FieldSpec:
    """Describe the field of embeddings that a training loop made."""
    return FieldSpec(shape=shape, dtype="float32", layer="last_hidden_state")
