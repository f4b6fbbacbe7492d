import json
import math
import shutil
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._pytree import tree_leaves

from lafr.data.stream import HeldOut, PairStream, rebuilt
from lafr.errors import InputError
from lafr.losses.appearance import LatentL1, PixelMSE
from lafr.losses.identity import IdentityCosine
from lafr.losses.multilevel import MultiLevelLoss
from lafr.training.loop import optimiser_batches, train
from lafr.training.objectives import CodebookObjective, Objective, RestorationObjective, cropped
from lafr.training.settings import require_settings
from lafr.training.validation import Validation


class Toy(Objective):
    """Learn the mean colour of the degraded faces: every optimiser step can be followed by hand."""

    weights = {"mse": 1.0}  # noqa: RUF012

    def __init__(self, fail_at=None):
        super().__init__()
        self.colour = nn.Parameter(torch.tensor([0.9, -0.9, 0.5]))
        self.fail_at, self.seen, self.finished = fail_at, [], 0

    def forward(self, batch):
        if self.training:
            self.seen += batch["n"].tolist()
        mse = F.mse_loss(self.colour.expand(len(batch["lq"]), 3), batch["lq"].mean((2, 3)))
        return {"mse": mse * float("nan") if self.fail_at in batch["n"].tolist() else mse}

    def finish(self, faces, device):
        self.finished += 1


def log(folder):
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


@pytest.fixture
def run(faces, degradation, accelerator, tmp_path):
    """Train an objective in a folder of its own, and return its final state."""

    def run(objective, folder="run", accumulation=1, validate=None, **settings):
        settings = {"max_steps": 6, "batch_size": 4, "learning_rate": 1e-2, "log_every": 1} | settings
        pairs = PairStream(faces, degradation, 0)
        train(objective, pairs, accelerator(accumulation), tmp_path / folder, validate, **settings)
        return {name: value.clone() for name, value in objective.trained_state().items()}

    return run


def assert_close(one, other, tolerance=1e-5):
    assert one.keys() == other.keys()
    for name, value in one.items():
        torch.testing.assert_close(value, other[name], rtol=tolerance, atol=tolerance)


def test_the_logged_pairs_are_those_that_were_trained_on_and_can_be_made_again(run, faces, degradation, tmp_path):
    path = tmp_path / "run" / "pairs.jsonl"
    path.parent.mkdir()
    path.write_text('{"n": 7}\n{"n": 8')  # of an earlier try that left no checkpoint
    run(Toy(), log_pairs=True)
    records = [json.loads(line) for line in path.read_text().splitlines()]
    assert [record["n"] for record in records] == list(range(24))
    pairs = PairStream(faces, degradation, 0)
    for record in records[::5]:
        face = next(faces[i] for i in range(len(faces)) if faces.name(i) == record["face"])
        for key, value in rebuilt(record, face).items():
            assert torch.equal(value, pairs[record["n"]][key])
    run(Toy(), folder="silent")
    assert not (tmp_path / "silent" / "pairs.jsonl").exists()


def test_the_loss_falls(run, tmp_path):
    run(Toy(), max_steps=60, learning_rate=5e-2)
    losses = [line["mse"] for line in log(tmp_path / "run")]
    assert sum(losses[-10:]) < 0.2 * sum(losses[:10])


def test_every_step_is_adamws_on_the_pairs_of_that_step(run, faces, degradation):
    found = run(Toy(), weight_decay=0.1, clip_norm=0.05)["colour"]
    colour = torch.tensor([0.9, -0.9, 0.5], requires_grad=True)
    optimizer = torch.optim.AdamW([colour], lr=1e-2, weight_decay=0.1)
    pairs = PairStream(faces, degradation, 0)
    for step in range(6):
        lq = torch.stack([pairs[n]["lq"] for n in range(4 * step, 4 * step + 4)])
        F.mse_loss(colour.expand(4, 3), lq.mean((2, 3))).backward()
        nn.utils.clip_grad_norm_([colour], 0.05)
        optimizer.step(), optimizer.zero_grad()
    torch.testing.assert_close(found, colour.detach(), rtol=0, atol=1e-6)


