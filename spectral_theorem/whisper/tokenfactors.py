r"""Run a decoder block at many tokens, and keep the factors that its Jacobians are products of.

In token scope every derivative of a block is a product of LayerNorm, attention and MLP factors. The kernels in them are
the same for all tokens, and the rest is small. `sensitivity` multiplies them.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ..types import container, refuse
from . import blocks
from .blocks import Parameters
from .chain import padded_tokens
from .model import WhisperModel
from .passes import embed

_TOKENS_AT_ONCE = 4


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
    key : (T, H, D)  :math:`W_K^{h\top} q_h`, for the scaled query.
    turned : (T, H, i, i), optional  `mixing` with its last axes swapped, for `with_rows_in_mind`.
    frames : `Frames` in place of `mixing`, which is None then; for few products.
    """

    mixing: Any
    query: Any
    weight: Any
    spread: Any
    key: Any
    turned: Any = None
    frames: Any = None


@container
class Frames:
    r"""Hold what an attention looks at, so that products with :math:`\sum_j p_j (V_j-o) K_j^\top` go through it.

    Attributes
    ----------
    weights : (H, T, m)  p. keys, values : (H, m, i). output : (H, T, i)  o.
    """

    weights: Any
    keys: Any
    values: Any
    output: Any


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
    state: Any

    @property
    def width(self) -> int:
        """State size D."""
        return self.state.shape[-1]

    @property
    def key(self) -> Any:
        """What each head of cross-attention compares with the encoder output, (T, H, D)."""
        return self.cross.key


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
    >>> len(factors), factors[0].cross.mixing.shape
    (2, (2, 1, 4, 4))
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
        crossing = _crossing(decoder["layers"][index], encoder_output, model.dims.decoder_heads)
        x, found = _block_factors(decoder["layers"][index], x, where, crossing)
        # put in here, not in the compiled function, which would copy every kernel
        factors.append(dataclasses.replace(found, parameters=decoder["layers"][index]))
    return factors


@functools.partial(jax.jit, static_argnames="heads")
def _crossing(parameters: Parameters, c: Float[Array, "frames width"], heads: int) -> tuple[Array, Array, Array, Array]:
    """Return cross-attention's keys (H, F, i), and its values as (F, H, i), (H, F, i) and (H, i, F).

    Compiled apart from its use: inside one program the compiler would keep one order and read it against the grain.
    """
    k, v = blocks.cross_keys_values(parameters, c, heads)
    return jnp.swapaxes(k, 0, 1), v, jnp.swapaxes(v, 0, 1), jnp.transpose(v, (1, 2, 0))


