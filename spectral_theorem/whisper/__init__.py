"""Whisper in Flax NNX: load, transcribe, and take apart into pure functions."""

from .blocks import Cache
from .chain import TokenLayers, token_layers
from .checkpoint import load, random_model
from .decode import Decoded, greedy, language_probabilities
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
from .jacobians import token_jacobians
from .model import WhisperModel, model_digest
from .options import FALLBACK, DecodingOptions
from .parallel import clip_mesh
from .passes import DecoderPass, EncoderPass, Record, decoder_pass, encoder_pass
from .saving import save
from .sensitivity import TokenFactors, token_factors
from .sequence import SequenceLayers, sequence_layers
from .tangents import SequenceMaps, sequence_maps
from .tokenizer import Tokenizer
from .transcript import Segment, Transcript, Transcription, transcriptions
from .windows import encode_audio, transcribe, transcribe_many

__all__ = [
    "FALLBACK",
    "Cache",
    "CrossFactors",
    "Decoded",
    "DecoderPass",
    "DecodingOptions",
    "Dims",
    "EncoderPass",
    "Generation",
    "Published",
    "Record",
    "Segment",
    "SequenceLayers",
    "SequenceMaps",
    "TokenFactors",
    "TokenLayers",
    "Tokenizer",
    "Transcript",
    "Transcription",
    "WhisperModel",
    "catalogue",
    "clip_mesh",
    "cross_factors",
    "decoder_pass",
    "encode_audio",
    "encoder_pass",
    "greedy",
    "initial_model",
    "injection_frame_sum",
    "injection_gram",
    "injection_gram_pairs",
    "injection_rows",
    "language_probabilities",
    "load",
    "model_digest",
    "random_model",
    "save",
    "sequence_layers",
    "sequence_maps",
    "token_factors",
    "token_jacobians",
    "token_layers",
    "transcribe",
    "transcribe_many",
    "transcriptions",
    "word_generation",
    "write_word_tokenizer",
]
