"""Turn sound files into samples at 16 kHz, whole or window by window, and back."""

import io
import math
import os
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NoReturn

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from .spectrogram import (
    HOP,
    N_FFT,
    SAMPLE_RATE,
    WINDOW_SAMPLES,
    WINDOW_SECONDS,
    log_mel,
    mel_filters,
    pad_or_trim,
)
from .storage import write_atomically
from .types import InputError, refuse

__all__ = [
    "HOP",
    "LONGEST_SECONDS",
    "N_FFT",
    "SAMPLE_RATE",
    "WINDOW_SAMPLES",
    "WINDOW_SECONDS",
    "concatenate",
    "load_audio",
    "log_mel",
    "mel_filters",
    "pad_or_trim",
    "save_audio",
    "stream_windows",
    "windows",
]

LONGEST_SECONDS = 7200.0
# Below, a tiny file would fill memory once resampled; above, the resampler's own filter would.
_LOWEST_RATE, _HIGHEST_RATE = 1_000, 768_000
_BLOCK = 1 << 18  # values read at once, all channels together
_FORMATS = "a wav, flac, ogg or mp3 file"


def load_audio(
    path: str | os.PathLike[str] | bytes, *, longest_seconds: int | float = LONGEST_SECONDS
) -> tuple[Float[np.ndarray, " n"], int]:
    """Read a sound file as one channel at 16 kHz.

    Parameters
    ----------
    path : file that libsndfile reads (wav, flac, ogg, mp3, ...), any number of channels, any rate
        from 1 to 768 kHz; or the bytes of such a file.
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
    soxr's "VHQ". A loud file may exceed 1 slightly after resampling; nothing is clipped. Longer
    recordings: `stream_windows`.

    Examples
    --------
    >>> import soundfile, tempfile
    >>> with tempfile.NamedTemporaryFile(suffix=".wav") as file:
    ...     soundfile.write(file.name, np.zeros((800, 2)), 8000)
    ...     samples, rate = load_audio(file.name)
    >>> samples.shape, samples.dtype.name, rate
    ((1600,), 'float32', 16000)
    """
    pieces = list(_pieces(path, longest_seconds))
    if not any(piece.size for piece in pieces):
        _refuse_nothing(path)
    return np.concatenate(pieces), SAMPLE_RATE


def stream_windows(
    path: str | os.PathLike[str] | bytes, *, length: int = WINDOW_SAMPLES, hop: int | None = None
) -> Iterator[tuple[int, Float[np.ndarray, " length"]]]:
    """Read a recording of any length window by window, holding a few windows at a time.

    Parameters
    ----------
    path : as `load_audio` takes it.
    length : samples of a window at 16 kHz.
    hop : samples from one window's start to the next; the length if absent.

    Yields
    ------
    offset : int
        Sample at which the window starts.
    window : (length,) float32
        The last one filled up with zeros. As `windows` cuts them.

    Raises
    ------
    InputError
        As `load_audio` does, when reading comes to it; never for the recording's length.

    Examples
    --------
    >>> import soundfile, tempfile
    >>> with tempfile.NamedTemporaryFile(suffix=".wav") as file:
    ...     soundfile.write(file.name, np.zeros(10), 16000)
    ...     [(offset, window.size) for offset, window in stream_windows(file.name, length=4)]
    [(0, 4), (4, 4), (8, 4)]
    """
    hop = _checked_hop(length, hop)
    held, offset = np.zeros(0, np.float32), 0
    for piece in _pieces(path, math.inf):
        held = np.concatenate([held, piece])
        while held.size > length:
            yield offset, held[:length].copy()
            held, offset = held[hop:], offset + hop
    if held.size == 0:
        _refuse_nothing(path)
    yield offset, np.pad(held, (0, length - held.size))


def windows(
    samples: Float[Array | np.ndarray, " n"], *, length: int = WINDOW_SAMPLES, hop: int | None = None
) -> tuple[Float[Array | np.ndarray, "windows length"], Int[np.ndarray, " windows"]]:
    """Cut samples into windows, the last one filled up with zeros.

    Parameters
    ----------
    samples : (n,) NumPy or JAX, n >= 1.
    length : samples of a window; 480000 is Whisper's 30 s.
    hop : samples from one window's start to the next, at most the length, which is the default.

    Returns
    -------
    windows : (w, length)
        Of the kind that came in: a read-only view of NumPy samples, or a JAX array that gradients
        pass through. The last window is the first that reaches the end.
    offsets : (w,) int64
        Sample at which each window starts.

    Raises
    ------
    InputError
        If there are no samples, or length or hop do not fit.

    Examples
    --------
    >>> cut, offsets = windows(np.arange(5.0), length=4, hop=3)
    >>> cut.tolist(), offsets.tolist()
    ([[0.0, 1.0, 2.0, 3.0], [3.0, 4.0, 0.0, 0.0]], [0, 3])
    """
    hop = _checked_hop(length, hop)
    if samples.shape[0] == 0:
        refuse("no samples", "at least one", "load_audio(path)")
    offsets = hop * np.arange(1 + max(0, math.ceil((samples.shape[0] - length) / hop)))
    padding = (0, int(offsets[-1]) + length - samples.shape[0])
    if isinstance(samples, jax.Array):
        return jnp.pad(samples, padding)[offsets[:, None] + np.arange(length)], offsets
    return np.lib.stride_tricks.sliding_window_view(np.pad(samples, padding), length)[::hop], offsets


