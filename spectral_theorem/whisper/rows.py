r"""Products with the injections of decoder blocks, in coordinates of the context that are short and isometric.

Every row :math:`y^\top G` of a block's injection has the form :math:`\sum_h p_h\otimes w_h + a_h\otimes k_h`: attention
weights p over frames with vectors w, and numbers a over frames with the vectors k. Coordinates along orthonormal
bases of the p and of the k of all layers keep every inner product, in n H (D + F) numbers instead of F D.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ..types import container
from . import blocks
from .sensitivity import Part, TokenFactors, pull, push


@container
class Row:
    r"""Hold rows :math:`\sum_h p_h\otimes w_h + a_h\otimes k_h` of one layer: w (T, b, H, D), a (T, b, H, F)."""

    vectors: Any
    numbers: Any


def _sum(subscripts: str, *operands: Any) -> Array:
    return jnp.einsum(subscripts, *operands, precision=blocks.precision(operands[0].dtype))


def _value_map(f: TokenFactors) -> Float[Array, "width heads size"]:
    kernel = f.parameters["encoder_attn"]["v_proj"]["kernel"]
    return kernel.reshape(kernel.shape[0], f.values.shape[1], -1)


def _output_map(f: TokenFactors) -> Float[Array, "heads size width"]:
    kernel = f.parameters["encoder_attn"]["out_proj"]["kernel"]
    return kernel.reshape(f.values.shape[1], -1, kernel.shape[1])


def pull_row(f: TokenFactors, y: Float[Array, "T b width"], part: Part = "block") -> Row:
    """Return the rows y^T G of a block's injection, or of its cross-attention's alone."""
    kernel = f.parameters["encoder_attn"]["out_proj"]["kernel"]
    back = pull(f, y, "MLP") if part == "block" else y
    return row_of_heads(f, jnp.matmul(back, kernel.T, precision=blocks.precision(y.dtype)))


def row_of_heads(f: TokenFactors, z: Float[Array, "T b width"]) -> Row:
    """Return z^T times the derivative of the heads' outputs, before the output projection."""
    z = blocks.split_heads(z, f.values.shape[1])
    spread = _sum("tbhi,fhi->tbhf", z, f.values) - _sum("tbhi,thi->tbh", z, f.output)[..., None]
    return Row(vectors=_sum("tbhi,dhi->tbhd", z, _value_map(f)), numbers=f.weights[:, None] * spread)


def _from_heads(f: TokenFactors, vectors: Any, numbers: Any, part: Part) -> Float[Array, "T b width"]:
    r"""Return :math:`\sum_g W_O^g(W_V^g x_g + \sum_f p_{gf}(V_f^g - o_g) b_{gf})`, after the MLP for a block."""
    weighted = numbers * f.weights[:, None]
    out = _sum("tbhd,dhi->tbhi", vectors, _value_map(f)) + _sum("tbhf,fhi->tbhi", weighted, f.values)
    out = out - weighted.sum(-1)[..., None] * f.output[:, None]
    y = _sum("tbhi,hid->tbd", out, _output_map(f))
    return push(f, y, "MLP") if part == "block" else y


def push_row(f: TokenFactors, other: TokenFactors, row: Row, part: Part = "block") -> Float[Array, "T b width"]:
    """Return G x for x a row of another layer (or of the same) at the same tokens."""
    return push_rows(f, [(other, row)], part)


def push_rows(
    f: TokenFactors, rows: Sequence[tuple[TokenFactors, Row]], part: Part = "block"
) -> Float[Array, "T b width"]:
    """Return G x for x a sum of rows, each of a layer of its own, at the same tokens."""
    met = [_met(f, other, row) for other, row in rows]
    return _from_heads(f, sum(vectors for vectors, _ in met), sum(numbers for _, numbers in met), part)


def _met(f: TokenFactors, other: TokenFactors, row: Row) -> tuple[Any, Any]:
    """Return what the heads of one layer meet in a row of another: vectors (T, b, H, D) and numbers (T, b, H, F)."""
    weights, keys = _sum("tgf,thf->tgh", f.weights, other.weights), _sum("tgd,thd->tgh", f.key, other.key)
    crossed = _sum("tbhd,tgd->tbgh", row.vectors, f.key)  # k_g . w_h
    numbers = _sum("tbgh,thf->tbgf", crossed, other.weights) + _sum("tgh,tbhf->tbgf", keys, row.numbers)
    met = _sum("tgf,tbhf->tbgh", f.weights, row.numbers)  # p_g . a_h
    return _sum("tgh,tbhd->tbgd", weights, row.vectors) + _sum("tbgh,thd->tbgd", met, other.key), numbers


def injection_gramian(f: TokenFactors, y: Float[Array, "T b width"], part: Part = "block") -> Float[Array, "T b width"]:
    r"""Return :math:`GG^\top y` without forming G, G G^T or a vector of the context's size.

    Notes
    -----
    40 D^2 + 4 F D operations per vector for a block with a hidden layer of 4D: less than :math:`W^\top W y`.
    """
    return push_row(f, f, pull_row(f, y, part), part)


