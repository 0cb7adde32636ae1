r"""From layer functions `f(h, c) -> h'` to a chain of Jacobians, dense or matrix-free.

`linearize` forms every :math:`W_l` and :math:`G_l`. `operators` keeps them as linear maps at the
stored states, for contexts too large to write :math:`G_l` down; `OperatorChain.compress` then
finds a short context in which every norm and inner product of the theorem is the same.
"""

import functools
import math
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from .types import LayerChain, _checked_array, container, refuse

DENSE_CONTEXT_LIMIT = 10_000
_TANGENTS = 256  # context directions differentiated at once
_BYTES = 2**28  # aimed-at size of one block of context-sized vectors


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


def operators(layers: Any, state: Any, context: Any) -> "OperatorChain":
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
        h, push_state, push_context = _linear_maps(layer, h, c)
        _check_finite(f"layer {number}", h)
        states.append(h)
        propagator_maps.append(push_state)
        injection_maps.append(push_context)
    return OperatorChain(
        states=jnp.stack(states),
        context=c,
        propagator_maps=_stacked(propagator_maps),
        injection_maps=tuple(injection_maps),
    )


@container
class Compression:
    r"""Hold a chain on a short context, isometric to the one it was made from.

    Attributes
    ----------
    chain : LayerChain with injections :math:`B_l` (D, r), where :math:`G_l = B_l Q^\top`, :math:`Q^\top Q = I`.
    rank : number r of context directions kept.
    error : for all matrices :math:`A_l`, :math:`|\,\|\sum A_lB_l\|_F^2 - \|\sum A_lG_l\|_F^2\,|` is at
        most error times :math:`(\sum\|A_l\|\,\|G_l\|_F)^2`.
    """

    chain: LayerChain
    rank: int
    error: float


