r"""Write down the token Jacobians of decoder blocks, three ways that must agree.

Forward mode is the reference; linearising once and pushing unit vectors through in chunks bounds its memory; the
explicit product of factors needs the fewest operations.
"""

import functools
from collections.abc import Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ..types import refuse
from .blocks import Cache
from .chain import KINDS, run_tokens
from .model import WhisperModel
from .sensitivity import PARTS, propagators, token_factors

Method = Literal["factors", "linearize", "jacfwd"]
_CHUNK = 128


def token_jacobians(
    model: WhisperModel,
    encoder_output: Array,
    tokens: Sequence[int],
    positions: Sequence[int],
    granularity: str = "block",
    method: Method = "factors",
) -> Float[Array, "layers T width width"]:
    r"""Return :math:`W_l = \partial h_l/\partial h_{l-1}` of every layer at several positions, the past frozen.

    Parameters
    ----------
    model, encoder_output, tokens : as in `token_layers`.
    positions : T residual positions, from 0.
    granularity : "block", or "sub-block" for self-attention, cross-attention and MLP apart.
    method : "factors" (explicit product of LayerNorm, attention and MLP factors), "linearize" (`jax.linearize`, then
        unit vectors in chunks of 128) or "jacfwd" (`jax.jacfwd`).

    Returns
    -------
    (L, T, D, D), L layers or 3L

    Raises
    ------
    InputError
        Unknown method or granularity, and as `token_factors`.

    Notes
    -----
    The three agree to rounding (1e-12 in float64, 2e-6 of the largest entry in float32). One compiled layer serves all
    blocks and, for the last two methods, one token after the other; keys and values are computed once. Measured in
    docs/benchmarks/engine.md.

    References
    ----------
    docs/theory/whisper.md (factors of a block).

    Examples
    --------
    >>> from spectral_theorem.whisper import Dims, random_model
    >>> dims = Dims(width=4, mels=3, frames=5, vocabulary=6, positions=7, encoder_layers=1, encoder_heads=1,
    ...             encoder_hidden=8, decoder_layers=2, decoder_heads=1, decoder_hidden=8)
    >>> model, c = random_model(jax.random.key(0), dims), jnp.ones((5, 4), jnp.float32)
    >>> a, b, f = (token_jacobians(model, c, [4, 1, 2], [1, 2], method=m) for m in ("factors", "linearize", "jacfwd"))
    >>> a.shape, bool(abs(a - f).max() < 1e-5), bool(abs(b - f).max() < 1e-5)
    ((2, 2, 4, 4), True, True)
    """
    if method not in ("factors", "linearize", "jacfwd"):
        refuse(f"method={method!r}", "'factors', 'linearize' or 'jacfwd'", "method='factors'")
    if granularity not in KINDS:
        refuse(f"granularity={granularity!r}", " or ".join(map(repr, KINDS)), "granularity='block'")
    if method == "factors":
        parts = ("block",) if granularity == "block" else PARTS
        factors = token_factors(model, encoder_output, tokens, positions)
        return jnp.stack([propagators(f, part) for f in factors for part in parts])
    places = [int(p) for p in positions]
    if not places or not 0 <= min(places):
        refuse(f"positions {places}", "at least one place in the sequence, from 0", "positions=[len(prompt) - 1]")
    run = run_tokens(model, encoder_output, tokens, max(places))
    layers, where = model.parameters["decoder"]["layers"], jnp.asarray(places, jnp.int32)
    dense, found = _FORWARD[method], []
    for index in range(model.dims.decoder_layers):
        h = run.residual[index][where]
        for _, function in KINDS[granularity]:
            w, h = dense(layers[index], run.keys[index], run.values[index], where, h, encoder_output, function=function)
            found.append(w)
    return jnp.stack(found)


def _over_tokens(one: Any) -> Any:
    @functools.partial(jax.jit, static_argnames="function")
    def several(p: Any, keys: Any, values: Any, positions: Any, h: Any, c: Any, *, function: Any) -> tuple[Any, Any]:
        def at(token: Any) -> tuple[Any, Any]:
            position, x = token
            layer = lambda y: function(p, Cache(keys, values, position), y, c)
            return one(layer, x)

        return jax.lax.map(at, (positions, h))

    return several


def _jacfwd(layer: Any, x: Any) -> tuple[Any, Any]:
    return jax.jacfwd(layer)(x), layer(x)


def _linearize(layer: Any, x: Any) -> tuple[Any, Any]:
    out, push = jax.linearize(layer, x)
    return jax.lax.map(push, jnp.eye(x.shape[0], dtype=x.dtype), batch_size=min(_CHUNK, x.shape[0])).T, out


_FORWARD = {"jacfwd": _over_tokens(_jacfwd), "linearize": _over_tokens(_linearize)}
