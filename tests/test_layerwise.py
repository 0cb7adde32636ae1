"""What sections say of planted data: maps, variance, laws of gains, contrasts, prediction, suspicion."""

import types

import numpy as np
import pytest

from spectral_theorem.ablations import COMPARISONS, PLAIN, SEQUENCE, ablation_section
from spectral_theorem.chance import TRAINED, chance_section
from spectral_theorem.constancy import constancy_section
from spectral_theorem.contrast import clusters_needed, differences
from spectral_theorem.layerwise import chance_log_alignment, lambda_map, layer_columns, variance_section
from spectral_theorem.prediction import fitted, held_out, prediction_section, within_groups
from spectral_theorem.sametokens import CLEAN, OWN, TOLD, same_token_section
from spectral_theorem.sections import above, as_columns, exceeds, mean_of, not_computed, rows_where
from spectral_theorem.statistics import change_of
from spectral_theorem.suspicion import suspicion_section, suspicious_rows, write_suspicious

LAYERS, STEPS, CLIPS = 4, 2, 50


def cells(
    seed=0, *, level=-1.0, by_layer=0.0, rate=None, noise=0.1, clips=CLIPS, conditions=("clean", "noise=0"), shift=0.0
):
    """Cells with λ = level + by_layer (layer - 2) + noise, and gains of exactly `rate` per layer if given."""
    rng = np.random.default_rng(seed)
    found = []
    for clip in range(clips):
        for condition in conditions:
            lam = level + by_layer * (np.arange(LAYERS) - 1) + noise * rng.normal(size=(STEPS, LAYERS))
            lam += shift * (condition != "clean")
            lam[:, -1] = np.nan
            depth = np.arange(LAYERS, 0, -1)
            gains = np.broadcast_to((level if rate is None else rate) * depth, (STEPS, LAYERS))
            sigma = np.full((STEPS, LAYERS), 2.0)
            found.append(
                types.SimpleNamespace(
                    clip=f"c{clip}",
                    cluster=f"c{clip}",
                    speaker="abcde"[clip % 5],
                    condition=condition,
                    steps=tuple(range(STEPS)),
                    layers={
                        "sigma1": sigma,
                        "xi": np.full_like(sigma, 0.9),
                        "kappa_abs": np.exp(lam) / sigma,
                        "lam": lam,
                        "resolved": np.ones((STEPS, LAYERS), bool),
                        "log_gain_actual": gains + 0.01 * rng.normal(size=gains.shape),
                        "log_gain_predicted": gains,
                    },
                )
            )
    return found


def test_a_map_finds_the_sign_of_every_layer_and_what_stress_moves():
    found = lambda_map(layer_columns(cells(shift=0.5)), "clean")
    assert found.verdict == "VIOLATED" and "λ changes under noise=0 at layer 1 by 0." in found.sentence
    maps = found.data["maps"]
    assert [m["condition"] for m in maps] == ["clean", "noise=0"]
    assert np.shape(maps[0]["mean"]) == (LAYERS - 1, STEPS) and maps[0]["clips"][0][0] == CLIPS
    assert abs(maps[0]["mean"][0][0] + 1) < 0.05 and maps[0]["low"][0][0] < -1 < maps[0]["high"][0][0]
    assert lambda_map(layer_columns(cells(level=1.0)), "clean").verdict == "HOLDS"
    assert "No change" in lambda_map(layer_columns(cells()), "clean").sentence
    assert lambda_map({}, "clean").verdict == "NOT COMPUTED"


def test_a_map_says_what_random_directions_would_give():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 20_000, 8))
    kappa = np.einsum("nd,nd->n", a, b) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    expected = chance_log_alignment(8)
    assert abs(np.log(np.abs(kappa)).mean() - expected) < 0.03
    columns = layer_columns(cells(clips=8))
    columns["width"] = np.full(len(columns["clip"]), 8.0)
    assert f"random directions would give λ_1 = {np.log(2.0) + expected:.3g}" in lambda_map(columns, "clean").sentence


def test_two_clips_decide_nothing():
    assert lambda_map(layer_columns(cells(clips=2)), "clean").verdict == "UNDECIDED"
    found = mean_of([2.0, 2.1], ["a", "b"])
    assert above(found, 1.0) == "UNDECIDED" and exceeds(change_of([1.0, 1.1])) == "UNDECIDED"


