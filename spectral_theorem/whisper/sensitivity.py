r"""Take a decoder block apart at many tokens at once, so that products with its Jacobian become matrix products.

In token scope every derivative of a block is a product of LayerNorm, attention and MLP factors. The
kernels in them are the same for all tokens and the rest is small, so rows of all tokens share one
product with each kernel, and a dense Jacobian costs fewer operations than forward mode.
"""

import dataclasses
import functools
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from . import blocks
from .blocks import Parameters
from .tokenfactors import (
    AttentionFactors,
    NormFactors,
    TokenFactors,
    _by_head,
    _flat,
    _matmul,
    _sum,
    at_token,
    shared_and_own,
    token_factors,
)

__all__ = [
    "PARTS",
    "AttentionFactors",
    "NormFactors",
    "Part",
    "TokenFactors",
    "at_token",
    "kernels_for_rows",
    "propagators",
    "pull",
    "push",
    "shared_and_own",
    "token_factors",
    "transposed_block",
    "transposed_propagator",
    "with_rows_in_mind",
]

Part = Literal["block", "self-attention", "cross-attention", "MLP"]
PARTS: tuple[Part, ...] = ("self-attention", "cross-attention", "MLP")


# Products. Rows are (T, b, D): b vectors for each of the T tokens.


def push(f: TokenFactors, x: Float[Array, "T b width"], part: Part = "block") -> Float[Array, "T b width"]:
    """Return W x for b vectors per token, of the whole block or of one part."""
    for name in PARTS if part == "block" else (part,):
        x = _PUSH[name](f, x)
    return x


def pull(f: TokenFactors, y: Float[Array, "T b width"], part: Part = "block") -> Float[Array, "T b width"]:
    """Return W^T y for b vectors per token, of the whole block or of one part."""
    for name in reversed(PARTS) if part == "block" else (part,):
        y = _PULL[name](f, y)
    return y


def with_rows_in_mind(f: TokenFactors) -> TokenFactors:
    """Keep a transposed copy beside every kernel that rows meet in `push`.

    A processor repacks a kernel at every product, which for few rows is most of the work, and reads it faster along
    the axis that is summed over. Worth its memory where many products follow.
    """
    mixing = {
        name: a if a.mixing is None else dataclasses.replace(a, turned=_swapped(a.mixing))
        for name, a in (("own", f.own), ("cross", f.cross))
    }
    return dataclasses.replace(f, parameters=kernels_for_rows(f.parameters), **mixing)


def kernels_for_rows(parameters: Parameters) -> Parameters:
    """Return a block's parameters with a transposed copy beside every kernel that rows meet; those that have one stay.

    Parameters
    ----------
    parameters : of one decoder block.
    """
    if "turned" in parameters["fc1"]:
        return parameters
    found: dict[str, Any] = {name: dict(inside) for name, inside in parameters.items()}
    place = lambda path: functools.reduce(lambda tree, name: tree[name], path, found)
    turned = _transposed([place(path)["kernel"] for path in _MET_BY_ROWS])
    for path, kernel in zip(_MET_BY_ROWS, turned, strict=True):
        place(path[:-1])[path[-1]] = {**place(path), "turned": kernel}
    return found


_MET_BY_ROWS = (
    *(("self_attn", name) for name in ("q_proj", "v_proj", "out_proj")),
    *(("encoder_attn", name) for name in ("q_proj", "out_proj")),
    ("fc1",),
    ("fc2",),
)
_transposed = jax.jit(lambda kernels: [kernel.T for kernel in kernels])
_swapped = jax.jit(lambda mixing: jnp.swapaxes(mixing, 2, 3))


def _after(parameters: Any, x: Any) -> Any:
    """Return rows times a kernel, read from its transposed copy where there is one."""
    return _matmul(x, parameters["turned"].T if "turned" in parameters else parameters["kernel"])


def _mixed(attention: AttentionFactors, q: Any) -> Any:
    """Return what queries of every head become, (T, b, H, i)."""
    if attention.frames is not None:
        f, rows = attention.frames, jnp.moveaxis(q, 2, 0)  # (H, T, b, i)
        moved = _rows_times(rows, jnp.swapaxes(f.keys, 1, 2)) * f.weights[:, :, None]
        out = _rows_times(moved, f.values) - moved.sum(-1, keepdims=True) * f.output[:, :, None]
        return jnp.moveaxis(out, 0, 2)
    if attention.turned is None:
        return _sum("thij,tbhj->tbhi", attention.mixing, q)
    return _sum("thji,tbhj->tbhi", attention.turned, q)


