"""The drawing of the method is what its script draws, and every box leads to a file."""

import re
from xml.etree import ElementTree

from scripts.benchmarks.method_figure import BOXES, ROOT, TARGET, figure


def test_the_figure_is_the_scripts_and_its_boxes_lead_to_files_and_differ_in_shape():
    text = TARGET.read_text(encoding="utf-8")
    assert text == figure()
    ElementTree.fromstring(text)
    links = re.findall(r'href="([^"]+)"', text)
    assert len(links) == len(BOXES) and all((TARGET.parent / link).is_file() for link in links)
    for box, drawn in zip(BOXES, re.findall(r"<a .*?</a>", text), strict=True):
        assert drawn.count("<rect") == (2 if box.trained else 1), box.name
    assert ROOT in TARGET.parents
