"""What LayerNorm, the residual connection, the cut into layers, the past and the precision do to a clip's numbers."""

from collections.abc import Mapping
from typing import Any

from .contrast import contrast_table, contrasts
from .sections import Columns, Section, mean_exceeds, mean_of, not_computed, rows_where, shown, together
from .tokenchains import VARIANTS, ClipTokens, sequence_summary, summarised, token_gains, token_propagators
from .whisper import WhisperModel

ID, TITLE = "ablations", "Does it depend on how it is measured?"
PLAIN, SEQUENCE = "plain", "sequence scope"
COMPARED = ("lam", "kappa_abs", "sigma1", "xi", "growth")


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
    """Say which changes of the measurement change its outcome.

    Parameters
    ----------
    columns : of the rows of `ablation_rows`.

    Returns
    -------
    Section
        The statement is that the mean λ has one sign in all variants.
    """
    present = set(columns.get("variant", ()))
    variants = [name for name in (*VARIANTS[1:], SEQUENCE) if name in present]
    found = contrasts(columns, PLAIN, variants, COMPARED, seed=seed)
    if not any(quantity == "lam" for _, quantity in found):
        return not_computed(ID, TITLE, "no clip has two resolved layers")
    mean, judged, sign = {}, {}, 1
    for name in (PLAIN, *variants):
        rows = rows_where(columns, variant=name)
        mean[name] = mean_of(rows["lam"], rows["cluster"], seed=seed)
        sign = 1 if mean[PLAIN].value > 0 else -1
        judged[name] = mean_exceeds(sign * rows["lam"], rows["cluster"], seed=seed)
    verdict = together(judged.values())
    changes = {name: found[name, "lam"] for name in variants if (name, "lam") in found}
    largest = max(changes, key=lambda name: abs(changes[name].value))
    direction = "negative" if sign < 0 else "positive"
    sentence = f"The mean λ is {direction} however it is measured: {shown(mean[PLAIN])} nats per layer as it is"
    if verdict == "VIOLATED":
        other = [name for name, answer in judged.items() if answer == "VIOLATED"]
        sentence = f"The sign of the mean λ depends on how it is measured: {shown(mean[PLAIN])} nats per layer as it is"
        sentence += "".join(f", {shown(mean[name])} with {name}" for name in other)
    elif verdict == "UNDECIDED":
        sentence = f"The sign of the mean λ is not sure in all variants: {shown(mean[PLAIN])} nats per layer as it is"
    sentence += f"; the largest change is that of {largest}, {shown(changes[largest])}."
    table = contrast_table(
        columns, found, PLAIN, name="ablations", number=1, caption="One thing changed at a time.", seed=seed
    )
    return Section(ID, TITLE, verdict, sentence, (table,))