def test_accumulating_two_micro_batches_is_training_on_one_batch(run):
    one, two = Toy(), Toy()
    assert_close(run(one, "one"), run(two, "two", accumulation=2))
    assert one.seen == two.seen == list(range(24))


def test_accumulation_changes_neither_weights_nor_codes_of_the_codebook_stage(restorer, run):
    start = {name: value.clone() for name, value in restorer.adapter.state_dict().items()}
    ends = []
    for accumulation in (1, 2):
        restorer.adapter.load_state_dict(start)
        objective = CodebookObjective(restorer, {"latent_l1": 1.0, "commitment": 0.25})
        ends.append(run(objective, str(accumulation), accumulation, learning_rate=1e-4))
    assert_close(*ends)
    assert not torch.equal(
        ends[0]["adapter.quantizer.layers.0._codebook.embed"], start["quantizer.layers.0._codebook.embed"]
    )


def test_the_applied_gradient_is_clipped_and_the_logged_norm_is_the_one_before(run, tmp_path, monkeypatch):
    applied, step = [], torch.optim.AdamW.step

    def spy(optimizer, *args, **kwargs):
        applied.append(float(optimizer.param_groups[0]["params"][0].grad.norm()))
        return step(optimizer, *args, **kwargs)

    monkeypatch.setattr(torch.optim.AdamW, "step", spy)
    run(Toy(), clip_norm=1e-2)
    assert applied == pytest.approx([1e-2] * 6, rel=1e-3)
    assert all(line["grad_norm"] > 0.1 for line in log(tmp_path / "run"))


def test_the_result_with_ema_is_the_average_kept_by_hand(run, monkeypatch):
    after_each_step = []
    toy = Toy()
    toy.after_step = lambda step, gather: after_each_step.append(toy.colour.detach().clone())
    found = run(toy, ema_decay=0.8, max_steps=20, learning_rate=5e-2)["colour"]
    average = torch.tensor([0.9, -0.9, 0.5])
    for step, colour in enumerate(after_each_step):
        # the decay warms up, so that the start is forgotten: diffusers' 1 - (1 + step)^-0.75
        decay = min(0.8, 1 - (1 + step) ** -0.75)
        average = decay * average + (1 - decay) * colour
    torch.testing.assert_close(found, average)
    assert (found - after_each_step[-1]).abs().max() > 1e-3


def test_the_learning_rate_warms_up_and_falls_as_a_cosine(run, tmp_path):
    run(Toy(), schedule="cosine", warmup_steps=4, max_steps=12, learning_rate=0.5)
    logged = [line["learning_rate"] for line in log(tmp_path / "run")]
    warm = [0.5 * s / 4 for s in range(4)]
    assert logged == pytest.approx(warm + [0.25 * (1 + math.cos(math.pi * (s - 4) / 8)) for s in range(4, 12)])
    # the first step has a rate of 0, as in diffusers: alone, it moves nothing
    assert torch.equal(run(Toy(), "one", warmup_steps=4, max_steps=1)["colour"], Toy().colour)


def test_a_loss_or_gradient_that_is_not_finite_stops_the_run_and_spares_the_last_checkpoint(run, tmp_path):
    for log_every in (1, 10):
        folder = f"run{log_every}"
        with pytest.raises(InputError, match="not finite at step"):
            run(Toy(fail_at=12), folder, checkpoint_every=2, keep_checkpoints=1, log_every=log_every)  # step 4
        assert [path.name for path in sorted(tmp_path.glob(f"{folder}/step_*"))] == ["step_00000002"]
    healed = run(Toy(), "run1", checkpoint_every=2)
    assert torch.equal(healed["colour"], run(Toy(), "other")["colour"])
    toy = Toy()
    toy.colour.register_hook(lambda gradient: gradient * float("inf"))
    with pytest.raises(InputError, match="gradient is not finite at step 1"):
        run(toy, "gradient")


