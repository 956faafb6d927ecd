"""Variants of one recipe: one labelling, rows that resume, one page at the end."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from distill_jax import main
from distill_jax.cli import papers
from distill_jax.cli.flags import parse_flags
from distill_jax.io.errors import UserError
from distill_jax.jobs.variants import Variants
from distill_jax.models.pretrained import Pretrained

pytestmark = [pytest.mark.long, pytest.mark.usefixtures("compiles_fast")]
FOLDER = Path(__file__).resolve().parents[2] / "gin_configs"
TABLES = sorted(path.stem for path in FOLDER.glob("papers/*.gin"))
SMALL = {
    "MESH": "data=1",
    "EXPORT": None,
    "DROPOUT": 0.0,
    "VOCABULARY_SIZE": 300,
    "QUERY_LENGTH": 12,
    "DOC_LENGTH": 20,
    "TRAIN_STEPS": 2,
    "MAX_TEST_QUERIES": 8,
    "LOGGERS": (),
}


def argv(recipe: str, folder, toy: str, **names) -> list[str]:
    given = {**SMALL, "MODEL_DIR": folder, "COLLECTION": toy, **names}
    words = [f"--gin.{name}={value}" for name, value in given.items()]
    return [f"--gin_file={recipe}.gin", "--gin_file=small.gin", *words]


def read(folder: Path) -> dict:
    return json.loads((folder / "report.json").read_text())


@pytest.fixture(scope="module")
def two(tmp_path_factory, toy):
    """A dense and a sparse student; then, by the same command, a reranker besides."""
    folder = tmp_path_factory.mktemp("students")
    first = argv("students", folder, toy, STUDENTS="('dense', 'splade')")
    assert main.main(first) == 0
    made = {
        path: path.stat().st_mtime_ns
        for path in folder.rglob("*")
        if path.is_file() and {"checkpoints", "scores"} & {*path.parts}
    }
    three = {"STUDENTS": "('dense', 'splade', 'reranker')", "BUDGET": "1 MB, 9000 ms"}
    more = argv("students", folder, toy, **three)
    assert main.main(more) == 0
    return folder, made


def test_students_of_one_bill_end_in_one_page(two):
    folder, _ = two
    data = read(folder)
    wanted = {"first_stage", "dense", "splade", "reranker"}
    assert wanted <= set(data["measures"])
    for kind, name in (
        ("dual_encoder", "dense"), ("splade", "splade"), ("reranker", "reranker")
    ):  # fmt: skip
        facts = data["systems"][name]
        assert facts["kind"] == kind
        assert facts["queries_per_second"] > 0
        assert Pretrained.read(folder / name / "student").spec.kind == kind
    # Forty documents of d_model float32 numbers each; a reranker has no index.
    width = Pretrained.read(folder / "dense" / "student").spec.width
    assert data["systems"]["dense"]["index_bytes"] >= 40 * width * 4
    assert "index_bytes" not in data["systems"]["reranker"]
    tested = {(c["baseline"], c["system"]) for c in data["significance"]}
    pairs = {("dense", "splade"), ("dense", "reranker"), ("splade", "reranker")}
    assert pairs <= tested
    assert {("first_stage", name) for name in wanted - {"first_stage"}} <= tested
    assert all(c["comparisons"] <= len(tested) for c in data["significance"])
    row = data["queries"]["values"]["dense"]
    assert data["measures"]["dense"]["nDCG@10"] == pytest.approx(
        np.mean(list(row.values()))
    )
    lines = (folder / "table.tsv").read_text().splitlines()
    assert len(lines) == 1 + len(data["measures"]) * len(data["measures"]["dense"])


def test_a_budget_names_the_best_student_within_it(two):
    data = read(two[0])
    (picked,) = (line for line in data["notices"] if line.startswith("BUDGET 1 MB"))
    name = picked.removeprefix("BUDGET 1 MB, 9000 ms: ").split()[0].strip(",:")
    values = {row: data["measures"][row]["nDCG@10"] for row in data["systems"]}
    timed = [row for row in values if "queries_per_second" in data["systems"][row]]
    assert values[name] == max(values[row] for row in timed)


def test_a_student_more_pays_for_no_label_again(two):
    folder, made = two
    assert {"checkpoints", "scores"} <= {part for path in made for part in path.parts}
    for path, time in made.items():
        assert path.stat().st_mtime_ns == time, path
    counts = [
        json.loads((folder / name / "labels" / "part.json").read_text())["made"]
        for name in ("dense", "splade", "reranker")
    ]
    computed = [made["counts"]["computed"] for made in counts]
    assert computed[0] > 0
    assert computed[1:] == [0, 0]


def test_a_row_runs_alone_from_its_own_configuration(two, capsys):
    folder, _ = two
    assert main.main([f"--gin_file={folder / 'dense' / 'config.gin'}"]) == 0
    assert "training: already there" in capsys.readouterr().out


def build(recipe: str, *flags: str):
    return main.build_job(parse_flags([f"--gin_file={recipe}.gin", *flags]))


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--gin.STUDENTS=('dens',)"], 'no row \'dens\' .did you mean "dense"'),
        (["--gin.STUDENTS=('dense',)", "--gin.QUERY_FLOPS=1"], "no row reads QUERY"),
        (["--gin.GRID=({'a': {'KIND': 'splade'}, 'b': {'KIND': 'splade'}},)"],
         "rows a and b are the same job"),
        (["--gin.GRID=({'a': {'SEED': 1}}, {'b': {'SEED': 2}})"], "change one name"),
        (["--gin.GRID=({'a': {'SEDE': 1}},)"], 'no name SEDE .did you mean "SEED"'),
        (["--gin.GRID=({'a': {'DOC_FLOPS': 1}},)"], "row a: nothing reads DOC_FLOPS"),
    ],
)  # fmt: skip
def test_a_grid_s_mistakes_are_told_before_anything_runs(flags, told):
    with pytest.raises(UserError, match=told):
        build("students", "--gin.COLLECTION=pydocs", *flags).jobs()


@dataclasses.dataclass(frozen=True)
class Finished:
    """A job that has values of its queries, and one start with others."""

    directory: str
    values: tuple[float, ...]
    before: tuple[float, ...]
    collection: str = "toy"
    collections: tuple[str, ...] = ()

    def __call__(self, *, config: str, command: str) -> int:
        systems = {"first_stage": (0.5,) * 12, "before": self.before}
        systems["after"] = self.values
        values = {
            system: {f"q{i}": value for i, value in enumerate(found)}
            for system, found in systems.items()
        }
        data = {
            "system": "after",
            "measures": {k: {"nDCG@10": float(np.mean(v))} for k, v in systems.items()},
            "queries": {"measure": "nDCG@10", "values": values},
            "cost": {"seconds": 3.0},
        }
        Path(self.directory).mkdir()
        (Path(self.directory) / "report.json").write_text(json.dumps(data))
        return 0


def holm(found: dict) -> dict:
    """Step down: each p times the tests that are left, never less than one before."""
    adjusted, least = {}, 0.0
    for rank, (key, p) in enumerate(sorted(found.items(), key=lambda item: item[1])):
        least = max(least, min(1.0, p * (len(found) - rank)))
        adjusted[key] = least
    return adjusted


@pytest.mark.parametrize("each_other", [False, True])
def test_rows_are_tested_as_scipy_does_and_corrected_together(tmp_path, each_other):
    random = np.random.default_rng(3)
    start = tuple(random.uniform(0.2, 0.4, 12))
    values = {"a": start, "first_stage": (0.5,) * 12}
    for name, gain in (("x", 0.05), ("y", 0.2), ("z", 0.0)):
        values[name] = tuple(np.asarray(start) + gain + random.normal(0, 0.1, 12))

    def make(changes):
        folder = changes["MODEL_DIR"]
        found = values[Path(folder).name]
        return Finished(folder, found, start), "", frozenset()

    job = Variants(
        directory=str(tmp_path),
        job=Finished("", start, start),  # type: ignore[arg-type]
        grid=({"x": {"A": 1}, "y": {"A": 2}, "z": {"A": 3}},),
        each_other=each_other,
        timed=False,
        build=make,
        figures={frozenset({("A", "2")}): "0.7 | 0.6"},
    )
    assert job() == 0
    data = read(tmp_path)
    # One start and one first stage, though every row has them.
    assert set(data["measures"]) == {"first_stage", "x before", "x", "y", "z"}
    values["x before"] = start
    base = "first_stage" if each_other else "x"
    pairs = {("x before", name) for name in "xyz"}
    pairs |= {(base, name) for name in data["measures"] if name != base}
    if each_other:
        pairs |= {("x", "y"), ("x", "z"), ("y", "z")}
    p = {(a, b): stats.ttest_rel(values[a], values[b]).pvalue for a, b in pairs}
    got = {(c["baseline"], c["system"]): c for c in data["significance"]}
    assert set(got) == pairs
    for pair, wanted in holm(p).items():
        assert got[pair]["p_holm"] == pytest.approx(wanted, rel=1e-6), pair
    assert data["systems"]["y"]["paper"] == "0.7 | 0.6"
    assert "0.7 | 0.6" in (tmp_path / "table.tsv").read_text()
    assert f"y & {data['measures']['y']['nDCG@10']:.3f}".rstrip() in (
        (tmp_path / "table.tex").read_text().replace("\\textbf{", "")
    )
    assert got["x before", "y"]["p_holm"] < 0.05


LLM = {"LLM_BASE_URL": "http://localhost:1/v1", "LLM_MODEL": "fake"}
FIGURES = {
    "intermediate_distillation": 10,
    "pairdistill_colbert": 6,
    "rank_distillm": 6,
    "specialize": 7,
    "twolar": 10,
}


def flags_of(table: str, **names) -> list[str]:
    given = {**({} if table.startswith("pairdistill") else LLM), **names}
    return [f"--gin.{name}={value}" for name, value in given.items()]


def test_each_of_the_five_papers_has_its_table():
    assert sorted(FIGURES) == TABLES


def test_a_row_s_own_file_makes_the_row_s_job(tmp_path):
    flags = ["--gin_file=small.gin", f"--gin.MODEL_DIR={tmp_path / 'a b'}"]
    for job, text in build("students", *flags).jobs().values():
        (tmp_path / "row.gin").write_text(text)
        again = main.build_job(parse_flags([f"--gin_file={tmp_path / 'row.gin'}"]))
        assert again == job
        assert Path(again.shared) == tmp_path / "a b" / "shared"
        assert Path(again.directory).parent == tmp_path / "a b"


@pytest.mark.parametrize("table", TABLES)
def test_rows_of_a_paper_s_table_are_jobs_with_the_paper_s_figures(table):
    job = build(f"papers/{table}", *flags_of(table, COLLECTION="pydocs"))
    rows = job.jobs()  # each differs from the others, and reads all that it changes
    assert len({made.directory for made, _ in rows.values()}) == len(rows)
    assert len({made.shared for made, _ in rows.values()}) == 1
    found = [job.figure(changes) for changes in job.changes().values()]
    assert sum(map(bool, found)) == FIGURES[table]
    paper = papers.paper_of(table)
    assert paper is not None
    first, _ = next(iter(rows.values()))
    if table != "twolar":  # its table is of another size
        allowed = sum("differs" in element for element in paper["elements"])
        assert len(list(papers.differences(paper, first))) == allowed


@pytest.mark.parametrize("table", TABLES)
def test_a_paper_s_table_is_planned_row_by_row(table, toy, tmp_path, capsys):
    rows = flags_of(table, COLLECTION=toy, MODEL_DIR=tmp_path / table)
    if table.startswith("intermediate"):  # the toy's questions have no answers
        asked = ("LLM", "BM25", "direct", "K 3", "50 questions")
        rows += ["--gin.ANSWERS=any", f"--gin.ROWS={asked}"]
    job = build(f"papers/{table}", *rows)
    assert main.main([f"--gin_file=papers/{table}.gin", *rows, "--plan"]) == 0
    out = capsys.readouterr().out
    for name in job.changes():
        assert f"== {name}: " in out
    assert out.count("\n== ") == len(job.changes())
    assert "differs from the paper" in out
    assert not list(tmp_path.rglob("student"))


def test_a_paper_s_rows_ask_the_llm_once(llm, toy, tmp_path, capsys):
    rows = [
        "RankNet, depth 100, ColBERTv2",
        "ADR-MSE, depth 100, ColBERTv2",
        "RankNet, depth 10, ColBERTv2",
    ]
    flags = argv(
        "papers/rank_distillm", tmp_path, toy, ROWS=tuple(rows),
        LLM_BASE_URL=llm.base_url, LLM_MODEL="fake", DISTILL_STEPS=2,
    )  # fmt: skip
    before = len(llm.calls)
    assert main.main(flags) == 0
    counts = [
        json.loads(path.read_text())["made"]["counts"]
        for path in sorted(tmp_path.glob("*/rounds/1/distil/labels/part.json"))
    ]
    assert len(counts) == 3
    # The ledger is of all rows: calls were made once, and then only looked up.
    assert {count["calls"] for count in counts} == {len(llm.calls) - before}
    assert sorted(count["cached"] for count in counts)[0] == 0
    assert len(llm.calls) > before
    # What the rows learn from is one order, cut at another depth.
    data = read(tmp_path)
    assert set(rows) <= set(data["measures"])
    assert data["baseline"] == rows[0]
    assert data["systems"][rows[0]]["paper"] == "0.720 | 0.711"
    assert "0.716 | 0.709" in (tmp_path / "table.tsv").read_text()
