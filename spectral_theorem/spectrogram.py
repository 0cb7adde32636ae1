"""Turn samples into what Whisper hears: a log-mel spectrogram, differentiable back to the waveform.

In float32 a plain FFT rounds relative to the loudest frequency of a frame, which moves the quiet
ones by up to 5e-5 of a log-mel unit. Here the transform of a float32 frame is exact where it
matters, so float32 agrees with float64 to the last digit.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from .types import refuse

SAMPLE_RATE = 16_000
N_FFT = 400
HOP = 160
WINDOW_SECONDS = 30
WINDOW_SAMPLES = SAMPLE_RATE * WINDOW_SECONDS
# A coarse sample is a whole number up to 2^8, and so is a coarse weight; 2^16 times the 200 that the weights of one
# frequency sum to stays below 2^24, where float32 stops counting.
_COARSE_BITS = 8


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
    clamp is active; an all-zero input sits on the clamp and has gradient 0. On the sounds of
    tests/parity, float32 is within 3e-7 of float64 and of the reference extractor's float64 route;
    the reference's float32 route is up to 4.3e-5 from both. A window takes about 27 ms in float32
    and 14 ms in float64 on two CPU cores. Batch with `jax.vmap`.

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
    frames = samples.shape[0] // HOP
    index = HOP * np.arange(frames)[:, None] + np.arange(N_FFT)
    framed = jnp.pad(samples, N_FFT // 2, mode="reflect")[index]
    if samples.dtype == np.float32:
        real, imaginary = _split_transform(framed)
    else:
        spectrum = jnp.fft.rfft(framed * _hann())
        real, imaginary = spectrum.real, spectrum.imag
    power = real**2 + imaginary**2
    mel = jnp.matmul(jnp.asarray(_filters(n_mels), samples.dtype), power.T, precision="highest")
    log = jnp.log10(jnp.maximum(mel, 1e-10))
    return (jnp.maximum(log, log.max() - 8.0) + 4.0) / 4.0


def _hann() -> np.ndarray:
    return 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(N_FFT) / N_FFT)


@functools.cache
def _split_weights() -> tuple[tuple[np.ndarray, np.ndarray], ...]:
    """Tabulate window times cosine, and times -sine, as (coarse and the rest, whole), times 2^8.

    Half a frame is enough: cosines are even and sines odd about its middle, and so are folded frames.
    """
    middle = N_FFT // 2
    n = np.arange(middle + 1)
    angle = 2 * np.pi * np.outer(n, n) / N_FFT
    half = np.where(n % middle == 0, 0.5, 1.0) * _hann()[: middle + 1]  # the two ends are their own mirror images
    tables = []
    for wave in (np.cos(angle), -np.sin(angle)):
        whole = half[:, None] * wave * 2.0**_COARSE_BITS
        coarse = np.rint(whole)
        both = np.concatenate([coarse, whole - coarse], axis=1)
        tables.append((both.astype(np.float32), whole.astype(np.float32)))
    return tuple(tables)


def _split_transform(frames: Float[Array, "frames window"]) -> tuple[Float[Array, "frames bins"], ...]:
    """Return the real and the imaginary part of the windowed transform of float32 frames.

    Each frame is scaled to 2^8 and split into whole numbers and a rest below one half; so are the
    weights. Whole times whole is summed without any rounding, in whatever order; what the other
    products round is 2^-8 of what a plain float32 sum rounds, and of no loud neighbour's size.
    The gradient passes through the rest, whose weights are the whole ones.
    """
    _, exponent = jnp.frexp(jnp.abs(frames).max(axis=-1, keepdims=True))
    scaled = jnp.ldexp(frames, _COARSE_BITS - exponent)
    coarse = jnp.rint(scaled)
    rest = scaled - coarse
    product = functools.partial(jnp.matmul, precision="highest")
    middle = N_FFT // 2
    parts = []
    for mirrored, (both, whole) in zip((1, -1), _split_weights(), strict=True):
        fold = lambda x, sign=mirrored: (
            x[..., : middle + 1] + sign * jnp.concatenate([x[..., :1], x[..., : middle - 1 : -1]], axis=-1)
        )
        exact, small = jnp.split(product(fold(coarse), both), 2, axis=-1)
        parts.append(jnp.ldexp(exact + (small + product(fold(rest), whole)), exponent - 2 * _COARSE_BITS))
    return tuple(parts)