def test_a_finished_stage_is_loaded_not_repeated(run):
    first = run(Toy())
    again = Toy()
    assert torch.equal(run(again)["colour"], first["colour"])
    assert again.seen == []
    assert again.finished == 1  # what follows from the weights, such as the latent scale, is derived again


def test_more_steps_continue_a_finished_stage_and_a_damaged_result_or_log_is_named_and_made_again(
    run, tmp_path, capsys
):
    whole, stage = run(Toy(), "whole", max_steps=9), tmp_path / "run"
    run(Toy())
    longer = Toy()
    assert torch.equal(run(longer, max_steps=9)["colour"], whole["colour"])
    assert longer.seen == list(range(24, 36))
    result = stage / "final" / "trained.safetensors"
    intact = result.read_bytes()
    result.write_bytes(intact[:-1] + bytes([intact[-1] ^ 1]))
    again = Toy()
    assert torch.equal(run(again, max_steps=9)["colour"], whole["colour"]) and again.seen == []
    assert result.read_bytes() == intact
    assert f"{result}' is damaged" in capsys.readouterr().out
    (stage / "log.jsonl").write_bytes(b"")
    run(Toy(), max_steps=9)
    assert "log.jsonl' has changed" in capsys.readouterr().out
    # without the checkpoint that it can be made from, nothing is trained in silence
    shutil.rmtree(stage / "step_00000009")
    (stage / "final" / "summary.json").unlink()
    with pytest.raises(InputError, match=r"summary.json' is missing"):
        run(Toy(), max_steps=9)


def test_validation_changes_nothing_that_is_trained(restorer, faces, degradation, run, tmp_path):
    start = {name: value.clone() for name, value in restorer.state_dict().items()}
    ends = []
    for name in ("with", "without"):
        restorer.load_state_dict(start)
        objective = CodebookObjective(restorer, {"latent_l1": 1.0, "commitment": 0.25})
        check = Validation(HeldOut(faces, degradation, 0), tmp_path / "images", torch.device("cpu"), num_images=3)
        settings = {"validate": check, "validate_every": 2} if name == "with" else {}
        ends.append(run(objective, name, ema_decay=0.8, **settings))
    assert ends[0].keys() and all(torch.equal(value, ends[1][name]) for name, value in ends[0].items())
    steps = [line["step"] for line in log(tmp_path / "with") if "validation/psnr_rgb" in line]
    assert steps == [2, 4, 6]


def test_validation_sees_its_own_faces_only_and_the_same_ones_each_time(degradation, tmp_path):
    class Counted(list):
        def __init__(self, items):
            super().__init__(items)
            self.read = []

        def __getitem__(self, index):
            self.read.append(index)
            return super().__getitem__(index)

    held_out = Counted(torch.rand(5, 3, 32, 32))
    pairs = HeldOut(held_out, degradation, 0)
    checks = [Validation(pairs, tmp_path, torch.device("cpu"), num_images=3) for _ in range(2)]
    assert sorted(set(held_out.read)) == [0, 1, 2]
    assert torch.equal(checks[0].items["lq"], checks[1].items["lq"])
    toy, fed = Toy().eval(), []
    toy.restore = lambda batch: fed.append(batch["hq"]) or batch["lq"]
    with torch.no_grad():
        assert checks[0](toy, 1) == checks[0](toy, 2) == checks[1](toy, 1)
    assert torch.equal(torch.cat(fed[:1]), torch.stack([held_out[i] for i in range(3)]))


def test_validation_means_are_over_faces_whatever_the_batch_size(restorer, faces, degradation, tmp_path):
    objective = CodebookObjective(restorer, {"latent_l1": 1.0}).eval()
    with torch.no_grad():
        means = [
            Validation(HeldOut(faces, degradation, 0), tmp_path, torch.device("cpu"), 5, batch_size=size)(objective, 0)
            for size in (5, 2)
        ]
    assert means[0] == pytest.approx(means[1], rel=1e-4)