def _mixed_back(attention: AttentionFactors, z: Any) -> Any:
    """Apply the transpose of `_mixed`."""
    if attention.frames is None:
        return _sum("thij,tbhi->tbhj", attention.mixing, z)
    f, rows = attention.frames, jnp.moveaxis(z, 2, 0)
    seen = _rows_times(rows, jnp.swapaxes(f.values, 1, 2)) - (rows * f.output[:, :, None]).sum(-1, keepdims=True)
    return jnp.moveaxis(_rows_times(seen * f.weights[:, :, None], f.keys), 0, 2)


def _rows_times(x: Any, y: Any) -> Any:
    """Multiply (H, T, b, n) by (H, n, m): rows of all tokens share one product per head."""
    heads, tokens, many, n = x.shape
    return _matmul(x.reshape(heads, tokens * many, n), y).reshape(heads, tokens, many, -1)


def _norm_push(norm: NormFactors, gain: Any, x: Any) -> Any:
    along = jnp.mean(x * norm.unit[:, None], -1, keepdims=True)
    return (x - x.mean(-1, keepdims=True) - norm.unit[:, None] * along) * norm.scale[:, None] * gain


def _norm_pull(norm: NormFactors, gain: Any, y: Any) -> Any:
    y = y * gain * norm.scale[:, None]
    along = jnp.mean(y * norm.unit[:, None], -1, keepdims=True)
    return y - y.mean(-1, keepdims=True) - norm.unit[:, None] * along


def _heads(x: Any, like: AttentionFactors) -> Any:
    return blocks.split_heads(x, like.query.shape[-2])


def _query_scale(attention: AttentionFactors) -> Any:
    return attention.query.shape[-1] ** -0.5


def _push_own(f: TokenFactors, x: Any) -> Any:
    a, p = f.own, f.parameters["self_attn"]
    y = _norm_push(f.norms[0], f.parameters["self_attn_layer_norm"]["scale"], x)
    q, v = (_heads(_after(p[name], y), a) for name in ("q_proj", "v_proj"))
    out = _mixed(a, q * _query_scale(a)) + v * a.weight[:, None, :, None]
    out = out + _sum("thd,tbd->tbh", a.key, y)[..., None] * a.spread[:, None]
    return x + _after(p["out_proj"], _flat(out))


def _pull_own(f: TokenFactors, y: Any) -> Any:
    a, p = f.own, f.parameters["self_attn"]
    z = _heads(_matmul(y, p["out_proj"]["kernel"].T), a)
    q = _mixed_back(a, z) * _query_scale(a)
    v = z * a.weight[:, None, :, None]
    back = sum(_matmul(_flat(r), p[n]["kernel"].T) for r, n in ((q, "q_proj"), (v, "v_proj")))
    back = back + _sum("tbh,thd->tbd", _sum("thi,tbhi->tbh", a.spread, z), a.key)
    return y + _norm_pull(f.norms[0], f.parameters["self_attn_layer_norm"]["scale"], back)


def _push_cross(f: TokenFactors, x: Any) -> Any:
    a, p = f.cross, f.parameters["encoder_attn"]
    y = _norm_push(f.norms[1], f.parameters["encoder_attn_layer_norm"]["scale"], x)
    q = _heads(_after(p["q_proj"], y), a) * _query_scale(a)
    return x + _after(p["out_proj"], _flat(_mixed(a, q)))


def _pull_cross(f: TokenFactors, y: Any) -> Any:
    a, p = f.cross, f.parameters["encoder_attn"]
    z = _heads(_matmul(y, p["out_proj"]["kernel"].T), a)
    q = _mixed_back(a, z) * _query_scale(a)
    back = _matmul(_flat(q), p["q_proj"]["kernel"].T)
    return y + _norm_pull(f.norms[1], f.parameters["encoder_attn_layer_norm"]["scale"], back)


def _push_mlp(f: TokenFactors, x: Any) -> Any:
    p = f.parameters
    y = _norm_push(f.norms[2], p["final_layer_norm"]["scale"], x)
    return x + _after(p["fc2"], _after(p["fc1"], y) * f.slope[:, None])


def _pull_mlp(f: TokenFactors, y: Any) -> Any:
    p = f.parameters
    back = _matmul(_matmul(y, p["fc2"]["kernel"].T) * f.slope[:, None], p["fc1"]["kernel"].T)
    return y + _norm_pull(f.norms[2], p["final_layer_norm"]["scale"], back)


