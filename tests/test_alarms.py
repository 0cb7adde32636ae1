"""Alarms: their rate on exchangeable clips, and alarms that could never be raised."""

import math

import numpy as np
import pytest

from spectral_theorem.alarms import SIGNALS, calibrate, worst
from spectral_theorem.suspicion import conformal, limit
from spectral_theorem.types import InputError

STEPS = 12


def clips(rng, count):
    """Clips of different lengths whose three sources go together, as steps of decoding do."""
    found = []
    for _ in range(count):
        length = rng.integers(2, STEPS)
        base = rng.normal() + np.cumsum(rng.normal(size=(length, 3)), axis=0)
        found.append({"rank": np.exp(base[:, 0]), "alpha": base[:, 1], "logprob": base[:, 2]})
    return found


@pytest.mark.parametrize(
    ("signals", "level", "n"), [(("unlikely",), 0.1, 19), (("low_rank", "steep", "unlikely"), 0.2, 44)]
)
def test_the_rate_of_false_alarms_is_at_most_the_level(signals, level, n):
    rng = np.random.default_rng(0)
    rates, bounds = [], []
    for _ in range(120):
        scores = [worst(clip) for clip in clips(rng, n)]
        alarms = calibrate([{k: v for k, v in s.items() if k in signals} for s in scores], level=level, signals=signals)
        new = clips(rng, 25)
        # listened to step by step: any alarm in a clip counts
        raised = [
            any(alarms.raised(dict(zip(clip, values, strict=True))) for values in zip(*clip.values(), strict=True))
            for clip in new
        ]
        rates.append(np.mean(raised))
        bounds.append(alarms.rate_upper)
    error = np.std(rates) / np.sqrt(len(rates))
    assert np.mean(rates) <= level + 3 * error
    assert np.mean(rates) > level / 4, "alarms are raised at all"
    # the bound given the clean set holds in at least 95 % of sets; each rate is itself one of 25 clips
    over = np.mean(np.asarray(rates) > np.asarray(bounds) + 2 * np.sqrt(np.asarray(bounds) / 25))
    assert over <= 0.05


def test_with_one_signal_the_rate_is_the_level_itself():
    rng = np.random.default_rng(1)
    hits = []
    for _ in range(4000):
        scores = rng.normal(size=20)
        hits.append(scores[-1] > limit(scores[:-1], 0.1))
    assert abs(np.mean(hits) - 0.1) < 4 * math.sqrt(0.09 / 4000)


def test_the_limit_is_where_the_conformal_value_passes_the_level():
    rng = np.random.default_rng(2)
    clean = rng.normal(size=39)
    values = np.sort(np.concatenate([rng.normal(size=200) * 2, clean]))
    p = conformal(values, clean, np.zeros(values.size, bool))
    assert ((p <= 0.1) == (values > limit(clean, 0.1))).all()


def test_alarms_that_could_never_be_raised_are_refused():
    clean = [{"unlikely": float(i), "low_rank": -0.5, "high_rank": 1.0, "steep": -math.inf} for i in range(19)]
    assert calibrate(clean, signals=("unlikely",)).clips == 19
    with pytest.raises(InputError, match=r"18 clean clips for 1 signals .* expected at least 19"):
        calibrate(clean[:18], signals=("unlikely",))
    with pytest.raises(InputError, match="expected at least 59"):
        calibrate(clean, signals=("unlikely", "low_rank", "steep"))
    with pytest.raises(InputError, match="which no clean clip has"):
        calibrate(clean, signals=("steep",))
    with pytest.raises(InputError, match="which no clean clip has"):
        calibrate([{"unlikely": math.nan}] * 19, signals=("unlikely",))
    with pytest.raises(InputError, match="beyond which nothing"):
        calibrate(clean, signals=("high_rank",))
    with pytest.raises(InputError, match="beyond which nothing"):
        calibrate(clean, signals=("low_rank",), modes=2)
    with pytest.raises(InputError, match="expected some of"):
        calibrate(clean, signals=("loud",))
    with pytest.raises(InputError, match="between 0 and 1"):
        calibrate(clean, level=0.0)


def test_every_count_that_is_asked_for_is_enough():
    for level in (0.01, 0.05, 0.07, 0.1, 0.29, 0.3):
        for m in (1, 2, 3):
            names = list(SIGNALS)[:m]
            with pytest.raises(InputError) as found:
                calibrate([{}], level=level / 3, signals=names)
            needed = int(str(found.value).split("expected at least ")[1].split()[0])
            clean = [dict.fromkeys(names, -0.5 - i) for i in range(needed)]
            assert calibrate(clean, level=level / 3, signals=names).above == 0


def test_values_that_are_not_known_raise_nothing():
    alarms = calibrate([{"unlikely": float(i)} for i in range(19)], signals=("unlikely",))
    assert alarms.raised({"logprob": math.nan}) == () == alarms.raised({})
    assert alarms.raised({"logprob": -19.0})[0].threshold == -18.0
    assert worst({"logprob": [math.nan]})["unlikely"] == -math.inf
