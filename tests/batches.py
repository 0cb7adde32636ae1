"""Verify many chains with few compilations: every test that checks whole chains goes through `verified`.

A compilation of `verify` costs seconds per shape and element type, a chain costs milliseconds. So the
suite shares one list of shapes, and smaller batches are filled up by repetition.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import makers
import numpy as np

import spectral_theorem as st
from spectral_theorem.types import LayerChain
from spectral_theorem.verification import CLAIMS

# (L, D, C, with initial): (chains per call, chains at once)
CALLS = {
    (1, 3, 2, False): (64, 64),
    (1, 3, 2, True): (256, 64),
    (2, 2, 2, False): (512, 64),
    (4, 1, 2, False): (512, 64),
    (7, 2, 2, False): (512, 64),
    (8, 4, 3, False): (512, 64),
    (5, 6, 4, True): (256, 64),
    (12, 16, 30, False): (128, 32),
    (32, 3, 1, False): (256, 64),
    (64, 64, 48, False): (16, 8),
    (6, 3, 0, False): (128, 64),
    (10_000, 2, 2, False): (4, 4),
}


def batch(w: Any, g: Any = None, g0: Any = None, dtype: Any = np.float64) -> LayerChain:
    """Make a batched LayerChain of arrays with a leading batch axis, without the checks on a user's input."""
    one = LayerChain(*(None if x is None else np.ones(np.shape(x)[1:]) for x in (w, g, g0)))
    leaves = [jnp.asarray(x, dtype) for x in (w, g, g0) if x is not None]
    return jax.tree.unflatten(jax.tree.structure(one), leaves)


def stack(chains: Any) -> LayerChain:
    """Make one batch of a list of chains of one shape."""
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *chains)


def size(chains: Any) -> int:
    return chains.propagators.shape[0]


def verified(chains: Any, thresholds: Any = None) -> Any:
    """Verify a batch by `st.verify_many`; every leaf of the answer is a NumPy array with the batch in front."""
    n, (_, L, D, _) = size(chains), chains.propagators.shape
    C = 0 if chains.injections is None else chains.injections.shape[-1]
    per_call, at_once = CALLS[L, D, C, chains.initial is not None]
    answers = []
    for start in range(0, n, per_call):
        index = np.minimum(np.arange(start, start + per_call), n - 1)
        part = jax.tree.map(lambda x: x[index], chains)
        found = st.verify_many(part, thresholds, batch_size=at_once)
        answers.append(jax.tree.map(np.asarray, found))
    return jax.tree.map(lambda *leaves: np.concatenate(leaves)[:n], *answers)


def codes(found: Any) -> dict[str, Any]:
    """Return claim -> verdict codes (n,)."""
    return {name: found.claims.code[:, i] for i, name in enumerate(CLAIMS)}


def take(found: Any, i: int) -> Any:
    """Return what was found of chain i alone."""
    return jax.tree.map(lambda x: x[i], found)


def block(seed: int, n: int, shape: tuple[int, int, int, bool], dtype: Any = np.float64, families: Any = None) -> Any:
    """Return (chains, families' names) of n chains of all families."""
    w, g, g0, names = makers.block(seed, n, *shape, families=families)
    return batch(w, g, g0, dtype), names


@functools.cache
def examined(shape: tuple[int, int, int, bool], seed: int = 1, n: int = 60) -> tuple[Any, Any, Any]:
    """Return (chains, what `verify` finds, families): one small block per shape that many tests look at."""
    chains, names = block(seed, n, shape)
    return chains, verified(chains), names
