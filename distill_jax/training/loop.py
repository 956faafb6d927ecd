"""Training on one page: feed, step, log, evaluate, save; and in which order.

1. ``Fit.__call__`` locks the folder; out of memory, it repeats with smaller pieces.
2. ``TrainingRun.__init__`` continues from a checkpoint or starts from the parameters.
3. ``TrainingRun.train`` is the loop. A batch is prefetched to the devices, its step is
   compiled once for its shape and dispatched, and while it runs the numbers of the
   step before are fetched: the devices never wait for the host.
4. ``TrainingRun.boundary`` evaluates, then saves. Before it the numbers of *every* step
   are fetched, so that nothing that is not finite is kept. Do not reorder these.
   The step itself is ``step.train_step``, which is pure.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import gc
import logging
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax

from distill_jax.io.errors import UserError
from distill_jax.models import lora
from distill_jax.runtime import sharding
from distill_jax.runtime.compile_cache import use_compile_cache
from distill_jax.runtime.interrupt import Interrupt, Interrupted
from distill_jax.runtime.processes import translate_lost_process
from distill_jax.training import failures
from distill_jax.training import state as states
from distill_jax.training.checkpoints import Checkpoints
from distill_jax.training.failures import OutOfMemory, translate_out_of_memory
from distill_jax.training.meters import Goodput
from distill_jax.training.options import Evaluate, FitOptions, FitResult
from distill_jax.training.prefetch import HostBatch, Prefetch
from distill_jax.training.programs import Programs
from distill_jax.training.progress import Progress
from distill_jax.training.resume import resume_or_start, same_feed
from distill_jax.training.runfiles import Lock, open_log

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Fit(FitOptions):
    """Trains a student; see ``FitOptions`` for the settings."""

    def __call__(
        self,
        graphdef: Any,
        params: Any,
        objective: Any,
        feed: Callable[[int], Iterator],
        evaluate: Evaluate | None = None,
    ) -> FitResult:
        """Trains until ``steps``, ``patience`` or a signal; a second call continues.

        Args:
            graphdef: the static half of the student.
            params: its initial parameters; not used when there is a checkpoint.
            objective: ``(student, rep, batch) -> (loss, parts)``.
            feed: ``feed(s)`` yields the host batches of steps s, s + 1, ...
            evaluate: ``(params on the mesh, step) -> {measure: value}``.

        Raises:
            OutOfMemory: a step of one query a device does not fit.
            UserError: a loss that is not finite, a checkpoint of another
                configuration, a directory in use, a save that failed.
        """
        self.check(evaluate)
        if self.compile_cache is not None:
            use_compile_cache(self.compile_cache)
        with contextlib.ExitStack() as stack:
            if jax.process_index() == 0:
                stack.enter_context(Lock(self.directory))
            interrupt = stack.enter_context(Interrupt())
            at_once: int | None = None
            while True:
                try:
                    with translate_lost_process(), contextlib.ExitStack() as files:
                        run = TrainingRun(
                            self, interrupt, files, params, evaluate, at_once
                        )
                        return run.fit(graphdef, objective, feed)
                except OutOfMemory as error:
                    # Other processes wait in a step that this one cannot repeat.
                    if error.at_once is None or jax.process_count() > 1:
                        raise
                    _log.warning("%s", error)
                    at_once = error.at_once
                # A failed step destroys its state: continue from the disk, after
                # what is left of it on the devices is freed.
                run = None
                gc.collect()


class TrainingRun:
    """The moving parts of one call of ``Fit``."""

    def __init__(
        self,
        options: FitOptions,
        interrupt: Interrupt,
        stack: contextlib.ExitStack,
        params: Any,
        evaluate: Evaluate | None,
        at_once: int | None = None,
    ):
        """Decides where to start or continue, and opens the files of the run.

        Args:
            stack: closes them.
            at_once: maximum number of queries at a time, replacing the run's value.
        """
        self.options, self.interrupt, self.evaluate = options, interrupt, evaluate
        self.directory = Path(options.directory)
        self.mesh = options.mesh or sharding.make_mesh()
        self.goodput = Goodput()
        self.programs: Programs | None = None
        self.collapse = failures.CollapseWatch(options.collapse_after)
        with self.goodput.spent_on("start"):
            folder = self.directory / "checkpoints"
            self.step, self.notes = resume_or_start(
                folder, options.config, options.may_change, options.steps
            )
            self.notes.at_once = at_once or self.notes.at_once
            self.saver = Checkpoints(folder, keep=options.keep)
            stack.callback(self.saver.close)
            self.saver.best = self.notes.best_step
            if self.step:
                target = states.abstract(params, options.optimizer, self.mesh)
                self.state = self.saver.restore(self.step, target)
            else:
                self.state = states.create(
                    params, options.optimizer, self.mesh, options.seed
                )
            self.log = open_log(options, self.step, stack)
            self.progress = Progress(
                options.steps, self.step, show=options.show and self.log is not None
            )
            stack.callback(self.progress.close)

    def fit(self, graphdef: Any, objective: Any, feed: Any) -> FitResult:
        """Trains to the end, unless the run is complete."""
        finished = self.notes.finished
        where = f"step {self.step} of {self.options.steps}"
        if finished:
            why = " (patience)" if finished == "patience" else ""
            self.progress.say(f"complete: {where}{why}")
            return self.result(finished)
        if self.step:
            self.progress.say(f"resumed at {where}")
        return self.result(self.train(graphdef, objective, feed))

    def train(self, graphdef: Any, objective: Any, feed: Any) -> str | None:
        """Runs steps until there is a reason to stop, which it returns.

        Returns:
            "steps" or "patience"; None for a signal.
        """
        options = self.options
        # The batch before the next one proves that the feed is the same as before.
        known = self.step - 1 if self.step and self.notes.batch else self.step
        pending: tuple[Any, HostBatch] | None = None
        if options.eval_first and not self.step and self.evaluate is not None:
            # A signal that cuts it short stops the run at its next boundary.
            with contextlib.suppress(Interrupted):
                if self.measure():
                    self.save(wait=False)
        # A run that was stopped during an evaluation repeats it.
        owed = self.due(options.eval_period) and self.notes.evaluated != self.step
        if (owed or self.step >= options.steps) and self.boundary():
            return self.notes.finished
        programs = self.programs = Programs(
            graphdef,
            objective,
            options,
            self.mesh,
            at_once=self.notes.at_once,
            say=self.progress.say,
        )
        with Prefetch(feed, known, self.mesh, stop=options.steps) as batches:
            source = iter(batches)
            while True:
                with self.goodput.spent_on("input"):
                    fed = next(source, None)
                if fed is None:
                    raise UserError(
                        f"the feed ended at step {self.step} of {options.steps}",
                        "feeds are endless; lower the steps or repeat the data",
                    )
                if fed.step < self.step:
                    # Only the first process's checksum is in the checkpoint.
                    if jax.process_index() == 0:
                        same_feed(fed.digest, str(self.notes.batch), fed.step)
                    continue
                numbers = self.dispatch(fed, programs)
                if pending is not None:
                    self.settle(*pending)
                pending = (numbers, fed)
                self.saver.check()
                if self.at_boundary():
                    self.settle(*pending)
                    pending = None
                    if self.boundary():
                        return self.notes.finished

    def dispatch(self, fed: HostBatch, programs: Programs) -> Any:
        """Starts a step; returns its numbers, which the devices still compute."""
        if fed not in programs:
            began = time.perf_counter()
            with self.goodput.spent_on("compile"):
                programs.compile(self.state, fed)
            seconds = time.perf_counter() - began
            self.progress.pause(seconds)
            shape = f"{'x'.join(map(str, fed.shape[0][0]))} in {seconds:.1f} s"
            self.progress.say(f"compiled the step for {shape} (shape {len(programs)})")
        with (
            jax.transfer_guard("disallow"),
            self.goodput.spent_on("step"),
            translate_out_of_memory(functools.partial(programs.out_of_memory, fed)),
        ):
            self.state, numbers = programs(self.state, fed)
        self.step += 1
        return numbers

    def settle(self, numbers: Any, fed: HostBatch) -> None:
        """Fetches a step's numbers, stops at what is not finite, and logs."""
        assert self.programs is not None
        options, notes, step = self.options, self.notes, fed.step + 1
        explain = functools.partial(self.programs.out_of_memory, fed)
        with self.goodput.spent_on("step"), translate_out_of_memory(explain):
            found = {k: float(v) for k, v in jax.device_get(numbers).items()}
        if not found.pop("finite"):
            raise failures.not_finite(fed, found, self.directory, options.query_names)
        self.collapse.see(step, found["score_spread"])
        notes.batch = fed.digest
        notes.meters.add(found)
        self.progress.step(step, found["loss"], fed.queries, fed.tokens)
        if self.due(options.log_period, step) or self.due(options.eval_period, step):
            means = notes.meters.flush()
            if self.log is not None:
                self.log.write(
                    {"step": step, "time": time.time(), **means}
                    | {"batch": fed.digest, **self.progress.rates()}
                )

    def due(self, period: int | None, step: int | None = None) -> bool:
        """Whether a period ends at a step, by default the current one."""
        step = self.step if step is None else step
        return period is not None and step > 0 and step % period == 0

    def at_boundary(self) -> bool:
        """Whether to check for an evaluation, a save or a stop."""
        options = self.options
        return (
            self.step >= options.steps
            or self.due(options.eval_period)
            or self.due(options.checkpoint_period)
            or self.interrupt.wanted(self.step)
        )

    def boundary(self) -> bool:
        """Evaluates and saves at their periods; returns whether to stop."""
        options, notes = self.options, self.notes
        better, cut = False, False
        if self.due(options.eval_period) and notes.evaluated != self.step:
            try:
                better = self.measure()
            except Interrupted:
                cut = True
        if options.patience is not None and notes.bad_evals >= options.patience:
            notes.finished = "patience"
        elif self.step >= options.steps and not cut:
            notes.finished = "steps"
        stopped = self.interrupt.wanted(self.step)
        last = bool(stopped or notes.finished)
        if better or last or self.due(options.checkpoint_period):
            self.save(wait=last)
        if stopped and not notes.finished:
            self.progress.say(f"stopped by a signal; saved at step {self.step}")
        return last

    def measure(self) -> bool:
        """Evaluates the student; returns whether it is the best so far.

        Raises:
            OutOfMemory: it does not fit on a device together with the moments.
            Interrupted: a signal came; nothing is noted, so it is repeated.
        """
        options = self.options
        assert self.evaluate is not None
        began = time.perf_counter()
        fits = translate_out_of_memory(
            functools.partial(failures.evaluation_out_of_memory, self.step)
        )
        with self.interrupt.may_cut(), self.goodput.spent_on("eval"), fits:
            params = states.student_params(self.state.params, self.mesh)
            found = self.evaluate(params, self.step)
        found = {name: float(value) for name, value in found.items()}
        self.progress.pause(time.perf_counter() - began)
        if self.log is not None:
            self.log.amend(self.step, {f"eval/{k}": v for k, v in found.items()})
        shown = ", ".join(f"{k} {v:.4f}" for k, v in found.items())
        self.progress.say(f"step {self.step}: {shown}")
        return self.notes.judge(
            self.step, found, options.best_measure, options.best_mode
        )

    def save(self, *, wait: bool) -> None:
        """Saves the state and the notes; ``wait`` until they are on the disk."""
        with self.goodput.spent_on("checkpoint"):
            if not bool(states.all_finite(self.state.params)):
                raise UserError(
                    f"the parameters of step {self.step} are not finite; not saved",
                    "lower the learning rate, or use float32",
                )
            meta = self.notes.to_json() | {
                "config": dict(self.options.config),
                "steps": self.options.steps,
                "processes": jax.process_count(),
            }
            # Set first: a save deletes what is neither new nor best.
            self.saver.best = self.notes.best_step
            self.saver.save(self.step, self.state, meta, wait=wait)

    def result(self, finished: str | None) -> FitResult:
        """The parameters of the best evaluation or of the last step, and the log."""
        params, step, best = self.state.params, self.step, self.notes.best_step
        if finished and best not in (None, step):
            with self.goodput.spent_on("checkpoint"):
                params, step = self.saver.restore_params(best, params), best
        compiled = len(self.programs or ())
        if compiled:
            self.progress.say(f"{compiled} compiled shapes; {self.goodput}")
        return FitResult(
            params=states.student_params(params, self.mesh),
            adapters=lora.parted(params)[1],
            step=self.step,
            best_step=step,
            history=list(self.log.records) if self.log else [],
            signal=None if finished else self.interrupt.signal,
            finished=finished,
            seconds=self.goodput.report(),
            compiled=compiled,
        )
