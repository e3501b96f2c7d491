"""PFLlib on a store, against its own .npz files and against the same arrays kept in RAM.

    PYTHONPATH=integrations python -m benchmarks.fl.pfllib CHECKOUT            20,000 rows, 20 clients: some minutes
    PYTHONPATH=integrations python -m benchmarks.fl.pfllib CHECKOUT --quick    2,000 rows

CHECKOUT is a clone of https://github.com/TsingZ0/PFLlib at d832e76, of which nothing is changed. Rounds are those of
its main.py with FedAvg, a logistic head and batches of ten, as it comes: a process a side on one core, a client of each
in turns. They are given in seconds of the processor, since others may be at work on the machine. A ratio is that of
the medians.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import io
import json
import multiprocessing
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path

import torch

import embstore
from benchmarks.fl.pfllib_data import written
from benchmarks.fl.pfllib_main import run
from benchmarks.report.measure import RESULTS, Result, Times, in_turns, report

NAME = "MNIST_embeddings"  # main.py gives a logistic head for rows of 784 numbers to names with MNIST in them
DIM, CLASSES = 784, 10


def calls(folder: Path, args: argparse.Namespace) -> Iterator[Result]:
    """Time `read_client_data` itself, and what a server does to set its clients up, with nothing else of PFLlib."""
    given = json.loads((folder / "partitions.json").read_text())
    sys.path.insert(0, str(args.pfllib / "system"))
    data_utils = importlib.reload(importlib.import_module("utils.data_utils"))  # writing the data has replaced it
    npz = data_utils.read_client_data
    from embstore_fl import pfllib

    def opened() -> None:
        pfllib.install(embstore.open(folder / "store.zarr"), given["rows"], given["classes"])

    def read(function: Callable[..., list[object]]) -> None:
        for client in range(args.clients):
            for is_train in (True, False):
                len(function(NAME, client, is_train=is_train))

    def set_up() -> None:
        opened()
        read(pfllib.read_client_data)

    opened()
    count = 2 * args.clients
    ours, theirs = in_turns(args.repeat, lambda: read(pfllib.read_client_data), lambda: read(npz), parts=count)
    label = f"{args.rows:,} rows, {args.clients} clients"
    note = f"its .npz: {statistics.median(theirs) * 1e3:.3g} ms"
    yield Result(f"read_client_data, a call, {label}", 1e-3, ours, unit="s", note=note)
    ours, theirs = in_turns(args.repeat, set_up, lambda: read(npz))
    yield Result(f"opening, splitting, and all clients set up, {label}", 1.0, ours, theirs, "its .npz")


def rounds(folder: Path, args: argparse.Namespace) -> Iterator[Result]:
    """Time whole rounds of main.py, the sides in turns."""
    spawning = multiprocessing.get_context("spawn")
    given = ["-algo", "FedAvg", "-data", NAME, "-m", "MLR", "-ncl", str(CLASSES), "-nc", str(args.clients)]
    given += ["-gr", str(args.repeat + 1), "-dev", "cpu"]
    sides: dict[str, Connection] = {}
    processes = []
    for side in ("store", "ram", "npz"):
        sides[side], theirs = spawning.Pipe()
        process = spawning.Process(target=stepped, args=(theirs, args.pfllib, folder, side, given), daemon=True)
        process.start()
        processes.append(process)
        sides[side].recv()
    taken: dict[str, Times] = {side: [] for side in sides}
    for turn in range(args.repeat + 1):
        spent, at = dict.fromkeys(sides, 0.0), ""
        while at != "round":
            for side in sorted(sides, reverse=len(taken["store"]) % 2 == 1):
                sides[side].send("go on")
                at, seconds = sides[side].recv()
                spent[side] += seconds
        for side in taken if turn else ():  # the first one warms up
            taken[side].append(spent[side])
    for process in processes:
        process.terminate()  # they wait for one more word
        process.join()
    label = f"a FedAvg round, training and evaluation, {args.rows:,} rows, {args.clients} clients"
    yield Result(label, 1.0, taken["store"], taken["ram"], "its .npz, kept in RAM")
    yield Result(label, 1.0, taken["store"], taken["npz"], "its .npz")


def stepped(connection: Connection, checkout: Path, folder: Path, side: str, given: list[str]) -> None:
    """Run main.py in this process, from where it loads data to the next such place at each word.

    Sixty steps a round: what else the machine does meanwhile is then spread over the sides. Each is answered with what
    comes next, and the seconds of the processor that it took.
    """

    def before() -> None:
        from flcore.clients.clientbase import Client
        from flcore.servers.serverbase import Server

        started = 0.0

        def paused(name: str, method: Callable[..., object]) -> Callable[..., object]:
            def called(*arguments: object) -> object:
                nonlocal started
                connection.send((name, time.process_time() - started))
                connection.recv()
                started = time.process_time()
                return method(*arguments)

            return called

        Server.select_clients = paused("round", Server.select_clients)  # this is what a round begins with
        Client.load_train_data = paused("train", Client.load_train_data)
        Client.load_test_data = paused("test", Client.load_test_data)

    torch.set_num_threads(1)
    with contextlib.redirect_stdout(io.StringIO()):
        run(checkout, folder, side, given, before)


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("pfllib", type=Path, metavar="CHECKOUT")
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--clients", type=int, default=20)
    parser.add_argument("--repeat", type=int, default=9, help="measurements of each side, at least 5")
    parser.add_argument("--data", type=Path, help="where temporary files go")
    parser.add_argument("--results", type=Path, default=RESULTS / "fl_pfllib.json")
    parser.add_argument("--quick", action="store_true", help="2,000 rows")
    args = parser.parse_args()
    if args.repeat < 5:
        parser.error("--repeat is at least 5")
    args.rows = 2000 if args.quick else args.rows
    args.pfllib = args.pfllib.resolve()
    return args


def main() -> None:
    args = parsed()
    with tempfile.TemporaryDirectory(dir=args.data) as temporary:
        folder = Path(temporary) / "pfllib"
        shape = {"count": args.rows, "dim": DIM, "classes": CLASSES, "clients": args.clients}
        written(folder, args.pfllib, name=NAME, **shape)
        with contextlib.chdir(folder / "system"):  # from where PFLlib's paths are right
            results = [*calls(folder, args), *rounds(folder, args)]
        report(results, args.results.resolve(), folder)


if __name__ == "__main__":
    main()
