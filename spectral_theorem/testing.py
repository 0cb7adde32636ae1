"""Draw chains for property tests, adversarial ones among them, and search for a counterexample to a claim.

A drawn chain is a kind, a shape and a seed, so it shrinks to a small shape and a small seed and can
be written down in one line: `make_chain("tie", shape=(3, 2, 2), seed=0)`.
"""

import dataclasses
import functools
import math
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

import hypothesis
import numpy as np
from hypothesis import strategies
from hypothesis.errors import HypothesisException, Unsatisfiable
from hypothesis.reporting import with_reporter

from .chainfile import save_chain
from .planting import checked_size
from .recipes import ADVERSARIAL_KINDS, ATTRACTOR_KINDS, DISPERSIVE_KINDS, KINDS, PLAIN_KINDS, SHAPES, make_chain
from .types import InputError, LayerChain, refuse, tolerance

__all__ = ["ClaimCheck", "attractor_chains", "check_claim", "dispersive_chains", "layer_chains", "make_chain"]


def layer_chains(
    *,
    shapes: Sequence[tuple[int, int, int]] = SHAPES,
    kinds: Sequence[str] = PLAIN_KINDS + ADVERSARIAL_KINDS,
    initial: bool = False,
    dtype: Any = None,
) -> strategies.SearchStrategy[LayerChain]:
    """Draw chains of every kind, most of them adversarial.

    Parameters
    ----------
    shapes : (L, D, C) to draw from, simplest first.
    kinds : out of `KINDS`, simplest first.
    initial : bool
        Let the first state depend on the context.
    dtype : float32 or float64, optional
        Default: JAX's default floating-point type.

    Returns
    -------
    SearchStrategy
        Of `LayerChain`; a failing example prints the `make_chain` call that makes it.

    Raises
    ------
    InputError
        On no shapes, no kinds, or a kind that does not exist.

    References
    ----------
    docs/notation.md.

    Examples
    --------
    >>> from hypothesis import given, settings
    >>> @settings(max_examples=2, database=None)
    ... @given(layer_chains(shapes=[(2, 3, 2)]))
    ... def test(chain):
    ...     assert chain.width == 3
    >>> test()
    """
    if not shapes or not kinds:
        refuse("no shapes" if not shapes else "no kinds", "at least one", "layer_chains()")
    unknown = [kind for kind in kinds if kind not in KINDS]
    if unknown:
        refuse(f"kind {unknown[0]!r}", f"one of {', '.join(KINDS)}", "layer_chains()")
    return strategies.builds(
        make_chain,
        strategies.sampled_from(kinds),
        shape=strategies.sampled_from([tuple(shape) for shape in shapes]),
        seed=strategies.integers(0, 2**32 - 1),
        **({"initial": strategies.just(True)} if initial else {}),
        **({"dtype": strategies.just(dtype)} if dtype is not None else {}),
    )


def attractor_chains(
    *, shapes: Sequence[tuple[int, int, int]] = SHAPES, initial: bool = False, dtype: Any = None
) -> strategies.SearchStrategy[LayerChain]:
    r"""Draw chains on which H1 to H4 hold at the default thresholds and the cone certificate applies.

    Parameters
    ----------
    shapes, initial, dtype
        As in `layer_chains`; shapes with fewer than three layers are left out, since a cone needs two
        couplings' worth of layers.

    Returns
    -------
    SearchStrategy
        Of `LayerChain`, some with margins of a tenth, some with misalignment 1e-9 or a bulk of zero.

    Raises
    ------
    InputError
        When no shape has three layers.

    References
    ----------
    docs/theory, the sharp attractor.

    Examples
    --------
    >>> from hypothesis import given, settings
    >>> @settings(max_examples=2, database=None)
    ... @given(attractor_chains(shapes=[(3, 3, 2)]))
    ... def test(chain):
    ...     assert chain.depth == 3
    >>> test()
    """
    return layer_chains(shapes=_at_least(shapes, 3), kinds=ATTRACTOR_KINDS, initial=initial, dtype=dtype)


def dispersive_chains(
    *, shapes: Sequence[tuple[int, int, int]] = SHAPES, initial: bool = False, dtype: Any = None
) -> strategies.SearchStrategy[LayerChain]:
    r"""Draw chains that certifiably forget: every product of layers decays at the default rate.

    Parameters
    ----------
    shapes, initial, dtype
        As in `layer_chains`; shapes with one layer are left out, since no product meets an injection there.

    Returns
    -------
    SearchStrategy
        Of `LayerChain`: with all gains below 1, and with gains above 1 but :math:`\sigma_1 r^* < 1`.

    Raises
    ------
    InputError
        When no shape has two layers.

    References
    ----------
    docs/theory, sharp growth.

    Examples
    --------
    >>> from hypothesis import given, settings
    >>> @settings(max_examples=2, database=None)
    ... @given(dispersive_chains(shapes=[(2, 3, 2)]))
    ... def test(chain):
    ...     assert chain.depth == 2
    >>> test()
    """
    return layer_chains(shapes=_at_least(shapes, 2), kinds=DISPERSIVE_KINDS, initial=initial, dtype=dtype)


