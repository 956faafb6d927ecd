"""Jobs: frozen dataclasses that can be called; they wire rooms and do no maths."""

from __future__ import annotations

from typing import Any

from distill_jax.io import engine as engines


def run(job: Any, engine: str = "local") -> Any:
    """What a recipe binds: ``jobs.run.job = @distill.Distill()``.

    Args:
        engine: of the stages on the host, see ``io.engine``.

    Raises:
        UserError: there is no such engine, or it is not installed.
    """
    engines.choose(engine)
    return job
