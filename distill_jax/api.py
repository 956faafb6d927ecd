"""``distill_jax.run``: a recipe as a function call, for notebooks and programs.

>>> result = distill_jax.run("quickstart.gin", COLLECTION="beir:PATH",
...                          MODEL_DIR="runs/x", TRAIN_STEPS=200)   # doctest: +SKIP
>>> result.measures["after"]["nDCG@10"]                             # doctest: +SKIP
0.5599
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from distill_jax.cli.config import configured_job
from distill_jax.cli.flags import Flags
from distill_jax.io.errors import UserError
from distill_jax.main import main


def run(*recipes: str, **names: Any) -> Result:
    """Runs a recipe in this process, as the command would, and returns its result.

    Args:
        *recipes: gin files by name or path; later ones go on top.
        **names: names of the recipe and their values, as Python objects.

    Raises:
        UserError: a name or a value that the recipe does not take.
        RuntimeError: the job did not complete; its output says why.
    """
    bindings = tuple((name, _text(value)) for name, value in names.items())
    flags = Flags(gin_files=recipes, bindings=bindings)
    _, config = configured_job(flags)
    words = [f"--gin_file={recipe}" for recipe in recipes]
    status = main(words + [f"--gin.{name}={value}" for name, value in bindings])
    if status:
        raise RuntimeError(f"{', '.join(recipes)} ended with status {status}")
    return Result(config.directory)


def plan(*recipes: str, **names: Any) -> int:
    """Prints what ``run`` would do and cost; returns the exit status."""
    words = [f"--gin_file={recipe}" for recipe in recipes]
    words += [f"--gin.{name}={_text(value)}" for name, value in names.items()]
    return main([*words, "--plan"])


class Result:
    """What a job left in its MODEL_DIR.

    Attributes:
        directory: the MODEL_DIR; None of a job that has none.
    """

    def __init__(self, directory: str | Path | None):
        self.directory = None if directory is None else Path(directory)

    @functools.cached_property
    def report(self) -> Report:
        """``report.json``; in a notebook it shows ``report.html``.

        Raises:
            UserError: the job wrote no report.
        """
        return Report(self._file("report.json"))

    @property
    def measures(self) -> Mapping[str, Mapping[str, float]]:
        """Means: ``{system: {measure: mean}}``."""
        return self.report["measures"]

    @functools.cached_property
    def model(self) -> Any:
        """The trained model, as ``distill_jax.load`` gives it."""
        from distill_jax.predictor import load

        assert self.directory is not None
        return load(self.directory)

    def _file(self, name: str) -> Path:
        if self.directory is None or not (self.directory / name).is_file():
            raise UserError(f"{self.directory}: no {name}", "this job writes none")
        return self.directory / name

    def __repr__(self) -> str:
        return f"Result({str(self.directory)!r})"


class Report(dict):
    """The entries of ``report.json``; a notebook shows the page beside it."""

    def __init__(self, path: Path):
        super().__init__(json.loads(path.read_text(encoding="utf-8")))
        self.path = path.with_suffix(".html")

    def _repr_html_(self) -> str:
        import html

        page = html.escape(self.path.read_text(encoding="utf-8"), quote=True)
        return f'<iframe srcdoc="{page}" width="100%" height="720"></iframe>'


def _text(value: Any) -> str:
    return str(value) if isinstance(value, str | Path) else repr(value)
