"""One chain checked against the theorem by NumPy and LAPACK alone, with plain numbers: a peer to time `verify` beside.

It answers what `spectral_theorem.verify` answers, by the same algorithm: a certified SVD of every layer, the context
Jacobian by its recursion, all bounds carried for all injections at once, norms of all products, exponents by two QR
sweeps, the coherence problem by nonnegative least squares. Loops run over layers only. No logarithmic scale is kept, so
products must fit into a double, and there are no verdicts in words; both make it faster.
"""

import math
import sys
import time
from typing import Any

import numpy as np
from scipy.optimize import nnls

Array = Any
EPS = float(np.finfo(np.float64).eps)


def norms(x: Array) -> Array:
    """Return Euclidean norms over all axes but the first."""
    flat = x.reshape(len(x), -1)
    return np.sqrt(np.einsum("ij,ij->i", flat, flat))


def triplets(w: Array) -> dict[str, Array]:
    """Decompose every layer, with Weyl's bound on what the factors fail to reproduce and Wedin's angle."""
    depth, width = w.shape[:2]
    left, sigma, right = np.linalg.svd(w)
    eye = np.eye(width)
    misfit = norms(w - (left * sigma[:, None, :]) @ right)
    defect = norms(left.mT @ left - eye) + norms(right @ right.mT - eye)
    residual = misfit + sigma[:, 0] * (defect + width * EPS)
    first, second = sigma[:, 0], sigma[:, 1]
    u, v = left[:, :, 0], right[:, 0, :]
    sign = np.where(u[np.arange(depth), np.abs(u).argmax(axis=1)] < 0, -1.0, 1.0)[:, None]
    u, v = u * sign, v * sign
    kappa = np.einsum("ld,ld->l", v[1:], u[:-1])
    s = norms(v[1:] - kappa[:, None] * u[:-1])
    defects = 0.5 * norms(u[:-1] - np.where(kappa < 0, -1.0, 1.0)[:, None] * v[1:]) ** 2
    known = first - second - residual
    angle = np.arcsin(np.clip(math.sqrt(2) * residual / np.where(known > 0, known, residual), 0, 1))
    phi, error = np.arctan2(s, np.abs(kappa)), angle[:-1] + angle[1:]
    return {
        "left": left[:, :, :2], "right": right[:, :2, :].mT, "sigma": sigma[:, :3], "u": u, "v": v,
        "xi": second / first, "kappa": kappa, "s": s, "defect": defects, "residual": residual,
        "rho": first[:-1] * np.abs(kappa),
        "xi_error": residual * (1 + second / first) / (first - residual), "coupling_error": error,
        "kappa_upper": np.cos(np.clip(phi - error, 0, None)),
        "s_upper": np.sin(np.clip(phi + error, None, math.pi / 2)),
    }  # fmt: skip


def path(w: Array, g: Array, t: dict[str, Array]) -> dict[str, Array]:
    """Return Psi, the residual by its recursion and by difference from the Jacobian's, and the row-exact bound."""
    depth = len(w)
    sigma, u, v, kappa, xi = t["sigma"][:, 0], t["u"], t["v"], t["kappa"], t["xi"]
    rows = np.einsum("nd,ndc->nc", v[1:], g[:-1])
    gains = np.cumprod(sigma[:0:-1])[::-1]
    amplitude = gains * np.append(np.cumprod(kappa[:0:-1])[::-1], 1.0)
    jacobian, residual, psi, beta = g[0], np.zeros_like(g[0]), np.zeros(g.shape[2]), 0.0
    exact = upper = 0.0
    row_before = psi
    for l in range(1, depth):
        along = kappa[l - 1] * psi if l > 1 else psi
        # across v: what came along the layer before's u is known, the rest through beta
        seen = v[l] @ (jacobian - g[l - 1])
        met = np.outer(u[l - 1], row_before) + g[l - 1]
        off = met - np.outer(v[l], v[l] @ met)
        beta = (sigma[l - 1] * xi[l - 1] * beta if l > 1 else 0.0) + math.sqrt(np.vdot(off, off))
        exact = sigma[l] * math.sqrt(np.vdot(seen - along, seen - along))
        upper = math.hypot(exact, sigma[l] * xi[l] * beta)
        whole = np.outer(u[l - 1], psi) + g[l - 1]
        row = along + rows[l - 1]
        residual = w[l] @ residual + w[l] @ whole - sigma[l] * np.outer(u[l], row)
        psi, row_before = sigma[l] * row, sigma[l] * (seen + rows[l - 1])
        jacobian = w[l] @ jacobian + g[l]
    by_difference = jacobian - np.outer(u[-1], amplitude @ rows) - g[-1]
    return {
        "rows": rows, "gains": gains, "amplitude": amplitude, "psi": amplitude @ rows, "jacobian": jacobian,
        "residual": math.sqrt(np.vdot(residual, residual)),
        "identity": math.sqrt(np.vdot(by_difference - residual, by_difference - residual)),
        "row_exact": upper, "row_exact_lower": exact,
    }  # fmt: skip


