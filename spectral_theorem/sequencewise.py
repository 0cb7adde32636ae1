r"""Measure a whole clip at once, nothing frozen: transcript → layers of all positions → one verification.

State: the residual stream of every position up to the last token asked for. Its derivative by the
encoder output is the total one, where token scope holds the past fixed.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .console import aligned, verification_text
from .products import Products
from .provenance import free_memory
from .scopes import (
    ScopeComparison,
    compare_scopes,
    comparison_table,
    context_rows,
    pull_rows,
    push_rows,
    sequence_chain,
    sequence_triplets,
)
from .steps import chosen_steps
from .summary import to_plain
from .tokenwise import Granularity
from .types import Thresholds, refuse
from .whisper import Dims, Transcription, WhisperModel, encode_audio, greedy, transcriptions
from .whisper.sequence import sequence_layers
from .whisper.tangents import SequenceMaps, context_frames, sequence_maps
from .wide import WideVerification, verify_wide

ROWS_AT_ONCE = 4  # every product has so many rows, so that each kind of layer compiles once
SEED = 0
SKETCH, PROBES = 16, 32
PROGRAMS = 1.2e9  # bytes that compiled functions take, whatever the sizes
NOTE = (
    "Sequence scope: all positions are the state, and nothing is held fixed, so this is the chain of the total "
    "derivative. Triplets are converged estimates. The norm of the residual is estimated by random probes, and its "
    "interval of 95 % is an allowance of the claims about it."
)


@dataclasses.dataclass(frozen=True)
class SequenceMeasurement:
    """Hold what was found of all positions of one clip.

    Attributes
    ----------
    transcription : the greedy transcript.
    steps : generated tokens asked for, from 0; the sequence ends with the last of them.
    position : of that token in the residual stream; the state has position + 1 rows.
    names : what each layer is.
    found : the verification, and how the norm of the residual was found.
    norms : (L,)  exact norms of the injections.
    comparison : token scope beside sequence scope at that token.
    jacobian_check : relative distance of random rows of the total derivative, by our maps and by the model itself.
    context_size : frames * D.
    """

    transcription: Transcription
    steps: tuple[int, ...]
    position: int
    names: tuple[str, ...]
    found: WideVerification
    norms: Any
    comparison: ScopeComparison
    jacobian_check: float
    context_size: int

    def to_dict(self) -> dict[str, Any]:
        """Return the verification as plain values with what belongs to the clip."""
        t, residual = self.transcription, self.found.residual
        plain = to_plain(self.found.verification)
        for layer, size in zip(plain["layers"], self.norms, strict=True):
            layer["injection_norm"] = float(size)
        finite = lambda x: float(x) if math.isfinite(float(x)) else None
        plain["path"] |= {
            f"log_residual_{name}": finite(getattr(residual, f"log_{name}"))
            for name in ("error", "lower", "upper", "spectral")
        }
        width = self.comparison.token.u.shape[1]
        return plain | {
            "transcript": t.text,
            "avg_logprob": t.avg_logprob,
            "tokens": list(t.tokens),
            "duration": t.duration,
            "scope": "sequence",
            "step": self.steps[-1],
            "steps": list(self.steps),
            "position": self.position,
            "positions": self.position + 1,
            "names": list(self.names),
            "state_size": (self.position + 1) * width,
            "context_size": self.context_size,
            "residual_rows": residual.rows,
            "jacobian_check": self.jacobian_check,
            "scopes": self.comparison.to_dict(),
            "note": NOTE,
        }


def measure_sequence(
    model: WhisperModel,
    audio: Any,
    *,
    steps: str | Sequence[int] = "all",
    granularity: Granularity = "block",
    thresholds: Thresholds | None = None,
    tolerance: float | None = None,
    memory: float | None = None,
) -> SequenceMeasurement:
    r"""Transcribe a clip and check the theorem on all positions together.

    .. math:: W_l = \partial H_l/\partial H_{l-1}, \qquad G_l = \partial H_l/\partial c, \qquad H_l \in \mathbb R^{TD}

    Parameters
    ----------
    model : WhisperModel in float32 or float64, which is the precision of every number.
    audio : a sound file, or (n,) samples at 16 kHz, at most one window.
    steps : "all", a list such as "0,2,5-7", or numbers; one chain covers the positions up to the last of them.
    granularity : "block" or "sub-block".
    thresholds : as in `verify`.
    tolerance : residual of the triplets to reach, relative to :math:`\sigma_1`; default 64 eps.
    memory : bytes that may be used beside the model; default what the machine has free.

    Returns
    -------
    SequenceMeasurement

    Raises
    ------
    InputError
        Unusable audio, no steps, a step beyond the transcript, a half-precision model, non-finite activations, or more
        memory than allowed (with the steps that would fit).

    Notes
    -----
    Nothing of the size of W or G is formed. Random starts and probes have a fixed seed.

    References
    ----------
    docs/theory/whisper.md (sequence scope).

    Examples
    --------
    >>> from spectral_theorem.whisper import random_model
    >>> dims = Dims(width=8, mels=4, frames=10, vocabulary=6, positions=9, encoder_layers=1, encoder_heads=2,
    ...             encoder_hidden=8, decoder_layers=2, decoder_heads=2, decoder_hidden=8)
    >>> found = measure_sequence(random_model(jax.random.key(0), dims), np.zeros(3200, np.float32), steps="0,1")
    >>> found.steps, found.to_dict()["claims"]["identity"]["verdict"]
    ((0, 1), 'HOLDS')
    """
    if np.dtype(model.dtype).itemsize < 4:
        refuse(f"a model in {np.dtype(model.dtype)}", "float32 or float64, in which the theory is checked", "float32")
    encoded, seconds = encode_audio(model, audio)
    transcription = transcriptions(model, greedy(model, encoded[None]), [seconds])[0]
    wanted = chosen_steps(steps, transcription.steps)
    position = transcription.position(wanted[-1])
    _affordable(model.dims, np.dtype(model.dtype).itemsize, granularity, transcription.position(0), position, memory)
    tokens = transcription.sequence[: position + 1]
    maps = sequence_maps(model, encoded, tokens, granularity, norms=True)
    bad = np.flatnonzero(~np.isfinite(np.asarray(maps.states)).all(axis=1))
    if bad.size:
        where = "before the first layer" if bad[0] == 0 else f"after {maps.names[bad[0] - 1]}"
        refuse(f"non-finite activations {where}", "finite numbers", "a checkpoint without NaN")
    for_triplets, for_rest, for_check, for_scopes = jax.random.split(jax.random.key(SEED), 4)
    triplets = sequence_triplets(sequence_chain(maps), key=for_triplets, tolerance=tolerance)
    products = sequence_products(maps)
    found = verify_wide(products, triplets, maps.norms, thresholds, key=for_rest, sketch=SKETCH, probes=PROBES)
    return SequenceMeasurement(
        transcription=transcription,
        steps=wanted,
        position=position,
        names=maps.names,
        found=found,
        norms=maps.norms,
        comparison=compare_scopes(
            for_scopes,
            model=model,
            encoder_output=encoded,
            tokens=tokens,
            position=position,
            granularity=granularity,
            known=(maps, triplets),
        ),
        jacobian_check=_check(sequence_layers(model, encoded, tokens, granularity), products, for_check),
        context_size=model.dims.frames * model.dims.width,
    )


def sequence_products(maps: SequenceMaps) -> Products:
    """Return the layers of a sequence as products, a few rows at a time.

    Parameters
    ----------
    maps : from `sequence_maps` with `norms`.
    """
    state, context = maps.states[0], maps.context

    def read(layer: int, y: Any, start: int = 0, stop: int | None = None) -> Any:
        injection, like = maps.injections[layer], context[start:stop].ravel()
        if like.size < context.size:
            injection = context_frames(injection, start, start + like.size // context.shape[1])
        return _by_few(lambda rows: pull_rows(injection, like, rows), y)

    if maps.norms is None:
        raise ValueError("got maps without norms; expected sequence_maps(..., norms=True)")
    return Products(
        push=lambda layer, x: _by_few(lambda rows: push_rows(maps.propagators[layer], rows), x),
        pull=lambda layer, y: _by_few(lambda rows: pull_rows(maps.propagators[layer], state, rows), y),
        enter=lambda layer, x: _by_few(lambda rows: push_rows(maps.injections[layer], rows), x),
        read=read,
        injects=tuple(bool(size > 0) for size in np.asarray(maps.norms)),
        width=state.size,
        frames=context.shape[0],
        context_size=context.size,
        dtype=state.dtype,
    )


def _by_few(function: Any, rows: Any) -> Any:
    """Apply a function of `ROWS_AT_ONCE` rows to any number of them."""
    count = len(rows)
    padded = jnp.pad(rows, ((0, -count % ROWS_AT_ONCE), (0, 0)))
    done = [function(padded[first : first + ROWS_AT_ONCE]) for first in range(0, len(padded), ROWS_AT_ONCE)]
    return (jnp.concatenate(done) if len(done) > 1 else done[0])[:count]


def _check(layers: Any, products: Products, key: Any) -> float:
    """Compare rows of dH_L/dc by our maps with those that the model's own layers give."""
    y = jax.random.normal(key, (ROWS_AT_ONCE, products.width), products.dtype)
    theirs = context_rows(layers.layers, layers.state, layers.context, y)
    ours = jnp.zeros_like(theirs)
    for layer in range(products.depth - 1, -1, -1):
        ours = ours + products.read(layer, y)
        y = products.pull(layer, y)
    return float(jnp.linalg.norm(ours - theirs) / jnp.linalg.norm(theirs))


