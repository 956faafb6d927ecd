"""What several sections need: names of systems, the decisive test, lists of facts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from distill_jax.report.marks import duration, number, text

Data = Mapping[str, Any]

DOT = " \u00b7 "
_SECONDS = ("seconds", "wall")


def facts_list(facts: Mapping[str, Any]) -> str:
    """Names and values, nested ones joined by a dot."""
    lines = "".join(
        f"<div><dt>{text(name)}</dt><dd>{text(_plain(name, value))}</dd></div>"
        for name, value in _flat(facts)
        if value is not None and value != ""
    )
    return f'<dl class="list">{lines}</dl>' if lines else ""


def _flat(facts: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for name, value in facts.items():
        if isinstance(value, Mapping):
            found += _flat(value, f"{prefix}{name}.")
        else:
            found.append((f"{prefix}{name}".replace("_", " "), value))
    return found


def _plain(name: str, value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (int, float)):
        last = name.rsplit(".", 1)[-1]
        if last in _SECONDS or last.endswith(" seconds"):
            return duration(value)
        return number(value)
    if isinstance(value, (list, tuple)):
        return ", ".join(_plain("", v) for v in value)
    return str(value)


def decisive_of(data: Data) -> Data | None:
    """The comparison that the verdict is about."""
    wanted = data.get("system"), data.get("primary")
    for comparison in data.get("significance") or ():
        if (comparison["system"], comparison["measure"]) == wanted and is_main(
            data, comparison
        ):
            return comparison
    return None


def is_main(data: Data, comparison: Data) -> bool:
    """Whether a test is against the baseline that the tables name."""
    named = data.get("baseline") or comparison["baseline"]
    return comparison["baseline"] == named


def name_of(data: Data, system: Any) -> str:
    return str((data.get("names") or {}).get(system) or system or "").replace("_", " ")
