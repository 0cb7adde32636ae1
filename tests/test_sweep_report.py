"""The page about clips measured at many tokens: words first, maps of layers by steps, bounds and hypotheses by step."""

import copy
import json
import math
import re

import jax
import matplotlib
import numpy as np
import pytest
from matplotlib.colors import to_hex
from matplotlib.patches import PathPatch
from test_report import COUPLED, Reader, texts, untie, words

import spectral_theorem as st
from spectral_theorem.canvas import STEP_GAP, VERDICTS, step_places
from spectral_theorem.report import write_report
from spectral_theorem.runs import RunFolder, verification_rows
from spectral_theorem.step_figure import judgement_figure
from spectral_theorem.sweep_figure import DIVERGING, grid, map_figure
from spectral_theorem.sweep_words import (
    CLOSE,
    clips_of,
    close_ups,
    hypothesis_rows,
    judgement_caption,
    map_caption,
    step_row,
    sweep_in_words,
)

WORDS = ("zero", "Ġone", "two", "Ċ", "<|endoftext|>")


@pytest.fixture(scope="module")
def real():
    chain = st.ensembles.planted(
        jax.random.key(0), layers=5, width=4, context=3, sigma=1.02, kappa=0.9999, xi=1e-3, gamma=0.5, coherence=0.9
    )
    found = st.verify(chain).to_dict()
    found["path"] |= {"log_residual_error": found["path"]["log_residual_norm"] - 20.0}
    return found | {"chance_kappa": 0.4244, "transcript": "zero one two", "names": [f"block {i}" for i in range(1, 6)]}


def token(real, step, *, layers=5, clip="a"):
    """One chain of a sweep, its numbers a little different at every step."""
    chain = copy.deepcopy(real) | {"clip": clip, "step": step, "token": step % 5, "token_text": WORDS[step % 5]}
    rng, first = np.random.default_rng(step), chain["layers"][0]
    chain["layers"] = [
        {
            **first,
            "layer": i + 1,
            "lam": float(rng.normal()),
            "kappa_abs": float(rng.uniform()),
            "xi": float(rng.uniform()),
        }
        for i in range(layers)
    ]
    chain["layers"][-1] |= dict.fromkeys(COUPLED)
    chain["names"] = [f"block {i // 3 + 1} MLP" for i in range(layers)]
    return chain


def tokens(real, steps, **options):
    return [token(real, step, **options) for step in steps]


def sections(page):
    return re.findall(r'<section id="([^"]*)"', page)


@pytest.fixture
def page(tmp_path):
    def write(chains, **summary):
        run = RunFolder(tmp_path / "run", run_id="cafecafecafe")
        keyed = {f"{chain.get('clip', 'alone')}, step {chain['step']}": chain for chain in chains}
        for i, chain in enumerate(keyed.values()):
            labels = {"clip": chain.get("clip", "alone"), "component": "decoder", "step": chain["step"]}
            run.write_table(verification_rows(chain, **labels), part=str(i))
        run.write_summary({"verb": "measure", "config": {}, "seeds": [], "dtype": "float64", "chains": keyed} | summary)
        return write_report(run.path).read_text(encoding="utf-8")

    return write


def cells(ax):
    """Centres and colours of all cells of a map."""
    found = {}
    for patch in ax.patches:
        if isinstance(patch, PathPatch) and not patch.get_hatch():
            centres = patch.get_path().vertices.reshape(-1, 5, 2)[:, [0, 2]].mean(axis=1)
            found |= {tuple(np.round(centre, 6).tolist()): to_hex(patch.get_facecolor()) for centre in centres}
    return found


def hatched(ax, hatch="////"):
    found = set()
    for patch in ax.patches:
        if isinstance(patch, PathPatch) and patch.get_hatch() == hatch:
            centres = patch.get_path().vertices.reshape(-1, 5, 2)[:, [0, 2]].mean(axis=1)
            found |= {tuple(np.round(centre, 6).tolist()) for centre in centres}
    return found


def test_a_clip_of_many_tokens_is_one_section_with_two_figures_and_words_first(page, real):
    text = page(tokens(real, range(6)))
    said = words(text)
    assert sections(text) == ["clip-1"] and text.count("<svg") == 2
    assert (
        said.index("No claim is violated at 6 tokens") < said.index("H1 stability at 6") < said.index("Layers, token")
    )
    assert said.index("All four hypotheses hold at 6 of 6 tokens") < text.index("<svg")
    assert "triplets" in said and "30 of 30 certified" in said
    assert '" one"' in said and "<|endoftext|>" in said and '"⏎"' in said
    assert re.findall(r'<tr><td class="n">(?:<a [^>]*>)?(\d+)', text) == [str(i) for i in range(6)]


