"""The benchmark of the engine: its record, its fits, its page. No test asserts a time."""

import re
import time
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest

from spectral_theorem import bench, benchrecord, cli, peakmemory, workload
from spectral_theorem.timing import Side, compare, fit_power, ratio
from spectral_theorem.types import InputError
from spectral_theorem.workload import Shape

SCRIPTS = Path(__file__).resolve().parents[1] / "scripts"
DENSE = {
    "gemm": 1.0, "explicit": 0.75, "product": 0.6, "jacfwd": 2.0, "chunks": 1.9, "row loop": 20.0,
    "torch jacfwd": 45.0, "torch jacrev": 40.0, "torch gemm": 0.9,
}  # fmt: skip
TRIPLETS = {"ours": 0.2, "factors": 0.1, "jnp svd": 1.3, "matfree": 0.15, "scipy svds": 0.1, "row loop + svd": 24.0}


def side(seconds, spread=1.3, items=1):
    turns = [0, 1, 2]
    kinds = {"min": seconds / spread, "median": seconds, "max": seconds * spread}
    return {
        "what": "given W" if seconds < 0 else "what it does",
        "items": items,
        "first_call_s": 1.5,
        "turns": turns,
        "seconds": {**kinds, "all": list(kinds.values())},
        "processor_seconds": {**kinds, "all": list(kinds.values())},
    }


