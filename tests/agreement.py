"""Compare what the package says of many chains with what `oracle` says of each.

`disagreements` is the one judge: tests of modules ask that it finds nothing, tests with a broken module
ask that it finds something.
"""

import math
from typing import Any

import numpy as np
import oracle

from spectral_theorem.conditions import ROWS
from spectral_theorem.types import Thresholds, Verdict

BOUNDS = {
    "log_paper": lambda s: s.paper(),
    "log_telescoping": lambda s: s.telescoping(),
    "log_transfer": lambda s: s.transfer(),
    "log_damped": lambda s: s.damped(),
    "log_row_exact": lambda s: s.row_exact()[1],
    "log_row_exact_lower": lambda s: s.row_exact()[0],
    "log_psi_lower": lambda s: s.psi_lower(),
    "log_psi_lower_sharp": lambda s: s.psi_lower_sharp(),
}
ORDER = ("residual", "log_damped", "log_transfer", "log_telescoping", "log_paper")


def stacks(chains: Any, triplets: Any) -> list[oracle.Stack]:
    """Make the oracle of every chain; where the leading pair is nearly tied, for the basis that was used."""
    leaf = lambda x, i: None if x is None else np.asarray(x[i], np.float64)
    made = []
    for i in range(chains.propagators.shape[0]):
        arrays = [leaf(x, i) for x in (chains.propagators, chains.injections, chains.initial)]
        sigma, xi = np.asarray(triplets.sigma[i, :, 0]), np.asarray(triplets.xi[i])
        tied = np.any((1 - xi) < 1e-4)
        basis = (sigma, xi, np.asarray(triplets.u[i]), np.asarray(triplets.v[i])) if tied else None
        made.append(oracle.Stack(*arrays, basis=basis))
    return made


class Findings(dict):
    """Collect name -> worst discrepancy in units of what is allowed; entries within it are not kept."""

    def close(self, name: str, got: Any, wanted: Any, allowed: Any) -> None:
        got, wanted = np.asarray(got, np.float64), np.asarray(wanted, np.float64)
        if got.shape != wanted.shape:
            self[f"{name}: shape {got.shape}, not {wanted.shape}"] = math.inf
            return
        same = (got == wanted) | (np.isnan(got) & np.isnan(wanted))
        with np.errstate(invalid="ignore"):
            excess = np.where(same, 0.0, np.abs(got - wanted) / allowed)
        worst = float(np.max(np.where(np.isnan(excess), math.inf, excess), initial=0.0))
        if worst > 1:
            self[name] = max(worst, self.get(name, 0.0))

    def true(self, name: str, statement: Any) -> None:
        if not np.all(statement):
            self[name] = math.inf


def disagreements(chains: Any, found: Any, which: list[int] | None = None) -> Findings:
    """Return what in `found` (triplets and any of path, bounds, conditions, regime) is not as the oracle says."""
    findings = Findings()
    made = stacks(chains, found.triplets)
    for i in range(len(made)) if which is None else which:
        stack = made[i]
        of = lambda part, i=i: Row(getattr(found, part, None), i)
        _triplets(findings, stack, of("triplets"))
        if len(stack.sources) == 0:
            continue
        if of("path"):
            _path(findings, stack, of("path"), of("triplets"))
        if of("bounds"):
            _bounds(findings, stack, of("bounds"), of("triplets"))
        if of("conditions"):
            _conditions(findings, stack, of("conditions"), of("triplets"), found.thresholds)
        if of("regime"):
            _regime(findings, stack, of("regime"), of("triplets"), found.thresholds)
    return findings


class Row:
    """Give entry i of every field of a batched container; false where there is no container."""

    def __init__(self, whole: Any, i: int):
        self.whole, self.i = whole, i

    def __bool__(self) -> bool:
        return self.whole is not None

    def __getattr__(self, name: str) -> Any:
        return np.asarray(getattr(self.whole, name))[self.i]


