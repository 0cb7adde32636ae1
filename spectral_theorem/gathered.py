"""Measure a material with a model, for verbs that answer questions about it; say what was measured, and with what."""

import contextlib
import dataclasses
import hashlib
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp

from . import carried
from .console import working
from .material import Material, material, recipe_of
from .provenance import environment
from .remaining import Remaining
from .report import write_report
from .runs import RunFolder
from .sections import Section
from .study import CLEAN, STRESSED, Cell, Study, collect, measured
from .studyfile import QUANTITIES
from .suspicion import suspicious_rows, write_suspicious
from .tables import Column, Table
from .types import InputError
from .whisper import WhisperModel, load

PROVENANCE = ("provenance", "What was measured")
DIGITS_ONLY = (
    "whisper-tiny.en-digits has the blocks of Whisper tiny.en and a vocabulary learned on digits: its layers are real, "
    "its behaviour means something on strings of digits only."
)


@contextlib.contextmanager
def passing(
    model: str,
    audio: str,
    *,
    stress: str,
    talkers: str = "",
    only: str = "",
    digits: int = 0,
    orders: int = 5,
    clips: int = 0,
    steps: str = "16",
    dtype: str = "float32",
    told: bool = False,
    seed: int = 0,
) -> Iterator[Study]:
    """Give a study of recordings clean and under one recipe, in a folder that is thrown away; for experiments.

    Parameters
    ----------
    model : checkpoint, or "carried". audio : folder, or "carried" for the clips that the package brings.
    stress, talkers, only, digits, orders : as in `material`; an empty text and 0 stand for none.
    clips : how many at most, 0 for all. steps, dtype, told, seed : as in `gather`.

    Raises
    ------
    InputError
        As `material` and `gather`.
    """
    found = material(
        [carried.CLIPS if audio == carried.NAME else Path(audio)],
        recipes={STRESSED: recipe_of(stress)},
        talkers=Path(talkers) if talkers else None,
        only=only or None,
        digits=digits or None,
        orders=orders,
        limit=clips or None,
        seed=seed,
    )
    name = str(carried.MODEL) if model == carried.NAME else model
    with tempfile.TemporaryDirectory() as scratch:
        options: dict[str, Any] = {"steps": steps, "seed": seed, "dtype": dtype, "told": told}
        yield gather(name, found, out=Path(scratch) / "run", quiet=True, **options)[0]


def gather(
    model: str,
    found: Material,
    *,
    out: Path,
    steps: str = "16",
    seed: int = 0,
    dtype: str = "float32",
    told: bool = True,
    quiet: bool = False,
) -> tuple[Study, str]:
    """Load a model, measure all recordings of a material, and return the study with the model's name.

    Parameters
    ----------
    model, out, steps, seed, dtype : as in `run`. found : clips and conditions.
    told : whether stressed clips are also told the tokens of the clean ones. quiet : say nothing of the time left.

    Raises
    ------
    InputError
        An unusable model, or no recording that can be used.
    """
    with working(f"loading {model}"):
        network = load(model, dtype=jnp.dtype(dtype))
    if steps.strip() == "all":
        print(cost(network, found), file=sys.stderr, flush=True)
    study = collect(
        network,
        found.clips,
        conditions=found.conditions,
        out=out,
        steps=steps,
        told=told,
        nonspeech=found.nonspeech,
        talkers=found.talkers,
        sounds=found.sounds,
        seed=seed,
        progress=Remaining("recordings", every=None if quiet and not sys.stderr.isatty() else 60.0),
    )
    if not study.cells:
        (clip, condition), why = next(iter(study.failed.items()))
        raise InputError(f"{why} ({clip}, {condition}; none of {len(study.failed)} recordings was usable)")
    return study, carried.NAME if Path(model) == carried.MODEL else network.label


def cost(network: WhisperModel, found: Material) -> str:
    """Estimate what all steps of all recordings take, from the first clip, measured twice: the first time compiles."""
    clip = found.clips[0]
    seconds, steps = [], 0
    for _ in range(2):
        started = time.perf_counter()
        try:
            header, _ = measured(network, clip.load(), steps="all")
        except InputError as problem:
            return f"{found.cells} recordings, all steps; no estimate: {problem}"
        seconds.append(time.perf_counter() - started)
        steps = len(header["steps"])
    total = seconds[0] + seconds[1] * found.cells
    words = f"{total / 60:.0f} min" if total >= 90 else f"{total:.0f} s"
    return (
        f"{found.cells} recordings, all steps: about {words} if they are like {clip.name} ({steps} steps, "
        f"{seconds[1]:.1f} s); loops make transcripts longer, and each step counts"
    )


def numbered(sections: Sequence[Section]) -> list[Section]:
    """Give the tables of a run numbers, from 1, so that each can be asked for."""
    count, found = 0, []
    for section in sections:
        tables = []
        for table in section.tables:
            count += 1
            tables.append(dataclasses.replace(table, number=count))
        found.append(dataclasses.replace(section, tables=tuple(tables)))
    return found


