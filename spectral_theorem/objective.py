"""Compute the loss of a Whisper on a batch of word strings, and take one step down it."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from .audio import log_mel
from .scoring import DIGITS
from .trainconfig import TrainConfig
from .whisper import blocks
from .whisper.passes import embed, read_out


def sequence_logits(
    parameters: blocks.Parameters, mel: Float[Array, "batch mels frames2"], tokens: Int[Array, "batch n"], *, heads: int
) -> Float[Array, "batch n vocabulary"]:
    """Return the logits after every token of given sequences, in a form that compiles in one piece.

    Parameters
    ----------
    parameters : of the whole model.
    mel : (B, mels, 2F) log-mel windows; tokens : (B, n) ids; heads : of both stacks.

    Notes
    -----
    Layers are scanned, so compile time does not grow with depth. `WhisperModel` computes the same layer by
    layer; tests hold the two together.
    """
    stacked = lambda side: jax.tree.map(lambda *leaves: jnp.stack(leaves), *_layers(parameters[side]))

    def one(mel: Array, tokens: Array) -> Array:
        encoder, decoder = parameters["encoder"], parameters["decoder"]
        encode = lambda x, p: (blocks.encoder_block(p, x, heads), None)
        context, _ = jax.lax.scan(encode, blocks.encoder_stem(encoder, mel), stacked("encoder"))
        context = blocks.layer_norm(encoder["layer_norm"], context)
        decode = lambda x, p: (blocks.decoder_block_sequence(p, x, context, heads)[0], None)
        x, _ = jax.lax.scan(decode, embed(decoder, tokens, jnp.arange(tokens.shape[0])), stacked("decoder"))
        return read_out(decoder, x)

    return jax.vmap(one)(mel, tokens)


def _layers(side: blocks.Parameters) -> list[Any]:
    return [side["layers"][index] for index in sorted(side["layers"])]


def _masked(mel: Array, key: Array, mels: int, frames: int) -> Array:
    """Hide one run of mel bands and one of frames behind the window's mean."""
    for axis, (most, k) in enumerate(zip((mels, frames), jax.random.split(key), strict=True)):
        if most:
            at = jnp.arange(mel.shape[axis])
            size, place = jax.random.randint(k, (2,), 0, jnp.asarray([most + 1, mel.shape[axis]]))
            hidden = (at >= place) & (at < place + size)
            mel = jnp.where(hidden[:, None] if axis == 0 else hidden, mel.mean(), mel)
    return mel


def cross_entropy(
    parameters: blocks.Parameters,
    samples: Float[Array, "batch window"],
    tokens: Int[Array, "batch n"],
    key: Array,
    config: TrainConfig,
) -> Float[Array, ""]:
    """Return the mean cross-entropy per generated token, end-of-text included, in nats.

    Parameters
    ----------
    parameters : of the whole model.
    samples : (B, window) at 16 kHz.
    tokens : (B, n) prompt, words, end-of-text, which also fills up.
    key : of the masks.
    config : of the run.
    """
    mel = jax.vmap(lambda x: log_mel(x, config.mels, length=samples.shape[1]))(samples)
    mask = functools.partial(_masked, mels=config.masked_mels, frames=config.masked_frames)
    mel = jax.vmap(mask)(mel, jax.random.split(key, samples.shape[0])).astype(config.dtype)
    computing = jax.tree.map(lambda leaf: leaf.astype(config.dtype), parameters)
    logits = sequence_logits(computing, mel, tokens[:, :-1], heads=config.heads).astype(jnp.float32)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:])
    prompt, end = 2, len(DIGITS)
    place = jnp.arange(1, tokens.shape[1])
    length = (tokens[:, prompt:] != end).sum(1, keepdims=True)
    counted = (place >= prompt) & (place <= prompt + length)
    return jnp.where(counted, losses, 0.0).sum() / counted.sum()


def optimiser(config: TrainConfig) -> optax.GradientTransformation:
    """Return AdamW as the config describes it; the encoder's positions stay what they are."""
    rate = optax.warmup_cosine_decay_schedule(0.0, config.learning_rate, config.warmup, config.steps)
    kernels = lambda tree: jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key == "kernel", tree)
    return optax.chain(
        optax.clip_by_global_norm(config.clip_norm),
        optax.adamw(rate, b2=0.98, weight_decay=config.weight_decay, mask=kernels),
    )


@functools.partial(jax.jit, static_argnames="config")
def update(
    parameters: Any, moments: Any, samples: Any, tokens: Any, step: Any, config: TrainConfig
) -> tuple[Any, Any, Any]:
    """Take one step of the optimiser; return parameters, moments and the loss before the step."""
    key = jax.random.fold_in(jax.random.key(config.seed), step)
    loss, gradient = jax.value_and_grad(cross_entropy)(parameters, samples, tokens, key, config)
    gradient["encoder"]["embed_positions"] = jax.tree.map(jnp.zeros_like, gradient["encoder"]["embed_positions"])
    change, moments = optimiser(config).update(gradient, moments, parameters)
    return optax.apply_updates(parameters, change), moments, loss
