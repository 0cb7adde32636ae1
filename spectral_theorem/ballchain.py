r"""One chain in ball arithmetic: every number of the theory, from the exact entries of the arrays.

The formulas are those of docs/theory, read off the page once more and sharing no line with the float64 modules.
Numbers are plain, not logarithms: exponents of balls are as long as they need to be. Layers are counted along the
spine, from 0.
"""

import functools
from typing import Any

import numpy as np

from .balls import (
    Enclosure,
    beside,
    enclose,
    exact,
    flint,
    frobenius,
    identity,
    inner,
    number,
    product,
    spectral_norm,
    total,
)
from .coherence import coherence_direction


class Unresolved(Exception):
    """Say that a vector or a sign is not defined, or not at this precision."""


class NotApplicable(Exception):
    """Say that what a statement is about does not exist: no injection, no certificate."""


class BallChain:
    """Hold one chain, and work out what is asked for, once, at the precision in force.

    Parameters
    ----------
    propagators, injections, initial : NumPy arrays (L, D, D), (L, D, C) or None, (D, C) or None.
    """

    def __init__(self, propagators: Any, injections: Any = None, initial: Any = None) -> None:
        propagators = np.asarray(propagators, np.float64)
        self.depth, self.width = propagators.shape[:2]
        self.first = 1 if initial is None else 0
        self.layers = [exact(w) for w in propagators]
        context = next((g.shape[-1] for g in (injections, initial) if g is not None), 1)
        zero = np.zeros((self.depth, self.width, context))
        injections = zero if injections is None else np.asarray(injections, np.float64)
        before = [] if initial is None else [np.asarray(initial, np.float64)]
        self.sources = [exact(g) for g in [*before, *injections[:-1]]]
        self.direct = exact(injections[-1])
        self.length = self.depth - self.first
        self._enclosures: dict[int, Enclosure] = {}

    # layers, by their number from 0 in the whole chain

    def enclosure(self, layer: int) -> Enclosure:
        """Decompose one layer."""
        if layer not in self._enclosures:
            self._enclosures[layer] = enclose(self.layers[layer])
        return self._enclosures[layer]

    def sigma(self, layer: int, index: int = 0) -> Any:
        """Enclose a singular value; 0 beyond the last."""
        values = self.enclosure(layer).sigma
        return values[index] if index < self.width else flint().arb(0)

    def xi(self, layer: int) -> Any:
        """Enclose sigma_2 / sigma_1."""
        if self.width == 1:
            return flint().arb(0)
        if not self.sigma(layer) > 0:
            raise Unresolved("a layer that is zero")
        return self.sigma(layer, 1) / self.sigma(layer)

    @functools.cache  # noqa: B019  # lives as long as the chain does
    def vectors(self, layer: int, index: int = 0) -> tuple[Any, Any]:
        """Enclose u and v of one triplet."""
        found = self.enclosure(layer).triplet(index)
        if found is None:
            raise Unresolved(f"tie at layer {layer + 1}")
        return found

    @functools.cache  # noqa: B019
    def coupling(self, layer: int) -> tuple[Any, Any, Any]:
        """Enclose kappa (signed), s and 1-|kappa| between a layer and the next."""
        u, v = self.vectors(layer)[0], self.vectors(layer + 1)[1]
        kappa = inner(v, u)
        flipped = u + v if kappa < 0 else u - v
        return kappa, frobenius(v - u * kappa), frobenius(flipped) ** 2 / 2

    # the spine

    def on_spine(self, index: int) -> int:
        """Return the number in the chain of a layer of the spine."""
        return self.first + index

    def gain(self, entry: int) -> Any:
        """Return S_{L,k} of the injection before spine layer `entry`."""
        return product(self.sigma(self.on_spine(i)) for i in range(entry, self.length))

    def signed_coupling(self, index: int) -> Any:
        """Return kappa between spine layers index and index + 1, its sign sure."""
        kappa = self.coupling(self.on_spine(index))[0]
        if not (kappa > 0 or kappa < 0):
            raise Unresolved(f"the sign of kappa at layer {self.on_spine(index) + 1}")
        return kappa

    @functools.cached_property
    def gains(self) -> list[Any]:
        """All S_{L,k}, (n,)."""
        return [self.gain(k) for k in range(self.length)]

    @functools.cached_property
    def amplitudes(self) -> list[Any]:
        """All A_{L,k} with their signs, (n,)."""
        kappas = [self.coupling(self.on_spine(i))[0] for i in range(self.length - 1)]
        return [self.gains[k] * product(kappas[k:]) for k in range(self.length)]

    @functools.cached_property
    def rows(self) -> list[Any]:
        """The rows v_{k+1}^T G_k as (C, 1), (n,)."""
        return [g.transpose() * self.vectors(self.on_spine(k))[1] for k, g in enumerate(self.sources)]

    @functools.cached_property
    def sizes(self) -> list[Any]:
        """Frobenius norms of the injections, (n,)."""
        return [frobenius(g) for g in self.sources]

    @functools.cached_property
    def present(self) -> list[bool]:
        """Which injections are not zero; entries are exact, so this is."""
        return [not all(x.is_zero() for x in g.entries()) for g in self.sources]

    @functools.cached_property
    def shares(self) -> list[Any]:
        """gamma_k of the injections that are not zero."""
        if not any(self.present):
            raise NotApplicable
        return [frobenius(r) / g for r, g, there in zip(self.rows, self.sizes, self.present, strict=True) if there]

    @functools.cached_property
    def scale(self) -> Any:
        """The sum of all injection norms carried to the output."""
        return total(s * g for s, g in zip(self.gains, self.sizes, strict=True))

    @functools.cached_property
    def coherence(self) -> tuple[Any, Any]:
        """Enclose the value of the H3 problem by any direction (from below) and any weights (from above)."""
        arb = flint().arb
        if not any(self.present):
            raise NotApplicable
        rows = [(r, a) for r, a, there in zip(self.rows, self.amplitudes, self.present, strict=True) if there]
        unit = []
        for row, amplitude in rows:
            size = frobenius(row)
            if not size > 0 or not (amplitude > 0 or amplitude < 0):
                raise Unresolved("the direction or the sign of a row")
            unit.append(row * (1 / size) if amplitude > 0 else row * (-1 / size))
        weights = _weights(unit)
        nearest = total_matrix([g * w for g, w in zip(unit, weights, strict=True)])
        upper = frobenius(nearest) / total(weights)
        if not upper > 0:
            return arb(0), upper.upper()
        heights = [inner(g, nearest) / frobenius(nearest) for g in unit]
        return functools.reduce(lambda a, b: a.min(b), heights).max(arb(0)), upper

    @functools.cached_property
    def psi(self) -> Any:
        """Psi as (C, 1)."""
        return total_matrix([r * a for r, a in zip(self.rows, self.amplitudes, strict=True)])

    @functools.cached_property
    def jacobians(self) -> list[Any]:
        """J before every spine layer and after the last, without its own injection at the end, (n + 1,)."""
        current, found = self.sources[0], []
        for i in range(self.length):
            found.append(current)
            current = self.layers[self.on_spine(i)] * current
            if i + 1 < self.length:
                current = current + self.sources[i + 1]
        return [*found, current]

    @functools.cached_property
    def residual(self) -> Any:
        """R_Sigma, by difference."""
        u = self.vectors(self.depth - 1)[0]
        return self.jacobians[-1] - u * self.psi.transpose()

    @functools.cached_property
    def residual_by_recursion(self) -> Any:
        """R_Sigma, by R' = W R + (W - sigma u v^T)(u Psi^T + G)."""
        rest, path = self.sources[0] * 0, self.sources[0]
        for i in range(self.length):
            layer = self.on_spine(i)
            w, (u, v) = self.layers[layer], self.vectors(layer)
            row = (path.transpose() * v).transpose() * self.sigma(layer)
            rest = w * rest + w * path - u * row
            path = u * row + (self.sources[i + 1] if i + 1 < self.length else self.direct * 0)
        return rest

    @functools.cache  # noqa: B019
    def carried(self, layer: int) -> Any:
        """Return W_L...W_layer."""
        later = identity(self.width) if layer + 1 == self.depth else self.carried(layer + 1)
        return later * self.layers[layer]

    @functools.cache  # noqa: B019
    def product_norm(self, layer: int) -> Any:
        """Enclose the spectral norm of W_L...W_layer."""
        return self.sigma(layer) if layer + 1 == self.depth else spectral_norm(self.carried(layer))


def total_matrix(parts: list[Any]) -> Any:
    """Add matrices up."""
    result = parts[0]
    for part in parts[1:]:
        result = result + part
    return result


def _weights(unit: list[Any]) -> list[Any]:
    """Return convex weights near the minimum-norm point: float64's active set, solved again in balls."""
    points = np.asarray([[float(x) for x in g.entries()] for g in unit])
    found = np.asarray(coherence_direction(points).weights, np.float64)
    active = np.flatnonzero(found > 1e-9)
    rough = [number(x) for x in np.clip(found, 0.0, None)]
    if len(active) < 2:
        return rough
    size = len(active)
    frame = beside([unit[i] for i in active])
    gram = (frame.transpose() * frame).mid()
    try:
        solved = gram.solve(flint().arb_mat(size, 1, [1] * size)).mid().entries()
    except ZeroDivisionError:  # rows that depend on each other
        return rough
    if not all(x > 0 for x in solved):
        return rough
    weights = [flint().arb(0)] * len(unit)
    for i, x in zip(active, solved, strict=True):
        weights[i] = x
    return weights
