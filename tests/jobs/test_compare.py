"""What can be compared."""

from __future__ import annotations

import json

import pytest

from distill_jax.io.errors import UserError
from distill_jax.jobs.compare import Compare


def finished(folder, measure, split="test"):
    """A finished job's folder, as far as a comparison reads it before its models."""
    folder.mkdir()
    report = {
        "collection": "toy",
        "primary": measure,
        "system": "after",
        "provenance": {"test split": split},
        "queries": {"measure": measure, "values": {"after": {"q1": 0.5, "q2": 1.0}}},
    }
    (folder / "report.json").write_text(json.dumps(report))
    return str(folder)


def test_folders_of_different_measures_are_not_compared(tmp_path):
    a = finished(tmp_path / "a", "nDCG@10")
    b = finished(tmp_path / "b", "HR@5")
    job = Compare(directory=str(tmp_path / "out"), model_dirs=(a, b))
    with pytest.raises(UserError) as told:
        job()
    assert str(told.value).splitlines() == [
        f"measured differently: {a} by nDCG@10, {b} by HR@5",
        "evaluate them by the same first measure (MEASURES), then compare",
    ]
    assert not (tmp_path / "out").exists()


def test_folders_of_different_splits_are_not_compared(tmp_path):
    a = finished(tmp_path / "a", "nDCG@10")
    b = finished(tmp_path / "b", "nDCG@10", split="dev")
    with pytest.raises(UserError, match=r"a on test, .*b on dev"):
        Compare(directory=str(tmp_path / "out"), model_dirs=(a, b))()
