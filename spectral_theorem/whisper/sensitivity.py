r"""Take a decoder block apart at many tokens at once, so that products with its Jacobian become matrix products.

In token scope every derivative of a block is a product of LayerNorm, attention and MLP factors. The
kernels in them are the same for all tokens and the rest is small, so rows of all tokens share one
product with each kernel, and a dense Jacobian costs fewer operations than forward mode.
"""

import functools
from collections.abc import Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ..types import container, refuse
from . import blocks
from .blocks import Parameters
from .chain import padded_tokens
from .model import WhisperModel
from .passes import embed

Part = Literal["block", "self-attention", "cross-attention", "MLP"]
PARTS: tuple[Part, ...] = ("self-attention", "cross-attention", "MLP")


@container
class NormFactors:
    """Hold the derivative of a LayerNorm: (T, D) normalised inputs and (T, 1) reciprocal deviations."""

    unit: Any
    scale: Any


@container
class AttentionFactors:
    r"""Hold the derivative of an attention's output by its query, and of the token's own key and value.

    Attributes
    ----------
    mixing : (T, H, i, i)  :math:`\sum_j p_j (V_j - o) K_j^\top`, for the scaled query.
    query : (T, H, i)  scaled query.
    weight : (T, H)  weight of the token itself; 0 where it is not among the keys.
    spread : (T, H, i)  weight times :math:`V_t - o`.
    """

    mixing: Any
    query: Any
    weight: Any
    spread: Any


@container
class TokenFactors:
    r"""Hold one decoder block's Jacobians at T tokens of one clip, as factors.

    .. math:: W = W_{\mathrm{mlp}} W_{\mathrm{cross}} W_{\mathrm{self}}, \qquad G = W_{\mathrm{mlp}} G_{\mathrm{cross}}

    Attributes
    ----------
    parameters : of the block, shared by all tokens.
    norms : three `NormFactors`, before self-attention, cross-attention and MLP.
    own, cross : `AttentionFactors`.
    slope : (T, hidden)  derivative of GELU.
    weights : (T, H, F)  cross-attention weights p.
    values : (F, H, i)  cross-attention values V, shared by all tokens.
    output : (T, H, i)  o, their weighted mean.
    key : (T, H, D)  :math:`W_K^{h\top} q_h`, for the scaled query.
    state : (T, D)  the residual stream after the block.
    """

    parameters: Any
    norms: Any
    own: Any
    cross: Any
    slope: Any
    weights: Any
    values: Any
    output: Any
    key: Any
    state: Any

    @property
    def width(self) -> int:
        """State size D."""
        return self.state.shape[-1]


def token_factors(
    model: WhisperModel, encoder_output: Array, tokens: Sequence[int], positions: Sequence[int]
) -> list[TokenFactors]:
    r"""Return the factors of every decoder block at several positions of one sequence, the past frozen.

    Parameters
    ----------
    model : any Whisper; its dtype is the dtype of the factors.
    encoder_output : (F, D)  c.
    tokens : the sequence, prompt first.
    positions : T residual positions, from 0.

    Returns
    -------
    list of TokenFactors
        One per decoder block.

    Raises
    ------
    InputError
        No positions, and as `token_layers` for each of them.

    Notes
    -----
    One decoder run for all positions. One compiled function serves all blocks; kernels are not copied.

    References
    ----------
    docs/theory/whisper.md (factors of a block, structured injection).

    Examples
    --------
    >>> from spectral_theorem.whisper import Dims, random_model
    >>> dims = Dims(width=4, mels=3, frames=5, vocabulary=6, positions=7, encoder_layers=1, encoder_heads=1,
    ...             encoder_hidden=8, decoder_layers=2, decoder_heads=1, decoder_hidden=8)
    >>> model = random_model(jax.random.key(0), dims)
    >>> factors = token_factors(model, jnp.ones((5, 4), jnp.float32), [4, 1, 2], [1, 2])
    >>> len(factors), propagators(factors[0]).shape
    (2, (2, 4, 4))
    """
    places = [int(p) for p in positions]
    if not places:
        refuse("no positions", "at least one place in the sequence", "positions=[len(prompt) - 1]")
    for place in (min(places), max(places)):
        if not 0 <= place < len(tokens):
            refuse(f"position {place}", f"0 to {len(tokens) - 1}, a place in the sequence", "Transcription.position")
    padded = padded_tokens(model, encoder_output, tokens, max(places))
    decoder, where = model.parameters["decoder"], jnp.asarray(places, jnp.int32)
    tables = {name: decoder[name] for name in ("embed_tokens", "embed_positions")}
    x, factors = embed(tables, padded, jnp.arange(padded.shape[0])), []
    for index in range(model.dims.decoder_layers):
        x, found = _block_factors(decoder["layers"][index], x, where, encoder_output, model.dims.decoder_heads)
        factors.append(found)
    return factors


