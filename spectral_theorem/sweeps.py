"""Run one `sweep`: an experiment over a design of configs → shards, a verdict, a figure."""

import contextlib
import hashlib
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

from .batched import Program, groups
from .console import Outcome
from .designs import Design, axes_of, read_design, read_settings
from .experiment import Experiment, judged, load
from .launch import BEATS, Heart, Share, join, part, read_shard, wait_for_others
from .peakmemory import resident
from .provenance import source_digest
from .runs import SUMMARY, summary_text
from .shards import CELLS, KEYS, Store, compact, digest, finished, read_rows, write_shard
from .storage import json_ready
from .sweepwork import BATCH, Progress, batches_of, counting, fields_of, run_one, work
from .types import InputError, refuse

MANIFEST = "sweep.json"
SCHEMA = 1
PATIENCE = 60.0  # seconds without a sign of life after which another process counts as lost
TIMED_GROUPS = 8  # programs that a dry run compiles at most
SHOWN_FAILURES = 5


def run(
    *,
    experiment: Path,
    out: str | None = None,
    config: Path | None = None,
    set: Sequence[str] = (),
    random: int | None = None,
    seed: int = 0,
    shard: str | None = None,
    coordinator: str | None = None,
    processes: int | None = None,
    process: int | None = None,
    devices: int | None = None,
    batch: int | None = None,
    dtype: str = "float64",
    dry_run: bool = False,
    compact: bool = False,
) -> Outcome:
    """Run one `sweep`, or say what it would take.

    Parameters
    ----------
    experiment : experiment file.
    out : folder or URI of the results. One that holds this very sweep is gone on with; any other is refused.
    config, set, random, seed : the design: a file, axes in place of its axes, cells to draw, and their seed.
    shard, coordinator, processes, process : this process's share.
    devices : of this process. batch : cells on a device at once.
    dtype : "float64" or "float32".
    dry_run : say how many cells, how much memory and how long.
    compact : join the shards at the end.

    Returns
    -------
    Outcome
        Exit code 1 when the experiment's verdict is VIOLATED, 3 when some cells failed or are missing.

    Raises
    ------
    InputError
        On an experiment, design, share or folder that cannot be used, or when every cell failed.
    """
    asked = {
        "experiment": str(experiment),
        "out": out,
        "config": None if config is None else str(config),
        "set": [*set],
    }
    asked |= {"random": random, "seed": seed, "batch": batch, "devices": devices, "dtype": dtype}
    share = _share(shard, coordinator, processes, process, devices)
    found = load(experiment)
    design = _design(found, config, set, random, seed)
    configs = design.configs(found.config)
    if batch is not None and batch < 1:
        refuse(f"--batch {batch}", "a whole number of at least 1", "--batch 64")
    width = batch or BATCH
    chosen = _devices(devices)
    if dry_run:
        return _estimate(found, configs, width, chosen, share, None if out is None else Store(out), dtype)
    if out is None:
        refuse("no --out", "a folder for the results", f"--out sweep-{found.name}")
    store = Store(out)
    manifest = _manifest(found, configs, dtype)
    claim(store, manifest)
    store.tidy("", CELLS, BEATS)
    with Heart(store, share):
        part(share)
        progress = sweep(found, configs, store, manifest["code"], width=width, devices=chosen, share=share)
    lost = []
    keys = [cell_key(config, manifest["code"]) for config in configs]
    if share.joined and share.index == 0:
        lost = wait_for_others(store, share, patience=PATIENCE, done=lambda: finished(store) >= {*keys})
    return _finish(found, keys, store, manifest, progress, share, lost, asked, compacted=compact)


def sweep(
    experiment: Experiment,
    configs: Sequence[Any],
    store: Store,
    code: dict[str, str],
    *,
    width: int = BATCH,
    devices: Sequence[Any] | None = None,
    share: Share | None = None,
) -> Progress:
    """Compute what is missing of one share of a sweep, and keep it shard by shard.

    Parameters
    ----------
    experiment, configs, store : what, for which configs, and where to.
    code : versions that results depend on; part of every key.
    width, devices, share : as in `sweepwork.work`.

    Returns
    -------
    Progress
    """
    keys = [cell_key(config, code) for config in configs]
    there = finished(store)

    def keep(cells: Sequence[tuple[int, list[dict[str, Any]]]]) -> None:
        rows = [
            {**dict(zip(KEYS, (keys[place], place, number), strict=True)), **row}
            for place, found in cells
            for number, row in enumerate(found)
        ]
        if rows:
            write_shard(store, rows)

    share = share or Share()
    mine = [place for batch in batches_of(experiment, configs, width)[share.index :: share.count] for place in batch]
    with counting(experiment.name, sum(keys[place] not in there for place in mine)) as advance:
        return work(
            experiment,
            configs,
            width=width,
            missing=lambda place: keys[place] not in there,
            keep=keep,
            devices=jax.local_devices() if devices is None else devices,
            share=share,
            advance=advance,
        )


