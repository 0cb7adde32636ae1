"""Intervals, tests and effect sizes against SciPy, by hand, and against what they are made for."""

import importlib
import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from mutation import mutant
from scipy import stats

from spectral_theorem.association import auroc, calibration, r_squared, variance_components
from spectral_theorem.divergence import jensen_shannon, kl
from spectral_theorem.resampling import TOO_SMALL, interval, interval_of
from spectral_theorem.statistics import (
    change_of,
    corrected,
    group_difference,
    paired_change,
    sign_flip_p,
    smallest_detectable,
)
from spectral_theorem.types import InputError


def data(seed: int, n: int) -> np.ndarray:
    return np.random.default_rng(seed).exponential(size=n)


def test_bca_is_that_of_scipy():
    x = data(0, 60)
    found = interval(x, method="BCa", seed=3)
    theirs = stats.bootstrap((x,), np.mean, method="BCa", n_resamples=1999, rng=np.random.default_rng(3))
    assert (found.low, found.high) == pytest.approx(tuple(theirs.confidence_interval), rel=1e-9)
    assert interval(x, method="BCa", seed=3) == found  # the same seed, the same interval
    assert interval(x, method="BCa", seed=4) != found


def test_methods_go_with_the_number_of_units():
    assert interval(data(0, 250)).method == "BCa"
    assert interval(data(0, 60)).method == "bootstrap-t"
    few = interval(data(0, 8))
    assert (few.method, few.nominal, few.note) == ("bootstrap-t", False, TOO_SMALL)
    assert interval(data(0, 30), statistic=np.median).note == TOO_SMALL
    assert interval(data(0, 60), statistic=np.median).nominal


def test_bootstrap_t_is_wider_on_the_side_of_the_tail():
    x = data(1, 25)
    found, mean = interval(x), x.mean()
    assert found.high - mean > mean - found.low
    shifted = interval(10 * x + 3)
    assert (shifted.low, shifted.high) == pytest.approx((10 * found.low + 3, 10 * found.high + 3))


def test_clusters_are_drawn_whole():
    x = np.repeat(np.random.default_rng(0).normal(size=60), 10)
    apart, whole = interval(x), interval(x, clusters=np.repeat(np.arange(60), 10))
    assert whole.n == 60
    assert whole.high - whole.low > 2.5 * (apart.high - apart.low)
    again = interval_of(lambda rows: x[rows].mean(), x.size, np.repeat(np.arange(60), 10), resamples=999)
    assert (again.low, again.high) == pytest.approx((whole.low, whole.high), abs=0.06)
    each = interval(np.arange(60.0), clusters=np.arange(60), method="BCa")
    alone = interval(np.arange(60.0), method="BCa")
    assert (each.low, each.high) == (alone.low, alone.high)


def test_what_cannot_have_an_interval_says_so():
    assert interval([3.0]).method == "none" and np.isnan(interval([3.0]).low)
    same = interval([0.1] * 30)
    assert same.low == same.high == pytest.approx(0.1) and not same.nominal and "equal" in same.note
    assert not interval([3.0]).contains(3.0)
    broken = interval_of(lambda rows: np.nan, 60, resamples=99)
    assert np.isnan(broken.low) and not broken.nominal
    some = interval_of(lambda rows: np.nan if 0 in rows[:3] else rows.mean(), 60, resamples=199)
    assert np.isfinite(some.low) and "no finite value" in some.note and not some.nominal


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: interval([]), "at least one"),
        (lambda: interval([1.0, np.nan]), "not finite"),
        (lambda: interval([1.0, 2.0], clusters=[1]), "one label for each of 2"),
        (lambda: interval([1.0, 2.0], method="normal"), "auto, BCa"),
        (lambda: interval_of(len, 0), "at least one"),
        (lambda: paired_change([1.0], [1.0, 2.0]), "1 clean and 2 stressed"),
        (lambda: group_difference([1.0], [1.0, 2.0]), "at least two in each"),
        (lambda: group_difference([1.0, 2.0], [1.0, 2.0], clusters=([1], [1, 2])), "one per clip"),
        (lambda: corrected([1.5]), "outside"),
        (lambda: corrected([0.5], "none"), "bh, by or holm"),
        (lambda: auroc([1.0, 2.0], [1, 1]), "some true and some false"),
        (lambda: r_squared([1.0], [1.0, 2.0]), "as many of each"),
        (lambda: kl([1.0], [1.0, 2.0]), "as many"),
        (lambda: jensen_shannon([0.0], [1.0]), "not all zero"),
        (lambda: variance_components([1.0, 2.0], {"a": [1, 2]}), "more values than levels"),
        (lambda: variance_components([1.0, 2.0, 3.0], {"a": [1, 1, 2]}, clusters="b"), "one of"),
    ],
)
def test_bad_input_is_one_line(call, words):
    with pytest.raises(InputError, match=r"got .*; expected .*; try ") as problem:
        call()
    assert words in str(problem.value)


