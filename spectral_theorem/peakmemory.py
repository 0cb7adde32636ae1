"""Measure how much memory a call takes at its peak, in a process of its own."""

import ctypes
import json
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

_STATUS, _FORGET = Path("/proc/self/status"), Path("/proc/self/clear_refs")
_RUN = "import sys; from spectral_theorem import peakmemory; peakmemory.report(*sys.argv[1:])"


def resident(which: str = "VmRSS") -> float:
    """Return this process's resident memory in megabytes.

    Parameters
    ----------
    which : "VmRSS", now, or "VmHWM", the most so far.

    Notes
    -----
    Where /proc is missing it is `ru_maxrss` for both. Not that where /proc is there: a process inherits the
    peak of the one that started it.

    Examples
    --------
    >>> 1 < resident() <= resident("VmHWM")
    True
    """
    if _STATUS.exists():
        return int(_STATUS.read_text().split(f"{which}:")[1].split()[0]) * 1024 / 1e6
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


def of_calls(run: Callable[[], Any]) -> dict[str, float | None]:
    """Call a function twice, and return by how much memory rose above what was there before.

    Parameters
    ----------
    run : does the work and waits for the result.

    Returns
    -------
    dict
        `before_mb`; `first_call_mb`, in which compilation takes its part; `call_mb`, the second call alone
        (None where the peak cannot be reset); `peak_mb`, of the whole process.
    """
    before = resident()
    run()
    peak = resident("VmHWM")
    found: dict[str, float | None] = {"before_mb": before, "first_call_mb": peak - before, "call_mb": None}
    if _FORGET.exists():
        ctypes.CDLL(None).malloc_trim(0)  # what the first call freed must not hide what the second one takes
        _FORGET.write_text("5")
        start = resident()
        run()
        found["call_mb"] = resident("VmHWM") - start
        peak = max(peak, resident("VmHWM"))
    return found | {"peak_mb": peak}


def in_own_process(module: str, function: str, **arguments: Any) -> dict[str, Any]:
    """Measure the calls of what a function of this package returns, in a process of its own.

    Parameters
    ----------
    module, function : of this package; the function takes the arguments and returns the work, as a
        function without arguments.
    arguments : plain values.

    Returns
    -------
    dict
        As `of_calls`, with all that the function builds taken as being there before.

    Raises
    ------
    RuntimeError
        If the process fails; the last line it printed is the reason.
    """
    process = subprocess.run(
        [sys.executable, "-c", _RUN, module, function, json.dumps(arguments)], capture_output=True, text=True
    )
    if process.returncode:
        raise RuntimeError((process.stderr.strip() or f"ended with {process.returncode}").splitlines()[-1])
    return json.loads(process.stdout.splitlines()[-1])


def report(module: str, function: str, arguments: str) -> None:
    """Print, as JSON, what `of_calls` finds; the other side of `in_own_process`."""
    import importlib

    run = getattr(importlib.import_module(f".{module}", __package__), function)(**json.loads(arguments))
    print(json.dumps(of_calls(run)))