def block_factors(
    parameters: Parameters,
    x: Float[Array, "n width"],
    positions: Int[Array, " T"],
    crossing: tuple[Array, ...],
    past: tuple[Array, Array, Int[Array, " n"]] | None = None,
    *,
    few: bool = False,
) -> tuple[Float[Array, "n width"], TokenFactors]:
    """Run one block over rows, and return its output and its factors at some of them, without parameters.

    Parameters
    ----------
    parameters : of the block.
    x : (n, D)  residual stream before it.
    positions : (T,)  rows whose factors are wanted.
    crossing : cross-attention's keys (H, F, i), and its values as (F, H, i), (H, F, i) and (H, i, F).
    past : self-attention's keys and values (m, H, i) of all places, those of the rows among them, and the place of
        every row; by default the rows are all there is, in order.
    few : whether so few products follow that forming `mixing` would cost more than it spares.
    """
    k, values, v, turned = crossing
    heads = k.shape[0]
    at = lambda tree: jax.tree.map(lambda leaf: leaf[positions], tree)
    places = positions if past is None else past[2][positions]

    first, y = _normalised(parameters["self_attn_layer_norm"], x)
    attention = parameters["self_attn"]
    q = blocks.queries(attention, y, heads)
    own_k, own_v = blocks.keys_values(attention, y, heads) if past is None else past[:2]
    until = jnp.arange(x.shape[0]) if past is None else past[2]
    seen = (jnp.arange(own_k.shape[0]) <= until[:, None])[:, None]
    p = blocks.softmax(jnp.where(seen, _sum("nhi,jhi->nhj", q, own_k), -jnp.inf))
    out = _sum("nhj,jhi->nhi", p, own_v)
    x = x + blocks.linear(attention["out_proj"], _flat(out))
    own_q, own_p, own_out = at((q, p, out))
    weight = jnp.take_along_axis(own_p, places[:, None, None], axis=2)[:, :, 0]
    by_head = lambda x: jnp.swapaxes(x, 0, 1)
    own = AttentionFactors(
        mixing=None if few else _sum("thj,tjha,jhb->thab", own_p, own_v - own_out[:, None], own_k),
        frames=Frames(*map(by_head, (own_p, own_k, own_v, own_out))) if few else None,
        query=own_q,
        weight=weight,
        spread=weight[:, :, None] * (own_v[places] - own_out),
        key=_looked_for(attention, own_q),
    )

    second, y = _normalised(parameters["encoder_attn_layer_norm"], x)
    attention = parameters["encoder_attn"]
    q = blocks.queries(attention, y, heads)
    p = blocks.softmax(_matmul(jnp.swapaxes(q, 0, 1), jnp.swapaxes(k, 1, 2)))  # (H, n, F)
    out = jnp.swapaxes(_matmul(p, v), 0, 1)
    x = x + blocks.linear(attention["out_proj"], _flat(out))
    p, (q, out) = p[:, positions], at((q, out))

    def mixing(one: Any) -> Array:
        # One head and a few tokens at a time: they share its keys, so this is one matrix product, and what enters it
        # stays in cache.
        p, v, k, o = one
        of_token = lambda token: _matmul(token[0] * (v - token[1][:, None]), k)
        return jax.lax.map(of_token, (p, o), batch_size=min(_TOKENS_AT_ONCE, p.shape[0]))

    cross = AttentionFactors(
        mixing=None if few else by_head(jax.lax.map(mixing, (p, turned, k, by_head(out)))),
        frames=Frames(p, k, v, by_head(out)) if few else None,
        query=q,
        weight=jnp.zeros_like(weight),
        spread=jnp.zeros_like(out),
        key=_looked_for(attention, q),
    )

    third, y = _normalised(parameters["final_layer_norm"], x)
    inner = blocks.linear(parameters["fc1"], y)
    raised, slope = jax.jvp(blocks.gelu, (inner,), (jnp.ones_like(inner),))
    x = x + blocks.linear(parameters["fc2"], raised)
    return x, TokenFactors(
        parameters=None,
        norms=at((first, second, third)),
        own=own,
        cross=cross,
        slope=at(slope),
        weights=jnp.swapaxes(p, 0, 1),
        values=values,
        output=out,
        state=at(x),
    )


_block_factors = jax.jit(block_factors)


def _looked_for(parameters: Parameters, q: Float[Array, "T heads size"]) -> Float[Array, "T heads width"]:
    """Return the vectors that the scaled queries are compared with, before the key projection."""
    return _sum("dhi,thi->thd", _by_head(parameters["k_proj"]["kernel"], q.shape[1]), q)


def _normalised(parameters: Parameters, x: Float[Array, "T width"]) -> tuple[NormFactors, Float[Array, "T width"]]:
    centred = x - x.mean(-1, keepdims=True)
    scale = jax.lax.rsqrt(jnp.mean(centred**2, -1, keepdims=True) + blocks.EPSILON)
    unit = centred * scale
    return NormFactors(unit, scale), unit * parameters["scale"] + parameters["bias"]


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


def _sum(subscripts: str, *operands: Any) -> Array:
    return jnp.einsum(subscripts, *operands, precision=blocks.precision(operands[0].dtype))


def _matmul(x: Any, y: Any) -> Array:
    return jnp.matmul(x, y, precision=blocks.precision(x.dtype))


def _flat(x: Any) -> Any:
    return x.reshape(*x.shape[:-2], -1)


def _by_head(kernel: Any, heads: int) -> Any:
    return kernel.reshape(kernel.shape[0], heads, -1)
