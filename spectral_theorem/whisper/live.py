"""Take decoder blocks apart at the newest tokens of a decoding that goes on, from its own caches.

The same factors as `sensitivity.token_factors` gives of a finished transcript, at a cost that does not grow with it.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from .blocks import Parameters
from .cached import KeysValues
from .tokenfactors import TokenFactors, block_factors


@jax.jit
def crossings(cross: list[KeysValues]) -> list[tuple[Array, ...]]:
    """Return cross-attention's keys and values of every block as `block_factors` takes them, once per clip."""
    return [
        (kv.keys[0], jnp.swapaxes(v, 0, 1), v, jnp.swapaxes(v, 1, 2)) for kv in cross for v in [kv.values[0]]
    ]  # apart from their use, for the reason that `sensitivity` gives


def newest_factors(
    parameters: Parameters,
    x: Float[Array, "T width"],
    places: Int[Array, " T"],
    cache: KeysValues,
    crossing: tuple[Array, ...],
) -> tuple[Float[Array, "T width"], TokenFactors]:
    """Run one block at T places of a sequence whose keys and values are known, and return its factors there.

    Parameters
    ----------
    parameters : of the block; with transposed copies of kernels or without.
    x : (T, D)  residual stream before it at the places.
    places : (T,)  in the sequence; later ones see earlier ones.
    cache : self-attention's keys and values, one row, filled up to the last place.
    crossing : of the block, from `crossings`.

    Returns
    -------
    x : after the block. factors : of the block, T tokens.
    """
    past: tuple[Any, ...] = (jnp.swapaxes(cache.keys[0], 0, 1), jnp.swapaxes(cache.values[0], 0, 1), places)
    x, found = block_factors(parameters, x, jnp.arange(x.shape[0]), crossing, past, few=True)
    return x, dataclasses.replace(found, parameters=parameters)
