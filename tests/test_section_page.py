"""The page of a study: what it says, that it is whole without a network, its files, and what differs between two."""

import html.parser
import json
import os
import re
import shutil
import subprocess
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
from studied import sections, written

from spectral_theorem import cli
from spectral_theorem.differing import differences
from spectral_theorem.report import write_report
from spectral_theorem.runs import RunFolder, read_run
from spectral_theorem.section_figures import BARS, bars_figure, figures_of, map_figure
from spectral_theorem.spectra_figure import plane_figure, spectra_figure
from spectral_theorem.tables import Column, Table
from spectral_theorem.types import InputError

VOID = {"meta", "br", "hr", "img", "link", "input"}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    path = written(tmp_path_factory.mktemp("study") / "run", sections())
    write_report(path)
    return path


@pytest.fixture(scope="module")
def page(run):
    return (run / "report.html").read_text(encoding="utf-8")


class Reader(html.parser.HTMLParser):
    """Check that tags nest, and collect text, attributes and headings."""

    def __init__(self):
        super().__init__()
        self.open, self.text, self.attributes, self.tags = [], [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def test_verdicts_come_first_with_their_sentences(page):
    reader = Reader()
    reader.feed(page)
    assert reader.open == []
    text = " ".join(" ".join(reader.text).split())
    first = text.index("What of observables?")
    for each in sections():
        assert each["sentence"] in text
        assert text.index(each["title"], first) < text.index("About changes_10")
        assert each["verdict"] in text
    assert "Not computed: nobody hallucinated." in text
    assert "b, clean no sound" in text


def test_words_of_the_record_are_escaped(page):
    assert "<i>" not in page and "About paper_10 <b>" not in page and "small <script>" not in page
    assert "&lt;i&gt;" in page


def test_the_page_needs_no_network_and_no_script(page):
    reader = Reader()
    reader.feed(page)
    assert not {"script", "img", "link", "iframe", "object"} & set(reader.tags)
    addressed = [value for name, value in reader.attributes if name in ("src", "href", "xlink:href", "data")]
    # pictures of coloured cells are part of the page
    assert addressed and all(value.startswith(("#", "data:image/png;base64,")) for value in addressed)
    assert not re.search(r"url\((?!#)|@import", page)


def test_tables_are_numbered_through_and_missing_cells_say_so(page, run):
    numbers = [int(found) for found in re.findall(r"Table (\d+)\. About", page)]
    assert numbers == list(range(1, 1 + sum(len(each["tables"]) for each in sections())))
    assert '<td class="n">n/a</td>' in page
    lines = (run / "tables" / "02-paper_10.csv").read_bytes().decode().split("\r\n")
    assert lines == ['model,"ΔN_eff, paper",ours', "tiny,-7.56,n/a", ""]
    assert r"\toprule" in (run / "tables" / "02-paper_10.tex").read_text()


def test_figures_are_files_too(run):
    drawn = {each.name for some in figures_of(sections()).values() for each in some}
    assert {path.stem for path in (run / "figures").iterdir()} == drawn
    assert {"spectra-mlp", "plane-10", "lambda-map", "constant-lambda-scatter", "attractor", "nulls-1"} <= drawn
    for name in drawn:
        svg = (run / "figures" / f"{name}.svg").read_text(encoding="utf-8")
        assert ElementTree.fromstring(svg).tag.endswith("svg")
        assert "mathdefault" not in svg  # formulas are not set, so none may be asked for
        assert (run / "figures" / f"{name}.pdf").read_bytes().startswith(b"%PDF-")


def test_the_same_records_give_the_same_bytes(tmp_path):
    run = written(tmp_path, sections()[2:5])
    write_report(run)
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    assert len(before) > 6
    (run / "tables" / "99-stale.csv").write_text("old")
    write_report(run)
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_every_section_may_lack_its_data(tmp_path):
    bare = [{**each, "data": {}, "tables": []} for each in sections()]
    assert "What of attractor?" in write_report(written(tmp_path, bare)).read_text(encoding="utf-8")


def test_spectra_show_clean_stressed_and_healthy_with_head_and_tail():
    data = sections()[0]["data"]["spectra"]
    rows = [{**row, "healthy": [2.0, 1.0]} for row in data]
    figure = spectra_figure(rows, "mlp")
    main, tail = figure.axes[:2]
    lines = {str(line.get_label()): line for line in main.get_lines()}
    assert {"clean", "stressed", "clean, transcribed well"} <= set(lines)
    assert np.allclose(10.0 ** lines["stressed"].get_ydata(), data[0]["stressed"])
    assert np.allclose(10.0 ** lines["stressed"].get_xdata(), np.arange(1, 19))
    (inset,) = main.child_axes
    assert np.allclose(inset.get_lines()[0].get_ydata(), [2.0, 1.0]) or inset.get_lines()
    assert tail.get_xlim()[0] == 10
    assert any("K = 10" in text.get_text() for text in main.texts)


def test_the_plane_marks_slopes_that_failed_and_draws_intervals():
    figure = plane_figure(sections()[0]["data"]["plane"], 10)
    ax = figure.axes[1]
    hollow = [line for line in ax.get_lines() if line.get_markerfacecolor() == "none" and len(line.get_xdata())]
    assert len(hollow) == 2  # the two stressed layers
    assert len(ax.collections) == 2 * 2 + 2  # both layers' ranks, and slopes of the layer that has their intervals


def test_the_map_crosses_what_is_not_sure():
    figure = map_figure(sections()[3]["data"]["maps"])
    crosses = figure.axes[0].get_lines()[0]
    assert crosses.get_xdata().tolist() == [1]
    half = figure.axes[1].images[0].get_array()
    assert np.allclose(half[0, :2], [0.075, 0.2]) and np.ma.getmaskarray(half)[0, 2]


def test_bars_have_their_intervals_and_the_level():
    bars = BARS["variance"][0]
    ax = bars_figure([("layer", 0.5, 0.4, 0.6), ("rest", 0.5, np.nan, np.nan)], bars).axes[0]
    (segment,) = [collection.get_segments()[0] for collection in ax.collections]
    assert segment[:, 0].tolist() == [0.4, 0.6]
    assert [text.get_text() for text in ax.get_yticklabels()] == ["layer", "rest"]


def browser() -> str:
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if found is None:
        reason = "no Chromium to open the page with; try apt-get install chromium"
        pytest.fail(reason) if os.environ.get("CI") == "true" else pytest.skip(reason)
    return found


MEASURE = """<script>addEventListener("load", () => {
  const boxes = [...document.querySelectorAll("figure svg")].map(e => e.getBoundingClientRect());
  const style = getComputedStyle(document.querySelector(".verdict"));
  document.title = JSON.stringify({
    figures: boxes.filter(b => b.width > 300 && b.height > 60).length,
    requests: performance.getEntriesByType("resource").length,
    overflow: document.documentElement.scrollWidth - document.documentElement.clientWidth,
    broken: [...document.querySelectorAll("a")].filter(a => !document.querySelector(a.getAttribute("href"))).length,
    rows: document.querySelectorAll("tbody tr").length,
    border: style.borderLeftWidth});
});</script>"""


def test_chromium_opens_the_page(page, run, tmp_path):
    copy = tmp_path / "page.html"
    copy.write_text(page.replace("</body>", f"{MEASURE}</body>"), encoding="utf-8")
    command = [
        browser(), "--headless", "--no-sandbox", "--disable-gpu", "--window-size=1100,900", "--dump-dom",
        f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=5000", copy.as_uri(),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    title = re.search(r"<title>(.*?)</title>", done.stdout)
    assert title, done.stderr[-2000:]
    found = json.loads(html.unescape(title[1]))
    drawn = sum(len(some) for some in figures_of(sections()).values())
    assert found["figures"] == drawn
    assert found["requests"] == 0 and found["broken"] == 0 and found["overflow"] <= 0
    assert found["border"] == "5px"
    assert found["rows"] > 40


def test_report_prints_one_table_and_draws_the_page_again(run, tmp_path, capsys):
    assert cli.main(["report", str(run), "--table", "2"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "Table 2. About paper_10 <b>.", "model  ΔN_eff, paper  ours", "tiny           -7.56   n/a",
    ]  # fmt: skip
    assert cli.main(["report", str(run), "--table", "2", "--format", "csv"]) == 0
    assert "tiny,-7.56,n/a" in capsys.readouterr().out
    assert cli.main(["report", str(run), "--table", "2", "--format", "latex"]) == 0
    assert r"tiny & -7.56 & n/a \\" in capsys.readouterr().out
    few = written(tmp_path, sections()[1:3])
    assert cli.main(["report", str(few), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["tables"] == ["paper_10"]
    assert (few / "report.html").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--table", "99"], "got --table 99; expected a table of the run: 1 changes_10"),
        (["--table", "0"], "got --table 0"),
        (["--format", "csv"], "without --table"),
    ],
)
def test_report_refuses_what_is_not_there(run, capsys, arguments, words):
    assert cli.main(["report", str(run), *arguments]) == 2
    said = capsys.readouterr().err
    assert words in said and len(said.splitlines()) == 1


def test_a_run_without_sections_has_no_tables(tmp_path, capsys):
    path = written(tmp_path, [])
    summary = json.loads((path / "summary.json").read_text())
    del summary["sections"]
    (path / "summary.json").write_text(json.dumps(summary | {"chains": {}}))
    assert cli.main(["report", str(path), "--table", "1"]) == 2
    assert "expected a run of compare or sensitivity" in capsys.readouterr().err
    assert cli.main(["report", str(path)]) == 0


def test_diff_says_nothing_of_a_run_and_itself(run, capsys):
    assert cli.main(["diff", str(run), str(run)]) == 0
    assert "do not differ" in capsys.readouterr().out


def test_diff_lists_config_provenance_verdicts_and_cells(run, tmp_path, capsys):
    moved = sections(shift=10.0)
    moved[3]["verdict"] = "VIOLATED"
    del moved[6:8]
    other = written(tmp_path, moved, config={"model": "large"}, seeds=[8])
    found = differences(read_run(run), read_run(other))
    assert found["config"] == [{"name": "model", "first": "small <script>", "second": "large"}]
    assert {each["name"] for each in found["provenance"]} == {"seeds"}
    names = {each["name"]: (each["first"], each["second"]) for each in found["verdicts"]}
    assert names == {"lambda_map": ("HOLDS", "VIOLATED"), "nulls": ("HOLDS", None), "ablations": ("HOLDS", None)}
    cells = [each for each in found["tables"] if each["table"] == "changes_10"]
    assert len(cells) == 12 * 3 and {each["column"] for each in cells} == {"change", "low", "high"}
    assert all(each["intervals"] == "apart" for each in cells if each["column"] == "change")
    near = differences(read_run(run), read_run(written(tmp_path / "near", sections(shift=0.5))))["tables"]
    assert {each["intervals"] for each in near if each["column"] == "change"} == {"meet"}
    assert cli.main(["diff", str(run), str(other)]) == 0
    said = capsys.readouterr().out
    assert "lambda_map: HOLDS → VIOLATED" in said and "intervals of 12 of 12 are apart" in said
    assert "and 24 more; --json lists all" in said and "only: nulls, ablation_decisions, ablations" in said


def test_diff_compares_numbers_of_runs_without_sections(tmp_path):
    paths = []
    for name, value in (("a", 0.5), ("b", 0.9)):
        path = written(tmp_path / name, [])
        summary = json.loads((path / "summary.json").read_text())
        del summary["sections"]
        (path / "summary.json").write_text(json.dumps(summary))
        RunFolder(path, run_id="cafecafecafe").write_table(
            [{"clip": "a", "quantity": "lam", "value": value, "error": 0.1}, {"quantity": "xi", "value": 1.0}]
        )
        paths.append(path)
    (found,) = differences(*map(read_run, paths))["numbers"]
    assert found == {"name": "clip a, quantity lam", "first": 0.5, "second": 0.9, "beyond_errors": True}


def test_tables_refuse_rows_that_do_not_fit_and_escape_latex():
    with pytest.raises(InputError, match="a row of 1 cells"):
        Table("a", 1, "", (Column("x"), Column("y")), ((1,),))
    with pytest.raises(InputError, match="a table that is none"):
        Table.from_json({"name": "a"})
    text = Table("a", 1, "50 % of α_1 & {x}", (Column("log₁₀Kf"),), ((None,), (1e-7,))).to_latex()
    assert r"50 \% of $\alpha$\_1 \& \{x\}" in text and "log$_{10}$Kf" in text and "n/a" in text and "1e-07" in text
    empty = Table("a", 1, "", (Column("x"),), ())
    assert empty.to_text().splitlines()[-1] == "x" and r"\bottomrule" in empty.to_latex()
