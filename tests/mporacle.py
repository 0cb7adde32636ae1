"""Every claim and condition a third time: mpmath at any number of digits, one loop per sum.

Written from docs/theory like `oracle.py`, importing nothing of the package. `Exactly(...).slacks(thresholds)` gives
name -> right minus left of every entry, as `ballclaims` does with balls. For small chains: an SVD of 4 by 4 at 80
digits takes milliseconds.
"""

import itertools
from functools import cached_property

import mpmath
from mpmath import mp, mpf


def norm(x):
    return mp.sqrt(mp.fsum(x[i, j] ** 2 for i in range(x.rows) for j in range(x.cols)))


def spectral(x):
    if x.rows == 1 or x.cols == 1:
        return norm(x)
    return max(mpmath.svd_r(x, compute_uv=False))


def product(xs):
    out = mpf(1)
    for x in xs:
        out *= x
    return out


def coherence(rows):
    """Return max over unit psi of min <g, psi>, by trying every subset of rows as the active one; 0 if none works."""
    unit = [r / norm(r) for r in rows]
    gram = [[(a.T * b)[0] for b in unit] for a in unit]
    best = mpf(0)
    for size in range(1, len(unit) + 1):
        for chosen in itertools.combinations(range(len(unit)), size):
            try:
                w = mp.lu_solve(mp.matrix([[gram[i][j] for j in chosen] for i in chosen]), mp.matrix([1] * size))
            except ZeroDivisionError:
                continue
            if min(w) <= 0:
                continue
            point = sum((unit[i] * w[k] for k, i in enumerate(chosen)), unit[0] * 0) / mp.fsum(w)
            reach = norm(point)
            if reach > 0 and min((g.T * point)[0] for g in unit) >= reach**2 * (1 - mpf(10) ** -55):
                best = max(best, reach)
    return best


