"""Share what experiments on a model have in common: which model on which recordings, a study, a close look, a reading.

Everything is measured in a folder that is thrown away; an experiment file says what it claims, and of which numbers.
"""

import contextlib
import dataclasses
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp

from . import carried
from .clips import Clip, Dataset
from .datasets import digit_strings, find
from .detail import closely
from .gathered import passing
from .layerwise import layer_columns
from .prediction import score_columns
from .sametokens import same_token_columns
from .section_figures import Bars, bars_figure, figures_of
from .sections import Columns, Section
from .stress import Recipe, apply, parse
from .study import CLEAN, Study, collect
from .types import refuse
from .whisper import WhisperModel, load

CARRIED = carried.NAME
LAST_TAKE = 4  # FSDD's takes 0 to 4 are the ones no model here was trained on
Records = Sequence[Mapping[str, Any]]


@dataclasses.dataclass(frozen=True)
class Trial:
    """Say which model, on which recordings, clean and stressed; numbers are small enough to try.

    Parameters
    ----------
    model : checkpoint, or "carried". audio : folder, or "carried". digits, clips : as in `trial_clips`.
    stress : recipes, separated by commas; nothing leaves stress out. talkers : folder of those who babble.
    steps : as `spaced_steps` takes it. dtype : "float64" or "float32". seed : of every random number.
    """

    model: str = CARRIED
    audio: str = CARRIED
    digits: int = 0
    clips: int = 4
    stress: str = "noise=0"
    talkers: str = ""
    steps: str = "2"
    dtype: str = "float64"
    seed: int = 0


@dataclasses.dataclass(frozen=True)
class CloseTrial(Trial):
    """Say the same for a close look, which takes longer: fewer clips, as they are."""

    clips: int = 2
    stress: str = ""


@dataclasses.dataclass(frozen=True)
class PairTrial:
    """Say which model, on which recordings, clean and under one recipe; clips that share recordings are one cluster.

    Parameters
    ----------
    model, audio, only, digits, orders, clips, stress, talkers, steps, dtype, seed : as in `gathered.passing`.
    modes : window, the first so many eigenvalues.
    """

    model: str = CARRIED
    audio: str = CARRIED
    only: str = ""
    digits: int = 0
    orders: int = 5
    clips: int = 0
    stress: str = "noise=0"
    talkers: str = ""
    modes: int = 10
    steps: str = "1"
    dtype: str = "float32"
    seed: int = 0


@contextlib.contextmanager
def paired(config: PairTrial) -> Iterator[Study]:
    """Give the study of a trial in pairs."""
    asked = {
        name: value for name, value in dataclasses.asdict(config).items() if name not in ("model", "audio", "modes")
    }
    with passing(config.model, config.audio, **asked) as study:
        yield study


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


def layer_rows(config: Trial) -> list[dict[str, Any]]:
    """Study clips, and return a row per clip, condition, step and layer, as `layerwise.layer_columns`."""
    with _studied(config) as (study, width):
        return [row | {"width": width} for row in as_rows(layer_columns(study.cells))]


def score_rows(config: Trial) -> list[dict[str, Any]]:
    """Study clips, and return a row per clip and condition, as `prediction.score_columns`."""
    with _studied(config) as (study, _):
        return as_rows(score_columns(study.cells))


def same_token_rows(config: Trial) -> list[dict[str, Any]]:
    """Study clips, told the clean transcript as well; return a row per variant, as `same_token_columns`."""
    with _studied(config, told=True) as (study, _):
        return as_rows(same_token_columns(study.cells, CLEAN))


@contextlib.contextmanager
def _studied(config: Trial, **options: Any) -> Iterator[tuple[Study, int]]:
    model, clips, people = _opened(config)
    recipes = [parse(part) for part in config.stress.split(",") if part]
    with tempfile.TemporaryDirectory() as folder:
        study = collect(
            model,
            clips,
            conditions={CLEAN: Recipe(), **{str(recipe): recipe for recipe in recipes}},
            out=Path(folder),
            steps=config.steps,
            talkers=people,
            seed=config.seed,
            **options,
        )
        yield study, model.dims.width


def close_rows(config: Trial, topic: str, **options: Any) -> list[dict[str, Any]]:
    """Look at clips closely, clean and, if there is a recipe, stressed.

    Parameters
    ----------
    config : with one recipe at most. topic : of `detail.TOPICS`.
    options : `draws`, `directions`, `sequences` of `detail.closely`.

    Returns
    -------
    rows of the topic, with the `width` of the model
    """
    model, clips, people = _opened(config)
    sounds = []
    for clip in clips:
        labels = {"clip": clip.name, "cluster": clip.cluster or clip.name, "speaker": clip.speaker}
        sounds.append((labels | {"condition": CLEAN}, clip.load))
        if config.stress:
            recipe = parse(config.stress)
            load_stressed = lambda clip=clip, recipe=recipe: apply(
                config.seed, clip.load(), recipe=recipe, name=clip.name, speaker=clip.speaker, talkers=people
            )[0]
            sounds.append((labels | {"condition": str(recipe)}, load_stressed))
    looks = (
        closely(model, sounds, number, topics=(topic,), steps=config.steps, seed=config.seed, **options)
        for number in range(len(sounds))
    )
    return [row | {"width": model.dims.width} for found in looks for row in found[topic]]


def _opened(config: Trial) -> tuple[WhisperModel, list[Clip], list[Clip]]:
    """Load the model of a trial, its clips, and those who babble."""
    model = load(carried.MODEL if config.model == CARRIED else config.model, dtype=jnp.dtype(config.dtype))
    clips = list(trial_clips(config.audio, digits=config.digits, count=config.clips, seed=config.seed))
    return model, clips, list(find(config.talkers)) if config.talkers else []


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


def verdict_of(section: Callable[[Records], Section]) -> Callable[[Records], tuple[str, str]]:
    """Make the verdict of an experiment from a section of its records.

    Parameters
    ----------
    section : records → section.
    """
    return lambda records: judged(section(records))


def figure_of(section: Callable[[Records], Section], number: int = 0) -> Callable[[Records], Any]:
    """Make the figure of an experiment from a section of its records, as a report draws it.

    Parameters
    ----------
    section : records → section. number : of its figures, from 0.

    Returns
    -------
    function
        Records → figure, or None where the section has none.
    """

    def figure(records: Records) -> Any:
        found = section(records).to_json()
        drawn = figures_of([found])[found["id"]]
        return drawn[number].figure if number < len(drawn) else None

    return figure


def bars_of(rows: Sequence[tuple[str, float, float, float]], words: str) -> Any:
    """Draw numbers with their intervals, one below the other; None where there are none.

    Parameters
    ----------
    rows : label, value, low, high. words : for the axis, with the unit.
    """
    return bars_figure(rows, Bars("", "", (), 0.0, words)) if rows else None
