"""Benchmark the engine: what sigma, kappa, rho, xi and Psi cost at every (layer, token), beside other ways to them.

Every way is timed in one process, turn by turn; what is kept are ratios with their spread, beside the load of
the machine. `scripts/bench_engine.py` runs the same rows with PyTorch beside them.
"""

import dataclasses
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax

from . import benchrecord, carried, peakmemory
from .audio import SAMPLE_RATE, load_audio
from .console import Outcome, working
from .stepwise import measure_steps
from .storage import json_ready
from .timing import Side, compare, fit_power
from .types import refuse
from .whisper import WhisperModel, load, transcribe
from .workload import (
    Shape,
    Workload,
    accuracy,
    dense_accuracy,
    dense_sides,
    gpu_sides,
    injection_sides,
    leading,
    leading_injections,
    random_workload,
    triplet_sides,
)

QUESTIONS = ("dense", "triplets", "injection", "sequence", "clip", "scaling", "gpu")
WIDEST = 4096


@dataclasses.dataclass(frozen=True)
class Peers:
    """Hold what another framework brings.

    Parameters
    ----------
    sides : question to a function of its work that returns more sides.
    numbers : question to a function of its work that returns numbers for the row.
    versions : name to version.
    """

    sides: Mapping[str, Callable[[Any], Mapping[str, Side]]] = dataclasses.field(default_factory=dict)
    numbers: Mapping[str, Callable[[Any], Mapping[str, Any]]] = dataclasses.field(default_factory=dict)
    versions: Mapping[str, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Plan:
    """Say which sizes are run, and how often.

    Parameters
    ----------
    widths, frames : D and F of the random decoders.
    tokens, triplet_tokens : T over which a decoder run is shared, the second for the triplets of W.
    repeats : how often each side is timed; `few` for one whose call takes longer than `patience` seconds.
    memory_width, sequence_tokens : D and T where peak memory is measured.
    scaling : letter of Shape to the sizes it takes; the others stay at the middle of theirs.
    """

    widths: tuple[int, ...] = (384, 768, 1280)
    frames: int = 1500
    tokens: int = 16
    triplet_tokens: int = 64
    repeats: int = 7
    few: int = 3
    patience: float = 5.0
    memory_width: int = 1280
    sequence_tokens: int = 64
    scaling: Mapping[str, tuple[int, ...]] = dataclasses.field(
        default_factory=lambda: {
            "width": (256, 384, 512, 768, 1280),
            "layers": (1, 2, 4, 8),
            "tokens": (4, 8, 16, 32, 64),
            "frames": (375, 750, 1500, 3000),
        }
    )
    base: Shape = dataclasses.field(default_factory=lambda: Shape(384, layers=2, tokens=8))


QUICK = Plan(
    widths=(128,),
    frames=100,
    tokens=4,
    triplet_tokens=4,
    repeats=3,
    memory_width=64,
    sequence_tokens=8,
    scaling={"width": (16, 32, 64)},
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
    append: bool = False,
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
    append : keep the rows of an engine.json that is there, but for those that are run again.
    peers : what another framework brings.

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
    brought = peers or Peers()
    record = benchrecord.empty(dataclasses.asdict(plan), brought.versions)
    if append and out is not None and (out / benchrecord.FILE).exists():
        before = benchrecord.read(out / benchrecord.FILE)
        record |= {kind: before[kind] for kind in ("rows", "scaling", "skipped")}
    for kind, entry in each_row(plan, questions, clip, brought):
        benchrecord.add(record, kind, entry)
        benchrecord.write(out, record)
    record["status"] = "done"
    benchrecord.write(out, record)
    return Outcome(benchrecord.text(record), json_ready(record)[0])


def each_row(
    plan: Plan, questions: tuple[str, ...], clip: ClipWork | None, peers: Peers
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Run row by row and yield ("rows", row), ("scaling", row) or ("skipped", {question: reason})."""
    for width in plan.widths:
        shape = Shape(width, frames=plan.frames, tokens=plan.tokens)
        if "dense" in questions:
            yield "rows", _row("dense", shape, plan, peers, dense_sides, dense_accuracy)
        if "triplets" in questions:
            many = dataclasses.replace(shape, tokens=plan.triplet_tokens)
            yield "rows", _row("triplets", many, plan, peers, triplet_sides, accuracy)
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
            yield "rows", _row("gpu", shape, plan, peers, gpu_sides)
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
        all_sides = {**sides(work), **_brought(peers.sides, question, work)}
        found = compare(all_sides, repeats=plan.repeats, patience=plan.patience, few=plan.few)
        numbers = {**(check(work) if check else {}), **_brought(peers.numbers, question, work)}
    row = {"question": question, "weights": "random", **dataclasses.asdict(shape), "heads": shape.heads, **found}
    return benchrecord.judged(row | {"numbers": numbers})


def _memory(question: str, shape: Shape) -> dict[str, Any]:
    """Measure peak memory of one question in a process of its own."""
    with working(f"memory of {question} at D={shape.width}, F={shape.frames}, T={shape.tokens}"):
        found = peakmemory.in_own_process("workload", f"{question}_memory", **dataclasses.asdict(shape))
    row = {"question": question, "weights": "random", **dataclasses.asdict(shape), "heads": shape.heads}
    return benchrecord.judged(
        row | {"measures": "memory", "sides": {}, "numbers": found, "load_1min": [os.getloadavg()[0]] * 2}
    )


def _clip(clip: ClipWork, plan: Plan, peers: Peers) -> dict[str, Any]:
    """Time the measurement of a whole clip beside its transcription."""
    with working(f"every layer and token of {clip.name}"):
        transcript = transcribe(clip.model, clip.samples)
        steps = len(transcript.tokens) + 1
        sides = {
            "transcribe": Side(lambda: transcribe(clip.model, clip.samples), "our decoder, from samples to text"),
            "measure": Side(
                lambda: measure_steps(clip.model, clip.samples), "every layer and token: W, G, conditions, bounds"
            ),
            **_brought(peers.sides, "clip", clip),
        }
        found = compare(sides, repeats=plan.repeats, patience=plan.patience, few=plan.few)
    numbers = {"seconds_of_sound": len(clip.samples) / SAMPLE_RATE, "text": transcript.text}
    dims = clip.model.dims
    row = {"question": "clip", "weights": clip.model.label, "clip": clip.name, "width": dims.width}
    row |= {"frames": dims.frames, "layers": dims.decoder_layers, "tokens": steps, "heads": dims.decoder_heads}
    return benchrecord.judged(row | found | {"numbers": {**numbers, **_brought(peers.numbers, "clip", clip)}})


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


def _brought(
    functions: Mapping[str, Callable[[Any], Mapping[str, Any]]], question: str, work: Any
) -> Mapping[str, Any]:
    return functions[question](work) if question in functions else {}


def _widths(text: str) -> tuple[int, ...]:
    try:
        widths = tuple(int(part) for part in text.split(","))
    except ValueError:
        widths = ()
    if not widths or any(not 8 <= width <= WIDEST or width % Shape(width).heads for width in widths):
        refuse(f"--widths {text}", f"whole numbers from 8 to {WIDEST}, multiples of 64 above 127", "--widths 384,768")
    return widths
