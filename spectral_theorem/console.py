"""Say what was found: one verification as words, lines and an exit code.

Input is the plain mapping of `Verification.to_dict`, so nothing here computes; output is plain text,
which the command line colours on a terminal.
"""

import contextlib
import dataclasses
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

NAMES = {"stability": "H1 stability", "alignment": "H2 alignment", "coherence": "H3 coherence", "purity": "H4 purity"}
MEANINGS = {
    "stability": "every rho_j and every S_{L,k} at least the threshold",
    "alignment": "eps_kappa L at most the threshold",
    "coherence": "one direction psi0 that every injection, signed by its path, agrees with",
    "purity": "xi L / gamma at most the threshold",
}
SHOWN_LAYERS = 12
BOUNDS = ("row_exact", "top_k", "damped", "transfer", "telescoping", "paper")


@dataclasses.dataclass(frozen=True)
class Outcome:
    """Hold what a verb of the command line ends with.

    Parameters
    ----------
    text : what a person reads, verdict first.
    record : what a machine reads, plain JSON values.
    exit_code : as in docs/design.md.
    """

    text: str
    record: Mapping[str, Any]
    exit_code: int = 0


def exit_code(chains: Sequence[Mapping[str, Any]], *, require: str | None = None) -> int:
    """Return 1 if a claim is violated, or a required condition does not hold; else 0.

    Parameters
    ----------
    chains : verifications as mappings.
    require : "conditions", or None.

    Examples
    --------
    >>> exit_code([{"claims": {}, "conditions": {"purity": {"verdict": "VIOLATED"}}}], require="conditions")
    1
    """
    violated = any(claim["verdict"] == "VIOLATED" for chain in chains for claim in chain["claims"].values())
    unmet = any(condition["verdict"] != "HOLDS" for chain in chains for condition in chain["conditions"].values())
    return int(violated or (require == "conditions" and unmet))


def verdicts(chain: Mapping[str, Any]) -> dict[str, str]:
    """Collect the verdict of every condition and claim of a verification.

    Parameters
    ----------
    chain : the verification as `to_dict` gives it.

    Examples
    --------
    >>> verdicts({"conditions": {"purity": {"verdict": "HOLDS"}}, "claims": {"c2": {"verdict": "UNDECIDED"}}})
    {'purity': 'HOLDS', 'c2': 'UNDECIDED'}
    """
    entries = {**chain["conditions"], **chain["claims"]}
    return {name: entry["verdict"] for name, entry in entries.items()}


@contextlib.contextmanager
def working(what: str) -> Iterator[None]:
    """Show on a terminal's standard error that work is going on; elsewhere nothing.

    Parameters
    ----------
    what : the work, in a few words.

    Examples
    --------
    >>> with working("counting"):
    ...     print(1)
    1
    """
    if not sys.stderr.isatty():
        yield
        return
    from rich.console import Console

    with Console(stderr=True).status(what):
        yield


def verdict_in_words(chain: Mapping[str, Any]) -> str:
    """Say in a sentence or two what a verification means.

    Parameters
    ----------
    chain : a verification as a mapping.

    Returns
    -------
    str
        One line.

    Examples
    --------
    >>> claim = {"verdict": "HOLDS", "reason": "none"}
    >>> verdict_in_words({"claims": {"c1": claim, "c2": claim}, "conditions": {"purity": {"verdict": "HOLDS"}}})
    'All hypotheses hold, and so do both conclusions, C1 and C2. All 2 applicable claims hold.'
    """
    claims, conditions = chain["claims"], chain["conditions"]
    if violated := _named(claims, "VIOLATED"):
        names = _and([_spaced(name) for name in violated])
        return (
            f"A proved claim is VIOLATED: {names}. That is a defect of this code or of the theory, "
            "not of the chain; please report it with the chain."
        )
    failed = [NAMES[name] for name in _named(conditions, "VIOLATED")]
    unknown = [NAMES[name] for name in _named(conditions, "UNDECIDED")]
    absent = {_spaced(conditions[name]["reason"]) for name in _named(conditions, "NOT_APPLICABLE")}
    if failed:
        lead = f"The theorem does not apply: {_and(failed)} {'is' if len(failed) == 1 else 'are'} violated"
        lead += f", and {_and(unknown)} undecided." if unknown else "."
    elif unknown:
        reasons = sorted({_spaced(conditions[name]["reason"]) for name in _named(conditions, "UNDECIDED")})
        lead = f"Undecided: {_and(unknown)} cannot be decided ({_and(reasons)})."
    elif absent:
        lead = f"The theorem does not speak of this chain: {_and(sorted(absent))}."
    else:
        lead = "All hypotheses hold"
    c1, c2 = claims["c1"]["verdict"], claims["c2"]["verdict"]
    if lead == "All hypotheses hold":
        both = c1 == c2 == "HOLDS"
        lead += ", and so do both conclusions, C1 and C2." if both else f"; C1 is {c1}, C2 is {c2}."
    elif "HOLDS" in (c1, c2):
        lead += f" {'C1' if c1 == 'HOLDS' else 'C2'} needs less, and holds."
    held, undecided = _named(claims, "HOLDS"), _named(claims, "UNDECIDED")
    if undecided:
        names = _and([_spaced(name) for name in undecided])
        return f"{lead} Of the applicable claims, {len(held)} hold and {len(undecided)} cannot be decided: {names}."
    return f"{lead} All {len(held)} applicable claims hold."


