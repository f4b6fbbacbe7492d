"""What others printed: nothing twice, nothing impossible, no set next to the other of the same name."""

import csv
from pathlib import Path

import pytest

from lafr.errors import InputError
from lafr.evaluation.published import (
    BENCHMARKS,
    COLUMNS,
    PMRF,
    PRINTED,
    SAME,
    blocks,
    direction,
    left_out,
    read_published,
    related,
    require_same_set,
)
from lafr.metrics import METRICS

TABLE = Path(__file__).resolve().parents[2] / "data" / "published.csv"
GOOD = "celeba_test_severe,A,deg,60.5,Paper"


def lines() -> list[dict]:
    with TABLE.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def written(folder: Path, *lines: str) -> Path:
    path = folder / "published.csv"
    path.write_text("\n".join([",".join(COLUMNS), *lines]) + "\n", encoding="utf-8")
    return path


def test_the_shipped_table_is_whole_and_every_number_is_the_files():
    assert len(read_published()) == len(lines()) == 493
    assert [row["value"] for row in read_published()] == [float(line["value"]) for line in lines()]


def test_a_line_that_cannot_be_right_is_refused_by_its_number(tmp_path):
    for line, words in (
        (GOOD.replace("60.5", "61"), ["line 3", "line 2", "A, deg, Paper"]),
        (GOOD.replace("celeba_test_severe", "celeba_test"), ["'celeba_test'", "celeba_test_mild"]),
        (GOOD.replace("deg", "degree"), ["'degree'", "deg"]),
        (GOOD.replace("60.5", "605"), ["'605'", "0 to 90"]),
        (GOOD.replace("60.5", "nan"), ["'nan'", "0 to 90"]),
        (GOOD.replace("60.5", "60,5"), ["columns"]),
        (GOOD.replace("60.5", ""), ["''", "0 to 90"]),
        (GOOD.replace("Paper", " "), ["source"]),
    ):
        read_published.cache_clear()
        with pytest.raises(InputError) as error:
            read_published(written(tmp_path, GOOD, line))
        assert all(word in str(error.value) for word in words), line
        assert "\n" not in str(error.value)


def test_the_same_value_from_another_source_is_no_duplicate(tmp_path):
    assert len(read_published(written(tmp_path, GOOD, GOOD.replace("Paper", "Another")))) == 2


def test_neither_celeba_test_ever_shows_a_number_of_the_other():
    for benchmark, (name, _) in BENCHMARKS.items():
        own = {(line["source"], line["method"], float(line["value"])) for line in lines() if line["benchmark"] == name}
        given = {
            (source, method, value)
            for source, methods in blocks(benchmark).items()
            for method, values in methods.items()
            for value in values.values()
        }
        assert given and given <= own
    severe, mild = blocks("celeba_test"), blocks("celeba_test_mild")
    assert not severe.keys() & mild.keys()
    pmrf = mild[PMRF]
    assert pmrf["CodeFormer"]["deg_vqfr"] == 37.28 and pmrf["CodeFormer"]["lmd"] == 2.47


def test_a_set_nobody_printed_has_no_blocks():
    assert blocks("london") == blocks("mini") == {}


def test_a_column_bears_our_name_only_where_the_sources_code_measures_alike():
    for benchmark in BENCHMARKS:
        for source, methods in blocks(benchmark).items():
            ours = set(SAME.get(source, {}).values())
            columns = {column for values in methods.values() for column in values}
            assert {column for column in columns if not column.endswith("as the source defines it")} <= ours
    osdface = blocks("celeba_test")["OSDFace CVPR 2025 Tab. 1 (jkwang28/OSDFace README)"]["OSDFace"]
    assert osdface["lpips, as the source defines it"] == 0.3365  # LPIPS without its trunk is neither vgg's nor alex'
    assert not {"lpips_vgg", "lpips_alex"} & osdface.keys()


def test_what_is_known_to_be_measured_differently_is_left_out_and_said():
    reason = "its KID is to FFHQ, ours to the set's HQ images"
    assert left_out("celeba_test_mild", ["kid"]) == {PMRF: [reason]}
    assert blocks("celeba_test_mild", ["kid"]) == {}
    shown = {c for ms in blocks("celeba_test_mild").values() for values in ms.values() for c in values}
    assert not any("kid" in column or "ssim" in column for column in shown)


def test_only_columns_related_to_what_was_measured_are_given():
    given = blocks("celeba_test", ["lpips_vgg", "psnr_rgb"])
    assert {c.partition(",")[0] for ms in given.values() for vs in ms.values() for c in vs} == {"lpips", "psnr"}
    assert related(PMRF, "deg") == {"deg_vqfr"}
    assert related("another", "deg") == {"deg", "deg_vqfr"}


def test_better_means_the_same_in_papers_and_here():
    for metric, printed in PRINTED.items():
        assert direction(f"{metric}, as the source defines it") == printed.direction
        assert {METRICS[ours].direction for ours in printed.ours} <= {printed.direction}


def result(benchmark: str, images: int, psnr: float) -> dict:
    return {"benchmark": benchmark, "images": images, "rows": {"LQ input": {"psnr_rgb": {"mean": psnr}}}}


def test_a_result_of_another_set_or_a_part_is_compared_with_no_published_value():
    for record, words in (
        (result("celeba_test", 3000, 25.3), ["25.30 dB", "celeba_test_mild"]),
        (result("celeba_test_mild", 3000, 21.5), ["21.50 dB", "benchmark='celeba_test'"]),
        (result("celeba_test", 100, 21.5), ["3000 images", "has 100"]),
        (result("london", 102, 23.5), ["'london'", "wider_test"]),
    ):
        with pytest.raises(InputError) as error:
            require_same_set(record)
        assert all(word in str(error.value) for word in words), record
    trial = result("celeba_test (24 of 3000)", 24, 21.5) | {"set": {"name": "celeba_test", "images": 3000}}
    with pytest.raises(InputError, match="3000 images, this result has 24"):
        require_same_set(trial)
    require_same_set(result("celeba_test", 3000, 24.3))  # too near the boundary to be refused
    require_same_set(result("celeba_test", 3000, 21.5))
    require_same_set(result("celeba_test_mild", 3000, 25.3))
    require_same_set({"benchmark": "lfw_test", "images": 1711, "rows": {"LAFR": {}}})
