"""``report.html``: one file that opens offline and begins with the verdict.

Nothing is loaded from anywhere: style and script are inside, plots are inline SVG, and
the page's own security policy forbids everything else. All of it can be read without
the script, on a phone, in dark and in light, and on paper.
"""

from __future__ import annotations

import base64
import functools
import hashlib
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any

from jinja2 import Environment, FunctionLoader, StrictUndefined, Template
from markupsafe import Markup

from distill_jax.evaluation.significance import p_text
from distill_jax.report import sections
from distill_jax.report.marks import fixed, number, printable, signed

# (anchor and name of the macro, heading, what the section shows or nothing)
_SECTIONS = (
    ("measures", "Measures", sections.measures),
    ("queries", "Query by query", sections.queries),
    ("rounds", "Rounds", sections.rounds),
    ("training", "Training", sections.training),
    ("teacher", "Teacher and student", sections.teacher),
    ("elsewhere", "Elsewhere", sections.elsewhere),
    ("calibration", "What scores mean", sections.calibration),
    ("mining", "Candidates", sections.mining),
    ("cost", "Cost and time", sections.cost),
    ("use", "Use it", sections.use),
    ("again", "Run it again", sections.again),
)


def page(data: Mapping[str, Any], metrics: Sequence[Mapping[str, Any]] = ()) -> str:
    """The whole page as text.

    Args:
        data: what ``report.data`` describes; every figure on the page comes from it.
        metrics: records of the training log.
    """
    given = {**data, "metrics": metrics}
    found = [(anchor, heading, make(given)) for anchor, heading, make in _SECTIONS]
    style, script = _asset("page.css"), _asset("page.js")
    return _template().render(
        head=sections.head(given),
        sections=[section for section in found if section[2]],
        style=Markup(style),
        script=Markup(script),
        script_digest=_sha256(script),
    )


@functools.cache
def _template() -> Template:
    environment = Environment(
        autoescape=True,
        finalize=printable,
        keep_trailing_newline=True,
        loader=FunctionLoader(_asset),
        lstrip_blocks=True,
        trim_blocks=True,
        undefined=StrictUndefined,
    )
    environment.filters.update(fixed=fixed, number=number, p_text=p_text, signed=signed)
    return environment.get_template("page.html.jinja")


def _asset(name: str) -> str:
    return (
        resources.files("distill_jax.report").joinpath(name).read_text(encoding="utf-8")
    )


def _sha256(script: str) -> str:
    summed = hashlib.sha256(script.encode()).digest()
    return "sha256-" + base64.b64encode(summed).decode()
