"""Run the encoder or the decoder whole, and keep of the inside what is asked for.

A record is chosen before the run and compiled into it: what is not asked for is never stored.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from ..types import container, refuse
from . import blocks
from .blocks import Parameters

_LONGEST_ON_ONE_CORE = 256


@dataclasses.dataclass(frozen=True)
class Record:
    """Say what a run keeps; memory grows with what is asked for.

    Parameters
    ----------
    residual : the residual stream before the first block and after every block.
    self_attention, cross_attention, mlp : what each sub-block adds to the residual stream.
    keys_values : keys and values of the decoder's self-attention.
    logits : of the decoder.
    layers : numbers of the blocks to keep, from 0, in rising order; None keeps all.

    Raises
    ------
    InputError
        If `layers` does not rise from 0 or above.

    Examples
    --------
    >>> Record(mlp=True, layers=(0, 3)).kept
    ('mlp',)
    """

    residual: bool = False
    self_attention: bool = False
    cross_attention: bool = False
    mlp: bool = False
    keys_values: bool = False
    logits: bool = False
    layers: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        layers = self.layers or ()
        if any(layer < 0 for layer in layers) or list(layers) != sorted(set(layers)):
            refuse(f"layers={layers}", "block numbers from 0, each once, in rising order", "layers=(0, 3)")

    @property
    def kept(self) -> tuple[str, ...]:
        """Names of what is kept per block."""
        names = [name for name in ("residual", "self_attention", "cross_attention", "mlp") if getattr(self, name)]
        return (*names, "keys", "values") if self.keys_values else tuple(names)

    def check(self, depth: int) -> None:
        """Refuse this record if a stack of `depth` blocks has not its layers."""
        if self.layers and self.layers[-1] >= depth:
            refuse(f"layer {self.layers[-1]}", f"0 to {depth - 1}, the blocks of this stack", "layers=None")

    def at(self, layer: int) -> tuple[str, ...]:
        """Return the names of what is kept of one block."""
        return self.kept if self.layers is None or layer in self.layers else ()


EVERYTHING = Record(True, True, True, True, True, True)


def over_clips_in_turn(function: Callable[[Array], Array], x: Array, rank: int) -> Array:
    """Map a function of one clip over whatever leading axes x has.

    On a CPU one clip after the other, so that what a clip needs stays in its caches: 8 windows of
    the tiny encoder take half the time that they take side by side. Elsewhere all at once.
    """
    if x.ndim == rank:
        return function(x)
    one = function
    for _ in range(x.ndim - rank - 1):
        one = jax.vmap(one)
    if x.shape[-2] < _LONGEST_ON_ONE_CORE:
        return jax.vmap(one)(x)
    return jax.lax.platform_dependent(x, cpu=lambda x: jax.lax.map(one, x), default=jax.vmap(one))


@jax.jit
def _stem(parameters: Parameters, mel: Float[Array, "*batch mels frames2"]) -> Float[Array, "*batch frames width"]:
    one = functools.partial(blocks.encoder_stem, parameters)
    return jnp.vectorize(one, signature="(m,t)->(f,d)")(mel)


@functools.partial(jax.jit, static_argnames="heads")
def _encoder_block(
    parameters: Parameters, x: Float[Array, "*batch frames width"], heads: int
) -> Float[Array, "*batch frames width"]:
    return over_clips_in_turn(functools.partial(blocks.encoder_block, parameters, heads=heads), x, 2)


_norm = jax.jit(blocks.layer_norm)


def encode(
    parameters: Parameters, mel: Float[Array, "*batch mels frames2"], *, heads: int
) -> Float[Array, "*batch frames width"]:
    """Run the encoder on log-mel windows.

    Parameters
    ----------
    parameters : of the encoder.
    mel : (..., mels, 2F), in the dtype of the parameters.
    heads : attention heads per block.

    Returns
    -------
    context : (..., F, D), after the last LayerNorm; what the decoder sees.

    Notes
    -----
    One compiled block serves all layers, so compile time does not grow with depth.
    """
    x = _stem(_stem_parameters(parameters), mel)
    for index in sorted(parameters["layers"]):
        x = _encoder_block(parameters["layers"][index], x, heads)
    return _norm(parameters["layer_norm"], x)


def _stem_parameters(parameters: Parameters) -> dict[str, Any]:
    return {name: parameters[name] for name in ("conv1", "conv2", "embed_positions")}


@container
class EncoderPass:
    """Hold an encoder run over one window; what was not asked for is None.

    Attributes
    ----------
    context : (F, D)  after the last LayerNorm.
    residual : (K+1, F, D)  residual stream before the first block and after each that was kept.
    self_attention, mlp : (K, F, D)  what each sub-block added.
    """

    context: Float[Array, "*batch frames width"]
    residual: Float[Array, "*batch K1 frames width"] | None
    self_attention: Float[Array, "*batch K frames width"] | None
    mlp: Float[Array, "*batch K frames width"] | None


@functools.partial(jax.jit, static_argnames=("heads", "names"))
def _recorded_encoder_block(
    parameters: Parameters, x: Float[Array, "frames width"], heads: int, names: tuple[str, ...]
) -> tuple[Float[Array, "frames width"], dict[str, Array]]:
    own, _ = blocks.attention_sequence(
        parameters["self_attn"], parameters["self_attn_layer_norm"], x, heads, causal=False
    )
    out = blocks.mlp(parameters, own)
    return out, _named({"self_attention": own - x, "mlp": out - own, "residual": out}, names)


def _named(found: dict[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    return {name: found[name] for name in names if name in found}


def encoder_pass(
    parameters: Parameters, mel: Float[Array, "mels frames2"], *, heads: int, record: Record = EVERYTHING
) -> EncoderPass:
    """Run the encoder on one log-mel window and keep what is asked for.

    Parameters
    ----------
    parameters : of the encoder.
    mel : (mels, 2F), in the dtype of the parameters; batches by `jax.vmap`.
    heads : attention heads per block.
    record : what to keep; what only decoders have is ignored.

    Returns
    -------
    EncoderPass

    Raises
    ------
    InputError
        If the record names a block that the stack has not.

    Examples
    --------
    >>> from spectral_theorem.whisper import Dims, random_model
    >>> dims = Dims(width=4, mels=3, frames=5, vocabulary=6, positions=7, encoder_layers=2, encoder_heads=1,
    ...             encoder_hidden=8, decoder_layers=1, decoder_heads=1, decoder_hidden=8)
    >>> model = random_model(jax.random.key(0), dims)
    >>> run = encoder_pass(model.parameters["encoder"], jnp.ones((3, 10), jnp.float32), heads=1,
    ...                    record=Record(mlp=True, layers=(1,)))
    >>> run.mlp.shape, run.residual is None
    ((1, 5, 4), True)
    """
    layers = parameters["layers"]
    record.check(len(layers))
    x = first = _stem(_stem_parameters(parameters), mel)
    records = []
    for index in sorted(layers):
        x, found = _recorded_encoder_block(layers[index], x, heads, record.at(index))
        records.append(found)
    kept = _stacked(records, first, record)
    context = _norm(parameters["layer_norm"], x)
    return EncoderPass(context, *(kept.get(name) for name in ("residual", "self_attention", "mlp")))


@container
class DecoderPass:
    """Hold a decoder run over a whole token sequence; what was not asked for is None.

    Attributes
    ----------
    residual : (K+1, n, D)  residual stream before the first block and after each that was kept.
    keys, values : (K, n, H, D/H)  self-attention's, per block.
    self_attention, cross_attention, mlp : (K, n, D)  what each sub-block added.
    logits : (n, vocabulary)
    """

    residual: Float[Array, "*batch K1 n width"] | None
    keys: Float[Array, "*batch K n heads size"] | None
    values: Float[Array, "*batch K n heads size"] | None
    self_attention: Float[Array, "*batch K n width"] | None
    cross_attention: Float[Array, "*batch K n width"] | None
    mlp: Float[Array, "*batch K n width"] | None
    logits: Float[Array, "*batch n vocabulary"] | None


@jax.jit
def embed(parameters: Parameters, token: Any, position: Any) -> Float[Array, "*rows width"]:
    """Return the first residual state of tokens at positions."""
    return parameters["embed_tokens"]["embedding"][token] + parameters["embed_positions"]["embedding"][position]


def read_out(parameters: Parameters, h: Float[Array, "*rows width"]) -> Float[Array, "*rows vocabulary"]:
    """Return the logits of residual states after the last block."""
    y = blocks.layer_norm(parameters["layer_norm"], h)
    # Not a product with the transpose: in half precision XLA would keep a second, transposed float32 table on the CPU.
    return jnp.einsum("...d,vd->...v", y, parameters["embed_tokens"]["embedding"], precision=blocks.precision(y.dtype))


_read_out = jax.jit(read_out)


@functools.partial(jax.jit, static_argnames=("heads", "names"))
def _decoder_block(
    parameters: Parameters,
    x: Float[Array, "n width"],
    c: Float[Array, "frames width"],
    heads: int,
    names: tuple[str, ...],
) -> tuple[Float[Array, "n width"], dict[str, Any]]:
    # What is not returned is not computed either: the compiler removes it.
    x, found = blocks.decoder_block_sequence(parameters, x, c, heads)
    return x, _named(found, names)


def decoder_pass(
    parameters: Parameters,
    tokens: Int[Array, " n"],
    context: Float[Array, "frames width"],
    *,
    heads: int,
    record: Record = EVERYTHING,
) -> DecoderPass:
    """Run the decoder over a given token sequence and keep what is asked for.

    Parameters
    ----------
    parameters : of the decoder.
    tokens : (n,) ids, prompt first; n at most the model's positions. Batches by `jax.vmap`.
    context : (F, D) encoder output.
    heads : attention heads per block.
    record : what to keep.

    Returns
    -------
    DecoderPass

    Raises
    ------
    InputError
        If the record names a block that the stack has not.

    Notes
    -----
    One compiled block serves all layers, as in `encode`.

    Examples
    --------
    >>> from spectral_theorem.whisper import Dims, random_model
    >>> dims = Dims(width=4, mels=3, frames=5, vocabulary=6, positions=7, encoder_layers=1, encoder_heads=1,
    ...             encoder_hidden=8, decoder_layers=2, decoder_heads=1, decoder_hidden=8)
    >>> model = random_model(jax.random.key(0), dims)
    >>> run = decoder_pass(model.parameters["decoder"], jnp.asarray([4, 1]), jnp.ones((5, 4), jnp.float32), heads=1,
    ...                    record=Record(residual=True))
    >>> run.residual.shape, run.logits is None
    ((3, 2, 4), True)
    """
    kept = decoder_records(parameters, tokens, context, heads=heads, record=record)
    return DecoderPass(**{field.name: kept.get(field.name) for field in dataclasses.fields(DecoderPass)})


def decoder_records(
    parameters: Parameters,
    tokens: Int[Array, " n"],
    context: Float[Array, "frames width"],
    *,
    heads: int,
    record: Record,
) -> dict[str, Array]:
    """Return what `decoder_pass` returns, by name, without what was not asked for."""
    layers = parameters["layers"]
    record.check(len(layers))
    tables = {name: parameters[name] for name in ("embed_tokens", "embed_positions")}
    x = first = embed(tables, tokens, np.arange(tokens.shape[0]))
    records = []
    for index in sorted(layers):
        x, found = _decoder_block(layers[index], x, context, heads, record.at(index))
        records.append(found)
    kept = _stacked(records, first, record)
    if record.logits:
        kept["logits"] = _read_out({name: parameters[name] for name in ("layer_norm", "embed_tokens")}, x)
    return kept


def _stacked(records: list[dict[str, Any]], first: Array, record: Record) -> dict[str, Any]:
    """Stack what was kept of each block; the residual stream starts before the first."""
    kept = {name: [found[name] for found in records if name in found] for name in record.kept}
    if record.residual:
        kept["residual"] = [first, *kept["residual"]]
    return {name: _stack(arrays) for name, arrays in kept.items() if arrays}


_stack = jax.jit(lambda arrays: jnp.stack(arrays))
