"""The kernel of virtual machines: Debian's cloud kernel, unpacked but not installed."""

import shutil
import subprocess
from pathlib import Path

from lab.command import run, say
from lab.state import cache

# In the order of their dependencies. ext4 is built in.
_MODULES = (
    *("drivers/virtio/virtio_ring", "drivers/virtio/virtio"),
    *("drivers/virtio/virtio_pci_legacy_dev", "drivers/virtio/virtio_pci_modern_dev"),
    *("drivers/virtio/virtio_pci", "drivers/block/virtio_blk"),
    *("net/core/failover", "drivers/net/net_failover", "drivers/net/virtio_net"),
)
# The kernel hands "address" and "gateway" from its command line to this as variables.
_INIT = """\
#!/bin/busybox sh
alias b=/bin/busybox
b mount -t devtmpfs dev /dev
for module in {modules}; do b insmod /$module.ko; done
b ip link set lo up
b ip address add $address dev eth0
b ip link set eth0 up
b ip route add default via $gateway
b mount -t ext4 /dev/vda /root
b mount --move /dev /root/dev
exec /bin/busybox switch_root /root /lib/systemd/systemd
"""


def kernel() -> Path:
    """Return a folder with `vmlinuz`, `initrd` and `root`, which goes over the image."""
    kernels = cache() / "kernels"
    kernels.mkdir(parents=True, exist_ok=True)
    package = run("apt-cache", "depends", "linux-image-cloud-amd64").partition("Depends: ")[2]
    name = package.split()[0]
    folder = kernels / name
    if not folder.exists():
        _build(folder, name)
    return folder


def _build(folder: Path, package: str) -> None:
    say(f"Unpacking the virtual machines' kernel {package} (once) …")
    unfinished = folder.with_name(f"{package}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    (unfinished / "root/usr").mkdir(parents=True)
    subprocess.run(
        ["apt-get", "download", "--quiet", package], cwd=unfinished, check=True, capture_output=True
    )
    run("dpkg", "--extract", next(unfinished.glob("*.deb")), unfinished / "package")
    version = package.removeprefix("linux-image-")
    shutil.move(unfinished / f"package/boot/vmlinuz-{version}", unfinished / "vmlinuz")
    # The image's /lib is a link to /usr/lib, which a folder of this name would hide.
    shutil.move(unfinished / "package/lib", unfinished / "root/usr/lib")
    run("depmod", "--basedir", unfinished / "root/usr", version)
    _make_initrd(unfinished, unfinished / "root/usr/lib/modules" / version / "kernel")
    shutil.rmtree(unfinished / "package")
    unfinished.rename(folder)


def _make_initrd(folder: Path, modules: Path) -> None:
    tree = folder / "tree"
    for name in ("bin", "dev", "root"):
        (tree / name).mkdir(parents=True)
    shutil.copy("/bin/busybox", tree / "bin")
    for module in _MODULES:
        shutil.copy(modules / f"{module}.ko", tree)
    names = " ".join(Path(module).name for module in _MODULES)
    (tree / "init").write_text(_INIT.format(modules=names))
    (tree / "init").chmod(0o755)
    files = "".join(f"{path.relative_to(tree)}\n" for path in sorted(tree.rglob("*")))
    with (folder / "initrd").open("wb") as initrd:
        subprocess.run(
            ["cpio", "--quiet", "--create", "--format=newc"],
            cwd=tree,
            input=files.encode(),
            stdout=initrd,
            check=True,
        )
    shutil.rmtree(tree)
