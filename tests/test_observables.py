"""Observables against direct NumPy, planted laws, and what pooled intervals say."""

import numpy as np
import pytest
from mutation import mutant

import spectral_theorem as st
from spectral_theorem.modefunctions import QUANTITIES
from spectral_theorem.moments import Moments
from spectral_theorem.observables import per_clip


def activations(seed: int, n: int, width: int, exponent: float = 1.0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    turn = np.linalg.qr(rng.normal(size=(width, width)))[0]
    return (rng.normal(size=(n, width)) * np.arange(1.0, width + 1) ** (-exponent / 2)) @ turn + rng.normal(size=width)


def direct(x: np.ndarray, modes: int) -> dict[str, float]:
    """Compute everything again from the covariance matrix, with nothing of ours."""
    mu = np.sort(np.linalg.eigvalsh(np.cov(x, rowvar=False)))[::-1][: min(len(x) - 1, x.shape[1])][:modes]
    p = mu / mu.sum()
    slope = np.polyfit(np.log(np.arange(1, mu.size + 1)), np.log(mu), 1)[0]
    return {
        "effective_rank": np.exp(-sum(p * np.log(p))),
        "participation_ratio": mu.sum() ** 2 / (mu**2).sum(),
        "alpha": -slope,
        "kirchhoff": mu.size * sum(1 / mu),
        "kirchhoff_scale_free": mu.sum() * sum(1 / mu),
    }


@pytest.mark.parametrize(("n", "width", "modes"), [(200, 24, 10), (200, 60, 50), (30, 60, 10), (400, 24, 24)])
def test_observables_agree_with_the_covariance_matrix(n, width, modes):
    x = activations(n, n, width)
    found = st.observe(st.spectrum(x), modes)
    for name, value in direct(x, modes).items():
        assert getattr(found, name) == pytest.approx(value, rel=1e-9), name


def test_plain_functions_say_the_same_as_observe():
    mu = st.spectrum(activations(0, 100, 20))
    found = st.observe(mu, 10)
    assert st.effective_rank(mu, 10) == found.effective_rank
    assert st.participation_ratio(mu, 10) == found.participation_ratio
    assert st.kirchhoff_index(mu, 10) == found.kirchhoff
    assert st.kirchhoff_scale_free(mu, 10) == found.kirchhoff_scale_free
    assert st.spectral_slope(mu, 10).alpha == found.alpha
    # shuffled, and as a batch
    assert st.effective_rank(mu[::-1]) == st.effective_rank(mu)
    assert st.effective_rank(np.stack([mu, 2 * mu])) == pytest.approx([st.effective_rank(mu)] * 2)


@pytest.mark.parametrize("cuts", [[100], [3, 40, 41], [1, 2, 3]])
def test_streaming_is_the_same_as_all_at_once(cuts):
    x = activations(1, 150, 20) * 10.0 ** -np.arange(20)  # down to where a matrix of products has lost all
    stream = None
    for part in np.split(x, cuts):
        stream = Moments.of(part) if stream is None else stream.add(part)
    assert stream is not None
    assert stream.count == 150
    assert stream.factor.shape[0] <= 2 * 20 + 150
    mu = st.spectrum(x)
    assert np.allclose(np.sqrt(stream.spectrum()), np.sqrt(mu), rtol=1e-9, atol=1e-13 * np.sqrt(mu[0]))


def test_memory_of_a_stream_does_not_grow():
    stream = Moments.of(activations(0, 5, 6))
    for seed in range(40):
        stream = stream.merge(Moments.of(activations(seed, 5, 6)))
        assert len(stream.factor) <= 12


@pytest.mark.parametrize("exponent", [0.5, 1.0, 2.0, 4.0])
@pytest.mark.parametrize("modes", [10, 50])
def test_planted_power_laws_are_found(exponent, modes):
    exact = st.spectral_slope(7.0 * np.arange(1.0, 81.0) ** -exponent, modes)
    assert exact.status == "OK"
    assert abs(exact.alpha - exponent) <= exact.error < 1e-9
    rng, misses = np.random.default_rng(int(10 * exponent) + modes), 0
    for _ in range(100):
        noisy = st.spectral_slope(np.arange(1.0, 81.0) ** -exponent * np.exp(rng.normal(0, 0.01, 80)), modes)
        misses += abs(noisy.alpha - exponent) > noisy.error
    assert misses <= 11


def test_a_slope_from_data_covers_what_was_planted():
    misses = 0
    for seed in range(60):
        x = activations(seed, 2000, 20, exponent=1.5)
        found = st.spectral_slope(st.spectrum(x), 10, samples=2000)
        misses += found.status == "FAILED" or abs(found.alpha - 1.5) > found.error
    assert misses <= 8


@pytest.mark.parametrize(
    ("mu", "reason"),
    [
        (np.exp(-np.arange(50) / 3), "an exponential fits better"),
        (np.exp(-np.arange(10) / 100), "an exponential fits better"),
        (0.5 ** np.arange(10), "an exponential fits better"),
        (np.asarray([3.0, 2.0, 1.0]), "3 eigenvalues, fewer than 6"),
        (np.asarray([3.0]), "1 eigenvalues, fewer than 6"),
        (np.asarray([5.0, 3.0, 2.0, 1.0, 0.5, 0.0, 0.0]), "5 eigenvalues, fewer than 6"),
        (np.ones(20), "all eigenvalues are equal: there is no slope"),
        (np.concatenate([[1e9], np.arange(1.0, 20.0) ** -0.1]), "R² ="),
    ],
)
def test_a_slope_that_is_none_says_failed(mu, reason):
    found = st.spectral_slope(mu)
    assert found.status == "FAILED"
    assert found.reason.startswith(reason)


@pytest.mark.parametrize("noise", [0.02, 0.1])
def test_noisy_exponentials_fail_too(noise):
    rng = np.random.default_rng(0)
    statuses = [st.spectral_slope(np.exp(-np.arange(50) / 8 + rng.normal(0, noise, 50))).status for _ in range(100)]
    assert statuses.count("FAILED") == 100


def test_units_and_turns():
    x = activations(3, 200, 12)
    turn = np.linalg.qr(np.random.default_rng(9).normal(size=(12, 12)))[0]
    one, other = st.observe(st.spectrum(x), 10), st.observe(st.spectrum(5 * x @ turn + 3), 10)
    for name in ("effective_rank", "participation_ratio", "alpha", "kirchhoff_scale_free"):
        assert getattr(other, name) == pytest.approx(getattr(one, name), rel=1e-10)
    assert other.kirchhoff == pytest.approx(one.kirchhoff / 25, rel=1e-10)


def test_the_rounding_of_single_precision_is_no_mode():
    low = activations(5, 200, 5) @ np.random.default_rng(0).normal(size=(5, 30))
    assert st.spectrum(low).size == 5
    assert st.spectrum(low.astype(np.float32)).size == 5
    assert st.spectrum(low.astype(np.float32).astype(np.float64)).size > 20  # the same numbers, said to be exact
    assert st.pooled(np.split(low.astype(np.float32), 50), modes=(4,)).eigenvalues.size == 5
    assert Moments.of(low).merge(Moments.of(low.astype(np.float32))).spectrum().size == 5


def test_what_is_zero_to_rounding_does_not_count():
    x = activations(0, 12, 40)
    assert st.spectrum(x).size == 11
    assert st.spectrum(np.full((5, 3), 0.1) * [1, 2, 3]).size == 0
    assert np.isnan(st.effective_rank(np.zeros(4)))
    assert np.isnan(st.kirchhoff_index(np.zeros(4)))
    assert per_clip(x, 11) is not None
    assert per_clip(x, 12) is None


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: st.effective_rank([]), "at least one"),
        (lambda: st.effective_rank([1.0, np.nan]), "not finite"),
        (lambda: st.kirchhoff_index([1.0, -0.5]), "none below 0"),
        (lambda: st.observe([1.0], 0), "modes=0"),
        (lambda: st.spectrum([[1.0, 2.0]]), "at least two"),
        (lambda: st.spectrum([1.0, 2.0]), "(positions, channels)"),
        (lambda: st.spectrum([[np.inf, 2.0], [0.0, 1.0]]), "not finite"),
        (lambda: st.pooled([]), "without clips"),
        (lambda: st.pooled([np.eye(3), np.eye(4)]), "different shape"),
        (lambda: st.pooled([np.eye(3)], modes=()), "windows"),
        (lambda: st.pooled_change([np.eye(3)], []), "1 clean and 0 stressed"),
    ],
)
def test_bad_input_is_refused(call, words):
    with pytest.raises(st.InputError, match=r"got .*; expected .*; try ") as problem:
        call()
    assert words.replace("(", "").replace(")", "") in str(problem.value).replace("(", "").replace(")", "")


