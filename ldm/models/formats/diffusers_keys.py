"""State-dict keys of Stable Diffusion 2 in diffusers' and transformers' layout and in ours, both ways.

Each network's modules stand in a table, diffusers' name beside ours; the parts inside a module have tables of their
own. A key is renamed by its longest prefix in the tables, so that a file may lack any part.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

StateDict = dict[str, Tensor]
Names = Mapping[str, str]  # diffusers' -> ours

UNET_RESIDUAL = {
    "norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0", "conv2": "out_layers.3", "conv_shortcut": "skip_connection",
}  # fmt: skip
VAE_RESIDUAL = {"conv_shortcut": "nin_shortcut"}
VAE_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
# How diffusers named these before its version 0.12; many published files still do.
VAE_ATTENTION_OF_OLD = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
TEXT_BLOCK = {
    "layer_norm1": "ln_1", "layer_norm2": "ln_2", "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
}  # fmt: skip


@dataclass(frozen=True)
class Module:
    """A module's name in both layouts, and the names of what is inside it where they differ."""

    theirs: str
    ours: str
    parts: tuple[tuple[str, str], ...] = ()


def _renamed(key: str, names: Names) -> str:
    """The key with its longest prefix (whole words between dots) that is in `names` exchanged."""
    words = key.split(".")
    for end in range(len(words), 0, -1):
        if (prefix := ".".join(words[:end])) in names:
            return ".".join([names[prefix], *words[end:]])
    return key


def _translated(state: StateDict, modules: Iterable[Module], *, to_ours: bool) -> StateDict:
    names: dict[str, str] = {}
    for module in modules:
        for theirs, ours in (("", ""), *module.parts):
            pair = [".".join(filter(None, words)) for words in ((module.theirs, theirs), (module.ours, ours))]
            names[pair[not to_ours]] = pair[to_ours]
    return {_renamed(key, names): value for key, value in state.items()}


def _count(state: StateDict, pattern: str) -> int:
    """One more than the largest number that `pattern`'s group finds at the start of a key; 0 where it finds none."""
    found = (re.match(pattern, key) for key in state)
    return max((int(match[1]) + 1 for match in found if match), default=0)


def _unet_modules(levels: int, blocks: int, attends: Callable[[int], bool]) -> list[Module]:
    """attends(i): whether level i of the upward half, coarse to fine, has attention, after which it is upsampled."""
    residual = tuple(UNET_RESIDUAL.items())
    modules = [
        Module("time_embedding.linear_1", "time_embed.0"),
        Module("time_embedding.linear_2", "time_embed.2"),
        Module("conv_in", "input_blocks.0.0"),
        Module("conv_norm_out", "out.0"),
        Module("conv_out", "out.2"),
        Module("mid_block.resnets.0", "middle_block.0", residual),
        Module("mid_block.attentions.0", "middle_block.1"),
        Module("mid_block.resnets.1", "middle_block.2", residual),
    ]
    for level in range(levels):
        down, up = 1 + level * (blocks + 1), level * (blocks + 1)
        for block in range(blocks + 1):
            at = f"down_blocks.{level}.resnets.{block}", f"up_blocks.{level}.resnets.{block}"
            if block < blocks:
                modules.append(Module(at[0], f"input_blocks.{down + block}.0", residual))
                modules.append(Module(at[0].replace("resnets", "attentions"), f"input_blocks.{down + block}.1"))
            modules.append(Module(at[1], f"output_blocks.{up + block}.0", residual))
            if attends(level):
                modules.append(Module(at[1].replace("resnets", "attentions"), f"output_blocks.{up + block}.1"))
        modules.append(Module(f"down_blocks.{level}.downsamplers.0.conv", f"input_blocks.{down + blocks}.0.op"))
        place = f"output_blocks.{up + blocks}.{2 if attends(level) else 1}.conv"
        modules.append(Module(f"up_blocks.{level}.upsamplers.0.conv", place))
    return modules


def unet_to_ours(state: StateDict) -> StateDict:
    """A diffusers `UNet2DConditionModel`'s state dict -> our U-Net's, without its SPADE layers."""
    blocks = _count(state, r"down_blocks\.0\.resnets\.(\d+)\.")
    modules = _unet_modules(
        _count(state, r"down_blocks\.(\d+)\."),
        blocks,
        lambda level: any(key.startswith(f"up_blocks.{level}.attentions.") for key in state),
    )
    return _translated(state, modules, to_ours=True)


def unet_to_diffusers(state: StateDict) -> StateDict:
    """Our U-Net's state dict -> a diffusers `UNet2DConditionModel`'s; SPADE layers, which it lacks, are left out."""
    state = {key: value for key, value in state.items() if ".spade." not in key}
    downs = sorted({int(match[1]) for key in state if (match := re.match(r"input_blocks\.(\d+)\.0\.op\.", key))})
    total = _count(state, r"output_blocks\.(\d+)\.")
    blocks = downs[0] - 1 if downs else total - 1
    modules = _unet_modules(
        len(downs) + 1,
        blocks,
        lambda level: f"output_blocks.{level * (blocks + 1)}.1.norm.weight" in state,
    )
    return _translated(state, modules, to_ours=False)


