r"""One chain too long to hold: layers are taken as they come, and kept only as scalars.

What the bounds, the dominant path and the exponents need of the layers that have passed is a few matrices, carried
with their logarithmic scale. Every bound here costs a constant per layer: the paper's, the telescoping and the
row-exact one, whose sums run forward. The transfer bound does not: its caps differ from injection to injection.
"""

import itertools
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from .bounds import log_growth, row_exact_start, row_exact_step, upper_alignment
from .factors import whole
from .path import residual_start, residual_step
from .scaled import Scaled, log_norm, log_of, meet, norm, scaled, subtract
from .triplets import decompose
from .types import LayerChain, container, refuse

_BATCHES = 64  # batch means from which standard errors are taken, at most; the first only settles the frame
_FEWEST = 8


@container
class DeepReport:
    r"""Hold what is known of a chain whose layers were seen one by one; logarithms are natural.

    Attributes
    ----------
    log_scale : :math:`\log\sum_k S_{L,k}\|G_k\|_F`, the unit of the residual and its bounds.
    log_gain : :math:`\log S_{L,0}`.
    log_psi_norm, psi_direction : :math:`\Psi`. log_residual_norm : :math:`\log\|R_\Sigma\|_F` by its own recursion.
    log_identity_error : log of the Frobenius distance between it and :math:`J_L - u_L\Psi^\top - G_L`.
    log_paper, log_telescoping, log_row_exact, log_row_exact_lower : bounds on it, as in `Bounds`.
    log_total_norm : bounds :math:`\|W_L\cdots W_1\|`; the better of the propagator form and sharp growth.
    exponents, exponents_error : (m,)  Lyapunov exponents and their standard errors, nats per layer; NaN errors where
        there are too few layers. exponents_rounding : ()  what rounding may add to each.
    batches : ()  batch means behind the errors.
    sigma, xi : (L,), kappa, misalignment, rho : (L-1,)  scalars of all layers. resolved : (L,) bool.
    injection_norm, injection_share : (L,)  :math:`\|G_k\|_F` and :math:`\gamma_k`, k = 0..L-1, 0 the first state.
    log_allowance : ()  rounding allowance in units of the scale, 16 eps L sqrt D, as a logarithm.
    """

    log_scale: Float[Array, ""]
    log_gain: Float[Array, ""]
    log_psi_norm: Float[Array, ""]
    psi_direction: Float[Array, "C"]
    log_residual_norm: Float[Array, ""]
    log_identity_error: Float[Array, ""]
    log_paper: Float[Array, ""]
    log_telescoping: Float[Array, ""]
    log_row_exact: Float[Array, ""]
    log_row_exact_lower: Float[Array, ""]
    log_total_norm: Float[Array, ""]
    exponents: Float[Array | np.ndarray, "m"]
    exponents_error: Float[Array | np.ndarray, "m"]
    exponents_rounding: float
    batches: int
    sigma: Float[Array | np.ndarray, "L"]
    xi: Float[Array | np.ndarray, "L"]
    kappa: Float[Array | np.ndarray, "couplings"]
    misalignment: Float[Array | np.ndarray, "couplings"]
    rho: Float[Array | np.ndarray, "couplings"]
    resolved: Bool[Array | np.ndarray, "L"]
    injection_norm: Float[Array | np.ndarray, "L"]
    injection_share: Float[Array | np.ndarray, "L"]
    log_allowance: float

    @property
    def depth(self) -> int:
        """Number of layers L."""
        return self.sigma.shape[0]


class _Scalars(NamedTuple):
    """Hold of every layer what bounds read of triplets."""

    sigma: Any
    xi: Any
    kappa: Any
    misalignment: Any
    coupling_error: Any
    resolved: Any


