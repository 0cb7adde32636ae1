r"""Coupling of the leading singular subspaces of any two layers, at any two tokens.

`kappa` asks whether one direction is handed on from a layer to the next. The coupling of the top K
asks the same of K directions at once, between layers and tokens that need not be neighbours, and is
defined where the leading singular values are tied and `kappa` is not.
"""

import dataclasses
import itertools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from jaxtyping import Array, Bool, Float

from .operatorchain import OperatorChain
from .types import LayerChain, Triplets, container, one_chain, refuse


@container
class Coupling:
    r"""Hold the coupling of every ordered pair of N operators; N counts layers, then tokens.

    Entry [i, j] is about the operator :math:`J_i` seen by the singular vectors of :math:`J_j`.

    Attributes
    ----------
    value : (N, N)  :math:`m_K(J_i,J_j) = \|U_j^\top J_iV_j-\Sigma_i\|_F/\|\Sigma_i\|_F`, 0 when they are coupled.
    absolute : (N, N)  the same with the absolute value of every entry of :math:`U_j^\top J_iV_j`.
    lower, upper : (N, N)  smallest and largest `value` over all singular bases of :math:`J_j`: where singular
        values of :math:`J_j` are tied inside the top K, `value` depends on the basis that was computed.
    kappa : (N, N)  :math:`|v_j^\top u_i|` of the leading pair.
    cosines : (N, N, K)  cosines of the principal angles between the spans of :math:`U_i` and :math:`V_j`, descending.
    separated : (N,) bool  :math:`\sigma_K > \sigma_{K+1}`, so that the top K subspaces themselves are defined.
    """

    value: Float[Array | np.ndarray, "N N"]
    absolute: Float[Array | np.ndarray, "N N"]
    lower: Float[Array | np.ndarray, "N N"]
    upper: Float[Array | np.ndarray, "N N"]
    kappa: Float[Array | np.ndarray, "N N"]
    cosines: Float[Array | np.ndarray, "N N K"]
    separated: Bool[Array | np.ndarray, " N"]


def couplings(chains: Any, triplets: Any, *, top: int | None = None, tie: float | None = None) -> Coupling:
    r"""Couple the leading K singular vectors of all pairs of layers and tokens.

    .. math:: m_K(J_1,J_2) = \frac{\|U_2^\top J_1V_2-\Sigma_1\|_F}{\|\Sigma_1\|_F}, \qquad
       \cos\theta_i = \sigma_i(V_2^\top U_1)

    Parameters
    ----------
    chains : a LayerChain or OperatorChain, or a sequence of them, one per token, all of one depth and width.
    triplets : Triplets of each, from `decompose(chain, top=K)`.
    top : K, at most what the triplets hold; default all of it.
    tie : singular values of one operator closer than this, relative to its largest, count as tied; default
        sqrt(eps) of the dtype.

    Returns
    -------
    Coupling
        N = number of chains times depth; layer l of chain t stands at t L + l, from 0.

    Raises
    ------
    InputError
        Chains and triplets that do not belong together, or K outside 1..what the triplets hold.

    Notes
    -----
    Products only: K with every operator per operator it is paired with, N^2 K in all.

    The definition, with Frobenius norms and without absolute values, is the published one; the authors' public
    code takes absolute values of the entries first, which is `absolute`. Both take J to be the
    derivative of what a block *adds*; for that pass `branches(chain)` here and to `decompose`. Signs of singular
    pairs cancel in both. A rotation Q inside a tied pair of :math:`J_2` turns :math:`M = U_2^\top J_1V_2` into
    :math:`Q^\top MQ`, which `value` notices unless :math:`J_1` has the same tie; over such Q,
    :math:`\|Q^\top MQ-\Sigma_1\|_F` is least and largest where Q diagonalises the symmetric part of the tied block of
    M, eigenvalues in the order of :math:`\Sigma_1` or against it (docs/theory/coupling.md). NaN for an operator that
    is zero.

    References
    ----------
    M. Aubry, H. Meng, A. Sugolov, V. Papyan, Transformer Block Coupling and its Correlation with
    Generalization in LLMs, ICLR 2025. docs/theory/coupling.md.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> import spectral_theorem as st
    >>> turn = jnp.asarray([[0.0, 1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    >>> first, second = jnp.diag(jnp.asarray([4.0, 3.0, 1.0])), turn @ jnp.diag(jnp.asarray([2.0, 1.0, 0.0]))
    >>> chain = st.LayerChain(jnp.stack([first, second]))
    >>> found = couplings(chain, st.decompose(chain, top=2))
    >>> found.value.round(3).tolist()
    [[0.0, 1.414], [1.414, 0.0]]
    >>> found.cosines[0, 1].tolist(), found.kappa[0, 1].tolist()
    ([1.0, 1.0], 1.0)
    """
    chains = list(chains) if isinstance(chains, Sequence) else [chains]
    triplets = list(triplets) if isinstance(triplets, Sequence) else [triplets]
    count = _checked_count(chains, triplets, top)
    sigma, left, right = ([getattr(t, name)[..., :count] for t in triplets] for name in ("sigma_top", "U", "V"))
    seen = jnp.concatenate(
        [jnp.concatenate([_seen_by(chain, u, v) for u, v in zip(left, right, strict=True)], axis=1) for chain in chains]
    )  # (N, N, K, K), entry [i, j] being U_j^T J_i V_j
    sigma, left, right = (jnp.concatenate(x) for x in (sigma, left, right))
    values = jnp.concatenate([t.sigma_top[:, : count + 1] for t in triplets])
    gap = math.sqrt(float(jnp.finfo(sigma.dtype).eps)) if tie is None else tie
    value, absolute, kappa, cosines = _measures(seen, sigma, left, right)
    lower, upper = _over_ties(np.asarray(seen), np.asarray(sigma), gap, np.asarray(value))
    whole = count == left.shape[1]
    return Coupling(
        value=value,
        absolute=absolute,
        lower=lower,
        upper=upper,
        kappa=kappa,
        cosines=cosines,
        separated=whole | (values[:, count - 1] - values[:, count] > gap * values[:, 0]),
    )


