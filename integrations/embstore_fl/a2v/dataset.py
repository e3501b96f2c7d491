"""The dataset's side: today's names for its embeddings, over stores that are found by three attributes.

Imports neither torch nor an encoder.
"""

from __future__ import annotations

import logging
import os
import time
import weakref
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Final, cast

from embstore import Cache, Source
from embstore.cache.prune import remove_store
from embstore.errors import StoreLockedError
from embstore.exchange import Unreadable
from embstore.sources import FileSample
from embstore.sources.base import file_sample
from embstore_fl.a2v import entries, names, stored
from embstore_fl.a2v.legacyfile import read_file
from embstore_fl.a2v.mixing import MixIn
from embstore_fl.a2v.stored import CacheReport
from embstore_fl.overlay import AudioEmbeddings, StoreLayer

logger = logging.getLogger("embstore")

_SPLITS: Final = ("train", "val", "test")
_SHOWN: Final = 5


@dataclass(kw_only=True)
class _State:
    """What the mix-in keeps of a dataset, so that the dataset's own ``__init__`` need not know of it."""

    owner: weakref.ref[A2VDataset] | None
    embeddings: AudioEmbeddings
    keys_by_path: dict[str, str] = field(default_factory=dict)
    from_file: Mapping[str, Any] | None = None
    report: CacheReport = field(default_factory=CacheReport)
    unreadable: tuple[Unreadable, ...] = ()

    def __getstate__(self) -> dict[str, Any]:
        """Leave the owner out: a split goes to a worker process without the whole."""
        return {**self.__dict__, "owner": None}


