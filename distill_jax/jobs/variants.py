"""One recipe under several settings, over one labelling: ablations, several students.

Every row is a whole job of the recipe, in a folder of its own, that differs from the
recipe in the names that the row sets. What costs money or time to label is shared:
vectors, tokens, scores and replies of an LLM are shared in ``MODEL_DIR/shared``.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Mapping, Set
from pathlib import Path
from typing import Any

from distill_jax import report
from distill_jax.evaluation.significance import Comparison, compare, correct
from distill_jax.io.errors import UserError, near
from distill_jax.io.files import atomic_write
from distill_jax.io.reading import read_json
from distill_jax.io.values import UserPath
from distill_jax.jobs import budget
from distill_jax.jobs.budget import BudgetText
from distill_jax.jobs.compare import facts_of
from distill_jax.jobs.distill import Distill
from distill_jax.jobs.plan import plan
from distill_jax.jobs.tables import slug
from distill_jax.report.grid import latex, write_tsv
from distill_jax.workspace.console import end, say
from distill_jax.workspace.context import Workspace
from distill_jax.workspace.describe import describe

Changes = Mapping[str, Any]
FIRST = "first_stage"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Variants:
    """A grid of changes to one recipe; each row is trained, resumed and compared.

    Attributes:
        directory: ``MODEL_DIR``; each row has a folder in it.
        job: the recipe's own job.
        grid: axes, each ``{name: {NAME: what --gin.NAME= would take}}``. A row is one
            choice of each axis; the first row is what the others are compared with.
        rows: names of the rows to compute; None computes all.
        each_other: tests every pair of rows, not only each against the first.
        timed: loads each student to measure its speed and its index.
        budget: e.g. "50 MB, 5 ms": names the best row within it, see ``jobs.budget``.
        paper: its figures are shown beside the rows that they belong to.
        build: gives a row's job, its gin text and the user's names that it does not
            read; set by what reads the recipe.
        figures: the paper's, by the changes that lead to them; set likewise.
    """

    directory: UserPath
    job: Distill
    grid: tuple[Any, ...]
    rows: tuple[str, ...] | None = None
    each_other: bool = False
    timed: bool = True
    budget: BudgetText | None = None
    paper: str | None = None
    build: Callable[[Changes], tuple[Any, str, Set[str]]] | None = dataclasses.field(
        default=None, repr=False
    )
    figures: Mapping[Any, str] = dataclasses.field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        if self.job.collections:
            raise UserError(
                "rows are compared on one collection, and COLLECTIONS are several",
                "give COLLECTION, or a recipe without rows",
            )

    def __call__(self, *, config: str = "", command: str = "") -> int:
        """Runs the rows that are not finished; returns the exit status."""
        directory = Path(self.directory)
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "config.gin").write_text(config, encoding="utf-8")
        jobs = self.jobs()
        for number, (name, (job, text)) in enumerate(jobs.items(), 1):
            say(f"row {number} of {len(jobs)}: {name}")
            status = job(config=text, command=command)
            end()  # the row's verdict, before the next row's lines
            if status:
                return status
        self._publish({name: job for name, (job, _) in jobs.items()}, command)
        return 0

    def plan(self) -> int:
        """Plans every row; steps that several share are compiled once."""
        known: dict[str, Any] = {}
        changes = self.changes()
        for name, (job, _) in self.jobs().items():
            told = " ".join(f"{key}={value}" for key, value in changes[name].items())
            figure = self.figure(changes[name])
            print(
                f"\n== {name}: {told or 'the recipe'}" + f"  [{figure}]" * bool(figure)
            )
            plan(job, known)
        return 0

    def changes(self) -> dict[str, Changes]:
        """The rows to compute: their names, and what each changes.

        Raises:
            UserError: a row is unknown, or two axes change the same name.
        """
        found: dict[str, Changes] = {}
        for choice in itertools.product(*(axis.items() for axis in self.grid)):
            name = ", ".join(part for part, _ in choice)
            pairs = [pair for _, changes in choice for pair in changes.items()]
            if len(dict(pairs)) < len(pairs):
                raise UserError(
                    f"row {name}: two axes of GRID change one name", "join these axes"
                )
            found[name] = {key: _text(value) for key, value in pairs}
        for name in self.rows or ():
            if name not in found:
                raise UserError(
                    f"no row {name!r}{near(name, found)}", f"one of {', '.join(found)}"
                )
        return {name: found[name] for name in self.rows or found}

    def jobs(self) -> dict[str, tuple[Distill, str]]:
        """Each row's job, and the gin text that makes it alone.

        Raises:
            UserError: a row that is the same job as another, or a name that no row
                reads.
        """
        assert self.build is not None
        jobs: dict[str, tuple[Distill, str]] = {}
        same: dict[str, str] = {}
        unread: list[Set[str]] = []
        for name, changes in self.changes().items():
            folder = Path(self.directory) / slug(name)
            given = {
                **changes,
                "MODEL_DIR": str(folder),
                "distill.Distill.shared": str(Path(self.directory) / "shared"),
            }
            job, text, unused = self.build(given)
            for key in sorted(unused & set(changes)):
                raise UserError(
                    f"row {name}: nothing reads {key} there", "take it out of GRID"
                )
            unread.append(unused)
            key = repr(describe(dataclasses.replace(job, directory="")))
            if key in same:
                raise UserError(
                    f"rows {same[key]} and {name} are the same job",
                    "leave one out of ROWS: what a row changes is what the other has",
                )
            same[key] = name
            jobs[name] = (job, text)
        for name in sorted(frozenset.intersection(*map(frozenset, unread))):
            raise UserError(f"no row reads {name}", "take it out")
        return jobs

    def figure(self, changes: Changes) -> str:
        """What the paper reports of a row; "" where that is not written down."""
        return self.figures.get(frozenset(changes.items()), "")

    def _publish(self, jobs: Mapping[str, Distill], command: str) -> None:
        directory, changes = Path(self.directory), self.changes()
        reports = {
            name: read_json(Path(job.directory) / "report.json")
            for name, job in jobs.items()
        }
        if not all("queries" in found for found in reports.values()):
            say("no judgements: nothing is compared; each row's folder has its student")
            return
        systems, befores, means = _systems(reports)
        measure = next(iter(reports.values()))["queries"]["measure"]
        data = report.compare_systems(
            {name: {measure: values} for name, values in systems.items()},
            measure,
            baseline=FIRST if self.each_other else next(iter(jobs)),
        )
        pairs = [(befores[name], name) for name in jobs if befores[name] in systems]
        if self.each_other:
            pairs += itertools.combinations(jobs, 2)
        tests = _tests(systems, data["baseline"], pairs, measure)
        data["significance"] = [test.as_dict() for test in tests]
        verdicts = {(test.baseline, test.system): test.verdict() for test in tests}
        key = (data["baseline"], data["system"])
        data |= {"measures": means, "verdict": verdicts.get(key, data["verdict"])}
        workspace = next(iter(jobs.values())).workspace() if self.timed else None
        data |= {
            "title": f"{len(jobs)} variants of one recipe",
            "collection": self.job.collection,
            "systems": {
                name: {
                    **self._facts(job, workspace),
                    **(
                        {"paper": figure}
                        if (figure := self.figure(changes[name]))
                        else {}
                    ),
                    "seconds": reports[name].get("cost", {}).get("seconds"),
                }
                for name, job in jobs.items()
            },
            "again": command,
        }
        if self.budget is not None:
            data["notices"] = [*data.get("notices", ()), *self._within(data, measure)]
        page = report.publish(directory, data)
        print(report.summary(data))
        heads = list(dict.fromkeys(k for row in data["systems"].values() for k in row))
        rows = [
            [name, *(row.get(head) or "" for head in heads)]
            for name, row in data["systems"].items()
        ]
        print(report.aligned(rows, ["", *(head.replace("_", " ") for head in heads)]))
        self._write_tables(directory, data, changes)
        print(f"report: {page}")

    def _facts(self, job: Distill, workspace: Workspace | None) -> dict[str, Any]:
        return {} if workspace is None else facts_of(Path(job.directory), workspace)

    def _within(self, data: Mapping[str, Any], measure: str) -> list[str]:
        """Which row fits the budget best, and why. A reranker keeps no vectors."""
        assert self.budget is not None
        options = [
            budget.Option(
                name,
                facts.get("index_bytes", 0),
                1e3 / facts["queries_per_second"],
                data["measures"][name][measure],
            )
            for name, facts in data["systems"].items()
            if "queries_per_second" in facts and name in data["measures"]
        ]
        of = f"{measure} on the test queries"
        within = budget.Budget.parse(self.budget)
        told = budget.pick(options, within, self.budget, of)[1]
        for sentence in told:
            say(sentence)
        return told

    def _write_tables(self, directory: Path, data: dict, changes: Mapping) -> None:
        baseline, primary = data["baseline"], data["primary"]
        marks = {
            (c["system"], c["measure"]): Comparison(**c)
            for c in data["significance"]
            if c["baseline"] == baseline
        }
        figures = {
            name: {primary: self.figure(changes[name])}
            for name in changes
            if self.figure(changes[name])
        }
        names = list(next(iter(data["measures"].values())))
        cells = {
            system: {name: found.get(name) for name in names}
            for system, found in data["measures"].items()
        }
        rows = [
            (name, system, self.job.collection, found[name],
             figures.get(system, {}).get(name, ""),
             getattr(marks.get((system, name)), "p_holm", ""))
            for name in names
            for system, found in cells.items()
        ]  # fmt: skip
        write_tsv(directory / "table.tsv", rows)
        with atomic_write(directory / "table.tex") as out:
            out.write(latex(cells, marks, figures, primary))
        print(f"table: {directory / 'table.tsv'}, {directory / 'table.tex'}")


def _text(value: Any) -> str:
    return value if isinstance(value, str) else repr(value)


def _systems(
    reports: Mapping[str, dict],
) -> tuple[dict[str, dict[str, float]], dict[str, str], dict[str, dict[str, float]]]:
    """Values per query and means of all systems; each row's name for its start.

    A first stage or a start that several rows share is there once.
    """
    values: dict[str, dict[str, float]] = {}
    means: dict[str, dict[str, float]] = {}
    befores: dict[str, str] = {}

    def add(name: str, found: dict, system: str) -> str:
        per_query = found["queries"]["values"].get(system)
        if per_query is None:
            return ""
        for other, known in values.items():
            if known == per_query and system != found["system"]:
                return other
        values[name], means[name] = per_query, found["measures"][system]
        return name

    for name, found in reports.items():
        add(FIRST if FIRST not in values else f"{name}: {FIRST}", found, FIRST)
    for name, found in reports.items():
        befores[name] = add(f"{name} before", found, "before")
    for name, found in reports.items():
        add(name, found, found["system"])
    return values, befores, means


def _tests(
    values: Mapping[str, Mapping[str, float]],
    baseline: str,
    pairs: list[tuple[str, str]],
    measure: str,
) -> list[Comparison]:
    """Tests of these pairs, then of all against the baseline, corrected together."""
    pairs = [*pairs, *((baseline, name) for name in values if name != baseline)]
    made = [
        compare(values[a], values[b], measure=measure, baseline=a, system=b)
        for a, b in dict.fromkeys(pairs)
    ]
    return correct(made)
