"""Make speech hard to hear, in ways that can be repeated to the last bit.

Every level is relative to the *speech level* of the clip: the root mean square over its active
frames, those of 20 ms whose power is within 30 dB of the loudest one's. So pauses do not count, and
an SNR means the same on a clip with long gaps and on one without. Nothing is clipped or rescaled:
a sum may exceed full scale.
"""

import math
import zlib
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt32

from .audio import LONGEST_SECONDS, SAMPLE_RATE
from .types import refuse

Key = Array | UInt32[np.ndarray, " words"] | int
Samples = Array | np.ndarray
DIRECTIONS = ("slower", "faster")
FRAME = 320
ACTIVE_DB = 30.0
LARGEST_FACTOR = 20.0
LOUDEST_DB = 120.0
# From doubling on, the stretcher draws phases from a generator that cannot be seeded.
_LARGEST_STEP = 1.9
_TRIES = 100


def generator(key: Key, *labels: str | int) -> np.random.Generator:
    """Make the random numbers of one purpose; other purposes, and how many there are, change nothing.

    Parameters
    ----------
    key : JAX PRNG key, or its integer seed from 0 to 4294967295.
    labels : what the numbers are for.

    Returns
    -------
    numpy.random.Generator

    Raises
    ------
    InputError
        If the seed is out of range.

    Examples
    --------
    >>> draws = [int(generator(key, "noise").integers(1000)) for key in (0, jax.random.key(0), 1)]
    >>> draws[0] == draws[1] != draws[2]
    True
    """
    if isinstance(key, int):
        if not 0 <= key < 2**32:
            refuse(f"seed {key}", "a whole number from 0 to 4294967295", "seed 0")
        words = [0, key]  # as jax.random.key(seed) holds it
    else:
        typed = jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
        words = np.asarray(jax.random.key_data(key) if typed else key).ravel().tolist()
    return np.random.default_rng([*words, *(zlib.crc32(str(label).encode()) for label in labels)])


def _sound(samples: Any) -> Float[np.ndarray, " n"]:
    """Check samples that a user passed, and take them to float64 by way of float32."""
    samples = np.asarray(samples)
    if samples.ndim != 1 or samples.dtype not in (np.float32, np.float64) or samples.size == 0:
        refuse(
            f"samples of shape {samples.shape}, dtype {samples.dtype}", "(n,) float32 or float64", "load_audio(path)"
        )
    with np.errstate(over="ignore"):
        single = samples.astype(np.float32)
    if not np.isfinite(single).all():
        refuse("samples that are NaN or infinite", "finite samples", "load_audio(path)")
    return single.astype(np.float64)


def speech_level(samples: Samples) -> float:
    """Measure how loud the speech in a clip is, leaving out its pauses.

    Parameters
    ----------
    samples : (n,) float32 or float64 at 16 kHz, finite.

    Returns
    -------
    float
        Root mean square over the active frames: of the frames of 320 samples (20 ms, the last one
        shorter), those whose mean power is at least 1/1000 of the loudest frame's. 0 for silence.

    Raises
    ------
    InputError
        If the samples are not a finite vector.

    Notes
    -----
    Simpler than ITU-T P.56, which smooths the envelope; both ignore pauses.

    Examples
    --------
    >>> speech_level(np.concatenate([np.full(640, 0.5), np.zeros(640)]))
    0.5
    """
    x = _sound(samples)
    starts = np.arange(0, x.size, FRAME)
    energy = np.add.reduceat(x * x, starts)
    length = np.minimum(x.size - starts, FRAME)
    active = energy / length >= 10.0 ** (-ACTIVE_DB / 10.0) * (energy / length).max()
    return math.sqrt(energy[active].sum() / length[active].sum())


def _level(samples: Samples, reference: int | float | None, what: str) -> float:
    """Return the level that decibels refer to; silence has none."""
    level = speech_level(samples) if reference is None else float(reference)
    if not level > 0:
        refuse(f"a silent clip, to which {what} has no level", "a clip with sound in it", "reference=0.05")
    return level


