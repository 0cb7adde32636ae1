"""A checker never seen to fail proves nothing: seeded errors must be caught, and nothing HOLDS of NaN.

Every mutant is the package with one line changed. It runs operation by operation, since it would cost
seconds to compile, on chains of one small shape; the judges are those of the other tests.
"""

import dataclasses
import functools
from types import SimpleNamespace

import agreement
import batches
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from judging import judged
from mutation import mutant
from test_bounds import factors_are_right
from test_path import routes_differ

import spectral_theorem as st
from spectral_theorem.types import Reason, Thresholds, Verdict
from spectral_theorem.verification import CLAIMS

SHAPE = (5, 6, 4, True)
LIMITS = Thresholds()
_solve = jax.jit(jax.vmap(st.coherence_direction))


def solved(rows):
    """Solve the H3 problem of every chain by compiled code: a loop in it would be compiled anew for every mutant."""

    def batch(rows):
        with jax.disable_jit(False):
            return jax.tree.map(np.asarray, _solve(rows))

    shapes = jax.eval_shape(st.coherence_direction, rows)
    return jax.pure_callback(batch, shapes, rows, vmap_method="expand_dims")


# part of a verification -> how a module's copy makes it from the chain and the other parts
PARTS = {
    "triplets": lambda load, c, v: load("triplets").decompose(c),
    "path": lambda load, c, v: load("path").dominant_path(c, v.triplets),
    "bounds": lambda load, c, v: load("bounds").residual_bounds(
        c, v.triplets, path=v.path, coherence=v.coherence_solution
    ),
    "conditions": lambda load, c, v: load("conditions").check_conditions(c, v.triplets, LIMITS),
    "regime": lambda load, c, v: load("regimes").classify(c, v.triplets, LIMITS, bounds=v.bounds),
}
# module -> parts that it has a say in
MADE_BY = {
    "triplets": ["triplets"],
    "path": ["path", "conditions"],
    "factors": ["bounds"],
    "bounds": ["bounds"],
    "conditions": ["conditions"],
    "regimes": ["regime"],
}


def made_again(load, chains, found, parts):
    """Return a verification in which the modules that `load` gives have made these parts, without compiling."""
    load("conditions").coherence_direction = solved
    for part in parts:
        with jax.disable_jit():
            made = jax.vmap(functools.partial(PARTS[part], load))(chains, found)
        kind = type(getattr(found, part))
        fields = {name: jnp.asarray(getattr(made, name)) for name in kind.__dataclass_fields__}
        found = dataclasses.replace(found, **{part: kind(**fields)})
    return found


def complaints(chains, found):
    """Return what the judges of this suite have against a verification of the chains."""
    with np.errstate(all="ignore"):
        said = list(agreement.disagreements(chains, found))
        verdicts = judged(chains, found)
    said += [f"claim {name}" for name, each in verdicts.items() if "VIOLATED" in each]
    return said if routes_differ(found.path) else [*said, "one route"]


