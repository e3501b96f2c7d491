"""Ways to end a process in the middle of its work, and to say what the disk then holds."""

import json
import os
import signal
import traceback
from collections.abc import Callable
from pathlib import Path

from embstore._engine.io import folder as fsio


class Journal:
    """Acknowledgements that survive the process which gave them: one line each, through a pipe."""

    def __init__(self):
        self.read_end, self.write_end = os.pipe()

    def acknowledge(self, text):
        os.write(self.write_end, f"{text}\n".encode())

    def lines(self):
        os.close(self.write_end)
        with os.fdopen(self.read_end) as pipe:
            return pipe.read().splitlines()


def run_in_child(work: Callable[[], None]) -> int:
    """Fork, run `work` in the child, and return how it ended: 0, 1 for an exception, -9 for a kill."""
    child = os.fork()
    if child == 0:
        try:
            work()
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def kill_at(step: int) -> None:
    """Have this process killed just before its `step`-th operation on the disk."""
    count = 0

    def hook(operation, path, data):
        nonlocal count
        if count == step:
            os.kill(os.getpid(), signal.SIGKILL)
        count += 1

    fsio.step_hook = hook


def leftovers(store: Path) -> list[str]:
    """List temporary files and folders, in a store and beside it, and journals that are not the record's."""
    own = ""
    if store.exists():
        record = json.loads((store / "zarr.json").read_bytes())["attributes"]["embstore"]
        own = f"journal.{record['commit_id']}" if record.get("journal") else ""
    found = [str(path) for path in store.rglob(".partial*")]
    found += [str(path) for path in store.rglob("journal.*") if path.name != own]
    return found + [str(path) for path in store.parent.glob(f".{store.name}*")]
