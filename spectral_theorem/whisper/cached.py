"""Advance the decoder by tokens, for a batch of clips at once, with cached keys and values.

The same numbers as `blocks`, laid out for speed: heads stand before positions, so that a step reads
each cache in one piece, and rows of a batch share their matrix products.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from ..types import container
from . import blocks
from .blocks import Parameters


@container
class KeysValues:
    """Hold keys and values of one attention: (B, H, T, D/H) each."""

    keys: Float[Array, "batch heads positions size"]
    values: Float[Array, "batch heads positions size"]


def cross_caches(layers: list[Parameters], context: Float[Array, "batch frames width"], heads: int) -> list[KeysValues]:
    """Return the cross-attention keys and values of every block, computed once per clip."""
    return [_keys_values(p["encoder_attn"], context, heads) for p in layers]


def empty_caches(
    layers: list[Parameters], batch: int, positions: int, width: int, heads: int, dtype: Any
) -> list[KeysValues]:
    """Return self-attention caches with room for `positions` tokens."""
    nothing = jnp.zeros((batch, heads, positions, width // heads), dtype)
    return [KeysValues(nothing, nothing) for _ in layers]


def advance(
    parameters: Parameters,
    layers: list[Parameters],
    tokens: Int[Array, "batch n"],
    start: Int[Array, ""] | int,
    pad: Int[Array, " batch"],
    caches: list[KeysValues],
    cross: list[KeysValues],
    heads: int,
) -> tuple[Float[Array, "batch n width"], list[KeysValues], list[dict[str, Array]]]:
    """Run n tokens through all blocks, and add them to the caches.

    Parameters
    ----------
    parameters : of the decoder.
    layers : of every block, in order.
    tokens : (B, n) ids that take the places from `start` on.
    start : number of places already in the caches.
    pad : (B,) places at the left of each row that hold nothing; positions count from there.
    caches, cross : self- and cross-attention, per block.
    heads : attention heads per block.

    Returns
    -------
    h : (B, n, D)  residual stream after the last block.
    caches : with the new places filled.
    added : per block, what each sub-block adds to the residual stream, (B, n, D), by the names of `Record`. What is
        not used of it is not computed: the compiler removes it.
    """
    room, n = caches[0].keys.shape[2], tokens.shape[1]
    place = start + jnp.arange(n)
    position = jnp.maximum(place - pad[:, None], 0)
    h = parameters["embed_tokens"]["embedding"][tokens] + parameters["embed_positions"]["embedding"][position]
    earlier = jnp.arange(room)
    visible = (earlier <= place[:, None]) & (earlier >= pad[:, None, None])
    # A padded place sees itself: an empty row would give NaN, which spreads.
    visible = visible | (earlier == place[:, None])
    kept, added = [], []
    for p, cache, kv in zip(layers, caches, cross, strict=True):
        attention, y = p["self_attn"], blocks.layer_norm(p["self_attn_layer_norm"], h)
        new = _keys_values(attention, y, heads)
        cache = KeysValues(
            jax.lax.dynamic_update_slice_in_dim(cache.keys, new.keys, start, axis=2),
            jax.lax.dynamic_update_slice_in_dim(cache.values, new.values, start, axis=2),
        )
        own = h + _attend(attention, y, cache, visible, heads)
        y = blocks.layer_norm(p["encoder_attn_layer_norm"], own)
        crossed = own + _attend(p["encoder_attn"], y, kv, None, heads)
        out = blocks.mlp(p, crossed)
        added.append({"self_attention": own - h, "cross_attention": crossed - own, "mlp": out - crossed})
        h = out
        kept.append(cache)
    return h, kept, added


def _keys_values(parameters: Parameters, x: Float[Array, "batch n width"], heads: int) -> KeysValues:
    k, v = (blocks.split_heads(blocks.linear(parameters[name], x), heads) for name in ("k_proj", "v_proj"))
    return KeysValues(jnp.swapaxes(k, 1, 2), jnp.swapaxes(v, 1, 2))


def _attend(
    parameters: Parameters,
    y: Float[Array, "batch n width"],
    kv: KeysValues,
    visible: Bool[Array, "batch n positions"] | None,
    heads: int,
) -> Float[Array, "batch n width"]:
    q = jnp.swapaxes(blocks.queries(parameters, y, heads), 1, 2)
    scores = jnp.einsum("bhni,bhti->bhnt", q, kv.keys, precision=blocks.precision(q.dtype))
    if visible is not None:
        scores = jnp.where(visible[:, None], scores, -jnp.inf)
    mixed = jnp.einsum("bhnt,bhti->bhni", blocks.softmax(scores), kv.values, precision=blocks.precision(q.dtype))
    return blocks.linear(parameters["out_proj"], jnp.swapaxes(mixed, 1, 2).reshape(y.shape))
