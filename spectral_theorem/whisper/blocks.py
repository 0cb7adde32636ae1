r"""Compute Whisper's blocks as pure functions of their parameters.

Every function takes a nested dict of arrays (the names of the Flax port of Whisper: `q_proj`,
`kernel`, ...) and one example; batches are made by `jax.vmap`. Sub-blocks are pre-LayerNorm with
a residual, `h -> h + f(LayerNorm(h))`, so they compose into a block by composition alone.
"""

import functools
import itertools
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from ..types import container

Parameters = Mapping[Any, Any]
EPSILON = 1e-5
_LARGE = 1 << 18
_QUERIES_AT_ONCE = 768


@container
class Cache:
    """Hold one layer's self-attention keys and values of earlier positions.

    Attributes
    ----------
    keys, values : (T, H, D/H)  rows at and beyond `length` are ignored.
    length : () int  number of earlier positions, at most T.
    """

    keys: Float[Array, "*batch positions heads size"]
    values: Float[Array, "*batch positions heads size"]
    length: Int[Array, "*batch"]


def precision(dtype: Any) -> str | None:
    """Ask for full matrix products in float32 and float64, for the device's own in half precision."""
    return None if jnp.dtype(dtype).itemsize == 2 else "highest"


def linear(parameters: Parameters, x: Float[Array, "*rows inner"]) -> Float[Array, "*rows outer"]:
    """Apply `x @ kernel + bias`; the bias is optional."""
    y = jnp.matmul(x, parameters["kernel"], precision=precision(x.dtype))
    return y + parameters["bias"] if "bias" in parameters else y


def layer_norm(parameters: Parameters, x: Float[Array, "*rows width"]) -> Float[Array, "*rows width"]:
    """Normalise the last axis with epsilon 1e-5; half precision is normalised in float32."""
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    centred = wide - wide.mean(-1, keepdims=True)
    scale = jax.lax.rsqrt(jnp.mean(centred**2, -1, keepdims=True) + EPSILON)
    return (centred * scale).astype(x.dtype) * parameters["scale"] + parameters["bias"]