def test_validation_uses_the_averaged_weights_and_gives_the_others_back(run):
    colours, toy = [], Toy()
    toy.after_step = lambda step, gather: colours.append(toy.colour.detach().clone())
    measured = []
    run(
        toy,
        validate=lambda objective, step: measured.append(objective.colour.detach().clone()) or {"x": 0.0},
        validate_every=3,
        ema_decay=0.5,
        max_steps=4,
    )
    assert not torch.equal(measured[0], colours[2])
    plain = Toy()
    after = []
    plain.after_step = lambda step, gather: after.append(plain.colour.detach().clone())
    run(plain, "plain", max_steps=4)
    assert all(torch.equal(a, b) for a, b in zip(colours, after, strict=True))


def test_the_log_is_cut_back_to_the_checkpoint_even_where_its_last_line_is_broken(run, tmp_path):
    with pytest.raises(InputError):
        run(Toy(fail_at=12), checkpoint_every=2, max_steps=8)
    with (tmp_path / "run" / "log.jsonl").open("a") as file:
        file.write('{"step": 5, "ms')
    run(Toy(), checkpoint_every=2, max_steps=8)
    assert [line["step"] for line in log(tmp_path / "run")] == list(range(1, 9))


def test_gradient_checkpointing_trains_the_same_weights(restorer, run):
    ends = []
    start = {n: v.clone() for n, v in restorer.state_dict().items()}
    for checkpointing in (False, True):
        restorer.load_state_dict(start)
        objective = restoration(restorer)
        calls = []
        for module in objective.modules():
            if getattr(module, "_supports_gradient_checkpointing", False):
                module.register_forward_pre_hook(lambda m, _, calls=calls: calls.append(m.is_gradient_checkpointing))
        settings = dict(gradient_checkpointing=checkpointing, max_steps=3, learning_rate=1e-4)
        ends.append(run(objective, str(checkpointing), **settings))
        assert any(calls) == checkpointing
    assert_close(*ends)


def test_an_optimiser_that_is_not_known_or_not_installed_is_refused_in_one_line(run, tmp_path, monkeypatch):
    with pytest.raises(InputError, match=r"optimizer .*adamw or adamw8bit.*lion"):
        run(Toy(), optimizer="lion")
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(InputError, match="pip install bitsandbytes"):
        run(Toy(), optimizer="adamw8bit")
    assert not list((tmp_path / "run").rglob("*.*"))


def test_eight_bits_keep_a_byte_a_value_stay_near_adamw_and_resume_exactly(run, tmp_path):
    pytest.importorskip("bitsandbytes")

    class Wide(Toy):
        def __init__(self, fail_at=None):
            super().__init__(fail_at)
            self.weight = nn.Parameter(torch.linspace(-1, 1, 3 * 4096).reshape(3, 4096))

        def forward(self, batch):
            mse = F.mse_loss(
                (self.weight @ self.weight.new_full((4096,), 1e-2)).expand(len(batch["lq"]), 3),
                batch["lq"].mean((2, 3)),
            )
            return {"mse": mse * float("nan") if self.fail_at in batch["n"].tolist() else mse}

    eight, full = (run(Wide(), kind, optimizer=kind)["weight"] for kind in ("adamw8bit", "adamw"))
    torch.testing.assert_close(eight, full, rtol=0, atol=5e-3)  # of the 0.06 that six steps move
    assert not torch.equal(eight, full)
    with pytest.raises(InputError, match="not finite"):
        run(Wide(fail_at=16), "killed", optimizer="adamw8bit", checkpoint_every=3)
    state = torch.load(tmp_path / "killed" / "step_00000003" / "state.pt", weights_only=True)["optimizer"]["state"]
    averages = [value for value in tree_leaves(state) if torch.is_tensor(value) and value.numel() == 3 * 4096]
    assert [value.dtype for value in averages] == [torch.uint8] * 2
    assert torch.equal(run(Wide(), "killed", optimizer="adamw8bit")["weight"], eight)


def restoration(restorer, **terms):
    terms = terms or {"a": PixelMSE(), "b": LatentL1()}
    return RestorationObjective(restorer, MultiLevelLoss(terms, dict.fromkeys(terms, 1.0)))


