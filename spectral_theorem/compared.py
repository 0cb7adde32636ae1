"""Run one `compare`: a model and recordings, clean and under stress → what stress changes, and in whom.

Every clip is measured once per condition (`study`); each section answers one question, or says why it cannot.
"""

import dataclasses
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from . import carried
from .console import Outcome, working
from .gathered import gather, numbered, provenance_section, write_study_run
from .group_sections import hallucinated_section, label_table, layer_changes
from .material import material, recipe_of
from .paper_tables import paper_section
from .runs import RunFolder
from .sametokens import same_token_columns, same_token_section
from .sections import Section, not_computed
from .spectra import LEAST_POOLED, Place, spectra, spectra_change, spectra_difference
from .spectral_sections import (
    BASELINE,
    DIVERGENCE,
    OBSERVABLES,
    TITLES,
    baseline_section,
    changes_of,
    component_rows,
    divergence_section,
    observables_section,
)
from .storage import json_ready
from .study import CLEAN, STRESSED, Cell, Study
from .suspicion import suspicion_section
from .types import refuse

MODES = (10, 50)
STRESS = "noise=0"
PAPER = ("paper", "The paper's tables beside ours")


def run(
    *,
    model: str,
    clean: Sequence[Path],
    stress: str | None = None,
    stressed: Path | None = None,
    talkers: Path | None = None,
    nonspeech: Path | None = None,
    only: str | None = None,
    digits: int | None = None,
    orders: int = 5,
    limit: int | None = None,
    steps: str = "16",
    modes: str = "10,50",
    seed: int = 0,
    dtype: str = "float32",
    out: Path | None = None,
) -> Outcome:
    """Compare clean recordings with stressed ones, and hallucinated with survived ones among these.

    Parameters
    ----------
    model : checkpoint.
    clean, stressed, talkers, nonspeech, only, digits, orders, limit : as in `material`.
    stress : recipe to make stressed recordings with; where neither it nor `stressed` is given, white noise at 0 dB.
    steps : generated tokens of every clip, as `spaced_steps` takes it.
    modes : windows of eigenvalues, with commas; the first is judged.
    seed : of every random number. dtype : "float32" or "float64", of model and measurement.
    out : run folder to write. One that holds the same study, stopped or judged otherwise, is gone on with.

    Returns
    -------
    Outcome
        Exit code 3 when some cells could not be measured; they are listed, and the others are kept.

    Raises
    ------
    InputError
        Unusable options, model or folders, or no clip that can be used.
    """
    windows = windows_of(modes)
    recipes = {} if stressed is not None and stress is None else {STRESSED: recipe_of(stress or STRESS)}
    found = material(
        clean,
        recipes=recipes,
        stressed=stressed,
        talkers=talkers,
        nonspeech=nonspeech,
        only=only,
        digits=digits,
        orders=orders,
        limit=limit,
        seed=seed,
    )
    with tempfile.TemporaryDirectory() as scratch:
        place = Path(scratch) / "run" if out is None else out
        study, label = gather(model, found, out=place, steps=steps, seed=seed, dtype=dtype, quiet=out is None)
        with working("comparing spectra"):
            found_sections = sections_of(study, windows, label=label, paired=found.paired, seed=seed)
            sections = numbered([*found_sections, provenance_section(study, found, label, windows)])
        options = {"clean": list(clean), "stress": {n: str(r) for n, r in recipes.items()}, "stressed": stressed}
        options |= {"talkers": talkers, "nonspeech": nonspeech, "only": only, "digits": digits, "orders": orders}
        named = label if label == carried.NAME else model
        config = {"model": named, **options, "limit": limit, "steps": steps, "modes": list(windows)}
        record = {
            "verb": "compare",
            "config": config,
            "seeds": [seed],
            "dtype": dtype,
            "model_digest": study.description["model_digest"],
            "model_label": label,
            "verdicts": {section.id: section.verdict for section in sections},
            "sections": [section.to_json() for section in sections],
            "failed": {f"{clip}, {condition}": why for (clip, condition), why in study.failed.items()},
        }
        texts = [compared_text(sections)]
        if study.failed:
            lines = [f"  {clip}, {condition}: {why}" for (clip, condition), why in study.failed.items()]
            texts.append("not measured:\n" + "\n".join(lines))
        if out is not None:
            write_study_run(RunFolder(out, run_id=study.description["key"][:12]), study, sections, record, dtype)
            texts.append(f"written to {out}: {', '.join(sorted(p.name for p in out.iterdir()))}")
    return Outcome("\n\n".join(texts), json_ready(record)[0], 3 if study.failed else 0)


