"""Data set mix-in: the samples' keys and audio, and their embeddings, which a data set shares with its splits."""

from __future__ import annotations

import functools
import os
import weakref
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Final, Literal, Self, cast

from embstore import Cache, Source
from embstore._engine.format.keys import Key
from embstore.exchange import Unreadable
from embstore.sources import FileSample
from embstore_fl.a2v import stored
from embstore_fl.a2v.mixing import MixIn
from embstore_fl.a2v.state import State
from embstore_fl.a2v.stored import CacheReport
from embstore_fl.datasets.clips import decode_clip, with_common_names
from embstore_fl.datasets.listed import file_of
from embstore_fl.overlay import AudioEmbeddings
from embstore_fl.splits import SPLITS

_GETITEM: Final = "__getitem__"


def _with_embedding(getitem: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    """Return the ``__getitem__`` of a data set whose samples have their ``audio_emb`` where there is one.

    `ESC50Dataset` and `VGGSoundDataset` of the A2V code look for it by file_id alone.
    """

    @functools.wraps(getitem)
    def found(self: Any, index: Any) -> Any:
        from embstore_fl.datasets.federated import Sample

        sample = Sample(getitem(self, index))
        row = self.audio_embs.get(f"{sample['file_id']}:{str(sample['class_name']).lower()}")
        return sample if row is None else Sample({**sample, "audio_emb": row})

    return found


class A2VSamples(MixIn):
    """Keys, files and embeddings of a data set's samples. `A2VDataset` adds their cache."""

    enable_ast_cache: bool = True
    ast_cache_dir: str | os.PathLike[str] | None = None
    ast_dataset_name: str | None = None
    ast_model_name: str = "ast"
    ast_config: Mapping[str, Any] | None = None
    ast_field: str | None = None
    audio_embedding_file: str | os.PathLike[str] | None = None
    device: Any

    provides: ClassVar[tuple[str, ...]] = ("__getitems__", "_load_audio", "audio_embs", "to")

    def __init_subclass__(cls, *, existing: Literal["keep", "replace"] = "keep", **options: Any) -> None:
        super().__init_subclass__(existing=existing, **options)
        if existing == "replace" and _GETITEM in cls.__dict__:
            setattr(cls, _GETITEM, _with_embedding(cls.__dict__[_GETITEM]))

    # -- its own keys -------------------------------------------------------------------------

    @property
    def ast_keys(self) -> list[str]:
        """Keys of the data set's own samples."""
        samples: Sequence[Mapping[str, Any]] = getattr(self, "samples", ())
        return [f"{sample['file_id']}:{str(sample['class_name']).lower()}" for sample in samples]

    def ast_class_of(self, file_id: str) -> str | None:
        """Return the class of a bare file_id in a legacy file, or None.

        None here: `samples` may be a selection, and another class may have the same file_id. Override it in a data set
        whose file_ids are unique.
        """
        return None

    def ast_source(self, keys: Sequence[str] | None = None) -> Source:
        """Return the files of its samples, or of those with the given keys, as a source for `embstore.embed`."""
        return stored.Files(self._ast_name, self._ast_files(keys), getattr(self, "root_dir", None))

    def _ast_files(self, keys: Sequence[str] | None = None) -> dict[str, FileSample]:
        """Return the samples' files by key. `embstore.embed` lists missing files as failed."""
        samples: Sequence[Mapping[str, Any]] = getattr(self, "samples", ())
        wanted = None if keys is None else set(keys)
        return {
            key: file_of(key, sample["audio_path"])
            for key, sample in zip(self.ast_keys, samples, strict=True)
            if wanted is None or key in wanted
        }

    @property
    def _ast_name(self) -> str:
        return self.ast_dataset_name or type(self).__name__.removesuffix("Dataset")

    @property
    def ast_stores(self) -> Cache:
        """The cache with the data set's stores."""
        folder = self.ast_cache_dir
        if folder is None:
            folder = Path(getattr(self, "root_dir", ".")) / "ast_cache"
        return Cache(folder)

    def _ast_state(self) -> State:
        found = self.__dict__.get("_a2v")
        if found is None:
            found = self.__dict__["_a2v"] = State(owner=weakref.ref(self), embeddings=self._new_embeddings())
            found.embeddings.tokens = "all"
        return cast("State", found)

    @property
    def _whole(self) -> A2VSamples:
        """The data set that this is a split of, while it is alive, else this data set."""
        owner = self._ast_state().owner
        found = None if owner is None else owner()
        return self if found is None else found

    def _new_embeddings(self) -> AudioEmbeddings:
        return AudioEmbeddings()

    def _shared_state(self) -> State:
        """Return the state with its keys up to date, and share it with the splits."""
        state = self._ast_state()
        if self._whole is not self:  # a split shares the state of the whole data set
            return state
        if (own := dict.fromkeys(self.ast_keys)) != state.embeddings.own:
            state.embeddings.own = own  # the A2V classes list their samples after `__init__`, and more than once
            state.keys_by_path = {}
        for split in SPLITS:
            part = getattr(self, split, None)
            if isinstance(part, A2VSamples) and part is not self:
                part.__dict__["_a2v"] = state
        return state

    @property
    def audio_embs(self) -> AudioEmbeddings:
        """Embeddings by ``file_id:class``: rows of stores, and assigned ones, which are in memory only."""
        embeddings = self._ast_state().embeddings
        if not embeddings.own:  # the samples may have been listed after the last call
            self._shared_state()
        return embeddings

    @audio_embs.setter
    def audio_embs(self, values: Mapping[str, Any] | None) -> None:
        embeddings = self.audio_embs
        if isinstance(values, AudioEmbeddings):  # the A2V server assigns those of another VGGSound client
            embeddings.also(values if values is not embeddings else None)
        else:
            embeddings.become(values)

    @property
    def ast_missing(self) -> list[str]:
        """Keys of the data set's own samples without an embedding."""
        return self._shared_state().embeddings.missing

    @property
    def ast_report(self) -> CacheReport:
        """Result of the last look-up in the cache."""
        return self._ast_state().report

    @property
    def ast_unreadable(self) -> tuple[Unreadable, ...]:
        """Entries that the last file, or the last mapping to save, had and that could not be used."""
        return self._ast_state().unreadable

    def ast_leave_out(self, keys: Collection[str]) -> None:
        """Remove samples whose clips can't be decoded, here and in the splits."""
        gone = set(keys)
        for dataset in (self, *(getattr(self, split, None) for split in SPLITS)):
            if isinstance(dataset, A2VSamples):
                samples: Sequence[Mapping[str, Any]] = getattr(dataset, "samples", ())
                kept = [sample for key, sample in zip(dataset.ast_keys, samples, strict=True) if key not in gone]
                dataset.samples = kept  # type: ignore[attr-defined]
        self._shared_state()

    # -- samples ------------------------------------------------------------------------------

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, Any]]:
        """Return the samples of a batch. None of them has an ``audio_emb`` if one lacks it."""
        return with_common_names([self[index] for index in indices])  # type: ignore[index]

    def to(self, device: Any) -> Self:
        """Set ``device``, here and in the splits. Samples stay on the CPU. The training loop moves batches.

        (The A2V code from 29 January 2026 on moves all embeddings. Those of a store would be copied.)
        """
        import torch

        for dataset in (self, *(getattr(self, split, None) for split in SPLITS)):
            if isinstance(dataset, A2VSamples):
                dataset.device = torch.device(device)
        return self

    def _load_audio(self, audio_path: str | os.PathLike[str]) -> Any:
        """Return a clip ``(samples,) float32``. Where the sample has its embedding, it is decoded on first use.

        A clip that can't be decoded raises. (The A2V code returns silence, and would keep the embedding of silence.)
        """
        from embstore.encoders import AudioSettings
        from embstore_fl.datasets.lazy_clips import LazyClips

        path, state = Path(audio_path), self._shared_state()
        if not state.keys_by_path:
            state.keys_by_path = {str(file.path): key for key, file in self._ast_files().items()}
        key = state.keys_by_path.get(str(path))
        rate, duration = self._ast_clip
        settings = AudioSettings(sample_rate=int(rate), duration=duration)
        if key is not None and key in state.embeddings:
            return LazyClips(((key, str(path), settings),))
        return decode_clip(file_of(key or str(Key(path.stem)), path), settings)

    @property
    def _ast_clip(self) -> tuple[float, float]:
        """Sample rate (Hz) and duration (seconds) of the clips."""
        return getattr(self, "audio_sample_rate", 16_000), getattr(self, "audio_duration", 5.0)