def test_decoding_a_part_as_large_as_the_latent_trains_the_same_weights_and_a_smaller_part_others(restorer, run):
    start = {name: value.clone() for name, value in restorer.state_dict().items()}
    ends = {}
    for side in (None, 8, 4):
        restorer.load_state_dict(start)
        ends[side] = run(restoration(restorer), str(side), decode_crop=side, max_steps=2, learning_rate=1e-3)
    assert all(torch.equal(value, ends[8][name]) for name, value in ends[None].items())
    assert not all(torch.equal(value, ends[4][name]) for name, value in ends[None].items())


def test_the_part_that_is_decoded_is_the_same_of_latent_and_face_and_follows_from_seed_and_pair():
    z = torch.arange(64.0).reshape(1, 1, 8, 8).expand(20, 1, 8, 8)
    image = z.repeat_interleave(4, 2).repeat_interleave(4, 3).expand(20, 3, 32, 32)
    n = torch.arange(20)
    part, face = cropped(z, image, n, 3, 0)
    assert part.shape == (20, 1, 3, 3) and face.shape == (20, 3, 12, 12)
    assert torch.equal(face[:, :1, ::4, ::4], part)
    corners = part[:, 0, 0, 0]
    assert len(corners.unique()) > 10
    assert {int(c) // 8 for c in corners} | {int(c) % 8 for c in corners} == set(range(6))
    assert torch.equal(cropped(z[5:], image[5:], n[5:], 3, 0)[0], part[5:])  # alike in any batch
    assert not torch.equal(cropped(z, image, n, 3, 1)[0], part)


def test_a_part_is_refused_where_it_is_larger_than_the_latent_or_a_term_needs_the_whole_face(restorer, run):
    with pytest.raises(InputError, match=r"decode_crop .*1 to 8.* 9"):
        run(restoration(restorer), decode_crop=9)
    objective = restoration(restorer, identity=IdentityCosine(nn.Flatten()))
    with pytest.raises(InputError, match=r"decode_crop .*identity.* 4"):
        run(objective, decode_crop=4)


def test_a_stage_that_decodes_nothing_for_its_loss_is_the_same_with_and_without_a_part(restorer, run):
    start = {name: value.clone() for name, value in restorer.adapter.state_dict().items()}
    ends = []
    for side in (None, 4):
        restorer.adapter.load_state_dict(start)
        ends.append(run(CodebookObjective(restorer, {"latent_l1": 1.0}), str(side), decode_crop=side))
    assert all(torch.equal(value, ends[1][name]) for name, value in ends[0].items())


class Torn(torch.utils.data.Dataset):
    """A face that cannot be read."""

    def __len__(self):
        return 1

    def __getitem__(self, index):
        raise InputError("'faces/a.png' is damaged or truncated; get a whole copy")


@pytest.mark.parametrize("workers", [0, 1])
def test_a_face_that_a_loader_process_cannot_read_is_named_without_its_traceback(workers, accelerator):
    loader = torch.utils.data.DataLoader(Torn(), num_workers=workers)
    with pytest.raises(InputError) as error:
        next(iter(optimiser_batches(loader, accelerator())))
    assert error.value.args[0] == "'faces/a.png' is damaged or truncated; get a whole copy"


def test_numbers_that_no_run_can_use_are_refused_by_name():
    require_settings({"patience": None, "validate_every": None, "num_workers": 0, "max_steps": 1, "other": -1})
    wrong = {"log_every": 0, "keep_checkpoints": -1, "max_steps": None, "validation_images": 0.5, "decode_crop": 0}
    wrong |= {"learning_rate": -1e-3, "clip_norm": math.nan, "ema_decay": 1, "weight_decay": "x", "schedule": "cosin"}
    for name, value in (wrong | {"feature_cache_gb": math.inf, "mixed_precision": "fp8"}).items():
        with pytest.raises(InputError, match=f"{name} must be"):
            require_settings({name: value})
    require_settings({"learning_rate": 0, "ema_decay": 0.99, "schedule": "cosine", "decode_crop": None})
