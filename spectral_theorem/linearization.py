r"""From layer functions `f(h, c) -> h'` to a chain of Jacobians, dense or matrix-free.

`linearize` forms every :math:`W_l` and :math:`G_l`; `operators` keeps them as linear maps, for
contexts too large to write :math:`G_l` down.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.flatten_util import ravel_pytree
from jax.tree_util import Partial

from .operatorchain import OperatorChain, linear_maps, stacked
from .types import LayerChain, _checked_array, refuse

DENSE_CONTEXT_LIMIT = 10_000
_TANGENTS = 256  # context directions differentiated at once


def layers_of(parts: Any, call: Any, state: Any) -> tuple[list[Partial], Any]:
    r"""Make layers for `linearize` and `operators` from modules, and from a state of any shape.

    .. math:: h_l = \mathrm{vec}\,f(p_l, \mathrm{vec}^{-1} h_{l-1}, c)

    Parameters
    ----------
    parts : one pytree per layer, such as a Flax NNX module, parameters, or (cell, number of the step).
    call : function `(part, state, context) -> state`, the same for all layers.
    state : first state: an array of any shape, or a pytree of them, of one dtype.

    Returns
    -------
    layers : functions `f(h, c) -> h'` on flat states.
    h : (D,) the first state, its leaves one after the other in row-major order.

    Raises
    ------
    InputError
        No parts, a call that is no function, a state that is empty or of several dtypes.

    Notes
    -----
    Weights are arguments of the layers, not constants inside: parts of equal structure and shapes share a compilation.
    What a module changes in itself while it is called is forgotten, and dropout must be off.

    References
    ----------
    docs/guides/your_layers.md.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> weights = [2.0 * jnp.eye(4), 3.0 * jnp.eye(4)]
    >>> call = lambda w, rows, c: (w @ rows.ravel()).reshape(rows.shape) + c
    >>> layers, h = layers_of(weights, call, jnp.ones((2, 2)))
    >>> chain = linearize(layers, h, jnp.ones(2))
    >>> chain.propagators[:, 0, 0].tolist(), chain.injections[0].tolist()
    ([2.0, 3.0], [[1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [0.0, 1.0]])
    """
    if not isinstance(parts, Sequence) or not parts:
        refuse(f"parts of type {type(parts).__name__}, or none", "a sequence of at least one", "[block]")
    if not callable(call):
        refuse(f"call of type {type(call).__name__}", "a function (part, state, context) -> state", "call=apply")
    leaves = jax.tree.leaves(state)
    dtypes = sorted({str(jnp.result_type(leaf)) for leaf in leaves})
    if len(dtypes) != 1:
        refuse(
            f"a state in {', '.join(dtypes) or 'no dtype: it is empty'}", "arrays of one dtype", "state=jnp.zeros(8)"
        )
    flat, restored = ravel_pytree(state)
    way = _Way(call, restored)
    return [Partial(_flat, way, part) for part in parts], flat


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class _Way:
    """Hold what all layers share where arrays are expected, so that it shapes what is compiled."""

    call: Any
    restored: Any


def _flat(way: _Way, part: Any, h: Any, c: Any) -> Any:
    out = way.call(part, way.restored(h), c)
    return ravel_pytree(out)[0]


def linearize(layers: Any, state: Any, context: Any, *, initial: Any = None) -> LayerChain:
    r"""Run a stack of layers and take the Jacobians of each at its own input.

    .. math:: W_l = \partial h_l/\partial h_{l-1},\qquad G_l = \partial f_l/\partial c

    Parameters
    ----------
    layers : sequence of functions `f(h, c) -> h'`, with h and h' of shape (D,).
    state : (D,)
        First state :math:`h_0`, independent of the context. None when `initial` is given.
    context : array of any shape
        Held as C numbers in row-major order.
    initial : function `c -> h_0`, optional
        First state as a function of the context; its Jacobian becomes `LayerChain.initial`.

    Returns
    -------
    LayerChain
        propagators (L, D, D), injections (L, D, C), initial (D, C) or None.

    Raises
    ------
    InputError
        An empty or non-sequence `layers`, an entry that is not callable, an output whose shape or
        dtype is not the state's, dtypes other than float32/float64, non-finite activations (the
        layer is named, counted from 1), or C > 10,000.

    Notes
    -----
    By `jax.jacfwd`: D + C tangents per layer, the latter in blocks so that memory stays near the
    result's. Layers that are `jax.tree_util.Partial` of one function, with arrays of equal shapes,
    share one compilation.

    References
    ----------
    docs/notation.md; arXiv 2604.08591, section 2.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> layer = lambda h, c: 2.0 * h + jnp.stack([c[0], c[1] * h[0]])
    >>> chain = linearize([layer, layer], jnp.ones(2), jnp.ones(2))
    >>> chain.propagators[0].tolist()
    [[2.0, 0.0], [1.0, 2.0]]
    >>> chain.injections[1].tolist()
    [[1.0, 0.0], [0.0, 3.0]]
    """
    functions = _checked_layers(layers)
    c = _checked_context(context)
    h, first = _first_state(state, c, initial)
    depth, width, size = len(functions), h.shape[0], math.prod(c.shape)
    if size > DENSE_CONTEXT_LIMIT:
        gigabytes = depth * width * size * c.dtype.itemsize / 1e9
        refuse(
            f"a context of C={size} numbers, whose dense injections ({depth}, {width}, {size}) take {gigabytes:.3g} GB",
            f"C <= {DENSE_CONTEXT_LIMIT}",
            "st.operators(layers, state, context)",
        )
    propagators, injections = [], []
    for number, layer in enumerate(functions, start=1):
        _check_output(layer, h, c, f"layer {number}")
        h, w, g = _dense_layer(layer, h, c)
        _check_finite(f"layer {number}", h, w, g)
        propagators.append(w)
        injections.append(g)
    start = None if first is None else _context_jacobian(Partial(_ignoring_state, first), h, c)
    return LayerChain(jnp.stack(propagators), jnp.stack(injections), start)


def operators(layers: Any, state: Any, context: Any) -> OperatorChain:
    r"""Run a stack of layers and keep its Jacobians as linear maps, for large contexts.

    .. math:: x \mapsto W_l x,\quad y \mapsto W_l^\top y,\quad x \mapsto G_l x,\quad y \mapsto G_l^\top y

    Parameters
    ----------
    layers, state, context : as for `linearize`; no limit on C.

    Returns
    -------
    OperatorChain

    Raises
    ------
    InputError
        As for `linearize`, the limit on C apart.

    Notes
    -----
    Each layer is linearised once (`jax.linearize`); products cost no further primal work. What
    the linearisation needs is stored: activations of the order of the context per layer.

    References
    ----------
    docs/notation.md.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> layer = lambda h, c: 2.0 * h + jnp.stack([c[0], c[1] * h[0]])
    >>> chain = operators([layer, layer], jnp.ones(2), jnp.ones(2))
    >>> chain.injection_rmatvec(jnp.ones(2)).tolist()
    [[1.0, 1.0], [1.0, 3.0]]
    """
    functions = _checked_layers(layers)
    c = _checked_context(context)
    h, _ = _first_state(state, c, None)
    states, propagator_maps, injection_maps = [h], [], []
    for number, layer in enumerate(functions, start=1):
        _check_output(layer, h, c, f"layer {number}")
        h, push_state, push_context = linear_maps(layer, h, c)
        _check_finite(f"layer {number}", h)
        states.append(h)
        propagator_maps.append(push_state)
        injection_maps.append(push_context)
    return OperatorChain(
        states=jnp.stack(states),
        context=c,
        propagator_maps=stacked(propagator_maps),
        injection_maps=tuple(injection_maps),
    )


@jax.jit
def _dense_layer(layer: Any, h: Any, c: Any) -> tuple[Any, Any, Any]:
    """Return the layer's output and its two Jacobians."""
    return layer(h, c), jax.jacfwd(layer)(h, c), _context_jacobian(layer, h, c)