def sequence_text(name: str, chain: Mapping[str, Any]) -> str:
    """Lay out one clip in sequence scope: transcript, token scope beside it, then the verification.

    Parameters
    ----------
    name : of the clip. chain : as `SequenceMeasurement.to_dict` gives it, with `chance_kappa`.
    """
    path = chain["path"]
    truth, rows = path["log_residual_norm"], chain["residual_rows"]
    ends = [path[f"log_residual_{end}"] for end in ("lower", "upper")]
    size = "0" if truth is None else f"exp({truth:.4g})"
    if rows < chain["state_size"] and None not in (truth, *ends):
        size += f", 95 % within {math.expm1(ends[0] - truth):+.2%} and {math.expm1(ends[1] - truth):+.2%}, {rows} rows"
    about = aligned(
        [
            ["transcript", repr(chain["transcript"])],
            [
                "state",
                f"positions 0 to {chain['position']}, {chain['state_size']:,} numbers; up to step {chain['step']}",
            ],
            ["layers", ", ".join(f"{i} = {each}" for i, each in enumerate(chain["names"], 1))],
            ["context", f"all {chain['context_size']:,} entries"],
            ["residual norm", size],
            ["checked", f"dH/dc by our maps against the model's own layers: {chain['jacobian_check']:.1e} relative"],
            ["chance", f"|kappa| of two random directions here: {chain['chance_kappa']:.4f} on average"],
        ],
        words=1,
    )
    return f"{about}\n{chain['note']}\n\n{comparison_table(chain['scopes'])}\n\n{verification_text(chain, title=name)}"


