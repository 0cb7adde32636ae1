r"""Differentiate decoder blocks over a whole sequence, as linear maps that are small and fast.

Everything that does not depend on the vector is computed once: attention weights, normalised rows,
slopes of GELU and, for cross-attention, one small matrix per head and position, so that a product
with W never looks at the encoder's frames again. Weights of the model are shared, not copied.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.tree_util import Partial
from jaxtyping import Array, Float

from ..types import container
from . import blocks
from .blocks import Parameters
from .injection import CrossFactors, injection_gram
from .model import WhisperModel
from .sequence import Heads, layer_names, run_sequence

_POSITIONS_AT_ONCE = 8


@container
class NormPoint:
    r"""Hold a LayerNorm at given rows: :math:`\hat x` (T, D) and one over the deviation (T, 1)."""

    unit: Float[Array, "*layers T width"]
    slope: Float[Array, "*layers T one"]


@container
class SelfPoint:
    """Hold causal self-attention at given rows.

    Attributes
    ----------
    norm : of the LayerNorm before it.
    weights : (H, T, T)  attention weights; 0 where a position may not look.
    queries, keys, values : (H, T, D/H), queries scaled.
    """

    norm: NormPoint
    weights: Float[Array, "*layers heads T T"]
    queries: Float[Array, "*layers heads T size"]
    keys: Float[Array, "*layers heads T size"]
    values: Float[Array, "*layers heads T size"]


@container
class CrossPoint:
    r"""Hold cross-attention at given rows, as far as the state is concerned.

    Attributes
    ----------
    norm : of the LayerNorm before it.
    core : (H, T, D/H, D/H)  :math:`\sum_f p_f\,k_f(V_f-o)^\top`, by which a change of the query
        becomes a change of the output.
    """

    norm: NormPoint
    core: Float[Array, "*layers heads T size size"]


@container
class MlpPoint:
    """Hold an MLP at given rows: its LayerNorm, and the slopes of GELU (T, hidden)."""

    norm: NormPoint
    slopes: Float[Array, "*layers T hidden"]


@container
class ContextPoint:
    """Hold cross-attention as a function of the encoder output.

    Attributes
    ----------
    weights : (H, T, F)  attention weights.
    queries : (H, T, D/H), scaled.
    values : (H, F, D/H)
    output : (H, T, D/H)  weighted means of the values.
    """

    weights: Float[Array, "*layers heads T frames"]
    queries: Float[Array, "*layers heads T size"]
    values: Float[Array, "*layers heads frames size"]
    output: Float[Array, "*layers heads T size"]


@dataclasses.dataclass(frozen=True)
class SequenceMaps:
    r"""Hold the derivatives of a decoder's layers over a sequence, as linear functions.

    Attributes
    ----------
    names : what each layer is.
    states : (N+1, T D)  the states of the run; N is L, or 3L for sub-blocks.
    context : (F, D)
    propagators : N functions :math:`x \mapsto W_lx` on (T D,).
    injections : N functions :math:`x \mapsto G_lx`, from (F D,) to (T D,).
    norms : (N,)  exact :math:`\|G_l\|_F`, or None if they were not asked for.

    Notes
    -----
    The functions are `jax.tree_util.Partial`, so they are pytrees; `jax.vmap` makes batches and
    `jax.linear_transpose` the transposed maps.
    """

    names: tuple[str, ...]
    states: Float[Array, "N1 state"]
    context: Float[Array, "frames width"]
    propagators: tuple[Any, ...]
    injections: tuple[Any, ...]
    norms: Float[Array, " N"] | None


def sequence_maps(
    model: WhisperModel,
    encoder_output: Array,
    tokens: Sequence[int],
    granularity: str = "block",
    *,
    norms: bool = False,
) -> SequenceMaps:
    r"""Linearise the decoder over a whole sequence, layer by layer.

    .. math:: W_l = \partial H_l/\partial H_{l-1}, \qquad G_l = \partial H_l/\partial c

    Parameters
    ----------
    model, encoder_output, tokens, granularity : as in `sequence_layers`.
    norms : also compute the exact Frobenius norms of the injections.

    Returns
    -------
    SequenceMaps

    Raises
    ------
    InputError
        As `sequence_layers`.

    Notes
    -----
    A product with W costs about 28 T D^2 operations and holds T times the MLP's hidden size per
    vector; with G, 8 F D^2 and F D. Beside the weights, a block keeps T D (D/H + 10) numbers for W
    and H T F + 2 F D for G. `norms` costs O(F D^2 + D^3) per position and block.

    References
    ----------
    docs/theory: Whisper's chain, sequence scope.

    Examples
    --------
    >>> from spectral_theorem.whisper import Dims, random_model
    >>> dims = Dims(width=4, mels=3, frames=5, vocabulary=6, positions=7, encoder_layers=1, encoder_heads=1,
    ...             encoder_hidden=8, decoder_layers=2, decoder_heads=1, decoder_hidden=8)
    >>> model = random_model(jax.random.key(0), dims)
    >>> maps = sequence_maps(model, jnp.ones((5, 4), jnp.float32), [4, 1, 2])
    >>> maps.propagators[0](jnp.ones(12, jnp.float32)).shape, maps.injections[1](jnp.ones(20, jnp.float32)).shape
    ((12,), (12,))
    """
    names = layer_names(model.dims.decoder_layers, granularity)
    residual = run_sequence(model, encoder_output, tokens)
    decoder, heads = model.parameters["decoder"]["layers"], Heads(model.dims.decoder_heads)
    context = jnp.asarray(encoder_output)
    states, propagators, injections, sizes = [residual[0]], [], [], []
    for index in range(model.dims.decoder_layers):
        parameters = decoder[index]
        after, own, cross, mlp, content = _points(parameters, residual[index], context, heads)
        square = lambda mlp, p=parameters, x=content: injection_square(p, x, mlp)
        zero = jnp.zeros((), context.dtype)
        if granularity == "block":
            states.append(residual[index + 1])
            propagators.append(Partial(block_map, parameters, own, cross, mlp))
            injections.append(Partial(block_context_map, parameters, content, mlp))
            sizes.append(square(mlp) if norms else zero)
        else:
            states += [*after, residual[index + 1]]
            propagators += [Partial(self_map, parameters, own), Partial(cross_map, parameters, cross)]
            propagators.append(Partial(mlp_map, parameters, mlp))
            nothing = Partial(no_context_map, jnp.zeros(residual[index].size, context.dtype))
            injections += [nothing, Partial(cross_context_map, parameters, content), nothing]
            sizes += [zero, square(None) if norms else zero, zero]
    return SequenceMaps(
        names=names,
        states=jnp.stack([x.ravel() for x in states]),
        context=context,
        propagators=tuple(propagators),
        injections=tuple(injections),
        norms=jnp.sqrt(jnp.stack(sizes)) if norms else None,
    )


# The point at which a block is linearised.


@jax.jit
def _points(parameters: Parameters, x: Array, c: Array, sized: Heads) -> tuple[Any, ...]:
    """Return the rows after both attentions, and what each sub-block's derivative needs of them."""
    heads = sized.number
    own, self_rows = _self_point(parameters, x, heads)
    cross, content, cross_rows = _cross_point(parameters, self_rows, c, heads)
    norm, y = _norm_point(parameters["final_layer_norm"], cross_rows)
    z = blocks.linear(parameters["fc1"], y)
    slopes = jax.jvp(blocks.gelu, (z,), (jnp.ones_like(z),))[1]
    return (self_rows, cross_rows), own, cross, MlpPoint(norm, slopes), content


