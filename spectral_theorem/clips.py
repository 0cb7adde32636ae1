"""Hold recordings and what is said in them, without reading them as sound before they are asked for."""

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np
from jaxtyping import Float

from .audio import concatenate, load_audio
from .scoring import DIGITS, normalise
from .types import refuse


@dataclasses.dataclass(frozen=True)
class HubSound:
    """Point at one recording of a hub data set; it is read when it is asked for.

    Parameters
    ----------
    table : a data set of the `datasets` library whose sound column is not decoded.
    index, column : where the recording is in it.
    """

    table: Any = dataclasses.field(repr=False, compare=False)
    index: int
    column: str

    def read(self) -> bytes:
        """Return the bytes of the sound file.

        Raises
        ------
        InputError
            If the row holds no sound.
        """
        row = self.table[self.index][self.column]
        if isinstance(row, dict) and isinstance(row.get("bytes"), bytes):
            return row["bytes"]
        if isinstance(row, dict) and isinstance(row.get("path"), str) and Path(row["path"]).is_file():
            return Path(row["path"]).read_bytes()
        refuse(f"row {self.index} without sound in column {self.column!r}", "a sound file", "another row")


@dataclasses.dataclass(frozen=True)
class Clip:
    """Name a recording, or several joined, with what is said in it.

    Parameters
    ----------
    path : sound file, or a recording on the hub.
    transcript : what is said; empty when nothing is, None when that is not known.
    speaker : who speaks; empty if unknown or nobody.
    licence : of the recording, as the data set states it.
    name : unique in its data set; the file's name if absent.
    more : recordings that follow the first.
    gap : silence between two of them, in seconds.
    cluster : clips of one cluster share recordings and do not count as independent; empty if it is not known.

    Examples
    --------
    >>> Clip("speech/0.flac", "zero", "george").name
    '0.flac'
    """

    path: Path | str | HubSound
    transcript: str | None = None
    speaker: str = ""
    licence: str = ""
    name: str = ""
    more: tuple[Path | str | HubSound, ...] = ()
    gap: int | float = 0.0
    cluster: str = ""

    def __post_init__(self) -> None:
        if not self.name:
            source = self.path
            name = f"{source.index:06d}" if isinstance(source, HubSound) else Path(source).name
            object.__setattr__(self, "name", name)

    def load(self) -> Float[np.ndarray, " n"]:
        """Read the clip, (n,) float32 at 16 kHz.

        Raises
        ------
        InputError
            As `audio.load_audio` does.
        """
        parts = [load_audio(p.read() if isinstance(p, HubSound) else p)[0] for p in (self.path, *self.more)]
        return concatenate(parts, self.gap)


@dataclasses.dataclass(frozen=True)
class Dataset(Sequence[Clip]):
    """Hold clips in order; every selection is a new data set.

    Parameters
    ----------
    clips : in order.
    source : where they are from.

    Examples
    --------
    >>> clips = Dataset(tuple(Clip(f"{n}.wav", speaker="ab"[n % 2]) for n in range(6)))
    >>> [clip.name for clip in clips.where(speakers=["a"]).limited(2)], clips.speakers
    (['0.wav', '2.wav'], ('a', 'b'))
    """

    clips: tuple[Clip, ...]
    source: str = ""

    def __len__(self) -> int:
        return len(self.clips)

    @overload
    def __getitem__(self, index: int) -> Clip: ...
    @overload
    def __getitem__(self, index: slice) -> "Dataset": ...
    def __getitem__(self, index: int | slice) -> "Clip | Dataset":
        return self._with(self.clips[index]) if isinstance(index, slice) else self.clips[index]

    def _with(self, clips: Iterable[Clip]) -> "Dataset":
        return dataclasses.replace(self, clips=tuple(clips))

    @property
    def speakers(self) -> tuple[str, ...]:
        """Names of all known speakers, sorted."""
        return tuple(sorted({clip.speaker for clip in self.clips} - {""}))

    def where(self, test: Callable[[Clip], bool] | None = None, *, speakers: Iterable[str] | None = None) -> "Dataset":
        """Keep the clips that pass a test, and those of some speakers.

        Parameters
        ----------
        test : keeps a clip for which it is true.
        speakers : names.
        """
        names = None if speakers is None else set(speakers)
        return self._with(
            clip for clip in self.clips if (names is None or clip.speaker in names) and (test is None or test(clip))
        )

    def shuffled(self, seed: int) -> "Dataset":
        """Put the clips in another order, the same for the same seed.

        Parameters
        ----------
        seed : a whole number >= 0.
        """
        if seed < 0:
            refuse(f"seed {seed}", "a whole number >= 0", "seed 0")
        return self._with(self.clips[index] for index in np.random.default_rng(seed).permutation(len(self.clips)))

    def limited(self, count: int | None) -> "Dataset":
        """Keep the first clips.

        Parameters
        ----------
        count : how many at most; None keeps all.
        """
        if count is not None and count < 1:
            refuse(f"a limit of {count}", "at least 1", "--limit 10")
        return self._with(self.clips[:count])


