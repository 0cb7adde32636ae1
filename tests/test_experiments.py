"""Every experiment file: it says what it claims and what would refute it, and it runs small."""

import dataclasses
from pathlib import Path

import pytest

from spectral_theorem import InputError
from spectral_theorem.experiment import KINDS, judged, load

ROOT = Path(__file__).resolve().parents[1]
FILES = sorted(path for path in (ROOT / "experiments").glob("*/*.py") if not path.name.startswith("_"))
LONGEST = 200  # lines of a file
NEEDS_SHARED = ROOT / "experiments" / "whisper"

GOOD = '''"""A square is not negative.

Kind: lower.
Expected: all at least 0, so that nothing is
    left to say.
Refuted by: a square below 0.
"""
import dataclasses
@dataclasses.dataclass(frozen=True)
class Config:
    x: float = 2.0
def run(config): return [{"square": config.x**2}]
def verdict(records): return "HOLDS", "yes"
'''


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_an_experiment_states_its_claim_and_runs_small(path, request, monkeypatch):
    if path.is_relative_to(NEEDS_SHARED):
        request.getfixturevalue("shared")
        monkeypatch.chdir(ROOT)  # defaults of these configs name the folder beside the checkout
    found = load(path)
    assert found.kind in KINDS and found.statement.endswith(".") and len(found.statement) > 20
    assert len(path.read_text(encoding="utf-8").splitlines()) <= LONGEST
    beside = {"key": "0", "cell": 0} | dataclasses.asdict(found.config())  # as in the table of a sweep
    records = [beside | row for row in found.run(found.config())]
    _, sentence = judged(found, records)
    assert any(character.isdigit() for character in sentence), "a verdict carries its number"
    if found.figure is not None and path.is_relative_to(NEEDS_SHARED):
        drawn = found.figure(records)
        assert drawn is None or any(axes.get_xlabel() for axes in drawn.axes)
    assert found.config().__hash__() is not None and dataclasses.is_dataclass(found.config)


def test_the_docstring_is_read(tmp_path):
    path = tmp_path / "square.py"
    path.write_text(GOOD)
    found = load(path)
    assert (found.statement, found.kind) == ("A square is not negative.", "lower")
    assert found.expected == "all at least 0, so that nothing is left to say"
    assert found.refuted_by == "a square below 0"
    assert found.name == "square" and found.figure is None and found.cell is None and dict(found.grid) == {}
    assert load(path).config is found.config


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("Kind: lower.", "", "without a line 'Kind:'"),
        ("Refuted by: a", "Refuted: a", "without a line 'Refuted by:'"),
        ("Kind: lower", "Kind: sideways", "kind 'sideways'"),
        ("def run", "def ran", "without run"),
        ("frozen=True", "frozen=False", "not frozen"),
        ("x: float = 2.0", "x: float", "'x' of Config, whose default"),
        ("x: float = 2.0", "x: object = None", "'x' of Config, whose default"),
        ("import dataclasses", "import dataclazzes", "ModuleNotFoundError"),
        ("def run", "GRID = {'y': [1]}\ndef run", "GRID="),
        ("def run", "def run(", "SyntaxError"),
    ],
)
def test_a_bad_file_is_named(tmp_path, old, new, message):
    path = tmp_path / "bad.py"
    path.write_text(GOOD.replace(old, new))
    with pytest.raises(InputError, match=message):
        load(path)


def test_other_files_and_verdicts_are_refused(tmp_path):
    with pytest.raises(InputError, match="cannot be read"):
        load(tmp_path / "none.py")
    (tmp_path / "a.txt").write_text(GOOD)
    with pytest.raises(InputError, match=r"ends in \.py"):
        load(tmp_path / "a.txt")
    path = tmp_path / "maybe.py"
    path.write_text(GOOD.replace('"HOLDS"', '"PERHAPS"'))
    with pytest.raises(InputError, match="PERHAPS"):
        judged(load(path), [])
