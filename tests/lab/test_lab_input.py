"""What people and the machine's own files tell a lab, right and wrong. Needs no host."""

from pathlib import Path

import pytest

from lab import Lab, LabError, apt
from lab.size import parse_size, parse_tmpfs

ONE_LINE = """\
# the usual
deb http://deb.debian.org/debian bookworm main contrib  # comment
deb-src http://deb.debian.org/debian bookworm main
deb [arch=amd64,i386 signed-by=/etc/apt/m.gpg] https://mirror.example/ bookworm-updates main
deb https://packages.example/node nodistro main
deb cdrom:[Debian] bookworm main
"""
DEB822 = """\
Types: deb deb-src
# a mirror
URIs: http://security.example/debian-security
  http://other.example/debian-security
Suites: bookworm-security
Components: main
Signed-By:
 -----BEGIN PGP PUBLIC KEY BLOCK-----
 .
 mDMEY
 -----END PGP PUBLIC KEY BLOCK-----

Enabled: no
Types: deb
URIs: http://off.example/debian
Suites: bookworm
Components: main
"""


@pytest.fixture
def etc(tmp_path: Path) -> Path:
    (tmp_path / "sources.list.d").mkdir()
    return tmp_path


def test_sources_of_both_formats_are_found(etc: Path) -> None:
    (etc / "sources.list").write_text(ONE_LINE)
    (etc / "sources.list.d/security.sources").write_text(DEB822)
    text = apt.sources(etc)
    assert apt.servers(text) == {
        "deb.debian.org",
        "mirror.example",
        "security.example",
        "other.example",
    }
    assert apt.keyrings(text) == [Path("/etc/apt/m.gpg")]
    assert "Architectures: amd64 i386\n" in text
    assert "Components: main contrib\n" in text
    assert "-----BEGIN PGP PUBLIC KEY BLOCK-----\n .\n mDMEY" in text


def test_a_machine_without_debian_sources_is_told_what_to_add(etc: Path) -> None:
    (etc / "sources.list").write_text("deb http://archive.ubuntu.com/ubuntu noble main\n")
    with pytest.raises(LabError, match=r"no HTTP source for Debian 12.*echo 'deb http"):
        apt.sources(etc)


@pytest.mark.parametrize("name", ["", "X", "1a", "a-", "a.b", "a/b", "../a", "a" * 25, "a b", "é"])
def test_names_that_cannot_be(name: str) -> None:
    with pytest.raises(LabError, match="not allowed: use 1 to 24 of a-z"):
        Lab(name)
    with pytest.raises(LabError, match=r"host name .* not allowed"):
        Lab("never-made").up(name)


@pytest.mark.parametrize(
    ("text", "size"), [("67108864", 67108864), ("64M", 64 << 20), ("2G", 2 << 30), ("1K", 1024)]
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size
    assert parse_tmpfs(f"/var/lib/vistral={text}") == ("/var/lib/vistral", size)


@pytest.mark.parametrize("text", ["", "0", "-1", "1.5G", "64MB", "64m", "G", " 1"])
def test_sizes_that_cannot_be(text: str) -> None:
    with pytest.raises(LabError, match="is not a size"):
        parse_size(text)


@pytest.mark.parametrize("text", ["64M", "var=1M", "/a:b=1M", "/=1M", "/a b=1M"])
def test_small_disks_that_cannot_be(text: str) -> None:
    with pytest.raises(LabError, match="is not PATH=SIZE"):
        parse_tmpfs(text)


def test_options_of_the_other_kind_are_refused() -> None:
    with pytest.raises(LabError, match="give a virtual machine a small disk"):
        Lab("never-made").up("a", vm=True, tmpfs={"/data": 1 << 20})
    with pytest.raises(LabError, match="give a container a tmpfs"):
        Lab("never-made").up("a", disk=1 << 30)