def test_sign_flips_are_those_of_scipy_when_complete():
    for n in (3, 8, 12):
        x = np.random.default_rng(n).normal(0.4, 1, n)
        mean = lambda values, axis: values.mean(axis=axis)
        theirs = stats.permutation_test((x,), mean, permutation_type="samples", vectorized=True, n_resamples=10_000)
        assert sign_flip_p(x) == pytest.approx(theirs.pvalue)
    x = np.random.default_rng(0).normal(0.4, 1, (40, 2))
    both = sign_flip_p(x)
    assert both.shape == (2,) and both[0] == sign_flip_p(x[:, 0])
    assert both[0] == pytest.approx(stats.ttest_1samp(x[:, 0], 0).pvalue, abs=0.02)


def test_a_paired_change_has_all_its_numbers():
    rng = np.random.default_rng(0)
    clean = rng.normal(size=80)
    d = rng.normal(0.5, 1.0, 80)
    found = paired_change(clean, clean + d)
    assert found.value == pytest.approx(d.mean())
    assert found.p == pytest.approx(stats.ttest_1samp(d, 0).pvalue, abs=2e-3)
    assert found.effect == pytest.approx((1 - 3 / (4 * 79 - 1)) * d.mean() / d.std(ddof=1), rel=1e-6)
    plus = stats.wilcoxon(d).statistic  # the smaller rank sum
    assert found.rank_biserial == pytest.approx(1 - 2 * plus / (80 * 81 / 2))
    opposite = paired_change(clean + d, clean)
    assert (opposite.value, opposite.p, opposite.effect) == pytest.approx((-found.value, found.p, -found.effect))


def test_equal_pairs_and_one_pair_are_no_evidence():
    assert paired_change([1.0, 2.0], [1.0, 2.0]).p == 1.0
    alone = paired_change([1.0], [2.0])
    assert alone.p == 1.0 and np.isnan(alone.interval.low)
    assert change_of([0.5] * 10).p == 2.0**-9


def test_a_group_difference_agrees_with_welch():
    rng = np.random.default_rng(1)
    a, b = rng.normal(0, 1, 60), rng.normal(0.5, 2, 80)
    found = group_difference(a, b)
    welch = stats.ttest_ind(b, a, equal_var=False)
    ends = welch.confidence_interval()
    assert found.p == pytest.approx(welch.pvalue, abs=0.015)
    assert (found.interval.low, found.interval.high) == pytest.approx((ends.low, ends.high), abs=0.08)
    assert found.rank_biserial == pytest.approx(2 * stats.mannwhitneyu(b, a).statistic / 4800 - 1)
    assert group_difference(b, a).value == pytest.approx(-found.value)


