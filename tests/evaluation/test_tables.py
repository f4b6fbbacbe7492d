"""Tables: the marks are right, nothing is lost, no two sources share a table, no name breaks one."""

import copy
import csv
import functools
import io
import json
import math
import operator
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import lafr.commands.tables
from lafr.commands.tables import choose_metrics
from lafr.errors import InputError
from lafr.evaluation import paper
from lafr.evaluation.latex import latex_table, latex_text
from lafr.evaluation.published import BENCHMARKS
from lafr.evaluation.tables import (
    conditions,
    markdown_table,
    marks,
    read_result,
    shown,
    table,
    title,
    with_published,
)
from lafr.evaluation.terminal import print_table

ROOT = Path(__file__).resolve().parents[2]
HOSTILE = "a|b <script>alert(1)</script> [x](y) *_`$5 & 10%\n#{}~^\\ é字"


def score(mean: float | None, half: float = 0.1, **more) -> dict:
    low, high = (None, None) if mean is None else (mean - half, mean + half)
    return {"mean": mean, "low": low, "high": high} | more


def record(means: dict[str, dict[str, float | None]], **more) -> dict:
    rows = {row: {metric: score(mean) for metric, mean in of.items()} for row, of in means.items()}
    return {"benchmark": "val", "images": 7, "rows": rows} | more


def celeba(psnr_of_input: float, benchmark: str = "celeba_test_mild") -> dict:
    ours = {"psnr_rgb": 25.9, "lpips_vgg": 0.3512345, "deg_vqfr": 33.0, "niqe": 4.2, "ssim_rgb": 0.7, "lmd": 2.1}
    ours["fid_ffhq"] = 45.0
    rows = {"LQ input": ours | {"psnr_rgb": psnr_of_input}, "codec(LQ)": ours, "LAFR": ours, "codec(HQ)": ours}
    return record(rows, benchmark=benchmark, images=3000)


def test_best_and_second_are_what_sorting_says_and_inputs_and_ceilings_take_no_part():
    rng = np.random.default_rng(0)
    names = ["LQ input", "a", "b", "c", "LAFR", "codec(HQ)"]
    values = {row: {"psnr_rgb": p, "lmd_68": d} for row, p, d in zip(names, *rng.uniform(1, 30, (2, 6)), strict=True)}
    methods = names[1:-1]
    found = marks(record(values))
    for metric, sign in (("psnr_rgb", -1), ("lmd_68", 1)):
        best, second = sorted(methods, key=lambda row: sign * values[row][metric])[:2]
        assert {key: mark for key, mark in found.items() if key[1] == metric} == {
            (best, metric): "best",
            (second, metric): "second",
        }


def test_numbers_that_print_alike_share_a_mark_and_two_methods_have_no_second():
    alike = record({row: {"psnr_rgb": p} for row, p in {"a": 20.001, "b": 20.004, "c": 19.5, "d": 19.0}.items()})
    assert marks(alike) == {
        ("a", "psnr_rgb"): "best",
        ("b", "psnr_rgb"): "best",
        ("c", "psnr_rgb"): "second",
    }
    assert marks(record({"a": {"psnr_rgb": 20.0}, "b": {"psnr_rgb": 19.0}})) == {("a", "psnr_rgb"): "best"}


def test_a_failed_method_is_neither_best_nor_second_and_says_how_often_it_failed():
    rows = record({"a": {"lmd_68": None}, "b": {"lmd_68": 3.0}, "c": {"lmd_68": 2.0}, "d": {"lmd_68": 4.0}})
    rows["rows"]["a"]["lmd_68"]["failed"] = 7
    assert marks(rows) == {("c", "lmd_68"): "best", ("b", "lmd_68"): "second"}
    assert shown(rows, "a", "lmd_68") == "failed [7 failed]"


def test_a_method_that_loses_to_the_input_is_not_called_best_where_that_is_asked_for():
    means = {"LQ input": 23.0, "a": 22.0, "b": 21.0, "c": 20.0}
    losing = record({row: {"psnr_rgb": p} for row, p in means.items()})
    assert marks(losing, better_than_input=True) == {} and marks(losing)["a", "psnr_rgb"] == "best"
    winning = record({row: {"psnr_rgb": p} for row, p in (means | {"a": 24.0}).items()})
    assert marks(winning, better_than_input=True) == {("a", "psnr_rgb"): "best"}


