r"""Climb a target over a family of chains: many restarts at once, on every device, each from the prior.

One round is a pure function of a key, so rounds can be run again, in any order, on any number of devices.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from .manifolds import Family, Scalars, build, draw
from .targets import Target

RATE = 0.08  # of Adam, falling to 0 along a cosine


class Round(NamedTuple):
    """Hold what one round saw.

    Attributes
    ----------
    best : (N,) largest log of left over right of each statement where it applied; -inf where it never did.
    numbers : per statement the point where that was, leading axis N.
    excess : (N,) most rounding allowances by which a statement failed; above 1 it failed in floating point.
    suspects : per statement the point where that was, leading axis N.
    applied : (N,) on how many evaluated chains each statement applied.
    evaluated : () chains on which every statement was evaluated, each with its own numbers.
    """

    best: Any
    numbers: Any
    excess: Any
    suspects: Any
    applied: Any
    evaluated: Any


def climb(
    key: Any,
    which: int,
    *,
    target: Target,
    family: Family,
    restarts: int,
    steps: int,
    scalars: Scalars | None = None,
) -> Round:
    """Run one round: draw restarts, climb one statement by Adam, and watch all of them on the way.

    Parameters
    ----------
    key : PRNG key. which : place of the statement to climb in `target.names`; another one compiles nothing anew.
    target, family : what to break, and over which chains.
    restarts, steps : chains side by side, and gradient steps of each.
    scalars : of a family that holds them; other values compile nothing anew.

    Returns
    -------
    Round, on the host.

    Notes
    -----
    Restarts are sharded over all devices. A gradient that is not finite counts as 0. Cost: `restarts * steps`
    evaluations with a gradient.
    """
    devices = jax.devices()
    width = max(restarts // len(devices), 1) * len(devices)
    keys = jax.device_put(
        jax.random.split(key, width), NamedSharding(Mesh(np.asarray(devices), ("restarts",)), PartitionSpec("restarts"))
    )
    held = None if scalars is None else Scalars(*(jnp.asarray(x, float) for x in scalars))
    return jax.device_get(_round(keys, jnp.asarray(which), held, target, family, steps))


@functools.partial(jax.jit, static_argnames=("target", "family", "steps"))
def _round(keys: Any, which: Any, held: Scalars | None, target: Target, family: Family, steps: int) -> Round:
    count = len(target.names)
    optimiser = optax.adam(optax.cosine_decay_schedule(RATE, steps))

    def objective(numbers: Any) -> Any:
        score = target.score(*build(numbers, family))
        return score.climb[which], score

    def many(numbers: Any) -> Any:
        (_, scores), slopes = jax.vmap(jax.value_and_grad(objective, has_aux=True))(numbers)
        return scores, jax.tree.map(lambda g: jnp.where(jnp.isfinite(g), -g, 0.0), slopes)

    def keep(best: Any, held: Any, values: Any, numbers: Any) -> tuple[Any, Any]:
        """Take the better of what is held and the best of this step, per statement."""
        place = jnp.argmax(values, axis=0)
        top = jnp.take_along_axis(values, place[None], axis=0)[0]
        better = top > best
        pick = lambda old, new: jnp.where(better.reshape(-1, *[1] * (old.ndim - 1)), new[place], old)
        return jnp.where(better, top, best), jax.tree.map(pick, held, numbers)

    def step(carry: Any, _: Any) -> tuple[Any, None]:
        numbers, state, best, held, excess, suspects, applied = carry
        scores, slopes = many(numbers)
        masked = lambda x: jnp.where(scores.applies & ~jnp.isnan(x), x, -jnp.inf)
        best, held = keep(best, held, masked(scores.ratio), numbers)
        excess, suspects = keep(excess, suspects, masked(scores.excess), numbers)
        applied = applied + jnp.sum(scores.applies, axis=0)
        updates, state = jax.vmap(optimiser.update)(slopes, state)
        return (optax.apply_updates(numbers, updates), state, best, held, excess, suspects, applied), None

    numbers = jax.vmap(lambda k: draw(k, family, held))(keys)
    empty = jax.tree.map(lambda x: jnp.zeros((count, *x.shape[1:]), x.dtype), numbers)
    low = jnp.full((count,), -jnp.inf)
    start = (numbers, jax.vmap(optimiser.init)(numbers), low, empty, low, empty, jnp.zeros((count,), jnp.int64))
    (_, _, best, held, excess, suspects, applied), _ = jax.lax.scan(step, start, None, length=steps)
    return Round(best, held, excess, suspects, applied, keys.shape[0] * steps)
