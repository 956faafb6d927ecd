"""The loop owns time: feeding, logging, evaluating, saving, stopping, resuming.

What must not be reordered: step n is dispatched before the numbers of step n - 1 are
fetched, so the devices never wait for the host; and before an evaluation or a save the
numbers of *every* step so far are fetched, so that nothing that is not finite is kept.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import logging
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from distill_jax.ir.errors import UserError
from distill_jax.models import sharding
from distill_jax.training import state as states
from distill_jax.training.checkpoints import Checkpoints
from distill_jax.training.interrupt import Interrupt, Interrupted
from distill_jax.training.meters import Goodput, Meters
from distill_jax.training.optimizers import Optimizer
from distill_jax.training.prefetch import Fed, Prefetch
from distill_jax.training.progress import Progress
from distill_jax.training.resume import Start, resume_or_start, same_feed
from distill_jax.training.runfiles import Lock, MetricsLog
from distill_jax.training.step import make_gradient, train_step, uses_dropout

_log = logging.getLogger(__name__)

Evaluate = Callable[[Any, int], Mapping[str, float]]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class FitResult:
    """What a call of ``Fit`` ends with.

    Attributes:
        params: of the best evaluation if there is a ``best_measure``, else the last.
        step: updates done; ``best_step``: those of ``params``.
        history: the records of ``metrics.jsonl``.
        signal: number of the signal that stopped it, or None. A command ends with
            ``128 + signal`` then: 143 for SIGTERM.
        finished: "steps" or "patience"; None if it was interrupted.
        seconds: by what they were spent on; see ``Goodput``.
        compiled: number of batch shapes that were compiled.
    """

    params: Any
    step: int
    best_step: int
    history: list[dict]
    signal: int | None = None
    finished: str | None = None
    seconds: dict[str, float] = dataclasses.field(default_factory=dict)
    compiled: int = 0

    @property
    def interrupted(self) -> bool:
        return self.signal is not None


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Fit:
    """Trains a student; the same call on the same directory resumes.

    Attributes:
        steps: updates in all.
        directory: gets ``checkpoints/`` and ``metrics.jsonl``.
        optimizer: see ``optimizers``.
        mesh: None puts all devices on the data axis.
        seed: of dropout.
        chunk: queries represented at once (GradCache); None for the whole batch.
        micro_batch: queries per forward and backward pass; None for the whole batch.
        checkpoint_period: steps between checkpoints; None saves at the end only.
        keep: how many of the newest checkpoints stay, besides the best.
        log_period: steps that one record of ``metrics.jsonl`` is the mean of.
        eval_period: steps between evaluations; None for none.
        best_measure: name among what ``evaluate`` returns that chooses the best.
        best_mode: "max" or "min".
        patience: evaluations without a better one after which training stops.
        config: settings that a resumed run must share, by name.
        may_change: names of ``config`` that may differ from the run resumed.
        compile_cache: folder for compiled programs, reused by later runs.
        collapse_after: steps with all scores of every list equal before a warning.
        query_names: query rows to ids, for messages.
        show: progress on stderr.
    """

    steps: int
    directory: str | Path
    optimizer: Optimizer
    mesh: Mesh | None = None
    seed: int = 0
    chunk: int | None = None
    micro_batch: int | None = None
    checkpoint_period: int | None = 1000
    keep: int = 1
    log_period: int = 1
    eval_period: int | None = None
    best_measure: str | None = None
    best_mode: str = "max"
    patience: int | None = None
    config: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    may_change: tuple[str, ...] = ()
    compile_cache: str | None = None
    collapse_after: int = 20
    query_names: Callable[[np.ndarray], list[str]] | None = None
    show: bool = True

    def __call__(
        self,
        graphdef: Any,
        params: Any,
        objective: Any,
        feed: Callable[[int], Iterator],
        evaluate: Evaluate | None = None,
    ) -> FitResult:
        """Trains until ``steps``, ``patience`` or a signal.

        Args:
            graphdef: the static half of the student.
            params: its initial parameters; not used when there is a checkpoint.
            objective: ``(student, rep, batch) -> (loss, parts)``.
            feed: ``feed(s)`` yields the host batches of steps s, s + 1, ...
            evaluate: ``(params on the mesh, step) -> {measure: value}``.

        Raises:
            UserError: a loss that is not finite, a checkpoint of another
                configuration, a directory in use, a save that failed.
        """
        self._check(evaluate)
        if self.compile_cache is not None:
            use_compile_cache(self.compile_cache)
        with contextlib.ExitStack() as stack:
            if jax.process_index() == 0:
                stack.enter_context(Lock(self.directory))
            run = _Run(self, stack.enter_context(Interrupt()))
            stack.callback(run.close)
            return run.fit(graphdef, params, objective, feed, evaluate)

    def _check(self, evaluate: Evaluate | None) -> None:
        if self.steps < 1:
            raise UserError(f"{self.steps} training steps", "train at least one")
        if self.best_mode not in ("max", "min"):
            raise UserError(f"best_mode is {self.best_mode!r}", "use 'max' or 'min'")
        if (self.eval_period is None) != (evaluate is None):
            raise UserError(
                "an evaluation needs both what to evaluate and a period",
                "set both, or neither",
            )
        if self.patience is not None and self.best_measure is None:
            raise UserError("patience needs a best_measure", "name the measure")


class _Run:
    """The moving parts of one call of ``Fit``."""

    def __init__(self, fit: Fit, interrupt: Interrupt):
        self.fit_ = fit
        self.interrupt = interrupt
        self.mesh = fit.mesh or sharding.make_mesh()
        self.goodput = Goodput()
        self.directory = Path(fit.directory)
        self.shapes: dict[tuple, float] = {}
        self.flat_steps = 0
        self.warned = False
        self.saver: Checkpoints | None = None
        self.log: MetricsLog | None = None
        self.progress: Progress | None = None

    def close(self) -> None:
        for part in (self.progress, self.log, self.saver):
            if part is not None:
                part.close()

    def fit(
        self, graphdef: Any, params: Any, objective: Any, feed: Any, evaluate: Any
    ) -> FitResult:
        fit = self.fit_
        with self.goodput.spent_on("start"):
            start = self.begin(params)
        self.evaluate_ = evaluate
        self.step = start.step
        if start.finished:
            self.progress.say(
                f"complete: step {start.step} of {fit.steps}"
                + (" (patience)" if start.finished == "patience" else "")
            )
            return self.result(start.finished)
        if start.step:
            self.progress.say(f"resumed at step {start.step} of {fit.steps}")
        finished = self.train(graphdef, objective, feed)
        return self.result(finished)

    def begin(self, params: Any) -> Start:
        """Decides where to go on from, and opens the files of the run."""
        fit = self.fit_
        start = resume_or_start(
            self.directory / "checkpoints", fit.config, fit.may_change, fit.steps
        )
        self.notes = start.notes
        self.saver = Checkpoints(self.directory / "checkpoints", keep=fit.keep)
        self.saver.best = (start.notes["best"] or {}).get("step")
        if start.step:
            target = states.abstract(params, fit.optimizer, self.mesh)
            self.state = self.saver.restore(start.step, target)
        else:
            self.state = states.create(params, fit.optimizer, self.mesh, fit.seed)
        first = jax.process_index() == 0
        self.meters = Meters.from_json(start.notes["meters"])
        self.log = (
            MetricsLog(self.directory / "metrics.jsonl", upto=start.step)
            if first
            else None
        )
        self.progress = Progress(fit.steps, start.step, show=fit.show and first)
        return start

    def train(self, graphdef: Any, objective: Any, feed: Any) -> str | None:
        """Runs steps until there is a reason to stop; None for a signal."""
        fit = self.fit_
        # The batch before the next one proves that the feed is the one it was.
        known = self.step - 1 if self.step and self.notes["batch"] else self.step
        pending: tuple[Any, Fed] | None = None
        # A run that was stopped inside an evaluation owes it.
        owed = self.due(fit.eval_period) and self.notes["evaluated"] != self.step
        behind = owed or self.step >= fit.steps
        if behind and (stop := self.boundary()) is not _GO_ON:
            return stop
        with Prefetch(feed, known, self.mesh, stop=fit.steps) as batches:
            source = iter(batches)
            while True:
                with self.goodput.spent_on("input"):
                    fed = next(source, None)
                if fed is None:
                    raise UserError(
                        f"the feed ended at step {self.step} of {fit.steps}",
                        "feeds are endless; lower the steps or repeat the data",
                    )
                if fed.step < self.step:
                    # Only the first process's checksum is in the checkpoint.
                    if jax.process_index() == 0:
                        same_feed(fed.digest, self.notes["batch"], fed.step)
                    continue
                if not self.shapes:
                    self.prepare(graphdef, objective, fed)
                numbers = self.dispatch(fed)
                if pending is not None:
                    self.settle(*pending)
                pending = (numbers, fed)
                self.saver.check()
                if self.at_boundary():
                    self.settle(*pending)
                    pending = None
                    if (stop := self.boundary()) is not _GO_ON:
                        return stop

    def prepare(self, graphdef: Any, objective: Any, fed: Fed) -> None:
        """Prepares the jitted step; each new batch shape compiles at its first use."""
        fit = self.fit_
        dropout = uses_dropout(graphdef, self.state.params, fed.device)
        rows = NamedSharding(self.mesh, sharding.BATCH)
        places = states.shardings(self.state, fit.optimizer, self.mesh)
        gradient = make_gradient(
            graphdef,
            objective,
            chunk=fit.chunk,
            micro_batch=fit.micro_batch,
            rows=rows if self.mesh.size > 1 else None,
        )
        everywhere = NamedSharding(self.mesh, PartitionSpec())
        self.jitted = jax.jit(
            functools.partial(
                train_step,
                gradient=gradient,
                optimizer=fit.optimizer,
                dropout=dropout,
            ),
            donate_argnums=0,
            out_shardings=(places, everywhere),
        )

    def dispatch(self, fed: Fed) -> Any:
        """Starts a step; returns its numbers, still on their way."""
        if fed.shape in self.shapes:
            with jax.transfer_guard("disallow"), self.goodput.spent_on("step"):
                self.state, numbers = self.jitted(self.state, fed.device)
        else:
            began = time.perf_counter()
            with self.goodput.spent_on("compile"), _memory_told(self.fit_):
                self.state, numbers = self.jitted(self.state, fed.device)
            seconds = time.perf_counter() - began
            self.shapes[fed.shape] = seconds
            self.progress.pause(seconds)
            lengths = "x".join(map(str, fed.shape[0][0]))
            self.progress.say(
                f"compiled the step for {lengths} in {seconds:.1f} s "
                f"(shape {len(self.shapes)})"
            )
        self.step += 1
        return numbers

    def settle(self, numbers: Any, fed: Fed) -> None:
        """Fetches a step's numbers, stops at what is not finite, and logs."""
        with self.goodput.spent_on("step"), _memory_told(self.fit_):
            found = {k: float(v) for k, v in jax.device_get(numbers).items()}
        step = fed.step + 1
        if not found.pop("finite"):
            raise self.not_finite(fed, found)
        self.collapse(step, found["score_spread"])
        self.notes["batch"] = fed.digest
        self.meters.add(found)
        self.progress.step(step, found["loss"], fed.queries, fed.tokens)
        if self.due(self.fit_.log_period, step) or self.due(
            self.fit_.eval_period, step
        ):
            self.record(step, fed)

    def record(self, step: int, fed: Fed) -> None:
        means = self.meters.flush()
        if self.log is not None:
            self.log.write(
                {"step": step, "time": time.time(), **means}
                | {"batch": fed.digest, **self.progress.rates()}
            )

    def at_boundary(self) -> bool:
        fit = self.fit_
        return (
            self.step >= fit.steps
            or self.due(fit.eval_period)
            or self.due(fit.checkpoint_period)
            or self.interrupt.wanted(self.step)
        )

    def due(self, period: int | None, step: int | None = None) -> bool:
        step = self.step if step is None else step
        return period is not None and step > 0 and step % period == 0

    def boundary(self) -> Any:
        """Evaluates and saves what is due. Returns why to stop, or ``_GO_ON``."""
        fit = self.fit_
        better, cut = False, False
        if self.due(fit.eval_period) and self.notes["evaluated"] != self.step:
            try:
                with self.interrupt.may_cut(), self.goodput.spent_on("eval"):
                    better = self.evaluate()
            except Interrupted:
                cut = True
        bad = self.notes["bad_evals"]
        if fit.patience is not None and bad >= fit.patience:
            self.notes["finished"] = "patience"
        elif self.step >= fit.steps and not cut:
            self.notes["finished"] = "steps"
        stop = self.interrupt.wanted(self.step)
        if better or stop or self.notes["finished"] or self.due(fit.checkpoint_period):
            self.save(wait=bool(stop or self.notes["finished"]))
        if self.notes["finished"]:
            return self.notes["finished"]
        if stop:
            self.progress.say(f"stopped by a signal; saved at step {self.step}")
            return None
        return _GO_ON

    def evaluate(self) -> bool:
        """Measures the student; returns whether it is the best so far."""
        fit = self.fit_
        began = time.perf_counter()
        found = {
            k: float(v) for k, v in self.evaluate_(self.state.params, self.step).items()
        }
        self.progress.pause(time.perf_counter() - began)
        if fit.best_measure is not None and fit.best_measure not in found:
            raise UserError(
                f"the evaluation has no measure {fit.best_measure!r}",
                f"it has {', '.join(sorted(found))}",
            )
        if self.log is not None:
            self.log.amend(self.step, {f"eval/{k}": v for k, v in found.items()})
        shown = ", ".join(f"{k} {v:.4f}" for k, v in found.items())
        self.progress.say(f"step {self.step}: {shown}")
        self.notes["evaluated"] = self.step
        if fit.best_measure is None:
            return False
        value, best = found[fit.best_measure], self.notes["best"]
        sign = 1 if fit.best_mode == "max" else -1
        better = not math.isnan(value) and (
            best is None or sign * value > sign * best["value"]
        )
        if better:
            self.notes["best"] = {"step": self.step, "value": value, **found}
            self.notes["bad_evals"] = 0
        else:
            self.notes["bad_evals"] += 1
        return better

    def save(self, *, wait: bool) -> None:
        with self.goodput.spent_on("checkpoint"):
            if not bool(_all_finite(self.state.params)):
                raise UserError(
                    f"the parameters of step {self.step} are not finite; not saved",
                    "lower the learning rate, or use float32",
                )
            meta = self.notes | {
                "config": dict(self.fit_.config),
                "meters": self.meters.to_json(),
                "steps": self.fit_.steps,
                "processes": jax.process_count(),
            }
            # Set first: a save deletes what is neither new nor best.
            self.saver.best = (self.notes["best"] or {}).get("step")
            self.saver.save(self.step, self.state, meta, wait=wait)

    def not_finite(self, fed: Fed, found: dict[str, float]) -> UserError:
        """Saves the batch and says which queries it held."""
        path = self.directory / f"not_finite_step_{fed.step + 1}.npz"
        leaves = jax.tree_util.tree_leaves_with_path(fed.host)
        np.savez(
            path,
            **{jax.tree_util.keystr(keys).strip("."): leaf for keys, leaf in leaves},
        )
        rows = fed.host.targets.query_rows
        names: list[str] = []
        if rows is not None:
            rows = np.asarray(rows)[np.asarray(rows) >= 0]
            to_names = self.fit_.query_names
            names = to_names(rows) if to_names else [f"row {row}" for row in rows]
        shown = ", ".join(map(str, names[:8])) + (", ..." if len(names) > 8 else "")
        return UserError(
            f"step {fed.step + 1}: the loss is {found['loss']} and the gradient's norm "
            f"{found['gradient_norm']}; queries {shown or 'unknown'}; batch in {path}",
            "look for labels that are not numbers; lower the learning rate or use "
            "float32",
        )

    def collapse(self, step: int, spread: float) -> None:
        """Warns once when the student gives all docs of a list the same score."""
        self.flat_steps = self.flat_steps + 1 if spread < 1e-6 else 0
        if self.flat_steps >= self.fit_.collapse_after and not self.warned:
            self.warned = True
            _log.warning(
                "step %d: for %d steps all scores of every list are equal: "
                "the student has collapsed",
                step,
                self.flat_steps,
            )

    def result(self, finished: str | None) -> FitResult:
        best = self.notes["best"]
        params, best_step = self.state.params, self.step
        if finished and best and best["step"] != self.step:
            with self.goodput.spent_on("checkpoint"):
                target = jax.tree.map(
                    lambda leaf: jax.ShapeDtypeStruct(
                        leaf.shape, leaf.dtype, sharding=leaf.sharding
                    ),
                    params,
                )
                params = self.saver.restore_params(best["step"], target)
            best_step = best["step"]
        seconds = self.goodput.report()
        if self.shapes:
            spent = ", ".join(f"{k} {v:.1f} s" for k, v in self.goodput.seconds.items())
            self.progress.say(
                f"{len(self.shapes)} compiled shapes; {spent}; "
                f"goodput {seconds['goodput']:.0%}"
            )
        return FitResult(
            params=params,
            step=self.step,
            best_step=best_step,
            history=list(self.log.records) if self.log else [],
            signal=None if finished else self.interrupt.signal,
            finished=finished,
            seconds=seconds,
            compiled=len(self.shapes),
        )


