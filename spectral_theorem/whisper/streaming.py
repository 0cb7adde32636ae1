"""Decode one window a few tokens at a time, and hand out what sub-blocks added while it goes on.

The loop is the one of `decode`, cut into groups of tokens: while a group is looked at, the next is under way.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ..types import container, refuse
from . import decode
from .blocks import Parameters
from .cached import KeysValues
from .decode import Going, LoopSettings
from .model import WhisperModel
from .passes import Record

GROUP = 16


@dataclasses.dataclass(frozen=True)
class Piece:
    """Hold a few generated tokens, as soon as they are there.

    Attributes
    ----------
    first : step of the first of them, from 0.
    tokens, logprobs : n ids, end-of-text included, and their log-probabilities in nats.
    added : name of a sub-block to what it adds at the position that predicts each token, (K, n, D), K blocks kept.
    looked : what the caller's look made of the group, or None.
    last : whether the transcript ends here.
    """

    first: int
    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]
    added: dict[str, np.ndarray]
    looked: Any
    last: bool


@container
class Live:
    """Hold what decoding knows after a group of tokens.

    Attributes
    ----------
    tokens : (T,)  prompt and what is generated so far.
    begin : tokens of the prompt.
    caches, cross : self-attention's keys and values at all places up to the newest token's, and cross-attention's, per
        block; one row each.
    """

    tokens: Any
    begin: int
    caches: list[KeysValues]
    cross: list[KeysValues]


def stream(
    model: WhisperModel,
    context: Float[Array, "frames width"],
    *,
    record: Record,
    group: int = GROUP,
    look: Callable[[Live, int], Any] | None = None,
    new: int | None = None,
    forced: bool = False,
) -> Iterator[Piece]:
    """Decode one encoder output greedily, a group of tokens at a time.

    Parameters
    ----------
    model : any Whisper.
    context : (F, D) encoder output.
    record : what sub-blocks and which blocks to keep; the rest of it is ignored.
    group : tokens at once. One token comes a step after it was chosen; more share what every call costs.
    look : called after each group with what is there and the step of its first token, before it is known how many of
        the group there are; what it returns comes with the piece. It must not wait.
    new, forced : as in `decode`.

    Yields
    ------
    Piece

    Raises
    ------
    InputError
        A group below 1, a record of blocks that the model has not.

    Examples
    --------
    >>> from spectral_theorem.whisper import Dims, greedy, random_model
    >>> dims = Dims(width=4, mels=3, frames=5, vocabulary=6, positions=7, encoder_layers=1, encoder_heads=1,
    ...             encoder_hidden=8, decoder_layers=2, decoder_heads=1, decoder_hidden=8)
    >>> model, c = random_model(jax.random.key(0), dims), jnp.ones((5, 4), jnp.float32)
    >>> pieces = list(stream(model, c, record=Record(mlp=True), group=2))
    >>> said = [token for piece in pieces for token in piece.tokens]
    >>> said == greedy(model, c[None]).tokens[0, 1 : len(said) + 1].tolist(), pieces[0].added["mlp"].shape[::2]
    (True, (2, 4))
    """
    if group < 1:
        refuse(f"group={group}", "at least one token", f"group={GROUP}")
    record.check(model.dims.decoder_layers)
    prompt = model.generation.prompt
    settings, table, pad = decode.prepared(model, [prompt], new=new, forced=forced)
    names = tuple(name for name in ("self_attention", "cross_attention", "mlp") if getattr(record, name))
    kept = record.layers or tuple(range(model.dims.decoder_layers))
    begin, go_on = _programs(settings, group, names, kept)
    parameters = model.parameters["decoder"]
    rows = (None, table, pad, None)
    cross, state, taken = begin(parameters, (context[None], *rows[1:]))
    first = 0
    while True:
        looked = None if look is None else look(Live(state.tokens[0], len(prompt), state.caches, cross), first)
        # under way before this group is looked at; where the transcript has ended, it does nothing
        state, ahead = go_on(parameters, rows, cross, state)
        count, over, tokens, logprobs, added = jax.device_get(taken)
        said = tuple(map(int, tokens[:count])), tuple(map(float, logprobs[:count]))
        parts = added.reshape(len(names), len(kept), *added.shape[1:])[:, :, :count]
        yield Piece(first, *said, dict(zip(names, parts, strict=True)), looked, bool(over))
        if over:
            return
        first, taken = first + int(count), ahead


@functools.lru_cache(maxsize=16)
def _programs(settings: LoopSettings, group: int, names: tuple[str, ...], kept: tuple[int, ...]) -> tuple[Any, Any]:
    """Return the compiled beginning and going on of given settings, always the same objects."""
    of = lambda added: jnp.stack([added[block][name][0] for name in names for block in kept])

    def several(parameters: Parameters, rows: Any, cross: Any, state: Going, taken: Any) -> tuple[Going, Any]:
        """Go on until the group is full or the transcript has ended."""
        shared, start = (parameters, None), rows[1].shape[1]

        def step(carry: Any) -> Any:
            state, (count, tokens, logprobs, added) = carry
            state, found = decode.advanced(shared, rows, cross, state, settings)
            place = start + state.count - 1
            return state, (
                count + 1,
                tokens.at[count].set(state.tokens[0, place]),
                logprobs.at[count].set(state.logprobs[0, place]),
                jax.lax.dynamic_update_index_in_dim(added, of(found), count, axis=1) if names else added,
            )

        more = lambda carry: (carry[1][0] < group) & decode.going(carry[0], settings)
        state, (count, tokens, logprobs, added) = jax.lax.while_loop(more, step, (state, taken))
        return state, (count, ~decode.going(state, settings), tokens, logprobs, added)

    def nothing(parameters: Parameters, like: Any) -> Any:
        width = parameters["embed_tokens"]["embedding"].shape[1]
        added = jnp.zeros((len(names) * len(kept), group, width), like.caches[0].keys.dtype)
        return jnp.asarray(0, jnp.int32), jnp.zeros(group, jnp.int32), jnp.zeros(group, like.logprobs.dtype), added

    def begin(parameters: Parameters, rows: Any) -> tuple[Any, Going, Any]:
        cross, _, state, found = decode.opened((parameters, None), rows, settings)
        count, tokens, logprobs, added = nothing(parameters, state)
        place = rows[1].shape[1]
        taken = (
            count + 1,
            tokens.at[0].set(state.tokens[0, place]),
            logprobs.at[0].set(state.logprobs[0, place]),
            added.at[:, 0].set(of(found)) if names else added,
        )
        return cross, *several(parameters, rows, cross, state, taken)

    def go_on(parameters: Parameters, rows: Any, cross: Any, state: Going) -> tuple[Going, Any]:
        return several(parameters, rows, cross, state, nothing(parameters, state))

    return jax.jit(begin), jax.jit(go_on, donate_argnames="state")
