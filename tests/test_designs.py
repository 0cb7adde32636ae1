"""Designs: which configs a grid or a random design visits, and what is said about ones that make no sense."""

import dataclasses
from pathlib import Path

import pytest

from spectral_theorem import InputError
from spectral_theorem.designs import Design, Span, read_design, read_settings


@dataclasses.dataclass(frozen=True)
class Config:
    sigma: float = 1.0
    layers: int = 8
    bulk: str = "flat"
    ties: bool = False
    folder: Path = Path("a")
    sizes: tuple = (1,)
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.sigma > 0:
            raise ValueError("sigma must be positive")


def design(text, tmp_path):
    path = tmp_path / "design.toml"
    path.write_text(text)
    return read_design(path, Config)


def test_a_grid_is_the_product_of_its_axes_in_order():
    found = Design(fixed={"layers": 4}, axes={"sigma": Span(1, 3, 3), "bulk": ("flat", "linear")}).configs(Config)
    assert [(c.sigma, c.bulk, c.layers) for c in found] == [
        (sigma, bulk, 4) for sigma in (1.0, 2.0, 3.0) for bulk in ("flat", "linear")
    ]
    assert Design().configs(Config) == [Config()]
    assert Design(axes={"sigma": (1.0, 1.0, 2.0)}).configs(Config) == [Config(), Config(sigma=2.0)]


def test_spans_keep_their_ends_and_whole_numbers():
    assert Span(0.1, 0.7, 3, log=True).grid(whole=False)[::2] == [0.1, 0.7]
    assert Span(0, 9, 4).grid(whole=True) == [0, 3, 6, 9]
    assert [type(v) for v in Span(1, 64, 3, log=True).grid(whole=True)] == [int] * 3
    assert Span(2, 2, 1).grid(whole=False) == [2]


def test_a_random_design_repeats_and_grows_at_its_end():
    axes = {"sigma": Span(0.1, 10.0, log=True), "layers": Span(2, 5), "bulk": ("flat", "linear")}
    few, many = (Design(axes=axes, random=count, seed=3).configs(Config) for count in (20, 200))
    assert many[:20] == few and len(set(many)) == 200
    assert [c.seed for c in few] == list(range(20))
    assert {c.layers for c in many} == {2, 3, 4, 5} and {c.bulk for c in many} == {"flat", "linear"}
    assert all(0.1 <= c.sigma <= 10 for c in many)
    # equal ratios: half of the draws below the geometric mean
    assert 70 < sum(c.sigma < 1 for c in many) < 130
    assert Design(axes=axes, random=20, seed=4).configs(Config) != few
    named = Design(axes={**axes, "seed": (7,)}, random=3).configs(Config)
    assert {c.seed for c in named} == {7}


def test_a_design_in_toml(tmp_path):
    text = (
        'layers = 4\nfolder = "b"\n[grid]\nsigma = {from = 1, to = 4, count = 3, scale = "log"}\nties = [false, true]\n'
    )
    found = design(text, tmp_path).configs(Config)
    assert [c.sigma for c in found[::2]] == pytest.approx([1, 2, 4]) and {c.layers for c in found} == {4}
    assert found[0].folder == Path("b") and [c.ties for c in found[:2]] == [False, True]
    drawn = design("[random]\ncells = 5\nseed = 2\nsigma = {from = 1, to = 2}\nsizes = [[1, 2], [3]]\n", tmp_path)
    assert (drawn.random, drawn.seed) == (5, 2)
    assert {c.sizes for c in drawn.configs(Config)} <= {(1, 2), (3,)}


def test_settings_of_the_command_line():
    given = ["sigma=1,2.5", "layers=2:8:4", "ties=true", "sizes=[[1,2],[3]]", "folder=a,b", "bulk=flat"]
    axes = read_settings(given, Config)
    assert axes["sigma"] == (1.0, 2.5) and axes["layers"] == Span(2, 8, 4) and axes["ties"] == (True,)
    assert axes["sizes"] == ((1, 2), (3,)) and axes["folder"] == (Path("a"), Path("b")) and axes["bulk"] == ("flat",)
    assert read_settings(["sizes=[1,2]"], Config) == {"sizes": ((1, 2),)}
    assert read_settings(["sigma=1:2:3:log"], Config) == {"sigma": Span(1, 2, 3, log=True)}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sigm = 1.0", "the key 'sigm' in .*design.toml; expected one of sigma, .*; try sigma$"),
        ("[grid]\nlayer = [1]", "the key 'layer' in .*; try layers$"),
        ("[grid]\nzzz = [1]", "the key 'zzz' in .*without it$"),
        ("layers = 2.5", "layers=2.5 in .*; expected a int; try layers = 8"),
        ("layers = true", "layers=True"),
        ("[grid]\nsigma = ['a']", "sigma='a'"),
        ("[grid]\nsigma = []", "sigma without values, an empty grid"),
        ("[grid]\nsigma = {from = 1, to = 2}", "sigma from 1 to 2 in a grid; expected how many values"),
        ("[grid]\nsigma = {from = 1, to = 2, count = 0}", "an empty grid"),
        ("[grid]\nsigma = {from = 1, to = 2, step = 3}", "expected from, to, count and scale"),
        ("[grid]\nsigma = {from = 2, to = 1, count = 2}", "the smaller first"),
        ("[grid]\nsigma = {from = -1, to = 1, count = 2, scale = 'log'}", "ends above 0"),
        ("[grid]\nsigma = {from = 1, to = 2, count = 2, scale = 'cubic'}", "scale='cubic'"),
        ("[grid]\nbulk = {from = 1, to = 2, count = 2}", "values of a str"),
        ("[random]\nsigma = {from = 1, to = 2}", "without cells"),
        ("[random]\ncells = 0\nsigma = {from = 1, to = 2}", "an empty design"),
        ("[grid]\nsigma = [1.0]\n[random]\ncells = 1", "both"),
        ("grid = 3", "grid=3"),
        ("sigma = -1.0", "sigma must be positive"),
        ("sigma = ", "a design in TOML"),
    ],
)
def test_a_bad_design_is_named(tmp_path, text, message):
    with pytest.raises(InputError, match=message):
        design(text, tmp_path).configs(Config)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("sigma", "name=values"),
        ("sigme=1", "the key 'sigme' in --set; expected .*; try sigma$"),
        ("sigma=1,b", "values of a float"),
        ("sigma=", "an empty grid"),
        ("sigma=1:b:3", "low:high:count"),
        ("sigma=1:2:3:4", "low:high:count"),
        ("sigma=2:1:3", "the smaller first"),
        ("sigma=1:2:-3", "at least 1"),
        ("layers=1.5", "values of a int"),
        ("ties=yes", "values of a bool"),
        ("sizes=1,2", "values of a tuple"),
    ],
)
def test_a_bad_setting_is_named(setting, message):
    with pytest.raises(InputError, match=message):
        Design(axes=read_settings([setting], Config)).configs(Config)