@dataclasses.dataclass(frozen=True)
class ClaimCheck:
    """Hold what a search without counterexample saw.

    Attributes
    ----------
    claim : str  module and name of the function.
    examples : int  chains on which the claim was evaluated.
    smallest_margin : float  least (right - left)/scale over all chains and entries; NaN for yes-or-no claims.
    tightness : float  largest left/right where both are positive; 1 means attained. NaN if there was none.
    """

    claim: str
    examples: int
    smallest_margin: float
    tightness: float


def check_claim(
    fn: Callable[[LayerChain], Any],
    *,
    chains: strategies.SearchStrategy[LayerChain] | None = None,
    examples: int = 200,
    save: str | os.PathLike[str] = "counterexample.npz",
    seed: int = 0,
) -> ClaimCheck:
    r"""Search for a chain on which a claimed inequality fails; keep the smallest one found in a file.

    .. math:: \mathrm{left} \le \mathrm{right} + 16\,\mathrm{eps}\,L\sqrt D\cdot\mathrm{scale}

    Parameters
    ----------
    fn : callable
        Takes a `LayerChain` and returns (left, right), arrays that broadcast, or (left, right, scale),
        or a bool. The scale is the size of the numbers from which left and right were computed, which
        is what rounding is relative to; default max(\|left\|, \|right\|). Name it where terms cancel: for
        :math:`\|R_\Sigma\|` it is :math:`\sum_k S_{L,k}\|G_k\|_F`. `hypothesis.assume` works inside.
    chains : SearchStrategy of LayerChain, optional
        Default: `layer_chains()`.
    examples : int
        How many chains to try, at least 1.
    save : path
        Where the shrunk counterexample goes; untouched when none is found.
    seed : int
        Of the search: the same seed tries the same chains.

    Returns
    -------
    ClaimCheck

    Raises
    ------
    AssertionError
        When the claim fails, or fn raises, on some chain: names the margin, the file, and the command
        that replays it. NaN, and +inf on the left, count as failures.
    InputError
        When fn returns something else, or an argument is out of range.

    Notes
    -----
    Jit fn for speed: there are few shapes. No example database is read or written.

    References
    ----------
    docs/schema.md (the file).

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> def norm_of_product(chain):
    ...     norms = jnp.linalg.norm(chain.propagators, axis=(1, 2))
    ...     return jnp.linalg.norm(chain.propagators[-1] @ chain.propagators[0]), norms[-1] * norms[0]
    >>> found = check_claim(norm_of_product, chains=layer_chains(shapes=[(2, 2, 1)]), examples=20)
    >>> found.examples, found.tightness > 0.5
    (20, True)
    """
    claim, importable = _name(fn)
    path = _checked_arguments(chains, examples, Path(save), seed)
    margins, ratios = [], []
    failure: dict[str, Any] = {}

    @hypothesis.seed(seed)
    @hypothesis.settings(
        max_examples=examples,
        database=None,
        deadline=None,
        derandomize=False,
        report_multiple_bugs=False,
        print_blob=False,
        phases=(hypothesis.Phase.generate, hypothesis.Phase.shrink),
        suppress_health_check=list(hypothesis.HealthCheck),  # pyright: ignore[reportArgumentType]
    )
    @hypothesis.given(layer_chains() if chains is None else chains)
    def search(chain: LayerChain) -> None:
        try:
            judged = judge(fn(chain), chain)
        except (HypothesisException, _Malformed):
            raise
        except Exception as error:
            # Hypothesis runs the shrunk example last, so what stays here is the smallest.
            failure.update(chain=chain, margin=math.nan, says=f"raised {type(error).__name__}: {_one_line(error)}")
            raise
        if not judged.holds:
            failure.update(chain=chain, margin=judged.margin, says=judged.says)
            raise _Refuted
        margins.append(judged.margin)
        ratios.append(judged.ratio)

    try:
        with with_reporter(lambda _: None):
            search()
    except _Malformed as error:
        raise InputError(str(error)) from None
    except Unsatisfiable:
        refuse("a claim whose assumptions no chain met", "a strategy that meets them", "chains=attractor_chains()")
    except Exception as error:
        if not failure:
            raise
        _report(error, claim, path, failure, seed=seed, importable=importable)
    least = lambda values, take: float(take(values)) if not all(map(math.isnan, values)) else math.nan
    return ClaimCheck(claim, len(margins), least(margins, np.nanmin), least(ratios, np.nanmax))


class _Malformed(Exception):
    """A claim returned something that is no claim."""


class _Refuted(Exception):
    """A claim failed on a chain."""


@dataclasses.dataclass(frozen=True)
class _Judged:
    """Hold one evaluation: whether it holds, the least margin, the largest left/right, and the failure in words."""

    holds: bool
    margin: float
    ratio: float
    says: str