def _checked_hop(length: int, hop: int | None) -> int:
    if length < 1 or not 1 <= (length if hop is None else hop) <= length:
        refuse(f"length={length}, hop={hop}", "1 <= hop <= length", f"length={WINDOW_SAMPLES}")
    return length if hop is None else hop


def _pieces(path: str | os.PathLike[str] | bytes, longest_seconds: int | float) -> Iterator[Float[np.ndarray, " _"]]:
    """Yield a recording at 16 kHz in pieces, in one pass and bounded memory."""
    import soundfile
    import soxr

    name = _name(path)
    if not isinstance(path, bytes):
        if Path(path).is_dir():
            refuse(f"the folder {name}", _FORMATS, "a file inside it")
        if not Path(path).is_file():
            refuse(f"{name}, which does not exist", _FORMATS, f"ls {Path(path).parent}")
    read = 0
    try:
        with soundfile.SoundFile(io.BytesIO(path) if isinstance(path, bytes) else os.fspath(path)) as file:
            rate, longest = file.samplerate, longest_seconds * file.samplerate
            if file.frames > longest:
                _refuse_length(name, file.frames / max(rate, 1), longest_seconds)
            if not _LOWEST_RATE <= rate <= _HIGHEST_RATE:
                refuse(
                    f"{name} at {rate} Hz", f"{_LOWEST_RATE} to {_HIGHEST_RATE} Hz", "ffmpeg -i FILE -ar 16000 out.wav"
                )
            resampler = None
            if rate != SAMPLE_RATE:
                resampler = soxr.ResampleStream(rate, SAMPLE_RATE, 1, dtype="float64", quality="VHQ")
            size = max(1, _BLOCK // file.channels)
            while True:
                block = file.read(size, dtype="float64", always_2d=True).mean(axis=1)
                read += block.size
                if read > longest:  # whatever the header promised
                    _refuse_length(name, read / rate, longest_seconds)
                if not np.isfinite(block).all():
                    refuse(f"{name} with samples that are NaN or infinite", "finite samples", "ffmpeg -i FILE out.wav")
                if read == 0:
                    refuse(f"{name} without samples", "sound", "a longer recording")
                last = block.size == 0
                if resampler is not None:
                    block = resampler.resample_chunk(block, last=last)
                yield block.astype(np.float32)
                if last:
                    return
    except InputError:
        raise
    except (soundfile.SoundFileError, OSError, ValueError, TypeError, RuntimeError) as error:
        refuse(f"{name}, which cannot be read as sound ({_one_line(error)})", _FORMATS, "ffmpeg -i FILE out.wav")


def _refuse_length(name: str, seconds: int | float, longest_seconds: int | float) -> NoReturn:
    refuse(
        f"{name} of {seconds:.0f} s",
        f"at most {longest_seconds:.0f} s",
        "a shorter file, stream_windows, or longest_seconds",
    )


def _refuse_nothing(path: str | os.PathLike[str] | bytes) -> NoReturn:
    refuse(f"{_name(path)}, too short for one sample at 16 kHz", "sound", "a longer recording")


def _name(path: str | os.PathLike[str] | bytes) -> str:
    return f"{len(path)} bytes" if isinstance(path, bytes) else os.fspath(path)


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def save_audio(path: str | os.PathLike[str], samples: Float[np.ndarray, " n"], *, rate: int = SAMPLE_RATE) -> Path:
    """Write samples as a wav file of 32-bit floats, whole or not at all.

    Parameters
    ----------
    path : file to make or replace.
    samples : (n,) finite; full scale is 1, and larger values are kept as they are.
    rate : samples per second.

    Returns
    -------
    Path
        The file. Equal samples give equal bytes: no time or version is written into it.

    Raises
    ------
    InputError
        If there are no samples, a value that is not finite, or more than the format holds (4 GB).

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     load_audio(save_audio(f"{folder}/a.wav", np.array([0.5, -2.0])))[0].tolist()
    [0.5, -2.0]
    """
    data = np.asarray(samples, "<f4").tobytes()
    if not data or not np.isfinite(samples).all():
        refuse("no samples, or some that are not finite", "finite samples", "load_audio(path)")
    if len(data) > 0xFFFF_FF00:
        refuse(f"{len(data)} bytes of samples", "at most 4 GB", "windows(samples)")
    # libsndfile stamps the time of writing into its float wavs; two runs would differ.
    chunks = [
        (b"fmt ", struct.pack("<HHIIHHH", 3, 1, rate, 4 * rate, 4, 32, 0)),
        (b"fact", struct.pack("<I", len(data) // 4)),
        (b"data", data),
    ]
    body = b"WAVE" + b"".join(tag + struct.pack("<I", len(chunk)) + chunk for tag, chunk in chunks)
    return write_atomically(Path(path), lambda file: file.write(b"RIFF" + struct.pack("<I", len(body)) + body))


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
