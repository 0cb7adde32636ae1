"""Rank clips by how unlike the clean ones they are, without knowing what was said.

Thresholds come from the user's own clean clips: a score's p-value is the share of clean clips that are at least as
extreme, which is exact for clips like the clean ones.
"""

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .sections import Section, not_computed
from .storage import write_atomically
from .tables import Column, Table

ID, TITLE = "suspicious", "Suspicious clips"
FILE = "suspicious.csv"
LEVEL = 0.05
# score → (what it is, +1 where larger is more suspicious)
SIGNS = {
    "repeats": ("repetitions of a phrase", 1),
    "agreement": ("share of other recordings with the same transcript", 1),
    "avg_logprob": ("average log-probability", -1),
    "compression_ratio": ("compression ratio", 1),
    "no_speech_prob": ("no-speech probability", 1),
    "context_gain": ("log‖J_L‖", -1),
}
COLUMNS = ("clip", "condition", "p", "flagged", "because", "value", "threshold", "transcript")


def signs(cell: Any) -> dict[str, float]:
    """Return the scores of one cell, NaN where it has none.

    Parameters
    ----------
    cell : of a `Study`.
    """
    number = lambda x: np.nan if x is None else float(x)
    gain = np.asarray(cell.layers.get("log_context_gain", np.nan), float)
    return {
        "repeats": number(cell.behaviour.repeats),
        "agreement": number(cell.behaviour.agreement),
        "avg_logprob": number(cell.transcript.avg_logprob),
        "compression_ratio": number(cell.transcript.compression_ratio),
        "no_speech_prob": number(cell.transcript.no_speech_prob),
        "context_gain": float(gain[np.isfinite(gain)].mean()) if np.isfinite(gain).any() else np.nan,
    }


def conformal(values: np.ndarray, clean: np.ndarray, own: np.ndarray) -> np.ndarray:
    """Return p-values: the share of clean values at least as large, the value itself counted in.

    Parameters
    ----------
    values : (n,). clean : (m,). own : (n,) bool, whether a value is one of the clean ones.

    Examples
    --------
    >>> conformal(np.asarray([5.0, 0.0]), np.arange(4.0), np.asarray([False, True])).tolist()
    [0.2, 1.0]
    """
    above = (clean >= values[:, None]).sum(axis=1)
    return np.where(own, above / max(len(clean), 1), (above + 1) / (len(clean) + 1))


def limit(clean: np.ndarray, level: float) -> float | None:
    """Return the value beyond which at most a share `level` of clips like the clean ones lie.

    Parameters
    ----------
    clean : (m,) scores of clean clips, larger is more suspicious. level : between 0 and 1.

    Returns
    -------
    float or None
        A score above it has a `conformal` p-value of at most `level`; None where so few clean clips give none.

    Examples
    --------
    >>> limit(np.arange(9.0), 0.1), limit(np.arange(19.0), 0.1), limit(np.arange(8.0), 0.1)
    (8.0, 17.0, None)
    """
    beyond = int(np.floor(level * (len(clean) + 1))) - 1
    return float(np.sort(clean)[::-1][beyond]) if beyond >= 0 else None


def suspicious_rows(cells: Sequence[Any], clean: str) -> list[dict[str, Any]]:
    """Rank cells, the most suspicious first.

    Parameters
    ----------
    cells : of a `Study`. clean : the condition that thresholds come from.

    Returns
    -------
    list of rows with the names of `COLUMNS`
        `p` is the smallest over scores, times their number; `flagged` where it is at most 0.05; `because` names that
        score, with its `value` and the `threshold` beyond which it flags a clip by itself, None where too few clean
        clips give none.
    """
    found = [signs(cell) for cell in cells]
    own = np.asarray([cell.condition == clean for cell in cells])
    scores, p = [], []
    for name, (_, sign) in SIGNS.items():
        values = sign * np.asarray([each[name] for each in found])
        reference = values[own & np.isfinite(values)]
        if reference.size and np.isfinite(values).any():
            scores.append((name, sign, reference))
            p.append(np.where(np.isfinite(values), conformal(values, reference, own), 1.0))
    if not scores:
        return []
    table = np.minimum(np.asarray(p) * len(scores), 1.0)
    rows = []
    for i, cell in enumerate(cells):
        name, sign, reference = scores[int(np.argmin(table[:, i]))]
        edge = limit(reference, LEVEL / len(scores))
        rows.append(
            {
                "clip": cell.clip,
                "condition": cell.condition,
                "p": float(table[:, i].min()),
                "flagged": bool(table[:, i].min() <= LEVEL),
                "because": SIGNS[name][0],
                "value": found[i][name],
                "threshold": None if edge is None else sign * edge,
                "transcript": cell.transcript.text,
            }
        )
    return sorted(rows, key=lambda row: (row["p"], row["condition"], row["clip"]))


def suspicion_section(cells: Sequence[Any], clean: str, *, most: int = 20) -> Section:
    """Say how many clips are suspicious, and list the worst.

    Parameters
    ----------
    cells, clean : as in `suspicious_rows`. most : clips listed.

    Returns
    -------
    Section
        The statement is that clips under stress are flagged more often than clean ones are by chance.
    """
    if not any(cell.condition == clean for cell in cells):
        return not_computed(ID, TITLE, "there is no clean clip to take thresholds from")
    rows = suspicious_rows(cells, clean)
    if not rows:
        return not_computed(ID, TITLE, "no clip has a score")
    others = [row for row in rows if row["condition"] != clean]
    flagged, n = sum(row["flagged"] for row in others), len(others)
    few = sum(cell.condition == clean for cell in cells)
    sentence = (
        f"{flagged} of {n} clips that are not {clean} are flagged; of clips like the {few} {clean} ones at most "
        f"{LEVEL:.0%} are."
    )
    needed = int(np.ceil(len(SIGNS) / LEVEL)) - 1
    if few < needed:
        sentence += (
            f" It takes {needed} {clean} clips for every score to be able to flag one: here only ranks are meant."
        )
    verdict = "UNDECIDED"
    if n:
        low, high = share_interval(flagged, n)
        if few >= needed:
            verdict = "HOLDS" if low > LEVEL else "VIOLATED" if high < LEVEL else "UNDECIDED"
        sentence += f" Share flagged: {flagged / n:.1%} [{low:.1%}, {high:.1%}]."
    table = Table(
        "suspicious",
        1,
        f"The most suspicious clips; all of them are in {FILE}.",
        tuple(map(Column, COLUMNS)),
        tuple(
            tuple("yes" if row[c] is True else "no" if row[c] is False else row[c] for c in COLUMNS)
            for row in rows[:most]
        ),
    )
    return Section(ID, TITLE, verdict, sentence, (table,))


def share_interval(count: int, n: int, level: float = 0.95) -> tuple[float, float]:
    """Return the exact interval of a share (Clopper and Pearson).

    Examples
    --------
    >>> [round(end, 3) for end in share_interval(0, 10)]
    [0.0, 0.308]
    """
    from scipy import stats

    found = stats.binomtest(count, n).proportion_ci(level, method="exact")
    return float(found.low), float(found.high)


def write_suspicious(folder: Path, rows: Sequence[dict[str, Any]]) -> Path:
    """Write all ranked clips as CSV.

    Parameters
    ----------
    folder : of the run. rows : of `suspicious_rows`.
    """
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: "" if row[name] is None else row[name] for name in COLUMNS} for row in rows)
    return write_atomically(folder / FILE, lambda file: file.write(text.getvalue().encode()))