def _vae_modules(levels: int, blocks: int) -> list[Module]:
    residual, attention = tuple(VAE_RESIDUAL.items()), tuple(VAE_ATTENTION.items())
    modules = []
    for half in ("encoder", "decoder"):
        modules += [
            Module(f"{half}.conv_norm_out", f"{half}.norm_out"),
            Module(f"{half}.mid_block.resnets.0", f"{half}.mid.block_1", residual),
            Module(f"{half}.mid_block.attentions.0", f"{half}.mid.attn_1", attention),
            Module(f"{half}.mid_block.resnets.1", f"{half}.mid.block_2", residual),
        ]
    for level in range(levels):
        up = levels - 1 - level
        for block in range(blocks + 1):
            down = f"encoder.down_blocks.{level}.resnets.{block}", f"encoder.down.{level}.block.{block}"
            modules.append(Module(*down, residual))
            modules.append(
                Module(f"decoder.up_blocks.{level}.resnets.{block}", f"decoder.up.{up}.block.{block}", residual)
            )
        modules += [
            Module(f"encoder.down_blocks.{level}.downsamplers.0.conv", f"encoder.down.{level}.downsample.conv"),
            Module(f"decoder.up_blocks.{level}.upsamplers.0.conv", f"decoder.up.{up}.upsample.conv"),
        ]
    return modules


def vae_to_ours(state: StateDict) -> StateDict:
    """A diffusers `AutoencoderKL`'s state dict -> our autoencoder's, whose attention is made of 1 x 1 convolutions."""
    state = {
        re.sub(rf"(\.attentions\.0\.)({'|'.join(VAE_ATTENTION_OF_OLD)})\.",
               lambda found: f"{found[1]}{VAE_ATTENTION_OF_OLD[found[2]]}.", key): value
        for key, value in state.items()
    }  # fmt: skip
    levels = _count(state, r"encoder\.down_blocks\.(\d+)\.")
    blocks = _count(state, r"encoder\.down_blocks\.0\.resnets\.(\d+)\.")
    state = _translated(state, _vae_modules(levels, blocks), to_ours=True)
    return {key: value[..., None, None] if _is_linear_attention(key, value) else value for key, value in state.items()}


def vae_to_diffusers(state: StateDict) -> StateDict:
    """Our autoencoder's state dict -> a diffusers `AutoencoderKL`'s."""
    state = {key: value.flatten(1) if ".attn_1." in key and value.ndim == 4 else value for key, value in state.items()}
    levels = _count(state, r"encoder\.down\.(\d+)\.")
    blocks = _count(state, r"encoder\.down\.0\.block\.(\d+)\.")
    return _translated(state, _vae_modules(levels, blocks), to_ours=False)


def _is_linear_attention(key: str, value: Tensor) -> bool:
    return ".attn_1." in key and value.ndim == 2


def _text_modules(layers: int) -> list[Module]:
    modules = [
        Module("embeddings.token_embedding", "token_embedding"),
        Module("embeddings.position_embedding.weight", "positional_embedding"),
        Module("final_layer_norm", "ln_final"),
    ]
    block = tuple(TEXT_BLOCK.items())
    return modules + [Module(f"encoder.layers.{n}", f"transformer.resblocks.{n}", block) for n in range(layers)]


def text_to_ours(state: StateDict) -> StateDict:
    """A transformers `CLIPTextModel`'s state dict -> our text tower's, in which q, k and v are one matrix."""
    state = {key.removeprefix("text_model."): value for key, value in state.items() if "position_ids" not in key}
    joined: StateDict = {}
    for key, value in state.items():
        if found := re.fullmatch(r"(.*\.)self_attn\.q_proj\.(weight|bias)", key):
            parts = [value, *(state[f"{found[1]}self_attn.{name}_proj.{found[2]}"] for name in "kv")]
            joined[f"{found[1]}attn.in_proj_{found[2]}"] = torch.cat(parts)
        elif not re.search(r"self_attn\.[kv]_proj\.", key):
            joined[key] = value
    return _translated(joined, _text_modules(_count(joined, r"encoder\.layers\.(\d+)\.")), to_ours=True)


def text_to_transformers(state: StateDict, layers: int | None = None) -> StateDict:
    """Our text tower's state dict -> a `CLIPTextModel`'s of its first `layers` blocks, all by default.

    Stable Diffusion 2 leaves the last block out, and files in diffusers' layout do not hold it. The projection and the
    temperature are not part of that class.
    """
    state = {key: value for key, value in state.items() if key not in ("text_projection", "logit_scale")}
    count = _count(state, r"transformer\.resblocks\.(\d+)\.")
    translated = _translated(state, _text_modules(count), to_ours=False)
    split: StateDict = {}
    for key, value in translated.items():
        if found := re.fullmatch(r"(.*\.)attn\.in_proj_(weight|bias)", key):
            for name, part in zip("qkv", value.chunk(3), strict=True):
                split[f"{found[1]}self_attn.{name}_proj.{found[2]}"] = part
        else:
            split[key] = value
    kept = count if layers is None else layers
    return {
        f"text_model.{key}": value
        for key, value in split.items()
        if not (found := re.match(r"encoder\.layers\.(\d+)\.", key)) or int(found[1]) < kept
    }