def row_of(question, width, sides, numbers=None, **more):
    row = {"question": question, "weights": "random", "width": width, "frames": 1500, "layers": 1, "tokens": 16}
    row |= {"heads": width // 64, "sides": sides, "load_1min": [0.2, 1.1], "numbers": numbers or {}}
    return benchrecord.judged(row | more)


@pytest.fixture(scope="module")
def record():
    """Make a record of every kind of row, of numbers that no machine gave."""
    found = benchrecord.empty({"widths": [384, 768, 1280]}, {"torch": "0"})
    for width, unit in ((384, 0.014), (768, 0.074), (1280, 0.31)):
        rows = [
            row_of("dense", width, {name: side(unit * times) for name, times in DENSE.items()}),
            row_of(
                "triplets",
                width,
                {name: side(unit * times) for name, times in TRIPLETS.items()},
                {"residual_over_sigma1": 2e-6, "unresolved": 0, "triplets": 16},
            ),
            row_of("injection", width, {"W": side(unit / 5), "G": side(unit / 4)}),
        ]
        for row in rows:
            benchrecord.add(found, "rows", row)
    numbers = {"before_mb": 500.0, "first_call_mb": 250.0, "call_mb": 120.0, "peak_mb": 750.0}
    for question in ("injection", "sequence"):
        benchrecord.add(found, "rows", row_of(question, 1280, {}, numbers, measures="memory"))
    clip = {"measure": side(0.6), "transcribe": side(0.25), "torch": side(0.3), "torch eager": side(0.4)}
    benchrecord.add(found, "rows", row_of("clip", 384, clip, {"text": "two seven"}, clip="two-seven"))
    for what, power in (("triplets of W", 2.1), ("triplets of G", 1.9)):
        for letter, sizes in bench.Plan().scaling.items():
            exponent = power if letter == "width" else 1.0
            sides = {str(n): side(1e-4 * (n / sizes[0]) ** exponent) for n in sizes}
            fit = fit_power(sizes, [1e-4 * (n / sizes[0]) ** exponent * (1.1 if n == sizes[1] else 1) for n in sizes])
            entry = {"what": what, "against": letter, "sides": sides, "fit": fit, "load_1min": [0.1, 0.2]}
            benchrecord.add(found, "scaling", entry)
    benchrecord.add(found, "skipped", {"gpu": "no GPU"})
    return found | {"status": "done"}


# Timing.


def test_every_side_is_timed_once_per_repeat_in_changing_order():
    calls = []
    sides = {name: Side(lambda name=name: calls.append(name), "nothing", items=2) for name in "abc"}
    found = compare(sides, repeats=20)
    assert calls[:6] == ["a", "a", "b", "b", "c", "c"]  # first calls, then warm ones
    turns = [tuple(calls[i : i + 3]) for i in range(6, len(calls), 3)]
    assert len(turns) == 20 and all(sorted(turn) == ["a", "b", "c"] for turn in turns) and len(set(turns)) > 2
    assert found["sides"]["a"]["turns"] == list(range(20)) and len(found["sides"]["a"]["seconds"]["all"]) == 20


def test_a_slow_side_takes_part_in_few_repeats_spread_over_all():
    sides = {"quick": Side(lambda: None, ""), "slow": Side(lambda: time.sleep(0.02), "")}
    found = compare(sides, repeats=9, patience=0.01, few=3)
    assert found["sides"]["slow"]["turns"] == [2, 5, 8] and len(found["sides"]["quick"]["turns"]) == 9
    assert ratio(found, "slow", "quick")["min"] > 1


def test_ratios_are_of_one_repeat_and_of_one_item():
    clock = lambda all, turns: {"turns": turns, "seconds": {"all": all}}
    row = {"sides": {"a": clock([1.0, 10.0], [0, 1]), "b": clock([2.0, 40.0], [0, 1])}}
    assert ratio(row, "b", "a") == {"min": 2.0, "median": 3.0, "max": 4.0}


def test_exponents_are_found_and_their_intervals_hold_what_they_promise():
    draw = np.random.default_rng(0)
    sizes = np.array([256, 384, 512, 768, 1280])
    held = 0
    for _ in range(400):
        power = draw.uniform(0.5, 3.5)
        found = fit_power(sizes, 3e-9 * sizes**power * np.exp(0.1 * draw.standard_normal(5)))
        held += found["low"] <= power <= found["high"]
        assert abs(found["exponent"] - power) < 1
    assert 0.92 < held / 400 < 0.98
    assert fit_power([1, 2], [1.0, 2.0])["low"] is None


def test_peak_memory_is_what_a_call_takes():
    size = 120e6
    found = peakmemory.of_calls(lambda: np.ones(int(size / 8)).sum())
    assert found["first_call_mb"] is not None and found["first_call_mb"] > 0.5 * size / 1e6
    if found["call_mb"] is not None:
        assert 0.8 * size < 1e6 * found["call_mb"] < 1.5 * size
    assert found["peak_mb"] >= found["before_mb"]


def test_a_process_of_its_own_does_not_inherit_memory():
    ballast = np.ones(int(400e6 / 8))
    found = peakmemory.in_own_process("workload", "injection_memory", width=8, frames=5, tokens=2)
    assert ballast.sum() > 0 and found["before_mb"] < peakmemory.resident() < peakmemory.resident("VmHWM") + 1
    with pytest.raises(RuntimeError, match="no_such"):
        peakmemory.in_own_process("workload", "no_such")


# The engine's sides.


def test_all_ways_to_a_dense_jacobian_agree():
    work = workload.random_workload(Shape(16, frames=7, layers=2, tokens=3))
    each = workload.points(work)
    explicit = np.concatenate([np.asarray(w) for w in workload.dense(work)])
    assert len(each) == len(explicit) == 6
    for p, w in zip(each, explicit, strict=True):
        arguments = (p.parameters, p.crossed, p.cache, p.state)
        by_jacfwd = np.asarray(workload.by_jacfwd(*arguments))
        assert np.abs(w - by_jacfwd).max() < 1e-5 * np.abs(by_jacfwd).max()
        assert np.abs(np.asarray(workload.by_chunks(*arguments)) - by_jacfwd).max() < 1e-5


def test_accuracy_is_checked_against_float64():
    found = workload.accuracy(workload.random_workload(Shape(16, frames=7, layers=2, tokens=3)))
    assert found["residual_over_sigma1"] < 1e-5 and found["sigma_error_over_sigma1"] < 1e-5
    assert (found["unresolved"], found["triplets"], found["checked"]) == (0, 6, 4)


def test_the_yardstick_counts_what_forward_mode_does():
    shape = Shape(384)
    assert shape.jacobian_flops == 28 * 384**3 + 4 * 1500 * 384**2
    assert f"by {14 * 384 + 2 * 1500}" in workload.yardstick(Shape(384)).what


# The record.


def test_bars_are_judged_in_their_sense(record):
    met = {(row["question"], row["width"], bar["name"]): bar["met"] for row in record["rows"] for bar in row["bars"]}
    assert met["dense", 384, "explicit / gemm"] and met["triplets", 384, "row loop + svd / ours"]
    assert not met["triplets", 768, "row loop + svd / ours"]  # 120 times, where 130 are asked for
    assert not met["injection", 1280, "first_call_mb"] and met["sequence", 1280, "peak_mb"]
    assert met["clip", 384, "measure / transcribe"] and met["clip", 384, "torch / transcribe"]


def test_a_row_that_is_run_again_takes_the_place_of_the_older(record, tmp_path):
    benchrecord.write(tmp_path, record)
    again = benchrecord.read(tmp_path / benchrecord.FILE)
    before = len(again["rows"])
    benchrecord.add(again, "rows", row_of("dense", 768, {"gemm": side(1.0)}))
    assert len(again["rows"]) == before
    changed = [row for row in again["rows"] if (row["question"], row["width"]) == ("dense", 768)]
    assert list(changed[0]["sides"]) == ["gemm"] and changed[0]["bars"] == []
    (tmp_path / benchrecord.FILE).write_text("[]")
    with pytest.raises(InputError, match="no benchmark of schema"):
        benchrecord.read(tmp_path / benchrecord.FILE)


# The page.


@pytest.fixture
def engine_page(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPTS))
    import engine_page

    return engine_page


