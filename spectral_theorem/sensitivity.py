"""Run one `sensitivity`: a model and recordings, clean and under stress → what λ does, and whether that means anything.

Every clip is measured cheaply under every condition (`study`), a few closely (`detail`); sections answer.
"""

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from . import ablations, attraction, chance
from .console import Outcome
from .constancy import constancy_section
from .detail import SEQUENCES, TOPICS, detail, spread_over
from .gathered import gather, numbered, provenance_section, write_study_run
from .layerwise import lambda_map, layer_columns, variance_section
from .material import Material, material, recipe_of
from .prediction import prediction_section, score_columns
from .remaining import Remaining
from .runs import RunFolder
from .sametokens import same_token_columns, same_token_section
from .sections import Section, as_columns, not_computed
from .storage import json_ready
from .stress import Recipe, apply
from .study import CLEAN, NO_SPEECH, Study
from .suspicion import suspicion_section
from .types import refuse
from .whisper import load

DETAILED = 10  # clips: enough for exact tests, whose least p is then 2 in 1,024


def run(
    *,
    model: str,
    clean: Sequence[Path],
    out: Path,
    stress: str = "noise=0",
    talkers: Path | None = None,
    nonspeech: Path | None = None,
    only: str | None = None,
    digits: int | None = None,
    orders: int = 1,
    limit: int | None = None,
    steps: str = "16",
    detailed: int = DETAILED,
    sequences: int = SEQUENCES,
    seed: int = 0,
    dtype: str = "float64",
) -> Outcome:
    """Measure λ, κ, σ₁ and ξ across layers, steps, clips and stress, and say what they are worth.

    Parameters
    ----------
    model : checkpoint.
    clean, talkers, nonspeech, only, digits, orders, limit : as in `material`.
    out : run folder to write. One that holds a run of the same command, stopped, is gone on with.
    stress : recipes, separated by commas; each is a condition.
    steps : generated tokens of every clip, as `spaced_steps` takes it.
    detailed : clips for nulls, ablations and perturbations, clean and under the last recipe; 0 leaves these out.
    sequences : so many of these are decomposed as whole sequences as well, as they are.
    seed : of every random number.
    dtype : "float64" or "float32", of model and measurement.

    Returns
    -------
    Outcome
        Exit code 3 when some recordings could not be measured; they are listed, and the others are kept.

    Raises
    ------
    InputError
        Unusable options, model or folders, or no recording that can be used.
    """
    recipes = recipes_of(stress)
    if detailed < 0:
        refuse(f"--detailed {detailed}", "0 or more clips", f"--detailed {DETAILED}")
    if not 0 <= sequences:
        refuse(f"--sequences {sequences}", "0 or more of the clips looked at closely", f"--sequences {SEQUENCES}")
    found = material(
        clean,
        recipes=recipes,
        talkers=talkers,
        nonspeech=nonspeech,
        only=only,
        digits=digits,
        orders=orders,
        limit=limit,
        seed=seed,
    )
    study, label = gather(model, found, out=out, steps=steps, seed=seed, dtype=dtype)
    rows, failed = _closely(model, study, found, recipes, count=detailed, sequences=sequences, seed=seed, dtype=dtype)
    sections = sections_of(study, rows, seed=seed)
    sections = numbered([*sections, provenance_section(study, found, label, ())])
    failed |= {f"{clip}, {condition}": why for (clip, condition), why in study.failed.items()}
    record = {
        "verb": "sensitivity",
        "config": {
            "model": model,
            "clean": list(clean),
            "stress": list(recipes),
            "talkers": talkers,
            "nonspeech": nonspeech,
            "only": only,
            "digits": digits,
            "orders": orders,
            "limit": limit,
            "steps": steps,
            "detailed": detailed,
            "sequences": sequences,
        },
        "seeds": [seed],
        "dtype": dtype,
        "model_digest": study.description["model_digest"],
        "model_label": label,
        "verdicts": {section.id: section.verdict for section in sections},
        "sections": [section.to_json() for section in sections],
        "failed": failed,
    }
    folder = RunFolder(out, run_id=study.description["key"][:12])
    write_study_run(folder, study, sections, record, dtype)
    texts = [f"{section.title}\n{section.verdict}: {section.sentence}" for section in sections]
    if failed:
        texts.append("not measured:\n" + "\n".join(f"  {name}: {why}" for name, why in failed.items()))
    texts.append(f"written to {folder.path}: {', '.join(sorted(p.name for p in folder.path.iterdir()))}")
    return Outcome("\n\n".join(texts), json_ready(record)[0], 3 if failed else 0)


