"""A node's samples with their embeddings, as a PyTorch data set. Importing this module imports torch."""

from __future__ import annotations

import copy
import os
from collections.abc import Collection, Mapping, Sequence
from typing import Any, ClassVar, Final, Literal, Self

from embstore import EmbeddingStore
from embstore.encoders import AudioSettings
from embstore.errors import MissingLibraryError
from embstore_fl.datasets.base import AudioSource
from embstore_fl.datasets.clips import decode_clip, stackable, with_common_names
from embstore_fl.datasets.lazy_clips import LazyClips
from embstore_fl.datasets.selection import Chosen, Selected, Selection
from embstore_fl.overlay import AudioEmbeddings, StoreLayer
from embstore_fl.splits import SPLITS
from embstore_fl.stores import open_shared

try:
    import torch
    from torch.utils.data import Dataset, default_collate
    from torch.utils.data._utils.collate import default_collate_fn_map
except ImportError as error:
    raise MissingLibraryError("torch", "fl", "for FLDataset") from error


LoadAudio = Literal["never", "missing", "always"]

CLIP: Final = AudioSettings(sample_rate=16_000, duration=5.0)


class FLDataset(Dataset[dict[str, Any]]):
    """A node's samples of a data set. With the default options, reading samples decodes and copies nothing.

    A sample is a mapping: ``file_id``, ``class_name``, ``audio_filename``, ``label`` (a tensor ``() int64``),
    ``audio_emb`` if it has an embedding, ``text_emb`` if its class has one, and ``audio`` (``(samples,) float32``)
    according to `load_audio`. ``audio_emb`` is a tensor over the store's map, not a copy. See `embstore_fl.stores.Rows`
    for the effect of a write into it. A collated batch is a copy.

    Parameters
    ----------
    source : AudioSource
    selection : Selection, optional
        Default: all samples.
    load_audio : {"never", "missing", "always"}
        Clips to decode. With "missing", ``audio`` of a sample with an embedding is decoded on first use
        (`embstore_fl.datasets.lazy_clips.LazyClips`), or at once if `audio` has no duration. A batch that has samples
        without an embedding has no ``audio_emb``.
    audio : AudioSettings
        Sample rate (Hz) and duration (seconds) of decoded clips.
    text_embs : mapping, optional
        Text embeddings by class, passed on unchanged.
    client : optional
        The node's name, for errors.

    Attributes
    ----------
    source : AudioSource
    selection : Selection
    audio_embs : AudioEmbeddings
        Shared with `train`, `val` and `test`.
    split : str
        "all", or the name of the one split.

    Raises
    ------
    UnknownClassError, UnknownSplitError, NodeRangeError, DuplicateKeysError
    """

    split: str
    _fallback: ClassVar[Selection] = Selection()

    def __init__(
        self,
        source: AudioSource,
        selection: Selection | None = None,
        *,
        load_audio: LoadAudio = "never",
        audio: AudioSettings = CLIP,
        text_embs: Mapping[str, Any] | None = None,
        client: object = None,
    ) -> None:
        if load_audio not in ("never", "missing", "always"):
            raise ValueError(f"expected load_audio 'never', 'missing' or 'always', found {load_audio!r}")
        self.source = source
        self.selection = self._fallback if selection is None else selection
        self.audio_mode: LoadAudio = load_audio
        self.clip = audio
        self.text_embs = text_embs
        splits = self.selection.splits
        self.split = splits[0] if splits is not None and len(splits) == 1 else "all"
        self._parts: dict[str, Self] = {}
        self._take(Selected(source, self.selection).chosen)
        self._embeddings = AudioEmbeddings(self.keys, client=client)

    def _take(self, chosen: Sequence[Chosen]) -> None:
        self.chosen = tuple(chosen)
        self.labels = torch.tensor([self.source.labels[c.listed.class_name] for c in self.chosen], dtype=torch.int64)
        self._keys = [c.listed.key for c in self.chosen]

    # -- content ------------------------------------------------------------------------------

    @property
    def keys(self) -> list[str]:
        """Keys of the samples, in order."""
        return list(self._keys)

    @property
    def active_classes(self) -> dict[str, int]:
        """Selected classes with their labels in the whole data set."""
        labels = self.source.labels
        return {name: labels[name] for name in self.selection.classes_of(self.source)}

    @property
    def samples(self) -> Samples:
        """Metadata of each sample, as dictionaries that are made on access. No recording is opened."""
        return Samples(self)

    @property
    def recordings(self) -> Selected:
        """The files of the samples, as a source for `embstore.embed`."""
        return Selected(self.source, self.chosen)

    def __len__(self) -> int:
        return len(self.chosen)

    def part(self, split: str) -> Self:
        """Return the samples of a split. It shares the embeddings of this data set.

        Raises
        ------
        AttributeError
            This data set is one split itself.
        """
        if self.split != "all":
            raise AttributeError(f"{self!r} is one split and has no other splits")
        if split not in self._parts:
            part = copy.copy(self)
            part.split = split
            part._parts = {}
            part._take([chosen for chosen in self.chosen if chosen.split == split])
            self._parts[split] = part
        return self._parts[split]

    @property
    def train(self) -> Self:
        """The samples for training."""
        return self.part("train")

    @property
    def val(self) -> Self:
        """The samples for validation."""
        return self.part("val")

    @property
    def test(self) -> Self:
        """The samples for testing."""
        return self.part("test")

    # -- embeddings ---------------------------------------------------------------------------

    @property
    def audio_embs(self) -> AudioEmbeddings:
        """Embeddings by key, shared with the splits. Another mapping may be assigned. It is not copied."""
        return self._embeddings

    @audio_embs.setter
    def audio_embs(self, values: Mapping[str, Any] | None) -> None:
        if values is not self._embeddings:
            self._embeddings.become(values)

    def use(self, store: EmbeddingStore | str | os.PathLike[str], field: str | None = None) -> list[str]:
        """Read embeddings from a store. Return the keys that the store lacks.

        Parameters
        ----------
        store : EmbeddingStore or path_like
        field : str, optional
            Default: the store's primary field.

        Returns
        -------
        list of str

        Raises
        ------
        UnknownFieldError
            The store lacks `field`.
        """
        shared = open_shared(store.path if isinstance(store, EmbeddingStore) else store)
        field = shared.store.field_name(field)
        self._embeddings.load([StoreLayer(shared.store.path, field, list(self._embeddings.own))])
        return self._embeddings.missing

    def leave_out(self, keys: Collection[str]) -> None:
        """Remove these samples, here and in the splits, for example if their clips can't be decoded."""
        gone = set(keys)
        self._take([chosen for chosen in self.chosen if chosen.listed.key not in gone])
        for part in self._parts.values():
            part.leave_out(gone)
        for key in gone:
            self._embeddings.own.pop(key, None)

    # -- samples ------------------------------------------------------------------------------

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Return one sample.

        Raises
        ------
        DecodeError, SampleError
            Its clip must be decoded and can't be.
        """
        place = range(len(self))[index]
        return self._sample(place, self._embeddings.find(self._keys[place]))

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, Any]]:
        """Return the samples of a batch, with the names that all of them have, such as ``audio_emb``."""
        return with_common_names([self[index] for index in indices])

    def _sample(self, place: int, embedding: Any) -> dict[str, Any]:
        listed = self.chosen[place].listed
        sample = Sample() if embedding is None else Sample(audio_emb=embedding)
        sample["file_id"] = listed.file_id
        sample["class_name"] = listed.class_name
        sample["audio_filename"] = listed.audio_filename
        sample["label"] = self.labels[place]
        if self.audio_mode == "missing" and embedding is not None and self.clip.samples is not None:
            sample["audio"] = LazyClips(((listed.key, listed.path, self.clip),))
        elif self.audio_mode != "never":
            sample["audio"] = decode_clip(self.source.sample(listed), self.clip)
        if self.text_embs and listed.class_name in self.text_embs:
            sample["text_emb"] = self.text_embs[listed.class_name]
        return sample

    def details(self, place: int) -> dict[str, Any]:
        """Return the metadata of a sample. No recording is opened."""
        chosen = self.chosen[place]
        listed = chosen.listed
        return {
            "class_name": listed.class_name,
            "class_label": int(self.labels[place]),
            "file_id": listed.file_id,
            "audio_path": listed.path,
            "audio_filename": listed.audio_filename,
            "split": chosen.split,
            "sample_idx": place,
            **self.source.details(listed),
        }

    def __repr__(self) -> str:
        counts = ", ".join(f"{n:,} {s}" for s in SPLITS if (n := sum(c.split == s for c in self.chosen)))
        return f"<{type(self).__name__} {self.source.name!r} ({self.split}): {len(self):,} samples: {counts}>"


class Sample(dict[str, Any]):
    """A sample. A batch of the default collate has the names that all its samples have.

    A `DataLoader` asks a data set for a whole batch, but a `ConcatDataset` for one sample after the other.
    """


def _collated(batch: Any, *, collate_fn_map: Any = None) -> Any:
    return default_collate(stackable(batch))


default_collate_fn_map[Sample] = _collated  # it dispatches on the type of a batch's first sample


class Samples(Sequence[dict[str, Any]]):
    """Metadata of each sample, as dictionaries that are made on access."""

    def __init__(self, dataset: FLDataset) -> None:
        self._dataset = dataset

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(len(self)))]
        return self._dataset.details(range(len(self))[index])
