"""The sections of a report, each from its entries of the data; "" without any."""

from __future__ import annotations

from collections.abc import Sequence

from distill_jax.evaluation.significance import p_text
from distill_jax.report import curves, plots
from distill_jax.report.comparisons import tests_table
from distill_jax.report.marks import duration, fixed, number, signed, text
from distill_jax.report.parts import (
    DOT,
    Data,
    decisive_of,
    facts_list,
    is_main,
    name_of,
)


def head(data: Data) -> str:
    """The verdict, in words and then in figures."""
    decisive = decisive_of(data)
    kind, headline = "", data.get("headline") or data.get("title") or "Report"
    baseline, system = data.get("baseline"), data.get("system")
    if decisive is not None:
        after, before = (name_of(data, name) for name in (system, baseline))
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
        f'<p class="what">{DOT.join(what)}</p>'
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
            f"<div{now}><dt>{text(name_of(data, name))}</dt>"
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
    tested = {
        (c["system"], c["measure"]): c
        for c in data.get("significance") or ()
        if is_main(data, c)
    }
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
            f'<tr{now}><th scope="row">{text(name_of(data, system))}</th>'
            f"{''.join(cells)}</tr>"
        )
    heads = "".join(f'<th scope="col">{text(m)}</th>' for m in names)
    table = (
        f'<div class="scroll"><table><thead><tr><th scope="col">system</th>{heads}</tr>'
        f"</thead><tbody>{''.join(lines)}</tbody></table></div>"
    )
    primary = data.get("primary")
    rows = [
        (name_of(data, n), means[n][primary], *intervals[n][primary])
        for n in means
        if primary in means[n] and intervals.get(n, {}).get(primary)
    ]
    figure = plots.intervals(rows, title=f"{primary}, mean and 95% interval")
    made = len(data.get("significance") or ())
    note = (
        '<p class="note">In brackets: 95% bootstrap interval of the mean over queries.'
        + (
            f" Below: difference from {text(name_of(data, data.get('baseline')))};"
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
        said = f"{name_of(data, system)}: {tie['share']:.2%} of the pairs are tied"
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
        f'<tr><th scope="row">{text(name_of(data, s))}</th>'
        + "".join(f"<td>{text(number(values.get(n)))}</td>" for n in names)
        + "</tr>"
        for s, values in systems.items()
    )
    return (
        '<h3>Size and speed</h3><div class="scroll"><table><thead><tr>'
        f'<th scope="col">system</th>{heads}</tr></thead><tbody>{lines}</tbody></table>'
        "</div>"
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
    suspects = found.pop("suspects", None) or ()
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
    return body + facts_list(found) + _suspects(suspects)


def _suspects(suspects: Sequence[Data]) -> str:
    """Negatives that may be positives, for a person to judge."""
    items = "".join(
        f'<li><b>{text(s["query"])}</b> <span class="id">{text(s["doc_id"])}{DOT}rank'
        f" {text(s['rank'])}{DOT}{text(s['reason'])}{DOT}above the positive by"
        f" {number(s['above_positive'])}</span>"
        f'<span class="doc">{text(s["doc"])}</span></li>'
        for s in suspects
    )
    if not items:
        return ""
    return (
        f"<details><summary>{len(suspects)} removed candidates that may be relevant"
        f'</summary><div class="sides"><ol>{items}</ol></div></details>'
    )


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
    """The command, and the origin of all inputs."""
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