def sequence_bytes(dims: Dims, itemsize: int, granularity: Granularity, positions: int) -> int:
    """Estimate the memory of a measurement in sequence scope beside the model, in bytes.

    Parameters
    ----------
    dims, granularity : of the model and chain. itemsize : bytes of a number. positions : T.
    """
    d, blocks, heads, hidden = dims.width, dims.decoder_layers, dims.decoder_heads, dims.decoder_hidden
    parts = 1 if granularity == "block" else 3
    depth, state, context = parts * blocks, positions * d, dims.frames * d
    weights = 8 * d * d + 2 * d * hidden
    point = state * (d // heads + 13) + heads * positions**2 + positions * hidden
    content = heads * positions * dims.frames + context
    # the chain holds its layers as one stack, each part of a block with the weights of all of it
    kept = blocks * (2 * point + content + parts * weights) + depth * state
    read = sum(min(4 + depth - k, state) for k in range(parts, depth + 1, parts))
    stages = {
        "triplets": 1.5 * min(384, state) * state + weights + point + 8 * positions * (hidden + 8 * d),
        "rows": read * state + 2 * read**2 + 5 * 2**26 / itemsize,
        "residual": (3 * PROBES + 4 * ROWS_AT_ONCE) * context + 200 * state,
        "scopes": 130 * depth * state + 150 * context + 3 * depth * d * d,
    }
    # small models never fill a whole part of the rows
    stages["rows"] = min(stages["rows"], read * state + 2 * read**2 + 5 * read * context)
    return int(PROGRAMS + itemsize * (kept + max(stages.values())))


def _affordable(
    dims: Dims, itemsize: int, granularity: Granularity, first: int, position: int, memory: float | None
) -> None:
    """Refuse a sequence that does not fit into memory, with what would."""
    limit = free_memory() if memory is None else memory
    need = lambda position: sequence_bytes(dims, itemsize, granularity, position + 1)
    if need(position) <= limit:
        return
    fits = [each for each in range(first, position) if need(each) <= limit]
    cheaper = "--dtype float32" if itemsize > 4 else "--scope token"
    refuse(
        f"{position + 1} positions at once, which take about {need(position) / 1e9:.2g} GB",
        f"at most {limit / 1e9:.2g} GB",
        f"--steps {fits[-1] - first}" if fits else cheaper,
    )
