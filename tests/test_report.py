"""The page about a run: what it must say, what it must not let in, and what its figures draw."""

import copy
import functools
import html.parser
import itertools
import math
import re
import xml.etree.ElementTree as ElementTree

import jax
import matplotlib
import numpy as np
import pytest
from matplotlib.colors import to_hex

import spectral_theorem as st
from spectral_theorem.canvas import VERDICTS, to_svg
from spectral_theorem.console import NAMES, verdict_in_words
from spectral_theorem.figures import QUANTITIES, bound_figure, condition_figure
from spectral_theorem.layer_figure import MARKED, layer_figure
from spectral_theorem.report import write_report
from spectral_theorem.runs import RunFolder, verification_rows
from spectral_theorem.types import InputError, Reason, Regime, Verdict
from spectral_theorem.wording import CERTIFICATES, DIFFERENCES, NAIVE, PARTS, REASONS, UNITS, regime_in_words

COUPLED = ("kappa_abs", "kappa_error", "misalignment", "rho", "rho_error", "lam", "lam_error")
VOID = {"meta", "br", "hr", "img", "link", "input"}


@pytest.fixture(scope="module")
def real():
    chain = st.ensembles.planted(
        jax.random.key(0), layers=5, width=4, context=3, sigma=1.02, kappa=0.9999, xi=1e-3, gamma=0.5, coherence=0.9
    )
    found = st.verify(chain)
    profile = st.depth_profile(chain, found.triplets).to_dict(chain.depth)
    return found.to_dict() | {"title": "five layers", "profile": profile, "chance_kappa": 0.4244}


@pytest.fixture
def chain(real):
    return copy.deepcopy(real)


def written(folder, chains, **summary):
    """Write a run of the given chains, and its page."""
    run = RunFolder(folder, run_id="cafecafecafe")
    for index, (name, chain) in enumerate(chains.items()):
        labels = {"clip": name, "component": "decoder", "scope": "token", "step": 2}
        run.write_table(verification_rows(chain, **labels), part=str(index))
    record = {"verb": "verify", "config": {"layers": 5}, "seeds": [7], "dtype": "float64", "chains": chains}
    run.write_summary(record | summary)
    return write_report(run.path).read_text(encoding="utf-8")


@pytest.fixture
def page(tmp_path):
    return functools.partial(written, tmp_path / "run")


@pytest.fixture(scope="module")
def single(real, tmp_path_factory):
    return written(tmp_path_factory.mktemp("single"), {"demo": real})


@pytest.fixture(scope="module")
def double(real, tmp_path_factory):
    other = copy.deepcopy(real) | {"title": "another"}
    other["regime"] |= {"certified": "INDETERMINATE", "naive": "DISPERSIVE"}
    other["conditions"]["purity"] |= {"verdict": "VIOLATED", "reason": "none"}
    return written(tmp_path_factory.mktemp("double"), {"demo": real, "other": other})


