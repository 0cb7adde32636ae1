"""The figures that this release promises, each measured by the suite itself."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from batches import stack, take, verified

import spectral_theorem as st
from spectral_theorem.planting import planted_with_answers

SHAPE = {"layers": 64, "width": 64, "context": 48}
GOOD = {"sigma": 1.02, "kappa": 1 - 1e-4, "xi": 5e-4, "gamma": 0.5, "coherence": 0.9}
IMPURE = GOOD | {"xi": 0.01}


def rotated(chain, seed):
    """The same chain in other orthonormal coordinates after every layer; the context stays."""
    rng = np.random.default_rng(seed)
    q = np.linalg.qr(rng.normal(size=(chain.depth + 1, chain.width, chain.width)))[0]
    w = np.einsum("lij,ljk,lmk->lim", q[1:], np.asarray(chain.propagators), q[:-1])
    return st.LayerChain(jnp.asarray(w), jnp.asarray(q[1:] @ np.asarray(chain.injections)))


@pytest.fixture(scope="module")
def found():
    """Good, impure, both rotated, and one chain per broken hypothesis: one batch, one compilation."""
    key = jax.random.key(7)
    plant = lambda **changes: st.ensembles.planted(key, **SHAPE, **(GOOD | changes))
    chains = {"good": plant(), "impure": plant(xi=0.01)}
    chains |= {f"{name} rotated": rotated(chain, 1) for name, chain in list(chains.items())}
    flips = np.where(np.arange(64) % 2, -1.0, 1.0)
    chains |= {
        "no gain": plant(sigma=0.9),
        "misaligned": plant(kappa=0.99, sigma=1.2),
        "one misaligned": plant(kappa=np.where(np.arange(63) == 30, 0.5, 1 - 1e-4), sigma=2.1),
        "no projection": plant(gamma=0.05, xi=4e-5),
        "flipping": plant(signs=flips),
        "incoherent": plant(coherence=0.02),
    }
    answers = verified(stack(list(chains.values())))
    return chains, {name: take(answers, i) for i, name in enumerate(chains)}


def test_identity_holds_to_1e12(found):
    for name, v in found[1].items():
        assert v.path.log_identity_error - v.path.log_scale < np.log(1e-12), name


@pytest.mark.parametrize("name", ["good", "impure", "good rotated", "impure rotated"])
def test_planted_scalars_are_found_again_to_1e9(found, name):
    t, wanted = found[1][name].triplets, GOOD if "good" in name else IMPURE
    np.testing.assert_allclose(t.sigma[:, 0], wanted["sigma"], atol=1e-9)
    np.testing.assert_allclose(t.xi, wanted["xi"], atol=1e-9)
    np.testing.assert_allclose(np.abs(t.kappa), wanted["kappa"], atol=1e-9)
    projection = found[1][name].conditions["projection"]
    assert abs(projection.value - wanted["gamma"]) < 1e-9
    assert found[1][name].coherence_solution.value >= wanted["coherence"] - 1e-9


def test_planted_direction_scores_what_was_planted():
    chain, vectors = planted_with_answers(jax.random.key(7), **SHAPE, **GOOD)
    rows = np.einsum("ld,ldc->lc", vectors.v[1:], chain.injections[:-1])
    score = rows @ vectors.psi / np.linalg.norm(rows, axis=1)
    np.testing.assert_allclose(np.abs(score), 0.9, atol=1e-9)


@pytest.mark.parametrize("name", ["impure", "impure rotated"])
def test_bounds_are_as_close_to_the_true_residual_as_promised(found, name):
    chain, v = found[0][name], found[1][name]
    product, direct = np.eye(64), np.zeros((64, 48))
    for w, g in zip(np.asarray(chain.propagators)[::-1], np.asarray(chain.injections)[::-1], strict=True):
        direct, product = direct + product @ g, product @ w
    # the residual by explicit products, without any of the package's recursions
    truth = np.linalg.norm(direct - np.outer(v.path.u, v.path.psi) - np.asarray(chain.injections[-1]))
    ratio = {each: np.exp(getattr(v.bounds, f"log_{each}")) / truth for each in ("paper", "transfer", "row_exact")}
    assert ratio["paper"] > 1000 and 1 <= ratio["transfer"] < 10 and 1 <= ratio["row_exact"] < 1.1, ratio
    assert np.exp(v.bounds.log_row_exact_lower) <= truth <= np.exp(v.bounds.log_top_k)


BROKEN = {
    "good": {},
    "impure": {"purity": "VIOLATED"},
    "no gain": {"stability": "VIOLATED"},
    "misaligned": {"alignment": "VIOLATED"},
    "one misaligned": {"alignment": "VIOLATED"},
    "no projection": {"coherence": "VIOLATED"},
    "flipping": {"coherence": "VIOLATED"},
    "incoherent": {"coherence": "VIOLATED"},
}


@pytest.mark.parametrize("name", BROKEN)
def test_every_planted_violation_is_caught_and_none_invented(found, name):
    verdicts = {each: condition.verdict.name for each, condition in found[1][name].conditions.items()}
    assert verdicts == dict.fromkeys(verdicts, "HOLDS") | BROKEN[name]


def test_the_part_to_blame_is_named(found):
    parts = lambda name: {k: p.verdict.name for k, p in found[1][name].conditions.coherence.parts.items()}
    assert parts("flipping") == {"projection": "HOLDS", "directionality": "HOLDS", "sign_consistency": "VIOLATED"}
    assert parts("no projection")["projection"] == "VIOLATED" and parts("no projection")["sign_consistency"] == "HOLDS"
    assert found[1]["one misaligned"].conditions.alignment.layer == 31


def test_conclusions_hold_where_the_hypotheses_do_and_are_not_claimed_elsewhere(found):
    for name, v in found[1].items():
        whole = all(condition.verdict.name == "HOLDS" for _, condition in v.conditions.items())
        assert v.claims["c2"].verdict.name == ("HOLDS" if whole else "NOT_APPLICABLE"), name
        assert v.violated == (), name


@pytest.mark.parametrize(("kappa", "xi"), [(0.1, 0.9), (0.1, 0.3), (0.9, 0.5), (0.5, 1e-3)])
def test_planar_chain_attains_the_sharp_growth_rate(kappa, xi):
    s = np.sqrt(1 - kappa**2)
    rate = np.abs(np.linalg.eigvals(np.array([[kappa, s * xi], [s, -kappa * xi]]))).max()
    assert abs(float(st.phase(3.0, kappa, xi).growth_rate) - 3 * rate) < 1e-9


@pytest.mark.parametrize("xi", [0.05, 0.3, 0.9])
def test_planar_chain_marks_the_attractor_threshold(xi):
    """Just inside the threshold the turning matrix has a real attracting direction, just outside it rotates."""
    edge = (1 - xi) / (1 + xi)
    for s, attracts in ((edge - 1e-9, True), (edge + 1e-9, False)):
        kappa = np.sqrt((1 - s) * (1 + s))
        discriminant = (kappa * (1 + xi)) ** 2 - 4 * xi  # of [[kappa, -s xi], [s, kappa xi]]
        assert (discriminant > 0) == attracts
        assert bool(jnp.isfinite(st.phase(1.5, kappa, xi).cone_rate)) == attracts
