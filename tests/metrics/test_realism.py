"""NIQE against BasicSR's and pyiqa's, pyiqa's networks as it runs them itself, and nothing fetched behind our back."""

import io
import re
import sys
import tarfile
import types

import numpy as np
import pytest
import torch

from lafr import weights
from lafr.data.packaged import aligned
from lafr.errors import InputError
from lafr.images import as_saved, from_pil, to_uint8
from lafr.metrics import describe, realism
from lafr.metrics.niqe import NIQE
from lafr.metrics.realism import PyIQA, PyIQANIQE
from scripts.benchmarks.reference import FETCH, FOLDER, SOURCE, basicsr_module

NON_COMMERCIAL = "needs the non-commercial extra: pip install 'lafr[iqa]'"


@pytest.fixture(autouse=True)
def no_network(monkeypatch, tmp_path):
    def refuse(*arguments, **_):
        pytest.fail(f"asked for the network: {arguments}")

    for place in ("socket.socket.connect", "socket.create_connection", "socket.getaddrinfo"):
        monkeypatch.setattr(place, refuse)
    monkeypatch.delenv(weights.FOLDER_VARIABLE, raising=False)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))


@pytest.fixture(scope="module")
def faces():
    """Two photographed faces with the grain of a sensor, so that no area is exactly flat: `[2, 3, 512, 512]`."""
    clean = torch.stack([from_pil(aligned(name)) for name in ("astronaut", "t1_1")]) * 0.8
    return as_saved(clean + 0.03 * torch.randn(clean.shape, generator=torch.Generator().manual_seed(0)))


@pytest.fixture(scope="module")
def sdist():
    """BasicSR's source package: its NIQE, and the pristine model."""
    if not (FOLDER / SOURCE).is_file():
        pytest.skip(f"BasicSR's source isn't at hand: {FETCH}")
    with tarfile.open(FOLDER / SOURCE) as tar:
        yield tar


@pytest.fixture(scope="module")
def parameters(sdist) -> bytes:
    return sdist.extractfile("basicsr-1.4.2/basicsr/metrics/niqe_pris_params.npz").read()


@pytest.fixture(scope="module")
def pristine(parameters):
    with np.load(io.BytesIO(parameters)) as file:
        return file["mu_pris_param"], file["cov_pris_param"]


@pytest.fixture
def basicsr_niqe(sdist, parameters, monkeypatch):
    """BasicSR's `niqe(y)` of a luma image 0..255: its module, with what it imports from its own package."""
    names = ("basicsr", "basicsr.metrics", "basicsr.metrics.metric_util", "basicsr.utils", "basicsr.utils.registry")
    for name in (*names, "basicsr.utils.matlab_functions"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    util, registry = sys.modules["basicsr.metrics.metric_util"], sys.modules["basicsr.utils.registry"]
    util.reorder_image = util.to_y_channel = None
    registry.METRIC_REGISTRY = types.SimpleNamespace(register=lambda: lambda function: function)
    sys.modules["basicsr.utils.matlab_functions"].imresize = basicsr_module("utils/matlab_functions.py").imresize
    scipy_filters = types.ModuleType("scipy.ndimage.filters")
    scipy_filters.convolve = pytest.importorskip("scipy.ndimage").convolve
    monkeypatch.setitem(sys.modules, "scipy.ndimage.filters", scipy_filters)
    module = basicsr_module("metrics/niqe.py")
    with np.load(io.BytesIO(parameters)) as file:
        given = [file[name] for name in ("mu_pris_param", "cov_pris_param", "gaussian_window")]
    return lambda y: module.niqe(y, *given)


def luma(image: torch.Tensor) -> np.ndarray:
    """MATLAB's rgb2ycbcr, written out; rounded."""
    r, g, b = to_uint8(image).double()
    return (16 + (65.481 * r + 128.553 * g + 24.966 * b) / 255).numpy().round()


def test_niqe_of_faces_is_basicsrs(faces, pristine, basicsr_niqe):
    theirs = [basicsr_niqe(luma(face)) for face in faces]
    assert NIQE(pristine)(faces).tolist() == pytest.approx(theirs, rel=2e-4)


def test_niqe_by_pyiqa_is_pyiqas_and_another_number_than_basicsrs(faces, pristine, tmp_path):
    pyiqa = pytest.importorskip("pyiqa", reason=NON_COMMERCIAL)
    from scipy.io import savemat

    savemat(tmp_path / "pristine.mat", {"mu_prisparam": pristine[0], "cov_prisparam": pristine[1]})
    theirs = pyiqa.create_metric("niqe", device="cpu", pretrained_model_path=str(tmp_path / "pristine.mat"))
    ours = PyIQANIQE(pristine)(faces)
    assert ours.tolist() == pytest.approx([float(theirs((face[None] + 1) / 2)) for face in faces], rel=1e-4)
    assert (ours - NIQE(pristine)(faces)).abs().min() > 0.01


def test_niqe_rises_with_blur_and_needs_no_ground_truth(pristine):
    sharp = from_pil(aligned("astronaut"))[None]
    blurred = torch.nn.functional.avg_pool2d(sharp, 9, 1, 4)
    metric = NIQE(pristine)
    assert not describe("niqe", metric).needs_reference
    assert metric(blurred, None) > metric(sharp, None) + 0.5


def test_niqe_of_a_small_image_is_refused_with_the_least_size(pristine):
    for side in [128, 191]:
        with pytest.raises(InputError, match=f"NIQE is undefined for {side} x {side} .*192.*512") as error:
            NIQE(pristine)(torch.zeros(1, 3, side, side))
        assert "\n" not in str(error.value)
        assert describe("pristine", NIQE(pristine)).min_side == 192


def test_an_image_with_texture_in_no_block_or_in_one_has_no_niqe(pristine):
    images = torch.zeros(2, 3, 192, 192)
    images[1, :, :90, :90] = torch.rand(90, 90, generator=torch.Generator().manual_seed(0))
    assert NIQE(pristine)(images).isnan().all()


def test_niqe_reads_the_pinned_file_and_says_where_it_is_had(parameters, tmp_path, monkeypatch, faces, pristine):
    with pytest.raises(InputError, match=r"niqe_pristine is missing: download https://\S+niqe_pris_params.npz"):
        NIQE()
    monkeypatch.setenv(weights.FOLDER_VARIABLE, str(tmp_path))
    (tmp_path / "niqe_pris_params.npz").write_bytes(parameters)
    assert torch.equal(NIQE()(faces[:1]), NIQE(pristine)(faces[:1]))
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "niqe_pris_params.npz").write_bytes(parameters[:-1] + b"x")
    monkeypatch.setenv(weights.FOLDER_VARIABLE, str(tmp_path / "other"))
    with pytest.raises(InputError, match="its sha256 differs"):
        NIQE()


