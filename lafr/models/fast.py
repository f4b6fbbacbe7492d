"""Optimised inference: merged LoRA, folded upsampling, channels-last, low precision."""

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import torch
from diffusers.models.attention_processor import Attention
from diffusers.models.autoencoders.vae import AutoencoderTinyBlock, DecoderTiny
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.upsampling import Upsample2D
from torch import Tensor, nn

from lafr.errors import InputError
from lafr.models.attention import BlockedAttention
from lafr.models.restorer import Restorer

DTYPES = ("auto", "float32", "bfloat16", "float16")


def optimised(
    restorer: Restorer,
    device: torch.device | str = "cpu",
    dtype: str = "auto",
    compile: bool = False,
    channels_last: bool = True,
) -> Restorer:
    """Prepare a restorer for inference, in place, and return it; it can no longer be trained or saved.

    The LoRA is merged, upsampling is folded into the convolutions behind it, activations reuse memory; in bfloat16 on a
    CPU attention takes a block of queries at a time. Encoder, UNet and decoder compute in `dtype`; latents, the adapter
    with its nearest code, and the x0 line stay float32.

    Args:
        restorer: in eval mode, without gradients, as `Restorer.from_pretrained` gives it.
        device: to run on.
        dtype: of the weights, one of `DTYPES`; see `choose_dtype` for "auto".
        compile: encoder, UNet and decoder by torch.compile: minutes at each new batch size.
        channels_last: memory order of the convolutions' weights and features.

    Raises InputError when the dtype is unknown or the restorer was prepared before.
    """
    device = torch.device(device)
    chosen = choose_dtype(dtype, device)
    if getattr(restorer, "is_optimised", False):
        raise InputError("this restorer is optimised already; load it again to choose another precision")
    # W + alpha / rank * B A: one convolution where training had three
    restorer.denoiser.merge_lora()
    vae, unet = restorer.codec.vae, restorer.denoiser.unet
    tiny = [] if restorer.codec.tiny is None else [restorer.codec.tiny.decoder]
    networks = [vae.encoder, unet, vae.decoder, *tiny]
    for part in networks:
        fold_upsampling(part)
        reuse_activations(part)
        if device.type == "cpu" and chosen == torch.bfloat16:
            block_attention(part)
        order = torch.channels_last if channels_last else torch.preserve_format
        nn.Module.to(part, dtype=chosen, memory_format=order)  # diffusers' own `to` warns of layers that it has not
    # the layers between encoder and latent stay float32
    for part in (*vae.children(), *tiny):
        part.register_forward_pre_hook(_cast_to_own)
    restorer.to(device).requires_grad_(False).eval()
    if compile:
        for part in networks:
            part.compile(**_compiler(device, chosen))
    restorer.is_optimised = True
    setattr(restorer, "save_pretrained", _refuse_to_save)  # noqa: B010 (a method is replaced)
    return restorer


def choose_dtype(name: str, device: torch.device) -> torch.dtype:
    """Return the dtype called `name`; "auto" chooses the fastest that the device supports in hardware.

    That is bfloat16 where a processor has instructions for it (AVX512-BF16, AMX; GPUs by torch's report) and
    ATEN_CPU_CAPABILITY does not keep PyTorch from them, float16 on an older GPU, float32 elsewhere.
    """
    if name not in DTYPES:
        raise InputError("dtype", name, f"one of {', '.join(DTYPES)}")
    if name != "auto":
        return getattr(torch, name)
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    # what the processor has, whatever of it PyTorch may use
    found = torch.cpu.get_capabilities() if device.type == "cpu" else {}
    used = torch.backends.cpu.get_cpu_capability() == "AVX512"
    return torch.bfloat16 if used and (found.get("avx512_bf16") or found.get("amx_bf16")) else torch.float32


def fold_upsampling(model: nn.Module) -> None:
    """Replace each nearest 2x upsampling and the 3 x 3 convolution after it by one transposed convolution, in place.

    Exact but for rounding, borders included, at 4/9 of the multiplications: of nine taps on four equal pixels several
    share a pixel, and their weights can be added beforehand. Sizes must double exactly.
    """
    for layer in model.modules():
        if isinstance(layer, Upsample2D) and _is_plain(layer):
            layer.conv, layer.use_conv_transpose = transposed(layer.conv), True
        if isinstance(layer, DecoderTiny):
            layers = layer.layers
            for i, (before, after) in enumerate(pairwise(list(layers))):
                if isinstance(before, nn.Upsample) and before.mode == "nearest" and before.scale_factor == 2:
                    layers[i], layers[i + 1] = nn.Identity(), transposed(after)


