"""Make chains by the thousand in NumPy: generic ones, and ones that sit on every edge of the theory.

A maker takes (rng, n, L, D) and returns propagators (n, L, D, D); injections are drawn independently by
`injections`. Nothing here uses the package, and nothing is compiled.
"""

import numpy as np


def frames(rng, *shape):
    """Random orthogonal matrices (*batch, D, D)."""
    q, r = np.linalg.qr(rng.normal(size=shape))
    return q * np.sign(np.diagonal(r, axis1=-2, axis2=-1))[..., None, :]


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def build(rng, sigma, kappa, s, xi, bulk=None):
    """W_l with these scalars, (n, L) each and (n, L-1) for kappa and s; random directions otherwise.

    kappa and s are the two legs of the coupling angle, given apart so that 1e-9 survives in s.
    """
    n, L = sigma.shape
    D = bulk.shape[-1] + 1
    left, right = frames(rng, n, L, D, D), frames(rng, n, L, D, D)
    out = np.empty((n, L, D, D))
    v = right[:, 0, :, 0]
    for l in range(L):
        turn = right[:, l].copy()
        turn[:, :, 0] = v
        q, r = np.linalg.qr(turn)
        basis = q * np.sign(np.diagonal(r, axis1=-2, axis2=-1))[:, None, :]
        basis[:, :, 0] = v
        spectrum = np.concatenate([np.ones((n, 1)), xi[:, l, None] * bulk[:, l]], axis=1)
        out[:, l] = (left[:, l] * (sigma[:, l, None] * spectrum)[:, None, :]) @ np.swapaxes(basis, 1, 2)
        if l < L - 1:
            if D == 1:
                v = np.sign(kappa[:, l, None]) * left[:, l, :, 0]
            else:
                aside = np.einsum("nij,nj->ni", left[:, l, :, 1:], unit(rng.normal(size=(n, D - 1))))
                v = unit(kappa[:, l, None] * left[:, l, :, 0] + s[:, l, None] * aside)
    return out


def _spread(rng, n, L, D, *, s, xi, sigma=None, flat=None):
    """Build from misalignments s (n, L-1) in [0, 1] and gap ratios xi (n, L), with random signs of kappa."""
    sigma = 3.0 ** rng.uniform(-1, 1, (n, L)) if sigma is None else sigma
    kappa = rng.choice([-1.0, 1.0], (n, L - 1)) * np.sqrt((1 - s) * (1 + s))
    bulk = rng.uniform(0, 1, (n, L, D - 1))
    if D > 1:
        bulk[..., 0] = 1.0
        wide = rng.random(n) < 0.5 if flat is None else np.full(n, flat)
        bulk[wide] = 1.0
    return build(rng, sigma, kappa, s, xi, bulk)


# generic ------------------------------------------------------------------------------------------------


def gaussian(rng, n, L, D):
    return rng.normal(size=(n, L, D, D)) * 2.0 ** rng.uniform(-2, 2, (n, 1, 1, 1)) / np.sqrt(D)


def any_scalars(rng, n, L, D):
    return _spread(rng, n, L, D, s=rng.uniform(0, 1, (n, L - 1)), xi=rng.uniform(0, 1, (n, L)))


def near_identity(rng, n, L, D):
    return np.eye(D) + gaussian(rng, n, L, D) * 10.0 ** rng.uniform(-4, 0, (n, 1, 1, 1))


def theorem(rng, n, L, D):
    """Where H1, H2 and H4 hold, or nearly."""
    s = np.sqrt(2 * 10.0 ** rng.uniform(-8, -1, (n, 1)) / L) * rng.uniform(0, 1, (n, L - 1))
    xi = 10.0 ** rng.uniform(-8, -1, (n, 1)) / L * rng.uniform(0, 1, (n, L))
    sigma = 1 + rng.uniform(0, 0.5, (n, L)) * rng.choice([0.1, 1.0, -0.05], (n, 1))
    return _spread(rng, n, L, D, s=s, xi=xi, sigma=sigma)


def pure_but_turned(rng, n, L, D):
    return _spread(rng, n, L, D, s=rng.uniform(0, 1, (n, L - 1)), xi=10.0 ** rng.uniform(-6, -1, (n, L)))


# edges --------------------------------------------------------------------------------------------------


