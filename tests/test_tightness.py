"""The search at given scalars keeps them, comes to what is known, and its record can be gone on with."""

import json
import math

import jax
import numpy as np
import pytest

import spectral_theorem as st
from spectral_theorem import check, cli, falsify, tightness
from spectral_theorem.manifolds import HYPOTHESES, Family, Scalars, build, draw
from spectral_theorem.tightness_figure import tightness_figure
from spectral_theorem.types import InputError

SMALL = {"width": 3, "context": 1, "steps": 40, "restarts": 16}


def test_given_scalars_are_kept_to_rounding():
    family, given = Family(4, 4, 2, held=True), Scalars(sigma=1.7, kappa=0.6, xi=0.3, gamma=0.25, tail=0.5)
    chain, known = build(draw(jax.random.key(0), family, given), family)
    found = st.decompose(chain)
    for triplets in (known, found):
        np.testing.assert_allclose(triplets.sigma[:, 0], 1.7, rtol=1e-13)
        np.testing.assert_allclose(triplets.xi, 0.3, rtol=1e-12)
        np.testing.assert_allclose(np.abs(triplets.kappa), 0.6, rtol=1e-12)
        np.testing.assert_allclose(triplets.sigma_top[:, 2], 1.7 * 0.3 * 0.5, rtol=1e-12)
    sizes = np.linalg.norm(chain.injections[:-1], axis=(1, 2))
    np.testing.assert_allclose(sizes, 1, rtol=1e-13)
    rows = np.einsum("ld,ldc->lc", found.v[1:], chain.injections[:-1])
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 0.25, rtol=1e-11)
    with pytest.raises(InputError, match="one or the other"):
        Family(held=True, keep=frozenset(HYPOTHESES))


def test_what_is_attained_is_found_proved_kept_and_gone_on_with(tmp_path, monkeypatch):
    options = {**SMALL, "fix": "layers=3,kappa=1:0.6,xi=0.5"}
    calls, honest = [], tightness.climb

    def counted(*arguments, **given):
        calls.append(given["scalars"])
        if len(calls) > 6:
            raise cli.Stopped
        return honest(*arguments, **given)

    with monkeypatch.context() as patch:
        patch.setattr(tightness, "climb", counted)
        with pytest.raises(cli.Stopped):
            falsify.run(out=tmp_path / "run", **options)
    half = json.loads((tmp_path / "run" / tightness.RECORD).read_text())
    assert half["status"] == "running" and len(half["cells"]) == 1
    assert {float(scalars.tail) for scalars in calls} == {-1.0, tightness.TAIL}
    outcome = falsify.run(out=tmp_path / "run", **options)
    aligned, turned = outcome.record["cells"]
    assert half["cells"] == [aligned] and outcome.exit_code == 0
    for cell in outcome.record["cells"]:
        assert set(cell["bounds"]) == set(tightness.SIDES)
        for name, found in cell["bounds"].items():
            assert 0 <= found["attained"] <= 1, name
            assert math.isclose(found["attained"], found["searched"], rel_tol=1e-5, abs_tol=1e-6), name
        order = [cell["bounds"][name]["attained"] for name in ("paper", "telescoping", "transfer", "damped")]
        assert order == sorted(order)
    # with perfect alignment transfer and row-exact are attained, the paper's bound counts xi for every layer
    assert aligned["bounds"]["transfer"]["attained"] > 0.999 and aligned["bounds"]["row_exact"]["attained"] > 0.999
    assert aligned["bounds"]["paper"]["attained"] < 0.8
    assert turned["bounds"]["row_exact"]["attained"] > 0.9
    # a kept chain replays, and its scalars are the given ones
    (file,) = (tmp_path / "run" / "tightest").glob("transfer-*kappa0.6*.npz")
    assert check.run(file=file).exit_code == 0
    with pytest.raises(InputError, match="another search"):
        falsify.run(out=tmp_path / "run", **{**options, "fix": "layers=3,kappa=1,xi=0.5"})
    figure = tightness_figure(outcome.record["cells"], bounds=["paper", "transfer"], layers=[3])
    shown = [text.get_text() for text in figure.axes[1].texts]
    assert len(shown) == 2 and float(shown[0]) < float(shown[1]) >= 0.99


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"fix": "kapa=0.9"}, "layers, sigma, kappa, xi, gamma"),
        ({"fix": "kappa=1.5"}, "from 0 to 1"),
        ({"fix": "xi=0.5:x"}, "separated by colons"),
        ({"fix": "xi=0.5,xi=0.6"}, "once at most"),
        ({"fix": "layers=2"}, ">= 3"),
        ({"tightness": True, "layers": 4}, "--fix layers=4"),
        ({"tightness": True, "width": 2}, "at least 3"),
        ({"tightness": True, "claim": "c1"}, "residual_transfer"),
    ],
)
def test_bad_scalars_are_refused_in_one_line(options, says):
    with pytest.raises(InputError, match=says):
        falsify.run(**options)
