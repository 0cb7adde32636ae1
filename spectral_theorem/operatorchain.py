r"""A chain too wide in its context to be written down: its Jacobians as linear maps.

`OperatorChain.compress` turns it into a dense chain on a short context in which every norm and
inner product of the theorem is the same.
"""

import functools
import math
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .types import LayerChain, container, refuse

_BYTES = 2**28  # aimed-at size of one block of context-sized vectors


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
    >>> from spectral_theorem import operators
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
        >>> from spectral_theorem import operators
        >>> layer = lambda h, c: h + c[:2] * c[2:4].sum()
        >>> short = operators([layer, layer], jnp.zeros(2), jnp.ones(5000)).compress()
        >>> short.rank, bool(abs(jnp.linalg.norm(short.chain.injections[0]) - 12**0.5) < 1e-5)
        (2, True)
        """
        depth, width = self.depth, self.width
        pairs = self.injection_gram_pairs() if gram_pairs is None else gram_pairs
        if tuple(pairs.shape) != (depth, depth, width, width):
            refuse(
                f"gram_pairs with shape {tuple(pairs.shape)}",
                f"(L, L, D, D) with L={depth}, D={width}",
                "gram_pairs=None",
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
def linear_maps(layer: Any, h: Any, c: Any) -> tuple[Any, Any, Any]:
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


def stacked(maps: list[Any]) -> dict[tuple[int, ...], Any]:
    """Stack the maps that differ in their arrays only."""
    kinds: dict[Any, list[int]] = {}
    for index, one in enumerate(maps):
        leaves, structure = jax.tree.flatten(one)
        shapes = tuple((jnp.shape(leaf), jnp.result_type(leaf)) for leaf in leaves)
        kinds.setdefault((structure, shapes), []).append(index)
    stack = lambda *leaves: jnp.stack(leaves)
    return {tuple(same): jax.tree.map(stack, *[maps[index] for index in same]) for same in kinds.values()}
