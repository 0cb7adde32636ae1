"""Turn what a user names on the command line into clips and conditions: folders, recipes, strings of digits."""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .clips import Clip, Dataset, digit_clusters
from .datasets import MANIFEST, find
from .stress import Recipe, parse
from .studyfile import CLEAN, STRESSED
from .transcription import recordings
from .types import refuse

_LEVELS_UP = 4


@dataclasses.dataclass(frozen=True)
class Material:
    """Hold what a study is made of.

    Attributes
    ----------
    clips : recordings, in order.
    conditions : name to a recipe, or to recordings by the clip's name, as `study.collect` takes them.
    nonspeech : recordings in which nobody speaks, named apart from the clips.
    talkers, sounds : what recipes mix in.
    paired : whether the conditions are of the same clips.
    notes : what was left out or taken otherwise than it was named.
    """

    clips: tuple[Clip, ...]
    conditions: Mapping[str, Recipe | Mapping[str, Clip]]
    nonspeech: tuple[Clip, ...]
    talkers: tuple[Clip, ...]
    sounds: tuple[Clip, ...]
    paired: bool
    notes: tuple[str, ...]

    @property
    def cells(self) -> int:
        """How many cells there are to measure."""
        every = [len(self.clips) if isinstance(how, Recipe) else len(how) for how in self.conditions.values()]
        return sum(every) + len(self.nonspeech)

    def described(self) -> dict[str, Any]:
        """Return counts, for reports."""
        return {
            "clips": len(self.clips),
            "clusters": len({clip.cluster or clip.name for clip in self.clips}),
            "speakers": sorted({clip.speaker for clip in self.clips} - {""}),
            "transcribed": sum(clip.transcript is not None for clip in self.clips),
            "conditions": {
                n: str(how) if isinstance(how, Recipe) else "recordings" for n, how in self.conditions.items()
            },
            "nonspeech": len(self.nonspeech),
            "talkers": len({clip.speaker for clip in self.talkers}),
            "paired": self.paired,
        }


def material(
    clean: Sequence[Path],
    *,
    recipes: Mapping[str, Recipe] | None = None,
    stressed: Path | None = None,
    talkers: Path | None = None,
    nonspeech: Path | None = None,
    only: str | None = None,
    digits: int | None = None,
    orders: int = 5,
    limit: int | None = None,
    seed: int = 0,
) -> Material:
    """Find the clips of a study, and under which conditions each is heard.

    Parameters
    ----------
    clean : recordings, or folders of them, with a manifest or without.
    recipes : conditions that are made, by name; beside "clean".
    stressed : folder of recordings that were made elsewhere. They belong to the clips of the same file name; where no
        name agrees they are clips of their own, and nothing is paired.
    talkers, nonspeech : folders; the second is also measured as it is.
    only : regular expression that is found in the names of the clips taken.
    digits : join recordings of single digits to strings of so many, each group in `orders` orders: a cluster.
    limit : clips at most, taken evenly from all.
    seed : of the order in which digits are joined.

    Returns
    -------
    Material

    Raises
    ------
    InputError
        Nothing left, recipes that lack what they mix in, or options that exclude each other.
    """
    recipes = recipes or {}
    if not clean:
        refuse("no recordings", "a folder of them, or files", "--clean FOLDER")
    if stressed is not None and (recipes or digits is not None):
        other = "a recipe" if recipes else "--digits"
        refuse(f"--stressed {stressed} and {other}", "one of them", f"--stressed {stressed} alone")
    for recipe in recipes.values():
        if recipe.talkers and talkers is None:
            refuse(f"the recipe {recipe} without talkers", "a folder of speech", "--talkers FOLDER")
        if recipe.needs_non_speech and nonspeech is None:
            refuse(f"the recipe {recipe} without other sounds", "a folder of them", "--nonspeech FOLDER")
    clips = _chosen(open_clips(clean), only)
    if digits is not None:
        clips = list(digit_clusters(clips, length=digits, orders=min(orders, digits), seed=seed))
    notes: list[str] = []
    clips, silent = _spoken(clips, notes)
    clips = spread(clips, limit)
    speech = tuple(find(talkers)) if talkers is not None else ()
    sounds = tuple(open_clips([nonspeech])) if nonspeech is not None else ()
    apart = tuple(
        dataclasses.replace(clip, name=f"no speech: {clip.name}", transcript="") for clip in (*silent, *sounds)
    )
    conditions: dict[str, Recipe | Mapping[str, Clip]] = {CLEAN: Recipe(), **recipes}
    paired = True
    if stressed is not None:
        others = open_clips([stressed])
        matched = _matched(clips, others)
        if matched:
            left = len(clips) - len(matched)
            notes += [f"{left} clean clips have no stressed recording and count as clean only"] * bool(left)
            more = len(others) - len(matched)
            notes += [f"{more} stressed recordings belong to no clean clip and are left out"] * bool(more)
            conditions[STRESSED] = matched
        else:
            paired = False
            notes.append("no stressed recording has the name of a clean one: they are taken for other clips, unpaired")
            own = [dataclasses.replace(clip, name=f"stressed: {clip.name}") for clip in spread(others, limit)]
            conditions = {CLEAN: {clip.name: clip for clip in clips}, STRESSED: {clip.name: clip for clip in own}}
            clips = [*clips, *own]
    return Material(tuple(clips), conditions, apart, speech, sounds, paired, tuple(notes))


