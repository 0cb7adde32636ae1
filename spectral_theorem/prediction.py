r"""Predict behaviour from scalars that never saw it: regimes and detectors, fitted on some clips and judged on others.

Labels come from audio and texts alone (`behaviour`); scores come from layers, or are those that every decoder has.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .association import Estimate
from .constancy import halves
from .observables import effective_rank, spectral_slope, spectrum
from .regimes import phase
from .resampling import interval_of
from .sections import Answer, Section, above, as_cells, not_computed, shown
from .tables import Column, Table
from .types import Regime

ID, TITLE = "prediction", "Does any of it predict hallucination?"
# score → (what it is, +1 where the hypothesis or the custom has it rise with hallucination, else -1)
SCORES: Mapping[str, tuple[str, int]] = {
    "lam": ("mean λ", 1),
    "log_sigma1": ("mean log σ₁", 1),
    "kappa_abs": ("mean |κ|", 1),
    "xi": ("mean ξ", -1),
    "growth_bound": ("mean log σ₁r*, the sharp growth rate", 1),
    "context_gain": ("mean log‖J_L‖", -1),
    "slope": ("mean spectral slope α", 1),
    "effective_rank": ("mean N_eff", -1),
    "avg_logprob": ("average log-probability", -1),
    "no_speech_prob": ("no-speech probability", 1),
    "compression_ratio": ("compression ratio", 1),
    "tokens": ("length of the transcript (control)", 1),
}
SCALARS = ("log_sigma1", "kappa_abs", "xi")
THEORY = ("lam", "context_gain", "slope", "effective_rank")
STANDARD = ("avg_logprob", "no_speech_prob", "compression_ratio")
FEWEST = 5  # of a class, below which nothing is said
PENALTY = 1.0  # of the squared weights, on standardised scores
WINDOW = 10  # eigenvalues: a digit string has about ten positions


def cell_scores(cell: Any) -> dict[str, float]:
    """Return every score of one cell, NaN where it has none.

    Parameters
    ----------
    cell : of a `Study`.
    """
    found = cell.layers
    resolved = found["resolved"].astype(bool)
    both = resolved[:, :-1] & resolved[:, 1:] & (found["kappa_abs"][:, :-1] > 0)
    sigma, kappa, xi = found["sigma1"][:, :-1], found["kappa_abs"][:, :-1], found["xi"][:, :-1]
    growth = np.asarray(phase(sigma[both], np.clip(kappa[both], 0, 1), np.clip(xi[both], 0, 1)).growth_rate)
    ranks, slopes = [], []
    for layers in cell.activations.values():
        for rows in layers:
            if len(rows) < 2:
                continue
            eigenvalues = spectrum(rows)
            ranks.append(effective_rank(eigenvalues) if eigenvalues.size else np.nan)
            fit = spectral_slope(eigenvalues, modes=WINDOW)
            slopes.append(fit.alpha if fit.status == "OK" else np.nan)
    t = cell.transcript
    return {
        "lam": _mean(found["lam"][:, :-1][both]),
        "log_sigma1": _mean(np.log(found["sigma1"])),
        "kappa_abs": _mean(kappa[both]),
        "xi": _mean(found["xi"]),
        "growth_bound": _mean(np.log(growth)),
        "context_gain": _mean(found.get("log_context_gain", np.nan)),
        "slope": _mean(slopes),
        "effective_rank": _mean(ranks),
        "avg_logprob": float(t.avg_logprob),
        "no_speech_prob": np.nan if t.no_speech_prob is None else float(t.no_speech_prob),
        "compression_ratio": float(t.compression_ratio),
        "tokens": float(len(t.tokens)),
    }


def cell_regime(cell: Any) -> str:
    """Name the regime that (σ₁, κ, ξ) certify at every coupling of every step, or INDETERMINATE."""
    found = cell.layers
    sigma, kappa, xi = (found[name][:, :-1] for name in ("sigma1", "kappa_abs", "xi"))
    if not np.isfinite(kappa).all() or not kappa.size:
        return Regime.INDETERMINATE.name
    codes = set(np.asarray(phase(sigma, np.clip(kappa, 0, 1), np.clip(xi, 0, 1)).code).ravel().tolist())
    return Regime(codes.pop()).name if len(codes) == 1 else Regime.INDETERMINATE.name


def score_columns(cells: Sequence[Any]) -> dict[str, np.ndarray]:
    """Lay out cells with a label: scores, `hallucinated` (1 or 0), clip, cluster, speaker, condition, regime.

    Parameters
    ----------
    cells : of a `Study`. Where it is known what was said, "survived" is the other class and "omitted" is left out;
        elsewhere "unflagged" is.
    """
    rows = []
    for cell in cells:
        label = cell.behaviour.label
        other = ("survived",) if cell.reference is not None else ("unflagged",)
        if label == "hallucinated" or label in other:
            about = {name: getattr(cell, name) for name in ("clip", "cluster", "speaker", "condition")}
            rows.append(
                about
                | {"hallucinated": float(label == "hallucinated"), "regime": cell_regime(cell)}
                | cell_scores(cell)
            )
    return {name: np.asarray([row[name] for row in rows]) for name in rows[0]} if rows else {}


def fitted(features: np.ndarray, labels: np.ndarray) -> Any:
    """Fit a logistic regression with a ridge, and return the function from features to scores.

    Parameters
    ----------
    features : (n, p) finite. labels : (n,) 0 or 1, both present.

    Examples
    --------
    >>> x = np.asarray([[0.0], [1.0], [2.0], [3.0]])
    >>> bool(np.all(np.diff(fitted(x, np.asarray([0, 0, 1, 1]))(x)) > 0))
    True
    """
    from scipy import optimize, special

    centre, spread = features.mean(0), features.std(0)
    spread = np.where(spread > 0, spread, 1.0)
    x = np.column_stack([np.ones(len(features)), (features - centre) / spread])
    sign = 2.0 * labels - 1.0
    ridge = np.append(0.0, np.full(features.shape[1], PENALTY))

    def loss(w: np.ndarray) -> tuple[float, np.ndarray]:
        z = sign * (x @ w)
        value = -special.log_expit(z).sum() + 0.5 * (ridge * w * w).sum()
        return float(value), -(x * (sign * special.expit(-z))[:, None]).sum(0) + ridge * w

    weights = optimize.minimize(loss, np.zeros(x.shape[1]), jac=True, method="BFGS").x
    return lambda new: np.column_stack([np.ones(len(new)), (new - centre) / spread]) @ weights


def held_out(features: np.ndarray, labels: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Score every row by a fit that saw no row of its group; NaN where that fit would see one class only.

    Parameters
    ----------
    features : (n, p). labels : (n,). groups : (n,) such as speakers.
    """
    scores = np.full(len(labels), np.nan)
    for group in set(groups.tolist()):
        away = groups != group
        if len(set(labels[away].tolist())) == 2:
            scores[~away] = fitted(features[away], labels[away])(features[~away])
    return scores