@pytest.mark.parametrize("quantity", QUANTITIES, ids=lambda q: q.observed)
def test_gradients_are_those_of_the_observables(quantity):
    mu = np.sort(np.random.default_rng(0).exponential(size=12))[::-1]
    steps = 1e-6 * mu[:, None] * np.eye(12)
    numeric = (quantity.value(mu + steps) - quantity.value(mu - steps)) / (2e-6 * mu)
    assert np.allclose(quantity.gradient(mu), numeric, rtol=1e-4)
    assert quantity.told(quantity.value(mu)) == pytest.approx(getattr(st.observe(mu, 12), quantity.observed))


def groups(seed: int, clips: int, scale: np.ndarray, shared: float = 0.3) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    draw = lambda rows: np.sqrt(shared) * rng.normal(size=(1, scale.size)) + rng.normal(size=(rows, scale.size))
    return [draw(int(rows)) * scale for rows in rng.integers(6, 12, clips)]


def test_pooled_values_are_those_of_all_positions():
    clips = groups(0, 40, np.arange(1.0, 17.0) ** -0.5)
    found = st.pooled(clips, modes=(10, 12))
    assert found.positions == sum(map(len, clips))
    for modes in (10, 12):
        for name, value in direct(np.concatenate(clips), modes).items():
            assert getattr(found.observed[modes], name) == pytest.approx(value, rel=1e-9)
    other = groups(1, 40, np.arange(1.0, 17.0) ** -0.8)
    change = st.pooled_change(clips, other, modes=(10,)).changes[10]
    a, b = direct(np.concatenate(clips), 10), direct(np.concatenate(other), 10)
    ratio = b["effective_rank"] / a["effective_rank"]
    assert change["effective_rank_percent"].value == pytest.approx(100 * (ratio - 1))
    assert change["log10_kirchhoff"].value == pytest.approx(np.log10(b["kirchhoff"] / a["kirchhoff"]))
    assert change["alpha"].value == pytest.approx(b["alpha"] - a["alpha"])


