"""Documents and unjudged queries are enough to train; what is known is said."""

from __future__ import annotations

import json

import pytest

from distill_jax import main
from distill_jax.jobs.reporting import beside_free, decision
from distill_jax.jobs.unjudged import overlaps, with_probes
from distill_jax.runs.run import Run
from distill_jax.workspace.context import open_workspace
from tests.jobs.fixtures import write_toy

pytestmark = pytest.mark.usefixtures("compiles_fast")
SMALL = [
    "--gin_file=quickstart.gin", "--gin_file=small.gin", "--gin.MESH=data=1",
    "--gin.EXPORT=None", "--gin.VOCABULARY_SIZE=300", "--gin.QUERY_LENGTH=12",
    "--gin.DOC_LENGTH=20", "--gin.ROUNDS=2", "--gin.TRAIN_STEPS=2",
]  # fmt: skip


def test_unjudged_queries_train_and_the_report_says_not_measured(tmp_path, capsys):
    folder = write_toy(tmp_path / "faq", train=24, test=0)
    for name in ("train", "test"):
        (folder / f"qrels/{name}.tsv").unlink()
    out = tmp_path / "run"
    argv = [*SMALL, f"--gin.COLLECTION=beir:{folder}", f"--gin.MODEL_DIR={out}"]
    assert main.main(argv) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == "VERDICT: NOT_MEASURED"
    assert any(line.startswith("Not measured: no judgements") for line in lines)
    report = json.loads((out / "report.json").read_text())
    # Nothing judges the rounds, though the recipe has a rule that stops them.
    assert report["provenance"]["best round"] == 2
    assert any("the last round is kept" in notice for notice in report["notices"])
    # The teacher's order is the fused candidates'; before training is one of its parts.
    assert report["measures"]["before"]["overlap@10 with before"] == 1.0
    assert 0 < report["measures"]["teacher"]["overlap@10 with first stage"] <= 1.0
    shown = report["examples"]
    assert {len(example["lists"]) for example in shown} == {2}
    assert all(example["lists"]["after"][0]["text"] for example in shown)
    assert shown[0]["query"] in (out / "report.html").read_text()


@pytest.mark.parametrize("queries", [0, 24])
def test_what_is_looked_at_is_not_trained_on(tmp_path, queries):
    folder = write_toy(tmp_path / "faq", train=queries, test=0)
    for name in ("train", "test"):
        (folder / f"qrels/{name}.tsv").unlink()
    workspace = open_workspace(tmp_path, f"beir:{folder}", need=(), dev_share=0.0)
    found = with_probes(workspace)
    probes = set(found.judged.queries.ids)
    assert probes
    if queries:
        assert workspace.train is not None
        assert found.train is not None
        # A fifth of the queries, and the others are what is trained on.
        assert len(probes) == 4
        assert {*found.train.queries.ids} == {*workspace.train.queries.ids} - probes
    else:
        texts = workspace.collection.full_texts()
        assert all(any(t in text for text in texts) for t in found.judged.queries.texts)


def test_a_split_of_another_name_is_a_mistake_and_not_an_absence(tmp_path, capsys):
    folder = write_toy(tmp_path / "judged")
    argv = [*SMALL, f"--gin.COLLECTION=beir:{folder}", "--gin.TEST_SPLIT=tset"]
    assert main.main([*argv, f"--gin.MODEL_DIR={tmp_path}/run"]) == 2
    assert "no split 'tset' (did you mean \"test\"" in capsys.readouterr().err


def test_overlap_counts_documents_that_both_systems_have_first():
    runs = {
        "before": Run.from_lists(("q",), [[("a", 3.0), ("b", 2.0)]]),
        "after": Run.from_lists(("q",), [[("b", 3.0), ("c", 2.0)]]),
    }
    assert overlaps(runs)["after"] == {"overlap@10 with before": 0.5}


def of(*values: float) -> dict:
    return {"nDCG@10": {f"q{i}": value for i, value in enumerate(values)}}


def test_the_best_trained_row_stands_beside_the_best_that_needs_no_training():
    found = beside_free(
        {
            "first_stage": of(0.9, 0.8, 0.9),
            "before": of(0.1, 0.2, 0.1),
            "before, fused with first stage": of(0.5, 0.5, 0.5),
            "after": of(0.2, 0.3, 0.2),
            "after, fused with first stage": of(0.6, 0.6, 0.5),
        },
        "nDCG@10",
    )
    assert found["baseline"] == "first_stage"
    assert found["system"] == "after, fused with first stage"
    assert found["difference"] == pytest.approx((1.7 - 2.6) / 3)


@pytest.mark.parametrize(
    ("difference", "p", "word"),
    [(0.1, 0.01, "WIN"), (-0.1, 0.01, "LOSS"), (0.1, 0.2, "NO_DIFFERENCE"),
     (0.1, None, "NO_DIFFERENCE")],
)  # fmt: skip
def test_the_last_line_is_for_programs(difference, p, word):
    test = {"system": "after", "measure": "m", "difference": difference, "p_holm": p}
    data = {
        "primary": "m", "system": "after", "baseline": "before", "significance": [test],
        "measures": {"before": {"m": 0.5}, "after": {"m": 0.5 + difference}},
    }  # fmt: skip
    shown = "nan" if p is None else f"{p:g}"
    assert decision(data) == f"VERDICT: {word} m 0.5000 {0.5 + difference:.4f} {shown}"
