"""The pages that are made of the result files: all tables, and the one table of ratios in the documentation.

python -m benchmarks.report.pages        writes results/TABLES.md, and the table in docs/benchmarks.md
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.report.goals import OURS, RESULTS, goal_table, read_results, verdicts
from benchmarks.report.measure import BENCHMARKS, Result
from benchmarks.report.measure import table as result_table
from benchmarks.report.tables import figure, grouped, table

TABLES = RESULTS / "TABLES.md"
PAGE = BENCHMARKS.parent / "docs" / "benchmarks.md"
BEGIN, END = "<!-- made by benchmarks/report/pages.py -->", "<!-- end -->"

HEAD = """# All figures of the benchmarks, as tables

Made of the JSON files beside this page by `python -m benchmarks.report.pages`. Don't edit it. [README.md](README.md)
says what each file is and what is special about its run. A ratio is one of medians within a group of systems that were
measured in turns. The spread is the least and the greatest figure. "once" means that the system was too slow for more
than one measurement.
"""

SYSTEMS = (
    *("NumPy in RAM", "memmap + JSON", "safetensors", "dict in .pt", "LMDB", "h5py, contiguous", "datasets (Arrow)"),
    *("Lance", "zarr, default"),
)


@dataclass(frozen=True, slots=True)
class Line:
    """A line of the table of ratios: where its figures come from, the first file first."""

    label: str
    workload: str
    data: str
    files: tuple[str, ...]
    detail: str = ""


POOLED, LONG = "200,000 x 768", "280 x 1,214 x 768"
BATCHES, READING = ("compare_batches", "compare"), ("compare_reading", "compare_reading_pt")
LINES = (
    Line("new process, open to first batch", "first-batch", POOLED, ("compare",)),
    Line("256 rows at random", "row-batches", POOLED, BATCHES, "batches of 256"),
    Line("256 keys at random", "key-batches", POOLED, BATCHES, "batches of 256"),
    Line("shuffled epoch, `DataLoader`", "epoch", POOLED, ("compare",), "0 workers"),
    Line("one class of ten", "one-class", POOLED, ("compare",)),
    Line("all rows to RAM", "all-rows", POOLED, ("compare",)),
    Line("bulk write, durable", "bulk-write", POOLED, ("compare_bulk", "compare_writing"), "durable"),
    Line("append of 64 rows, durable", "append", POOLED, ("compare_writing",), "durable"),
    Line("bytes on disk", "disk", POOLED, ("compare",)),
    Line("8 batches of 256, cold disk", "cold", POOLED, ("cold",), "8 random batches of 256"),
    Line("256 rows at random", "row-batches", "10,000 x 768", ("compare_10k",), "batches of 256"),
    Line("256 keys at random", "key-batches", "10,000 x 768", ("compare_10k",), "batches of 256"),
    Line("256 rows at random", "row-batches", "2,000,000 x 768", ("compare_2m",), "batches of 256"),
    Line("256 keys at random", "key-batches", "2,000,000 x 768", ("compare_2m",), "batches of 256"),
    Line("16 rows at random", "row-batches", LONG, READING, "batches of 16"),
    Line("shuffled epoch, `DataLoader`", "epoch", LONG, READING, "0 workers"),
    Line("bulk write, durable", "bulk-write", LONG, READING, "durable"),
)


def ratio_table() -> str:
    """Show how often embstore's time each system takes: one line a workload, a column a system."""
    lines = [f"| workload | rows | embstore | {' | '.join(SYSTEMS)} |", "|---" * (3 + len(SYSTEMS)) + "|"]
    for line in LINES:
        ours, ratios = _of_line(line)
        cells = [line.label, line.data, ours, *(ratios.get(name, "") for name in SYSTEMS)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _of_line(line: Line) -> tuple[str, dict[str, str]]:
    shown, ratios = "", dict[str, str]()
    for file in line.files:
        for one in read_results(RESULTS / f"{file}.json"):
            if (one.workload, one.data, one.detail) != (line.workload, line.data, line.detail):
                continue
            ours = one.median(OURS)
            if ours is None:
                raise LookupError(f"{file}.json has no figure of {OURS} for {line}")
            shown = shown or figure(ours, one.unit)
            for name in one.figures:
                theirs = one.median(name)
                if theirs and name not in ratios:
                    ratios[name] = _ratio(theirs / ours if one.better == "less" else ours / theirs)
    if not shown:
        raise LookupError(f"no result file has {line}")
    return shown, ratios


def _ratio(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}" if value >= 10 else f"{value:.2f}"


def all_tables() -> str:
    """Show every result file: its command, its machine, its goals, and all its tables."""
    return "\n".join([HEAD, *(part for path in sorted(RESULTS.glob("*.json")) for part in _of_file(path))])


def _of_file(path: Path) -> Iterator[str]:
    content = json.loads(path.read_text())
    commands = content["command"] if isinstance(content["command"], list) else [content["command"]]
    machine, versions = content["machine"], content["versions"]
    yield f"## {path.name}\n"
    yield "\n".join(["```", *commands, "```", ""])
    installed = ", ".join(f"{name} {version}" for name, version in versions.items())
    hardware = f"{machine['cpu']}, {machine['cores']} cores, {machine['ram_bytes'] / 2**30:.1f} GiB of RAM"
    yield f"{hardware}, {machine['kernel']}, {machine['file_system']}; {installed}.\n"
    measurements = read_results(path)
    if found := verdicts(measurements):
        yield goal_table(found) + "\n"
    for group in grouped(measurements).values():
        yield table(group) + "\n"
    results = content.get("results", [])
    if results and "algorithm" in results[0]:
        yield _algorithms(results) + "\n"
    elif results:
        names = {field.name for field in dataclasses.fields(Result)}
        kept = [Result(**{name: value for name, value in one.items() if name in names}) for one in results]
        yield result_table(kept) + "\n"


def _algorithms(results: list[dict[str, Any]]) -> str:
    lines = ["| algorithm | on .npz and on a store | on .npz | on a store | |", "|---|---|---|---|---|"]
    for one in results:
        npz, store = one["npz"], one["store"]
        cells = (
            one["algorithm"],
            one["verdict"],
            figure(npz["seconds"], "s"),
            figure(store["seconds"], "s"),
            npz["error"],
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def page_with(ratios: str) -> str:
    """Return the documentation's page with this table of ratios."""
    return re.sub(f"(?<={BEGIN}\n).*(?=\n{END})", lambda _: f"\n{ratios}\n", PAGE.read_text(), flags=re.DOTALL)


def main() -> None:
    TABLES.write_text(all_tables())
    PAGE.write_text(page_with(ratio_table()))


if __name__ == "__main__":
    main()
