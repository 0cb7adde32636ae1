"""Read every size of a Whisper model from its checkpoint's config."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from ..audio import HOP
from ..types import refuse

_LARGEST = 1 << 24
_DEEPEST = 512


@dataclasses.dataclass(frozen=True)
class Dims:
    """Hold the sizes of one Whisper model.

    Parameters
    ----------
    width : D, size of the residual stream of both stacks.
    mels : mel bands of the input.
    frames : F, encoder positions; the input has 2F mel frames.
    vocabulary : number of tokens.
    positions : longest token sequence, prompt included.
    encoder_layers, encoder_heads, encoder_hidden : encoder blocks, heads per block, MLP width.
    decoder_layers, decoder_heads, decoder_hidden : the same of the decoder.

    Raises
    ------
    InputError
        If a size is not positive and of sane magnitude, or the heads do not divide the width.

    Examples
    --------
    >>> Dims(width=8, mels=4, frames=6, vocabulary=5, positions=7, encoder_layers=1, encoder_heads=2,
    ...      encoder_hidden=16, decoder_layers=1, decoder_heads=2, decoder_hidden=16).window_samples
    1920
    """

    width: int
    mels: int
    frames: int
    vocabulary: int
    positions: int
    encoder_layers: int
    encoder_heads: int
    encoder_hidden: int
    decoder_layers: int
    decoder_heads: int
    decoder_hidden: int

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            size = getattr(self, field.name)
            largest = _DEEPEST if field.name.endswith("layers") else _LARGEST
            if not 1 <= size <= largest:
                refuse(
                    f"{_KEYS[field.name]}={size!r}", f"an integer from 1 to {largest}", "the config.json of the model"
                )
        for heads in ("encoder_heads", "decoder_heads"):
            if self.width % getattr(self, heads):
                refuse(
                    f"{_KEYS[heads]}={getattr(self, heads)} beside d_model={self.width}",
                    "heads that divide d_model",
                    "the config.json of the model",
                )

    @property
    def window_samples(self) -> int:
        """Samples at 16 kHz that one encoder window covers."""
        return 2 * self.frames * HOP

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> "Dims":
        """Read the sizes from a Hugging Face `config.json`, already parsed.

        Raises
        ------
        InputError
            If a key is missing, a size is absurd, or the config asks for what Whisper does not have.
        """
        missing = [key for key in _KEYS.values() if key not in config]
        if missing:
            refuse(f"a config without {', '.join(missing)}", "a Whisper config.json", "the folder of a Whisper model")
        for key, wanted in _FIXED.items():
            if config.get(key, wanted) != wanted:
                refuse(f"{key}={config[key]!r}", f"{key}={wanted!r}, as in every Whisper", "another checkpoint")
        for key in _KEYS.values():
            if type(config[key]) is not int:
                refuse(f"{key}={str(config[key])[:40]!r}", "an integer", "the config.json of the model")
        return cls(**{name: config[key] for name, key in _KEYS.items()})

    def to_config(self) -> dict[str, Any]:
        """Return the Hugging Face keys and values of these sizes."""
        return _FIXED | {key: getattr(self, name) for name, key in _KEYS.items()}


_KEYS = {
    "width": "d_model",
    "mels": "num_mel_bins",
    "frames": "max_source_positions",
    "vocabulary": "vocab_size",
    "positions": "max_target_positions",
    "encoder_layers": "encoder_layers",
    "encoder_heads": "encoder_attention_heads",
    "encoder_hidden": "encoder_ffn_dim",
    "decoder_layers": "decoder_layers",
    "decoder_heads": "decoder_attention_heads",
    "decoder_hidden": "decoder_ffn_dim",
}
_FIXED = {
    "model_type": "whisper",
    "activation_function": "gelu",
    "scale_embedding": False,
    "tie_word_embeddings": True,
}
