r"""Every claim and condition as slacks in ball arithmetic: right side minus left, one ball per entry.

A slack that is surely at least 0 proves its entry, one that is surely below 0 refutes it. Names are those of
`claims.CLAIMS` and `conditions.PARTS`; a test holds the registries together.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from .ballbounds import bounds
from .ballchain import BallChain, NotApplicable, Unresolved
from .balls import flint, frobenius, number, product, total
from .types import Thresholds


class Slack(NamedTuple):
    """Hold right - left of one entry; `equal`: the sides are one number by construction."""

    ball: Any
    equal: bool = False


Slacks = list[Slack]
Statement = Callable[[BallChain, Thresholds], Slacks]


def _least(balls: list[Any]) -> Any:
    result = balls[0]
    for x in balls[1:]:
        result = result.min(x)
    return result


def _gamma(c: BallChain) -> Any:
    return _least(c.shares)


def _largest_xi(c: BallChain, start: int) -> Any:
    result = flint().arb(0)
    for layer in range(start, c.depth):
        result = result.max(c.xi(layer))
    return result


def _defect(c: BallChain, start: int) -> Any:
    result = flint().arb(0)
    for layer in range(start, c.depth - 1):
        result = result.max(c.coupling(layer)[2])
    return result


def _residual(c: BallChain) -> Any:
    return frobenius(c.residual)


def _compare(left: Callable[[BallChain], Any], right: Callable[[BallChain], Any], *, whole: bool = False) -> Statement:
    """Compare two numbers of a chain; all residual bounds coincide with one propagator on the spine or with D = 1."""

    def slacks(c: BallChain, _: Thresholds) -> Slacks:
        same = c.length == 1 or c.width == 1 or not any(c.present) or (whole and c.width <= 2)
        return [Slack(right(c) - left(c), same)]

    return slacks


def _identity(c: BallChain, _: Thresholds) -> Slacks:
    return [Slack(-frobenius(c.residual - c.residual_by_recursion), True)]


def _psi_sharp(c: BallChain) -> Any:
    low, high = c.coherence
    along = total(abs(a) * frobenius(r) for a, r in zip(c.amplitudes, c.rows, strict=True))
    return low.union(high) * along


def _psi_lower(c: BallChain) -> Any:
    carried = total(abs(a) * g for a, g in zip(c.amplitudes, c.sizes, strict=True))
    return _gamma(c) * carried / flint().arb(2).sqrt()


def _c2(c: BallChain) -> Any:
    keep = product(1 - _defect(c, c.first) for _ in range(c.length - 1))
    ratio = flint().arb(2).sqrt() * _largest_xi(c, c.first) * c.length / (_gamma(c) * keep)
    return ratio * frobenius(c.psi)


def _propagators(c: BallChain, _: Thresholds) -> Slacks:
    exact = {1: c.depth, 2: 2}.get(c.width, 1)
    return [
        Slack(bounds(c).product_bound(layer) - c.product_norm(layer), layer >= c.depth - exact)
        for layer in range(1, c.depth)
    ]


def _total(c: BallChain, _: Thresholds) -> Slacks:
    same = c.depth <= {1: c.depth, 2: 2}.get(c.width, 1)
    return [Slack(bounds(c).product_bound(0) - c.product_norm(0), same)]


def _dispersion(c: BallChain, t: Thresholds) -> Slacks:
    layers = range(c.first, c.depth)
    limits = [
        number(t.dispersion_constant) * (-number(t.dispersion_rate) * (c.depth - layer)).exp() for layer in layers
    ]
    rooms = [limit - bounds(c).product_bound(layer) for layer, limit in zip(layers, limits, strict=True)]
    _need(rooms)
    return [Slack(limit - c.product_norm(layer)) for layer, limit in zip(layers, limits, strict=True)]


def _need(rooms: list[Any]) -> None:
    """Go on where a certificate surely exists; say so where it surely does not."""
    if any(x < 0 for x in rooms):
        raise NotApplicable
    if not all(x > 0 for x in rooms):
        raise Unresolved("whether the certificate exists")


def _cone(c: BallChain) -> tuple[Any, Any, Any, Any]:
    margin, growth, aperture = bounds(c).cone()
    _need([margin])
    start = c.vectors(c.first)[1]
    return growth, aperture, c.carried(c.first) * start, c.vectors(c.depth - 1)[0]


def _cone_growth(c: BallChain, _: Thresholds) -> Slacks:
    growth, _, output, _ = _cone(c)
    return [Slack(frobenius(output) - c.gains[0] * growth, c.width == 1 or c.length == 1)]


def _cone_angle(c: BallChain, _: Thresholds) -> Slacks:
    _, aperture, output, u = _cone(c)
    along = (u.transpose() * output)[0, 0]
    across = frobenius(output - u * along)
    return [Slack(c.xi(c.depth - 1) * aperture * abs(along) - across, c.width == 1 or c.length == 1)]


CLAIM_SLACKS: Mapping[str, Statement] = {
    "identity": _identity,
    "residual_transfer": _compare(_residual, lambda c: bounds(c).transfer()),
    "residual_damped": _compare(_residual, lambda c: bounds(c).damped()),
    "transfer_telescoping": _compare(lambda c: bounds(c).transfer(), lambda c: bounds(c).telescoping()),
    "telescoping_paper": _compare(lambda c: bounds(c).telescoping(), lambda c: bounds(c).paper()),
    "row_exact_upper": _compare(_residual, lambda c: bounds(c).row_exact()[1]),
    "row_exact_lower": _compare(lambda c: bounds(c).row_exact()[0], _residual),
    "top_k_upper": _compare(_residual, lambda c: bounds(c).top_k(min(2, c.width))[1], whole=True),
    "top_k_lower": _compare(lambda c: bounds(c).top_k(min(2, c.width))[0], _residual, whole=True),
    "propagator_norm": _propagators,
    "total_norm": _total,
    "psi_lower_sharp": _compare(_psi_sharp, lambda c: frobenius(c.psi)),
    "psi_lower": _compare(_psi_lower, lambda c: frobenius(c.psi)),
    "c1": _compare(lambda c: _gamma(c) * total(c.sizes) / flint().arb(2).sqrt(), lambda c: frobenius(c.psi)),
    "c2": _compare(_residual, _c2),
    "dispersion": _dispersion,
    "cone_growth": _cone_growth,
    "cone_angle": _cone_angle,
}


def _gain(start: int) -> Statement:
    def slacks(c: BallChain, t: Thresholds) -> Slacks:
        layers = range(c.first if start else 0, c.depth - 1)
        return [Slack(c.sigma(j) * abs(c.coupling(j)[0]) - number(t.gain)) for j in layers]

    return slacks


def _alignment(start: int) -> Statement:
    def slacks(c: BallChain, t: Thresholds) -> Slacks:
        layers = range(c.first if start else 0, c.depth - 1)
        return [Slack(number(t.alignment) - c.coupling(j)[2] * c.depth) for j in layers]

    return slacks


def _purity(start: int) -> Statement:
    def slacks(c: BallChain, t: Thresholds) -> Slacks:
        # multiplied out, so that gamma = 0 is no division
        first = c.first if start else 0
        return [Slack(number(t.purity) * _gamma(c) - _largest_xi(c, first) * c.depth)]

    return slacks


def _coherence(c: BallChain, t: Thresholds) -> Slacks:
    low, high = c.coherence
    return [Slack(low.union(high) - number(t.coherence))]


CONDITION_SLACKS: Mapping[str, Statement] = {
    "gain": _gain(1),
    "cumulative_gain": lambda c, t: [Slack(s - number(t.cumulative_gain)) for s in c.gains],
    "gain_literal": _gain(0),
    "alignment": _alignment(1),
    "alignment_literal": _alignment(0),
    "projection": lambda c, t: [Slack(x - number(t.gamma_min)) for x in c.shares],
    "sign_consistency": _coherence,
    "purity": _purity(1),
    "purity_literal": _purity(0),
}
# H1 and H3 are the "and" of parts; H3(b) without its signs is not convex and has no proof of its own either way
JOINED = {"stability": ("gain", "cumulative_gain"), "coherence": ("projection", "sign_consistency")}
NOT_COVERED = {"directionality": "H3(b) alone is not convex; it is a part that decides nothing"}
