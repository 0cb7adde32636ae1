"""The strategies draw what they promise, and a false claim is found, shrunk, kept and replayed."""

import functools
import re
import shlex
import subprocess
import sys
import types

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import spectral_theorem as st
from spectral_theorem import recipes, testing
from spectral_theorem.chainfile import load_chain
from spectral_theorem.recipes import ADVERSARIAL_KINDS, ATTRACTOR_KINDS, DISPERSIVE_KINDS, KINDS, PLAIN_KINDS, SHAPES
from spectral_theorem.testing import check_claim, layer_chains, make_chain

FEW = [(1, 3, 2), (2, 2, 1), (3, 3, 2)]
PLANTED_KINDS = [kind for kind in KINDS if kind not in ("gaussian", "residual")]


def few(**options):
    return layer_chains(shapes=FEW, kinds=("plain", "tie", "nearly_aligned", "extreme_gain"), **options)


@pytest.fixture
def file(tmp_path):
    return tmp_path / "counterexample.npz"


def refuted(fn, file, **options):
    """Return the message with which a claim is refuted."""
    with pytest.raises(AssertionError) as caught:
        check_claim(fn, **({"chains": few(), "save": file, "examples": 40} | options))
    text = str(caught.value)
    assert "\n" not in text and f"spectral-theorem verify {file}" in text
    return text


def test_shapes_are_few_and_reach_the_ends():
    assert len(SHAPES) <= 16 and len(set(SHAPES)) == len(SHAPES)
    for axis, ends in ((0, (1, 64)), (1, (1, 64))):
        assert (min(s[axis] for s in SHAPES), max(s[axis] for s in SHAPES)) == ends
    assert len(ADVERSARIAL_KINDS) >= len(PLAIN_KINDS + ADVERSARIAL_KINDS) / 4


@pytest.mark.parametrize("kind", PLANTED_KINDS)
def test_recipes_are_possible_at_every_shape(kind):
    for shape in SHAPES:
        for seed in range(10):
            r = recipes.recipe(kind, shape=shape, seed=seed, dtype="float32")
            L, D, C = shape
            assert {name: a.shape for name, a in r.items()} == dict.fromkeys(
                ("sigma", "xi", "gamma", "coherence", "signs", "injection_norm"), (L,)
            ) | {"kappa": (L - 1,), "misalignment": (L - 1,), "bulk": (D - 1,)}
            assert np.isfinite(r["sigma"]).all() and (r["sigma"] > 0).all()
            assert kind in DISPERSIVE_KINDS or abs(np.log10(r["sigma"]).sum()) < 15
            assert (r["xi"] >= 0).all() and (r["xi"] <= 1).all() and (np.abs(r["coherence"]) <= 1).all()
            assert (r["gamma"] > 0).all() and (r["gamma"] <= 1).all() and (r["injection_norm"] >= 0).all()
            np.testing.assert_allclose(np.hypot(r["kappa"], r["misalignment"]), 1, rtol=1e-15)
            assert D == 1 or r["bulk"].max() == 1
            assert D > 1 or ((np.abs(r["kappa"]) == 1).all() and (r["gamma"] == 1).all())
            assert C > 1 or (np.abs(r["coherence"]) == 1).all()


def test_adversarial_kinds_are_what_they_are_called():
    r = {kind: recipes.recipe(kind, shape=(16, 4, 5), seed=0) for kind in PLANTED_KINDS}
    assert (r["rank_one"]["xi"] == 0).all() and (r["near_tie"]["xi"] == 1 - 1e-9).all()
    assert 0 < (r["tie"]["xi"] == 1).sum() < 16
    assert (r["nearly_aligned"]["misalignment"] == 1e-9).all() and len(set(r["nearly_aligned"]["kappa"])) == 2
    assert (r["orthogonal_step"]["kappa"] == 0).any() and (r["v_aligned"]["gamma"] == 1).all()
    assert (r["v_blind"]["gamma"] == 1e-9).all() and (r["silent"]["injection_norm"] == 0).any()
    assert len(set(r["sign_flips"]["signs"])) == 2
    gain = lambda dtype: np.log10(recipes.recipe("extreme_gain", shape=(16, 4, 5), seed=0, dtype=dtype)["sigma"]).sum()
    assert abs(gain("float64")) > 30 and 3 < abs(gain("float32")) < 8
    for name in ("sigma", "kappa", "xi", "gamma"):
        assert len(set(r["constant"][name])) == 1


