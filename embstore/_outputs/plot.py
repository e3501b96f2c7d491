"""Plots of vectors in two dimensions: pages by plotly express, pictures by matplotlib."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from embstore._engine.format.arguments import whole_number
from embstore._engine.io.durable import replacing
from embstore._engine.lazy import imported
from embstore._outputs.pandas_parquet import as_frame
from embstore._outputs.projection import Method, project_vectors
from embstore._outputs.shades import COLOURS, Shades, shades_of
from embstore._outputs.vectors import Vectors
from embstore.errors import EmptyViewError

_PAGES: Final = (".html", ".htm")
_PICTURES: Final = (".png", ".svg", ".pdf")

_MOST_SVG: Final = 10_000
"""Points that a browser draws well as SVG. More points are drawn by WebGL."""

_MOST_LISTED: Final = 30  # groups in the legend of a picture (that of a page scrolls)
_LISTED_SIZE: Final = 30  # of a marker in a legend, in square points
_MOST_TEXT: Final = 200  # characters of a value that are shown

_SHADE: Final = "shade of a point"  # a column of the page's frame (no column of a store has spaces in its name)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Scene:
    """The content of a plot: rows, their points ``(n, 2) float32``, titles, and the columns under the pointer."""

    vectors: Vectors
    points: NDArray[np.float32]
    title: str
    axes: Sequence[str]
    shades: Shades | None
    columns: Sequence[str]


def plot_vectors(
    vectors: Vectors,
    file: Path | None,
    *,
    color: str | None,
    columns: Sequence[str],
    method: Method,
    max_points: int,
    rng: np.random.Generator,
) -> Any:
    """Plot vectors into a file, or return plotly's figure. See `View.plot`."""
    if file is not None and (suffix := file.suffix.lower()) not in (*_PAGES, *_PICTURES):
        raise ValueError(f"{file}: expected a file that ends in {', '.join((*_PAGES, *_PICTURES))}")
    max_points = whole_number("max_points", max_points, 1)
    if not len(vectors):
        raise EmptyViewError(vectors.snapshot.folder.path, "plot")
    total = len(vectors)
    if total > max_points:
        vectors = replace(vectors, rows=vectors.rows[np.sort(rng.choice(total, size=max_points, replace=False))])
    scene = _scene(vectors, total, color, columns, method, rng)
    if file is None:
        return _figure(scene)
    with replacing(file) as partial:
        if suffix in _PAGES:
            options = {"displaylogo": False, "scrollZoom": True, "responsive": True}
            # With plotly's library in it the page needs no network.
            _figure(scene).write_html(str(partial), include_plotlyjs=True, div_id="embstore-plot", config=options)
        else:
            _write_picture(scene, partial, suffix)
    return file


def _scene(
    vectors: Vectors, total: int, color: str | None, columns: Sequence[str], method: Method, rng: np.random.Generator
) -> _Scene:
    count = len(vectors)
    shown = f"{total:,} rows" if count == total else f"{count:,} of {total:,} rows, drawn at random"
    projection = project_vectors(vectors, method, 2, rng)
    axes: list[str] = [f"{projection.method.upper()} {i}" for i in (1, 2)]
    if projection.explained is not None:
        shares = projection.explained.tolist()
        axes = [f"{name} ({share:.1%} of the variance)" for name, share in zip(axes, shares, strict=True)]
    return _Scene(
        vectors=vectors,
        points=projection.points,
        title=_cut(f"{vectors.snapshot.folder.path.name}, {vectors.field}: {shown}"),
        axes=axes,
        shades=None if color is None else shades_of(vectors, color),
        columns=columns,
    )