def decibels(value: int | float, name: str) -> float:
    """Return the ratio of amplitudes that decibels stand for.

    Raises
    ------
    InputError
        If the value, called `name`, is not from -120 to 120.

    Examples
    --------
    >>> decibels(20, "level")
    10.0
    """
    if not (math.isfinite(value) and abs(value) <= LOUDEST_DB):
        refuse(f"{name}={value}", f"decibels from -{LOUDEST_DB:g} to {LOUDEST_DB:g}", f"{name}=0")
    return 10.0 ** (value / 20.0)


def time_stretch(samples: Samples, *, factor: int | float = 3.5, direction: str = "slower") -> Float[np.ndarray, " m"]:
    """Change the duration of a clip by a factor, and leave its pitch.

    Parameters
    ----------
    samples : (n,) float32 or float64 at 16 kHz.
    factor : from 1/20 to 20. By default the result is `factor` times as long: 3.5 is slow speech.
    direction : "slower" multiplies the duration by the factor, "faster" divides it.

    Returns
    -------
    samples : (m,) float32
        m is n times (or over) the factor, rounded, and at least 1.

    Raises
    ------
    InputError
        If the factor or the direction is none, or the result would be longer than two hours.

    Notes
    -----
    Signalsmith Stretch. Beyond a factor of 2 it draws random phases that nothing can seed, and no
    two results are alike; so the way is gone in equal steps of at most 1.9 (3.5 in two of 1.87).
    A sine keeps its frequency, and its level within 0.1 %; 5 s take about 20 ms.

    Examples
    --------
    >>> time_stretch(np.zeros(1000), factor=3.5).size, time_stretch(np.zeros(1000), factor=4, direction="faster").size
    (3500, 250)
    """
    ratio = ratio_of(factor, direction)
    x = _sound(samples).astype(np.float32)
    wanted = max(1, round(x.size * ratio))
    if wanted > LONGEST_SECONDS * SAMPLE_RATE:
        refuse(f"{x.size / SAMPLE_RATE:.0f} s times {ratio:g}", f"at most {LONGEST_SECONDS:.0f} s", "a shorter clip")
    if ratio == 1.0:
        return x
    try:
        from python_stretch import Signalsmith
    except ImportError:
        refuse("no python-stretch", "the extra for speech", "pip install spectral-theorem[whisper]")
    steps = max(1, math.ceil(math.log(ratio, _LARGEST_STEP)))
    length = x.size
    for step in range(1, steps + 1):
        target = max(1, round(length * ratio ** (step / steps)))
        stretcher = Signalsmith.Stretch()
        stretcher.preset(1, float(SAMPLE_RATE))
        stretcher.setTimeFactor(x.size / target)
        tail = np.zeros(stretcher.blockSamples(), np.float32)  # so that what is left inside comes out
        stretched = np.asarray(stretcher.process(np.concatenate([x, tail])[None]))[0, :target]
        x = np.pad(stretched, (0, target - stretched.size))
    return x


def ratio_of(factor: int | float, direction: str) -> float:
    """Return new duration over old.

    Raises
    ------
    InputError
        If the factor is not from 1/20 to 20, or the direction is none.

    Examples
    --------
    >>> ratio_of(4, "faster")
    0.25
    """
    if direction not in DIRECTIONS:
        refuse(f"direction {direction!r}", "slower or faster", "slower")
    if not (math.isfinite(factor) and 1 / LARGEST_FACTOR <= factor <= LARGEST_FACTOR):
        refuse(f"a stretch by {factor}", f"a factor from {1 / LARGEST_FACTOR:g} to {LARGEST_FACTOR:g}", "3.5")
    return float(factor) if direction == "slower" else 1.0 / factor


def white_noise(
    key: Key, samples: Samples, *, snr: int | float = 0.0, reference: int | float | None = None
) -> Float[np.ndarray, " n"]:
    r"""Add Gaussian white noise at a signal-to-noise ratio.

    .. math:: \mathrm{SNR} = 20 \log_{10} \frac{\text{speech level}}{\text{rms of the noise}}

    Parameters
    ----------
    key : JAX PRNG key, or its integer seed.
    samples : (n,) float32 or float64 at 16 kHz.
    snr : decibels; the noise is scaled after it is drawn, so the ratio is met exactly.
    reference : level of the speech; that of `samples` if absent.

    Returns
    -------
    samples : (n,) float32

    Raises
    ------
    InputError
        If the clip is silent and no reference is given, or a number is out of range.

    Examples
    --------
    >>> clip = 0.1 * np.sin(np.arange(1600.0))
    >>> noise = white_noise(0, clip, snr=10) - clip
    >>> round(20 * math.log10(speech_level(clip) / np.sqrt(np.mean(noise**2))), 4)
    10.0
    """
    x = _sound(samples)
    gain = 1.0 / decibels(snr, "snr")
    level = _level(samples, reference, "noise")
    noise = generator(key, "white noise").standard_normal(x.size)
    return (x + noise * (gain * level / math.sqrt(np.mean(noise**2)))).astype(np.float32)