def _sum(subscripts: str, *operands: Any) -> Array:
    return jnp.einsum(subscripts, *operands, precision=blocks.precision(operands[0].dtype))


def _matmul(x: Any, y: Any) -> Array:
    return jnp.matmul(x, y, precision=blocks.precision(x.dtype))


@functools.partial(jax.jit, static_argnames="heads")
def _block_factors(
    parameters: Parameters, x: Float[Array, "n width"], positions: Int[Array, " T"], c: Any, heads: int
) -> tuple[Float[Array, "n width"], TokenFactors]:
    """Run one block over the sequence, and return its output and its factors at the positions."""
    own, (keys, values) = blocks.attention_sequence(
        parameters["self_attn"], parameters["self_attn_layer_norm"], x, heads, causal=True
    )
    crossing = blocks.cross_keys_values(parameters, c, heads)  # once: they are most of the work
    out = blocks.mlp(parameters, blocks.cross_attention_rows(parameters, own, crossing, heads))
    return out, _factors(parameters, x, keys, values, positions, crossing)


def _factors(
    parameters: Parameters, residual: Any, keys: Any, values: Any, positions: Any, crossing: tuple[Any, Any]
) -> TokenFactors:
    heads, h = keys.shape[1], residual[positions]
    first, y = _normalised(parameters["self_attn_layer_norm"], h)
    q = blocks.queries(parameters["self_attn"], y, heads)
    scores = _sum("thi,jhi->thj", q, keys)
    seen = jnp.arange(keys.shape[0]) <= positions[:, None, None]
    p = blocks.softmax(jnp.where(seen, scores, -jnp.inf))
    out = _sum("thj,jhi->thi", p, values)
    weight = jnp.take_along_axis(p, positions[:, None, None], axis=2)[:, :, 0]
    own = AttentionFactors(
        mixing=_sum("thj,tjha,jhb->thab", p, values - out[:, None], keys),
        query=q,
        weight=weight,
        spread=weight[:, :, None] * (values[positions] - out),
    )
    h = h + blocks.linear(parameters["self_attn"]["out_proj"], out.reshape(h.shape))

    second, y = _normalised(parameters["encoder_attn_layer_norm"], h)
    attention = parameters["encoder_attn"]
    q = blocks.queries(attention, y, heads)
    k, v = crossing
    p = blocks.softmax(_sum("thi,fhi->thf", q, k))
    out = _sum("thf,fhi->thi", p, v)

    def mixing(one: Any) -> Array:  # one head at a time: all tokens share its keys, so this is one matrix product
        p, v, k, o = one
        return _matmul(p[:, None] * (v.T - o[:, :, None]), k)

    by_head = (jnp.swapaxes(p, 0, 1), jnp.swapaxes(v, 0, 1), jnp.swapaxes(k, 0, 1), jnp.swapaxes(out, 0, 1))
    cross = AttentionFactors(
        mixing=jnp.swapaxes(jax.lax.map(mixing, by_head), 0, 1),
        query=q,
        weight=jnp.zeros_like(weight),
        spread=jnp.zeros_like(out),
    )
    key = _sum("dhi,thi->thd", attention["k_proj"]["kernel"].reshape(h.shape[1], heads, -1), q)
    h = h + blocks.linear(attention["out_proj"], out.reshape(h.shape))

    third, y = _normalised(parameters["final_layer_norm"], h)
    inner = blocks.linear(parameters["fc1"], y)
    raised, slope = jax.jvp(blocks.gelu, (inner,), (jnp.ones_like(inner),))
    return TokenFactors(
        parameters=parameters,
        norms=(first, second, third),
        own=own,
        cross=cross,
        slope=slope,
        weights=p,
        values=v,
        output=out,
        key=key,
        state=h + blocks.linear(parameters["fc2"], raised),
    )


