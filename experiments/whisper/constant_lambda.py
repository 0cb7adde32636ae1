"""A constant λ predicts how products of layers grow: exp(λ d) explains half of the variance of log gains.

Kind: finding.
Expected: a negative R², since products grow while the mean λ says that they shrink.
Refuted by: an interval of R² below one half, on clips that were not fitted.
"""

from spectral_theorem.constancy import constancy_section
from spectral_theorem.sections import Section, as_columns
from spectral_theorem.trials import Records, Trial, figure_of, layer_rows, verdict_of

Config = Trial
run = layer_rows


def section(records: Records) -> Section:
    """Read R² of laws fitted on one half of the clips and judged on the other."""
    return constancy_section(as_columns(records))


verdict, figure = verdict_of(section), figure_of(section, 1)