def _is_plain(layer: Upsample2D) -> bool:
    conv = getattr(layer, "conv", None)
    return (
        layer.interpolate
        and isinstance(conv, nn.Conv2d)
        and conv.kernel_size == (3, 3)
        and conv.padding == (1, 1)
        and conv.stride == (1, 1)
        and conv.dilation == (1, 1)
        and conv.groups == 1
    )


@torch.no_grad()
def transposed(conv: nn.Conv2d) -> nn.ConvTranspose2d:
    """Return the layer equal to `conv(nearest 2x upsampling)`: `[B, C, h, w]` to `[B, D, 2h, 2w]`.

    Nearest upsampling is itself a transposed convolution, by 2 x 2 ones; the kernel of both is the full correlation
    of those ones with `conv`'s, 4 x 4.
    """
    # a transposed convolution with flipped kernel and swapped channels is the convolution itself
    flipped = conv.weight.flip(2, 3).transpose(0, 1)  # [C, D, 3, 3]
    kernel = sum(nn.functional.pad(flipped, (x, 1 - x, y, 1 - y)) for x in (0, 1) for y in (0, 1))  # [C, D, 4, 4]
    layer = nn.ConvTranspose2d(
        conv.in_channels,
        conv.out_channels,
        4,
        stride=2,
        padding=1,
        bias=conv.bias is not None,
        device="meta",
        dtype=kernel.dtype,
    )
    layer.weight = nn.Parameter(kernel.contiguous(), requires_grad=False)
    if conv.bias is not None:
        layer.bias = nn.Parameter(conv.bias.clone(), requires_grad=False)
    return layer


def reuse_activations(model: nn.Module) -> None:
    """Let each activation overwrite its input where no other layer reads that; in place."""
    # without a time projection: that would read the activation's input once more
    blocks = [layer for layer in model.modules() if isinstance(layer, ResnetBlock2D) and layer.time_emb_proj is None]
    for activation in (block.nonlinearity for block in blocks):
        if isinstance(activation, nn.SiLU):
            activation.inplace = True
    # every ReLU of a tiny decoder follows a convolution or a sum
    for decoder in (layer for layer in model.modules() if isinstance(layer, DecoderTiny | AutoencoderTinyBlock)):
        for activation in decoder.modules():
            if isinstance(activation, nn.ReLU):
                activation.inplace = True


def block_attention(model: nn.Module) -> None:
    """Let each attention compute a block of queries at a time, in place."""
    for layer in model.modules():
        if isinstance(layer, Attention):
            layer.set_processor(BlockedAttention())


@contextmanager
def memory_kept() -> Iterator[None]:
    """Keep freed memory in the process, while this lasts: with glibc on a CPU, for every thread of the process.

    A feature map at 512 px takes 67 to 134 MB. The C library fetches each from the kernel and returns it at once, and
    touching new pages takes longer than an addition or a normalisation does.
    """
    set_option = getattr(ctypes.CDLL(None), "mallopt", None)
    if set_option is None:
        yield
        return
    mmap_max, mmap_threshold, trim_threshold = -4, -3, -1  # malloc.h
    # 0: large blocks come from the heap too, which is kept, not from maps, which are returned
    set_option(mmap_max, 0)
    # -1: the top of the heap is never returned
    set_option(trim_threshold, -1)
    try:
        yield
    finally:  # where glibc's own, moving thresholds end once blocks this large were freed
        set_option(mmap_max, 65536)
        set_option(mmap_threshold, 32 << 20)
        set_option(trim_threshold, 64 << 20)
        ctypes.CDLL(None).malloc_trim(0)


def _cast_to_own(part: nn.Module, given: tuple) -> tuple:
    dtype = next(part.parameters()).dtype
    return tuple(x.to(dtype) if isinstance(x, Tensor) and x.is_floating_point() else x for x in given)


def _compiler(device: torch.device, dtype: torch.dtype) -> dict:
    if device.type != "cuda":
        return {"dynamic": False, "options": {"freezing": True}}  # weights are laid out once, for their convolution
    # A CUDA graph returns the same memory at each call. The casts to float32 between the parts copy out of it; in
    # float32 they would not.
    return {"dynamic": False, "mode": "max-autotune-no-cudagraphs" if dtype == torch.float32 else "max-autotune"}


def _refuse_to_save(*_: Any, **__: Any) -> None:
    raise InputError("an optimised restorer cannot be saved, as its layers differ; save before optimising")