def provenance_section(study: Study, found: Material, label: str, modes: Sequence[int]) -> Section:
    """Say what was measured, with what, and how far that carries."""
    about, d = found.described(), study.description
    sounds = hashlib.blake2b("".join(cell.digest for cell in study.cells).encode(), digest_size=16).hexdigest()
    made = environment()
    people = len(about["speakers"])
    rows = [
        ("model", label),
        ("digest of its weights", d["model_digest"]),
        ("recordings measured", str(len(study.cells))),
        ("recordings that could not be", str(len(study.failed))),
        ("recordings cut to one window", str(sum(cell.cut for cell in study.cells))),
        ("digest of all sounds", sounds),
        ("conditions", "; ".join(f"{name}: {how}" for name, how in about["conditions"].items())),
        ("clusters", str(about["clusters"])),
        ("speakers", ", ".join(about["speakers"]) or "unknown"),
        ("normaliser", d["how"]),
        ("steps, seed, dtype", f"{d['steps']}, {d['seed']}, {d['dtype']}"),
        ("windows", ", ".join(map(str, modes))),
        ("device", f"{made['device']}, {made['platform']}"),
        ("versions", ", ".join(f"{name} {version}" for name, version in made["versions"].items())),
        ("commit", made["commit"] or "installed copy"),
    ]
    table = Table("provenance", 0, "What was measured, and with what.", (Column("what"), Column("")), tuple(rows))
    sentence = (
        f"{len(study.cells)} of {len(study.cells) + len(study.failed)} recordings were measured: {about['clips']} "
        f"clips in {about['clusters']} clusters, by {people or 'an unknown number of'} speakers; intervals draw "
        "clusters again."
    )
    if 0 < people < 20:
        sentence += f" What holds for other speakers rests on n = {people}."
    cut = [cell for cell in study.cells if cell.cut]
    if cut:
        window = f"{cut[0].seconds:g} s"
        sentence += (
            f" {len(cut)} recordings are longer than the {window} that the model hears at once: their first {window} "
            "are measured, and where it is known what was said they are labelled cut, for nobody knows which words are "
            "in there."
        )
    if "en-digits" in label:
        sentence += f" {DIGITS_ONLY}"
    sentence += "".join(f" {note[0].upper()}{note[1:]}." for note in found.notes)
    return Section(*PROVENANCE, "UNDECIDED" if study.failed else "HOLDS", sentence, (table,))


def write_study_run(
    folder: RunFolder, study: Study, sections: Sequence[Section], record: dict[str, Any], dtype: str
) -> None:
    """Write what a verb found in a study: ranked clips, the long table, the summary; the page, figures and tables.

    Parameters
    ----------
    folder : of the run. study, sections : what was measured and answered. record : of the summary.
    dtype : of the numbers.
    """
    folder.begin()
    write_suspicious(folder.path, suspicious_rows(study.cells, CLEAN))
    for condition in study.conditions:
        rows = [row for cell in study.of(condition) for row in cell_rows(cell, dtype)]
        folder.write_table(rows, part=condition.replace(" ", "-"))
    folder.write_summary(record)
    write_report(folder.path)


def cell_rows(cell: Cell, dtype: str) -> list[dict[str, Any]]:
    """Return rows of the long table for one cell: its transcript with the label, and every layer at every step."""
    labels = {"clip": cell.clip, "condition": cell.condition, "component": "decoder", "granularity": "block"}
    labels |= {"scope": "token", "context": "full", "dtype": dtype}
    text = {"text": cell.transcript.text}
    rows: list[dict[str, Any]] = [
        {"quantity": f"transcript.{name}", "value": getattr(cell.transcript, name), "unit": unit, **text}
        for name, unit in (("avg_logprob", "nats/token"), ("no_speech_prob", "1"), ("compression_ratio", "1"))
    ]
    rate = cell.behaviour.word_error_rate
    rows.append(
        {"quantity": f"behaviour.{cell.behaviour.label}", "value": rate, "unit": "1", "text": cell.behaviour.rule}
    )
    found = cell.layers
    for at, step in enumerate(cell.steps):
        for name in (*QUANTITIES, "log_gain_actual"):
            if name not in found:
                continue
            unit = "nats/layer" if name == "lam" else "nats" if name.startswith("log") else "1"
            for layer, value in enumerate(found[name][at]):
                error = found[f"{name}_error"][at, layer]
                rows.append(
                    {"quantity": name, "unit": unit, "layer": layer + 1, "step": step, "value": value, "error": error}
                )
        if "log_context_gain" in found:
            both = {"value": found["log_context_gain"][at], "error": found["log_context_gain_error"][at]}
            rows.append({"quantity": "log_context_gain", "unit": "nats", "step": step, **both})
    return [{**labels, **row} for row in rows]
