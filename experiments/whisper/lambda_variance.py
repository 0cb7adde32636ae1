"""The layer explains at least half of the variance of λ; step, clip and stress share the rest.

Kind: finding.
Expected: less than half: λ is mostly a matter of the token in hand.
Refuted by: an interval of the layer's share below one half.
"""

from spectral_theorem.layerwise import variance_section
from spectral_theorem.sections import Section, as_columns
from spectral_theorem.trials import Records, Trial, figure_of, layer_rows, verdict_of

Config = Trial
run = layer_rows


def section(records: Records) -> Section:
    """Read the shares of layer, step, clip and stress, with intervals over clips."""
    return variance_section(as_columns(records))


verdict, figure = verdict_of(section), figure_of(section)
