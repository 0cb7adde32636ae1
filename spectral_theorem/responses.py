r"""What layers really do with a perturbation of any size: no Jacobian, the trajectory itself.

A perturbation of the state or of the context is carried through the layers as functions. Whether the answers line up,
whether they shrink, and up to which size the Jacobian speaks for them, is what "attractor" means literally.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from .types import refuse


@dataclasses.dataclass(frozen=True)
class Responses:
    r"""Hold the answers of L layers to m perturbations of S sizes; :math:`\Delta_l` is the change after layer l.

    Attributes
    ----------
    sizes : (S,)  as asked for.
    reach : (m,)  norm of a perturbation of size 1, relative to the norm of what is perturbed; 1 for unit directions.
    cosine : (S, m, n)  :math:`|a_i^\top\Delta_L|/\|\Delta_L\|` for the n unit vectors asked about.
    log_size : (S, m, L+1)  :math:`\log\|\Delta_l\|`; -inf where nothing changed.
    log_relative : (S, m, L+1)  the same relative to the norm of the unperturbed state there.
    agreement : (S,)  mean :math:`|\cos|` between answers :math:`\Delta_L` to different directions.
    dimensions : (S,)  participation ratio of the m answers as unit vectors: 1 when all lie on one line, m when
        none share any.
    nonlinearity : (S, m)  :math:`\|\Delta_L-J\delta\|/\|\Delta_L\|`, J the exact derivative.
    """

    sizes: np.ndarray
    reach: Float[np.ndarray, " m"]
    cosine: Float[np.ndarray, "sizes m n"]
    log_size: Float[np.ndarray, "sizes m L1"]
    log_relative: Float[np.ndarray, "sizes m L1"]
    agreement: Float[np.ndarray, " sizes"]
    dimensions: Float[np.ndarray, " sizes"]
    nonlinearity: Float[np.ndarray, "sizes m"]


def responses(
    layers: Sequence[Any],
    state: Any,
    context: Any,
    *,
    directions: Any,
    sizes: Sequence[float],
    axes: Any,
    of_context: bool = False,
    unit: bool = True,
) -> Responses:
    r"""Perturb the first state, or the context, and follow the trajectory through all layers.

    .. math:: \Delta_l = h_l(h_0+\delta, c) - h_l(h_0, c),\qquad \|\delta\| = \varepsilon\|h_0\|

    Parameters
    ----------
    layers : functions (h, c) -> h', pytrees such as `jax.tree_util.Partial`, so that alike layers compile once.
    state : (D,)  h_0. context : c, any shape.
    directions : (m, *shape of what is perturbed).
    sizes : the :math:`\varepsilon`, positive.
    axes : (n, D)  unit vectors with which answers are compared, such as :math:`u_L`.
    of_context : perturb the context instead of the state.
    unit : scale the directions to the norm of what is perturbed; else they are taken as they are, and a size is the
        part of the way that is gone.

    Returns
    -------
    Responses

    Raises
    ------
    InputError
        Sizes that are not positive, or directions of another shape.

    Notes
    -----
    S m runs of all layers; contexts one after the other, which bounds memory.

    References
    ----------
    docs/theory/attractor.md.

    Examples
    --------
    >>> layer = jax.tree_util.Partial(lambda w, h, c: w @ h, jnp.diag(jnp.asarray([2.0, 0.1])))
    >>> found = responses([layer] * 3, jnp.ones(2), jnp.zeros(1), directions=jnp.ones((2, 2)) + jnp.eye(2),
    ...                   sizes=[0.1], axes=jnp.eye(2))
    >>> bool((found.cosine[0, :, 0] > 0.999).all()), bool(found.nonlinearity.max() < 1e-5)
    (True, True)
    """
    base = context if of_context else state
    directions = jnp.asarray(directions, base.dtype)
    if directions.shape[1:] != base.shape:
        refuse(f"directions of shape {tuple(directions.shape)}", f"(m, *{tuple(base.shape)})", "one row per direction")
    if not all(np.isfinite(size) and size > 0 for size in sizes) or not len(sizes):
        refuse(f"sizes {list(sizes)}", "positive numbers", "sizes=[1e-3, 0.1]")
    length = lambda x: jnp.sqrt(jnp.sum(x.reshape(x.shape[0], -1) ** 2, axis=1)).reshape(-1, *[1] * (x.ndim - 1))
    whole = jnp.linalg.norm(base.ravel())
    if unit:
        directions = directions / length(directions) * whole
    reach = np.asarray(length(directions)).ravel() / float(whole)
    still = _trajectory(layers, state[None], context[None] if of_context else context, of_context)
    tangent = _tangent(layers, still[:, 0], state, context, directions, of_context)
    found: dict[str, list[Any]] = {field.name: [] for field in dataclasses.fields(Responses)[2:]}
    for size in sizes:
        moved = base + size * directions
        h = jnp.broadcast_to(state, (len(directions), *state.shape)) if of_context else moved
        change = _trajectory(layers, h, moved if of_context else context, of_context) - still
        for name, value in _described(np.asarray(change), np.asarray(still[:, 0]), np.asarray(axes)).items():
            found[name].append(value)
        error = np.linalg.norm(np.asarray(change[-1] - size * tangent), axis=-1)
        with np.errstate(divide="ignore", invalid="ignore"):
            found["nonlinearity"].append(error / np.linalg.norm(np.asarray(change[-1]), axis=-1))
    return Responses(np.asarray(sizes, float), reach, **{name: np.stack(values) for name, values in found.items()})


def _described(change: Any, still: Any, axes: Any) -> dict[str, Any]:
    """Measure the changes (L+1, m, D) of one size."""
    size = np.linalg.norm(change, axis=-1)
    with np.errstate(divide="ignore", invalid="ignore"):
        log_size = np.log(size).T
        log_relative = log_size - np.log(np.linalg.norm(still, axis=-1))
        unit = change[-1] / size[-1][:, None]  # no change has no direction: NaN, which no mean counts
    gram = unit @ unit.T
    m = len(gram)
    squares = np.sum(gram**2)
    return {
        "cosine": np.abs(unit @ axes.T),
        "log_size": log_size,
        "log_relative": log_relative,
        "agreement": np.abs(gram[~np.eye(m, dtype=bool)]).mean() if m > 1 else np.nan,
        "dimensions": m**2 / squares if squares > 0 else np.nan,
    }


def _trajectory(layers: Sequence[Any], h: Any, c: Any, many_contexts: bool) -> Any:
    """Return the states before and after every layer, (L+1, m, D), of m states or of m contexts."""
    states = [h]
    for layer in layers:
        states.append(_forward(layer, states[-1], c, many_contexts))
    return jnp.stack(states)


@functools.partial(jax.jit, static_argnames="many_contexts")
def _forward(layer: Any, h: Any, c: Any, many_contexts: bool) -> Any:
    if many_contexts:
        return jax.lax.map(lambda pair: layer(*pair), (h, c))
    return jax.vmap(lambda one: layer(one, c))(h)


def _tangent(layers: Sequence[Any], still: Any, state: Any, context: Any, directions: Any, of_context: bool) -> Any:
    """Return J delta after the last layer, (m, D), by forward mode through every layer."""
    moved = jnp.zeros((len(directions), *state.shape), state.dtype) if of_context else directions
    for layer, h in zip(layers, still[:-1], strict=True):
        moved = _push(layer, h, context, moved, directions if of_context else None)
    return moved


@jax.jit
def _push(layer: Any, h: Any, c: Any, by_state: Any, by_context: Any) -> Any:
    if by_context is None:
        return jax.vmap(jax.linearize(lambda x: layer(x, c), h)[1])(by_state)
    push = lambda pair: jax.jvp(layer, (h, c), pair)[1]
    return jax.lax.map(push, (by_state, by_context))
