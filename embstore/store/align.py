"""Join views of several stores row by row, to read them as one: `align` and `Aligned`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from embstore._engine.format.arguments import check_choice, mapping_of, row_numbers, text_list
from embstore._engine.format.ragged import Padded
from embstore._engine.pickles import PickledByName
from embstore._engine.read.column import Rows
from embstore._outputs.tensors import as_tensor, field_tensors
from embstore.errors import AlignmentError, NameRefusedError
from embstore.store.embedding_store import View

On = Literal["key", "file_id"]
_OWN_NAMES = ("key", "file_id", "class_name", "label")


def align(
    *,
    on: On = "key",
    repeats: Literal["refuse", "allow"] = "refuse",
    fields: Mapping[str, str] | None = None,
    classes: Sequence[str] | None = None,
    **views: View,
) -> Aligned:
    """Join views row by row: the rows that all of them have, in the order of the first view.

    Parameters
    ----------
    on : {"key", "file_id"}
        The id that joined rows share. ``"file_id"`` also joins rows of different classes.
    repeats : {"refuse", "allow"}
        How to treat an id that a view has several times (a file of several classes, an augmented file). ``"allow"``
        repeats the rows of the other views. An id that two views have several times is ambiguous: it always raises.
    fields : mapping of str to str, optional
        The field of each view. Default: the primary field of its store.
    classes : sequence of str, optional
        Adds a ``"label"`` to each sample: the place of its class in this list.
    **views : View
        Two or more views. A sample has their rows under the same names.

    Raises
    ------
    AlignmentError
        An id is repeated, see `repeats`. Or `classes` is given, and joined rows have different classes.
    NameRefusedError
        A view is named ``key``, ``file_id``, ``class_name`` or ``label``.
    UnknownClassError, UnknownFieldError

    Examples
    --------
    >>> import embstore, tempfile
    >>> folder = tempfile.mkdtemp()
    >>> audio = embstore.open(folder + "/audio.zarr", "w-", config={"encoder": "AST"})
    >>> _ = audio.append(["a:dog", "b:cat", "c:cat"], np.eye(3, dtype=np.float32))
    >>> image = embstore.open(folder + "/image.zarr", "w-", config={"encoder": "CLIP"})
    >>> _ = image.append(["c:cat", "a:dog"], np.ones((2, 4), np.float32))
    >>> both = align(audio=audio.select(), image=image.select())
    >>> both.keys, both[0]["image"].shape, both.left_out
    (['a:dog', 'c:cat'], (4,), {'audio': 1, 'image': 0})
    """
    check_choice("on", on, get_args(On))
    check_choice("repeats", repeats, ("refuse", "allow"))
    fields = mapping_of("fields", fields, "views to field names")
    if len(views) < 2:
        raise TypeError(f"expected two views or more, by name, found {len(views)}")
    for name, view in views.items():
        if name in _OWN_NAMES:
            raise NameRefusedError(name, "each sample has a value of that name already")
        if not isinstance(view, View):
            raise TypeError(f"expected views, found {name}={type(view).__name__}; for a store pass store.select()")
    if unknown := fields.keys() - views.keys():
        raise ValueError(f"fields= names no such view: {', '.join(sorted(unknown))}")
    ids = {name: view.keys if on == "key" else view.file_ids for name, view in views.items()}
    places, left_out = _joined(ids, on, repeats)
    return Aligned(
        on=on,
        views={name: view[places[name]] for name, view in views.items()},
        fields={name: view.store.field_name(fields.get(name)) for name, view in views.items()},
        classes=None if classes is None else tuple(text_list("classes", classes)),
        left_out=left_out,
    )


def _joined(
    ids: Mapping[str, list[str]], on: On, repeats: Literal["refuse", "allow"]
) -> tuple[dict[str, Rows], dict[str, int]]:
    """Return the places of the joined rows in each view, and the number of its rows that are left out."""
    common = set.intersection(*(set(texts) for texts in ids.values()))
    places: dict[str, dict[str, list[int]]] = {name: {} for name in ids}
    for name, texts in ids.items():
        for place, text in enumerate(texts):
            if text in common:
                places[name].setdefault(text, []).append(place)
    several: dict[str, list[str]] = {
        name: [text for text, at in found.items() if len(at) > 1] for name, found in places.items()
    }
    seen = Counter(text for texts in several.values() for text in texts)
    for name, texts in several.items():
        if texts and repeats == "refuse":
            hint = 'repeats="allow" repeats their partners' + (', on="key" tells classes apart' if on != "key" else "")
            raise AlignmentError(name, on, texts, f"it has {len(texts)} of them more than once ({hint})")
        if both := [text for text in texts if seen[text] > 1]:
            raise AlignmentError(name, on, both, "it and another view both have them more than once")
    first = next(iter(ids))
    taken: set[str] = set()
    rows: list[tuple[int, ...]] = []
    for text in ids[first]:
        if text in common and text not in taken:
            taken.add(text)
            rows += product(*(found[text] for found in places.values()))
    if len(several[first]):  # keep the order of the first view if that view has the repeats
        rows.sort()
    columns = np.array(rows, dtype=np.int64).reshape(-1, len(ids)).T
    left_out = {name: sum(text not in common for text in texts) for name, texts in ids.items()}
    return dict(zip(ids, columns, strict=True)), left_out


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Aligned(PickledByName):
    """Rows of several views joined on an id, made by `align`.

    It is a map-style dataset for `torch.utils.data.DataLoader`, and reads a batch with one gather for each view. A
    sample has the row of each view under the name of the view, the shared id, and a label if there are classes. In a
    batch the rows of a ragged field are padded, and ``<name>_lengths`` has their lengths.

    Attributes
    ----------
    on : str
        ``"key"`` or ``"file_id"``.
    views : dict of str to View
        Views of one length. Row `i` of each is joined with row `i` of the others.
    fields : dict of str to str
    classes : tuple of str, optional
    left_out : dict of str to int
        The number of rows of each view that another view lacks.
    """

    on: On
    views: dict[str, View]
    fields: dict[str, str]
    classes: tuple[str, ...] | None = None
    left_out: dict[str, int]

    def __post_init__(self) -> None:
        if self.classes is not None:
            self.labels(self.classes)  # raise now instead of in the middle of an epoch

    @property
    def first(self) -> View:
        """The first view. All rows are in its order."""
        return next(iter(self.views.values()))

    def __len__(self) -> int:
        return len(self.first)

    @property
    def keys(self) -> list[str]:
        """The keys of the first view. Views joined on the key all have these keys."""
        return self.first.keys

    @property
    def file_ids(self) -> list[str]:
        """The file_id of each row, the same in all views."""
        return self.first.file_ids

    def labels(self, classes: Sequence[str]) -> NDArray[np.int64]:
        """Return each row's place in `classes`: ``(len(aligned),) int64``.

        Raises
        ------
        UnknownClassError
            A class is not in the list.
        AlignmentError
            Joined rows have different classes.
        """
        labels = self.first.labels(classes)
        own = np.array(self.first.class_names)
        others = {} if self.on == "key" else self.views  # a key has one class
        for name, view in others.items():
            if len(differing := np.flatnonzero(np.array(view.class_names) != own)):
                reason = "its class differs for some, so no label fits both rows"
                raise AlignmentError(name, self.on, view_ids(self.first[differing], self.on), reason)
        return labels

    def __getitem__(self, index: Any) -> Any:
        """Return one sample as a mapping of NumPy arrays. For a slice, places or a mask, return an `Aligned`."""
        if isinstance(index, int | np.integer):
            place = range(len(self))[index]
            return self._sample(place)
        views = {name: view[index] for name, view in self.views.items()}
        return Aligned(on=self.on, views=views, fields=self.fields, classes=self.classes, left_out=self.left_out)

    def _sample(self, place: int) -> dict[str, Any]:
        sample: dict[str, Any] = {}
        for name, view in self.views.items():
            values = view[place : place + 1].to_numpy(self.fields[name])
            sample[name] = (values.values if isinstance(values, Padded) else values)[0]
        sample[self.on] = view_ids(self.first[place : place + 1], self.on)[0]
        if self.classes is not None:
            sample["label"] = int(self.first[place : place + 1].labels(self.classes)[0])
        return sample

    def __getitems__(self, indices: Sequence[int]) -> Any:
        """Return the samples of a batch as tensors, read at once. The default collate does not copy them again."""
        from embstore._outputs.collate import Batch

        places = row_numbers(indices)
        whole: dict[str, Any] = {}
        ragged = []
        for name, view in self.views.items():
            whole[name], lengths = field_tensors(view.snapshot(), self.fields[name], view.rows[places])
            if lengths is not None:
                whole[f"{name}_lengths"] = lengths
                ragged.append(name)
        chosen = self.first[places]
        whole[self.on] = view_ids(chosen, self.on)
        if self.classes is not None:
            whole["label"] = as_tensor(chosen.labels(self.classes))
        return Batch(whole, len(places), ragged)

    def __repr__(self) -> str:
        rows = ", ".join(f"{name} ({field})" for name, field in self.fields.items())
        return f"<Aligned {rows}: {len(self):,} rows joined on {self.on}>"


def view_ids(view: View, on: On) -> list[str]:
    """Return the keys or the file_ids of a view."""
    return view.keys if on == "key" else view.file_ids