def test_clusters_keep_a_group_difference_honest():
    rng = np.random.default_rng(2)
    speakers = np.repeat(np.arange(20), 10)
    x = rng.normal(size=20)[speakers] + 0.1 * rng.normal(size=200)
    second = speakers % 2 == 0
    careless = group_difference(x[~second], x[second])
    honest = group_difference(x[~second], x[second], clusters=(speakers[~second], speakers[second]))
    assert honest.n == 20 and careless.p < honest.p
    assert honest.interval.high - honest.interval.low > 2 * (careless.interval.high - careless.interval.low)
    assert honest.interval.n == 10  # of the smaller group
    inside = np.tile([True, False], 100)
    shifted = x + 0.2 * inside
    few = speakers < 8  # so few that labels are exchanged inside each
    for rows in (np.ones(200, bool), few):
        a, b = rows & ~inside, rows & inside
        found = group_difference(shifted[a], shifted[b], clusters=(speakers[a], speakers[b]))
        assert found.p < 0.01  # within speakers the small difference is plain
    assert group_difference([1.0, 1.0], [1.0, 1.0]).p == 1.0


def test_corrections_are_those_of_scipy_and_holm_by_hand():
    p = np.asarray([[0.01, 0.04], [0.03, np.nan]])
    assert corrected(p)[0, 0] == pytest.approx(stats.false_discovery_control([0.01, 0.04, 0.03])[0])
    assert np.isnan(corrected(p, "by")[1, 1])
    assert corrected([0.01, 0.04, 0.03], "holm").tolist() == pytest.approx([0.03, 0.06, 0.06])
    assert corrected([np.nan]).tolist() == pytest.approx([np.nan], nan_ok=True)


@pytest.mark.parametrize("n", [5, 20, 100])
def test_the_smallest_detectable_change_has_the_power_it_says(n):
    shift = smallest_detectable(1 / np.sqrt(n), n)
    noncentral = shift * np.sqrt(n)
    limit = stats.t.ppf(0.975, n - 1)
    assert stats.nct.sf(limit, n - 1, noncentral) == pytest.approx(0.8, abs=1e-6)
    assert np.isnan(smallest_detectable(1.0, 1))


def test_auroc_is_the_share_of_pairs():
    rng = np.random.default_rng(0)
    scores, labels = rng.integers(0, 5, 80).astype(float), rng.random(80) < 0.4
    found = auroc(scores, labels)
    pairs = [(a > b) + 0.5 * (a == b) for a in scores[labels] for b in scores[~labels]]
    assert found.value == pytest.approx(np.mean(pairs))
    flipped = auroc(-scores, labels)
    assert (1 - flipped.value, 1 - flipped.interval.high) == pytest.approx((found.value, found.interval.low))
    perfect = auroc(np.arange(20.0), np.arange(20) >= 10)
    assert (perfect.value, perfect.interval.high, perfect.interval.method) == (1.0, 1.0, "Newcombe")
    assert 0.6 < perfect.interval.low < 0.95
    assert auroc([1.0, 2.0, 3.0], [0, 0, 1]).interval.note == TOO_SMALL
    tied = auroc(np.ones(40), np.arange(40) % 2)
    assert tied.value == 0.5 and tied.interval.contains(0.5)
    alone = auroc(scores, labels, clusters=np.arange(80))
    assert (alone.interval.low, alone.interval.high) == pytest.approx(
        (found.interval.low, found.interval.high), abs=0.04
    )


def test_predictions_that_are_wrong_by_a_constant_are_not_calibrated():
    x = np.linspace(-1, 1, 60)
    assert r_squared(x, x).value == 1.0
    intercept, slope = calibration(2 + 3 * x, x)
    assert (intercept.value, slope.value) == pytest.approx((2.0, 3.0))
    assert np.isnan(r_squared([1.0, 1.0], [1.0, 2.0]).value)