def digit_strings(clips: Iterable[Clip], *, length: int, gap: int | float = 0.1, seed: int = 0) -> Dataset:
    """Join recordings of single digits to strings, each of one speaker.

    Parameters
    ----------
    clips : those whose transcript is one digit, "two" or "2", are used; each once.
    length : digits of a string.
    gap : silence between two digits, in seconds.
    seed : of the order in which a speaker's digits are joined.

    Returns
    -------
    Dataset
        Speakers in order of name; digits of a speaker that fill no string are left over. Transcripts
        are words, to be scored with the normaliser "digits".

    Raises
    ------
    InputError
        If no speaker has digits enough for a string, or a digit has no speaker.

    Examples
    --------
    >>> takes = [Clip(f"{digit}_eve.wav", digit, "eve") for digit in ("two", "7", "hello", "one")]
    >>> [clip.transcript for clip in digit_strings(takes, length=3)]
    ['one two seven']
    """
    strings = [_joined(group, gap) for group in _groups(clips, length, seed)]
    return Dataset(tuple(strings), "digit strings")


def digit_clusters(
    clips: Iterable[Clip], *, length: int = 5, orders: int = 5, gap: int | float = 0.1, seed: int = 0
) -> Dataset:
    """Join recordings of single digits to strings, each group of recordings in several orders.

    Parameters
    ----------
    clips, length, gap, seed : as in `digit_strings`.
    orders : strings of each group, at most `length`: the group turned by one digit more each time, so that every
        recording stands at every place equally often when there are as many orders as digits.

    Returns
    -------
    Dataset
        Strings of one group follow each other and share their `cluster`; each recording is in one cluster only.

    Raises
    ------
    InputError
        As `digit_strings`, or when there are more orders than digits.

    Examples
    --------
    >>> takes = [Clip(f"{digit}_eve.wav", digit, "eve") for digit in ("two", "7", "one", "six")]
    >>> [(clip.transcript, clip.cluster) for clip in digit_clusters(takes, length=2, orders=2)]
    [('one two', 'eve 1'), ('two one', 'eve 1'), ('seven six', 'eve 2'), ('six seven', 'eve 2')]
    """
    if not 1 <= orders <= length:
        refuse(f"{orders} orders of {length} digits", f"1 to {length}", f"orders={length}")
    strings, seen = [], {}
    for group in _groups(clips, length, seed):
        who = group[0].speaker
        seen[who] = seen.get(who, 0) + 1
        for turn in range(orders):
            joined = _joined([*group[turn:], *group[:turn]], gap)
            strings.append(dataclasses.replace(joined, cluster=f"{who} {seen[who]}"))
    return Dataset(tuple(strings), "digit strings in several orders")


def _groups(clips: Iterable[Clip], length: int, seed: int) -> list[list[Clip]]:
    """Draw groups of single digits, each of one speaker and each recording in one group only."""
    if length < 1:
        refuse(f"strings of {length} digits", "at least 1", "length=5")
    by_speaker: dict[str, list[Clip]] = {}
    for clip in clips:
        said = normalise(clip.transcript or "", "digits")
        if said in DIGITS:
            if not clip.speaker:
                refuse(f"{clip.name}, a digit of an unknown speaker", "speakers of all digits", "a speaker column")
            by_speaker.setdefault(clip.speaker, []).append(dataclasses.replace(clip, transcript=said))
    strings: list[list[Clip]] = []
    for index, speaker in enumerate(sorted(by_speaker)):
        takes = by_speaker[speaker]
        order = np.random.default_rng([seed, index]).permutation(len(takes))
        for start in range(0, len(takes) - length + 1, length):
            strings.append([takes[i] for i in order[start : start + length]])
    if not strings:
        refuse("no speaker with enough digits", f"{length} recordings of single digits by one", "a smaller length")
    return strings


def _joined(parts: Sequence[Clip], gap: int | float) -> Clip:
    return Clip(
        parts[0].path,
        " ".join(part.transcript or "" for part in parts),
        parts[0].speaker,
        "; ".join(dict.fromkeys(part.licence for part in parts if part.licence)),
        "+".join(Path(part.name).stem for part in parts),
        tuple(part.path for part in parts[1:]),
        float(gap),
    )
