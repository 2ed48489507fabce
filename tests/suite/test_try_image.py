"""tests/try_image.py, also on a disk made from scratch."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import try_image
from conftest import require, require_tools, wait_until
from world.images import build_from_scratch
from world.sandbox import REPOSITORY

COMMAND = [sys.executable, f"{REPOSITORY}/tests/try_image.py"]


def try_it(*arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([*COMMAND, *arguments], capture_output=True, text=True, check=False)


def test_try_image_has_a_good_verdict_on_the_disk_from_scratch(
    emulation: object, pytestconfig: pytest.Config
) -> None:
    require_tools("mmdebstrap", "mount", "nsenter", "unshare")
    assert pytestconfig.cache
    disk = build_from_scratch(pytestconfig.cache.mkdir("images"))
    before = disk.stat().st_mtime_ns
    done = try_it(str(disk))
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    assert "\nVerdict: good\n" in done.stdout
    assert re.search("SSH host keys of two machines: [1-9] and [1-9], 0 shared\n", done.stdout)
    assert disk.stat().st_mtime_ns == before, "it was written to"


@pytest.fixture
def temporary(isolated: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The directory for temporary files, where there is all that a trial needs."""
    try:
        try_image.check_programs()
    except ValueError as error:
        require(False, str(error))
    require(os.access("/dev/net/tun", os.R_OK | os.W_OK), "/dev/net/tun is not for us: run as root")
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    return tmp_path


def test_try_image_refuses_what_is_no_disk(temporary: Path) -> None:
    image = temporary / "image"
    image.write_bytes(b"QFI\xfb\0\0\0\3".ljust(1 << 20, b"\0"))
    done = try_it(str(image))
    assert (done.returncode, done.stdout) == (2, "")
    assert re.match("qemu-img: Could not open.*\ntry_image.py: ", done.stderr)


def disk_that_does_not_boot(directory: Path) -> Path:
    """Return a fixed VHD."""
    path = directory / "disk.vhd"
    options = "-q -f vpc -o subformat=fixed,force_size=on".split()
    subprocess.run(["qemu-img", "create", *options, str(path), "2M"], check=True)
    with open(path, "r+b") as file:
        file.write(b"".ljust(510) + b"\x55\xaa")
    return path


def test_try_image_has_a_bad_verdict_on_a_disk_that_does_not_boot(temporary: Path) -> None:
    disk = disk_that_does_not_boot(temporary)
    done = try_it("--timeout=1", str(disk))
    assert (done.returncode, done.stderr) == (1, "")
    assert f"{disk}: vpc, no EFI system partition: BIOS\n" in done.stdout
    assert "\n  NO  Ready was not accepted in 1 s\n\nVerdict: BAD" in done.stdout


def processes_of(directory: Path) -> str:
    """Return those, QEMU for one, that have the directory on their command line."""
    find = ["sh", "-c", "grep -alFf - /proc/[0-9]*/cmdline"]
    return subprocess.run(find, input=str(directory), capture_output=True, text=True).stdout


def test_try_image_interrupted_leaves_nothing_but_the_console(temporary: Path) -> None:
    command = [*COMMAND, str(disk_that_does_not_boot(temporary))]
    with subprocess.Popen(command, stderr=subprocess.PIPE) as process:
        wait_until(lambda: list(temporary.glob("*/monitor")))  # QEMU's
        process.terminate()
        assert process.communicate()[1].startswith(b"Interrupted")
    assert process.returncode == 130
    assert not processes_of(temporary)
    assert {path.suffix for path in temporary.iterdir()} == {".vhd", ".console"}


FIRST = try_image.Boot(lease=1, ready=2, accepted=1)
SECOND = try_image.Boot(lease=1, name="tried-1", keys=("key-1",))


@pytest.mark.parametrize(
    "boots, verdict",
    [
        ((FIRST, SECOND, FIRST._replace(keys=("key-2",))), [True] * 4),
        ((FIRST._replace(accepted=2), SECOND._replace(name="", posted=1), SECOND), [False] * 4),
    ],
)
def test_try_image_judges_each_promise(
    boots: tuple[try_image.Boot, try_image.Boot, try_image.Boot], verdict: list[bool]
) -> None:
    assert [kept for kept, _ in try_image.judge(*boots)] == verdict