def test_unresolved_couplings_enter_no_mean():
    some = cells(clips=6)
    for cell in some:
        cell.layers["resolved"][:, 1] = False
        cell.layers["lam"][:, :2] = 99.0
    columns = layer_columns(some)
    assert np.isnan(columns["lam"][columns["layer"] <= 2]).all() and np.nanmax(columns["lam"]) < 0


@pytest.mark.parametrize(("by_layer", "verdict"), [(1.0, "HOLDS"), (0.0, "VIOLATED")])
def test_variance_goes_to_the_factor_that_has_it(by_layer, verdict):
    found = variance_section(layer_columns(cells(by_layer=by_layer)))
    assert found.verdict == verdict
    shares = {row[0]: row[2] for row in found.tables[0].rows}
    assert abs(sum(shares.values()) - 1) < 0.02
    assert (shares["layer"] > 0.9) == bool(by_layer)


def test_a_constant_rate_is_found_when_it_is_there_and_missed_when_the_mean_is_not_it():
    there = constancy_section(layer_columns(cells(noise=0.01)))
    assert there.verdict == "HOLDS" and there.tables[0].rows[0][2] > 0.99
    other = constancy_section(layer_columns(cells(noise=0.01, rate=0.7)))
    assert other.verdict == "VIOLATED"
    values = {row[0]: row[2] for row in other.tables[0].rows}
    assert values["mean λ"] < 0 < 0.99 < values["best rate"]
    off = {(row[0], row[1]): row[2] for row in other.tables[1].rows}
    assert abs(off["mean λ", 4] - 4 * (-1.0 - 0.7)) < 0.05 and abs(off["best rate", 4]) < 0.05
    assert constancy_section(layer_columns(cells(clips=3))).why.startswith("there are fewer than four")


def variants(names, shifts, clips=10, spread=0.3):
    rng = np.random.default_rng(0)
    rows = []
    for clip in range(clips):
        own = spread * rng.normal()
        for name, (lam, kappa) in zip(names, shifts, strict=True):
            about = {"clip": f"c{clip}", "cluster": f"c{clip}", "condition": "clean", "variant": name}
            jitter = 0.01 * rng.normal(size=2)
            numbers = {"lam": own + lam + jitter[0], "kappa_abs": kappa + jitter[1], "growth": 1.0 + own}
            rows.append(about | numbers | {"unexplained": 0.5, "sigma1": 2.0, "xi": 0.9})
    return as_columns(rows)


def test_chance_is_told_from_alignment():
    names = (TRAINED, "rotated", "conjugated", "shuffled")
    better = chance_section(variants(names, [(-1, 0.2), (-2, 0.05), (-2, 0.05), (-1, 0.2)]))
    assert better.verdict == "HOLDS" and "better aligned than chance" in better.sentence
    assert chance_section(variants(names, [(-1, 0.05)] * 4)).verdict == "UNDECIDED"
    assert chance_section(variants(names, [(-1, 0.01), (-1, 0.05), (-1, 0.05), (-1, 0.05)])).verdict == "VIOLATED"
    assert chance_section({}).verdict == "NOT COMPUTED"


def test_ablations_see_a_sign_that_flips():
    names = (PLAIN, "no identity", "sub-block")
    assert ablation_section(variants(names, [(-2, 0.1), (-3, 0.1), (-2, 0.1)])).verdict == "HOLDS"
    flipped = ablation_section(variants(names, [(-2, 0.1), (2, 0.1), (-2, 0.1)]))
    assert flipped.verdict == "VIOLATED" and "with no identity" in flipped.sentence
    assert ablation_section(variants(names, [(-2, 0.1), (0, 0.1), (-2, 0.1)])).verdict == "UNDECIDED"


