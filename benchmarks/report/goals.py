"""What embstore has to reach, as ratios of medians within one run; and whether it did.

python -m benchmarks.report.goals        all goals, from the files under results/
"""

from __future__ import annotations

import dataclasses
import json
import statistics
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from benchmarks.workloads.turns import Measurement

RESULTS = Path(__file__).parents[1] / "results"
OURS, RAM = "embstore", "NumPy in RAM"
LIMITS = (RAM, "memcpy", "np.save", "TensorDataset in RAM", "memmap + JSON")
OWN = ("embstore, zstd", "embstore, bfloat16")
MS = 1e-3


@dataclass(frozen=True)
class Verdict:
    """A goal, what was found, and whether it is met."""

    goal: str
    data: str
    wanted: str
    found: str
    met: bool


Judge = Callable[[Measurement], Iterator[Verdict]]


def _pair(measurement: Measurement, other: str) -> tuple[float, float] | None:
    ours, theirs = measurement.median(OURS), measurement.median(other)
    return None if ours is None or theirs is None else (ours, theirs)


def _faster(goal: str, other: str, times: float) -> Judge:
    def judge(measurement: Measurement) -> Iterator[Verdict]:
        if pair := _pair(measurement, other):
            ratio = pair[1] / pair[0]
            yield Verdict(goal, measurement.data, f"{times:g} x faster than {other}", f"{ratio:.2f} x", ratio >= times)

    return judge


def _than_all(goal: str, times: float, but: Iterable[str], when: str = "") -> Judge:
    """Say how much faster it is than the fastest of the others."""

    def judge(measurement: Measurement) -> Iterator[Verdict]:
        if when not in measurement.detail or (ours := measurement.median(OURS)) is None:
            return
        others = {
            name: theirs
            for name in measurement.figures
            if name not in (OURS, *OWN, *but) and (theirs := measurement.median(name)) is not None
        }
        if others:
            first = min(others, key=lambda name: others[name])
            ratio = others[first] / ours
            wanted = f"{times:g} x faster than all others"
            yield Verdict(goal, measurement.data, wanted, f"{ratio:.2f} x ({first})", ratio >= times)

    return judge


def _near_ram(measurement: Measurement) -> Iterator[Verdict]:
    if _is_pooled(measurement) and (pair := _pair(measurement, RAM)):
        ratio = (pair[0] - 0.1 * MS) / pair[1]
        goal = "random batches by row"
        yield Verdict(goal, measurement.data, f"1.1 x {RAM} + 0.1 ms", f"{ratio:.2f} x + 0.1 ms", ratio <= 1.1)


def _pooled(judge: Judge) -> Judge:
    return lambda measurement: judge(measurement) if _is_pooled(measurement) else iter(())


def _is_pooled(measurement: Measurement) -> bool:
    return measurement.data.count(" x ") == 1


def _memcpy(measurement: Measurement) -> Iterator[Verdict]:
    if pair := _pair(measurement, "memcpy"):
        share = pair[1] / pair[0]
        yield Verdict("sequence rows", measurement.data, "0.95 of memcpy", f"{share:.2f}", share >= 0.95)


def _opening(measurement: Measurement) -> Iterator[Verdict]:
    ours = measurement.median(OURS)
    if _is_pooled(measurement) and not measurement.detail and ours is not None:
        found = f"{ours / MS:.2f} ms"
        yield Verdict("open to first batch", measurement.data, "under 10 ms", found, ours < 10 * MS)


def _bulk(measurement: Measurement) -> Iterator[Verdict]:
    if measurement.detail == "durable" and (pair := _pair(measurement, "np.save")):
        share = pair[1] / pair[0]
        yield Verdict("bulk write", measurement.data, "0.8 of np.save + fsync", f"{share:.2f}", share >= 0.8)


def _anonymous(measurement: Measurement) -> Iterator[Verdict]:
    ours = measurement.median(OURS)
    if measurement.detail == "anonymous, after open" and ours is not None:
        yield Verdict("anonymous memory after open", measurement.data, "under 10 MB", f"{ours:.1f} MB", ours < 10)


