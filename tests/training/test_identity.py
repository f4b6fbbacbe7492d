"""The id under which wandb continues a run."""

from lafr.training.trackers import IDENTITY, identity


def test_a_damaged_identity_is_read_from_the_names_of_wandbs_own_files(tmp_path, capsys):
    first = identity(tmp_path)
    assert identity(tmp_path) == first
    (tmp_path / "wandb" / "offline-run-1").mkdir(parents=True)
    (tmp_path / "wandb" / "offline-run-1" / f"run-{first}.wandb").touch()
    for damage in ("{", "[]", "{}", ""):
        (tmp_path / IDENTITY).write_text(damage)
        assert identity(tmp_path) == first
    assert capsys.readouterr().err.count("is damaged") == 4
