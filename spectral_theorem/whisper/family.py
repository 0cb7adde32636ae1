"""List the published Whisper models: names on the Hub, sizes, languages, number of parameters."""

import dataclasses
from collections.abc import Mapping
from types import MappingProxyType

from .dims import Dims

_VOCABULARY = {1: 51_864, 99: 51_865, 100: 51_866}  # by number of languages
# name on the Hub: width, heads, encoder layers, decoder layers, mels, languages
_PUBLISHED = {
    "openai/whisper-tiny": (384, 6, 4, 4, 80, 99),
    "openai/whisper-tiny.en": (384, 6, 4, 4, 80, 1),
    "openai/whisper-base": (512, 8, 6, 6, 80, 99),
    "openai/whisper-base.en": (512, 8, 6, 6, 80, 1),
    "openai/whisper-small": (768, 12, 12, 12, 80, 99),
    "openai/whisper-small.en": (768, 12, 12, 12, 80, 1),
    "openai/whisper-medium": (1024, 16, 24, 24, 80, 99),
    "openai/whisper-medium.en": (1024, 16, 24, 24, 80, 1),
    "openai/whisper-large": (1280, 20, 32, 32, 80, 99),
    "openai/whisper-large-v2": (1280, 20, 32, 32, 80, 99),
    "openai/whisper-large-v3": (1280, 20, 32, 32, 128, 100),
    "openai/whisper-large-v3-turbo": (1280, 20, 32, 4, 128, 100),
    "distil-whisper/distil-small.en": (768, 12, 12, 4, 80, 1),
    "distil-whisper/distil-medium.en": (1024, 16, 24, 2, 80, 1),
    "distil-whisper/distil-large-v2": (1280, 20, 32, 2, 80, 99),
    "distil-whisper/distil-large-v3": (1280, 20, 32, 2, 128, 100),
    "distil-whisper/distil-large-v3.5": (1280, 20, 32, 2, 128, 100),
}


@dataclasses.dataclass(frozen=True)
class Published:
    """Describe one published model.

    Parameters
    ----------
    name : on the Hub, what `load` takes.
    dims : sizes.
    languages : number of languages; 1 is English only.
    """

    name: str
    dims: Dims
    languages: int

    @property
    def parameters(self) -> int:
        """Number of weights, the encoder's fixed positions included and the tied output not counted twice."""
        return parameter_count(self.dims)


def parameter_count(dims: Dims) -> int:
    """Return the number of weights of a Whisper of these sizes, in closed form.

    Examples
    --------
    >>> parameter_count(catalogue["openai/whisper-tiny"].dims)
    37760640
    """
    width = dims.width
    norm, attention = 2 * width, 4 * width**2 + 3 * width
    mlp = lambda hidden: 2 * width * hidden + width + hidden
    convolutions = 3 * width * (dims.mels + width) + 2 * width
    encoder = dims.encoder_layers * (attention + mlp(dims.encoder_hidden) + 2 * norm)
    decoder = dims.decoder_layers * (2 * attention + mlp(dims.decoder_hidden) + 3 * norm)
    tables = (dims.frames + dims.positions + dims.vocabulary) * width
    return convolutions + encoder + decoder + tables + 2 * norm


def _published(name: str, width: int, heads: int, encoder: int, decoder: int, mels: int, languages: int) -> Published:
    dims = Dims(
        width=width,
        mels=mels,
        frames=1500,
        vocabulary=_VOCABULARY[languages],
        positions=448,
        encoder_layers=encoder,
        encoder_heads=heads,
        encoder_hidden=4 * width,
        decoder_layers=decoder,
        decoder_heads=heads,
        decoder_hidden=4 * width,
    )
    return Published(name, dims, languages)


catalogue: Mapping[str, Published] = MappingProxyType(
    {name: _published(name, *sizes) for name, sizes in _PUBLISHED.items()}
)
