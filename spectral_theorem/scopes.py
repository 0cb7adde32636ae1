r"""What freezing the past costs: one token's layers beside the same layers over the whole sequence.

Token scope holds the keys and values of earlier positions fixed; sequence scope holds nothing. At
the token's own position the two propagators agree exactly, and everything else is what is frozen.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from .console import aligned
from .lanczos import singular_triplets
from .linearization import operators
from .operatorchain import OperatorChain, stacked
from .trace import FrobeniusNorm, frobenius_norm
from .triplets import assemble, decompose
from .types import Triplets, refuse
from .whisper import WhisperModel
from .whisper.chain import token_layers
from .whisper.sequence import sequence_layers
from .whisper.tangents import SequenceMaps, sequence_maps

_ROWS_AT_ONCE = 64
_DIRECTIONS_AT_ONCE = 16  # every one is an array of the context's size
_PROBES_AT_ONCE = 4
_BASIS = 384  # vectors of the state's size that a decomposition may hold


@dataclasses.dataclass(frozen=True)
class ScopeComparison:
    r"""Hold both scopes of one token's layers; N is the number of layers.

    Attributes
    ----------
    names : what each layer is.
    position : t; the sequence ends with it, so T = t + 1.
    token, sequence : triplets in token scope (certified) and in sequence scope (estimates).
    own_share : (N,)  share of :math:`\|W_{t,\cdot}\|_F^2`, the rows that make position t, on the block :math:`W_{tt}`.
    branch_share : (N,)  the same without the residual connection: of :math:`W-I` in place of W.
    whole_norm : (N,)  :math:`\|W\|_F` of sequence scope, an estimate with intervals.
    whole_share : (N,)  :math:`\|W_{tt}\|_F^2/\|W\|_F^2`.
    block_check : (N,)  relative distance of :math:`W_{tt}` from the propagator of token scope; rounding only.
    frozen_error : :math:`\|J_{\mathrm{total}}-J_{\mathrm{frozen}}\|_F/\|J_{\mathrm{total}}\|_F` at position t after the
        last layer, J the derivative by the encoder output.
    frozen_error_se : its standard error; 0 when all D directions were taken.
    probes : number of directions taken.
    """

    names: tuple[str, ...]
    position: int
    token: Triplets
    sequence: Triplets
    own_share: Any
    branch_share: Any
    whole_norm: FrobeniusNorm
    whole_share: Any
    block_check: Any
    frozen_error: float
    frozen_error_se: float
    probes: int

    def to_dict(self) -> dict[str, Any]:
        """Return plain numbers, JSON-ready: one entry per layer, and what freezing costs."""
        number = lambda x: float(x) if math.isfinite(float(x)) else None

        def layer(i: int, t: Triplets) -> dict[str, Any]:
            kappa = number(abs(t.kappa[i])) if i + 1 < len(self.names) else None
            return {"sigma1": number(t.sigma[i, 0]), "xi": number(t.xi[i]), "kappa_abs": kappa}

        shares = ("own_share", "branch_share", "whole_share", "block_check")
        return {
            "position": self.position,
            "frozen_error": number(self.frozen_error),
            "frozen_error_se": number(self.frozen_error_se),
            "probes": self.probes,
            "layers": [
                {"name": name, "token": layer(i, self.token), "sequence": layer(i, self.sequence)}
                | {share: number(getattr(self, share)[i]) for share in shares}
                for i, name in enumerate(self.names)
            ],
        }

    def table(self) -> str:
        """Return one line per layer, token scope beside sequence scope."""
        return comparison_table(self.to_dict())


def comparison_table(comparison: Mapping[str, Any]) -> str:
    """Return one line per layer, token scope beside sequence scope.

    Parameters
    ----------
    comparison : as `ScopeComparison.to_dict` gives it.
    """
    sides, pairs = ("token", "sequence"), (("sigma1", "sigma1"), ("xi", "xi"), ("|kappa|", "kappa_abs"))
    head = ["layer", *(title for name, _ in pairs for title in (name, "in sequence")), "own share", "of branch"]
    cell = lambda x: "" if x is None else f"{x:.4f}"
    body = [
        [
            entry["name"],
            *(cell(entry[side][key]) for _, key in pairs for side in sides),
            cell(entry["own_share"]),
            cell(entry["branch_share"]),
        ]
        for entry in comparison["layers"]
    ]
    error = f"{comparison['frozen_error']:.4f} +- {comparison['frozen_error_se']:.4f}"
    lines = aligned([head, *body])
    return f"{lines}\nposition {comparison['position']}: frozen against total derivative {error}"


def sequence_chain(maps: SequenceMaps) -> OperatorChain:
    """Return the chain of a decoder over a whole sequence, matrix-free.

    Parameters
    ----------
    maps : from `sequence_maps`.

    Returns
    -------
    OperatorChain
        Width T D; weights are copied once, so that all blocks share one compiled loop.

    Examples
    --------
    >>> from spectral_theorem.whisper import Dims, random_model
    >>> dims = Dims(width=4, mels=3, frames=5, vocabulary=6, positions=7, encoder_layers=1, encoder_heads=1,
    ...             encoder_hidden=8, decoder_layers=2, decoder_heads=1, decoder_hidden=8)
    >>> model = random_model(jax.random.key(0), dims)
    >>> chain = sequence_chain(sequence_maps(model, jnp.ones((5, 4), jnp.float32), [4, 1, 2]))
    >>> chain.depth, chain.width, chain.context_size
    (2, 12, 20)
    """
    return OperatorChain(
        states=maps.states,
        context=maps.context,
        propagator_maps=stacked(list(maps.propagators)),
        injection_maps=maps.injections,
    )


def sequence_triplets(
    chain: OperatorChain, *, top: int | None = None, key: Any = None, tolerance: float | None = None
) -> Triplets:
    r"""Decompose a chain that is too wide for dense work; the one place where that method is chosen.

    Parameters
    ----------
    chain : from `sequence_chain` or `operators`.
    top : number K of triplets kept; default min(2, D).
    key : PRNG key of the random starts.
    tolerance : residual to reach, relative to :math:`\sigma_1`; default 64 eps.

    Returns
    -------
    Triplets
        Converged estimates; the residual is inf where a layer did not converge.

    Notes
    -----
    By block Lanczos, a layer at a time: a basis of up to 384 vectors of the state's size, and nothing that
    grows with depth but the result.
    """
    count = min(2, chain.width) if top is None else top
    keys = jax.random.split(jax.random.key(0) if key is None else key, chain.depth)
    found = [
        singular_triplets(
            Partial(_push, one),
            Partial(_pull, one),
            count=1,
            width=chain.width,
            dtype=chain.dtype,
            key=k,
            top=max(count, min(2, chain.width)),
            tolerance=tolerance,
            most=_BASIS,
        )
        for one, k in zip((_one_layer(chain, i) for i in range(chain.depth)), keys, strict=True)
    ]
    joined = lambda name: jnp.concatenate([getattr(one, name) for one in found])
    sigma, converged = joined("sigma"), joined("converged")
    return assemble(
        sigma,
        sigma[:, : count + 1],
        joined("U")[:, :, :count],
        joined("V")[:, :, :count],
        # an estimate that did not converge says nothing about its distance from the truth
        residual=jnp.where(converged, joined("residual"), jnp.inf),
        certified=jnp.zeros_like(converged),
    )


def _push(chain: OperatorChain, x: Any) -> Any:
    return chain.matvec(x)


def _pull(chain: OperatorChain, y: Any) -> Any:
    return chain.rmatvec(y)


def _one_layer(chain: OperatorChain, index: int) -> OperatorChain:
    """Return one layer as a chain, its arrays cut out of the stack."""
    indices = next(indices for indices in chain.propagator_maps if index in indices)
    at = indices.index(index)
    linear = jax.tree.map(lambda leaf: leaf[at : at + 1], chain.propagator_maps[indices])
    return dataclasses.replace(
        chain,
        states=chain.states[index : index + 2],
        propagator_maps={(0,): linear},
        injection_maps=chain.injection_maps[index : index + 1],
    )


def compare_scopes(
    key: Any,
    *,
    model: WhisperModel,
    encoder_output: Any,
    tokens: Sequence[int],
    position: int,
    granularity: str = "block",
    probes: int = 16,
    known: tuple[SequenceMaps, Triplets] | None = None,
) -> ScopeComparison:
    r"""Compare a token's layers with the past frozen and with the past free.

    .. math:: \frac{\|J_{\mathrm{total}}-J_{\mathrm{frozen}}\|_F}{\|J_{\mathrm{total}}\|_F}, \qquad
       J = \frac{dh_{L,t}}{dc}

    Parameters
    ----------
    key : PRNG key of start vectors and probes.
    model, encoder_output, tokens, position, granularity : as in `token_layers`; tokens after `position` are
        not used, for no earlier position looks at them.
    probes : directions of the output along which the derivatives are compared; D or more takes all of them,
        and then there is no error.
    known : maps and triplets of the sequence up to `position`, where they were computed already.

    Returns
    -------
    ScopeComparison

    Raises
    ------
    InputError
        As `token_layers`, or for probes < 2.

    Notes
    -----
    Both derivatives are pulled back through the model's own layers, at the same random orthonormal
    directions; the standard error is the jackknife's, with the correction for a finite number of directions.

    References
    ----------
    docs/theory/whisper.md.

    Examples
    --------
    >>> from spectral_theorem.whisper import Dims, random_model
    >>> dims = Dims(width=4, mels=3, frames=5, vocabulary=6, positions=7, encoder_layers=1, encoder_heads=1,
    ...             encoder_hidden=8, decoder_layers=2, decoder_heads=1, decoder_hidden=8)
    >>> model, c = random_model(jax.random.key(0), dims), jax.random.normal(jax.random.key(1), (5, 4), "float32")
    >>> ask = lambda t: compare_scopes(jax.random.key(2), model=model, encoder_output=c, tokens=[4, 1, 2], position=t)
    >>> ask(0).frozen_error < 1e-5, 1e-3 < ask(2).frozen_error < 1
    (True, True)
    """
    if probes < 2:
        refuse(f"probes={probes}", "at least 2", "probes=16")
    frozen = token_layers(model, encoder_output, tokens, position, granularity)
    until = tokens[: position + 1]
    free = sequence_layers(model, encoder_output, until, granularity)
    maps = sequence_maps(model, encoder_output, until, granularity) if known is None else known[0]
    for_start, for_norm, for_probes = jax.random.split(key, 3)

    own = operators(frozen.layers, frozen.state, frozen.context)
    chain = sequence_chain(maps)
    width, start = own.width, position * own.width
    dense = own.propagators()
    squares, block = _rows_of_position(chain, width, start)
    eye = jnp.eye(width, dtype=chain.dtype)
    size = lambda w: jnp.sum(w**2, axis=(1, 2))
    past, mine, added = squares[:, :position].sum(axis=1), size(block), size(block - eye)
    norms = [
        frobenius_norm(k, rmatvec=pull, matvec=push, rows=chain.width, dtype=chain.dtype)
        for k, (push, pull) in zip(
            jax.random.split(for_norm, chain.depth), map(_both_ways, maps.propagators, maps.states), strict=True
        )
    ]
    whole = jax.tree.map(lambda *x: jnp.stack(x), *norms)

    count = min(probes, width)
    directions = jnp.linalg.qr(jax.random.normal(for_probes, (width, count), chain.dtype))[0].T
    lost, whole_size = [], []
    for some in jnp.split(directions, np.arange(_DIRECTIONS_AT_ONCE, count, _DIRECTIONS_AT_ONCE)):
        placed = jnp.zeros((some.shape[0], chain.width), chain.dtype).at[:, start:].set(some)
        total = context_rows(free.layers, free.state, free.context, placed)
        kept = context_rows(frozen.layers, frozen.state, frozen.context, some)
        lost.append(jnp.sum((total - kept) ** 2, axis=1))
        whole_size.append(jnp.sum(total**2, axis=1))
    error, spread = _ratio(np.concatenate(lost), np.concatenate(whole_size))
    return ScopeComparison(
        names=frozen.names,
        position=position,
        token=decompose(own),
        sequence=sequence_triplets(chain, key=for_start) if known is None else known[1],
        own_share=mine / (mine + past),
        branch_share=jnp.where(added + past > 0, added / jnp.where(added + past > 0, added + past, 1.0), 1.0),
        whole_norm=whole,
        whole_share=mine / whole.norm**2,
        block_check=jnp.sqrt(size(block - dense) / size(dense)),
        frozen_error=error,
        frozen_error_se=spread * math.sqrt(1 - count / width),
        probes=count,
    )


def _rows_of_position(chain: OperatorChain, width: int, start: int) -> tuple[Any, Any]:
    """Return the squared norms of the blocks W_ts, (L, T), and the block W_tt itself, (L, D, D)."""
    squares, blocks = 0.0, []
    for first in range(0, width, _ROWS_AT_ONCE):
        many = min(_ROWS_AT_ONCE, width - first)
        unit = jnp.zeros((many, chain.width), chain.dtype)
        unit = unit.at[jnp.arange(many), start + first + jnp.arange(many)].set(1.0)
        rows = chain.rmatvec(jnp.broadcast_to(unit, (chain.depth, *unit.shape)))
        squares = squares + jnp.sum(rows.reshape(chain.depth, many, -1, width) ** 2, axis=(1, 3))
        blocks.append(rows[:, :, start : start + width])
    return squares, jnp.concatenate(blocks, axis=1)


def _both_ways(linear: Any, state: Any) -> tuple[Any, Any]:
    return lambda x: push_rows(linear, x), lambda y: pull_rows(linear, state, y)


@jax.jit
def push_rows(linear: Any, x: Any) -> Any:
    """Apply a linear map to every row of x; maps that differ in their arrays only compile once."""
    return jax.vmap(linear)(x)


@jax.jit
def pull_rows(linear: Any, like: Any, y: Any) -> Any:
    """Apply the transpose of a linear map to every row of y; `like` has the shape of its input."""
    return jax.vmap(lambda row: jax.linear_transpose(linear, like)(row)[0])(y)


def context_rows(layers: Sequence[Any], state: Any, context: Any, y: Any) -> Any:
    """Return y^T J of the whole stack, (m, C), a layer at a time from the last to the first."""
    states = [state]
    for layer in layers[:-1]:
        states.append(_forward(layer, states[-1], context))
    total = jnp.zeros((y.shape[0], context.size), context.dtype)
    for layer, h in zip(reversed(layers), reversed(states), strict=True):
        y, added = _backward(layer, h, context, y)
        total = total + added
    return total


@jax.jit
def _forward(layer: Any, h: Any, c: Any) -> Any:
    return layer(h, c)


@jax.jit
def _backward(layer: Any, h: Any, c: Any, y: Any) -> tuple[Any, Any]:
    _, pull = jax.vjp(layer, h, c)
    by_state, by_context = jax.lax.map(pull, y, batch_size=_PROBES_AT_ONCE)
    return by_state, by_context.reshape(y.shape[0], -1)


def _ratio(above: np.ndarray, below: np.ndarray) -> tuple[float, float]:
    """Return the root of a ratio of sums, and its standard error by the jackknife."""
    root = lambda a, b: np.sqrt(a / np.where(b > 0, b, 1.0))
    n = len(above)
    left_out = root(above.sum() - above, below.sum() - below)
    spread = math.sqrt((n - 1) / n * float(np.sum((left_out - left_out.mean()) ** 2)))
    return float(root(above.sum(), below.sum())), spread
