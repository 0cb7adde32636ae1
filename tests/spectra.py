"""Operators whose singular triplets are known exactly, by the thousand, and the judge of what was found of them.

W = P diag(s) Q with P and Q products of two reflections along float32 vectors: in exact arithmetic sigma_i = s_i,
u_i = P e_i, v_i = Q^T e_i, whatever the rounding of the products. Nothing here uses the package.
"""

import dataclasses

import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial


def _tail(rng, n, size, top):
    """Descending values below `top` (n,): spread, flat, geometric, or a cluster close below it."""
    spread = np.sort(rng.uniform(0, 1, (n, size)))[:, ::-1]
    kinds = (
        spread,
        np.broadcast_to(rng.uniform(0, 1, (n, 1)), (n, size)),
        rng.uniform(0.3, 0.95, (n, 1)) ** np.arange(size),
        1 - rng.uniform(0.001, 0.2, (n, 1)) * (1 - spread),
    )
    which = rng.integers(len(kinds), size=n)
    shape = np.select([(which == i)[:, None] for i in range(len(kinds))], kinds)
    return shape * top[:, None]


def _headed(rng, n, size, *head):
    """Values of the head (each (n,) or a number), then a tail below the last of them."""
    columns = [np.broadcast_to(np.asarray(h, float), (n,)) for h in head]
    below = columns[-1] * rng.choice([1.0, 0.99, 0.9, 0.5], n)
    return np.concatenate([np.stack(columns, axis=1), _tail(rng, n, size - len(head), below)], axis=1)


def near(rng, n):
    return 1 - 10.0 ** rng.uniform(-12, -2, n)


def _low_rank(rng, n, size, rank):
    out = np.zeros((n, size))
    out[:, :rank] = np.sort(rng.uniform(0.3, 1, (n, rank)))[:, ::-1]
    return out


FAMILIES = {
    "separated": lambda rng, n, D: _headed(rng, n, D, 1.0, rng.uniform(0.1, 0.9, n)),
    "flat": lambda rng, n, D: np.ones((n, D)),
    "double": lambda rng, n, D: _headed(rng, n, D, 1.0, 1.0),
    "triple": lambda rng, n, D: _headed(rng, n, D, 1.0, 1.0, 1.0),
    "second and third": lambda rng, n, D: _headed(rng, n, D, 1.0, *[rng.uniform(0.3, 0.99, n)] * 2),
    "second to fourth": lambda rng, n, D: _headed(rng, n, D, 1.0, *[rng.uniform(0.3, 0.99, n)] * 3),
    "one above a flat floor": lambda rng, n, D: np.concatenate(
        [np.ones((n, 1)), np.broadcast_to(rng.uniform(0.05, 0.99, (n, 1)), (n, D - 1))], axis=1
    ),
    "nearly tied": lambda rng, n, D: _headed(rng, n, D, 1.0, near(rng, n)),
    "nearly tied triple": lambda rng, n, D: np.sort(_headed(rng, n, D, 1.0, near(rng, n), near(rng, n)), axis=1)[
        :, ::-1
    ],
    "nearly flat": lambda rng, n, D: 1 - 10.0 ** rng.uniform(-12, -2, (n, 1)) * np.arange(D) / D,
    "cluster below": lambda rng, n, D: np.concatenate(
        [np.ones((n, 1)), rng.uniform(0.5, 0.999, (n, 1)) * (1 - 1e-4 * np.arange(D - 1) / D)], axis=1
    ),
    "rank one": lambda rng, n, D: _low_rank(rng, n, D, 1),
    "rank two": lambda rng, n, D: _low_rank(rng, n, D, 2),
    "zero": lambda rng, n, D: np.zeros((n, D)),
    "fast decay": lambda rng, n, D: np.maximum(rng.uniform(1e-3, 0.5, (n, 1)) ** np.arange(D), 1e-30),
    "small second": lambda rng, n, D: _headed(rng, n, D, 1.0, 10.0 ** rng.uniform(-7, -1, n)),
    "identity and some": lambda rng, n, D: np.sort(1 + rng.normal(size=(n, D)) * 0.1 / np.sqrt(D), axis=1)[:, ::-1],
}


@dataclasses.dataclass(frozen=True)
class Planted:
    """Hold N operators of width D: values (N, D), vectors of reflections (2, N, D) on each side, and their families."""

    values: np.ndarray
    left: np.ndarray
    right: np.ndarray
    family: np.ndarray

    def triplet(self, i):
        """Return the exact sigma_i (N,), u_i and v_i (N, D)."""
        basis = np.zeros(self.values.shape)
        basis[:, i] = 1.0
        return self.values[:, i].astype(float), reflect(self.left, basis), reflect(self.right[::-1], basis)

    def dense(self):
        """Return W (N, D, D) in float64."""
        w = np.eye(self.values.shape[1]) * self.values[:, :, None].astype(float)
        w = reflect_rows(self.left, w)
        return np.swapaxes(reflect_rows(self.right[::-1], np.swapaxes(w, 1, 2)), 1, 2)

    def maps(self):
        """Return push and pull, rows (N, b, D) -> (N, b, D)."""
        arrays = tuple(jnp.asarray(x) for x in (self.values, self.left, self.right))
        return Partial(_push, arrays), Partial(_pull, arrays)