def branches(chain: Any) -> Any:
    """Return the chain of what the layers add, W - I in place of W, injections as they are.

    Parameters
    ----------
    chain : LayerChain or OperatorChain.

    Returns
    -------
    LayerChain or OperatorChain

    Raises
    ------
    InputError
        If it is no chain, or a batch of chains.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> import spectral_theorem as st
    >>> branches(st.LayerChain(jnp.full((1, 2, 2), 3.0))).propagators[0].tolist()
    [[2.0, 3.0], [3.0, 2.0]]
    """
    if isinstance(one_chain(chain), LayerChain):
        return dataclasses.replace(chain, propagators=chain.propagators - jnp.eye(chain.width, dtype=chain.dtype))
    maps = {indices: Partial(_without_state, linear) for indices, linear in chain.propagator_maps.items()}
    return dataclasses.replace(chain, propagator_maps=maps)


def _without_state(linear: Any, x: Any) -> Any:
    return linear(x) - x


def _checked_count(chains: list[Any], triplets: list[Any], top: int | None) -> int:
    """Return K, after checking that chains and triplets belong together."""
    if not chains or len(chains) != len(triplets):
        refuse(
            f"{len(chains)} chains and {len(triplets)} triplets", "one Triplets per chain", "decompose(chain, top=10)"
        )
    sizes = {(one_chain(chain).depth, chain.width) for chain in chains}
    if len(sizes) > 1:
        refuse(f"chains of (depth, width) {sorted(sizes)}", "one depth and one width", "layers of one model")
    (depth, width) = next(iter(sizes))
    for one in triplets:
        if not isinstance(one, Triplets) or one.u.shape != (depth, width):
            shape = getattr(getattr(one, "u", None), "shape", None)
            refuse(f"triplets with u {shape}", f"Triplets with u ({depth}, {width})", "decompose(chain, top=10)")
    held = min(one.U.shape[-1] for one in triplets)
    count = held if top is None else top
    if not 1 <= count <= held:
        refuse(f"top={top}", f"1 <= top <= {held}, which the triplets hold", "decompose(chain, top=10)")
    return count


def _seen_by(chain: LayerChain | OperatorChain, left: Any, right: Any) -> Any:
    """Return U_j^T J_i V_j, (L, L', K, K), for the layers i of a chain and the layers j of given vectors."""
    depth, width, count = right.shape
    columns = jnp.swapaxes(right, 1, 2).reshape(-1, width)
    if isinstance(chain, LayerChain):
        images = jnp.einsum("lab,nb->lna", chain.propagators, columns, precision="highest")
    else:
        images = chain.matvec(jnp.broadcast_to(columns, (chain.depth, *columns.shape)))
    images = images.reshape(chain.depth, depth, count, width)
    return jnp.einsum("jdk,ijmd->ijkm", left, images, precision="highest")


@jax.jit
def _measures(seen: Any, sigma: Any, left: Any, right: Any) -> tuple[Any, ...]:
    target = sigma[:, None, :, None] * jnp.eye(sigma.shape[1], dtype=sigma.dtype)
    size = jnp.linalg.norm(sigma, axis=1)[:, None]
    distance = lambda m: jnp.linalg.norm(m - target, axis=(2, 3)) / size
    across = jnp.einsum("jdk,idm->ijkm", right, left, precision="highest")
    cosines = jnp.linalg.svd(across, compute_uv=False)
    return distance(seen), distance(jnp.abs(seen)), jnp.abs(across[:, :, 0, 0]), jnp.clip(cosines, 0.0, 1.0)


def _over_ties(seen: np.ndarray, sigma: np.ndarray, tie: float, value: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the least and largest coupling over rotations inside every tied group of the second operator."""
    lower, upper = value.copy(), value.copy()
    size = np.linalg.norm(sigma, axis=1)
    for j, groups in enumerate(_tied_groups(row, tie) for row in sigma):
        wide = [group for group in groups if group.stop - group.start > 1]
        if not wide:
            continue
        for ends, turned in ((lower, 1), (upper, -1)):
            m = seen[:, j].copy()
            for group in wide:
                block = seen[:, j][:, group, group]
                rotation = np.linalg.eigh(0.5 * (block + np.swapaxes(block, 1, 2)))[1][:, :, ::-1][:, :, ::turned]
                m[:, :, group] = m[:, :, group] @ rotation
                m[:, group, :] = np.swapaxes(rotation, 1, 2) @ m[:, group, :]
            off = np.linalg.norm(m - sigma[:, :, None] * np.eye(sigma.shape[1]), axis=(1, 2))
            with np.errstate(invalid="ignore", divide="ignore"):
                ends[:, j] = off / size
    # the basis that was used is one of them, whatever rounding says
    return np.minimum(lower, value), np.maximum(upper, value)


def _tied_groups(sigma: np.ndarray, tie: float) -> list[slice]:
    """Cut descending values where neighbours are further apart than `tie` times the first."""
    cuts = np.flatnonzero(sigma[:-1] - sigma[1:] > tie * sigma[0]) + 1
    ends = [0, *cuts.tolist(), len(sigma)]
    return [slice(a, b) for a, b in itertools.pairwise(ends)]
