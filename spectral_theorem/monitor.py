r"""Watch a decoding while it goes on: spectra of the newest activations at every token, :math:`\lambda` where asked.

Nothing is hooked into the model: decoding hands out what its blocks added, and blocks are taken apart again from the
keys and values that it keeps anyway.
"""

import dataclasses
import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .alarms import DEFAULT, SIGNALS, Alarms, Raised, calibrate, sources, worst
from .engine import layer_quantities, leading_triplets
from .observables import effective_rank, spectral_slopes
from .rolling import Rolling
from .studyfile import COMPONENTS
from .types import refuse
from .whisper import Record, WhisperModel, encode_audio
from .whisper.live import crossings, newest_factors
from .whisper.passes import embed
from .whisper.sensitivity import kernels_for_rows
from .whisper.streaming import GROUP, Live, Piece, stream
from .whisper.windows import read_samples

WINDOW, MODES = 16, 10
TOLERANCE = 1e-2
GAINS = ("sigma1", "xi", "kappa_abs", "lam", "lam_error")
_MOST = 16  # vectors of a Krylov basis: warm starts converge within few products


@dataclasses.dataclass(frozen=True, eq=False)
class Step:
    r"""Hold what was seen at one generated token.

    Attributes
    ----------
    clip : name that `watch` was given. start : seconds at which the model's window starts in the clip.
    step, position : generated token from 0 in its window, end-of-text included; residual position that predicts it.
    token, text, logprob : id, how the vocabulary writes it (None without one), log-probability in nats.
    positions : in the sliding window that ends here.
    effective_rank, alpha, alpha_error : (components, K) of the window's activations, NaN where they are not defined.
    alpha_failed : (components, K) place in `observables.REASONS`; 0 where a power law fits.
    gains : `sigma1`, `xi`, `kappa_abs`, `lam`, `lam_error` of the decoder's blocks, (L,) each, or None where they were
        not measured at this step. The last block has no coupling: NaN.
    values : what signals are made of, by name (`alarms.sources`).
    alarms : raised at this step.
    last : whether the window's transcript ends here.
    """

    clip: str
    start: float
    step: int
    position: int
    token: int
    text: str | None
    logprob: float
    positions: int
    effective_rank: np.ndarray
    alpha: np.ndarray
    alpha_error: np.ndarray
    alpha_failed: np.ndarray
    gains: Mapping[str, np.ndarray] | None
    values: Mapping[str, float]
    alarms: tuple[Raised, ...]
    last: bool

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, JSON-ready: a number that is not defined, or not finite, is None."""
        plain: dict[str, Any] = {name: getattr(self, name) for name in _SCALARS}
        plain |= {name: _listed(getattr(self, name)) for name in ("effective_rank", "alpha", "alpha_error")}
        plain["alpha_failed"] = self.alpha_failed.tolist()
        plain["gains"] = None if self.gains is None else {name: _listed(x) for name, x in self.gains.items()}
        plain["values"] = {name: x if math.isfinite(x) else None for name, x in self.values.items()}
        plain["alarms"] = [dataclasses.asdict(one) for one in self.alarms]
        return plain


_SCALARS = ("clip", "start", "step", "position", "token", "text", "logprob", "positions", "last")


def _listed(x: np.ndarray) -> list[Any]:
    if np.isfinite(x).all():
        return x.tolist()
    return np.where(np.isfinite(x), x, np.asarray(None, dtype=object)).tolist()


@dataclasses.dataclass(frozen=True, eq=False)
class Monitor:
    r"""Watch the greedy decoding of one model.

    Parameters
    ----------
    model : WhisperModel in float32 or float64.
    window : positions that a spectrum is taken over, those before the newest; the first steps have fewer.
    modes : use the largest so many eigenvalues.
    components : of "self_attention", "cross_attention" and "mlp", what these add to the residual stream.
    layers : decoder blocks whose activations are watched, from 1; None watches all.
    every : measure :math:`\lambda` at every so-manieth step; 0 never does.
    tolerance : residual of the singular triplets to reach, relative to :math:`\sigma_1`.
    group : tokens at once. A record comes up to two groups after its token was chosen; small groups cost more.

    Raises
    ------
    InputError
        A half-precision model, or numbers out of range.

    Notes
    -----
    Numbers are those of `spectrum`, `effective_rank` and `spectral_slope` on the window, and of `study.collect` for
    gains, up to the tolerance. Windows of a group share their inner products; gains start from the vectors of the
    group before.

    References
    ----------
    docs/guides/monitor.md, docs/theory/observables.md; scripts/bench_monitor.py (what it costs).

    Examples
    --------
    >>> from spectral_theorem.whisper import Dims, random_model
    >>> dims = Dims(width=8, mels=4, frames=10, vocabulary=6, positions=9, encoder_layers=1, encoder_heads=2,
    ...             encoder_hidden=8, decoder_layers=2, decoder_heads=2, decoder_hidden=8)
    >>> monitor = Monitor(random_model(jax.random.key(0), dims), every=2)
    >>> steps = list(monitor.watch(np.zeros(1600, np.float32)))
    >>> steps[1].effective_rank.shape, steps[1].positions, steps[1].gains is None, steps[2].gains["lam"].shape
    ((3, 2), 2, True, (2,))
    """

    model: WhisperModel
    window: int = WINDOW
    modes: int = MODES
    components: tuple[str, ...] = COMPONENTS
    layers: tuple[int, ...] | None = None
    every: int = 0
    tolerance: float = TOLERANCE
    group: int = GROUP

    def __post_init__(self) -> None:
        if np.dtype(self.model.dtype).itemsize < 4:
            refuse(f"a model in {np.dtype(self.model.dtype)}", "float32 or float64", "dtype='float32'")
        for name, least in (("window", 2), ("modes", 1), ("every", 0), ("group", 1)):
            if getattr(self, name) < least:
                refuse(f"{name}={getattr(self, name)}", f"at least {least}", f"{name}={max(least, 8)}")
        if not self.components or not set(self.components) <= set(COMPONENTS):
            refuse(f"components={self.components}", f"some of {', '.join(COMPONENTS)}", f"components={COMPONENTS}")
        depth = self.model.dims.decoder_layers
        if self.layers is not None and (not self.layers or not set(self.layers) <= set(range(1, depth + 1))):
            refuse(f"layers={self.layers}", f"some of 1 to {depth}, the decoder's blocks", "layers=None")
        least = 16 * float(np.finfo(self.model.dtype).eps)
        if not self.tolerance >= least:
            refuse(f"tolerance={self.tolerance}", f"at least {least:.1e}", f"tolerance={TOLERANCE}")

    @property
    def settings(self) -> dict[str, Any]:
        """What records of two monitors must share to be compared, JSON-ready; the model is named apart."""
        names = ("window", "modes", "every", "tolerance")
        found = {name: getattr(self, name) for name in names} | {"components": list(self.components)}
        return found | {"layers": None if self.layers is None else list(self.layers)}

    def watch(self, audio: Any, *, clip: str = "", alarms: Alarms | None = None) -> Iterator[Step]:
        """Decode a clip and yield what is seen, token by token.

        Parameters
        ----------
        audio : a sound file, or (n,) samples at 16 kHz. A clip longer than the model's window is cut into such windows,
            each decoded for itself.
        clip : its name. alarms : from `calibrate`, raised where a value passes its threshold.

        Yields
        ------
        Step

        Raises
        ------
        InputError
            Audio that cannot be used, or activations that are not finite; steps before stay yielded.

        Notes
        -----
        Nothing is kept: a listener who stops, or is interrupted, has all that was yielded.
        """
        samples, window = read_samples(audio), self.model.dims.window_samples
        for at in range(0, samples.size, window):
            context, _ = encode_audio(self.model, samples[at : at + window])
            yield from self.watch_context(context, clip=clip, start=at / 16_000, alarms=alarms)

    def watch_context(
        self,
        context: Any,
        *,
        clip: str = "",
        start: float = 0.0,
        alarms: Alarms | None = None,
        new: int | None = None,
        forced: bool = False,
    ) -> Iterator[Step]:
        """Decode one encoder output and yield what is seen, as `watch` does.

        Parameters
        ----------
        context : (F, D) encoder output. clip, start, alarms : as in `Step` and `watch`. new, forced : as in `decode`.
        """
        kept = None if self.layers is None else tuple(sorted(layer - 1 for layer in self.layers))
        record = Record(**{name: True for name in self.components}, layers=kept)
        gains = _Gains(self.model, self.every, self.tolerance, self.group, self._kernels) if self.every else None
        pieces = stream(self.model, context, record=record, group=self.group, look=gains, new=new, forced=forced)
        rolling, logprobs = Rolling(self.window), np.zeros(0)
        for piece in pieces:
            rows = np.concatenate([piece.added[name] for name in self.components])
            if not np.isfinite(rows).all():
                bad = int(np.flatnonzero(~np.isfinite(rows).all(axis=(0, 2)))[0])
                refuse(
                    f"non-finite activations at step {piece.first + bad}", "finite numbers", "a checkpoint without NaN"
                )
            rolling, found = rolling.add(rows)
            logprobs = np.concatenate([logprobs, piece.logprobs])
            yield from self._steps(piece, found, logprobs, clip, start, alarms)
            logprobs = logprobs[-self.window :]

    def _steps(
        self, piece: Piece, found: Any, logprobs: np.ndarray, clip: str, start: float, alarms: Any
    ) -> Iterator[Step]:
        """Turn what a group of tokens showed into records."""
        k = len(piece.tokens)
        rank = np.atleast_2d(effective_rank(found.eigenvalues, self.modes))
        slopes = spectral_slopes(found.eigenvalues, self.modes, samples=found.positions[:, None])
        sums = np.concatenate([[0.0], logprobs.cumsum()])
        ends = np.arange(logprobs.size - k + 1, logprobs.size + 1)
        mean = (sums[ends] - sums[ends - found.positions]) / found.positions
        gains = {} if piece.looked is None else _fetched(*piece.looked)
        none = np.full(self.model.dims.decoder_layers, np.nan)
        lam = np.stack([gains.get(piece.first + i, {"lam": none})["lam"] for i in range(k)])
        values = sources(rank, slopes.alpha, found.positions, self.modes, mean, lam)
        shape = (len(self.components), -1)
        words, before = self.model.tokenizer, len(self.model.generation.prompt) - 1
        for i, (token, logprob) in enumerate(zip(piece.tokens, piece.logprobs, strict=True)):
            own = {name: float(value[i]) for name, value in values.items()}
            yield Step(
                clip=clip,
                start=start,
                step=piece.first + i,
                position=before + piece.first + i,
                token=token,
                text=words.token(token) if words is not None and token < words.size else None,
                logprob=logprob,
                positions=int(found.positions[i]),
                effective_rank=rank[i].reshape(shape),
                alpha=slopes.alpha[i].reshape(shape),
                alpha_error=slopes.error[i].reshape(shape),
                alpha_failed=slopes.failed[i].reshape(shape),
                gains=gains.get(piece.first + i),
                values=own,
                alarms=() if alarms is None else alarms.raised(own),
                last=piece.last and i == k - 1,
            )

    @functools.cached_property
    def _kernels(self) -> list[Any]:
        """Parameters of the decoder's blocks, with transposed copies of what rows meet, made once."""
        layers = self.model.parameters["decoder"]["layers"]
        return [kernels_for_rows(layers[index]) for index in sorted(layers)]

    def scores(self, steps: Sequence[Step]) -> dict[str, float]:
        """Return a clip's scores, what alarms are calibrated on.

        Parameters
        ----------
        steps : of one clip, all of them.
        """
        return worst({name: [step.values[name] for step in steps] for name in ("rank", "alpha", "logprob", "lam")})

    def calibrate(self, clean: Sequence[Any], *, level: float = 0.05, signals: Sequence[str] = DEFAULT) -> Alarms:
        """Watch clean clips and set alarms that at most a share `level` of clips like them raise.

        Parameters
        ----------
        clean : sound files or samples, one per clip. The promise is for clips exchangeable with these; takes of one
            sentence by one speaker are not as many clips as there are takes.
        level, signals : as in `alarms.calibrate`.

        Raises
        ------
        InputError
            As `alarms.calibrate` and `watch`; a signal of gains without `every`.
        """
        self.check_signals(signals)
        scores = [self.scores(list(self.watch(audio))) for audio in clean]
        return calibrate(scores, level=level, signals=signals, modes=self.modes)

    def check_signals(self, signals: Sequence[str]) -> None:
        """Refuse signals that this monitor does not measure."""
        missing = [name for name in signals if name in SIGNALS and SIGNALS[name].source == "lam" and not self.every]
        if missing:
            refuse(f"signal {missing[0]} of a monitor that measures no gains", "a period", "every=4")


