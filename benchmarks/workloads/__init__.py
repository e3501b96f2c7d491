"""What is measured: functions of a party of systems, each giving measurements."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

from benchmarks.workloads import epochs, opening, reading, sharing, writing
from benchmarks.workloads.players import Party
from benchmarks.workloads.turns import Measurement, Pace

__all__ = ["WORKLOADS"]

WORKLOADS: dict[str, Callable[[Party, Pace], Iterator[Measurement]]] = {
    "new-process": opening.new_process,
    "row-batches": reading.row_batches,
    "key-batches": reading.key_batches,
    "all-rows": reading.all_rows,
    "one-class": reading.one_class,
    "ten-classes": reading.ten_classes,
    "epoch": epochs.epoch,
    "epoch-workers": epochs.epoch_of_workers,
    "bulk-write": writing.bulk_write,
    "append": writing.append,
    "bulk-write-unsynced": partial(writing.bulk_write, sync=False),
    "append-unsynced": partial(writing.append, sync=False),
    "disk": writing.bytes_on_disk,
    "readers": sharing.readers,
    "readers-and-writer": sharing.readers_and_writer,
}
