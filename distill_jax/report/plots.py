"""Plots as inline SVG; the page writes their labels.

The marks stretch with the page (``preserveAspectRatio="none"``, strokes that do not
scale) and the labels are ordinary text beside them: a plot is as sharp and as readable
on a phone as on paper. Colours are CSS variables, so dark and light need one drawing.
The categorical colours are Okabe and Ito's.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

from markupsafe import Markup

from distill_jax.report.marks import (
    signed,
    span,
    text,
    thinned,
    tick_text,
    ticks,
)

WIDTH, HEIGHT = 1000, 400

Points = Sequence[tuple[float, float | None]]
Ticks = Sequence[tuple[float, str]]  # (percent of the axis, label)


@dataclasses.dataclass(frozen=True)
class Plot:
    """A drawing with two axes.

    Attributes:
        marks: what is inside ``<svg viewBox="0 0 1000 400">``.
        x, y: labels of the axes, with the unit.
        x_ticks, y_ticks: from the left and from the top.
        legend: [(number of the colour, name)].
        wide: as wide as the page.
    """

    title: str
    marks: Markup
    x: str
    y: str
    x_ticks: Ticks
    y_ticks: Ticks
    legend: Sequence[tuple[int, str]] = ()
    wide: bool = False


@dataclasses.dataclass(frozen=True)
class Rows:
    """Horizontal marks, a row a name.

    Attributes:
        rows: [(name, [(class of the mark, its style)], value as it is written)].
        ticks: of the axis below the rows.
    """

    title: str
    rows: Sequence[tuple[str, Sequence[tuple[str, str]], str]]
    ticks: Ticks = ()


def lines(
    series: Mapping[str, Points],
    *,
    title: str,
    x: str,
    y: str,
    dots: bool = False,
    zero: bool = False,
) -> Plot | None:
    """Lines over a common x axis; a point whose y is None breaks its line.

    Args:
      x, y: labels of the axes, with the unit.
      dots: mark the points (for few of them).
      zero: the y axis starts at 0.
    """
    series = {name: thinned(points) for name, points in series.items() if points}
    xs = [p[0] for points in series.values() for p in points]
    ys = [p[1] for points in series.values() for p in points]
    if not xs:
        return None
    left, right = span(xs, 0.04 if dots else 0.0)
    low, high = span(ys)
    low = min(0.0, low) if zero else low

    def at(point: tuple[float, float | None]) -> tuple[float, float] | None:
        if point[1] is None or not math.isfinite(point[1]):
            return None
        return (
            WIDTH * (point[0] - left) / (right - left),
            HEIGHT * (high - point[1]) / (high - low),
        )

    marks = [_grid(low, high)]
    for i, points in enumerate(series.values()):
        path, pen = [], "M"
        for place in map(at, points):
            if place is None:
                pen = "M"
                continue
            path.append(f"{pen}{place[0]:.1f} {place[1]:.1f}")
            pen = "L"
        marks.append(f'<path class="line c{i % 6}" d="{"".join(path)}"/>')
        if dots or len(points) == 1:
            # A line of no length with round ends: a dot that does not stretch.
            marks += [
                f'<path class="dot c{i % 6}" d="M{p[0]:.1f} {p[1]:.1f}h0"/>'
                for p in map(at, points)
                if p is not None
            ]
    x_ticks = [v for v in ticks(left, right, 5) if not dots or v == int(v)]
    return Plot(
        title,
        Markup("".join(marks)),
        x,
        y,
        x_ticks=_placed(x_ticks, left, right),
        y_ticks=_placed(ticks(low, high, 4), high, low),
        legend=_legend(series),
    )


def histograms(
    parts: Mapping[str, Mapping[str, Sequence[float]]],
    *,
    title: str,
    x: str,
    colour: int = 0,
) -> Plot | None:
    """Counts over bins; several share their axes: ``{name: {"edges", "counts"}}``."""
    parts = {name: part for name, part in parts.items() if part.get("counts")}
    if not parts:
        return None
    left = min(part["edges"][0] for part in parts.values())
    right = max(part["edges"][-1] for part in parts.values())
    right = right if right > left else left + 1
    # Shares, not counts: the lists of two models need not be equally many.
    shares = {
        name: [c / max(sum(part["counts"]), 1) for c in part["counts"]]
        for name, part in parts.items()
    }
    high = max(max(values) for values in shares.values()) * 1.06 or 1.0
    marks = [_grid(0, high)]
    for i, (name, values) in enumerate(shares.items()):
        edges = [WIDTH * (e - left) / (right - left) for e in parts[name]["edges"]]
        path = [f"M{edges[0]:.1f} {HEIGHT}"]
        for a, b, value in zip(edges, edges[1:], values):
            top = HEIGHT * (1 - value / high)
            path.append(f"L{a:.1f} {top:.1f}L{b:.1f} {top:.1f}")
        path.append(f"L{edges[-1]:.1f} {HEIGHT}Z")
        marks.append(f'<path class="area c{(i + colour) % 6}" d="{"".join(path)}"/>')
    return Plot(
        title,
        Markup("".join(marks)),
        x,
        "share of scores",
        x_ticks=_placed(ticks(left, right), left, right),
        y_ticks=[(100 - 100 * v / high, f"{100 * v:g}%") for v in ticks(0, high, 4)],
        legend=_legend(parts, colour),
    )


def differences(
    values: Sequence[tuple[str, float, str | None]], *, title: str, y: str
) -> Plot | None:
    """Sorted bars, one a query: (query id, difference, fragment to link to or None)."""
    if not values:
        return None
    values = sorted(values, key=lambda v: -v[1])
    high = max(max(v for _, v, _ in values), 0.0)
    low = min(min(v for _, v, _ in values), 0.0)
    low, high = (low, high) if high > low else (-1.0, 1.0)
    low, high = low - 0.04 * (high - low), high + 0.04 * (high - low)
    width = WIDTH / len(values)
    base = HEIGHT * high / (high - low)
    marks = [_grid(low, high)]
    for i, (query_id, value, link) in enumerate(values):
        top = HEIGHT * (high - max(value, 0)) / (high - low)
        tall = max(HEIGHT * abs(value) / (high - low), 0.0)
        kind = "gain" if value > 0 else "loss" if value < 0 else "same"
        bar = (
            f'<rect class="{kind}" x="{i * width:.2f}" y="{top:.1f}"'
            f' width="{max(width * 0.82, 0.6):.2f}" height="{tall:.1f}"/>'
        )
        if link:
            # The whole column can be hit: a small difference is a small bar.
            hit = (
                f'<rect class="hit" x="{i * width:.2f}" y="0" width="{width:.2f}"'
                f' height="{HEIGHT}"/>'
            )
            says = f"<title>{text(query_id)}: {signed(value)}</title>"
            bar = f'<a href="#{link}">{says}{hit}{bar}</a>'
        marks.append(bar)
    marks.append(f'<path class="base" d="M0 {base:.1f}H{WIDTH}"/>')
    return Plot(
        title,
        Markup("".join(marks)),
        f"{len(values)} queries, from the largest gain to the largest loss",
        y,
        x_ticks=[],
        y_ticks=_placed(ticks(low, high, 5), high, low),
        wide=True,
    )


def intervals(
    rows: Sequence[tuple[str, float, float, float]], *, title: str
) -> Rows | None:
    """Means with their intervals, one row each: (name, mean, low, high)."""
    if not rows:
        return None
    left, right = span([v for row in rows for v in row[1:]], 0.08)
    body = []
    for name, mean, low, high in rows:
        a, b, m = (100 * (v - left) / (right - left) for v in (low, high, mean))
        whisker = f"left:{a:.2f}%;width:{b - a:.2f}%"
        marks = [("whisker", whisker), ("mean", f"left:{m:.2f}%")]
        body.append((name, marks, f"{mean:.4f}"))
    return Rows(title, body, _placed(ticks(left, right, 4), left, right))


def bars(rows: Sequence[tuple[str, float, str]], *, title: str) -> Rows | None:
    """Horizontal bars from 0: (name, value, how the value is written)."""
    if not rows:
        return None
    most = max(value for _, value, _ in rows) or 1
    return Rows(
        title,
        [
            (name, [("bar", f"width:{100 * max(value, 0) / most:.2f}%")], shown)
            for name, value, shown in rows
        ],
    )


def _grid(low: float, high: float) -> str:
    return "".join(
        f'<path class="{"base" if v == 0 else "grid"}"'
        f' d="M0 {HEIGHT * (high - v) / (high - low):.1f}H{WIDTH}"/>'
        for v in ticks(low, high, 4)
    )


def _placed(values: Sequence[float], start: float, end: float) -> Ticks:
    return [(100 * (v - start) / (end - start), tick_text(v)) for v in values]


def _legend(names: Mapping[str, object], first: int = 0) -> list[tuple[int, str]]:
    found = [((i + first) % 6, name) for i, name in enumerate(names)]
    return found if len(found) > 1 else []
