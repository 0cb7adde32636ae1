"""Run one `sensitivity`: a model and recordings, clean and under stress → what λ does, and whether that means anything.

Every clip is measured cheaply under every condition (`study`), a few closely (`detail`); sections answer.
"""

import dataclasses
import hashlib
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from .ablations import ablation_section
from .attraction import attraction_section
from .chance import chance_section
from .clips import Clip
from .console import Outcome, working
from .constancy import constancy_section
from .datasets import MANIFEST, Dataset, find
from .detail import TOPICS, detail, spread_over
from .layerwise import lambda_map, layer_columns, variance_section
from .measured import model_digest
from .prediction import prediction_section, score_columns
from .provenance import environment
from .runs import RunFolder
from .sections import Section, as_columns, not_computed
from .storage import json_ready
from .stress import Recipe, apply, parse
from .study import CLEAN, NO_SPEECH, Study, collect
from .suspicion import suspicion_section, suspicious_rows, write_suspicious
from .transcription import recordings
from .types import InputError, refuse
from .whisper import load

DETAIL = 8


def run(
    *,
    model: str,
    clean: Sequence[Path],
    out: Path,
    stress: str = "noise=0",
    talkers: Path | None = None,
    nonspeech: Path | None = None,
    steps: str = "16",
    detailed: int = DETAIL,
    limit: int | None = None,
    seed: int = 0,
    dtype: str = "float64",
) -> Outcome:
    """Measure λ, κ, σ₁ and ξ across layers, steps, clips and stress, and say what they are worth.

    Parameters
    ----------
    model : checkpoint.
    clean : recordings, or folders of them, with a manifest or without.
    out : run folder to write. One that holds a run of the same command, stopped, is gone on with.
    stress : recipes, separated by commas.
    talkers, nonspeech : folders of what recipes mix in; the second is also transcribed as it is, where nobody speaks.
    steps : generated tokens of every clip, as `spaced_steps` takes it.
    detailed : clips for nulls, ablations and perturbations; 0 leaves these out.
    limit : clips at most. seed : of every random number.
    dtype : "float64" or "float32", of model and measurement.

    Returns
    -------
    Outcome
        Exit code 3 when some cells could not be measured; they are listed, and the others are kept.

    Raises
    ------
    InputError
        Unusable options, model or folders, or no clip that can be used.
    """
    recipes = _recipes(stress)
    _check(recipes, talkers, nonspeech, detailed)
    clips = clips_of(clean).limited(limit)
    speech = list(find(talkers)) if talkers is not None else []
    sounds = list(clips_of([nonspeech])) if nonspeech is not None else []
    config = {
        "model": model,
        "clean": list(clean),
        "stress": [str(recipe) for recipe in recipes],
        "talkers": talkers,
        "nonspeech": nonspeech,
        "steps": steps,
        "detailed": detailed,
        "limit": limit,
        "seed": seed,
        "dtype": dtype,
    }
    with working(f"loading {model}"):
        network = load(model, dtype=jnp.dtype(dtype))
    digest = model_digest(network)
    made_by = {name: environment()[name] for name in ("versions", "commit")}
    key = hashlib.blake2b(json.dumps([json_ready(config)[0], digest, made_by], sort_keys=True).encode()).hexdigest()
    folder = RunFolder(out, run_id=key[:12])
    cells = len(clips) * (1 + len(recipes)) + len(sounds)
    conditions = f"{len(clips)} clips under {1 + len(recipes)} conditions, {len(sounds)} without speech"
    _say(f"{cells} cells: {conditions}; steps {steps}")
    study = collect(
        network,
        list(clips),
        conditions={CLEAN: Recipe(), **{str(recipe): recipe for recipe in recipes}},
        out=folder,
        steps=steps,
        nonspeech=[_named_apart(clip) for clip in sounds],
        talkers=speech,
        sounds=sounds,
        seed=seed,
        about={"model_digest": digest},
        progress=_Estimate(),
    )
    if not study.cells:
        (clip, condition), why = next(iter(study.failed.items()))
        raise InputError(f"{why} ({clip}, {condition}; none of {len(study.failed)} cells was usable)")
    rows, failed = _detailed(network, study, clips, recipes, speech, sounds, folder, key, detailed, seed)
    sections = sections_of(study, rows, width=network.dims.width, seed=seed)
    ranked = suspicious_rows(study.cells, CLEAN)
    write_suspicious(folder.path, ranked)
    failed |= {f"{clip}, {condition}": why for (clip, condition), why in study.failed.items()}
    record = {
        "verb": "sensitivity",
        "config": config,
        "seeds": [seed],
        "dtype": dtype,
        "model_digest": digest,
        "model_label": network.label,
        "verdicts": {section.id: section.verdict for section in sections},
        "sections": [section.to_json() for section in sections],
        "failed": failed,
    }
    folder.write_summary(record)
    texts = [f"{section.title}: {section.verdict}\n{section.sentence}" for section in sections]
    if failed:
        texts.append("not measured:\n" + "\n".join(f"  {name}: {why}" for name, why in failed.items()))
    texts.append(f"written to {folder.path}: {', '.join(sorted(p.name for p in folder.path.iterdir()))}")
    return Outcome("\n\n".join(texts), json_ready(record)[0], 3 if failed else 0)


