"""Sections on what holds beyond the test queries: other collections, other queries."""

from __future__ import annotations

from distill_jax.evaluation.calibration import sentence
from distill_jax.evaluation.significance import p_text
from distill_jax.report import plots
from distill_jax.report.marks import fixed, signed, text
from distill_jax.report.parts import Data, facts_list


def elsewhere(data: Data) -> str:
    """Other collections before and after training."""
    found = data.get("elsewhere") or {}
    lines = "".join(
        f'<tr><th scope="row">{text(name)}</th><td>{fixed(row["before"])}</td>'
        f"<td>{fixed(row['after'])}</td><td>{signed(row['difference'], 4)}</td>"
        f"<td>{text(p_text(row['p']))}</td><td>{row['queries']}</td></tr>"
        for name, row in found.items()
    )
    if not lines:
        return ""
    measure = next(iter(found.values()))["measure"]
    heads = "".join(
        f'<th scope="col">{text(head)}</th>'
        for head in ("collection", "before", "after", "difference", "Holm", "queries")
    )
    return (
        f'<div class="scroll"><table><thead><tr>{heads}</tr></thead><tbody>{lines}'
        f'</tbody></table></div><p class="note">{text(measure)} on collections that '
        "the student was not trained on.</p>"
    )


def calibration(data: Data) -> str:
    """What scores mean across queries, and the threshold that is suggested."""
    found = dict(data.get("calibration") or {})
    if not found:
        return ""
    curve = found.pop("curve")
    figure = plots.lines(
        {"risk": list(zip(curve["coverage"], curve["risk"]))},
        title="Risk by coverage",
        x="share of queries that are answered",
        y="share of first documents that are not relevant",
        dots=False,
    )
    said = sentence(found)
    return (
        f"<p>Threshold: {text(said)}.</p>"
        f'<div class="plots">{figure}</div>' + facts_list(found)
    )
