"""Find out which share of a job this process has: from the command line, or from the launcher of a cluster.

Cells need nothing of one another. So processes meet once, to learn who they are, and part: one that is lost then takes
nothing with it but the cells it was at.
"""

import contextlib
import dataclasses
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from .shards import Store
from .types import refuse

BEATS = "processes"  # folder of signs of life
BEAT_SECONDS = 2.0
# number of tasks that a launcher says it started
LAUNCHERS = ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE")
TPU_WORKERS = "TPU_WORKER_HOSTNAMES"
JOIN_SECONDS = 120
NOBODY = 2  # exit code, that of bad input
EXAMPLE = "--coordinator 10.0.0.1:9876 --processes 2 --process 0"


@dataclasses.dataclass(frozen=True)
class Share:
    """Hold a process's place: it takes every `count`-th batch, beginning with `index`.

    Parameters
    ----------
    index, count : place from 0, and how many there are.
    joined : whether all of them were started together, so that one may wait for the others.
    """

    index: int = 0
    count: int = 1
    joined: bool = False


def read_shard(text: str) -> Share:
    """Read a share such as 0/4.

    Raises
    ------
    InputError
        On anything but i/n with 0 <= i < n.

    Examples
    --------
    >>> read_shard("3/4")
    Share(index=3, count=4, joined=False)
    """
    index, slash, count = text.partition("/")
    if not (slash and index.isdecimal() and count.isdecimal() and int(index) < int(count)):
        refuse(f"--shard {text}", "i/n with i from 0 to n-1", "--shard 0/4")
    return Share(int(index), int(count))


def launched(environment: Mapping[str, str]) -> bool:
    """Tell whether a launcher started several processes, by what Slurm, Open MPI and TPU pods say.

    Examples
    --------
    >>> launched({"SLURM_STEP_NUM_TASKS": "2"}), launched({"SLURM_JOB_ID": "7"})
    (True, False)
    """
    tasks = [environment.get(name, "1") for name in LAUNCHERS]
    return any(text.isdecimal() and int(text) > 1 for text in tasks) or "," in environment.get(TPU_WORKERS, "")


def join(coordinator: str | None, processes: int | None, process: int | None) -> Share:
    """Meet the other processes of this job, if there are any, and learn this one's place.

    Parameters
    ----------
    coordinator : HOST:PORT of process 0; "auto" to ask the cluster's launcher; None to ask it where it started several.
    processes, process : how many there are, and which one this is; with HOST:PORT only.

    Returns
    -------
    Share

    Raises
    ------
    InputError
        When only some of the three are given, or no launcher says who the others are.

    Notes
    -----
    To be called before JAX is used for anything else. Where the others do not come in time, this process ends, with
    one line and exit code 2. `jax.distributed` knows the launchers of Slurm, Open MPI,
    Kubernetes and Cloud TPU.
    """
    if coordinator in (None, "auto"):
        if processes is not None or process is not None:
            refuse("--processes or --process without --coordinator", "all three", EXAMPLE)
        if coordinator is None and not launched(os.environ):
            return Share()
        where: dict[str, Any] = {}
    else:
        if processes is None or process is None or not 0 <= process < processes:
            refuse(f"--coordinator {coordinator} --processes {processes} --process {process}", "0 <= i < N", EXAMPLE)
        host, _, port = coordinator.rpartition(":")
        if not host or not port.isdecimal():
            refuse(f"--coordinator {coordinator}", "HOST:PORT, or auto", EXAMPLE)
        where = {"coordinator_address": coordinator, "num_processes": processes, "process_id": process}
    import jax

    try:
        with _deadline():
            jax.distributed.initialize(**where, initialization_timeout=2 * JOIN_SECONDS)
    except (RuntimeError, ValueError) as problem:
        refuse(
            f"no meeting of the processes ({str(problem).splitlines()[0]})", "every process, started together", EXAMPLE
        )
    return Share(jax.process_index(), jax.process_count(), joined=True)


def part(share: Share) -> None:
    """Wait until all processes are here, then need one another no more."""
    if share.joined:
        import jax

        with _deadline():
            jax.distributed.shutdown()


class Heart:
    """Write a sign of life now and then, so that others see whether this process is still there.

    Parameters
    ----------
    store : of the sweep. share : of this process; one that is alone writes nothing.

    Notes
    -----
    Used as a context; `status` is what the last sign says: "done", "stopped" after an exception.
    """

    def __init__(self, store: Store, share: Share) -> None:
        self.store, self.share = store, share
        self.count = 0
        self.over = threading.Event()
        self.thread = threading.Thread(target=self._beat, daemon=True)

    def __enter__(self) -> "Heart":
        if self.share.joined:
            self._say("running")
            self.thread.start()
        return self

    def __exit__(self, kind: Any, *_: Any) -> None:
        if self.share.joined:
            self.over.set()
            self.thread.join()
            self._say("done" if kind is None else "stopped")

    def _beat(self) -> None:
        while not self.over.wait(BEAT_SECONDS):
            self._say("running")

    def _say(self, status: str) -> None:
        self.count += 1
        self.store.write(_name(self.share.index), json.dumps({"status": status, "beat": self.count}).encode())


def wait_for_others(store: Store, share: Share, *, patience: float, done: Callable[[], bool]) -> list[int]:
    """Wait for the other processes, and name those that were lost on the way.

    Parameters
    ----------
    patience : seconds without a sign of life after which a process counts as lost.
    done : says that nothing is left to wait for.

    Returns
    -------
    list of int
        Places of processes that were stopped, or gave no more sign of life.
    """
    others = [index for index in range(share.count) if index != share.index]
    last: dict[int, tuple[Any, float]] = {}
    lost: list[int] = []
    while others and not done():
        now = time.monotonic()
        for index in list(others):
            said = store.read(_name(index))
            if said != last.get(index, (b"", 0.0))[0]:
                last[index] = (said, now)
            status = json.loads(said)["status"] if said else "missing"
            silent = now - last[index][1] > patience if index in last else False
            if status == "done" or status == "stopped" or silent:
                others.remove(index)
                if status != "done":
                    lost.append(index)
        if others:
            time.sleep(min(1.0, patience / 4))
    return lost


@contextlib.contextmanager
def _deadline() -> Iterator[None]:
    """End this process where the others do not come: XLA would abort it, with a trace in place of a reason."""

    def give_up() -> None:
        got = f"no meeting of all processes within {JOIN_SECONDS} s"
        print(f"error: got {got}; expected every process, started together; try {EXAMPLE}", file=sys.stderr, flush=True)
        os._exit(NOBODY)

    timer = threading.Timer(JOIN_SECONDS, give_up)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _name(index: int) -> str:
    return f"{BEATS}/{index:05d}.json"