@jax.jit
def _context_jacobian(layer: Any, h: Any, c: Any) -> Any:
    """Return the Jacobian (D, C) with respect to the flattened context, a block of columns at a time."""
    size = math.prod(c.shape)
    width = min(size, _TANGENTS)
    blocks = math.ceil(size / width)
    flat = jnp.pad(c.ravel(), (0, blocks * width - size))

    def columns(start: Any) -> Any:
        def along(t: Any) -> Any:
            here = jax.lax.dynamic_slice(flat, (start,), (width,))
            moved = jax.lax.dynamic_update_slice(flat, here + t, (start,))
            return layer(h, moved[:size].reshape(c.shape))

        return jax.jacfwd(along)(jnp.zeros(width, c.dtype))

    found = jax.lax.map(columns, width * jnp.arange(blocks))
    return jnp.moveaxis(found, 0, 1).reshape(found.shape[1], -1)[:, :size]


def _ignoring_state(function: Any, _: Any, c: Any) -> Any:
    return function(c)


def _partial(function: Any) -> Any:
    """Make a function a pytree, so that it can be an argument of a jitted one."""
    return function if isinstance(function, Partial) else Partial(function)


def _checked_layers(layers: Any) -> tuple[Any, ...]:
    """Refuse anything but a non-empty sequence of functions."""
    if not isinstance(layers, Sequence):
        refuse(f"layers of type {type(layers).__name__}", "a sequence of functions f(h, c) -> h'", "[layer]")
    if not layers:
        refuse("no layers", "at least one function f(h, c) -> h'", "[layer]")
    for number, layer in enumerate(layers, start=1):
        if not callable(layer):
            refuse(f"layer {number} of type {type(layer).__name__}", "a function f(h, c) -> h'", "[layer]")
    return tuple(_partial(layer) for layer in layers)


