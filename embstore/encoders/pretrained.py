"""Pretrained models of Hugging Face as encoders. Their files become a config, and the first use loads the model.

`model_files` finds the files, `preprocessing` describes how samples are prepared, `model_shapes` computes the sizes of
outputs, `outputs` names them, and `running` runs the model.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Final, Literal, Self

from embstore._engine.format.config import Config
from embstore._engine.format.record import FieldSpec
from embstore.encoders import weights
from embstore.encoders.base import BaseEncoder
from embstore.encoders.families import Modality
from embstore.encoders.loading import Plan
from embstore.encoders.model_files import locate, plain, read_files
from embstore.encoders.model_shapes import ModelShapes, shapes_of
from embstore.encoders.outputs import SENTENCE, Output, declare
from embstore.encoders.precision import check_compute_dtype
from embstore.encoders.preprocessing import preprocessing_of
from embstore.encoders.running import Runner
from embstore.errors import ConfigError, WeightsChangedError

Padding = Literal["longest", "max_length"]

_LIBRARIES: Final = {
    "audio": ("av", "soxr", "torchaudio"),
    "image": ("pillow",),
    "text": ("tokenizers",),
}


class PretrainedEncoder(BaseEncoder):
    """A pretrained model that encodes clips, images or texts. Created by `from_pretrained`."""

    def __init__(
        self, config: Config, outputs: Mapping[str, Output], shapes: ModelShapes, runner: Runner, dtype: str
    ) -> None:
        self._config = config
        self._declared = dict(outputs)
        self._outputs = dict(outputs)
        self._shapes = shapes
        self._runner = runner
        self._dtype = dtype

    @property
    def config(self) -> Config:
        """All settings that the values depend on, except the choice of fields."""
        return self._config

    @property
    def fields(self) -> dict[str, FieldSpec]:
        """The fields that `encode` returns, by name."""
        return {name: output.spec for name, output in self._outputs.items()}

    @property
    def modality(self) -> Modality:
        """The kind of sample that the model takes: "audio", "image" or "text"."""
        return self._runner.plan.files.family.modality

    @property
    def opens_files(self) -> bool:
        """True for sound and images, whose files need not be read to their end."""
        return self.modality != "text"

    @property
    def device(self) -> str:
        """The device of the model: the caller's choice, or the first of "cuda", "mps" and "cpu" that exists."""
        return self._runner.device

    @property
    def pure(self) -> bool:
        """True: a row depends on the content of its sample alone."""
        return True

    @property
    def provenance(self) -> dict[str, str]:
        """Versions of the libraries, and the device. They change the last bits, and torchaudio more bits of AST."""
        libraries = ("transformers", "torch", *_LIBRARIES[self.modality])
        return {"device": self.device, **{name: _version(name) for name in libraries}}

    def with_fields(self, names: Sequence[str]) -> Self:
        """Return an encoder of the same loaded model with other fields.

        Parameters
        ----------
        names : sequence of str
            Declared fields keep their outputs. Other names are outputs of the model.

        Raises
        ------
        UnknownFieldError
            The model has no such output.
        MissingWeightsError
            The model is loaded, and its checkpoint lacks weights for a field.
        """
        more = [name for name in names if name not in self._declared]
        found = declare(more, self._dtype, self._shapes) if more or not names else {}
        other = copy(self)
        other._outputs = {name: self._declared.get(name) or found[name] for name in names}
        self._runner.check(other._outputs)
        return other

    def decode(self, content: Any) -> Any:
        """Decode a sample's content to an input of the model. Several threads may call this at once.

        Parameters
        ----------
        content : bytes, str, or another form that `decode_audio` and `decode_image` take

        Raises
        ------
        DecodeError
        """
        return self._runner.prepare(content)

    def length(self, item: Any) -> int:
        """Return the length of a decoded item in tokens or samples. 0 if `encode` does not pad to a batch's longest."""
        return self._runner.length(item)

    def encode(self, items: Sequence[Any]) -> dict[str, Any]:
        """Return rows for decoded items, as tensors on the CPU.

        Returns
        -------
        dict of str to tensor or list of tensor
            ``(len(items), *shape)`` in the field's dtype. For a ragged field a list of ``(length, dim)``.

        Raises
        ------
        MissingWeightsError
            The checkpoint lacks weights that a field needs.
        WeightsChangedError
            The model's files changed since `from_pretrained`.
        """
        return self._runner.encode(items, self._outputs)

    def __repr__(self) -> str:
        return f"<PretrainedEncoder {self._runner.plan.files.place.id}: {', '.join(self._outputs)}>"


