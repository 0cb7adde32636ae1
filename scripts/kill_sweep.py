"""Kill a sweep with SIGKILL at random moments, again and again, and count what is lost.

    python scripts/kill_sweep.py [--kills 100] [--seed 0] [--out docs/benchmarks/kill_sweep.json]     minutes

A sweep of many small shards is started, killed, and started again until it ends; then its table is compared with that
of an undisturbed sweep, and the next one begins. Once with one process, once with two that write to one folder.
Cells cost next to nothing and processes are forked from one that has loaded everything, so that kills meet writing,
joining and concluding more often than imports.
"""

import argparse
import contextlib
import json
import multiprocessing
import os
import random
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from spectral_theorem import sweeps
from spectral_theorem.benchrecord import surroundings
from spectral_theorem.shards import Store, digest, finished, read_rows
from spectral_theorem.types import InputError

BATCH = 4
LOADED = ["spectral_theorem.sweeps", "pyarrow.parquet"]
EXPERIMENT = '''"""Rounding of a sum stays below its number of terms times eps.

Kind: upper.
Expected: every error within the bound.
Refuted by: one beyond it.
"""
import dataclasses
import jax
import jax.numpy as jnp

GRID = {"scale": tuple(1.5**i for i in range(20)), "seed": tuple(range(20))}

@dataclasses.dataclass(frozen=True)
class Config:
    scale: float = 1.0
    terms: int = 64
    seed: int = 0

def cell(config, key):
    x = config.scale * jax.random.uniform(key, (config.terms,))
    error = jnp.abs(jnp.sum(x) - jnp.sum(x[::-1])) / jnp.sum(x)
    return {"total": jnp.sum(x), "error": error, "bound": config.terms * jnp.finfo(x.dtype).eps}

def run(config):
    from spectral_theorem.batched import evaluate
    return [evaluate(cell, config)]

def verdict(records):
    worst = max(r["error"] / r["bound"] for r in records)
    return ("HOLDS" if worst <= 1 else "VIOLATED"), f"at most {worst:.2g} times the bound"
'''


def main(arguments: list[str]) -> int:
    """Disturb a sweep of one process, then of two, and write what was found."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args(arguments)
    record: dict[str, Any] = {"environment": surroundings(), "kills_wanted": options.kills, "seed": options.seed}
    with tempfile.TemporaryDirectory() as folder:
        found = [disturb(Path(folder) / str(n), kills=options.kills, processes=n, seed=options.seed) for n in (1, 2)]
    record["runs"] = found
    text = json.dumps(record, indent=1)
    if options.out is not None:
        options.out.write_text(text + "\n", encoding="utf-8")
    print(text)
    return int(any(run["lost_cells"] or run["unreadable_files"] or run["different_tables"] for run in found))


def disturb(folder: Path, *, kills: int, processes: int, seed: int) -> dict[str, Any]:
    """Kill sweeps until `kills` kills have met a process at work, and compare every sweep that ends.

    Returns
    -------
    dict
        Counts: kills, sweeps that ended, cells lost, files that could not be read, tables that differ, and at how many
        finished cells each kill came.
    """
    draw = random.Random(seed)
    with _forks() as context:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "rounding.py").write_text(EXPERIMENT, encoding="utf-8")
        for calm in (Store(folder / "first"), Store(folder / "calm")):  # the first one starts the process to fork from
            start = time.monotonic()
            process = _start(context, calm, None)
            process.join()
            if process.exitcode:
                raise RuntimeError(f"the undisturbed sweep ended with {process.exitcode}")
            longest = time.monotonic() - start
        wanted, cells = digest(read_rows(calm)), len(finished(calm))
        counts = {
            "kills": 0,
            "sweeps": 0,
            "lost_cells": 0,
            "unreadable_files": 0,
            "different_tables": 0,
            "leftovers": 0,
        }
        moments: list[int] = []
        while counts["kills"] < kills or not counts["sweeps"]:
            store, before = Store(folder / f"sweep{counts['sweeps']}"), set()
            while len(before) < cells or store.read("summary.json") is None:
                shares = [None] if processes == 1 else [f"{i}/{processes}" for i in range(processes)]
                running = {_start(context, store, share): draw.uniform(0, longest) for share in shares}
                begun = time.monotonic()
                for process, moment in sorted(running.items(), key=lambda item: item[1]):
                    process.join(max(0.0, moment - (time.monotonic() - begun)) if counts["kills"] < kills else None)
                    if process.exitcode is None:
                        process.kill()
                        process.join()
                        counts["kills"] += 1
                        moments.append(len(finished(store)))
                    elif process.exitcode != 0:
                        raise RuntimeError(f"a sweep ended with {process.exitcode}")
                after, broken = _inspect(store)
                counts["lost_cells"] += len(before - after)
                counts["unreadable_files"] += broken
                before = after
            counts["sweeps"] += 1
            counts["different_tables"] += digest(read_rows(store)) != wanted
            counts["leftovers"] += sum(path.name.endswith(".tmp") for path in Path(store.where).rglob(".*"))
    return {
        "processes": processes,
        "cells": cells,
        "calm_seconds": longest,
        **counts,
        "finished_at_kill": sorted(moments),
    }


def _inspect(store: Store) -> tuple[set[str], int]:
    """Return the keys of all finished cells, and how many files cannot be read."""
    found: set[str] = set()
    broken = 0
    for name in store.names():
        if name.endswith(".json"):
            with contextlib.suppress(ValueError):
                json.loads(store.read(name) or b"")
                continue
            broken += 1
    try:
        found = set(read_rows(store).column("key").to_pylist())
    except InputError:
        broken += 1
    return found, broken


@contextlib.contextmanager
def _forks() -> Iterator[Any]:
    """Give a context whose processes are forks of one that has loaded everything, in float64."""
    before = os.environ.get("JAX_ENABLE_X64")
    os.environ["JAX_ENABLE_X64"] = "1"
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(LOADED)
    try:
        yield context
    finally:
        if before is None:
            del os.environ["JAX_ENABLE_X64"]
        else:
            os.environ["JAX_ENABLE_X64"] = before


def _start(context: Any, store: Store, share: str | None) -> Any:
    """Start one sweep in a process of its own."""
    experiment = Path(store.where).parent / "rounding.py"
    given = {"experiment": experiment, "out": store.where, "shard": share, "batch": BATCH, "compact": True}
    process = context.Process(target=sweeps.run, kwargs=given)
    process.start()
    return process


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