def _checked(name: str, value: Any, rank: int, symbol: str) -> Any:
    # constants inside someone's jit are looked at now, not traced
    with jax.ensure_compile_time_eval():
        return _checked_array(name, value, rank, symbol)


def _checked_context(context: Any) -> Any:
    return _checked("context", context, np.ndim(context), "an array of any shape")


def _first_state(state: Any, context: Any, initial: Any) -> tuple[Any, Any]:
    """Return h_0 and, when it depends on the context, the function that gives it."""
    function = None
    if initial is not None:
        if state is not None:
            refuse("both state and initial", "one source of the first state", "linearize(layers, None, c, initial=f)")
        if not callable(initial):
            refuse(f"initial of type {type(initial).__name__}", "a function c -> h_0", "initial=lambda c: c[:4]")
        function = _partial(initial)
        state = function(context)
    h = _checked("state", state, 1, "(D,)")
    if h.dtype != context.dtype:
        refuse(f"state in {h.dtype} beside context in {context.dtype}", "one dtype", f"context.astype('{h.dtype}')")
    return h, function


def _check_output(layer: Any, h: Any, c: Any, name: str) -> None:
    """Refuse a layer whose output is not a state, before anything is computed."""
    out = jax.eval_shape(layer, h, c)
    if not isinstance(out, jax.ShapeDtypeStruct):
        refuse(f"{name} returning a {type(out).__name__}", f"one array of shape {tuple(h.shape)}", "return h_new")
    if out.shape != h.shape:
        refuse(f"{name} with output of shape {out.shape}", f"the state's shape {tuple(h.shape)}", "return h + update")
    if out.dtype != h.dtype:
        refuse(f"{name} with output in {out.dtype}", f"the state's dtype {h.dtype}", f"h_new.astype('{h.dtype}')")


def _check_finite(name: str, h: Any, *jacobians: Any) -> None:
    """Refuse a layer at which the run leaves the finite numbers; inside jit nothing is known yet."""
    if isinstance(h, Tracer):
        return
    if not bool(jnp.isfinite(h).all()):
        refuse(f"non-finite activations after {name}", "finite numbers", "a smaller state or context")
    if not all(bool(jnp.isfinite(j).all()) for j in jacobians):
        refuse(f"a non-finite Jacobian at {name}", "a differentiable layer", "jnp.where with safe arguments")
