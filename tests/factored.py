"""Small decoders with their layers as functions, dense chains and factors: the two routes that must agree.

Shapes are few, so that what is compiled is shared by all tests.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

import spectral_theorem as st
from spectral_theorem.whisper import Dims, random_model, token_factors, token_layers
from spectral_theorem.whisper.model import WhisperModel

TOKENS = (4, 1, 2, 5, 3, 0)
PLACES = (0, 3, 5)  # first, inner, last
BASE = Dims(
    width=12,
    mels=3,
    frames=11,
    vocabulary=6,
    positions=9,
    encoder_layers=1,
    encoder_heads=1,
    encoder_hidden=8,
    decoder_layers=3,
    decoder_heads=3,
    decoder_hidden=20,
)
# hidden layer not 4D; one head; more heads than frames can tell apart; wide enough that bases of bounds are not the
# whole space; few frames
SHAPES = {
    "small": BASE,
    "one head": dataclasses.replace(BASE, decoder_heads=1, decoder_hidden=5, decoder_layers=2),
    "many heads": dataclasses.replace(BASE, decoder_heads=12, frames=5, decoder_layers=2),
    "wide": dataclasses.replace(BASE, width=30, decoder_hidden=40),
    "one layer": dataclasses.replace(BASE, decoder_layers=1),
    "two layers": dataclasses.replace(BASE, decoder_layers=2),
}


@dataclasses.dataclass(frozen=True)
class Case:
    model: WhisperModel
    context: jax.Array
    tokens: tuple[int, ...]
    places: tuple[int, ...]
    factors: list

    def layers(self, place, granularity="block"):
        return token_layers(self.model, self.context, self.tokens, place, granularity)

    def chain(self, place, granularity="block"):
        layers = self.layers(place, granularity)
        return st.linearize(layers.layers, layers.state, layers.context)


@functools.cache
def case(shape, dtype="float64", seed=0, places=PLACES):
    """Make a decoder whose attention is neither flat nor a spike."""
    dims = SHAPES[shape]
    model = random_model(jax.random.key(seed), dims, dtype=jnp.dtype(dtype))
    context = 2 * jax.random.normal(jax.random.key(seed + 1), (dims.frames, dims.width), jnp.dtype(dtype))
    return Case(model, context, TOKENS, places, token_factors(model, context, TOKENS, places))


@functools.cache
def chains(shape, granularity="block", seed=0):
    """Give the dense float64 chains at all places."""
    made = case(shape, seed=seed)
    return [made.chain(place, granularity) for place in made.places]


def rows(*size, seed=5, dtype="float64"):
    return jnp.asarray(np.random.default_rng(seed).normal(size=size), dtype)
