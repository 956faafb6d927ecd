"""The table of all significance tests."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from distill_jax.report.marks import signed, text


def tests_table(data: Mapping[str, Any]) -> str:
    """A folded table of every comparison; "" if there is none."""
    comparisons = data.get("significance") or ()
    if not comparisons:
        return ""
    heads = (
        "comparison", "measure", "difference", "95% interval", "p, t-test",
        "p, randomisation", "p, Holm", "wins / ties / losses",
    )  # fmt: skip
    lines = "".join(
        f'<tr><th scope="row">{text(c["system"])} \u2212 {text(c["baseline"])}</th>'
        f"<td>{text(c['measure'])}</td><td>{signed(c['difference'], 4)}</td>"
        f"<td>[{signed(c['low'])}, {signed(c['high'])}]</td>"
        f"<td>{_p(c['p_t'])}</td><td>{_p(c['p_randomisation'])}</td>"
        f"<td>{_p(c['p_holm'])}</td>"
        f"<td>{c['wins']} / {c['ties']} / {c['losses']}</td></tr>"
        for c in comparisons
    )
    row = "".join(f'<th scope="col">{head}</th>' for head in heads)
    return (
        f"<details><summary>All {len(comparisons)} tests</summary><div>"
        f'<div class="scroll"><table><thead><tr>{row}</tr></thead>'
        f"<tbody>{lines}</tbody></table></div></div></details>"
    )


def _p(value: float | None) -> str:
    if value is None:
        return "\u2013"
    return "&lt; 0.0001" if value < 1e-4 else f"{value:.4f}"
