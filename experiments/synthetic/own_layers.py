"""A chain made of a user's own layers has the derivative of the whole network, and no claim of the theorem fails on it.

Kind: tight.
Expected: the recursion over layers agrees with forward differentiation of the whole network to rounding, for a language
    model of Flax NNX blocks whose prompt enters through the first state, and for a recurrent cell unrolled in time.
Refuted by: a relative distance above 1e-9 in float64 (1e-4 in float32), or a violated claim.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

import spectral_theorem as st

NETWORKS = ("language", "recurrent")
GRID = {"network": NETWORKS, "seed": (0, 1, 2)}


@dataclass(frozen=True)
class Config:
    """One network of that many layers (blocks, or steps in time)."""

    network: str = "language"
    layers: int = 3
    width: int = 8
    seed: int = 0


class Block(nnx.Module):
    """Causal self-attention and an MLP, on the residual stream of all positions."""

    def __init__(self, width: int, rngs: nnx.Rngs, dtype: Any) -> None:
        kinds = {"rngs": rngs, "dtype": dtype, "param_dtype": dtype}
        self.norm, self.norm2 = (nnx.LayerNorm(width, **kinds) for _ in range(2))
        # written out: Flax's own attention takes its softmax in float32, whatever it is told
        self.inside, self.out = nnx.Linear(width, 3 * width, **kinds), nnx.Linear(width, width, **kinds)
        self.up, self.down = nnx.Linear(width, 2 * width, **kinds), nnx.Linear(2 * width, width, **kinds)

    def __call__(self, rows: Any) -> Any:
        """Return the next residual stream."""
        query, key, value = jnp.split(self.inside(self.norm(rows)), 3, axis=1)
        seen = jnp.tri(rows.shape[0], dtype=bool)
        scores = jnp.where(seen, query @ key.T / rows.shape[1] ** 0.5, -jnp.inf)
        rows = rows + self.out(jax.nn.softmax(scores) @ value)
        return rows + self.down(jax.nn.gelu(self.up(self.norm2(rows))))


def language(config: Config, dtype: Any) -> tuple[Any, Any, Any]:
    """Return chain, network and context: the first half of the positions is the prompt."""
    rngs, keys = nnx.Rngs(config.seed), jax.random.split(jax.random.key(config.seed), 2)
    blocks = [Block(config.width, rngs, dtype) for _ in range(config.layers)]
    prompt, tail = (jax.random.normal(key, (2, config.width), dtype) for key in keys)
    first = lambda c: jnp.concatenate([c, tail])
    layers, _ = st.layers_of(blocks, lambda block, rows, c: block(rows), first(prompt))

    def network(c: Any) -> Any:
        rows = first(c)
        for block in blocks:
            rows = block(rows)
        return rows.ravel()

    return st.linearize(layers, None, prompt, initial=lambda c: first(c).ravel()), network, prompt


def recurrent(config: Config, dtype: Any) -> tuple[Any, Any, Any]:
    """Return chain, network and context: an LSTM, whose state is a pair, over a sequence of inputs."""
    cell = nnx.LSTMCell(3, config.width, rngs=nnx.Rngs(config.seed), dtype=dtype, param_dtype=dtype)
    inputs = jax.random.normal(jax.random.key(config.seed), (config.layers, 3), dtype)
    carry = (jnp.zeros(config.width, dtype),) * 2
    step = lambda part, carry, inputs: part[0](carry, inputs[part[1]])[0]
    layers, h = st.layers_of([(cell, jnp.asarray(t)) for t in range(config.layers)], step, carry)

    def network(c: Any) -> Any:
        state = carry
        for t in range(config.layers):
            state, _ = cell(state, c[t])
        return jnp.concatenate(state)

    return st.linearize(layers, h, inputs), network, inputs


def run(config: Config) -> list[dict[str, Any]]:
    """Return one row."""
    dtype = jnp.zeros(()).dtype
    chain, network, context = {"language": language, "recurrent": recurrent}[config.network](config, dtype)
    whole = jax.jacfwd(network)(context).reshape(chain.width, -1)
    found = st.verify(chain)
    conditions = {name: one.verdict.name for name, one in found.conditions.items()}
    return [
        {
            "distance": float(jnp.abs(st.context_jacobian(chain) - whole).max() / jnp.abs(whole).max()),
            "rounding": 1e-9 if dtype == jnp.float64 else 1e-4,
            "violated": len(found.violated),
            **conditions,
        }
    ]


def verdict(records: Sequence[Mapping[str, Any]]) -> tuple[str, str]:
    """Judge the largest distance, and count violated claims."""
    worst = max(record["distance"] / record["rounding"] for record in records)
    violated = sum(record["violated"] for record in records)
    off = max(record["distance"] for record in records)
    sentence = (
        f"over {len(records)} networks the recursion is off by at most {off:.1e} of the largest entry, and {violated} "
        "claims are violated"
    )
    return "HOLDS" if worst <= 1 and not violated else "VIOLATED", sentence
