"""Arrays with a logarithmic scale, so that products of 10,000 layers neither overflow nor vanish.

A `Scaled` stands for `value * exp(log)`, with `value` of about unit size and any pytree of arrays as
`value` (all leaves share the scale). The normaliser is a constant for differentiation, which
leaves gradients exact because the product does not depend on it.

Logs of normalisers are whole numbers, so that adding up ten thousand of them rounds nothing: at a
gain of 3 per layer the sum is 11,000, and rounding it at every step cost ten digits.
"""

from typing import Any

import jax
import jax.numpy as jnp

from .types import container


@container
class Scaled:
    """Hold `value * exp(log)`; a zero value has log = -inf."""

    value: Any
    log: Any


def log_size(tree: Any) -> Any:
    """Return the logarithm of the largest |entry| over all leaves to the nearest whole number, or -inf.

    A constant under differentiation.
    """
    peaks = [jnp.max(jnp.abs(leaf), initial=0.0) for leaf in jax.tree.leaves(tree)]
    return jnp.round(jnp.log(jax.lax.stop_gradient(jnp.stack(peaks).max())))


def _finite(log: Any) -> Any:
    """Replace -inf by 0: a shift that is harmless because the value beside it is zero."""
    return jnp.where(jnp.isneginf(log), 0.0, log)


def scaled(tree: Any, log: Any = 0.0) -> Scaled:
    """Normalise `tree * exp(log)` to about unit size, between exp(-1/2) and exp(1/2).

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> x = scaled(jnp.asarray([0.0, 4.0]))
    >>> float(x.log), round(float(x.value[1]), 4)   # 4 = 1.4715 e
    (1.0, 1.4715)
    """
    size = log_size(tree)
    shrink = jnp.exp(-_finite(size))
    return Scaled(value=jax.tree.map(lambda leaf: leaf * shrink, tree), log=size + log)


def meet(a: Scaled, b: Scaled) -> tuple[Any, Any, Any]:
    """Bring two values to one scale: return (a's tree, b's tree, log), both at most of about unit size."""
    log = jnp.maximum(a.log, b.log)
    down = lambda x: jnp.exp(x.log - _finite(log))
    shrink = lambda x: jax.tree.map(lambda leaf: leaf * down(x), x.value)
    return shrink(a), shrink(b), log


def subtract(a: Scaled, b: Scaled) -> Scaled:
    """Return a - b."""
    x, y, log = meet(a, b)
    return scaled(jax.tree.map(jnp.subtract, x, y), log)


def _above_zero(x: Any) -> Any:
    """Lift x to the least positive number, so that roots and logarithms of 0 have finite gradients.

    Not `where(x == 0, 1, x)` beside a second `x == 0`: a compiler may evaluate x anew for each, round
    it to 0 in one place only, and the 1 becomes the answer.
    """
    return jnp.maximum(x, jnp.finfo(x.dtype).tiny)


def norm(x: Any, axis: Any = None) -> Any:
    """Return the Euclidean (Frobenius) norm over `axis`, with gradient 0 instead of NaN at 0."""
    square = jnp.sum(x * x, axis=axis)
    return jnp.where(square == 0, 0.0, jnp.sqrt(_above_zero(square)))


def log_norm(x: Scaled) -> Any:
    """Return the logarithm of the Frobenius norm of a scaled array; -inf for zero."""
    return log_of(norm(x.value)) + x.log


def log_of(x: Any) -> Any:
    """Return log x for x >= 0 with log 0 = -inf and no NaN in the gradient there."""
    return jnp.where(x > 0, jnp.log(_above_zero(x)), jnp.where(x <= 0, -jnp.inf, jnp.nan))


def linear(x: Scaled) -> Any:
    """Return the plain array; entries may overflow to inf or underflow to 0."""
    return jax.tree.map(lambda leaf: jnp.where(leaf == 0, leaf, leaf * jnp.exp(x.log)), x.value)
