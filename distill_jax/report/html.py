"""``report.html``: one file that opens offline and begins with the verdict.

Nothing is loaded from anywhere: style and script are inside, plots are inline SVG, and
the page's own security policy forbids everything else. All of it can be read without
the script, on a phone, in dark and in light, and on paper.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from distill_jax.io.files import atomic_write
from distill_jax.report import generalisation, sections
from distill_jax.report.curves import read_metrics
from distill_jax.report.marks import text
from distill_jax.report.query_section import queries

# (anchor, heading, what makes the section's body; an empty body is left out)
_SECTIONS = (
    ("measures", "Measures", sections.measures),
    ("queries", "Query by query", queries),
    ("rounds", "Rounds", sections.rounds),
    ("training", "Training", sections.training),
    ("teacher", "Teacher and student", sections.teacher),
    ("elsewhere", "Elsewhere", generalisation.elsewhere),
    ("calibration", "What scores mean", generalisation.calibration),
    ("mining", "Candidates", sections.mining),
    ("cost", "Cost and time", sections.cost),
    ("use", "Use it", sections.use),
    ("again", "Run it again", sections.again),
)


def write_report(
    directory: str | Path,
    data: Mapping[str, Any],
    metrics: Sequence[Mapping[str, Any]] | None = None,
) -> Path:
    """Writes ``report.html`` into a MODEL_DIR and returns its path.

    Args:
      data: what ``report.data`` describes; every figure on the page comes from it.
      metrics: records of the training log; those of ``metrics.jsonl`` beside the
        report, unless given.
    """
    directory = Path(directory)
    if metrics is None:
        metrics = read_metrics(directory / "metrics.jsonl")
    path = directory / "report.html"
    with atomic_write(path) as out:
        out.write(page(data, metrics))
    return path


def page(data: Mapping[str, Any], metrics: Sequence[Mapping[str, Any]] = ()) -> str:
    """The whole page as text."""
    given = {**data, "metrics": metrics}
    bodies = [
        (anchor, heading, body)
        for anchor, heading, make in _SECTIONS
        if (body := make(given))
    ]
    links = "".join(f'<a href="#{anchor}">{h}</a>' for anchor, h, _ in bodies)
    main = "".join(
        f'<section id="{anchor}"><h2>{heading}</h2>{body}</section>'
        for anchor, heading, body in bodies
    )
    style, script = _asset("page.css"), _asset("page.js")
    policy = (
        "default-src 'none'; style-src 'unsafe-inline';"
        f" script-src '{_sha256(script)}'; base-uri 'none'; form-action 'none'"
    )
    title = text(data.get("title") or "distill_jax report")
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        f"<title>{title}</title>\n<style>{style}</style></head>\n<body>"
        f"<header>{sections.head(given)}<nav>{links}</nav></header>\n"
        f"<main>{main}</main>\n<footer>{sections.foot(given)}</footer>\n"
        f"<script>{script}</script></body></html>\n"
    )


def _asset(name: str) -> str:
    return (
        resources.files("distill_jax.report").joinpath(name).read_text(encoding="utf-8")
    )


def _sha256(script: str) -> str:
    summed = hashlib.sha256(script.encode()).digest()
    return "sha256-" + base64.b64encode(summed).decode()