class Exactly:
    """Hold one chain as mpmath numbers; layers from 0, the spine from `first`."""

    def __init__(self, propagators, injections, initial=None):
        matrix = lambda a: mp.matrix([[mpf(float(x)) for x in row] for row in a])
        self.W = [matrix(w) for w in propagators]
        self.L, self.D = len(self.W), self.W[0].rows
        self.first = 1 if initial is None else 0
        self.G = [*([] if initial is None else [matrix(initial)]), *(matrix(g) for g in injections[:-1])]
        self.n = self.L - self.first
        eye = mp.eye(self.D)
        self.values, self.u, self.v, self.frames = [], [], [], []
        for w in self.W:
            left, s, right = mpmath.svd_r(w)
            self.values.append([*s, mpf(0), mpf(0)])
            self.frames.append((left, right.T))
            self.u.append(left[:, 0])
            self.v.append(right.T[:, 0])
        self.xi = [s[1] / s[0] for s in self.values]
        self.sigma = [s[0] for s in self.values]
        self.kappa = [(self.v[j + 1].T * self.u[j])[0] for j in range(self.L - 1)]
        self.s = [norm(self.v[j + 1] - self.u[j] * k) for j, k in enumerate(self.kappa)]
        self.eye = eye

    def spine(self, xs):
        return xs[self.first :]

    @cached_property
    def amplitudes(self):
        sigma, kappa = self.spine(self.sigma), self.spine(self.kappa)
        return [product(sigma[k:]) * product(kappa[k:]) for k in range(self.n)]

    @cached_property
    def gains(self):
        return [product(self.spine(self.sigma)[k:]) for k in range(self.n)]

    @cached_property
    def rows(self):
        return [self.G[k].T * v for k, v in enumerate(self.spine(self.v))]

    @cached_property
    def psi(self):
        return sum((r * a for r, a in zip(self.rows, self.amplitudes, strict=True)), self.rows[0] * 0)

    def carried(self, start):
        out = self.eye
        for w in self.W[start:]:
            out = w * out
        return out

    @cached_property
    def residual(self):
        """By the definition: every product minus its dominant path."""
        out = self.G[0] * 0
        for k, g in enumerate(self.G):
            path = self.u[-1] * self.v[self.first + k].T * self.amplitudes[k]
            out += (self.carried(self.first + k) - path) * g
        return norm(out)

    def transfer(self):
        bound = mpf(0)
        for k in range(self.n):
            v = self.spine(self.v)[k]
            off = norm(self.G[k] - v * self.rows[k].T)
            for weight, state in ((norm(self.rows[k]), (1, 0, 0, 0)), (off, (0, 0, *[self.xi[self.first + k]] * 2))):
                bound += self.gains[k] * self.deviation(k, state)[2] * weight
        return bound

    def damped(self):
        xi, s, kappa = (self.spine(x) for x in (self.xi, self.s, self.kappa))
        weight = [*xi[:-1], xi[-1] ** 2]

        def after(i):
            if i == self.n - 1:
                return mpf(1)
            left = mp.sqrt(weight[i + 1] + (1 - weight[i + 1]) * s[i] ** 2)
            for j in range(i + 1, self.n - 1):
                a, w = abs(kappa[j]), mp.sqrt(weight[j + 1])
                left *= min(1, spectral(mp.matrix([[a, s[j] * mp.sqrt(xi[j])], [s[j] * w, -a * mp.sqrt(xi[j]) * w]])))
            return min(left, 1)

        ends = [mpf(0)] * 3
        for k in range(self.n):
            off = norm(self.G[k] - self.spine(self.v)[k] * self.rows[k].T)
            reach, path = mpf(0), mpf(1)
            for j in range(k, self.n - 1):
                reach, path = reach + path * s[j] * xi[j + 1] * after(j + 1), path * abs(kappa[j])
            parts = (
                (self.deviation(k, (1, 0, 0, 0)), reach, norm(self.rows[k])),
                (self.deviation(k, (0, 0, xi[k], xi[k])), xi[k] * after(k), off),
            )
            for i in range(3):
                ends[i] += self.gains[k] * mp.fsum(min(d[i], most) * size for d, most, size in parts)
        return min(ends[2], mp.hypot(ends[0], ends[1]))

    def deviation(self, k, state):
        m, p, q, n = (mpf(x) for x in state)
        for j in range(self.first + k, self.L - 1):
            a, s, x = abs(self.kappa[j]), self.s[j], self.xi[j + 1]
            pn, qn = min(a * p + s * q, n), x * (min(s * p + q, n) + m * s)
            n = min(mp.hypot(pn, qn), n + x * m * s)
            m, p, q = a * m, min(pn, n), min(qn, n)
        return p, q, n

    def telescoping(self):
        bound = mpf(0)
        for k in range(self.first, self.L):
            reach = self.xi[k]
            for i in range(k + 1, self.L):
                reach += self.xi[i] * self.s[i - 1] * product(abs(x) for x in self.kappa[k : i - 1])
            bound += self.gains[k - self.first] * reach * norm(self.G[k - self.first])
        return bound

    def paper(self):
        xi = self.spine(self.xi)
        return mp.fsum(self.gains[k] * mp.fsum(xi[k:]) * norm(g) for k, g in enumerate(self.G))

    def jacobian(self, until):
        """J before spine layer `until`, with the injection there."""
        out = self.G[0]
        for i in range(1, until + 1):
            out = self.W[self.first + i - 1] * out + self.G[i]
        return out

    def row_exact(self):
        off = lambda v, x: x - v * (v.T * x)
        u, v, sigma, xi = (self.spine(x) for x in (self.u, self.v, self.sigma, self.xi))
        beta = norm(off(v[0], self.G[0]))
        for i in range(1, self.n):
            row = (v[i - 1].T * self.jacobian(i - 1)) * sigma[i - 1]
            beta = sigma[i - 1] * xi[i - 1] * beta + norm(off(v[i], u[i - 1] * row + self.G[i]))
        seen = mpf(0)
        if self.n > 1:
            kappa = self.spine(self.kappa)
            psi = self.rows[0] * 0
            for k in range(self.n - 1):
                psi += self.rows[k] * (product(sigma[k:-1]) * product(kappa[k : self.n - 2]))
            rest = self.jacobian(self.n - 1) - self.G[-1] - u[-2] * psi.T
            seen = sigma[-1] * norm(v[-1].T * rest)
        return seen, mp.hypot(seen, sigma[-1] * xi[-1] * beta)

    def top_k(self, count):
        cut = [(left[:, :count], right[:, :count]) for left, right in self.spine(self.frames)]
        values = self.spine(self.values)
        diagonal = lambda s: mp.diag(s[:count])
        phi, p, q = self.G[0], mpf(0), mpf(0)
        for i in range(self.n):
            left, right = cut[i]
            sv, tail = diagonal(values[i]) * right.T, values[i][count] if count < self.D else mpf(0)
            size = norm(phi - right * (right.T * phi))
            if i == 0:
                q = tail * size
            else:
                before = cut[i - 1][0]
                stay, cross = spectral(sv * before), spectral(sv * (self.eye - before * before.T))
                leave = spectral(before - right * (right.T * before))
                p, q = stay * p + cross * q, tail * (min(leave * p + q, mp.hypot(p, q)) + size)
            psi = sv * phi
            if i + 1 < self.n:
                phi = left * psi + self.G[i + 1]
        seen = norm(psi - (cut[-1][0].T * self.u[-1]) * self.psi.T)
        return seen - p, mp.hypot(seen + p, q)

    def product_bound(self, start):
        gain = product(self.sigma[start:])
        if start == self.L - 1:
            return gain
        ends = []
        for p, q, n in ((1, 0, 1), (0, self.xi[start], self.xi[start])):
            p, q, n = mpf(p), mpf(q), mpf(n)
            for j in range(start, self.L - 1):
                a, s, x = abs(self.kappa[j]), self.s[j], self.xi[j + 1]
                p, q = min(a * p + s * q, n), x * min(s * p + q, n)
                n = min(n, mp.hypot(p, q))
            ends.append(n)
        growth = mpf(1)
        for j in range(start, self.L - 1):
            w = mpf(1) if j == start else self.xi[j]
            ahead = self.xi[j + 1] ** (2 if j == self.L - 2 else 1)
            a, s, x = abs(self.kappa[j]), self.s[j], self.xi[j] / mp.sqrt(w)
            growth *= spectral(mp.matrix([[a, s * x], [s * mp.sqrt(ahead), -a * x * mp.sqrt(ahead)]]))
        return gain * min(1, mp.hypot(*ends), growth)

    def cone(self):
        """Return margin, tracked growth and aperture; None where there is no cone."""
        s, xi = self.spine(self.s), self.spine(self.xi)
        if any(x >= 1 for x in s):
            return None
        chi = [mp.sqrt((1 + x) / (1 - x)) for x in s] + [mpf(1)]
        margin = min([mpf(1), *(1 - xi[j + 1] * chi[j] * chi[j + 1] for j in range(self.n - 1))])
        if margin <= 0:
            return None
        aperture, growth = mpf(0), mpf(1)
        for j in range(self.n - 1):
            k = abs(self.spine(self.kappa)[j])
            rest = k - s[j] * xi[j] * aperture
            aperture, growth = (s[j] + k * xi[j] * aperture) / rest, growth * rest
        return growth, aperture

    def slacks(self, t):
        """Return name -> [right - left] for what the package's registries hold; claims' needs are not looked at."""
        gamma = [norm(r) / norm(g) for r, g in zip(self.rows, self.G, strict=True) if norm(g)] or [mpf(1)]
        size, psi = [norm(g) for g in self.G], norm(self.psi)
        epsilon = max([mpf(0), *(1 - abs(k) for k in self.spine(self.kappa))])
        carried = lambda xs: mp.fsum(abs(a) * x for a, x in zip(self.amplitudes, xs, strict=True))
        signed = [r * mp.sign(a) for r, a in zip(self.rows, self.amplitudes, strict=True) if norm(r)]
        d = coherence(signed)
        norms = [spectral(self.carried(j)) for j in range(self.L)]
        bounds = [self.product_bound(j) for j in range(self.L)]
        root2, transfer, telescoping = mp.sqrt(2), self.transfer(), self.telescoping()
        low, high = self.row_exact()
        below, above = self.top_k(min(2, self.D))
        c2 = root2 * max(self.spine(self.xi)) * self.n / (min(gamma) * (1 - epsilon) ** (self.n - 1))
        limit = [mpf(t.dispersion_constant) * mp.exp(-mpf(t.dispersion_rate) * (self.L - j)) for j in range(self.L)]
        found = {
            "residual_transfer": [transfer - self.residual],
            "residual_damped": [self.damped() - self.residual],
            "transfer_telescoping": [telescoping - transfer],
            "telescoping_paper": [self.paper() - telescoping],
            "row_exact_upper": [high - self.residual],
            "row_exact_lower": [self.residual - low],
            "top_k_upper": [above - self.residual],
            "top_k_lower": [self.residual - below],
            "propagator_norm": [b - x for b, x in zip(bounds[1:], norms[1:], strict=True)],
            "total_norm": [bounds[0] - norms[0]],
            "psi_lower_sharp": [psi - d * carried([norm(r) for r in self.rows])],
            "psi_lower": [psi - min(gamma) / root2 * carried(size)],
            "c1": [psi - min(gamma) / root2 * mp.fsum(size)],
            "c2": [c2 * psi - self.residual],
            "gain": [self.sigma[j] * abs(self.kappa[j]) - t.gain for j in range(self.first, self.L - 1)],
            "gain_literal": [self.sigma[j] * abs(self.kappa[j]) - t.gain for j in range(self.L - 1)],
            "cumulative_gain": [s - t.cumulative_gain for s in self.gains],
            "alignment": [t.alignment - (1 - abs(k)) * self.L for k in self.spine(self.kappa)],
            "alignment_literal": [t.alignment - (1 - abs(k)) * self.L for k in self.kappa],
            "projection": [g - t.gamma_min for g in gamma],
            "sign_consistency": [d - mpf(t.coherence)],
            "purity": [t.purity * min(gamma) - max(self.spine(self.xi)) * self.L],
            "purity_literal": [t.purity * min(gamma) - max(self.xi) * self.L],
        }
        if all(b < x for b, x in zip(bounds[self.first :], limit[self.first :], strict=True)):
            found["dispersion"] = [x - y for x, y in zip(limit[self.first :], norms[self.first :], strict=True)]
        if cone := self.cone():
            growth, aperture = cone
            z = self.carried(self.first) * self.v[self.first]
            along = (self.u[-1].T * z)[0]
            found["cone_growth"] = [norm(z) - self.gains[0] * growth]
            found["cone_angle"] = [self.xi[-1] * aperture * abs(along) - norm(z - self.u[-1] * along)]
        return found
