"""What LayerNorm, the residual connection, the cut into layers, the past and the precision do to a clip's numbers.

Every comparison is decided by itself, on the clips that it has: some cost more than others, and are made for fewer.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from .contrast import clusters_needed, contrast_table, contrasts
from .sections import (
    Answer,
    Columns,
    Section,
    as_cells,
    exceeds,
    finite_of,
    mean_of,
    not_computed,
    rows_where,
    shown,
    together,
)
from .statistics import Change, change_of, corrected
from .tables import Column, Table
from .tokenchains import VARIANTS, ClipTokens, sequence_summary, summarised, token_gains, token_propagators
from .whisper import WhisperModel

ID, TITLE = "ablations", "Does it depend on how it is measured?"
PLAIN, SEQUENCE = "plain", "sequence scope"
COMPARED = ("lam", "kappa_abs", "sigma1", "xi", "growth")
# variant → what is compared
COMPARISONS: Mapping[str, str] = {
    "frozen LayerNorm": "LayerNorm as it is, against frozen",
    "no identity": "with the identity, against without",
    "sub-block": "block, against sub-block",
    "bfloat16 weights": "weights as they are, against bfloat16",
    "bfloat16": "everything as it is, against bfloat16",
    SEQUENCE: "token, against sequence scope",
}


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Hold what one change of the measurement does to λ, and what is known of it.

    Attributes
    ----------
    change : of the mean λ, paired by clip, nats per layer. p : of the change, corrected over comparisons.
    changes : whether λ changes at all. keeps : whether its mean keeps the sign that it has as it is.
    needed : clusters that it would take, at least, to decide what is not decided; None where all is.
    """

    change: Change
    p: float
    changes: Answer
    keeps: Answer
    needed: int | None


def ablation_rows(
    model: WhisperModel, clip: ClipTokens, *, sequence: bool = False, labels: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """Measure a clip as it is, and with one thing changed at a time.

    Parameters
    ----------
    model, clip : from `clip_tokens`.
    sequence : whether to measure the chain of all positions as well, which takes far longer.
    labels : the same in every row, such as clip, cluster, condition.

    Returns
    -------
    list of flat rows
        One per variant: means over tokens and layers, as `summarised`.
    """
    rows = [
        {**labels, "variant": variant, **summarised(token_gains(token_propagators(model, clip, variant)))}
        for variant in VARIANTS
    ]
    if sequence:
        rows.append({**labels, "variant": SEQUENCE, **sequence_summary(model, clip)})
    return rows


def ablation_section(columns: Columns, *, seed: int = 0) -> Section:
    """Decide for each change of the measurement whether it changes λ, and whether it turns its sign.

    Parameters
    ----------
    columns : of the rows of `ablation_rows`.

    Returns
    -------
    Section
        The statement is that the mean λ has one sign in all variants; its first table decides each of them.
    """
    present = set(columns.get("variant", ()))
    variants = [name for name in COMPARISONS if name in present]
    found = contrasts(columns, PLAIN, variants, COMPARED, seed=seed)
    if not any(quantity == "lam" for _, quantity in found):
        return not_computed(ID, TITLE, "no clip has two resolved layers")
    plain = rows_where(columns, variant=PLAIN)
    mean = mean_of(plain["lam"], plain["cluster"], seed=seed)
    sign = 1 if mean.value > 0 else -1
    own = _signed(columns, PLAIN, sign, seed)
    decided = compared(columns, {name: found[name, "lam"] for name in variants if (name, "lam") in found}, sign, seed)
    verdict = together([exceeds(own), *(each.keeps for each in decided.values())])
    direction, as_it_is = "negative" if sign < 0 else "positive", f"{shown(mean)} nats per layer as it is"
    turned = [name for name, each in decided.items() if each.keeps == "VIOLATED"]
    others = {name: rows_where(columns, variant=name) for name in turned}
    means = {name: mean_of(rows["lam"], rows["cluster"], seed=seed) for name, rows in others.items()}
    against = "".join(f", {shown(found)} with {name}" for name, found in means.items())
    sentence = {
        "HOLDS": f"The mean λ is {direction} however it is measured: {as_it_is}.",
        "VIOLATED": f"The sign of the mean λ depends on how it is measured: {as_it_is}{against}.",
    }.get(verdict, f"The sign of the mean λ is not sure in all variants: {as_it_is}.")
    sentence += "".join(f" {_said(name, each)}" for name, each in decided.items())
    table = contrast_table(
        columns, found, PLAIN, name="ablations", number=2, caption="One thing changed at a time.", seed=seed
    )
    return Section(ID, TITLE, verdict, sentence, (_decisions(decided, direction), table))


def compared(columns: Columns, changes: Mapping[str, Change], sign: int, seed: int = 0) -> dict[str, Comparison]:
    """Decide every comparison by tests that are exact for the clips it has.

    Parameters
    ----------
    columns : of the rows of `ablation_rows`. changes : of λ by variant. sign : of the mean λ as it is, 1 or -1.
    """
    p = corrected([change.p for change in changes.values()], "holm")
    found = {}
    for (name, change), adjusted in zip(changes.items(), p, strict=True):
        mean = _signed(columns, name, sign, seed)
        keeps, changed = exceeds(mean), exceeds(dataclasses.replace(change, p=float(adjusted)))
        open_ = [each for each, answer in ((mean, keeps), (change, changed)) if answer == "UNDECIDED"]
        needed = [n for each in open_ if (n := clusters_needed(each)) is not None]
        found[name] = Comparison(
            change=change,
            p=float(adjusted),
            changes="UNDECIDED" if changed == "UNDECIDED" else "HOLDS",
            keeps=keeps,
            # a sample that should have been enough, and was not, had bad luck: one more at least
            needed=max(*needed, change.n + 1) if needed else None,
        )
    return found


def _signed(columns: Columns, variant: str, sign: int, seed: int) -> Change:
    """Judge the mean λ of a variant in the direction that it has as it is."""
    rows = rows_where(columns, variant=variant)
    values, clusters = finite_of(rows["lam"], rows["cluster"])
    return change_of(sign * values, clusters=clusters, seed=seed)


def _said(name: str, found: Comparison) -> str:
    """Say in a sentence what one comparison comes to."""
    kept = {"HOLDS": "its sign stays", "VIOLATED": "its sign turns"}.get(found.keeps, "its sign is UNDECIDED")
    sure = "" if found.changes == "HOLDS" else ", a change that is UNDECIDED"
    n = f"{found.change.n} cluster{'s' * (found.change.n != 1)} of clips"
    more = "" if found.needed is None else f", where it takes {found.needed} or more"
    what = COMPARISONS[name][0].upper() + COMPARISONS[name][1:]
    return f"{what}: λ changes by {shown(found.change)}{sure}; {kept} ({n}{more})."


def _decisions(found: Mapping[str, Comparison], direction: str) -> Table:
    heads = ("change of λ", "low", "high")
    columns = (
        Column("comparison"),
        *(Column(head, "nats/layer") for head in heads),
        *map(Column, ("p (Holm)", "λ changes", f"λ stays {direction}", "clusters", "clusters needed")),
    )
    rows = [
        (COMPARISONS[name], *as_cells(each.change), each.p, each.changes, each.keeps, each.change.n, each.needed)
        for name, each in found.items()
    ]
    caption = (
        "Each comparison decided by itself: paired by clip, intervals of 95 % by bootstrap over clusters of clips, "
        "tests by flipping their signs; needed is how many clusters it takes at least where something is undecided."
    )
    return Table("ablation_decisions", 1, caption, columns, tuple(rows))
