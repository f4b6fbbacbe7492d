"""Face detectors whose weights must be downloaded: facexlib's RetinaFace and insightface's SCRFD.

Architectures and post-processing are the packages' own; their downloads and unchecked pickles are not used.
"""

import numpy as np
import torch
from PIL import Image

from lafr.errors import need
from lafr.photos.detectors import Detection, merged, resized, seen_in
from lafr.weights import NO_DEPS, load_pickle, locate


class RetinaFace:
    """RetinaFace with a ResNet-50 (Deng et al., CVPR 2020), as facexlib's, GFPGAN's and CodeFormer's scripts use it.

    Raises InputError when facexlib or the weights are missing.

    Args:
        threshold: least score of a face.
        side: longer side in pixels of the copy that is searched.
        device: where it runs.
    """

    def __init__(self, threshold: float = 0.8, side: int = 1600, device: str | torch.device = "cpu"):
        architecture = need("facexlib.detection.retinaface", NO_DEPS)
        state = load_pickle("retinaface_resnet50")
        self.threshold, self.side = threshold, side
        self.network = architecture.RetinaFace(network_name="resnet50", device=torch.device(device))
        self.network.load_state_dict({key.removeprefix("module."): value for key, value in state.items()})
        self.network.requires_grad_(False).eval()

    @torch.no_grad()
    def __call__(self, image: Image.Image) -> list[Detection]:
        """Return the faces of an upright image."""
        small, per_pixel = resized(image, self.side)
        rows = self.network.detect_faces(small, self.threshold)  # box, score, points
        return merged([seen_in(row[:2], row[2:4], row[5:15], row[4], per_pixel) for row in rows])


class SCRFD:
    """SCRFD (Guo et al., ICLR 2022) of insightface's packs, run by onnxruntime. Non-commercial weights.

    Raises InputError when insightface, onnxruntime or the weights are missing.

    Args:
        threshold: least score of a face.
        sides: of the squares that the image is resized to, in pixels; large faces need a small one.
    """

    def __init__(self, threshold: float = 0.5, sides: tuple[int, ...] = (640, 1280)):
        module = need("insightface.model_zoo.scrfd", NO_DEPS)
        onnxruntime = need("onnxruntime", "onnxruntime")
        options = onnxruntime.SessionOptions()
        options.log_severity_level, options.intra_op_num_threads = 3, torch.get_num_threads()
        model = str(locate("scrfd_10g"))
        session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        self.network = module.SCRFD(session=session)
        self.threshold, self.sides = threshold, [(side, side) for side in sides]

    def __call__(self, image: Image.Image) -> list[Detection]:
        """Return the faces of an upright image."""
        pixels = np.ascontiguousarray(np.asarray(image.convert("RGB"))[:, :, ::-1])  # BGR
        boxes, points = self.network.detect(pixels, self.sides, det_thresh=self.threshold)
        one = np.ones(2)
        return merged([seen_in(b[:2], b[2:4], p, b[4], one) for b, p in zip(boxes, points, strict=True)])
