"""Compose distortions of speech into recipes that have a name and can be repeated to the last bit.

A recipe is text, such as ``stretch=3.5+babble=6@0+noise=0``: stages from left to right, each working
on what the one before left. Decibels always refer to the speech level of the clip itself, measured
after the stretches that stand first and before anything is added or replaced.
"""

import dataclasses
import re
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float

from .distortions import (
    DIRECTIONS,
    Key,
    Samples,
    babble,
    decibels,
    generator,
    non_speech,
    ratio_of,
    silence,
    speech_level,
    time_stretch,
    white_noise,
)
from .scoring import word_errors
from .types import InputError, refuse

__all__ = [
    "HELL",
    "Babble",
    "Noise",
    "NonSpeech",
    "Recipe",
    "Recording",
    "Silence",
    "Stretch",
    "babble",
    "kept",
    "non_speech",
    "parse",
    "pick_talkers",
    "silence",
    "speech_level",
    "stress",
    "time_stretch",
    "white_noise",
]

MOST_TALKERS = 100
_EXAMPLE = "stretch=3.5+babble=6@0+noise=0"


@runtime_checkable
class Recording(Protocol):
    """Stand for a recording that is read when it is needed; `datasets.Clip` is one."""

    @property
    def name(self) -> str:
        """What it is called, unique among those it is drawn from."""
        ...

    @property
    def speaker(self) -> str:
        """Who speaks; empty when unknown or nobody."""
        ...

    def load(self) -> Samples:
        """Read it, at 16 kHz."""
        ...


@dataclasses.dataclass(frozen=True)
class Stretch:
    """Change the duration and not the pitch: `time_stretch`. In text ``stretch=3.5`` or ``stretch=3.5@faster``."""

    factor: int | float = 3.5
    direction: str = "slower"
    name: ClassVar[str] = "stretch"

    def __post_init__(self) -> None:
        ratio_of(self.factor, self.direction)

    def __str__(self) -> str:
        return f"{self.name}={_short(self.factor)}" + ("@faster" if self.direction == "faster" else "")


@dataclasses.dataclass(frozen=True)
class Babble:
    """Mix other talkers in: `babble`. In text ``babble=6@0``, talkers and level in dB."""

    talkers: int = 6
    level: int | float = 0.0
    name: ClassVar[str] = "babble"

    def __post_init__(self) -> None:
        decibels(self.level, "level")
        if not 1 <= self.talkers <= MOST_TALKERS:
            refuse(f"{self.talkers} talkers", f"1 to {MOST_TALKERS}", "babble=6@0")

    def __str__(self) -> str:
        return f"{self.name}={self.talkers}@{_short(self.level)}"


@dataclasses.dataclass(frozen=True)
class Noise:
    """Add white noise: `white_noise`. In text ``noise=0``, the SNR in dB."""

    snr: int | float = 0.0
    name: ClassVar[str] = "noise"

    def __post_init__(self) -> None:
        decibels(self.snr, "snr")

    def __str__(self) -> str:
        return f"{self.name}={_short(self.snr)}"


@dataclasses.dataclass(frozen=True)
class Silence:
    """Replace what there is by silence: `silence`. In text ``silence``."""

    name: ClassVar[str] = "silence"

    def __str__(self) -> str:
        return self.name


@dataclasses.dataclass(frozen=True)
class NonSpeech:
    """Replace what there is by a sound that is no speech: `non_speech`. In text ``nonspeech=0``, the level in dB."""

    level: int | float = 0.0
    name: ClassVar[str] = "nonspeech"

    def __post_init__(self) -> None:
        decibels(self.level, "level")

    def __str__(self) -> str:
        return f"{self.name}={_short(self.level)}"


