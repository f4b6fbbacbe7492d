"""The fast path computes the same function: folded layers exactly, lower precision within 45 dB on real faces."""

import resource
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from diffusers.models.attention_processor import Attention
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

import scripts.benchmarks.inference as benchmark
from lafr.data.degradation.first_order import Degradation
from lafr.data.packaged import PackagedFaces
from lafr.data.stream import PairStream
from lafr.errors import InputError
from lafr.models.attention import BlockedAttention
from lafr.models.fast import choose_dtype, fold_upsampling, optimised, transposed
from lafr.models.restorer import Restorer

MEGABYTE = 1 << 20


@pytest.fixture(scope="module")
def lq():
    degradation = Degradation(noise_sigma=(0, 15), jpeg_quality=(40, 101))  # the miniature's
    pairs = PairStream(PackagedFaces(128), degradation, seed=0)
    return torch.stack([pairs[i]["lq"] for i in range(3)])


@pytest.fixture(scope="module")
def exact(lq):
    return restored(Restorer.from_pretrained("mini"), lq)


@torch.no_grad()
def restored(restorer, lq):
    return restorer(lq).clamp(-1, 1)


def psnr(a, b):
    return float(10 * (4 / (a - b).square().mean()).log10())


@pytest.mark.parametrize("bias", [True, False])
def test_a_transposed_convolution_equals_upsampling_and_convolving_borders_included(bias):
    draw = torch.Generator().manual_seed(0)
    conv = nn.Conv2d(3, 5, 3, padding=1, bias=bias).double()
    x = torch.randn(2, 3, 5, 4, generator=draw, dtype=torch.float64)
    torch.testing.assert_close(transposed(conv)(x), conv(F.interpolate(x, scale_factor=2.0)), rtol=0, atol=1e-14)


@pytest.mark.parametrize("block", [1, 40 * 7, 1 << 20])
def test_attention_in_blocks_of_queries_is_diffusers_attention(block, monkeypatch):
    monkeypatch.setattr("lafr.models.attention.BLOCK", 8 * block)  # bytes of float64: 1, 7 or all of 40 rows at once
    torch.manual_seed(0)
    of_unet = Attention(24, heads=3, dim_head=8, out_bias=True).double()
    of_vae = Attention(24, heads=1, dim_head=24, norm_num_groups=4, residual_connection=True, bias=True).double()
    prompted = Attention(24, cross_attention_dim=12, heads=3, dim_head=8).double()
    given = {of_unet: (torch.randn(2, 40, 24),), of_vae: (torch.randn(2, 24, 5, 8),)}
    given[prompted] = (torch.randn(2, 40, 24), torch.randn(2, 7, 12))
    for layer, tensors in given.items():
        expected = layer(*(tensor.double() for tensor in tensors))
        layer.set_processor(BlockedAttention())
        torch.testing.assert_close(layer(*(tensor.double() for tensor in tensors)), expected, rtol=0, atol=1e-12)


def test_folding_leaves_four_ninths_of_the_multiplications_of_upsampling(base):
    layer, x = base.vae.decoder.up_blocks[0].upsamplers[0], torch.zeros(1, 16, 8, 8)

    def count():
        with FlopCounterMode(display=False) as counter:
            layer(x)
        return counter.get_total_flops()

    before = count()
    fold_upsampling(base.vae)
    assert count() * 9 == before * 4


@pytest.mark.parametrize(("dtype", "least"), [("float32", 100), ("bfloat16", 45)])
def test_the_optimised_miniature_restores_faces_as_the_plain_one_does(dtype, least, lq, exact):
    fast = optimised(Restorer.from_pretrained("mini"), dtype=dtype)
    assert not any(".lora_" in name for name, _ in fast.named_parameters())
    assert next(fast.codec.vae.decoder.parameters()).dtype == getattr(torch, dtype)
    assert psnr(restored(fast, lq), exact) >= least


def test_the_nearest_code_of_a_latent_is_the_same_in_bfloat16(lq):
    plain, fast = Restorer.from_pretrained("mini"), optimised(Restorer.from_pretrained("mini"), dtype="bfloat16")
    with torch.no_grad():
        latents = fast.latents(lq)
        assert {z.dtype for z in vars(latents).values()} == {torch.float32}
        assert torch.equal(latents.z_aligned, plain.adapter(latents.z_lq))


@pytest.mark.slow
def test_a_compiled_restorer_restores_as_the_eager_one_does(model_folder):
    lq = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    eager = optimised(Restorer.from_pretrained(model_folder), dtype="float32")
    compiled = optimised(Restorer.from_pretrained(model_folder), dtype="float32", compile=True)
    assert psnr(restored(compiled, lq), restored(eager, lq)) >= 100
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] >= 3


