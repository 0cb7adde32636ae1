"""Name every parameter as each published checkpoint format does.

A parameter's path (`("decoder", "layers", 0, "fc1", "kernel")`) is this project's own name for it,
with kernels (in, out) and convolutions (3, in, out). Flax checkpoints agree; PyTorch's hold the
axes of a kernel in reverse.
"""

import dataclasses
import re
from collections.abc import Callable

ParameterPath = tuple[str | int, ...]

_OPENAI = {
    "layers": "blocks",
    "self_attn": "attn",
    "encoder_attn": "cross_attn",
    "q_proj": "query",
    "k_proj": "key",
    "v_proj": "value",
    "out_proj": "out",
    "self_attn_layer_norm": "attn_ln",
    "encoder_attn_layer_norm": "cross_attn_ln",
    "final_layer_norm": "mlp_ln",
    "fc1": "mlp.0",
    "fc2": "mlp.2",
    "embed_tokens": "token_embedding",
}
_OPENAI_LAST_NORM = {"encoder": "ln_post", "decoder": "ln"}


@dataclasses.dataclass(frozen=True)
class Layout:
    """Describe how a format names and lays out parameters.

    Parameters
    ----------
    name : path to stored name.
    reverses : whether kernels are stored with their axes in reverse.
    prefix : level that stands before every name, and that some files leave out.
    tied : name under which a file may repeat the token embedding as output matrix, or "".
    """

    name: Callable[[ParameterPath], str]
    reverses: bool
    prefix: str = ""
    tied: str = ""

    def shape(self, path: ParameterPath, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return the stored shape of a parameter."""
        return shape[::-1] if self.reverses and path[-1] == "kernel" else shape


def stored_name(path: ParameterPath) -> str:
    """Return the name under which Hugging Face's PyTorch checkpoints keep a parameter.

    Examples
    --------
    >>> stored_name(("decoder", "layers", 0, "fc1", "kernel"))
    'model.decoder.layers.0.fc1.weight'
    """
    last = "bias" if path[-1] == "bias" else "weight"
    return ".".join(["model", *map(str, path[:-1]), last])


def openai_name(path: ParameterPath) -> str:
    """Return the name under which OpenAI's own checkpoints keep a parameter.

    Examples
    --------
    >>> openai_name(("decoder", "layers", 0, "fc1", "kernel"))
    'decoder.blocks.0.mlp.0.weight'
    >>> openai_name(("encoder", "layer_norm", "scale")), openai_name(("decoder", "embed_positions", "embedding"))
    ('encoder.ln_post.weight', 'decoder.positional_embedding')
    """
    side, *inner, last = map(str, path)
    if inner == ["embed_positions"]:
        return f"{side}.positional_embedding"
    if inner == ["layer_norm"]:
        inner = [_OPENAI_LAST_NORM[side]]
    return ".".join([side, *(_OPENAI.get(part, part) for part in inner), "bias" if last == "bias" else "weight"])


def flax_name(path: ParameterPath) -> str:
    """Return the place of a parameter in the tree of Flax checkpoints (Hugging Face, whisper-jax).

    Examples
    --------
    >>> flax_name(("decoder", "layers", 0, "fc1", "kernel"))
    'model/decoder/layers/0/fc1/kernel'
    """
    return "/".join(["model", *map(str, path)])


HUGGING_FACE = Layout(stored_name, reverses=True, prefix="model.", tied="proj_out.weight")
OPENAI = Layout(openai_name, reverses=True)
FLAX = Layout(flax_name, reverses=False, prefix="model/")


def with_prefix(name: str, layout: Layout) -> str:
    """Return a stored name with the level that files may leave out, and without the one they may add.

    Examples
    --------
    >>> with_prefix("params/decoder/layer_norm/bias", FLAX), with_prefix("proj_out.weight", HUGGING_FACE)
    ('model/decoder/layer_norm/bias', 'proj_out.weight')
    """
    name = name.removeprefix("params/") if layout is FLAX else name
    return layout.prefix + name if re.match(r"(encoder|decoder)\b", name) else name