def test_pooled_intervals_cover():
    scale, hits = np.arange(1.0, 25.0) ** -0.6, {}
    # the covariance of a position of `groups`, drawn with a part of its clip
    mu = 1.3 * scale**2
    truth = {q.observed: q.told(q.value(mu[:10])) for q in QUANTITIES}
    for seed in range(60):
        for name, bars in st.pooled(groups(seed, 50, scale), modes=(10,)).intervals[10].items():
            hits.setdefault(name, []).append(bars.contains(truth[name]))
    # 60 sets: 50 hits or fewer of 95 % happen once in 500 times
    assert all(sum(hit) >= 51 for hit in hits.values()), {name: sum(hit) for name, hit in hits.items()}


def test_a_change_is_found_and_its_absence_is_not():
    scale = np.arange(1.0, 17.0) ** -0.5
    found = st.pooled_change(groups(0, 60, scale), groups(1, 60, scale**2), modes=(10,))
    alpha = found.changes[10]["alpha"]
    assert alpha.interval.contains(1.0) and not alpha.interval.contains(0.0)
    assert alpha.p < 0.001 and alpha.effect > 0.5
    assert found.divergences[10].p < 0.001
    assert found.divergences[10].energies > found.divergences[10].chance
    p = [
        st.pooled_change(groups(seed, 50, scale), groups(seed + 500, 50, scale), modes=(10,)).changes[10]
        for seed in range(40)
    ]
    refused = sum(change["log10_kirchhoff"].p <= 0.05 for change in p)
    assert refused <= 7


def test_one_clip_many_modes_and_speakers_say_so():
    scale = np.ones(8)
    alone = st.pooled(groups(0, 1, scale), modes=(4,))
    assert "too small" in alone.intervals[4]["alpha"].note and not alone.intervals[4]["alpha"].nominal
    few = st.pooled_change(groups(0, 2, np.ones(30)), groups(1, 2, np.ones(30)), modes=(30,))
    assert np.isnan(few.changes[30]["alpha"].value) and "fewer than 30 modes" in few.changes[30]["alpha"].interval.note
    assert few.divergences[30].interval.method == "none"
    speakers = np.arange(60) % 5
    found = st.pooled_change(groups(0, 60, scale), groups(1, 60, scale), modes=(4,), clusters=speakers)
    assert found.changes[4]["alpha"].n == 5
    assert "n is too small" in found.changes[4]["alpha"].interval.note


def test_a_window_too_large_for_the_clips_is_flagged():
    found = st.pooled(groups(0, 50, np.arange(1.0, 61.0) ** -0.3), modes=(50,))
    bars = found.intervals[50]["kirchhoff"]
    assert not bars.nominal and "window is large" in bars.note


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("p * np.log(np.where", "p * np.log2(np.where"),
        ("known(-slope)", "known(slope)"),
        ("(mu > 0).sum(-1) * _inverse(mu)", "_inverse(mu)"),
        ("(exponential**2).sum(-1) <= square", "(exponential**2).sum(-1) < 0"),
    ],
)
def test_mutants_of_the_observables_are_seen(old, new):
    x = activations(0, 200, 24)
    with mutant("observables", old, new) as take:
        wrong = take("observables")
        found, expected = wrong.observe(st.spectrum(x), 10), direct(x, 10)
        same = all(getattr(found, name) == pytest.approx(value, rel=1e-9) for name, value in expected.items())
        law = wrong.spectral_slope(np.exp(-np.arange(12) / 30)).reason
    assert not same or law != "an exponential fits better"


def test_a_mutant_of_the_influence_is_seen():
    clips = groups(0, 50, np.ones(12))
    right = st.pooled(clips, modes=(6,)).intervals[6]["alpha"]
    old = "offset @ gradient * (self.counts.size / self.counts.sum())"
    with mutant("pooling", old, "offset @ gradient") as take:
        other = take("pooling").pooled(clips, modes=(6,)).intervals[6]["alpha"]
    assert other.high - other.low > 3 * (right.high - right.low)