def _triplets(f: Findings, s: oracle.Stack, t: Row) -> None:
    layers, couplings = range(1, s.L + 1), range(1, s.L)
    sigma = np.array([s.sigma[l] for l in layers])
    f.close("sigma", t.sigma[:, 0], sigma, 1e-12 * sigma + 1e-300)
    f.close("xi", t.xi, [s.xi[l] for l in layers], 1e-12)
    f.close("kappa", np.abs(t.kappa), [abs(s.kappa[l]) for l in couplings], 1e-10)
    f.close("misalignment", t.misalignment, [s.s[l] for l in couplings], 1e-10)
    f.close("rho", t.rho, [s.sigma[l] * abs(s.kappa[l]) for l in couplings], 1e-10 * sigma[:-1] + 1e-300)
    sign = np.where(np.sum(t.u[:-1] * t.v[1:], axis=1) < 0, -1.0, 1.0)
    defect = 0.5 * np.sum((t.u[:-1] - sign[:, None] * t.v[1:]) ** 2, axis=1)
    f.close("alignment_defect", t.alignment_defect, defect, 1e-9 * defect + 1e-30)
    for l in layers:
        f.close("W v = sigma u", s.W[l] @ t.v[l - 1], sigma[l - 1] * t.u[l - 1], 1e-13 * sigma[l - 1] * s.D + 1e-300)
    f.close("unit u, v", [np.linalg.norm(x, axis=1) for x in (t.u, t.v)], np.ones((2, s.L)), 1e-13 * s.D)


def _path(f: Findings, s: oracle.Stack, p: Row, t: Row) -> None:
    unit = s.scale() + oracle.norm(s.G[s.L])
    if unit == 0:
        unit = 1.0
    f.close("u psi^T", np.outer(p.u, p.psi), np.outer(s.u[s.L], s.psi()), 1e-9 * unit)
    f.close("R", p.residual, s.residual(), 1e-9 * unit)
    f.close("R against J", s.jacobian() - np.outer(p.u, p.psi) - p.direct, p.residual, 1e-12 * s.L * unit)
    f.close("direct", p.direct, s.G[s.L], 1e-15)
    f.close("log scale", np.exp(p.log_scale), s.scale(), 1e-9 * s.scale() + 1e-300)
    f.true("identity error", np.exp(p.log_identity_error) <= 1e-12 * s.L * unit)
    for k in range(1, s.L):
        size = s.gain(k)
        mine = p.sign[k - 1] * np.exp(p.log_amplitude[k - 1]) * np.outer(t.u[s.L - 1], t.v[k])
        f.close("A u v^T", mine, s.amplitude(k) * np.outer(s.u[s.L], s.v[k + 1]), 1e-9 * size + 1e-300)
    f.true("entries of log A", p.log_amplitude.shape == (s.L - 1,) and p.sign.shape == (s.L - 1,))


def _blur(t: Row) -> float:
    """Return how far bounds may lie from those of the computed angles: they take the ends of error bars."""
    sure = t.resolved[:-1] & t.resolved[1:]
    return 1e-6 + 100 * float(np.max(np.where(sure, t.coupling_error, 0.0), initial=0.0))


def _has_rows(s: oracle.Stack) -> bool:
    """Say whether the directions v^T G_k are more than rounding."""
    signs = all(abs(s.kappa[j]) > 1e-12 for j in s.couplings)
    return signs and all(s.sigma[j] > 0 for j in s.met) and min(s.gammas().values(), default=0.0) > 1e-8


def _bounds(f: Findings, s: oracle.Stack, b: Row, t: Row) -> None:
    unit, blur = s.scale(), _blur(t)
    if unit > 0:
        for name, truth in BOUNDS.items():
            if name != "log_psi_lower_sharp" or _has_rows(s):
                wanted = truth(s)
                f.close(name, np.exp(getattr(b, name)), wanted, blur * wanted + (1e-11 + 1e-5 * (blur - 1e-6)) * unit)
        K = t.U.shape[-1]
        clear = s.D <= K or all(s.all_sigma[l][K - 1] - s.all_sigma[l][K] > 1e-4 * s.sigma[l] for l in s.met)
        if clear:
            lower, upper = s.top_k(K)
            f.close("log_top_k", np.exp(b.log_top_k), upper, 1e-6 * upper + 1e-11 * unit)
            f.close("log_top_k_lower", np.exp(b.log_top_k_lower), lower, 1e-6 * lower + 1e-11 * unit)
        size, slack = oracle.norm(s.residual()), 1e-11 * unit
        sizes = [size, *(float(np.exp(getattr(b, name))) for name in ORDER[1:])]
        for low, high, a, c in zip(ORDER, ORDER[1:], sizes, sizes[1:], strict=False):
            f.true(f"{low} <= {high}", a <= c + slack)
        for name in ("row_exact", "top_k"):
            f.true(f"{name} from below", np.exp(getattr(b, f"log_{name}_lower")) <= size + slack)
            f.true(f"{name} from above", np.exp(getattr(b, f"log_{name}")) >= size - slack)
        f.true("psi from below", np.exp(b.log_psi_lower_sharp) <= oracle.norm(s.psi()) + slack)
    for k in range(s.L):
        mine = b.log_total_norm if k == 0 else b.log_propagator_norm[k - 1]
        gain, wanted = s.gain(k), s.propagator_norm(k)
        f.close("product bound", np.exp(mine), wanted, blur * wanted + 1e-11 * gain + 1e-300)
        f.true("product <= bound", oracle.spectral(s.product(k)) <= np.exp(mine) + 1e-11 * gain)