def test_shares_of_a_variance_are_those_of_the_analysis_of_variance():
    layer, step = (grid.ravel() for grid in np.meshgrid(range(3), range(5)))
    x = np.asarray([0.0, 1.0, 5.0])[layer] + np.asarray([0.0, 0.2, 0.1, -0.3, 0.0])[step]
    x += 0.1 * np.random.default_rng(0).normal(size=x.size)
    found = variance_components(x, {"layer": layer, "step": step})
    table = x.reshape(5, 3)
    residual = table - table.mean(0) - table.mean(1, keepdims=True) + x.mean()
    noise, total = (residual**2).sum() / 8, ((x - x.mean()) ** 2).sum()
    expected = (5 * ((table.mean(0) - x.mean()) ** 2).sum() - 2 * noise) / total
    assert found["layer"].share == pytest.approx(expected)
    assert sum(part.share for part in found.values()) == pytest.approx(1.0)
    # a cell that is missing, and levels that are words
    names = np.asarray(["a", "b", "c"])[layer]
    some = variance_components(x[1:], {"layer": names[1:], "step": step[1:]}, clusters="step")
    assert some["layer"].share == pytest.approx(expected, abs=0.1)
    assert some["layer"].interval is not None and some["layer"].interval.note == TOO_SMALL
    assert np.isnan(variance_components(np.ones(6), {"a": [0, 0, 1, 1, 2, 2]})["a"].share)


def test_divergences_are_bounded_and_symmetric_where_they_should_be():
    rng = np.random.default_rng(0)
    p, q = rng.exponential(size=(2, 20))
    assert kl(p, q) == pytest.approx(stats.entropy(p, q))
    assert jensen_shannon(p, q) == pytest.approx(jensen_shannon(q, p))
    assert 0 < jensen_shannon(p, q) < np.log(2)
    assert kl([1.0, 1.0], [1.0, 0.0]) == np.inf and kl(p, 7 * p) == pytest.approx(0.0, abs=1e-15)


def simulation():
    path = Path(__file__).resolve().parents[1] / "scripts" / "simulate_statistics.py"
    specification = importlib.util.spec_from_file_location("simulate_statistics", path)
    assert specification and specification.loader
    module = importlib.util.module_from_spec(specification)
    sys.modules[module.__name__] = module  # dataclasses and pickles look there
    specification.loader.exec_module(module)
    return module


def test_a_small_simulation_runs_and_draws_its_page(tmp_path):
    simulate = simulation()
    simulate.PLAN = simulate.PLAN[1::6]
    record = simulate.main(["--sets", "3", "--workers", "1", "--out", str(tmp_path)])
    assert {row["kind"] for row in record["rows"]} == {"coverage", "false positives", "power"}
    assert all(0 <= row["rate"] <= 1 for row in record["rows"])
    page = (tmp_path / "statistics.md").read_text(encoding="utf-8")
    assert all(f"| {row['what']} |" in page for row in record["rows"])
    assert json.loads((tmp_path / "statistics.json").read_text())["sets"] == 3
    assert (tmp_path / "statistics.svg").read_text().startswith("<svg")


def test_the_kept_simulation_meets_what_it_is_held_to_and_is_what_the_page_says():
    simulate = simulation()
    record = json.loads((simulate.FOLDER / simulate.FILE).read_text(encoding="utf-8"))
    held = [row for row in record["rows"] if row["met"] is not None]
    assert len(held) > 60
    assert [row for row in held if not row["met"]] == []
    assert (simulate.FOLDER / "statistics.md").read_text(encoding="utf-8") == simulate.page(record)


def covered(take, sets: int = 150) -> float:
    resampling = take("resampling")
    return float(np.mean([resampling.interval(data(s, 40) - 1, seed=s).contains(0.0) for s in range(sets)]))


def test_mutants_are_caught_by_coverage_and_by_false_positives():
    ends = "value - high * error, value - low * error"
    with mutant("resampling", ends, "value - 0.6 * high * error, value - 0.6 * low * error") as take:
        assert covered(take) < 0.85
    with mutant("resampling", ends, "value + low * error, value + high * error") as take:
        found, mean = take("resampling").interval(data(1, 25)), data(1, 25).mean()
        assert found.high - mean < mean - found.low
    with mutant("statistics", "np.abs(flips @ x) >= here", "np.abs(flips @ x) >= 1.5 * here") as take:
        wrong = [take("statistics").sign_flip_p(np.random.default_rng(s).normal(size=30)) for s in range(200)]
        assert np.mean(np.asarray(wrong) <= 0.05) > 0.1
    assert covered(lambda name: importlib.import_module(f"spectral_theorem.{name}")) > 0.88
