r"""Choose what counts as the context: the encoder output, the spectrogram, the waveform, or a few directions of one.

Beyond the encoder the context enters through it, so a direction of the spectrogram or of the waveform amounts to one
of the encoder output, its derivative along that direction. A chain on r directions has injections (D, r).
"""

from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ..audio import log_mel
from ..types import refuse
from .model import WhisperModel

Context = Literal["encoder", "mel", "waveform"]
CONTEXTS: tuple[Context, ...] = ("encoder", "mel", "waveform")
DIRECTIONS = 16
_TOGETHER = 4  # tangents side by side: they share what the encoder computes without them


def context_directions(
    model: WhisperModel,
    samples: Float[np.ndarray, " n"],
    context: Context,
    basis: Any = DIRECTIONS,
    *,
    key: Any = None,
) -> Float[Array, "r frames width"]:
    r"""Return what orthonormal directions of a context amount to in the encoder output.

    .. math:: B_i = \frac{\partial c_{\mathrm{enc}}}{\partial c}\, e_i, \qquad G^{(c)} e_i = G\,B_i

    Parameters
    ----------
    model : any Whisper.
    samples : (n,) at 16 kHz, at most one window: where the encoder is linearised.
    context : "encoder", "mel" (log-mel spectrogram, (mels, 2F) numbers) or "waveform" (the clip's n samples).
    basis : number r of random orthonormal directions, or directions of your own, (r, *shape of the context); they are
        orthonormalised, which keeps their span.
    key : PRNG key of random directions; default `jax.random.key(0)`.

    Returns
    -------
    (r, F, D)

    Raises
    ------
    InputError
        Unknown context, r below 1 or above the context's size, directions of another shape, not finite, or dependent.

    Notes
    -----
    One forward derivative of the encoder per direction (none for "encoder"). Norms and shares of an injection on r
    directions belong to their span: :math:`\gamma` and :math:`\|G\|_F` are not those of the whole context.

    References
    ----------
    docs/theory/whisper.md#what-counts-as-the-context.

    Examples
    --------
    >>> from spectral_theorem.whisper import Dims, random_model
    >>> dims = Dims(width=8, mels=4, frames=10, vocabulary=6, positions=9, encoder_layers=1, encoder_heads=2,
    ...             encoder_hidden=8, decoder_layers=2, decoder_heads=2, decoder_hidden=8)
    >>> model, sound = random_model(jax.random.key(0), dims), np.ones(1600, np.float32)
    >>> [context_directions(model, sound, name, 3).shape for name in CONTEXTS]
    [(3, 10, 8), (3, 10, 8), (3, 10, 8)]
    """
    dims, window = model.dims, model.dims.window_samples
    if context not in CONTEXTS:
        refuse(f"context={context!r}", " or ".join(map(repr, CONTEXTS)), "context='encoder'")
    shape = {"encoder": (dims.frames, dims.width), "mel": (dims.mels, 2 * dims.frames), "waveform": (len(samples),)}
    directions = _orthonormal(basis, shape[context], jax.random.key(0) if key is None else key, model.dtype)
    if context == "encoder":
        return directions
    widest = jnp.zeros(()).dtype
    sound = jnp.asarray(samples, widest)
    spectrum = lambda x: log_mel(jnp.pad(x, (0, window - x.shape[0])), dims.mels, length=window)
    if context == "mel":
        return _pushed(lambda mel: model.encode(mel), spectrum(sound).astype(model.dtype), directions)
    return _pushed(lambda x: model.encode(spectrum(x)), sound, directions.astype(widest))


def _pushed(function: Any, at: Any, directions: Any) -> Any:
    one = lambda direction: jax.jvp(function, (at,), (direction,))[1]
    return jax.lax.map(one, directions, batch_size=min(_TOGETHER, directions.shape[0]))


def _orthonormal(basis: Any, shape: tuple[int, ...], key: Any, dtype: Any) -> Any:
    """Return (r, *shape) orthonormal directions: random ones, or the given ones made so."""
    size = int(np.prod(shape))
    if isinstance(basis, (int, np.integer)):
        if not 1 <= basis <= size:
            refuse(
                f"{basis} directions", f"1 to {size}, the size of the context", f"{min(DIRECTIONS, size)} directions"
            )
        rows = jax.random.normal(key, (int(basis), size), dtype)
    else:
        given = np.asarray(basis)
        if given.ndim < 1 or given.shape[1:] != shape or not 1 <= given.shape[0] <= size:
            refuse(
                f"directions of shape {given.shape}", f"(r, {', '.join(map(str, shape))}), 1 <= r <= {size}", "r = 16"
            )
        if given.dtype.kind != "f" or not np.isfinite(given).all():
            refuse(f"directions in {given.dtype}, or not finite", "finite floating-point numbers", "basis=16")
        rows = jnp.asarray(given.reshape(given.shape[0], size), dtype)
    q, r = jnp.linalg.qr(rows.T)
    independent = jnp.abs(jnp.diag(r)) > 64 * size**0.5 * jnp.finfo(dtype).eps * jnp.linalg.norm(rows, axis=1)
    if not bool(independent.all()):
        refuse("dependent directions", "directions that span as many dimensions", "fewer of them")
    return q.T.reshape(-1, *shape)


def read_basis(path: Path) -> np.ndarray:
    """Read directions of a context from a .npy file, without pickles and no larger than the file says.

    Raises
    ------
    InputError
        If the file cannot be read as one array of numbers.
    """
    try:
        array = np.load(path, allow_pickle=False, mmap_mode="r")
    except (OSError, ValueError, EOFError) as problem:
        refuse(
            f"{path}, which cannot be read ({' '.join(str(problem).split())})", "one array in a .npy", "--directions 16"
        )
    if not isinstance(array, np.ndarray):
        refuse(f"{path}, which holds several arrays", "one array in a .npy", "np.save(path, directions)")
    return array
