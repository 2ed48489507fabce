"""tests/try_image.py, also on a disk made from scratch."""

import os
import platform
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, Optional

import pytest

import try_image
from conftest import heed_sigint, require, require_tools, wait_until
from world import interruption
from world.host import Request, SimulatedHost
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
        try_image.check_programs(platform.machine())
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


@pytest.mark.parametrize("number", interruption.SIGNALS)
def test_try_image_interrupted_leaves_nothing_but_the_console(
    temporary: Path, number: signal.Signals
) -> None:
    command = [*COMMAND, str(disk_that_does_not_boot(temporary))]
    with subprocess.Popen(command, stderr=subprocess.PIPE, preexec_fn=heed_sigint) as process:
        wait_until(lambda: list(temporary.glob("*/disk-1")))
        process.send_signal(number)
        assert process.communicate()[1].startswith(b"Interrupted")
    assert process.returncode == 130
    assert {path.suffix for path in temporary.iterdir()} == {".vhd", ".console"}


def seen(host: SimulatedHost, log: Path, *keys: str, reports: int = 0) -> try_image.Boot:
    """A boot with a lease and Ready, as it ends."""
    log.write_text("")
    boot = try_image.Boot(host, log)
    log.write_text("1 client provides name: tried-1\n2 DHCPACK(tap0) 10.0.0.4 00:0d:3a:00:00:01\n")
    boot.look_at_leases()
    boot.ready, boot.reports, boot.keys = 1.0, reports, list(keys)
    return boot


# What becomes of a good trial: the number of reports, the second boot's requests, its name, keys.
BAD: dict[str, dict[str, Any]] = {
    "": {},
    "Ready accepted 2 times": {"reports": 2},
    "the second boot posted 1 times": {"method": "POST"},
    "after the second boot Azure's DNS would have no name": {"name": ""},
    "two machines of this image share SSH host keys": {"key": "key-1"},
}


@pytest.mark.parametrize("text", BAD)
def test_try_image_tells_each_promise_that_is_not_kept(
    host: SimulatedHost, tmp_path: Path, text: str
) -> None:
    bad, log = BAD[text], tmp_path / "dnsmasq"
    first = seen(host, log, reports=bad.get("reports", 1))
    second, other = seen(host, log, "key-1"), seen(host, log, bad.get("key", "key-2"))
    second.requests = [Request(0, "wireserver", bad.get("method", "GET"), "/", {}, b"", "200")]
    second.name = bad.get("name", second.name)
    promises = try_image.judge(first, [second, other], "tried-1")
    broken = [what for kept, what in promises if kept is False]
    assert len(broken) == bool(text)
    assert all(what.startswith(text) for what in broken)
