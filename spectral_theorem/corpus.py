"""Make training batches of word strings from recordings of single words, each a function of (seed, step).

A batch depends on nothing but the corpus, the seed and the number of the step, so a training run that was
killed draws what it would have drawn.
"""

import dataclasses
import hashlib
import math
from collections.abc import Iterable, Sequence

import numpy as np
from jaxtyping import Float, Int

from .audio import SAMPLE_RATE
from .clips import Clip
from .scoring import DIGITS
from .types import refuse


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """Hold how much a string of recordings is varied; zero or one everywhere leaves it as it is.

    Parameters
    ----------
    speed : tempo and pitch together change by a factor in [1/speed, speed].
    gap_seconds : longest pause between two words; each is drawn evenly from 0 to this.
    quietest_db : peaks lie between this and -1 dB of full scale.
    lowest_snr_db : noise, when there is any, is at least this far below the words.
    noisy : share of strings with noise.
    tilt : a first-order filter with a coefficient in [-tilt, tilt] colours voice and noise.
    """

    speed: float = 1.2
    gap_seconds: float = 0.3
    quietest_db: float = -20.0
    lowest_snr_db: float = 5.0
    noisy: float = 0.7
    tilt: float = 0.4

    def __post_init__(self) -> None:
        for name, holds, expected in (
            ("speed", self.speed >= 1, "a factor >= 1"),
            ("gap_seconds", self.gap_seconds >= 0, "seconds >= 0"),
            ("quietest_db", self.quietest_db <= -1, "dB <= -1"),
            ("noisy", 0 <= self.noisy <= 1, "a share from 0 to 1"),
            ("tilt", 0 <= self.tilt < 1, "a coefficient from 0 to below 1"),
            ("lowest_snr_db", -20 <= self.lowest_snr_db <= 60, "dB from -20 to 60"),
        ):
            if not (holds and math.isfinite(getattr(self, name))):
                default = type(self).__dataclass_fields__[name].default
                refuse(f"{name}={getattr(self, name)!r}", expected, f"{name}={default}")


CLEAN = Augmentation(speed=1.0, gap_seconds=0.1, quietest_db=-1.0, noisy=0.0, tilt=0.0)


@dataclasses.dataclass(frozen=True)
class Words:
    """Hold recordings of single words in memory.

    Attributes
    ----------
    samples : (n_i,) float32 at 16 kHz each, peak 1.
    word : (N,) index of each into `vocabulary`.
    speaker, name : (N,) who speaks, and the name of the recording.
    vocabulary : the words.
    """

    samples: tuple[np.ndarray, ...]
    word: Int[np.ndarray, " recordings"]
    speaker: tuple[str, ...]
    name: tuple[str, ...]
    vocabulary: tuple[str, ...] = DIGITS

    def __len__(self) -> int:
        return len(self.samples)

    def where(self, keep: Iterable[bool]) -> "Words":
        """Return those recordings for which `keep` is true, in order."""
        chosen = [i for i, kept in enumerate(keep) if kept]
        return Words(
            tuple(self.samples[i] for i in chosen),
            self.word[chosen],
            tuple(self.speaker[i] for i in chosen),
            tuple(self.name[i] for i in chosen),
            self.vocabulary,
        )

    def digest(self) -> str:
        """Return the sha256 of everything a batch is drawn from, in hexadecimal."""
        whole = hashlib.sha256(repr((self.vocabulary, self.word.tolist(), self.speaker, self.name)).encode())
        for samples in self.samples:
            whole.update(samples.tobytes())
        return whole.hexdigest()


def read_words(clips: Iterable[Clip], vocabulary: Sequence[str] = DIGITS) -> Words:
    """Read those recordings of a data set that hold one word of the vocabulary.

    Parameters
    ----------
    clips : of a data set; others than single words with a known speaker are left out.
    vocabulary : the words.

    Returns
    -------
    Words

    Raises
    ------
    InputError
        If nothing is left, or a recording is silent or cannot be read.

    Examples
    --------
    >>> read_words([])
    Traceback (most recent call last):
    ...
    spectral_theorem.types.InputError: got a corpus of 0 recordings, 0 with a transcript, none of a single known
    word with its speaker; expected recordings of zero, one, ..., nine; try --corpus FOLDER with a manifest.csv
    """
    vocabulary = tuple(vocabulary)
    samples, word, speaker, name = [], [], [], []
    clips = list(clips)
    for clip in clips:
        said = (clip.transcript or "").strip().lower()
        if said not in vocabulary or not clip.speaker:
            continue
        heard = clip.load()
        peak = float(np.abs(heard).max())
        if peak == 0:
            refuse(f"{clip.name}, which is silent", f"the spoken word {said!r}", "another recording")
        samples.append(heard / np.float32(peak))
        word.append(vocabulary.index(said))
        speaker.append(clip.speaker)
        name.append(clip.name)
    if not samples:
        written = sum(bool(clip.transcript) for clip in clips)
        refuse(
            f"a corpus of {len(clips)} recordings, {written} with a transcript, none of a single known word with its "
            "speaker",
            f"recordings of {vocabulary[0]}, {vocabulary[1]}, ..., {vocabulary[-1]}",
            "--corpus FOLDER with a manifest.csv",
        )
    return Words(tuple(samples), np.asarray(word), tuple(speaker), tuple(name), vocabulary)