def from_pretrained(
    model: str | os.PathLike[str],
    *,
    revision: str | None = None,
    fields: Sequence[str] | Mapping[str, str] | None = None,
    dtype: str | Mapping[str, str] = "float32",
    duration: float | None = None,
    max_tokens: int | None = None,
    padding: Padding = "longest",
    modality: Modality | None = None,
    device: str | None = None,
    compute_dtype: str = "float32",
    preprocess_version: int = 1,
    id: str | None = None,
) -> PretrainedEncoder:
    """Make an encoder of a pretrained model: AST, Whisper, CLAP, wav2vec 2.0, ViT, DINOv2, CLIP, SigLIP, BERT, others.

    Its config is read from the model's files, without torch or transformers. The first `encode` loads the model.

    Parameters
    ----------
    model : str or path
        A folder, or a model of the Hugging Face Hub, which is downloaded unless it is in its cache.
    revision : str, optional
        Branch, tag or commit. For a folder, any text that distinguishes its versions.
    fields : sequence or mapping, optional
        Outputs, ``layer[.pooling]``: ``"last_hidden_state"``, ``"layer_6.mean"``, ``"pooler_output"``, ``"embeds"``,
        ``"sentence_embedding"``, and in short ``"mean"``, ``"max"``, ``"cls"``. A mapping gives them other names:
        ``{"emb": "layer_6.mean"}``. All fields come from one pass.
    dtype : str or mapping
        Stored dtype of all fields, or by field: "float32", "float16" or "bfloat16".
    duration : float, optional
        Seconds to which clips are cut or padded.
    max_tokens : int, optional
        Number of tokens after which texts are cut. Default: the most tokens that the model takes.
    padding : {"longest", "max_length"}
        Whether texts are padded to the longest text of a batch, or to `max_tokens`. Texts of SigLIP are always padded
        to `max_tokens`.
    modality : {"audio", "image", "text"}, optional
        The tower of CLIP, SigLIP or CLAP. Default: image for CLIP and SigLIP, audio for CLAP.
    device : str, optional
    compute_dtype : {"float32", "bfloat16", "float16"}
        The dtype that the model computes in. "bfloat16" and "float16" are mixed precision.
    preprocess_version : int
        Raise this when the preprocessing changes in a way that the config does not show.
    id : str, optional
        Name of the model in the config, after which its stores are named. Default: its id on the Hub. For a folder, the
        id is that of the Hub's cache, or the title of the model card, or the name in config.json if the folder's name
        agrees with it or says nothing, or else the folder's name.

    Raises
    ------
    UnknownModelError
        The type of model is not known. See `FunctionEncoder` and `ModuleEncoder`.
    ModelFilesError
        Weights, config.json, processor or tokenizer are missing.
    UnknownFieldError, DtypeError, NameRefusedError
        The model does not have a field, or the field can't have this dtype or this name.
    ConfigError
        An option is out of range, or this model does not have it.
    """
    check_compute_dtype(compute_dtype)
    if padding not in ("longest", "max_length"):
        raise ConfigError("padding", padding, "expected 'longest' or 'max_length'")
    place = locate(model, revision, id, modality or "text")
    files = read_files(place, modality)
    given = {"duration": duration, "max_tokens": max_tokens, "padding": None if padding == "longest" else padding}
    ready = preprocessing_of(files, given)
    shapes = shapes_of(
        files.family,
        files.tower,
        model=place.id,
        processor=ready.processor,
        text=ready.text,
        samples=None if ready.audio is None else ready.audio.samples,
    )
    default = files.family.default
    if files.head is not None:
        shapes = replace(shapes, vectors={**shapes.vectors, SENTENCE: files.head.size(shapes.dim)})
        default = (SENTENCE,)
    outputs = declare(default if fields is None else fields, dtype, shapes)
    digests = weights.digest_files(place.folder, (*files.weights, *files.others, *ready.files))
    if read_files(place, modality) != files or preprocessing_of(files, given) != ready:
        raise WeightsChangedError(place.folder)
    config = Config(
        encoder={
            "id": place.id,
            "revision": place.revision,
            "type": files.settings["model_type"],
            "modality": files.family.modality,
            "weights": weights.joined({name: digests[name] for name in sorted(files.weights)}),
            "settings": plain(files.settings),
            **({} if files.head is None else {"modules": files.head.describe()}),
            **({"embeds": "normalized"} if files.family.normalized else {}),
        },
        preprocessing={"version": preprocess_version, **ready.described},
        compute_dtype=compute_dtype,
    )
    plan = Plan(files=files, ready=ready, digests=digests, device=device, compute_dtype=compute_dtype)
    return PretrainedEncoder(config, outputs, shapes, Runner(plan), "float32" if isinstance(dtype, Mapping) else dtype)


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "absent"
