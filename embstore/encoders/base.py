"""What an encoder is: its config and fields, known without loading weights, and rows for samples.

`embstore.embed` takes anything that has a `config` and an `encode` (the protocol); `BaseEncoder` has the rest,
with defaults, for an encoder to say more of itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, Self

from embstore._engine.format.record import FieldSpec
from embstore.errors import UnknownFieldError


class Encoder(Protocol):
    """What turns samples into embeddings."""

    @property
    def config(self) -> Mapping[str, Any]:
        """All that the values depend on but the choice of fields; known without loading weights into a model."""

    def encode(self, items: Sequence[Any]) -> Any:
        """Return rows for the items: ``(len(items), *shape)``, or a mapping of field names to these.

        Rows of a ragged field are a list of arrays, ``(length, *shape)`` each.
        """


class BaseEncoder:
    """An encoder with all that `embstore.embed` can make use of; each default is the plain choice."""

    @property
    def config(self) -> Mapping[str, Any]:
        """All that the values depend on but the choice of fields; known without loading weights into a model."""
        raise NotImplementedError

    @property
    def fields(self) -> Mapping[str, FieldSpec] | None:
        """What `encode` returns, by name; None, where the first rows are to decide."""
        return None

    @property
    def provenance(self) -> Mapping[str, str]:
        """What is worth knowing and decides nothing: device, versions. Asked for when a store is made."""
        return {}

    def with_fields(self, names: Sequence[str]) -> Self:
        """Return this encoder with other fields of the same pass.

        Raises
        ------
        UnknownFieldError
            It does not have one of them.
        """
        own = self.fields or {}
        for name in names:
            if name not in own:
                raise UnknownFieldError(name, own, path=None)
        return self

    def decode(self, content: Any) -> Any:
        """Turn a sample's content into what `encode` takes. Runs in threads, ahead of `encode`.

        Raises
        ------
        DecodeError
            It can't be decoded: the sample is recorded as failed, and the run goes on.
        """
        return content

    def length(self, item: Any) -> int:
        """Return how long a decoded item is, where `encode` pads: items of like lengths are encoded together."""
        return 0

    def encode(self, items: Sequence[Any]) -> Any:
        """Return rows for decoded items: a mapping of field names to ``(len(items), *shape)``.

        Rows of a ragged field are a list of arrays, ``(length, *shape)`` each.
        """
        raise NotImplementedError


class _Adapted(BaseEncoder):
    """The protocol's two words, with the defaults for the others."""

    def __init__(self, encoder: Any) -> None:
        self._encoder = encoder

    @property
    def config(self) -> Mapping[str, Any]:
        return self._encoder.config  # type: ignore[no-any-return]

    def encode(self, items: Sequence[Any]) -> Any:
        return self._encoder.encode(items)


def as_encoder(encoder: Encoder) -> BaseEncoder:
    """Return an encoder with all of `BaseEncoder`'s words."""
    return encoder if isinstance(encoder, BaseEncoder) else _Adapted(encoder)
