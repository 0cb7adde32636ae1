"""Say what many tokens of one clip come to: verdicts in words, margins, one row per token, captions.

Plain mappings of `Verification.to_dict` in, sentences and cells out; nothing is estimated here.
"""

import itertools
import math
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from .console import NAMES
from .wording import power, ranges

CLOSE = 4  # tokens that are shown in full
STEP_COLUMNS = (
    *("step", "token", *(f"{name.split()[0]} margin" for name in NAMES.values())),
    *("largest |κ|", "largest ξ", "‖R_Σ‖", "row-exact", "top-K", "transfer", "telescoping", "paper's"),
    *("certified regime", "triplets"),
)
BOUNDS = ("row_exact", "top_k", "transfer", "telescoping", "paper")
ERRORS = (("λ", "lam_error"), ("|κ|", "kappa_error"), ("ξ", "xi_error"), ("σ₁", "sigma_error"))

Chain = Mapping[str, Any]


def clips_of(chains: Mapping[str, Chain]) -> dict[str, dict[str, Chain]]:
    """Collect the chains of clips that were measured at several tokens, by clip, in order of steps.

    Parameters
    ----------
    chains : of a run's summary.

    Returns
    -------
    dict
        Clip to (key to chain); empty unless some clip has several. A clip with one token is then among them.

    Examples
    --------
    >>> chains = {"a, step 1": {"clip": "a", "step": 1}, "a, step 0": {"clip": "a", "step": 0}, "b": {"step": 0}}
    >>> clips_of(chains)["a"].keys(), clips_of({"a": {"clip": "a", "step": 0}})
    (dict_keys(['a, step 0', 'a, step 1']), {})
    """
    found: dict[str, dict[str, Chain]] = {}
    for key, chain in sorted(chains.items(), key=lambda item: item[1].get("step", 0)):
        if chain.get("clip") is not None and chain.get("step") is not None:
            found.setdefault(str(chain["clip"]), {})[key] = chain
    several = any(len({chain["step"] for chain in each.values()}) > 1 for each in found.values())
    order = list(dict.fromkeys(str(chain.get("clip")) for chain in chains.values()))
    return {clip: found[clip] for clip in order if clip in found} if several else {}


def sweep_in_words(chains: Sequence[Chain]) -> list[str]:
    """Say in a few sentences what the tokens of one clip come to, the verdict first.

    Parameters
    ----------
    chains : verifications of its tokens as mappings, in order, with `step`.

    Returns
    -------
    list of str
        Paragraphs.
    """
    total = _counted(len(chains), "token")
    claims = [claim["verdict"] for chain in chains for claim in chain["claims"].values()]
    count = Counter(claims)
    broken = {chain["step"]: _names(chain["claims"], "VIOLATED") for chain in chains}
    broken = {step: names for step, names in broken.items() if names}
    if broken:
        listed = "; ".join(f"step {step}: {', '.join(names)}" for step, names in broken.items())
        lead = f"A proved claim is VIOLATED, which is a defect of this code or of the theory: {listed}."
    else:
        lead = f"No claim is violated at {total}"
        lead += f": {count['HOLDS']} hold, {count['UNDECIDED']} cannot be decided, "
        lead += f"{count['NOT_APPLICABLE']} do not apply."
    met = sum(all(c["verdict"] == "HOLDS" for c in chain["conditions"].values()) for chain in chains)
    each = ", ".join(f"{title} at {_verdicts(chains, name)['HOLDS']}" for name, title in NAMES.items())
    hypotheses = f"All four hypotheses hold at {met} of {total}: {each}."
    conclusions = [sum(chain["claims"][name]["verdict"] == "HOLDS" for chain in chains) for name in ("c1", "c2")]
    hypotheses += f" The conclusions C1 and C2 hold at {conclusions[0]} and {conclusions[1]}."
    layers = [layer for chain in chains for layer in chain["layers"]]
    proven, open_ = sum(layer["certified"] for layer in layers), sum(not layer["resolved"] for layer in layers)
    triplets = f"Triplets: {proven} of {len(layers)} certified"
    triplets += ", the others converged estimates" if proven < len(layers) else ""
    triplets += (
        f"; {open_} not resolved: σ₁ and σ₂ too close to tell their vectors apart." if open_ else "; all resolved."
    )
    regimes = Counter(chain["regime"]["certified"] for chain in chains)
    differ = sum(chain["regime"]["certified"] != chain["regime"]["naive"] for chain in chains)
    regime = ", ".join(f"{name} at {times}" for name, times in regimes.most_common())
    regime = f"Regime, certified: {regime}. The paper's reading of ρ alone differs at {_counted(differ, 'token')}."
    return [lead, hypotheses, triplets, regime]