def test_the_conditions_of_a_result_stand_under_its_table_and_its_size_in_the_title():
    rows = record({"LQ input": {"lmd": 5.0}, "a": {"lmd": 3.0}}, resolution=512, protocol="lafr")
    rows |= {"set": {"name": "val", "images": 7, "filter": "lanczos"}}
    rows["rows"]["a"]["lmd"]["failed"] = 2
    rows["metrics"] = {"fid_ffhq": {"label": "FID-FFHQ", "reference": {"resized": "Pillow Lanczos to 512 px"}}}
    assert "7 images at 512 px, protocol lafr" in title(rows)
    note = conditions(rows)
    for words in ("512 px", "lanczos", "protocol lafr", "FID-FFHQ against", "Pillow Lanczos", "a LMD 2"):
        assert words in note
    rows["rows"]["a"]["lmd"].pop("failed")
    assert "failed measurements: none" in conditions(rows)


def test_markdown_sets_the_best_in_bold_the_second_in_italics():
    three = record({row: {"psnr_rgb": p} for row, p in {"a": 20, "b": 22, "c": 21, "codec(HQ)": 30}.items()})
    assert markdown_table(three).splitlines() == [
        "| method | psnr_rgb ↑ |",
        "|---|---|",
        "| a | 20.00 (19.90–20.10) |",
        "| b | **22.00 (21.90–22.10)** |",
        "| c | *21.00 (20.90–21.10)* |",
        "| codec(HQ) | 30.00 (29.90–30.10) |",
    ]


def test_a_cards_digits_and_direction_win_over_the_projects():
    one = record({row: {"new": v} for row, v in {"a": 1.26, "b": 1.31, "c": 2.0}.items()})
    one["metrics"] = {"new": {"direction": "↓", "digits": 1}}
    assert markdown_table(one).splitlines()[0] == "| method | new ↓ |"
    assert shown(one, "a", "new") == "1.3 (1.2–1.4)"
    assert marks(one) == {("a", "new"): "best", ("b", "new"): "best", ("c", "new"): "second"}


def test_the_title_says_how_many_images_and_under_which_protocol():
    assert "7 images, protocol vqfr; mean (95 % bootstrap interval over images)" in title(record({}, protocol="vqfr"))


def test_published_values_of_two_sources_never_share_a_table():
    records = with_published(celeba(25.3))
    assert [r["source"].split()[0] for r in records] == ["PMRF", "BFRffusion"]
    for one in records:
        with (ROOT / "data" / "published.csv").open(newline="", encoding="utf-8") as file:
            printed = {
                (line["method"], float(line["value"]))
                for line in csv.DictReader(file)
                if line["source"] == one["source"] and line["benchmark"] == "celeba_test_mild"
            }
        ours = {"LQ input", "LAFR"}
        theirs = {(r, float(shown(one, r, m))) for r, of in one["rows"].items() if r not in ours for m in of}
        assert theirs and theirs <= printed
        assert one["rows"]["LAFR"]["deg_vqfr"] == score(33.0)
        assert "codec(LQ)" not in one["rows"]
    assert shown(records[0], "PMRF", "lpips_vgg") == "0.3470"  # as it is printed there
    assert "Left out: its SSIM leaves out a border" in markdown_table(records[0])


def test_no_number_of_ours_stands_in_a_column_that_only_the_source_defines():
    for one in with_published(celeba(21.5, "celeba_test")):
        columns = {c for row in ("LQ input", "LAFR") for c in one["rows"].get(row, ())}
        assert columns == set()
        text = markdown_table(one)
        assert "‡ as the source defines it" in text and re.search(r"\| \w+‡ [↑↓] \|", text)


def test_a_method_named_as_one_of_ours_does_not_replace_it():
    mild = celeba(25.3)
    mild["rows"]["CodeFormer"] = {"psnr_rgb": score(24.0)}  # outputs of the same method, scored here
    rows = with_published(mild)[0]["rows"]
    assert rows["CodeFormer"]["psnr_rgb"]["mean"] == 25.15
    assert rows["CodeFormer (measured here)"]["psnr_rgb"]["mean"] == 24.0


def test_csv_gives_back_every_number_and_says_whose_it_is():
    for benchmark in ("celeba_test", "celeba_test_mild"):
        csv_gives_back_every_number(benchmark)