def verification_text(chain: Mapping[str, Any], *, title: str = "") -> str:
    """Lay out one verification: words, conditions, claims, regime, bounds, layers.

    Parameters
    ----------
    chain : a verification as a mapping.
    title : what the chain is.

    Returns
    -------
    str
        Lines of plain text, aligned by spaces.
    """
    parts = [
        "\n".join(line for line in (title, verdict_in_words(chain)) if line),
        _conditions(chain["conditions"]),
        _claims(chain["claims"]),
        _regime(chain),
        _bounds(chain),
        _layers(chain),
    ]
    return "\n\n".join(part for part in parts if part)


def sweep_text(clip: str, chains: Sequence[Mapping[str, Any]]) -> str:
    """Lay out several tokens of one clip: a line for each, and what they come to.

    Parameters
    ----------
    clip : its name.
    chains : verifications of its tokens as mappings, in order, with `step`, `transcript`, `names`.

    Returns
    -------
    str
        Lines of plain text.
    """
    first = chains[0]
    depth = len(first["layers"])
    shown = range(min(depth - 1, SHOWN_LAYERS // 2))
    head = [f"lambda {i + 1}" for i in shown]
    rows = [["step", *head, "max |kappa|", "max xi", "row exact", "paper", "regime"]]
    marks = set()
    for chain in chains:
        layers, truth = chain["layers"], chain["path"]["log_residual_norm"]
        sign = "".join(dict.fromkeys("".join(map(_marks, layers))))
        marks |= set(sign)
        most = lambda name, layers=layers: number(max((x[name] for x in layers if x[name] is not None), default=None))
        ratios = ["-" if truth is None else _times(chain["bounds"][f"log_{n}"], truth) for n in ("row_exact", "paper")]
        lams = [number(layers[i]["lam"]) for i in shown]
        rows.append(
            [f"{chain['step']}{sign}", *lams, most("kappa_abs"), most("xi"), *ratios, chain["regime"]["certified"]]
        )
    held = ", ".join(
        f"{title} {sum(c['conditions'][name]['verdict'] == 'HOLDS' for c in chains)}" for name, title in NAMES.items()
    )
    claims = [claim["verdict"] for chain in chains for claim in chain["claims"].values()]
    proven = [layer["certified"] for chain in chains for layer in chain["layers"]]
    total = f"{len(chains)} tokens, {depth} layers each"
    lines = [
        f"{clip}: {first['transcript']!r}",
        f"{total}; bounds as multiples of the residual; |kappa| of random directions {first['chance_kappa']:.4f}",
        first["note"],
        "",
        aligned(rows, words=1),
        *(MARKS[mark] for mark in MARKS if mark in marks),
        f"hypotheses hold at so many tokens: {held}",
        f"claims: {claims.count('VIOLATED')} violated, {claims.count('HOLDS')} hold, "
        f"{claims.count('UNDECIDED')} undecided, {claims.count('NOT_APPLICABLE')} not applicable",
        f"triplets: {sum(proven)} of {len(proven)} certified",
    ]
    return "\n".join(lines)


def aligned(rows: Sequence[Sequence[str]], *, words: int = 0) -> str:
    """Pad cells to columns: numbers to the right, the first column and the last `words` to the left.

    Parameters
    ----------
    rows : cells, equally many in every row.
    words : how many trailing columns hold words.

    Examples
    --------
    >>> print(aligned([["layer", "xi", "verdict"], ["1", "0.25", "HOLDS"]], words=1))
    layer    xi  verdict
    1      0.25  HOLDS
    """
    columns = list(zip(*rows, strict=True))
    padded = []
    for index, column in enumerate(columns):
        width = max(map(len, column))
        left = index == 0 or index >= len(columns) - words
        padded.append([cell.ljust(width) if left else cell.rjust(width) for cell in column])
    return "\n".join("  ".join(line).rstrip() for line in zip(*padded, strict=True))


def number(value: float | None, *, signed: bool = False) -> str:
    """Write a number in four digits, and "-" where there is none.

    Examples
    --------
    >>> number(0.000123456), number(None), number(2.0, signed=True)
    ('0.0001235', '-', '+2')
    """
    return "-" if value is None else f"{value:{'+' if signed else ''}.4g}"


def _conditions(conditions: Mapping[str, Any]) -> str:
    rows = [["condition", "value", "threshold", "margin", "error", "layer", "verdict", ""]]
    for name, condition in conditions.items():
        rows.append(_condition_row(NAMES[name], condition, MEANINGS[name]))
        rows += [_condition_row(f"  {_spaced(part)}", entry, "") for part, entry in condition["parts"].items()]
    return aligned(rows, words=2)


def _condition_row(name: str, entry: Mapping[str, Any], meaning: str) -> list[str]:
    layer = str(entry["layer"]) if entry["layer"] else "-"
    numbers = [number(entry["value"]), number(entry["threshold"]), number(entry["margin"], signed=True)]
    return [name, *numbers, number(entry["error"]), layer, _verdict(entry), meaning]


def _claims(claims: Mapping[str, Any]) -> str:
    rows = [["claim", "slack", "tolerance", "verdict", ""]]
    for name, claim in claims.items():
        numbers = [number(claim["slack"], signed=True), number(claim["tolerance"])]
        rows.append([_spaced(name), *numbers, _verdict(claim), claim["statement"]])
    return aligned(rows, words=2)


def _regime(chain: Mapping[str, Any]) -> str:
    regime = chain["regime"]
    certified, naive = regime["certified"], regime["naive"]
    differ = "" if certified == naive else "  (they differ)"
    numbers = ", ".join(
        f"{_spaced(name)} {number(regime[name])}"
        for name in ("dispersion_margin", "cone_margin", "log_contraction", "log_cone_growth")
    )
    exponents = regime["lyapunov"]
    what = "mean growth of the product's norm" if regime.get("lyapunov_by") == "norm" else "leading Lyapunov exponents"
    leading = f"{what} {', '.join(map(number, exponents[:3]))} nats per layer" if exponents else ""
    return "\n".join(
        line
        for line in (
            f"regime, certified: {certified}; the paper's reading of rho: {naive}{differ}",
            f"  {numbers}",
            f"  {leading}" if leading else "",
        )
        if line
    )


def _bounds(chain: Mapping[str, Any]) -> str:
    truth, bounds = chain["path"]["log_residual_norm"], chain["bounds"]
    if truth is None:
        return ""
    known = [name for name in BOUNDS if f"log_{name}" in bounds]
    ratios = [f"{_spaced(name)} {_times(bounds[f'log_{name}'], truth)}" for name in known]
    return f"residual norm exp({number(truth)}); bounds as multiples of it: {', '.join(ratios)}"


def _times(log_bound: float | None, log_truth: float) -> str:
    if log_bound is None:
        return "-"
    difference = log_bound - log_truth
    return f"{math.exp(difference):.4g}" if difference < 30 else f"exp({difference:.4g})"


def _layers(chain: Mapping[str, Any]) -> str:
    layers = chain["layers"]
    kept = set(range(len(layers)))
    if len(layers) > SHOWN_LAYERS:
        ends = SHOWN_LAYERS // 3
        binding = {condition["layer"] - 1 for condition in chain["conditions"].values() if condition["layer"]}
        kept = {*range(ends), *range(len(layers) - ends, len(layers)), *binding}
    rows = [["layer", "sigma1", "xi", "|kappa|", "+-", "rho", "+-", "lambda", "+-"]]
    before = -1
    for index in sorted(kept):
        if index != before + 1:
            rows.append(["..."] + [""] * 8)
        entry, before = layers[index], index
        cells = ("sigma1", "xi", "kappa_abs", "kappa_error", "rho", "rho_error", "lam", "lam_error")
        rows.append([f"{index + 1}{_marks(entry)}", *(number(entry[cell]) for cell in cells)])
    marked = [text for mark, text in MARKS.items() if any(mark in row[0] for row in rows[1:])]
    return "\n".join([aligned(rows), *marked])


MARKS = {"?": "? not resolved: sigma1 and sigma2 are too close", "~": "~ converged estimate, not certified"}


def _marks(layer: Mapping[str, Any]) -> str:
    return ("" if layer["resolved"] else "?") + ("" if layer["certified"] else "~")


def _verdict(entry: Mapping[str, Any]) -> str:
    reason = entry["reason"]
    return entry["verdict"] if reason == "none" else f"{entry['verdict']} ({_spaced(reason)})"


def _named(entries: Mapping[str, Any], verdict: str) -> list[str]:
    return [name for name, entry in entries.items() if entry["verdict"] == verdict]


def _spaced(name: str) -> str:
    return name.replace("_", " ")


def _and(names: Sequence[str]) -> str:
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))
