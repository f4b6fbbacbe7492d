"""The contact sheet tells what was drawn, with units."""

import numpy as np
import torch

from lafr.data.degradation.first_order import Degradation
from lafr.data.degradation.second_order import SecondOrderDegradation
from lafr.preparation.sheet import COLUMNS, TILE, caption, contact_sheet, describe


def test_steps_are_told_with_their_numbers_and_units():
    blur, noise, jpeg, _, *colour = Degradation(
        (2, 2), (3, 3), (7, 7), (50, 51), isotropic=1, colour_shift=(4, 4), colour_shift_probability=1, gray=1
    ).draw(512, 512, np.random.default_rng(0))
    assert describe(blur) == "blur 2.0 px, down 3.0"
    assert describe(noise) == "noise 7.0/255"
    assert describe(jpeg) == "JPEG 50"
    assert [describe(step) for step in colour] == ["colour +4 +4 +4", "gray"]
    assert describe({"op": "blur", "kernel": {"family": "sinc", "size": 9, "cutoff": 1.5}}) == "sinc 1.50 rad"
    assert describe({"op": "poisson_noise", "scale": 2, "gray": True}) == "gray shot noise x2.00"


def test_captions_break_between_steps_and_hold_only_what_the_font_can_draw():
    for chain in (Degradation(), SecondOrderDegradation()):
        for seed in range(40):
            lines = caption(chain.draw(64, 64, np.random.default_rng(seed)))
            assert all(len(line) <= 40 for line in lines)
            assert all(line.endswith(",") for line in lines[:-1])
            assert all(line.isascii() for line in lines)  # Pillow's own font has little else


def test_the_sheet_shows_the_face_and_every_draw_and_no_caption_is_cut():
    face = torch.full((3, 32, 32), 0.5)
    for chain in (Degradation(), SecondOrderDegradation()):
        records = [chain.draw(32, 32, np.random.default_rng(k)) for k in range(24)]
        copies = [torch.full((3, 32, 32), k / 24 * 2 - 1) for k in range(24)]
        sheet = contact_sheet(face, copies, records, "someone")
        step_x, step_y = sheet.width // COLUMNS, sheet.height // 5
        seen = np.asarray(sheet.convert("L"))
        for number, image in enumerate([face, *copies]):
            x, y = number % COLUMNS * step_x, number // COLUMNS * step_y
            assert abs(seen[y + TILE // 2, x + TILE // 2] - (image[0, 0, 0].item() + 1) * 127.5) <= 1
            assert (seen[y + step_y - 2 : y + step_y, x : x + step_x] == 255).all()  # the last line ends above
            assert (seen[y + TILE + 8 : y + step_y, x + step_x - 3 : x + step_x] == 255).all()
