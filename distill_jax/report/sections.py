"""What the page shows of each section; ``page.html.jinja`` writes it.

Each function takes the data of a report and returns what its macro of the same name
needs; nothing where the data has nothing for it, and then the section is left out.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from distill_jax.evaluation.calibration import sentence
from distill_jax.evaluation.significance import p_text
from distill_jax.report import curves, plots
from distill_jax.report.data import decisive_of, is_main, is_significant
from distill_jax.report.marks import between, duration, fixed, number, signed

Data = Mapping[str, Any]
Shown = dict[str, Any] | None
Facts = list[tuple[str, str]]


def head(data: Data) -> dict[str, Any]:
    """The verdict, in words and then in figures."""
    decisive = decisive_of(data)
    kind, headline = "", data.get("headline") or data.get("title") or "Report"
    if decisive is not None:
        after, before = (_name(data, data.get(k)) for k in ("system", "baseline"))
        headline = f"{after} is not shown to differ from {before}"
        if is_significant(decisive):
            better = decisive["difference"] > 0
            kind = "good" if better else "bad"
            headline = (
                f"{after} {'beats' if better else 'is worse than'} {before} by"
                f" {abs(decisive['difference']):.3f} {data['primary']}"
            )
        headline = headline[:1].upper() + headline[1:]
    title, collection = data.get("title") or "", data.get("collection") or ""
    return {
        "title": title,
        "collection": "" if str(collection) in title else collection,
        "queries": decisive and decisive["queries"],
        "kind": kind,
        "headline": headline,
        "verdict": data.get("verdict"),
        "primary": data.get("primary"),
        "figures": _figures(data, decisive),
        "notices": data.get("notices") or (),
    }


def _figures(data: Data, decisive: Data | None) -> list[tuple[str, str, str, bool]]:
    """[(name, value, small print, whether it is what the verdict is about)]."""
    means, primary = data.get("measures") or {}, data.get("primary")
    if not primary:
        return []
    shown = [n for n in means if primary in means[n]]
    if len(shown) > 4:
        keep = {"first_stage", data.get("baseline"), data.get("system")}
        shown = [name for name in shown if name in keep]
    found = [
        (
            _name(data, name),
            fixed(means[name][primary], 3),
            between(_interval(data, name, primary)),
            name == data.get("system"),
        )
        for name in shown
    ]
    if decisive is not None:
        level = f"[{signed(decisive['low'])}, {signed(decisive['high'])}]"
        counts = f"{decisive['wins']} / {decisive['losses']}"
        tied = f"{decisive['ties']} tied, {p_text(decisive['p_holm'])}"
        found += [
            ("Difference", signed(decisive["difference"]), level, False),
            ("Queries won / lost", counts, tied, False),
        ]
    return found


def measures(data: Data) -> Shown:
    """The table of means, the plot of intervals, ties, and all tests made."""
    means, primary = data.get("measures") or {}, data.get("primary")
    if not means:
        return None
    names = _keys(means.values())
    tests = data.get("significance") or ()
    tested = {(c["system"], c["measure"]): c for c in tests if is_main(data, c)}
    rows = [
        (
            _name(data, system),
            [
                (
                    fixed(values.get(measure)),
                    between(_interval(data, system, measure)),
                    *_change(tested.get((system, measure))),
                )
                for measure in names
            ],
        )
        for system, values in means.items()
    ]
    drawn = [
        (_name(data, n), means[n][primary], *interval)
        for n in means
        if primary in means[n] and (interval := _interval(data, n, primary))
    ]
    systems = data.get("systems") or {}
    title = f"{primary}, mean and 95% interval"
    return {
        "names": names,
        "rows": rows,
        "now": _name(data, data.get("system")),
        "has_intervals": bool(data.get("intervals")),
        "baseline": _name(data, data.get("baseline")),
        "figure": plots.intervals(drawn, title=title) if len(drawn) > 1 else None,
        "ties": " ".join(_ties(data)),
        "sizes": _keys(systems.values()),
        "systems": [(_name(data, system), row) for system, row in systems.items()],
        "tests": [(f"{c['system']} \u2212 {c['baseline']}", c) for c in tests],
    }


def _change(comparison: Data | None) -> tuple[str, str]:
    """The difference from the baseline and its class; a star if it is significant."""
    if comparison is None:
        return "", ""
    difference = comparison["difference"]
    if not is_significant(comparison):
        return signed(difference, 4), ""
    return f"{signed(difference, 4)}*", "good" if difference > 0 else "bad"


def _ties(data: Data) -> Iterable[str]:
    for system, tie in (data.get("ties") or {}).items():
        shown = f"{_name(data, system)}: {tie['share']:.2%} of the pairs are tied"
        bounds = [
            f"{m} between {fixed(tie['worst'][m])} and {fixed(tie['best'][m])}"
            for m in tie.get("best") or {}
            if m in (tie.get("worst") or {})
        ]
        if tie["share"] > 0.01 and bounds:
            shown += "; the order of ties allows " + ", ".join(bounds)
        yield shown + "."


def queries(data: Data) -> Shown:
    """Differences as sorted bars, with the ranked lists; lists alone if unjudged."""
    per_query = data.get("queries") or {}
    values = per_query.get("values") or {}
    baseline, system = data.get("baseline"), data.get("system")
    examples = list(data.get("examples") or ())
    if baseline not in values or system not in values:
        listed = [_example(data, example, "") for example in examples]
        shown = {"figure": None, "unjudged": listed, "groups": ()}
        return shown if listed else None
    before, after = values[baseline], values[system]
    order = sorted(
        (after[e["query_id"]] - before[e["query_id"]], i)
        for i, e in enumerate(examples)
    )
    groups = (
        ("Largest gains", [i for gain, i in reversed(order) if gain > 0], 5),
        ("Largest losses", [i for gain, i in order if gain < 0], 5),
        # What did not change is the least interesting: all of it is folded.
        ("No difference", [i for gain, i in order if gain == 0], 0),
    )
    places = {example["query_id"]: f"q{i}" for i, example in enumerate(examples)}
    bars = [(q, after[q] - before[q], places.get(q)) for q in after if q in before]
    names = _name(data, system), _name(data, baseline)
    measure = per_query.get("measure", "")
    return {
        "figure": plots.differences(
            bars, title=f"{measure} of {names[0]} minus {names[1]}", y="difference"
        ),
        "gains": sum(v > 0 for _, v, _ in bars),
        "losses": sum(v < 0 for _, v, _ in bars),
        "same": sum(v == 0 for _, v, _ in bars),
        "groups": [
            (title, [_example(data, examples[i], f"q{i}") for i in chosen], open_)
            for title, chosen, open_ in groups
            if chosen
        ],
        "unjudged": (),
    }


def _example(data: Data, example: Data, place: str) -> dict[str, Any]:
    values = example["values"]
    gain = values[data["system"]] - values[data["baseline"]] if place else 0.0
    return {
        "id": example["query_id"],
        "query": example["query"],
        "place": place,
        "gain": gain,
        "sides": [
            (_name(data, name), values.get(name), docs)
            for name, docs in example["lists"].items()
        ],
    }


def rounds(data: Data) -> Shown:
    """Measures per round, as lines and as a table."""
    made: list[Data] = list(data.get("rounds") or ())
    names = _keys(r["measures"] for r in made)
    names.sort(key=lambda m: m != data.get("primary"))
    figures = [
        plots.lines(
            {m: [(float(r["round"]), r["measures"].get(m)) for r in made]},
            title=f"{m} per round",
            x="round",
            y="mean over queries",
            dots=True,
        )
        for m in names[:4]
    ]
    rows = [(r["round"], r["measures"]) for r in made]
    return {"plots": figures, "names": names, "rows": rows} if made else None


def training(data: Data) -> Shown:
    """The curves of the log."""
    figures = curves.plots(data["metrics"])
    return {"plots": figures} if figures else None


def teacher(data: Data) -> Shown:
    """What the labels are like, and how student and teacher score."""
    report = dict(data.get("teacher") or {})
    warnings = report.pop("warnings", ())
    shapes = dict(data.get("scores") or {})
    mass = report.pop("histogram", None)
    if mass and "teacher" not in shapes:
        shapes = {"teacher": mass, **shapes}
    figures = [
        # Two models have two scales: each has its own axis.
        plots.histograms(
            {name: shape}, title=f"Scores of the {name}", x="score", colour=i
        )
        for i, (name, shape) in enumerate(shapes.items())
    ]
    return _if_any(
        warnings=warnings, plots=[f for f in figures if f], facts=_facts(report)
    )


def elsewhere(data: Data) -> Shown:
    """Other collections before and after training."""
    found = data.get("elsewhere") or {}
    if not found:
        return None
    return {"measure": next(iter(found.values()))["measure"], "rows": found.items()}


def calibration(data: Data) -> Shown:
    """What scores mean across queries, and the threshold that is suggested."""
    found = dict(data.get("calibration") or {})
    if not found:
        return None
    curve = found.pop("curve")
    figure = plots.lines(
        {"risk": list(zip(curve["coverage"], curve["risk"]))},
        title="Risk by coverage",
        x="share of queries that are answered",
        y="share of first documents that are not relevant",
    )
    return {"threshold": sentence(found), "figure": figure, "facts": _facts(found)}


def mining(data: Data) -> Shown:
    """The funnel of candidates, and what the sources have in common."""
    found = dict(data.get("mining") or {})
    steps = found.pop("funnel", None) or []
    most = max((step["count"] for step in steps), default=0) or 1
    counts = [
        (s["name"], s["count"], f"{number(s['count'])} ({s['count'] / most:.0%})")
        for s in steps
    ]
    return _if_any(
        figure=plots.bars(counts, title="What is left after each step"),
        rates=found.pop("intersection", None) or {},
        suspects=found.pop("suspects", None) or (),
        facts=_facts(found),
    )


def cost(data: Data) -> Shown:
    """Time by part, and what else was spent."""
    spent = dict(data.get("cost") or {})
    parts = spent.pop("parts", None) or {}
    times = [(k.replace("_", " "), float(v), duration(v)) for k, v in parts.items()]
    return _if_any(figure=plots.bars(times, title="Time by part"), facts=_facts(spent))


def use(data: Data) -> Shown:
    """How to load what was exported."""
    export = dict(data.get("export") or {})
    return _if_any(code=export.pop("code", None), facts=_facts(export))


def again(data: Data) -> Shown:
    """The command, and the origin of all inputs."""
    facts = _facts(data.get("provenance") or {})
    return _if_any(code=data.get("again"), facts=facts)


def _if_any(**shown: Any) -> Shown:
    return shown if any(shown.values()) else None


def _keys(mappings: Iterable[Mapping[str, Any]]) -> list[str]:
    return list(dict.fromkeys(key for mapping in mappings for key in mapping))


def _name(data: Data, system: Any) -> str:
    return str((data.get("names") or {}).get(system) or system or "").replace("_", " ")


def _interval(data: Data, system: str, measure: Any) -> tuple[float, float] | None:
    return (data.get("intervals") or {}).get(system, {}).get(measure)


def _facts(facts: Mapping[str, Any], prefix: str = "") -> Facts:
    """Names and values; the names of nested ones are joined by a dot."""
    found: Facts = []
    for key, value in facts.items():
        name = f"{prefix}{key}".replace("_", " ")
        if isinstance(value, Mapping):
            found += _facts(value, f"{prefix}{key}.")
        elif value is not None and value != "":
            found.append((name, _plain(name, value)))
    return found


def _plain(name: str, value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (int, float)):
        last = name.rsplit(".", 1)[-1]
        timed = last in ("seconds", "wall") or last.endswith(" seconds")
        return duration(value) if timed else number(value)
    if isinstance(value, (list, tuple)):
        return ", ".join(_plain("", v) for v in value)
    return str(value)
