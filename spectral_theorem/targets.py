r"""What a search tries to break: numbers of a chain that are positive when a statement fails.

A target takes a chain with its triplets and gives, per statement, the logarithm of left over right (0 is equality,
above 0 the statement fails), whether the statement applies, what to climb, and by how many rounding allowances it
fails. Everything is traceable and differentiable.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from .bounds import residual_bounds
from .chaingains import log_products
from .claims import CLAIMS, Evidence
from .papers import CONCLUSIONS, READINGS
from .path import dominant_path, log_scale, spine
from .regimes import classify
from .scaled import log_norm, log_of, norm
from .types import Thresholds, tolerance
from .verification import _cone_output

FLOOR = 1e-9  # of the scale; sides below it are rounding, and their quotient means nothing
PENALTY = 20.0


class Score(NamedTuple):
    """Hold what a target says of one chain, (N,) each.

    Attributes
    ----------
    ratio : log of left over right, both raised by a floor.
    applies : bool.
    climb : what to increase: the ratio, less a penalty for hypotheses that fail.
    excess : (left - right) over the rounding allowance; above 1 the statement fails in floating point.
    """

    ratio: Any
    applies: Any
    climb: Any
    excess: Any


@dataclasses.dataclass(frozen=True)
class Target:
    """Name the statements and hold their score."""

    names: tuple[str, ...]
    score: Callable[[Any, Any], Score]


def evidence(chain: Any, triplets: Any, thresholds: Thresholds) -> Evidence:
    """Collect what claims look at; conditions are left out, since families decide them."""
    path = dominant_path(chain, triplets)
    bounds = residual_bounds(chain, triplets, path=path)
    # exponents are of no use here, and cost a QR per layer
    regime = classify(chain, triplets, thresholds, bounds=bounds, lyapunov=jnp.zeros((chain.width,), chain.dtype))
    s = spine(chain, triplets)
    cone = _cone_output(s)
    return Evidence(
        chain=chain,
        spine=s,
        triplets=triplets,
        path=path,
        bounds=bounds,
        conditions=None,  # pyright: ignore[reportArgumentType]
        regime=regime,
        thresholds=thresholds,
        log_products=log_products(chain),
        cone_output=cone.value / jnp.maximum(norm(cone.value), 1e-300),
        log_cone_output=log_norm(cone),
        allowance=jnp.asarray(tolerance(chain), chain.dtype),
    )


def claims(thresholds: Thresholds | None = None, *, theorem: bool = False) -> Target:
    """Return the package's own claims, all of them.

    Parameters
    ----------
    thresholds : for the certificates that claims are about.
    theorem : the family meets H1 to H4, so claims that need them apply; elsewhere they do not.
    """
    t = Thresholds() if thresholds is None else thresholds
    specs = [(name, spec) for name, spec in CLAIMS.items() if spec.kind != "equality"]

    def score(chain: Any, triplets: Any) -> Score:
        e = evidence(chain, triplets, t)
        ratios, applies, excesses = [], [], []
        for _, spec in specs:
            sides = spec.sides(e)
            left, right, scale, equal, amplify = (jnp.broadcast_to(x, jnp.shape(sides.left)) for x in sides[:5])
            unit = jnp.where(jnp.isneginf(scale), 0.0, scale)
            low, high = jnp.exp(left - unit), jnp.exp(right - unit)
            ratio = jnp.log(low + FLOOR) - jnp.log(high + FLOOR)
            ratios.append(jnp.max(jnp.where(equal, -jnp.inf, ratio)))
            excesses.append(jnp.max((low - high) / (e.allowance * amplify)))
            sure = jnp.asarray(True) if spec.applies is None else spec.applies(e)
            applies.append(sure & (theorem or not spec.needs))
        ratio, excess = jnp.stack(ratios), jnp.stack(excesses)
        return Score(ratio, jnp.stack(applies), ratio, excess)

    return Target(tuple(name for name, _ in specs), score)


def readings(names: Sequence[str] = tuple(READINGS), thresholds: Thresholds | None = None) -> Target:
    """Return readings of the paper, all of them or some."""
    t = Thresholds() if thresholds is None else thresholds

    def score(chain: Any, triplets: Any) -> Score:
        found = [READINGS[name].sides(chain, triplets, t) for name in names]
        ratio = jnp.stack([r.left - r.right for r in found])
        room = jnp.stack([r.hypothesis for r in found])
        climb = jnp.clip(ratio, -20.0, 5.0) + PENALTY * jnp.minimum(room - 1e-3, 0.0)
        return Score(ratio, room > 0, climb, ratio / tolerance(chain))

    return Target(tuple(names), score)


def conclusions() -> Target:
    """Return what the theorem concludes, hypotheses left to the family: C1, C2, and that the residual is small."""

    def score(chain: Any, triplets: Any) -> Score:
        found = [statement.sides(chain, triplets, Thresholds()) for statement in CONCLUSIONS.values()]
        unit = log_scale(spine(chain, triplets))
        low, high = (jnp.exp(jnp.stack([r[i] for r in found]) - unit) for i in (1, 2))
        ratio = jnp.log(low + FLOOR) - jnp.log(high + FLOOR)
        return Score(ratio, jnp.ones((len(found),), bool), ratio, (low - high) / tolerance(chain))

    return Target(tuple(CONCLUSIONS), score)


# left and right of what bounds say, as fields of the path or of the bounds; the first five are functions of scalars
BOUNDS = {
    "total_norm": ("log_product", "log_total_norm"),
    "paper": ("log_residual_norm", "log_paper"),
    "telescoping": ("log_residual_norm", "log_telescoping"),
    "transfer": ("log_residual_norm", "log_transfer"),
    "damped": ("log_residual_norm", "log_damped"),
    "row_exact": ("log_residual_norm", "log_row_exact"),
    "row_exact_lower": ("log_row_exact_lower", "log_residual_norm"),
    "top_k": ("log_residual_norm", "log_top_k"),
    "top_k_lower": ("log_top_k_lower", "log_residual_norm"),
}


def tightness() -> Target:
    """Return how much of each bound is attained: nothing here can fail, the claims watch over that."""

    def score(chain: Any, triplets: Any) -> Score:
        path = dominant_path(chain, triplets)
        bounds = residual_bounds(chain, triplets, path=path)
        known = {**_fields(bounds), **_fields(path), "log_product": log_products(chain)[0]}
        unit = {"log_product": bounds.log_total_norm}
        ratios = []
        for left, right in BOUNDS.values():
            size = unit.get(left, path.log_scale)
            low, high = (jnp.exp(known[side] - size) for side in (left, right))
            ratios.append(jnp.log(low + FLOOR) - jnp.log(high + FLOOR))
        ratio = jnp.stack(ratios)
        return Score(ratio, jnp.ones((len(ratios),), bool), ratio, jnp.full((len(ratios),), -jnp.inf))

    return Target(tuple(BOUNDS), score)


def _fields(record: Any) -> dict[str, Any]:
    return {field.name: getattr(record, field.name) for field in dataclasses.fields(record)}


def user(name: str, fn: Callable[[Any], Any]) -> Target:
    """Return a claim of a user's own that JAX can trace: chain to (left, right) or (left, right, scale)."""

    def score(chain: Any, triplets: Any) -> Score:
        left, right, *scale = (jnp.asarray(x, chain.dtype) for x in fn(chain))
        size = scale[0] if scale else jnp.maximum(jnp.abs(left), jnp.abs(right))
        unit = jnp.where(size > 0, size, 1.0)
        climb = jnp.max((left - right) / unit)
        positive = (left > 0) & (right > 0)
        quotient = log_of(jnp.where(positive, left, 1.0)) - log_of(jnp.where(positive, right, 1.0))
        ratio = jnp.max(jnp.where(positive, quotient, -jnp.inf))
        one = lambda x: jnp.reshape(x, (1,))
        return Score(one(ratio), jnp.ones((1,), bool), one(climb), one(climb / tolerance(chain)))

    return Target((name,), score)


def traceable(target: Target, chain: Any) -> bool:
    """Say whether JAX can differentiate a target; a user's claim may look at values."""
    try:
        jax.eval_shape(jax.grad(lambda c: target.score(c, None).climb[0]), chain)
    except Exception:  # whatever a function of the user's does to a tracer
        return False
    return True
