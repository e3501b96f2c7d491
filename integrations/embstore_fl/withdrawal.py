"""Withdrawal of a client: erases its rows from a store, while other clients continue."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import Any

from embstore import EmbeddingStore, EraseReceipt, Key
from embstore import open as open_store
from embstore.errors import MissingKeysError, RelabelledKeysError
from embstore.store.embedding_store import session_of
from embstore.store.same_content import moved_keys
from embstore_fl.errors import SharedKeysError
from embstore_fl.stores import refresh_shared

Partition = Any
"""A view, a node's data set, or a sequence of keys."""


def erase_client(
    store: EmbeddingStore | str | os.PathLike[str],
    partition: Partition,
    *,
    others: Iterable[Partition] = (),
    copies: bool = False,
) -> EraseReceipt:
    """Erase a client's rows: delete them, and blank them in the store's files.

    Other clients' views, data sets and manifests stay valid, as rows keep their numbers. Keys that were never stored
    or are erased already are skipped, so the call may be repeated.

    Parameters
    ----------
    store : EmbeddingStore or path_like
        A read-only store is opened a second time for writing, and refreshed afterwards.
    partition : View, data set, or sequence of keys
        The client's rows.
    others : iterable of the same, optional
        Rows of other clients. If one of them shares a key, the call raises and erases nothing.
    copies : bool
        Erase also the rows of other keys that were made from the same content. Without it, the receipt lists them.

    Returns
    -------
    EraseReceipt
        The erased rows, and the copies that an erase can't reach.

    Raises
    ------
    SharedKeysError
        One of `others` shares a key.
    RelabelledKeysError
        Rows of the client have other keys now, because labels changed. Nothing was erased.
    ReadOnlyError, StoreLockedError, StorageFullError, EraseUnfinishedError

    Examples
    --------
    >>> import embstore, numpy as np, tempfile
    >>> store = embstore.open(tempfile.mkdtemp() + "/demo.zarr", "w-", config={"encoder": "demo"})
    >>> _ = store.append(["a:dog", "b:cat"], np.ones((2, 3), np.float32))
    >>> receipt = erase_client(store, ["a:dog", "c:dog"])
    >>> len(receipt.rows), list(store)
    (1, ['b:cat'])
    """
    keys = _keys_of(partition)
    held = {key for other in others for key in _keys_of(other)}
    if shared := [key for key in keys if key in held]:
        raise SharedKeysError(shared)
    if isinstance(store, EmbeddingStore) and store.writable:
        receipt = _erased(store, keys, copies)
    else:
        path = store.path if isinstance(store, EmbeddingStore) else store
        with open_store(path, "r+") as writable:
            receipt = _erased(writable, keys, copies)
        if isinstance(store, EmbeddingStore):
            store.refresh()
    refresh_shared(receipt.path)
    return receipt


def _keys_of(partition: Partition) -> list[str]:
    keys: Sequence[str | Key] = partition.keys if isinstance(getattr(partition, "keys", None), list) else partition
    return list(dict.fromkeys(str(Key.parse(key)) for key in keys))


def _erased(store: EmbeddingStore, keys: list[str], copies: bool) -> EraseReceipt:
    store.refresh()
    moved = moved_keys(session_of(store).index, keys)
    left = {key: new for key, new in moved.items() if new not in keys}
    if left and copies:
        keys = [*keys, *left.values()]
    elif left:
        hint = "nothing was erased; erase these keys too, as copies=True does"
        raise RelabelledKeysError(left, path=store.path, moved=left.values(), hint=hint)
    while True:
        try:
            return store.erase(keys, copies=copies)
        except MissingKeysError as error:  # never stored, or erased already
            missing = set(error.keys)
            keys = [key for key in keys if key not in missing]
