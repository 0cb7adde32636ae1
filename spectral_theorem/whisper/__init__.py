"""Whisper in Flax NNX: load, transcribe, and take apart into pure functions."""

from .blocks import Cache
from .chain import TokenLayers, token_layers
from .checkpoint import load, random_model
from .decode import Decoded, Transcription, encode_audio, greedy, transcribe, transcriptions
from .dims import Dims
from .injection import CrossFactors, cross_factors, injection_gram, injection_gram_pairs
from .model import DecoderPass, Generation, WhisperModel, decoder_pass
from .tokenizer import Tokenizer

__all__ = [
    "Cache",
    "CrossFactors",
    "Decoded",
    "DecoderPass",
    "Dims",
    "Generation",
    "TokenLayers",
    "Tokenizer",
    "Transcription",
    "WhisperModel",
    "cross_factors",
    "decoder_pass",
    "encode_audio",
    "greedy",
    "injection_gram",
    "injection_gram_pairs",
    "load",
    "random_model",
    "token_layers",
    "transcribe",
    "transcriptions",
]
