"""`scripts/train.py` on the tiny model, in a process that the tests start."""

import gc
import os
import runpy
import sys
from pathlib import Path

import torch

SCRIPT = Path(__file__).resolve().parents[1] / "scripts" / "train.py"
ADAPTER = [
    "adapter.width=16",
    "adapter.code_dim=8",
    "adapter.extractor_blocks=1",
    "adapter.mapper_blocks=1",
    "adapter.num_codes=16",
    "adapter.dead_below=8",
]

# Terms with parameters and optimisers of their own, in addition to those of the default loss.
ADVERSARIAL = (
    "{_target_: lafr.losses.adversarial.Adversarial, learning_rate: 1e-3, warmup: 2, discriminator: "
    "{_target_: lafr.losses.discriminators.ConvolutionalDiscriminator, width: 8, halvings: 1}}"
)
DISTILLATION = (
    "{_target_: lafr.losses.distillation.ScoreDistillation, rank: 2, learning_rate: 1e-3, base: "
    "{_target_: lafr.models.base.model.Base.from_pretrained, sources: '${model.build.folder}', text: true}}"
)
LEARNED = [
    f"+loss.terms.adversarial={ADVERSARIAL}",
    "+loss.weights.adversarial=0.1",
    f"+loss.terms.vsd={DISTILLATION}",
    "+loss.weights.vsd=0.5",
]


def overrides(base_folder, face_folder, steps, batch_size=4):
    """The command line of a run on the tiny base model, `steps` in each stage."""
    stages = [
        f"stage.{name}.{key}={value}"
        for name in ("codebook", "alignment", "restoration")
        for key, value in (("max_steps", steps), ("batch_size", batch_size), ("warmup_steps", 2))
    ]
    return [
        "run_name=test",
        "data=faces",
        f"data.root={face_folder}",
        "model.resolution=32",
        *ADAPTER,
        *stages,
        f"model.build.folder={base_folder}",
        "trainer.trackers=[]",
        "trainer.log_every=1",
    ]


def run_script(arguments, output=os.devnull):
    """Run the script in this process as the shell would, one thread, its output in a file."""
    torch.set_num_threads(1)
    torch.seed()  # every new interpreter starts from another random state, and nothing may depend on it
    gc.freeze()  # or every collection walks, and copies, all that the forked server had imported
    with open(output, "w") as file:
        os.dup2(file.fileno(), 1), os.dup2(file.fileno(), 2)
    sys.argv = [str(SCRIPT), *arguments]
    runpy.run_path(str(SCRIPT), run_name="__main__")