def test_a_chain_is_its_kind_shape_and_seed():
    for kind in ("plain", "gaussian", "residual"):
        one, two, three = (make_chain(kind, shape=(3, 3, 2), seed=seed) for seed in (1, 1, 2))
        assert np.array_equal(one.propagators, two.propagators) and np.array_equal(one.injections, two.injections)
        assert not np.array_equal(one.propagators, three.propagators)
        assert one.initial is None and (one.depth, one.width, one.context_size) == (3, 3, 2)
    assert make_chain("residual", shape=(3, 3, 2), seed=1, initial=True).initial is not None


def test_recipes_of_one_shape_can_be_stacked_and_mapped_over():
    shape, kinds = (3, 3, 2), ("plain", "mixed", "attractor")
    each = [recipes.recipe(kind, shape=shape, seed=5) for kind in kinds]
    stacked = jax.tree.map(lambda *a: jnp.stack(a), *each)
    plant = lambda r: st.ensembles.planted(jax.random.key(5), layers=3, width=3, context=2, **r)
    chains = jax.jit(jax.vmap(plant))(stacked)
    for i, kind in enumerate(kinds):
        alone = make_chain(kind, shape=shape, seed=5)
        np.testing.assert_allclose(chains.propagators[i], alone.propagators, atol=1e-15)
        np.testing.assert_allclose(chains.injections[i], alone.injections, atol=1e-15)


def test_regime_chains_are_certified():
    shape = (4, 2, 3)
    for kind in ATTRACTOR_KINDS + DISPERSIVE_KINDS:
        for seed in range(12):
            found = st.verify(make_chain(kind, shape=shape, seed=seed))
            wanted = st.Regime.ATTRACTOR if kind in ATTRACTOR_KINDS else st.Regime.DISPERSIVE
            assert found.regime.regime == wanted, (kind, seed)
            if kind in ATTRACTOR_KINDS:
                verdicts = {name: getattr(found.conditions, name).verdict.name for name in NAMES}
                assert verdicts == dict.fromkeys(NAMES, "HOLDS"), (kind, seed)


NAMES = ("stability", "alignment", "coherence", "purity")


def test_some_dispersive_chains_have_gains_above_one():
    gains = [
        recipes.recipe("growing_layers_that_decay", shape=(6, 8, 3), seed=seed)["sigma"].min() for seed in range(20)
    ]
    assert max(gains) > 1.5


def test_strategies_leave_out_shapes_too_short_and_refuse_nonsense():
    def draw(strategy):
        drawn = []
        once = hypothesis.settings(max_examples=1, database=None, deadline=None)
        once(hypothesis.given(strategy)(lambda chain: drawn.append(chain)))()
        return drawn[0]

    assert draw(testing.attractor_chains(shapes=FEW)).depth == 3
    assert draw(testing.dispersive_chains(shapes=FEW)).depth == 2
    assert draw(few(initial=True, dtype="float32")).initial.dtype == jnp.dtype("float32")
    for strategy, options, expected in [
        (testing.attractor_chains, {"shapes": FEW[:2]}, "at least 3 layers"),
        (testing.dispersive_chains, {"shapes": FEW[:1]}, "at least 2 layers"),
        (layer_chains, {"shapes": []}, "no shapes"),
        (layer_chains, {"kinds": ()}, "no kinds"),
        (layer_chains, {"kinds": ("odd",)}, "kind 'odd'"),
    ]:
        with pytest.raises(st.InputError, match=expected):
            strategy(**options)
    for kind in ("odd", "gaussian"):
        with pytest.raises(st.InputError, match="one of plain"):
            recipes.recipe(kind, shape=(1, 1, 1), seed=0)
    with pytest.raises(st.InputError, match="layers >= 1"):
        make_chain("plain", shape=(0, 1, 1), seed=0)


