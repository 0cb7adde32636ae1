"""Leading triplets from products: every claim of convergence is checked against a dense SVD.

One checker, `complaints`, judges the package's routine and deliberately wrong estimators alike.
"""

import dataclasses
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as strategies
from jax.tree_util import Partial

from spectral_theorem import krylov
from spectral_theorem.krylov import KrylovTriplets, leading_triplets
from spectral_theorem.types import InputError

RNG = np.random.default_rng(20)
WIDTH = 100


def orthogonal(width, rng=RNG):
    return np.linalg.qr(rng.normal(size=(width, width)))[0]


def matrix(spectrum, rng=RNG):
    width = len(spectrum)
    return orthogonal(width, rng) @ np.diag(spectrum) @ orthogonal(width, rng).T


TAIL = np.linspace(0.9, 0.1, WIDTH - 2)
MATRICES = {
    "identity": np.eye(WIDTH),
    "orthogonal": orthogonal(WIDTH),
    "zero": np.zeros((WIDTH, WIDTH)),
    "rank one": np.outer(RNG.normal(size=WIDTH), RNG.normal(size=WIDTH)),
    "rank two, tied": matrix(np.r_[1, 1, np.zeros(WIDTH - 2)]),
    "one above a flat floor": matrix(np.r_[2, np.ones(WIDTH - 1)]),
    "tied pair above a tail": matrix(np.r_[1, 1, TAIL]),
    "tied pair above a geometric tail": matrix(np.r_[1, 1, 0.5 ** np.arange(1, WIDTH - 1)]),
    "tied pair, low rank": matrix(np.r_[1, 1, 0.5, 0.25, np.zeros(WIDTH - 4)]),
    "tied triple": matrix(np.r_[1, 1, 1, TAIL[1:]]),
    "tied second and third": matrix(np.r_[1, 0.95, 0.95, TAIL[1:]]),
    "gap 1e-9": matrix(np.r_[1, 1 - 1e-9, TAIL]),
    "gap 1e-13": matrix(np.r_[1, 1 - 1e-13, TAIL]),
    "cluster": matrix(1 - 1e-4 * np.arange(WIDTH) / WIDTH),
    "tie within a cluster": matrix(np.r_[1, 1, 1 - 1e-4 * np.arange(1, WIDTH - 1) / WIDTH]),
    "geometric": matrix(0.5 ** np.arange(WIDTH)),
    "gaussian": RNG.normal(size=(WIDTH, WIDTH)),
    "residual": np.eye(WIDTH) + 0.3 * RNG.normal(size=(WIDTH, WIDTH)) / 10,
    "nilpotent": np.eye(WIDTH, k=1),
    "tiny": 1e-200 * RNG.normal(size=(WIDTH, WIDTH)),
    "huge": 1e200 * RNG.normal(size=(WIDTH, WIDTH)),
}


def forward(w, x):
    return jnp.einsum("lij,lj->li", w, x)


def backward(w, y):
    return jnp.einsum("li,lij->lj", y, w)


def run(w, *, seed=0, **options):
    w = jnp.asarray(w)
    w = w[None] if w.ndim == 2 else w
    options = {"depth": w.shape[0], "width": w.shape[1], "dtype": w.dtype, "key": jax.random.key(seed)} | options
    return leading_triplets(Partial(forward, w), Partial(backward, w), **options)