def judge(returned: Any, chain: LayerChain) -> _Judged:
    """Compare what a claim returned, entry by entry, with its rounding allowance."""
    if not isinstance(returned, (tuple, list)):
        answer = np.asarray(returned)
        if answer.dtype != np.bool_:
            _malformed(f"a claim that returned {type(returned).__name__}")
        return _Judged(bool(answer.all()), math.nan, math.nan, "it returned False")
    if len(returned) not in (2, 3):
        _malformed(f"a claim that returned {len(returned)} values")
    try:
        parts = np.broadcast_arrays(*(np.asarray(x, dtype=np.float64) for x in returned))
    except (TypeError, ValueError) as error:
        _malformed(f"a claim whose sides cannot be compared ({_one_line(error)})")
    left, right = (np.ravel(x) for x in parts[:2])
    if left.size == 0:
        return _Judged(True, math.nan, math.nan, "")
    with np.errstate(all="ignore"):
        scale = np.ravel(parts[2]) if len(parts) == 3 else np.maximum(np.abs(left), np.abs(right))
        # Equal minus infinities are logarithms of zero; +inf on the left is an overflow, which certifies nothing.
        slack = np.where((left == right) & (left != np.inf), 0.0, right - left)
        holds = slack >= -np.where(np.isinf(scale), 0.0, tolerance(chain, scale))
        margins = np.where(slack == 0, 0.0, slack / np.where(np.isfinite(scale) & (scale > 0), scale, 1.0))
        ratios = np.where((left > 0) & (right > 0), left / right, np.nan)
    worst = int(np.argmin(np.where(holds, np.inf, np.where(np.isnan(margins), -np.inf, margins))))
    ratio = math.nan if np.isnan(ratios).all() else float(np.nanmax(ratios))
    if holds.all():
        return _Judged(True, float(margins.min()), ratio, "")
    at = tuple(int(i) for i in np.unravel_index(worst, parts[0].shape))
    says = f"left {left[worst]:.6g} is not <= right {right[worst]:.6g}{f' at entry {at}' if at else ''}"
    return _Judged(False, float(margins[worst]), ratio, says)


def _name(fn: Callable[..., Any]) -> tuple[str, bool]:
    """Return MODULE:FUNCTION as `verify --claim` takes it, and whether a new process finds the function so."""
    module, name = str(getattr(fn, "__module__", None)), getattr(fn, "__qualname__", type(fn).__name__)
    try:
        importable = functools.reduce(getattr, name.split("."), sys.modules[module]) is fn
    except (KeyError, AttributeError):  # made inside a function, a lambda, a partial
        importable = False
    if module == "__main__":
        # a script is a module of its own name to the process that replays it; typed-in code is none
        script = getattr(sys.modules[module], "__file__", None)
        module, importable = (Path(script).stem, importable) if script else (module, False)
    return f"{module}:{name}", importable


def _report(
    error: Exception, claim: str, path: Path, failure: dict[str, Any], *, seed: int, importable: bool
) -> NoReturn:
    """Save the counterexample and raise the one error a user sees, with Hypothesis' notes kept."""
    notes = [note for note in getattr(error, "__notes__", []) if "=make_chain(" in note]
    made = " ".join(notes[0].split("=", 1)[1].split()).rstrip(",) ") + ")" if notes else "a drawn chain"
    says = failure["says"]
    meta = {"claim": claim, "expected": "VIOLATED", "margin": failure["margin"], "note": f"{says}, on {made}"}
    save_chain(path, failure["chain"], meta, seed=seed)
    flaky = " (not on every call: the function is not deterministic)" if isinstance(error, HypothesisException) else ""
    command = ["spectral-theorem", "verify", str(path), *(["--claim", claim] if importable else [])]
    raise AssertionError(
        f"claim {claim} fails with margin {failure['margin']:.3g}: {says}{flaky}, on {made}; "
        f"saved as {path}; replay with: {shlex.join(command)}"
    ) from (None if isinstance(error, (_Refuted, HypothesisException)) else error)


def _checked_arguments(chains: Any, examples: int, path: Path, seed: int) -> Path:
    """Look at everything a user can get wrong before the search starts."""
    checked_size("examples", examples)
    if not isinstance(seed, int) or seed < 0:
        refuse(f"seed={seed!r}", "a whole number >= 0", "seed=0")
    if chains is not None and not isinstance(chains, strategies.SearchStrategy):
        refuse(f"chains of type {type(chains).__name__}", "a Hypothesis strategy", "chains=layer_chains()")
    if path.is_dir() or not path.parent.is_dir():
        refuse(f"save={str(path)!r}", "a file name in a folder that exists", "save='counterexample.npz'")
    return path


def _malformed(got: str) -> NoReturn:
    raise _Malformed(f"got {got}; expected (left, right), (left, right, scale) or a bool; try return left, right")


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]


def _at_least(shapes: Sequence[tuple[int, int, int]], layers: int) -> list[tuple[int, int, int]]:
    kept = [shape for shape in shapes if shape[0] >= layers]
    if not kept:
        refuse(f"shapes {list(shapes)}", f"a shape with at least {layers} layers", "the default shapes")
    return kept