Stage = Stretch | Babble | Noise | Silence | NonSpeech


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Hold stages in the order they work; `str` gives the text that `parse` reads back.

    Parameters
    ----------
    stages : from first to last; none leaves a clip as it is, "clean".

    Examples
    --------
    >>> str(Recipe((Stretch(2, "faster"), Noise(10))))
    'stretch=2@faster+noise=10'
    """

    stages: tuple[Stage, ...] = ()

    def __str__(self) -> str:
        return "+".join(map(str, self.stages)) or "clean"

    @property
    def talkers(self) -> int:
        """Most talkers that a stage asks for."""
        return max((stage.talkers for stage in self.stages if isinstance(stage, Babble)), default=0)

    @property
    def replaces(self) -> bool:
        """Whether the speech is gone at the end, so that every word heard is an insertion."""
        return any(isinstance(stage, Silence | NonSpeech) for stage in self.stages)

    @property
    def needs_non_speech(self) -> bool:
        """Whether a stage asks for a sound that is no speech."""
        return any(isinstance(stage, NonSpeech) for stage in self.stages)


HELL = Recipe((Stretch(3.5), Babble(6, 0.0), Noise(0.0)))
"""The paper's hardest condition: 3.5x slower, then six talkers, then white noise, both as loud as the speech.