def misaligned_by_1e9(rng, n, L, D):
    s = 10.0 ** rng.choice([-9.0, -9.0, -8.0, -6.0, -12.0], (n, L - 1))
    return _spread(rng, n, L, D, s=s, xi=rng.choice([0.9, 0.5, 1e-3], (n, 1)) * np.ones((n, L)), sigma=np.ones((n, L)))


def ties(rng, n, L, D):
    """xi = 1 in some layers, or in all: orthogonal, identity, permutation."""
    xi = np.where(rng.random((n, L)) < 0.5, 1.0, rng.uniform(0, 1, (n, L)))
    out = _spread(rng, n, L, D, s=rng.uniform(0, 1, (n, L - 1)), xi=xi, flat=True)
    third = n // 3
    out[:third] = frames(rng, third, L, D, D)
    rest = rng.random((third, L)) < 0.4
    out[:third][rest] = np.eye(D)
    out[:third][rng.random((third, L)) < 0.2] = np.roll(np.eye(D), 1, axis=0)
    return out


def nearly_tied(rng, n, L, D):
    xi = 1 - 10.0 ** rng.choice([-9.0, -12.0, -6.0], (n, L))
    return _spread(rng, n, L, D, s=rng.uniform(0, 1, (n, L - 1)), xi=xi)


def rank_one(rng, n, L, D):
    """xi = 0, and now and then a layer that is zero."""
    out = _spread(rng, n, L, D, s=rng.uniform(0, 1, (n, L - 1)), xi=np.where(rng.random((n, L)) < 0.8, 0.0, 0.3))
    out[rng.random((n, L)) < 0.5 / L] = 0.0
    return out


def orthogonal_couplings(rng, n, L, D):
    """kappa 0, or 1e-9, or 1, or 1 - 1e-9."""
    c = rng.choice([0.0, 1e-9, 1e-17, 0.5], (n, L - 1))
    s = np.where(rng.random((n, L - 1)) < 0.5, np.sqrt((1 - c) * (1 + c)), rng.choice([0.0, 4.5e-5], (n, L - 1)))
    return _spread(rng, n, L, D, s=s, xi=rng.uniform(0, 1, (n, L)))


def planar(rng, n, L, D):
    """The D=2 chains that attain the sharp rates, in one common plane, above a bulk that may join in."""
    s = np.where(rng.random((n, 1)) < 0.5, rng.uniform(0, 1, (n, 1)) * np.ones((n, L)), rng.uniform(0, 1, (n, L)))
    xi = np.where(rng.random((n, 1)) < 0.5, rng.uniform(0, 1, (n, 1)) * np.ones((n, L)), rng.uniform(0, 1, (n, L)))
    xi[rng.random((n, L)) < 0.2] = 0.0
    kappa, sign = np.sqrt((1 - s) * (1 + s)), rng.choice([-1.0, 1.0], (n, 1))
    out = np.zeros((n, L, D, D))
    if D > 1:
        out[..., 0, 0], out[..., 0, 1], out[..., 1, 0], out[..., 1, 1] = kappa, sign * s * xi, s, -sign * kappa * xi
        for i in range(2, D):
            out[..., i, i] = xi * rng.choice([0.0, 1.0], (n, 1))
    else:
        out[..., 0, 0] = rng.choice([-1.0, 1.0], (n, L))
    q = frames(rng, n, 1, D, D)
    return q @ (out * 3.0 ** rng.uniform(-1, 1, (n, 1, 1, 1))) @ np.swapaxes(q, -1, -2)


def late_orthogonality(rng, n, L, D):
    """The instance that attains the paper's bound: pure and aligned, and then all of it arrives beside v_L."""
    s = np.zeros((n, L - 1))
    s[:, -1:] = rng.choice([1.0, 0.6, 1 - 1e-9], (n, min(1, L - 1)))
    xi = np.zeros((n, L))
    xi[:, -1] = rng.uniform(0, 1, n)
    return _spread(rng, n, L, D, s=s, xi=xi)


