"""Several processes as one program: who joins, and how soon a lost one is noticed.

Training, encoding and labelling run the same program on one device or on many hosts;
JAX's own runtime connects them. When one of its processes dies, the others end too,
within ``LOST_AFTER`` seconds: nothing waits for ever in a step that cannot end.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator, Mapping
from typing import Any

from distill_jax.io.errors import UserError

LOST_AFTER = 30
"""Seconds without a sign of life after which a process counts as dead."""

_NAMES = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")

_DETERMINISTIC = "--xla_gpu_deterministic_ops=true"


def deterministic() -> None:
    """Asks XLA for the same bits in every run of the same command, on a GPU too.

    Called before anything asks for a device. On a CPU they are the same anyway.
    """
    flags = os.environ.get("XLA_FLAGS", "").split()
    os.environ["XLA_FLAGS"] = " ".join(dict.fromkeys([*flags, _DETERMINISTIC]))


def is_deterministic() -> bool:
    """Whether ``deterministic`` was called, or the user's XLA_FLAGS ask for it."""
    return _DETERMINISTIC in os.environ.get("XLA_FLAGS", "").split()


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


def is_first() -> bool:
    """Whether this process is the one that writes; no backend is started to know."""
    state = _state()
    return state is None or not state.process_id


def several() -> bool:
    """Whether there are others."""
    state = _state()
    return state is not None and state.num_processes > 1


def agreed(value: bool) -> bool:
    """What the first process says, in every process."""
    if not several():
        return value
    import numpy as np

    return bool(agreed_array(np.int32(value)))


def agreed_array(values: Any) -> Any:
    """The first process's numpy array in every process; one shape and dtype in all."""
    if not several():
        return values
    import numpy as np
    from jax.experimental import multihost_utils

    # As bytes: what has 64 bits would lose half of them on its way.
    values = np.ascontiguousarray(values)
    flat = values.reshape(-1).view(np.uint8)
    given = np.array(multihost_utils.broadcast_one_to_all(flat), np.uint8)
    return given.view(values.dtype).reshape(values.shape)


def meet(name: str) -> None:
    """Waits until every process is here."""
    if several():
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices(name)


def _state() -> Any:
    # There is no public form of this question that starts no backend.
    jax = sys.modules.get("jax")
    state = None if jax is None else jax._src.distributed.global_state
    return state if state is not None and state.client is not None else None


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