def csv_gives_back_every_number(benchmark: str) -> None:
    ours = celeba(25.3 if benchmark.endswith("mild") else 21.5, benchmark)
    ours["rows"]["LAFR"]["lmd"]["failed"] = 2
    ours["rows"]["LAFR"]["deg_vqfr"] = score(None, failed=3000)
    lines = list(csv.DictReader(io.StringIO(table(ours, "csv", others=True))))
    measured = [line for line in lines if not line["source"]]
    assert len(measured) == 4 * 7 and len(measured) < len(lines)
    for line in measured:
        values = ours["rows"][line["method"]][line["metric"]]
        for key in ("mean", "low", "high"):
            assert line[key] == "" if values[key] is None else float(line[key]) == pytest.approx(values[key], rel=1e-7)
        assert (line["images"], line["failed"]) == ("3000", str(values.get("failed", 0)))
    for line in lines:
        if line["source"]:
            assert (line["low"], line["high"], line["failed"]) == ("", "", "")


def test_latex_prints_the_names_that_papers_use_and_markdown_those_of_the_yaml():
    scores = record({"a": {"psnr_rgb": 20.0, "lpips_vgg": 0.3}, "b": {"psnr_rgb": 19.0, "lpips_vgg": 0.4}})
    assert r"Method & PSNR $\uparrow$ & LPIPS (VGG) $\downarrow$ \\" in latex_table(scores).splitlines()
    assert "| method | psnr_rgb ↑ | lpips_vgg ↓ |" in markdown_table(scores).splitlines()


FOOTNOTES = (r"$^\dagger$", r"$^\ddagger$", r"$^\S$")


def structure(text: str) -> None:
    """Check what a compiler would, and what it would not: braces, environments, cells, rules, escapes, footnotes."""
    bare = re.sub(r"\\[{}]", "", text)
    depth = [bare[:at].count("{") - bare[:at].count("}") for at in range(0, len(bare), 7)]
    assert min(depth) >= 0 and bare.count("{") == bare.count("}")
    opened: list[str] = []
    for kind, name in re.findall(r"\\(begin|end)\{(\w+)\}", text):
        assert kind == "begin" or opened.pop() == name
        opened += [name] * (kind == "begin")
    assert not opened
    columns = len(re.search(r"\\begin\{tabular\}\{(\w+)\}", text)[1])
    rules = re.findall(r"\\(\w+rule)", text)
    assert rules == ["toprule", "midrule", "bottomrule"] and "|" not in text and r"\hline" not in text
    top, middle, bottom = (text.index("\\" + rule) for rule in rules)
    lines = [line for line in text[top:bottom].splitlines()[1:] if line != r"\midrule"]
    assert len(lines) > 1 and all(line.endswith(r" \\") for line in lines)
    assert {len(re.findall(r"(?<!\\)&", line)) + 1 for line in lines} == {columns}
    # outside commands nothing is left that LaTeX would interpret, and no character that pdflatex lacks
    plain = re.sub(r"\$\^?\\\w+\$|\\resizebox.*|\\\w+|\\[&%$#_{}\\]|%$", "", text, flags=re.MULTILINE)
    assert not re.search(r"[%$#_~^\\]", plain.replace("&", "")) and plain.isascii(), plain
    # a mark stands in the table where and only where its note stands under it
    for mark in FOOTNOTES:
        assert (mark in text[middle:bottom] + text[top:middle]) == (mark in text[bottom:]), mark


def every_kind() -> dict[str, str]:
    """Every kind of table that the project prints in LaTeX."""
    ours = celeba(21.5, "celeba_test") | {"trained_on": {"LAFR": ["lpips_vgg"]}, "not_measured": {"deg": "get x_y"}}
    mild = celeba(25.3) | {"trained_on": {"LAFR": ["psnr_rgb"]}, "not_measured": {"deg": "100 % gone & lost_"}}
    mild["rows"][HOSTILE.replace("é", "").replace("字", "")] = {"psnr_rgb": score(24.0)}
    gate = {"passed": {"LAFR": True}, "below": {"LAFR": 3}, "allowed": 10, "threshold": 0.3}
    learned = {"sets": [{"name": "ffhq_600", "filter": "lanczos", "resolution": 512}], "faces": 600, "resolution": 512}
    wide = eleven_metrics() | {"gate": gate, "training_sets": {"LAFR": learned}, "protocol": "lafr"}
    kinds = {
        "a result": table(wide, "latex"),
        "failures": table(record({"a": {"lmd": None}}), "latex"),
        "with published rows": table(mild, "latex", others=True),
        "ours among them": table(ours, "latex", together=True),
    }
    for name, one in paper.TABLES.items():
        if one.numbers:
            kinds[f"paper {name}"] = paper.shown(one, "latex")
    return kinds


def test_every_kind_of_latex_table_has_the_structure_that_compiles():
    for kind, text in every_kind().items():
        parts = re.findall(r"\\begin\{table\}.*?\\end\{table\}", text, re.DOTALL)
        assert parts, kind
        for part in parts:
            structure(part)
            text = text.replace(part, "", 1)
        assert all(line.startswith("% ") for line in text.splitlines() if line), kind  # comments between the tables