def repeated(rng, n, L, D):
    """One matrix over and over: nilpotent, triangular, symmetric, diagonal."""
    w = rng.normal(size=(n, 1, D, D)) / np.sqrt(D)
    kind = rng.integers(4, size=n)
    w[kind == 0] = np.triu(w[kind == 0], 1)
    w[kind == 1] = np.triu(w[kind == 1])
    w[kind == 2] = (w + np.swapaxes(w, -1, -2))[kind == 2] / 2
    w[kind == 3] = w[kind == 3] * np.eye(D)
    return np.broadcast_to(w, (n, L, D, D)).copy()


def extreme_gains(rng, n, L, D):
    """Gains over twelve orders of magnitude inside one chain."""
    sigma = 10.0 ** rng.choice([-6.0, -3.0, 0.0, 3.0, 6.0], (n, L))
    return _spread(rng, n, L, D, s=rng.uniform(0, 1, (n, L - 1)), xi=rng.uniform(0, 1, (n, L)), sigma=sigma)


GENERIC = (gaussian, any_scalars, near_identity, theorem, theorem, pure_but_turned)
EDGES = (
    misaligned_by_1e9,
    ties,
    nearly_tied,
    rank_one,
    orthogonal_couplings,
    planar,
    late_orthogonality,
    repeated,
    extreme_gains,
)


def paths(propagators):
    """Return u, v (n, L, D) of the leading triplets, with signs for which every kappa is >= 0."""
    left, _, right = np.linalg.svd(propagators)
    u, v = left[:, :, :, 0].copy(), right[:, :, 0, :].copy()
    for l in range(1, u.shape[1]):
        turn = np.where(np.sum(v[:, l] * u[:, l - 1], axis=-1, keepdims=True) < 0, -1.0, 1.0)
        u[:, l], v[:, l] = turn * u[:, l], turn * v[:, l]
    return u, v


def injections(rng, propagators, C, initial):
    """Draw G (n, L, D, C) and, if wanted, G_0 (n, D, C): one way per chain, with some injections zero."""
    n, L, D, _ = propagators.shape
    row = np.concatenate([paths(propagators)[1], unit(rng.normal(size=(n, 1, D)))], axis=1)  # entry k meets G_k
    g = rng.normal(size=(n, L + 1, D, C))
    along = np.einsum("nkd,nkdc->nkc", row, g)
    across = g - row[..., None] * along[:, :, None, :]
    shared = rng.normal(size=(n, 1, C))
    agreed = shared + rng.choice([0.0, 0.2, 0.5, 1.0], (n, 1, 1)) * along
    beside = 10.0 ** rng.uniform(-3, 0.5, (n, 1, 1, 1))
    ways = {
        "random": g,
        "on the path": row[..., None] * along[:, :, None, :],
        "beside the path": across,
        "coherent": row[..., None] * agreed[:, :, None, :] + beside * across,
        "coherent again": row[..., None] * agreed[:, :, None, :] + 0.5 * across,
        "parallel": row[..., None] * shared[:, :, None, :] + across * rng.choice([0.0, 1e-9, 1.0], (n, 1, 1, 1)),
        "sign flipping": row[..., None] * (rng.choice([-1.0, 1.0], (n, L + 1, 1)) * agreed)[:, :, None, :],
        "rank one": g[..., :1] * rng.normal(size=(n, L + 1, 1, C)),
    }
    way = rng.integers(len(ways), size=n)
    out = np.select([(way == i)[:, None, None, None] for i in range(len(ways))], list(ways.values()))
    absent = rng.random((n, L + 1)) < rng.choice([0.0, 0.3, 1.0], (n, 1), p=[0.8, 0.18, 0.02])
    out[absent] = 0.0
    out *= np.where(rng.random((n, 1)) < 0.1, 10.0 ** rng.uniform(-6, 6, (n, L + 1)), 1.0)[..., None, None]
    return out[:, 1:], out[:, 0] if initial else None


def block(seed, n, L, D, C, initial=False, families=None):
    """Return (W, G, G0 or None, family of each chain): all families in equal parts, in random order."""
    rng = np.random.default_rng([seed, n, L, D, C or 0])
    families = families or (*GENERIC, *EDGES)
    family = np.arange(n) % len(families)
    w = np.empty((n, L, D, D))
    for i, make in enumerate(families):
        mine = family == i
        if mine.any():
            w[mine] = make(rng, int(mine.sum()), L, D)
    names = np.array([families[i].__name__ for i in family])
    if not C:
        return w, None, None, names
    return w, *injections(rng, w, C, initial), names