def open_clips(sources: Sequence[Path]) -> list[Clip]:
    """Open recordings that may have transcripts or not: a folder without a manifest is the sound files below it.

    Parameters
    ----------
    sources : sound files, and folders.

    Raises
    ------
    InputError
        As `datasets.find`, or for a folder without recordings.
    """
    found: list[Clip] = []
    for source in sources:
        if source.is_dir() and not _listed(source):
            found += [Clip(path, name=path.relative_to(source).as_posix()) for path in recordings([source])]
        else:
            found += list(find(source))
    return found


def spread(clips: Sequence[Clip], limit: int | None) -> list[Clip]:
    """Take so many clips evenly from all, the first among them.

    Examples
    --------
    >>> [clip.name for clip in spread([Clip(f"{n}.wav") for n in range(10)], 3)]
    ['0.wav', '3.wav', '6.wav']
    """
    count = len(Dataset(tuple(clips)).limited(limit))
    return [clips[index * len(clips) // count] for index in range(count)]


def recipe_of(spec: str) -> Recipe:
    """Read one recipe that changes something."""
    recipe = parse(spec)
    if not recipe.stages:
        refuse(f"--stress {spec}, which changes nothing", "a recipe", "--stress noise=0")
    return recipe


def _chosen(clips: Sequence[Clip], only: str | None) -> list[Clip]:
    if only is None:
        return list(clips)
    try:
        pattern = re.compile(only)
    except re.error as problem:
        refuse(f"--only {only} ({problem})", "a regular expression", r"--only '_[0-4]\.wav$'")
    found = [clip for clip in clips if pattern.search(clip.name)]
    if not found:
        refuse(f"--only {only}, which none of {len(clips)} names has", f"one like {clips[0].name}", "another pattern")
    return found


def _spoken(clips: Sequence[Clip], notes: list[str]) -> tuple[list[Clip], list[Clip]]:
    """Tell clips in which somebody speaks from those of which the manifest says that nobody does."""
    silent = [clip for clip in clips if clip.transcript == ""]
    if len(silent) == len(clips):
        notes.append("every transcript is empty: they are taken for unknown")
        return [dataclasses.replace(clip, transcript=None) for clip in clips], []
    if silent:
        notes.append(f"{len(silent)} clips with an empty transcript are measured as recordings without speech")
    return [clip for clip in clips if clip.transcript != ""], silent


def _listed(folder: Path) -> bool:
    """Tell whether a manifest in a folder or above it, or LibriSpeech's layout, says what its recordings are."""
    if (folder / MANIFEST).is_file() or next(folder.rglob("*.trans.txt"), None) is not None:
        return True
    above = [place for place in list(folder.resolve().parents)[:_LEVELS_UP] if (place / MANIFEST).is_file()]
    return bool(above) and _mentions(above[0], folder)


def _mentions(root: Path, folder: Path) -> bool:
    """Tell whether a manifest above a folder lists anything in it."""
    inside = folder.resolve().relative_to(root.resolve()).as_posix() + "/"
    try:
        with (root / MANIFEST).open(encoding="utf-8-sig") as lines:
            return any(line.lstrip('"').startswith(inside) for line in lines)
    except (OSError, UnicodeDecodeError):
        return True  # `find` says what is wrong with it


def _stem(clip: Clip) -> str:
    """Return the name by which `stress` would have called a clip's file."""
    return Path(re.sub(r"[^\w.+=-]", "_", clip.name)).stem[:200]


def _matched(clips: Sequence[Clip], others: Sequence[Clip]) -> dict[str, Clip]:
    """Find the stressed recording of every clip by its file name; names that come twice are refused."""
    stems = [_stem(clip) for clip in clips]
    theirs = [_stem(clip) for clip in others]
    for names in (stems, theirs):
        twice = [name for name, count in zip(*np.unique(names, return_counts=True), strict=True) if count > 1]
        if twice and set(stems) & set(theirs):
            refuse(f"two recordings named {twice[0]}", "a file name of its own for each clip", "other names")
    found = dict(zip(theirs, others, strict=True))
    return {clip.name: found[stem] for clip, stem in zip(clips, stems, strict=True) if stem in found}
