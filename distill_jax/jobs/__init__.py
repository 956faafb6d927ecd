"""Jobs: frozen dataclasses that can be called; they wire rooms and do no maths."""

from __future__ import annotations

from typing import Any


def run(job: Any) -> Any:
    """What a recipe binds: ``jobs.run.job = @distill.Distill()``."""
    return job
