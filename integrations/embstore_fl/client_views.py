"""Each client's view of a store: the manifest's keys as rows, and a split into train and test.

The manifest's file is `manifest`'s, the choice of rows for testing is `holdout`'s.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from embstore import EmbeddingStore, Key, View
from embstore._engine.format.keys import hash_keys
from embstore_fl.errors import ForeignKeysError, GivenTestError, UnknownClientError
from embstore_fl.holdout import Held, held_out, ranks_of
from embstore_fl.manifest import Client, Manifest

Split = Literal["train", "test", "all"]

TEST: Final = 0.25
"""The share of each client's rows that is for testing, unless another is asked for."""

_Asked = tuple[Client | None, Split, float | None, int]


class Partitions(Mapping[Client, View]):
    """Each client's view of a store, by its number or its name. Made by `load_partition`.

    A view is made when it is asked for, of the store's newest commit that this process knows; it is an error while some
    of the client's keys are not stored, and `coverage` says which. Another client's rows are not to be had through it.

    Parameters
    ----------
    manifest : Manifest
    store : EmbeddingStore
        Of the manifest's config.

    Raises
    ------
    OtherStoreManifestError
    """

    def __init__(self, manifest: Manifest, store: EmbeddingStore) -> None:
        manifest.check_store(store.snapshot.record.config, store.path)
        self.manifest = manifest
        self.store = store
        self._keys: dict[_Asked, list[str]] = {}
        self._views: dict[_Asked, tuple[str, View]] = {}
        self._given: dict[str, None] | None = None

    @property
    def classes(self) -> list[str]:
        """The classes of all clients: a label is a place in it, the same for each of them."""
        return list(self.manifest.classes)

    @property
    def seed(self) -> int:
        """The seed of each client's split into train and test, unless another is given: the manifest's, or 0."""
        return self.manifest.seed or 0

    @property
    def names(self) -> dict[int, str]:
        """Names of clients that have a number."""
        return dict(self.manifest.names)

    def __len__(self) -> int:
        return len(self.manifest.parts)

    def __iter__(self) -> Iterator[Client]:
        return iter(self.manifest.parts)

    def __contains__(self, client: object) -> bool:
        try:
            self.manifest.client_of(client)
        except UnknownClientError:
            return False
        return True

    def __getitem__(self, client: Client) -> View:
        """Return all rows of a client, in the manifest's order.

        Raises
        ------
        UnknownClientError
        MissingKeysError
            Lists the client's keys that are not stored.
        """
        return self.view(client)

    def keys_of(
        self, client: Client | None, split: Split = "all", *, test: float | None = None, seed: int | None = None
    ) -> list[str]:
        """Return a client's keys, stored or not; see `view`."""
        return list(self._keys_of(*self._asked(client, split, test, seed)))

    def view(
        self,
        client: Client | None,
        split: Split = "all",
        *,
        test: float | None = None,
        seed: int | None = None,
        keys: Sequence[str | Key] | None = None,
    ) -> View:
        """Return a client's rows, in the manifest's order.

        Which of them are for testing follows from their keys and the seed: it is the same in each round, on each
        machine, and in `embstore_fl.pfllib`. No row is one client's for testing and another's to train on.

        Parameters
        ----------
        client : int, str or None
            None for all of them, one client's rows after the other's, each row once, with the whole of a given test
            set: for a server.
        split : {"train", "test", "all"}
            Where the manifest has a test set, a client is tested on its own rows of it; if no client has any of them,
            each client is tested on the whole set.
        test : float, optional
            The share of the client's rows, and of each of its classes, that is for testing; from 0, below 1. By
            default 0.25, unless the manifest has a test set.
        seed : int, optional
            The manifest's, unless given.
        keys : sequence of str or Key, optional
            Only these of them, in this order.

        Raises
        ------
        UnknownClientError
        GivenTestError
            A share, where the manifest has a test set.
        ForeignKeysError
            Some of `keys` are not among them.
        MissingKeysError
            Lists those of the client's keys that are not stored.
        """
        known = self._asked(client, split, test, seed)
        if keys is not None:
            wanted = [str(Key.parse(key)) for key in keys]
            own = set(self._keys_of(*known))
            if foreign := [key for key in wanted if key not in own]:
                raise ForeignKeysError(client, foreign)
            return self.store.select(keys=wanted)
        commit = self.store.snapshot.record.commit_id
        found = self._views.get(known)
        # Only of the same commit: a row that was replaced since has another number.
        if found is None or found[0] != commit:
            found = self._views[known] = commit, self.store.select(keys=self._keys_of(*known))
        return found[1]

    def _asked(self, client: Client | None, split: Split, test: float | None, seed: int | None) -> _Asked:
        """Check what is asked for; the share is None where the manifest has a test set."""
        if split not in get_args(Split):
            raise ValueError(f"expected a split of {get_args(Split)}, found {split!r}")
        given = self.manifest.test is not None
        if given and test is not None:
            raise GivenTestError(self.manifest.where, test)
        share = None if given else TEST if test is None else test
        if share is not None and not 0 <= share < 1:
            raise ValueError(f"expected test, a share, from 0 and below 1, found {share}")
        own = None if client is None else self.manifest.client_of(client)
        return own, split, share, self.seed if seed is None else seed

    def _keys_of(self, client: Client | None, split: Split, share: float | None, seed: int) -> list[str]:
        known = (client, split, share, seed)
        if known not in self._keys:
            if client is not None:
                self._keys[known] = self._own(client, split, share, seed)
            elif share is None and split == "test":
                self._keys[known] = list(self._test)
            else:
                every = [self._own(one, split, share, seed) for one in self]
                also = self._test if share is None and split == "all" else ()
                self._keys[known] = list(dict.fromkeys(key for keys in (*every, also) for key in keys))
        return self._keys[known]

    @property
    def _test(self) -> dict[str, None]:
        """The keys of the given test set, in their order; none without one."""
        if self._given is None:
            self._given = dict.fromkeys(self.manifest.test_keys() or ())
        return self._given

    def _own(self, client: Client, split: Split, share: float | None, seed: int) -> list[str]:
        """Return the keys of one client."""
        keys = self.manifest.keys_of(client)
        if split == "all":
            return keys
        if share is None:
            if self.manifest.common and split == "test":
                return list(self._test)
            return [key for key in keys if (key in self._test) == (split == "test")]
        held = self._held_out(client, keys, share, seed)
        return [key for key, is_test in zip(keys, held, strict=True) if is_test == (split == "test")]

    def _held_out(self, client: Client, keys: list[str], test: float, seed: int) -> list[bool]:
        if not test or not keys:
            return [False] * len(keys)
        # Where clients share keys, one must know of the others which it holds out.
        parts = {other: self.manifest.keys_of(other) for other in self.manifest.parts} if self.manifest.shared else {}
        numbers: dict[str, int] = {}
        held = {other: _held(part, numbers, seed) for other, part in {**parts, client: keys}.items() if part}
        chosen: list[bool] = held_out(held, test)[client].tolist()
        return chosen

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle as the manifest, and where the store is."""
        return Partitions, (self.manifest, self.store)

    def __repr__(self) -> str:
        total = sum(self.manifest.sizes.values())
        return f"<Partitions of {str(self.store.path)!r}: {len(self):,} clients, {total:,} keys>"


def _held(keys: list[str], numbers: dict[str, int], seed: int) -> Held:
    """Describe what a client holds; `numbers` gives each different key one number, whoever holds it."""
    codes: dict[str, int] = {}
    labels = [codes.setdefault(key.rpartition(":")[2], len(codes)) for key in keys]
    rows = [numbers.setdefault(key, len(numbers)) for key in keys]
    return Held(rows=_ints(rows), labels=_ints(labels), ranks=ranks_of(hash_keys(keys), seed))


def _ints(values: list[int]) -> NDArray[np.int64]:
    return np.array(values, dtype=np.int64)