def test_the_page_is_drawn_from_the_record_alone(record, tmp_path, engine_page):
    benchrecord.write(tmp_path, record)
    engine_page.draw(tmp_path)
    page = (tmp_path / "engine.md").read_text(encoding="utf-8")
    named = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", page)
    assert sorted(named) == sorted(f"engine-{n}.svg" for n in ("bars", "dense", "injection", "scaling", "triplets"))
    for name in named:
        drawing = ET.parse(tmp_path / name).getroot()
        assert drawing.get("aria-label")
    words = lambda name: " ".join(re.findall(r">([^<>]+)</text>", (tmp_path / f"engine-{name}.svg").read_text()))
    assert "ms per (layer, token)" in words("dense") and "GEMM" in words("dense") and "D = 1280" in words("dense")
    assert "torch / 130" in words("triplets") and "2 × W" in words("injection")
    assert "D, state size" in words("scaling") and "D^2.08 [1.96, 2.20]" in words("scaling")
    assert "hatched is missed" in words("bars")
    assert "explicit / gemm at D = 384: 0.75 (0.75 to 0.75)" in page and "Not run: gpu (no GPU)." in page
    missed = sum(not bar["met"] for row in record["rows"] for bar in row["bars"])
    all_bars = sum(len(row["bars"]) for row in record["rows"])
    assert f"**{all_bars - missed} of {all_bars} figures" in page
    first = {name: (tmp_path / name).read_bytes() for name in named}
    engine_page.draw(tmp_path)
    assert first == {name: (tmp_path / name).read_bytes() for name in named}


def test_a_record_with_few_rows_has_a_page_too(record, tmp_path, engine_page):
    part = record | {"rows": record["rows"][:1], "scaling": [], "skipped": {}}
    benchrecord.write(tmp_path, part)
    engine_page.draw(tmp_path)
    assert sorted(path.name for path in tmp_path.glob("*.svg")) == ["engine-bars.svg", "engine-dense.svg"]