class Reader(html.parser.HTMLParser):
    """Collect elements and text, and insist that every element is closed in order."""

    def __init__(self, text):
        super().__init__()
        self.open, self.elements, self.identities, self.links, self.words = [], [], [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.elements.append(tag)
        found = dict(attributes)
        self.identities += [found["id"]] if "id" in found else []
        self.links += [found[name] for name in ("href", "src", "xlink:href", "srcset", "action") if name in found]
        assert not [name for name in found if name.startswith("on")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if tag not in VOID:
            self.handle_endtag(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.words.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())


def words(text):
    return Reader(text).text


def deep(chain, layers):
    """Repeat a layer, and the profile, to a chain of many layers."""
    chain = copy.deepcopy(chain)
    first = chain["layers"][0]
    chain["layers"] = [{**first, "layer": index + 1} for index in range(layers)]
    chain["layers"][-1] = {**chain["layers"][-1], **dict.fromkeys(COUPLED)}
    profile = chain["profile"]
    chain["profile"] = {name: [values[0]] * (layers - 1) for name, values in profile.items()}
    chain["profile"]["depth"] = list(range(2, layers + 1))
    return chain


def untie(chain, layers):
    """Leave layers unresolved, as a tie does."""
    for entry in chain["layers"]:
        if entry["layer"] in layers:
            entry["resolved"] = False
        if entry["layer"] in layers or entry["layer"] + 1 in layers:
            entry.update(dict.fromkeys(COUPLED))
    return chain


def texts(figure):
    figure.canvas.draw()
    return [text.get_text() for text in figure.findobj(matplotlib.text.Text) if text.get_text()]


def test_the_verdict_comes_first_and_the_regimes_stand_beside_it(single, real):
    said = words(single)
    assert said.index(verdict_in_words(real)) < said.index("Conditions:")
    assert single.index("Regime, certified: ATTRACTOR") < single.index("<svg")
    assert "The paper's reading of ρ alone: ATTRACTOR" in said
    assert "The two agree." in said


def test_every_condition_part_claim_and_layer_is_there(single, real):
    said = words(single)
    for name, condition in real["conditions"].items():
        assert NAMES[name] in said
        assert all(part.replace("_", " ") in said for part in condition["parts"])
    for claim in real["claims"].values():
        assert " ".join(claim["statement"].split()) in said
    assert re.findall(r"<tr>\s*<td>(\d)</td>", single) == ["1", "2", "3", "4", "5"]
    assert single.count("<svg") == 3


def test_bounds_are_compared_with_the_truth(single, real):
    bound = real["bounds"]["log_paper"]
    share, ratio = (math.exp(bound - real["path"][name]) for name in ("log_scale", "log_residual_norm"))
    assert f"the paper's bound upper {share:.4g} {ratio:.4g}" in words(single)


def test_provenance_and_replay(page, chain, tmp_path):
    said = words(page({"demo": chain}))
    for item in ("cafecafecafe", "verify", "float64", "seeds 7", f"jax {jax.__version__}", '"layers": 5', "commit"):
        assert item in said, item
    assert "spectral-theorem verify" not in said
    (tmp_path / "run" / "demo.npz").write_bytes(b"kept")
    said = words(write_report(tmp_path / "run").read_text(encoding="utf-8"))
    assert "Of 1 chains the folder keeps 1." in said and "spectral-theorem verify run" in said
    assert "component: decoder" in said and "step: 2" in said


def test_the_same_run_gives_the_same_page_whole(page, chain, tmp_path):
    first = page({"demo": chain})
    assert write_report(tmp_path / "run").read_text(encoding="utf-8") == first
    assert sorted(p.name for p in (tmp_path / "run").iterdir()) == ["report.html", "summary.json", "table"]


def test_the_page_needs_nothing_from_outside(double):
    reader = Reader(double)
    assert all(link.startswith("#") for link in reader.links)
    assert not {"script", "link", "iframe", "object", "image", "img", "base"} & set(reader.elements)
    assert "@import" not in double
    assert all(target.startswith("#") for target in re.findall(r"url\(([^)]*)\)", double))


def test_identifiers_are_unique_and_every_link_has_its_target(double):
    reader = Reader(double)
    assert len(set(reader.identities)) == len(reader.identities)
    assert {link.removeprefix("#") for link in reader.links} <= set(reader.identities)
    assert {"#chain-1", "#chain-2"} <= set(reader.links)


def test_figures_are_well_formed(single):
    figures = re.findall(r"<svg.*?</svg>", single, re.DOTALL)
    assert len(figures) == 3
    assert all(ElementTree.fromstring(svg).get("aria-label") for svg in figures)


def test_nothing_untrusted_becomes_markup(page, chain):
    evil = """</td><script>alert("x")</script>' & $\\frac{ 语"""
    chain |= {"title": evil, "note": evil, "transcript": evil, "names": [evil] * 5, "extra": evil}
    text = page({evil: chain, "b": chain}, failed={evil: evil}, config={evil: evil})
    reader = Reader(text)
    assert "script" not in reader.elements
    assert "<script" not in text
    squeezed = " ".join(evil.split())
    assert reader.text.count(squeezed) >= 2 * 5 + 8
    assert reader.text.count("Transcript:") == 2


def test_several_chains_have_an_overview(double):
    said = words(double)
    assert said.index("No claim is violated. All four hypotheses hold in 1 of 2 chains.") < said.index("five layers")
    assert '<a href="#chain-2">another</a>' in double
    assert "DISPERSIVE (differs)" in said
    assert "The two differ: ρ follows the leading direction only." in said


def test_a_violated_claim_is_the_first_thing_said(page, chain):
    other = copy.deepcopy(chain)
    other["claims"]["identity"]["verdict"] = "VIOLATED"
    said = words(page({"demo": chain, "other": other | {"title": "broken"}}))
    assert "A proved claim is VIOLATED in: broken." in said


def test_clips_that_failed_are_listed(page, chain):
    assert "Not measured clip why noise got silence" in words(page({"a": chain}, failed={"noise": "got silence"}))


def test_unresolved_layers_are_marked_in_words(page, chain):
    untie(chain, {2, 3})
    said = words(page({"demo": chain}))
    assert "not resolved, σ₁ and σ₂ are too close to tell their vectors apart (layers 2–3)" in said
    assert said.count("not resolved") >= 3


def test_a_chain_of_ties_still_has_a_page(page, chain):
    untie(chain, {1, 2, 3, 4, 5})
    for entry in chain["conditions"].values():
        entry |= {"verdict": "UNDECIDED", "reason": "tie", "error": None}
    chain["path"]["log_psi_norm"] = None
    said = words(page({"demo": chain}))
    assert said.count("no value: layers not resolved") == 3
    assert REASONS["tie"] in said
    assert "‖Ψ‖ =" not in said


def test_a_chain_without_context(page, chain):
    for name in ("coherence", "purity"):
        entries = [chain["conditions"][name], *chain["conditions"][name]["parts"].values()]
        for entry in entries:
            entry |= dict.fromkeys(("value", "margin", "error")) | {"verdict": "NOT_APPLICABLE", "reason": "no_context"}
    for claim in chain["claims"].values():
        empty = dict.fromkeys(("slack", "tolerance", "log_left", "log_right"))
        claim |= empty | {"verdict": "NOT_APPLICABLE", "reason": "no_context"}
    chain["path"] |= dict.fromkeys(("log_residual_norm", "log_psi_norm", "log_scale"))
    chain["profile"] = {name: [None] * 4 for name in chain["profile"]} | {"depth": [2, 3, 4, 5]}
    text = page({"demo": chain})
    assert text.count("<svg") == 2
    assert "there is no residual to bound" in words(text)
    assert "no value: no context" in words(text)


def test_a_single_layer(page, chain):
    chain["layers"] = [chain["layers"][0] | dict.fromkeys(COUPLED)]
    for condition in chain["conditions"].values():
        for entry in (condition, *condition["parts"].values()):
            entry |= dict.fromkeys(("value", "threshold", "margin", "error"))
            entry |= {"verdict": "NOT_APPLICABLE", "reason": "single_layer", "layer": 0}
    chain["path"] |= dict.fromkeys(("log_residual_norm", "log_psi_norm", "log_scale"))
    chain["profile"] = {name: [] for name in chain["profile"]}
    text = page({"demo": chain})
    assert text.count("<svg") == 1
    assert f"No condition has a value here: {REASONS['single_layer']}." in words(text)


def test_a_residual_of_zero_has_no_ratios(page, chain):
    chain["path"]["log_residual_norm"] = None
    assert "The residual is 0 to the last digit" in words(page({"demo": chain}))


def test_a_residual_within_rounding_says_so(page, chain):
    chain["path"]["log_residual_norm"] = chain["path"]["log_scale"] - 60.0
    assert "within the rounding allowance: the ratios below say nothing" in words(page({"demo": chain}))


def test_an_infinite_value_is_said_and_drawn(page, chain):
    chain["conditions"]["purity"] |= {"value": None, "margin": None, "error": None, "verdict": "VIOLATED"}
    said = words(page({"demo": chain}))
    assert "∞" in said and "-∞" in said
    assert "∞" in texts(condition_figure(chain))


def test_words_of_a_record_are_not_read_as_formulas(page, chain):
    empty = dict.fromkeys(("value", "margin", "error"))
    chain["conditions"]["purity"] |= empty | {"verdict": "NOT_APPLICABLE", "reason": "$\\frac{$"}
    assert "no value: $\\frac{$" in words(page({"demo": chain}))


def test_the_side_that_fails_is_hatched(chain):
    for ax, (name, condition) in zip(condition_figure(chain).axes, chain["conditions"].items(), strict=True):
        span = next(patch for patch in ax.patches if patch.get_hatch())
        threshold = next(line for line in ax.lines if line.get_linestyle() == "--").get_xdata()[0]
        least = name in ("stability", "coherence")
        ends = (ax.get_xlim()[0], threshold) if least else (threshold, ax.get_xlim()[1])
        np.testing.assert_allclose((span.get_x(), span.get_x() + span.get_width()), ends)
        assert condition["verdict"] == "HOLDS"


def test_an_unbounded_error_reaches_both_ends(chain):
    chain["conditions"]["purity"] |= {"value": 5.0, "error": None, "verdict": "UNDECIDED", "reason": "within_tolerance"}
    figure = condition_figure(chain)
    markers = {line.get_marker() for line in figure.axes[-1].lines}
    assert {"<", ">"} <= markers
    assert any("± ∞" in text for text in texts(figure))


def test_a_thousand_layers_stay_small(page, chain):
    text = page({"demo": deep(chain, 1000)})
    assert len(text.encode()) < 2_000_000
    assert "Table of all 1000 layers" in text
    assert "curves have no markers" in words(text)


def test_a_run_without_chains_says_so(page):
    said = words(page({}))
    assert "This run holds no chain." in said and "Where these numbers come from" in said


def test_a_run_under_way_says_so(tmp_path):
    RunFolder(tmp_path).begin()
    assert "This run was not finished" in words(write_report(tmp_path).read_text(encoding="utf-8"))


@pytest.mark.parametrize("broken", ["missing", "summary", "table"])
def test_what_cannot_be_read_is_refused(page, chain, tmp_path, broken):
    page({"demo": chain})
    folder = tmp_path / "run"
    (folder / "report.html").unlink()
    if broken == "missing":
        folder = tmp_path / "nowhere"
    elif broken == "summary":
        (folder / "summary.json").write_text("{")
    else:
        (folder / "table" / "part-0.parquet").write_bytes(b"no")
    with pytest.raises(InputError, match="expected"):
        write_report(folder)
    assert not (folder / "report.html").exists()


def test_every_code_has_words(real):
    assert set(REASONS) == {reason.name.lower() for reason in Reason}
    assert set(NAIVE) == {regime.name for regime in Regime}
    pairs = {(a.name, b.name) for a, b in itertools.permutations(Regime, 2)}
    assert set(DIFFERENCES) == pairs
    parts = {part for condition in real["conditions"].values() for part in condition["parts"]}
    assert set(PARTS) == parts
    assert set(QUANTITIES) == parts | {"alignment", "purity"}
    assert set(VERDICTS) == {verdict.name for verdict in Verdict}
    assert set(UNITS) | set(CERTIFICATES) <= set(real["claims"])


@pytest.mark.parametrize("certified", [regime.name for regime in Regime])
@pytest.mark.parametrize("naive", [regime.name for regime in Regime])
def test_where_the_two_readings_differ_is_said(chain, certified, naive):
    chain["regime"] |= {"certified": certified, "naive": naive}
    said = regime_in_words(chain)
    assert said[0].startswith(f"Regime, certified: {certified}: ")
    assert said[1].startswith(f"The paper's reading of ρ alone: {naive}: ")
    assert any(line.startswith("The two differ") for line in said) == (certified != naive)
    assert ("The two agree" in said[1]) == (certified == naive)


@pytest.mark.parametrize(("rate", "growing"), [(-0.7, True), (0.3, False), (None, False)])
def test_a_short_chain_that_grows_is_not_sold_as_decay(chain, rate, growing):
    chain["regime"] |= {"certified": "DISPERSIVE", "naive": "DISPERSIVE", "dispersion_rate": rate}
    said = " ".join(regime_in_words(chain))
    assert ("nothing is said of decay" in said) == growing
    assert ("agree in name only" in said) == growing


def test_verdicts_differ_by_marker_colour_and_sign():
    for column in zip(*VERDICTS.values(), strict=True):
        assert len(set(column)) == len(VERDICTS)


@pytest.mark.parametrize("verdict", ["HOLDS", "VIOLATED", "UNDECIDED"])
def test_a_condition_is_drawn_at_its_value_with_its_bar_and_threshold(chain, verdict):
    chain["conditions"]["coherence"] |= {
        "value": 0.8,
        "threshold": 0.7,
        "error": 0.05,
        "verdict": verdict,
        "margin": 0.1,
    }
    figure = condition_figure(chain)
    ax = figure.axes[2]
    marker, colour, sign = VERDICTS[verdict]
    dashed = next(line for line in ax.lines if line.get_linestyle() == "--")
    assert set(dashed.get_xdata()) == {0.7}
    point = next(line for line in ax.lines if line.get_marker() == marker)
    assert list(point.get_xdata()) == [0.8] and to_hex(point.get_color()) == colour
    bar = ax.collections[0].get_segments()[0]
    np.testing.assert_allclose(sorted(bar[:, 0]), [0.75, 0.85])
    said = texts(figure)
    assert f"{sign} {verdict}" in said and "0.8 ± 0.05" in said and "fails below 0.7" in said


@pytest.mark.parametrize(("value", "drawn"), [(0.15, 0.1), (5.0, -1.0), (0.002, -1.0), (0.0, 0.1)])
def test_an_axis_is_logarithmic_where_value_and_threshold_are_decades_apart(chain, value, drawn):
    chain["conditions"]["purity"] |= {"value": value, "threshold": 0.1, "error": 0.0}
    ax = condition_figure(chain).axes[3]
    dashed = next(line for line in ax.lines if line.get_linestyle() == "--")
    np.testing.assert_allclose(dashed.get_xdata(), drawn)


def test_layers_and_couplings_are_drawn_where_they_are(chain):
    figure = layer_figure(chain)
    _, xi, kappa, rho, lam = figure.axes
    column = lambda name: [layer[name] for layer in chain["layers"]]
    for ax, name, x in ((xi, "xi", 1.0), (rho, "rho", 1.5), (lam, "lam", 1.5)):
        curve = max(ax.lines, key=lambda line: len(line.get_xdata()))
        expected = [value for value in column(name) if value is not None]
        np.testing.assert_allclose(curve.get_xdata(), x + np.arange(len(expected)))
        np.testing.assert_allclose(curve.get_ydata(), np.log10(expected) if name == "xi" else expected, atol=1e-12)
    flat = lambda ax: {round(float(line.get_ydata()[0]), 9) for line in ax.lines if len(set(line.get_ydata())) == 1}
    assert 0.0 in flat(lam) and 1.0 in flat(rho)
    assert round(-math.log10(1 - 0.4244), 9) in flat(kappa)
    assert round(-math.log10(0.1 / 5), 9) in flat(kappa)
    assert "chance 0.4244" in texts(figure)


def test_chance_is_drawn_only_where_it_is_known(chain):
    del chain["chance_kappa"]
    assert not any(text.startswith("chance") for text in texts(layer_figure(chain)))


def test_alignment_near_one_is_drawn_from_the_misalignment(chain):
    for layer, s in zip(chain["layers"][:-1], (1e-3, 1e-6, 1e-9, 0.0), strict=True):
        layer |= {"misalignment": s, "kappa_abs": 1.0, "kappa_error": 0.0}
    curve = max(layer_figure(chain).axes[2].lines, key=lambda line: len(line.get_xdata()))
    np.testing.assert_allclose(curve.get_ydata(), [6 + math.log10(2), 12 + math.log10(2), 17, 17])


@pytest.mark.parametrize(
    ("kappas", "drawn", "ends"),
    [
        ((0.2, 0.9, 0.4, 0.99), (0.2, 0.9, 0.4, 0.99), (0.0, 1.05)),
        ((0.0, 0.9, 0.4, 0.99), (0.0, 0.9, 0.4, 0.99), (0.0, 1.05)),
        ((0.01, 0.1, 0.1, 1.0), (-2.0, -1.0, -1.0, 0.0), (-2.0, 0.1)),
    ],
)
def test_poor_alignment_has_an_axis_that_shows_it(chain, kappas, drawn, ends):
    for layer, kappa in zip(chain["layers"], kappas, strict=False):
        layer["kappa_abs"] = kappa
    ax = layer_figure(chain).axes[2]
    curve = max(ax.lines, key=lambda line: len(line.get_xdata()))
    np.testing.assert_allclose(curve.get_ydata(), drawn, atol=1e-12)
    assert ax.get_ylim() == ends


def test_error_bars_are_drawn_or_said_to_be_too_small(chain):
    said = texts(layer_figure(chain))
    assert sum("too small to draw" in text for text in said) == 5
    for layer in chain["layers"][:-1]:
        layer["rho_error"] = 0.01
    figure = layer_figure(chain)
    assert "error up to ± 0.01" in texts(figure)
    bars = figure.axes[3].collections[0].get_segments()
    np.testing.assert_allclose(sorted(bars[0][:, 1]), np.asarray([-0.01, 0.01]) + chain["layers"][0]["rho"])


def test_an_error_larger_than_its_value_leaves_a_logarithmic_axis_below(chain):
    chain["layers"][0]["xi_error"] = 1.0
    ax = layer_figure(chain).axes[1]
    bar = next(iter(ax.collections[0].get_segments()))
    assert bar[:, 1].min() == pytest.approx(ax.get_ylim()[0])


def test_unresolved_and_uncertified_layers_look_different(chain):
    untie(chain, {2})
    chain["layers"][4]["certified"] = False
    figure = layer_figure(chain)
    spans = [patch for patch in figure.axes[0].patches if patch.get_hatch()]
    assert [(patch.get_x(), patch.get_width()) for patch in spans] == [(1.5, 1.0)]
    assert "?" in texts(figure)
    hollow = [line for line in figure.axes[0].lines if line.get_fillstyle() == "none"]
    assert [list(line.get_xdata()) for line in hollow] == [[5.0], [5.0]]


def test_many_layers_are_drawn_without_markers_and_with_a_band(chain):
    chain = deep(chain, MARKED + 2)
    for layer in chain["layers"]:
        layer["rho_error"] = 0.01
    ax = layer_figure(chain).axes[3]
    assert ax.collections[0].get_paths()[0].vertices.shape[0] > MARKED
    assert all(len(line.get_xdata()) == 2 for line in ax.lines if line.get_marker() not in ("None", ""))


def test_bounds_are_drawn_in_units_of_the_scale(chain):
    ax = bound_figure(chain).axes[0]
    profile = chain["profile"]
    lines = [line for line in ax.lines if len(line.get_xdata()) == 4]
    drawn = {tuple(np.round(line.get_ydata(), 9)) for line in lines}
    for name in ("log_paper", "log_telescoping", "log_transfer", "log_row_exact", "log_residual"):
        share = (np.asarray(profile[name]) - np.asarray(profile["log_scale"])) / math.log(10)
        assert tuple(np.round(share, 9)) in drawn, name
    low, high = ax.get_ylim()
    assert all(low < y < high for line in lines if line.get_linestyle() != "-" for y in line.get_ydata())


def test_a_lower_bound_of_zero_shades_to_the_end_of_the_axis(chain):
    chain["profile"]["log_row_exact_lower"] = [None] * 4
    figure = bound_figure(chain)
    ax = figure.axes[0]
    assert ax.collections[0].get_paths()[0].vertices[:, 1].min() < ax.get_ylim()[0]
    assert "row-exact, lower" not in texts(figure)


def test_drawing_leaves_the_settings_of_matplotlib_alone(chain):
    before = dict(matplotlib.rcParams)
    to_svg(layer_figure(chain), salt="a", label="b")
    assert dict(matplotlib.rcParams) == before


def test_names_of_lines_do_not_touch(chain):
    for layer, name in itertools.product(chain["layers"][:-1], ("rho", "kappa_abs")):
        layer[name] = 1.0
    ax = layer_figure(chain).axes[3]
    heights = sorted(t.get_position()[1] for t in ax.texts if t.get_text() in ("ρ", "H1 needs ≥ 1"))
    points = (heights[1] - heights[0]) * ax.get_position().height * ax.get_figure().get_figheight() * 72
    assert points >= 11.9
