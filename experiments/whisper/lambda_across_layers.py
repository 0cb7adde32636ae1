"""The dominant path of a Whisper decoder gains at every layer, λ > 0, on clean speech.

Kind: finding.
Expected: a negative λ at some layer, since directions of neighbouring blocks meet at chance level.
Refuted by: a layer at which the interval of the mean λ lies below 0.
"""

from spectral_theorem.layerwise import lambda_map
from spectral_theorem.sections import Section, as_columns
from spectral_theorem.study import CLEAN
from spectral_theorem.trials import Records, Trial, figure_of, layer_rows, verdict_of

Config = Trial
run = layer_rows


def section(records: Records) -> Section:
    """Read the mean λ of every layer, with intervals over clips."""
    return lambda_map(as_columns(records), CLEAN)


verdict, figure = verdict_of(section), figure_of(section)
