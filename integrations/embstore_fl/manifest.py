"""The manifest of a partition: each client's keys, as one JSON file. Independent of Flower.

It holds keys, not row numbers. Row numbers change with each compaction, and differ between machines that encoded the
same data set in another order. The config identifies the store, so the manifest fits every store of that config, at
any path and with any part of it encoded.

Up to a thousand keys of a client are a plain list, readable by people and in diffs. More keys are packed: the JSON of
their list, deflated, in base64. A million keys in ten clients take 4 MB instead of 38 MB, and a client unpacks only
its own part, in a third of the time of reading all lists. Hashes of the keys can't be deflated and would take 21 MB.
The file is written atomically (temporary name, fsync, rename), and its checksum shows a flipped bit.
"""

from __future__ import annotations

import json
import operator
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Any, Final

from embstore import Config, Key
from embstore._engine.format.keys import UNLABELLED, split_text
from embstore._engine.io.durable import replacing
from embstore._engine.io.filesystem import make_parents
from embstore._engine.io.urls import local_path
from embstore.errors import ConfigError, FileFormatError, UnsupportedFormatError
from embstore_fl.errors import ManifestNotFoundError, OtherStoreManifestError, UnknownClientError
from embstore_fl.packed_keys import Packed, checked_keys

Scheme = str | Mapping[str, Any]
"""Description of the assignment of samples to clients: a text, or a JSON value."""

Client = int | str
"""A client's number, or its name."""

