"""Plots as inline SVG with labels in HTML.

The marks stretch with the page (``preserveAspectRatio="none"``, strokes that do not
scale) and the labels are ordinary text beside them: a plot is as sharp and as readable
on a phone as on paper. Colours are CSS variables, so dark and light need one drawing.
The categorical colours are Okabe and Ito's.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

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


def lines(
    series: Mapping[str, Points],
    *,
    title: str,
    x: str,
    y: str,
    dots: bool = False,
    zero: bool = False,
) -> str:
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
        return ""
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
    return _figure(
        title,
        "".join(marks),
        x_ticks=[((v - left) / (right - left), tick_text(v)) for v in x_ticks],
        y_ticks=[
            ((high - v) / (high - low), tick_text(v)) for v in ticks(low, high, 4)
        ],
        x=x,
        y=y,
        legend=list(series) if len(series) > 1 else [],
    )


def histograms(
    parts: Mapping[str, Mapping[str, Sequence[float]]],
    *,
    title: str,
    x: str,
    colour: int = 0,
) -> str:
    """Counts over bins; several share their axes: ``{name: {"edges", "counts"}}``."""
    parts = {name: part for name, part in parts.items() if part.get("counts")}
    if not parts:
        return ""
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
    return _figure(
        title,
        "".join(marks),
        x_ticks=[
            ((v - left) / (right - left), tick_text(v)) for v in ticks(left, right)
        ],
        y_ticks=[(1 - v / high, f"{100 * v:g}%") for v in ticks(0, high, 4)],
        x=x,
        y="share of scores",
        legend=list(parts) if len(parts) > 1 else [],
        first=colour,
    )


def differences(
    values: Sequence[tuple[str, float, str | None]], *, title: str, y: str
) -> str:
    """Sorted bars, one a query: (query id, difference, fragment to link to or None)."""
    if not values:
        return ""
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
            bar = f'<a href="#{text(link)}">{says}{hit}{bar}</a>'
        marks.append(bar)
    marks.append(f'<path class="base" d="M0 {base:.1f}H{WIDTH}"/>')
    return _figure(
        title,
        "".join(marks),
        x_ticks=[],
        y_ticks=[
            ((high - v) / (high - low), tick_text(v)) for v in ticks(low, high, 5)
        ],
        x=f"{len(values)} queries, from the largest gain to the largest loss",
        y=y,
        wide=True,
    )


def intervals(rows: Sequence[tuple[str, float, float, float]], *, title: str) -> str:
    """Means with their intervals, one row each: (name, mean, low, high)."""
    if not rows:
        return ""
    left, right = span([v for row in rows for v in row[1:]], 0.08)
    body = []
    for name, mean, low, high in rows:
        a, b, m = (100 * (v - left) / (right - left) for v in (low, high, mean))
        body.append(
            f'<div class="row"><span class="name">{text(name)}</span>'
            f'<span class="track"><i class="whisker" style="left:{a:.2f}%;'
            f'width:{b - a:.2f}%"></i><i class="mean" style="left:{m:.2f}%"></i></span>'
            f'<span class="value">{mean:.4f}</span></div>'
        )
    axis = "".join(
        f'<b style="left:{100 * (v - left) / (right - left):.2f}%">{tick_text(v)}</b>'
        for v in ticks(left, right, 4)
    )
    return (
        f'<figure class="rows"><figcaption>{text(title)}</figcaption>{"".join(body)}'
        f'<div class="row axis"><span></span><span class="track">{axis}</span>'
        "<span></span></div></figure>"
    )


def bars(
    rows: Sequence[tuple[str, float, str]], *, title: str, of: float | None = None
) -> str:
    """Horizontal bars from 0: (name, value, how the value is written)."""
    if not rows:
        return ""
    most = of or max((value for _, value, _ in rows), default=0) or 1
    body = "".join(
        f'<div class="row"><span class="name">{text(name)}</span>'
        f'<span class="track"><i class="bar" style="width:'
        f'{100 * max(value, 0) / most:.2f}%"></i></span>'
        f'<span class="value">{text(shown)}</span></div>'
        for name, value, shown in rows
    )
    return f'<figure class="rows"><figcaption>{text(title)}</figcaption>{body}</figure>'


def _grid(low: float, high: float) -> str:
    return "".join(
        f'<path class="{"base" if v == 0 else "grid"}"'
        f' d="M0 {HEIGHT * (high - v) / (high - low):.1f}H{WIDTH}"/>'
        for v in ticks(low, high, 4)
    )


def _figure(
    title: str,
    marks: str,
    *,
    x_ticks: Sequence[tuple[float, str]],
    y_ticks: Sequence[tuple[float, str]],
    x: str,
    y: str,
    legend: Sequence[str] = (),
    first: int = 0,
    wide: bool = False,
) -> str:
    keys = "".join(
        f'<span class="key c{(i + first) % 6}">{text(name)}</span>'
        for i, name in enumerate(legend)
    )
    ys = "".join(f'<b style="top:{100 * at:.2f}%">{s}</b>' for at, s in y_ticks)
    xs = "".join(f'<b style="left:{100 * at:.2f}%">{s}</b>' for at, s in x_ticks)
    return (
        f'<figure class="plot{" wide" if wide else ""}">'
        f"<figcaption>{text(title)}</figcaption>"
        f'<div class="legend"><span class="unit">{text(y)}</span>{keys}</div>'
        f'<div class="frame"><div class="ys">{ys}</div>'
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" preserveAspectRatio="none" role="img"'
        f' aria-label="{text(title)}: {text(y)} by {text(x)}">{marks}</svg>'
        f'<div class="xs">{xs}</div></div><div class="unit x">{text(x)}</div></figure>'
    )
