"""The words, lines and exit codes of a verification, from plain mappings."""

import copy

import jax
import pytest

import spectral_theorem as st
from spectral_theorem import console


@pytest.fixture(scope="module")
def real():
    chain = st.ensembles.planted(
        jax.random.key(0), layers=5, width=4, context=3, sigma=1.02, kappa=0.9999, xi=1e-3, gamma=0.5, coherence=0.9
    )
    return st.verify(chain).to_dict()


@pytest.fixture
def chain(real):
    return copy.deepcopy(real)


def set_condition(chain, name, verdict, reason="none"):
    chain["conditions"][name] |= {"verdict": verdict, "reason": reason}


def test_all_hypotheses_hold(chain):
    for entry in (*chain["conditions"].values(), *chain["claims"].values()):
        entry |= {"verdict": "HOLDS", "reason": "none"}
    words = console.verdict_in_words(chain)
    assert words.startswith("All hypotheses hold, and so do both conclusions, C1 and C2.")
    assert words.endswith(f"All {len(chain['claims'])} applicable claims hold.")
    assert console.exit_code([chain], require="conditions") == 0


def test_a_failed_hypothesis_is_named_and_is_no_violation(chain):
    set_condition(chain, "purity", "VIOLATED")
    chain["claims"]["c2"] |= {"verdict": "NOT_APPLICABLE", "reason": "needs_condition"}
    words = console.verdict_in_words(chain)
    assert words.startswith("The theorem does not apply: H4 purity is violated. C1 needs less, and holds.")
    assert console.exit_code([chain]) == 0
    assert console.exit_code([chain], require="conditions") == 1


def test_several_failures_and_an_undecided_one(chain):
    set_condition(chain, "stability", "VIOLATED")
    set_condition(chain, "alignment", "VIOLATED")
    set_condition(chain, "coherence", "UNDECIDED", "tie")
    words = console.verdict_in_words(chain)
    assert "H1 stability and H2 alignment are violated, and H3 coherence undecided." in words


def test_undecided_says_why(chain):
    set_condition(chain, "coherence", "UNDECIDED", "unsure_sign")
    assert "Undecided: H3 coherence cannot be decided (unsure sign)." in console.verdict_in_words(chain)
    assert console.exit_code([chain], require="conditions") == 1


def test_not_applicable_says_why(chain):
    for name in ("coherence", "purity"):
        set_condition(chain, name, "NOT_APPLICABLE", "no_context")
    assert "does not speak of this chain: no context." in console.verdict_in_words(chain)


@pytest.mark.parametrize("conditions", ["HOLDS", "VIOLATED"])
def test_a_violated_claim_comes_first_whatever_else_is_so(chain, conditions):
    for name in chain["conditions"]:
        set_condition(chain, name, conditions)
    chain["claims"]["residual_transfer"] |= {"verdict": "VIOLATED", "reason": "none"}
    words = console.verdict_in_words(chain)
    assert words.startswith("A proved claim is VIOLATED: residual transfer.")
    assert console.exit_code([chain]) == 1


def test_one_bad_chain_among_many_decides_the_code(chain, real):
    chain["claims"]["identity"]["verdict"] = "VIOLATED"
    assert console.exit_code([real, chain, real]) == 1


def test_the_text_has_every_condition_claim_and_layer(chain):
    text = console.verification_text(chain, title="five layers")
    assert text.startswith("five layers\n" + console.verdict_in_words(chain))
    for name in console.NAMES.values():
        assert f"\n{name}" in text
    for name, claim in chain["claims"].items():
        assert f"\n{name.replace('_', ' ')} " in text
        assert claim["statement"] in text
    assert "the paper's reading of rho: ATTRACTOR" in text
    table = text[text.index("\nlayer") :].strip().splitlines()
    assert [line.split()[0] for line in table] == ["layer", "1", "2", "3", "4", "5"]
    assert table[-1].split()[3:] == ["-"] * 6
    assert all(line == line.rstrip() for line in text.splitlines())


def test_a_deep_chain_shows_both_ends_and_where_conditions_bind(chain):
    layer = chain["layers"][0]
    chain["layers"] = [{**layer, "layer": index + 1} for index in range(100)]
    for entry in chain["conditions"].values():
        entry["layer"] = 50
    text = console.verification_text(chain)
    rows = [line.split()[0] for line in text[text.index("\nlayer") :].strip().splitlines()]
    assert rows == ["layer", "1", "2", "3", "4", "...", "50", "...", "97", "98", "99", "100"]


def test_unresolved_and_uncertified_layers_are_marked_and_explained(chain):
    chain["layers"][1]["resolved"] = False
    chain["layers"][2]["certified"] = False
    text = console.verification_text(chain)
    assert "\n2?" in text and "\n3~" in text
    assert text.endswith("\n".join(console.MARKS.values()))


def test_numbers_that_are_missing_are_dashes(chain):
    chain["path"]["log_residual_norm"] = None
    chain["conditions"]["purity"] |= {"value": None, "margin": None}
    text = console.verification_text(chain)
    assert "multiples" not in text
    line = next(line for line in text.splitlines() if line.startswith("H4 purity"))
    assert line.split()[2:5] == ["-", "0.1", "-"]


def test_bounds_are_ratios_even_when_they_overflow(chain):
    truth = chain["path"]["log_residual_norm"]
    chain["bounds"]["log_paper"] = truth + 1e4
    chain["bounds"]["log_transfer"] = truth
    text = console.verification_text(chain)
    assert "transfer 1," in text and "paper exp(1e+04)" in text


def test_regimes_that_differ_are_said_to(chain):
    chain["regime"] |= {"certified": "INDETERMINATE", "naive": "DISPERSIVE"}
    assert "INDETERMINATE; the paper's reading of rho: DISPERSIVE  (they differ)" in console.verification_text(chain)
