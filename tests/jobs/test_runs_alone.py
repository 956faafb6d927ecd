"""Runs are measured by judgements alone, as trec_eval measures them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import pytrec_eval

from distill_jax import main

THEIRS = {"nDCG@10": "ndcg_cut_10", "AP": "map", "R@100": "recall_100"}


@pytest.fixture
def files(tmp_path) -> tuple[Path, Path, Path]:
    """Judgements of twelve queries, a run of all, and a run of seven and one more."""
    random = np.random.default_rng(3)
    judged, runs = [], {"all": [], "some": []}
    for query in range(12):
        for doc in random.choice(30, 8, replace=False):
            judged.append(f"q{query} 0 d{doc} {random.integers(-1, 4)}")
        for name, lines in runs.items():
            number = query + 1 if name == "some" and query == 6 else query
            if name == "some" and query > 6:
                continue
            for rank, doc in enumerate(random.choice(30, 15, replace=False), 1):
                # Equal scores too: trec_eval orders them by id.
                score = float(random.integers(0, 5))
                lines.append(f"q{number} Q0 d{doc} {rank} {score} x")
    runs["some"] += ["q99 Q0 d1 1 1.0 x"]
    for name, lines in (("qrels", judged), *runs.items()):
        (tmp_path / f"{name}.trec").write_text("\n".join(lines) + "\n")
    return tmp_path / "qrels.trec", tmp_path / "all.trec", tmp_path / "some.trec"


def read(path: Path, kind: type) -> dict:
    found: dict = {}
    for line in path.read_text().splitlines():
        query, _, doc, *rest = line.split()
        value = rest[0] if kind is int else rest[1]
        found.setdefault(query, {})[doc] = kind(value)
    return found


def theirs(qrels: Path, run: Path) -> dict:
    evaluator = pytrec_eval.RelevanceEvaluator(read(qrels, int), set(THEIRS.values()))
    return evaluator.evaluate(read(run, float))


def measured(folder: Path, qrels: Path, runs: tuple[Path, ...], **flags) -> dict:
    given = {
        "QRELS": qrels, "RUNS": repr(tuple(map(str, runs))), "MODEL_DIR": folder,
        "MEASURES": repr(tuple(THEIRS)), **flags,
    }  # fmt: skip
    words = [f"--gin.{name}={value}" for name, value in given.items()]
    assert main.main(["--gin_file=evaluate.gin", *words]) == 0
    return json.loads((folder / "report.json").read_text())


def test_runs_are_measured_as_trec_eval_measures_them(tmp_path, files):
    qrels, *runs = files
    found = measured(tmp_path / "out", qrels, tuple(runs))
    for run in runs:
        values = theirs(qrels, run)
        for ours, name in THEIRS.items():
            expected = sum(v[name] for v in values.values()) / 12
            assert found["measures"][run.stem][ours] == pytest.approx(expected)
    assert (
        "Of 12 queries some lacks 5, which count 0; on the 7 that" in (found["verdict"])
    )
    assert any("q99" in notice for notice in found["notices"])


def test_queries_that_a_run_lacks_can_be_left_out(tmp_path, files):
    qrels, _, some = files
    found = measured(tmp_path / "out", qrels, (some,), COUNT_MISSING=False)
    values = theirs(qrels, some)
    assert len(values) == 7
    for ours, name in THEIRS.items():
        expected = np.mean([v[name] for v in values.values()])
        assert found["measures"]["some"][ours] == pytest.approx(expected)


@pytest.mark.parametrize(
    "flags", [{"CHECKPOINT": "fresh:dual_encoder:bert:tiny"}, {"QUERIES": "jsonl:x"}]
)
def test_judgements_alone_measure_runs_alone(tmp_path, files, flags, capsys):
    words = {"QRELS": files[0], "MODEL_DIR": tmp_path / "out", **flags}
    argv = [f"--gin.{name}={value}" for name, value in words.items()]
    assert main.main(["--gin_file=evaluate.gin", *argv]) == 2
    told = capsys.readouterr().err.strip().splitlines()
    assert len(told) == 2
    assert "QRELS" in told[0]


def test_tables_leave_the_query_s_own_document_out_of_runs(tmp_path, capsys):
    """A run of its own is a list with the query's own document first."""
    (tmp_path / "a.qrels").write_text("q1 0 d1 1\nq2 0 d2 1\n")
    lines = ["q1 Q0 q1 1 3 x", "q1 Q0 d1 2 2 x"]
    (tmp_path / "a.trec").write_text("\n".join(lines) + "\n")
    where = f"qrels:{tmp_path}/a.qrels"
    given = {
        "COLLECTIONS": repr((where,)), "MODEL_DIR": tmp_path / "out",
        "RUNS": repr({where: (str(tmp_path / "a.trec"),)}), "MEASURES": "('RR@10',)",
    }  # fmt: skip
    for own, expected in (("False", "0.2500"), ("True", "0.5000")):
        words = [f"--gin.{name}={value}" for name, value in given.items()]
        argv = ["--gin_file=tables.gin", *words, f"--gin.WITHOUT_OWN={own}"]
        assert main.main(argv) == 0
        out = capsys.readouterr().out
        assert f"a RR@10 {expected}, 1 queries without a ranking count 0" in out