def reflect(vectors, x):
    """P x for x (N, D), P the product of the reflections, the last first."""
    for w in vectors[::-1].astype(float):
        x = x - 2 * w * (np.sum(w * x, axis=1) / np.sum(w * w, axis=1))[:, None]
    return x


def reflect_rows(vectors, m):
    """P m for matrices m (N, D, D)."""
    for w in vectors[::-1].astype(float):
        share = np.einsum("ni,nij->nj", w, m) / np.sum(w * w, axis=1)[:, None]
        m = m - 2 * w[:, :, None] * share[:, None, :]
    return m


def _mirror(w, x):
    return x - 2 * w[:, None] * (jnp.sum(w[:, None] * x, -1, keepdims=True) / jnp.sum(w * w, -1)[:, None, None])


def _push(arrays, x):
    values, left, right = arrays
    x = _mirror(right[0], _mirror(right[1], x)) * values[:, None]
    return _mirror(left[0], _mirror(left[1], x))


def _pull(arrays, y):
    values, left, right = arrays
    y = _mirror(left[1], _mirror(left[0], y)) * values[:, None]
    return _mirror(right[1], _mirror(right[0], y))


def planted(seed, count, width, *, families=FAMILIES, scales=True, dtype=np.float32):
    """Make N operators, all families in turn, at scales from 1e-12 to 1e12."""
    rng = np.random.default_rng([seed, count, width])
    names = list(families)
    family = np.arange(count) % len(names)
    values = np.empty((count, width))
    for i, name in enumerate(names):
        values[family == i] = families[name](rng, int((family == i).sum()), width)
    if scales:
        values *= np.where(rng.random(count) < 0.5, 1.0, 10.0 ** rng.uniform(-12, 12, count))[:, None]
    values = values.astype(dtype)
    # descending after rounding too
    values = np.sort(values, axis=1)[:, ::-1]
    draw = lambda: rng.normal(size=(2, count, width)).astype(dtype)
    left, right = draw(), draw()
    axis = rng.random(count) < 0.1  # some along axes, where nothing is mixed by rounding
    left[:, axis] = right[:, axis] = np.eye(width, dtype=dtype)[0]
    return Planted(values, left, right, np.asarray(names)[family])


def angle(x, y):
    """Angle between lines spanned by rows x and y."""
    x, y = (z / np.maximum(np.linalg.norm(z, axis=1, keepdims=True), 1e-300) for z in (np.asarray(x, float), y))
    y = y * np.where(np.sum(x * y, axis=1, keepdims=True) < 0, -1.0, 1.0)
    return 2 * np.arcsin(np.clip(0.5 * np.linalg.norm(x - y, axis=1), 0, 1))


def misjudged(t, truth, *, certified_only=False):
    """List (family, number) where triplets that call themselves resolved are off by more than their error bars.

    `t` are Triplets of all N operators taken as layers of one chain.
    """
    first, u, v = truth.triplet(0)
    second = truth.values[:, 1].astype(float)
    f = lambda name: np.asarray(getattr(t, name), float)
    sure = np.asarray(t.certified) if certified_only else np.asarray(t.resolved)
    with np.errstate(all="ignore"):
        xi = np.where(first > 0, second / first, 1.0)
    kappa = np.abs(np.sum(v[1:] * u[:-1], axis=1))
    both = sure[1:] & sure[:-1] & np.asarray(t.resolved)[1:] & np.asarray(t.resolved)[:-1]
    vectors = sure & np.asarray(t.resolved)
    apart = {
        "tie": vectors & ~(first > second),
        "sigma1": sure & ~(np.abs(f("sigma")[:, 0] - first) <= f("sigma_error")),
        "xi": sure & ~(np.abs(f("xi") - xi) <= f("xi_error") + 1e-7),
        "u": vectors & ~(angle(t.u, u) <= f("vector_error") + 4e-7),
        "v": vectors & ~(angle(t.v, v) <= f("vector_error") + 4e-7),
        "kappa": np.append(both & ~(np.abs(np.abs(f("kappa")) - kappa) <= f("kappa_error")), False),
    }
    return [(name, str(truth.family[i]), int(i)) for name, wrong in apart.items() for i in np.flatnonzero(wrong)]