def _figure(scene: _Scene) -> Any:
    """Draw with plotly express, with keys and columns under the pointer."""
    express = imported("plotly.express", "analysis", "for a page")
    frame = as_frame(scene.vectors.snapshot, scene.vectors.rows, columns=scene.columns).reset_index()
    notes = [name for name in frame.columns if name != "file_id"]  # the key first
    frame = frame[notes].map(_escaped)  # numbers as well: JavaScript rounds an int64
    frame[scene.axes[0]], frame[scene.axes[1]] = scene.points.T
    options: dict[str, Any] = {"color_discrete_sequence": COLOURS, "color_continuous_scale": "Viridis"}
    shades, groups = scene.shades, None
    if shades is not None:
        options |= {"color": _SHADE, "labels": {_SHADE: shades.name}}
        frame[_SHADE] = shades.values
        groups = shades.groups
    if shades is not None and groups is not None:
        # By place, not by name: names that are equal after they are cut would become one group.
        frame[_SHADE] = frame[_SHADE].astype(str)
        styles = {str(place): style for place, style in enumerate(shades.styles())}
        options |= {
            "symbol": _SHADE,
            "category_orders": {_SHADE: list(styles)},
            "color_discrete_map": {place: colour for place, (colour, _) in styles.items()},
            "symbol_map": {place: marker for place, (_, (_matplotlib, marker)) in styles.items()},
            "labels": {_SHADE: shades.title(len(groups) - shades.folded)},
        }
    figure = express.scatter(
        frame,
        x=scene.axes[0],
        y=scene.axes[1],
        custom_data=notes,
        opacity=0.8,
        title=_escaped(scene.title),
        template="plotly_white",
        render_mode="svg" if len(frame) <= _MOST_SVG else "webgl",
        **options,
    )
    named = [f"{name}: %{{customdata[{i}]}}" for i, name in enumerate(notes) if i]
    template = "<br>".join(["<b>%{customdata[0]}</b>", *named]) + "<extra></extra>"
    figure.update_traces(marker={"size": 6}, hovertemplate=template)
    figure.update_yaxes(scaleanchor="x")
    figure.update_layout(showlegend=groups is not None, legend={"itemsizing": "constant"}, hovermode="closest")
    if shades is not None and groups is not None:
        for place, trace in enumerate(figure.data):
            trace.name = _escaped(groups[place])
        if shades.folded:
            figure.data[0].legendrank = 1_001  # last, because the others have 1,000
    return figure


def _write_picture(scene: _Scene, path: Path, suffix: str) -> None:
    """Draw with matplotlib. Its global state is not used."""
    imported("matplotlib", "analysis", "for a picture")
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 7.5), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    axes.set_aspect("equal", adjustable="datalim")  # one scale for both axes keeps distances comparable
    size = float(np.clip(20_000 / max(1, len(scene.points)), 2, 40))
    style: dict[str, Any] = {"s": size, "linewidths": 0, "alpha": 0.8, "rasterized": True}
    shades, (x, y) = scene.shades, scene.points.T
    if shades is None:
        axes.scatter(x, y, color=COLOURS[0], **style)
    elif shades.groups is None:
        shaded = colormaps["viridis"].with_extremes(bad="lightgrey")
        drawn = axes.scatter(x, y, c=shades.values, cmap=shaded, plotnonfinite=True, **style)
        figure.colorbar(drawn, ax=axes, label=shades.name)
    else:
        groups = [
            axes.scatter(x[at], y[at], color=colour, marker=marker, **style)
            for place, (colour, (marker, _plotly)) in enumerate(shades.styles())
            for at in [shades.values == place]
        ]
        _legend(axes, shades, groups, size)
    texts = [axes.set_title(scene.title), axes.set_xlabel(scene.axes[0]), axes.set_ylabel(scene.axes[1])]
    for text in texts:
        text.set_parse_math(False)
    figure.savefig(path, format=suffix.removeprefix("."))


def _legend(axes: Any, shades: Shades, drawn: list[Any], size: float) -> None:
    """List the groups with the most points, with markers of a readable size."""
    names = shades.groups or []
    counts = np.bincount(shades.values, minlength=len(names))
    counts[: shades.folded] = 0
    largest = np.sort(np.argsort(-counts, kind="stable")[:_MOST_LISTED]).tolist()
    title = shades.title(len(largest))
    listed = [*largest, *range(shades.folded)]
    # matplotlib leaves out labels that begin with "_", as the class of unlabelled samples does: set the names later.
    legend = axes.legend(
        [drawn[i] for i in listed],
        ["-"] * len(listed),
        title=title,
        loc="center left",
        bbox_to_anchor=(1, 0.5),
        fontsize=8,
        markerscale=math.sqrt(_LISTED_SIZE / size),
    )
    for text, i in zip(legend.get_texts(), listed, strict=True):
        text.set_parse_math(False)
        text.set_text(_cut(names[i]))


def _cut(text: str) -> str:
    return text if len(text) <= _MOST_TEXT else text[: _MOST_TEXT - 1] + "…"


def _escaped(value: Any) -> str:
    """Return text that plotly shows literally. It treats some HTML as markup."""
    return html.escape(_cut(str(value)), quote=False)