@container
class OperatorChain:
    r"""Hold the layer Jacobians of one stack as linear maps; made by `operators`.

    Parameters
    ----------
    states : (L+1, D)  the states :math:`h_0,\dots,h_L` of the run.
    context : array of any shape, C numbers.
    propagator_maps : {layer indices: linear functions :math:`x\mapsto W_lx`}, layers of one kind stacked along
        the leading axis of every array, so that a loop over layers is compiled once, not unrolled.
    injection_maps : L linear functions :math:`x\mapsto G_lx`.

    Notes
    -----
    A pytree: it can be passed to jitted functions, which then compile once for all steps of one
    decoding run. Methods that take vectors accept one vector for all layers (n,), one per layer
    (L, n), or a batch per layer (L, B, n), and return (L, m) or (L, B, m). Batches over W run in
    blocks of 128; those over G in blocks of about a quarter of a gigabyte.

    References
    ----------
    docs/notation.md.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> chain = operators([lambda h, c: h * c.sum()] * 3, jnp.ones(2), jnp.ones((2, 2)))
    >>> chain.depth, chain.width, chain.context_size
    (3, 2, 4)
    >>> chain.matvec(jnp.ones(2))[0].tolist()
    [4.0, 4.0]
    """

    states: Any
    context: Any
    propagator_maps: dict[tuple[int, ...], Any]
    injection_maps: tuple[Any, ...]

    @property
    def depth(self) -> int:
        """Number of layers L."""
        return len(self.injection_maps)

    @property
    def width(self) -> int:
        """State size D."""
        return self.states.shape[-1]

    @property
    def context_size(self) -> int:
        """Context size C."""
        return math.prod(self.context.shape)

    @property
    def dtype(self) -> Any:
        """Floating-point type of every entry."""
        return self.states.dtype

    def matvec(self, x: Any) -> Any:
        """Return W_l x_l for every layer: x (D,), (L, D) or (L, B, D)."""
        return self._propagated(x, transposed=0)

    def rmatvec(self, y: Any) -> Any:
        """Return W_l^T y_l for every layer: y (D,), (L, D) or (L, B, D)."""
        return self._propagated(y, transposed=self.width)

    def injection_matvec(self, x: Any) -> Any:
        """Return G_l x_l for every layer: x (C,), (L, C) or (L, B, C)."""
        return self._injected(x, self.context_size, transposed=0)

    def injection_rmatvec(self, y: Any) -> Any:
        """Return G_l^T y_l for every layer: y (D,), (L, D) or (L, B, D); the result has C columns."""
        return self._injected(y, self.width, transposed=self.context_size)

    def vt_g(self, v: Any) -> Any:
        r"""Return the rows :math:`v_{k+1}^\top G_k`, (L-1, C), for v (L, D): one VJP each.

        Row i pairs `v[i + 1]` with the injection of layer i + 1, `injections[i]` of a dense chain.
        """
        if tuple(v.shape) != (self.depth, self.width):
            refuse(f"v with shape {tuple(v.shape)}", f"(L, D) = ({self.depth}, {self.width})", "Triplets.v")
        rows = [
            _map_rows(self.injection_maps[i], v[i + 1][None], transposed=self.context_size, chunk=1)[0]
            for i in range(self.depth - 1)
        ]
        return jnp.stack(rows) if rows else jnp.zeros((0, self.context_size), self.dtype)

    def injection_norm(self) -> Any:
        r"""Return the exact :math:`\|G_l\|_F`, (L,), by D VJPs per layer in blocks of bounded size."""
        squares = [sum(jnp.sum(rows**2) for _, rows in self._injection_rows(i)) for i in range(self.depth)]
        return jnp.sqrt(jnp.stack(squares))

    def injection_gram(self) -> Any:
        r"""Return the exact :math:`G_lG_l^\top`, (L, D, D), by D VJPs and D JVPs per layer."""
        return jnp.stack([self._gram_column(i, [i])[0] for i in range(self.depth)])

    def injection_gram_pairs(self) -> Any:
        r"""Return all :math:`G_kG_l^\top` as (L, L, D, D): LD VJPs and L(L+1)D/2 JVPs.

        Besides one block of context-sized vectors only the result is held: L^2 D^2 numbers.
        """
        depth = self.depth
        pairs: list[list[Any]] = [[None] * depth for _ in range(depth)]
        for j in range(depth):
            for k, block in zip(range(j, depth), self._gram_column(j, list(range(j, depth))), strict=True):
                pairs[k][j], pairs[j][k] = block, block.T
        return jnp.stack([jnp.stack(row) for row in pairs])

    def propagators(self) -> Any:
        """Return the dense W, (L, D, D), by D JVPs per layer."""
        columns = self.matvec(jnp.broadcast_to(jnp.eye(self.width, dtype=self.dtype), (self.depth, *[self.width] * 2)))
        return jnp.swapaxes(columns, 1, 2)

    def compress(self, gram_pairs: Any = None) -> Compression:
        r"""Return a dense chain on a short context in which every norm is that of this chain.

        .. math:: \begin{pmatrix}G_1\\ \vdots\\ G_L\end{pmatrix} = B Q^\top,\quad Q^\top Q = I,\quad
           BB^\top = \bigl(G_kG_l^\top\bigr)_{kl}

        Parameters
        ----------
        gram_pairs : (L, L, D, D), optional
            All :math:`G_kG_l^\top`, where a structured formula is cheaper than
            `injection_gram_pairs`, which is used otherwise.

        Returns
        -------
        Compression
            chain with context size r <= min(LD, C), the rank r, and the error of squared norms.

        Raises
        ------
        InputError
            `gram_pairs` of another shape, or with non-finite entries.

        Notes
        -----
        Right multiplication by Q changes no row inner product, so norms, :math:`\|\Psi\|`, the
        coherence value and :math:`\|R_\Sigma\|_F` carry over; the entries of :math:`\Psi` and
        :math:`\psi_0` do not (they are coordinates in Q). Every row is scaled to unit length before
        the eigendecomposition, so that a weak injection beside a strong one keeps its digits.
        Because Gram matrices hold squares, a norm below sqrt(error) times
        :math:`\sum\|A_l\|\,\|G_l\|_F` is not resolved. O((LD)^3) work and (LD)^2 memory on the host,
        in float64.

        References
        ----------
        docs/theory/rigour.md.

        Examples
        --------
        >>> import jax.numpy as jnp
        >>> layer = lambda h, c: h + c[:2] * c[2:4].sum()
        >>> short = operators([layer, layer], jnp.zeros(2), jnp.ones(5000)).compress()
        >>> short.rank, bool(abs(jnp.linalg.norm(short.chain.injections[0]) - 12**0.5) < 1e-5)
        (2, True)
        """
        depth, width = self.depth, self.width
        pairs = self.injection_gram_pairs() if gram_pairs is None else gram_pairs
        if tuple(pairs.shape) != (depth, depth, width, width):
            refuse(
                f"gram_pairs with shape {tuple(pairs.shape)}", f"(L, L, D, D) with L={depth}, D={width}", "gram_pairs=None"
            )
        gram = np.array(pairs, dtype=np.float64).transpose(0, 2, 1, 3).reshape(depth * width, depth * width)
        if not np.isfinite(gram).all():
            refuse("gram_pairs with non-finite entries", "finite numbers only", "gram_pairs=None")
        eps = float(jnp.finfo(self.dtype).eps)
        used = np.flatnonzero(np.diag(gram) > 0)  # sub-blocks without context are zero rows: no work
        factor = np.zeros((depth * width, 1))
        if used.size:
            part = _gram_factor(gram[np.ix_(used, used)], eps=eps, most=self.context_size)
            factor = np.zeros((depth * width, part.shape[1]))
            factor[used] = part
            gram[np.ix_(used, used)] -= part @ part.T
        misfit = np.linalg.norm(gram.reshape(depth, width, depth, width), axis=(1, 3))
        size = np.sqrt(np.sum(factor.reshape(depth, -1) ** 2, axis=1))
        scale = np.outer(size, size)
        relative = np.where(scale > 0, misfit / np.where(scale > 0, scale, 1.0), np.where(misfit > 0, np.inf, 0.0))
        return Compression(
            chain=LayerChain(self.propagators(), jnp.asarray(factor.reshape(depth, width, -1).astype(self.dtype))),
            rank=factor.shape[1] if factor.any() else 0,
            # ||E||_* <= sqrt(D) ||E||_F bounds the trace of A E B^T; the second term is the Gram's own rounding
            error=float(math.sqrt(width) * relative.max() + depth * width * eps),
        )

    @property
    def _chunk(self) -> int:
        # forward and backward passes hold a few arrays of the context's size per vector
        return max(1, min(128, _BYTES // (4 * self.context_size * self.dtype.itemsize)))

    def _rows(self, x: Any, size: int) -> Any:
        """Bring vectors of any accepted shape to (L, B, n)."""
        shape = tuple(x.shape)
        if shape == (size,):
            return jnp.broadcast_to(x, (self.depth, 1, size))
        if len(shape) not in (2, 3) or (shape[0], shape[-1]) != (self.depth, size):
            n, depth = size, self.depth
            refuse(f"vectors with shape {shape}", f"({n},), ({depth}, {n}) or ({depth}, B, {n})", "one row per layer")
        return x[:, None] if x.ndim == 2 else x

    def _propagated(self, x: Any, *, transposed: int) -> Any:
        """Apply W or its transpose, one compiled loop for all layers of a kind."""
        rows = self._rows(x, self.width)
        kinds = list(self.propagator_maps)
        order = np.argsort([index for kind in kinds for index in kind])
        parts = [
            _map_layers(self.propagator_maps[kind], rows[np.asarray(kind)], transposed=transposed, chunk=128)
            for kind in kinds
        ]
        out = (jnp.concatenate(parts) if len(parts) > 1 else parts[0])[order]
        return out if x.ndim == 3 else out[:, 0]

    def _injected(self, x: Any, size: int, *, transposed: int) -> Any:
        """Apply G or its transpose, a layer at a time."""
        rows = self._rows(x, size)
        out = jnp.stack(
            [
                _map_rows(g, r, transposed=transposed, chunk=self._chunk)
                for g, r in zip(self.injection_maps, rows, strict=True)
            ]
        )
        return out if x.ndim == 3 else out[:, 0]

    def _injection_rows(self, index: int) -> Iterator[tuple[int, Any]]:
        """Yield (start, G[start:start+b] of one layer), zero rows past the last, one block at a time."""
        blocks = math.ceil(self.width / self._chunk)
        height = math.ceil(self.width / blocks)
        basis = jnp.eye(blocks * height, self.width, dtype=self.dtype)
        for start in range(0, self.width, height):
            unit = basis[start : start + height]
            yield (
                start,
                _map_rows(self.injection_maps[index], unit, transposed=self.context_size, chunk=height),
            )

    def _gram_column(self, index: int, others: list[int]) -> list[Any]:
        """Return G_k G_index^T for every k in `others`."""
        columns: list[list[Any]] = [[] for _ in others]
        for _, rows in self._injection_rows(index):
            for column, k in zip(columns, others, strict=True):
                column.append(_map_rows(self.injection_maps[k], rows, transposed=0, chunk=rows.shape[0]))
        return [jnp.concatenate(column)[: self.width].T for column in columns]


def _gram_factor(gram: np.ndarray, *, eps: float, most: int) -> np.ndarray:
    """Return B (n, r), r <= most, with B B^T = gram up to rounding; the diagonal is positive."""
    scale = np.sqrt(np.diag(gram))
    unit = gram / scale / scale[:, None]
    values, vectors = np.linalg.eigh(0.5 * (unit + unit.T))
    kept = np.flatnonzero(values > gram.shape[0] * eps * values[-1])[::-1][:most]
    return scale[:, None] * vectors[:, kept] * np.sqrt(values[kept])


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


@jax.jit
def _linear_maps(layer: Any, h: Any, c: Any) -> tuple[Any, Any, Any]:
    """Return the layer's output and its two derivatives as pytrees that are linear functions."""
    out, push_state = jax.linearize(lambda z: layer(z, c), h)
    _, push_context = jax.linearize(lambda z: layer(h, z.reshape(c.shape)), c.ravel())
    return out, push_state, push_context


@functools.partial(jax.jit, static_argnames=("transposed", "chunk"))
def _map_rows(linear: Any, rows: Any, *, transposed: int, chunk: int) -> Any:
    """Apply a linear map to every row; `transposed` is 0 or the size of the map's input."""
    function = linear
    if transposed:
        pull = jax.linear_transpose(linear, jax.ShapeDtypeStruct((transposed,), rows.dtype))
        function = lambda y: pull(y)[0]
    if rows.shape[0] <= chunk:
        return jax.vmap(function)(rows)
    return jax.lax.map(function, rows, batch_size=chunk)


@functools.partial(jax.jit, static_argnames=("transposed", "chunk"))
def _map_layers(linear: Any, rows: Any, *, transposed: int, chunk: int) -> Any:
    """Apply stacked linear maps, each to its own rows (n, B, D)."""
    return jax.lax.map(lambda one: _map_rows(one[0], one[1], transposed=transposed, chunk=chunk), (linear, rows))


def _stacked(maps: list[Any]) -> dict[tuple[int, ...], Any]:
    """Stack the maps that differ in their arrays only."""
    kinds: dict[Any, list[int]] = {}
    for index, one in enumerate(maps):
        leaves, structure = jax.tree.flatten(one)
        shapes = tuple((jnp.shape(leaf), jnp.result_type(leaf)) for leaf in leaves)
        kinds.setdefault((structure, shapes), []).append(index)
    stack = lambda *leaves: jnp.stack(leaves)
    return {tuple(same): jax.tree.map(stack, *[maps[index] for index in same]) for same in kinds.values()}


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
    if isinstance(h, jax.core.Tracer):
        return
    if not bool(jnp.isfinite(h).all()):
        refuse(f"non-finite activations after {name}", "finite numbers", "a smaller state or context")
    if not all(bool(jnp.isfinite(j).all()) for j in jacobians):
        refuse(f"a non-finite Jacobian at {name}", "a differentiable layer", "jnp.where with safe arguments")