# The verb.


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    out = tmp_path_factory.mktemp("bench")
    return bench.run(widths="16", repeats=2, quick=True, only="dense,triplets,injection,gpu", out=out), out


def test_the_verb_writes_a_whole_record(quick):
    outcome, out = quick
    record = benchrecord.read(out / benchrecord.FILE)
    assert record["status"] == "done" and outcome.exit_code == 0 and outcome.record["rows"] == record["rows"]
    timed = [row for row in record["rows"] if row["sides"]]
    assert [row["question"] for row in timed] == ["dense", "triplets", "injection"]
    for row in timed:
        assert {"weights", "width", "heads", "frames", "layers", "tokens", "load_1min", "date", "commit"} <= set(row)
        for each in row["sides"].values():
            assert len(each["turns"]) == len(each["seconds"]["all"]) == 2 and each["first_call_s"] > 0
            assert 0 < each["seconds"]["min"] <= each["seconds"]["median"] <= each["seconds"]["max"]
    assert {"gemm", "explicit", "jacfwd", "chunks"} <= set(timed[0]["sides"])
    assert {"ours", "jnp svd", "matfree", "scipy svds"} <= set(timed[1]["sides"])
    assert timed[1]["numbers"]["unresolved"] == 0
    where = record["environment"]
    assert {"versions", "device", "cpu", "cpus", "threads", "xla_flags", "load_1min", "date"} <= set(where)
    assert "no GPU" in record["skipped"]["gpu"]
    assert "ms per item" in outcome.text and "skipped gpu" in outcome.text


def test_a_clip_is_timed_and_more_sides_can_be_brought():
    silent = Side(lambda: None, "nothing at all")
    peers = bench.Peers(sides={"dense": lambda work: {"row loop": silent}}, versions={"other": "1"})
    outcome = bench.run(widths="8", repeats=1, quick=True, only="dense", peers=peers)
    assert outcome.record["rows"][0]["sides"]["row loop"]["what"] == "nothing at all"
    assert outcome.record["environment"]["versions"]["other"] == "1"


def test_costs_are_fitted():
    plan = bench.dataclasses.replace(bench.QUICK, scaling={"width": (8, 16, 24)}, repeats=1)
    found = list(bench.each_row(plan, ("scaling",), None, bench.Peers()))
    assert [kind for kind, _ in found] == ["scaling"] * len(bench.COSTS)
    assert all(entry["fit"]["points"] == 3 and list(entry["sides"]) == ["8", "16", "24"] for _, entry in found)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--widths", "384;768"], "--widths 384;768"),
        (["--widths", "200"], "multiples of 64"),
        (["--widths", "4"], "from 8 to"),
        (["--repeats", "0"], "at least 1"),
        (["--only", "speed"], "dense,triplets"),
        (["--only", "clip", "--model", "nowhere"], "nowhere"),
    ],
)
def test_bad_input_is_one_line(arguments, said, capsys):
    assert cli.main(["bench", "--quick", *arguments]) == 2
    printed = capsys.readouterr().err
    assert printed.startswith("error: got ") and said in printed and printed.count("\n") == 1


def test_an_interrupted_run_keeps_its_rows(tmp_path):
    def interrupted(_):
        raise KeyboardInterrupt

    peers = bench.Peers(sides={"injection": interrupted})
    with pytest.raises(KeyboardInterrupt):
        bench.run(widths="16", repeats=1, quick=True, only="triplets,injection", out=tmp_path, peers=peers)
    record = benchrecord.read(tmp_path / benchrecord.FILE)
    assert [row["question"] for row in record["rows"]] == ["triplets"] and record["status"] == "running"
    bench.run(widths="24", repeats=1, quick=True, only="triplets", out=tmp_path, append=True)
    widths = [row["width"] for row in benchrecord.read(tmp_path / benchrecord.FILE)["rows"]]
    assert widths == [16, 24]