def factors(xi: Array, kappa: Array, s: Array) -> tuple[Array, ...]:
    """Carry a unit that enters before every layer to the last one; all entries at once, a loop over layers."""
    n = len(xi)
    one, zero = np.ones(n), np.zeros(n)
    m, p, q, size = one.copy(), zero.copy(), zero.copy(), zero.copy()
    pa, qa, na = zero.copy(), xi.copy(), xi.copy()
    pw, qw, nw = one.copy(), zero.copy(), one.copy()
    steps, direct = xi.copy(), one.copy()
    for l in range(1, n):
        k, c, x, a = kappa[l - 1], s[l - 1], xi[l], slice(0, l)
        m_, p_, q_, n_ = m[a], p[a], q[a], size[a]
        p2, q2 = np.minimum(k * p_ + c * q_, n_), x * (np.minimum(c * p_ + q_, n_) + m_ * c)
        n2 = np.minimum(np.hypot(p2, q2), n_ + x * m_ * c)
        p[a], q[a], size[a], m[a] = np.minimum(p2, n2), np.minimum(q2, n2), n2, k * m_
        p_, q_, n_ = pa[a], qa[a], na[a]
        p2, q2 = np.minimum(k * p_ + c * q_, n_), x * np.minimum(c * p_ + q_, n_)
        n2 = np.minimum(np.hypot(p2, q2), n_)
        pa[a], qa[a], na[a] = np.minimum(p2, n2), np.minimum(q2, n2), n2
        p_, q_, n_ = pw[a], qw[a], nw[a]
        p2, q2 = np.minimum(k * p_ + c * q_, n_), x * np.minimum(c * p_ + q_, n_)
        pw[a], qw[a], nw[a] = p2, q2, np.minimum(n_, np.hypot(p2, q2))
        steps[a] += x * c * direct[a]
        direct[a] *= k
    return size, na, nw, steps


def growth(t: dict[str, Array]) -> tuple[Array, Array]:
    """Return the factors of the sharp growth bound, at the start of a product and inside it."""
    xi, kappa, s = t["xi"], np.abs(t["kappa"]), t["s"]
    after = xi[1:].copy()
    after[-1] **= 2
    found = []
    for entering in (xi[:-1], np.sqrt(xi[:-1])):
        a, b = kappa, s * entering
        c, d = s * np.sqrt(after), -kappa * entering * np.sqrt(after)
        mu = 0.5 * (np.hypot(a + d, b - c) + np.hypot(a - d, b + c))
        found.append(np.minimum(mu + t["coupling_error"], 1.0))
    return found[0], found[1]


def top_two(g: Array, t: dict[str, Array], psi: Array) -> tuple[float, float]:
    """Return the lower and upper bound that keep the leading two directions exactly."""
    left, right, sigma, tail = t["left"], t["right"], t["sigma"][:, :2], t["sigma"][:, 2]
    before = np.concatenate([np.zeros_like(left[:1]), left[1:-1]])
    overlap = right[1:].mT @ before
    across = right[1:].mT - overlap @ before.mT
    spectral = lambda x: np.linalg.norm(x, ord=2, axis=(1, 2))
    keep_p, keep_q = spectral(sigma[1:, :, None] * overlap), spectral(sigma[1:, :, None] * across)
    leave = spectral(before - right[1:] @ overlap)
    kept, p, q = np.zeros((2, g.shape[2])), 0.0, 0.0
    for l in range(1, len(g)):
        met = before[l - 1] @ kept + g[l - 1]
        row = right[l].T @ met
        beyond = met - right[l] @ row
        q2 = tail[l] * (min(leave[l - 1] * p + q, math.hypot(p, q)) + math.sqrt(np.vdot(beyond, beyond)))
        p, q, kept = keep_p[l - 1] * p + keep_q[l - 1] * q, q2, sigma[l][:, None] * row
    seen = np.linalg.norm(kept - np.outer(left[-1].T @ t["u"][-1], psi))
    return max(seen - p, 0.0), math.hypot(seen + p, q)


