"""Building the image, with a stand-in for mmdebstrap: what is left when it fails, and the lock."""

import threading
from pathlib import Path

import pytest

from lab import LabError
from lab.image import image

pytestmark = pytest.mark.host

# The target folder is mmdebstrap's last argument but one.
STAND_IN = """\
#!/bin/bash
root=${@: -2:1}
echo built >> "$VISTRAL_CACHE/calls"
mkdir -p "$root"/etc/{default,systemd/system,apt/trusted.gpg.d}
sleep 0.5
echo the reason >&2
exit CODE
"""


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("VISTRAL_CACHE", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    program = tmp_path / "mmdebstrap"
    program.touch(mode=0o755)
    return program


def test_a_failed_build_says_why_and_leaves_nothing(stand_in: Path) -> None:
    stand_in.write_text(STAND_IN.replace("CODE", "1"))
    with pytest.raises(LabError, match="the reason"):
        image()
    assert [path for path in (stand_in.parent / "images").iterdir() if path.is_dir()] == []


def test_builders_at_the_same_time_build_once(stand_in: Path) -> None:
    stand_in.write_text(STAND_IN.replace("CODE", "0"))
    builders = [threading.Thread(target=image) for _ in range(3)]
    for builder in builders:
        builder.start()
    for builder in builders:
        builder.join()
    assert (stand_in.parent / "calls").read_text() == "built\n"
    assert image().is_dir()
