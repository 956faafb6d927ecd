"""Several processes as one program: joining, and detection of lost processes.

Training, encoding and labelling run the same program on one device or on many hosts;
JAX's own runtime connects them. When one of its processes dies, the others end too,
within ``LOST_AFTER`` seconds: nothing waits for ever in a step that cannot end.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Iterator, Mapping
from typing import Any, NoReturn

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
    """Joins the program that this process is part of; returns whether there is one.

    Called before anything asks for a device. TPU pods, Slurm, Open MPI and Kubernetes
    are found by JAX itself. Anywhere else each process is started with the same
    ``JAX_COORDINATOR_ADDRESS`` (host:port of the first) and ``JAX_NUM_PROCESSES``, and
    with a ``JAX_PROCESS_ID`` of its own, from 0.

    Raises:
        UserError: one of the three is missing, or is not a number; or a cluster was
            found and its processes do not meet.
    """
    environment = os.environ if environment is None else environment
    given = {name: environment.get(name, "") for name in _NAMES}
    if not any(given.values()):
        return _in_cluster(environment) and _start()
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
    return _start(
        coordinator_address=address, num_processes=int(count), process_id=int(index)
    )


def _in_cluster(environment: Mapping[str, str]) -> bool:
    """Whether a launcher that JAX recognises started several processes.

    Read from the environment alone: one task of Slurm or one host of a TPU is not a
    cluster, and asking JAX would look for a metadata server on any machine.
    """

    def many(name: str) -> bool:
        value = environment.get(name, "")
        return value.isdigit() and int(value) > 1

    hosts = environment.get("TPU_WORKER_HOSTNAMES", "")
    return (
        (many("SLURM_NTASKS") and "SLURM_PROCID" in environment)
        or many("OMPI_COMM_WORLD_SIZE")
        or "," in hosts
        or "MEGASCALE_COORDINATOR_ADDRESS" in environment
        or (
            "JOB_COMPLETION_INDEX" in environment
            and "KUBERNETES_SERVICE_HOST" in environment
        )
        or _on_tpu_pod(environment)
    )


def _on_tpu_pod(environment: Mapping[str, str]) -> bool:
    """Whether this is one of several hosts of a Cloud TPU slice (not of GKE's)."""
    platforms = environment.get("JAX_PLATFORMS", "")
    if not os.path.exists("/dev/accel0") and not os.path.isdir("/dev/vfio"):
        return False
    if (platforms and "tpu" not in platforms) or "TPU_SKIP_MDS_QUERY" in environment:
        return False
    try:
        from jax._src.clusters.cloud_tpu_cluster import GceTpuCluster

        return bool(GceTpuCluster.is_env_present()) and (
            GceTpuCluster.get_process_count() > 1
        )
    except Exception:
        # No metadata server answers: a TPU of one host, or none.
        return False


def _start(**named: Any) -> bool:
    import jax

    try:
        jax.distributed.initialize(
            **named,
            heartbeat_timeout_seconds=LOST_AFTER,
            # What ends does not wait longer for what is dead.
            shutdown_timeout_seconds=LOST_AFTER,
        )
    except (ValueError, RuntimeError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"the processes of this run do not meet: {reason[:200]}",
            f"start all of them, or set {', '.join(_NAMES)} in each",
        ) from error
    return jax.process_count() > 1


def refuse_own_folders(folder: str | os.PathLike) -> None:
    """Refuses a run whose processes do not see the same folder.

    The first writes a file with a number, all read it. Called by all of them.

    Raises:
        UserError: in every process, if any of them does not see the file.
    """
    if not several():
        return
    import numpy as np
    from jax.experimental import multihost_utils

    number = int(agreed_array(np.int64(time.time_ns())))
    path = os.path.join(folder, f".shared-{number}")
    if is_first():
        os.makedirs(folder, exist_ok=True)
        with open(path, "w", encoding="utf-8") as file:
            file.write(str(number))
            file.flush()
            os.fsync(file.fileno())
    meet("the file is written")
    seen = np.asarray([os.path.exists(path)])
    all_seen = np.asarray(multihost_utils.process_allgather(seen)).reshape(-1)
    if is_first():
        os.unlink(path)
    if not all_seen.all():
        lost = ", ".join(map(str, np.flatnonzero(~all_seen)))
        raise UserError(
            f"{folder}: process {lost} does not see what process 0 writes there",
            "set MODEL_DIR to a folder that all hosts share (NFS, Lustre, Filestore)",
        )


def leave(status: int) -> NoReturn:
    """Ends a process of several whose others may be dead, and waits for none.

    The runtime would wait for them at its own end, and abort with a stack trace.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def is_first() -> bool:
    """Whether this process is the one that writes; starts no backend."""
    state = _state()
    return state is None or not state.process_id


def several() -> bool:
    """Whether there are others."""
    state = _state()
    return state is not None and state.num_processes > 1


def agreed(value: bool) -> bool:
    """Broadcasts a value of the first process to every process."""
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

    # As bytes: JAX would truncate 64-bit values.
    values = np.asarray(values)
    flat = np.ascontiguousarray(values).reshape(-1).view(np.uint8)
    given = np.array(multihost_utils.broadcast_one_to_all(flat), np.uint8)
    return given.view(values.dtype).reshape(values.shape)


def meet(name: str) -> None:
    """Waits until every process is here."""
    if several():
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices(name)


def _state() -> Any:
    # JAX has no public API for this that starts no backend.
    jax = sys.modules.get("jax")
    state = None if jax is None else jax._src.distributed.global_state
    return state if state is not None and state.client is not None else None


@contextlib.contextmanager
def translate_lost_process() -> Iterator[None]:
    """Turns the runtime's error about a dead process into a UserError."""
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
