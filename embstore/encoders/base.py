"""The interface of an encoder: config and fields, known without loading weights, and rows for samples.

`embstore.embed` takes any object with a `config` and an `encode` (the protocol `Encoder`). `BaseEncoder` adds the
optional members, with defaults.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from embstore._engine.format.arguments import whole_number
from embstore._engine.format.record import FieldSpec
from embstore.encoders.families import Modality
from embstore.errors import UnknownFieldError


class Encoder(Protocol):
    """An object that turns samples into embeddings."""

    @property
    def config(self) -> Mapping[str, Any]:
        """All settings that the values depend on, except the choice of fields. Known without loading weights."""

    def encode(self, items: Sequence[Any]) -> Any:
        """Return rows for the items: ``(len(items), *shape)``, or a mapping of field names to these.

        Rows of a ragged field are a list of arrays, ``(length, *shape)`` each.
        """


class BaseEncoder:
    """An encoder with every member that `embstore.embed` can use. Each default is the simplest choice.

    An encoder is called with samples for their vectors, such as queries: ``encoder(["a cat"])`` returns
    ``(1, dim) float32``. See `__call__`.
    """

    @property
    def config(self) -> Mapping[str, Any]:
        """All settings that the values depend on, except the choice of fields. Known without loading weights."""
        raise NotImplementedError

    @property
    def fields(self) -> Mapping[str, FieldSpec] | None:
        """The fields that `encode` returns, by name. None if the first rows decide."""
        return None

    @property
    def modality(self) -> Modality | None:
        """The kind of sample that `decode` takes: "audio", "image" or "text". None if the encoder takes any kind."""
        return None

    @property
    def opens_files(self) -> bool:
        """Whether `decode` takes an open binary file too, of which it reads only as much as it needs."""
        return False

    @property
    def in_memory(self) -> bool:
        """Whether `encode` loads nothing, and runs code or weights that can change without a change of the config."""
        return False

    @property
    def pure(self) -> bool:
        """Whether a row depends on the content of its sample alone, not on other samples, chance or time.

        Then equal content is encoded once: the row is copied to the keys of other samples with the same content.
        """
        return False

    @property
    def provenance(self) -> Mapping[str, str]:
        """Facts that the values must not depend on, such as device and versions. Read when a store is created."""
        return {}

    def with_fields(self, names: Sequence[str]) -> Self:
        """Return this encoder with other fields of the same pass.

        Raises
        ------
        UnknownFieldError
            The encoder lacks one of the fields.
        """
        own = self.fields or {}
        for name in names:
            if name not in own:
                raise UnknownFieldError(name, own, path=None)
        return self

    def decode(self, content: Any) -> Any:
        """Decode a sample's content to an item for `encode`. Threads call it, ahead of `encode`.

        Raises
        ------
        DecodeError
            The content can't be decoded. The sample is recorded as failed, and the run goes on.
        """
        return content

    def length(self, item: Any) -> int:
        """Return the length of a decoded item, if `encode` pads. Items of similar lengths are encoded together."""
        return 0

    def encode(self, items: Sequence[Any]) -> Any:
        """Return rows for decoded items, as a mapping of field names to ``(len(items), *shape)``.

        Rows of a ragged field are a list of arrays, ``(length, *shape)`` each.
        """
        raise NotImplementedError

    def __call__(
        self, samples: Iterable[Any], *, field: str | None = None, batch_size: int = 32
    ) -> NDArray[np.float32]:
        """Return the embedding of each sample, prepared as by `embed`, with the model's prompt: ``(n, dim) float32``.

        Parameters
        ----------
        samples : iterable
            Texts, paths of files, images of Pillow, ``(array, rate)``, or another content that `decode` takes. For an
            encoder of images or sound, a text is the path of a file.
        field : str, optional
            Default: the first field. Each row is flattened.
        batch_size : int
            Samples that are encoded at a time.

        Raises
        ------
        ModalityError
            A sample is of another modality, such as a text for an encoder of images.
        SampleError, DecodeError
            A sample can't be read or decoded.
        ShapeError
            The field is ragged.
        UnknownFieldError
        """
        from embstore.encoders.queries import encode_queries

        return encode_queries(self, samples, field, whole_number("batch_size", batch_size, 1))


class _Adapted(BaseEncoder):
    """An object with the two members of the protocol, and defaults for the others."""

    def __init__(self, encoder: Any) -> None:
        self._encoder = encoder

    @property
    def config(self) -> Mapping[str, Any]:
        return self._encoder.config  # type: ignore[no-any-return]

    @property
    def pure(self) -> bool:
        return getattr(self._encoder, "pure", False) is True

    def encode(self, items: Sequence[Any]) -> Any:
        return self._encoder.encode(items)


def as_encoder(encoder: Encoder) -> BaseEncoder:
    """Return an encoder with all members of `BaseEncoder`.

    Raises
    ------
    TypeError
        The object is not an encoder: a class, a model, a function or a name.
    """
    if isinstance(encoder, BaseEncoder):
        return encoder
    made = not isinstance(encoder, type) and callable(getattr(encoder, "encode", None))
    if not made or not isinstance(getattr(encoder, "config", None), Mapping):
        found = f"the class {encoder.__name__}" if isinstance(encoder, type) else type(encoder).__name__
        raise TypeError(
            f"expected an encoder, which has a mapping `config` and a method `encode`, found {found}; make one with "
            "embstore.from_pretrained(name), or wrap a module in ModuleEncoder or a function in FunctionEncoder"
        )
    return _Adapted(encoder)
