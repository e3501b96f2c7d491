"""A scatter plot as a picture (matplotlib) or a page (plotly). What is on it, `plotting` says."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from embstore._engine.lazy import imported

__all__ = ["PAGES", "PICTURES", "Scene", "Shades", "as_figure", "write_page", "write_picture"]

PAGES: Final = (".html", ".htm")
PICTURES: Final = (".png", ".svg", ".pdf")

_MOST_SVG: Final = 10_000
"""Points that a browser draws well one by one; more are drawn by WebGL."""

_MOST_LISTED: Final = 30  # categories in a picture's legend; a page's scrolls
_LISTED_SIZE: Final = 30  # of a marker there, in square points
_MOST_TEXT: Final = 200  # characters of a value that are shown

_COLOURS: Final = (
    *("#1f77b4", "#ff7f0e", "#2ca02c", "#d62728", "#9467bd"),
    *("#8c564b", "#e377c2", "#7f7f7f", "#bcbd22", "#17becf"),
)
_MARKERS: Final = (("o", "circle"), ("^", "triangle-up"), ("s", "square"), ("D", "diamond"), ("X", "x"))
"""matplotlib's and plotly's names; the next one where the colours begin again."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Shades:
    """What points are coloured by.

    Attributes
    ----------
    name : str
    values : ndarray, (n,)
        Places in `categories`, or numbers where there are none.
    categories : list of str, optional
    """

    name: str
    values: NDArray[Any]
    categories: list[str] | None = None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Scene:
    """Everything on a plot.

    Attributes
    ----------
    title : str
    axes : list of str
        Titles of both.
    points : ndarray, (n, 2) float32
    shades : Shades, optional
    notes : dict of str to sequence
        What is shown of each point under the pointer, the key first.
    """

    title: str
    axes: Sequence[str]
    points: NDArray[np.float32]
    notes: dict[str, Sequence[Any]]
    shades: Shades | None = None

    def groups(self) -> list[tuple[str, NDArray[np.int64], str, tuple[str, str]]]:
        """Return each category's name, places, colour and marker; all points at once where there are none."""
        if self.shades is None or self.shades.categories is None:
            return [("", np.arange(len(self.points)), _COLOURS[0], _MARKERS[0])]
        styles = [
            (_COLOURS[i % len(_COLOURS)], _MARKERS[i // len(_COLOURS) % len(_MARKERS)])
            for i in range(len(self.shades.categories))
        ]
        places = [np.flatnonzero(self.shades.values == i) for i in range(len(styles))]
        named = zip(self.shades.categories, places, styles, strict=True)
        return [(name, at, *style) for name, at, style in named]

    @property
    def numbers(self) -> NDArray[Any] | None:
        """What colours follow, where it is not categories."""
        return None if self.shades is None or self.shades.categories is not None else self.shades.values


def write_picture(scene: Scene, path: Path, suffix: str) -> None:
    """Draw with matplotlib, without its global state."""
    imported("matplotlib", "analysis", "for a picture")
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 7.5), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    axes.set_aspect("equal", adjustable="datalim")  # what is apart on the plot is apart as far as that goes
    size = float(np.clip(20_000 / max(1, len(scene.points)), 2, 40))
    style: dict[str, Any] = {"s": size, "linewidths": 0, "alpha": 0.8, "rasterized": True}
    drawn = []
    for _, at, colour, (marker, _plotly) in scene.groups():
        x, y = scene.points[at].T
        if scene.numbers is None:
            drawn.append(axes.scatter(x, y, color=colour, marker=marker, **style))
        else:
            shaded = colormaps["viridis"].with_extremes(bad="lightgrey")
            numbers = np.asarray(scene.numbers, dtype=np.float64)
            drawn.append(axes.scatter(x, y, c=numbers, cmap=shaded, plotnonfinite=True, **style))
    if scene.numbers is not None and scene.shades is not None:
        figure.colorbar(drawn[0], ax=axes, label=scene.shades.name)
    elif scene.shades is not None:
        _legend(axes, scene.shades, drawn, size)
    texts = [axes.set_title(_cut(scene.title)), axes.set_xlabel(scene.axes[0]), axes.set_ylabel(scene.axes[1])]
    for text in texts:
        text.set_parse_math(False)
    figure.savefig(path, format=suffix.removeprefix("."))


def _legend(axes: Any, shades: Shades, drawn: list[Any], size: float) -> None:
    """List the categories, of many those with the most points, with markers that can be told apart."""
    categories = shades.categories or []
    counts = np.bincount(shades.values, minlength=len(categories))
    largest = np.sort(np.argsort(-counts, kind="stable")[:_MOST_LISTED]).tolist()
    title = shades.name if len(largest) == len(categories) else f"{shades.name}: {len(largest)} of {len(categories)}"
    # matplotlib leaves out what begins with "_", as the class of unlabelled samples does: named afterwards.
    legend = axes.legend(
        [drawn[i] for i in largest],
        ["-"] * len(largest),
        title=title,
        loc="center left",
        bbox_to_anchor=(1, 0.5),
        fontsize=8,
        markerscale=math.sqrt(_LISTED_SIZE / size),
    )
    for text, i in zip(legend.get_texts(), largest, strict=True):
        text.set_parse_math(False)
        text.set_text(_cut(categories[i]))


def as_figure(scene: Scene) -> Any:
    """Draw with plotly: keys and columns under the pointer."""
    go = imported("plotly.graph_objects", "analysis", "for a page")
    kind = go.Scatter if len(scene.points) <= _MOST_SVG else go.Scattergl
    notes = [[_escaped(value) for value in values] for values in zip(*scene.notes.values(), strict=True)]
    named = [f"{name}: %{{customdata[{i}]}}" for i, name in enumerate(scene.notes) if i]
    template = "<br>".join(["<b>%{customdata[0]}</b>", *named]) + "<extra></extra>"
    figure = go.Figure()
    for name, at, colour, (_matplotlib, marker) in scene.groups():
        style: dict[str, Any] = {"size": 6, "opacity": 0.8, "symbol": marker, "color": colour}
        if scene.numbers is not None and scene.shades is not None:
            numbers = np.asarray(scene.numbers, dtype=np.float64)
            style |= {"color": numbers, "colorscale": "Viridis", "colorbar": {"title": {"text": scene.shades.name}}}
        figure.add_trace(
            kind(
                x=scene.points[at, 0],
                y=scene.points[at, 1],
                mode="markers",
                name=_escaped(name),
                marker=style,
                customdata=[notes[place] for place in at.tolist()],
                hovertemplate=template,
            )
        )
    categories = scene.shades is not None and scene.shades.categories is not None
    figure.update_layout(
        title={"text": _escaped(scene.title)},
        xaxis={"title": {"text": scene.axes[0]}},
        yaxis={"title": {"text": scene.axes[1]}, "scaleanchor": "x"},
        legend={"title": {"text": scene.shades.name if scene.shades else ""}, "itemsizing": "constant"},
        showlegend=categories,
        hovermode="closest",
        template="plotly_white",
    )
    return figure


def write_page(scene: Scene, path: Path) -> None:
    """Write a page that needs no network: plotly's library is in it."""
    options = {"displaylogo": False, "scrollZoom": True, "responsive": True}
    figure = as_figure(scene)
    figure.write_html(str(path), include_plotlyjs=True, full_html=True, div_id="embstore-plot", config=options)


def _cut(text: str) -> str:
    return text if len(text) <= _MOST_TEXT else text[: _MOST_TEXT - 1] + "…"


def _escaped(value: Any) -> str:
    """Return text as plotly shows it literally: it takes some HTML for what it is."""
    return html.escape(_cut(str(value)), quote=False)