def babble(
    key: Key,
    samples: Samples,
    *,
    talkers: Sequence[Samples],
    level: int | float = 0.0,
    reference: int | float | None = None,
) -> Float[np.ndarray, " n"]:
    """Let other people talk over a clip.

    Parameters
    ----------
    key : JAX PRNG key, or its integer seed.
    samples : (n,) float32 or float64 at 16 kHz.
    talkers : one recording for every voice; each starts at a random place, goes round as often as
        it must, and is brought to the same speech level as the others.
    level : speech level of all talkers together, in decibels relative to the clip's; 10 is louder.
    reference : level of the speech; that of `samples` if absent.

    Returns
    -------
    samples : (n,) float32

    Raises
    ------
    InputError
        If there is no talker, one is silent, or the clip is.

    Examples
    --------
    >>> clip, voices = np.sin(np.arange(3200.0)), [np.cos(np.arange(900.0)), np.sin(np.arange(5000.0) / 3)]
    >>> added = babble(0, clip, talkers=voices, level=-6) - clip
    >>> round(20 * math.log10(speech_level(added) / speech_level(clip)), 4)
    -6.0
    """
    x = _sound(samples)
    if not len(talkers):
        refuse("no talkers", "at least one recording of speech", "stress.pick_talkers")
    gain = decibels(level, "level")
    wanted = gain * _level(samples, reference, "babble")
    draws = generator(key, "babble")
    voices = [_cut(draws, voice, x.size) for voice in talkers]
    together = np.sum([voice / _level(voice, None, "a talker") for voice in voices], axis=0)
    return (x + together * (wanted / _level(together, None, "babble"))).astype(np.float32)


def _cut(draws: np.random.Generator, recording: Samples, length: int) -> Float[np.ndarray, " n"]:
    """Take a stretch of a recording from a random place, going round at its end; not a silent one, if it can."""
    recording, cut = _sound(recording), np.zeros(0)
    for _ in range(_TRIES):
        start = int(draws.integers(recording.size))
        cut = np.resize(np.roll(recording, -start), length)
        if cut.any():
            break
    return cut


def silence(samples: Samples) -> Float[np.ndarray, " n"]:
    """Put digital silence in a clip's place, as long as the clip.

    Examples
    --------
    >>> silence(np.ones(3)).tolist()
    [0.0, 0.0, 0.0]
    """
    return np.zeros(_sound(samples).size, np.float32)


def non_speech(
    key: Key,
    samples: Samples,
    *,
    recording: Samples,
    level: int | float = 0.0,
    reference: int | float | None = None,
) -> Float[np.ndarray, " n"]:
    """Put a sound that is no speech in a clip's place, as long as the clip.

    Parameters
    ----------
    key : JAX PRNG key, or its integer seed.
    samples : (n,) float32 or float64 at 16 kHz.
    recording : the sound; from a random place in it, going round as often as it must.
    level : its level over active frames, in decibels relative to the clip's speech level.
    reference : level of the speech; that of `samples` if absent.

    Returns
    -------
    samples : (n,) float32

    Raises
    ------
    InputError
        If the clip is silent, or the recording is where it was cut.

    Examples
    --------
    >>> bell = non_speech(0, np.full(10, 0.5), recording=np.array([1.0, -1.0]))
    >>> bell.size, speech_level(bell)
    (10, 0.5)
    """
    x = _sound(samples)
    wanted = decibels(level, "level") * _level(samples, reference, "another sound")
    other = _cut(generator(key, "non-speech"), recording, x.size)
    return (other * (wanted / _level(other, None, "itself"))).astype(np.float32)
