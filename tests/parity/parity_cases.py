"""Small random Whispers and a synthetic sound, the same on both sides of every comparison.

No framework is imported here: weights come from NumPy's frozen legacy generator, under the names
of PyTorch checkpoints, so that each side loads them by its own means.
"""

import dataclasses
import json
from pathlib import Path

import numpy as np

OUTPUTS = Path(__file__).parent / "outputs"
SPECIAL = ("<|endoftext|>", "<|startoftranscript|>", "<|notimestamps|>")


@dataclasses.dataclass(frozen=True)
class Case:
    """Hold the sizes and the seed of one random Whisper."""

    name: str
    seed: int
    width: int
    mels: int
    frames: int
    vocabulary: int
    encoder: tuple[int, int, int]  # layers, heads, hidden
    decoder: tuple[int, int, int]
    positions: int = 24

    @property
    def config(self) -> dict:
        """The config.json of this model."""
        end = self.vocabulary - 3
        return {
            "architectures": ["WhisperForConditionalGeneration"],
            "model_type": "whisper",
            "activation_function": "gelu",
            "scale_embedding": False,
            "tie_word_embeddings": True,
            "d_model": self.width,
            "num_mel_bins": self.mels,
            "max_source_positions": self.frames,
            "max_target_positions": self.positions,
            "vocab_size": self.vocabulary,
            "encoder_layers": self.encoder[0],
            "encoder_attention_heads": self.encoder[1],
            "encoder_ffn_dim": self.encoder[2],
            "decoder_layers": self.decoder[0],
            "decoder_attention_heads": self.decoder[1],
            "decoder_ffn_dim": self.decoder[2],
            "bos_token_id": end,
            "eos_token_id": end,
            "pad_token_id": end,
            "decoder_start_token_id": end + 1,
        }

    @property
    def generation(self) -> dict:
        """The generation_config.json of this model: two suppression lists and a forced prompt."""
        end = self.vocabulary - 3
        return {
            "decoder_start_token_id": end + 1,
            "bos_token_id": end,
            "eos_token_id": end,
            "pad_token_id": end,
            "forced_decoder_ids": [[1, end + 2]],
            "suppress_tokens": [1, 5, end + 1, end + 2],
            "begin_suppress_tokens": [2, end],
            "max_length": self.positions,
            "is_multilingual": False,
            "no_timestamps_token_id": end + 2,
        }

    @property
    def tokenizer(self) -> dict:
        """A tokenizer.json of whole words."""
        words = [f"w{i}" for i in range(self.vocabulary - 3)] + list(SPECIAL)
        flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
        added = [{"id": words.index(name), "content": name, "special": True, **flags} for name in SPECIAL]
        nothing = dict.fromkeys(("truncation", "padding", "normalizer", "post_processor", "decoder"))
        model = {"type": "WordLevel", "vocab": {w: i for i, w in enumerate(words)}, "unk_token": SPECIAL[0]}
        return {
            "version": "1.0",
            **nothing,
            "added_tokens": added,
            "pre_tokenizer": {"type": "Whitespace"},
            "model": model,
        }

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Name and shape of every tensor of a PyTorch checkpoint with these sizes."""
        d, shapes = self.width, {}

        def affine(name: str, out: int, *inner: int, bias: bool = True) -> None:
            shapes[f"{name}.weight"] = (out, *inner)
            if bias:
                shapes[f"{name}.bias"] = (out,)

        for side, (layers, _, hidden) in (("encoder", self.encoder), ("decoder", self.decoder)):
            for i in range(layers):
                prefix = f"model.{side}.layers.{i}"
                for attention in ("self_attn", "encoder_attn")[: 1 if side == "encoder" else 2]:
                    for projection in ("q_proj", "k_proj", "v_proj", "out_proj"):
                        affine(f"{prefix}.{attention}.{projection}", d, d, bias=projection != "k_proj")
                    affine(f"{prefix}.{attention}_layer_norm", d)
                affine(f"{prefix}.fc1", hidden, d)
                affine(f"{prefix}.fc2", d, hidden)
                affine(f"{prefix}.final_layer_norm", d)
            affine(f"model.{side}.layer_norm", d)
        affine("model.encoder.conv1", d, self.mels, 3)
        affine("model.encoder.conv2", d, d, 3)
        shapes["model.encoder.embed_positions.weight"] = (self.frames, d)
        shapes["model.decoder.embed_positions.weight"] = (self.positions, d)
        shapes["model.decoder.embed_tokens.weight"] = (self.vocabulary, d)
        return shapes

    def weights(self) -> dict[str, np.ndarray]:
        """Random float32 weights under PyTorch names, large enough for every part to matter."""
        draw, tensors = np.random.RandomState(self.seed), {}
        for name, shape in sorted(self.shapes().items()):
            noise = draw.standard_normal(shape)
            if "layer_norm.weight" in name:
                value = 1.0 + 0.3 * noise
            elif name.endswith("bias") or "embed" in name:
                value = 0.5 * noise
            else:
                value = 1.5 * noise / np.sqrt(np.prod(shape[1:]))
            tensors[name] = value.astype(np.float32)
        return tensors

    def inputs(self) -> tuple[np.ndarray, np.ndarray]:
        """Two log-mel windows (2, mels, 2 frames) and two token sequences (2, 9)."""
        draw = np.random.RandomState(self.seed + 1)
        return draw.standard_normal((2, self.mels, 2 * self.frames)), draw.randint(0, self.vocabulary, (2, 9))

    def write(self, folder: Path) -> Path:
        """Write the model as a Hugging Face folder."""
        from safetensors.numpy import save_file

        folder.mkdir(parents=True, exist_ok=True)
        save_file(self.weights(), folder / "model.safetensors", metadata={"format": "pt"})
        for name in ("config", "generation", "tokenizer"):
            file = "generation_config.json" if name == "generation" else f"{name}.json"
            (folder / file).write_text(json.dumps(getattr(self, name)))
        return folder


CASES = (
    Case("plain", 10, 16, 80, 20, 53, (2, 2, 64), (2, 2, 64)),
    Case("mels128", 20, 24, 128, 25, 61, (1, 3, 96), (3, 3, 96)),
    Case("shallow_decoder", 30, 32, 80, 16, 40, (4, 4, 72), (1, 4, 40)),
    Case("different_heads", 40, 36, 128, 33, 47, (2, 6, 48), (2, 3, 80)),
    Case("one_head", 50, 20, 80, 50, 45, (1, 1, 20), (2, 1, 100)),
)


def waveform(seconds: float = 3.0) -> np.ndarray:
    """Return a sound with a loud sweep, quiet tones and noise, (n,) float32 at 16 kHz."""
    t = np.arange(round(16_000 * seconds)) / 16_000
    sweep = 0.4 * np.sin(2 * np.pi * (100.0 * t + 600.0 * t**2)) * (t < seconds / 2)
    tones = sum(0.01 * np.sin(2 * np.pi * f * t) for f in (220.0, 997.0, 3100.0, 6400.0))
    return (sweep + tones + 0.002 * np.random.RandomState(7).standard_normal(t.size)).astype(np.float32)


KEPT_FRAMES = np.r_[0:12, 12:320:7, 320:3000:90]
