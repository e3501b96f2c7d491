"""Each client's view of a store: the rows of the manifest's keys, split into train and test.

`manifest` reads and writes the file. `holdout` chooses the rows for testing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from embstore import EmbeddingStore, Key, View
from embstore._engine.format.keys import hash_file_ids, split_text
from embstore.errors import MissingKeysError, RelabelledKeysError
from embstore.store.embedding_store import session_of
from embstore.store.same_content import moved_keys
from embstore_fl.errors import ForeignKeysError, GivenTestError, UnknownClientError
from embstore_fl.holdout import Held, held_out, ranks_of
from embstore_fl.manifest import Client, Manifest

Split = Literal["train", "test", "all"]

TEST: Final = 0.25
"""Default share of each client's rows for testing."""

_Asked = tuple[Client | None, Split, float | None, int]


class Partitions(Mapping[Client, View]):
    """Each client's view of a store, by number or name. Returned by `load_partition`.

    A view is made on access, from the newest commit that this process has read. It raises while some of the client's
    keys are not stored, and `coverage` lists these. A client's view has no rows of other clients.

    Parameters
    ----------
    manifest : Manifest
    store : EmbeddingStore
        Its config must be the manifest's.

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
        """The classes of all clients. A label is an index into this list, the same for each client."""
        return list(self.manifest.classes)

    @property
    def seed(self) -> int:
        """Default seed of each client's split into train and test: the manifest's, or 0."""
        return self.manifest.seed or 0

    @property
    def names(self) -> dict[int, str]:
        """Names by number, of clients that have both."""
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
        """Return a client's keys, stored or not. See `view` for the parameters."""
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

        The keys and the seed alone decide the rows for testing. The split is the same in each round, on each machine,
        and in `embstore_fl.pfllib`. No row is for testing in one client and for training in another.

        Parameters
        ----------
        client : int, str or None
            None for all clients, as a server needs it: one client's rows after the other's, each row once, with the
            whole of a given test set.
        split : {"train", "test", "all"}
            If the manifest has a test set, "test" is the client's own rows of it. If no client has any of them,
            "test" is the whole set for each client.
        test : float, optional
            Share of the client's rows, and of each of its classes, for testing: at least 0, below 1. Default: 0.25.
            Not allowed if the manifest has a test set.
        seed : int, optional
            Default: the manifest's.
        keys : sequence of str or Key, optional
            Return only these rows, in this order.

        Returns
        -------
        View

        Raises
        ------
        UnknownClientError
        GivenTestError
            `test` is given, and the manifest has a test set.
        ForeignKeysError
            Some of `keys` are not in the client's split.
        MissingKeysError
            Some of the client's keys are not stored. The error lists them.
        RelabelledKeysError
            Some of them have other keys now, because labels changed.
        ValueError
            `split` is unknown, or `test` is out of range.
        """
        known = self._asked(client, split, test, seed)
        if keys is not None:
            wanted = [str(Key.parse(key)) for key in keys]
            own = set(self._keys_of(*known))
            if foreign := [key for key in wanted if key not in own]:
                raise ForeignKeysError(client, foreign)
            return self._select(wanted)
        commit = self.store.snapshot.record.commit_id
        found = self._views.get(known)
        # Reuse a view only for the same commit: a row replaced since then has another number.
        if found is None or found[0] != commit:
            found = self._views[known] = commit, self._select(self._keys_of(*known))
        return found[1]

    def _select(self, keys: list[str]) -> View:
        try:
            return self.store.select(keys=keys)
        except MissingKeysError as error:
            if moved := moved_keys(session_of(self.store).index, error.keys):
                hint = f"make the partition {self.manifest.where} again from the present keys"
                raise RelabelledKeysError(moved, path=self.store.path, moved=moved.values(), hint=hint) from error
            raise

    def _asked(self, client: Client | None, split: Split, test: float | None, seed: int | None) -> _Asked:
        """Check the arguments and fill in defaults. The share is None if the manifest has a test set."""
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
        """Keys of the given test set, in their order. Empty without a test set."""
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
        # If clients share keys, the split of one depends on the others.
        parts = {other: self.manifest.keys_of(other) for other in self.manifest.parts} if self.manifest.shared else {}
        numbers: dict[str, int] = {}
        held = {other: _held(part, numbers, seed) for other, part in {**parts, client: keys}.items() if part}
        chosen: list[bool] = held_out(held, test)[client].tolist()
        return chosen

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the manifest and the store, which pickles as its path."""
        return Partitions, (self.manifest, self.store)

    def __repr__(self) -> str:
        total = sum(self.manifest.sizes.values())
        return f"<Partitions of {str(self.store.path)!r}: {len(self):,} clients, {total:,} keys>"


def _held(keys: list[str], numbers: dict[str, int], seed: int) -> Held:
    """Return a client's rows for `held_out`. `numbers` maps each different key to one number, for all clients."""
    codes: dict[str, int] = {}
    labels = [codes.setdefault(split_text(key)[1], len(codes)) for key in keys]
    rows = [numbers.setdefault(key, len(numbers)) for key in keys]
    return Held(
        rows=_ints(rows),
        labels=_ints(labels),
        ranks=ranks_of(hash_file_ids(split_text(key)[0] for key in keys), seed),
    )


def _ints(values: list[int]) -> NDArray[np.int64]:
    return np.array(values, dtype=np.int64)
