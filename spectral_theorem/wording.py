"""Say in sentences what a record's numbers and codes mean: reasons, units, captions, regimes.

Plain mappings of `Verification.to_dict` in, sentences out; short forms for a terminal are in `console`.
"""

import math
from collections.abc import Iterable, Mapping
from typing import Any

from .console import NAMES, number

REASONS = {
    "none": "",
    "within_tolerance": "the difference is within the error: rounding could turn it",
    "tie": "σ₁ = σ₂ in a layer that counts: its vectors, and what is built on them, are a choice",
    "unresolved": "σ₁ and σ₂ of a layer that counts are too close to know its vectors",
    "nan": "a number in it is not a number",
    "no_context": "nothing is injected",
    "single_layer": "no injection meets a layer here: there is nothing to ask",
    "vacuous": "no coupling is met here: there is nothing that could fail",
    "needs_condition": "a threshold is set looser than the theorem's own constant, and proves nothing",
    "equal_by_construction": "both sides are the same number by construction",
    "unsure_sign": "the sign of some κ is within its error, so the signs of the path are not known",
    "duality_gap": "the search for ψ₀ did not settle on one side of the threshold",
}
PARTS = {
    "gain": "every ρ that an injection meets",
    "cumulative_gain": "the product of σ₁ from every injection to the output",
    "gain_literal": "from j = 1, as the paper writes it; decides nothing",
    "alignment_literal": "from j = 1, as the paper writes it; decides nothing",
    "projection": "(a) every injection has this share in the direction v",
    "directionality": "(b) alone, signs ignored; decides nothing",
    "sign_consistency": "(b) and (c) together: signed injections agree with one direction",
    "purity_literal": "from j = 1, as the paper writes it; decides nothing",
}
SCALE, GAIN = "Σ S·‖G‖", "Π σ₁"
UNITS = {"propagator_norm": GAIN, "total_norm": GAIN, "cone_growth": GAIN} | {
    "cone_angle": "radians",
    "dispersion": "right side",
}
CERTIFICATES = {"dispersion": "certified decay", "cone_growth": "a certified cone", "cone_angle": "a certified cone"}
BOUND_WORDS = {
    "paper": ("the paper's bound", "upper"),
    "telescoping": ("telescoping bound", "upper"),
    "transfer": ("transfer bound", "upper"),
    "damped": ("damped bound", "upper"),
    "top_k": ("top-K bound", "upper"),
    "row_exact": ("row-exact bound", "upper"),
    "row_exact_lower": ("row-exact bound", "lower"),
    "top_k_lower": ("top-K bound", "lower"),
}
NAIVE = {
    "DISPERSIVE": "every ρ is below 1, which it takes for decay",
    "ATTRACTOR": "every ρ is at least 1, which it takes for attraction",
    "INDETERMINATE": "no single answer: ρ lies on both sides of 1, is not resolved, or has no coupling",
}
DIFFERENCES = {
    ("INDETERMINATE", "DISPERSIVE"): "ρ follows the leading direction only. What leaves it can grow in the others, so "
    "ρ < 1 proves no decay, and the certificate finds none",
    ("INDETERMINATE", "ATTRACTOR"): "ρ ≥ 1 says that the leading direction does not shrink, not that others turn "
    "towards it; with these κ and ξ no invariant cone could be certified",
    ("DISPERSIVE", "ATTRACTOR"): "the leading direction does not shrink, but over this depth all products stay "
    "within the allowance K0",
    ("DISPERSIVE", "INDETERMINATE"): "the certificate bounds whole products, where ρ looks at one coupling at a time",
    ("ATTRACTOR", "DISPERSIVE"): "directions are caught and the gain over the whole depth is at least 1, although "
    "every single ρ is below 1",
    ("ATTRACTOR", "INDETERMINATE"): "directions are caught and the gain over the whole depth is at least 1, although "
    "some single ρ is not",
}
CONDITION_CAPTION = (
    "Each hypothesis on its own axis. Dashed: the threshold; hatched: where it fails. The bar is the interval "
    "in which the exact value lies: a bar that is not seen is shorter than the marker, one with an arrow goes on. "
    "Of a hypothesis with several parts, the one that binds is drawn."
)
BOUND_CAPTION = (
    "Every bound and the true residual for the chain cut off at each depth, as shares of the scale Σ S·‖G‖, the size "
    "of all injections carried to that depth. The lower an upper bound, the sharper. Shaded: between the two row-exact "
    "bounds; where the lower one is 0, the shade goes on below."
)
SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def reason_in_words(entry: Mapping[str, Any], conditions: Mapping[str, Any]) -> str:
    """Say why a verdict is not a plain one.

    Parameters
    ----------
    entry : a condition or a claim. conditions : all conditions, which a claim may need.

    Returns
    -------
    str
        A clause without a full stop; empty for a plain verdict.

    Examples
    --------
    >>> entry = {"reason": "needs_condition", "needs": ["purity"]}
    >>> reason_in_words(entry, {"purity": {"verdict": "VIOLATED"}})
    'it needs H4 purity (VIOLATED)'
    """
    reason = str(entry["reason"])
    if reason != "needs_condition":
        return REASONS[reason] if reason in REASONS else reason.replace("_", " ")
    if not entry["needs"]:
        return "it speaks of a certificate that this chain does not have"
    missing = {NAMES[name]: conditions[name]["verdict"].replace("_", " ") for name in entry["needs"]}
    listed = ", ".join(f"{name} ({verdict})" for name, verdict in missing.items() if verdict != "HOLDS")
    return f"it needs {listed}" if listed else REASONS[reason]


