"""Server mix-in: loads a node's embeddings from each place in order, and saves the embeddings of all clients."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from embstore import Config
from embstore._engine.lazy import cached_property
from embstore.encoders.base import as_encoder
from embstore.errors import AmbiguousConfigError
from embstore_fl.a2v import names, stored
from embstore_fl.a2v.client import dataset_of
from embstore_fl.a2v.dataset import A2VDataset
from embstore_fl.a2v.legacyfile import add_rows, read_file, write_file
from embstore_fl.a2v.mixing import MixIn
from embstore_fl.a2v.reports import Attempt, NodeEmbeddings, Where, nbytes_of, seconds_saved
from embstore_fl.metrics import Metrics, NodeMetrics
from embstore_fl.overlay import Layer, StoreLayer
from embstore_fl.stores import open_shared

if TYPE_CHECKING:
    from embstore import Encoder
    from embstore.pipeline.decode_ahead import Failure

logger = logging.getLogger("embstore")


class A2VServer(MixIn):
    """Mix-in with the server methods of the A2V code, and `load_node_embeddings` for each node's data set.

    The server needs ``clients``, each with ``node_data.train_dataset``. The attributes below and
    `audio_embedding_file_name` are read where they are set.

    Attributes
    ----------
    ast_sample_rate : int or None
        Hz, of the embeddings to load and save. Default: each data set's. Another number raises `ClipSettingsError`.
    ast_duration : float or None
        Seconds, of the embeddings to load and save. Default: each data set's. Another number raises too.
    ast_model_name : str or None
        Model of the embeddings to load and save. Default: the last part of `ast_model`.
    ast_model : path_like
        Folder or Hugging Face id of the model that extracts.
    ast_batch_size : int
        Clips.
    """

    provides: ClassVar[tuple[str, ...]] = ("save_audio_embeddings",)

    ast_sample_rate: int | None = None
    ast_duration: float | None = None
    ast_model_name: str | None = None
    ast_model: str | os.PathLike[str] = names.AST
    ast_batch_size: int = 16
    audio_embedding_file_name: str | None = None

    def make_ast_encoder(self, duration: float) -> Encoder:
        """Return the encoder that extracts clips of a duration in seconds.

        Called once for each duration, and only if something must be extracted.
        """
        import embstore

        return embstore.from_pretrained(self.ast_model, duration=duration, fields=["last_hidden_state"])

    @cached_property
    def _ast_encoders(self) -> dict[float, Encoder]:
        return {}

    def _encoder_of(self, dataset: A2VDataset) -> Encoder:
        """Return the encoder that extracts a data set's clips, once its config is known to fit them."""
        duration = dataset._ast_clip[1]
        if duration not in self._ast_encoders:
            self._ast_encoders[duration] = self.make_ast_encoder(duration)
        encoder = self._ast_encoders[duration]
        said = names.described(encoder.config)
        dataset._wanted(said["sample_rate"], said["duration"], None)
        return encoder

    def _wanted(self, dataset: A2VDataset) -> names.Wanted:
        model = self.ast_model_name or os.path.basename(os.path.normpath(self.ast_model))
        return dataset._wanted(self.ast_sample_rate, self.ast_duration, model)

    def _attributes(self, dataset: A2VDataset) -> dict[str, Any]:
        """Return the three attributes of a data set's embeddings, as its methods take them."""
        return {name: value for name, value in self._wanted(dataset).attributes.items() if name != "dataset"}

    @cached_property
    def embedding_metrics(self) -> Metrics:
        """Hits, misses, rows, bytes and seconds saved, of each node and in total."""
        return Metrics()

    # -- a node's embeddings ------------------------------------------------------------------

    def load_node_embeddings(self, dataset: A2VDataset, node: object = None) -> NodeEmbeddings:
        """Load a data set's embeddings from the cache, other clients and a legacy file, and extract the rest.

        Each place is searched only for the keys that are still missing, and logs its result in one line. A clip that
        can't be decoded gets no embedding, and its sample is removed from the data set.

        Parameters
        ----------
        dataset : A2VDataset
        node : optional
            Name of the node for the log and the metrics. Default: the number of clients so far.

        Returns
        -------
        NodeEmbeddings

        Raises
        ------
        AmbiguousConfigError
            Stores of several encoders have these attributes.
        ModelFilesError, MissingLibraryError
            Something must be extracted, and the model or its library is missing.
        """
        node = len(self._clients()) if node is None else node
        started = time.perf_counter()
        if dataset.enable_ast_cache:  # search again for rows found before, so that they are counted
            folder, embeddings = dataset.ast_stores.path, dataset.audio_embs
            embeddings.load([layer for layer in embeddings.layers if not stored.lies_in(layer, folder)])
        wanted = left = len(dataset.ast_missing)
        failed: list[Failure] = []
        saved = 0.0
        places: list[tuple[Where, Callable[[], str]]] = [
            ("cache", lambda: self._from_cache(dataset)),
            ("other clients", lambda: self._from_clients(dataset)),
            ("legacy file", lambda: self._from_file(dataset)),
            ("extraction", lambda: self._extracted(dataset, failed)),
        ]
        attempts: list[Attempt] = []
        for where, attempt in places if left else ():
            if where == "extraction":
                left += self._not_mixed(dataset)
            began = time.perf_counter()
            reason = attempt()
            now = len(dataset.ast_missing)
            attempts.append(
                Attempt(
                    where=where,
                    found=left - now - len(failed),  # failed clips are not in `now`, as their samples are removed
                    left=now,
                    reason=reason,
                    seconds=time.perf_counter() - began,
                )
            )
            logger.info("node %s: %s", node, attempts[-1])
            left = now
            if where == "other clients":
                saved = seconds_saved(dataset.audio_embs)
            if not left:
                break
        extracted = sum(attempt.found for attempt in attempts if attempt.where == "extraction")
        missing = tuple(dataset.ast_missing)
        rows = len(dataset.ast_keys) - len(missing)
        hits = min(wanted, rows) - extracted
        metrics = NodeMetrics(
            hits=hits,
            misses=wanted - hits,
            extracted=extracted,
            failed=len(failed),
            rows=rows,
            nbytes=nbytes_of(dataset.audio_embs),
            seconds=time.perf_counter() - started,
            seconds_saved=saved or (0.0 if extracted else seconds_saved(dataset.audio_embs)),
        )
        self.embedding_metrics.add(node, metrics)
        logger.info("node %s: %s", node, metrics)
        return NodeEmbeddings(attempts=tuple(attempts), missing=missing, failed=tuple(failed), metrics=metrics)

    def _from_cache(self, dataset: A2VDataset) -> str:
        attributes = self._attributes(dataset)
        try:
            dataset.load_ast_embeddings_from_cache(**attributes)
        except AmbiguousConfigError:
            # The encoder's own config chooses the store. It is known before the model is loaded.
            dataset.ast_config = dict(self._encoder_of(dataset).config)
            dataset.load_ast_embeddings_from_cache(**attributes)
        return dataset.ast_report.reason

    def _from_clients(self, dataset: A2VDataset) -> str:
        asked = 0
        for other in self._datasets():
            if other.audio_embs is not dataset.audio_embs and other._ast_name == dataset._ast_name:
                dataset.audio_embs.also(other.audio_embs)
                asked += 1
        return f"{asked} other client(s) have {dataset._ast_name!r}"

    def _from_file(self, dataset: A2VDataset) -> str:
        file = self.audio_embedding_file_name
        if not file or not os.path.isfile(file):
            return f"no file {file}" if file else "no file is named"
        found = read_file(file, dataset.ast_missing, dataset.ast_class_of)
        asked = self._wanted(dataset)
        said = {name: value for name, value in names.described(found.config or {}).items() if value is not None}
        if differing := [d for d in names.differences(asked, found.config or {}) if d.name in said]:
            return f"{file} has another config: {'; '.join(map(str, differing))}"
        dataset._tell_unreadable(found.unreadable, file)
        dataset.audio_embs.also(found.values)
        return f"{file}, {len(found.unreadable):,} of its entries can't be read"

    def _not_mixed(self, dataset: A2VDataset) -> int:
        """Drop rows of another encoder than the one that extracts the rest. Return their number."""
        if not dataset.enable_ast_cache:
            return 0
        before, encoder = len(dataset.ast_missing), self._encoder_of(dataset)
        config = Config(encoder.config, dataset=dataset._ast_name)
        shapes = {spec.shape for spec in (as_encoder(encoder).fields or {}).values() if spec.pooling is None}
        kept: list[Layer] = []
        for layer in dataset.audio_embs.layers:
            if not isinstance(layer, StoreLayer):
                kept.append(layer)
            elif isinstance(layer.store.config.get("encoder"), Mapping) and layer.store.config != config:
                reason = "; ".join(map(str, config.diff(layer.store.config)))
                logger.warning("%s is not used, as another encoder extracts: %s", layer, reason)
            elif shapes and not any(stored.alike(layer.spec.shape, one, dataset.audio_embs.tokens) for one in shapes):
                logger.warning("%s is not used: expected rows of %s, found %s", layer, shapes, layer.spec.shape)
            else:
                kept.append(layer)
        dataset.audio_embs.load(kept)
        return len(dataset.ast_missing) - before

    def _extracted(self, dataset: A2VDataset, failed: list[Failure]) -> str:
        if not dataset.enable_ast_cache:
            return "the cache is off: the training loop extracts"
        import embstore

        source = dataset.ast_source(dataset.ast_missing)
        encoder = self._encoder_of(dataset)
        result = embstore.embed(source, encoder, dataset.ast_stores, batch_size=self.ast_batch_size)
        field = stored.field_of(open_shared(result.path).store, dataset.ast_field)
        if field is None:
            return f"{result.path} has no field of sequences"
        layer = StoreLayer(result.path, field, dataset.ast_missing)
        dataset.audio_embs.load([*dataset.audio_embs.layers, layer])
        if result.failed:
            failed += result.failed
            logger.warning("%d clips are left out: %s", len(failed), "; ".join(map(str, result.failed)))
            dataset.ast_leave_out([failure.key for failure in result.failed])
        return f"{result.encoded:,} encoded, {len(result.failed):,} failed, in {result.path}"

    def _datasets(self) -> Iterator[A2VDataset]:
        """Yield the clients' data sets, each once."""
        seen: set[int] = set()
        for client in getattr(self, "clients", ()):
            dataset = dataset_of(client)
            if isinstance(dataset, A2VDataset) and id(dataset) not in seen:
                seen.add(id(dataset))
                yield dataset

    # -- saving -------------------------------------------------------------------------------

    def save_audio_embeddings(self, file_name: str | os.PathLike[str] | None = None) -> bool:
        """Append the new embeddings of all clients to the stores of their data sets, and free their memory.

        Parameters
        ----------
        file_name : path_like, optional
            File of `torch.save` to write as well: ``{"file_id:class": tensor}``, replaced atomically.

        Returns
        -------
        bool
            True if there were new embeddings and all of them are stored now.
        """
        saved = made = 0
        legacy: dict[Any, Any] = {}
        for client in self._clients():
            dataset = dataset_of(client)
            values = dict(getattr(client, "audio_embedding_store", None) or {})
            made += len(values)
            if isinstance(dataset, A2VDataset):
                if values and dataset.enable_ast_cache:
                    dataset.save_ast_embeddings_to_cache(values, **self._attributes(dataset))
                    left = {one.key for one in dataset.ast_unreadable}
                    client.audio_embedding_store = {key: value for key, value in values.items() if key in left}
                    saved += len(values) - len(client.audio_embedding_store)
                    self._from_cache(dataset)
                    dataset.audio_embs.forget(dataset.ast_report.stored)
                if file_name is not None:
                    add_rows(legacy, dataset.audio_embs)
            add_rows(legacy, values)
        if file_name is not None and legacy:
            write_file(file_name, legacy)
        logger.info("%d of %d new embeddings saved, of %d clients", saved, made, len(self._clients()))
        return bool(made) and saved == made

    def _clients(self) -> Sequence[Any]:
        return list(getattr(self, "clients", ()))