def windows_of(modes: str) -> tuple[int, ...]:
    """Read windows such as "10,50".

    Examples
    --------
    >>> windows_of("10, 50")
    (10, 50)
    """
    parts = [part.strip() for part in modes.split(",") if part.strip()]
    if not parts or not all(part.isdecimal() and 2 <= int(part[:9]) for part in parts) or len(set(parts)) < len(parts):
        refuse(f"--modes {modes}", "different whole numbers from 2, with commas", "--modes 10,50")
    return tuple(int(part[:9]) for part in parts)


def sections_of(
    study: Study, modes: Sequence[int] = MODES, *, label: str = "", paired: bool = True, seed: int = 0
) -> list[Section]:
    """Answer every question from a study; what cannot be answered says why.

    Parameters
    ----------
    study : with the conditions "clean" and "stressed". modes : windows, the first of which is judged.
    label : name of the model. paired : whether both conditions are of the same clips. seed : of the tests.
    """
    pairs = study.pairs(CLEAN, STRESSED)
    why = ""
    if not paired:
        why = "clean and stressed recordings are of different clips"
    elif len(pairs) < LEAST_POOLED:
        lost = f", {len(study.failed)} recordings could not be measured" if study.failed else ""
        why = f"{len(pairs)} clips under both conditions, where it takes {LEAST_POOLED}{lost}"
    found: list[Section] = []
    layers = layer_changes(pairs, seed=seed) if pairs else None
    if why:
        section = not_computed(OBSERVABLES, TITLES[OBSERVABLES], why)
        tables = (label_table(study.cells), *([layers] if layers is not None else []))
        found.append(dataclasses.replace(section, tables=tables))
        found += [not_computed(name, TITLES[name], why) for name in (BASELINE, DIVERGENCE)]
        found.append(not_computed(*PAPER, why))
    else:
        changes = spectra_change(pairs, modes, seed=seed)
        alike = spectra_change(pairs, modes[:1], alike=True, seed=seed)
        found.append(observables_section(changes, alike, modes, layers, pairs=len(pairs)))
        found.append(_baseline(study, changes, modes, seed=seed))
        found.append(divergence_section(changes, modes))
        found.append(paper_section({k: component_rows(changes_of(changes), k) for k in modes}, label))
    found.append(same_token_section(same_token_columns(study.cells, CLEAN), seed=seed))
    found.append(hallucinated_section(study.cells, STRESSED, modes, seed=seed))
    found.append(suspicion_section(study.cells, CLEAN))
    return found


def _baseline(study: Study, changes: dict[Place, Any], modes: Sequence[int], *, seed: int) -> Section:
    well = [cell for cell in study.of(CLEAN) if cell.behaviour.label in ("survived", "unflagged")]
    clusters = list(dict.fromkeys(cell.cluster for cell in well))
    halves: list[list[Cell]] = [[cell for cell in well if clusters.index(cell.cluster) % 2 == side] for side in (0, 1)]
    if min(map(len, halves)) < LEAST_POOLED:
        why = f"{len(well)} clean clips in {len(clusters)} clusters were transcribed well, where two halves take "
        return not_computed(BASELINE, TITLES[BASELINE], f"{why}{LEAST_POOLED} each")
    group = spectra(well, modes[:1])
    between = spectra_difference(halves[0], halves[1], modes[:1], seed=seed)
    return baseline_section(group, changes, between, modes[:1], clips=len(well))


def compared_text(sections: Sequence[Section]) -> str:
    """Write verdicts in words first, then the tables that fit a terminal."""
    words = "\n\n".join(f"{section.title}\n{section.verdict}: {section.sentence}" for section in sections)
    short = [t.to_text() for s in sections for t in s.tables if t.name in ("labels", "paper_10", "paper_50", "layers")]
    return "\n\n".join([words, *short])