@dataclasses.dataclass(frozen=True)
class Strings:
    """Hold a batch of word strings.

    Attributes
    ----------
    samples : (B, n) float32, one window each.
    words : the indices into the vocabulary of every string.
    """

    samples: Float[np.ndarray, "batch window"]
    words: tuple[tuple[int, ...], ...]


def draw_strings(
    words: Words,
    *,
    seed: int,
    step: int,
    batch: int,
    shortest: int,
    longest: int,
    window: int,
    augmentation: Augmentation = CLEAN,
) -> Strings:
    """Draw a batch of strings, each of one speaker, as a function of its arguments alone.

    Parameters
    ----------
    words : recordings to draw from.
    seed, step : what the draw depends on.
    batch : number of strings.
    shortest, longest : words per string; evenly spread, fewer where the window is full.
    window : samples per string.
    augmentation : how strings are varied.

    Returns
    -------
    Strings

    Examples
    --------
    >>> tone = np.sin(np.arange(800) * 0.3).astype(np.float32)
    >>> words = Words((tone, tone), np.asarray([3, 7]), ("a", "b"), ("3_a", "7_b"))
    >>> drawn = draw_strings(words, seed=0, step=5, batch=2, shortest=2, longest=2, window=8000)
    >>> drawn.samples.shape, drawn.words
    ((2, 8000), ((7, 7), (7, 7)))
    """
    rng = np.random.default_rng([seed, step])
    speaker = np.asarray(words.speaker)
    out, said = np.zeros((batch, window), np.float32), []
    for row in out:
        # a recording names the speaker, so that who recorded more is heard more often
        pool = np.flatnonzero(speaker == speaker[rng.integers(len(words))])
        speed = augmentation.speed ** rng.uniform(-1, 1)
        pieces, taken, length = [], [], 0
        for i in rng.choice(pool, size=rng.integers(shortest, longest + 1)):
            pause = np.zeros(round(rng.uniform(0, augmentation.gap_seconds) * SAMPLE_RATE), np.float32)
            piece = np.concatenate([pause, _faster(words.samples[i], speed) * 10 ** rng.uniform(-0.15, 0)])
            if pieces and length + piece.size > window:
                break
            pieces.append(piece)
            taken.append(int(words.word[i]))
            length += piece.size
        heard = np.concatenate(pieces)[:window]
        start = rng.integers(0, window - heard.size + 1)
        row[start : start + heard.size] = heard
        row[:] = _disturbed(row, heard, augmentation, rng)
        said.append(tuple(taken))
    return Strings(out, tuple(said))


def _faster(samples: np.ndarray, factor: float) -> np.ndarray:
    """Play faster by a factor: tempo and pitch rise together."""
    if factor == 1:
        return samples
    return np.interp(np.arange(0, samples.size - 1, factor), np.arange(samples.size), samples).astype(np.float32)


def _disturbed(row: np.ndarray, heard: np.ndarray, augmentation: Augmentation, rng: np.random.Generator) -> np.ndarray:
    """Colour the voice, add coloured noise, and set the level."""
    tilted = lambda x: x - rng.uniform(-augmentation.tilt, augmentation.tilt) * np.concatenate([[0.0], x[:-1]])
    row = tilted(row)
    if rng.random() < augmentation.noisy:
        # an octave falls by 0 to 6 dB: from white to brown
        steepness = rng.uniform(0, 1)
        spectrum = np.fft.rfft(rng.normal(size=row.size))
        spectrum[1:] /= np.arange(1, spectrum.size) ** steepness
        noise = np.fft.irfft(spectrum, row.size)
        snr = rng.uniform(augmentation.lowest_snr_db, 40.0)
        row = row + noise * (np.sqrt(np.mean(heard**2) / np.mean(noise**2)) * 10 ** (-snr / 20))
    peak = 10 ** (rng.uniform(augmentation.quietest_db, -1.0) / 20)
    return (row * (peak / np.abs(row).max())).astype(np.float32)
