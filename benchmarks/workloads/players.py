"""The other side of `contestant`: a process for each system, asked in turns, put aside when it fails."""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.systems import System
from benchmarks.workloads.source import Source

ROOT = Path(__file__).parents[2]
QUIET = {"TOKENIZERS_PARALLELISM": "false", "ICECHUNK_LOG": "error", "RUST_LOG": "error"}


class Failed(Exception):
    """A system could not do what it was asked; says why."""


class Player:
    """A process in which one system works."""

    def __init__(self, module: str, name: str, source: Source, *, patience: float) -> None:
        self.name = name
        self.patience = patience
        self.ended = False
        self._opened: tuple[str, str, bool] | None = None
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115, closed by stop()
        self._process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-m", "benchmarks.workloads.contestant"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env={**os.environ, **QUIET, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])},
        )
        self.imports: float = self.ask("start", module=module, name=name, source=str(source.folder))["seconds"]

    def open(self, folder: Path, mode: str = "r", *, sync: bool = True) -> None:
        """Open a store, unless it is what is open."""
        wanted = (str(folder), mode, sync)
        if self._opened != wanted:
            self.close()
            self.ask("open", folder=str(folder), mode=mode, sync=sync)
            self._opened = wanted

    def close(self) -> None:
        """Close what is open."""
        if self._opened:
            self._opened = None
            self.ask("close")

    def ask(self, what: str, **given: Any) -> dict[str, Any]:
        """Ask for something, and wait for the answer.

        Raises
        ------
        Failed
            It can't, or it died, or it takes longer than the patience.
        """
        self.tell(what, **given)
        return self.answer()

    def tell(self, what: str, **given: Any) -> None:
        """Ask without waiting: several may work at once."""
        assert self._process.stdin
        try:
            self._process.stdin.write((json.dumps({"do": what, **given}) + "\n").encode())
            self._process.stdin.flush()
        except (BrokenPipeError, ValueError):
            self.ended = True
            raise Failed(f"it died: {self._last_words()}") from None

    def answer(self) -> dict[str, Any]:
        assert self._process.stdout
        ready, _, _ = select.select([self._process.stdout], [], [], self.patience)
        if not ready:
            self._process.kill()
            self.ended = True
            raise Failed(f"no answer within {self.patience:g} s")
        line = self._process.stdout.readline()
        if not line:
            self.ended = True
            raise Failed(f"it died: {self._last_words()}")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise Failed(answer["error"])
        return answer

    def _last_words(self) -> str:
        self._process.wait()
        if self._errors.closed:
            return "it was stopped"
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").strip().splitlines()
        return f"exit code {self._process.returncode}, {lines[-1][:200] if lines else 'no word'}"

    def stop(self) -> None:
        """End it; twice does no harm."""
        self.ended = True
        for stream in (self._process.stdin, self._process.stdout):
            if stream:
                with contextlib.suppress(BrokenPipeError):
                    stream.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._errors.close()


@dataclass
class Party:
    """Systems that are measured in turns on the same rows, each with its store on disk."""

    source: Source
    folder: Path
    systems: dict[str, tuple[str, System]]
    patience: float
    aside: dict[str, str] = field(default_factory=dict)
    """Why a system is not in it any more."""
    pool: dict[str, Player] = field(default_factory=dict)

    def store_of(self, name: str) -> Path:
        return self.folder / name.replace(" ", "-").replace(",", "")

    def player(self, name: str) -> Player:
        """Start a new process."""
        module, system = self.systems[name]
        return Player(module, system.name, self.source, patience=self.patience)

    def at_work(self, name: str) -> Player:
        """Return the process that a system works in all the time; started, if it is not."""
        if name not in self.pool or self.pool[name].ended:
            self.pool[name] = self.player(name)
        return self.pool[name]

    def names(self, workload: str) -> list[str]:
        """Return the systems that take part in a workload."""
        return [
            name
            for name, (_, system) in self.systems.items()
            if name not in self.aside and (system.takes_part is None or workload in system.takes_part)
        ]

    def write(self) -> None:
        """Write the rows into each system that has more to do than to be written, and was not written before."""
        for name, (_, system) in self.systems.items():
            if system.takes_part == ("bulk-write",) or self.store_of(name).exists():
                continue
            try:
                self.at_work(name).ask("write", folder=str(self.store_of(name)))
            except Failed as error:
                self.aside[name] = f"writing: {error}"

    def clear(self, *, but: str = "") -> None:
        """End the processes, and remove the stores; not that of one system."""
        for player in self.pool.values():
            player.stop()
        self.pool.clear()
        for name in self.systems:
            if name != but:
                shutil.rmtree(self.store_of(name), ignore_errors=True)