def _normalised(parameters: Parameters, x: Float[Array, "T width"]) -> tuple[NormFactors, Float[Array, "T width"]]:
    centred = x - x.mean(-1, keepdims=True)
    scale = jax.lax.rsqrt(jnp.mean(centred**2, -1, keepdims=True) + blocks.EPSILON)
    unit = centred * scale
    return NormFactors(unit, scale), unit * parameters["scale"] + parameters["bias"]


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


def _norm_push(norm: NormFactors, gain: Any, x: Any) -> Any:
    along = jnp.mean(x * norm.unit[:, None], -1, keepdims=True)
    return (x - x.mean(-1, keepdims=True) - norm.unit[:, None] * along) * norm.scale[:, None] * gain


def _norm_pull(norm: NormFactors, gain: Any, y: Any) -> Any:
    y = y * gain * norm.scale[:, None]
    along = jnp.mean(y * norm.unit[:, None], -1, keepdims=True)
    return y - y.mean(-1, keepdims=True) - norm.unit[:, None] * along


def _heads(x: Any, like: AttentionFactors) -> Any:
    return blocks.split_heads(x, like.query.shape[-2])


def _flat(x: Any) -> Any:
    return x.reshape(*x.shape[:-2], -1)


def _query_scale(attention: AttentionFactors) -> Any:
    return attention.query.shape[-1] ** -0.5


def _push_own(f: TokenFactors, x: Any) -> Any:
    a, p = f.own, f.parameters["self_attn"]
    y = _norm_push(f.norms[0], f.parameters["self_attn_layer_norm"]["scale"], x)
    q, k, v = (_heads(_matmul(y, p[name]["kernel"]), a) for name in ("q_proj", "k_proj", "v_proj"))
    out = _sum("thij,tbhj->tbhi", a.mixing, q * _query_scale(a)) + v * a.weight[:, None, :, None]
    out = out + _sum("thi,tbhi->tbh", a.query, k)[..., None] * a.spread[:, None]
    return x + _matmul(_flat(out), p["out_proj"]["kernel"])


def _pull_own(f: TokenFactors, y: Any) -> Any:
    a, p = f.own, f.parameters["self_attn"]
    z = _heads(_matmul(y, p["out_proj"]["kernel"].T), a)
    q = _sum("thij,tbhi->tbhj", a.mixing, z) * _query_scale(a)
    k = _sum("thi,tbhi->tbh", a.spread, z)[..., None] * a.query[:, None]
    v = z * a.weight[:, None, :, None]
    back = sum(_matmul(_flat(r), p[n]["kernel"].T) for r, n in ((q, "q_proj"), (k, "k_proj"), (v, "v_proj")))
    return y + _norm_pull(f.norms[0], f.parameters["self_attn_layer_norm"]["scale"], back)


def _push_cross(f: TokenFactors, x: Any) -> Any:
    a, p = f.cross, f.parameters["encoder_attn"]
    y = _norm_push(f.norms[1], f.parameters["encoder_attn_layer_norm"]["scale"], x)
    q = _heads(_matmul(y, p["q_proj"]["kernel"]), a) * _query_scale(a)
    return x + _matmul(_flat(_sum("thij,tbhj->tbhi", a.mixing, q)), p["out_proj"]["kernel"])


def _pull_cross(f: TokenFactors, y: Any) -> Any:
    a, p = f.cross, f.parameters["encoder_attn"]
    z = _heads(_matmul(y, p["out_proj"]["kernel"].T), a)
    q = _sum("thij,tbhi->tbhj", a.mixing, z) * _query_scale(a)
    back = _matmul(_flat(q), p["q_proj"]["kernel"].T)
    return y + _norm_pull(f.norms[1], f.parameters["encoder_attn_layer_norm"]["scale"], back)