def complaints(found, w, *, tolerance=1e-12):
    """List what is wrong with triplets that call themselves converged; nothing else is judged."""
    w, wrong = np.asarray(w, np.float64), []
    w = w[None] if w.ndim == 2 else w
    top = found.U.shape[2]
    rounding = 20 * float(jnp.finfo(found.sigma.dtype).eps) * np.sqrt(w.shape[1])
    for l in np.flatnonzero(np.asarray(found.converged)):
        size = np.abs(w[l]).max() or 1.0
        a, sigma = w[l] / size, np.asarray(found.sigma[l], np.float64) / size
        u, v = np.asarray(found.U[l], np.float64), np.asarray(found.V[l], np.float64)
        exact = np.linalg.svd(a, compute_uv=False)[: top + 1]
        exact = np.append(exact, np.zeros(top + 1 - len(exact)))
        allowance = (tolerance + rounding) * exact[0]
        for basis in (u, v):
            if not np.linalg.norm(basis.T @ basis - np.eye(top)) <= rounding:
                wrong.append((l, "columns are not orthonormal"))
        seen = np.hypot(
            np.linalg.norm(a @ v - u * sigma[:top], axis=0), np.linalg.norm(a.T @ u - v * sigma[:top], axis=0)
        ).max()
        if not seen <= allowance:
            wrong.append((l, f"residual {seen / exact[0]:.1e}"))
        if not seen <= float(found.residual[l]) / size + rounding * exact[0]:
            wrong.append((l, "the residual is larger than reported"))
        if not np.abs(sigma - exact).max() <= allowance:
            wrong.append((l, f"sigma {sigma} where the SVD has {exact}"))
    return wrong


@pytest.fixture(scope="module")
def all_found():
    return run(np.stack(list(MATRICES.values())))


def test_adversarial_spectra_converge_to_the_svd(all_found):
    w = np.stack(list(MATRICES.values()))
    assert complaints(all_found, w) == []
    unconverged = [name for name, done in zip(MATRICES, all_found.converged, strict=True) if not done]
    assert unconverged == []


@pytest.mark.parametrize("name", ["identity", "orthogonal", "tied pair above a tail", "tied triple", "zero"])
def test_ties_come_out_as_ties(all_found, name):
    sigma = np.asarray(all_found.sigma[list(MATRICES).index(name)])
    assert abs(sigma[0] - sigma[1]) <= 1e-13


def test_hard_spectra_take_more_steps_than_easy_ones(all_found):
    steps = dict(zip(MATRICES, all_found.steps.tolist(), strict=True))
    assert steps["geometric"] == steps["identity"] == 40
    assert steps["tie within a cluster"] == steps["cluster"] == WIDTH


def test_too_few_steps_are_said_to_be_too_few():
    hard = ("cluster", "tie within a cluster", "gaussian")
    easy = ("geometric", "tied pair above a geometric tail", "identity", "zero", "rank one", "one above a flat floor")
    w = np.stack([MATRICES[name] for name in (*hard, *easy)])
    found = run(w, max_steps=20)
    assert found.converged.tolist() == [False] * len(hard) + [True] * len(easy)
    assert found.steps.tolist() == [20] * len(w) and complaints(found, w) == []


@pytest.mark.parametrize("seed", [1, 2])
def test_other_seeds_agree(all_found, seed):
    w = np.stack(list(MATRICES.values()))
    other = run(w, seed=seed)
    assert other.converged.all() and complaints(other, w) == []
    # scale by the largest entry: sigma may be 1e-200 or 1e200
    size = np.maximum(np.asarray(all_found.sigma[:, :1]), 1e-300)
    assert np.abs(np.asarray(other.sigma) / size - np.asarray(all_found.sigma) / size).max() < 1e-12


# ---------------------------------------------------------------- starts that miss the leading direction


def hidden(name):
    """Return a matrix and a start whose Krylov space misses a leading direction, exactly.

    Diagonal, because in a rotated one rounding alone brings the missing direction back.
    """
    start = np.ones(WIDTH)
    if name == "leading value":
        spectrum, start[0] = [2, 1, 0.5, 0.25], 0.0
    else:
        spectrum = [1, 1, 0.5, 0.25]  # equal parts in both stay equal: one direction of the pair is never seen
    return np.diag(np.r_[spectrum, np.zeros(WIDTH - 4)]), jnp.asarray(start)[None]


HIDDEN = pytest.mark.parametrize("name", ["leading value", "second of a tied pair"])


@HIDDEN
def test_a_start_that_misses_a_leading_direction_does_no_harm(name):
    w, start = hidden(name)
    found = run(w, start=start)
    assert found.converged.all() and complaints(found, w) == []


