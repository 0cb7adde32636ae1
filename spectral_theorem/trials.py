"""Run the study, or the close look, of an experiment in a folder that is thrown away."""

import re
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp

from . import carried
from .clips import Clip, Dataset
from .datasets import digit_strings, find
from .detail import closely
from .layerwise import layer_columns
from .prediction import score_columns
from .sections import Columns, Section
from .stress import Recipe, apply, parse
from .study import CLEAN, collect
from .types import refuse
from .whisper import WhisperModel, load

CARRIED = carried.NAME
LAST_TAKE = 4  # FSDD's takes 0 to 4 are the ones no model here was trained on


def trial_model(model: str, dtype: str) -> WhisperModel:
    """Load the model of an experiment.

    Parameters
    ----------
    model : checkpoint, or "carried". dtype : "float64" or "float32".
    """
    return load(carried.MODEL if model == CARRIED else model, dtype=jnp.dtype(dtype))


def trial_clips(audio: str, *, digits: int, count: int, seed: int = 0) -> Dataset:
    """Choose the clips of an experiment: those in which somebody speaks.

    Parameters
    ----------
    audio : folder, or "carried".
    digits : 0 takes recordings as they are; otherwise takes 0 to 4 of single digits are joined to strings of so many,
        each recording in one string only.
    count : at most. seed : of the choice.

    Raises
    ------
    InputError
        As `datasets.find`, or when nobody speaks.

    Examples
    --------
    >>> [clip.transcript for clip in trial_clips("carried", digits=0, count=1)]
    ['three one four']
    """
    found = find(carried.CLIPS if audio == CARRIED else audio)
    if digits:
        held = found.where(lambda clip: _take(clip) <= LAST_TAKE)
        return digit_strings(held, length=digits, seed=seed).shuffled(seed).limited(count)
    spoken = found.where(lambda clip: bool(clip.transcript))
    if not spoken:
        refuse(f"{audio}, where nobody speaks", "recordings with transcripts", "a manifest.csv with them")
    return spoken.limited(count)


def _take(clip: Clip) -> int:
    found = re.search(r"_(\d+)\.\w+$", clip.name)
    return int(found[1]) if found else LAST_TAKE


def trial_rows(
    model: WhisperModel, clips: Sequence[Clip], *, stress: str, steps: str, talkers: str = "", seed: int = 0
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Study clips, clean and under recipes.

    Parameters
    ----------
    model, clips : from `trial_model` and `trial_clips`. stress : recipes, separated by commas.
    steps : as `spaced_steps` takes it. talkers : folder of those who babble; empty for none.
    seed : of every random number.

    Returns
    -------
    rows of layers, as `layerwise.layer_columns`, and rows of clips, as `prediction.score_columns`
    """
    recipes = [parse(part) for part in stress.split(",") if part]
    with tempfile.TemporaryDirectory() as folder:
        study = collect(
            model,
            list(clips),
            conditions={CLEAN: Recipe(), **{str(recipe): recipe for recipe in recipes}},
            out=Path(folder),
            steps=steps,
            talkers=list(find(talkers)) if talkers else [],
            seed=seed,
        )
        layers = [row | {"width": model.dims.width} for row in as_rows(layer_columns(study.cells))]
        return layers, as_rows(score_columns(study.cells))


def trial_details(
    model: WhisperModel,
    clips: Sequence[Clip],
    *,
    topics: Sequence[str],
    stress: str = "",
    steps: str = "2",
    talkers: str = "",
    seed: int = 0,
    **options: Any,
) -> list[dict[str, Any]]:
    """Look at clips closely, clean and, if there is a recipe, stressed.

    Parameters
    ----------
    model, clips, steps, talkers, seed : as in `trial_rows`. topics : of `detail.TOPICS`.
    stress : a recipe, or nothing.
    options : `draws`, `directions`, `sequences` of `detail.closely`.

    Returns
    -------
    rows of the topics, one after the other
    """
    people = list(find(talkers)) if talkers else []
    sounds = []
    for clip in clips:
        labels = {"clip": clip.name, "cluster": clip.cluster or clip.name, "speaker": clip.speaker}
        sounds.append((labels | {"condition": CLEAN}, clip.load))
        if stress:
            recipe = parse(stress)
            load_stressed = lambda clip=clip, recipe=recipe: apply(
                seed, clip.load(), recipe=recipe, name=clip.name, speaker=clip.speaker, talkers=people
            )[0]
            sounds.append((labels | {"condition": str(recipe)}, load_stressed))
    rows: list[dict[str, Any]] = []
    for number in range(len(sounds)):
        found = closely(model, sounds, number, topics=topics, steps=steps, seed=seed, **options)
        rows += [row for topic in topics for row in found[topic]]
    return rows


def as_rows(columns: Columns) -> list[dict[str, Any]]:
    """Turn columns into flat rows of plain values.

    Examples
    --------
    >>> import numpy as np
    >>> as_rows({"clip": np.asarray(["a"]), "lam": np.asarray([1.5])})
    [{'clip': 'a', 'lam': 1.5}]
    """
    lists = [column.tolist() for column in columns.values()]
    return [dict(zip(columns, values, strict=True)) for values in zip(*lists, strict=True)]


def judged(section: Section) -> tuple[str, str]:
    """Return the verdict and the sentence of a section as those of an experiment; what is not computed is UNDECIDED."""
    return ("UNDECIDED" if section.verdict == "NOT COMPUTED" else section.verdict), section.sentence
