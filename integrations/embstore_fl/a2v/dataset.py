"""Data set mix-in: the A2V names for embeddings, over stores that are found by three attributes.

Imports neither torch nor an encoder.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Final, cast

from embstore import Cache
from embstore._engine.format.keys import split_text
from embstore.exchange import Unreadable
from embstore_fl.a2v import chunked, entries, names, stored
from embstore_fl.a2v.chunked import ClassRows
from embstore_fl.a2v.entries import Entries
from embstore_fl.a2v.legacyfile import read_file
from embstore_fl.a2v.samples import A2VSamples
from embstore_fl.a2v.stored import CacheReport
from embstore_fl.errors import ClipSettingsError
from embstore_fl.overlay import AudioEmbeddings, StoreLayer

logger = logging.getLogger("embstore")

_SHOWN: Final = 5


class A2VDataset(A2VSamples):
    """Mix-in that gives a data set ``audio_embs`` and their cache.

    The data set needs ``samples``: a sequence of mappings with ``file_id``, ``class_name`` and ``audio_path``, as the
    three A2V data sets have it. `enable_ast_cache` and `ast_cache_dir` are read where they are set. Where the data set
    has the splits ``train``, ``val`` and ``test``, they share its embeddings.

    Attributes
    ----------
    enable_ast_cache : bool
        False: no store is read or written.
    ast_cache_dir : path_like
        Folder of the stores. Default: ``ast_cache`` below ``root_dir``.
    ast_dataset_name : str
        The config's ``dataset``. Default: the class's name without "Dataset".
    ast_model_name : str
        Model of the embeddings where a call names none: its id, its last part, or "ast" for
        ``MIT/ast-finetuned-audioset-10-10-0.4593``.
    ast_config : mapping or None
        An encoder's config. It chooses between several stores with the same three attributes.
    ast_field : str or None
        Field to read. Default: "last_hidden_state", then "embedding", then the store's only field.
    """

    provides: ClassVar[tuple[str, ...]] = (
        "clear_ast_cache",
        "close_ast_cache",
        "filter_audio_embeddings_from_file",
        "get_cached_ast_embedding",
        "load_ast_embeddings_from_cache",
        "load_audio_embeddings_from_file",
        "save_ast_embeddings_to_cache",
    )

    @property
    def use_cls_token_only(self) -> bool:
        """Whether the node uses the first token (CLS) of each row alone.

        True: each embedding is cut to it, and rows that hold nothing else are used, too. A change looks up the cache
        again, if it was looked up before.
        """
        return self._ast_state().embeddings.tokens == "cls"

    @use_cls_token_only.setter
    def use_cls_token_only(self, value: bool) -> None:
        state = self._ast_state()
        if bool(value) != self.use_cls_token_only:
            state.embeddings.tokens = "cls" if value else "all"
            if state.asked is not None:
                self.load_ast_embeddings_from_cache(**state.asked)

    # -- cache --------------------------------------------------------------------------------

    def load_ast_embeddings_from_cache(
        self,
        sample_rate: int | None = None,
        duration: float | None = None,
        model_name: str | None = None,
        *,
        cache_dir: str | os.PathLike[str] | None = None,
        classes: Sequence[str] | None = None,
        close_previous: bool = True,
    ) -> dict[str, ClassRows]:
        """Read embeddings from the store that has these attributes.

        ``audio_embs`` reads the rows it finds from then on, here and in ``train``, ``val`` and ``test``. `ast_missing`
        lists the other keys. Stale rows, made from other content than the file has now, are not read.

        Parameters
        ----------
        sample_rate : int, optional
            Hz. Default: the data set's.
        duration : float, optional
            Seconds. Default: the data set's.
        model_name : str, optional
            A model's id, its last part, or "ast" or "ast-finetuned". Default: `ast_model_name`.
        cache_dir : path_like, optional
            Folder of the stores. Default: `ast_cache_dir`. The A2V code from 29 January 2026 on gives it first.
        classes : sequence of str, optional
            Classes to return. Default: all.
        close_previous : bool
            No effect: rows of the cache that were found before are looked up again.

        Returns
        -------
        dict of str to ClassRows
            The rows that were found, by class. It is empty, and so false, if none was found. `ast_missing` lists the
            samples without an embedding.

        Raises
        ------
        AmbiguousConfigError
            Stores of several encoders have these attributes.
        ClipSettingsError
            `sample_rate` or `duration` is not the data set's.
        """
        if isinstance(sample_rate, str | os.PathLike):
            return self.load_ast_embeddings_from_cache(cache_dir=sample_rate, classes=cast("Any", duration))
        state = self._shared_state()
        if not self.enable_ast_cache:
            state.report = CacheReport(missing=tuple(state.embeddings.own), reason="the cache is off")
            logger.info("%s: %s", self._ast_name, state.report.reason)
            return {}
        started = time.perf_counter()
        wanted = self._wanted(sample_rate, duration, model_name or self.ast_model_name)
        state.asked = {"sample_rate": sample_rate, "duration": duration, "model_name": model_name}
        state.asked |= {"cache_dir": cache_dir, "classes": classes}
        cache = self.ast_stores if cache_dir is None else Cache(cache_dir)
        own, tokens = list(state.embeddings.own), state.embeddings.tokens
        if paths := stored.paths_of(cache, wanted, self.ast_config, cls=tokens == "cls"):
            layers, report = stored.look_up(
                paths, own, self._whole._ast_files, counted=state.counted, field=self.ast_field, tokens=tokens
            )
        else:
            reason = f"{names.nearest(cache, wanted)}; wanted {wanted}"
            layers, report = [], CacheReport(missing=tuple(own), reason=reason)
        state.report = report
        # Layers of a file or of another client stay. They are searched after the cache.
        others = [one for one in state.embeddings.layers if not stored.lies_in(one, cache.path)]
        state.embeddings.load([*layers, *others])
        state.from_file = state.embeddings if layers else None
        logger.info("%s: %s: %s, %.3g s", self._ast_name, report.outcome, report.reason, time.perf_counter() - started)
        return chunked.rows_by_class(layers, classes)

    def _wanted(self, sample_rate: float | None, duration: float | None, model_name: str | None) -> names.Wanted:
        """Return the attributes of the data set's embeddings. Its own clips decide sample rate and duration."""
        clip = {"sample_rate": self._ast_clip[0], "duration": self._ast_clip[1]}
        for name, found in (("sample_rate", sample_rate), ("duration", duration)):
            if found is not None and found != clip[name]:
                raise ClipSettingsError(self._ast_name, name, expected=clip[name], found=found)
        return names.Wanted(dataset=self._ast_name, model_name=model_name, **clip)

    def save_ast_embeddings_to_cache(
        self,
        embeddings: Mapping[str, Any] | None = None,
        sample_rate: int | None = None,
        duration: float | None = None,
        model_name: str | None = None,
        embedding_shape: Sequence[int] | None = None,
        *,
        ast_outputs_dict: Mapping[str, Mapping[str, Any]] | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
    ) -> Any:
        """Append embeddings to the store of these attributes. Stored rows stay, and stale rows are replaced.

        Parameters
        ----------
        embeddings : mapping
            Tensors or arrays by ``file_id:class``, or the other forms in `embstore_fl.a2v.entries`.
        sample_rate : int, optional
            Hz. Default: the data set's.
        duration : float, optional
            Seconds. Default: the data set's.
        model_name : str, optional
            A model's id, its last part, or "ast" or "ast-finetuned". Default: `ast_model_name`.
        embedding_shape : sequence of int, optional
            Shape of a row. Default: the shape that most rows have. Rows of another shape, and rows with NaN or
            infinity, are not saved. `ast_unreadable` lists them.
        ast_outputs_dict : mapping, optional
            Embeddings by class and file_id, as the A2V code from 29 January 2026 on gives them. `embeddings` may have
            this form, too. Rows that the data set reads from a store are not saved again.
        cache_dir : path_like, optional
            Folder of the stores. Default: `ast_cache_dir`. The newer code gives it second.

        Returns
        -------
        bool, or dict of str to int
            True if all of them are stored now. False also if the cache is off or `embeddings` is empty. For embeddings
            by class: the number of new rows of each class.

        Raises
        ------
        ClipSettingsError
            `sample_rate` or `duration` is not the data set's.
        ReadOnlyError, StorageFullError, StoreLockedError
        """
        if isinstance(sample_rate, str | os.PathLike):
            sample_rate, cache_dir = None, sample_rate
        embeddings = ast_outputs_dict if embeddings is None else embeddings
        by_class = dict(embeddings) if embeddings and chunked.is_by_class(embeddings) else None
        if not self.enable_ast_cache or not embeddings:
            logger.info("%s: not saved: %s", self._ast_name, "the cache is off" if embeddings else "nothing to save")
            return {} if ast_outputs_dict is not None else False
        if by_class is not None:
            there = {key for layer, keys in self.audio_embs.origins() if isinstance(layer, StoreLayer) for key in keys}
            embeddings = {key: row for key, row in chunked.flat(by_class).items() if key not in there}
        found = entries.of_mapping(embeddings, self.ast_class_of)
        shape = tuple(embedding_shape) if embedding_shape is not None else stored.shape_of_most(found.values)
        wanted = self._wanted(sample_rate, duration, model_name or self.ast_model_name)
        new = self._save(found, shape, wanted, cache_dir)
        if by_class is not None:
            return chunked.counts(new, [name.lower() for name in by_class])
        return bool(found.values) and not found.unreadable

    def _save(
        self,
        found: Entries,
        shape: tuple[int, ...],
        wanted: names.Wanted,
        cache_dir: str | os.PathLike[str] | None = None,
    ) -> list[str]:
        """Append embeddings of one shape. Return the keys of new rows. The others' reasons are in `ast_unreadable`."""
        sound = {key: value for key, value in found.values.items() if tuple(value.shape) == shape}
        for key, value in found.values.items():
            if key not in sound:
                found.unreadable.append(Unreadable(key, f"its shape is {tuple(value.shape)}, not {shape}"))
        new: list[str] = []
        if sound:
            cache = self.ast_stores if cache_dir is None else Cache(cache_dir)
            files = self._whole._ast_files(list(sound))
            new, refused = stored.append(cache, names.config_of(wanted, shape), sound, shape, files=files)
            found.unreadable += refused
        self._tell_unreadable(found.unreadable, self._ast_name)
        return new

    def get_cached_ast_embedding(self, class_name: str, file_id: str) -> Any:
        """Return the embedding of a sample as an array over the store's map, or None."""
        row = self.audio_embs.get(f"{file_id}:{class_name.lower()}")
        return None if row is None else row.detach().cpu().float().numpy()

    def close_ast_cache(self) -> None:
        """Use no store, until the next `load_ast_embeddings_from_cache`."""
        embeddings = self.audio_embs
        embeddings.load([layer for layer in embeddings.layers if not isinstance(layer, StoreLayer)])

    def import_ast_cache(
        self, folder: str | os.PathLike[str], *, sample_rate: int, duration: float, model_name: str
    ) -> dict[str, int]:
        """Append a cache of the A2V code from 29 January 2026 on: a folder of ``.npy`` chunks for each class.

        Its manifests state none of the three attributes, so the caller must know them. Rows that are missing or can't
        be stored are logged, and in `ast_unreadable`.

        Parameters
        ----------
        folder : path_like
        sample_rate : int
            Hz.
        duration : float
            Seconds.
        model_name : str
            A model's id, its last part, or "ast" or "ast-finetuned".

        Returns
        -------
        dict of str to int
            Number of new rows of each class.

        Raises
        ------
        FileFormatError
            The folder has no such cache, or a manifest is broken.
        ClipSettingsError
            `sample_rate` or `duration` is not the data set's.
        ReadOnlyError, StorageFullError, StoreLockedError
        """
        found = chunked.read_chunks(Path(folder))
        by_class = {split_text(key)[1] for key in found.values}
        new = self._save(found, stored.shape_of_most(found.values), self._wanted(sample_rate, duration, model_name))
        return chunked.counts(new, by_class)

    def clear_ast_cache(
        self, sample_rate: int | None = None, duration: float | None = None, model_name: str | None = None
    ) -> None:
        """Remove this data set's stores: all, or those with the given attributes.

        A store that a writer holds is logged and kept.

        Parameters
        ----------
        sample_rate : int, optional
            Hz.
        duration : float, optional
            Seconds.
        model_name : str, optional
        """
        if not self.enable_ast_cache:
            logger.warning("%s: not cleared: the cache is off", self._ast_name)
            return
        wanted = names.Wanted(dataset=self._ast_name, sample_rate=sample_rate, duration=duration, model_name=model_name)
        removed = stored.remove(self.ast_stores, wanted)
        embeddings = self._ast_state().embeddings
        left = [one for one in embeddings.layers if not (isinstance(one, StoreLayer) and one.path in removed)]
        embeddings.load(left)

    # -- files of the A2V code ----------------------------------------------------------------

    @property
    def audio_embs_from_file(self) -> Mapping[str, Any] | None:
        """Embeddings found in the cache or in a file. None before the first load, or if it found nothing."""
        return self._ast_state().from_file

    @audio_embs_from_file.setter
    def audio_embs_from_file(self, values: Mapping[str, Any] | None) -> None:
        state = self._ast_state()
        state.from_file = values
        if values is not None:  # the A2V server copies them from another client and does not filter them
            self.filter_audio_embeddings_from_file()

    def load_audio_embeddings_from_file(self, embedding_file: str | os.PathLike[str]) -> None:
        """Read embeddings of the data set's own samples from a file of `torch.save`. No code in it is run.

        Embeddings that were found before take precedence. Unreadable entries are logged and in `ast_unreadable`.

        Raises
        ------
        UnsafeFileError
            Loading the file would run code.
        FileFormatError
            The file is broken, or holds no embeddings.
        """
        state = self._shared_state()
        if not os.path.isfile(embedding_file):
            logger.warning("%s: no such file", embedding_file)
            return
        self.audio_embedding_file = embedding_file
        found = read_file(embedding_file, None, self.ast_class_of)  # all rows: the server gives them to other clients
        self._tell_unreadable(found.unreadable, embedding_file)
        state.embeddings.also(found.values)
        state.from_file = state.embeddings
        logger.info("%s: %d embeddings", embedding_file, len(found.values))

    def filter_audio_embeddings_from_file(self) -> None:
        """Add the embeddings of `audio_embs_from_file` to ``audio_embs``, for the data set's own samples only."""
        state = self._shared_state()
        values = state.from_file
        if values is None:
            logger.warning("%s: nothing was loaded", self._ast_name)
        elif isinstance(values, AudioEmbeddings):
            if values is not state.embeddings:
                state.embeddings.also(values)
        else:
            found = entries.of_mapping(values, self.ast_class_of)
            self._tell_unreadable(found.unreadable, self._ast_name)
            state.embeddings.also({key: value for key, value in found.values.items() if key in state.embeddings.own})

    def _tell_unreadable(self, unreadable: Sequence[Unreadable], where: object) -> None:
        self._ast_state().unreadable = tuple(unreadable)
        if unreadable:
            shown = "; ".join(map(str, unreadable[:_SHOWN]))
            logger.warning("%s: %d can't be used: %s", where, len(unreadable), shown)
