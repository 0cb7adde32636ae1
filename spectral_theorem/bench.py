"""Benchmark the engine: what sigma, kappa, rho, xi and Psi cost at every (layer, token), beside other ways to them.

Every way is timed in one process, turn by turn; what is kept are ratios with their spread, beside the load of
the machine. `scripts/bench_engine.py` runs the same rows with PyTorch beside them.
"""

import dataclasses
import importlib.metadata
import json
import os
import platform
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax

from . import carried, peakmemory
from .audio import load_audio
from .console import Outcome, aligned, number, working
from .measure import measure_token
from .provenance import environment
from .storage import json_ready, write_atomically
from .timing import Side, compare, fit_power, ratio
from .types import refuse
from .whisper import WhisperModel, load, transcribe
from .workload import (
    Shape,
    Workload,
    accuracy,
    dense_sides,
    injection_sides,
    leading,
    leading_injections,
    random_workload,
    triplet_sides,
    yardstick,
)

SCHEMA = 1
FILE = "engine.json"
QUESTIONS = ("dense", "triplets", "injection", "sequence", "clip", "scaling", "gpu")
WIDEST = 4096
# What the engine is held to. (question, ratio or number, width or None for any): (limit, sense)
BARS: dict[tuple[str, str, int | None], tuple[float, str]] = {
    ("dense", "explicit / gemm", 384): (1.0, "<="),
    ("dense", "explicit / gemm", 768): (1.0, "<="),
    ("dense", "explicit / gemm", 1280): (1.0, "<="),
    ("triplets", "row loop + svd / ours", 384): (40.0, ">="),
    ("triplets", "row loop + svd / ours", 768): (130.0, ">="),
    ("triplets", "residual_over_sigma1", None): (1e-5, "<="),
    ("injection", "G / W", None): (2.0, "<="),
    ("injection", "first_call_mb", 1280): (200.0, "<"),
    ("sequence", "peak_mb", 1280): (4000.0, "<"),
    ("clip", "measure / transcribe", None): (3.0, "<="),
    ("clip", "torch / transcribe", None): (1.0, ">="),
}
Peers = Mapping[str, Callable[[Any], Mapping[str, Side]]]


@dataclasses.dataclass(frozen=True)
class Plan:
    """Say which sizes are run, and how often.

    Parameters
    ----------
    widths, frames : D and F of the random decoders.
    dense_tokens, tokens : T of dense Jacobians, and of triplets, over which a decoder run is shared.
    repeats : how often each side is timed; `few` for one whose call takes longer than `patience` seconds.
    memory_width, sequence_tokens : D and T where peak memory is measured.
    scaling : letter of Shape to the sizes it takes; the others stay at the middle of theirs.
    """

    widths: tuple[int, ...] = (384, 768, 1280)
    frames: int = 1500
    dense_tokens: int = 4
    tokens: int = 16
    repeats: int = 7
    few: int = 3
    patience: float = 5.0
    memory_width: int = 1280
    sequence_tokens: int = 64
    scaling: Mapping[str, tuple[int, ...]] = dataclasses.field(
        default_factory=lambda: {
            "width": (256, 384, 512, 768, 1280),
            "layers": (1, 2, 4, 8),
            "tokens": (4, 8, 16, 32),
            "frames": (375, 750, 1500, 3000),
        }
    )
    base: Shape = Shape(384, layers=2, tokens=8)


QUICK = Plan(
    widths=(64, 128),
    frames=100,
    dense_tokens=2,
    tokens=4,
    repeats=3,
    memory_width=64,
    sequence_tokens=8,
    scaling={"width": (32, 64, 128), "tokens": (2, 4, 8)},
    base=Shape(64, frames=100, tokens=4),
)


@dataclasses.dataclass(frozen=True)
class ClipWork:
    """Hold a model and a recording. folder : of the checkpoint. name : of the recording."""

    folder: Path
    model: WhisperModel
    name: str
    samples: Any


def run(
    *,
    widths: str | None = None,
    repeats: int | None = None,
    quick: bool = False,
    model: str = str(carried.MODEL),
    audio: Path | None = None,
    only: str = "",
    out: Path | None = None,
    peers: Peers | None = None,
) -> Outcome:
    """Run the benchmark, and write its record after every row if asked.

    Parameters
    ----------
    widths : D of the random decoders, "384,768,1280".
    repeats : how often each way is timed.
    quick : small sizes, for a look at the machinery rather than at the engine.
    model, audio : of the whole clip that is measured; by default what the package carries.
    only : questions to take, "dense,triplets"; all by default.
    out : folder to write engine.json to.
    peers : question to a function of its work that returns more sides.

    Returns
    -------
    Outcome
        Exit code 0 whatever the times are.

    Raises
    ------
    InputError
        Widths, repeats or questions that cannot be, an unusable model or recording, or a folder that is a file.
    """
    plan = QUICK if quick else Plan()
    if widths is not None:
        plan = dataclasses.replace(plan, widths=_widths(widths))
    if repeats is not None:
        if repeats < 1:
            refuse(f"--repeats {repeats}", "at least 1", "--repeats 7")
        plan = dataclasses.replace(plan, repeats=repeats)
    questions = tuple(filter(None, only.split(","))) or QUESTIONS
    if strange := [name for name in questions if name not in QUESTIONS]:
        refuse(f"--only {strange[0]}", f"some of {','.join(QUESTIONS)}", "--only dense,triplets")
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
    clip = None
    if "clip" in questions:
        path = audio or carried.CLIPS / "two-seven.flac"
        clip = ClipWork(Path(model), load(Path(model), dtype="float32"), path.stem, load_audio(path)[0])
    record: dict[str, Any] = {
        "schema": SCHEMA,
        "status": "running",
        "environment": surroundings(),
        "plan": dataclasses.asdict(plan),
        "rows": [],
        "scaling": [],
        "skipped": {},
    }
    for kind, entry in each_row(plan, questions, clip, peers or {}):
        record[kind] = record[kind] | entry if kind == "skipped" else [*record[kind], entry]
        _write(out, record)
    record["status"] = "done"
    _write(out, record)
    return Outcome(text(record), json_ready(record)[0])