def _push_mlp(f: TokenFactors, x: Any) -> Any:
    p = f.parameters
    y = _norm_push(f.norms[2], p["final_layer_norm"]["scale"], x)
    return x + _matmul(_matmul(y, p["fc1"]["kernel"]) * f.slope[:, None], p["fc2"]["kernel"])


def _pull_mlp(f: TokenFactors, y: Any) -> Any:
    p = f.parameters
    back = _matmul(_matmul(y, p["fc2"]["kernel"].T) * f.slope[:, None], p["fc1"]["kernel"].T)
    return y + _norm_pull(f.norms[2], p["final_layer_norm"]["scale"], back)


_PUSH = {"self-attention": _push_own, "cross-attention": _push_cross, "MLP": _push_mlp}
_PULL = {"self-attention": _pull_own, "cross-attention": _pull_cross, "MLP": _pull_mlp}


# Dense Jacobians, as explicit products.


def shared_and_own(f: TokenFactors) -> tuple[TokenFactors, TokenFactors]:
    """Split a container in two: what all tokens share, and what each has of its own (None elsewhere)."""
    shared = {"parameters": f.parameters, "values": f.values}
    names = TokenFactors.__dataclass_fields__
    empty = {name: None for name in names}
    return (
        TokenFactors(**(empty | shared)),
        TokenFactors(**{name: None if name in shared else getattr(f, name) for name in names}),
    )


def at_token(shared: TokenFactors, own: TokenFactors) -> TokenFactors:
    """Put one token's own factors (no leading axis) back beside what all share, T = 1."""
    one = jax.tree.map(lambda leaf: leaf[None], own)
    names = TokenFactors.__dataclass_fields__
    pick = lambda name: getattr(one if getattr(shared, name) is None else shared, name)
    return TokenFactors(**{name: pick(name) for name in names})


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
    if part != "block":
        return _DENSE[part](f)
    return _matmul(_matmul(_dense_own(f), _dense_cross(f)), _dense_mlp(f))


def _norm_before(norm: NormFactors, gain: Any, m: Any) -> Any:
    """Multiply by the transposed Jacobian of a LayerNorm from the left, two rank-one corrections."""
    m = m * (gain * norm.scale[0])[:, None]
    unit = norm.unit[0]
    return m - m.mean(0) - unit[:, None] * (_matmul(unit, m) / unit.shape[0])


def _plus_identity(m: Any) -> Any:
    return m + jnp.eye(m.shape[0], dtype=m.dtype)


def _by_head(kernel: Any, heads: int) -> Any:
    return kernel.reshape(kernel.shape[0], heads, -1)


def _dense_own(f: TokenFactors) -> Any:
    a, p = f.own, f.parameters["self_attn"]
    heads = a.query.shape[1]
    q, k, v = (_by_head(p[name]["kernel"], heads) for name in ("q_proj", "k_proj", "v_proj"))
    inner = _sum("dhj,hij->dhi", q, a.mixing[0] * _query_scale(a)) + v * a.weight[0][:, None]
    inner = inner + _sum("dhi,hi->dh", k, a.query[0])[..., None] * a.spread[0]
    inner = _norm_before(f.norms[0], f.parameters["self_attn_layer_norm"]["scale"], _flat(inner))
    return _plus_identity(_matmul(inner, p["out_proj"]["kernel"]))


def _dense_cross(f: TokenFactors) -> Any:
    a, p = f.cross, f.parameters["encoder_attn"]
    q = _by_head(p["q_proj"]["kernel"], a.query.shape[1])
    inner = _flat(_sum("dhj,hij->dhi", q, a.mixing[0] * _query_scale(a)))
    inner = _norm_before(f.norms[1], f.parameters["encoder_attn_layer_norm"]["scale"], inner)
    return _plus_identity(_matmul(inner, p["out_proj"]["kernel"]))


def _dense_mlp(f: TokenFactors) -> Any:
    p = f.parameters
    # the correction acts on D columns after the product instead of 4D before it
    m = _matmul(p["fc1"]["kernel"] * f.slope[0], p["fc2"]["kernel"])
    return _plus_identity(_norm_before(f.norms[2], p["final_layer_norm"]["scale"], m))


_DENSE = {"self-attention": _dense_own, "cross-attention": _dense_cross, "MLP": _dense_mlp}