@hypothesis.settings(max_examples=10)
@hypothesis.given(few())
def test_strategies_serve_an_ordinary_property_test(chain):
    assert chain.depth <= 3 and bool(jnp.isfinite(chain.propagators).all())


def first_times_last(chain):
    """Claim what is true: the norm of a product is at most the product of norms."""
    first, last = chain.propagators[0], chain.propagators[-1]
    norm = jnp.linalg.norm
    return norm(last @ first), norm(last) * norm(first)


def decay_by_rho(chain):
    """Claim what is false: products decay like the effective gains along the dominant path."""
    u, sigma, vt = jnp.linalg.svd(chain.propagators)
    rho = sigma[:-1, 0] * jnp.abs(jnp.sum(vt[1:, 0] * u[:-1, :, 0], axis=1))
    product = jnp.eye(chain.width)
    for w in chain.propagators:
        product = w @ product
    return jnp.log(jnp.linalg.norm(product, 2)), jnp.log(sigma[-1, 0]) + jnp.sum(jnp.log(rho))


def test_a_true_claim_passes_and_leaves_no_file(file):
    found = check_claim(first_times_last, chains=few(), save=file, examples=40)
    assert found.claim == f"{__name__}:first_times_last" and found.examples == 40
    assert found.smallest_margin >= -1e-14 and 0.5 < found.tightness <= 1 + 1e-14
    assert not file.exists()


def test_a_false_claim_is_found_shrunk_kept_and_replayed(file):
    text = refuted(decay_by_rho, file)
    chain, meta = load_chain(file)
    assert meta["claim"] == f"{__name__}:decay_by_rho" and meta["expected"] == "VIOLATED"
    assert meta["margin"] < 0 and f"{meta['margin']:.3g}" in text and meta["claim"] in text
    assert chain.depth == 2  # the smallest depth at which it can fail
    left, right = decay_by_rho(chain)
    assert left > right
    # The message says how to make the same chain again.
    made = eval(re.search(r"make_chain\(.*?seed=\d+\)", text)[0])
    assert np.array_equal(made.propagators, chain.propagators) and np.array_equal(made.injections, chain.injections)


def test_the_command_that_replays_names_the_claim_where_it_can_be_imported(file, monkeypatch):
    assert refuted(decay_by_rho, file).endswith(f"verify {shlex.quote(str(file))} --claim {__name__}:decay_by_rho")
    local = lambda chain: chain.depth < 3
    for hidden in (local, functools.partial(local)):
        assert refuted(hidden, file).endswith(f"verify {shlex.quote(str(file))}")
    # what a script defines is found in the module of the script's name
    script = types.ModuleType("__main__")
    script.__file__, script.never = "somewhere/mybounds.py", never
    monkeypatch.setitem(sys.modules, "__main__", script)
    monkeypatch.setattr(never, "__module__", "__main__")
    assert refuted(never, file).endswith(" --claim mybounds:never")
    assert load_chain(file)[1]["claim"] == "mybounds:never"


def never(chain):
    return chain.depth < 1


def test_the_counterexample_shrinks_to_the_simplest(file):
    assert "make_chain('plain', shape=(3, 3, 2), seed=0)" in refuted(lambda chain: chain.depth < 3, file)
    assert load_chain(file)[1]["margin"] is None