def stream(
    layers: Iterable[Any] | Callable[[int], Any],
    *,
    depth: int | None = None,
    initial: Any = None,
    exponents: int | None = None,
    chunk: int = 256,
) -> DeepReport:
    r"""Follow a chain of any depth, layer by layer, in memory that grows by a few scalars per layer.

    .. math:: \|R_\Sigma\|_F \le \mathrm{telescoping} \le \mathrm{paper},\qquad
       \mathrm{row\_exact\_lower} \le \|R_\Sigma\|_F \le \mathrm{row\_exact}

    **Claim** identity, row_exact, telescoping, paper, total_norm, each at a cost linear in L.

    Parameters
    ----------
    layers : iterable of W (D, D), of pairs (W, G) with G (D, C), or of `LayerChain` blocks, in order; or a function
        from the layer's number, 1..depth, to one of the first two.
    depth : how many layers to take; needed with a function, optional with an iterable.
    initial : (D, C), optional
        :math:`J_0`, when the first state depends on the context.
    exponents : how many Lyapunov exponents; default all D.
    chunk : layers decomposed at once.

    Returns
    -------
    DeepReport

    Raises
    ------
    InputError
        No layer, layers of different shapes or dtypes, injections for some only, non-finite entries.

    Notes
    -----
    O(L (D^3 + D^2 C)) time. Exponents come from one QR sweep from a random frame; their standard errors from the means
    of 8 to 64 batches of equal length, the first of which is left out because the frame settles in it. Errors mean
    something where layers are independent or mix within a batch; exponents of given layers are volume growth.

    References
    ----------
    docs/theory/deep.md. Batch means: Flegal and Jones, 2010. QR: Benettin et al., 1980.

    Examples
    --------
    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> draw = lambda layer: rng.standard_normal((2, 2)).astype("float32")
    >>> found = stream(draw, depth=2048)
    >>> exact = 0.5 * (np.log(2) + np.array([-0.5772, -1.9635]))   # Newman: digamma(1), digamma(1/2)
    >>> bool((abs(found.exponents - exact) < 4 * found.exponents_error).all())
    True
    """
    if not isinstance(chunk, int) or chunk < 1:
        refuse(f"chunk={chunk!r}", "a whole number >= 1", "chunk=256")
    if callable(layers):
        if depth is None:
            refuse("a function of the layer's number without a depth", "how many layers to take", "depth=1000")
        make = layers
        layers = (make(number) for number in range(1, depth + 1))
    blocks = _blocks(itertools.islice(_singly(layers), depth), chunk)
    first = next(blocks, None)
    if first is None:
        refuse("no layer", "at least one", "an iterable of W or (W, G)")
    state, width, dtype = None, first.width, first.dtype
    count = width if exponents is None else exponents
    if not isinstance(count, int) or not 1 <= count <= width:
        refuse(f"exponents={exponents!r}", f"1..D = {width}", "exponents=1")
    if initial is not None:
        LayerChain(first.propagators, first.injections, initial)  # the same checks as everywhere
    columns: list[Any] = []
    for block in itertools.chain([first], blocks):
        if (block.width, block.context_size, block.dtype) != (width, first.context_size, dtype):
            got = f"layers of (D, C) = ({block.width}, {block.context_size}) in {block.dtype}"
            refuse(got, f"({width}, {first.context_size}) in {dtype} throughout", "layers of one chain")
        if state is None:
            state = _start(block, initial, count)
        size, w, g = block.depth, block.propagators, block.injections
        g = np.zeros((size, *state["g"].shape), dtype) if g is None else g
        if size < chunk:  # what is added is masked
            rest = np.broadcast_to(np.eye(width, dtype=dtype), (chunk - size, width, width))
            w, g = np.concatenate([w, rest]), np.concatenate([g, np.zeros((chunk - size, *g.shape[1:]), dtype)])
        state, found = _pass(state, w, g, np.arange(chunk) < size)
        columns.append({name: np.asarray(x)[:size] for name, x in found.items()})
    assert state is not None
    found = {name: np.concatenate([c[name] for c in columns]) for name in columns[0]}
    return _report(state, found, np.asarray([len(c["sigma"]) for c in columns]), initial is not None)


def _singly(layers: Iterable[Any]) -> Iterator[tuple[Any, Any]]:
    """Yield (W, G or None), taking blocks apart."""
    for layer in layers:
        if isinstance(layer, LayerChain):
            g = itertools.repeat(None) if layer.injections is None else np.asarray(layer.injections)
            yield from zip(np.asarray(layer.propagators), g, strict=False)
        else:
            yield layer if isinstance(layer, tuple) else (layer, None)


def _blocks(layers: Iterator[tuple[Any, Any]], chunk: int) -> Iterator[LayerChain]:
    while several := list(itertools.islice(layers, chunk)):
        w, g = zip(*several, strict=True)
        some = [x is not None for x in g]
        if any(some) != all(some):
            refuse("injections for some layers only", "G for every layer or for none", "zeros where nothing enters")
        try:
            arrays = np.stack(w), np.stack(g) if all(some) else None
        except ValueError as error:
            refuse(f"layers of different shapes ({error})", "one D and one C", "layers of one chain")
        yield LayerChain(*arrays)