# module, what it says, what it says in the mutant, who must complain
MUTANTS = {
    "the gap before for the gap of the layer": (
        "factors",
        "split(misalignment), split(xi))",
        "split(misalignment), split(jnp.concatenate([xi[:1], xi[:-1]])))",
        "log_transfer",
    ),
    "cap of the path part dropped": (
        "factors",
        "    p_next = jnp.minimum(k * p + s * q, n)\n    q_next = x * (",
        "    p_next = k * p + s * q\n    q_next = x * (",
        "factors",
    ),
    "cap of the off-path part dropped": (
        "factors",
        "x * (jnp.minimum(s * p + q, n) + m * s)",
        "x * (s * p + q + m * s)",
        "log_transfer",
    ),
    "cap of the whole dropped": (
        "factors",
        "jnp.minimum(jnp.hypot(p_next, q_next), n + x * m * s)",
        "jnp.hypot(p_next, q_next)",
        "log_transfer",
    ),
    "no new deviation": ("factors", "+ m * s)\n", ")\n", "claim residual_transfer"),
    "cap of the propagator form dropped": (
        "factors",
        "q_next = x * jnp.minimum(s * p + q, n)",
        "q_next = x * (s * p + q)",
        "product bound",
    ),
    "telescoping forgets kappa": ("factors", "k * path)", "path)", "log_telescoping"),
    "s from 1 - kappa^2": (
        "triplets",
        "misalignment = norm(v[1:] - kappa[:, None] * u[:-1], axis=1)",
        "misalignment = jnp.sqrt(jnp.clip((1 - kappa**2), 0.0))",
        "misalignment",
    ),
    "defect from 1 - |kappa|": (
        "triplets",
        "defect = 0.5 * norm(",
        "defect = 1 - jnp.abs(kappa) + 0 * norm(",
        "alignment_defect",
    ),
    "couplings the wrong way round": (
        "triplets",
        'jnp.einsum("ld,ld->l", v[1:], u[:-1])',
        'jnp.einsum("ld,ld->l", u[1:], v[:-1])',
        "kappa",
    ),
    "weight of the last layer dropped": (
        "bounds",
        "== xi.shape[0] - 1, xi[1:], 1.0)",
        "== xi.shape[0] - 1, 1.0, 1.0)",
        "product bound",
    ),
    "weight of the last layer everywhere": (
        "bounds",
        "jnp.where(jnp.arange(1, xi.shape[0]) == xi.shape[0] - 1, xi[1:], 1.0)",
        "xi[1:]",
        "product <= bound",
    ),
    "growth without the sign of the second column": (
        "bounds",
        "-kappa * entering",
        "kappa * entering",
        "product bound",
    ),
    "transfer part off the path dropped": (
        "bounds",
        "jnp.logaddexp(factors.along + log_of(on_path), factors.across + log_of(off_path))",
        "factors.along + log_of(on_path)",
        "claim residual_transfer",
    ),
    "paper without its sum over layers": (
        "bounds",
        "log_of(reverse_cumsum(s.xi))",
        "log_of(s.xi)",
        "claim telescoping_paper",
    ),
    "row-exact without the tail": ("bounds", "beta = tail_before * beta + norm", "beta = norm", "log_row_exact"),
    "top-K without its tail": (
        "bounds",
        "rest * (jnp.minimum(leave * p + q",
        "0 * (jnp.minimum(leave * p + q",
        "log_top_k",
    ),
    "psi bound without the coherence value": (
        "bounds",
        "log_of(coherence.value) + amplitude",
        "amplitude",
        "claim psi_lower_sharp",
    ),
    "sign of A ignored in H3": (
        "path",
        "log_amplitudes(path)[1][:, None] * row_projections(path)",
        "row_projections(path)",
        "sign_consistency value",
    ),
    "sign of A ignored in Psi": ("path", "weights = sign * jnp.exp(", "weights = jnp.exp(", "claim identity"),
    "R by the same route": (
        "path",
        "error = log_norm(subtract(by_difference, residual))",
        "error = log_norm(subtract(by_difference, by_difference))",
        "one route",
    ),
    "R forgets what went astray": ("path", "residual = w @ residual + rest", "residual = rest", "claim identity"),
    "first coupling left out": ("conditions", '"gain": gain(first)', '"gain": gain(first + 1)', "gain value"),
    "the best injection speaks for all": (
        "conditions",
        "least = lambda g: jnp.min(jnp.where(present, g, jnp.inf))",
        "least = lambda g: jnp.max(jnp.where(present, g, -jnp.inf))",
        "purity value",
    ),
    "an impurity of one layer": ("conditions", "depth * x / jnp.where", "x / jnp.where", "purity value"),
    "cone without its second factor": ("regimes", "xi[1:] * chi[:-1] * chi[1:]", "xi[1:] * chi[:-1]", "cone margin"),
    "cone of the layer before": (
        "regimes",
        "xi[1:] * chi[:-1] * chi[1:]",
        "xi[:-1] * chi[:-1] * chi[1:]",
        "cone margin",
    ),
    "aperture that never opens": ("regimes", "ahead = (sine + k * x * aperture)", "ahead = sine", "output angle"),
    "growth from sigma alone": (
        "regimes",
        '"log_tracked_growth": jnp.where(sure, total + shrink, jnp.nan)',
        '"log_tracked_growth": jnp.where(sure, total, jnp.nan)',
        "claim cone_growth",
    ),
    "decay asked of no layer": (
        "regimes",
        "thresholds.dispersion_rate * remaining",
        "thresholds.dispersion_rate",
        "dispersion margin",
    ),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_every_mutant_is_caught(name):
    module, old, new, judge = MUTANTS[name]
    chains, found, _ = batches.examined(SHAPE)
    with mutant(module, old, new) as load:
        said = complaints(chains, made_again(load, chains, found, MADE_BY[module]))
        if module == "factors":
            with jax.disable_jit():
                said += [] if factors_are_right(load("factors")) else ["factors"]
    assert judge in said, said


UNCHANGED = ("bounds", "import math\n", "import math\n")


def test_nothing_is_said_against_the_package_itself():
    chains, found, _ = batches.examined(SHAPE)
    with mutant(*UNCHANGED) as load:
        assert complaints(chains, made_again(load, chains, found, PARTS)) == []


ENDS = {
    "kappa without the upper end": ("jnp.cos(jnp.clip(phi - error, 0.0))", "jnp.cos(phi)"),
    "s without the upper end": ("jnp.sin(jnp.clip(phi + error, None, math.pi / 2))", "jnp.sin(phi)"),
    "the error on the wrong side": ("jnp.clip(phi - error, 0.0)", "jnp.clip(phi + error, 0.0)"),
    "s beyond a right angle": ("jnp.clip(phi + error, None, math.pi / 2)", "phi + error"),
}


def ends_are_right(bounds):
    """Compare with the ends of known intervals; couplings of 0, small, and right angles with wide error bars."""
    phi, error = np.array([0.0, 0.05, 0.7, 1.5]), np.array([0.1, 0.1, 0.2, 0.3])
    t = SimpleNamespace(
        kappa=jnp.cos(phi), misalignment=jnp.sin(phi), coupling_error=jnp.asarray(error), resolved=jnp.ones(5, bool)
    )
    kappa, s = bounds.upper_alignment(t)
    return np.allclose(kappa, np.cos([0, 0, 0.5, 1.2])) and np.allclose(s, np.sin([0.1, 0.15, 0.9, np.pi / 2]))


@pytest.mark.parametrize("name", ENDS)
def test_ends_of_error_bars_are_missed(name):
    with mutant("bounds", *ENDS[name]) as load:
        assert not ends_are_right(load("bounds"))


def test_ends_of_error_bars_are_found():
    with mutant(*UNCHANGED) as load:
        assert ends_are_right(load("bounds"))


# what is not a number, and what is tied -----------------------------------------------------------------


def spoiled():
    """Chains of the shape (7, 2, 2) with one entry not finite, through containers that check nothing."""
    chains, _ = batches.block(5, 4, (7, 2, 2, False), families=(batches.makers.theorem,))
    w, g = np.array(chains.propagators[:1]), np.array(chains.injections[:1])
    ws, gs, names = [], [], []
    for bad in (np.nan, np.inf, -np.inf):
        for layer in (0, 3, 6):
            for array in ("W", "G"):
                one = (w[0].copy(), g[0].copy())
                one[array == "G"][layer, 1, 0] = bad
                ws.append(one[0]), gs.append(one[1]), names.append((bad, array, layer + 1))
    return batches.batch(np.stack(ws), np.stack(gs)), names


def test_nothing_that_meets_a_nan_holds():
    """What an entry reaches is UNDECIDED or not applicable; W_1 and G_7 enter only what speaks of them."""
    chains, names = spoiled()
    found = batches.verified(chains)
    codes = batches.codes(found)
    hypotheses = dict(found.conditions.items())
    for i, (bad, array, layer) in enumerate(names):
        where = f"{bad} in {array}_{layer}"
        holds = {claim for claim, code in codes.items() if code[i] == Verdict.HOLDS}
        violated = {claim for claim, code in codes.items() if code[i] == Verdict.VIOLATED}
        conditions = {c for c, condition in hypotheses.items() if condition.code[i] == Verdict.HOLDS}
        if array == "W" and layer > 1:
            assert not holds and not violated and not conditions & {"stability", "purity", "coherence"}, where
        elif array == "W":  # the first propagator meets no injection: only the product of all has it
            assert "total_norm" not in holds, where
        elif layer < 7:
            assert not conditions & {"coherence", "purity"}, where
            about = {name for name, spec in CLAIMS.items() if spec.needs_context}
            assert not (holds | violated) & about, where
        else:
            assert "identity" not in holds, where


def test_ties_leave_undecided_what_depends_on_them():
    chains, _ = batches.block(3, 64, (7, 2, 2, False), families=(batches.makers.ties,))
    found = batches.verified(chains)
    tied = ~found.triplets.resolved[:, 1:6].all(axis=1)  # layers whose kappa and rho the theorem uses
    assert tied.sum() > 30
    for name in ("stability", "alignment", "coherence"):
        condition = found.conditions[name]
        assert not (condition.code[tied] == Verdict.HOLDS).any(), name
    assert (found.conditions["alignment"].reason_code[tied & (found.conditions["alignment"].code == 0)] > 0).all()
    assert set(np.unique(found.conditions["gain"].reason_code[tied])) & {Reason.TIE, Reason.UNRESOLVED}
    codes = batches.codes(found)
    assert not any((codes[name][tied] == Verdict.HOLDS).any() for name in ("c1", "c2", "psi_lower"))
    # bounds hold for the basis chosen
    assert (codes["residual_transfer"][tied] == Verdict.HOLDS).sum() > 20


def test_the_constructor_lets_nothing_in_that_is_not_finite():
    for bad in (np.nan, np.inf, -np.inf):
        w = np.eye(2)[None].repeat(3, 0)
        w[1, 0, 1] = bad
        with pytest.raises(st.InputError, match="propagators with non-finite entries"):
            st.LayerChain(jnp.asarray(w))
        with pytest.raises(st.InputError, match="injections with non-finite entries"):
            st.LayerChain(jnp.ones((3, 2, 2)), jnp.asarray(w))
        with pytest.raises(st.InputError, match="initial with non-finite entries"):
            st.LayerChain(jnp.ones((3, 2, 2)), None, jnp.asarray(w[1]))
