"""Which files a model consists of, and where each comes from and goes to."""

from __future__ import annotations

import posixpath
import re
from typing import Any
from urllib.parse import urlsplit

from ansible.errors import AnsibleFilterError

KINDS = ("url", "urls", "path", "controller_path", "package")


def problems(files: list[dict[str, Any]], source: dict[str, Any]) -> list[str]:
    """What is wrong with pins and source; empty when nothing is."""
    found = []
    for number, pin in enumerate(files, 1):
        digest, size = pin.get("sha256", ""), pin.get("size", 0)
        names = ("model_sha256", "model_size_bytes")
        if number > 1:
            names = (f"sha256 of part {number}", f"size of part {number}")
        if not re.fullmatch(r"[0-9a-f]{64}", str(digest)):
            found.append(f"{names[0]} is '{digest}' (64 hexadecimal digits)")
        if not str(size).isdigit() or int(size) < 1:
            found.append(f"{names[1]} is '{size}' (bytes, more than 0)")
        if len(files) > 1 and not pin.get("file"):
            found.append(f"file {number} of a split model has no `file`, its name at the source")
    kinds = [kind for kind in KINDS if source.get(kind)]
    if len(kinds) > 1:
        found.append(f"model_source has {' and '.join(kinds)}; give one of them")
    if not kinds and not all(pin.get("url") or pin.get("urls") for pin in files):
        found.append(
            f"model_source is {source} and the entry's files have no url: nothing says where the "
            "file comes from (url, urls, path, controller_path or package)"
        )
    if source.get("package") and (len(files) > 1 or not source.get("wheel_sha256")):
        found.append("a package holds one file and needs wheel_sha256 and member")
    return found


def addresses(pin: dict[str, Any], source: dict[str, Any], *, single: bool) -> list[str]:
    """A mirror that ends in / is a folder; another address is the file itself."""
    given = source.get("urls") or ([source["url"]] if source.get("url") else [])
    if not given:
        given = pin.get("urls") or [pin["url"]]
    whole = [url for url in given if not url.endswith("/")]
    if source.get("url") or source.get("urls"):
        if whole and not single:
            raise AnsibleFilterError(
                f"model_source: {whole[0]} is one file, the model is split into several; give "
                "addresses of folders, which end in /"
            )
        if len(whole) < len(given) and not pin.get("file"):
            raise AnsibleFilterError(
                f"model_source: {given} has a folder, but the catalogue's entry has no `file`, "
                "the file's name in it"
            )
    return [url + pin["file"] if url.endswith("/") else url for url in given]


def shown(url: str) -> str:
    """An address without what may be secret in it."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def vistral_model_files(
    files: list[dict[str, Any]], path: str, source: dict[str, Any]
) -> list[dict[str, Any]]:
    """Each file as name, path, part, sha256, size, kind, and urls or origin by its kind.

    Raises AnsibleFilterError with everything that is wrong.
    """
    if found := problems(files, source):
        raise AnsibleFilterError(
            f"The model is not pinned: {'; '.join(found)}. `vistrald pin URL` prints an entry for "
            "model_catalogue_site in the inventory"
        )
    kind = next((kind for kind in KINDS if source.get(kind)), "urls")
    placed = []
    for number, pin in enumerate(files, 1):
        target = path.replace("-00001-of-", f"-{number:05}-of-") if len(files) > 1 else path
        file = {
            "name": pin.get("file") or posixpath.basename(path),
            "path": target,
            "part": target + ".part",
            "sha256": pin["sha256"],
            "size": int(pin["size"]),
            "kind": "urls" if kind == "url" else kind,
        }
        if file["kind"] == "urls":
            file["urls"] = addresses(pin, source, single=len(files) == 1)
            file["shown"] = ", ".join(map(shown, file["urls"]))
        elif kind == "package":
            file["shown"] = source["package"]
        else:
            # A folder where it ends in / or holds several files.
            folder = source[kind].endswith("/") or len(files) > 1
            file["origin"] = posixpath.join(source[kind], file["name"]) if folder else source[kind]
            file["shown"] = file["origin"]
        placed.append(file)
    return placed


class FilterModule:
    def filters(self) -> dict[str, Any]:
        return {"vistral_model_files": vistral_model_files}
