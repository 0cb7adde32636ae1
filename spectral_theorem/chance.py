r"""What chance would give: every headline number of a clip beside the same number of chains that lost something.

Rotated and conjugated layers keep the spectrum, shuffled ones all but their order; an untrained model keeps the shape.
"""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from .contrast import contrast_table, contrasts
from .nulls import NULLS
from .sections import Columns, Section, exceeds, mean_of, not_computed, rows_where, shown
from .tokenchains import ClipTokens, same_tokens, summarised, token_gains, token_propagators
from .types import LayerChain
from .whisper import WhisperModel

ID, TITLE = "nulls", "Is it more than chance?"
TRAINED, UNTRAINED = "trained", "untrained"
COMPARED = ("kappa_abs", "lam", "growth", "unexplained")
KEPT = ("sigma1", "xi")  # what all nulls but the untrained model keep


def chance_rows(
    key: Any,
    model: WhisperModel,
    clip: ClipTokens,
    *,
    fresh: WhisperModel | None = None,
    draws: int = 4,
    labels: Mapping[str, Any],
) -> list[dict[str, Any]]:
    """Measure a clip's chains, and their nulls.

    Parameters
    ----------
    key : PRNG key. model, clip : from `clip_tokens`.
    fresh : an untrained model of the same shape, told the same tokens; None leaves this null out.
    draws : of every random null.
    labels : the same in every row, such as clip, cluster, condition.

    Returns
    -------
    list of flat rows
        One for the model, one per null: means over tokens, layers and draws, as `summarised`.
    """
    w = token_propagators(model, clip)
    rows = [{**labels, "variant": TRAINED, **summarised(token_gains(w))}]
    for number, (name, null) in enumerate(NULLS.items()):
        if w.shape[1] < 2:
            continue
        drawn = []
        for draw in range(draws):
            keys = jax.random.split(jax.random.fold_in(jax.random.fold_in(key, number), draw), len(w))
            drawn.append(summarised(token_gains(_each(null, keys, w))))
        rows.append({**labels, "variant": name} | {q: float(np.mean([d[q] for d in drawn])) for q in drawn[0]})
    if fresh is not None:
        theirs = summarised(token_gains(token_propagators(fresh, same_tokens(fresh, clip))))
        rows.append({**labels, "variant": UNTRAINED, **theirs})
    return rows


def _each(null: Any, keys: Any, w: Any) -> Any:
    return jax.lax.map(lambda pair: null(pair[0], LayerChain(pair[1])).propagators, (keys, w))


def chance_section(columns: Columns, *, seed: int = 0) -> Section:
    """Say which headline numbers differ from chance.

    Parameters
    ----------
    columns : of the rows of `chance_rows`.

    Returns
    -------
    Section
        The statement is that neighbouring layers are better aligned than rotated ones.
    """
    variants = [name for name in (*NULLS, UNTRAINED) if name in set(columns.get("variant", ()))]
    found = contrasts(columns, TRAINED, variants, COMPARED, seed=seed)
    found |= contrasts(columns, TRAINED, [name for name in variants if name == UNTRAINED], KEPT, seed=seed)
    if ("rotated", "kappa_abs") not in found:
        return not_computed(ID, TITLE, "no clip has two resolved layers")
    over = {null: contrasts(columns, null, [TRAINED], ("kappa_abs", "growth"), seed=seed) for null in variants}
    change = over["rotated"][TRAINED, "kappa_abs"]
    ours, theirs = (rows_where(columns, variant=name) for name in (TRAINED, "rotated"))
    kappa = [mean_of(rows["kappa_abs"], rows["cluster"], seed=seed) for rows in (ours, theirs)]
    verdict = exceeds(change)
    said = {"HOLDS": "are better aligned than chance", "VIOLATED": "are aligned worse than chance"}
    lead = said.get(verdict, "cannot be told from chance in their alignment")
    sentence = (
        f"Neighbouring layers {lead}: |κ| is {shown(kappa[0])}, and {shown(kappa[1])} when every layer keeps its "
        f"singular values and is turned at random (difference {shown(change)}, p = {change.p:.2g}, {change.n} clusters "
        "of clips)."
    )
    grown = {null: c[TRAINED, "growth"] for null, c in over.items() if (TRAINED, "growth") in c}
    if grown:
        parts = [f"{shown(c)} more than {null}" for null, c in grown.items()]
        sentence += f" The logarithm of the norm of the whole product is, in nats, {', '.join(parts)}."
    table = contrast_table(
        columns, found, TRAINED, name="nulls", number=1, caption="Headline numbers beside chance.", seed=seed
    )
    return Section(ID, TITLE, verdict, sentence, (table,))