def _norm_point(parameters: Parameters, x: Array) -> tuple[NormPoint, Array]:
    centred = x - x.mean(-1, keepdims=True)
    slope = jax.lax.rsqrt(jnp.mean(centred**2, -1, keepdims=True) + blocks.EPSILON)
    return NormPoint(centred * slope, slope), blocks.layer_norm(parameters, x)


def _by_head(x: Array) -> Array:
    return jnp.swapaxes(x, 0, 1)


def _self_point(parameters: Parameters, x: Array, heads: int) -> tuple[SelfPoint, Array]:
    attention = parameters["self_attn"]
    norm, y = _norm_point(parameters["self_attn_layer_norm"], x)
    q = _by_head(blocks.queries(attention, y, heads))
    k, v = map(_by_head, blocks.keys_values(attention, y, heads))
    scores = jnp.where(jnp.tri(x.shape[0], dtype=bool), _sum("hti,hsi->hts", q, k), -jnp.inf)
    weights = blocks.softmax(scores)
    return SelfPoint(norm, weights, q, k, v), x + _joined(attention, _sum("hts,hsi->hti", weights, v))


def _cross_point(parameters: Parameters, x: Array, c: Array, heads: int) -> tuple[CrossPoint, ContextPoint, Array]:
    attention = parameters["encoder_attn"]
    norm, y = _norm_point(parameters["encoder_attn_layer_norm"], x)
    q = _by_head(blocks.queries(attention, y, heads))
    k, v = map(_by_head, blocks.cross_keys_values(parameters, c, heads))
    weights = blocks.softmax(_sum("hti,hfi->htf", q, k))
    output = _sum("htf,hfi->hti", weights, v)

    def core(one: tuple[Array, Array]) -> Array:
        # Values are taken relative to their mean first, which loses fewer digits than a difference of two products.
        p, o = one
        return _sum("hfi,hfj->hij", k, p[:, :, None] * (v - o[:, None, :]))

    # A few positions at a time: all at once would hold H T F D/H numbers.
    cores = jax.lax.map(core, (_by_head(weights), _by_head(output)), batch_size=_POSITIONS_AT_ONCE)
    content = ContextPoint(weights, q, v, output)
    return CrossPoint(norm, _by_head(cores)), content, x + _joined(attention, output)


