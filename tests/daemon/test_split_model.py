"""A model in several files: all verified, loaded by the first."""

import hashlib
from pathlib import Path

import pytest
from gguf import GGUFReader, GGUFValueType, GGUFWriter

from tests.daemon.conftest import ENGINE
from tests.daemon.gguf_files import Gguf, tensor
from tests.daemon.helpers import wait_until
from vistrald import model_parts
from vistrald.model_file import ModelFileError
from vistrald.notify import Notifier
from vistrald.service import Service
from vistrald.settings import ModelSection, PartSection, PathsSection, Settings


@pytest.fixture(scope="module")
def split(model_path: Path, tmp_path_factory: pytest.TempPathFactory) -> ModelSection:
    """The test model in two files of about the same number of tensors."""
    folder = tmp_path_factory.mktemp("split")
    reader = GGUFReader(model_path)
    most = len(reader.tensors) // 2 + 1
    writer = GGUFWriter(folder / "m.gguf", "llama", split_max_tensors=most)
    for field in reader.fields.values():
        if field.name.startswith("GGUF.") or field.name == "general.architecture":
            continue
        kind = field.types[0]
        inner = field.types[-1] if kind == GGUFValueType.ARRAY else None
        writer.add_key_value(field.name, field.contents(), kind, inner)
    for one in reader.tensors:
        writer.add_tensor(one.name, one.data, raw_dtype=one.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    first, second = sorted(folder.iterdir())
    digests = [hashlib.sha256(file.read_bytes()).hexdigest() for file in (first, second)]
    part = PartSection(sha256=digests[1], size=second.stat().st_size)
    return ModelSection(
        path=first, sha256=digests[0], size=first.stat().st_size, name="split", parts=[part]
    )


@pytest.mark.requirement("4.1")
def test_the_daemon_loads_it_and_refuses_it_when_a_later_part_is_altered(
    split: ModelSection, tmp_path: Path
) -> None:
    settings = Settings(model=split, engine=ENGINE, paths=PathsSection(state_dir=tmp_path))
    failures: list[bool] = []
    service = Service(settings, notifier=Notifier(None), on_failure=failures.append)
    service.start()
    wait_until(lambda: service.phase == "ready" or failures, 60)
    service.stop()
    assert not failures

    second = split.files[1][0]
    with second.open("r+b") as file:
        file.seek(-1, 2)
        last = file.read(1)
        file.seek(-1, 2)
        file.write(bytes([last[0] ^ 1]))
    service = Service(settings, notifier=Notifier(None), on_failure=failures.append)
    service.start()
    wait_until(lambda: failures, 60)
    assert failures == [True]


def test_each_part_counts_in_the_progress_and_is_hashed_once(tmp_path: Path) -> None:
    bodies = [bytes(Gguf()), bytes(Gguf(tensors=[tensor("c", (5000,), 0)], data=bytes(20000)))]
    for number, body in enumerate(bodies, 1):
        (tmp_path / f"m-{number:05}-of-00002.gguf").write_bytes(body)
    digests = [hashlib.sha256(body).hexdigest() for body in bodies]
    model = ModelSection(
        path=tmp_path / "m-00001-of-00002.gguf",
        sha256=digests[0],
        size=len(bodies[0]),
        name="m",
        parts=[PartSection(sha256=digests[1], size=len(bodies[1]))],
    )
    fractions: list[float] = []
    assert model_parts.verify(model, tmp_path / "state", fractions.append) is True
    assert fractions[0] < 0.1
    assert fractions[-1] == 1
    assert model_parts.verify(model, tmp_path / "state") is False
    (tmp_path / "m-00002-of-00002.gguf").unlink()
    with pytest.raises(ModelFileError, match=r"00002-of-00002\.gguf does not exist"):
        model_parts.verify(model, tmp_path / "state")


def test_the_first_of_several_files_is_named_as_libllama_wants_it() -> None:
    parts = [PartSection(sha256="b" * 64, size=1)] * 2
    with pytest.raises(ValueError, match=r"must end in -00001-of-00003\.gguf"):
        ModelSection(path=Path("/m.gguf"), sha256="a" * 64, size=1, name="m", parts=parts)


def test_models_with_the_same_first_file_are_told_apart() -> None:
    path = Path("/m-00001-of-00002.gguf")
    digests = {
        ModelSection(
            path=path,
            sha256="a" * 64,
            size=1,
            name="m",
            parts=[PartSection(sha256=other * 64, size=1)],
        ).digest
        for other in "bc"
    }
    assert len(digests) == 2
