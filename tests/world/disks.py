"""Make disks with partitions, UEFI boot loader and a root file system, without mounting any."""

import subprocess
from pathlib import Path

from world.images import run

ESP_MIB, ROOT_MIB = 128, 1536
BOOT_LOADERS = "usr/lib/systemd/boot/efi"  # Debian's systemd-boot-efi, of the image or the host
ARCHS = {"x86_64": ("x64", "ttyS0"), "aarch64": ("aa64", "ttyAMA0")}  # boot loader, console
ENTRY = "linux /vmlinuz\ninitrd /initrd\noptions root=PARTLABEL=root rw console={} {}\n"
PARTITIONS = f"""\
label: gpt
start=1MiB, size={ESP_MIB}MiB, type=uefi
size={ROOT_MIB}MiB, type=linux, name=root
"""


def make_uefi_disk(root: Path, directory: Path, options: str = "", arch: str = "x86_64") -> Path:
    """Return a raw disk in *directory* that boots by itself into a copy of *root*.

    The kernel, with its initial RAM disk, is the newest in root's /boot; *options* are for it.
    """
    disk, entry = directory / "disk.raw", directory / "entry.conf"
    boot_loader, console = ARCHS[arch]
    kernel, initrd = (max((root / "boot").glob(f"{name}-*")) for name in ("vmlinuz", "initrd.img"))
    name = f"{BOOT_LOADERS}/systemd-boot{boot_loader}.efi"
    loader = next(path / name for path in (root, Path("/")) if (path / name).exists())
    entry.write_text(ENTRY.format(console, options))
    with open(disk, "wb") as file:
        file.truncate((1 + ESP_MIB + ROOT_MIB + 1) << 20)  # a MiB of space at both ends
    subprocess.run(["sfdisk", "--quiet", str(disk)], input=PARTITIONS, text=True, check=True)

    run("mkfs.vfat", "-F16", "--offset=2048", str(disk), str(ESP_MIB << 10))  # sectors; KiB
    esp = f"{disk}@@1M"
    for name in ("EFI", "EFI/BOOT", "loader", "loader/entries"):
        run("mmd", "-i", esp, f"::{name}")
    for source, target in [
        (loader, f"EFI/BOOT/BOOT{boot_loader.upper()}.EFI"),
        (kernel, "vmlinuz"),
        (initrd, "initrd"),
        (entry, "loader/entries/linux.conf"),
    ]:
        run("mcopy", "-i", esp, str(source), f"::{target}")
    place = f"offset={(1 + ESP_MIB) << 20}"
    run(*f"mke2fs -q -t ext4 -E {place} -d".split(), str(root), str(disk), f"{ROOT_MIB}M")
    return disk
