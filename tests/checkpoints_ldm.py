"""A base model in Stable Diffusion's original layout, by the names of its own code (openaimodel.py, model.py)."""

import json
import struct

import torch


def _resnet(state, old, new, names):
    for part, name in names.items():
        for kind in ("weight", "bias"):
            if f"{old}.{part}.{kind}" in state:
                yield f"{new}.{name}.{kind}", state[f"{old}.{part}.{kind}"]


def _under(state, old, new):
    return ((new + name.removeprefix(old), value) for name, value in state.items() if name.startswith(f"{old}."))


def unet_ldm(state: dict, levels: int, layers: int) -> dict:
    """`model.diffusion_model.*`: blocks are counted through, a level's last one re-samples."""
    names = {
        "norm1": "in_layers.0",
        "conv1": "in_layers.2",
        "time_emb_proj": "emb_layers.1",
        "norm2": "out_layers.0",
        "conv2": "out_layers.3",
        "conv_shortcut": "skip_connection",
    }
    out = {}
    for old, new in {
        "conv_in": "input_blocks.0.0",
        "time_embedding.linear_1": "time_embed.0",
        "conv_out": "out.2",
        "time_embedding.linear_2": "time_embed.2",
        "conv_norm_out": "out.0",
    }.items():
        out |= _under(state, old, new)
    number = 1
    for level in range(levels):
        for layer in range(layers):
            out |= _resnet(state, f"down_blocks.{level}.resnets.{layer}", f"input_blocks.{number}.0", names)
            out |= _under(state, f"down_blocks.{level}.attentions.{layer}", f"input_blocks.{number}.1")
            number += 1
        if level < levels - 1:
            out |= _under(state, f"down_blocks.{level}.downsamplers.0.conv", f"input_blocks.{number}.0.op")
            number += 1
    for resnet, place in ((0, 0), (1, 2)):
        out |= _resnet(state, f"mid_block.resnets.{resnet}", f"middle_block.{place}", names)
    out |= _under(state, "mid_block.attentions.0", "middle_block.1")
    for level in range(levels):
        for layer in range(layers + 1):
            number, block = level * (layers + 1) + layer, f"up_blocks.{level}"
            attention = dict(_under(state, f"{block}.attentions.{layer}", f"output_blocks.{number}.1"))
            out |= dict(_resnet(state, f"{block}.resnets.{layer}", f"output_blocks.{number}.0", names)) | attention
            if layer == layers:
                place = 2 if attention else 1
                out |= _under(state, f"{block}.upsamplers.0.conv", f"output_blocks.{number}.{place}.conv")
    assert len(out) == len(state)
    return {f"model.diffusion_model.{name}": value for name, value in out.items()}


def vae_ldm(state: dict, levels: int, layers: int) -> dict:
    """`first_stage_model.*`: the decoder's levels count from fine to coarse, attention is of 1 x 1 convolutions."""
    names = {"norm1": "norm1", "conv1": "conv1", "norm2": "norm2", "conv2": "conv2", "conv_shortcut": "nin_shortcut"}
    attention = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
    out = {}
    for name in ("quant_conv", "post_quant_conv"):
        out |= _under(state, name, name)
    for coder in ("encoder", "decoder"):
        for old, new in {"conv_in": "conv_in", "conv_norm_out": "norm_out", "conv_out": "conv_out"}.items():
            out |= _under(state, f"{coder}.{old}", f"{coder}.{new}")
        for resnet in (0, 1):
            out |= _resnet(state, f"{coder}.mid_block.resnets.{resnet}", f"{coder}.mid.block_{resnet + 1}", names)
        middle = _resnet(state, f"{coder}.mid_block.attentions.0", f"{coder}.mid.attn_1", attention)
        out |= {name: value[..., None, None] if value.ndim == 2 else value for name, value in middle}
    for level in range(levels):
        for layer in range(layers):
            out |= _resnet(
                state, f"encoder.down_blocks.{level}.resnets.{layer}", f"encoder.down.{level}.block.{layer}", names
            )
        out |= _under(
            state, f"encoder.down_blocks.{level}.downsamplers.0.conv", f"encoder.down.{level}.downsample.conv"
        )
        fine = levels - 1 - level
        for layer in range(layers + 1):
            out |= _resnet(
                state, f"decoder.up_blocks.{level}.resnets.{layer}", f"decoder.up.{fine}.block.{layer}", names
            )
        out |= _under(state, f"decoder.up_blocks.{level}.upsamplers.0.conv", f"decoder.up.{fine}.upsample.conv")
    assert len(out) == len(state)
    return {f"first_stage_model.{name}": value for name, value in out.items()}


def original_layout(vae: torch.nn.Module, unet: torch.nn.Module) -> dict:
    """The state dict of both, under their original names; works on the meta device too."""
    shape = len(unet.config.block_out_channels), unet.config.layers_per_block
    state = unet_ldm(unet.state_dict(), *shape)
    state |= vae_ldm(vae.state_dict(), len(vae.config.block_out_channels), vae.config.layers_per_block)
    return state | {"cond_stage_model.transformer.text_model.final_layer_norm.bias": torch.zeros(8)}


def write_hollow(path, shapes: dict) -> None:
    """Write safetensors of these names and shapes, all zero, as a sparse file: of any size, and no disk."""
    header, end = {}, 0
    for name, value in shapes.items():
        start, end = end, end + 4 * value.numel()
        header[name] = {"dtype": "F32", "shape": list(value.shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + end)
