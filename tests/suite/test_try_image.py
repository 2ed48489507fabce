"""tests/try_image.py, also on a disk made from scratch."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Optional

import pytest

import try_image
from conftest import heed_sigint, require, require_tools, wait_until
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
    for text in (
        "Ready accepted once, first after ",
        "the second boot was silent for ",
        "after the second boot Azure's DNS would have tried-1\n",
        "two machines of this image share no SSH host key\n",
    ):
        assert f"\n yes  {text}" in done.stdout
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


@pytest.mark.parametrize(
    "content, reason",
    [
        (None, "No such file"),
        (b"no disk".ljust(1 << 20), "has neither a partition table nor a boot sector"),
        (b"QFI\xfb\0\0\0\3".ljust(1 << 20, b"\0"), "qemu-img: Could not open"),
    ],
)
def test_try_image_refuses_what_is_no_disk_in_one_line(
    temporary: Path, content: Optional[bytes], reason: str
) -> None:
    image = temporary / "image"
    if content is not None:
        image.write_bytes(content)
    done = try_it(str(image))
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(f"try_image.py: .*{reason}.*\n", done.stderr)


def test_try_image_says_that_it_needs_root_before_what_else_is_missing(
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


def test_try_image_has_a_bad_verdict_on_a_disk_that_does_not_boot(temporary: Path) -> None:
    disk = disk_that_does_not_boot(temporary)
    done = try_it("--timeout=1", str(disk))
    assert (done.returncode, done.stderr) == (1, "")
    assert f"{disk}: vpc, no EFI system partition: BIOS; tried with " in done.stdout
    assert "\n  NO  Ready was not accepted in 1 s\n\nVerdict: BAD" in done.stdout


def processes_of(directory: Path) -> str:
    """Return those, QEMU for one, that have the directory on their command line."""
    find = ["sh", "-c", "grep -alFf - /proc/[0-9]*/cmdline"]
    return subprocess.run(find, input=str(directory), capture_output=True, text=True).stdout


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_try_image_interrupted_leaves_nothing_but_the_console(
    temporary: Path, number: signal.Signals
) -> None:
    command = [*COMMAND, str(disk_that_does_not_boot(temporary))]
    with subprocess.Popen(command, stderr=subprocess.PIPE, preexec_fn=heed_sigint) as process:
        wait_until(lambda: list(temporary.glob("*/monitor")))  # QEMU's
        process.send_signal(number)
        assert process.communicate()[1].startswith(b"Interrupted")
    assert process.returncode == 130
    assert not processes_of(temporary)
    assert {path.suffix for path in temporary.iterdir()} == {".vhd", ".console"}


FIRST = try_image.Boot(lease=1, ready=2, accepted=1, posted=1, requests=3)
SECOND = try_image.Boot(lease=1, name="tried-1", keys=("key-1",))
OTHER = FIRST._replace(keys=("key-2",))
TWICE = FIRST._replace(accepted=2)


@pytest.mark.parametrize(
    "boots, broken",
    [
        ((FIRST, SECOND, OTHER), ""),
        ((TWICE, SECOND, OTHER), "Ready accepted 2 times"),
        ((FIRST, SECOND._replace(posted=1, requests=2), OTHER), "the second boot reported 1 times"),
        ((FIRST, SECOND._replace(name=""), OTHER), "after the second boot Azure's DNS would have"),
        ((FIRST, SECOND, OTHER._replace(keys=("key-1",))), "two machines of this image share SSH"),
    ],
)
def test_try_image_tells_the_promise_that_is_not_kept(
    boots: tuple[try_image.Boot, try_image.Boot, try_image.Boot], broken: str
) -> None:
    told = [text for kept, text in try_image.judge(*boots) if not kept]
    assert len(told) == bool(broken)
    assert all(text.startswith(broken) for text in told)