def _start(block: LayerChain, initial: Any, count: int) -> dict[str, Any]:
    width, dtype = block.width, block.dtype
    source = jnp.zeros((width, max(block.context_size, 1)), dtype) if initial is None else jnp.asarray(initial)
    frame = np.linalg.qr(np.random.default_rng(0).standard_normal((width, count)))[0]
    return {
        "w": jnp.eye(width, dtype=dtype), "g": source, "row": row_exact_start(source),
        "residual": residual_start(source), "jacobian": scaled(jnp.zeros_like(source)),
        "psi": scaled(jnp.zeros_like(source[0])), "frame": jnp.asarray(frame, dtype), "last": jnp.zeros((2,), dtype),
        "u": jnp.zeros((width,), dtype),
    }  # fmt: skip


@jax.jit
def _pass(state: dict[str, Any], w: Any, g: Any, valid: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Take a block of layers through all recursions; the layer before it comes along for its coupling."""
    t = decompose(LayerChain(jnp.concatenate([state["w"][None], w])))
    g = jnp.concatenate([state["g"][None], g])
    sigma, xi, v = t.sigma[1:, 0], t.xi[1:], t.v[1:]
    # before the first layer of all stands an identity: no path has come through it, so its coupling meets zeros
    tails = t.sigma[:, 0] * t.xi

    def layer(carry: Any, entry: Any) -> tuple[Any, Any]:
        row, residual, jacobian, psi, frame, ends, _ = carry
        (w, g, sigma, u, v, u_before, kappa, tail_before, tail), take = entry
        row, bound = row_exact_step(row, (w, g, sigma, u_before, v, kappa, tail_before, tail))
        residual, _ = residual_step(residual, (w, g, sigma, u, v, u_before, kappa))
        frame, r = jnp.linalg.qr(w @ frame)
        # beside a bound that outgrows them J and Psi would be lost: here each has a scale of its own
        seen = subtract(Scaled(v @ jacobian.value, jacobian.log), Scaled(kappa * psi.value, psi.log))
        ends = jnp.stack([bound["row_exact"], log_of(sigma) + log_norm(seen)])
        a, b, log = meet(jacobian, scaled(g))
        jacobian = scaled(w @ (a + b), log)
        a, b, log = meet(psi, scaled(v @ g))
        psi = scaled(sigma * (kappa * a + b), log)
        states = (row, residual, jacobian, psi, frame, ends, u)
        after = jax.tree.map(lambda a, b: jnp.where(take, a, b), states, carry)
        return after, log_of(jnp.abs(jnp.diagonal(r)))

    entries = (w, g[:-1], sigma, t.u[1:], v, t.u[:-1], t.kappa, tails[:-1], tails[1:])
    names = ("row", "residual", "jacobian", "psi", "frame", "last", "u")
    carried, logs = jax.lax.scan(layer, tuple(state[name] for name in names), (entries, valid))
    end = jnp.sum(valid)
    after = dict(zip(names, carried, strict=True))
    after |= {"w": jnp.concatenate([state["w"][None], w])[end], "g": g[end]}
    along = jnp.einsum("nd,ndc->nc", v, g[:-1])
    return after, {
        "sigma": sigma, "xi": xi, "kappa": t.kappa, "misalignment": t.misalignment, "rho": t.rho,
        "coupling_error": t.coupling_error, "resolved": t.resolved[1:], "size": norm(g[:-1], axis=(1, 2)),
        "along": norm(along, axis=1), "logs": logs,
    }  # fmt: skip


@jax.jit
def _by_scalars(scalars: _Scalars, size: Any) -> dict[str, Any]:
    """Return the bounds that read scalars only, by sums that run forward."""
    log_sigma = log_of(scalars.sigma)
    kappa, s = upper_alignment(scalars)
    before = lambda x: jnp.concatenate([jnp.zeros((1,), x.dtype), x])

    def step(state: Any, layer: Any) -> tuple[Any, None]:
        total, impure, steps, path = state
        gain, x, k, c, enters = layer
        entered = jnp.logaddexp(total, enters)
        moved = jnp.logaddexp(path + c, enters)
        impure, steps = jnp.logaddexp(impure, x + entered), jnp.logaddexp(steps, x + moved)
        path = jnp.logaddexp(path + k, enters)
        return tuple(gain + y for y in (entered, impure, steps, path)), None

    nothing = jnp.full((4,), -jnp.inf, log_sigma.dtype)
    entries = (log_sigma, log_of(scalars.xi), log_of(before(kappa)), log_of(before(s)), log_of(size))
    (scale, paper, telescoping, _), _ = jax.lax.scan(step, tuple(nothing), entries)

    def carry(states: Any, layer: Any) -> tuple[Any, None]:
        return tuple(whole(state, *layer) for state in states), None

    one, zero, first = jnp.ones_like(size[0]), jnp.zeros_like(size[0]), scalars.xi[0]
    ends, _ = jax.lax.scan(carry, ((one, zero, one, zero), (zero, first, first, zero)), (kappa, s, scalars.xi[1:]))
    carried, across = (log_of(n) + log for _, _, n, log in ends)
    start, inside = log_growth(scalars)
    sharp = jnp.sum(inside[1:]) + jnp.sum(start[:1])
    gain = jnp.sum(log_sigma)
    return {
        "log_scale": scale, "log_gain": gain, "log_paper": paper, "log_telescoping": telescoping,
        "log_total_norm": gain + jnp.minimum(jnp.minimum(0.5 * jnp.logaddexp(2 * carried, 2 * across), sharp), 0.0),
    }  # fmt: skip


def _report(state: dict[str, Any], found: dict[str, Any], sizes: np.ndarray, initial: bool) -> DeepReport:
    depth, dtype = len(found["sigma"]), found["sigma"].dtype
    # the coupling before the first layer of all is none
    between = {name: found[name][1:] for name in ("kappa", "misalignment", "rho", "coupling_error")}
    scalars = _Scalars(found["sigma"], found["xi"], between["kappa"], between["misalignment"],
                       between["coupling_error"], found["resolved"])  # fmt: skip
    residual = Scaled(state["residual"].value[0], state["residual"].log)
    psi, jacobian = state["psi"], state["jacobian"]
    dominant = scaled(jnp.outer(state["u"], psi.value), psi.log)
    error = subtract(subtract(jacobian, dominant), residual)
    exponents, errors, batches = batch_means(found["logs"])
    size, along = found["size"], found["along"]
    share = np.divide(along, size, out=np.full_like(size, np.nan), where=size > 0)
    width = state["w"].shape[0]
    return DeepReport(
        **_by_scalars(jax.tree.map(jnp.asarray, scalars), jnp.asarray(size)),
        log_psi_norm=log_norm(psi),
        psi_direction=psi.value / jnp.maximum(norm(psi.value), jnp.finfo(dtype).tiny),
        log_residual_norm=log_norm(residual),
        log_identity_error=log_norm(error),
        log_row_exact=state["last"][0],
        log_row_exact_lower=state["last"][1],
        exponents=exponents,
        exponents_error=errors,
        exponents_rounding=16 * float(np.finfo(dtype).eps) * math.sqrt(width),
        batches=batches,
        sigma=found["sigma"],
        xi=found["xi"],
        kappa=between["kappa"],
        misalignment=between["misalignment"],
        rho=between["rho"],
        resolved=found["resolved"],
        injection_norm=size,
        injection_share=share,
        log_allowance=math.log(16 * float(np.finfo(dtype).eps) * depth * math.sqrt(width)),
    )


def batch_means(logs: Any) -> tuple[np.ndarray, np.ndarray, int]:
    r"""Return means over the layers, their standard errors by batch means, and how many batches there were.

    Parameters
    ----------
    logs : (L, m)  :math:`\log|r_{ii}|` of every layer.

    Returns
    -------
    means, errors : (m,) arrays; from all batches but the first. Below 16 layers means of all, and NaN.
    count : batches behind them.

    Notes
    -----
    Batches are 8 to 64 of equal length; what does not divide joins the one that is left out.

    Examples
    --------
    >>> means, errors, count = batch_means(np.tile([[1.0], [3.0]], (4096, 1)))
    >>> means.tolist(), errors.tolist(), count
    ([2.0], [0.0], 63)
    """
    logs = np.asarray(logs, np.float64)
    batches = min(_BATCHES, max(_FEWEST, math.isqrt(len(logs))))
    length = len(logs) // batches
    if length < 2:
        return logs.mean(axis=0), np.full(logs.shape[1], np.nan), 0
    count = batches - 1
    # along contiguous memory NumPy sums in pairs; across it, equal numbers would all be rounded to the same side
    each = np.ascontiguousarray(logs[-count * length :].T).reshape(-1, count, length).mean(axis=-1)
    return each.mean(axis=-1), each.std(axis=-1, ddof=1) / math.sqrt(count), count
