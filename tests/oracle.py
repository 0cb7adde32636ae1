"""The theory once more, the slow way: NumPy and scipy, explicit products, one loop per sum.

Written from docs/notation.md and docs/theory, and importing nothing of the package, so that an error in
one of the two shows as a disagreement. Layers count from 1 as they do on those pages: `W[1] ... W[L]`,
`G[1] ... G[L]`, `G[0]` where the first state depends on the context; `kappa[l]` couples l and l+1.
Numbers are plain, not logarithms: use chains whose products fit.
"""

import math
from functools import cached_property

import numpy as np
from scipy.optimize import nnls

ROOT_HALF = 1 / math.sqrt(2)


def norm(x):
    """Return the Euclidean or Frobenius norm."""
    return float(np.sqrt(np.sum(np.square(x))))


def spectral(x):
    """Return the largest singular value."""
    return float(np.linalg.svd(np.atleast_2d(x), compute_uv=False)[0])


def coherence(rows):
    """Return (value, psi0 or None): the distance of conv{rows/|rows|} from 0, by nonnegative least squares."""
    kept = [row / norm(row) for row in np.asarray(rows) if norm(row) > 0]
    if not kept:
        return math.nan, None
    system = np.concatenate([np.stack(kept, axis=1), np.ones((1, len(kept)))])
    weights, _ = nnls(system, np.append(np.zeros(system.shape[0] - 1), 1.0), maxiter=100 * len(kept))
    nearest = sum(w * g for w, g in zip(weights / weights.sum(), kept, strict=True))
    value = norm(nearest)
    return (value, nearest / value) if value > 1e-12 else (0.0, None)


def growth_matrix(kappa, xi):
    """Return the D=2 layer that grows fastest among those with these scalars (sigma = 1)."""
    s = math.sqrt((1 - kappa) * (1 + kappa))
    return np.array([[kappa, s * xi], [s, -kappa * xi]])


def turning_matrix(kappa, xi):
    """Return the D=2 layer whose cone is the narrowest among those with these scalars (sigma = 1)."""
    s = math.sqrt((1 - kappa) * (1 + kappa))
    return np.array([[kappa, -s * xi], [s, kappa * xi]])


