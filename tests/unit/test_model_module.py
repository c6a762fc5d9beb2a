"""A model file is used only when its bytes are the pinned ones."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

BYTES = b"GGUF" + bytes(range(256)) * 64
SHA256 = hashlib.sha256(BYTES).hexdigest()
SIZE = len(BYTES)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "m.gguf"


def placed(model_module, path: Path) -> Path:
    part = path.with_name("m.gguf.part")
    part.write_bytes(BYTES)
    model_module.install(part, path, SHA256, SIZE)
    return path


@pytest.mark.requirement("4.1")
def test_a_good_part_is_put_in_place(model_module, path):
    placed(model_module, path)
    assert path.read_bytes() == BYTES
    assert not path.with_name("m.gguf.part").exists()
    assert model_module.verify(path, SHA256, SIZE, write=True) == {
        "changed": False,
        "verified": True,
    }


def test_an_untouched_file_is_not_hashed_again(model_module, path, monkeypatch):
    placed(model_module, path)

    def fail(_path: Path) -> str:
        raise AssertionError("hashed again")

    monkeypatch.setattr(model_module, "digest", fail)
    assert model_module.verify(path, SHA256, SIZE, write=True)["verified"] is True


@pytest.mark.parametrize("bad", [BYTES[:-1], BYTES + b"x", BYTES[:100] + b"!" + BYTES[101:], b""])
def test_a_bad_part_is_removed_and_never_replaces_a_good_file(model_module, path, bad):
    placed(model_module, path)
    part = path.with_name("m.gguf.part")
    part.write_bytes(bad)
    with pytest.raises(ValueError, match="expected") as error:
        model_module.install(part, path, SHA256, SIZE)
    assert "run again to fetch it anew" in str(error.value)
    assert not part.exists()
    assert path.read_bytes() == BYTES


def test_the_message_names_found_and_expected_digest(model_module, path):
    part = path.with_name("m.gguf.part")
    changed = BYTES[:-1] + b"?"
    part.write_bytes(changed)
    with pytest.raises(ValueError, match=SHA256) as error:
        model_module.install(part, path, SHA256, SIZE)
    assert hashlib.sha256(changed).hexdigest() in str(error.value)


def test_a_byte_changed_in_place_is_noticed_even_with_the_old_times(model_module, path):
    placed(model_module, path)
    before = path.stat()
    with path.open("r+b") as handle:
        handle.seek(50)
        handle.write(b"?")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    answer = model_module.verify(path, SHA256, SIZE, write=True)
    assert answer["verified"] is False
    assert "sha256" in answer["reason"]


def test_a_file_without_a_stamp_is_verified_and_stamped(model_module, path):
    path.write_bytes(BYTES)
    assert model_module.verify(path, SHA256, SIZE, write=True) == {
        "changed": True,
        "verified": True,
    }
    assert model_module.verify(path, SHA256, SIZE, write=True)["changed"] is False


def test_a_stamp_that_is_garbage_counts_as_none(model_module, path):
    placed(model_module, path)
    model_module.stamp_path(path).write_text("{cut off")
    assert model_module.verify(path, SHA256, SIZE, write=True)["verified"] is True


def test_another_pin_does_not_accept_the_old_stamp(model_module, path):
    placed(model_module, path)
    assert model_module.verify(path, "0" * 64, SIZE, write=True)["verified"] is False
