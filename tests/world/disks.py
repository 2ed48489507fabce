"""Make disks with partitions, UEFI boot loader and a root file system, without mounting any."""

import shutil
from pathlib import Path
from typing import NamedTuple

from world.images import run

MIB = 1 << 20
ESP_MIB, ROOT_MIB = 128, 1536
BOOT_LOADERS = "usr/lib/systemd/boot/efi"  # Debian's systemd-boot-efi, of the image or the host
ENTRY = "linux /vmlinuz\ninitrd /initrd\noptions root=PARTLABEL=root rw console={} {}\n"
PARTITIONS = f"""\
label: gpt
size={ESP_MIB}MiB, type=uefi
size={ROOT_MIB}MiB, type=linux, name=root
"""


class Arch(NamedTuple):
    boot_loader: str
    console: str


ARCHS = {"x86_64": Arch("x64", "ttyS0"), "aarch64": Arch("aa64", "ttyAMA0")}


def make_uefi_disk(root: Path, directory: Path, options: str = "", arch: str = "x86_64") -> Path:
    """Return a raw disk in *directory* that boots by itself into a copy of *root*.

    The kernel, with its initial RAM disk, is the newest in root's /boot; *options* are for it.
    """
    esp, file_system, disk = (directory / name for name in ("esp", "root.ext4", "disk.raw"))
    kernel, initrd = (max((root / "boot").glob(f"{name}-*")) for name in ("vmlinuz", "initrd.img"))
    entry = directory / "entry.conf"
    boot_loader, console = ARCHS[arch]
    name = f"{BOOT_LOADERS}/systemd-boot{boot_loader}.efi"
    loader = next(path / name for path in (root, Path("/")) if (path / name).exists())
    entry.write_text(ENTRY.format(console, options))
    run("mkfs.vfat", "-C", str(esp), str(ESP_MIB << 10))
    for name in ("EFI", "EFI/BOOT", "loader", "loader/entries"):
        run("mmd", "-i", str(esp), f"::{name}")
    for source, target in [
        (loader, f"EFI/BOOT/BOOT{boot_loader.upper()}.EFI"),
        (kernel, "vmlinuz"),
        (initrd, "initrd"),
        (entry, "loader/entries/linux.conf"),
    ]:
        run("mcopy", "-i", str(esp), str(source), f"::{target}")
    run("mke2fs", "-q", "-t", "ext4", "-d", str(root), str(file_system), f"{ROOT_MIB}M")

    script = directory / "partitions"
    script.write_text(PARTITIONS)
    with open(disk, "wb") as file:
        file.truncate((ESP_MIB + ROOT_MIB + 3) * MIB)  # a MiB of space at both ends, at least
    run("sh", "-euc", 'sfdisk --quiet "$1" <"$2"', "sh", str(disk), str(script))
    for part, start in ((esp, MIB), (file_system, (1 + ESP_MIB) * MIB)):
        with open(part, "rb") as source_file, open(disk, "r+b") as file:
            file.seek(start)
            shutil.copyfileobj(source_file, file, MIB)
        part.unlink()
    return disk
