"""The best student or form of vectors that fits a budget of bytes and time.

``BUDGET='50 MB, 5 ms'`` bounds the index of the collection and what a query takes on
this machine, text to ranking, one query at a time. Of what fits, the best is picked.
"""

from __future__ import annotations

import dataclasses
import re
import time
from collections.abc import Callable, Sequence
from typing import Annotated, Any, TypeAlias

import numpy as np

from distill_jax.evaluation.measures import evaluate_queries
from distill_jax.inference.forward import encode_all
from distill_jax.io.errors import UserError, near
from distill_jax.io.values import Check
from distill_jax.models.pretrained import Pretrained
from distill_jax.runs.run import Run
from distill_jax.workspace import compact
from distill_jax.workspace.context import Workspace
from distill_jax.workspace.ranking import corpus_vectors

BYTES = {"B": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12,
         "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}  # fmt: skip
MILLISECONDS = {"us": 1e-3, "ms": 1.0, "s": 1e3}
TIMED = 16  # queries whose median time is taken
OVERLAP = "overlap@10 with float32"


@dataclasses.dataclass(frozen=True)
class Budget:
    """What an index may take, and a query; None bounds nothing."""

    bytes: float | None = None
    milliseconds: float | None = None

    @classmethod
    def parse(cls, text: str) -> Budget:
        """A budget from ``"50 MB, 5 ms"``, or one of the two.

        Raises:
            UserError: no number above 0 with a unit of bytes or time, or two of a kind.
        """
        found: dict[str, float] = {}
        units = {name.lower(): name for name in (*BYTES, *MILLISECONDS)}
        for piece in str(text).split(","):
            match = re.fullmatch(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*([A-Za-z]+)\s*", piece)
            unit = units.get(match[2].lower()) if match else None
            if match is None or unit is None or not float(match[1]):
                hint = near(match[2], units.values()) if match else ""
                raise UserError(
                    f"a budget of {piece.strip()!r}{hint}",
                    "bytes, time or both: '50 MB, 5 ms'; units "
                    f"{', '.join((*BYTES, *MILLISECONDS))}",
                )
            kind = "bytes" if unit in BYTES else "milliseconds"
            if kind in found:
                raise UserError(
                    f"the budget {text!r} bounds {kind} twice", "give each once"
                )
            found[kind] = float(match[1]) * {**BYTES, **MILLISECONDS}[unit]
        return cls(**found)

    def holds(self, option: Option) -> bool:
        """Whether an option is within it."""
        return (self.bytes is None or option.bytes <= self.bytes) and (
            self.milliseconds is None or option.milliseconds <= self.milliseconds
        )


def _checked(text: str) -> str:
    Budget.parse(text)
    return text


BudgetText: TypeAlias = Annotated[str, Check(_checked)]


@dataclasses.dataclass(frozen=True)
class Option:
    """What may be served: its index, a query's time, its quality (more is better)."""

    name: str
    bytes: int
    milliseconds: float
    value: float

    def __str__(self) -> str:
        size = f"{self.bytes / 1e6:.3g} MB"
        return f"{self.name} ({size}, {self.milliseconds:.3g} ms, {self.value:.4f})"

    def beats(self, other: Option) -> bool:
        """Whether it is no worse in anything, and better in something."""
        mine = (-self.bytes, -self.milliseconds, self.value)
        theirs = (-other.bytes, -other.milliseconds, other.value)
        no_worse = all(a >= b for a, b in zip(mine, theirs, strict=True))
        return no_worse and mine != theirs


def frontier(options: Sequence[Option]) -> list[Option]:
    """The options that no other beats, the best first."""
    kept = [o for o in options if not any(other.beats(o) for other in options)]
    return sorted(kept, key=lambda option: -option.value)


def pick(
    options: Sequence[Option], budget: Budget, text: str, measure: str
) -> tuple[Option | None, list[str]]:
    """The best option within the budget, None where none is, and sentences on why.

    Args:
        text: the budget as it was written.
        measure: what the options' values are of.
    """
    edge = frontier(options)
    fits = [option for option in edge if budget.holds(option)]
    told = f"frontier ({measure}): " + "; ".join(map(str, edge))
    if not fits:
        least = min(options, key=lambda option: option.bytes)
        fastest = min(options, key=lambda option: option.milliseconds)
        return None, [
            f"BUDGET {text}: nothing fits; the smallest is {least}, the fastest "
            f"{fastest}",
            told,
        ]
    best = fits[0]
    better = [option for option in edge if option.value > best.value]
    why = "nothing is better"
    if better:
        next_best = better[-1]
        over = [
            name
            for name, size, bound in (
                ("bytes", next_best.bytes, budget.bytes),
                ("milliseconds", next_best.milliseconds, budget.milliseconds),
            )
            if bound is not None and size > bound
        ]
        why = f"the next better, {next_best}, takes too many {' and '.join(over)}"
    return best, [f"BUDGET {text}: {best} is picked; {why}", told]


def forms_of(
    student: Pretrained, workspace: Workspace, measure: str, depth: int
) -> tuple[list[Option], str]:
    """A dual encoder's vectors in each form: bytes, time of a query, quality.

    Quality is measured on judged dev queries. Without them it is how far a form's first
    ten documents are those of float32 vectors, on the test queries, whose judgements
    are not read.

    Returns:
        The options, and what their values are of.

    Raises:
        UserError: the student has no vectors of this kind.
    """
    width = student.spec.width
    forms: list[str | int] = [n for n in (width // 2, width // 4) if n > 0]
    forms += compact.FORMS
    compact.check(student, forms)
    judged = workspace.dev if workspace.dev_is_judged else None
    queries = (judged or workspace.judged).queries
    features = workspace.query_features(student, queries)

    def encoded(rows: np.ndarray) -> np.ndarray:
        return encode_all(student, "query", features, rows, mesh=workspace.mesh)

    docs = corpus_vectors(student, workspace, workspace.directory / "vectors")
    vectors = encoded(np.arange(len(queries)))
    searches = {
        name: compact.searcher(student, docs, form, depth, workspace)
        for name, form in [("float32", None), *((compact.name_of(f), f) for f in forms)]
    }
    sizes = [compact.size_of(form, width) for form in (None, *forms)]
    runs = {name: search(vectors) for name, search in searches.items()}
    if judged is not None:
        named = {name: _of(run, queries.ids, workspace) for name, run in runs.items()}
        values = {
            name: float(
                np.mean(
                    [*evaluate_queries(run, judged.qrels, [measure])[measure].values()]
                )
            )
            for name, run in named.items()
        }
    else:
        values = {name: _overlap(run, runs["float32"]) for name, run in runs.items()}
    few = np.arange(min(TIMED, len(queries)))
    options = [
        Option(
            name,
            size * len(docs),
            _milliseconds(lambda row, s=search: s(encoded(np.asarray([row]))), few),
            values[name],
        )
        for (name, search), size in zip(searches.items(), sizes, strict=True)
    ]
    return options, f"{measure} on dev" if judged is not None else OVERLAP


def _of(run: Run, query_ids: Sequence[str], workspace: Workspace) -> Run:
    return Run(tuple(query_ids), run.rows, run.scores, workspace.collection.ids)


def _overlap(run: Run, full: Run, k: int = 10) -> float:
    shares = [
        len({*mine[:k].tolist()} & {*whole[:k].tolist()} - {-1})
        / max(1, int((whole[:k] >= 0).sum()))
        for mine, whole in zip(run.rows, full.rows, strict=True)
    ]
    return float(np.mean(shares))


def _milliseconds(answer: Callable[[int], Any], rows: np.ndarray) -> float:
    """Median time of a query; each is answered once before, which compiles."""
    taken = []
    for row in rows.tolist():
        answer(row)
        started = time.perf_counter()
        answer(row)
        taken.append(1e3 * (time.perf_counter() - started))
    return float(np.median(taken))


def sentences(
    student: Pretrained, workspace: Workspace, text: str, measure: str, depth: int
) -> list[str]:
    """Which form of a student's vectors fits a budget, and why."""
    options, of = forms_of(student, workspace, measure, depth)
    return pick(options, Budget.parse(text), text, of)[1]
