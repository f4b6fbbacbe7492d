"""Parsers: facexlib's own numbers on the same photograph, and the right names for their classes."""

import sys
from functools import partial

import cv2
import numpy as np
import pytest
import torch

from lafr.data.packaged import aligned
from lafr.errors import InputError
from lafr.images import from_uint8
from lafr.networks.parsers import BiSeNet, ParseNet, region_mask

# facexlib's inference/inference_parsing_parsenet.py and inference_parsing.py
ORDER = {
    ParseNet: "background skin nose eye_g l_eye r_eye l_brow r_brow l_ear r_ear mouth u_lip l_lip hair hat ear_r "
    "neck_l neck cloth",
    BiSeNet: "background skin l_brow r_brow l_eye r_eye eye_g l_ear r_ear ear_r nose mouth u_lip l_lip neck neck_l "
    "cloth hair hat",
}
NORMALISE = {ParseNet: ((0.5,) * 3, (0.5,) * 3), BiSeNet: ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))}


@pytest.fixture(scope="module", params=[ParseNet, BiSeNet])
def parser(request):
    """ParseNet is thinned: the whole one takes a quarter of a minute a face."""
    architecture = pytest.importorskip("facexlib.parsing.parsenet", reason="needs facexlib")
    torch.manual_seed(0)
    with pytest.MonkeyPatch.context() as patch:
        thin = partial(architecture.ParseNet, base_ch=8, res_depth=2, ch_range=[8, 16])
        patch.setattr(architecture, "ParseNet", thin)
        return randomised(request.param())


def randomised(parser):
    for norm in parser.modules():
        if isinstance(norm, torch.nn.BatchNorm2d):
            norm.running_mean.normal_(0, 0.1)
            norm.running_var.uniform_(0.5, 1.5)
    return parser


def photo(side):
    return cv2.resize(np.array(aligned("astronaut")), (side, side))  # RGB, 0..255


def ours(face):
    return from_uint8(torch.from_numpy(face).permute(2, 0, 1))[None]


def facexlibs(parser, face):
    """What facexlib's inference script computes of a picture that OpenCV read."""
    from facexlib.utils.misc import img2tensor
    from torchvision.transforms.functional import normalize

    bgr = cv2.resize(face[..., ::-1].astype("float32"), (512, 512), interpolation=cv2.INTER_LINEAR)
    pixels = img2tensor(bgr / 255.0, bgr2rgb=True, float32=True)
    normalize(pixels, *NORMALISE[type(parser)], inplace=True)
    return parser.network(pixels[None])[0]


@torch.no_grad()
@pytest.mark.parametrize("side", [512, 128])
def test_the_logits_are_facexlibs(parser, side):
    found, theirs = parser(ours(photo(side))), facexlibs(parser, photo(side))
    assert found.shape == (1, 19, 512, 512)
    assert theirs.std((0, 2, 3)).min() > 1e-3
    torch.testing.assert_close(found, theirs, rtol=1e-5, atol=1e-5 * float(theirs.abs().max()))


@pytest.mark.slow
@torch.no_grad()
def test_the_logits_of_the_whole_parsenet_are_facexlibs():
    pytest.importorskip("facexlib.parsing.parsenet", reason="needs facexlib")
    torch.manual_seed(0)
    whole = randomised(ParseNet())
    found, theirs = whole(ours(photo(512))), facexlibs(whole, photo(512))
    torch.testing.assert_close(found, theirs, rtol=1e-5, atol=1e-5 * float(theirs.abs().max()))


def test_the_gradient_reaches_the_image_and_no_weight(parser):
    parser.train()
    assert not any(part.training for part in parser.modules())
    image = ours(photo(64)).requires_grad_()
    parser(image).square().mean().backward()
    assert image.grad.isfinite().all() and image.grad.abs().sum() > 0
    assert all(weight.grad is None for weight in parser.parameters())


def test_regions_name_the_classes_of_each_networks_own_order():
    for kind, order in ORDER.items():
        names = order.split()
        assert len(names) == 19
        assert {part: {names[i] for i in ids} for part, ids in kind.regions.items()} == {
            "eyes": {"l_eye", "r_eye"},
            "brows": {"l_brow", "r_brow"},
            "nose": {"nose"},
            "mouth": {"mouth", "u_lip", "l_lip"},
            "skin": {"skin"},
        }


def test_a_region_mask_is_the_probability_of_its_classes():
    logits = torch.randn(2, 5, 4, 3, generator=torch.Generator().manual_seed(0))
    p = logits.exp() / logits.exp().sum(1, keepdim=True)
    assert region_mask(logits, (1, 3)).shape == (2, 1, 4, 3)
    torch.testing.assert_close(region_mask(logits, (1, 3))[:, 0], p[:, 1] + p[:, 3])


@pytest.mark.parametrize("kind", [ParseNet, BiSeNet])
def test_a_missing_facexlib_is_one_clear_error(kind, monkeypatch):
    monkeypatch.setitem(sys.modules, f"facexlib.parsing.{kind.name}", None)
    with pytest.raises(InputError, match="pip install --no-deps --require-hashes"):
        kind()
