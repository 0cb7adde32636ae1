"""Coupling of top-K subspaces: against the definition by dense linear algebra, over ties, and seen to move."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import spectral_theorem as st
from spectral_theorem.coupling import branches, couplings
from spectral_theorem.types import InputError

L, D, K = 3, 12, 4


def frames(rng, *shape):
    q, r = np.linalg.qr(rng.normal(size=shape))
    return q * np.sign(np.diagonal(r, axis1=-2, axis2=-1))[..., None, :]


def chain_of(rng, sigma):
    """A chain with these singular values (L, D) and random singular vectors."""
    left, right = frames(rng, L, D, D), frames(rng, L, D, D)
    return st.LayerChain(jnp.asarray((left * sigma[:, None, :]) @ np.swapaxes(right, 1, 2)))


def definition(propagators, sigma, u, v, *, absolute=False):
    """m_K of all pairs, entry by entry."""
    n = len(propagators)
    out = np.empty((n, n))
    for i in range(n):
        for j in range(n):
            m = u[j].T @ propagators[i] @ v[j]
            m = np.abs(m) if absolute else m
            out[i, j] = np.linalg.norm(m - np.diag(sigma[i])) / np.linalg.norm(sigma[i])
    return out


def basis(triplets):
    return [np.asarray(x) for x in (triplets.sigma_top[:, :K], triplets.U, triplets.V)]


def distance(x, y):
    return float(np.abs(np.asarray(x) - np.asarray(y)).max())


@pytest.fixture
def rng():
    return np.random.default_rng(5)


def test_the_definition_in_any_basis_of_singular_vectors(rng):
    chain = chain_of(rng, np.sort(rng.uniform(0.5, 3, (L, D)))[:, ::-1])
    found = couplings(chain, st.decompose(chain, top=K))
    w = np.asarray(chain.propagators)
    u, sigma, v = np.linalg.svd(w)  # other signs than ours, and no sign matters
    flips = rng.choice([-1.0, 1.0], (L, 1, K))
    u, v = u[:, :, :K] * flips, np.swapaxes(v, 1, 2)[:, :, :K] * flips
    assert distance(found.value, definition(w, sigma[:, :K], u, v)) < 1e-12
    assert distance(found.absolute, definition(w, sigma[:, :K], u, v, absolute=True)) < 1e-12
    assert distance(np.diag(found.value), 0) < 1e-12
    assert float(np.min(found.value + np.eye(L))) > 0.1
    assert distance(found.lower, found.value) == distance(found.upper, found.value) == 0
    assert found.separated.all()


def test_matrix_free_and_dense_agree(rng):
    mats = jnp.asarray(rng.normal(size=(L, D, D)) / 4)
    layers = [jax.tree_util.Partial(lambda w, h, c: h + jnp.tanh(w @ h) + c[0], w) for w in mats]
    state, context = jnp.asarray(rng.normal(size=D)), jnp.ones(2)
    dense, free = st.linearize(layers, state, context), st.operators(layers, state, context)
    for change in (lambda x: x, branches):
        a = couplings(change(dense), st.decompose(change(dense), top=K))
        b = couplings(change(free), st.decompose(change(free), method="krylov", top=K))
        for name in ("value", "absolute", "kappa", "cosines"):
            assert distance(getattr(a, name), getattr(b, name)) < 1e-6, name
    added = branches(dense)
    assert distance(added.propagators, dense.propagators - np.eye(D)) < 1e-15
    assert distance(added.injections, dense.injections) == 0


def test_tokens_are_stacked_token_by_token(rng):
    chains = [chain_of(rng, np.sort(rng.uniform(0.5, 3, (L, D)))[:, ::-1]) for _ in range(2)]
    triplets = [st.decompose(chain, top=K) for chain in chains]
    found = couplings(chains, triplets)
    w = np.concatenate([chain.propagators for chain in chains])
    sigma, u, v = (np.concatenate(x) for x in zip(*map(basis, triplets), strict=True))
    assert distance(found.value, definition(w, sigma, u, v)) < 1e-12
    kappa = np.abs(np.einsum("jd,id->ij", v[:, :, 0], u[:, :, 0]))
    assert distance(found.kappa, kappa) < 1e-13
    for t, one in enumerate(triplets):  # the theorem's kappa stands one beside the diagonal of its token
        assert distance(np.diag(found.kappa[t * L : t * L + L, t * L : t * L + L], 1), np.abs(one.kappa)) < 1e-13
    cosines = np.linalg.svd(np.einsum("jdk,idm->ijkm", v, u), compute_uv=False)
    assert distance(found.cosines, cosines) < 1e-12
    alone = couplings(chains[1], triplets[1])
    assert distance(alone.value, found.value[L:, L:]) < 1e-13


def test_layers_that_are_turns_of_each_other_in_the_top_are_coupled(rng):
    left, right = frames(rng, 1, D, D), frames(rng, 1, D, D)
    w = (left * np.linspace(3, 1, D)) @ np.swapaxes(right, 1, 2)
    scales = jnp.asarray([1.0, 2.0, 0.5])[:, None, None]
    found = couplings(*pair(st.LayerChain(scales * w)))
    assert distance(found.value, 0) < 1e-12  # shared vectors, whatever the gains
    assert distance(found.cosines, np.linalg.svd(right[0, :, :K].T @ left[0, :, :K], compute_uv=False)) < 1e-12


def pair(chain, top=K):
    return chain, st.decompose(chain, top=top)


def test_principal_angles_see_spans_only(rng):
    chain, triplets = pair(chain_of(rng, np.sort(rng.uniform(0.5, 3, (L, D)))[:, ::-1]))
    import dataclasses

    turn = frames(rng, L, K, K)
    turned = dataclasses.replace(
        triplets, U=jnp.einsum("ldk,lkm->ldm", triplets.U, turn), V=jnp.einsum("ldk,lkm->ldm", triplets.V, turn)
    )
    a, b = couplings(chain, triplets), couplings(chain, turned)
    assert distance(a.cosines, b.cosines) < 1e-12
    assert distance(a.value, b.value) > 1e-2


TIED = np.asarray([3.0, 2.0, 2.0, 2.0, *np.linspace(1.5, 0.1, D - 4)])
UNTIED = np.asarray([4.0, 3.0, 2.5, 1.7, *np.linspace(1.5, 0.1, D - 4)])


def test_ties_give_the_range_over_all_bases(rng):
    sigma = np.stack([UNTIED, TIED, UNTIED])
    chain, triplets = pair(chain_of(rng, sigma))
    found, w = couplings(chain, triplets), np.asarray(chain.propagators)
    s, u, v = basis(triplets)
    assert distance(found.value, definition(w, s, u, v)) < 1e-12
    assert distance(found.lower[:, [0, 2]], found.value[:, [0, 2]]) == 0
    assert float(np.min((found.upper - found.lower)[[0, 2], 1])) > 1e-2  # the second layer's basis is not unique
    assert distance(found.value[1, 1], 0) < 1e-12 and found.upper[1, 1] < 1e-12  # its own tie changes nothing
    seen = []
    for _ in range(400):
        turn = np.eye(K)
        turn[1:, 1:] = frames(rng, 3, 3)
        value = definition(w, s, [u[0], u[1] @ turn, u[2]], [v[0], v[1] @ turn, v[2]])
        assert (value <= found.upper + 1e-12).all() and (value >= found.lower - 1e-12).all()
        seen.append(value[0, 1])
    # the ends are attained: random bases come near them, and no end may be moved inwards by much
    reach = float(found.upper[0, 1] - found.lower[0, 1])
    assert max(seen) > found.upper[0, 1] - 0.2 * reach and min(seen) < found.lower[0, 1] + 0.2 * reach


def test_the_ends_of_the_range_are_attained(rng):
    """With a tie of all K and a commuting M the range is known: eigenvalues in order, and against it."""
    tied = np.asarray([[2.0, 2.0, 1.0], [2.0, 2.0, 1.0]])
    first, second = np.diag([3.0, 1.0, 0.5]), np.diag(tied[0])
    chain = st.LayerChain(jnp.asarray(np.stack([first, second])))
    found = couplings(*pair(chain, 2))
    size = np.sqrt(10)
    # M = diag(3, 1) in one basis of the second layer, diag(1, 3) in another
    assert abs(found.lower[0, 1]) < 1e-12
    assert abs(found.upper[0, 1] - np.sqrt(8) / size) < 1e-12


def test_a_near_tie_is_a_matter_of_the_threshold(rng):
    near = TIED.copy()
    near[1:4] += [2e-7, 1e-7, 0.0]
    chain, triplets = pair(chain_of(rng, np.stack([UNTIED, near, UNTIED])))
    wide = couplings(chain, triplets, tie=1e-6)
    assert (wide.upper - wide.lower)[0, 1] > 1e-2
    narrow = couplings(chain, triplets, tie=1e-9)
    assert distance(narrow.upper, narrow.lower) == 0


def test_a_tie_at_the_edge_of_the_top_is_named(rng):
    edge = np.asarray([4.0, 3.0, 2.5, 1.5, 1.5, *np.linspace(1.4, 0.1, D - 5)])
    chain = chain_of(rng, np.stack([UNTIED, edge, UNTIED]))
    assert couplings(*pair(chain)).separated.tolist() == [True, False, True]
    assert couplings(*pair(chain, 3)).separated.all()
    assert couplings(*pair(chain, D)).separated.all()  # nothing is left out


def test_fewer_than_were_kept(rng):
    chain = chain_of(rng, np.stack([UNTIED] * L))
    triplets = st.decompose(chain, top=K)
    assert distance(couplings(chain, triplets, top=2).value, couplings(*pair(chain, 2)).value) < 1e-13


def test_a_zero_operator_has_no_coupling():
    chain = st.LayerChain(jnp.stack([jnp.zeros((3, 3)), jnp.eye(3)]))
    found = couplings(*pair(chain, 2))
    assert np.isnan(np.asarray(found.value)[0]).all() and np.isfinite(np.asarray(found.value)[1]).all()


def test_nonsense_is_refused(rng):
    chain, triplets = pair(chain_of(rng, np.stack([UNTIED] * L)))
    other = st.LayerChain(jnp.ones((L, D + 1, D + 1)))
    for arguments, word in (
        (([chain, chain], [triplets]), "2 chains and 1 triplets"),
        (([], []), "0 chains"),
        (([chain, other], [triplets, triplets]), "depth, width"),
        ((other, triplets), "triplets with u"),
        ((chain, chain), "triplets with u"),
    ):
        with pytest.raises(InputError, match=word):
            couplings(*arguments)
    for top in (0, K + 1):
        with pytest.raises(InputError, match=f"top={top}"):
            couplings(chain, triplets, top=top)
