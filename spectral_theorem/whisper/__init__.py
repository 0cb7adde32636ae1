"""Whisper in Flax NNX: load, transcribe, and take apart into pure functions."""

from .blocks import Cache
from .chain import TokenLayers, token_layers
from .checkpoint import load, random_model
from .decode import Decoded, Transcription, encode_audio, greedy, transcribe, transcriptions
from .dims import Dims
from .family import Published, catalogue
from .generation import Generation
from .initial import initial_model, word_generation, write_word_tokenizer
from .injection import (
    CrossFactors,
    cross_factors,
    injection_frame_sum,
    injection_gram,
    injection_gram_pairs,
    injection_rows,
)
from .model import DecoderPass, WhisperModel, decoder_pass
from .saving import save
from .tokenizer import Tokenizer

__all__ = [
    "Cache",
    "CrossFactors",
    "Decoded",
    "DecoderPass",
    "Dims",
    "Generation",
    "Published",
    "TokenLayers",
    "Tokenizer",
    "Transcription",
    "WhisperModel",
    "catalogue",
    "cross_factors",
    "decoder_pass",
    "encode_audio",
    "greedy",
    "initial_model",
    "injection_frame_sum",
    "injection_gram",
    "injection_gram_pairs",
    "injection_rows",
    "load",
    "random_model",
    "save",
    "token_layers",
    "transcribe",
    "transcriptions",
    "word_generation",
    "write_word_tokenizer",
]
