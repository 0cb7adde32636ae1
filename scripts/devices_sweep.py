"""Run one sweep on 1 device, on 8, and in 2 processes that meet on loopback; compare the tables bit by bit.

    python scripts/devices_sweep.py [--out docs/benchmarks/devices_sweep.json] [--experiment FILE] [--set NAME=VALUES]

Then one of two processes is killed on the way: the other must say so, and the same command must complete the table.
Devices are forced host devices, so times say what sharing costs and not what it gains.
"""

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from spectral_theorem.benchrecord import surroundings
from spectral_theorem.shards import KEYS, Store, digest, finished, read_rows

ROOT = Path(__file__).resolve().parents[1]
EXPERIMENT = ROOT / "experiments/synthetic/phase_diagram.py"
AXES = ("layers=16", "tail=attains r*,flat", "xi=0.05,0.7")
DEVICES = 8
PATIENCE = 8.0  # seconds without a sign of life, here
PROGRAM = f"import sys; from spectral_theorem import cli, sweeps; sweeps.PATIENCE = {PATIENCE}; sys.exit(cli.main())"
MOST = 600.0  # seconds that a process may take


def main(arguments: list[str]) -> int:
    """Run everything, write what was found, and return 1 if a table differs."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path)
    parser.add_argument("--experiment", type=Path, default=EXPERIMENT)
    parser.add_argument("--set", action="append", default=None)
    parser.add_argument("--batch", type=int, default=32)
    options = parser.parse_args(arguments)
    given = [str(options.experiment), "--batch", str(options.batch)]
    given += [word for axis in options.set or AXES for word in ("--set", axis)]
    with tempfile.TemporaryDirectory() as folder:
        found = {
            "environment": surroundings(),
            "command": [word.removeprefix(f"{ROOT}/") for word in given],
            **compare(Path(folder), given),
        }
    text = json.dumps(found, indent=1)
    if options.out is not None:
        options.out.write_text(text + "\n", encoding="utf-8")
    print(text)
    return int(not all(run["equal_to_one_device"] for run in found["runs"]))


def compare(folder: Path, given: list[str]) -> dict[str, Any]:
    """Run a sweep on one device, on several, in two processes, and in two of which one is lost.

    Returns
    -------
    dict
        `runs`: what ran, seconds on the clock, digest of the table, whether it equals that of one device, largest
        difference; `lost`: exit code and words of the process that was left, cells there then.
    """
    runs = []
    for name, devices in (("1 device", 1), (f"{DEVICES} devices", DEVICES)):
        start = time.monotonic()
        _ended(_begin(folder / name, given, ["--devices", str(devices)]))
        runs.append({"name": name, "seconds": time.monotonic() - start})
    start = time.monotonic()
    for process in _pair(folder / "2 processes", given):
        _ended(process)
    runs.append({"name": "2 processes", "seconds": time.monotonic() - start})
    lost = _lose_one(folder / "2 processes, one killed", given)
    start = time.monotonic()
    _ended(_begin(folder / "2 processes, one killed", given, []))
    runs.append({"name": "2 processes, one killed", "seconds": time.monotonic() - start})
    alone = read_rows(Store(folder / "1 device"))
    for run in runs:
        table = read_rows(Store(folder / run["name"]))
        run |= {"rows": len(table), "digest": digest(table), "equal_to_one_device": digest(table) == digest(alone)}
        run["largest_difference"] = _difference(alone, table)
    return {"runs": runs, "lost": lost}


def _lose_one(out: Path, given: list[str]) -> dict[str, Any]:
    """Kill process 1 of two as soon as something is finished."""
    first, second = _pair(out, given)
    begun = time.monotonic()
    while not finished(Store(out)) and time.monotonic() - begun < MOST:
        time.sleep(0.02)
    second.kill()
    second.communicate()
    said, _ = first.communicate(timeout=MOST)
    return {
        "exit_code": first.returncode,
        "said": said.replace(f"{out.parent}/", "").strip().splitlines(),
        "cells": len(finished(Store(out))),
    }


def _pair(out: Path, given: list[str]) -> list[subprocess.Popen[str]]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        where = f"127.0.0.1:{free.getsockname()[1]}"
    meet = ["--devices", "1", "--coordinator", where, "--processes", "2", "--process"]
    return [_begin(out, given, [*meet, str(index)]) for index in range(2)]


def _begin(out: Path, given: list[str], more: list[str]) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", PROGRAM, "sweep", *given, "--out", str(out), *more]
    environment = {**os.environ, "JAX_CPU_COLLECTIVES_IMPLEMENTATION": "gloo"}
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(command, cwd=ROOT, env=environment, **pipes)


def _ended(process: subprocess.Popen[str]) -> None:
    said, _ = process.communicate(timeout=MOST)
    if process.returncode not in (0, 1):
        raise RuntimeError(f"a sweep ended with {process.returncode}: {said}")


def _difference(one: Any, other: Any) -> float:
    """Return the largest difference of two tables, relative to the largest entry of the column."""
    largest = 0.0
    for name in set(one.column_names) - set(KEYS):
        a, b = (np.asarray(table.column(name).to_pylist()) for table in (one, other))
        if a.dtype.kind == "f" and a.shape == b.shape:
            scale = np.nanmax(np.abs(a[np.isfinite(a)]), initial=0.0) or 1.0
            with np.errstate(invalid="ignore"):
                largest = max(largest, float(np.nanmax(np.abs(a - b), initial=0.0)) / scale)
    return largest


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
