r"""What one unit of injection may become by the last layer, for every injection at once, from scalars only.

An injection that enters before layer k+1 is split by v_{k+1}. Nothing here looks at matrices: the
recursions take xi, and the upper ends of |kappa| and of s. Proofs: docs/theory/bounds.md.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from .scaled import log_of

_BLOCK = 2048  # injections carried side by side


class Factors(NamedTuple):
    """Hold logarithms in units of the gain S_{L,k}, (n,) each, or (n, n) with one row per depth.

    Attributes
    ----------
    along : size of the deviation from the dominant path of what enters along v_{k+1}.
    across : size of what enters across v_{k+1}; all of it is deviation.
    carried : size of what enters along v_{k+1}, path and deviation together.
    telescoped : the same deviation for both parts, with norms only and no cap.
    along_path, along_bulk, across_path, across_bulk : both deviations by component, along the last u and off it.
    """

    along: Any
    across: Any
    carried: Any
    telescoped: Any
    along_path: Any
    along_bulk: Any
    across_path: Any
    across_bulk: Any


def transfer_factors(xi: Any, kappa: Any, misalignment: Any) -> Factors:
    """Carry every injection to the last layer; xi (n,), kappa and misalignment (n-1,), entry k before layer k.

    Notes
    -----
    O(n^2) work and O(n) memory. A long chain goes block by block, so that the layers before an injection are skipped.
    Differentiable: the skipped branches are `cond`, not `fori_loop`.
    """
    n = xi.shape[0]
    size = min(n, _BLOCK)
    blocks = math.ceil(n / size)
    pad = blocks * size - n  # in front, where nothing that counts comes from
    split = lambda x: jnp.pad(x, (blocks * size - x.shape[0], 0)).reshape(blocks, size)
    index = jnp.arange(blocks * size).reshape(blocks, size)
    layers = (index, split(kappa), split(misalignment), split(xi))

    def through(state: Any, entries: Any, several: Any) -> Any:
        return jax.lax.scan(lambda now, layer: (_pass(now, entries, layer), None), state, several)[0]

    def carry(block: Any) -> Factors:
        entries, start = block

        def meet(state: Any, several: Any) -> tuple[Any, None]:
            met = several[0][0] >= entries[0]
            return jax.lax.cond(met, lambda now: through(now, entries, several), lambda now: now, state), None

        return _read(jax.lax.scan(meet, _start(start), layers)[0])

    if blocks == 1:
        return _read(through(_start(xi), index[0], jax.tree.map(lambda x: x[0], layers)))
    return jax.tree.map(lambda x: x.reshape(-1)[pad:], jax.lax.map(carry, (index, split(xi))))


def transfer_factors_by_depth(xi: Any, kappa: Any, misalignment: Any) -> Factors:
    """Return the factors at every depth, (n, n): row = depth; entries beyond the depth mean nothing."""
    entries = jnp.arange(xi.shape[0])
    layers = (entries[1:], kappa, misalignment, xi[1:])

    def step(state: Any, layer: Any) -> tuple[Any, Factors]:
        state = _pass(state, entries, layer)
        return state, _read(state)

    start = _start(xi)
    _, history = jax.lax.scan(step, start, layers)
    return jax.tree.map(lambda first, rest: jnp.concatenate([first[None], rest]), _read(start), history)


def _start(xi: Any) -> Any:
    """Return the states of units that have just passed the layer they entered before."""
    zero, one = jnp.zeros_like(xi), jnp.ones_like(xi)
    # (m, p, q, n, log): path beside deviation; (p, q, n, log): all of it; (steps, path)
    return (one, zero, zero, zero, zero), (zero, zero, xi, xi, zero), (one, zero, one, zero), (xi, one)


def _pass(state: Any, entries: Any, layer: Any) -> Any:
    """Take every entry that has entered already through one more layer: its number, kappa and s before it, its xi."""
    number, k, s, x = layer
    along, across, carried, (steps, path) = state
    moved = (
        _deviate(along, k, s, x),
        _deviate(across, k, s, x),
        whole(carried, k, s, x),
        (steps + x * s * path, k * path),
    )
    return jax.tree.map(lambda a, b: jnp.where(entries < number, a, b), moved, state)


def _read(state: Any) -> Factors:
    along, across, carried, (steps, _) = state
    components = [log_of(part[i]) + part[4] for part in (along, across) for i in (1, 2)]
    return Factors(
        log_of(along[3]) + along[4],
        log_of(across[3]) + across[4],
        log_of(carried[2]) + carried[3],
        log_of(steps),
        *components,
    )


def _deviate(state: Any, k: Any, s: Any, x: Any) -> Any:
    """One layer of the transfer recursion, renormalised so that no factor under- or overflows."""
    m, p, q, n, log = state
    p_next = jnp.minimum(k * p + s * q, n)
    q_next = x * (jnp.minimum(s * p + q, n) + m * s)
    n_next = jnp.minimum(jnp.hypot(p_next, q_next), n + x * m * s)
    p_next, q_next, m_next = jnp.minimum(p_next, n_next), jnp.minimum(q_next, n_next), k * m
    shrink, size = _unit(jnp.maximum(m_next, n_next))
    return m_next * shrink, p_next * shrink, q_next * shrink, n_next * shrink, log + size


def whole(state: Any, k: Any, s: Any, x: Any) -> Any:
    """Pass one layer in the propagator form, (p, q, n, log): no path is set apart, and the whole never grows."""
    p, q, n, log = state
    p_next = jnp.minimum(k * p + s * q, n)
    q_next = x * jnp.minimum(s * p + q, n)
    n_next = jnp.minimum(n, jnp.hypot(p_next, q_next))
    shrink, size = _unit(n_next)
    return p_next * shrink, q_next * shrink, n_next * shrink, log + size


def _unit(size: Any) -> tuple[Any, Any]:
    """Return what brings `size` to 1, and its logarithm; a zero stays."""
    unit = jnp.where(size > 0, size, 1.0)
    return 1.0 / unit, jnp.log(unit)