_NUMBER: Final = re.compile(r"-?[0-9]+")
"""Not allowed as a name: in a node's configuration a text of digits is the client's number."""
_VERSION: Final = 1
_PLAIN: Final = 1_000
"""Most keys of a client that are written as a plain list."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """Each client's keys, with the scheme that assigned them.

    Attributes
    ----------
    scheme : str or mapping
        Description of the assignment.
    seed : int or None
        Seed of the scheme, and default seed of each client's split into train and test.
    config : Config
        The store's config.
    classes : tuple of str
        Classes of all clients. A label is an index into it.
    shared : bool
        True if some key belongs to several clients.
    parts : mapping of int or str to list of str or Packed
        Each client's keys, by its number or its name.
    names : mapping of int to str
        Names of clients with a number: their natural ids.
    test : list of str, Packed or None
        Keys of a given test set.
    common : bool
        True if no client has a key of the test set. All clients are then tested on all of it.
    path : Path or None
        The file it was read from.
    """

    scheme: Scheme
    seed: int | None
    config: Config
    classes: tuple[str, ...]
    shared: bool
    parts: Mapping[Client, list[str] | Packed]
    names: Mapping[int, str] = field(default_factory=dict)
    test: list[str] | Packed | None = None
    common: bool = False
    path: Path | None = None

    @classmethod
    def of(
        cls,
        keys: Mapping[int, Iterable[str | Key]] | Mapping[str, Iterable[str | Key]],
        *,
        scheme: Scheme,
        seed: int | None,
        config: Mapping[str, Any],
        classes: Sequence[str] | None = None,
        first: Sequence[str] = (),
        names: Mapping[int, str] | None = None,
        test: Iterable[str | Key] | None = None,
    ) -> Manifest:
        """Return the manifest of each client's keys.

        Parameters
        ----------
        keys : mapping of int or str to iterable of str or Key
            By the client's number or its name.
        scheme : str or mapping
        seed : int or None
        config : mapping
            The store's config.
        classes : sequence of str, optional
            Default: the classes of the keys, sorted.
        first : sequence of str
            Without `classes`: classes that keep their labels. New classes follow, sorted.
        names : mapping of int to str, optional
        test : iterable of str or Key, optional
            Keys of a given test set.

        Raises
        ------
        KeyFormatError
        ValueError
            A scheme that is not JSON, a class that is missing in `classes` or occurs twice, or a client's name that
            is empty, a number, or used twice.
        """
        json.dumps(scheme, allow_nan=False)
        parts: dict[Client, list[str] | Packed] = {}
        seen: set[str] = set()
        named: set[str] = set()
        shared = False
        for client, own in _in_order(keys):
            parsed = [Key.parse(key) for key in own]
            texts = list(map(str, parsed))
            named.update(key.class_name for key in parsed)
            shared = shared or not seen.isdisjoint(texts)
            seen.update(texts)
            parts[client] = _part(texts)
        tested = None if test is None else list(dict.fromkeys(str(Key.parse(key)) for key in test))
        named.update(split_text(text)[1] for text in tested or ())
        named.discard(UNLABELLED)
        labels = [*first, *sorted(named.difference(first))] if classes is None else list(classes)
        if len(set(labels)) < len(labels) or not named <= set(labels):
            raise ValueError(f"expected different classes, and among them {sorted(named)}, found {labels}")
        return cls(
            scheme=scheme,
            seed=seed,
            config=config if isinstance(config, Config) else Config(config),
            classes=tuple(labels),
            shared=shared,
            parts=parts,
            names=_checked_names(names or {}, parts),
            test=None if tested is None else _part(tested),
            common=tested is not None and seen.isdisjoint(tested),
        )

    @property
    def named(self) -> bool:
        """Whether the clients are given by name, not by number."""
        return isinstance(next(iter(self.parts), None), str)

    @property
    def fingerprint(self) -> str:
        """Fingerprint of the store's config."""
        return self.config.fingerprint

    @property
    def sizes(self) -> dict[Client, int]:
        """Number of keys of each client. Nothing is unpacked."""
        return {client: part.count if isinstance(part, Packed) else len(part) for client, part in self.parts.items()}

    def client_of(self, given: object) -> Client:
        """Return a client's key in `parts`, from its number or its name.

        If all clients have names, a number is a position among them: Flower's simulations number their nodes.

        Raises
        ------
        UnknownClientError
        """
        if isinstance(given, str):
            numbers = [number for number, name in self.names.items() if name == given]
            found: Client | None = given if given in self.parts else next(iter(numbers), None)
        else:
            found = operator.index(given) if hasattr(given, "__index__") else None  # also NumPy's integers
            if isinstance(found, int) and self.named:
                found = list(self.parts)[found] if 0 <= found < len(self.parts) else None
            elif found not in self.parts:
                found = None
        if found is None:
            raise UnknownClientError(given, self.parts)
        return found

    def keys_of(self, client: object) -> list[str]:
        """Return a client's keys in order.

        Raises
        ------
        UnknownClientError, FileFormatError
        """
        client = self.client_of(client)
        return self._unpacked(self.parts[client], f"client {client}")

    def test_keys(self) -> list[str] | None:
        """Return the keys of the given test set in order, or None without one.

        Raises
        ------
        FileFormatError
        """
        return None if self.test is None else self._unpacked(self.test, "the test set")

    def _unpacked(self, part: list[str] | Packed, what: str) -> list[str]:
        try:
            return list(part) if isinstance(part, list) else part.keys()
        except ValueError as error:
            raise FileFormatError(self.where, f"{what}: {error}") from error

    @property
    def where(self) -> Path:
        """The file's path, for errors."""
        return self.path or Path("manifest")

    def check_store(self, config: Mapping[str, Any], path: Path) -> None:
        """Raise if a store's config is not the manifest's.

        Raises
        ------
        OtherStoreManifestError
        """
        found = config if isinstance(config, Config) else Config(config)
        if found.fingerprint != self.fingerprint:
            raise OtherStoreManifestError(
                self.where,
                path,
                expected=self.fingerprint,
                found=found.fingerprint,
                differences=self.config.diff(found),
            )

    # -- the file -----------------------------------------------------------------------------

    def write(self, path: str | os.PathLike[str]) -> None:
        """Write the file atomically and durably. An existing file is replaced."""
        document: dict[str, Any] = {
            "embstore_partition": _VERSION,
            "scheme": self.scheme,
            "seed": self.seed,
            "fingerprint": self.fingerprint,
            # A text, so that it is parsed by the rules of configs.
            "config": self.config.canonical,
            "classes": list(self.classes),
            "shared": self.shared,
            # The file numbers all clients. The number of a named client is its position.
            "named": self.named,
            "names": {
                str(number): name for number, name in (enumerate(self.parts) if self.named else self.names.items())
            },
            "test": None if self.test is None else _as_json(self.test),
            "common": self.common,
            "clients": {
                str(place if self.named else client): _as_json(part)
                for place, (client, part) in enumerate(self.parts.items())
            },
        }
        document["checksum"] = _digest(document)
        place = local_path(path)
        make_parents(place)
        with replacing(place) as partial:
            partial.write_text(json.dumps(document, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> Manifest:
        """Read a file and check its content. Packed keys are checked when they are unpacked.

        Raises
        ------
        ManifestNotFoundError, FileFormatError, UnsupportedFormatError
        """
        place = local_path(path)
        try:
            content = place.read_bytes()
        except FileNotFoundError as error:
            raise ManifestNotFoundError(place) from error
        except IsADirectoryError as error:
            raise FileFormatError(place, "expected a manifest of a partition, found a folder") from error
        try:
            document = json.loads(content)
            version = document["embstore_partition"]
            if isinstance(version, int) and version > _VERSION:
                raise UnsupportedFormatError(place, expected=f"manifest {_VERSION}", found=f"manifest {version}")
            if document.pop("checksum") != _digest(document):
                raise FileFormatError(place, "its checksum does not match")
            return cls._parsed(document, place)
        except (FileFormatError, UnsupportedFormatError):
            raise
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError, ConfigError) as error:
            reason = f"not a manifest of a partition: {type(error).__name__}: {error}"
            raise FileFormatError(place, reason) from error

    @classmethod
    def _parsed(cls, document: Mapping[str, Any], path: Path) -> Manifest:
        config = Config.from_json(document["config"])
        if config.fingerprint != document["fingerprint"]:
            raise ValueError(f"the fingerprint {document['fingerprint']!r} does not match its config")
        seed = document["seed"]
        if seed is not None and (not isinstance(seed, int) or isinstance(seed, bool)):
            raise ValueError(f"expected an integer seed, found {seed!r}")
        parts: dict[Client, list[str] | Packed] = {
            int(client): _from_json(part) for client, part in document["clients"].items()
        }
        names = _checked_names({int(number): name for number, name in document.get("names", {}).items()}, parts)
        if document.get("named", False):
            parts, names = {names[number]: part for number, part in parts.items() if isinstance(number, int)}, {}
        test = document.get("test")
        return cls(
            scheme=document["scheme"],
            seed=seed,
            config=config,
            classes=tuple(checked_keys(document["classes"])),
            shared=bool(document["shared"]),
            parts=parts,
            names=names,
            test=None if test is None else _from_json(test),
            common=bool(document.get("common", False)),
            path=path,
        )


def _in_order(keys: Mapping[Any, Iterable[str | Key]]) -> list[tuple[Client, Iterable[str | Key]]]:
    """Return clients with their keys: numbers ascending, names in the given order.

    Raises
    ------
    TypeError
        A client is neither a number nor a name.
    ValueError
        Numbers and names are mixed, or a name is empty or a number.
    """
    numbered: list[tuple[int, Iterable[str | Key]]] = []
    named: list[tuple[Client, Iterable[str | Key]]] = []
    for client, own in keys.items():
        if not isinstance(client, str):
            if not hasattr(client, "__index__"):
                raise TypeError(f"expected a number or a name for a client, found {client!r}")
            numbered.append((operator.index(client), own))
        elif not client or _NUMBER.fullmatch(client):
            raise ValueError(f"expected the name of a client, found {client!r}; give a number as an int")
        else:
            named.append((client, own))
    if numbered and named:
        raise ValueError(f"expected numbers or names for clients, found both: {numbered[0][0]} and {named[0][0]!r}")
    return named or [(number, own) for number, own in sorted(numbered, key=operator.itemgetter(0))]


def _checked_names(names: Mapping[int, str], parts: Mapping[Client, Any]) -> dict[int, str]:
    """Check that clients' names are different texts, and return the names of clients in `parts`.

    Names of other clients are dropped, since a manifest may hold a part of the clients.
    """
    found = {operator.index(number): name for number, name in names.items() if number in parts}
    if not all(isinstance(name, str) for name in found.values()):
        raise ValueError(f"expected texts as names of clients, found {list(found.values())}")
    if len({*found.values(), *parts}) < len(found) + len(parts):
        raise ValueError(f"expected different names of clients, found {list(found.values())}")
    return found


def _part(keys: list[str]) -> list[str] | Packed:
    return keys if len(keys) <= _PLAIN else Packed.of(keys)


def _as_json(part: list[str] | Packed) -> Any:
    return part if isinstance(part, list) else asdict(part)


def _from_json(part: Any) -> list[str] | Packed:
    if isinstance(part, list):
        return checked_keys(part)
    packed = Packed(count=part["count"], nbytes=part["nbytes"], deflated=part["deflated"])
    if not isinstance(packed.count, int) or not isinstance(packed.nbytes, int) or not isinstance(packed.deflated, str):
        raise ValueError("packed keys without count, nbytes and text")
    return packed


def _digest(document: Mapping[str, Any]) -> str:
    text = json.dumps(document, sort_keys=True, separators=(",", ":"))
    return blake2b(text.encode(), digest_size=16).hexdigest()
