"""Ways to end a process in the middle of its work, and to say what the disk then holds."""

import os
import signal
import traceback
from collections.abc import Callable
from pathlib import Path

from embstore._engine.io import steps


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

    steps.step_hook = hook


def leftovers(store: Path) -> list[str]:
    """List temporary files and folders, in a store and beside it."""
    found = [str(path) for path in store.rglob(".partial*")]
    return found + [str(path) for path in store.parent.glob(f".{store.name}*")]