def test_each_ablation_is_decided_by_itself_on_the_clips_it_has():
    names = (PLAIN, "no identity", "bfloat16 weights", SEQUENCE)
    columns = variants(names, [(-2, 0.1), (-2.5, 0.1), (-2, 0.1), (-1.5, 0.1)])
    few = np.asarray([name != SEQUENCE or clip in ("c0", "c1", "c2") for name, clip in zip(
        columns["variant"].tolist(), columns["clip"].tolist(), strict=True)])  # fmt: skip
    found = ablation_section({name: column[few] for name, column in columns.items()})
    heads = [column.name for column in found.tables[0].columns]
    rows = {row[0]: dict(zip(heads, row, strict=True)) for row in found.tables[0].rows}
    identity, weights, scope = (rows[COMPARISONS[name]] for name in names[1:])
    decided = lambda row: (row["λ changes"], row["λ stays negative"], row["clusters"])
    assert decided(identity) == ("HOLDS", "HOLDS", 10) and identity["clusters needed"] is None
    assert identity["low"] < -0.5 < identity["high"] < 0
    assert decided(weights) == ("UNDECIDED", "HOLDS", 10) and weights["clusters needed"] > 10
    assert decided(scope) == ("UNDECIDED", "UNDECIDED", 3) and scope["clusters needed"] == 6
    assert found.verdict == "UNDECIDED" and "3 clusters of clips, where it takes 6 or more" in found.sentence
    # with all its clips it decides
    whole = ablation_section(columns).tables[0].rows[-1]
    assert decided(dict(zip(heads, whole, strict=True))) == ("HOLDS", "HOLDS", 10)


def test_clusters_needed_are_those_of_the_t_test():
    unit = np.tile([-1.0, 1.0], 20) * np.sqrt(39 / 40)  # mean 0 and deviation 1, exactly
    assert clusters_needed(change_of(0.5 + unit)) == 34  # as tables have it for an effect of 0.5 at 80 %
    assert clusters_needed(change_of(3.0 + unit)) == 6  # no fewer can reach the level
    assert clusters_needed(change_of([0.4])) == 6 and clusters_needed(change_of([0.0, 0.0])) is None


def told(sound, tokens, clips=12, conditions=("noise=0",)):
    """Clips whose λ the sound changes by one number, and the tokens by another."""
    rng = np.random.default_rng(1)
    rows = []
    for clip in range(clips):
        for condition in conditions:
            noise = lambda: 0.02 * rng.normal()
            clean = -1.0 + 5 * noise()
            heard = clean + sound + noise()
            for variant, lam in ((CLEAN, clean), (OWN, heard + tokens + noise()), (TOLD, heard)):
                labels = {"clip": f"c{clip}", "cluster": f"c{clip}", "condition": condition, "variant": variant}
                for layer in (0.0, 1.0):
                    rows.append(labels | {"layer": layer, "same": 0.0, "lam": lam, "sigma1": 2.0, "kappa_abs": 0.1,
                                          "xi": 0.5})  # fmt: skip
    return as_columns(rows)


def test_the_sound_is_told_from_the_tokens():
    mostly = same_token_section(told(-0.4, -0.1))
    assert mostly.verdict == "HOLDS" and "the sound makes 0.8" in mostly.sentence
    rows = {row[:4]: row for row in mostly.tables[0].rows}
    for what, truth in (("sound and tokens", -0.5), ("sound alone", -0.4), ("tokens alone", -0.1)):
        value, low, high, p = rows["noise=0", "all", "λ (nats/layer)", what][4:8]
        assert low < value < high and abs(value - truth) < 0.03 and p < 0.05
    assert rows["noise=0", 1, "σ₁", "sound alone"][4] == 0.0
    tokens = same_token_section(told(-0.1, -0.4))
    assert tokens.verdict == "VIOLATED" and tokens.sentence.startswith("The tokens make")
    nothing = same_token_section(told(0.0, 0.0))
    assert nothing.verdict == "UNDECIDED" and "no more than chance" in nothing.sentence
    assert same_token_section(told(-0.4, -0.1, clips=3)).verdict == "UNDECIDED"
    assert "it would take 6 clusters" in same_token_section(told(-0.4, -0.1, clips=3)).sentence
    assert same_token_section({}).verdict == "NOT COMPUTED"
    two = same_token_section(told(-0.4, -0.1, conditions=("noise=0", "hell")))
    assert two.verdict == "HOLDS" and "Under hell" in two.sentence


def test_contrasts_are_paired_by_clip():
    columns = variants((PLAIN, "sub-block"), [(-2, 0.1), (-1.5, 0.1)], spread=100.0)
    values, clusters = differences(columns, "lam", "sub-block", PLAIN)
    assert len(set(clusters)) == 10 and np.abs(values - 0.5).max() < 0.1
    other = columns["variant"] == "sub-block"
    clips = np.where(other, np.roll(columns["clip"], 2), columns["clip"])
    shuffled = {**columns, "clip": clips, "cluster": clips}
    assert np.abs(differences(shuffled, "lam", "sub-block", PLAIN)[0] - 0.5).max() > 1


