"""Query by query: differences as sorted bars, with the ranked lists."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from distill_jax.report import plots
from distill_jax.report.marks import fixed, number, signed, text
from distill_jax.report.parts import DOT, Data, name_of

_NOTHING = '<p class="note">Nothing was found.</p>'


def queries(data: Data) -> str:
    """Differences as sorted bars, with the ranked lists."""
    per_query = data.get("queries") or {}
    values = per_query.get("values") or {}
    baseline, system = data.get("baseline"), data.get("system")
    if baseline not in values or system not in values:
        return _unmeasured(data)
    before, after = values[baseline], values[system]
    examples = list(data.get("examples") or ())
    places: dict[str, str] = {
        example["query_id"]: f"q{i}" for i, example in enumerate(examples)
    }
    bars = [(q, after[q] - before[q], places.get(q)) for q in after if q in before]
    names = name_of(data, system), name_of(data, baseline)
    figure = plots.differences(
        bars,
        title=f"{per_query.get('measure', '')} of {names[0]} minus {names[1]}",
        y="difference",
    )
    gains = sum(v > 0 for _, v, _ in bars)
    losses = sum(v < 0 for _, v, _ in bars)
    legend = (
        f'<p class="note"><span class="swatch gain"></span>{gains} queries gain'
        f' &nbsp; <span class="swatch loss"></span>{losses} lose &nbsp;'
        f" {len(bars) - gains - losses} stay the same."
        + (' <span class="screen">Click a bar to read the query.</span>'
           if examples else "")
        + "</p>"
    )  # fmt: skip
    body = figure + legend
    if examples:
        order = sorted(
            examples, key=lambda e: after[e["query_id"]] - before[e["query_id"]]
        )
        body += '<div id="picked" tabindex="-1" aria-live="polite"></div>'
        for title, chosen in (
            ("Largest gains", [e for e in reversed(order) if _gain(e, data) > 0]),
            ("Largest losses", [e for e in order if _gain(e, data) < 0]),
            ("No difference", [e for e in order if _gain(e, data) == 0]),
        ):
            body += _examples(title, chosen, places, data)
    return body


def _unmeasured(data: Data) -> str:
    """The lists of unjudged queries."""
    return "".join(
        f"<details><summary>{text(example['query'] or example['query_id'])}</summary>"
        f'<div><div class="sides">{_sides(example, data)}</div></div></details>'
        for example in data.get("examples") or ()
    )


def _sides(example: Data, data: Data) -> str:
    sides = []
    for name, docs in example["lists"].items():
        value = example["values"].get(name)
        head = name_of(data, name) + ("" if value is None else f", {fixed(value, 3)}")
        body = f"<ol>{''.join(map(_doc, docs))}</ol>" + ("" if docs else _NOTHING)
        sides.append(f"<div><h4>{text(head)}</h4>{body}</div>")
    return "".join(sides)


def _gain(example: Data, data: Data) -> float:
    values = example["values"]
    return values[data["system"]] - values[data["baseline"]]


def _examples(
    title: str, chosen: Sequence[Data], places: Mapping[str, str], data: Data
) -> str:
    if not chosen:
        return ""
    # What did not change is the least interesting: all of it is folded.
    most = 0 if _gain(chosen[0], data) == 0 else 5
    shown = "".join(_example(e, places[e["query_id"]], data) for e in chosen[:most])
    rest = "".join(_example(e, places[e["query_id"]], data) for e in chosen[most:])
    left = f"{len(chosen) - most} more" if most else f"{len(chosen)} queries"
    more = (
        f"<details><summary>{left}</summary><div>{rest}</div></details>" if rest else ""
    )
    return f"<h3>{title}</h3>{shown}{more}"


def _example(example: Data, place: str, data: Data) -> str:
    gain = _gain(example, data)
    kind = "good" if gain > 0 else "bad" if gain < 0 else ""
    sides = _sides(example, data)
    return (
        f'<details><summary><span class="by {kind}">{signed(gain)}</span>'
        f" {text(example['query'] or example['query_id'])}</summary>"
        f'<div id="{place}"><p class="query">{text(example["query"])}</p>'
        f'<p class="id">query {text(example["query_id"])}</p>'
        f'<div class="sides">{sides}</div></div></details>'
    )


def _doc(doc: Data) -> str:
    grade = doc.get("grade")
    if grade is None:
        badge = '<span class="grade no">not judged</span>'
    elif grade > 0:
        badge = f'<span class="grade yes">relevant {text(grade)}</span>'
    else:
        badge = f'<span class="grade no">grade {text(grade)}</span>'
    score = doc.get("score")
    shown = "" if score is None else f"{DOT}score {number(score)}"
    title = f"<b>{text(doc['title'])}</b> " if doc.get("title") else ""
    return (
        f'<li>{title}{badge} <span class="id">{text(doc["doc_id"])}{shown}</span>'
        f'<span class="doc">{text(doc.get("text") or "")}</span></li>'
    )
