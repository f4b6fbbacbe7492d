"""The miniature's tiny decoder: what it learns from, and that what was learned is loaded for its own codec alone."""

import pytest
import torch
from conftest import SIZE

from lafr.data.degradation.first_order import Degradation
from lafr.data.packaged import ASTRONAUT, PackagedFaces
from lafr.errors import InputError
from lafr.miniature.decoder import DecoderObjective, LatentStream, TinyStudent
from lafr.models.base.model import Base
from lafr.models.restorer import Restorer


@torch.no_grad()
def test_half_of_the_latents_are_encoded_faces_half_restored_ones_and_a_stopped_run_makes_none_twice(
    trained, faces, tmp_path, monkeypatch
):
    stream = LatentStream(faces, Degradation(), 0, trained, str(tmp_path), count=6)
    pairs = super(LatentStream, stream).__getitem__
    for n in (0, 1, 6):
        item, pair = stream[n], pairs(n % 6)
        z = trained.latents(pair["lq"][None]).z_restored if n % 2 else trained.codec.encode(pair["hq"][None])
        torch.testing.assert_close(item["z"], z[0], rtol=0, atol=0.01)  # cached in half precision
        torch.testing.assert_close(item["hq"], trained.codec.decode(z)[0], rtol=0, atol=0.01)
    held_out = stream.held_out(faces)
    assert len(held_out) == len(faces) and not torch.equal(held_out[0]["z"], stream[0]["z"])
    monkeypatch.setattr(trained.codec, "encode", lambda _: pytest.fail("encoded again"))
    again = LatentStream(faces, Degradation(), 0, trained, str(tmp_path), count=6)
    assert all(torch.equal(again[n]["z"], stream[n]["z"]) for n in range(6))
    with pytest.raises(pytest.fail.Exception, match="encoded again"):  # other faces have other latents
        LatentStream(PackagedFaces(SIZE, ASTRONAUT), Degradation(), 0, trained, str(tmp_path), count=6)


def test_a_student_learns_and_is_saved_for_the_codec_that_it_was_distilled_from(base_folder, trained, tmp_path):
    student = TinyStudent.new(base_folder, 8, (1, 1, 1))
    objective = DecoderObjective(student, {"pixel_l1": 1.0, "pixel_mse": 1.0}).train()
    z = torch.randn(2, 4, SIZE // 4, SIZE // 4, generator=torch.Generator().manual_seed(0))
    batch = {"z": z, "hq": student.codec.decode(z)}
    optimizer = torch.optim.AdamW([p for p in objective.parameters() if p.requires_grad], 1e-2)
    losses = []
    for _ in range(20):
        losses.append(objective.total(objective(batch)))
        losses[-1].backward()
        optimizer.step()
        optimizer.zero_grad()
    assert losses[-1] < losses[0] / 2
    student.save_pretrained(tmp_path / "tiny")
    trained.save_pretrained(tmp_path / "model")
    restorer = Restorer.from_pretrained(tmp_path / "model", decoder=tmp_path / "tiny")
    with torch.no_grad():
        torch.testing.assert_close(restorer.codec.decode(z), objective.restore(batch))
    other = Base.from_pretrained(base_folder)
    other.vae.register_to_config(scaling_factor=0.9)
    other.save_pretrained(tmp_path / "other")
    with pytest.raises(InputError, match="another autoencoder"):
        Restorer.from_pretrained(tmp_path / "model", base=str(tmp_path / "other"), decoder=tmp_path / "tiny")