def within_groups(
    scores: np.ndarray, labels: np.ndarray, groups: np.ndarray, clusters: Any, *, seed: int = 0
) -> Estimate:
    """Estimate the AUROC over pairs of clips of one group only, so that differences between groups do not count.

    Parameters
    ----------
    scores, labels, groups, clusters : (n,); scores that are NaN are left out.

    Returns
    -------
    Estimate
        NaN where no group has both classes.

    Examples
    --------
    >>> x, y, g = np.asarray([0.0, 1.0, 5.0, 6.0]), np.asarray([0, 1, 0, 1]), np.asarray(["a", "a", "b", "b"])
    >>> within_groups(x, y, g, g).value
    1.0
    """
    keep = np.isfinite(scores)
    x, y, g, c = scores[keep], labels[keep].astype(bool), groups[keep], np.asarray(clusters)[keep]
    value = lambda index: _pairs(x[index], y[index], g[index])
    if not len(x):
        return Estimate(float("nan"), interval_of(lambda index: np.nan, 1))
    return Estimate(float(value(np.arange(len(x)))), interval_of(value, len(x), c, seed=seed, resamples=999))


def _pairs(x: np.ndarray, y: np.ndarray, g: np.ndarray) -> float:
    won = total = 0.0
    for group in np.unique(g):
        up, down = x[(g == group) & y], x[(g == group) & ~y]
        difference = up[:, None] - down
        won += float((difference > 0).sum() + 0.5 * (difference == 0).sum())
        total += difference.size
    return won / total if total else float("nan")