def test_the_smallest_such_case():
    found = run(np.diag([2.0, 1.0]), start=jnp.asarray([[0.0, 1.0]]), top=1)
    assert found.sigma.tolist() == [[2.0, 1.0]] and found.converged.all()
    # with one step only, the Ritz value 1 has residual 0: the second round must see more
    short = run(np.diag([2.0, 1.0]), start=jnp.asarray([[0.0, 1.0]]), top=1, max_steps=1)
    assert complaints(short, np.diag([2.0, 1.0])) == []


@pytest.mark.parametrize("bad", [0.0, np.nan])
def test_an_unusable_start_is_replaced(bad):
    found = run(MATRICES["geometric"], start=jnp.full((1, WIDTH), bad))
    assert found.converged.all() and complaints(found, MATRICES["geometric"]) == []


def test_a_warm_start_is_used():
    w = MATRICES["gaussian"]
    v = np.linalg.svd(w)[2]
    # three directions span the Krylov space, so that the first round ends at once and exactly
    warm = run(w, start=jnp.asarray(v[:1] + v[1:2] + v[2:3]), max_steps=20, tolerance=1e-9)
    cold = run(w, max_steps=20, tolerance=1e-9)
    assert complaints(warm, w, tolerance=1e-9) == [] and float(warm.residual[0]) < 1e-6 * float(cold.residual[0])


# ---------------------------------------------------------------- wrong estimators must be caught


def power_iteration(w, iterations):
    """Block power iteration; calls itself converged."""
    rng = np.random.default_rng(0)
    v = np.linalg.qr(rng.normal(size=(w.shape[1], 3)))[0]
    for _ in range(iterations):
        v = np.linalg.qr(w.T @ (w @ v))[0]
    u, sigma, y = np.linalg.svd(w @ v, full_matrices=False)
    v = v @ y.T
    return KrylovTriplets(
        sigma=jnp.asarray(sigma[None]),
        U=jnp.asarray(u[None, :, :2]),
        V=jnp.asarray(v[None, :, :2]),
        residual=jnp.asarray([np.linalg.norm(w.T @ u - v * sigma, axis=0).max()]),
        steps=jnp.asarray([iterations]),
        converged=jnp.asarray([True]),
    )


def test_short_power_iteration_is_caught():
    assert complaints(power_iteration(MATRICES["gaussian"], 2), MATRICES["gaussian"])
    assert not complaints(power_iteration(MATRICES["geometric"], 40), MATRICES["geometric"])


@pytest.fixture
def without_probe(monkeypatch):
    """Make every round report that its complement is empty."""
    sighted = krylov._round

    def blind(*arguments, **options):
        found = sighted(*arguments, **options)
        return dataclasses.replace(found, fresh=0 * found.fresh, fresh_residual=0 * found.fresh)

    monkeypatch.setattr(krylov, "_round", blind)


@HIDDEN
@pytest.mark.usefixtures("without_probe")
def test_without_the_second_round_it_would_be_missed_and_that_is_caught(name):
    w, start = hidden(name)
    found = run(w, start=start)
    assert found.converged.all() and complaints(found, w)


@pytest.mark.parametrize(
    "damage",
    [
        lambda t: dataclasses.replace(t, sigma=t.sigma * (1 + 1e-10)),
        lambda t: dataclasses.replace(t, sigma=t.sigma.at[:, 2].multiply(1 - 1e-10)),
        lambda t: dataclasses.replace(t, V=t.V.at[:, 0, 0].add(1e-10)),
        lambda t: dataclasses.replace(t, U=t.U[:, :, ::-1]),
        lambda t: dataclasses.replace(t, U=-t.U),
        lambda t: dataclasses.replace(t, residual=0 * t.residual, V=t.V.at[:, 0, 0].add(1e-12)),
    ],
)
def test_damaged_triplets_are_caught(damage):
    found = run(MATRICES["geometric"])
    assert complaints(damage(found), MATRICES["geometric"])


# ---------------------------------------------------------------- shapes, types, small widths


@pytest.mark.parametrize("width", [1, 2, 3])
@pytest.mark.parametrize("max_steps", [None, 1])
def test_small_widths(width, max_steps):
    w = np.stack([np.eye(width), RNG.normal(size=(width, width)), np.zeros((width, width))])
    top = min(2, width)
    found = run(w, top=top, max_steps=max_steps)
    assert found.sigma.shape == (3, top + 1) and found.U.shape == found.V.shape == (3, width, top)
    assert complaints(found, w) == []
    if max_steps is None:
        assert found.converged.all()
    if width == top:
        assert (found.sigma[:, -1] == 0).all()