def scored(seed=0, n=60, *, lam=0.0, logprob=0.0):
    rng = np.random.default_rng(seed)
    y = np.arange(n) % 2.0
    noise = lambda: rng.normal(size=n)
    columns = {name: noise() for name in ("log_sigma1", "kappa_abs", "xi", "growth_bound", "context_gain", "slope")}
    columns |= {"effective_rank": noise(), "compression_ratio": noise(), "tokens": noise()}
    columns |= {"lam": lam * y + noise(), "avg_logprob": -logprob * y + noise(), "no_speech_prob": np.full(n, np.nan)}
    labels = {name: np.asarray([f"c{i}" for i in range(n)]) for name in ("clip", "cluster")}
    speakers = {"speaker": np.asarray(list("abcde"))[np.arange(n) // 2 % 5], "condition": np.full(n, "noise=0")}
    return columns | labels | speakers | {"hallucinated": y, "regime": np.full(n, "INDETERMINATE")}


def test_prediction_names_the_better_detector_and_says_n_speakers():
    worse = prediction_section(scored(logprob=2.0))
    assert worse.verdict == "VIOLATED" and "n = 5 speakers" in worse.sentence and "0 of 60" in worse.sentence
    rows = {row[0]: row for row in worse.tables[0].rows}
    assert rows["average log-probability"][2] > 0.85 and rows["no-speech probability"][2] is None
    combined = {row[0]: row[1] for row in worse.tables[1].rows}
    assert combined["standard scores"] > 0.85 and combined["theory"] < 0.7
    assert prediction_section(scored(lam=2.0)).verdict == "HOLDS"
    assert prediction_section(scored()).verdict == "UNDECIDED"
    few = scored(n=8)
    assert prediction_section(few).verdict == "NOT COMPUTED" and "4 hallucinated" in prediction_section(few).why


def test_held_out_scores_do_not_learn_from_their_own_group():
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(6), 20)
    labels = rng.integers(0, 2, 120).astype(float)
    names = np.eye(120)  # every clip by name: a fit that saw a clip knows its label
    inside = fitted(names, labels)(names)
    assert within_groups(inside, labels, groups, groups).value > 0.99
    outside = held_out(names, labels, groups)
    assert abs(within_groups(outside, labels, groups, groups).value - 0.5) < 1e-9
    offset = groups + 0.1 * labels  # groups differ, and inside each the label decides
    assert within_groups(offset, labels, groups, groups).value == 1.0


def behaving(n, *, condition, logprob, seed=0):
    rng = np.random.default_rng([seed, n])
    return [
        types.SimpleNamespace(
            clip=f"{condition} {i}",
            condition=condition,
            behaviour=types.SimpleNamespace(repeats=1, agreement=None),
            transcript=types.SimpleNamespace(
                avg_logprob=logprob + 0.1 * rng.normal(), compression_ratio=1.0, no_speech_prob=None, text="one"
            ),
            layers={},
        )
        for i in range(n)
    ]


def test_suspicion_is_calibrated_on_clean_clips(tmp_path):
    clean, odd = behaving(200, condition="clean", logprob=-0.2), behaving(20, condition="hell", logprob=-2.0)
    rows = suspicious_rows(clean + odd, "clean")
    assert all(row["condition"] == "hell" and row["flagged"] for row in rows[:20])
    assert sum(row["flagged"] for row in rows if row["condition"] == "clean") <= 0.05 * 200
    found = suspicion_section(clean + odd, "clean")
    assert found.verdict == "HOLDS" and "20 of 20" in found.sentence
    alike = suspicion_section(clean + behaving(199, condition="hell", logprob=-0.2), "clean")
    assert alike.verdict != "HOLDS"
    text = write_suspicious(tmp_path, rows).read_text()
    assert text.startswith("clip,condition,p,flagged,because,value,threshold,transcript\n") and text.count("\n") == 221
    assert suspicion_section(odd, "clean").verdict == "NOT COMPUTED"


def test_sections_are_strict_json():
    import json

    found = [lambda_map(layer_columns(cells(clips=6)), "clean"), not_computed("nulls", "Chance", "no clip")]
    for section in found:
        assert json.loads(json.dumps(section.to_json(), allow_nan=False))["id"] == section.id
    assert len(rows_where(layer_columns(cells(clips=6)), condition="clean", layer=1)["clip"]) == 6 * STEPS
