"""tests/try_image.py on a disk made from scratch, with UEFI firmware and its own boot loader."""

import subprocess
import sys
from pathlib import Path
from typing import Callable

import pytest

from conftest import require_tools
from try_image import Boot, likely_reasons
from world import readme
from world.disks import make_uefi_disk
from world.images import ARM64, IMAGES, build_from_scratch, fresh_disk, in_checkout, install
from world.sandbox import REPOSITORY

TRY_IMAGE = [sys.executable, f"{REPOSITORY}/tests/try_image.py"]
NETWORK = readme.block("### 2. Remove the agents, keep the network", 1)
SSH_HOST_KEYS = readme.block("### 4. Generalize", 1)

INITIAL_RAM_DISK = "update-initramfs -c -k all"  # which mkosi makes only for disks of its own

# A first boot enables what a preset does not disable.
NOT_ENABLED = """\
systemctl disable azure-provisioning.service
echo disable azure-provisioning.service >/etc/systemd/system-preset/00-azure.preset
"""

TOOLS = "mmd mcopy mkfs.vfat mke2fs sfdisk qemu-img".split()
MakeDisk = Callable[[str], Path]


@pytest.fixture
def make_disk(isolated: None, pytestconfig: pytest.Config, tmp_path: Path) -> MakeDisk:
    require_tools("mkosi", *TOOLS)
    assert pytestconfig.cache
    tree = build_from_scratch(pytestconfig.cache.mkdir("images"))

    def make_disk(commands: str) -> Path:
        """Make the disk after *commands* in a chroot of it."""
        with fresh_disk(tree, tmp_path / "machine") as root:
            in_checkout(root, "\n".join([NETWORK, SSH_HOST_KEYS, INITIAL_RAM_DISK, commands]))
            return make_uefi_disk(root, tmp_path, "mitigations=off norandmaps")

    return make_disk


def try_image(*arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([*TRY_IMAGE, *arguments], capture_output=True, text=True, check=False)


def test_a_disk_from_scratch_gets_a_good_verdict(emulated: None, make_disk: MakeDisk) -> None:
    assert_good_verdict(make_disk(""))


def assert_good_verdict(disk: Path, *options: str) -> None:
    before = disk.stat().st_mtime_ns
    done = try_image(*options, str(disk))
    promises = [line.split(maxsplit=1) for line in done.stdout.splitlines() if line[:4] == " yes"]
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    assert "\nVerdict: good\n" in done.stdout
    texts = [text for _, text in promises]
    assert texts[0].startswith("Ready accepted once, first after ")
    assert texts[1].startswith("the second boot was silent for ")
    assert texts[2:] == [
        "the second lease was asked for as tried-1",
        "two machines of this image share no SSH host key",
    ]
    assert disk.stat().st_mtime_ns == before, "it was written to"


FOREIGN = [name for name in IMAGES if name.endswith(ARM64)]
if FOREIGN:  # only by hand

    @pytest.mark.parametrize("release", FOREIGN)
    def test_a_disk_for_another_processor_gets_a_good_verdict(image: Path, tmp_path: Path) -> None:
        """By emulation, and with the image's own boot loader."""
        require_tools("qemu-system-aarch64", *TOOLS)
        with fresh_disk(image, tmp_path / "machine") as root:
            install(root)
            in_checkout(root, "\n".join([NETWORK, SSH_HOST_KEYS]))
            disk = make_uefi_disk(root, tmp_path, arch="aarch64")
        assert_good_verdict(disk, "--arch=aarch64")


def test_a_disk_on_which_the_unit_is_not_enabled_gets_a_bad_verdict(
    emulated: None, make_disk: MakeDisk
) -> None:
    disk = make_disk(NOT_ENABLED)
    done = try_image("--timeout=400", "--console", str(disk))
    assert (done.returncode, done.stderr) == (1, ""), done.stdout
    assert "\n  NO  Ready was not accepted in 400 s\n" in done.stdout
    assert "likely: nothing in it asked the platform: the unit, or another agent" in done.stdout
    assert "\nVerdict: BAD" in done.stdout
    assert "Linux version" in done.stdout, "its console"


@pytest.mark.parametrize(
    "console, reason",
    [
        ("-- Press any key to proceed --", "systemd-firstboot waits for a key"),
        ("Kernel panic - not syncing", "its kernel panicked"),
        (
            "Goal state failed: one; trying again\r\n [1.2] Goal state failed: two\r\n",
            "Goal state failed: two",
        ),
        ("", "nothing in it asked the platform"),
    ],
)
def test_what_the_console_says_is_a_reason(console: str, reason: str) -> None:
    silent = Boot(1.0, "10.0.0.4", "", [], None, 400.0, False)
    reasons = likely_reasons(silent, console)
    assert any(one.startswith(reason) for one in reasons)


@pytest.mark.parametrize(
    "content, reason",
    [
        (b"no disk", "neither a partition table nor a boot sector"),
        (None, "there is no file"),
    ],
)
def test_what_is_no_disk_is_refused(
    isolated: None, tmp_path: Path, content: "bytes | None", reason: str
) -> None:
    require_tools("qemu-img", "ssh-keyscan")
    image = tmp_path / "image"
    if content is not None:
        image.write_bytes(content.ljust(1 << 20, b"\0"))
    done = try_image(str(image))
    assert done.returncode == 2
    assert reason in done.stderr
    assert "Traceback" not in done.stderr


def vhd(directory: Path, size: int, subformat: str) -> Path:
    path = directory / "image.vhd"
    options = f"subformat={subformat},force_size=on"
    command = ["qemu-img", "create", "-q", "-f", "vpc", "-o", options, str(path), str(size)]
    subprocess.run(command, check=True)
    with open(path, "r+b") as file:
        file.seek(510 if subformat == "fixed" else 0, 0)
        if subformat == "fixed":
            file.write(b"\x55\xaa")
    return path


def test_a_vhd_that_azure_would_not_take_is_told(isolated: None, tmp_path: Path) -> None:
    require_tools("qemu-img", "ssh-keyscan")
    image = vhd(tmp_path, (1 << 20) + 512, "fixed")
    said = try_image("--timeout=1", str(image)).stdout
    assert f"{image}: vpc, no EFI system partition; tried with BIOS" in said
    assert "its size must be whole MiB" in said


def test_a_fixed_vhd_of_whole_mib_is_as_azure_wants_it(isolated: None, tmp_path: Path) -> None:
    require_tools("qemu-img", "ssh-keyscan")
    image = vhd(tmp_path, 2 << 20, "fixed")
    assert "Note:" not in try_image("--timeout=1", str(image)).stdout
