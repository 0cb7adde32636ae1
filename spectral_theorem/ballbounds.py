r"""Every bound of the theory on one chain in ball arithmetic: on the residual, on products, and the tracked cone.

The formulas of docs/theory/bounds.md, growth.md and attractor.md, read off the page once more; `ballchain` has what
they are about.
"""

import functools
from typing import Any

from .ballchain import BallChain, Unresolved, total_matrix
from .balls import beside, columns, flint, frobenius, hypot, product, root, small_norm, total


class BallBounds:
    """Hold the bounds on one chain, and work out what is asked for, at the precision in force.

    Parameters
    ----------
    chain : of that precision.

    Examples
    --------
    >>> import numpy as np
    >>> chain = BallChain(np.stack([np.diag([2.0, 1.0])] * 3), np.ones((3, 2, 1)))
    >>> float((BallBounds(chain).transfer() / chain.scale).mid()) < 1
    True
    """

    def __init__(self, chain: BallChain) -> None:
        self.chain = chain

    # bounds on the residual

    def paper(self) -> Any:
        """Return the paper's bound."""
        tail = [
            total(self.chain.xi(self.chain.on_spine(j)) for j in range(k, self.chain.length))
            for k in range(self.chain.length)
        ]
        return total(s * t * g for s, t, g in zip(self.chain.gains, tail, self.chain.sizes, strict=True))

    def telescoping(self) -> Any:
        """Return the telescoping bound."""
        terms = []
        for k in range(self.chain.length):
            reach, path = self.chain.xi(self.chain.on_spine(k)), flint().arb(1)
            for j in range(k, self.chain.length - 1):
                kappa, s, _ = self.chain.coupling(self.chain.on_spine(j))
                reach = reach + self.chain.xi(self.chain.on_spine(j + 1)) * s * path
                path = path * abs(kappa)
            terms.append(self.chain.gains[k] * reach * self.chain.sizes[k])
        return total(terms)

    def transfer(self) -> Any:
        """Return the transfer bound."""
        terms = []
        for k in range(self.chain.length):
            v = self.chain.vectors(self.chain.on_spine(k))[1]
            off = frobenius(self.chain.sources[k] - v * self.chain.rows[k].transpose())
            along, across = self.deviation(k, along=True)[2], self.deviation(k, along=False)[2]
            terms.append(self.chain.gains[k] * (along * frobenius(self.chain.rows[k]) + across * off))
        return total(terms)

    def damped(self) -> Any:
        """Return the damped bound: components apart, and what growth leaves of a deviation."""
        ends = []
        for k in range(self.chain.length):
            v = self.chain.vectors(self.chain.on_spine(k))[1]
            sizes = frobenius(self.chain.rows[k]), frobenius(self.chain.sources[k] - v * self.chain.rows[k].transpose())
            reaches = [self._damped_reach(k, along=along) for along in (True, False)]
            parts = [self.deviation(k, along=along) for along in (True, False)]
            ends.append(
                [
                    self.chain.gains[k]
                    * total(x.min(y) * g for x, y, g in zip((a[i] for a in parts), reaches, sizes, strict=True))
                    for i in range(3)
                ]
            )
        path, bulk, whole = (total(end[i] for end in ends) for i in range(3))
        return whole.min(hypot(path, bulk))

    def _damped_reach(self, entry: int, *, along: bool) -> Any:
        """Return what a unit that enters becomes, each deviation damped by the layers after it."""
        if not along:
            return self.chain.xi(self.chain.on_spine(entry)) * self._damping(entry)
        reach, path = flint().arb(0), flint().arb(1)
        for j in range(entry, self.chain.length - 1):
            kappa, s, _ = self.chain.coupling(self.chain.on_spine(j))
            reach = reach + path * s * self.chain.xi(self.chain.on_spine(j + 1)) * self._damping(j + 1)
            path = path * abs(kappa)
        return reach

    @functools.cache  # noqa: B019
    def _damping(self, index: int) -> Any:
        """Bound what the layers after one of the spine make of a unit across its u."""
        one, layer = flint().arb(1), self.chain.on_spine(index)
        if index + 1 == self.chain.length:
            return one
        ahead = self.chain.xi(layer + 1)
        weight = ahead if index + 2 < self.chain.length else ahead * ahead
        left = root(weight + (1 - weight) * self.chain.coupling(layer)[1] ** 2)
        for j in range(layer + 1, self.chain.depth - 1):
            left = left * self._growth(j, starts=False)
        return left.min(one)

    @functools.cache  # noqa: B019
    def deviation(self, entry: int, *, along: bool) -> tuple[Any, Any, Any]:
        """Run the transfer recursion from one injection; return the final p, q, n."""
        zero, start = flint().arb(0), self.chain.xi(self.chain.on_spine(entry))
        m, p, q, n = (flint().arb(1), zero, zero, zero) if along else (zero, zero, start, start)
        for j in range(entry, self.chain.length - 1):
            kappa, s, _ = self.chain.coupling(self.chain.on_spine(j))
            kappa, x = abs(kappa), self.chain.xi(self.chain.on_spine(j + 1))
            p_next, q_next = (kappa * p + s * q).min(n), x * ((s * p + q).min(n) + m * s)
            n = hypot(p_next, q_next).min(n + x * m * s)
            m, p, q = kappa * m, p_next.min(n), q_next.min(n)
        return p, q, n

    def row_exact(self) -> tuple[Any, Any]:
        """Return the row-exact bound, lower and upper."""
        last = self.chain.depth - 1
        v = self.chain.vectors(last)[1]
        across = lambda v, x: x - v * (v.transpose() * x)
        beta = frobenius(across(self.chain.vectors(self.chain.first)[1], self.chain.sources[0]))
        for i in range(1, self.chain.length):
            layer, ahead = self.chain.on_spine(i - 1), self.chain.vectors(self.chain.on_spine(i))[1]
            u, own = self.chain.vectors(layer)
            row = (own.transpose() * self.chain.jacobians[i - 1]) * self.chain.sigma(layer)
            known = across(ahead, u * row + self.chain.sources[i])
            beta = self.chain.sigma(layer) * self.chain.xi(layer) * beta + frobenius(known)
        if self.chain.length == 1:
            exact_row = flint().arb(0)
        else:
            before = self.chain.vectors(last - 1)[0]
            rest = self.chain.jacobians[-2] - self.chain.sources[-1] - before * self._psi_before.transpose()
            exact_row = self.chain.sigma(last) * frobenius(v.transpose() * rest)
        return exact_row, hypot(exact_row, self.chain.sigma(last) * self.chain.xi(last) * beta)

    @property
    def _psi_before(self) -> Any:
        """Psi one layer earlier."""
        return total_matrix([r * self._amplitude_before(k) for k, r in enumerate(self.chain.rows[:-1])])

    def _amplitude_before(self, entry: int) -> Any:
        """Return A_{L-1,k} by its own product: kappa_{L-1} may be 0."""
        last = self.chain.length - 1
        sigmas = [self.chain.sigma(self.chain.on_spine(i)) for i in range(entry, last)]
        return product(sigmas) * product(self.chain.coupling(self.chain.on_spine(i))[0] for i in range(entry, last - 1))

    def top_k(self, count: int) -> tuple[Any, Any]:
        """Return the top-K bound, lower and upper."""
        zero = flint().arb(0)
        frames = []
        for i in range(self.chain.length):
            layer = self.chain.on_spine(i)
            pairs = [self.chain.vectors(layer, j) for j in range(count)]
            values = [self.chain.sigma(layer, j) for j in range(count)]
            frames.append(
                (beside([u for u, _ in pairs]), beside([v for _, v in pairs]), values, self.chain.sigma(layer, count))
            )
        path, p, q, psi = self.chain.sources[0], zero, zero, self.chain.sources[0]
        for i, (left, right, values, tail) in enumerate(frames):
            times = functools.partial(_scaled_rows, values)
            across = path - right * (right.transpose() * path)
            if i == 0:
                p, q = zero, tail * frobenius(across)
            else:
                before = frames[i - 1][0]
                overlap = right.transpose() * before
                outside = right.transpose() - overlap * before.transpose()
                leave = small_norm(before - right * overlap)
                p, q = (
                    small_norm(times(overlap)) * p + small_norm(times(outside)) * q,
                    tail * ((leave * p + q).min(hypot(p, q)) + frobenius(across)),
                )
            psi = times(right.transpose() * path)
            if i + 1 < self.chain.length:
                path = left * psi + self.chain.sources[i + 1]
        last = frames[-1][0]
        share = (last.transpose() * self.chain.vectors(self.chain.depth - 1)[0]) * self.chain.psi.transpose()
        seen = frobenius(psi - share)
        return seen - p, hypot(seen + p, q)

    # products of propagators, by layer in the whole chain

    def product_bound(self, layer: int) -> Any:
        """Bound the norm of W_L...W_layer, from scalars."""
        gains = product(self.chain.sigma(j) for j in range(layer, self.chain.depth))
        one = flint().arb(1)
        if layer + 1 == self.chain.depth:
            return gains
        along, across = self._whole(layer, along=True), self._whole(layer, along=False)
        growth = self._growth(layer, starts=True)
        for j in range(layer + 1, self.chain.depth - 1):
            growth = growth * self._growth(j, starts=False)
        return gains * one.min(hypot(along, across)).min(growth)

    def _whole(self, layer: int, *, along: bool) -> Any:
        """Run the propagator form of the transfer recursion; return N."""
        zero, one, x = flint().arb(0), flint().arb(1), self.chain.xi(layer)
        p, q, n = (one, zero, one) if along else (zero, x, x)
        for j in range(layer, self.chain.depth - 1):
            kappa, s, _ = self.chain.coupling(j)
            p_next, q_next = (abs(kappa) * p + s * q).min(n), self.chain.xi(j + 1) * (s * p + q).min(n)
            p, q, n = p_next, q_next, n.min(hypot(p_next, q_next))
        return n

    @functools.cache  # noqa: B019
    def _growth(self, layer: int, *, starts: bool) -> Any:
        """Return mu of the coupling after `layer`, with weight 1 where a product starts and xi inside it."""
        kappa, s, _ = self.chain.coupling(layer)
        kappa, x, ahead = abs(kappa), self.chain.xi(layer), self.chain.xi(layer + 1)
        after = root(ahead) if layer + 2 < self.chain.depth else ahead
        entering = x if starts else root(x)
        a, b, c, d = kappa, s * entering, s * after, -kappa * entering * after
        return ((hypot(a + d, b - c) + hypot(a - d, b + c)) / 2).min(flint().arb(1))

    # cones

    def cone(self) -> tuple[Any, Any, Any]:
        """Return 1 - the largest factor, the tracked growth in units of the gains, and the final aperture."""
        arb = flint().arb
        angles = [self.chain.coupling(self.chain.on_spine(j)) for j in range(self.chain.length - 1)]
        below = [1 - s for _, s, _ in angles]
        if not all(x > 0 for x in below):
            raise Unresolved("neighbours at a right angle: no cone")
        chi = [((1 + s) / x).sqrt() for (_, s, _), x in zip(angles, below, strict=True)] + [arb(1)]
        margin = arb(1)
        for j in range(self.chain.length - 1):
            margin = margin.min(1 - self.chain.xi(self.chain.on_spine(j + 1)) * chi[j] * chi[j + 1])
        aperture, growth = arb(0), arb(1)
        for j, (kappa, s, _) in enumerate(angles):
            kappa, x = abs(kappa), self.chain.xi(self.chain.on_spine(j))
            rest = kappa - s * x * aperture
            if not rest > 0:
                raise Unresolved("no cone")
            aperture, growth = (s + kappa * x * aperture) / rest, growth * rest
        return margin, growth, aperture


def _scaled_rows(values: list[Any], matrix: Any) -> Any:
    """Multiply rows by numbers."""
    return beside([r * x for r, x in zip(columns(matrix.transpose()), values, strict=True)]).transpose()


bounds = functools.lru_cache(maxsize=1)(BallBounds)  # statements about one chain share what they need
