"""Measurements as tables in Markdown, and as JSON with every single figure.

python -m benchmarks.report.tables compare.json        the tables of result files, as `compare.py` prints them
"""

from __future__ import annotations

import dataclasses
import json
import statistics
import sys
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

from benchmarks.report.goals import OURS, goal_table, read_results, verdicts
from benchmarks.report.measure import described
from benchmarks.workloads.turns import Measurement

LIBRARIES = (
    *("numpy", "torch", "zarr", "zarrs", "tensorstore", "h5py", "lmdb", "pylance", "pyarrow", "datasets", "icechunk"),
    *("safetensors", "litdata", "transformers", "matplotlib"),
)


def figure(value: float, unit: str) -> str:
    """Show a figure with its unit, in three digits."""
    if unit == "s":
        return f"{value:.2f} s" if value >= 1 else f"{value * 1e3:.3g} ms" if value >= 1e-3 else f"{value * 1e6:.3g} us"
    if unit == "bytes":
        return f"{value / 1e6:,.1f} MB"
    return f"{value:,.1f} {unit}" if abs(value) < 1000 else f"{value:,.0f} {unit}"


def grouped(measurements: Iterable[Measurement]) -> dict[tuple[str, str, str], list[Measurement]]:
    """Gather the groups in which systems were measured in turns: one table, each ratio within its own group."""
    tables: dict[tuple[str, str, str], list[Measurement]] = {}
    for one in measurements:
        tables.setdefault((one.workload, one.detail, one.data), []).append(one)
    return tables


def table(measurements: list[Measurement]) -> str:
    """Show all systems of one workload, the best first; how often ours each takes, from the group it was in."""
    first = measurements[0]
    title = ", ".join(filter(None, (first.workload, first.detail, first.data)))
    against = "of embstore's"
    lines = [f"**{title}** ({first.better} is better)", "", f"| system | median | {against} | spread | |"]
    lines.append("|---|---|---|---|---|")
    rows: dict[str, tuple[float, str]] = {}
    for one in measurements:
        ours = one.median(OURS)
        for name, figures in one.figures.items():
            if not figures or (name in rows and name == OURS):
                continue
            middle = statistics.median(figures)
            ratio = f"{middle / ours:.3g} x" if ours else ""
            spread = f"{figure(min(figures), one.unit)} - {figure(max(figures), one.unit)}" if len(figures) > 1 else ""
            cells = (name, figure(middle, one.unit), ratio, spread, one.notes.get(name, ""))
            rows[name] = (middle, f"| {' | '.join(cells)} |")
    ordered = sorted(rows.values(), reverse=first.better == "more")
    aside = {name: why for one in measurements for name, why in one.aside.items() if name not in rows}
    return "\n".join([*lines, *(line for _, line in ordered), *(f"| {n} | | | | {why} |" for n, why in aside.items())])


def print_report(measurements: list[Measurement]) -> None:
    for group in grouped(measurements).values():
        print("\n" + table(group))
    if found := verdicts(measurements):
        print("\n" + goal_table(found))


def save(measurements: list[Measurement], path: Path, folder: Path, **more: object) -> None:
    """Write every single figure, with versions, machine and command line; at once, as often as wanted."""
    about = described(folder)
    found = {package.name: package.version for package in metadata.distributions()}
    about["versions"] |= {name: found[name] for name in LIBRARIES if name in found}  # type: ignore[operator]
    path.parent.mkdir(parents=True, exist_ok=True)
    content = about | more | {"goals": [dataclasses.asdict(one) for one in verdicts(measurements)]}
    content["measurements"] = [dataclasses.asdict(one) for one in measurements]
    part = path.with_name(path.name + ".part")
    part.write_text(json.dumps(content, indent=1) + "\n")
    part.replace(path)


def main() -> None:
    print_report(read_results(*map(Path, sys.argv[1:])))


if __name__ == "__main__":
    main()