@pytest.mark.parametrize(
    ("sides", "passes"),
    [
        ((jnp.nan, 1.0), False),
        ((0.0, jnp.nan), False),
        ((jnp.inf, jnp.inf), False),
        ((jnp.inf, 1.0), False),
        ((0.0, -jnp.inf), False),
        ((0.0, jnp.inf), True),
        ((-jnp.inf, -jnp.inf), True),
        ((-jnp.inf, 0.0), True),
        ((jnp.zeros(3), jnp.asarray([1.0, 1.0, jnp.nan])), False),
        ((jnp.zeros(0), jnp.zeros(0)), True),
        ((1.0, 1.0), True),
        ((1.0 + 1e-15, 1.0), True),
        ((1.0 + 1e-13, 1.0), False),
        ((1e-15, 0.0), False),
        ((1e-15, 0.0, 1.0), True),
        ((1e-13, 0.0, 1.0), False),
        ((1.0, 0.5, jnp.inf), False),
        ((0.0, 1.0, jnp.nan), False),
        (True, True),
        (np.asarray([True, False]), False),
    ],
    ids=str,
)
def test_what_counts_as_holding(file, sides, passes):
    chains = layer_chains(shapes=[(1, 3, 2)], kinds=("plain",))
    if passes:
        check_claim(lambda chain: sides, chains=chains, save=file, examples=2)
        assert not file.exists()
    else:
        refuted(lambda chain: sides, file, chains=chains, examples=2)


def test_the_worst_entry_is_named(file):
    text = refuted(lambda chain: (jnp.asarray([[0.0, 2.0], [3.0, 0.0]]), 1.0), file)
    assert "left 3 is not <= right 1 at entry (1, 0)" in text and "margin -0.667" in text


def test_a_claim_that_raises_is_kept_with_its_cause(file):
    def raises(chain):
        raise ZeroDivisionError("no\nway")

    with pytest.raises(AssertionError, match="raised ZeroDivisionError: no way") as caught:
        check_claim(raises, chains=few(), save=file, examples=5)
    assert isinstance(caught.value.__cause__, ZeroDivisionError) and load_chain(file)[0].depth == 1


def test_a_claim_that_changes_its_mind_is_kept_and_called_so(file):
    calls = []
    assert "not deterministic" in refuted(lambda chain: calls.append(1) or len(calls) % 7 != 0, file)


def test_assumptions_are_respected(file):
    def positive_depth(chain):
        hypothesis.assume(chain.depth == 2)
        return chain.depth == 2

    assert check_claim(positive_depth, chains=few(), save=file, examples=10).examples == 10
    with pytest.raises(st.InputError, match="assumptions no chain met"):
        check_claim(lambda chain: hypothesis.assume(False), chains=few(), save=file, examples=10)


@pytest.mark.parametrize(
    "returned", [3, "yes", None, (1.0,), (1.0, 2.0, 3.0, 4.0), ("a", 1.0), (np.ones(2), np.ones(3))]
)
def test_what_is_no_claim_is_refused(file, returned):
    with pytest.raises(st.InputError, match="expected \\(left, right\\)") as caught:
        check_claim(lambda chain: returned, chains=few(), save=file, examples=2)
    assert "\n" not in str(caught.value) and not file.exists()


def test_arguments_are_looked_at_first(tmp_path):
    for options, expected in [
        ({"examples": 0}, "examples >= 1"),
        ({"seed": -1}, "seed=-1"),
        ({"save": tmp_path}, "a file name"),
        ({"save": tmp_path / "none" / "c.npz"}, "a folder that exists"),
    ]:
        with pytest.raises(st.InputError, match=expected):
            check_claim(lambda chain: 1 / 0, **options)


def test_the_same_seed_tries_the_same_chains(file):
    def trail(seed):
        seen = []
        check_claim(lambda chain: seen.append(float(chain.propagators[0, 0, 0])) is None, chains=few(), save=file,
                    examples=8, seed=seed)  # fmt: skip
        return seen

    assert trail(1) == trail(1) != trail(2)


def test_it_works_outside_a_test_runner(tmp_path):
    script = """
import jax
jax.config.update("jax_enable_x64", True)
from spectral_theorem.testing import check_claim, layer_chains
check_claim(lambda chain: chain.depth == 0, chains=layer_chains(shapes=[(1, 3, 2)]), examples=3)
"""
    done = subprocess.run([sys.executable, "-W", "error", "-c", script], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1 and done.stdout == ""
    assert "AssertionError: claim __main__:<lambda> fails" in done.stderr.splitlines()[-1]
    assert [path.name for path in tmp_path.iterdir()] == ["counterexample.npz"]