class A2VDataset(MixIn):
    """Gives a dataset the embeddings that today's code calls ``audio_embs``, and their cache.

    What it needs of the dataset is ``samples``: a sequence of mappings with ``file_id``, ``class_name`` and
    ``audio_path``, as the three data sets of today's code have; and, where they are set, `enable_ast_cache`,
    `ast_cache_dir`, and ``train``, ``val`` and ``test``, which are given the same embeddings.

    Attributes
    ----------
    enable_ast_cache : bool
    ast_cache_dir : path_like
        Folder of the stores; ``ast_cache`` below ``root_dir``, unless it is set.
    ast_dataset_name : str
        The config's ``dataset``; by default the class's name without "Dataset".
    ast_config : mapping or None
        An encoder's config, where several stores have the three attributes that are asked for.
    ast_field : str or None
        Of a store with several fields; "last_hidden_state" or "embedding", unless it is set.
    """

    provides: ClassVar[tuple[str, ...]] = (
        "_load_audio",
        "audio_embs",
        "clear_ast_cache",
        "filter_audio_embeddings_from_file",
        "load_ast_embeddings_from_cache",
        "load_audio_embeddings_from_file",
        "save_ast_embeddings_to_cache",
    )

    enable_ast_cache: bool = True
    ast_cache_dir: str | os.PathLike[str] | None = None
    ast_dataset_name: str | None = None
    ast_config: Mapping[str, Any] | None = None
    ast_field: str | None = None
    audio_embedding_file: str | os.PathLike[str] | None = None

    # -- its own keys -------------------------------------------------------------------------

    @property
    def ast_keys(self) -> list[str]:
        """Keys of the dataset's own samples."""
        samples: Sequence[Mapping[str, Any]] = getattr(self, "samples", ())
        return [f"{sample['file_id']}:{str(sample['class_name']).lower()}" for sample in samples]

    def ast_source(self, keys: Sequence[str] | None = None) -> Source:
        """Return the files of some of its samples, or of all, as a source for `embstore.embed`."""
        return stored.Files(self._ast_name, self._ast_files(keys))

    def _ast_files(self, keys: Sequence[str] | None = None) -> dict[str, FileSample]:
        """Return the samples' files by key; one that is not there can't be read, which a run tells of."""
        samples: Sequence[Mapping[str, Any]] = getattr(self, "samples", ())
        wanted = None if keys is None else set(keys)
        return {
            key: stored.file_of(key, Path(sample["audio_path"]))
            for key, sample in zip(self.ast_keys, samples, strict=True)
            if wanted is None or key in wanted
        }

    @property
    def _ast_name(self) -> str:
        return self.ast_dataset_name or type(self).__name__.removesuffix("Dataset")

    @property
    def _ast_cache(self) -> Cache:
        folder = self.ast_cache_dir
        if folder is None:
            folder = Path(getattr(self, "root_dir", ".")) / "ast_cache"
        return Cache(folder)

    def _ast_state(self) -> _State:
        found = self.__dict__.get("_a2v")
        if found is None:
            found = self.__dict__["_a2v"] = _State(owner=weakref.ref(self), embeddings=self._new_embeddings())
        return cast("_State", found)

    @property
    def _whole(self) -> A2VDataset:
        """The dataset that this is a split of, as long as there is one; else itself."""
        owner = self._ast_state().owner
        found = None if owner is None else owner()
        return self if found is None else found

    def _new_embeddings(self) -> AudioEmbeddings:
        return AudioEmbeddings()

    def _shared_state(self) -> _State:
        """Return the state, once it knows the dataset's samples, and its splits know the state."""
        state = self._ast_state()
        if self._whole is not self:  # a split: the whole dataset's state is its own
            return state
        if (own := dict.fromkeys(self.ast_keys)) != state.embeddings.own:
            state.embeddings.own = own  # today's classes list their samples after they were made, and more than once
            state.keys_by_path = {}
        for split in _SPLITS:
            part = getattr(self, split, None)
            if isinstance(part, A2VDataset) and part is not self:
                part.__dict__["_a2v"] = state
        return state

    @property
    def audio_embs(self) -> AudioEmbeddings:
        """The embeddings by ``file_id:class``: rows of stores, and what was assigned, in memory alone."""
        embeddings = self._ast_state().embeddings
        if not embeddings.own:  # the samples may have been listed since
            self._shared_state()
        return embeddings

    @audio_embs.setter
    def audio_embs(self, values: Mapping[str, Any] | None) -> None:
        embeddings = self.audio_embs
        if values is not embeddings:
            embeddings.become(values)

    @property
    def audio_embs_from_file(self) -> Mapping[str, Any] | None:
        """What was found in the cache or in a file; None, if nothing was looked for, or nothing found."""
        return self._ast_state().from_file

    @audio_embs_from_file.setter
    def audio_embs_from_file(self, values: Mapping[str, Any] | None) -> None:
        state = self._ast_state()
        state.from_file = values
        if values is not None:  # today's server copies them from another client, and filters them no more
            self.filter_audio_embeddings_from_file()

    @property
    def ast_missing(self) -> list[str]:
        """Keys of the dataset's own samples that have no embedding yet."""
        return self._shared_state().embeddings.missing

    @property
    def ast_report(self) -> CacheReport:
        """What the cache had, when it was asked last."""
        return self._ast_state().report

    @property
    def ast_unreadable(self) -> tuple[Unreadable, ...]:
        """What could not be read of the file, or of the mapping to save, that was given last."""
        return self._ast_state().unreadable

    # -- cache --------------------------------------------------------------------------------

    def load_ast_embeddings_from_cache(
        self, sample_rate: int = 16000, duration: float = 5.0, model_name: str = "ast"
    ) -> bool:
        """Read embeddings from the store that has these attributes, whoever made it.

        What is there is read from then on, here and in ``train``, ``val`` and ``test``; `ast_missing` says what is not.
        A row that was made from other content than its file has now is not read.

        Returns
        -------
        bool
            Whether every sample of the dataset's own has its embedding there.

        Raises
        ------
        AmbiguousConfigError
            Several encoders' stores have these attributes.
        """
        state = self._shared_state()
        if not self.enable_ast_cache:
            state.report = CacheReport(missing=tuple(state.embeddings.own), reason="the cache is off")
            logger.info("%s: %s", self._ast_name, state.report.reason)
            return False
        started = time.perf_counter()
        wanted = self._wanted(sample_rate, duration, model_name)
        cache, own = self._ast_cache, list(state.embeddings.own)
        if paths := stored.paths_of(cache, wanted, self.ast_config):
            layers, report = stored.look_up(paths, own, self._whole._ast_files, field=self.ast_field)
        else:
            reason = f"{names.nearest(cache, wanted)}; wanted {wanted}"
            layers, report = [], CacheReport(missing=tuple(own), reason=reason)
        state.report = report
        # What came from a file or from another client stays: it is only looked into after the cache.
        others = [one for one in state.embeddings.layers if not stored.lies_in(one, cache.path)]
        state.embeddings.load([*layers, *others])
        state.from_file = state.embeddings if layers else None
        logger.info("%s: %s: %s, %.3g s", self._ast_name, report.outcome, report.reason, time.perf_counter() - started)
        return bool(report.paths) and {*self.ast_keys} <= {*report.stored}

    def _wanted(self, sample_rate: float | None, duration: float | None, model_name: str | None) -> names.Wanted:
        return names.Wanted(dataset=self._ast_name, sample_rate=sample_rate, duration=duration, model_name=model_name)

    def save_ast_embeddings_to_cache(
        self,
        embeddings: Mapping[str, Any],
        sample_rate: int = 16000,
        duration: float = 5.0,
        model_name: str = "ast",
        embedding_shape: Sequence[int] | None = None,
    ) -> bool:
        """Append embeddings to the store of these attributes; rows that it has stay, but for stale ones.

        Parameters
        ----------
        embeddings : mapping
            Tensors or arrays by ``file_id:class``, or what today's client keeps: see `embstore_fl.a2v.entries`.
        sample_rate, duration, model_name
        embedding_shape : sequence of int, optional
            Of a row; that of most rows, unless given. Rows of another shape, and rows with NaN, are not saved but
            listed in `ast_unreadable`.

        Returns
        -------
        bool
            Whether all of them are stored now; False if the cache is off, or there are none.

        Raises
        ------
        ReadOnlyError, StorageFullError, StoreLockedError
        """
        if not self.enable_ast_cache or not embeddings:
            logger.info("%s: not saved: %s", self._ast_name, "nothing to save" if embeddings else "the cache is off")
            return False
        found = entries.of_mapping(embeddings)
        shape = tuple(embedding_shape) if embedding_shape is not None else stored.shape_of_most(found.values)
        sound = {key: value for key, value in found.values.items() if tuple(value.shape) == shape}
        for key, value in found.values.items():
            if key not in sound:
                found.unreadable.append(Unreadable(key, f"its shape is {tuple(value.shape)}, not {shape}"))
        if sound:
            config = names.config_of(self._wanted(sample_rate, duration, model_name), shape)
            files = self._whole._ast_files(list(sound))
            found.unreadable += stored.append(self._ast_cache, config, sound, shape, files=files)
        self._tell_unreadable(found.unreadable, self._ast_name)
        return bool(sound) and not found.unreadable

    def clear_ast_cache(
        self, sample_rate: int | None = None, duration: float | None = None, model_name: str | None = None
    ) -> None:
        """Remove this data set's stores: all, or those that have the attributes given.

        A store that a writer is at work on is left, which is logged.
        """
        if not self.enable_ast_cache:
            logger.warning("%s: not cleared: the cache is off", self._ast_name)
            return
        wanted = self._wanted(sample_rate, duration, model_name)
        removed: list[Path] = []
        for entry in self._ast_cache.entries():
            if entry.config.get("dataset") != self._ast_name or names.differences(wanted, entry.config):
                continue
            try:
                remove_store(entry.path)
                removed.append(entry.path)
                logger.info("%s: removed, %d rows", entry.path, entry.rows)
            except StoreLockedError as error:
                logger.warning("%s: not removed: %s", entry.path, error)
        embeddings = self._ast_state().embeddings
        left = [one for one in embeddings.layers if not (isinstance(one, StoreLayer) and one.path in removed)]
        embeddings.load(left)

    # -- files of today's code ----------------------------------------------------------------

    def load_audio_embeddings_from_file(self, embedding_file: str | os.PathLike[str]) -> None:
        """Read embeddings from a file of `torch.save`'s, of the dataset's own samples; nothing in it is run.

        What was found already goes before it. What can't be read is in `ast_unreadable`, and logged.

        Raises
        ------
        UnsafeFileError, FileFormatError
        """
        state = self._shared_state()
        if not os.path.isfile(embedding_file):
            logger.warning("%s: there is no such file", embedding_file)
            return
        self.audio_embedding_file = embedding_file
        found = read_file(embedding_file, state.embeddings.own)
        self._tell_unreadable(found.unreadable, embedding_file)
        state.embeddings.also(found.values)
        state.from_file = state.embeddings
        logger.info("%s: embeddings of %d samples", embedding_file, len(found.values))

    def filter_audio_embeddings_from_file(self) -> None:
        """Have in ``audio_embs`` what was found for the dataset's own samples, whichever way it was kept."""
        state = self._shared_state()
        values = state.from_file
        if values is None:
            logger.warning("%s: nothing was loaded", self._ast_name)
        elif isinstance(values, AudioEmbeddings):
            if values is not state.embeddings:
                state.embeddings.also(values)
        else:
            found = entries.of_mapping(values)
            self._tell_unreadable(found.unreadable, self._ast_name)
            state.embeddings.also({key: value for key, value in found.values.items() if key in state.embeddings.own})

    def _tell_unreadable(self, unreadable: Sequence[Unreadable], where: object) -> None:
        self._ast_state().unreadable = tuple(unreadable)
        if unreadable:
            shown = "; ".join(map(str, unreadable[:_SHOWN]))
            logger.warning("%s: %d can't be used: %s", where, len(unreadable), shown)

    def ast_leave_out(self, keys: Collection[str]) -> None:
        """Go on without these samples, here and in the splits: their clips can't be decoded."""
        gone = set(keys)
        for dataset in (self, *(getattr(self, split, None) for split in _SPLITS)):
            if isinstance(dataset, A2VDataset):
                samples: Sequence[Mapping[str, Any]] = getattr(dataset, "samples", ())
                kept = [sample for key, sample in zip(dataset.ast_keys, samples, strict=True) if key not in gone]
                dataset.samples = kept  # type: ignore[attr-defined]
        self._shared_state()

    # -- audio --------------------------------------------------------------------------------

    def _load_audio(self, audio_path: str | os.PathLike[str]) -> Any:
        """Return a clip, or a tensor of no length where the sample has its embedding.

        Raises
        ------
        DecodeError, SampleError
            It can't be decoded. Today's code makes silence of it, and keeps the embedding of that.
        """
        import torch

        from embstore.encoders import AudioSettings
        from embstore.encoders.audio import decode_audio
        from embstore.errors import DecodeError

        path, state = Path(audio_path), self._shared_state()
        if not state.keys_by_path:
            state.keys_by_path = {str(file.path): key for key, file in self._ast_files().items()}
        key = state.keys_by_path.get(str(path))
        if key is not None and key in state.embeddings:
            return torch.empty(0)
        rate, duration = getattr(self, "audio_sample_rate", 16_000), getattr(self, "audio_duration", 5.0)
        try:
            content = file_sample(key or f"{path.stem}:_", path).read().value
            return torch.from_numpy(decode_audio(content, AudioSettings(sample_rate=rate, duration=duration)))
        except DecodeError as error:
            raise DecodeError(error.reason, path=path) from error
