"""Where the UNet's time goes: every multiplication has a kind, and a share of the ceiling is gmacs / seconds / rate."""

import pytest
import torch

from lafr.commands.launch import composed
from scripts.benchmarks import inference
from scripts.benchmarks.operators import KINDS, REST, kind_of, operators, operators_table


def test_each_kind_of_operator_has_its_time_and_no_multiplication_is_lost(monkeypatch):
    built, new_restorer = [], inference.new_restorer

    def kept(*given):
        built.append(new_restorer(*given))
        return built[-1]

    monkeypatch.setattr(inference, "new_restorer", kept)
    record = operators(composed("benchmark_operators", "scale=mini", "repeats=1", "matmul_side=64"))
    assert set(record["seconds"]) == {*KINDS, REST} and min(record["seconds"].values()) > 0
    parts = inference.parts_of(built[0], "base")
    whole = inference.counted(inference.Method(torch.float32, parts), torch.zeros(1, 3, 128, 128))
    assert min(record["gmacs"].values()) > 0 and sum(record["gmacs"].values()) == pytest.approx(whole["UNet"])


def test_a_share_of_the_ceiling_is_the_rate_over_a_matrix_products():
    record = {
        "seconds": {"convolutions": 2.0, "linear layers": 1.0, "attention": 0.5, REST: 0.5},
        "gmacs": {"convolutions": 250.0, "linear layers": 90.0, "attention": 40.0},
        "matmul_gmacs_per_second": 100.0, "repeats": 3, "resolution": 512, "instructions": "AVX2", "threads": 2,
    }  # fmt: skip
    table = operators_table(record)
    for row in ("convolutions | 50 % | 250.0 | 125 %", "linear layers | 25 % | 90.0 | 90 %", f"{REST} | 12 % |  |  |"):
        assert row in table
    assert kind_of("aten::mkldnn_convolution") == "convolutions" and kind_of("aten::mul") == REST
