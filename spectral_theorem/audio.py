"""Turn sound into what Whisper hears: samples at 16 kHz, then a log-mel spectrogram.

Everything after the samples is JAX and differentiable back to the waveform.
"""

import functools
import math
import os
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from .types import InputError, refuse

SAMPLE_RATE = 16_000
N_FFT = 400
HOP = 160
WINDOW_SECONDS = 30
WINDOW_SAMPLES = SAMPLE_RATE * WINDOW_SECONDS
LONGEST_SECONDS = 7200.0
_BLOCK = 1 << 18
_FORMATS = "a wav, flac, ogg or mp3 file"


def load_audio(
    path: str | os.PathLike[str], *, longest_seconds: int | float = LONGEST_SECONDS
) -> tuple[Float[np.ndarray, " n"], int]:
    """Read a sound file as one channel at 16 kHz.

    Parameters
    ----------
    path : file that libsndfile reads (wav, flac, ogg, mp3, ...), any rate, any number of channels.
    longest_seconds : refuse longer files before reading them.

    Returns
    -------
    samples : (n,) float32
        Mean of the channels, resampled; full scale is 1.
    rate : int
        Always 16000.

    Raises
    ------
    InputError
        If the path is missing or a folder, the file cannot be read as sound, is empty, too long,
        or holds a value that is not finite.

    Notes
    -----
    Read block by block, so a header that promises too much allocates nothing. Resampling is
    soxr's "VHQ". A loud file may exceed 1 slightly after resampling; nothing is clipped.

    Examples
    --------
    >>> import soundfile, tempfile
    >>> with tempfile.NamedTemporaryFile(suffix=".wav") as file:
    ...     soundfile.write(file.name, np.zeros((800, 2)), 8000)
    ...     samples, rate = load_audio(file.name)
    >>> samples.shape, samples.dtype.name, rate
    ((1600,), 'float32', 16000)
    """
    import soundfile
    import soxr

    path = Path(path)
    if path.is_dir():
        refuse(f"the folder {path}", _FORMATS, "a file inside it")
    if not path.is_file():
        refuse(f"{path}, which does not exist", _FORMATS, f"ls {path.parent}")
    try:
        with soundfile.SoundFile(path) as file:
            rate, seconds = file.samplerate, file.frames / max(file.samplerate, 1)
            if seconds > longest_seconds:
                refuse(
                    f"{path} of {seconds:.0f} s",
                    f"at most {longest_seconds:.0f} s",
                    "a shorter file, or longest_seconds",
                )
            blocks = [block.mean(axis=1) for block in file.blocks(blocksize=_BLOCK, dtype="float64", always_2d=True)]
    except InputError:
        raise
    except (soundfile.SoundFileError, OSError, ValueError, TypeError, RuntimeError) as error:
        refuse(f"{path}, which cannot be read as sound ({_one_line(error)})", _FORMATS, "ffmpeg -i FILE out.wav")
    mono = np.concatenate(blocks) if blocks else np.zeros(0)
    if mono.size == 0:
        refuse(f"{path} without samples", "sound", "a longer recording")
    if not np.isfinite(mono).all():
        refuse(f"{path} with samples that are NaN or infinite", "finite samples", "ffmpeg -i FILE out.wav")
    if rate != SAMPLE_RATE:
        mono = soxr.resample(mono, rate, SAMPLE_RATE, quality="VHQ")
    if mono.size == 0:
        refuse(f"{path}, too short for one sample at 16 kHz", "sound", "a longer recording")
    return mono.astype(np.float32), SAMPLE_RATE


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def concatenate(
    clips: Sequence[Float[np.ndarray, " _"]], gap_seconds: int | float = 0.0, *, rate: int = SAMPLE_RATE
) -> Float[np.ndarray, " n"]:
    """Join clips in order, with silence between them.

    Parameters
    ----------
    clips : sequence of (n_i,) arrays at one rate.
    gap_seconds : silence between two clips, in seconds, rounded to whole samples.
    rate : samples per second.

    Returns
    -------
    samples : (n,)

    Raises
    ------
    InputError
        If there is no clip or the gap is negative or not finite.

    Examples
    --------
    >>> concatenate([np.ones(2), np.ones(1)], gap_seconds=2 / 16000).tolist()
    [1.0, 1.0, 0.0, 0.0, 1.0]
    """
    if not clips:
        refuse("no clips", "at least one", "a list of sample arrays")
    if not (math.isfinite(gap_seconds) and gap_seconds >= 0):
        refuse(f"gap_seconds={gap_seconds}", "a finite number >= 0", "gap_seconds=0.1")
    silence = np.zeros(round(gap_seconds * rate), dtype=clips[0].dtype)
    pieces = [piece for clip in clips for piece in (silence, clip)]
    return np.concatenate(pieces[1:])


def pad_or_trim(samples: Float[Array | np.ndarray, " n"], length: int = WINDOW_SAMPLES) -> Float[Array, " length"]:
    """Cut samples to a length, or fill up with zeros.

    Parameters
    ----------
    samples : (n,)
    length : number of samples wanted; 480000 is Whisper's 30 s.

    Returns
    -------
    samples : (length,)

    Examples
    --------
    >>> pad_or_trim(jnp.ones(2), 3).tolist(), pad_or_trim(jnp.ones(4), 3).tolist()
    ([1.0, 1.0, 0.0], [1.0, 1.0, 1.0])
    """
    samples = jnp.asarray(samples)[:length]
    return jnp.pad(samples, (0, length - samples.shape[0]))


