"""tests/try_image.py, also on a disk made from scratch; and tests/demo.py where it cannot run."""

import os
import platform
import signal
import subprocess
import sys
from pathlib import Path
from typing import Optional

import pytest

import try_image
from conftest import heed_sigint, require, require_tools, wait_until
from world.disks import make_uefi_disk
from world.host import SimulatedHost
from world.images import ARM64, IMAGES, build_from_scratch, fresh_disk, in_checkout, install
from world.sandbox import REPOSITORY

COMMAND = [sys.executable, f"{REPOSITORY}/tests/try_image.py"]
INITIAL_RAM_DISK = "update-initramfs -c -k all"  # which mkosi makes only for disks of its own
DISK_TOOLS = "mmd mcopy mkfs.vfat mke2fs sfdisk".split()


def try_it(*arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([*COMMAND, *arguments], capture_output=True, text=True, check=False)


def test_a_disk_from_scratch_gets_a_good_verdict(
    emulation: object, pytestconfig: pytest.Config, tmp_path: Path
) -> None:
    require_tools("mkosi", *DISK_TOOLS)
    assert pytestconfig.cache
    tree = build_from_scratch(pytestconfig.cache.mkdir("images"))
    with fresh_disk(tree, tmp_path / "machine") as root:
        in_checkout(root, INITIAL_RAM_DISK)
        disk = make_uefi_disk(root, tmp_path, "mitigations=off norandmaps")
    assert_good_verdict(disk)


def assert_good_verdict(disk: Path, *options: str) -> None:
    before = disk.stat().st_mtime_ns
    done = try_it(*options, str(disk))
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    assert "\nVerdict: good\n" in done.stdout
    for text in (
        "Ready accepted once, first after ",
        "the second boot was silent for ",
        "after the second boot Azure's DNS would have tried-1\n",
        "two machines of this image share no SSH host key\n",
    ):
        assert f"\n yes  {text}" in done.stdout
    assert disk.stat().st_mtime_ns == before, "it was written to"


FOREIGN = [name for name in IMAGES if name.endswith(ARM64)]
if FOREIGN:  # only by hand

    @pytest.mark.parametrize("release", FOREIGN)
    def test_a_disk_for_another_processor_gets_a_good_verdict(image: Path, tmp_path: Path) -> None:
        """By emulation, and with the image's own boot loader."""
        require_tools("qemu-system-aarch64", *DISK_TOOLS)
        with fresh_disk(image, tmp_path / "machine") as root:
            install(root)
            disk = make_uefi_disk(root, tmp_path, arch="aarch64")
        assert_good_verdict(disk, "--arch=aarch64")


@pytest.fixture
def temporary(isolated: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The directory for temporary files, where there is all that a trial needs."""
    try:
        try_image.check_programs(try_image.ARCHS[platform.machine()])
    except ValueError as error:
        require(False, str(error))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize(
    "content, reason",
    [
        (None, "there is no file"),
        (b"conectix".ljust(100), "is no disk: it has 100 bytes"),
        (b"no disk".ljust(1 << 20), "has neither a partition table nor a boot sector"),
        (b"QFI\xfb".ljust(1 << 20, b"x"), "nsupported qcow2 version"),
        (b"QFI\xfb\0\0\0\3".ljust(1 << 20, b"\0"), "qemu-img: Could not open"),
    ],
)
def test_what_is_no_disk_is_refused_in_one_line(
    temporary: Path, content: Optional[bytes], reason: str
) -> None:
    image = temporary / "image"
    if content is not None:
        image.write_bytes(content)
    done = try_it(str(image))
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("try_image.py: ")
    assert reason in line
    assert "Errno" not in line
    assert "['" not in line


def test_that_it_needs_root_is_said_before_what_else_is_missing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr(sys, "argv", ["try_image.py", "no-image"])
    monkeypatch.setenv("PATH", "")
    assert try_image.main() == 2
    assert capsys.readouterr().err == "try_image.py: it needs root\n"


def disk_that_does_not_boot(directory: Path) -> Path:
    """Return a fixed VHD."""
    path = directory / "disk.vhd"
    options = "-q -f vpc -o subformat=fixed,force_size=on".split()
    subprocess.run(["qemu-img", "create", *options, str(path), "2M"], check=True)
    with open(path, "r+b") as file:
        file.write(b"".ljust(510) + b"\x55\xaa")
    return path


def test_a_disk_that_does_not_boot_gets_a_bad_verdict(temporary: Path) -> None:
    disk = disk_that_does_not_boot(temporary)
    done = try_it("--timeout=1", str(disk))
    assert (done.returncode, done.stderr) == (1, "")
    assert f"{disk}: vpc, no EFI system partition: BIOS; tried with " in done.stdout
    assert "\n  NO  Ready was not accepted in 1 s\n      likely: it has no network" in done.stdout
    assert "\nVerdict: BAD" in done.stdout


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_interrupted_it_leaves_nothing_but_the_console(
    temporary: Path, number: signal.Signals
) -> None:
    command = [*COMMAND, str(disk_that_does_not_boot(temporary))]
    with subprocess.Popen(command, stderr=subprocess.PIPE, preexec_fn=heed_sigint) as process:
        wait_until(lambda: list(temporary.glob("*/disk-1")))
        process.send_signal(number)
        assert process.communicate()[1].startswith(b"Interrupted")
    assert process.returncode == 130
    assert {path.suffix for path in temporary.iterdir()} == {".vhd", ".console"}


INTERRUPTED_TWICE = """\
import contextlib, os, signal
from world import interruption
interruption.heed()
with contextlib.suppress(KeyboardInterrupt):
    os.kill(os.getpid(), signal.SIGINT)
os.kill(os.getpid(), signal.SIGTERM)
"""


def test_a_second_signal_does_not_interrupt_what_comes_of_the_first() -> None:
    command = [sys.executable, "-c", INTERRUPTED_TWICE]
    subprocess.run(command, cwd=f"{REPOSITORY}/tests", check=True, preexec_fn=heed_sigint)


@pytest.fixture
def seen(host: SimulatedHost, tmp_path: Path) -> try_image.Boot:
    (tmp_path / "dnsmasq").touch()
    return try_image.Boot(host, tmp_path / "dnsmasq")


@pytest.mark.parametrize(
    "console, reason",
    [
        ("-- Press any key to proceed --", "systemd-firstboot waits for a key"),
        ("Kernel panic - not syncing", "its kernel panicked"),
        ("Goal state failed: one\r\n [1.2] Goal state failed: two\r\n", "Goal state failed: two"),
        ("", "the unit, or another agent, is not enabled"),
    ],
)
def test_what_the_console_says_is_a_reason(seen: try_image.Boot, console: str, reason: str) -> None:
    seen.lease = 1.0
    assert try_image.likely_reason(seen, console).startswith(reason)


NAMELESS = "dnsmasq-dhcp: 1 DHCPACK(tap0) 10.0.0.4 00:0d:3a:00:00:01\n"
NAMED = f"dnsmasq-dhcp: 2 client provides name: tried-1\n{NAMELESS}"


@pytest.mark.parametrize(
    "log, kept, name",
    [
        (NAMELESS, None, "no name, not tried-1"),
        (NAMELESS + NAMED, True, "tried-1"),
        (NAMED.replace("tried-1", "debian"), None, "debian, not tried-1"),
    ],
)
def test_it_tells_the_name_that_azures_dns_has_after_the_first_boot(
    seen: try_image.Boot, log: str, kept: Optional[bool], name: str
) -> None:
    seen.log.write_text(log)
    seen.look_at_leases()
    promise = try_image.judge_dns("first", seen.name, "tried-1", may_lack=True)
    assert promise == (kept, f"after the first boot Azure's DNS would have {name}")


WITHOUT_PROC = ["unshare", "--mount", "sh", "-c", 'mount -t tmpfs none /proc; exec "$@"', "sh"]


def test_where_there_is_no_proc_the_demo_says_what_it_needs(isolated: None) -> None:
    command = [*WITHOUT_PROC, sys.executable, f"{REPOSITORY}/tests/demo.py"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "demo.py: it needs Linux, with /proc\n"