def cell_key(config: Any, code: dict[str, str]) -> str:
    """Name a cell by its config and the versions that its result depends on, 24 hexadecimal digits.

    Examples
    --------
    >>> import dataclasses
    >>> @dataclasses.dataclass(frozen=True)
    ... class Config:
    ...     sigma: float = 1.0
    >>> cell_key(Config(), {"jax": "1"}) == cell_key(Config(1.0), {"jax": "1"}) != cell_key(Config(), {"jax": "2"})
    True
    """
    text = json.dumps([fields_of(config), code], sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=12).hexdigest()


def claim(store: Store, manifest: dict[str, Any]) -> None:
    """Make a results folder that of a sweep, or find that it is.

    Raises
    ------
    InputError
        When it holds something else, another sweep, or one of other versions.
    """
    new = f"--out {store.where.rstrip('/')}-new"
    held = store.read(MANIFEST)
    if held is None:
        if other := [name for name in store.names() if name != "processes"]:
            refuse(
                f"--out {store.where}, a folder with {other[0]} in it", "a new, empty or earlier sweep's folder", new
            )
        store.write(MANIFEST, json.dumps(manifest, indent=1).encode())
        return
    try:
        before = json.loads(held)
        for name, what in (("experiment", "another sweep"), ("design", "another sweep"), ("code", "another version")):
            if before[name] != manifest[name]:
                was, now = before[name], manifest[name]
                if isinstance(was, dict):
                    part = next(key for key in now if was.get(key) != now[key])
                    was, now = f"{part} {was.get(part)}", f"{part} {now[part]}"
                refuse(f"--out {store.where}, which holds {what} ({name}: {was})", f"{name}: {now}", new)
    except (ValueError, KeyError, TypeError) as problem:
        if isinstance(problem, InputError):
            raise
        refuse(f"{store.where}/{MANIFEST}, which is no record of a sweep", "the results of a sweep", new)


def _share(
    shard: str | None, coordinator: str | None, processes: int | None, process: int | None, devices: int | None
) -> Share:
    """Find this process's share; number and place of devices are fixed once JAX has begun."""
    if shard is not None and (coordinator, processes, process) != (None, None, None):
        refuse("--shard and --coordinator", "one of them", f"--shard {shard}")
    if devices is not None:
        if devices < 1:
            refuse(f"--devices {devices}", "a whole number of at least 1", "--devices 2")
        with contextlib.suppress(RuntimeError):  # JAX has begun: what there is will be counted below
            jax.config.update("jax_num_cpu_devices", devices)
    return read_shard(shard) if shard is not None else join(coordinator, processes, process)


def _devices(count: int | None) -> list[Any]:
    there = jax.local_devices()
    if count is not None and count > len(there):
        refuse(f"--devices {count}", f"at most {len(there)}, which this process has", f"--devices {len(there)}")
    return there[:count]


def _design(
    experiment: Experiment, config: Path | None, settings: Sequence[str], random: int | None, seed: int
) -> Design:
    if config is None:
        design = Design(axes=axes_of(experiment.grid, experiment.config, experiment.path))
    else:
        design = read_design(config, experiment.config)
    axes = read_settings(settings, experiment.config)
    fixed = {name: value for name, value in design.fixed.items() if name not in axes}
    cells, drawn = (design.random, design.seed) if random is None else (random, seed)
    return Design(fixed, {**design.axes, **axes}, cells, drawn)


def _manifest(experiment: Experiment, configs: Sequence[Any], dtype: str) -> dict[str, Any]:
    text = json.dumps([fields_of(config) for config in configs])
    return {
        "schema": SCHEMA,
        "experiment": experiment.name,
        "statement": experiment.statement,
        "design": hashlib.blake2b(text.encode(), digest_size=12).hexdigest(),
        "cells": len(configs),
        "code": {
            "file": experiment.digest,
            "package": source_digest(),
            "jax": jax.__version__,
            "platform": jax.default_backend(),
            "dtype": dtype,
        },
    }


def _finish(
    experiment: Experiment,
    keys: Sequence[str],
    store: Store,
    manifest: dict[str, Any],
    progress: Progress,
    share: Share,
    lost: Sequence[int],
    asked: dict[str, Any],
    *,
    compacted: bool,
) -> Outcome:
    """Say what there is now; whoever finds every cell there writes verdict and figure."""
    if compacted:
        compact(store)
    there = finished(store)
    absent = [place for place, key in enumerate(keys) if key not in there]
    record: dict[str, Any] = {
        "experiment": experiment.name,
        "out": store.where,
        "cells": len(keys),
        "computed": progress.done,
        "missing": len(absent),
        "failed": [{"cell": place, "reason": reason} for place, reason in sorted(progress.failed.items())],
        "lost": list(lost),
        "halved": progress.widths,
    }
    lines = [f"{len(keys) - len(absent)} of {len(keys)} cells in {store.where}, {progress.done} of them computed now"]
    if progress.widths:
        lines.append(f"memory ran out with {', '.join(map(str, progress.widths))} cells at once, fewer were taken")
    for failure in record["failed"][:SHOWN_FAILURES]:
        lines.append(f"cell {failure['cell']} failed: {failure['reason']}")
    if len(record["failed"]) > SHOWN_FAILURES:
        lines.append(f"and {len(record['failed']) - SHOWN_FAILURES} more")
    if lost:
        lines.append(f"lost: process {', '.join(map(str, lost))}; what was finished stays, the same command goes on")
    if progress.failed and len(absent) == len(keys):
        refuse(f"a failure in every cell ({record['failed'][0]['reason']})", "some that succeed", str(experiment.path))
    if absent:
        own = share.count == 1 or (share.index == 0 and share.joined)
        if not progress.failed and not lost and not own:
            lines.append(f"this was share {share.index} of {share.count}; others are missing {len(absent)} cells")
            return Outcome("\n".join(lines), record, 0)
        lines.append(f"{len(absent)} cells are missing; the same command tries again")
        return Outcome("\n".join(lines), record, 3)
    verdict, sentence = _conclude(experiment, store, manifest, record["failed"], asked)
    record |= {"verdict": verdict, "sentence": sentence}
    lines = [f"{verdict}  {experiment.statement}", sentence, *lines]
    return Outcome("\n".join(lines), record, int(verdict == "VIOLATED"))


