"""Block Lanczos: nothing that is not so may call itself resolved, and nothing easy may stay unresolved."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import spectra
from jax.tree_util import Partial
from mutation import mutant

from spectral_theorem import certificate, lanczos
from spectral_theorem.types import InputError

# (width, operators, largest basis): the whole space at once, a switch to it, and a basis that stays too small
SIZES = {"whole": (24, 5100, None), "switch": (72, 2550, None), "short": (120, 2550, 48)}
CHUNK = 850
_certified = jax.jit(certificate.certified)


@functools.cache
def planted(width, count, seed=0):
    return spectra.planted(seed, count, width)


def found_by(load, truth, **options):
    """Return Triplets of all operators, as the engine makes them."""
    push, pull = truth.maps()
    count, width = truth.values.shape
    found = load.singular_triplets(
        push, pull, count=count, width=width, dtype=jnp.float32, key=jax.random.key(0), **options
    )
    return judged(truth, found), found


def judged(truth, found):
    dense = jnp.asarray(truth.dense().astype(np.float32))
    return _certified(dense, found.sigma, found.U, found.V, residual=found.residual, converged=found.converged)[0]


@functools.cache
def chunk(size, seed):
    width, _, most = SIZES[size]
    truth = planted(width, CHUNK, seed)
    return truth, *found_by(lanczos, truth, most=most)


@pytest.mark.parametrize("all_of_them", [False, pytest.param(True, marks=pytest.mark.exhaustive)])
@pytest.mark.parametrize("size", SIZES)
def test_ten_thousand_operators_are_never_called_what_they_are_not(size, all_of_them):
    """Every family is among the first 850 of a size, which are looked at always."""
    for seed in range(SIZES[size][1] // CHUNK if all_of_them else 1):
        truth, triplets, found = chunk(size, seed)
        assert set(truth.family) == set(spectra.FAMILIES)
        assert spectra.misjudged(triplets, truth) == []
        assert spectra.misjudged(triplets, truth, certified_only=True) == []
        assert {leaf.dtype.name for leaf in (found.sigma, found.U, found.V, found.residual)} == {"float32"}
        assert (found.size == found.size[0]).all()
        for name in ("U", "V"):
            basis = np.asarray(getattr(found, name), float)
            gram = np.swapaxes(basis, 1, 2) @ basis
            assert np.abs(gram - np.eye(2)).max() < 5e-6, name


EASY = ("separated", "second and third", "second to fourth", "one above a flat floor", "cluster below", "rank one")


@pytest.mark.parametrize("size", SIZES)
def test_the_judge_is_not_silent(size):
    """Most operators with a gap are resolved and certified, and none without."""
    truth, triplets, _ = chunk(size, 0)
    share = lambda name, family: np.asarray(getattr(triplets, name))[truth.family == family].mean()
    for family in EASY:
        assert share("resolved", family) > 0.8, family
        assert share("certified", family) > 0.7, family
    for family in ("flat", "double", "triple", "zero"):
        assert share("resolved", family) == 0, family
    assert share("certified", "zero") == 0
    assert 0 < share("resolved", "nearly tied") < 0.2


def test_float64_agrees_to_its_own_precision():
    truth = spectra.planted(3, 2 * len(spectra.FAMILIES), 96, dtype=np.float64)
    push, pull = truth.maps()
    found = lanczos.singular_triplets(
        push, pull, count=len(truth.values), width=96, dtype=jnp.float64, key=jax.random.key(1)
    )
    unit = np.maximum(truth.values[:, :1], 1e-300)
    done = np.asarray(found.converged)
    small = truth.family == "small second"  # below the root of eps a second value is not seen
    assert done[~small].all()
    worst = np.abs((np.asarray(found.sigma) - truth.values[:, :3]) / unit)[done & ~small]
    # the last is an estimate from below, and may miss copies of a value that is there three times
    assert worst[:, :2].max() < 1e-12 and ((np.asarray(found.sigma) - truth.values[:, :3]) / unit)[done].max() < 1e-12


# wrong estimators ------------------------------------------------------------------------------------------------

FAMILIES = {name: spectra.FAMILIES[name] for name in ("separated", "double", "second and third", "cluster below")}


@functools.cache
def trap():
    return spectra.planted(11, 240, 120, families=FAMILIES, scales=False)


def complaints(found, truth):
    """List what is wrong with estimates that call themselves converged, or with triplets made of them."""
    said = {name for name, *_ in spectra.misjudged(judged(truth, found), truth)}
    w, u, v, sigma = truth.dense(), *(np.asarray(x, float) for x in (found.U, found.V, found.sigma[:, None, :2]))
    ahead, back = w @ v - u * sigma, np.swapaxes(w, 1, 2) @ u - v * sigma
    residual = np.sqrt(np.sum(ahead**2 + back**2, axis=1)).max(1) / truth.values[:, 0]
    if (residual > 1e-5)[np.asarray(found.converged)].any():  # 64 eps are 7.6e-6
        said.add("converged")
    if (residual > np.asarray(found.residual) / truth.values[:, 0] + 2e-6).any():
        said.add("residual")
    return said


def test_the_trap_is_harmless_to_the_package():
    assert complaints(found_by(lanczos, trap(), most=48)[1], trap()) == set()


@pytest.mark.parametrize("tolerance", [1e-2, 1.0])
def test_loose_tolerances_are_honest(tolerance):
    """What was stopped early says so by its residual, which reaches every error bar."""
    triplets, found = found_by(lanczos, trap(), most=48, tolerance=tolerance)
    assert complaints(found, trap()) <= {"converged"} and found.converged.mean() > 0.9
    assert spectra.misjudged(triplets, trap(), certified_only=True) == []


def test_estimators_that_never_see_the_first_direction_are_caught():
    """Their residuals are tiny, so that the judge here sees it but only a proof can tell without the truth."""
    truth = trap()
    push, pull = truth.maps()
    v = jnp.asarray(truth.triplet(0)[2].astype(np.float32))

    def without(x):
        return x - jnp.einsum("nbd,nd->nb", x, v)[..., None] * v[:, None]

    wrong = lanczos.singular_triplets(
        Partial(lambda x: push(without(x))),
        Partial(lambda y: without(pull(y))),
        count=len(v),
        width=120,
        dtype=jnp.float32,
        key=jax.random.key(0),
    )
    triplets = judged(truth, wrong)
    apart = truth.values[:, 0] > 1.05 * truth.values[:, 1]
    assert {name for name, *_ in spectra.misjudged(triplets, truth)} >= {"sigma1", "u", "v", "kappa"}
    assert not np.asarray(triplets.certified)[apart].any()
    right, _ = found_by(lanczos, truth, most=48)
    assert np.asarray(right.certified)[apart].mean() > 0.8


# line, what it is in the mutant, options, who must complain
MUTANTS = {
    "a tolerance that is ignored": ("<= tolerance * t.sigma[:, :1]", "<= 1e9 * t.sigma[:, :1]", {}, "converged"),
    "a residual that leaves out one half": (
        "jnp.sqrt(_length(ahead) ** 2 + _length(back - sigma[:, :, None] * v) ** 2)",
        "_length(ahead)",
        {},
        "residual",
    ),
    "one start for a tied pair": ("if block < 2:", "if block < 1:", {"block": 1}, "tie"),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_every_mutant_is_caught(name):
    old, new, options, judge = MUTANTS[name]
    with mutant("eigenpairs" if "block <" in old else "lanczos", old, new) as load:
        said = complaints(found_by(load("lanczos"), trap(), most=48, **options)[1], trap())
    assert judge in said, said


# small second values, empty bases, scales ------------------------------------------------------------------------


def apply_diagonal(d, x):
    return x * d[:, None]


def diagonal(d, **options):
    d = jnp.asarray(d)
    return lanczos.leading_eigenpairs(
        Partial(apply_diagonal, d), count=len(d), width=d.shape[1], dtype=d.dtype, key=jax.random.key(0), **options
    )


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_operators_of_low_rank_give_unit_vectors(dtype):
    """Room that is not filled yet has eigenvalue 0 too, and no vectors."""
    d = np.zeros((3, 130), dtype)
    d[1, 0], d[2, :2] = 2, (3, 1)
    found = diagonal(d)
    assert found.value.dtype == found.vector.dtype == dtype and found.converged.all()
    np.testing.assert_allclose(np.linalg.norm(found.vector, axis=2), 1, rtol=1e-5)
    np.testing.assert_allclose(found.value, [[0, 0, 0], [2, 0, 0], [3, 1, 0]], atol=1e-5)


@pytest.mark.parametrize("exponent", [-30, -20, 20, 30])
def test_eigenvalues_of_any_size(exponent):
    d = np.geomspace(1, 0.01, 130, dtype=np.float32)[None]
    reference, found = diagonal(d), diagonal(np.float32(10.0**exponent) * d)
    assert found.converged.all() and found.size[0] == reference.size[0]
    np.testing.assert_allclose(np.asarray(found.value, float) / 10.0**exponent, reference.value, rtol=1e-4)


@pytest.mark.parametrize("width", [30, 120])
def test_a_small_second_value_is_seen(width):
    """Purity is where the theorem lives: a ratio of 1/200 is far above rounding, and its square is not."""
    values = np.geomspace(1, 0.5, width)[None] * 0.005
    values = np.repeat(values, 8, axis=0).astype(np.float32)
    values[:, 0] = 1
    rng = np.random.default_rng(0)
    values[:, 1] = 0.01
    draw = lambda: rng.normal(size=(2, 8, width)).astype(np.float32)
    truth = spectra.Planted(values, draw(), draw(), np.asarray(["small second"] * 8))
    triplets, found = found_by(lanczos, truth)
    assert found.converged.all() and triplets.certified.all() and triplets.resolved.all()
    assert spectra.misjudged(triplets, truth) == []
    assert np.abs(np.asarray(triplets.xi) - 0.01).max() < 1e-5


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_is_not_converged_and_spoils_nothing_else(bad):
    d = np.stack([np.arange(1.0, 131.0)] * 3)
    d[1, 7] = bad
    found = diagonal(d)
    assert found.converged.tolist() == [True, False, True]
    np.testing.assert_allclose(found.value[::2, 0], 130, rtol=1e-12)
    assert np.isnan(found.value[1]).all()


@pytest.mark.parametrize("start", ["exact", "zero", "nan", "wrong"])
def test_guesses_do_no_harm(start):
    d = np.stack([np.r_[1.0, 1.0, np.linspace(0.9, 0.1, 128)]] * 2)
    guess = {"exact": np.eye(130)[:1], "zero": np.zeros((1, 130)), "nan": np.full((1, 130), np.nan)}.get(start)
    guess = np.eye(130)[129:] if guess is None else guess
    found = diagonal(d, start=jnp.asarray(np.stack([guess] * 2)))
    assert found.converged.all()
    np.testing.assert_allclose(found.value, [[1, 1, 0.9]] * 2, rtol=1e-9)


def test_a_guess_saves_products():
    d = np.stack([np.r_[1.0, 0.999, np.linspace(0.99, 0.1, 298)]])
    near = np.zeros((1, 2, 300))
    near[0, 0, 0] = near[0, 1, 1] = 1
    cold, warm = diagonal(d, tolerance=1e-6), diagonal(d, tolerance=1e-6, start=jnp.asarray(near))
    assert warm.converged.all() and warm.size[0] == 18 < cold.size[0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"top": 0}, "top=0"),
        ({"top": 131}, "top=131"),
        ({"tolerance": 1e-17}, "tolerance=1e-17"),
        ({"tolerance": 0.0}, "tolerance=0.0"),
        ({"tolerance": float("nan")}, "tolerance=nan"),
        ({"block": 1}, "block=1"),
        ({"start": jnp.ones((2, 1, 130))}, "start with shape"),
        ({"start": jnp.ones((1, 130))}, "start with shape"),
        ({"start": jnp.ones((1, 1, 129))}, "start with shape"),
    ],
)
def test_bad_input_is_named(options, message):
    with pytest.raises(InputError, match=message):
        diagonal(np.ones((1, 130)), **options)


@pytest.mark.parametrize("dtype", [np.int32, jnp.bfloat16, np.float16])
def test_other_dtypes_are_refused(dtype):
    with pytest.raises(InputError, match="float32 or float64"):
        diagonal(jnp.ones((1, 130), dtype))
