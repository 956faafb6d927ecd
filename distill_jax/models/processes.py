"""Several processes as one program: who joins, and how soon a lost one is noticed.

Training, encoding and labelling run the same program on one device or on many hosts;
JAX's own runtime connects them. When one of its processes dies, the others end too,
within ``LOST_AFTER`` seconds: nothing waits for ever in a step that cannot end.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping

from distill_jax.ir.errors import UserError

LOST_AFTER = 30
"""Seconds without a sign of life after which a process counts as dead."""

_NAMES = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")


def join(environment: Mapping[str, str] | None = None) -> bool:
    """Joins the program that the environment names; returns whether there is one.

    Called before anything asks for a device. Each process is started with the same
    ``JAX_COORDINATOR_ADDRESS`` (host:port of the first) and ``JAX_NUM_PROCESSES``, and
    with a ``JAX_PROCESS_ID`` of its own, from 0.

    Raises:
        UserError: one of the three is missing, or is not a number.
    """
    environment = os.environ if environment is None else environment
    given = {name: environment.get(name, "") for name in _NAMES}
    if not any(given.values()):
        return False
    missing = [name for name, value in given.items() if not value]
    if missing:
        raise UserError(
            f"{', '.join(missing)} missing, others of them are set",
            f"a run of several processes needs {', '.join(_NAMES)}",
        )
    address, count, index = given.values()
    if not (count.isdigit() and index.isdigit() and int(index) < int(count)):
        raise UserError(
            f"JAX_PROCESS_ID is {index!r} and JAX_NUM_PROCESSES {count!r}",
            "give the number of processes, and to each its own number below that",
        )
    import jax

    jax.distributed.initialize(
        address,
        num_processes=int(count),
        process_id=int(index),
        heartbeat_timeout_seconds=LOST_AFTER,
        # What ends does not wait longer for what is dead.
        shutdown_timeout_seconds=LOST_AFTER,
    )
    return True


def is_first(environment: Mapping[str, str] | None = None) -> bool:
    """Whether this process is the one that writes, without starting a backend."""
    environment = os.environ if environment is None else environment
    return environment.get(_NAMES[2], "0") in ("", "0")


@contextlib.contextmanager
def loss_told() -> Iterator[None]:
    """Turns what the runtime says about a dead process into what to do."""
    import jax

    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if jax.process_count() == 1 or not _is_loss(str(error)):
            raise
        raise UserError(
            f"process {jax.process_index()} of {jax.process_count()} lost another: "
            f"{str(error).splitlines()[0][:200]}",
            "start all processes again: the run goes on from its last checkpoint",
        ) from error


def _is_loss(message: str) -> bool:
    signs = ("gloo", "nccl", "connection", "heartbeat", "unavailable", "barrier")
    return any(sign in message.lower() for sign in signs)
