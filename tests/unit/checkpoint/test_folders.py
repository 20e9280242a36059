"""Which folders are checkpoints, which is the newest, and which are deleted."""

import json
from pathlib import Path

import pytest

from elaswave.checkpoint import folders, manifest
from elaswave.config import from_mapping
from elaswave.errors import ConfigError


def made(parent: Path, *steps: int, config: dict | None = None) -> Path:
    for step in steps:
        folder = folders.complete(parent, step)
        folder.mkdir(parents=True)
        whole = manifest.Manifest(
            step=step,
            digest="00ff",
            num_parts=1,
            scalars={"0.step": 3.0},
            shapes={"w": (2, 3)},
            config=from_mapping(config or {}).model_dump(mode="json"),
            corpus="c",
            versions={"torch": "2"},
        )
        folders.write_file(folder / manifest.FILE, whole.text())
    return parent


def test_the_newest_is_meant_by_a_run_its_folder_or_itself(tmp_path: Path):
    parent = made(tmp_path / folders.SUBFOLDER, 2, 10)
    folders.complete(parent, 12).mkdir()  # not whole
    newest = parent / "step-00000010"
    for path in (tmp_path, parent, newest):
        assert folders.resolve(str(path)) == newest
    assert folders.resolve(str(parent / "step-00000002")).name == "step-00000002"


def test_a_link_that_moves_on_does_not_matter(tmp_path: Path):
    made(tmp_path / "one" / folders.SUBFOLDER, 4)
    (tmp_path / "latest").symlink_to("one", target_is_directory=True)
    for path in (tmp_path / "latest", tmp_path / "latest" / folders.SUBFOLDER / "step-00000004"):
        assert folders.resolve(str(path)) == tmp_path / "one" / folders.SUBFOLDER / "step-00000004"


@pytest.mark.parametrize("path", ["nowhere", "."])
def test_what_is_none_is_refused(tmp_path: Path, path: str):
    with pytest.raises(ConfigError, match=r"checkpoint\.resume = .*(no such folder|no complete checkpoint)"):
        folders.resolve(str(tmp_path / path))


def test_old_and_unfinished_ones_go_and_newer_unfinished_ones_stay(tmp_path: Path):
    made(tmp_path, 2, 4, 6)
    for step, epoch in ((3, 1), (8, 2)):
        folders.partial(tmp_path, step, epoch).mkdir()
    folders.prune(tmp_path, keep=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".step-00000008.2", "step-00000004", "step-00000006"]


def test_a_whole_checkpoint_of_an_earlier_run_gives_way(tmp_path: Path):
    made(tmp_path, 4)
    aside = folders.partial(tmp_path, 4, 7)
    aside.mkdir()
    (aside / "new").touch()
    assert folders.publish(aside, folders.complete(tmp_path, 4))
    assert not folders.publish(aside, folders.complete(tmp_path, 4))
    assert [path.name for path in folders.complete(tmp_path, 4).iterdir()] == ["new"]


def test_a_manifest_comes_back_as_it_was(tmp_path: Path):
    made(tmp_path, 4)
    found = manifest.read(folders.complete(tmp_path, 4))
    assert (found.step, found.scalars, found.shapes) == (4, {"0.step": 3.0}, {"w": (2, 3)})


@pytest.mark.parametrize("text", ["{", "[]", '{"format": 2}', '{"format": 1}', "null"])
def test_a_manifest_that_is_none_is_refused(tmp_path: Path, text: str):
    (tmp_path / manifest.FILE).write_text(text)
    with pytest.raises(ConfigError, match="choose another checkpoint"):
        manifest.read(tmp_path)


@pytest.mark.parametrize(
    ("config", "told"),
    [
        ({"model": {"width": 64}}, "model.width = 128, this run has 64"),
        ({"training": {"numerics": "fast"}}, "training.numerics = 'exact', this run has 'fast'"),
        ({"training": {"steps": 8}}, "beyond training.steps = 8"),
    ],
)
def test_another_kind_of_run_is_refused(tmp_path: Path, config: dict, told: str):
    folder = folders.complete(made(tmp_path, 9), 9)
    with pytest.raises(ConfigError, match=told):
        manifest.check(manifest.read(folder), from_mapping(config), folder)


def test_settings_that_change_the_bits_are_told(tmp_path: Path):
    folder = folders.complete(made(tmp_path, 4), 4)
    config = from_mapping({"optimizer": {"lr": 0.5}, "elasticity": {"spares": 3}})
    assert manifest.check(manifest.read(folder), config, folder) == ("optimizer.lr = 0.5, was 0.003",)


def test_values_that_are_no_settings_do_not_pass(tmp_path: Path):
    folder = folders.complete(made(tmp_path, 4), 4)
    values = json.loads((folder / manifest.FILE).read_text())
    values["digest"] = "zz"
    (folder / manifest.FILE).write_text(json.dumps(values))
    with pytest.raises(ConfigError):
        manifest.read(folder)