def bounds(g: Array, t: dict[str, Array], p: dict[str, Array], coherence: float) -> dict[str, Any]:
    """Return every bound on the residual, on Psi and on products."""
    xi, sigma, gains = t["xi"], t["sigma"][:, 0], p["gains"]
    along, across, whole, steps = factors(xi, t["kappa_upper"], t["s_upper"])
    size, on = norms(g[:-1]), norms(p["rows"])
    off = norms(g[:-1] - t["v"][1:, :, None] * p["rows"][:, None, :])
    first, later = growth(t)
    sharp = np.append(first * np.append(np.cumprod(later[:0:-1])[::-1], 1.0), 1.0)
    total = np.cumprod(sigma[::-1])[::-1]
    lower, upper = top_two(g, t, p["psi"])
    weight = np.abs(p["amplitude"])
    return {
        "paper": gains @ (np.cumsum(xi[:0:-1])[::-1] * size), "telescoping": gains @ (steps[1:] * size),
        "transfer": gains @ (along[1:] * on + across[1:] * off), "row_exact": p["row_exact"],
        "row_exact_lower": p["row_exact_lower"], "top_k": upper, "top_k_lower": lower,
        "psi_lower": (on / size).min() / math.sqrt(2) * (weight @ size), "psi_lower_sharp": coherence * (weight @ on),
        "products": total * np.minimum(1.0, np.minimum(np.hypot(whole, across), sharp)),
    }  # fmt: skip


def coherence(rows: Array) -> tuple[float, Array]:
    """Return the distance of conv{rows/|rows|} from 0, and the direction it lies in."""
    unit = rows / norms(rows)[:, None]
    system = np.concatenate([unit.T, np.ones((1, len(unit)))])
    weights, _ = nnls(system, np.append(np.zeros(unit.shape[1]), 1.0))
    nearest = (weights / weights.sum()) @ unit
    value = math.sqrt(nearest @ nearest)
    return value, nearest / max(value, EPS)


def conditions(t: dict[str, Array], p: dict[str, Array], g: Array, solved: tuple[float, Array]) -> dict[str, float]:
    """Return the numbers that H1 to H4 compare with thresholds."""
    depth = len(g)
    gamma = (norms(p["rows"]) / norms(g[:-1])).min()
    unit = p["rows"] / norms(p["rows"])[:, None]
    right = np.linalg.svd(unit, full_matrices=False)[2]
    other = coherence(np.where(unit @ right[0] < 0, -1.0, 1.0)[:, None] * unit)[0]
    return {
        "gain": t["rho"][1:].min(), "cumulative_gain": p["gains"].min(), "alignment": t["defect"][1:].max() * depth,
        "projection": gamma, "sign_consistency": solved[0], "purity": t["xi"][1:].max() * depth / gamma,
        "directionality": max(other, np.abs(unit @ solved[1]).min()),
    }  # fmt: skip


def regime(w: Array, t: dict[str, Array]) -> dict[str, Any]:
    """Return norms of all products, exponents, and the cone's certificate and output."""
    depth, width = w.shape[:2]
    product, products = np.eye(width), []
    for l in range(depth - 1, -1, -1):
        product = product @ w[l]
        products.append(product)
    largest = np.linalg.svd(np.stack(products[::-1]), compute_uv=False)[:, 0]
    q = np.eye(width)
    for l in range(depth - 1, -1, -1):
        q, _ = np.linalg.qr(w[l].T @ q)
    total = np.zeros(width)
    for l in range(depth):
        q, r = np.linalg.qr(w[l] @ q)
        total += np.log(np.abs(np.diagonal(r)))
    s = t["s_upper"][1:]
    xi, kappa = np.minimum(t["xi"] + t["xi_error"], 1.0)[1:], np.sqrt((1 - s) * (1 + s))
    chi = np.append(np.sqrt((1 + s) / (1 - s)), 1.0)
    aperture = shrink = 0.0
    for k, c, x in zip(kappa, s, xi[:-1], strict=True):
        rest = k - c * x * aperture
        if rest <= 0:
            aperture = math.inf
            break
        aperture, shrink = (c + k * x * aperture) / rest, shrink + math.log(rest)
    output = t["v"][1]
    for l in range(1, depth):
        output = w[l] @ output
    return {
        "products": largest, "lyapunov": -np.sort(-total / depth),
        "cone_margin": 1 - (xi[1:] * chi[:-1] * chi[1:]).max(),
        "aperture": aperture, "shrink": shrink, "output": output,
    }  # fmt: skip


def verify(w: Array, g: Array) -> dict[str, Any]:
    """Check one chain, (L, D, D) and (L, D, C) with L >= 3, D >= 3 and no injection zero."""
    t = triplets(w)
    p = path(w, g, t)
    solved = coherence(np.sign(p["amplitude"])[:, None] * p["rows"])
    return {
        "triplets": t, "path": p, "bounds": bounds(g, t, p, solved[0]), "conditions": conditions(t, p, g, solved),
        "regime": regime(w, t), "coherence": solved[0],
    }  # fmt: skip


if __name__ == "__main__":  # seconds per chain, for so many chains of the benchmark's size
    count = int(sys.argv[1])
    rng = np.random.default_rng(0)
    chains = [(rng.standard_normal((32, 64, 64)) / 8, rng.standard_normal((32, 64, 32)) / 45) for _ in range(count)]
    verify(*chains[0])
    start = time.perf_counter()
    for chain in chains:
        verify(*chain)
    print((time.perf_counter() - start) / count)