def test_latex_has_the_structure_that_compiles_fits_the_line_and_names_what_readers_know():
    ours = celeba(21.5, "celeba_test") | {"trained_on": {"LAFR": ["lpips_vgg"]}, "not_measured": {"deg": "get x_y"}}
    text = table(ours, "latex", together=True)
    for part in text.split("\n\n"):
        structure(part)
        assert r"\resizebox{\ifdim\width>\linewidth" in part and r"\toprule" in part
        assert "CelebA-Test (severe)" in part and "lpips" not in part.replace("lpips_vgg", "")
    first, second = text.split("\n\n")[:2]
    assert "Not measured: Deg." in first and "get x" not in first  # a paper's reader gets no address to fetch from
    assert r"LPIPS$^\ddagger$ $\downarrow$" in second and "FID-FFHQ" in second
    assert "--" not in "".join(line for line in first.splitlines() if line.startswith("LAFR"))  # too many for intervals
    few = choose_metrics(ours, ["psnr_rgb", "niqe"])
    text = table(few, "latex")
    structure(text)
    assert r"{\scriptsize (25.80--26.00)}" in text  # few columns have room for them
    assert "dagger" not in text and "Not measured" not in text  # they are about metrics that weren't chosen


def test_ours_stand_next_to_a_sources_rows_marked_and_out_of_the_competition():
    ours = celeba(21.5, "celeba_test")
    ours["rows"]["LAFR"]["lpips_vgg"]["mean"] = 0.0001  # better than any
    (osdface, *_) = [one for one in with_published(ours, together=True) if one["source"].startswith("OSDFace")]
    column = "lpips, as the source defines it"
    assert osdface["rows"]["LAFR"][column] == ours["rows"]["LAFR"]["lpips_vgg"] | {"measured_as": "lpips_vgg"}
    assert shown(osdface, "LAFR", column) == "0.0001 (0.2512–0.4512)§"
    found = marks(osdface)
    assert ("LAFR", column) not in found and "best" in {mark for (_, metric), mark in found.items() if metric == column}
    text = markdown_table(osdface)
    assert "§ measured here; definition may differ" in text and "LPIPS by LPIPS (VGG)" in text
    for other in with_published(ours, together=True):  # two sources still never share a table
        assert len({cell["source"] for row in other["rows"].values() for cell in row.values() if "source" in cell}) == 1
    assert "LAFR" not in with_published(ours)[0]["rows"]


def eleven_metrics() -> dict:
    names = [
        "psnr_rgb",
        "ssim_rgb",
        "lpips_alex",
        "dists",
        "lmd",
        "identity_cos_adaface",
        "niqe_pyiqa",
        "clipiqa",
        "maniqa",
        "musiq",
        "fid_ffhq",
    ]
    methods = ["LQ input", "codec(LQ)", "adapter only", "LAFR", "codec(HQ)"]
    return record({row: dict.fromkeys(names, 0.5) for row in methods}, benchmark="celeba_test", resolution=512)


def test_a_table_too_wide_for_the_terminal_is_turned_and_leaves_intervals_to_the_files(capsys):
    for width in (80, 120):
        print_table(eleven_metrics(), width)
        lines = capsys.readouterr().out.splitlines()
        assert max(map(len, lines)) <= width
        rows = [line for line in lines if "psnr_rgb" in line]
        assert sum(line.count("0.50") for line in rows) == 5 and len(rows) == (2 if width == 80 else 1)
        assert not any("(0.4" in line for line in lines) and not any("…" in line for line in lines)
    print_table(eleven_metrics(), 40)  # two methods at a time
    out = capsys.readouterr().out
    assert out.count("fid_ffhq") >= 3 and max(map(len, out.splitlines())) <= 40
    print_table(eleven_metrics(), 400)
    assert "0.50 (0.40–0.60)" in capsys.readouterr().out
    print_table(eleven_metrics())  # into a file: as wide as it takes
    assert "0.50 (0.40–0.60)" in capsys.readouterr().out


