"""Notebooks: their form, and what their cells prepare for a run."""

from __future__ import annotations

import ast
import json
from pathlib import Path
from typing import Any

import pytest

from distill_jax.cli import names, recipes
from distill_jax.collections import schemes

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted(ROOT.glob("notebooks/*.ipynb"))


def cells(path: Path) -> list[dict[str, Any]]:
    return json.loads(path.read_text(encoding="utf-8"))["cells"]


def run(path: Path, until: str | None = None) -> dict[str, Any]:
    """The names that a notebook defines, up to the cell with the tag ``until``."""
    defined: dict[str, Any] = {"__name__": "__main__"}
    for cell in cells(path):
        if cell["cell_type"] == "code":
            source = "".join(cell["source"])
            exec(compile(ast.parse(source), cell["id"], "exec"), defined)
            tags = cell["metadata"].get("tags", ())
            if until in tags:
                break
    return defined


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_a_notebook_is_stored_without_outputs_and_its_cells_have_names(path):
    notebook = json.loads(path.read_text(encoding="utf-8"))
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    assert len({cell["id"] for cell in notebook["cells"]}) == len(notebook["cells"])
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            assert cell["outputs"] == []
            assert cell["execution_count"] is None


def test_the_quickstart_notebook_writes_documents_and_questions_that_load(
    tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    found = run(ROOT / "notebooks/quickstart.ipynb", until="parameters")
    set_names = found["names"]
    assert set(set_names) <= set(names.known())
    assert all((recipes.directory() / name).is_file() for name in found["recipes"])
    collection = schemes.load_docs(set_names["COLLECTION"])
    passages = [text.count("# ") + 1 for text in found["pages"].values()]
    assert len(collection) == sum(passages)
    _, queries, _ = schemes.load(set_names["TRAIN_QUERIES"], "train")
    assert list(queries.texts) == found["questions"]
