"""The report: its figures are the data's, and hostile texts stay texts."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser

import numpy as np
import pytest

from distill_jax import report
from distill_jax.collections.collection import Collection, Queries
from distill_jax.collections.qrels import Qrels
from distill_jax.io.errors import UserError
from distill_jax.report import curves
from distill_jax.report.marks import duration, number, signed, tick_text, ticks
from distill_jax.runs.run import Run

HOSTILE = (
    "</script><script>alert(1)</script><img src=x onerror=alert(2)>\"'&\x00\ud800"
    "{{ 6 * 7 }}{% for %}{# gone #}"
)


def per_query(n=40):
    rng = np.random.default_rng(0)
    ids = [f"q{i}" for i in range(n)]
    base = rng.uniform(0, 0.8, n)

    def system(shift):
        values = np.clip(base + shift + rng.normal(0, 0.05, n), 0, 1)
        return {
            "nDCG@10": dict(zip(ids, values.tolist())),
            "RR@10": dict(zip(ids, (values**2).tolist())),
        }

    return {"first_stage": system(0), "before": system(0), "after": system(0.1)}


def full_data():
    collection = Collection(
        ["d0", "d<1>", "d2"], ["plain", HOSTILE.replace("\ud800", ""), "x" * 5000]
    )
    ids = [f"q{i}" for i in range(40)]
    queries = Queries(ids, [f"query {i} <b>" for i in range(40)])
    qrels = Qrels({"q0": {"d0": 2, "d2": 0}})
    lists = [[("d0", 2.5), ("d<1>", 1.0), ("d2", -3.0)]] * 40
    runs = {n: Run.from_lists(ids, lists) for n in ("before", "after")}
    data = report.compare_systems(per_query())
    return data | {
        "title": HOSTILE,
        "collection": "beir:<toy>",
        "examples": report.examples(data, runs, queries, collection, qrels, most=10),
        "rounds": [{"round": i, "measures": {"nDCG@10": 0.5 + i / 10}} for i in (0, 1)],
        "teacher": {
            "lists": 40,
            "warnings": [HOSTILE],
            "histogram": {"edges": [0, 1, 2], "counts": [3, 4]},
        },
        "scores": {"student": {"edges": [-1, 0, 1], "counts": [1, 2]}},
        "mining": {
            "funnel": report.funnel(retrieved=1000, kept=250),
            "suspects": [
                {
                    "query": "why <b>",
                    "doc_id": "d7",
                    "doc": HOSTILE,
                    "rank": 3,
                    "reason": "teacher",
                    "above_positive": 0.125,
                }
            ],
            "intersection": {"a<": {"a<": 1.0, "b": None}, "b": {"a<": None, "b": 1}},
        },
        "ties": {"after": {"share": 0.02, "best": {"AP": 0.5}, "worst": {"AP": 0.4}}},
        "cost": {"seconds": 7805, "parts": {"training": 7000, "mining": 805}},
        "systems": {"after": {"parameters": 22_000_000, "queries_per_second": 812.5}},
        "export": {"directory": "out/export", "code": "model = load('<x>')"},
        "again": "python -m distill_jax.main --gin_file=quickstart.gin",
        "provenance": {"teacher": {"name": HOSTILE}, "seed": 0},
    }


METRICS = [
    {"step": i, "time": i / 2, "loss": 2 - i / 100, "kl": 1.5, "learning_rate": 1e-5}
    | ({"eval/nDCG@10": 0.5 + i / 1000} if i % 20 == 0 else {})
    | ({"gradient_norm": None} if i == 7 else {"gradient_norm": 1.0})
    for i in range(100)
]

VOID = {"meta", "br", "img", "path", "rect"}


class Page(HTMLParser):
    """Tags in order, the text, and that everything is closed."""

    def __init__(self, source):
        super().__init__()
        self.tags, self.stack, self.said, self.ids, self.hrefs = [], [], [], [], []
        self.feed(source)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.ids += [v for k, v in attrs if k == "id"]
        self.hrefs += [v for k, v in attrs if k == "href"]
        if tag not in VOID:
            self.stack.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.stack.pop() == tag

    def handle_data(self, data):
        if self.stack and self.stack[-1] not in ("script", "style"):
            self.said.append(data)

    @property
    def words(self):
        return re.sub(r"\s+", " ", " ".join(self.said))


def test_systems_are_compared():
    values = per_query()
    data = report.compare_systems(values)
    assert (data["baseline"], data["system"]) == ("before", "after")
    assert data["verdict"].startswith("after beats before: +0.0")
    for system, measures in values.items():
        for measure, by_query in measures.items():
            expected = np.mean(list(by_query.values()))
            assert data["measures"][system][measure] == pytest.approx(expected)
            low, high = data["intervals"][system][measure]
            assert low < expected < high
    # Two systems against the baseline in two measures, corrected together.
    assert {c["comparisons"] for c in data["significance"]} == {4}
    assert json.loads(json.dumps(data, allow_nan=False)) == data


def test_what_is_compared_when_names_differ():
    values = per_query()
    one = report.compare_systems({"bm25": values["before"]}, primary="AP")
    assert (one["primary"], one["system"], one["significance"]) == ("nDCG@10", None, [])
    assert one["verdict"].startswith("bm25: 0.")
    pair = report.compare_systems({"x": values["before"], "y": values["after"]})
    assert pair["verdict"].startswith("y beats x")
    values["after"]["nDCG@10"].pop("q3")
    fewer = report.compare_systems(values)
    lost = "1 of 40 queries are not in every system's run (nDCG@10)"
    assert fewer["notices"] == [lost]
    queries = {c["measure"]: c["queries"] for c in fewer["significance"]}
    assert queries == {"nDCG@10": 39, "RR@10": 40}
    with pytest.raises(UserError, match="share no query"):
        report.compare_systems({"a": {"AP": {"q": 1.0}}, "b": {"AP": {"r": 1.0}}})
    with pytest.raises(UserError, match="nothing was measured"):
        report.compare_systems({})


def test_each_measure_is_of_its_own_queries():
    """Judged are a, b and c; only a has an answer, which is what HR@5 needs."""
    judged = {"a": 1.0, "b": 0.5, "c": 0.0}
    systems = {name: {"nDCG@10": judged, "HR@5": {"a": 1.0}} for name in "xy"}
    data = report.compare_systems(systems)
    assert data["measures"]["x"] == {"nDCG@10": 0.5, "HR@5": 1.0}
    assert data["notices"] == []
    assert [c["queries"] for c in data["significance"]] == [3, 1]


def test_examples_are_the_queries_that_moved_most():
    data = full_data()
    values = data["queries"]["values"]
    moved = {q: values["after"][q] - values["before"][q] for q in values["after"]}
    ordered = sorted(moved, key=moved.get)
    expected = set(ordered[:5] + ordered[-5:])
    assert {e["query_id"] for e in data["examples"]} == expected
    docs = data["examples"][0]["lists"]["after"]
    assert [d["doc_id"] for d in docs] == ["d0", "d<1>", "d2"]
    assert len(docs[2]["text"]) < 700


def test_the_page_is_well_formed_and_alone():
    source = report.page(full_data(), METRICS)
    found = Page(source)
    assert found.stack == []
    tags = [tag for tag, _ in found.tags]
    assert not {"img", "link", "iframe", "object", "base", "form"} & set(tags)
    assert tags.count("script") == 1
    for _, attributes in found.tags:
        assert not any(name.startswith("on") for name in attributes)
        assert "src" not in attributes
    # Every link stays on the page and leads somewhere.
    assert len(found.ids) == len(set(found.ids))
    assert all(href.startswith("#") and href[1:] in found.ids for href in found.hrefs)
    assert "url(" not in source
    # The page's own policy lets its own script run, and no other.
    script = source.split("<script>")[1].split("</script>")[0]
    summed = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{summed}'" in source
    assert "http" not in source.replace("http-equiv", "")


def test_hostile_texts_are_shown_as_texts():
    found = Page(report.page(full_data(), METRICS))
    assert found.words.count("<script>alert(1)</script>") >= 3
    assert "beir:<toy>" in found.words
    report.page(full_data(), METRICS).encode("utf-8")


def ending(value, suffix):
    """The data with something behind each text but those that name its entries."""
    if isinstance(value, dict):
        names = ("system", "baseline", "primary", "query_id")
        return {k: v if k in names else ending(v, suffix) for k, v in value.items()}
    if isinstance(value, list):
        return [ending(item, suffix) for item in value]
    return value + suffix if isinstance(value, str) else value


def test_no_text_of_a_report_is_taken_for_markup_or_for_a_template():
    def shown(suffix):
        named = {
            name + suffix: {measure + suffix: v for measure, v in measures.items()}
            for name, measures in per_query().items()
        }
        return [
            Page(report.page(ending(full_data(), suffix), METRICS)),
            Page(report.page(report.compare_systems(named))),
        ]

    for plain, hostile in zip(shown("."), shown(HOSTILE)):
        assert [tag for tag, _ in hostile.tags] == [tag for tag, _ in plain.tags]
        texts = hostile.words.count("{{ 6 * 7 }}{% for %}{# gone #}")
        assert texts == hostile.words.count("<script>alert(1)</script><img") > 20


def test_figures_are_those_of_the_data():
    data = full_data()
    words = Page(report.page(data, METRICS)).words
    assert data["verdict"] in words
    for measures in data["measures"].values():
        for value in measures.values():
            assert f"{value:.4f}" in words
    for comparison in data["significance"]:
        wins, ties, losses = (comparison[k] for k in ("wins", "ties", "losses"))
        assert f"{wins} / {ties} / {losses}" in words
        assert signed(comparison["difference"], 4) in words
    for shown in (
        "250 (25%)",
        "above the positive by 0.125",
        "1 h 56 min",
        "2 h 10 min",
        "2.00% of the pairs are tied",
        "AP between 0.4000 and 0.5000",
        "model = load('<x>')",
        "--gin_file=quickstart.gin",
        "22,000,000",
        "812.5",
    ):
        assert shown in words


def test_bars_have_the_heights_of_the_differences():
    data = full_data()
    found = Page(report.page(data))
    bars = [a for tag, a in found.tags if a.get("class") in ("gain", "loss", "same")]
    bars = [a for a in bars if "height" in a]
    values = data["queries"]["values"]
    moved = sorted(
        (values["after"][q] - values["before"][q] for q in values["after"]),
        reverse=True,
    )
    assert len(bars) == 40
    heights = np.array([float(bar["height"]) for bar in bars])
    scale = heights[0] / moved[0]
    np.testing.assert_allclose(heights, np.abs(moved) * scale, atol=0.06)


def test_a_page_of_little_data():
    assert "Training" not in report.page({"measures": {"only": {"AP": 0.25}}})
    assert "0.2500" in report.page({"measures": {"only": {"AP": 0.25}}})
    one = report.compare_systems({"bm25": {"AP": {"q": 0.5}}})
    assert Page(report.page(one)).stack == []
    assert Page(report.page({})).stack == []
    broken = [{"step": 0, "loss": None}, {"step": 1, "loss": float("nan")}, {"step": 2}]
    assert Page(report.page({}, broken)).stack == []


def test_publish_writes_everything(tmp_path):
    lines = [json.dumps(record) for record in METRICS]
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines) + '\n{"step": 100, "lo')
    data = full_data()
    data["title"] = "toy"
    path = report.publish(tmp_path, data)
    assert path.name == "report.html"
    assert (
        json.loads((tmp_path / "report.json").read_text())["verdict"] == data["verdict"]
    )
    assert "Loss and its parts" in path.read_text()
    assert list((tmp_path / "report" / "tensorboard").iterdir())


def test_curves_of_rounds_follow_one_another(tmp_path):
    logs = []
    for turn in (1, 2):
        path = tmp_path / "rounds" / str(turn) / "metrics.jsonl"
        path.parent.mkdir(parents=True)
        records = [{"step": step, "loss": turn + 1 / step} for step in (1, 2, 3)]
        path.write_text("\n".join(map(json.dumps, records)) + "\n")
        logs.append(path)
    assert [record["step"] for record in curves.read_all(logs)] == [1, 2, 3, 4, 5, 6]
    page = report.publish(tmp_path, {"measures": {}}, logs)
    assert "Loss and its parts" in page.read_text()


def test_terminal_table():
    data = {
        "measures": {
            "first_stage": {"nDCG@10": 0.5, "R@100": 0.9},
            "\u691c\u7d22": {"nDCG@10": 0.61234},
        },
        "baseline": "first_stage",
        "significance": [
            {
                "system": "\u691c\u7d22",
                "baseline": "first_stage",
                "measure": "nDCG@10",
                "p_holm": 0.01,
            }
        ],
        "verdict": "so it is",
    }
    assert report.summary(data).splitlines() == [
        "             nDCG@10    R@100",
        "-----------  --------  -------",
        "first stage   0.5000   0.9000",
        "\u691c\u7d22          0.6123*       \u2013",
        "* differs from first stage: p < 0.05, paired t-test, Holm over 1 tests",
        "so it is",
    ]


def test_numbers():
    values = (0, 3, -11.4, 0.190, 0.0003, 240000, 1234567.8, 2.4e-6)
    assert [number(v) for v in values] == [
        "0", "3", "-11.40", "0.190", "0.0003", "240,000", "1,234,568", "2.4e-6",
    ]  # fmt: skip
    assert number(None) == "\u2013"
    assert [signed(v) for v in (0.0214, -0.5, -0.0001)] == [
        "+0.021",
        "\u22120.500",
        "0.000",
    ]
    assert [duration(v) for v in (3.21, 42, 185, 7805)] == [
        "3.2 s", "42 s", "3 min 05 s", "2 h 10 min",
    ]  # fmt: skip
    assert ticks(0, 1, 5) == [0, 0.2, 0.4, 0.6, 0.8, 1.0]
    assert ticks(0.613, 0.684, 4) == [0.62, 0.64, 0.66, 0.68]
    assert ticks(2, 2) == [2]
    assert [tick_text(v) for v in (0, 1500, 2e-5, -0.25)] == [
        "0",
        "1.5k",
        "2e\u22125",
        "\u22120.25",
    ]


@pytest.mark.browser
@pytest.mark.parametrize(("width", "dark"), [(1200, False), (500, True)])
def test_in_a_browser(tmp_path, width, dark):
    browser = shutil.which("chromium") or shutil.which("chromium-browser")
    assert browser, "install chromium, or leave out -m browser"
    image = pytest.importorskip("PIL.Image")
    path = tmp_path / "report.html"
    path.write_text(report.page(full_data(), METRICS))
    shot = tmp_path / "shot.png"
    command = [
        browser, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic",
        "--no-first-run", "--disable-background-networking", "--hide-scrollbars",
        "--disable-component-update", "--disable-sync",
        f"--user-data-dir={tmp_path / 'profile'}", f"--window-size={width},1600",
        f"--screenshot={shot}", path.resolve().as_uri(),
    ]  # fmt: skip
    if dark:
        command.insert(1, "--blink-settings=preferredColorScheme=0")
    subprocess.run(command, check=True, capture_output=True, timeout=60)
    pixels = np.asarray(image.open(shot).convert("RGB")).astype(int)
    assert pixels.shape[1] == width
    corner = pixels[2, 2]
    assert (corner.sum() < 150) == dark
    # Written all the way down, and with the colours of plots.
    written = (np.abs(pixels - corner).sum(axis=2) > 60).any(axis=1)
    assert all(part.mean() > 0.2 for part in np.array_split(written, 8))
    saturation = pixels.max(axis=2) - pixels.min(axis=2)
    assert (saturation > 80).sum() > 1000
