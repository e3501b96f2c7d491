"""The manifest of a partition: which client has which samples, as one JSON file. It knows nothing of Flower.

It holds keys, not row numbers: these change with each compaction, and differ between machines that encoded the same
data set in another order. A store is told by its config, so the manifest fits every store of that config, wherever
it lies and however much of it is encoded yet.

Up to a thousand keys a client stand in it as a plain list, for people and for diffs. More of them are packed: the JSON
of their list, deflated, in base64. A million keys in ten clients take 4 MB instead of 38, and a client unpacks its own
part alone: a third of the time that reading them all as lists takes. Keys as they are, and not their hashes, which
can't be deflated and would take 21 MB. The file is written whole (temporary name, fsync, rename), and its checksum
tells it from one with a flipped bit.
"""

from __future__ import annotations

import base64
import binascii
import json
import os
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any, Final

from embstore import Config, Key
from embstore._engine.io.durable import replacing
from embstore._engine.io.filesystem import make_parents
from embstore.errors import ConfigError, FileFormatError, UnsupportedFormatError
from embstore_fl.errors import OtherStoreManifestError, UnknownClientError

Scheme = str | Mapping[str, Any]
"""How the samples were shared out: in words, or as anything that JSON holds."""

_VERSION: Final = 1
_PLAIN: Final = 1_000
"""Keys of a client that stand in the file as a list."""
_MOST_NBYTES: Final = 2**30
"""Of a client's keys, unpacked: some ten million of them. A file that claims more is not believed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Packed:
    """Many keys, as they stand in a manifest.

    Attributes
    ----------
    count : int
    nbytes : int
        Of the JSON of their list, in UTF-8.
    deflated : str
        That, deflated (RFC 1950), in base64.

    Examples
    --------
    >>> packed = Packed.of([f"video_{i:05d}:dog" for i in range(10_000)])
    >>> len(packed.deflated) < packed.nbytes / 4
    True
    >>> packed.keys()[7]
    'video_00007:dog'
    """

    count: int
    nbytes: int
    deflated: str

    @classmethod
    def of(cls, keys: Sequence[str]) -> Packed:
        """Pack keys."""
        data = json.dumps(list(keys), ensure_ascii=False, separators=(",", ":")).encode()
        return cls(count=len(keys), nbytes=len(data), deflated=base64.b64encode(zlib.compress(data)).decode())

    def keys(self) -> list[str]:
        """Unpack the keys, in their order.

        Raises
        ------
        ValueError
            They are not what they are said to be.
        """
        if not 0 <= self.nbytes <= _MOST_NBYTES:
            raise ValueError(f"{self.nbytes:,} bytes of keys, at most {_MOST_NBYTES:,} are allowed")
        try:
            data = base64.b64decode(self.deflated, validate=True)
            # Never more than was announced: a few kilobytes can be made to unpack to gigabytes.
            found = zlib.decompressobj().decompress(data, self.nbytes + 1)
        except (binascii.Error, zlib.error) as error:
            raise ValueError(f"packed keys can't be unpacked: {error}") from error
        if len(found) != self.nbytes:
            raise ValueError(f"expected {self.nbytes:,} bytes of keys, found {len(found):,} or more")
        return _checked(json.loads(found), self.count)


def _checked(keys: Any, count: int | None = None) -> list[str]:
    """Return a list of keys, once it is known to be one."""
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
        raise ValueError("expected a list of keys")
    if count is not None and len(keys) != count:
        raise ValueError(f"expected {count:,} keys, found {len(keys):,}")
    return keys


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """Which client has which samples, and how that came about.

    Attributes
    ----------
    scheme : str or mapping
    seed : int or None
        Of the scheme, and unless another is given of each client's split into train and test.
    config : Config
        Of the store: what its embeddings depend on.
    classes : tuple of str
        Of all clients; a label is a place in it.
    shared : bool
        Whether some key belongs to several clients.
    parts : mapping of int to list of str or Packed
        Each client's keys.
    path : Path or None
        Of the file that it was read from.
    """

    scheme: Scheme
    seed: int | None
    config: Config
    classes: tuple[str, ...]
    shared: bool
    parts: Mapping[int, list[str] | Packed]
    path: Path | None = None

    @classmethod
    def of(
        cls,
        keys: Mapping[int, Iterable[str | Key]],
        *,
        scheme: Scheme,
        seed: int | None,
        config: Mapping[str, Any],
        classes: Sequence[str] | None = None,
    ) -> Manifest:
        """Make the manifest of each client's keys.

        Parameters
        ----------
        keys : mapping of int to iterable of str or Key
        scheme, seed, config
        classes : sequence of str, optional
            Those of the keys, sorted, unless given.

        Raises
        ------
        KeyFormatError
        ValueError
            A scheme that JSON can't hold, or classes that lack one of the keys'.
        """
        json.dumps(scheme, allow_nan=False)
        parts: dict[int, list[str] | Packed] = {}
        seen: set[str] = set()
        named: set[str] = set()
        shared = False
        for client in sorted(keys):
            texts = [str(key) for key in keys[client]]
            named.update(Key.parse(text).class_name for text in texts)
            shared = shared or not seen.isdisjoint(texts)
            seen.update(texts)
            parts[int(client)] = texts if len(texts) <= _PLAIN else Packed.of(texts)
        names = sorted(named) if classes is None else list(classes)
        if len(set(names)) < len(names) or not named <= set(names):
            raise ValueError(f"expected different classes, and among them {sorted(named)}, found {names}")
        own = config if isinstance(config, Config) else Config(config)
        return cls(scheme=scheme, seed=seed, config=own, classes=tuple(names), shared=shared, parts=parts)

    @property
    def fingerprint(self) -> str:
        """Of the store's config."""
        return self.config.fingerprint

    @property
    def sizes(self) -> dict[int, int]:
        """How many keys each client has; none is unpacked for it."""
        return {client: part.count if isinstance(part, Packed) else len(part) for client, part in self.parts.items()}

    def keys_of(self, client: int) -> list[str]:
        """Return a client's keys, in their order.

        Raises
        ------
        UnknownClientError, FileFormatError
        """
        if client not in self.parts:
            raise UnknownClientError(client, self.parts)
        part = self.parts[client]
        try:
            return list(part) if isinstance(part, list) else part.keys()
        except ValueError as error:
            raise FileFormatError(self._where, f"client {client}: {error}") from error

    @property
    def _where(self) -> Path:
        return self.path or Path("manifest")

    def check_store(self, config: Mapping[str, Any], path: Path) -> None:
        """Raise if a store of another config is given.

        Raises
        ------
        OtherStoreManifestError
        """
        found = config if isinstance(config, Config) else Config(config)
        if found.fingerprint != self.fingerprint:
            raise OtherStoreManifestError(
                self._where,
                path,
                expected=self.fingerprint,
                found=found.fingerprint,
                differences=self.config.diff(found),
            )

    # -- the file -----------------------------------------------------------------------------

    def write(self, path: str | os.PathLike[str]) -> None:
        """Write the file, durably and whole; one that is there is replaced."""
        document: dict[str, Any] = {
            "embstore_partition": _VERSION,
            "scheme": self.scheme,
            "seed": self.seed,
            "fingerprint": self.fingerprint,
            # As text: as a document of its own it is read back by the rules of configs.
            "config": self.config.canonical,
            "classes": list(self.classes),
            "shared": self.shared,
            "clients": {str(client): _as_json(part) for client, part in self.parts.items()},
        }
        document["checksum"] = _digest(document)
        place = Path(path)
        make_parents(place)
        with replacing(place) as partial:
            partial.write_text(json.dumps(document, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> Manifest:
        """Read a file; nothing in it is believed unchecked, packed keys when they are asked for.

        Raises
        ------
        FileFormatError, UnsupportedFormatError, FileNotFoundError
        """
        place = Path(path)
        try:
            document = json.loads(place.read_bytes())
            version = document["embstore_partition"]
            if isinstance(version, int) and version > _VERSION:
                raise UnsupportedFormatError(place, expected=f"manifest {_VERSION}", found=f"manifest {version}")
            if document.pop("checksum") != _digest(document):
                raise FileFormatError(place, "its checksum does not match")
            return cls._parsed(document, place)
        except (FileFormatError, UnsupportedFormatError):
            raise
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError, ConfigError) as error:
            reason = f"it is no manifest of a partition: {type(error).__name__}: {error}"
            raise FileFormatError(place, reason) from error

    @classmethod
    def _parsed(cls, document: Mapping[str, Any], path: Path) -> Manifest:
        config = Config.from_json(document["config"])
        if config.fingerprint != document["fingerprint"]:
            raise ValueError(f"the fingerprint {document['fingerprint']!r} is not its config's")
        seed = document["seed"]
        if seed is not None and (not isinstance(seed, int) or isinstance(seed, bool)):
            raise ValueError(f"{seed!r} as a seed")
        return cls(
            scheme=document["scheme"],
            seed=seed,
            config=config,
            classes=tuple(_checked(document["classes"])),
            shared=bool(document["shared"]),
            parts={int(client): _from_json(part) for client, part in document["clients"].items()},
            path=path,
        )


def _as_json(part: list[str] | Packed) -> Any:
    if isinstance(part, list):
        return part
    return {"count": part.count, "nbytes": part.nbytes, "deflated": part.deflated}


def _from_json(part: Any) -> list[str] | Packed:
    if isinstance(part, list):
        return _checked(part)
    packed = Packed(count=part["count"], nbytes=part["nbytes"], deflated=part["deflated"])
    if not isinstance(packed.count, int) or not isinstance(packed.nbytes, int) or not isinstance(packed.deflated, str):
        raise ValueError("packed keys without count, nbytes and text")
    return packed


def _digest(document: Mapping[str, Any]) -> str:
    text = json.dumps(document, sort_keys=True, separators=(",", ":"))
    return blake2b(text.encode(), digest_size=16).hexdigest()
