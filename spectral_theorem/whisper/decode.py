"""Decode: one compiled loop that takes the likeliest token or draws one, with cached keys and values."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int, Key

from ..types import container, refuse
from . import rules
from .blocks import Parameters
from .cached import advance, cross_caches, empty_caches
from .generation import Generation
from .model import WhisperModel
from .options import TIMESTAMP_SECONDS
from .parallel import over_clips
from .passes import read_out


@container
class Decoded:
    """Hold a batch of decoded sequences.

    Attributes
    ----------
    tokens : (B, T) int32  prompt, then generated tokens; end-of-text fills the rest, and the places
        at the left that a shorter prompt leaves.
    logprobs : (B, T)  log-probability of each generated token; 0 elsewhere.
    length : (B,) int32  places in use up to the last, end-of-text included if it was reached.
    finished : (B,) bool
    no_speech : (B,)  probability of the no-speech token, NaN when there is none.
    start : (B,) int32  place of the first generated token.
    pad : (B,) int32  places at the left that hold nothing.
    """

    tokens: Int[Array, "batch length"]
    logprobs: Float[Array, "batch length"]
    length: Int[Array, " batch"]
    finished: Bool[Array, " batch"]
    no_speech: Float[Array, " batch"]
    start: Int[Array, " batch"]
    pad: Int[Array, " batch"]


@dataclasses.dataclass(frozen=True)
class LoopSettings:
    """Hold what the compiled loop depends on; another value compiles another loop.

    Parameters
    ----------
    generation : tokens that are suppressed, end, no-speech.
    heads : of the decoder.
    tail : tokens of the prompt from start-of-transcript on.
    new : most tokens to generate.
    timestamps : whether the rules of timestamps apply.
    initial_limit : first timestamp at most, in steps of 0.02 s, or None.
    drawn : whether tokens are drawn, at a temperature, rather than the likeliest taken.
    forced : never choose end-of-text, so that the loop runs to its end; for measurements of speed.
    """

    generation: Generation
    heads: int
    tail: int
    new: int
    timestamps: bool = False
    initial_limit: int | None = None
    drawn: bool = False
    forced: bool = False


def greedy(model: WhisperModel, context: Float[Array, "batch frames width"], *, mesh: Mesh | None = None) -> Decoded:
    """Decode a batch of encoder outputs, taking the likeliest token at every step.

    Parameters
    ----------
    model : prompt, suppressed tokens and longest length come from `model.generation`.
    context : (B, F, D) encoder outputs.
    mesh : devices to share the batch, from `clip_mesh`.

    Returns
    -------
    Decoded
        Log-probabilities are those after suppression.
    """
    prompts = [model.generation.prompt] * context.shape[0]
    return decode(model, context, prompts, mesh=mesh)


def decode(
    model: WhisperModel,
    context: Float[Array, "batch frames width"],
    prompts: Sequence[Sequence[int]],
    *,
    tail: int | None = None,
    width: int | None = None,
    new: int | None = None,
    timestamps: bool = False,
    max_initial_timestamp: float | None = 1.0,
    temperature: float = 0.0,
    keys: Key[Array, " batch"] | None = None,
    mesh: Mesh | None = None,
    forced: bool = False,
    parameters: Parameters | None = None,
) -> Decoded:
    r"""Decode a batch of encoder outputs, each after its own prompt.

    .. math:: x_{t} = \arg\max_x \ell_t(x), \quad\text{or}\quad x_{t} \sim \mathrm{softmax}(\ell_t/\tau)

    Parameters
    ----------
    model : any Whisper.
    context : (B, F, D) encoder outputs.
    prompts : ids of each row, of any lengths; shorter ones are filled up at the left.
    tail : tokens of a prompt from start-of-transcript on, the same in all; all of it by default.
    width : fill prompts up to this length; by default the longest one's.
    new : most tokens to generate; by default as many as `generation.longest` has room for.
    timestamps : whether the rules of timestamps apply (`rules.keep_timestamps`).
    max_initial_timestamp : in seconds, or None.
    temperature : tau; 0 takes the likeliest token.
    keys : (B,) PRNG keys, one per row; needed when the temperature is positive.
    mesh : devices to share the batch, from `clip_mesh`.
    forced : never end: generate all `new` tokens, for measurements of speed.
    parameters : of the decoder, when they were put on the devices before.

    Returns
    -------
    Decoded
        Log-probabilities are those after suppression, at temperature 1.

    Raises
    ------
    InputError
        If prompts leave no room, or keys are missing.

    Notes
    -----
    One loop with key-value caches, compiled per shape. A row depends on no other row: it decodes
    alone as in a batch, up to rounding.
    """
    if temperature > 0 and keys is None:
        refuse(f"temperature={temperature} without keys", "one PRNG key per row", "jax.random.split(key, batch)")
    limit = None if max_initial_timestamp is None else round(max_initial_timestamp / TIMESTAMP_SECONDS)
    settings, table, pad = prepared(
        model,
        prompts,
        tail=tail,
        width=width,
        new=new,
        timestamps=timestamps,
        initial_limit=limit if timestamps else None,
        drawn=temperature > 0,
        forced=forced,
    )
    rows = (context, table, pad, keys if settings.drawn else None)
    shared = (model.parameters["decoder"] if parameters is None else parameters, jnp.float32(temperature))
    return over_clips(_loop(settings), mesh, shared, rows)


def prepared(
    model: WhisperModel,
    prompts: Sequence[Sequence[int]],
    *,
    tail: int | None = None,
    width: int | None = None,
    new: int | None = None,
    **more: Any,
) -> tuple[LoopSettings, Int[Array, "batch longest"], Int[Array, " batch"]]:
    """Return what a loop is compiled for, its prompts as one table, and the places at the left that hold nothing.

    Parameters
    ----------
    model, prompts, tail, width, new : as in `decode`. more : other fields of `LoopSettings`.

    Raises
    ------
    InputError
        If prompts leave no room.
    """
    generation, dims = model.generation, model.dims
    longest = max(*map(len, prompts), width or 0)
    shortest = min(len(prompt) for prompt in prompts)
    tail = shortest if tail is None else tail
    new = generation.longest - longest if new is None else new
    if not 1 <= tail <= shortest or new < 1 or longest + new > dims.positions:
        refuse(
            f"prompts of {shortest} to {longest} tokens and {new} new ones",
            f"at least one of each, together at most {dims.positions}, the model's positions",
            "shorter prompts",
        )
    table = np.full((len(prompts), longest), generation.end, np.int32)
    for row, prompt in zip(table, prompts, strict=True):
        row[longest - len(prompt) :] = prompt
    pad = jnp.asarray([longest - len(prompt) for prompt in prompts], jnp.int32)
    settings = LoopSettings(generation=generation, heads=dims.decoder_heads, tail=tail, new=new, **more)
    return settings, jnp.asarray(table), pad


@functools.lru_cache(maxsize=64)
def _loop(settings: LoopSettings) -> Any:
    """Return the compiled loop of given settings, always the same object."""
    return jax.jit(functools.partial(_decode, settings=settings))


def _decode(shared: Any, rows: Any, *, settings: LoopSettings) -> Decoded:
    prompts, pad = rows[1], rows[2]
    cross, no_speech, state, _ = opened(shared, rows, settings)
    step = lambda state: advanced(shared, rows, cross, state, settings)[0]
    state = jax.lax.while_loop(lambda state: going(state, settings), step, state)
    batch, begin = prompts.shape
    generated = (state.tokens[:, begin:] != settings.generation.end).sum(1).astype(jnp.int32)
    start = jnp.full(batch, begin, jnp.int32)
    length = begin + generated + state.finished
    return Decoded(state.tokens, state.logprobs, length, state.finished, no_speech, start, pad)


@container
class Going:
    """Hold where a loop stands.

    Attributes
    ----------
    count : tokens generated so far, of the row that is longest.
    tokens, logprobs, finished : as in `Decoded`.
    latest : (B,)  last timestamp, or `rules.NONE`.
    caches : self-attention's keys and values, per block.
    """

    count: Int[Array, ""]
    tokens: Int[Array, "batch length"]
    logprobs: Float[Array, "batch length"]
    finished: Bool[Array, " batch"]
    latest: Int[Array, " batch"]
    caches: list[Any]


def going(state: Going, settings: LoopSettings) -> Bool[Array, ""]:
    """Say whether another token is due."""
    return (state.count < settings.new) & ~state.finished.all()


def opened(shared: Any, rows: Any, settings: LoopSettings) -> tuple[Any, Array, Going, list[dict[str, Array]]]:
    """Run the prompts and choose the first token of every row.

    Parameters
    ----------
    shared : parameters of the decoder, and the temperature.
    rows : encoder outputs (B, F, D), prompts (B, n), places at the left that hold nothing (B,), and keys or None.
    settings : of the loop.

    Returns
    -------
    cross : cross-attention's keys and values, per block.
    no_speech : (B,)  probability of the no-speech token.
    state : with one token.
    added : per block, what sub-blocks add at the place that chose it, (B, D), as `cached.advance` names it.
    """
    (parameters, _), (context, prompts, pad, _) = shared, rows
    generation, heads, layers = settings.generation, settings.heads, _layers(parameters)
    wide = jnp.promote_types(context.dtype, jnp.float32)
    (batch, begin), width = prompts.shape, context.shape[-1]
    longest = begin + settings.new
    cross = cross_caches(layers, context, heads)
    caches = empty_caches(layers, batch, longest, width, heads, context.dtype)
    h, caches, added = advance(parameters, layers, prompts, 0, pad, caches, cross, heads)
    no_speech = jnp.full(batch, jnp.nan, wide)
    if generation.no_speech is not None:
        opening = read_out(parameters, h[:, begin - settings.tail]).astype(wide)
        no_speech = jax.nn.softmax(opening, axis=-1)[:, generation.no_speech]
    state = Going(
        count=jnp.asarray(0, jnp.int32),
        tokens=jnp.pad(prompts, ((0, 0), (0, settings.new)), constant_values=generation.end),
        logprobs=jnp.zeros((batch, longest), wide),
        finished=jnp.zeros(batch, bool),
        latest=jnp.full(batch, rules.NONE, jnp.int32),
        caches=caches,
    )
    state = _note(shared, rows, state, read_out(parameters, h[:, -1]), settings, first=True)
    return cross, no_speech, state, jax.tree.map(lambda x: x[:, -1], added)


def advanced(
    shared: Any, rows: Any, cross: Any, state: Going, settings: LoopSettings
) -> tuple[Going, list[dict[str, Array]]]:
    """Run the newest token of every row and choose the next.

    Parameters
    ----------
    shared, rows, settings : as for `opened`; encoder outputs are not looked at.
    cross, state : from `opened`, or from here.

    Returns
    -------
    state, added : as `opened` returns them.
    """
    parameters, pad = shared[0], rows[2]
    place = rows[1].shape[1] + state.count - 1
    newest = jax.lax.dynamic_slice_in_dim(state.tokens, place, 1, axis=1)
    layers = _layers(parameters)
    h, caches, added = advance(parameters, layers, newest, place, pad, state.caches, cross, settings.heads)
    state = dataclasses.replace(state, caches=caches)
    return _note(shared, rows, state, read_out(parameters, h[:, 0]), settings), jax.tree.map(lambda x: x[:, 0], added)


def _layers(parameters: Parameters) -> list[Parameters]:
    return [parameters["layers"][index] for index in sorted(parameters["layers"])]


def _note(shared: Any, rows: Any, state: Going, logits: Array, settings: LoopSettings, *, first: bool = False) -> Going:
    """Add the next token to every row that has not ended."""
    generation, begin = settings.generation, rows[1].shape[1]
    chosen, gained = _chosen(shared, rows, state, logits, settings, first)
    chosen = jnp.where(state.finished, generation.end, chosen)
    gained = jnp.where(state.finished, 0.0, gained)
    put = lambda table, column: jax.lax.dynamic_update_slice_in_dim(table, column[:, None], begin + state.count, axis=1)
    latest = state.latest
    if generation.first_timestamp is not None:
        latest = jnp.where(~state.finished & (chosen >= generation.first_timestamp), chosen, latest)
    return Going(
        count=state.count + 1,
        tokens=put(state.tokens, chosen),
        logprobs=put(state.logprobs, gained),
        finished=state.finished | (chosen == generation.end),
        latest=latest,
        caches=state.caches,
    )


def _chosen(
    shared: Any, rows: Any, state: Going, logits: Array, settings: LoopSettings, first: bool
) -> tuple[Array, Array]:
    """Return the next token of every row, and its log-probability."""
    (_, temperature), (_, prompts, _, keys) = shared, rows
    generation, begin, wide = settings.generation, prompts.shape[1], state.logprobs.dtype
    vocabulary = logits.shape[-1]
    mask = rules.forbidden(vocabulary, generation.suppress, wide)
    if settings.forced:
        mask = mask + rules.forbidden(vocabulary, [generation.end], wide)
    if first:
        mask = mask + rules.forbidden(vocabulary, generation.suppress_first, wide)
    # Fused with what follows, the product with 51,864 rows runs eight times slower on a CPU.
    scores = jax.lax.optimization_barrier(logits).astype(wide) + mask
    if settings.timestamps and generation.first_timestamp is not None:
        if generation.no_timestamps is not None:
            scores = scores.at[:, generation.no_timestamps].set(-jnp.inf)
        count, tokens = state.count, state.tokens
        generated = lambda back: jnp.where(count >= back, tokens[:, begin + count - back], rules.NONE)
        keep = functools.partial(
            rules.keep_timestamps,
            first=generation.first_timestamp,
            end=generation.end,
            initial_limit=settings.initial_limit,
        )
        scores = jax.vmap(keep)(scores, generated(1), generated(2), state.latest)
    if settings.drawn:
        step_keys = jax.vmap(jax.random.fold_in, (0, None))(keys, state.count)
        noise = jax.vmap(lambda key: jax.random.gumbel(key, (vocabulary,), wide))(step_keys)
        chosen = jnp.argmax(scores / temperature.astype(wide) + noise, axis=-1).astype(jnp.int32)
    else:
        chosen = jnp.argmax(scores, axis=-1).astype(jnp.int32)
    # Relative to the chosen token: of a token that is nearly certain, no digits are lost.
    gained = -jax.nn.logsumexp(scores - jnp.take_along_axis(scores, chosen[:, None], axis=1), axis=-1)
    return chosen, gained


def language_probabilities(
    model: WhisperModel, context: Float[Array, "batch frames width"]
) -> Float[Array, "batch languages"]:
    """Return how likely each language is, from the first token after start-of-transcript.

    Parameters
    ----------
    model : a multilingual Whisper.
    context : (B, F, D) encoder outputs.

    Returns
    -------
    probabilities : (B, number of languages), in the order of `model.generation.languages`; they sum to 1.

    Raises
    ------
    InputError
        If the model is English-only.
    """
    generation = model.generation
    if not generation.multilingual:
        refuse("an English-only model", "a multilingual one", "language='en'")
    ids = np.asarray([id for _, id in generation.languages])
    tokens = jnp.full((context.shape[0], 1), generation.prompt[0], jnp.int32)
    logits = model.logits(tokens, context)[:, 0, ids]
    return jax.nn.softmax(logits.astype(jnp.promote_types(logits.dtype, jnp.float32)), axis=-1)
