"""PNG charts from result files: bars of times, lines of scaling, bars of memory.

    python -m benchmarks.report.charts                     all of results/*.json, into results/
    python -m benchmarks.report.charts --out docs/charts compare.json

Nothing is measured here; what a chart shows are medians of the figures in the file, with their least and greatest.
"""

from __future__ import annotations

import argparse
import re
import statistics
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")  # no screen is needed

import matplotlib.pyplot as plt

from benchmarks.report.goals import OURS, RESULTS, read_results
from benchmarks.report.tables import figure, grouped
from benchmarks.workloads.turns import Measurement

OWN, OTHER, LIMIT = "#1f6feb", "#9aa4b2", "#2da44e"
LIMITS = ("NumPy in RAM", "memcpy", "np.save", "disk, 32 at once", "disk, 1 at a time", "the bus")
HEADLINES = (
    ("row-batches", "a random batch by row"),
    ("key-batches", "a random batch by key"),
    ("epoch", "a shuffled epoch, no workers"),
    ("first-batch", "a new process: open, first batch"),
)


def bars(ax: Any, measurements: list[Measurement], title: str) -> None:
    """Draw a bar for each system, the best on top, on a logarithmic scale, since they differ thousandfold."""
    figures: dict[str, list[float]] = {}
    for one in measurements:
        for name, values in one.figures.items():
            figures.setdefault(name, []).extend(values)
    first = measurements[0]
    ordered = sorted(figures, key=lambda name: statistics.median(figures[name]), reverse=first.better != "more")
    middles = [statistics.median(figures[name]) for name in ordered]
    least = min((abs(value) for value in middles if value), default=1.0)
    lengths = [max(value, least) for value in middles]  # nothing at all, and less, have no logarithm
    spread = [
        [max(0.0, length - max(min(figures[name]), least)) for length, name in zip(lengths, ordered, strict=True)],
        [max(0.0, max(figures[name]) - length) for length, name in zip(lengths, ordered, strict=True)],
    ]
    colours = [OWN if name.startswith(OURS) else LIMIT if name in LIMITS else OTHER for name in ordered]
    ax.barh(ordered, lengths, color=colours, xerr=spread, error_kw={"lw": 0.8, "ecolor": "#444"})
    ax.set_xscale("log")
    for place, value in enumerate(middles):
        end = max(lengths[place], *figures[ordered[place]])
        ax.text(end, place, f"  {figure(value, first.unit)}", va="center", fontsize=7)
    ax.margins(x=0.25)
    ax.set_title(title, fontsize=9)
    ax.set_xlabel(f"{first.unit} ({first.better} is better)", fontsize=8)
    ax.tick_params(labelsize=7)
    for side in ("top", "right"):
        ax.spines[side].set_visible(False)


def lines(ax: Any, measurements: list[Measurement], title: str) -> None:
    """Draw a line for each system over the number of keys."""
    points: dict[str, list[tuple[int, float]]] = {}
    for one in measurements:
        count = int(one.data.split(" x ")[0].replace(",", ""))
        for name in one.figures:
            if (middle := one.median(name)) is not None:
                points.setdefault(name, []).append((count, middle))
    for name, line in sorted(points.items()):
        ours = {"color": OWN, "lw": 2.5} if name == OURS else {"lw": 1}
        ax.plot(*zip(*sorted(line), strict=True), marker="o", ms=3, label=name, **ours)
    ax.set_xscale("log")
    if measurements[0].unit == "MB":  # there may be none
        ax.set_yscale("symlog", linthresh=1)
        ax.set_ylim(bottom=0)
    else:
        ax.set_yscale("log")
    ax.set_title(title, fontsize=9)
    ax.set_xlabel("keys", fontsize=8)
    ax.set_ylabel(measurements[0].unit, fontsize=8)
    ax.tick_params(labelsize=7)


def saved(figure_: Any, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure_.tight_layout()
    figure_.savefig(path, dpi=130)
    plt.close(figure_)
    print(path)


def slug(*words: str) -> str:
    return re.sub("[^a-z0-9]+", "-", " ".join(filter(None, words)).lower()).strip("-")


def drawn(measurements: list[Measurement], out: Path) -> None:
    """Draw a chart for each table, one for all of scaling, and the headline."""
    ordinary = [one for one in measurements if one.workload != "scaling"]
    for (workload, detail, data), group in grouped(ordinary).items():
        count = len({name for one in group for name in one.figures})
        if count:
            chart, ax = plt.subplots(figsize=(8, 1 + 0.24 * count))
            bars(ax, group, ", ".join(filter(None, (workload, detail, data))))
            saved(chart, out / f"{slug(workload, detail, data)}.png")
    details = list(dict.fromkeys(one.detail for one in measurements if one.workload == "scaling"))
    if details:
        chart, axes = plt.subplots(1, len(details), figsize=(3.6 * len(details), 3.4))
        for ax, detail in zip(axes, details, strict=True):
            lines(ax, [one for one in measurements if one.workload == "scaling" and one.detail == detail], detail)
        axes[0].legend(fontsize=6)
        saved(chart, out / "scaling.png")
    headline(measurements, out)


def headline(measurements: list[Measurement], out: Path) -> None:
    """Draw the chart of the README: four workloads on the pooled rows that most systems were measured on."""
    pooled = [one for one in measurements if one.data.count(" x ") == 1]
    panels = []
    for workload, title in HEADLINES:
        groups = [
            group
            for (name, detail, _), group in grouped(pooled).items()
            if name == workload and detail not in ("imports", "2 workers")
        ]
        if groups:
            group = max(groups, key=lambda group: len({name for one in group for name in one.figures}))
            panels.append((group, f"{title}\n{group[0].data}"))
    if panels:
        chart, axes = plt.subplots(1, len(panels), figsize=(4.6 * len(panels), 5), squeeze=False)
        for ax, (group, title) in zip(axes[0], panels, strict=True):
            bars(ax, group, title)
        saved(chart, out / "headline.png")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("files", type=Path, nargs="*", help="default: all of results/")
    parser.add_argument("--out", type=Path, default=RESULTS / "charts")
    args = parser.parse_args()
    drawn(read_results(*(args.files or sorted(RESULTS.glob("*.json")))), args.out)


if __name__ == "__main__":
    main()
