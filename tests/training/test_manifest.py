"""Manifests of checkpoints: one flipped bit anywhere, a missing or shorter file is found and named, and what then is used."""

import json

import pytest

from vlm_jax import errors
from vlm_jax.training import manifest


@pytest.fixture
def folder(tmp_path):
    for name, content in {"a": b"abc" * 100, "inner/b": b"x", "inner/c": b""}.items():
        (tmp_path / "7" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "7" / name).write_bytes(content)
    manifest.write(tmp_path / "7")
    return tmp_path / "7"


def test_what_was_written_is_verified_and_named(folder):
    assert manifest.verify(folder) == "verified"
    files = json.loads((folder / "manifest.json").read_text())["files"]
    assert {name: entry["size"] for name, entry in files.items()} == {"a": 300, "inner/b": 1, "inner/c": 0}
    assert sorted(path.name for path in folder.rglob("*") if path.is_file()) == ["a", "b", "c", "manifest.json"]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "a").write_bytes(b"abd" + b"abc" * 99), r"a: SHA-256 \w{12}\.\.\., \w{12}\.\.\. expected"),
        (lambda f: (f / "a").write_bytes(b"abc" * 99), "a: 297 bytes, 300 expected"),
        (lambda f: (f / "inner" / "b").unlink(), "inner/b: missing, 1 bytes expected"),
        (lambda f: (f / "inner" / "c").write_bytes(b"more"), "inner/c: 4 bytes, 0 expected"),
        (lambda f: (f / "manifest.json").write_text("{"), "manifest.json cannot be read"),
        (lambda f: (f / "manifest.json").write_text((f / "manifest.json").read_text().replace("300", "301")), "does not have the hash"),
    ],
    ids=["other bytes", "shorter", "missing", "longer", "manifest torn", "manifest changed"],
)
def test_damage_is_named_with_what_was_expected(folder, damage, message):
    damage(folder)
    with pytest.raises(manifest.Damaged, match=rf"checkpoint .*7 is damaged: .*{message}") as error:
        manifest.verify(folder)
    assert errors.exit_code(error.value) == errors.INFRASTRUCTURE


def test_the_next_folder_is_used_unless_the_run_shall_stop(folder, tmp_path, capsys):
    (tmp_path / "5").mkdir()
    (tmp_path / "5" / "a").write_text("a")
    manifest.write(tmp_path / "5")
    assert manifest.last_good([folder, tmp_path / "5"], "previous") == 0
    (folder / "a").unlink()
    assert manifest.last_good([folder, tmp_path / "5"], "previous") == 1
    assert "a: missing, 300 bytes expected; 5 is used instead" in capsys.readouterr().err
    with pytest.raises(manifest.Damaged, match=r"a: missing.*--on-corrupt previous goes on from an earlier one of 5"):
        manifest.last_good([folder, tmp_path / "5"], "stop")
    (tmp_path / "5" / "a").write_text("b")
    with pytest.raises(manifest.Damaged, match=r"7 is damaged: a: missing.*5 is damaged: a: SHA-256.*no other is good"):
        manifest.last_good([folder, tmp_path / "5"], "previous")


def test_a_folder_without_a_manifest_is_used_and_said_to_be_unverified(folder, capsys):
    (folder / "manifest.json").unlink()
    assert manifest.verify(folder) == "unverified"
    assert manifest.last_good([folder], "stop") == 0
    assert f"checkpoint {folder}: unverified" in capsys.readouterr().err
