r"""Describe how the encoder output enters a decoder token, exactly and without its huge Jacobian.

The derivative of a cross-attention sub-block with respect to the whole encoder output is
D x (F D): 0.9 GB for the smallest Whisper. Per head and frame it is a diagonal part plus a rank-one
part, which gives its Gram matrices, rows and images in the cost of a few matrix products.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ..types import container
from . import blocks
from .blocks import Cache, Parameters
from .chain import run_tokens
from .model import WhisperModel


@container
class CrossFactors:
    r"""Hold what the derivative of cross-attention with respect to the encoder output is made of.

    .. math:: G_f = \sum_h W_O^h\big(p^h_f W_V^h + p^h_f (V^h_f - o^h)\,k_h^\top\big)

    Attributes
    ----------
    weights : (L, H, F)  attention weights p.
    values : (L, H, F, D/H)  V.
    output : (L, H, D/H)  o, the weighted mean of the values.
    key : (L, H, D)  :math:`k_h = W_K^{h\top} q_h / \sqrt{D/H}`.
    value_map : (L, H, D/H, D)  :math:`W_V`.
    output_map : (L, D, H, D/H)  :math:`W_O`.

    Notes
    -----
    The leading axis counts decoder layers; a single layer is the same container without it.
    """

    weights: Float[Array, "*layers heads frames"]
    values: Float[Array, "*layers heads frames size"]
    output: Float[Array, "*layers heads size"]
    key: Float[Array, "*layers heads width"]
    value_map: Float[Array, "*layers heads size width"]
    output_map: Float[Array, "*layers width heads size"]


def cross_factors(model: WhisperModel, encoder_output: Array, tokens: Sequence[int], position: int) -> CrossFactors:
    """Return the factors of every decoder layer's injection at one position.

    Parameters
    ----------
    model, encoder_output, tokens, position : as in `token_layers`.

    Returns
    -------
    CrossFactors
        Stacked over the L decoder layers, at the states of the actual run.

    Raises
    ------
    InputError
        As `token_layers`.

    References
    ----------
    docs/theory: Whisper's chain, the structured injection.

    Examples
    --------
    >>> from spectral_theorem.whisper import Dims, random_model
    >>> dims = Dims(width=4, mels=3, frames=5, vocabulary=6, positions=7, encoder_layers=1, encoder_heads=1,
    ...             encoder_hidden=8, decoder_layers=2, decoder_heads=2, decoder_hidden=8)
    >>> model = random_model(jax.random.key(0), dims)
    >>> cross_factors(model, jnp.ones((5, 4), jnp.float32), [4, 1, 2], 1).weights.shape
    (2, 2, 5)
    """
    run = run_tokens(model, encoder_output, tokens, position)
    decoder, length, factors = model.parameters["decoder"], jnp.asarray(position, jnp.int32), []
    for index in range(model.dims.decoder_layers):
        cache = Cache(run.keys[index], run.values[index], length)
        factors.append(_layer_factors(decoder["layers"][index], run.residual[index, position], encoder_output, cache))
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *factors)


@jax.jit
def _layer_factors(
    parameters: Parameters, h: Float[Array, " width"], c: Float[Array, "frames width"], cache: Cache
) -> CrossFactors:
    h = blocks.self_attention(parameters, h, cache)
    attention, heads, width = parameters["encoder_attn"], cache.keys.shape[-2], h.shape[0]
    q = blocks.queries(attention, blocks.layer_norm(parameters["encoder_attn_layer_norm"], h)[None], heads)[0]
    keys, values = blocks.cross_keys_values(parameters, c, heads)
    weights = blocks.softmax(_sum("hi,fhi->hf", q, keys))
    kernel = lambda name: attention[name]["kernel"]
    return CrossFactors(
        weights=weights,
        values=values.transpose(1, 0, 2),
        output=_sum("hf,fhi->hi", weights, values),
        key=_sum("dhi,hi->hd", kernel("k_proj").reshape(width, heads, -1), q),
        value_map=kernel("v_proj").reshape(width, heads, -1).transpose(1, 2, 0),
        output_map=kernel("out_proj").reshape(heads, -1, width).transpose(2, 0, 1),
    )


def _sum(subscripts: str, *operands: Any) -> Array:
    return jnp.einsum(subscripts, *operands, precision=blocks.precision(operands[0].dtype))


def _spread(one: CrossFactors) -> Float[Array, "heads frames size"]:
    return one.weights[..., None] * (one.values - one.output[:, None, :])


@jax.jit
def injection_gram(left: CrossFactors, right: CrossFactors) -> Float[Array, "width width"]:
    r"""Return the Gram matrix of two layers' injections, exactly, without forming either.

    .. math:: G G'^\top = \sum_{gh} W_O^g Z_{gh} W_O'^{h\top}, \quad Z_{gh} =
        (p_g \cdot p'_h) W_V^g W_V'^{h\top} + W_V^g k'_h \big(\textstyle\sum_f p^g_f Y'^h_f\big)^\top
        + \big(\sum_f p'^h_f Y^g_f\big) (W_V'^h k_g)^\top + (k_g \cdot k'_h) \sum_f Y^g_f Y'^{h\top}_f

    with :math:`Y_f = p_f (V_f - o)`.

    Parameters
    ----------
    left, right : factors of one layer each (no leading axis), of one encoder output.

    Returns
    -------
    gram : (D, D)  of the cross-attention sub-blocks; the Gram of two blocks is
        :math:`W_{\mathrm{mlp}}\,(\cdot)\,W_{\mathrm{mlp}}'^\top`.

    Notes
    -----
    O(F D^2 + D^3).

    References
    ----------
    docs/theory: Whisper's chain, the structured injection.
    """
    y, z = _spread(left), _spread(right)
    core = _sum("gf,hf->gh", left.weights, right.weights)[:, None, :, None] * _sum(
        "gid,hjd->gihj", left.value_map, right.value_map
    )
    core += _sum("gid,hd->gih", left.value_map, right.key)[..., None] * _sum("gf,hfj->ghj", left.weights, z)[:, None]
    core += _sum("hf,gfi->gih", right.weights, y)[..., None] * _sum("hjd,gd->ghj", right.value_map, left.key)[:, None]
    core += _sum("gd,hd->gh", left.key, right.key)[:, None, :, None] * _sum("gfi,hfj->gihj", y, z)
    width = left.key.shape[-1]
    outer = lambda one: one.output_map.reshape(width, -1)
    return _sum("xi,ij,yj->xy", outer(left), core.reshape(width, width), outer(right))


def injection_gram_pairs(factors: CrossFactors) -> Float[Array, "layers layers width width"]:
    """Return the Gram matrices of all pairs of layers' cross-attention injections.

    Parameters
    ----------
    factors : of L layers, from `cross_factors`.

    Returns
    -------
    grams : (L, L, D, D)
        Entry [k, l] is G_k G_l^T, G the derivative with respect to the flattened encoder output.

    Notes
    -----
    L (L+1) / 2 calls of `injection_gram`, one compiled function; the rest by transposition.
    """
    depth = factors.weights.shape[0]
    single = [jax.tree.map(lambda leaf, i=i: leaf[i], factors) for i in range(depth)]
    upper = {(i, j): injection_gram(single[i], single[j]) for i in range(depth) for j in range(i, depth)}
    rows = [[upper[i, j] if i <= j else upper[j, i].T for j in range(depth)] for i in range(depth)]
    return jnp.stack([jnp.stack(row) for row in rows])


def injection_frame_sum(factors: CrossFactors) -> Float[Array, "*layers width width"]:
    r"""Return the sum of an injection over frames, which is :math:`\sum_h W_O^h W_V^h`.

    The rank-one parts cancel, because the weights add up to one; a check of everything else here.
    """
    return _sum("...xhi,...hid->...xd", factors.output_map, factors.value_map)


def injection_rows(one: CrossFactors, vectors: Float[Array, "n width"]) -> Float[Array, "n frames width"]:
    r"""Return :math:`v^\top G` of one layer's cross-attention for several vectors.

    Parameters
    ----------
    one : factors of one layer.
    vectors : (n, D)  v.

    Returns
    -------
    rows : (n, F, D)
    """
    w = _sum("nx,xhi->nhi", vectors, one.output_map)
    steady = _sum("hf,nhi,hid->nfd", one.weights, w, one.value_map)
    return steady + _sum("nhi,hfi,hd->nfd", w, _spread(one), one.key)