def _joined(attention: Parameters, by_head: Array) -> Array:
    return blocks.linear(attention["out_proj"], _by_head(by_head).reshape(by_head.shape[1], -1))


# The maps: linear in their last argument.


def block_map(parameters: Parameters, own: SelfPoint, cross: CrossPoint, mlp: MlpPoint, x: Array) -> Array:
    """Apply W of a whole block to x (T D,)."""
    return mlp_map(parameters, mlp, cross_map(parameters, cross, self_map(parameters, own, x)))


def self_map(parameters: Parameters, point: SelfPoint, x: Array) -> Array:
    """Apply W of the self-attention sub-block to x (T D,)."""
    attention, rows = parameters["self_attn"], x.reshape(point.norm.unit.shape)
    dq, dk, dv = _projected(attention, _after_norm(parameters["self_attn_layer_norm"], point.norm, rows), point)
    moved = _sum("hti,hsi->hts", dq, point.keys) + _sum("hti,hsi->hts", point.queries, dk)
    moved = _softmax_tangent(point.weights, moved)
    mixed = _sum("hts,hsi->hti", moved, point.values) + _sum("hts,hsi->hti", point.weights, dv)
    return (rows + _out(attention, mixed)).ravel()


def cross_map(parameters: Parameters, point: CrossPoint, x: Array) -> Array:
    """Apply W of the cross-attention sub-block to x (T D,)."""
    attention, rows = parameters["encoder_attn"], x.reshape(point.norm.unit.shape)
    y, heads = _after_norm(parameters["encoder_attn_layer_norm"], point.norm, rows), point.core.shape[0]
    dq = _by_head(blocks.split_heads(_times(y, attention["q_proj"]), heads)) * _query_scale(point.core.shape[-1], y)
    return (rows + _out(attention, _sum("hti,htij->htj", dq, point.core))).ravel()


def mlp_map(parameters: Parameters, point: MlpPoint, x: Array) -> Array:
    """Apply W of the MLP sub-block to x (T D,)."""
    rows = x.reshape(point.norm.unit.shape)
    y = _after_norm(parameters["final_layer_norm"], point.norm, rows)
    return (rows + _times(_times(y, parameters["fc1"]) * point.slopes, parameters["fc2"])).ravel()


def block_context_map(parameters: Parameters, content: ContextPoint, mlp: MlpPoint, x: Array) -> Array:
    """Apply G of a whole block to x (F D,)."""
    return mlp_map(parameters, mlp, cross_context_map(parameters, content, x))


def cross_context_map(parameters: Parameters, point: ContextPoint, x: Array) -> Array:
    """Apply G of the cross-attention sub-block to x (F D,)."""
    attention, (heads, _, frames) = parameters["encoder_attn"], point.weights.shape
    rows = x.reshape(frames, -1)
    dk, dv = (_by_head(blocks.split_heads(_times(rows, attention[name]), heads)) for name in ("k_proj", "v_proj"))

    def one_head(arrays: tuple[Array, ...]) -> Array:
        weights, q, v, o, dk, dv = arrays
        moved = weights * _sum("ti,fi->tf", q, dk)
        # The values' mean is taken off through o, so that no second array of T F numbers is made.
        return _sum("tf,fi->ti", moved, v) - moved.sum(-1, keepdims=True) * o + _sum("tf,fi->ti", weights, dv)

    # A head at a time, so that a batch of vectors holds T F numbers each, not H T F.
    mixed = jax.lax.map(one_head, (point.weights, point.queries, point.values, point.output, dk, dv))
    return _out(attention, mixed).ravel()


