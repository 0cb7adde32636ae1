"""A chain on a short context reads as the real one does: every condition and bound, on chains of every kind."""

import functools
import importlib

import jax
import jax.numpy as jnp
import makers
import numpy as np
import pytest
from mutation import mutant

import spectral_theorem as st

SHAPES = ((5, 16, 30), (3, 3, 5), (2, 9, 4))  # the second is read whole
FAMILIES = (*makers.GENERIC, makers.rank_one, makers.near_identity, makers.nearly_tied)
COUNT = 36


@functools.cache
def batch(shape, dtype):
    w, g, _, _ = makers.block(3, COUNT, *shape, families=FAMILIES)
    w, g = (jnp.asarray(x.astype(dtype)) for x in (w, g))
    return w, g, jax.jit(jax.vmap(st.decompose))(jax.vmap(st.LayerChain)(w, g))


@jax.jit
@jax.vmap
def said(w, g, t):
    """Return what conditions and bounds say, residual bounds as multiples of the scale."""
    chain = st.LayerChain(w, g)
    path, bounds, conditions = st.dominant_path(chain, t), st.residual_bounds(chain, t), st.check_conditions(chain, t)
    share = lambda log: jnp.where(jnp.isneginf(path.log_scale), 0.0, jnp.exp(log - path.log_scale))
    names = [name for name in type(bounds).__dataclass_fields__ if "propagator" not in name and "total" not in name]
    rows = jnp.einsum("kd,kdc->kc", t.v[1:], g[:-1])
    return {name: share(getattr(bounds, name)) for name in names} | {
        "psi": share(path.log_psi_norm),
        "scale": path.log_scale,
        # directions of rows that are rounding mean nothing
        "value": jnp.where(conditions["projection"].value > 1e-8, conditions.value, 0.0),
        "code": conditions.code,
        "norms": jnp.linalg.norm(g, axis=(1, 2)),
        "rows": jnp.einsum("kc,lc->kl", rows, rows) / jnp.maximum(jnp.sum(g**2), 1e-300),
    }


def stand_in(module, w, g, t):
    left = module.reading_vectors(w, t)
    m = left.shape[1] - (left.shape[1] < w.shape[1])
    rows = jnp.einsum("kmd,kdc->kmc", left[:, :m], g[:-1], precision="highest")
    return left, module.shortened(w, left, rows, jnp.linalg.norm(g, axis=(1, 2))).injections


def apart(module, shape, dtype="float64"):
    """Return name -> largest difference between statements about chains and about what stands for them."""
    w, g, t = batch(shape, dtype)
    left, short = jax.vmap(functools.partial(stand_in, module))(w, g, t)
    real, other = said(w, g, t), said(w, short, t)
    found = {}
    for name in real:
        a, b = np.asarray(real[name], float), np.asarray(other[name], float)
        with np.errstate(invalid="ignore"):
            gap = np.abs(a - b) / np.maximum(np.abs(a), 1)
        same = (a == b) | (np.isnan(a) & np.isnan(b))
        found[name] = float(np.max(np.where(same, 0, np.where(np.isnan(gap), np.inf, gap)), initial=0))
    gram = np.asarray(left @ jnp.swapaxes(left, -1, -2))
    found["orthonormal"] = float(np.abs(gram - np.eye(gram.shape[-1])).max())
    return found


MODULE = importlib.import_module("spectral_theorem.shortened")


@pytest.mark.parametrize("shape", SHAPES)
def test_conditions_and_bounds_carry_over(shape):
    found = apart(MODULE, shape)
    codes = found.pop("code")
    assert max(found.values()) < 1e-7, found
    assert codes == 0


@pytest.mark.exhaustive
def test_in_float32_what_rounds_is_small():
    found = apart(MODULE, SHAPES[0], "float32")
    assert max(value for name, value in found.items() if name not in ("code", "value")) < 2e-3, found


def test_the_context_is_short():
    w, g, t = (jax.tree.map(lambda leaf: leaf[0], x) for x in batch(SHAPES[0], "float64"))
    assert stand_in(MODULE, w, g, t)[1].shape == (5, 16, min(4 * 8, 30) + 5)


def test_reading_vectors_span_what_is_read():
    w, _, t = batch(SHAPES[0], "float64")
    for i in range(0, COUNT, 5):
        left = np.asarray(MODULE.reading_vectors(w[i], jax.tree.map(lambda leaf, i=i: leaf[i], t)))[:, :-1]
        for k in range(4):  # injection k+1 in the theorem's count
            wanted = [*np.asarray(t.V[i, k + 1]).T, *(np.asarray(t.U[i, k]).T if k else [])]
            for l in range(k + 1, 4):
                row = np.asarray(t.v[i, l + 1])
                for j in range(l, k, -1):
                    row = row @ np.asarray(w[i, j])
                wanted.append(row / max(np.linalg.norm(row), 1e-300))
            for row in wanted:
                assert np.linalg.norm(row - left[k].T @ (left[k] @ row)) < 1e-9


def test_rows_larger_than_the_norm_by_rounding_leave_no_remainder():
    w, g, t = (jax.tree.map(lambda leaf: leaf[0], x) for x in batch(SHAPES[0], "float64"))
    left = MODULE.reading_vectors(w, t)
    rows = jnp.einsum("kmd,kdc->kmc", left[:, :-1], g[:-1])
    norms = jnp.concatenate([jnp.linalg.norm(rows, axis=(1, 2)) * (1 - 1e-15), jnp.ones(1)])
    short = MODULE.shortened(w, left, rows, norms).injections
    assert np.isfinite(np.asarray(short)).all()
    np.testing.assert_allclose(jnp.linalg.norm(short[:-1], axis=(1, 2)), norms[:-1], rtol=1e-12)


MUTANTS = {
    "no remainder": ("set(left[:, m] * rest[:, None])", "set(0 * left[:, m] * rest[:, None])"),
    "without U of the layer": ("jnp.swapaxes(before, 1, 2), carried", "carried[:, :0], carried"),
    "U of the layer after": ("jnp.zeros_like(triplets.U[:1]), triplets.U[1:-1]", "triplets.U[1:]"),
    "without what is carried on": ("jnp.swapaxes(before, 1, 2), carried, filler", "jnp.swapaxes(before, 1, 2), filler"),
    "no layer's own v joins": ("jnp.where((place == i + 1)[:, None], v, rows)", "rows"),
    "the last norm is lost": ("private = private.at[-1, 0, -1].set(norms[-1])", "pass"),
    "norms for remainders": ("norms[:-1] ** 2 - jnp.sum(rows**2, axis=(1, 2))", "norms[:-1] ** 2"),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_every_mutant_is_caught(name):
    with mutant("shortened", *MUTANTS[name]) as load:
        assert max(apart(load("shortened"), SHAPES[0]).values()) > 1e-4