def push_context(f: TokenFactors, x: Float[Array, "T b frames width"], part: Part = "block") -> Array:
    """Return G x for vectors x of the context, (T, b, F, D)."""
    numbers = _sum("tbfd,thd->tbhf", x, f.key)
    return _from_heads(f, _sum("thf,tbfd->tbhd", f.weights, x), numbers, part)


def pull_context(
    f: TokenFactors, y: Float[Array, "T b width"], part: Part = "block"
) -> Float[Array, "T b frames width"]:
    """Return G^T y, written out."""
    row = pull_row(f, y, part)
    return _sum("thf,tbhd->tbfd", f.weights, row.vectors) + _sum("tbhf,thd->tbfd", row.numbers, f.key)


@container
class ContextBasis:
    r"""Hold orthonormal bases of all layers' attention weights and keys at T tokens.

    Attributes
    ----------
    frames : (T, m, F)  orthonormal rows E, m = min(nH, F), with :math:`p = \sum_i \mathrm{along}_i E_i`.
    along : (T, n, H, m)
    keys_along : (T, n, H, q)  coordinates of the keys k in an orthonormal basis of their span, q = min(nH, D).
    keys : (T, q, D)  that basis.
    """

    frames: Any
    along: Any
    keys_along: Any
    keys: Any


@jax.jit
def context_basis(layers: Sequence[TokenFactors]) -> ContextBasis:
    """Return the basis in which rows of these layers are short."""
    p, k = jnp.stack([f.weights for f in layers], 1), jnp.stack([f.key for f in layers], 1)
    tokens, n, heads = p.shape[:3]

    def split(x: Any) -> tuple[Any, Any]:
        flat = x.reshape(tokens, n * heads, -1)
        q, r = jnp.linalg.qr(jnp.swapaxes(flat, 1, 2))
        return jnp.swapaxes(q, 1, 2), jnp.swapaxes(r, 1, 2).reshape(tokens, n, heads, -1)

    frames, along = split(p)
    keys, keys_along = split(k)
    return ContextBasis(frames=frames, along=along, keys_along=keys_along, keys=keys)


def coordinates(basis: ContextBasis, layer: int, row: Row) -> Float[Array, "T b short"]:
    r"""Return rows of one layer in coordinates that keep inner products.

    .. math:: \sum_h p_h\otimes w_h + a_h\otimes k_h = \sum_i E_i\otimes\Big(\sum_h \mathrm{along}_{hi}w_h
       + (E_i\cdot a_h)k_h\Big) + \sum_h (a_h - EE^\top a_h)\otimes k_h

    The two sums are orthogonal to each other, and the keys have coordinates of their own.
    """
    inside = _sum("tif,tbhf->tbhi", basis.frames, row.numbers)
    outside = row.numbers - _sum("tbhi,tif->tbhf", inside, basis.frames)
    theta = basis.keys_along[:, layer]
    key = _sum("thq,tqd->thd", theta, basis.keys)
    first = _sum("thi,tbhd->tbid", basis.along[:, layer], row.vectors) + _sum("tbhi,thd->tbid", inside, key)
    second = _sum("tbhf,thq->tbqf", outside, theta)
    flat = lambda x: x.reshape(*x.shape[:2], -1)
    return jnp.concatenate([flat(first), flat(second)], axis=-1)


def value_gram(left: TokenFactors, right: TokenFactors) -> Float[Array, "heads size heads size"]:
    """Return W_V W_V'^T of two layers by heads; the same for all tokens."""
    return _sum("dgi,dhj->gihj", _value_map(left), _value_map(right))


def injection_core(
    left: TokenFactors, right: TokenFactors, values: Float[Array, "heads size heads size"]
) -> Float[Array, "width width"]:
    r"""Return Z of :math:`G_{\mathrm{cross}}G_{\mathrm{cross}}'^\top = W_O Z W_O'^\top` for one token (T = 1).

    The formula of `injection_gram`, with `values` = `value_gram` computed once for all tokens.
    """
    p, q = left.weights[0], right.weights[0]
    # in the layout of the values, (F, H, i): other orders cost more in copies than the product in arithmetic
    y = p.T[:, :, None] * (left.values - left.output[0])
    z = q.T[:, :, None] * (right.values - right.output[0])
    frames, heads, size = y.shape
    flat = lambda x: x.reshape(frames, heads * size)
    product = lambda a, b: jnp.matmul(a, b, precision=blocks.precision(y.dtype))
    met = lambda weights, x: product(weights, flat(x)).reshape(heads, heads, size)
    spread = product(flat(y).T, flat(z)).reshape(heads, size, heads, size)
    core = product(p, q.T)[:, None, :, None] * values
    core += _sum("dgi,hd->gih", _value_map(left), right.key[0])[..., None] * met(p, z)[:, None]
    core += jnp.moveaxis(met(q, y), 0, -1)[..., None] * _sum("dhj,gd->ghj", _value_map(right), left.key[0])[:, None]
    core += product(left.key[0], right.key[0].T)[:, None, :, None] * spread
    return core.reshape(heads * size, heads * size)