def context_frames(injection: Any, start: int, stop: int) -> Any:
    """Return the columns of an injection that belong to the frames from `start` to before `stop`, as a map.

    Parameters
    ----------
    injection : one of `SequenceMaps.injections`. start, stop : frames, 0 to F.
    """
    cut = lambda x: (
        dataclasses.replace(x, weights=x.weights[:, :, start:stop], values=x.values[:, start:stop])
        if isinstance(x, ContextPoint)
        else x
    )
    return Partial(injection.func, *map(cut, injection.args))


def no_context_map(nothing: Array, x: Array) -> Array:
    """Apply the injection of a sub-block that the context does not enter."""
    return nothing + jnp.zeros((), x.dtype) * x.sum()


def _projected(attention: Parameters, y: Array, point: SelfPoint) -> list[Array]:
    heads, _, size = point.queries.shape
    q, k, v = (_by_head(blocks.split_heads(_times(y, attention[n]), heads)) for n in ("q_proj", "k_proj", "v_proj"))
    return [q * _query_scale(size, q), k, v]


def _query_scale(size: int, like: Array) -> Array:
    return jnp.asarray(size**-0.5, like.dtype)


def _after_norm(parameters: Parameters, point: NormPoint, x: Array) -> Array:
    return _normal_part(point, x) * parameters["scale"]


def _normal_part(point: NormPoint, x: Array) -> Array:
    """Apply the derivative of the normalisation itself, a symmetric matrix per row."""
    centred = x - x.mean(-1, keepdims=True)
    return point.slope * (centred - point.unit * jnp.mean(point.unit * x, -1, keepdims=True))


def _softmax_tangent(weights: Array, moved: Array) -> Array:
    moved = weights * moved
    return moved - weights * moved.sum(-1, keepdims=True)


def _out(attention: Parameters, by_head: Array) -> Array:
    return _times(_by_head(by_head).reshape(by_head.shape[1], -1), attention["out_proj"])


def _times(x: Array, parameters: Parameters) -> Array:
    return jnp.matmul(x, parameters["kernel"], precision=blocks.precision(x.dtype))


def _sum(subscripts: str, *operands: Any) -> Array:
    return jnp.einsum(subscripts, *operands, precision=blocks.precision(operands[0].dtype))


# The size of an injection.


@jax.jit
def injection_square(parameters: Parameters, content: ContextPoint, mlp: MlpPoint | None) -> Float[Array, ""]:
    r"""Return the exact :math:`\|G\|_F^2` of a block, or of its cross-attention when `mlp` is None.

    .. math:: \|G\|_F^2 = \sum_t \operatorname{tr}\big(W_{\mathrm{mlp},t}\,G_tG_t^\top\,W_{\mathrm{mlp},t}^\top\big)

    Parameters
    ----------
    parameters : of one decoder block.
    content, mlp : where it is linearised.

    Notes
    -----
    Cross-attention and MLP act on each position alone, so rows of G that belong to different
    positions come from different :math:`G_t`, whose Gram matrices have a closed form. One position
    at a time: O(F D^2 + D^3) work, a few arrays of D times the MLP's hidden size.
    """
    attention = parameters["encoder_attn"]
    heads, _, size = content.queries.shape
    width = heads * size
    kernel = lambda name: attention[name]["kernel"]
    value_map = kernel("v_proj").reshape(width, heads, size).transpose(1, 2, 0)
    output_map = kernel("out_proj").reshape(heads, size, width).transpose(2, 0, 1)
    key_map = kernel("k_proj").reshape(width, heads, size)

    def one(arrays: tuple[Any, ...]) -> Array:
        weights, q, output, point = arrays
        key = _sum("dhi,hi->hd", key_map, q)
        factors = CrossFactors(weights, content.values, output, key, value_map, output_map)
        gram = injection_gram(factors, factors)
        if point is None:
            return jnp.trace(gram)
        through = jnp.eye(width, dtype=gram.dtype) + _mlp_matrix(parameters, *point)
        return jnp.sum(_sum("xy,yz->xz", gram, through) * through)

    point = None if mlp is None else (mlp.norm, mlp.slopes)
    by_position = (*map(_by_head, (content.weights, content.queries, content.output)), point)
    return jax.lax.map(one, by_position).sum()


def _mlp_matrix(parameters: Parameters, norm: NormPoint, slopes: Array) -> Array:
    """Return the derivative of the MLP's branch at one position, acting on rows from the right."""
    scaled = (parameters["final_layer_norm"]["scale"][:, None] * parameters["fc1"]["kernel"]).T
    inner = _normal_part(norm, scaled).T * slopes
    return _times(inner, parameters["fc2"])