class Stack:
    """Hold one chain and answer for everything the theory says about it.

    `basis` = (sigma1, xi, u, v), each with layers along axis 0, replaces the leading triplets: where
    singular values are tied, statements hold for the basis used.
    """

    def __init__(self, propagators, injections=None, initial=None, basis=None):
        propagators = np.asarray(propagators, dtype=np.float64)
        self.L, self.D = propagators.shape[:2]
        layers = range(1, self.L + 1)
        self.W = {l: propagators[l - 1] for l in layers}
        size = 0 if injections is None else np.shape(injections)[-1]
        self.G = {
            k: np.zeros((self.D, size)) if injections is None else np.asarray(injections[k - 1], float) for k in layers
        }
        self.first = 1
        if initial is not None:
            self.G[0] = np.asarray(initial, float)
            self.first = 0
        svd = {l: np.linalg.svd(self.W[l]) for l in layers}
        self.all_u = {l: svd[l][0] for l in layers}
        self.all_sigma = {l: svd[l][1] for l in layers}
        self.all_v = {l: svd[l][2].T for l in layers}
        if basis is None:
            self.sigma = {l: self.all_sigma[l][0] for l in layers}
            second = {l: self.all_sigma[l][1] if self.D > 1 else 0.0 for l in layers}
            self.xi = {l: second[l] / self.sigma[l] if self.sigma[l] > 0 else float(self.D > 1) for l in layers}
            self.u = {l: self.all_u[l][:, 0] for l in layers}
            self.v = {l: self.all_v[l][:, 0] for l in layers}
        else:
            self.sigma, self.xi, self.u, self.v = (dict(zip(layers, np.asarray(x), strict=True)) for x in basis)
        self.kappa = {l: float(self.v[l + 1] @ self.u[l]) for l in range(1, self.L)}
        self.s = {l: min(norm(self.v[l + 1] - self.kappa[l] * self.u[l]), 1.0) for l in range(1, self.L)}

    # what the sums run over: injections k, propagators met, couplings met
    @property
    def sources(self):
        return range(self.first, self.L)

    @property
    def met(self):
        return range(self.first + 1, self.L + 1)

    @property
    def couplings(self):
        return range(self.first + 1, self.L)

    # the objects -----------------------------------------------------------------------------------

    def product(self, k, end=None):
        """W_end ... W_{k+1}."""
        total = np.eye(self.D)
        for j in range(k + 1, (self.L if end is None else end) + 1):
            total = self.W[j] @ total
        return total

    def gain(self, k, end=None):
        """S_{end,k}."""
        return math.prod(self.sigma[j] for j in range(k + 1, (self.L if end is None else end) + 1))

    def amplitude(self, k, end=None):
        """A_{end,k}, signed."""
        end = self.L if end is None else end
        return self.gain(k, end) * math.prod(self.kappa[j] for j in range(k + 1, end))

    def row(self, k):
        """v_{k+1}^T G_k."""
        return self.v[k + 1] @ self.G[k]

    def psi(self, end=None):
        end = self.L if end is None else end
        total = np.zeros(self.G[self.L].shape[1])
        for k in range(self.first, end):
            total = total + self.amplitude(k, end) * self.row(k)
        return total

    def jacobian(self, end=None):
        end = self.L if end is None else end
        return self.G[end] + sum(self.product(k, end) @ self.G[k] for k in range(self.first, end))

    def residual(self, end=None):
        """R at layer `end`, term by term: (product - amplitude * outer) G_k."""
        end = self.L if end is None else end
        total = np.zeros_like(self.G[self.L])
        for k in range(self.first, end):
            path = self.amplitude(k, end) * np.outer(self.u[end], self.v[k + 1])
            total = total + (self.product(k, end) - path) @ self.G[k]
        return total

    def scale(self):
        return sum(self.gain(k) * norm(self.G[k]) for k in self.sources)

    # bounds on the residual ------------------------------------------------------------------------

    def paper(self):
        return sum(
            self.gain(k) * sum(self.xi[j] for j in range(k + 1, self.L + 1)) * norm(self.G[k]) for k in self.sources
        )

    def telescoping(self):
        total = 0.0
        for k in self.sources:
            factor = self.xi[k + 1]
            for i in range(k + 2, self.L + 1):
                factor += self.xi[i] * self.s[i - 1] * math.prod(abs(self.kappa[j]) for j in range(k + 1, i - 1))
            total += self.gain(k) * factor * norm(self.G[k])
        return total

    def _deviation(self, k, m, p, q, n, parts=False):
        for j in range(k + 1, self.L):
            kappa, s, xi = abs(self.kappa[j]), self.s[j], self.xi[j + 1]
            p2 = min(kappa * p + s * q, n)
            q2 = xi * (min(s * p + q, n) + m * s)
            n2 = min(math.hypot(p2, q2), n + xi * m * s)
            m, p, q, n = kappa * m, min(p2, n2), min(q2, n2), n2
        return (p, q, n) if parts else n

    def transfer(self):
        total = 0.0
        for k in self.sources:
            xi, v = self.xi[k + 1], self.v[k + 1]
            across = norm(self.G[k] - np.outer(v, v @ self.G[k]))
            along = self._deviation(k, 1.0, 0.0, 0.0, 0.0) * norm(self.row(k))
            total += self.gain(k) * (along + self._deviation(k, 0.0, 0.0, xi, xi) * across)
        return total

    def damped(self):
        """Products after a deviation by the weighted norm, as docs/theory/bounds.md has it."""
        weight = {l: self.xi[l] if l < self.L else self.xi[l] ** 2 for l in range(self.first + 1, self.L + 1)}

        def mu(j):
            k, s, root = abs(self.kappa[j]), self.s[j], math.sqrt
            right = [s * root(self.xi[j]), -k * root(self.xi[j] * weight[j + 1])]
            return min(1.0, spectral(np.array([[k, right[0]], [s * root(weight[j + 1]), right[1]]])))

        def after(i):
            if i == self.L:
                return 1.0
            enters = math.sqrt(weight[i + 1] + (1 - weight[i + 1]) * self.s[i] ** 2)
            return min(1.0, enters * math.prod(mu(j) for j in range(i + 1, self.L)))

        ends = np.zeros(3)
        for k in self.sources:
            xi, v = self.xi[k + 1], self.v[k + 1]
            path = lambda i, k=k: math.prod(abs(self.kappa[j]) for j in range(k + 1, i - 1))
            damped = sum(self.xi[i] * self.s[i - 1] * path(i) * after(i) for i in range(k + 2, self.L + 1))
            along = np.minimum(self._deviation(k, 1.0, 0.0, 0.0, 0.0, parts=True), damped)
            across = np.minimum(self._deviation(k, 0.0, 0.0, xi, xi, parts=True), xi * after(k + 1))
            off = norm(self.G[k] - np.outer(v, v @ self.G[k]))
            ends += self.gain(k) * (along * norm(self.row(k)) + across * off)
        return min(ends[2], math.hypot(ends[0], ends[1]))

    def row_exact(self):
        """Return (lower, upper)."""
        if not len(self.sources):
            return 0.0, 0.0
        away = lambda l, x: x - np.outer(self.v[l + 1], self.v[l + 1] @ x)
        beta = norm(away(self.first, self.G[self.first]))
        for l in range(self.first + 1, self.L):
            seen = self.jacobian(l - 1).T @ self.v[l]
            along = away(l, self.sigma[l] * np.outer(self.u[l], seen) + self.G[l])
            beta = self.sigma[l] * self.xi[l] * beta + norm(along)
        lower = self.sigma[self.L] * norm(self.v[self.L] @ self.residual(self.L - 1)) if self.L > 1 else 0.0
        return lower, math.hypot(lower, self.sigma[self.L] * self.xi[self.L] * beta)

    def top_k(self, count):
        """Return (lower, upper) from the leading `count` triplets."""
        K, eye = count, np.eye(self.D)
        tail = lambda l: self.all_sigma[l][K] if self.D > K else 0.0
        psi, p, q = np.zeros((K, self.G[self.L].shape[1])), 0.0, 0.0
        for l in range(self.first, self.L):
            right, sigma = self.all_v[l + 1][:, :K], np.diag(self.all_sigma[l + 1][:K])
            left = self.all_u[l][:, :K] if l > self.first else np.zeros((self.D, K))
            phi = left @ psi + self.G[l]
            outside = norm(phi - right @ right.T @ phi)
            leave = spectral(left - right @ right.T @ left)
            p2 = spectral(sigma @ right.T @ left) * p + spectral(sigma @ right.T @ (eye - left @ left.T)) * q
            q2 = tail(l + 1) * (min(leave * p + q, math.hypot(p, q)) + outside)
            psi, p, q = sigma @ right.T @ phi, p2, q2
        last = self.all_u[self.L][:, :K]
        seen = norm(psi - np.outer(last.T @ self.u[self.L], self.psi()))
        return max(seen - p, 0.0), math.hypot(seen + p, q)

    # bounds on Psi ---------------------------------------------------------------------------------

    def gammas(self):
        return {k: norm(self.row(k)) / norm(self.G[k]) for k in self.sources if norm(self.G[k]) > 0}

    def signed_rows(self):
        return np.array([np.sign(self.amplitude(k)) * self.row(k) for k in self.sources])

    def coherence(self):
        return coherence(self.signed_rows())

    def psi_lower(self):
        gamma = min(self.gammas().values())
        return gamma * ROOT_HALF * sum(abs(self.amplitude(k)) * norm(self.G[k]) for k in self.sources)

    def psi_lower_sharp(self):
        return self.coherence()[0] * sum(abs(self.amplitude(k)) * norm(self.row(k)) for k in self.sources)

    # bounds on products ----------------------------------------------------------------------------

    def mu(self, j, start=False):
        """The growth factor of coupling j; with start weight 1 where the product begins."""
        kappa, s, xi = abs(self.kappa[j]), self.s[j], self.xi[j]
        after = self.xi[self.L] ** 2 if j + 1 == self.L else self.xi[j + 1]
        enter = xi if start else math.sqrt(xi)
        return spectral([[kappa, s * enter], [s * math.sqrt(after), -kappa * enter * math.sqrt(after)]])

    def propagator_norm(self, k):
        """Bound ||W_L ... W_{k+1}||, k = 0..L-1."""
        finals = []
        for p, q, n in ((1.0, 0.0, 1.0), (0.0, self.xi[k + 1], self.xi[k + 1])):
            for j in range(k + 1, self.L):
                kappa, s, xi = abs(self.kappa[j]), self.s[j], self.xi[j + 1]
                p2, q2 = min(kappa * p + s * q, n), xi * min(s * p + q, n)
                p, q, n = p2, q2, min(n, math.hypot(p2, q2))
            finals.append(n)
        sharp = math.prod(self.mu(j, start=j == k + 1) for j in range(k + 1, self.L))
        return self.gain(k) * min(1.0, math.hypot(*finals), sharp)

    # hypotheses ------------------------------------------------------------------------------------

    def conditions(self):
        """Return the numbers that H1..H4 compare with thresholds."""
        gammas, xi = self.gammas(), max(self.xi[j] for j in self.met)
        gamma = min(gammas.values()) if gammas else math.nan
        defect = lambda l: 0.5 * norm(self.u[l] - math.copysign(1, self.kappa[l]) * self.v[l + 1]) ** 2
        return {
            "gain": min((self.sigma[j] * abs(self.kappa[j]) for j in self.couplings), default=math.inf),
            "cumulative_gain": min(self.gain(k) for k in self.sources),
            "alignment": max((defect(j) for j in self.couplings), default=0.0) * self.L,
            "projection": gamma,
            "sign_consistency": self.coherence()[0],
            "purity": xi * self.L / gamma if gamma > 0 else math.inf,
        }

    # regimes ---------------------------------------------------------------------------------------

    def cone(self):
        """Return the certificate's numbers: margin, contraction, closed and tracked growth, angle, caught."""
        chi = {j: math.sqrt((1 + self.s[j]) / (1 - self.s[j])) if self.s[j] < 1 else math.inf for j in self.couplings}
        chi[self.L] = 1.0
        blocked = {j for j in self.couplings if math.inf in (chi[j], chi[j + 1])}
        factors = [math.inf if j in blocked else self.xi[j + 1] * chi[j] * chi[j + 1] for j in self.couplings]
        tau, growth = 0.0, 1.0
        for j in self.couplings:
            kappa, s = math.sqrt((1 - self.s[j]) * (1 + self.s[j])), self.s[j]
            theta = kappa - s * self.xi[j] * tau if tau < math.inf else 0.0  # once at a right angle, always
            tau, growth = ((s + kappa * self.xi[j] * tau) / theta, growth * theta) if theta > 0 else (math.inf, 0.0)
        caught = {}
        for k in self.sources:
            a, b = norm(self.row(k)), norm(self.G[k] - np.outer(self.v[k + 1], self.row(k)))
            limit = 0.0 if self.xi[k + 1] == 0 else self.xi[k + 1] * chi[k + 1]
            caught[k] = norm(self.G[k]) > 0 and limit < math.inf and b * limit <= a
        gain = self.gain(self.first)
        return {
            "margin": 1 - max(factors, default=0.0),
            "contraction": math.inf if blocked else math.prod(factors),
            "closed": gain / math.prod(chi.values()),
            "tracked": gain * growth,
            "angle": math.atan(self.xi[self.L] * tau) if tau < math.inf else math.pi / 2,
            "caught": caught,
        }

    def dispersion_margin(self, constant, rate):
        return min(math.log(constant) - rate * (self.L - k) - math.log(self.propagator_norm(k)) for k in self.sources)

    def lyapunov(self):
        """Exponents from volumes: the first m coordinate directions span one of |r_11 ... r_mm| after all layers."""
        diagonal = np.abs(np.diag(np.linalg.qr(self.product(0), mode="r")))
        return sorted(np.log(diagonal) / self.L, reverse=True)

    # the truth behind each bound -------------------------------------------------------------------

    def output(self):
        """W_L ... W_{first+1} v_{first+1}."""
        return self.product(self.first) @ self.v[self.first + 1]

    @cached_property
    def checks(self):
        """Return claim -> (left, right, unit) with left <= right, for the unconditional claims."""
        size, scale, psi = norm(self.residual()), self.scale(), norm(self.psi())
        row_lower, row_upper = self.row_exact()
        k_lower, k_upper = self.top_k(min(2, self.D))
        products = {
            f"product {k}": (spectral(self.product(k)), self.propagator_norm(k), self.gain(k)) for k in range(self.L)
        }
        return products | {
            "residual_transfer": (size, self.transfer(), scale),
            "residual_damped": (size, self.damped(), scale),
            "transfer_telescoping": (self.transfer(), self.telescoping(), scale),
            "telescoping_paper": (self.telescoping(), self.paper(), scale),
            "row_exact_upper": (size, row_upper, scale),
            "row_exact_lower": (row_lower, size, scale),
            "top_k_upper": (size, k_upper, scale),
            "top_k_lower": (k_lower, size, scale),
            "psi_lower_sharp": (self.psi_lower_sharp(), psi, scale),
        }