def _conclude(
    experiment: Experiment, store: Store, manifest: dict[str, Any], failed: Sequence[Any], asked: dict[str, Any]
) -> tuple[str, str]:
    table = read_rows(store)
    rows = table.to_pylist()
    verdict, sentence = judged(experiment, rows)
    content = {
        "verb": "sweep",
        "config": asked,
        "statement": experiment.statement,
        "kind": experiment.kind,
        "expected": experiment.expected,
        "refuted_by": experiment.refuted_by,
        "verdicts": {experiment.name: {experiment.name: verdict}},
        "sentence": sentence,
        "dtype": manifest["code"]["dtype"],
        "seeds": sorted({row["seed"] for row in rows if row.get("seed") is not None}),
        "sweep": manifest,
        "rows": len(rows),
        "table_digest": digest(table),
        "failed": failed,
    }
    drawn = None if experiment.figure is None else experiment.figure(rows)
    if drawn is not None:
        _draw(drawn, store, experiment.statement)
    run_id = hashlib.blake2b(json.dumps(manifest, sort_keys=True).encode(), digest_size=6).hexdigest()
    store.write(SUMMARY, summary_text(run_id, content))
    return verdict, sentence


def _draw(figure: Any, store: Store, label: str) -> None:
    from .canvas import to_png, to_svg

    store.write("figure.svg", to_svg(figure, salt="figure", label=label).encode())
    store.write("figure.png", to_png(figure))


def _estimate(
    experiment: Experiment,
    configs: Sequence[Any],
    width: int,
    devices: Sequence[Any],
    share: Share,
    store: Store | None,
    dtype: str,
) -> Outcome:
    """Compile what the sweep needs, run one batch of each program, and multiply."""
    code = _manifest(experiment, configs, dtype)["code"]
    there = finished(store) if store else {*()}
    batches = batches_of(experiment, configs, width)[share.index :: share.count]
    wanted = [b for b in batches if any(cell_key(configs[place], code) not in there for place in b)]
    left = sum(cell_key(configs[place], code) not in there for batch in wanted for place in batch)
    record: dict[str, Any] = {"experiment": experiment.name, "cells": len(configs), "left": left}
    if experiment.cell is None:
        before, start = resident(), time.perf_counter()
        if wanted:
            run_one(experiment, configs[wanted[0][0]])
        seconds = (time.perf_counter() - start) * len(wanted)
        bytes_taken = int(max(resident("VmHWM") - before, 0) * 1e6)
        record |= {"programs": 0, "batches": len(wanted)}
        basis = "one cell, compilation included"
    else:
        number = {place: n for n, group in enumerate(groups(configs)) for place in group}
        programs: dict[int, list[tuple[int, ...]]] = {}
        for batch in wanted:
            programs.setdefault(number[batch[0]], []).append(batch)
        measured, bytes_taken = [], 0
        every = -(-len(programs) // TIMED_GROUPS) if programs else 1
        for same in list(programs.values())[::every]:
            start = time.perf_counter()
            call = [[configs[place] for place in batch] for batch in same[: len(devices)]]
            program = Program(experiment.cell, call[0][0], width=width, devices=devices)
            compiled = time.perf_counter()
            program(call)
            measured.append((compiled - start, time.perf_counter() - compiled, -(-len(same) // len(devices))))
            bytes_taken = max(bytes_taken, program.bytes_per_device or 0)
        seconds = sum(a + b * calls for a, b, calls in measured) * len(programs) / max(len(measured), 1)
        record |= {"programs": len(programs), "batches": len(wanted)}
        basis = f"one call of {len(measured)} of {len(programs)} programs, compilation included"
    record |= {"memory_bytes_per_device": bytes_taken, "seconds": seconds}
    lines = [
        f"{experiment.name}: {len(configs)} cells, {left} of them to do here, in {len(wanted)} batches",
        f"memory: {bytes_taken / 1e6:.4g} MB on each device at most",
        f"time: about {seconds:.3g} s on {len(devices)} device(s) here (from {basis})",
    ]
    ready, _ = json_ready(record)
    return Outcome("\n".join(lines), ready, 0)
