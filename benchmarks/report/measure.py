"""What the benchmarks share: sides measured in turns, results with their goals, and how they are reported."""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import KW_ONLY, asdict, dataclass, field
from importlib import metadata
from pathlib import Path

import embstore

Times = list[float]

BENCHMARKS = Path(__file__).parents[1]
DATA, RESULTS = BENCHMARKS / "data", BENCHMARKS / "results"
EXAMPLES = BENCHMARKS.parent / "examples"


@dataclass(frozen=True, slots=True)
class Result:
    """A line of the table: raw figures of both sides, in seconds unless `unit` is another."""

    workload: str
    goal: float
    ours: Times
    theirs: Times = field(default_factory=list)
    against: str = ""
    _: KW_ONLY
    unit: str = "x"  # "x": ours over theirs; else ours alone, or less theirs, in that unit
    note: str = ""

    @property
    def measured(self) -> float:
        ours = statistics.median(self.ours)
        theirs = statistics.median(self.theirs) if self.theirs else 0.0
        return ours / theirs if self.unit == "x" else ours - theirs

    @property
    def met(self) -> bool:
        return self.measured <= self.goal


def add_options(
    parser: argparse.ArgumentParser, name: str, *, repeat: int, of: str = "measurements of each side"
) -> None:
    """Add what every benchmark takes: how often, where its data go, and where its results."""
    parser.add_argument("--repeat", type=_enough, default=repeat, help=f"{of}, at least 5")
    parser.add_argument("--data", type=Path, default=DATA, help="where temporary files go")
    parser.add_argument("--results", type=Path, default=RESULTS / f"{name}.json")


def _enough(text: str) -> int:
    """Read a number of measurements that a median can be trusted of."""
    if (number := int(text)) < 5:
        raise argparse.ArgumentTypeError("it is at least 5")
    return number


def in_turns(
    repeat: int, *sides: Callable[[], object], after: Callable[[], object] = lambda: None, parts: int = 1
) -> list[Times]:
    """Measure the sides in turns, a part's share of each; frees results, and runs `after`, unmeasured."""
    times: list[Times] = [[] for _ in sides]
    for turn in range(repeat + 1):
        for side, taken in zip(sides, times, strict=True):
            start = time.perf_counter()
            result = side()
            stop = time.perf_counter()
            del result
            after()
            if turn:  # the first one warms up
                taken.append((stop - start) / parts)
    return times


def fresh(code: str, given: object) -> object:
    """Run code in a fresh interpreter, `given` on its input; gives what it prints."""
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, input=json.dumps(given), capture_output=True, text=True, check=True)
    return json.loads(done.stdout or "null")


def shown(value: float, unit: str) -> str:
    if unit in ("s", "x"):
        return f"{value:.2f} s" if value >= 1 else f"{value * 1e3:.3g} ms"
    return f"{value:.3g} {unit}"


def table(results: list[Result]) -> str:
    lines = ["| workload | embstore | compared with | ratio | goal | met |", "|---|---|---|---|---|---|"]
    for result in results:
        is_ratio = result.unit == "x"
        ours = shown(statistics.median(result.ours) if is_ratio else result.measured, result.unit)
        against = f"{result.against}: {shown(statistics.median(result.theirs), 's')}" if result.theirs else ""
        goal = f"{result.goal:g} x" if is_ratio else shown(result.goal, result.unit)
        ratio = f"{result.measured:.2f} x" if is_ratio else ""
        ours += f" ({result.note})" if result.note else ""
        cells = (result.workload, ours, against, ratio, goal, "yes" if result.met else "**no**")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def described(folder: Path) -> dict[str, object]:
    """Say what is measured, and on what."""
    versions = {"python": platform.python_version(), "embstore": embstore.__version__}
    found = {package.name: package.version for package in metadata.distributions()}
    versions |= {name: found.get(name, "absent") for name in ("numpy", "zarr", "torch")}
    kind = subprocess.run(["df", "--output=fstype", str(folder)], capture_output=True, text=True, check=True)
    model = re.search("model name\\s*: (.*)", Path("/proc/cpuinfo").read_text())
    machine = {
        "cpu": model[1] if model else platform.machine(),
        "cores": os.cpu_count(),
        "ram_bytes": os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
        "kernel": f"{platform.system()} {platform.release()}",
        "file_system": kind.stdout.split()[-1],
        "huge_pages": Path("/sys/kernel/mm/transparent_hugepage/enabled").read_text().strip(),
    }
    return {"command": shlex.join(["python", *sys.argv]), "versions": versions, "machine": machine}


def report(results: list[Result], path: Path, folder: Path) -> None:
    """Print the results as a table, and write every single time to `path`."""
    print(table(results))
    described_results = [asdict(r) | {"measured": r.measured, "met": r.met} for r in results]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(described(folder) | {"results": described_results}, indent=1) + "\n")