def hypothesis_rows(chains: Sequence[Chain]) -> list[list[str]]:
    """Return one row of cells per hypothesis: how often each verdict, median margin, worst margin and where.

    Parameters
    ----------
    chains : as in `sweep_in_words`.
    """
    rows = []
    for name, title in NAMES.items():
        count = _verdicts(chains, name)
        margins = [(margin(chain["conditions"][name]), chain) for chain in chains]
        known = [(value, chain) for value, chain in margins if value is not None]
        median = worst = where = "-"
        if known:
            value, chain = min(known, key=lambda pair: pair[0])
            worst = _signed(value)
            layer = chain["conditions"][name]["layer"]
            where = f"step {chain['step']}" + (f", layer {layer}" if layer else "")
            median = _signed(statistics.median_low([each for each, _ in known]))
        verdicts = [str(count[verdict]) for verdict in ("HOLDS", "VIOLATED", "UNDECIDED", "NOT_APPLICABLE")]
        rows.append([title, *verdicts, median, worst, where])
    return rows


def margin(condition: Mapping[str, Any]) -> float | None:
    """Return a margin, infinite where the verdict is sure and the number is none, None where nothing is known.

    Examples
    --------
    >>> margin({"margin": None, "verdict": "VIOLATED"}), margin({"margin": None, "verdict": "UNDECIDED"})
    (-inf, None)
    """
    if condition["margin"] is not None:
        return float(condition["margin"])
    return {"HOLDS": math.inf, "VIOLATED": -math.inf}.get(condition["verdict"])


def step_row(chain: Chain, text: str) -> dict[str, Any]:
    """Return what the table of tokens says about one: cells before, verdicts with margins, cells after.

    Parameters
    ----------
    chain : a verification as a mapping. text : of its token.
    """
    layers, truth = chain["layers"], chain["path"]["log_residual_norm"]
    largest = lambda key: max((x[key] for x in layers if x[key] is not None), default=None)
    most = lambda key: "-" if largest(key) is None else f"{largest(key):.3g}"
    ratio = lambda bound: "-" if truth is None or bound is None else power(bound - truth)
    conditions = [(chain["conditions"][name]["verdict"], _signed(margin(chain["conditions"][name]))) for name in NAMES]
    proven, open_ = sum(x["certified"] for x in layers), sum(not x["resolved"] for x in layers)
    triplets = f"{proven}/{len(layers)}" + (f", {open_} ?" if open_ else "")
    certified, naive = chain["regime"]["certified"], chain["regime"]["naive"]
    return {
        "step": str(chain["step"]),
        "token": text,
        "margins": conditions,
        "numbers": [
            most("kappa_abs"),
            most("xi"),
            "0" if truth is None and chain["path"]["log_scale"] is not None else power(truth),
            *(ratio(chain["bounds"][f"log_{name}"]) for name in BOUNDS),
        ],
        "words": [f"{certified}{'' if certified == naive else ' *'}", triplets],
        "violated": ", ".join(_names(chain["claims"], "VIOLATED")),
    }


def token_text(chain: Chain) -> str:
    """Return what the token of a chain says, in quotation marks, or its number.

    Examples
    --------
    >>> token_text({"token": 4, "token_text": "Ġfour"}), token_text({"token": 4}), token_text({"step": 0})
    ('" four"', 'id 4', '')
    """
    if chain.get("token_text") is None:
        return f"id {chain['token']}" if "token" in chain else ""
    plain = str(chain["token_text"]).replace("Ġ", " ").replace("Ċ", "⏎")
    return plain if plain.startswith("<|") else f'"{plain}"'


def step_name(chain: Chain) -> str:
    """Return text and step of a token, short enough for an axis."""
    text = token_text(chain)
    return f"{text if len(text) <= 16 else text[:15] + '…'}  {chain['step']}"