def test_the_page_needs_nothing_from_outside_and_its_links_have_targets(page, real):
    text = page([*tokens(real, range(3)), *tokens(real, range(2), clip="b")])
    reader = Reader(text)
    assert all(link.startswith("#") for link in reader.links)
    assert {link.removeprefix("#") for link in reader.links} <= set(reader.identities)
    assert len(set(reader.identities)) == len(reader.identities)
    assert not {"script", "link", "iframe", "image", "img"} & set(reader.elements)


def test_several_clips_have_an_overview_and_single_chains_keep_their_sections(page, real):
    alone = copy.deepcopy(real) | {"step": 0}
    text = page([*tokens(real, range(2)), *tokens(real, [1], clip="b"), alone])
    said = words(text)
    assert sections(text) == ["clip-1", "clip-2", "chain-4"]
    assert "The 2 clips that were measured at several tokens" in said
    assert '<a href="#clip-2">b</a>' in text


def test_chains_of_single_tokens_are_not_a_sweep(real):
    chains = {f"{clip}, step 2": token(real, 2, clip=clip) for clip in "ab"}
    assert clips_of(chains) == {}


def test_steps_are_in_order_whatever_the_order_of_the_file(real):
    chains = {str(step): token(real, step) for step in (10, 9, 2)}
    assert [chain["step"] for chain in clips_of(chains)["a"].values()] == [2, 9, 10]


def test_a_violated_claim_is_the_first_thing_said_and_its_token_is_shown_in_full(page, real):
    chains = tokens(real, range(9))
    chains[7]["claims"]["row_exact_upper"] |= {"verdict": "VIOLATED"}
    assert sweep_in_words(chains)[0].startswith("A proved claim is VIOLATED")
    assert "step 7: row exact upper" in sweep_in_words(chains)[0]
    keyed = {str(chain["step"]): chain for chain in chains}
    assert "7" in close_ups(keyed) and len(close_ups(keyed)) <= CLOSE
    text = page(chains)
    assert "VIOLATED: row exact upper" in words(text)
    assert words(text).count("Step 7") == 1


def test_worst_and_median_margins_name_where_they_are(real):
    chains = tokens(real, range(3))
    for chain, margin in zip(chains, (0.3, -2.0, 0.1), strict=True):
        verdict = "HOLDS" if margin > 0 else "VIOLATED"
        chain["conditions"]["alignment"] |= {"margin": margin, "verdict": verdict, "layer": 2}
    row = hypothesis_rows(chains)[1]
    assert row == ["H2 alignment", "2", "1", "0", "0", "+0.1", "-2", "step 1, layer 2"]


def test_a_margin_without_end_is_the_worst_and_an_unknown_one_is_left_out(real):
    chains = tokens(real, range(3))
    chains[1]["conditions"]["purity"] |= {"margin": None, "value": None, "verdict": "VIOLATED"}
    chains[2]["conditions"]["purity"] |= {"margin": None, "value": None, "verdict": "UNDECIDED"}
    row = hypothesis_rows(chains)[3]
    assert row[1:5] == ["1", "1", "1", "0"] and row[6:8][0] == "-∞" and row[7].startswith("step 1")
    assert texts(judgement_figure(chains)).count("∞") == 1


def test_every_cell_has_the_colour_of_its_number_at_its_place(real):
    chains = tokens(real, [0, 1, 5])
    x = step_places([0, 1, 5])
    assert x.tolist() == [0, 1, 2 + STEP_GAP]
    figure = map_figure(chains)
    lam_ax, kappa_ax, xi_ax = (figure.axes[i] for i in (0, 2, 4))
    lam = grid(chains, "lam", between=True)
    found = cells(lam_ax)
    assert set(found) == {(round(float(a), 6), b + 1.5) for a in x for b in range(4)}
    for (i, j), value in np.ndenumerate(lam):
        red, _, blue = (int(found[x[j].round(6), i + 1.5][k : k + 2], 16) for k in (1, 3, 5))
        assert (red > blue) == (value > 0) or abs(value) < 0.1
    assert set(cells(xi_ax)) == {(round(float(a), 6), b + 1.0) for a in x for b in range(5)}
    assert len(cells(kappa_ax)) == 12