def clips_of(sources: Sequence[Path]) -> Dataset:
    """Open recordings that may have transcripts or not: a folder without a manifest is the sound files below it.

    Parameters
    ----------
    sources : sound files and folders.

    Raises
    ------
    InputError
        As `datasets.find`, or for a folder without recordings.
    """
    found: list[Clip] = []
    for source in sources:
        bare = source.is_dir() and not (source / MANIFEST).is_file() and next(source.rglob("*.trans.txt"), None) is None
        if bare and not any((above / MANIFEST).is_file() for above in list(source.resolve().parents)[:4]):
            found += [Clip(path, name=str(path.relative_to(source))) for path in recordings([source])]
        else:
            found += list(find(source))
    return Dataset(tuple(found), ", ".join(map(str, sources)))


def sections_of(study: Study, rows: dict[str, list[dict[str, Any]]], *, width: int, seed: int = 0) -> list[Section]:
    """Answer every question from what was measured; what cannot be answered says why.

    Parameters
    ----------
    study : from `collect`. rows : of `detail`. width : D of the model.
    """
    speech = [cell for cell in study.cells if cell.condition != NO_SPEECH]
    stressed = [cell for cell in study.cells if cell.condition != CLEAN]
    columns = layer_columns(speech)
    asked = "no clip was measured closely; --detailed 8 measures eight"
    section = lambda topic, make, ask: make(as_columns(rows[topic])) if rows[topic] else ask
    known = any(cell.reference is not None for cell in stressed)
    among = "stressed clips" if known else "stressed clips without references"
    return [
        lambda_map(columns, CLEAN, seed=seed),
        variance_section(columns, seed=seed),
        constancy_section(columns, seed=seed),
        section("ablations", lambda c: ablation_section(c, seed=seed), not_computed("ablations", "Ablations", asked)),
        section("chance", lambda c: chance_section(c, seed=seed), not_computed("nulls", "Nulls", asked)),
        prediction_section(score_columns(stressed), among=among, seed=seed),
        section(
            "attraction",
            lambda c: attraction_section(c, width, seed=seed),
            not_computed("attractor", "Attractor", asked),
        ),
        suspicion_section(study.cells, CLEAN),
    ]


def _recipes(stress: str) -> list[Recipe]:
    found = [parse(part.strip()) for part in stress.split(",") if part.strip()]
    texts = [str(recipe) for recipe in found]
    if len(set(texts)) < len(texts) or CLEAN in texts:
        refuse(
            f"--stress {stress}, which names one recipe twice or none", "different recipes", "--stress noise=10,noise=0"
        )
    return found


def _check(recipes: Sequence[Recipe], talkers: Path | None, nonspeech: Path | None, detailed: int) -> None:
    for recipe in recipes:
        if recipe.talkers and talkers is None:
            refuse(f"--stress {recipe} without talkers", "a folder of speech", "--talkers FOLDER")
        if recipe.needs_non_speech and nonspeech is None:
            refuse(f"--stress {recipe} without other sounds", "a folder of them", "--nonspeech FOLDER")
    if detailed < 0:
        refuse(f"--detailed {detailed}", "0 or more clips", "--detailed 8")


def _named_apart(clip: Clip) -> Clip:
    """Name a recording without speech so that it is no clip's name."""
    return dataclasses.replace(clip, name=f"no speech: {clip.name}")


def _detailed(
    network: Any,
    study: Study,
    clips: Dataset,
    recipes: Sequence[Recipe],
    speech: Sequence[Clip],
    sounds: Sequence[Clip],
    folder: RunFolder,
    key: str,
    count: int,
    seed: int,
) -> tuple[dict[str, list[dict[str, Any]]], dict[str, str]]:
    """Measure a few clips closely, clean and under the last recipe."""
    used = study.of(CLEAN)
    of = lambda name: [getattr(cell, name) for cell in used]
    chosen = set(spread_over(of("clip"), of("speaker"), of("cluster"), count))
    by_name = {clip.name: clip for clip in clips}

    def stressed(clip: Clip, recipe: Recipe) -> np.ndarray:
        samples = clip.load()
        return apply(
            seed, samples, recipe=recipe, name=clip.name, speaker=clip.speaker, talkers=speech, non_speech=sounds
        )[0]

    wanted: list[tuple[dict[str, Any], Callable[[], np.ndarray]]] = []
    for cell in used:
        if cell.clip in chosen:
            clip = by_name[cell.clip]
            labels = {name: getattr(cell, name) for name in ("clip", "cluster", "speaker")}
            wanted.append((labels | {"condition": CLEAN}, clip.load))
            for recipe in recipes[-1:]:
                load = lambda clip=clip, recipe=recipe: stressed(clip, recipe)
                wanted.append((labels | {"condition": str(recipe)}, load))
    if not wanted:
        return {topic: [] for topic in TOPICS}, {}
    _say(f"{len(wanted)} of them closely: nulls, ablations, perturbations")
    return detail(network, wanted, folder=folder.path, key=key, seed=seed, progress=_Estimate("close looks"))


class _Estimate:
    """Say on standard error, after the second of many cells, how long the rest will take; the first compiles."""

    def __init__(self, what: str = "cells") -> None:
        self.what, self.started, self.said = what, 0.0, 0.0

    def __call__(self, done: int, count: int) -> None:
        now = time.monotonic()
        if done <= 1:
            self.started = now
        elif done == 2 or now - self.said > 30:
            left = (now - self.started) / (done - 1) * (count - done)
            _say(f"{done} of {count} {self.what}, about {left:.0f} s left")
            self.said = now


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