class _GoOn:
    """There is no reason to stop."""


_GO_ON = _GoOn()


@jax.jit
def _all_finite(params: Any) -> Any:
    leaves = [jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(params)]
    return jnp.all(jnp.stack(leaves))


@contextlib.contextmanager
def _memory_told(fit: Fit) -> Iterator[None]:
    """Turns an exhausted device into what to change."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        reason = str(error).splitlines()[0]
        raise UserError(
            f"a training step does not fit on the device: {reason}",
            f"use a GradCache chunk below {fit.chunk or 'the batch size'}, a smaller "
            "batch, shorter texts, or a mesh with fsdp",
        ) from error


def use_compile_cache(folder: str, least_seconds: float = 0.5) -> None:
    """Keeps compiled programs in a folder that only its owner can write.

    Args:
        least_seconds: programs that compile faster are not kept.

    Raises:
        UserError: others can write it: a compiled program is code.
    """
    path = Path(folder).expanduser()
    path.mkdir(parents=True, exist_ok=True, mode=0o700)
    status = path.stat()
    if status.st_uid != os.getuid() or status.st_mode & 0o022:
        raise UserError(
            f"{path}: others can write to this cache of compiled programs",
            f"chmod 700 {path}, or choose another folder",
        )
    jax.config.update("jax_compilation_cache_dir", str(path))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", least_seconds)