def test_the_map_of_lambda_is_centred_at_its_threshold_and_marks_it(real):
    chains = tokens(real, range(4))
    chains[0]["layers"][0]["lam"] = -3.0
    bar = map_figure(chains).axes[1]
    low, high = bar.get_ylim()
    assert low == -high and any(line.get_ydata()[0] == 0.0 for line in bar.lines)
    assert "λ = 0" in [text.get_text() for text in bar.texts]
    light = [sum(c * int(h[k : k + 2], 16) for c, k in ((0.2126, 1), (0.7152, 3), (0.0722, 5))) for h in DIVERGING]
    np.testing.assert_allclose(light, light[::-1], atol=12)
    assert np.all(np.diff(light[:6]) > 20)


def test_one_extreme_coupling_does_not_take_the_colours_from_the_others(real):
    chains = tokens(real, range(20))
    chains[3]["layers"][1]["lam"] = -60.0
    figure = map_figure(chains)
    assert figure.axes[1].get_ylim()[1] < 10
    assert any("colours end at" in text for text in texts(figure))


def test_chance_is_marked_beside_the_colours_of_kappa(real):
    chains = tokens(real, range(3))
    bar = map_figure(chains).axes[3]
    assert [text.get_text() for text in bar.texts] == ["chance\n0.42"]
    assert bar.lines[0].get_ydata()[0] == 0.4244
    for chain in chains:
        del chain["chance_kappa"]
    assert not map_figure(chains).axes[3].texts
    assert "Chance" not in map_caption(chains)


def test_unresolved_cells_are_hatched_estimates_marked_and_absent_numbers_crossed(real):
    chains = tokens(real, range(3))
    untie(chains[1], {3})
    chains[2]["layers"][4]["certified"] = False
    chains[0]["layers"][0] |= {"lam": None, "kappa_abs": 0.0}
    figure = map_figure(chains)
    lam, xi = figure.axes[0], figure.axes[4]
    assert hatched(lam) == {(1.0, 2.5), (1.0, 3.5)} and hatched(lam, "xx") == {(0.0, 1.5)}
    assert hatched(xi) == {(1.0, 3.0)}
    assert [text.get_position() for text in xi.texts if text.get_text().endswith("~")] == [(2, 5.0)]
    assert [text.get_position() for text in lam.texts if text.get_text().endswith("~")] == [(2, 4.5)]
    assert [text.get_position() for text in xi.texts if "?" in text.get_text()] == [(1, 3.0)]
    caption = map_caption(chains)
    assert all(part in caption for part in ("Hatched, with ?: not resolved", "~: a converged", "Crossed: no number"))
    assert "Hatched" not in map_caption(tokens(real, range(3)))


def test_the_colours_of_sigma_are_named_by_values_however_narrow_their_range(real):
    for low, high in ((3.0, 3.3), (1.0, 7.0), (0.5, 5000.0)):
        chains = tokens(real, range(3))
        for i, chain in enumerate(chains):
            for layer in chain["layers"]:
                layer["sigma1"] = low + (high - low) * i / 2
        bar = map_figure(chains).axes[7]
        bottom, top = bar.get_ylim()
        assert sum(bottom <= tick <= top for tick in bar.get_yticks()) >= 2


def test_numbers_are_written_into_few_cells_only(real):
    few, many = map_figure(tokens(real, range(3))), map_figure(tokens(real, range(20)))
    assert len(few.axes[4].texts) == 15 and not many.axes[4].texts


def test_the_largest_errors_are_said(real):
    chains = tokens(real, range(3))
    for chain in chains:
        for layer in chain["layers"]:
            layer |= {"lam_error": 1e-9, "xi_error": None}
    chains[1]["layers"][2]["lam_error"] = 0.25
    assert "λ ± 0.25" in map_caption(chains) and "ξ ±" not in map_caption(chains)


@pytest.mark.parametrize("layers", [1, 2, 12])
@pytest.mark.parametrize("steps", [[0], [3, 4], range(40)])
def test_every_shape_is_drawn(real, layers, steps):
    chains = tokens(real, steps, layers=layers)
    for figure, panels in ((map_figure(chains), 4 if layers > 1 else 2), (judgement_figure(chains), 5)):
        figure.canvas.draw()
        assert len(figure.axes) == (2 * panels if panels != 5 else 5)
    assert sweep_in_words(chains) and hypothesis_rows(chains) and map_caption(chains) and judgement_caption(chains)


def test_a_clip_with_nothing_but_nulls_still_has_a_page(page, real):
    chains = tokens(real, range(3))
    for chain in chains:
        untie(chain, {1, 2, 3, 4, 5})
        for layer in chain["layers"]:
            layer |= dict.fromkeys(("xi", "sigma1", "sigma2", "xi_error", "sigma_error", "sigma2_error"))
        chain["path"] |= dict.fromkeys(chain["path"])
        chain["bounds"] |= dict.fromkeys(chain["bounds"])
        for condition in chain["conditions"].values():
            for entry in (condition, *condition["parts"].values()):
                entry |= dict.fromkeys(("value", "margin", "error", "threshold"))
                entry |= {"verdict": "NOT_APPLICABLE", "reason": "no_context", "layer": 0}
    said = words(page(chains))
    assert "no residual" in said and "15 not resolved" in said


