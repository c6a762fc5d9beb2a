import hashlib
import json
import os
from pathlib import Path

import pytest
from click.testing import CliRunner

from tests.daemon.gguf_files import Gguf, tensor
from vistrald.cli import main
from vistrald.model_file import ModelFileError, verify

CONTENT = bytes(Gguf(tensors=[tensor("a", (176,), 0)], data=b"x" * 704))
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "model.gguf"
    path.write_bytes(CONTENT)
    return path


def refused(path: Path, state: Path, sha256: str = SHA256) -> ModelFileError:
    with pytest.raises(ModelFileError) as caught:
        verify(path, len(CONTENT), sha256, state)
    return caught.value


def test_hashed_once_then_remembered(file: Path, tmp_path: Path) -> None:
    fractions: list[float] = []
    assert verify(file, len(CONTENT), SHA256, tmp_path / "state", fractions.append) is True
    assert fractions[-1] == 1.0
    assert verify(file, len(CONTENT), SHA256, tmp_path / "state") is False


def test_missing(tmp_path: Path) -> None:
    error = refused(tmp_path / "none.gguf", tmp_path)
    assert (error.fault, error.found) == ("missing", "no file")


def test_truncated(file: Path, tmp_path: Path) -> None:
    file.write_bytes(CONTENT[:-1])
    error = refused(file, tmp_path)
    assert (error.fault, error.expected, error.found) == ("size", "1024", "1023")
    assert "truncated" in str(error)


def test_altered_names_both_digests(file: Path, tmp_path: Path) -> None:
    altered = CONTENT[:-1] + b"y"
    file.write_bytes(altered)
    error = refused(file, tmp_path)
    assert error.fault == "digest"
    assert error.expected in str(error)
    assert hashlib.sha256(altered).hexdigest() in str(error)


def test_a_stamp_does_not_cover_an_altered_file(file: Path, tmp_path: Path) -> None:
    verify(file, len(CONTENT), SHA256, tmp_path / "state")
    before = file.stat()
    file.write_bytes(CONTENT[:-1] + b"y")
    # The modification time can be set back; the change time cannot.
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert refused(file, tmp_path / "state").fault == "digest"


def test_a_stamp_of_one_digest_does_not_serve_another(file: Path, tmp_path: Path) -> None:
    verify(file, len(CONTENT), SHA256, tmp_path / "state")
    assert refused(file, tmp_path / "state", "0" * 64).fault == "digest"


def test_a_broken_stamp_means_hashing_again(file: Path, tmp_path: Path) -> None:
    verify(file, len(CONTENT), SHA256, tmp_path)
    (tmp_path / f"verified-{SHA256[:16]}.json").write_text("{")
    assert verify(file, len(CONTENT), SHA256, tmp_path) is True


@pytest.mark.parametrize("header", [b"PK\x03\x04", b"GGUF\x00\x00\x00\x03"])
def test_not_gguf(file: Path, tmp_path: Path, header: bytes) -> None:
    file.write_bytes(header + CONTENT[len(header) :])
    assert refused(file, tmp_path).fault == "format"


def test_a_malformed_header_is_refused_though_size_and_digest_are_right(tmp_path: Path) -> None:
    file = Gguf(tensors=[tensor("a", (8,), 0), tensor("b", (8,), 0)]).write(tmp_path / "m.gguf")
    data = file.read_bytes()
    with pytest.raises(ModelFileError, match=r"m\.gguf: offset of tensor 'b' is 0 .* expected 32"):
        verify(file, len(data), hashlib.sha256(data).hexdigest(), tmp_path)


def test_verify_model_reports_in_json(file: Path, tmp_path: Path) -> None:
    config = tmp_path / "c.toml"
    config.write_text(
        f'[model]\npath = "{file}"\nsha256 = "{"0" * 64}"\nsize = {len(CONTENT)}\nname = "m"\n'
        f'[paths]\nstate_dir = "{tmp_path}"\n'
    )
    result = CliRunner().invoke(main, ["verify-model", "--config", str(config), "--json"])
    assert result.exit_code == 1
    report = json.loads(result.stdout)
    assert (report["ok"], report["fault"], report["found"]) == (False, "digest", SHA256)
    config.write_text(config.read_text().replace("0" * 64, SHA256))
    result = CliRunner().invoke(main, ["verify-model", "--config", str(config), "--json"])
    assert json.loads(result.stdout)["ok"] is True
