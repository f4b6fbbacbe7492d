"""Tables of a result in LaTeX, as a paper prints them: booktabs, no wider than the line, names that readers know."""

from collections.abc import Sequence

from lafr.evaluation.tables import OWN_DEFINITION, TRAINED_ON, UNSTATED, headings, marks, notes, shown, title

PACKAGES = ("booktabs", "graphicx")
MOST_INTERVALS = 4  # columns; a wider table holds means alone
NAMES = {
    "celeba_test": "CelebA-Test (severe)",
    "celeba_test_mild": "CelebA-Test (mild)",
    "lfw_test": "LFW-Test",
    "webphoto_test": "WebPhoto-Test",
    "wider_test": "WIDER-Test",
    "celebchild_test": "CelebChild-Test",
}


def latex_table(record: dict) -> str:
    r"""Return a result as a LaTeX `table` (needs \usepackage{booktabs,graphicx}); the second best is underlined."""
    columns, marked = headings(record, labels=True), marks(record)
    intervals = len(columns) <= MOST_INTERVALS
    caption = title(record, intervals)
    for name in sorted(NAMES, key=len, reverse=True):
        if caption.startswith((f"{name}:", f"{name},", f"{name} (")):
            caption = NAMES[name] + caption.removeprefix(name)
    rows = [["Method", *map(latex_text, columns.values())]]
    for method in record["rows"]:
        texts = [shown(record, method, metric, intervals) for metric in columns]
        cells = [latex_cell(text, marked.get((method, m))) for m, text in zip(columns, texts, strict=True)]
        rows.append([latex_text(method), *cells])
    caption = f"{caption}. Best in bold, second best underlined."
    return floating(caption, "l" + "r" * len(columns), rows, notes(record, brief=True))


def floating(caption: str, alignment: str, rows: Sequence[Sequence[str]], under: Sequence[str] = ()) -> str:
    """Return a `table`, shrunk to the line where it is wider.

    Args:
        caption: plain text.
        alignment: a letter for each column, as `tabular` takes it.
        rows: of cells that are LaTeX already; the first holds the headings.
        under: notes, plain text.
    """
    headings, *body = [" & ".join(cells) + r" \\" for cells in rows]
    return "\n".join(
        [
            r"\begin{table}[t]",
            r"\centering",
            rf"\caption{{{latex_text(caption)}}}",
            r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%",
            rf"\begin{{tabular}}{{{alignment}}}",
            r"\toprule",
            headings,
            r"\midrule",
            *body,
            r"\bottomrule",
            r"\end{tabular}%",
            "}",
            *(rf"\par\smallskip{{\footnotesize {latex_text(note)}\par}}" for note in under),
            r"\end{table}",
        ]
    )


def latex_cell(text: str, mark: str | None) -> str:
    """Return a cell: the mean marked, what follows it small."""
    mean, space, rest = text.partition(" ")
    command = {"best": r"\textbf", "second": r"\underline"}.get(mark or "")
    mean = f"{command}{{{latex_text(mean)}}}" if command else latex_text(mean)
    return mean + (rf" {{\scriptsize {latex_text(rest)}}}" if space else "")


LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "[": "{[}",
    "]": "{]}",
    "–": "--",
    "±": r"$\pm$",
    "↑": r"$\uparrow$",
    "↓": r"$\downarrow$",
    TRAINED_ON: r"$^\dagger$",
    UNSTATED: r"$^\ddagger$",
    OWN_DEFINITION: r"$^\S$",
} | {character: f"\\{character}" for character in "&%$#_{}"}


def latex_text(text: str) -> str:
    """Return text on one line, with the characters escaped that LaTeX would interpret."""
    return "".join(LATEX.get(character, character) for character in " ".join(text.split()))