def gelu(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Apply GELU in its exact form, by the error function."""
    if x.dtype != jnp.float32:
        return jax.nn.gelu(x, approximate=False)
    # XLA computes erfc, which `jax.nn.gelu` calls, by two polynomials, an exponential and a division, and erf by one
    # polynomial: half the time. What erfc keeps for very negative x is below the rounding of x itself.
    return 0.5 * x * (1 + jax.lax.erf(x * np.float32(0.5**0.5)))


def split_heads(x: Float[Array, "*rows width"], heads: int) -> Float[Array, "*rows heads size"]:
    """Cut the last axis into heads."""
    return x.reshape(*x.shape[:-1], heads, x.shape[-1] // heads)


def softmax(scores: Float[Array, "*rows n"]) -> Float[Array, "*rows n"]:
    """Normalise exponentials over the last axis; half precision is normalised in float32."""
    return jax.nn.softmax(scores.astype(jnp.promote_types(scores.dtype, jnp.float32)), axis=-1).astype(scores.dtype)


def queries(parameters: Parameters, x: Float[Array, "*rows width"], heads: int) -> Float[Array, "*rows heads size"]:
    """Return the queries of every head, divided by the square root of the head's size."""
    q = split_heads(linear(parameters["q_proj"], x), heads)
    return q * jnp.asarray(q.shape[-1] ** -0.5, q.dtype)


def keys_values(
    parameters: Parameters, x: Float[Array, "n width"], heads: int
) -> tuple[Float[Array, "n heads size"], Float[Array, "n heads size"]]:
    """Return keys and values of every head."""
    return split_heads(linear(parameters["k_proj"], x), heads), split_heads(linear(parameters["v_proj"], x), heads)


def attend(
    q: Float[Array, "n heads size"],
    k: Float[Array, "m heads size"],
    v: Float[Array, "m heads size"],
    mask: Bool[Array, "n m"] | None = None,
) -> Float[Array, "n width"]:
    """Average values with softmax weights; `mask` is True where a query may look."""

    def rows(q: Array, k: Array, v: Array, mask: Array | None) -> Array:
        scores = jnp.matmul(q, k.T, precision=precision(q.dtype))
        if mask is not None:
            scores = jnp.where(mask, scores, -jnp.inf)
        scores = scores.astype(jnp.promote_types(scores.dtype, jnp.float32))
        parts = jnp.exp(scores - jax.lax.stop_gradient(scores.max(-1, keepdims=True)))
        total = parts.sum(-1, keepdims=True)
        # Divided after the product, which has fewer columns than there are scores.
        return jnp.matmul(parts.astype(v.dtype), v, precision=precision(q.dtype)) / total.astype(v.dtype)

    n, heads, _ = q.shape
    if n * k.shape[0] <= _LARGE:
        mixed = jax.vmap(functools.partial(rows, mask=mask), in_axes=1, out_axes=1)(q, k, v)
        return mixed.reshape(n, -1)
    cuts = np.linspace(0, n, math.ceil(n / _QUERIES_AT_ONCE) + 1).astype(int)

    def one_head(head: Array) -> Array:
        # Cut out here, not by a transpose before the loop: XLA would copy every array once more.
        own_q, own_k, own_v = (jax.lax.dynamic_index_in_dim(x, head, 1, keepdims=False) for x in (q, k, v))
        cut = [rows(own_q[a:b], own_k, own_v, None if mask is None else mask[a:b]) for a, b in itertools.pairwise(cuts)]
        return jnp.concatenate(cut)

    # Few queries of one head at a time: their scores stay in cache, which is faster and smaller. Fewer still would be
    # slower again, as every product first repacks the keys or the values.
    return jnp.swapaxes(jax.lax.map(one_head, jnp.arange(heads)), 0, 1).reshape(n, -1)


# Sub-blocks of all positions at once.


def attention_sequence(
    parameters: Parameters,
    norm: Parameters,
    x: Float[Array, "n width"],
    heads: int,
    *,
    causal: bool,
) -> tuple[Float[Array, "n width"], tuple[Float[Array, "n heads size"], Float[Array, "n heads size"]]]:
    """Return x + self-attention of all positions, with the keys and values."""
    y = layer_norm(norm, x)
    k, v = keys_values(parameters, y, heads)
    mask = jnp.tri(x.shape[0], dtype=bool) if causal else None
    return x + linear(parameters["out_proj"], attend(queries(parameters, y, heads), k, v, mask)), (k, v)


def encoder_block(parameters: Parameters, x: Float[Array, "frames width"], heads: int) -> Float[Array, "frames width"]:
    """Apply one encoder block: self-attention, then MLP."""
    x, _ = attention_sequence(parameters["self_attn"], parameters["self_attn_layer_norm"], x, heads, causal=False)
    return mlp(parameters, x)


def encoder_stem(parameters: Parameters, mel: Float[Array, "mels frames2"]) -> Float[Array, "frames width"]:
    """Apply both convolutions with GELU, the second of stride 2, and add the stored positions."""
    x = mel.T
    for name, stride in (("conv1", 1), ("conv2", 2)):
        kernel, padded = parameters[name]["kernel"], jnp.pad(x, ((1, 1), (0, 0)))
        # As one matrix product: the CPU's float64 convolution is ten times slower.
        taps = jnp.concatenate([padded[i : i + x.shape[0] : stride] for i in range(kernel.shape[0])], axis=1)
        y = jnp.matmul(taps, kernel.reshape(-1, kernel.shape[-1]), precision=precision(x.dtype))
        x = gelu(y + parameters[name]["bias"])
    return x + parameters["embed_positions"]["embedding"]


def decoder_block_sequence(
    parameters: Parameters, x: Float[Array, "n width"], c: Float[Array, "frames width"], heads: int
) -> tuple[Float[Array, "n width"], dict[str, Any]]:
    """Apply one decoder block to all positions, causally, and record what happened inside.

    Returns
    -------
    x : (n, D)
    record : dict
        `keys`, `values` (n, H, D/H) of self-attention; `self_attention`, `cross_attention`, `mlp`
        (n, D), what each sub-block added to the residual stream; `residual` (n, D), the result.
    """
    own, (k, v) = attention_sequence(parameters["self_attn"], parameters["self_attn_layer_norm"], x, heads, causal=True)
    crossed = cross_attention_rows(parameters, own, cross_keys_values(parameters, c, heads), heads)
    out = mlp(parameters, crossed)
    return out, {
        "keys": k,
        "values": v,
        "self_attention": own - x,
        "cross_attention": crossed - own,
        "mlp": out - crossed,
        "residual": out,
    }


# Sub-blocks of one position, in the form of the theorem: (h, c, cache) -> h'.


def self_attention_step(
    parameters: Parameters, h: Float[Array, " width"], cache: Cache
) -> tuple[Float[Array, " width"], tuple[Float[Array, "heads size"], Float[Array, "heads size"]]]:
    """Return h + self-attention over earlier positions and its own, with its own key and value."""
    attention, heads = parameters["self_attn"], cache.keys.shape[-2]
    y = layer_norm(parameters["self_attn_layer_norm"], h)[None]
    q, (k, v) = queries(attention, y, heads)[0], keys_values(attention, y, heads)
    past = jnp.einsum("hi,thi->ht", q, cache.keys, precision=precision(h.dtype))
    past = jnp.where(jnp.arange(cache.keys.shape[0]) < cache.length, past, -jnp.inf)
    own = jnp.einsum("hi,hi->h", q, k[0], precision=precision(h.dtype))
    weights = softmax(jnp.concatenate([past, own[:, None]], axis=-1))
    mixed = jnp.einsum("ht,thi->hi", weights[:, :-1], cache.values, precision=precision(h.dtype))
    mixed = mixed + weights[:, -1:] * v[0]
    return h + linear(attention["out_proj"], mixed.reshape(-1)), (k[0], v[0])


def self_attention(parameters: Parameters, h: Float[Array, " width"], cache: Cache) -> Float[Array, " width"]:
    """Apply the self-attention sub-block at one position.

    Parameters
    ----------
    parameters : of one decoder block.
    h : (D,) residual stream at the current position.
    cache : keys and values of the earlier positions; constants. The current position's own key
        and value are computed from h, and differentiated with it.

    Returns
    -------
    h' : (D,)
    """
    return self_attention_step(parameters, h, cache)[0]


def cross_keys_values(
    parameters: Parameters, c: Float[Array, "frames width"], heads: int
) -> tuple[Float[Array, "frames heads size"], Float[Array, "frames heads size"]]:
    """Return one decoder block's cross-attention keys and values of an encoder output."""
    return keys_values(parameters["encoder_attn"], c, heads)


def cross_attention_rows(
    parameters: Parameters,
    x: Float[Array, "n width"],
    kv: tuple[Float[Array, "frames heads size"], Float[Array, "frames heads size"]],
    heads: int,
) -> Float[Array, "n width"]:
    """Apply the cross-attention sub-block to rows, keys and values computed beforehand."""
    attention = parameters["encoder_attn"]
    y = layer_norm(parameters["encoder_attn_layer_norm"], x)
    return x + linear(attention["out_proj"], attend(queries(attention, y, heads), *kv))


def cross_attention(
    parameters: Parameters, h: Float[Array, " width"], c: Float[Array, "frames width"], heads: int
) -> Float[Array, " width"]:
    """Apply the cross-attention sub-block at one position, keys and values computed from c.

    Parameters
    ----------
    parameters : of one decoder block.
    h : (D,) residual stream; c : (F, D) encoder output; heads : number of heads.

    Returns
    -------
    h' : (D,)
    """
    return cross_attention_rows(parameters, h[None], cross_keys_values(parameters, c, heads), heads)[0]


def mlp(parameters: Parameters, h: Float[Array, "*rows width"]) -> Float[Array, "*rows width"]:
    """Apply the MLP sub-block, to one position or to rows of positions."""
    y = layer_norm(parameters["final_layer_norm"], h)
    return h + linear(parameters["fc2"], gelu(linear(parameters["fc1"], y)))


def decoder_block(
    parameters: Parameters, h: Float[Array, " width"], c: Float[Array, "frames width"], cache: Cache
) -> Float[Array, " width"]:
    """Apply one decoder block at one position: self-attention, cross-attention, MLP.

    Parameters
    ----------
    parameters : of one decoder block.
    h : (D,) residual stream; c : (F, D) encoder output.
    cache : this layer's self-attention keys and values of the earlier positions.

    Returns
    -------
    h' : (D,)
    """
    h = self_attention(parameters, h, cache)
    return mlp(parameters, cross_attention(parameters, h, c, cache.keys.shape[-2]))