def _cold(measurement: Measurement) -> Iterator[Verdict]:
    ours, limit = measurement.median(OURS), measurement.median("disk, 32 at once")
    if ours is not None and limit is not None:
        share = ours / limit  # rows a second
        yield Verdict(f"cold {measurement.detail}", measurement.data, "0.8 of 32 at once", f"{share:.2f}", share >= 0.8)


def _speedup(measurement: Measurement) -> Iterator[Verdict]:
    if pair := _pair(measurement, "encoding"):
        ratio, wanted = pair[1] / pair[0], 1000 if "process" not in measurement.detail else 300
        if wanted == 1000 or "audio" in measurement.data:
            goal = f"load speed-up, {measurement.detail}"
            yield Verdict(goal, measurement.data, f"{wanted:,} x", f"{ratio:,.0f} x", ratio >= wanted)


def _epoch(measurement: Measurement) -> Iterator[Verdict]:
    if measurement.detail.startswith("0") and _is_pooled(measurement):
        yield from _faster("shuffled epoch", "TensorDataset in RAM", 4)(measurement)


JUDGES: dict[str, list[Judge]] = {
    "row-batches": [
        _near_ram,
        _pooled(_faster("random batches by row", "LMDB", 5)),
        _pooled(_than_all("random batches by row", 30, (*LIMITS, "LMDB"))),
        _memcpy,
    ],
    "key-batches": [_pooled(_faster("random batches by key", "LMDB", 2))],
    "epoch": [_epoch],
    "first-batch": [_opening],
    "bulk-write": [_bulk],
    "append": [_than_all("append of 64 rows", 1, (RAM,), when="durable")],
    "memory": [_anonymous],
    "cold": [_cold],
    "load-speedup": [_speedup],
}


def verdicts(measurements: list[Measurement]) -> list[Verdict]:
    """Judge all measurements that a goal is for. In groups, a goal against all others is that of the hardest group."""
    found: dict[tuple[str, str, str], Verdict] = {}
    for measurement in measurements:
        for judge in JUDGES.get(measurement.workload, []):
            for verdict in judge(measurement):
                key = (verdict.goal, verdict.data, verdict.wanted)
                if key not in found or _figure(verdict) < _figure(found[key]):
                    found[key] = verdict
    return [*found.values(), *_growth(measurements)]


def _figure(verdict: Verdict) -> float:
    return float(verdict.found.split()[0].replace(",", ""))


def _growth(measurements: list[Measurement]) -> Iterator[Verdict]:
    """Say how opening grows with rows: the largest pooled data against the smallest."""
    times: dict[int, list[float]] = {}
    for measurement in measurements:
        if measurement.workload == "first-batch" and not measurement.detail and _is_pooled(measurement):
            rows = int(measurement.data.split(" x ")[0].replace(",", ""))
            times.setdefault(rows, []).extend(measurement.figures.get(OURS, []))
    rows = sorted(count for count, figures in times.items() if figures)
    if len(rows) > 1:
        ratio = statistics.median(times[rows[-1]]) / statistics.median(times[rows[0]])
        data = f"{rows[-1]:,} against {rows[0]:,} rows"
        yield Verdict("open to first batch", data, "not growing: 1.5 x at most", f"{ratio:.2f} x", ratio <= 1.5)


def goal_table(found: list[Verdict]) -> str:
    lines = ["| goal | rows | wanted | found | met |", "|---|---|---|---|---|"]
    for verdict in found:
        cells = (verdict.goal, verdict.data, verdict.wanted, verdict.found, "yes" if verdict.met else "**no**")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def read_results(*paths: Path) -> list[Measurement]:
    """Read measurements from result files; those of other benchmarks have none."""
    names = {field.name for field in dataclasses.fields(Measurement)}
    return [
        Measurement(**{name: value for name, value in found.items() if name in names})
        for path in paths
        for found in json.loads(path.read_text()).get("measurements", [])
    ]


def main() -> None:
    paths = [Path(name) for name in sys.argv[1:]] or sorted(RESULTS.glob("*.json"))
    print(goal_table(verdicts(read_results(*paths))))


if __name__ == "__main__":
    main()
