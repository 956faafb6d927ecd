"""The doctor names what does not fit, and the line that mends it."""

from __future__ import annotations

from distill_jax.io.errors import UserError
from distill_jax.workspace import doctor, packages


def test_a_broken_pair_of_packages_fails_with_its_remedy(monkeypatch, capsys):
    broken = UserError("a needs b<2, and b 3 is installed", "pip install 'b<2'")
    monkeypatch.setattr(packages, "problems", lambda: [broken])
    monkeypatch.setattr(doctor, "findings", doctor._pairs)
    assert doctor.run() == 2
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "FAILED a needs b<2, and b 3 is installed"
    assert lines[1].endswith("pip install 'b<2'")
    assert lines[2] == "1 check failed"


def test_packages_that_fit_are_no_failure(monkeypatch):
    monkeypatch.setattr(packages, "problems", list)
    assert [finding.state for finding in doctor._pairs()] == [doctor.OK]