def recipes_of(stress: str) -> dict[str, Recipe]:
    """Read recipes with commas between them, each once.

    Examples
    --------
    >>> list(recipes_of("noise=10, noise=0"))
    ['noise=10', 'noise=0']
    """
    found = [recipe_of(part.strip()) for part in stress.split(",") if part.strip()]
    named = {str(recipe): recipe for recipe in found}
    if not found or len(named) < len(found):
        refuse(f"--stress {stress!r}, no recipe or one twice", "different recipes", "--stress noise=10,noise=0")
    return named


def sections_of(study: Study, rows: Mapping[str, Sequence[Mapping[str, Any]]], *, seed: int = 0) -> list[Section]:
    """Answer every question from what was measured; what cannot be answered says why.

    Parameters
    ----------
    study : whose clean condition is "clean". rows : of `detail`.
    """
    speech = [cell for cell in study.cells if cell.condition != NO_SPEECH]
    stressed = [cell for cell in study.cells if cell.condition != CLEAN]
    width = int(study.description["width"])
    columns = layer_columns(speech)
    columns |= {"width": np.full(len(columns["clip"]), float(width))} if columns else {}
    close = {topic: as_columns(rows[topic]) for topic in TOPICS}
    asked = "no clip was looked at closely; --detailed 10 does so with ten"
    known = any(cell.reference is not None for cell in stressed)

    def of_topic(topic: str, about: Any, make: Callable[[Any], Section]) -> Section:
        return make(close[topic]) if close[topic] else not_computed(about.ID, about.TITLE, asked)

    return [
        lambda_map(columns, CLEAN, seed=seed),
        variance_section(columns),
        constancy_section(columns, seed=seed),
        same_token_section(same_token_columns(speech, CLEAN), seed=seed),
        of_topic("ablations", ablations, lambda c: ablations.ablation_section(c, seed=seed)),
        of_topic("chance", chance, lambda c: chance.chance_section(c, seed=seed)),
        prediction_section(
            score_columns(stressed), among="stressed clips" if known else "clips without references", seed=seed
        ),
        of_topic("attraction", attraction, lambda c: attraction.attraction_section(c, width, seed=seed)),
        suspicion_section(study.cells, CLEAN),
    ]


def _closely(
    model: str,
    study: Study,
    found: Material,
    recipes: Mapping[str, Recipe],
    *,
    count: int,
    sequences: int,
    seed: int,
    dtype: str,
) -> tuple[dict[str, list[dict[str, Any]]], dict[str, str]]:
    """Measure a few clips closely, clean and under the last recipe."""
    used = study.of(CLEAN)
    of = lambda name: [getattr(cell, name) for cell in used]
    chosen = set(spread_over(of("clip"), of("speaker"), of("cluster"), count))
    if not chosen:
        return {topic: [] for topic in TOPICS}, {}
    clips = {clip.name: clip for clip in found.clips}
    name, recipe = list(recipes.items())[-1]

    def stressed(clip: str) -> np.ndarray:
        own = clips[clip]
        people, sounds = found.talkers, found.sounds
        return apply(
            seed, own.load(), recipe=recipe, name=clip, speaker=own.speaker, talkers=people, non_speech=sounds
        )[0]

    wanted: list[tuple[dict[str, Any], Callable[[], np.ndarray]]] = []
    for cell in used:
        if cell.clip in chosen:
            labels = {name: getattr(cell, name) for name in ("clip", "cluster", "speaker")}
            wanted.append((labels | {"condition": CLEAN}, clips[cell.clip].load))
            wanted.append((labels | {"condition": name}, lambda clip=cell.clip: stressed(clip)))
    print(f"{len(wanted)} recordings closely: nulls, ablations, perturbations", file=sys.stderr, flush=True)
    return detail(
        load(model, dtype=jnp.dtype(dtype)),
        wanted,
        folder=study.path,
        key=study.description["key"],
        sequences=sequences,
        seed=seed,
        progress=Remaining("close looks"),
    )
