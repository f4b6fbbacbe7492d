"""The paper's tables: every cell is a number of a JSON file, every blank is named, and what is missing is run once."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import lafr.commands.paper
import lafr.commands.reproduce
from lafr.errors import InputError
from lafr.evaluation.paper import ALIGNMENT, OURS, TABLES, costs, curve_of, needs, records, shown, table_of
from lafr.evaluation.tables import shown as cell_of
from lafr.evaluation.terminal import print_table
from lafr.storage import shipped, write_json
from lafr.training.preflight import Finding

ROOT = Path(__file__).resolve().parents[2]
TABLE_4 = TABLES["4"]


@pytest.fixture(autouse=True)
def empty(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def write_result(experiment: str, benchmark: str, psnr: float, **more) -> dict:
    scores = {"psnr_rgb": {"mean": psnr, "low": psnr - 0.1, "high": psnr + 0.1}}
    scores |= {"lmd": {"mean": psnr / 7, "low": 3.0, "high": 4.0, "failed": 1}}
    before = {"psnr_rgb": {"mean": 21.5, "low": 21.4, "high": 21.6}}
    record = {
        "benchmark": benchmark,
        "images": 3000,
        "resolution": 512,
        "protocol": "lafr",
        "seed": 0,
        "rows": {"LQ input": before, "LAFR": scores, "codec(HQ)": scores},
        "metrics": {},
        "trained_on": {},
        "not_measured": {"musiq": "pyiqa is missing"},
    }
    record |= more
    write_json(record, Path(f"runs/eval/runs-{experiment}-model/{benchmark}/lafr/result.json"))
    return record


def command(monkeypatch, capsys, *arguments: str) -> tuple[str, str]:
    monkeypatch.setattr(sys, "argv", ["lafr paper", *arguments])
    lafr.commands.paper.command()
    return capsys.readouterr()


def test_on_an_empty_machine_every_table_says_what_it_needs_and_how_to_get_it(monkeypatch, capsys):
    out, _ = command(monkeypatch, capsys)
    assert [part.split()[0] for part in out.split("\n\n")] == ["1", "2", "3", "4", "11", "12", "figure6", "tsne"]
    for words in (
        "lafr train +experiment=ffhq_0.9pct\n",
        "lafr prepare dataset=wider_test",
        "lafr eval benchmark=celeba_test protocol=lafr model.folder=runs/ffhq_0.9pct/model",
    ):
        assert words in out
    for table in TABLES.values():
        there = {need.kind for need in needs(table) if need.there}
        assert there <= {"experiment"}
    assert (shipped("configs") / "experiment" / f"{OURS}.yaml").is_file()


def test_every_cell_of_an_assembled_table_is_its_json_and_every_blank_is_named(monkeypatch, capsys):
    written = {row: write_result(row.experiment, "celeba_test", 22 + i) for i, row in enumerate(ALIGNMENT[:3])}
    (record,) = records(TABLE_4)
    assert list(record["rows"]) == ["LQ input", *(row.method for row in ALIGNMENT)]
    text = shown(TABLE_4)
    for row, result in written.items():
        line = next(line for line in text.splitlines() if line.startswith(f"| {row.method}"))
        cells = [cell.strip("* ") for cell in line.strip("|").split("|")]
        assert record["rows"][row.method] == result["rows"]["LAFR"]
        assert cells[1:] == [cell_of(result, "LAFR", metric) for metric in ("psnr_rgb", "lmd")]
    for row in ALIGNMENT[3:]:
        assert f"| {row.method} | – | – |" in text and f"Blank: {row.method}: {row.experiment}" in text
    assert "musiq was not measured" in text and "Scored at 512 px; protocol lafr" in text
    latex = shown(TABLE_4, "latex")
    assert latex.count(r"\begin{table}") == latex.count(r"\end{table}") == 1
    print_table(record, 80)
    lines = capsys.readouterr().out.splitlines()
    assert sum(line.startswith("Blank: ") for line in lines) == 3 and max(map(len, lines)) <= 80
    out, _ = command(monkeypatch, capsys, "4", "--format", "terminal")
    assert "24.00" in out and "Blank: residual codes" in out and "| method" not in out
    assert r"\textbf{24.00}" in latex and "Not measured: MUSIQ." in latex


def test_results_that_differ_in_what_must_be_equal_share_no_table():
    write_result(ALIGNMENT[0].experiment, "celeba_test", 22)
    for difference in ({"images": 24}, {"resolution": 128}, {"protocol": "vqfr"}):
        write_result(ALIGNMENT[1].experiment, "celeba_test", 22, **difference)
        with pytest.raises(InputError, match=next(iter(difference))):
            records(TABLE_4)


def test_published_rows_stand_next_to_ours_with_or_without_a_result():
    text = shown(TABLES["1"])
    assert "OSDFace CVPR 2025 Tab. 1" in text and "| CodeFormer | 0.3412" in text and "Blank: LAFR: ffhq_0.9pct" in text
    write_result(OURS, "celeba_test", 22.5)
    own, *others = records(TABLES["1"])
    assert own["rows"]["LAFR"]["psnr_rgb"]["mean"] == 22.5
    osdface = next(one for one in others if one["source"].startswith("OSDFace"))
    assert cell_of(osdface, "LAFR", "lmd, as the source defines it").startswith("3.2143 (3.0000–4.0000)§")
    write_result(OURS, "celeba_test", 22.5, images=40)  # a part: published means are of all 3,000
    own, *others = records(TABLES["1"])
    assert others and all("LAFR" in one["rows"] and not one["rows"]["LAFR"] for one in others)
    assert own["rows"]["LAFR"] and all("3000 images" in one["left_out"][0] for one in others)


def test_costs_are_those_of_the_files_and_a_missing_file_is_a_blank():
    assert [line[1] for line in costs(TABLES["3"])] == ["–", "–"]
    for file in TABLES["3"].files:
        Path(file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / file, file)
    cells = {line[0]: line[1] for line in costs(TABLES["3"])}
    parameters = json.loads((ROOT / "results/parameters.json").read_text(encoding="utf-8"))
    assert cells["parameters, adapter"] == f"{parameters['adapter'] / 1e6:.2f} M"
    inference = json.loads((ROOT / "results/benchmarks/inference.json").read_text(encoding="utf-8"))
    for size, variants in inference["batches"].items():
        for name, values in variants.items():
            assert cells[f"ms per image, batch {size}, {name}"] == f"{values['ms_per_image']:.0f}"
    assert r"\toprule" in shown(TABLES["3"], "latex")


def test_the_curve_over_training_faces_is_that_of_the_results(monkeypatch, capsys):
    for number, row in enumerate(TABLES["figure6"].rows[:3]):
        write_result(row.experiment, "celeba_test", 21 + number)
    (record,) = records(TABLES["figure6"])
    points = curve_of(TABLES["figure6"], record, "psnr_rgb")
    assert points == [(70, 21, 20.9, 21.1), (600, 22, 21.9, 22.1), (7000, 23, 22.9, 23.1)]
    out, _ = command(monkeypatch, capsys, "figure6", "-o", "figure6.svg")
    assert "figure6.svg" in out and "<svg" in Path("figure6.svg").read_text(encoding="utf-8")


def test_what_is_missing_is_run_once_and_what_cannot_be_run_is_named(monkeypatch, capsys):
    ran = []

    def run(arguments, **_):
        ran.append(arguments[3:])
        words = dict(word.lstrip("+").split("=", 1) for word in arguments[4:])
        if arguments[3] == "train":
            write_json({}, Path(f"runs/{words['experiment']}/model/lafr.json"))
        else:
            write_result(Path(words["model.folder"]).parent.name, words["benchmark"], 22.0)
        return subprocess.CompletedProcess(arguments, 0)

    monkeypatch.setattr("lafr.commands.running.subprocess.run", run)
    _, said = command(monkeypatch, capsys, "1", "--run", "--train", "trainer=gpu24")
    assert ran == [["train", "+experiment=ffhq_0.9pct", "trainer=gpu24"]]
    assert "not run  result ffhq_0.9pct on celeba_test: the images of celeba_test are missing" in said
    Path("data/celeba_test").mkdir(parents=True)
    out, _ = command(monkeypatch, capsys, "1", "--run")
    assert ran[1:] == [["eval", "benchmark=celeba_test", "protocol=lafr", "model.folder=runs/ffhq_0.9pct/model"]]
    assert "22.00" in out
    command(monkeypatch, capsys, "1", "--run")
    assert len(ran) == 2
    later = Path(f"runs/eval/runs-{OURS}-model/celeba_test/lafr/result.json").stat().st_mtime + 10
    os.utime(f"runs/{OURS}/model/lafr.json", (later, later))  # trained again: the result is of another model
    command(monkeypatch, capsys, "1", "--run")
    assert ran[2:] == ran[1:2]


def test_reproduce_prepares_trains_and_evaluates_what_is_missing_and_skips_the_rest(monkeypatch, capsys):
    ran = []

    def run(arguments, **_):
        ran.append(arguments[2:])
        if "train" in arguments:
            write_json({}, Path(f"runs/{OURS}/model/lafr.json"))
        elif "eval" in arguments:
            write_result(OURS, "celeba_test", 22.0)
        else:
            Path("data", arguments[4].partition("=")[2]).mkdir(parents=True)
        return subprocess.CompletedProcess(arguments, 0)

    lacking = {"faces": Finding("faces", False, "gone"), "images": Finding("images", False, "gone")}
    found = [Finding("metric musiq", False, "gone"), Finding("model", False, "gone"), lacking["images"]]
    monkeypatch.setattr("lafr.commands.running.subprocess.run", run)
    monkeypatch.setattr("lafr.commands.preflight.training_findings", lambda *_, **__: [lacking["faces"]])
    monkeypatch.setattr("lafr.commands.preflight.benchmark_findings", lambda _: (found, {}))
    monkeypatch.setattr(sys, "argv", ["lafr reproduce", OURS, "--faces", "source=F"])
    for named in ("faces, images", "images"):  # the folder F is not there at first
        with pytest.raises(SystemExit) as stop:
            lafr.commands.reproduce.command()
        assert f"missing: {named};" in str(stop.value.code) and "--images" in str(stop.value.code) and not ran
        for folder in "FLH":
            Path(folder).mkdir(exist_ok=True)
    sys.argv += ["--images", "source=L source_hq=H", "--launch", "--num_processes 2"]
    lafr.commands.reproduce.command()
    launched = ["accelerate.commands.launch", "--num_processes", "2", "-m", "lafr"]
    evaluation = ["benchmark=celeba_test", "protocol=lafr", f"model.folder=runs/{OURS}/model"]
    assert ran == [
        ["lafr", "prepare", "dataset=ffhq_600", "source=F"],
        ["lafr", "prepare", "dataset=celeba_test", "source=L", "source_hq=H"],
        [*launched, "train", f"+experiment={OURS}"],
        [*launched, "eval", *evaluation],
    ]
    assert "| LAFR | **22.00" in capsys.readouterr().out
    lafr.commands.reproduce.command()
    out, said = capsys.readouterr()
    assert len(ran) == 4 and "22.00" in out and f"skip     model {OURS}" in said


def test_the_latents_of_a_set_are_drawn(monkeypatch, capsys, face_folder, model_folder):
    argument = f"benchmark=pair data.lq={face_folder} data.hq={face_folder} model.folder='{model_folder}' device=cpu"
    out, _ = command(monkeypatch, capsys, "tsne", "-o", "latents.svg", "--eval", argument)
    text = Path("latents.svg").read_text(encoding="utf-8")
    assert "latents.svg" in out and "<svg" in text and "#2563a8" in text


def test_an_unknown_table_and_an_image_without_a_file_are_said(monkeypatch, capsys):
    with pytest.raises(InputError, match="'5'"):
        table_of("5")
    with pytest.raises(SystemExit) as stop:
        command(monkeypatch, capsys, "tsne")
    assert "t-SNE" in str(stop.value.code) and "--output" in str(stop.value.code)