@pytest.mark.parametrize(("top", "width"), [(1, WIDTH), (21, 21)])
def test_any_number_of_triplets(top, width):
    w = RNG.normal(size=(1, width, width))
    found = run(w, top=top)
    assert found.converged.all() and complaints(found, w) == []


def test_float32_operators():
    # as many as the float64 test takes, with 1e-200 and 1e200 brought into range
    size = {"tiny": 1e200, "huge": 1e-200}
    w = np.stack([size.get(name, 1.0) * w for name, w in MATRICES.items()]).astype(np.float32)
    found = run(w)
    assert {a.dtype.name for a in (found.sigma, found.U, found.V, found.residual)} == {"float32"}
    assert found.converged.all() and complaints(found, w, tolerance=1e-5) == []


def test_float32_without_64_bit_mode():
    code = (
        "import jax, jax.numpy as jnp\n"
        "from spectral_theorem.krylov import leading_triplets\n"
        "w = 0.8 ** jnp.arange(100.0)\n"
        "times = lambda x: w * x\n"
        "f = leading_triplets(times, times, depth=1, width=100, dtype='float32', key=jax.random.key(0))\n"
        "assert f.converged.all() and f.sigma.dtype == 'float32', f\n"
        "assert abs(f.sigma[0] - w[:3]).max() < 1e-6, f.sigma\n"
    )
    environment = os.environ | {"JAX_ENABLE_X64": "0"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_never_converges(bad):
    w = np.stack(list(MATRICES.values()))
    bad_ones = [list(MATRICES).index(name) for name in ("identity", "gaussian")]
    w[bad_ones, 3, 4] = bad
    found = run(w)
    assert np.flatnonzero(~np.asarray(found.converged)).tolist() == bad_ones
    assert complaints(found, w) == []


def test_new_arrays_of_the_same_shapes_need_no_compilation():
    run(MATRICES["geometric"])
    before = krylov._round._cache_size()
    found = run(2 * MATRICES["geometric"], seed=5)
    assert krylov._round._cache_size() == before and abs(float(found.sigma[0, 0]) - 2) < 1e-13


SMALLEST = 1e-290  # entries below 2.2e-308 act as zero in XLA, so the last digits of smaller ones are not there


@settings(max_examples=30)
@given(
    strategies.sampled_from([2, 7, 90]).flatmap(
        lambda n: strategies.lists(
            strategies.one_of(
                strategies.sampled_from([0.0, 1.0, 1 - 1e-9, 1e-6, SMALLEST]),
                strategies.floats(SMALLEST, 1),
            ),
            min_size=n,
            max_size=n,
        )
    ),
    strategies.integers(0, 2**16),
)
def test_any_spectrum(spectrum, seed):
    w = np.stack([matrix(np.asarray(spectrum), np.random.default_rng(seed)), np.diag(spectrum)])
    found = run(w, seed=seed)
    assert found.converged.all()
    assert complaints(found, w) == []


def test_what_xla_takes_for_zero_is_zero():
    found = run(np.full((2, 2), 1e-310))
    assert found.converged.all() and found.sigma.tolist() == [[0.0] * 3]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"top": 0}, "top=0"),
        ({"top": WIDTH + 1}, f"top={WIDTH + 1}"),
        ({"depth": 0}, "depth=0"),
        ({"width": 0}, "width=0"),
        ({"dtype": jnp.bfloat16}, "dtype bfloat16"),
        ({"dtype": jnp.int32}, "dtype int32"),
        ({"tolerance": 0.0}, "tolerance=0.0"),
        ({"tolerance": np.nan}, "tolerance=nan"),
        ({"max_steps": 0}, "max_steps=0"),
        ({"start": jnp.ones((2, WIDTH))}, "start with shape"),
    ],
)
def test_bad_input_is_named(options, message):
    with pytest.raises(InputError, match=message):
        run(MATRICES["identity"], **options)