def _conditions(f: Findings, s: oracle.Stack, c: Row, t: Row, thresholds: Thresholds) -> None:
    if not s.gammas():
        about = [
            ROWS.index(name) for name in ("coherence", "projection", "sign_consistency", "directionality", "purity")
        ]
        f.true("no context", c.code[about] == Verdict.NOT_APPLICABLE)
        return
    numbers = s.conditions()
    limits = {
        "gain": (thresholds.gain, 1),
        "cumulative_gain": (thresholds.cumulative_gain, 1),
        "alignment": (thresholds.alignment, -1),
        "projection": (thresholds.gamma_min, 1),
        "sign_consistency": (thresholds.coherence, 1),
        "purity": (thresholds.purity, -1),
    }
    first = s.first
    clear = bool(np.all(t.resolved[first:]))
    sure = not any(abs(s.kappa[j]) < 1e-6 for j in s.couplings)
    for name, value in numbers.items():
        if name in ("sign_consistency", "purity") and not _has_rows(s):
            continue
        threshold, way = limits[name]
        i = ROWS.index(name)
        f.close(f"{name} value", c.value[i], value, 1e-6 * abs(value) + 1e-9)
        f.close(f"{name} threshold", c.threshold[i], threshold, 1e-7)
        margin = way * (value - threshold)
        if math.isfinite(margin):
            f.close(f"{name} margin", c.margin[i], margin, 1e-6 * abs(value) + 1e-9)
        decided = abs(margin) > 1e-3 * threshold
        ready = (clear or name == "cumulative_gain") and (sure or name != "sign_consistency")
        if decided and ready:
            wanted = Verdict.HOLDS if margin > 0 else Verdict.VIOLATED
            f.true(f"{name} verdict", c.code[i] == wanted)
    both = lambda a, b: _and(c.code[ROWS.index(a)], c.code[ROWS.index(b)])
    f.true("H1 = gain and cumulative gain", c.code[ROWS.index("stability")] == both("gain", "cumulative_gain"))
    f.true("H3 = (a) and (b, c)", c.code[ROWS.index("coherence")] == both("projection", "sign_consistency"))


def _and(a: int, b: int) -> int:
    for code in (Verdict.VIOLATED, Verdict.UNDECIDED, Verdict.HOLDS):
        if code in (a, b):
            return code
    return Verdict.NOT_APPLICABLE


def _regime(f: Findings, s: oracle.Stack, r: Row, t: Row, thresholds: Thresholds) -> None:
    cone, blur = s.cone(), _blur(t)
    if abs(cone["margin"]) < 1e6:
        f.close("cone margin", r.cone_margin, cone["margin"], blur * (1 + abs(cone["margin"])) ** 2)
        if all(s.xi[j + 1] > 1e-8 for j in s.couplings):  # below that a factor is little but rounding
            f.close("contraction", np.exp(r.log_contraction), cone["contraction"], 10 * blur * cone["contraction"])
        f.close("closed growth", np.exp(r.log_cone_growth), cone["closed"], 10 * blur * cone["closed"] + 1e-300)
        if cone["margin"] > blur:
            f.close("tracked growth", np.exp(r.log_tracked_growth), cone["tracked"], blur * cone["tracked"] + 1e-300)
            # error bars of the couplings add up along the way: an angle of 0 becomes their sum
            bars = s.L * (blur - 1e-6) + 1e-12
            f.close("output angle", r.output_angle, cone["angle"], blur * cone["angle"] + bars)
            for mine, k in zip(r.caught, s.sources, strict=True):
                f.true("caught", mine == cone["caught"][k] or _borderline(s, k))
    if all(s.propagator_norm(k) > 0 for k in s.sources):
        margin = s.dispersion_margin(thresholds.dispersion_constant, thresholds.dispersion_rate)
        f.close("dispersion margin", r.dispersion_margin, margin, blur * (1 + abs(margin)))


def _borderline(s: oracle.Stack, k: int) -> bool:
    """Say whether G_k lies within rounding of the edge of its cone."""
    across = oracle.norm(s.G[k] - np.outer(s.v[k + 1], s.row(k)))
    chi = math.sqrt((1 + s.s[k + 1]) / (1 - s.s[k + 1])) if k + 1 < s.L else 1.0
    a, b = oracle.norm(s.row(k)), across * s.xi[k + 1] * chi
    return abs(a - b) <= 1e-6 * oracle.norm(s.G[k])
