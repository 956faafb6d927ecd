"""The sections of a report, each from its entries of the data; "" without any."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from distill_jax.ir.significance import p_text
from distill_jax.report import curves, plots
from distill_jax.report.comparisons import tests_table
from distill_jax.report.marks import duration, fixed, number, signed, text

Data = Mapping[str, Any]

_SECONDS = ("seconds", "wall")
_DOT = " \u00b7 "
_NOTHING = '<p class="note">Nothing was found.</p>'


def head(data: Data) -> str:
    """The verdict, in words and then in figures."""
    decisive = _decisive(data)
    kind, headline = "", data.get("headline") or data.get("title") or "Report"
    baseline, system = data.get("baseline"), data.get("system")
    if decisive is not None:
        after, before = (_name(data, name) for name in (system, baseline))
        if decisive["p_holm"] is not None and decisive["p_holm"] < 0.05:
            better = decisive["difference"] > 0
            kind = "good" if better else "bad"
            headline = (
                f"{after} {'beats' if better else 'is worse than'} {before} by"
                f" {abs(decisive['difference']):.3f} {data['primary']}"
            )
        else:
            headline = f"{after} is not shown to differ from {before}"
        headline = headline[:1].upper() + headline[1:]
    what = [f"<b>{text(data.get('title') or 'distill_jax')}</b>"]
    if data.get("collection"):
        what.append(f"collection <b>{text(data['collection'])}</b>")
    if decisive is not None:
        what.append(f"{decisive['queries']} queries")
    verdict = data.get("verdict")
    return (
        f'<p class="what">{_DOT.join(what)}</p>'
        f'<h1 class="{kind}">{text(headline)}</h1>'
        + (f'<p class="verdict">{text(verdict)}</p>' if verdict else "")
        + _facts(data, decisive)
        + "".join(f'<p class="warn">{text(n)}</p>' for n in data.get("notices") or ())
    )


def _facts(data: Data, decisive: Data | None) -> str:
    means, primary = data.get("measures") or {}, data.get("primary")
    if not primary:
        return ""
    shown = [n for n in means if primary in means[n]]
    if len(shown) > 4:
        keep = {"first_stage", data.get("baseline"), data.get("system")}
        shown = [name for name in shown if name in keep]
    cells = []
    for name in shown:
        low_high = (data.get("intervals") or {}).get(name, {}).get(primary)
        small = f"[{low_high[0]:.3f}, {low_high[1]:.3f}]" if low_high else ""
        now = ' class="now"' if name == data.get("system") else ""
        cells.append(
            f"<div{now}><dt>{text(_name(data, name))}</dt>"
            f"<dd>{fixed(means[name][primary], 3)}<small>{small}</small></dd></div>"
        )
    if decisive is not None:
        level = f"[{signed(decisive['low'])}, {signed(decisive['high'])}]"
        cells.append(
            f"<div><dt>Difference</dt><dd>{signed(decisive['difference'])}"
            f"<small>{level}</small></dd></div>"
            f"<div><dt>Queries won / lost</dt><dd>{decisive['wins']} /"
            f" {decisive['losses']}<small>{decisive['ties']} tied,"
            f" {p_text(decisive['p_holm'])}</small></dd></div>"
        )
    return (
        f'<dl class="facts">{"".join(cells)}</dl><p class="note">{text(primary)}, mean'
        " over queries with its 95% interval.</p>"
    )


def measures(data: Data) -> str:
    """The table of means, the plot of intervals, ties, and all tests made."""
    means = data.get("measures") or {}
    if not means:
        return ""
    names = list(dict.fromkeys(m for system in means.values() for m in system))
    intervals = data.get("intervals") or {}
    tested = {(c["system"], c["measure"]): c for c in data.get("significance") or ()}
    lines = []
    for system, values in means.items():
        cells = []
        for measure in names:
            low_high = intervals.get(system, {}).get(measure)
            small = ""
            if low_high:
                small = f"<small>[{low_high[0]:.3f}, {low_high[1]:.3f}]</small>"
            cells.append(
                f"<td>{fixed(values.get(measure))}{small}"
                f"{_delta(tested.get((system, measure)))}</td>"
            )
        now = ' class="now"' if system == data.get("system") else ""
        lines.append(
            f'<tr{now}><th scope="row">{text(_name(data, system))}</th>'
            f"{''.join(cells)}</tr>"
        )
    heads = "".join(f'<th scope="col">{text(m)}</th>' for m in names)
    table = (
        f'<div class="scroll"><table><thead><tr><th scope="col">system</th>{heads}</tr>'
        f"</thead><tbody>{''.join(lines)}</tbody></table></div>"
    )
    primary = data.get("primary")
    rows = [
        (_name(data, n), means[n][primary], *intervals[n][primary])
        for n in means
        if primary in means[n] and intervals.get(n, {}).get(primary)
    ]
    figure = plots.intervals(rows, title=f"{primary}, mean and 95% interval")
    made = len(data.get("significance") or ())
    note = (
        '<p class="note">In brackets: 95% bootstrap interval of the mean over queries.'
        + (
            f" Below: difference from {text(_name(data, data.get('baseline')))};"
            " * where p &lt; 0.05 by a paired t-test,"
            f" Holm-corrected over the {made} tests made."
            if made
            else ""
        )
        + "</p>"
    )
    return (
        table + (note if intervals else "") + (figure if len(rows) > 1 else "")
        + _ties(data) + _systems(data) + tests_table(data)
    )  # fmt: skip


def _delta(comparison: Data | None) -> str:
    if comparison is None:
        return ""
    significant = comparison["p_holm"] is not None and comparison["p_holm"] < 0.05
    kind = ""
    if significant:
        kind = ' class="good"' if comparison["difference"] > 0 else ' class="bad"'
    star = "*" if significant else ""
    return f"<small{kind}>{signed(comparison['difference'], 4)}{star}</small>"


def _ties(data: Data) -> str:
    lines = []
    for system, tie in (data.get("ties") or {}).items():
        said = f"{_name(data, system)}: {tie['share']:.2%} of the pairs are tied"
        bounds = [
            f"{m} between {fixed(tie['worst'][m])} and {fixed(tie['best'][m])}"
            for m in tie.get("best") or {}
            if m in (tie.get("worst") or {})
        ]
        if tie["share"] > 0.01 and bounds:
            said += "; the order of ties allows " + ", ".join(bounds)
        lines.append(said + ".")
    return f'<p class="note">{text(" ".join(lines))}</p>' if lines else ""


def _systems(data: Data) -> str:
    systems = data.get("systems") or {}
    names = list(dict.fromkeys(k for values in systems.values() for k in values))
    if not names:
        return ""
    heads = "".join(f'<th scope="col">{text(n.replace("_", " "))}</th>' for n in names)
    lines = "".join(
        f'<tr><th scope="row">{text(_name(data, s))}</th>'
        + "".join(f"<td>{text(number(values.get(n)))}</td>" for n in names)
        + "</tr>"
        for s, values in systems.items()
    )
    return (
        '<h3>Size and speed</h3><div class="scroll"><table><thead><tr>'
        f'<th scope="col">system</th>{heads}</tr></thead><tbody>{lines}</tbody></table>'
        "</div>"
    )


def queries(data: Data) -> str:
    """Differences as sorted bars, and the lists behind them."""
    per_query = data.get("queries") or {}
    values = per_query.get("values") or {}
    baseline, system = data.get("baseline"), data.get("system")
    if baseline not in values or system not in values:
        return ""
    before, after = values[baseline], values[system]
    examples = list(data.get("examples") or ())
    places: dict[str, str] = {
        example["query_id"]: f"q{i}" for i, example in enumerate(examples)
    }
    bars = [(q, after[q] - before[q], places.get(q)) for q in after if q in before]
    names = _name(data, system), _name(data, baseline)
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
    sides = "".join(
        f"<div><h4>{text(_name(data, name))}, {fixed(example['values'].get(name), 3)}"
        f"</h4><ol>{''.join(map(_doc, docs))}</ol>"
        f"{'' if docs else _NOTHING}</div>"
        for name, docs in example["lists"].items()
    )
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
    shown = "" if score is None else f"{_DOT}score {number(score)}"
    title = f"<b>{text(doc['title'])}</b> " if doc.get("title") else ""
    return (
        f'<li>{title}{badge} <span class="id">{text(doc["doc_id"])}{shown}</span>'
        f'<span class="doc">{text(doc.get("text") or "")}</span></li>'
    )


def rounds(data: Data) -> str:
    """Measures per round, as lines and as a table."""
    made: list[Data] = list(data.get("rounds") or ())
    if not made:
        return ""
    names = list(dict.fromkeys(m for r in made for m in r["measures"]))
    primary = data.get("primary")
    names.sort(key=lambda m: m != primary)
    figures = "".join(
        plots.lines(
            {m: [(float(r["round"]), r["measures"].get(m)) for r in made]},
            title=f"{m} per round",
            x="round",
            y="mean over queries",
            dots=True,
        )
        for m in names[:4]
    )
    heads = "".join(f'<th scope="col">{text(m)}</th>' for m in names)
    lines = "".join(
        f'<tr><th scope="row">{text(r["round"])}</th>'
        + "".join(f"<td>{fixed(r['measures'].get(m))}</td>" for m in names)
        + "</tr>"
        for r in made
    )
    return (
        f'<div class="plots">{figures}</div><div class="scroll"><table><thead><tr>'
        f'<th scope="col">round</th>{heads}</tr></thead><tbody>{lines}</tbody></table>'
        "</div>"
    )


def training(data: Data) -> str:
    """The curves of the log."""
    figures = curves.plots(data.get("metrics") or ())
    return f'<div class="plots">{"".join(figures)}</div>' if figures else ""


def teacher(data: Data) -> str:
    """What the labels are like, and how student and teacher score."""
    report = dict(data.get("teacher") or {})
    warnings = "".join(
        f'<p class="warn">{text(w)}</p>' for w in report.pop("warnings", ())
    )
    shapes = dict(data.get("scores") or {})
    mass = report.pop("histogram", None)
    if mass and "teacher" not in shapes:
        shapes = {"teacher": mass, **shapes}
    figures = "".join(
        # Two models have two scales: each has its own axis.
        plots.histograms({name: shape}, title=f"Scores of the {name}", x="score",
                         colour=i)
        for i, (name, shape) in enumerate(shapes.items())
    )  # fmt: skip
    figures = f'<div class="plots">{figures}</div>' if figures else ""
    return warnings + figures + facts_list(report)


def mining(data: Data) -> str:
    """The funnel of candidates, and what the sources have in common."""
    found = dict(data.get("mining") or {})
    steps = found.pop("funnel", None) or []
    rates = found.pop("intersection", None) or {}
    most = max((step["count"] for step in steps), default=0)
    body = plots.bars(
        [
            (s["name"], s["count"],
             f"{number(s['count'])} ({s['count'] / max(most, 1):.0%})")
            for s in steps
        ],
        title="What is left after each step",
    )  # fmt: skip
    if rates:
        heads = "".join(f'<th scope="col">{text(a)}</th>' for a in rates)
        lines = "".join(
            f'<tr><th scope="row">{text(a)}</th>'
            + "".join(f"<td>{fixed(rates[a].get(b), 2)}</td>" for b in rates)
            + "</tr>"
            for a in rates
        )
        body += (
            '<h3>What the sources have in common</h3><div class="scroll"><table><thead>'
            f"<tr><th></th>{heads}</tr></thead><tbody>{lines}</tbody></table></div>"
            '<p class="note">Share of the documents of two top lists that are in both:'
            " low rates mean that sources complement each other.</p>"
        )
    return body + facts_list(found)


def cost(data: Data) -> str:
    """Time by part, and what else was spent."""
    spent = dict(data.get("cost") or {})
    parts = spent.pop("parts", None) or {}
    body = plots.bars(
        [(k.replace("_", " "), float(v), duration(v)) for k, v in parts.items()],
        title="Time by part",
    )
    return body + facts_list(spent)


def use(data: Data) -> str:
    """How to load what was exported."""
    export = dict(data.get("export") or {})
    code = export.pop("code", None)
    shown = f"<pre><code>{text(code)}</code></pre>" if code else ""
    return shown + facts_list(export)


def again(data: Data) -> str:
    """The command, and where everything came from."""
    command = data.get("again")
    shown = f"<pre><code>{text(command)}</code></pre>" if command else ""
    made = facts_list(dict(data.get("provenance") or {}))
    heading = "<h3>Where it came from</h3>" if made else ""
    return shown + heading + made


def foot(data: Data) -> str:
    """Who made the page, and where its figures are."""
    return (
        "Made by distill_jax. The figures of this page are in report.json and"
        " metrics.jsonl beside it; measures follow trec_eval."
    )


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


def _decisive(data: Data) -> Data | None:
    """The comparison that the verdict is about."""
    wanted = data.get("system"), data.get("primary")
    for comparison in data.get("significance") or ():
        if (comparison["system"], comparison["measure"]) == wanted:
            return comparison
    return None


def _name(data: Data, system: Any) -> str:
    return str((data.get("names") or {}).get(system) or system or "").replace("_", " ")