def test_auto_takes_bfloat16_only_where_the_processor_multiplies_it(monkeypatch):
    cpu = torch.device("cpu")
    for found, used, wanted in (
        ({"avx512_bf16": True}, "AVX512", torch.bfloat16),
        ({"amx_bf16": True}, "AVX512", torch.bfloat16),
        ({"avx512_bf16": True}, "AVX2", torch.float32),  # ATEN_CPU_CAPABILITY=avx2
        ({"avx512_f": True, "avx512_bf16": False}, "AVX512", torch.float32),
        ({}, "AVX2", torch.float32),
    ):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda found=found: found)
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda used=used: used)
        assert choose_dtype("auto", cpu) == wanted
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: False)
    assert choose_dtype("auto", torch.device("cuda")) == torch.float16


def test_an_unknown_dtype_a_second_preparation_and_saving_are_errors(restorer, tmp_path):
    with pytest.raises(InputError, match=r"dtype must be one of auto.*got 'int8'"):
        optimised(restorer, dtype="int8")
    optimised(restorer.eval(), dtype="float32")
    with pytest.raises(InputError, match="already; load it again"):
        optimised(restorer)
    with pytest.raises(InputError, match="save before optimising"):
        restorer.save_pretrained(tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


FAULTS = """
import resource
import subprocess
import sys
from pathlib import Path
import torch
from lafr.models.fast import memory_kept

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(4):
        torch.ones(64 << 20, dtype=torch.uint8)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()

first = faults()
with memory_kept():
    faults()
    again, kept = faults(), resident()
print(first, again, kept - resident())
"""


def test_kept_memory_is_used_again_without_touching_new_pages_and_given_back_at_the_end():
    # in a process of its own: what tests before left in the C library's heap would be counted too
    done = subprocess.run([sys.executable, "-c", FAULTS], capture_output=True, text=True, check=True)
    first, again, given_back = map(int, done.stdout.split())
    pages = 4 * 64 * MEGABYTE // resource.getpagesize()
    assert first > pages / 2 and again < pages / 100
    assert given_back > 60 * MEGABYTE


def test_attention_and_convolution_are_counted_as_their_formulas_say():
    conv = nn.Conv2d(3, 8, 3, padding=1)

    def attend(x):
        q = (
            x.flatten(2).transpose(1, 2)[:, None].contiguous()
        )  # as a fused kernel wants it: one head of 36 positions, 8 channels
        return F.scaled_dot_product_attention(q, q, q)

    row = benchmark.Method(torch.float32, {"conv": conv, "attention": attend})
    found = benchmark.counted(row, torch.zeros(2, 3, 6, 6))
    assert found["conv"] * 1e9 == pytest.approx(2 * 36 * 9 * 3 * 8)
    assert found["attention"] * 1e9 == pytest.approx(2 * 2 * 36 * 36 * 8)


def test_the_reference_step_is_the_whole_unet_with_its_prompt_and_time(base):
    z = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    size = SimpleNamespace(prompt_tokens=77)
    prompt = torch.randn(1, 77, 8, generator=torch.Generator().manual_seed(0)).repeat(2, 1, 1)
    step = benchmark.reference_method(base, size, torch.device("cpu")).parts["UNet"]
    with torch.no_grad():
        predicted = base.unet(z, 999, prompt).sample
        expected = base.scheduler.step(predicted, 999, z, generator=torch.Generator()).pred_original_sample
        torch.testing.assert_close(step(z), expected, rtol=1e-4, atol=1e-4)


def test_speed_is_compared_within_a_turn_and_only_gpu_tables_show_milliseconds():
    gmacs = {"encoder": 1.0, "UNet": 1.0, "decoder": 2.0}
    turn = lambda whole: {"encoder": 1.0, "UNet": 1.0, "decoder": whole - 2, "whole": whole}  # noqa: E731
    reference = benchmark.Method(torch.float32, {}, gmacs=gmacs, seconds=[turn(8.0), turn(80.0), turn(9.0)])
    row = benchmark.Method(torch.float32, {}, gmacs=gmacs, seconds=[turn(4.0), turn(40.0), turn(3.0)])
    found = benchmark.summary(row, 2, reference.seconds)
    assert [found["parts"]["whole"][key] for key in ("speed", "lowest", "highest")] == [2.0, 2.0, 3.0]
    assert found["ms_per_image"] == 2000
    record = {
        "batches": {"2": {"LAFR": found}},
        "matmul_gmacs_per_second": {"float32": 2.0},
        "repeats": 3,
        "resolution": 512,
        "threads": 2,
        "device": "cpu",
        "instructions": "AVX512",
        "reference": True,
    }
    assert "2.00–3.00x" in benchmark.inference_table(record)
    assert "50 %" in benchmark.inference_table(record)  # 4e9 in 4 s, of 2e9 a second
    assert "ms an image" not in benchmark.inference_table(record)
    assert "| 2000.0 |" in benchmark.inference_table({**record, "device": "H100"})