def regime_in_words(chain: Mapping[str, Any]) -> list[str]:
    """Say what is certified of a chain's regime, what the paper's criterion would say, and where they differ.

    Parameters
    ----------
    chain : a verification as a mapping.

    Returns
    -------
    list of str
        Paragraphs.

    Examples
    --------
    >>> regime = {"certified": "INDETERMINATE", "naive": "DISPERSIVE", "dispersion_margin": -3.0, "cone_margin": 0.5}
    >>> thresholds = {"dispersion_constant": 10.0, "dispersion_rate": 0.01}
    >>> for line in regime_in_words({"regime": regime | {"lyapunov": [0.2]}, "thresholds": thresholds}):
    ...     print(line)
    Regime, certified: INDETERMINATE: neither certificate applies: decay misses by 3 nats.
    The paper's reading of ρ alone: DISPERSIVE: every ρ is below 1, which it takes for decay.
    The two differ: ρ follows the leading direction only. What leaves it can grow in the others, ...
    Leading finite-time Lyapunov exponents: 0.2 nats per layer.
    """
    regime, thresholds = chain["regime"], chain["thresholds"]
    certified, naive = regime["certified"], regime["naive"]
    k0, delta = number(thresholds["dispersion_constant"]), number(thresholds["dispersion_rate"])
    spare, cone = regime["dispersion_margin"], regime["cone_margin"]
    growing = certified == "DISPERSIVE" and regime["dispersion_rate"] is not None and regime["dispersion_rate"] <= 0
    agree = f" The two agree{' in name only' * growing}." if certified == naive else ""
    if certified == "DISPERSIVE":
        meaning = f"every product W_L…W_(k+1) is at most {k0}·exp(-{delta}·(L-k)), with {number(spare)} nats to spare"
        if growing:
            meaning += (
                f". That bound grows by {number(-regime['dispersion_rate'])} nats per layer: over so few layers the "
                f"allowance of {k0} covers it, and nothing is said of decay"
            )
    elif certified == "ATTRACTOR":
        contraction, growth = power(regime["log_contraction"]), power(regime["log_tracked_growth"])
        meaning = (
            f"every layer maps a cone of directions into the next one's, with margin {number(cone)}; distances between "
            f"directions contract to {contraction}, the path grows by a factor of {growth}, and {regime['caught']} of "
            f"{regime['injections']} injections are caught as a block"
        )
    else:
        margins = (("decay misses by", spare, " nats"), ("the cone by", cone, ""))
        missed = [f"{what} {number(-by)}{unit}" for what, by, unit in margins if by is not None and by < 0]
        meaning = f"neither certificate applies{': ' * bool(missed)}{', '.join(missed)}"
    lines = [
        f"Regime, certified: {certified}: {meaning}.",
        f"The paper's reading of ρ alone: {naive}: {NAIVE[naive]}.{agree}",
        *([f"The two differ: {DIFFERENCES[certified, naive]}."] if certified != naive else []),
    ]
    if exponents := [number(value) for value in regime["lyapunov"][:3]]:
        by_norm = regime.get("lyapunov_by") == "norm"
        what = "Mean growth of the product's norm" if by_norm else "Leading finite-time Lyapunov exponents"
        lines.append(f"{what}: {', '.join(exponents)} nats per layer.")
    return lines


def power(log: float | None) -> str:
    """Write exp(log) in three digits, however large or small.

    Examples
    --------
    >>> power(0.0), power(-1000.0), power(None)
    ('1', '5.08·10⁻⁴³⁵', '-')
    """
    if log is None:
        return "-"
    if abs(log) < math.log(1e4):
        return number(math.exp(log))
    exponent = math.floor(log / math.log(10))
    mantissa = math.exp(log - exponent * math.log(10))
    return f"{mantissa:.3g}·10{str(exponent).translate(SUPERSCRIPT)}"


def layer_caption(chain: Mapping[str, Any], *, marked: int) -> str:
    """Say what is drawn in the figure of layers.

    Parameters
    ----------
    chain : a verification as a mapping. marked : number of layers up to which markers are drawn.

    Examples
    --------
    >>> layer = {"layer": 1, "resolved": True, "certified": False}
    >>> layer_caption({"layers": [layer], "regime": {"injections": 0}}, marked=100)
    'Layers count from 1. Dashed: ... Hollow: converged estimates, not certified.'
    """
    layers = chain["layers"]
    listed = lambda flag: [layer["layer"] for layer in layers if not layer[flag]]
    spans = ", ".join(str(a) if a == b else f"{a}–{b}" for a, b in ranges(listed("resolved")))
    lines = [
        "Layers count from 1. Dashed: what a hypothesis asks of every layer that counts, and λ = 0.",
        "Layer 1 and its coupling with layer 2 meet no injection: they are shown, and no hypothesis asks about them."
        if 1 < len(layers) and chain["regime"]["injections"] < len(layers)
        else "",
        "Dotted: the mean |κ| of two random directions in this space." if chain.get("chance_kappa") is not None else "",
        f"Hatched and marked ?: not resolved, σ₁ and σ₂ are too close to tell their vectors apart (layers {spans}); "
        "couplings there have no value."
        if spans
        else "",
        "Hollow: converged estimates, not certified." if listed("certified") else "",
        f"Beyond {marked} layers curves have no markers, and errors are a band." if len(layers) > marked else "",
    ]
    return " ".join(filter(None, lines))


def ranges(numbers: Iterable[int]) -> list[tuple[int, int]]:
    """Join neighbouring numbers of an ascending list to (first, last).

    Examples
    --------
    >>> ranges([1, 4, 5, 6, 9])
    [(1, 1), (4, 6), (9, 9)]
    """
    found: list[tuple[int, int]] = []
    for value in numbers:
        if found and value == found[-1][1] + 1:
            found[-1] = (found[-1][0], value)
        else:
            found.append((value, value))
    return found