The paper names the three parts. That the stretch makes speech slower, the order, the level of the mix and what
0 dB refers to are choices of this project.
"""


def parse(text: str) -> Recipe:
    """Read a recipe from text.

    Parameters
    ----------
    text : stages joined by "+": ``stretch=FACTOR``, ``stretch=FACTOR@faster``, ``babble=TALKERS@LEVEL``,
        ``noise=SNR``, ``silence``, ``nonspeech=LEVEL``; or ``hell``, or ``clean``. Levels and ratios
        are decibels; "@LEVEL" and whole values may be left out and are then those of `HELL`, or 0.

    Returns
    -------
    Recipe

    Raises
    ------
    InputError
        On anything else, with the stage that is wrong.

    Examples
    --------
    >>> str(parse("hell")), str(parse("noise+silence"))
    ('stretch=3.5+babble=6@0+noise=0', 'noise=0+silence')
    """
    if text.strip() == "clean":
        return Recipe()
    stages: list[Stage] = []
    # a plus before a digit is a sign or an exponent
    for part in re.split(r"\+(?=\s*[A-Za-z])", text):
        part = part.strip()
        stages += HELL.stages if part == "hell" else [_stage(part, text)]
    return Recipe(tuple(stages))


def _stage(part: str, text: str) -> Stage:
    name, _, values = part.partition("=")
    first, at, second = (piece.strip() for piece in values.partition("@"))
    number = lambda value, default: float(value) if value else default
    try:
        if name == "stretch" and (not at or second in DIRECTIONS):
            return Stretch(number(first, 3.5), second or "slower")
        if name == "babble" and (second or not at):
            return Babble(int(first or 6), number(second, 0.0))
        if name == "noise" and not at:
            return Noise(number(first, 0.0))
        if name == "nonspeech" and not at:
            return NonSpeech(number(first, 0.0))
        if part == "silence":
            return Silence()
    except InputError:
        raise  # a number out of range, which says so itself
    except ValueError:
        pass
    refuse(
        f"{part!r} in the recipe {text!r}",
        "stretch=FACTOR[@faster], babble=TALKERS[@DB], noise=DB, nonspeech=DB, silence, hell or clean, joined by +",
        _EXAMPLE,
    )


def _short(value: int | float) -> str:
    """Write a number so that it reads back the same."""
    return repr(float(value) + 0.0).removesuffix(".0")  # adding 0 takes the sign off a zero


def pick_talkers(
    key: Key, recordings: Iterable[Recording], *, count: int, speaker: str = "", but: str = ""
) -> list[Recording]:
    """Draw one recording each of several people other than the clip's own speaker.

    Parameters
    ----------
    key : JAX PRNG key, or its integer seed.
    recordings : to draw from; those of unknown speakers are left out.
    count : how many people.
    speaker : who speaks in the clip; empty if unknown.
    but : name of a recording to leave out.

    Returns
    -------
    list
        `count` recordings of `count` speakers.

    Raises
    ------
    InputError
        If there are not so many speakers.

    Examples
    --------
    >>> from spectral_theorem.datasets import Clip
    >>> people = [Clip(f"{who}{take}.wav", speaker=who) for who in "abc" for take in range(2)]
    >>> sorted(clip.speaker for clip in pick_talkers(0, people, count=2, speaker="b"))
    ['a', 'c']
    """
    by_speaker: dict[str, list[Recording]] = {}
    for recording in recordings:
        if recording.speaker and recording.speaker != speaker and recording.name != but:
            by_speaker.setdefault(recording.speaker, []).append(recording)
    if len(by_speaker) < count:
        refuse(
            f"{len(by_speaker)} speakers other than {speaker or 'the unknown one of the clip'}",
            f"at least {count}",
            f"babble={len(by_speaker) or 1}@0, or recordings of more people",
        )
    draws = generator(key, "talkers")
    people = [sorted(by_speaker)[index] for index in draws.choice(len(by_speaker), count, replace=False)]
    pick = lambda recordings: recordings[int(draws.integers(len(recordings)))]
    return [pick(sorted(by_speaker[person], key=lambda recording: recording.name)) for person in people]


def stress(
    key: Key,
    samples: Samples,
    *,
    recipe: Recipe = HELL,
    name: str = "",
    speaker: str = "",
    talkers: Sequence[Recording] = (),
    non_speech: Sequence[Recording] = (),
) -> tuple[Float[np.ndarray, " m"], list[Recording]]:
    """Apply a recipe to one clip.

    Parameters
    ----------
    key : JAX PRNG key, or its integer seed.
    samples : (n,) float32 or float64 at 16 kHz.
    recipe : what to do.
    name : of the clip; clips of other names get other noise from the same key.
    speaker : who speaks in the clip, left out of the babble.
    talkers : recordings of people, for babble.
    non_speech : recordings of other sounds.

    Returns
    -------
    samples : (m,) float32
        Not clipped: the peak may exceed 1.
    used : list
        Recordings that were mixed in, in order.

    Raises
    ------
    InputError
        If the clip is silent and a stage needs its level, or there is too little to draw from.

    Notes
    -----
    Random numbers belong to the key, the clip's name, the kind of stage and its number among its
    kind: they are the same whatever other clips, stages or runs there are.

    Examples
    --------
    >>> clip = 0.1 * np.sin(np.arange(1600.0))
    >>> stress(0, clip, recipe=parse("stretch=2+noise=5"))[0].size
    3200
    """
    signal, level, used = np.asarray(samples), None, []
    seen: dict[str, int] = {}
    for stage in recipe.stages:
        if level is None and not isinstance(stage, Stretch):
            level = speech_level(signal)
        number = seen[stage.name] = seen.get(stage.name, -1) + 1
        own = generator(key, name, stage.name, number).integers(2**32, size=4, dtype=np.uint32)
        signal, mixed = _applied(own, stage, signal, level, name, speaker, talkers, non_speech)
        used += mixed
    return np.asarray(signal, np.float32), used


def _applied(
    key: Any,
    stage: Stage,
    signal: Samples,
    level: float | None,
    name: str,
    speaker: str,
    talkers: Sequence[Recording],
    sounds: Sequence[Recording],
) -> tuple[Samples, list[Recording]]:
    match stage:
        case Stretch():
            return time_stretch(signal, factor=stage.factor, direction=stage.direction), []
        case Noise():
            return white_noise(key, signal, snr=stage.snr, reference=level), []
        case Silence():
            return silence(signal), []
        case Babble():
            mixed = pick_talkers(key, talkers, count=stage.talkers, speaker=speaker, but=name)
            voices = [talker.load() for talker in mixed]
            return babble(key, signal, talkers=voices, level=stage.level, reference=level), mixed
        case NonSpeech():
            if not sounds:
                refuse("no recordings of other sounds", "at least one", "non_speech=datasets.find(FOLDER)")
            sound = sounds[int(generator(key, "sound").integers(len(sounds)))]
            return non_speech(key, signal, recording=sound.load(), level=stage.level, reference=level), [sound]


def kept(reference: str, hypothesis: str, *, threshold: int | float = 0.5, how: str = "english") -> bool:
    """Tell whether a model failed on a clip, so that the clip counts for the paper's "Hell" set.

    Parameters
    ----------
    reference : what was said. hypothesis : what the model made of the stressed clip.
    threshold : the word error rate must be larger; the paper's is 0.5.
    how : normaliser, as `scoring.normalise` takes it.

    Returns
    -------
    bool

    Examples
    --------
    >>> kept("one two three", "one"), kept("one two", "one too", how="basic")
    (True, False)
    """
    return word_errors(reference, hypothesis, how=how).rate > threshold