def close_ups(chains: Mapping[str, Chain]) -> list[str]:
    """Choose the few tokens to show in full: those with a violated claim, then the worst of each hypothesis.

    Parameters
    ----------
    chains : of one clip, by key.

    Returns
    -------
    list of str
        Keys, in order of steps.
    """
    first = [key for key, chain in chains.items() if _names(chain["claims"], "VIOLATED")]
    for name in NAMES:
        margins = {key: margin(chain["conditions"][name]) for key, chain in chains.items()}
        known = {key: value for key, value in margins.items() if value is not None}
        first += [min(known, key=known.__getitem__)] if known else []
    chosen = list(dict.fromkeys(first or chains))[:CLOSE]
    return [key for key in chains if key in chosen]


def map_caption(chains: Sequence[Chain]) -> str:
    """Say what the maps of layers and tokens show, and how large their errors are.

    Parameters
    ----------
    chains : as in `sweep_in_words`.
    """
    layers = [layer for chain in chains for layer in chain["layers"]]
    largest = []
    for sign, key in ERRORS:
        known = [layer[key] for layer in layers if layer.get(key) is not None]
        largest += [f"{sign} ± {max(known):.2g}"] if known else []
    lines = [
        "One column per token, one row per layer or per coupling of two layers, layer 1 at the bottom. Each map has "
        "colours of its own, with their values beside it. λ: blue below 0, brown above, grey at 0.",
        "Chance: the mean |κ| of two random directions in this space." if chains[0].get("chance_kappa") else "",
        f"Largest error bars: {', '.join(largest)}." if largest else "",
        "Hatched, with ?: not resolved, so a coupling there has no value."
        if any(not x["resolved"] for x in layers)
        else "",
        "~: a converged estimate, not certified." if any(not x["certified"] for x in layers) else "",
        "Crossed: no number, as λ where κ is 0." if _crossed(chains) else "",
        _skipped(chains),
    ]
    return " ".join(filter(None, lines))


def judgement_caption(chains: Sequence[Chain]) -> str:
    """Say what the figure of bounds and hypotheses shows, and how far the residual is known.

    Parameters
    ----------
    chains : as in `sweep_in_words`.
    """
    vague = []
    for chain in chains:
        truth, error = (chain["path"].get(key) for key in ("log_residual_norm", "log_residual_error"))
        if truth is not None and error is not None and error >= truth:
            vague.append(chain["step"])
    lines = [
        "Above: each upper bound divided by the residual, on a logarithmic axis: the nearer to 1, the sharper.",
        f"At {_counted(len(vague), 'token')} ({_spans(vague)}) the residual is within its own error: its interval, in "
        "grey, goes down to 0, and the true ratio of a bound may be as small as its distance from the top of the grey."
        if vague
        else "",
        "Below: each hypothesis' value (● holds, ✖ is violated, ◆ is undecided) against its threshold, dashed; it "
        "fails where it is hatched, and the distance to the dashed line is the margin.",
        _skipped(chains),
    ]
    return " ".join(filter(None, lines))


def _skipped(chains: Sequence[Chain]) -> str:
    steps = [chain["step"] for chain in chains]
    return "A gap between columns: steps left out." if steps[-1] - steps[0] >= len(steps) else ""


def _crossed(chains: Sequence[Chain]) -> bool:
    for chain in chains:
        layers = chain["layers"]
        sure = [a["resolved"] and b["resolved"] for a, b in itertools.pairwise(layers)]
        if any(known and layer["lam"] is None for known, layer in zip(sure, layers, strict=False)):
            return True
    return False


def _spans(steps: Sequence[int]) -> str:
    spans = ", ".join(str(a) if a == b else f"{a}–{b}" for a, b in ranges(steps))
    return f"step {spans}" if len(steps) == 1 else f"steps {spans}"


def _verdicts(chains: Sequence[Chain], name: str) -> Counter[str]:
    return Counter(chain["conditions"][name]["verdict"] for chain in chains)


def _names(claims: Mapping[str, Any], verdict: str) -> list[str]:
    return [name.replace("_", " ") for name, claim in claims.items() if claim["verdict"] == verdict]


def _counted(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"


def _signed(value: float | None) -> str:
    if value is None or math.isnan(value):
        return "-"
    return f"{'+' if value > 0 else '-'}∞" if math.isinf(value) else f"{value:+.3g}"