class _Gains:
    """Measure the gains of a group of tokens, from the vectors of the group before."""

    def __init__(self, model: WhisperModel, every: int, tolerance: float, group: int, kernels: list[Any]) -> None:
        self.every, self.tolerance, self.group, self.kernels = every, tolerance, group, kernels
        decoder = model.parameters["decoder"]
        self.tables = {name: decoder[name] for name in ("embed_tokens", "embed_positions")}
        self.count = -(-group // every)
        self.starts = [_any_start(model.dims.width, np.dtype(model.dtype).name)] * len(kernels)
        self.crossings: list[Any] = []

    def __call__(self, live: Live, first: int) -> tuple[list[int], Any] | None:
        wanted = [step for step in range(first, first + self.group) if step % self.every == 0]
        if not wanted:
            return None
        if not self.crossings:
            self.crossings = crossings(live.cross)
        # few shapes are compiled: the last token stands in for what is missing
        steps = np.asarray(wanted + wanted[-1:] * (self.count - len(wanted)), np.int32)
        places = np.minimum(live.begin - 1 + steps, live.tokens.shape[0] - 1)
        x, found = _first_rows(self.tables, live.tokens, places), []
        for index, kernels in enumerate(self.kernels):
            x, one, self.starts[index] = _layer(
                kernels, x, places, live.caches[index], self.crossings[index], self.starts[index], self.tolerance
            )
            found.append(one)
        return wanted, layer_quantities(found)


def _fetched(wanted: list[int], quantities: Any) -> dict[int, dict[str, np.ndarray]]:
    """Wait for the gains of a group, by step."""
    arrays = jax.device_get({name: quantities[name] for name in GAINS})
    return {step: {name: np.asarray(x[i], np.float64) for name, x in arrays.items()} for i, step in enumerate(wanted)}


@functools.lru_cache(maxsize=8)
def _any_start(width: int, dtype: str) -> Any:
    return jax.random.normal(jax.random.key(5), (width,), dtype)


@jax.jit
def _first_rows(tables: Any, tokens: Any, places: Any) -> Any:
    return embed(tables, tokens[places], places)


@functools.partial(jax.jit, static_argnames="tolerance")
def _layer(
    kernels: Any, x: Any, places: Any, cache: Any, crossing: Any, start: Any, tolerance: float
) -> tuple[Any, Any, Any]:
    """Run one block at the places; return its output, its leading triplets there, and where the next may start."""
    x, factors = newest_factors(kernels, x, places, cache, crossing)
    found = leading_triplets(factors, jnp.broadcast_to(start, x.shape), tolerance=tolerance, most=_MOST)
    return x, found, found.V[-1, :, 0]
