"""Packages that do not fit together are named, with the line that mends it."""

from __future__ import annotations

import pytest

from distill_jax.workspace import packages

OURS = (
    "numpy>=2.0",
    "jax<0.12,>=0.10.2",
    'seqio>=0.0.20; extra == "seqio"',
    'tensorflow<2.22,>=2.20; extra == "seqio"',
    'distill_jax[seqio]; extra == "cpu"',
)
TEXT = ("tensorflow_text", "2.20.1", ("tensorflow<2.21,>=2.20.0",))
SEQIO = ("seqio", "0.0.20", ("tensorflow-text", 'torch>=2; extra == "torch"'))


def install(folder, *more):
    """A folder of packages' descriptions: ours, numpy and jax, and more."""
    ours = ("distill_jax", "0.1.0", OURS, ("seqio", "cpu"))
    for name, version, *rest in (ours, ("numpy", "2.4", ()), *more):
        place = folder / f"{name}-{version}.dist-info"
        place.mkdir()
        lines = ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}"]
        lines += [f"Requires-Dist: {one}" for one in (rest[0] if rest else ())]
        lines += [f"Provides-Extra: {one}" for one in (rest[1] if rest[1:] else ())]
        (place / "METADATA").write_text("\n".join(lines) + "\n")
    return [str(folder)]


JAX = ("jax", "0.10.2", ("jaxlib<=0.10.2,>=0.10.2",))
JAXLIB = ("jaxlib", "0.10.2")


@pytest.mark.parametrize(
    "there",
    [
        (JAX, JAXLIB),
        (JAX, JAXLIB, SEQIO, TEXT, ("tensorflow", "2.20.0")),
        (JAX, JAXLIB, ("tensorflow", "2.21.0rc1")),
        (JAX, JAXLIB, SEQIO, ("tensorflow_text", "2.21.1"), ("tensorflow", "2.21.0")),
    ],
    ids=["core alone", "an extra", "a candidate within bounds", "newer"],
)
def test_packages_that_fit_are_no_problem(tmp_path, there):
    assert packages.problems(install(tmp_path, *there), trials=False) == []


@pytest.mark.parametrize(
    ("there", "what", "mend"),
    [
        ((), "distill_jax needs jax<0.12,>=0.10.2, which is not installed", "jax<0.12"),
        ((JAX,), "jax 0.10.2 needs jaxlib<=0.10.2,>=0.10.2, which is not", "jaxlib<="),
        ((("jax", "0.9.1"),), "needs jax<0.12,>=0.10.2, and jax 0.9.1 is", "jax<0.12"),
        ((("jax", "0.12.0"),), "and jax 0.12.0 is installed", "jax<0.12,>=0.10.2"),
        (
            (JAX, JAXLIB, SEQIO, TEXT, ("tensorflow", "2.21.0")),
            "tensorflow-text 2.20.1 needs tensorflow<2.21,>=2.20.0, and tensorflow "
            "2.21.0 is installed",
            "tensorflow<2.21,>=2.20.0",
        ),
        ((JAX, JAXLIB, SEQIO), "seqio 0.0.20 needs tensorflow-text, which is", "text"),
        ((JAX, JAXLIB, ("tensorflow", "2.19.1")), "tensorflow 2.19.1", "<2.22,>=2.20"),
        ((("jax", "0.10.2+unknown!"),), "jax 0.10.2+unknown! is installed", "jax<0.12"),
    ],
)
def test_a_broken_pair_is_named_with_the_line_that_mends_it(
    tmp_path, there, what, mend
):
    (problem,) = packages.problems(install(tmp_path, *there), trials=False)
    assert what in problem.what
    assert problem.todo.startswith("python -m pip install ")
    assert mend in problem.todo
    assert len(str(problem).splitlines()) == 2


def test_a_library_that_does_not_load_is_named(tmp_path, monkeypatch):
    there = install(tmp_path, JAX, JAXLIB, SEQIO, TEXT, ("tensorflow", "2.20.0"))
    fails = "raise ImportError('a.so: undefined symbol: _ZN4absl')"
    monkeypatch.setitem(packages._TRIALS, "seqio", fails)
    (problem,) = packages.problems(there)
    assert "seqio 0.0.20 does not load" in problem.what
    assert "undefined symbol: _ZN4absl" in problem.what
    assert "'tensorflow<2.22,>=2.20'" in problem.todo
    monkeypatch.setitem(packages._TRIALS, "seqio", "pass")
    assert packages.problems(there) == []


def test_what_the_tests_run_with_fits_together():
    assert packages.problems(trials=False) == []