def test_a_hostile_name_stays_one_cell_in_markdown_and_one_line_in_latex():
    rows = record({HOSTILE: {"psnr_rgb": 20.0}, "b": {"psnr_rgb": 19.0}}, not_measured={"deg": "100 % gone & lost_"})
    line = markdown_table(rows).splitlines()[2]
    assert len(re.findall(r"(?<!\\)\|", line)) == 3
    assert not re.search(r"(?<!\\)<script", line)
    lines = latex_table(rows).splitlines()
    (row,) = [line for line in lines if "alert" in line]
    assert len(re.findall(r"(?<!\\)&", row)) == 1 and row.endswith(r"\\")
    assert not re.search(r"(?<!\\)[%#$_](?!\w*\$|\^)", latex_text(HOSTILE))
    assert latex_text("a_b\\c{}^~") == r"a\_b\textbackslash{}c\{\}\textasciicircum{}\textasciitilde{}"


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="pdflatex (texlive-latex-recommended) is not installed")
def test_every_kind_of_latex_table_compiles_and_fits_the_line(tmp_path):
    parts = "\n\\clearpage\n".join(every_kind().values())
    head = r"\documentclass{article}\usepackage{booktabs,graphicx}"
    page = f"{head}\\begin{{document}}\n{parts}\n\\end{{document}}\n"
    (tmp_path / "t.tex").write_text(page, encoding="utf-8")
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "t.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:]
    assert (tmp_path / "t.pdf").is_file() and "Overfull" not in done.stdout and "Missing character" not in done.stdout


def test_the_terminal_shows_a_name_in_brackets_as_it_is(capsys):
    print_table(record({"[bold]x[/bold]": {"psnr_rgb": 20.0}}, latents={"latent_gap_before": 0.25}))
    out = capsys.readouterr().out
    assert "[bold]x[/bold]" in out and "latent_gap_before 0.25" in out


@pytest.fixture
def make_tables(monkeypatch, capsys):
    """Run `lafr tables`; return its exit code or error, and what it printed."""

    def run(*arguments: str) -> tuple[object, str]:
        monkeypatch.setattr(sys, "argv", ["lafr tables", *arguments])
        with pytest.raises(SystemExit) as stop:
            lafr.commands.tables.command()
        return stop.value.code, capsys.readouterr().out

    return run


def test_the_command_prints_the_chosen_columns_in_order(make_tables):
    stopped, out = make_tables(str(ROOT / "results/mini/mini.json"), "--metrics", "lmd_68,psnr_rgb")
    held = json.loads((ROOT / "results/mini/mini.json").read_text(encoding="utf-8"))
    assert stopped == 0
    assert out.splitlines()[2] == "| method | lmd_68 ↓ | psnr_rgb ↑ |"
    assert len([line for line in out.splitlines() if line.startswith("| ")]) == 1 + len(held["rows"])
    # in a terminal: as wide as it is, without Markdown
    stopped, out = make_tables(
        str(ROOT / "results/mini/mini.json"), "--metrics", "lmd_68,psnr_rgb", "--format", "terminal"
    )
    assert stopped == 0 and "| method" not in out and out.index("lmd_68 ↓") < out.index("psnr_rgb ↑")


def places(node, at=()):
    """Yield the keys that lead to every value inside a record."""
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, value in items:
        yield (*at, key)
        yield from places(value, (*at, key))


def test_a_result_that_is_damaged_anywhere_is_a_table_or_one_line(tmp_path, capsys):
    whole = json.loads((ROOT / "results/mini/london.json").read_text(encoding="utf-8"))
    whole |= {"config": {}, "rows": {name: dict(list(of.items())[:1]) for name, of in list(whole["rows"].items())[:2]}}
    whole["metrics"] = dict(list(whole["metrics"].items())[:1])
    path, refused, damages = tmp_path / "result.json", 0, [None, "x", 3, [], {}, [1], math.nan]
    for number, at in enumerate(places(whole)):
        record = copy.deepcopy(whole)
        *above, last = at
        place = functools.reduce(operator.getitem, above, record)
        if number % 2:
            del place[last]
        else:
            place[last] = damages[number // 2 % len(damages)]
        path.write_text(json.dumps(record), encoding="utf-8")
        try:
            print_table(read_result(path), 100)
        except InputError as error:
            refused += 1
            assert "result must be a result.json" in str(error) and "\n" not in str(error)
    assert refused > 10


def test_wrong_input_to_the_command_ends_in_one_line(make_tables):
    mini = str(ROOT / "results/mini/mini.json")
    for arguments, words in (
        (["nowhere.json"], ["'nowhere.json'"]),
        ([str(ROOT / "README.md")], ["README.md"]),
        ([mini, "--metrics", "psnr"], ["'psnr'", "psnr_rgb"]),
        ([mini, "--published"], ["'mini'", *BENCHMARKS]),
    ):
        said, out = make_tables(*arguments)
        assert out == "" and said.startswith("error: ") and "\n" not in said, arguments
        assert all(word in said for word in words), said
