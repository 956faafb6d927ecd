"""Pieces of a page: escaped text, numbers as people write them, ticks of an axis."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

from markupsafe import Markup, escape


def printable(value: Any) -> Any:
    """A text without the characters that HTML forbids, escaped or not."""
    if not isinstance(value, str) or isinstance(value, Markup):
        return value
    shown = "".join(c if c >= " " or c in "\t\n" else "\ufffd" for c in value)
    return shown.encode("utf-8", "replace").decode()


def text(value: Any) -> Markup:
    """Anything as text of a page; documents and ids are hostile until escaped."""
    return escape(printable(str(value)))


def number(value: Any, digits: int = 4) -> str:
    """A number to ``digits`` significant places, without an exponent if it can."""
    if value is None or isinstance(value, (str, bool)):
        return "\u2013" if value is None else str(value)
    value = float(value)
    if not math.isfinite(value):
        return str(value)
    if value == int(value) and abs(value) < 1e15:
        return f"{int(value):,}"
    if 1e-3 <= abs(value) < 10**digits:
        whole = max(len(str(int(abs(value)))), 1) if abs(value) >= 1 else 1
        return f"{value:,.{max(digits - whole, 0)}f}"
    if abs(value) >= 10**digits:
        return f"{value:,.0f}"
    mantissa, exponent = (
        f"{value:.{digits - 1}g}".split("e")
        if abs(value) < 1e-4
        else (f"{value:.{digits - 1}g}", "")
    )
    return f"{mantissa}e{int(exponent)}" if exponent else mantissa


def fixed(value: Any, places: int = 4) -> str:
    """A measure: always the same places, so that columns line up."""
    return "\u2013" if value is None else f"{float(value):.{places}f}"


def between(bounds: Sequence[float] | None) -> str:
    """An interval of a measure; "" if there is none."""
    return f"[{bounds[0]:.3f}, {bounds[1]:.3f}]" if bounds else ""


def signed(value: float, places: int = 3) -> str:
    """A difference, with a real minus sign; a zero has none."""
    if round(value, places) == 0:
        return f"{0:.{places}f}"
    return f"{value:+.{places}f}".replace("-", "\u2212")


def duration(seconds: float) -> str:
    """``42 s``, ``3 min 05 s``, ``2 h 10 min``."""
    seconds = float(seconds)
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def ticks(low: float, high: float, most: int = 5) -> list[float]:
    """Round numbers within [low, high], at most about ``most`` of them."""
    if not (math.isfinite(low) and math.isfinite(high)) or high <= low:
        return [low]
    raw = (high - low) / max(most, 1)
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * m for m in (1, 2, 2.5, 5, 10) if power * m >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


def tick_text(value: float) -> str:
    """A tick's label, as short as it can be."""
    if value == 0:
        return "0"
    size = abs(value)
    if size >= 1e6 or size < 1e-3:
        mantissa, exponent = f"{value:.2e}".split("e")
        shown = mantissa.rstrip("0").rstrip(".") + f"e{int(exponent)}"
    elif size >= 1000 and value == int(value):
        shown = f"{int(value) / 1000:g}k"
    else:
        shown = f"{value:.6g}"
    return shown.replace("-", "\u2212")


def span(values: Iterable[float | None], pad: float = 0.06) -> tuple[float, float]:
    """A range that holds the finite values with some air."""
    finite = [v for v in values if v is not None and math.isfinite(v)]
    if not finite:
        return 0.0, 1.0
    low, high = min(finite), max(finite)
    if low == high:
        low, high = low - (abs(low) or 1) * 0.5, high + (abs(high) or 1) * 0.5
    air = (high - low) * pad
    return low - air, high + air


def thinned(points: Sequence[Any], most: int = 400) -> Sequence[Any]:
    """Evenly chosen points with the first and the last: a screen shows no more."""
    if len(points) <= most:
        return points
    return [points[round(i * (len(points) - 1) / (most - 1))] for i in range(most)]
