r"""Take the decoder apart at all positions at once: layers as pure functions (h, c) -> h'.

The state is the residual stream of every position, the context is the encoder output, and nothing
is held constant: the exact chain of the decoder, of which token scope is the part with a frozen past.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ..types import refuse
from . import blocks
from .blocks import Parameters
from .chain import run_tokens
from .model import WhisperModel

Layer = Callable[[Float[Array, " state"], Float[Array, "frames width"]], Float[Array, " state"]]


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Heads:
    """Hold a number of heads where arrays are expected, so that it shapes what is compiled."""

    number: int


@dataclasses.dataclass(frozen=True)
class SequenceLayers:
    """Hold a decoder's layers over a whole sequence, with the point at which to linearise them.

    Attributes
    ----------
    layers : functions (h, c) -> h', in order. Each is a `jax.tree_util.Partial` of one function
        shared by all layers of its kind, so it may be passed *into* a jitted function, which then
        compiles once for all of them.
    names : what each layer is, such as "block 1" or "block 1 cross-attention"; blocks count from 1.
    state : (T D,)  residual stream before the first block, position by position.
    context : (F, D)  encoder output.
    positions : number of positions T.
    """

    layers: tuple[Layer, ...]
    names: tuple[str, ...]
    state: Float[Array, " state"]
    context: Float[Array, "frames width"]
    positions: int


def _rows(h: Array, c: Array) -> Array:
    return h.reshape(-1, c.shape[-1])


def _block(parameters: Parameters, heads: Heads, h: Array, c: Array) -> Array:
    return blocks.decoder_block_sequence(parameters, _rows(h, c), c, heads.number)[0].ravel()


def _self(parameters: Parameters, heads: Heads, h: Array, c: Array) -> Array:
    attention, norm = parameters["self_attn"], parameters["self_attn_layer_norm"]
    return blocks.attention_sequence(attention, norm, _rows(h, c), heads.number, causal=True)[0].ravel()


def _cross(parameters: Parameters, heads: Heads, h: Array, c: Array) -> Array:
    kv = blocks.cross_keys_values(parameters, c, heads.number)
    return blocks.cross_attention_rows(parameters, _rows(h, c), kv, heads.number).ravel()


def _mlp(parameters: Parameters, heads: Heads, h: Array, c: Array) -> Array:
    return blocks.mlp(parameters, _rows(h, c)).ravel()


_KINDS: dict[str, tuple[tuple[str, Any], ...]] = {
    "block": (("", _block),),
    "sub-block": ((" self-attention", _self), (" cross-attention", _cross), (" MLP", _mlp)),
}


def layer_names(depth: int, granularity: str) -> tuple[str, ...]:
    """Name the layers of a decoder, after checking the granularity.

    Raises
    ------
    InputError
        If the granularity is neither "block" nor "sub-block".

    Examples
    --------
    >>> layer_names(1, "sub-block")
    ('block 1 self-attention', 'block 1 cross-attention', 'block 1 MLP')
    """
    if granularity not in _KINDS:
        refuse(f"granularity={granularity!r}", " or ".join(map(repr, _KINDS)), "granularity='block'")
    return tuple(f"block {block}{name}" for block in range(1, depth + 1) for name, _ in _KINDS[granularity])


def sequence_layers(
    model: WhisperModel, encoder_output: Array, tokens: Sequence[int], granularity: str = "block"
) -> SequenceLayers:
    r"""Return the decoder's layers over all positions of a token sequence.

    .. math:: H_l = F_l(H_{l-1}, c), \qquad H_0 = (E_{x_t} + P_t)_{t<T}

    Parameters
    ----------
    model : any Whisper; its dtype is the dtype of the chain.
    encoder_output : (F, D)  c, from `encode_audio` or `model.encode`.
    tokens : the sequence, prompt first; its length is T.
    granularity : "block", or "sub-block" for self-attention, cross-attention and MLP apart.

    Returns
    -------
    SequenceLayers
        L layers, or 3L, for `spectral_theorem.operators`; `sequence_maps` gives their derivatives
        in a form that is smaller and faster.

    Raises
    ------
    InputError
        If there are no tokens, one is not in the vocabulary, there are more than the model allows,
        or the encoder output has another shape or dtype than the model's.

    Notes
    -----
    Unlike `token_layers`, nothing is padded: places that hold nothing would be part of the state.
    Another T is another shape, and compiles anew.

    References
    ----------
    docs/theory: Whisper's chain, sequence scope.

    Examples
    --------
    >>> from spectral_theorem.whisper import Dims, random_model
    >>> dims = Dims(width=4, mels=3, frames=5, vocabulary=6, positions=7, encoder_layers=1, encoder_heads=1,
    ...             encoder_hidden=8, decoder_layers=2, decoder_heads=1, decoder_hidden=8)
    >>> model = random_model(jax.random.key(0), dims)
    >>> chain = sequence_layers(model, jnp.ones((5, 4), jnp.float32), [4, 1, 2])
    >>> chain.names, chain.layers[0](chain.state, chain.context).shape
    (('block 1', 'block 2'), (12,))
    """
    names = layer_names(model.dims.decoder_layers, granularity)
    residual = run_sequence(model, encoder_output, tokens)
    decoder, heads = model.parameters["decoder"], Heads(model.dims.decoder_heads)
    layers = tuple(
        jax.tree_util.Partial(function, decoder["layers"][index], heads)
        for index in range(model.dims.decoder_layers)
        for _, function in _KINDS[granularity]
    )
    return SequenceLayers(layers, names, residual[0].ravel(), jnp.asarray(encoder_output), residual.shape[1])


def run_sequence(model: WhisperModel, encoder_output: Array, tokens: Sequence[int]) -> Float[Array, "L1 T width"]:
    """Return the residual stream before the first block and after each, (L+1, T, D).

    Raises
    ------
    InputError
        As `sequence_layers`.
    """
    if len(tokens) == 0:
        refuse("no tokens", "at least one token", "Transcription.sequence")
    return run_tokens(model, encoder_output, tokens, len(tokens) - 1).residual[:, : len(tokens)]