def _hertz_to_mel(hertz: np.ndarray) -> np.ndarray:
    """Map frequency to the mel scale of Slaney's toolbox: linear to 1 kHz, logarithmic above."""
    return np.where(hertz < 1000.0, hertz * 0.015, 15.0 + 27.0 * np.log(np.maximum(hertz, 1.0) / 1000.0) / np.log(6.4))


def _mel_to_hertz(mel: np.ndarray) -> np.ndarray:
    return np.where(mel < 15.0, mel / 0.015, 1000.0 * 6.4 ** ((mel - 15.0) / 27.0))


@functools.cache
def _filters(n_mels: int) -> np.ndarray:
    top = float(_hertz_to_mel(np.asarray(SAMPLE_RATE / 2)))
    edges = _mel_to_hertz(np.linspace(0.0, top, n_mels + 2))
    bins = np.linspace(0.0, SAMPLE_RATE / 2, N_FFT // 2 + 1)
    left, centre, right = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    triangles = np.minimum((bins - left) / (centre - left), (right - bins) / (right - centre))
    return np.maximum(triangles, 0.0) * (2.0 / (right - left))


def mel_filters(n_mels: int = 80) -> Float[np.ndarray, "mels bins"]:
    r"""Build triangular filters of equal area, evenly spaced in mel.

    .. math:: F_{mi} = \frac{2}{r_m - l_m}
        \max\Big(0, \min\Big(\frac{f_i - l_m}{c_m - l_m}, \frac{r_m - f_i}{r_m - c_m}\Big)\Big)

    Parameters
    ----------
    n_mels : number of filters; Whisper uses 80, large-v3 and its offspring 128.

    Returns
    -------
    filters : (n_mels, 201) float64, per Hz.

    References
    ----------
    M. Slaney, Auditory Toolbox, 1998: mel scale and normalisation.

    Examples
    --------
    >>> mel_filters(80).shape
    (80, 201)
    """
    if n_mels < 1:
        refuse(f"n_mels={n_mels}", "at least 1", "n_mels=80")
    return _filters(n_mels).copy()


def log_mel(
    samples: Array | np.ndarray, n_mels: int = 80, *, length: int = WINDOW_SAMPLES
) -> Float[Array, "mels frames"]:
    r"""Compute Whisper's log-mel spectrogram of one window.

    .. math:: x = \tfrac14\big(4 + \max(m, \max m - 8)\big), \qquad
        m = \log_{10}\max\big(F\,|\mathrm{STFT}|^2, 10^{-10}\big)

    Parameters
    ----------
    samples : (n,) at 16 kHz, float32 or float64
        Padded with zeros or cut to `length`.
    n_mels : number of mel bands, as the checkpoint's config says.
    length : window in samples, a multiple of 160 and at least 320; 480000 is Whisper's 30 s.

    Returns
    -------
    features : (n_mels, length / 160), in the dtype of the samples.

    Raises
    ------
    InputError
        If the samples are not a float32 or float64 vector, or the window does not fit.

    Notes
    -----
    Hann window of 400, hop 160, reflected ends, last frame dropped. Differentiable wherever no
    clamp is active; an all-zero input sits on the clamp and has gradient 0.

    References
    ----------
    A. Radford et al., Robust Speech Recognition via Large-Scale Weak Supervision, 2022, section 2.2.

    Examples
    --------
    >>> log_mel(jnp.zeros(100, dtype=jnp.float32), length=3200).shape
    (80, 20)
    """
    if samples.dtype not in (np.float32, np.float64) or samples.ndim != 1:
        refuse(
            f"samples of shape {samples.shape}, dtype {samples.dtype}", "(n,) float32 or float64", "load_audio(path)"
        )
    if length % HOP or length < 2 * HOP:
        refuse(f"a window of {length} samples", f"a multiple of {HOP}, at least {2 * HOP}", f"length={WINDOW_SAMPLES}")
    return _log_mel(pad_or_trim(samples, length), n_mels)


@functools.partial(jax.jit, static_argnames="n_mels")
def _log_mel(samples: Float[Array, " n"], n_mels: int) -> Float[Array, "mels frames"]:
    dtype = samples.dtype
    window = jnp.asarray(0.5 - 0.5 * np.cos(2 * np.pi * np.arange(N_FFT) / N_FFT), dtype)
    frames = samples.shape[0] // HOP
    index = HOP * np.arange(frames)[:, None] + np.arange(N_FFT)
    padded = jnp.pad(samples, N_FFT // 2, mode="reflect")
    spectrum = jnp.fft.rfft(padded[index] * window)
    power = spectrum.real**2 + spectrum.imag**2
    mel = jnp.matmul(jnp.asarray(_filters(n_mels), dtype), power.T, precision="highest")
    log = jnp.log10(jnp.maximum(mel, 1e-10))
    return (jnp.maximum(log, log.max() - 8.0) + 4.0) / 4.0
