"""Layers that users bring: modules and states of any shape become the chain that slow routes give."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from agreement import disagreements
from jax.flatten_util import ravel_pytree

import spectral_theorem as st
from spectral_theorem import linearization
from spectral_theorem.experiment import load
from spectral_theorem.types import InputError

FILE = Path(__file__).resolve().parents[1] / "experiments" / "synthetic" / "own_layers.py"


@pytest.fixture(scope="module", params=["language", "recurrent"])
def made(request):
    """Chain, network and context of a small network of Flax NNX modules."""
    module = load(FILE).run.__globals__
    return module[request.param](module["Config"](network=request.param, layers=3, width=4), jnp.float64)


def test_the_chain_has_the_derivative_of_the_whole_network(made):
    chain, network, context = made
    whole = jax.jacfwd(network)(context).reshape(chain.width, -1)
    assert jnp.abs(st.context_jacobian(chain) - whole).max() < 1e-12 * jnp.abs(whole).max()
    central = [
        (network(context + d.reshape(context.shape)) - network(context - d.reshape(context.shape))) / 2e-5
        for d in 1e-5 * jnp.eye(context.size)
    ]
    assert jnp.abs(jnp.stack(central, axis=1) - whole).max() < 1e-8 * jnp.abs(whole).max()


def test_conditions_psi_and_bounds_are_those_of_the_slow_route(made):
    chains = jax.tree.map(lambda x: x[None], made[0])
    found = st.verify_many(chains)
    assert disagreements(chains, found) == {}
    assert found.path.log_psi_norm.shape == (1,) and np.isfinite(found.path.log_psi_norm).all()


def test_a_layer_that_was_left_out_is_seen(made):
    chain, network, context = made
    wrong = st.LayerChain(chain.propagators.at[1].set(jnp.eye(chain.width)), chain.injections, chain.initial)
    whole = jax.jacfwd(network)(context).reshape(chain.width, -1)
    assert jnp.abs(st.context_jacobian(wrong) - whole).max() > 1e-3 * jnp.abs(whole).max()


def test_products_are_those_of_the_dense_chain():
    weights = [{"w": jax.random.normal(jax.random.key(i), (3, 3)), "b": jnp.ones(3)} for i in range(3)]

    def call(p, state, c):
        x, y = state
        return jnp.tanh(p["w"] @ x) + c, y * x.sum() + p["b"][:2]

    layers, h = st.layers_of(weights, call, (jnp.ones(3), jnp.ones(2)))
    dense, wide = (make(layers, h, jnp.ones(3)) for make in (st.linearize, st.operators))
    assert jnp.abs(wide.propagators() - dense.propagators).max() < 1e-14
    x = jnp.arange(3.0)
    assert jnp.abs(wide.injection_matvec(x) - dense.injections @ x).max() < 1e-14
    state = (jnp.ones(3), jnp.ones(2))
    by_hand = jax.jacfwd(lambda h: ravel_pytree(call(weights[0], ravel_pytree(state)[1](h), jnp.ones(3)))[0])(h)
    assert jnp.abs(dense.propagators[0] - by_hand).max() < 1e-14


def test_layers_of_one_kind_share_a_compilation():
    weights = [jax.random.normal(jax.random.key(i), (5, 5)) for i in range(6)]
    layers, h = st.layers_of(weights, lambda w, x, c: w @ x + c, jnp.ones(5))
    before = linearization._dense_layer._cache_size()
    st.linearize(layers, h, jnp.ones(5))
    assert linearization._dense_layer._cache_size() == before + 1


@pytest.mark.parametrize(
    ("parts", "call", "state", "said"),
    [
        ([], abs, 1.0, "or none"),
        (abs, abs, 1.0, "a sequence"),
        ([1.0], 3, 1.0, "a function"),
        ([1.0], abs, (), "it is empty"),
        ([1.0], abs, (jnp.ones(2), jnp.ones(2, jnp.float32)), "float32, float64"),
    ],
)
def test_what_is_no_stack_is_refused(parts, call, state, said):
    with pytest.raises(InputError, match=said):
        st.layers_of(parts, call, state)


def test_a_module_that_changes_the_shape_of_the_state_is_refused():
    layers, h = st.layers_of([jnp.ones((3, 2))], lambda w, x, c: w @ x, jnp.ones(2))
    with pytest.raises(InputError, match=r"layer 1 with output of shape \(3,\)"):
        st.linearize(layers, h, jnp.ones(1))