_PUSH = {"self-attention": _push_own, "cross-attention": _push_cross, "MLP": _push_mlp}
_PULL = {"self-attention": _pull_own, "cross-attention": _pull_cross, "MLP": _pull_mlp}


# Dense Jacobians, as explicit products.


@functools.partial(jax.jit, static_argnames="part")
def propagators(f: TokenFactors, part: Part = "block") -> Float[Array, "T width width"]:
    r"""Return the dense Jacobians W of a block, or of one part, at every token.

    Parameters
    ----------
    f : factors of one block at T tokens.
    part : "block", "self-attention", "cross-attention" or "MLP".

    Returns
    -------
    (T, D, D)

    Notes
    -----
    By explicit products: 16 D^3 multiplications and additions for a block with a hidden layer of 4D,
    where forward mode takes 28 D^3 + 4 F D^2. One token after the other, so that memory beside the
    result is that of one (D, hidden) matrix.
    """
    shared, own = shared_and_own(f)
    return jax.lax.map(lambda one: transposed_propagator(at_token(shared, one), part).T, own)


def transposed_propagator(f: TokenFactors, part: Part = "block") -> Float[Array, "width width"]:
    """Return W^T of the one token in `f` (T = 1)."""
    return _DENSE[part](f) if part != "block" else transposed_block(f)[0]


def transposed_block(f: TokenFactors) -> tuple[Float[Array, "width width"], Float[Array, "width width"]]:
    r"""Return W^T of the one token in `f`, and what of it follows the heads of cross-attention, rows in.

    From the right: :math:`X = (I+M) + b\,(O(I+M))`, then :math:`W^\top = X + a\,(O'X)`, M of the MLP, a and b of the
    attentions before their output projections O' and O. :math:`O(I+M)` is needed for the injection as well.
    """
    after = _dense_mlp(f)
    outer = _matmul(f.parameters["encoder_attn"]["out_proj"]["kernel"], after)
    crossed = after + _matmul(_inner_cross(f), outer)
    return crossed + _matmul(_inner_own(f), _matmul(f.parameters["self_attn"]["out_proj"]["kernel"], crossed)), outer


def _norm_before(norm: NormFactors, gain: Any, m: Any) -> Any:
    """Multiply by the transposed Jacobian of a LayerNorm from the left, two rank-one corrections."""
    m = m * (gain * norm.scale[0])[:, None]
    unit = norm.unit[0]
    return m - m.mean(0) - unit[:, None] * (_matmul(unit, m) / unit.shape[0])


def _plus_identity(m: Any) -> Any:
    return m + jnp.eye(m.shape[0], dtype=m.dtype)


def _dense_own(f: TokenFactors) -> Any:
    return _plus_identity(_matmul(_inner_own(f), f.parameters["self_attn"]["out_proj"]["kernel"]))


def _inner_own(f: TokenFactors) -> Any:
    """Return the transposed derivative of self-attention's heads by the state."""
    a, p = f.own, f.parameters["self_attn"]
    heads = a.query.shape[1]
    q, v = (_by_head(p[name]["kernel"], heads) for name in ("q_proj", "v_proj"))
    inner = _sum("dhj,hij->dhi", q, a.mixing[0] * _query_scale(a)) + v * a.weight[0][:, None]
    inner = inner + a.key[0].T[..., None] * a.spread[0]
    return _norm_before(f.norms[0], f.parameters["self_attn_layer_norm"]["scale"], _flat(inner))


def _dense_cross(f: TokenFactors) -> Any:
    return _plus_identity(_matmul(_inner_cross(f), f.parameters["encoder_attn"]["out_proj"]["kernel"]))


def _inner_cross(f: TokenFactors) -> Any:
    """Return the transposed derivative of cross-attention's heads by the state."""
    a, p = f.cross, f.parameters["encoder_attn"]
    q = _by_head(p["q_proj"]["kernel"], a.query.shape[1])
    inner = _flat(_sum("dhj,hij->dhi", q, a.mixing[0] * _query_scale(a)))
    return _norm_before(f.norms[1], f.parameters["encoder_attn_layer_norm"]["scale"], inner)


def _dense_mlp(f: TokenFactors) -> Any:
    p = f.parameters
    # the correction acts on D columns after the product instead of 4D before it
    m = _matmul(p["fc1"]["kernel"] * f.slope[0], p["fc2"]["kernel"])
    return _plus_identity(_norm_before(f.norms[2], p["final_layer_norm"]["scale"], m))


_DENSE = {"self-attention": _dense_own, "cross-attention": _dense_cross, "MLP": _dense_mlp}
