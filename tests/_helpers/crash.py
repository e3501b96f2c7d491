"""Ways to run work in child processes and to end them in the middle, and to see which files are left."""

import contextlib
import os
import resource
import signal
import stat
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from embstore._engine.io import steps

ROOT = Path(__file__).parents[2]


class Journal:
    """Acknowledgements that survive the process which gave them: one line each, through a pipe."""

    def __init__(self):
        self.read_end, self.write_end = os.pipe()

    def acknowledge(self, text):
        os.write(self.write_end, f"{text}\n".encode())

    def reader(self):
        """Return the file to read the lines from. It ends with the last process that can acknowledge."""
        os.close(self.write_end)
        return os.fdopen(self.read_end)


def start(work: Callable[[], object]) -> int:
    """Fork a process that does `work`, and return its id.

    The child handles SIGINT itself: a parent under nohup ignores the signal, and a child inherits that.
    """
    child = os.fork()
    if child == 0:
        code = 1
        try:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            work()
            code = 0
        except BaseException:
            traceback.print_exc(file=sys.__stderr__)  # `capsys` keeps the text of sys.stderr in the child's memory
        finally:
            os._exit(code)
    return child


def end_of(child: int) -> int:
    """Wait for a child, and return how it ended: 0, 1 for an exception, -9 for a kill."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def run_in_child(work: Callable[[], None]) -> int:
    """Run `work` in a forked child, and return how it ended."""
    return end_of(start(work))


def run_together(*works: Callable[[], None]) -> list[int]:
    """Run functions at once, each in a forked child; return how they ended. None of them outlives the call."""
    children = [start(work) for work in works]
    ended: list[int] = []
    try:
        for child in children:
            ended.append(end_of(child))
    finally:
        for child in children[len(ended) :]:
            os.kill(child, signal.SIGKILL)
            end_of(child)
    return ended


def run_with_little_memory(work: Callable[[], None], nbytes: int = 2**36) -> None:
    """Run `work` in a child that can't take much memory, so that a size believed unchecked shows."""

    def limited():
        resource.setrlimit(resource.RLIMIT_AS, (nbytes, nbytes))
        work()

    assert run_in_child(limited) == 0


class KilledError(BaseException):
    """Stands for a killed writer."""


@contextlib.contextmanager
def stopped_at(operation: str, end: str = "", error: BaseException | None = None) -> Iterator[None]:
    """Raise an error, by default KilledError, at each such operation on the disk on a path that ends so."""

    def hook(found, path, data):
        if found == operation and path.endswith(end):
            raise error or KilledError

    steps.step_hook = hook
    try:
        yield
    finally:
        steps.step_hook = None


def kill_at(step: int) -> None:
    """Have this process killed just before its `step`-th operation on the disk."""
    count = 0

    def hook(operation, path, data):
        nonlocal count
        if count == step:
            os.kill(os.getpid(), signal.SIGKILL)
        count += 1

    steps.step_hook = hook


def killed_at(step: int, path: Path, change: Callable) -> bool:
    """Carry out a change of a store in a child that is killed before that step; return whether it was killed."""

    def work():
        import embstore

        store = embstore.open(path, "r+")
        kill_at(step)
        change(store)

    ended = run_in_child(work)
    assert ended in (0, -signal.SIGKILL)
    return ended != 0


def python(code: str, *words: object, **options) -> str:
    """Run code in a Python of its own, which must end well and write no errors. Return its output."""
    path = os.pathsep.join([str(ROOT / "integrations"), os.environ.get("PYTHONPATH", "")])
    options = {"capture_output": True, "text": True, "timeout": 120, "cwd": ROOT, **options}
    start = [sys.executable, "-c", code, *map(str, words)]
    done = subprocess.run(start, env={**os.environ, "PYTHONPATH": path}, **options)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def files_in(folder: Path) -> dict[str, bytes]:
    """Return the content of each file below a folder, by its path in the folder."""
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def leftovers(store: Path) -> list[str]:
    """List temporary files and folders, in a store and beside it."""
    found = [str(path) for path in store.rglob(".partial*")]
    return found + [str(path) for path in store.parent.glob(f".{store.name}*")]


def end(child: int, *, within: float = 60) -> int:
    """Wait for a process and return its exit code, negative for a signal. Raise TimeoutError if it does not end."""
    until = time.monotonic() + within
    while time.monotonic() < until:
        if (found := os.waitpid(child, os.WNOHANG))[0]:
            return os.waitstatus_to_exitcode(found[1])
        time.sleep(0.002)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    raise TimeoutError(f"a process had not ended after {within} seconds")


def start_together(works: Sequence[Callable[[], object]]) -> list[int]:
    """Fork a process for each piece of work, and let all begin at the same moment."""
    gate, opener = os.pipe()

    def waiting(work):
        os.close(opener)
        os.read(gate, 1)  # ends when no process holds the other end
        work()

    children = [start(lambda work=work: waiting(work)) for work in works]
    os.close(opener)
    os.close(gate)
    return children


def end_all(children: Sequence[int]) -> list[int]:
    """Wait for processes and return their exit codes."""
    return [end(child) for child in children]


def until(condition: Callable[[], object], *, within: float = 60) -> None:
    """Wait until a condition holds."""
    limit = time.monotonic() + within
    while not condition():
        assert time.monotonic() < limit, "waited in vain"
        time.sleep(0.002)


def as_another_user(folder: Path, work: Callable[[], None]) -> int:
    """Run `work` in a child that is another user, which may enter the folders above `folder`. Needs root."""
    closed = [(parent, parent.stat().st_mode) for parent in folder.parents if not parent.stat().st_mode & 1]
    for parent, mode in closed:
        parent.chmod(stat.S_IMODE(mode) | stat.S_IXOTH)

    def as_nobody():
        os.setgroups([])
        os.setresgid(65_534, 65_534, 65_534)
        os.setresuid(65_534, 65_534, 65_534)
        assert not os.access(folder, os.W_OK)
        work()

    try:
        return run_in_child(as_nobody)
    finally:
        for parent, mode in closed:
            parent.chmod(stat.S_IMODE(mode))


needs_root = pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can become another user"
)
