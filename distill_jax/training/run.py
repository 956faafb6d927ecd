"""The loop owns time: feeding, logging, evaluating, saving, stopping, resuming.

What must not be reordered: step n is dispatched before the numbers of step n - 1 are
fetched, so the devices never wait for the host; and before an evaluation or a save the
numbers of *every* step so far are fetched, so that nothing that is not finite is kept.
"""

from __future__ import annotations

import contextlib
import functools
import math
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from distill_jax.io.errors import UserError
from distill_jax.runtime import sharding
from distill_jax.runtime.interrupt import Interrupt, Interrupted
from distill_jax.training import state as states
from distill_jax.training.checkpoints import Checkpoints
from distill_jax.training.failures import (
    CollapseWatch,
    evaluation_out_of_memory,
    memory_told,
    not_finite,
)
from distill_jax.training.meters import Goodput, Meters
from distill_jax.training.options import Evaluate, FitOptions, FitResult
from distill_jax.training.prefetch import Fed, Prefetch
from distill_jax.training.programs import Programs
from distill_jax.training.progress import Progress
from distill_jax.training.resume import resume_or_start, same_feed
from distill_jax.training.runfiles import MetricsLog
from distill_jax.training.state import TrainState


class Run:
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
        """Decides where to go on from, and opens the files of the run.

        Args:
            stack: closes them.
            at_once: at most so many queries at a time, whatever the run had before.
        """
        self.options, self.interrupt, self.evaluate = options, interrupt, evaluate
        self.goodput = Goodput()
        self.directory = Path(options.directory)
        self.mesh = options.mesh or sharding.make_mesh()
        self.programs: Programs | None = None
        self.collapse = CollapseWatch(options.collapse_after)
        first = jax.process_index() == 0
        with self.goodput.spent_on("start"):
            folder = self.directory / "checkpoints"
            start = resume_or_start(
                folder, options.config, options.may_change, options.steps
            )
            self.step, self.notes = start.step, start.notes
            self.notes["at_once"] = at_once or start.notes["at_once"]
            self.meters = Meters.from_json(start.notes["meters"])
            self.saver = Checkpoints(folder, keep=options.keep)
            stack.callback(self.saver.close)
            self.saver.best = (start.notes["best"] or {}).get("step")
            self.state = self.first_state(params)
            self.log: MetricsLog | None = None
            if first:
                path = self.directory / "metrics.jsonl"
                self.log = MetricsLog(path, upto=self.step)
                stack.callback(self.log.close)
            self.progress = Progress(
                options.steps, self.step, show=options.show and first
            )
            stack.callback(self.progress.close)

    def first_state(self, params: Any) -> TrainState:
        optimizer = self.options.optimizer
        if not self.step:
            return states.create(params, optimizer, self.mesh, self.options.seed)
        target = states.abstract(params, optimizer, self.mesh)
        return self.saver.restore(self.step, target)

    def fit(self, graphdef: Any, objective: Any, feed: Any) -> FitResult:
        """Trains to the end, unless there is nothing left to do."""
        finished, total = self.notes["finished"], self.options.steps
        if finished:
            why = " (patience)" if finished == "patience" else ""
            self.progress.say(f"complete: step {self.step} of {total}{why}")
        else:
            if self.step:
                self.progress.say(f"resumed at step {self.step} of {total}")
            finished = self.train(graphdef, objective, feed)
        return self.result(finished)

    def train(self, graphdef: Any, objective: Any, feed: Any) -> str | None:
        """Runs steps until there is a reason to stop; None for a signal."""
        options = self.options
        # The batch before the next one proves that the feed is the one it was.
        known = self.step - 1 if self.step and self.notes["batch"] else self.step
        pending: tuple[Any, Fed] | None = None
        # A run that was stopped inside an evaluation owes it.
        owed = self.due(options.eval_period) and self.notes["evaluated"] != self.step
        behind = owed or self.step >= options.steps
        if behind and (stop := self.boundary()) is not _GO_ON:
            return stop
        programs = self.programs = Programs(
            graphdef,
            objective,
            options,
            self.mesh,
            at_once=self.notes["at_once"],
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
                        same_feed(fed.digest, self.notes["batch"], fed.step)
                    continue
                numbers = self.dispatch(fed, programs)
                if pending is not None:
                    self.settle(*pending)
                pending = (numbers, fed)
                self.saver.check()
                if self.at_boundary():
                    self.settle(*pending)
                    pending = None
                    if (stop := self.boundary()) is not _GO_ON:
                        return stop

    def dispatch(self, fed: Fed, programs: Programs) -> Any:
        """Starts a step; returns its numbers, still on their way."""
        if fed not in programs:
            began = time.perf_counter()
            with self.goodput.spent_on("compile"):
                programs.compile(self.state, fed)
            seconds = time.perf_counter() - began
            self.progress.pause(seconds)
            lengths = "x".join(map(str, fed.shape[0][0]))
            self.progress.say(
                f"compiled the step for {lengths} in {seconds:.1f} s "
                f"(shape {len(programs)})"
            )
        with (
            jax.transfer_guard("disallow"),
            self.goodput.spent_on("step"),
            memory_told(functools.partial(programs.out_of_memory, fed)),
        ):
            self.state, numbers = programs(self.state, fed)
        self.step += 1
        return numbers

    def settle(self, numbers: Any, fed: Fed) -> None:
        """Fetches a step's numbers, stops at what is not finite, and logs."""
        assert self.programs is not None
        told = functools.partial(self.programs.out_of_memory, fed)
        with self.goodput.spent_on("step"), memory_told(told):
            found = {k: float(v) for k, v in jax.device_get(numbers).items()}
        step = fed.step + 1
        if not found.pop("finite"):
            names = self.options.query_names
            raise not_finite(fed, found, self.directory, names)
        self.collapse.see(step, found["score_spread"])
        self.notes["batch"] = fed.digest
        self.meters.add(found)
        self.progress.step(step, found["loss"], fed.queries, fed.tokens)
        if self.due(self.options.log_period, step) or self.due(
            self.options.eval_period, step
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
        options = self.options
        return (
            self.step >= options.steps
            or self.due(options.eval_period)
            or self.due(options.checkpoint_period)
            or self.interrupt.wanted(self.step)
        )

    def due(self, period: int | None, step: int | None = None) -> bool:
        step = self.step if step is None else step
        return period is not None and step > 0 and step % period == 0

    def boundary(self) -> Any:
        """Evaluates and saves what is due. Returns why to stop, or ``_GO_ON``."""
        options = self.options
        better, cut = False, False
        if self.due(options.eval_period) and self.notes["evaluated"] != self.step:
            try:
                better = self.measure()
            except Interrupted:
                cut = True
        bad = self.notes["bad_evals"]
        if options.patience is not None and bad >= options.patience:
            self.notes["finished"] = "patience"
        elif self.step >= options.steps and not cut:
            self.notes["finished"] = "steps"
        stop = self.interrupt.wanted(self.step)
        last = bool(stop or self.notes["finished"])
        if better or last or self.due(options.checkpoint_period):
            self.save(wait=last)
        if self.notes["finished"]:
            return self.notes["finished"]
        if stop:
            self.progress.say(f"stopped by a signal; saved at step {self.step}")
            return None
        return _GO_ON

    def measure(self) -> bool:
        """Evaluates the student; returns whether it is the best so far.

        Raises:
            OutOfMemory: it does not fit on a device beside the moments.
            Interrupted: a signal came; nothing is noted, so it is done again.
        """
        options = self.options
        assert self.evaluate is not None
        began = time.perf_counter()
        told = functools.partial(evaluation_out_of_memory, self.step)
        with (
            self.interrupt.may_cut(),
            self.goodput.spent_on("eval"),
            memory_told(told),
        ):
            found = self.evaluate(self.state.params, self.step)
        found = {name: float(value) for name, value in found.items()}
        self.progress.pause(time.perf_counter() - began)
        if options.best_measure is not None and options.best_measure not in found:
            raise UserError(
                f"the evaluation has no measure {options.best_measure!r}",
                f"it has {', '.join(sorted(found))}",
            )
        if self.log is not None:
            self.log.amend(self.step, {f"eval/{k}": v for k, v in found.items()})
        shown = ", ".join(f"{k} {v:.4f}" for k, v in found.items())
        self.progress.say(f"step {self.step}: {shown}")
        self.notes["evaluated"] = self.step
        if options.best_measure is None:
            return False
        value, best = found[options.best_measure], self.notes["best"]
        sign = 1 if options.best_mode == "max" else -1
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
                "config": dict(self.options.config),
                "meters": self.meters.to_json(),
                "steps": self.options.steps,
                "processes": jax.process_count(),
            }
            # Set first: a save deletes what is neither new nor best.
            self.saver.best = (self.notes["best"] or {}).get("step")
            self.saver.save(self.step, self.state, meta, wait=wait)

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
        compiled = len(self.programs or ())
        if compiled:
            spent = ", ".join(f"{k} {v:.1f} s" for k, v in self.goodput.seconds.items())
            self.progress.say(
                f"{compiled} compiled shapes; {spent}; goodput {seconds['goodput']:.0%}"
            )
        return FitResult(
            params=params,
            step=self.step,
            best_step=best_step,
            history=list(self.log.records) if self.log else [],
            signal=None if finished else self.interrupt.signal,
            finished=finished,
            seconds=seconds,
            compiled=compiled,
        )


class _GoOn:
    """There is no reason to stop."""


_GO_ON = _GoOn()


@jax.jit
def _all_finite(params: Any) -> Any:
    leaves = [jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(params)]
    return jnp.all(jnp.stack(leaves))