def each_row(
    plan: Plan, questions: tuple[str, ...], clip: ClipWork | None, peers: Peers
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Run row by row and yield ("rows", row), ("scaling", row) or ("skipped", {question: reason})."""
    for width in plan.widths:
        shape = Shape(width, frames=plan.frames, tokens=plan.tokens)
        if "dense" in questions:
            few = dataclasses.replace(shape, tokens=plan.dense_tokens)
            yield "rows", _row("dense", few, plan, peers, dense_sides)
        if "triplets" in questions:
            yield "rows", _row("triplets", shape, plan, peers, triplet_sides, accuracy)
        if "injection" in questions:
            yield "rows", _row("injection", shape, plan, peers, injection_sides)
    if "injection" in questions:
        yield "rows", _memory("injection", Shape(plan.memory_width, frames=plan.frames, tokens=plan.tokens))
    if "sequence" in questions:
        yield "rows", _memory("sequence", Shape(plan.memory_width, frames=plan.frames, tokens=plan.sequence_tokens))
    if clip is not None:
        yield "rows", _clip(clip, plan, peers)
    if "scaling" in questions:
        for what in COSTS:
            for letter, sizes in plan.scaling.items():
                yield "scaling", _scaling(what, letter, sizes, plan)
    if "gpu" in questions:
        if jax.default_backend() == "gpu":
            shape = Shape(1280, layers=4, tokens=64)
            yield "rows", _row("gpu", shape, plan, {}, lambda work: dense_sides(work) | injection_sides(work))
        else:
            yield "skipped", {"gpu": f"no GPU: jax computes on {jax.devices()[0].platform}"}


def _row(
    question: str,
    shape: Shape,
    plan: Plan,
    peers: Peers,
    sides: Callable[[Workload], Mapping[str, Side]],
    check: Callable[[Workload], Mapping[str, Any]] | None = None,
) -> dict[str, Any]:
    """Time all sides of one question at one shape."""
    with working(f"{question} at D={shape.width}, F={shape.frames}, T={shape.tokens}"):
        work = random_workload(shape)
        all_sides = {**sides(work), **peers.get(question, lambda _: {})(work)}
        found = compare(all_sides, repeats=plan.repeats, patience=plan.patience, few=plan.few)
        numbers = dict(check(work)) if check else {}
    row = {"question": question, "weights": "random", **dataclasses.asdict(shape), "heads": shape.heads, **found}
    return _judged(row | {"numbers": numbers})


def _memory(question: str, shape: Shape) -> dict[str, Any]:
    """Measure peak memory of one question in a process of its own."""
    with working(f"memory of {question} at D={shape.width}, F={shape.frames}, T={shape.tokens}"):
        found = peakmemory.in_own_process("workload", f"{question}_memory", **dataclasses.asdict(shape))
    row = {"question": question, "weights": "random", **dataclasses.asdict(shape), "heads": shape.heads}
    return _judged(row | {"sides": {}, "numbers": found, "load_1min": [os.getloadavg()[0]] * 2})


def _clip(clip: ClipWork, plan: Plan, peers: Peers) -> dict[str, Any]:
    """Time the measurement of a whole clip beside its transcription."""
    with working(f"every layer and token of {clip.name}"):
        transcript = transcribe(clip.model, clip.samples)
        steps = len(transcript.tokens) + 1
        sides = {
            "transcribe": Side(lambda: transcribe(clip.model, clip.samples), "our decoder, from samples to text"),
            "measure": Side(lambda: measured(clip, steps), "every layer and token: W, G, conditions, bounds"),
            **peers.get("clip", lambda _: {})(clip),
        }
        found = compare(sides, repeats=plan.repeats, patience=plan.patience, few=plan.few)
    dims = clip.model.dims
    row = {"question": "clip", "weights": clip.model.label, "clip": clip.name, "width": dims.width}
    row |= {"frames": dims.frames, "layers": dims.decoder_layers, "tokens": steps, "heads": dims.decoder_heads}
    return _judged(row | found | {"numbers": {"seconds_of_sound": len(clip.samples) / 16_000, "text": transcript.text}})


def measured(clip: ClipWork, steps: int) -> Any:
    """Measure every layer and token of a clip."""
    return [measure_token(clip.model, clip.samples, step=step) for step in range(steps)]


# What a cost is of, from tokens and an encoder output on.
COSTS: dict[str, Callable[[Workload], Any]] = {"triplets of W": leading, "triplets of G": leading_injections}


def _scaling(what: str, letter: str, sizes: tuple[int, ...], plan: Plan) -> dict[str, Any]:
    """Time one cost at several sizes, in random turn, and fit a power."""
    sides = {}
    for size in sizes:
        shape = dataclasses.replace(plan.base, **{letter: size})
        work = random_workload(shape)
        sides[str(size)] = Side(lambda work=work: COSTS[what](work), f"{what}, all layers and tokens")
    with working(f"{what} against {letter}"):
        found = compare(sides, repeats=min(plan.repeats, plan.few))
    fit = fit_power(sizes, [found["sides"][str(size)]["seconds"]["median"] for size in sizes])
    return {"what": what, "against": letter, **dataclasses.asdict(plan.base), letter: None, "fit": fit, **found}


def _judged(row: dict[str, Any]) -> dict[str, Any]:
    """Add the ratios and numbers that the engine is held to, and whether they are met."""
    bars, ratios = [], {}
    for (question, name, width), (limit, sense) in BARS.items():
        if question != row["question"] or width not in (None, row["width"]):
            continue
        over, _, under = name.partition(" / ")
        if under and over in row["sides"] and under in row["sides"]:
            ratios[name] = ratio(row, over, under)
            value = ratios[name]["median"]
        else:
            value = row["numbers"].get(name)
            if value is None:
                continue
        met = {"<=": value <= limit, "<": value < limit, ">=": value >= limit}[sense]
        bars.append({"name": name, "value": value, "limit": limit, "sense": sense, "met": met})
    return row | {"ratios": ratios, "bars": bars}


def _widths(text: str) -> tuple[int, ...]:
    try:
        widths = tuple(int(part) for part in text.split(","))
    except ValueError:
        widths = ()
    if not widths or any(not 8 <= width <= WIDEST or width % Shape(width).heads for width in widths):
        refuse(f"--widths {text}", f"whole numbers from 8 to {WIDEST}, multiples of 64 above 127", "--widths 384,768")
    return widths


def surroundings() -> dict[str, Any]:
    """Say where and with what the benchmark runs."""
    found = environment()
    found["versions"] |= {name: importlib.metadata.version(name) for name in ("matfree", "scipy")}
    model = [line for line in _lines("/proc/cpuinfo") if line.startswith("model name")]
    return found | {
        "cpu": model[0].split(":")[1].strip() if model else platform.processor(),
        "cpus": os.cpu_count(),
        "threads": {name: os.environ.get(name, "") for name in ("PJRT_NPROC", "OPENBLAS_NUM_THREADS")},
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
        "load_1min": os.getloadavg()[0],
        "date": time.strftime("%Y-%m-%d"),
    }


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text().splitlines()
    except OSError:
        return []


def _write(out: Path | None, record: Mapping[str, Any]) -> None:
    if out is not None:
        content = json.dumps(json_ready(record)[0], indent=1, allow_nan=False) + "\n"
        write_atomically(out / FILE, lambda file: file.write(content.encode()))


def text(record: Mapping[str, Any]) -> str:
    """Lay out a record for a person: times per (layer, token), bars, exponents."""
    parts = []
    for row in record["rows"]:
        head = f"{row['question']}: D={row['width']}, F={row['frames']}, L={row['layers']}, T={row['tokens']}"
        head += f", {row['weights']}; load {' to '.join(f'{load:.1f}' for load in row['load_1min'])}"
        lines = [[name, *(f"{1e3 * side['seconds'][k]:.3g}" for k in ("min", "median", "max")), side["what"]]
                 for name, side in row["sides"].items()]  # fmt: skip
        table = [aligned([["ms per item", "min", "median", "max", ""], *lines], words=1)] if lines else []
        numbers = [f"{name}: {value if isinstance(value, str) else number(value)}" for name, value in row["numbers"].items()]
        bars = [f"{bar['name']} = {bar['value']:.4g}, {'met' if bar['met'] else 'MISSED'}: {bar['sense']} {bar['limit']:g}"
                for bar in row["bars"]]  # fmt: skip
        parts.append("\n".join([head, *table, *numbers, *bars]))
    for row in record["scaling"]:
        fit = row["fit"]
        between = "" if fit["low"] is None else f" ({fit['low']:.2f} to {fit['high']:.2f})"
        parts.append(f"{row['what']} grows with {row['against']} to the power {fit['exponent']:.2f}{between}")
    parts += [f"skipped {name}: {why}" for name, why in record["skipped"].items()]
    return "\n\n".join(parts)


__all__ = ["BARS", "FILE", "QUICK", "ClipWork", "Plan", "each_row", "run", "surroundings", "text", "yardstick"]
