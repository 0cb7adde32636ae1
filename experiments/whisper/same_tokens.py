"""What stress does to λ it does through the sound: told the clean transcript, more than half of the change is left.

Kind: finding.
Expected: not known: the paper compares layers under stress without holding the tokens.
Refuted by: a change with the clean tokens forced that is less than half of the change with the model's own.
"""

from spectral_theorem.sametokens import same_token_section
from spectral_theorem.sections import Section, as_columns
from spectral_theorem.trials import Records, Trial, figure_of, same_token_rows, verdict_of

Config = Trial
run = same_token_rows


def section(records: Records) -> Section:
    """Read what is left of the change of λ with tokens held, paired by clip."""
    return same_token_section(as_columns(records))


verdict, figure = verdict_of(section), figure_of(section)
