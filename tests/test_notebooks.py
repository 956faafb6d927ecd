"""Notebooks run from the first cell to the last, in a small form."""

from __future__ import annotations

import ast
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytestmark = pytest.mark.usefixtures("compiles_fast")

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted(ROOT.glob("notebooks/*.ipynb"))
# Random weights and few steps, as `small.gin` has them on its own collection.
SMALL = """
recipes.append("small.gin")
names |= dict(
    MESH="data=1", VOCABULARY_SIZE=150, QUERY_LENGTH=8, DOC_LENGTH=16, TRAIN_STEPS=2,
    LIST_SIZE=3, EXPORT=None, STOP_MEASURE=None,
)
"""


def cells(path: Path) -> list[dict[str, Any]]:
    return json.loads(path.read_text(encoding="utf-8"))["cells"]


def run(path: Path) -> dict[str, Any]:
    """The names that a notebook defines, and the value of each cell's last line."""
    names: dict[str, Any] = {"__name__": "__main__"}
    for cell in cells(path):
        if cell["cell_type"] == "code":
            source = "".join(cell["source"])
            exec(compile(ast.parse(source), cell["id"], "exec"), names)
            if "parameters" in cell["metadata"].get("tags", ()):
                exec(SMALL, names)
    return names


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_a_notebook_is_stored_without_outputs_and_its_cells_have_names(path):
    notebook = json.loads(path.read_text(encoding="utf-8"))
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    assert len({cell["id"] for cell in notebook["cells"]}) == len(notebook["cells"])
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            assert cell["outputs"] == []
            assert cell["execution_count"] is None


def test_the_quickstart_notebook_trains_reports_and_ranks(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = run(ROOT / "notebooks/quickstart.ipynb")
    assert (tmp_path / "runs/faq/report.html").is_file()
    assert names["result"].report["systems"]
    model, texts = names["model"], names["texts"]
    query = model.encode_queries(["can I give back a voucher"])
    scores = (query @ model.encode_docs(texts).T)[0]
    assert [place for place, _ in names["ranking"]] == list(np.argsort(-scores))