def test_bounds_are_multiples_of_the_residual_and_its_interval_is_drawn(real):
    chains = tokens(real, range(4))
    ax = judgement_figure(chains).axes[0]
    expected = (real["bounds"]["log_paper"] - real["path"]["log_residual_norm"]) / math.log(10)
    heights = [line.get_ydata() for line in ax.lines if line.get_marker() == "s" and len(line.get_xdata()) == 4]
    np.testing.assert_allclose(heights[0], expected)
    assert any("residual known to ± 2e-09" in text for text in texts(ax.figure))
    for chain in chains[:2]:
        chain["path"]["log_residual_error"] = chain["path"]["log_residual_norm"] + math.log(3.0)
    figure = judgement_figure(chains)
    assert "grey: the interval in which the residual lies" in texts(figure)
    bars = next(c for c in figure.axes[0].collections if hasattr(c, "get_segments")).get_segments()
    assert bars[0][:, 1].max() == pytest.approx(math.log10(4.0))
    assert "At 2 tokens (steps 0–1) the residual is within its own error" in judgement_caption(chains)


def test_no_line_crosses_steps_that_were_left_out(real):
    ax = judgement_figure(tokens(real, [0, 1, 5, 6])).axes[0]
    drawn = [line for line in ax.lines if line.get_linestyle() == ":" and len(line.get_xdata()) == 5]
    assert drawn and np.isnan(drawn[0].get_ydata()[2])


def test_each_token_is_held_against_its_own_threshold(real):
    chains = tokens(real, range(2))
    chains[0]["conditions"]["coherence"] |= {"value": 0.05, "threshold": 0.1, "verdict": "VIOLATED"}
    chains[1]["conditions"]["coherence"] |= {"value": 0.6, "threshold": 0.7, "verdict": "UNDECIDED"}
    ax = judgement_figure(chains).axes[3]
    dashed = next(c for c in ax.collections if len(c.get_segments()) == 2 and c.get_linestyle()[0][1])
    np.testing.assert_allclose([s[0][1] for s in dashed.get_segments()], np.log10([0.1, 0.7]))
    assert {"fails below 0.1", "fails below 0.7"} <= set(texts(ax.figure))
    markers = {line.get_marker(): to_hex(line.get_color()) for line in ax.lines if line.get_marker() in "XD"}
    assert markers == {VERDICTS[v][0]: VERDICTS[v][1] for v in ("VIOLATED", "UNDECIDED")}


def test_a_row_says_what_the_maps_cannot(real):
    chain = token(real, 3)
    chain["layers"][1]["resolved"] = False
    chain["regime"] |= {"certified": "INDETERMINATE", "naive": "DISPERSIVE"}
    row = step_row(chain, "x")
    ratio = math.exp(chain["bounds"]["log_paper"] - chain["path"]["log_residual_norm"])
    assert row["words"] == ["INDETERMINATE *", "5/5, 1 ?"] and row["numbers"][-1] == f"{ratio:.4g}"


def test_thirty_tokens_make_a_small_page(page, real):
    assert len(page(tokens(real, range(30), layers=12)).encode()) < 1_000_000


def test_the_same_run_gives_the_same_page(page, real, tmp_path):
    first = page(tokens(real, range(3)))
    assert write_report(tmp_path / "run").read_text(encoding="utf-8") == first


def test_nothing_untrusted_becomes_markup(page, real):
    evil = '</td><script>alert("x")</script>'
    chains = tokens(real, range(2))
    for chain in chains:
        chain |= {"clip": evil, "token_text": evil, "transcript": evil, "note": evil, "names": [evil] * 5}
    text = page(chains)
    assert "<script" not in text and "script" not in Reader(text).elements


def test_tokens_of_older_records_are_named_by_their_number(page, real):
    chains = tokens(real, range(2))
    for chain in chains:
        del chain["token_text"]
    assert "id 1" in words(page(json.loads(json.dumps(chains))))


def test_drawing_leaves_the_settings_of_matplotlib_alone(real):
    before = dict(matplotlib.rcParams)
    map_figure(tokens(real, range(2)))
    judgement_figure(tokens(real, range(2)))
    assert dict(matplotlib.rcParams) == before
