"""Bad input to the library: one sentence that says what was got, what was expected, and what to type.

Files are in test_chainfile.py, layer functions in test_linearization.py, recipes in test_ensembles.py,
the command line in test_bad_input_cli.py.
"""

import re

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

import spectral_theorem as st

W, G = np.tile(np.eye(3), (4, 1, 1)), np.ones((4, 3, 2))
FORM = r"got .+; expected .+; try .+"


def message(make, *arguments, inside_jit=False, **options):
    with pytest.raises(st.InputError) as error:
        make(*arguments, **options)
    text, _, rest = str(error.value).partition("\n")
    assert re.fullmatch(FORM, text) and (inside_jit or not rest)  # JAX adds lines of its own
    return text


CHAINS = {
    "one matrix": ((W[0],), "propagators with shape (3, 3); expected rank 3"),
    "a batch": ((W[None],), "jax.vmap over LayerChain"),
    "no layers": ((W[:0],), "propagators with shape (0, 3, 3)"),
    "width zero": ((W[:, :0, :0],), "no empty axis"),
    "not square": ((W[:, :, :2],), "square matrices"),
    "not an array": (("W",), "propagators of type str"),
    "nothing": ((None,), "propagators of type NoneType"),
    "integers": ((W.astype(int),), "dtype int64; expected float32 or float64 (nothing is cast silently)"),
    "a list of integers": (([[[1, 0], [0, 1]]],), "dtype int64"),
    "booleans": ((W.astype(bool),), "dtype bool"),
    "complex": ((W.astype(complex),), "dtype complex128"),
    "half": ((W.astype(np.float16),), "dtype float16"),
    "bfloat16": ((W.astype(ml_dtypes.bfloat16),), "dtype bfloat16"),
    "objects": ((W.astype(object),), "dtype object"),
    "flat injections": ((W, G[0]), "injections with shape (3, 2); expected rank 3"),
    "too few injections": ((W, G[:3]), "beside propagators (4, 3, 3); expected (L, D, C) with L=4, D=3"),
    "injections of another width": ((W, G[:, :2]), "injections with shape (4, 2, 2)"),
    "injections without context": ((W, G[:, :, :0]), "no empty axis in (L, D, C)"),
    "half injections": ((W, G.astype(np.float16)), "injections with dtype float16"),
    "mixed precision": ((W, G.astype(np.float32)), "injections in float32 beside propagators in float64"),
    "a flat first state": ((W, G, np.ones(3)), "initial with shape (3,); expected rank 2"),
    "a first state of another width": ((W, G, np.ones((2, 2))), "initial with shape (2, 2)"),
    "two contexts": ((W, G, np.ones((3, 5))), "context sizes {'injections': 2, 'initial': 5}; expected one C"),
}


@pytest.mark.parametrize("name", CHAINS)
def test_what_is_no_chain(name):
    arguments, words = CHAINS[name]
    assert words in message(st.LayerChain, *arguments)


@pytest.mark.parametrize("name", ["one matrix", "not square", "half", "integers", "too few injections", "two contexts"])
def test_shapes_and_dtypes_are_looked_at_inside_jit_too(name):
    arguments, words = CHAINS[name]
    assert words in message(jax.jit(lambda *arrays: st.LayerChain(*arrays).propagators), *arguments, inside_jit=True)


def test_double_precision_needs_the_64_bit_mode():
    with jax.enable_x64(False):
        assert "jax_enable_x64" in message(st.LayerChain, W)
        assert st.LayerChain(W.astype(np.float32)).dtype == jnp.float32


def test_lists_of_numbers_are_welcome():
    assert st.LayerChain(W.tolist(), G.tolist()).dtype == jnp.float64


TRIPLETS = st.decompose(st.LayerChain(W))
ENTRIES = {
    "verify": st.verify,
    "decompose": st.decompose,
    "context_jacobian": st.context_jacobian,
    "dominant_path": lambda chain: st.dominant_path(chain, TRIPLETS),
    "residual_bounds": lambda chain: st.residual_bounds(chain, TRIPLETS),
    "check_conditions": lambda chain: st.check_conditions(chain, TRIPLETS),
    "classify": lambda chain: st.classify(chain, TRIPLETS),
    "depth_profile": lambda chain: st.depth_profile(chain, TRIPLETS),
}


@pytest.mark.parametrize("name", ENTRIES)
def test_what_is_passed_for_a_chain(name):
    assert "type ndarray" in message(ENTRIES[name], W) and "st.LayerChain" in message(ENTRIES[name], W)
    several = jax.vmap(st.LayerChain)(jnp.asarray(W[None]), jnp.asarray(G[None]))
    assert "a batch of chains" in message(ENTRIES[name], several)


def test_one_chain_is_no_batch():
    assert "st.verify(chain)" in message(st.verify_many, st.LayerChain(W, G))
    several = jax.vmap(st.LayerChain)(jnp.asarray(W[None]))
    for size in (0, -1):
        assert "batch_size" in message(st.verify_many, several, batch_size=size)


@pytest.mark.parametrize("top", [0, 4, -1])
def test_as_many_triplets_as_there_are(top):
    assert f"top={top}; expected 1 <= top <= D = 3" in message(st.decompose, st.LayerChain(W), top=top)


def test_unknown_methods():
    assert "method='power'; expected 'dense' or 'krylov'" in message(st.decompose, st.LayerChain(W), "power")


THRESHOLDS = ("gain", "cumulative_gain", "alignment", "gamma_min", "coherence", "purity", "contraction")


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf")])
def test_thresholds_are_positive_numbers(value):
    for name in THRESHOLDS:
        assert f"threshold {name}={value!r}" in message(st.Thresholds, **{name: value})


def test_unknown_thresholds_and_names():
    with pytest.raises(TypeError, match="purities"):
        st.Thresholds(purities=0.1)  # pyright: ignore[reportCallIssue]
    with pytest.raises(AttributeError, match="no attribute 'verfy'"):
        st.verfy  # noqa: B018
    with pytest.raises(AttributeError, match="Bounds has no 'papr'"):
        st.residual_bounds(st.LayerChain(W, G), st.decompose(st.LayerChain(W))).papr  # noqa: B018
