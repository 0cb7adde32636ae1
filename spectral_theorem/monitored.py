"""Run one `monitor`: a model and recordings → what decoding shows while it goes on, alarms, a record line by line."""

import contextlib
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from .alarms import DEFAULT, SIGNALS, Alarms, calibrate
from .audio import load_audio
from .console import Outcome, aligned, number, working
from .monitor import MODES, TOLERANCE, WINDOW, Monitor, Step
from .monitor_view import View, shown, sparkline
from .monitorfile import MonitorFile, clean_scores, now
from .provenance import environment
from .storage import json_ready
from .transcription import clip_names, recordings
from .types import InputError
from .whisper import load, model_digest
from .whisper.streaming import GROUP


def run(
    *,
    model: str,
    audio: Sequence[Path],
    window: int = WINDOW,
    modes: int = MODES,
    every: int = 8,
    tolerance: float = TOLERANCE,
    clean: Path | None = None,
    level: float = 0.05,
    signals: str = ",".join(DEFAULT),
    group: int = GROUP,
    dtype: str = "float32",
    out: Path | None = None,
) -> Outcome:
    """Watch the decoding of recordings, and write what is seen line by line if asked.

    Parameters
    ----------
    model : folder of a checkpoint.
    audio : recordings, and folders whose recordings are all taken.
    window, modes, every, tolerance, group : as `Monitor` takes them.
    clean : record of clean clips, from an earlier call with `out`; sets the thresholds of alarms.
    level, signals : as in `alarms.calibrate`, signals with commas between.
    dtype : "float32" or "float64", of model and gains.
    out : file to write. One that a stopped run of the same command left is gone on with.

    Returns
    -------
    Outcome
        Exit code 3 when some clips could not be used; they are listed, and the others are kept. Alarms leave it.

    Raises
    ------
    InputError
        Unusable model, record or options, an alarm that could never be raised, or no clip that can be used.
    """
    paths = recordings(audio)
    with working(f"loading {model}"):
        network = load(model, dtype=jnp.dtype(dtype))
    monitor = Monitor(network, window=window, modes=modes, every=every, tolerance=tolerance, group=group)
    header: dict[str, Any] = {
        "model": model,
        "model_digest": model_digest(network),
        "dtype": dtype,
        "settings": monitor.settings,
        "made_by": {name: environment()[name] for name in ("versions", "commit")},
    }
    alarms = None
    if clean is not None:
        chosen = [name.strip() for name in signals.split(",") if name.strip()]
        monitor.check_signals(chosen)
        alarms = calibrate(clean_scores(clean, header), level=level, signals=chosen, modes=modes)
        header["alarms"] = alarms.to_dict()
    file = None if out is None else MonitorFile(out, header | {"written": now()})
    clips: dict[str, Any] = {}
    failed: dict[str, str] = {}
    view = View(monitor.components)
    with contextlib.ExitStack() as stack:
        if file is not None:
            stack.callback(file.close)
        show = stack.enter_context(shown(view))
        for count, (name, path) in enumerate(zip(clip_names(paths), paths, strict=True), 1):
            view.title = f"{name} ({count} of {len(paths)})"
            try:
                clips[name] = _watched(monitor, path, name, alarms, file, show)
            except InputError as problem:
                failed[name] = str(problem)
                if file is not None:
                    file.write({"kind": "failed", "clip": name, "why": str(problem)}, sync=True)
            except BaseException as end:  # Ctrl-C and SIGTERM: what was seen is there, and the record says that it ends
                if file is not None:
                    file.write({"kind": "stopped", "clip": name, "by": type(end).__name__}, sync=True)
                raise
    if not clips:
        name, problem = next(iter(failed.items()))
        raise InputError(problem if len(failed) == 1 else f"{problem} ({name}; none of {len(failed)} clips was usable)")
    record = {"verb": "monitor", **header, "clips": clips, "failed": failed}
    return Outcome(_text(clips, failed, alarms, out), json_ready(record)[0], 3 if failed else 0)


def _watched(
    monitor: Monitor, path: Path, name: str, alarms: Alarms | None, file: MonitorFile | None, show: Any
) -> dict[str, Any]:
    """Watch one clip, or take what a stopped run found, and return what to say of it."""
    samples = load_audio(path)[0]
    digest = hashlib.blake2b(np.ascontiguousarray(samples).data, digest_size=16).hexdigest()
    if file is not None and (found := file.found(name, digest)) is not None:
        return {key: value for key, value in found.items() if key not in ("kind", "clip")}
    steps: list[Step] = []
    for step in monitor.watch(samples, clip=name, alarms=alarms):
        steps.append(step)
        if file is not None:
            file.write({"kind": "step", **step.to_dict()})
        show(step)
    found = described(monitor, steps) | {"samples": digest, "seconds": samples.size / 16_000}
    if file is not None:
        file.write({"kind": "end", "clip": name, **json_ready(found)[0]}, sync=True)
    return found


def described(monitor: Monitor, steps: Sequence[Step]) -> dict[str, Any]:
    """Say of a clip what was heard, its scores, and the first alarm of every signal.

    Parameters
    ----------
    monitor : that watched it. steps : all of them.
    """
    words, special = monitor.model.tokenizer, monitor.model.generation.end
    ids = [step.token for step in steps if step.token != special]
    first: dict[str, Any] = {}
    for step in steps:
        for one in step.alarms:
            at = {"step": step.step, "start": step.start, "value": one.value, "threshold": one.threshold}
            first.setdefault(one.signal, at)
    rows = {name: [step.values[name] for step in steps] for name in ("rank", "alpha", "lam")}
    return {
        "text": words.decode(ids) if words is not None else " ".join(f"<{id}>" for id in ids),
        "steps": len(steps),
        "scores": monitor.scores(steps),
        "alarms": first,
        "lines": {name: sparkline(row[-64:]) for name, row in rows.items()},
    }


def _text(clips: Mapping[str, Any], failed: Mapping[str, str], alarms: Alarms | None, out: Path | None) -> str:
    """Lay out what was seen: a line per clip, then what alarms rest on."""
    rows = [["clip", "steps", "rank share", "slope", "lambda", "alarms", "heard"]]
    for name, clip in clips.items():
        raised = ", ".join(f"{signal} at step {at['step']}" for signal, at in clip["alarms"].items())
        lines = [clip["lines"][key].strip() for key in ("rank", "alpha", "lam")]
        rows.append([name, str(clip["steps"]), *lines, raised or ("none" if alarms else ""), clip["text"]])
    texts = [aligned(rows, words=1)]
    if alarms is not None:
        texts.append(alarms.says())
        edges = {name: SIGNALS[name].sign * edge for name, edge in alarms.limits.items()}
        texts += [f"  {name}: {SIGNALS[name].words}, threshold {number(edge)}" for name, edge in edges.items()]
    if failed:
        texts.append("not watched:\n" + "\n".join(f"  {name}: {why}" for name, why in failed.items()))
    if out is not None:
        texts.append(f"written to {out}")
    return "\n".join(texts)
