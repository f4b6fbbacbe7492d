"""Build the miniature that is shipped in data/mini, or score its networks: `lafr build-mini [--scores val|london]`."""

import argparse
import sys
from pathlib import Path

from lafr.commands.doors import Parser, as_option, as_typed, one_line_errors, program
from lafr.storage import shipped, write_json

EXAMPLES = """\
examples:
  {prog}                                  hours on two CPU cores; run again, it resumes
  {prog} --faces FOLDER -o my_mini        from other faces, into another folder ($LAFR_MINI makes LAFR use it)
  {prog} --scores london                  how good its recogniser, landmarker and parser are
"""


def parser() -> Parser:
    """Return the parser of the command's arguments."""
    top = Parser("Train the shipped 128 px miniature and its controls from nothing, or score its networks.")
    top.epilog = EXAMPLES.format(prog=top.prog)
    add = top.add_argument
    add("-o", "--output", default=None, metavar="FOLDER", help="default: the shipped one, or results/mini_networks")
    add("--runs", default="runs", metavar="FOLDER", help="of the experiments' runs (default runs)")
    add("--faces", default="../shared/faces", metavar="FOLDER", help="aligned faces: congress/, omi/, val.txt, ...")
    add("--scores", default=None, choices=("val", "london"), help="score the networks on this set and stop")
    return top


def build(given: argparse.Namespace) -> None:
    """Build the miniature and print its size."""
    from lafr.miniature import build as miniature

    output = Path(given.output) if given.output else shipped("data/mini")
    size = miniature.build(output, Path(given.runs), [f"data.root={given.faces}"], as_typed(sys.argv[1:]))
    print(f"packed {', '.join(miniature.PARTS.values())} into {output}: {size:.1f} MB")


def score(given: argparse.Namespace) -> None:
    """Print and write every score, and an image of points and regions."""
    from lafr.images import write_image
    from lafr.miniature.scores import score_networks
    from lafr.provenance import provenance

    scores, overlay = score_networks(given.faces, given.scores)
    target = Path(given.output or "results/mini_networks") / f"{given.scores}.json"
    write_json({**scores, **provenance(f"{program()} --scores {given.scores}", seed=0)}, target)
    image = Path(given.runs) / "mini_networks" / f"{given.scores}.png"
    write_image(overlay, image)
    for key in ("spearman", "finds_itself", "landmark_nme_percent", "region_iou", "region_iou_mean"):
        print(key, scores[key])
    print(f"numbers  {target}\nimage    {image} (points, regions)")


def command() -> None:
    """Run the command line."""
    options = parser()
    given = options.parse_args()
    with one_line_errors(as_option(options)):
        score(given) if given.scores else build(given)


if __name__ == "__main__":
    command()