def _with_both(columns: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
    """Keep conditions with both outcomes: others, such as sounds without speech, have no pair to tell apart."""
    if not columns:
        return columns
    condition, labels = columns["condition"], columns["hallucinated"]
    both = [name for name in set(condition.tolist()) if len(set(labels[condition == name].tolist())) == 2]
    keep = np.isin(condition, both)
    return {name: column[keep] for name, column in columns.items()}


def prediction_section(columns: Mapping[str, np.ndarray], *, among: str = "stressed clips", seed: int = 0) -> Section:
    """Say how well every score tells hallucinated from surviving clips, and what fits do on clips they did not see.

    Parameters
    ----------
    columns : of `score_columns`. among : what the clips are, in words.

    Returns
    -------
    Section
        The statement is that λ tells them apart better than the average log-probability.
    """
    columns = _with_both(columns)
    labels = columns["hallucinated"] if columns else np.zeros(0)
    counts = int(labels.sum()), int(len(labels) - labels.sum())
    if min(counts) < FEWEST:
        why = f"there are {counts[0]} hallucinated and {counts[1]} surviving clips among {among}"
        return not_computed(ID, TITLE, f"{why}, in conditions with both; at least {FEWEST} of each are needed")
    clusters = columns["cluster"]
    speakers, unit = columns["speaker"], "speakers"
    if len(set(speakers.tolist()) - {""}) < 2 or "" in speakers:
        speakers, unit = _folds(clusters, seed), "folds of clips"
    # clips under the same stress: what tells one stress from another would pass for what tells hallucination
    conditions = columns["condition"]
    strata = np.asarray([f"{s}|{c}" for s, c in zip(speakers.tolist(), conditions.tolist(), strict=True)])
    alone, single = [], {}
    for name, (words, sign) in SCORES.items():
        score = sign * columns[name]
        keep = np.isfinite(score)
        found = inside = None
        if len(set(labels[keep].tolist())) == 2:
            found = single[name] = within_groups(score, labels, conditions, clusters, seed=seed)
            inside = within_groups(score, labels, strata, clusters, seed=seed)
        rises = "rises" if sign > 0 else "falls"
        alone.append((words, rises, *as_cells(found), *as_cells(inside), int(keep.sum())))
    combined = _combinations(columns, labels, speakers, strata, clusters, seed)
    counted = [
        (name, *[int(((columns["regime"] == name) & (labels == y)).sum()) for y in (1, 0)])
        for name in Regime.__members__
    ]
    verdict, compared = _compared(columns, labels, clusters, seed)
    groups = len(set(speakers.tolist()))
    lead = {"HOLDS": "tells", "VIOLATED": "does not tell"}.get(verdict, "has not been shown to tell")
    sentence = (
        f"λ {lead} hallucinated from surviving clips better than the average log-probability does: AUROC over pairs "
        f"under the same stress {_said(single.get('lam'))} against {_said(single.get('avg_logprob'))} ({compared}; 0.5 "
        f"is chance), with {counts[0]} hallucinated and {counts[1]} surviving {among} of {groups} {unit}."
    )
    both, standard = (combined.get(name) for name in ("theory and standard", "standard scores"))
    if both is not None and standard is not None:
        sentence += f" Held-out {unit}: standard scores {shown(standard)}, with the theory's added {shown(both)}."
    half = combined.get("(σ₁, κ, ξ), other half")
    if half is not None:
        sentence += (
            f" A rule from (σ₁, κ, ξ) alone, made on half of the clips, reaches {shown(half)} on the other half."
        )
    certified = int((columns["regime"] != Regime.INDETERMINATE.name).sum())
    sentence += f" {certified} of {len(labels)} clips have a certified regime."
    if unit == "speakers" and groups < 10:
        sentence += f" With n = {groups} speakers nothing is claimed of others."
    ends = lambda name: [Column(f"{name}{end}") for end in ("", " low", " high")]
    tables = (
        Table(
            "prediction",
            1,
            f"AUROC of single scores among {among}, in the direction that hypothesis or custom gives them: over pairs "
            f"under the same condition, and over those of the same {unit} as well. 95 % intervals by bootstrap over "
            "clips.",
            (Column("score"), Column("with hallucination it"), *ends("AUROC"), *ends(f"same {unit}"), Column("clips")),
            tuple(alone),
        ),
        Table(
            "prediction_combined",
            2,
            f"AUROC of logistic fits on clips they did not see, over pairs under the same condition: {unit} left "
            "out in turn, and pairs of the same; or half of the clips left out.",
            (Column("fit"), *ends("AUROC")),
            tuple((name, *as_cells(found)) for name, found in combined.items()),
        ),
        Table(
            "prediction_regimes",
            3,
            "Regimes that (σ₁, κ, ξ) certify at every coupling of every step.",
            (Column("regime"), Column("hallucinated"), Column("surviving")),
            tuple(counted),
        ),
    )
    return Section(ID, TITLE, verdict, sentence, tables)


def _combinations(
    columns: Mapping[str, np.ndarray],
    labels: np.ndarray,
    speakers: np.ndarray,
    strata: np.ndarray,
    clusters: np.ndarray,
    seed: int,
) -> dict[str, Estimate]:
    sets = {"theory": THEORY, "standard scores": STANDARD, "theory and standard": (*THEORY, *STANDARD)}
    found = {}
    for name, wanted in sets.items():
        used = [score for score in wanted if np.isfinite(columns[score]).mean() > 0.8]
        if used:
            scores = held_out(_filled(columns, used), labels, speakers)
            found[name] = within_groups(scores, labels, strata, clusters, seed=seed)
    fitting = halves(clusters, seed=seed)
    sides = [set(labels[side].tolist()) for side in (fitting, ~fitting)]
    if all(len(side) == 2 for side in sides):
        features = _filled(columns, SCALARS)
        scores = fitted(features[fitting], labels[fitting])(features[~fitting])
        away = (labels[~fitting], columns["condition"][~fitting], clusters[~fitting])
        found["(σ₁, κ, ξ), other half"] = within_groups(scores, *away, seed=seed)
    return found


def _filled(columns: Mapping[str, np.ndarray], names: Sequence[str]) -> np.ndarray:
    """Stack scores; one that a clip has not is set to the mean of the others, which says nothing."""
    stacked = np.column_stack([columns[name] for name in names]).astype(float)
    means = [column[np.isfinite(column)].mean() if np.isfinite(column).any() else 0.0 for column in stacked.T]
    return np.where(np.isfinite(stacked), stacked, means)


def _compared(
    columns: Mapping[str, np.ndarray], labels: np.ndarray, clusters: np.ndarray, seed: int
) -> tuple[Answer, str]:
    """Judge the difference of the AUROCs of λ and of the average log-probability, on the same resamples."""
    one, other = columns["lam"], -columns["avg_logprob"]
    keep = np.isfinite(one) & np.isfinite(other)
    x, z, y, c = one[keep], other[keep], labels[keep].astype(bool), clusters[keep]
    alike = columns["condition"][keep]
    value = lambda i: _pairs(x[i], y[i], alike[i]) - _pairs(z[i], y[i], alike[i])
    if len(set(y.tolist())) < 2:
        return "UNDECIDED", "no difference"
    found = Estimate(float(value(np.arange(len(y)))), interval_of(value, len(y), c, seed=seed, resamples=999))
    return above(found, 0.0), f"difference {shown(found)}"


def _folds(clusters: np.ndarray, seed: int, count: int = 5) -> np.ndarray:
    names = np.random.default_rng(seed).permutation(sorted(set(clusters.tolist())))
    fold = {str(name): f"fold {i % count + 1}" for i, name in enumerate(names)}
    return np.asarray([fold[str(name)] for name in clusters])


def _mean(values: Any) -> float:
    x = np.asarray(values, float)
    return float(x[np.isfinite(x)].mean()) if np.isfinite(x).any() else float("nan")


def _said(found: Estimate | None) -> str:
    return "n/a" if found is None else shown(found)