@pytest.mark.parametrize("name", realism.NETWORKS)
def test_without_weights_pyiqas_metrics_say_how_to_get_them_and_ask_no_network(name):
    pytest.importorskip("pyiqa", reason=NON_COMMERCIAL)
    with pytest.raises(InputError, match=r"is missing: download https://\S+.* into \$LAFR_WEIGHTS"):
        PyIQA(name)


def test_without_pyiqa_its_metrics_say_that_it_is_non_commercial_and_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "pyiqa", None)
    with pytest.raises(InputError, match=re.escape("pip install 'lafr[iqa]' (pyiqa is for non-commercial use only)")):
        PyIQA("musiq")


def test_an_unknown_metric_of_pyiqa_is_named_with_the_offered_ones():
    with pytest.raises(InputError, match=r"musiq, maniqa, topiq_face, clipiqa.*'qalign'"):
        PyIQA("qalign")


@pytest.fixture
def saved(tmp_path, monkeypatch):
    """Put random weights of one of pyiqa's networks into $LAFR_WEIGHTS, in the published layout, pinned."""
    pytest.importorskip("pyiqa", reason=NON_COMMERCIAL)

    def put(name: str, layout) -> dict[str, torch.Tensor]:
        theirs, file, settings = realism.NETWORKS[name]
        with realism._offline():
            state = realism.need("pyiqa", "").create_metric(theirs, device="cpu", **settings).net.state_dict()
        # not what building it again would draw
        state = {key: value * 1.01 if value.is_floating_point() else value for key, value in state.items()}
        path = tmp_path / weights.EXTERNAL[file].name
        torch.save(layout(state), path)
        monkeypatch.setenv(weights.FOLDER_VARIABLE, str(tmp_path))
        known = weights.ExternalFile(path.name, weights.sha256.__wrapped__(path), "here", "none", "make it")
        monkeypatch.setitem(weights.EXTERNAL, file, known)
        return state

    return put


@pytest.mark.slow  # pyiqa's import and network take seconds
@torch.no_grad()
def test_musiq_scores_as_pyiqa_does_from_the_same_file_in_rgb_one_image_at_a_time(saved, tmp_path, faces):
    import pyiqa

    saved("musiq", lambda state: state)
    small = faces[:, :, ::4, ::4]
    metric = PyIQA("musiq")
    path = str(tmp_path / weights.EXTERNAL["musiq_koniq"].name)
    theirs = pyiqa.create_metric("musiq", device=torch.device("cpu"), pretrained=False, pretrained_model_path=path)
    unit = (small + 1) / 2
    assert metric(small).tolist() == pytest.approx([float(theirs(one[None])) for one in unit], rel=1e-5)
    assert abs(float(theirs(unit[:1].flip(1))) - float(metric(small)[0])) > 1e-4  # BGR is another picture
    assert [file for file, _ in metric.weights] == ["musiq_koniq_ckpt-e95806b9.pth"]


@pytest.mark.slow  # pyiqa's import and network take seconds
@torch.no_grad()
def test_topiq_takes_pyiqas_checkpoint_without_its_backbones_download_or_detector(saved):
    state = saved("topiq_face", lambda state: {"params": {f"module.{key}": value for key, value in state.items()}})
    loaded = PyIQA("topiq_face").network.net.state_dict()
    assert loaded.keys() == state.keys()
    assert all(torch.equal(loaded[key], value) for key, value in state.items())


def test_a_checkpoint_of_another_network_is_not_taken(saved):
    saved("musiq", lambda state: dict(list(state.items())[1:]))
    with pytest.raises(RuntimeError, match="Missing key"):
        PyIQA("musiq")


def test_building_pyiqas_networks_leaves_the_random_state_where_it_was(saved):
    saved("musiq", lambda state: state)
    torch.manual_seed(3)
    before = torch.random.get_rng_state()
    PyIQA("musiq")
    assert torch.equal(torch.random.get_rng_state(), before)


def test_what_pyiqa_would_fetch_is_an_error_that_names_it(saved):
    saved("musiq", lambda state: state)
    import pyiqa

    with realism._offline(), pytest.raises(InputError, match=r"pyiqa asked for https://\S+musiq_koniq"):
        pyiqa.create_metric("musiq", device="cpu")
