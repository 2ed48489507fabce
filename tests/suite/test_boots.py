"""Real boots: the README's installation, a real systemd, the script with its defaults.

Each machine, a container or at the end of this file a virtual machine, has a network of its own, in
which the simulated host has the platform's addresses.
"""

import random
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from itertools import cycle, islice, product
from pathlib import Path
from typing import Callable, NamedTuple

import pytest

from conftest import require_tools, wait_until
from world import boot, images, readme
from world.boot import VM_SECONDS, Emulation, Report, boot_container, boot_vm
from world.host import SimulatedHost, Vm
from world.images import IMAGES, in_checkout

UNIT = "azure-provisioning.service"
UNITS = "etc/systemd/system"
LINES = readme.block("## See that it worked").splitlines()  # of the VM myvm
# All is tried on all, but for images that are for one thing.
ONE_THING = ("-agents", "-managers")
RELEASES = [name for name in IMAGES if not name.endswith(ONE_THING)]
WITH_MINIMAL_PYTHON = [name for name in IMAGES if IMAGES[name].python == images.MINIMAL]
each_release = pytest.mark.parametrize("release", RELEASES)
NETWORKD = "systemd-networkd systemd-networkd-wait-online"


# Other files have these fixtures, too.


@pytest.fixture
def installed(image: Path, tmp_path: Path) -> Iterator[Path]:
    """The disk of a machine that has all of the README's blocks, and has never booted."""
    require_tools("systemd-nspawn")
    with images.fresh_disk(image, tmp_path / "machine") as root:
        images.install(root)
        boot.install_witness(root)
        yield root


@pytest.fixture
def root(installed: Path) -> Path:
    """The same, without a network of its own."""
    in_checkout(installed, f"systemctl disable {NETWORKD}")
    return installed


@pytest.fixture
def host(platform_host: SimulatedHost) -> SimulatedHost:
    platform_host.vm = Vm()  # the one in the README
    return platform_host


def write(root: Path, file: str, text: str) -> None:
    (root / file).parent.mkdir(parents=True, exist_ok=True)
    (root / file).write_text(text)


def add_drop_in(root: Path, text: str, unit: str = UNIT) -> Path:
    directory = root / UNITS / f"{unit}.d"
    directory.mkdir(exist_ok=True)
    drop_in = directory / f"{len(list(directory.iterdir()))}.conf"
    drop_in.write_text(text)
    return drop_in


def good_end(name: str, journal: list[str] = LINES) -> Report:
    return Report(kernel_name=name, stored_name=name, hostnamed=name, journal=journal)


def assert_next_boot_is_silent(root: Path, host: SimulatedHost, *options: str) -> None:
    host.incarnation += 1
    host.requests.clear()
    assert boot_container(root, *options) == good_end("myvm", journal=[])
    assert host.requests == []


# ---- First boots

# Without D-Bus systemd-logind fails by itself, and that is not what is tested here.
NO_DBUS = "systemctl mask dbus.service dbus.socket systemd-logind.service"
TALK_TO_HOSTNAMED = "[Service]\nExecStartPre=-/usr/bin/hostnamectl\n"


@each_release
@pytest.mark.parametrize("prepare", [NO_DBUS, ""], ids=["without-dbus", "hostnamed-runs"])
def test_first_boot_ends_well_and_the_second_does_nothing(
    root: Path, host: SimulatedHost, prepare: str
) -> None:
    in_checkout(root, prepare)
    add_drop_in(root, TALK_TO_HOSTNAMED)
    assert boot_container(root) == good_end("myvm")
    assert len(host.accepted) == 1
    assert_next_boot_is_silent(root, host)


@each_release
@pytest.mark.parametrize(
    "endpoint, step, status, accepted",
    [("health", "Health report", "1", 0), ("computer-name", "Computer name", "3", 1)],
    ids=["no-ready", "no-name"],
)
def test_first_boot_that_fails_changes_nothing_and_the_second_puts_it_right(
    root: Path, host: SimulatedHost, endpoint: str, step: str, status: str, accepted: int
) -> None:
    script, *more = re.findall("^ExecStart=.*", (root / UNITS / UNIT).read_text(), re.MULTILINE)
    two_seconds = ["[Service]", "ExecStart=", f"{script} --timeout=2", *more]
    drop_in = add_drop_in(root, "\n".join(two_seconds))
    host.misbehave(endpoint, "500")
    report = boot_container(root)
    last = f"{step} failed: the answer is 500 Internal Server Error; giving up"
    assert report.journal[-1] == last
    assert report == good_end("localhost", report.journal)._replace(
        running="degraded", failed=UNIT, enabled="enabled", result="exit-code", status=status
    )
    assert len(host.accepted) == accepted

    drop_in.unlink()
    host.recover()
    assert boot_container(root) == good_end("myvm")
    assert len(host.accepted) == accepted + 1


@pytest.mark.parametrize("release", WITH_MINIMAL_PYTHON)
def test_image_with_a_minimal_python_has_no_other(image: Path) -> None:
    script = "import importlib.util as u; print([n for n in ('http', 'xml') if u.find_spec(n)])"
    command = ["chroot", str(image), *"/usr/bin/python3 -I -S -B -c".split(), script]
    assert subprocess.check_output(command, text=True) == "[]\n"


# ---- Power cuts


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "moment" in metafunc.fixturenames:
        count = metafunc.config.getoption("--power-cuts")
        pairs = list(islice(cycle(product(MOMENTS, RELEASES)), count))
        metafunc.parametrize("moment, release", pairs)
    if "first_boot" in metafunc.fixturenames:
        count = metafunc.config.getoption("--vm-power-cuts")
        metafunc.parametrize("first_boot", range(max(count // len(VM_MOMENTS), 1)))


class Moment(NamedTuple):
    """When to cut: some time after the platform got its nth request; 0: was switched on."""

    requests: int
    seconds: float
    console: str = ""  # has this pattern, too


# By the requests that a boot makes: the goal state, the report, IMDS's computer name.
MOMENTS = [Moment(0, 3), Moment(1, 0.05), Moment(2, 0.05), Moment(3, 0.3), Moment(3, 2)]
# In a virtual machine, which is slower, also by what its console says. They are all of one boot,
# and each comes after the one before.
STARTS = "Starting .*and set the host name"
SET, DISABLED = "Host name myvm set", "Finished .*and set the host name"
VM_MOMENTS = [
    Moment(0, 2, STARTS),
    Moment(1, 0.05),
    Moment(2, 0.05),
    *[Moment(3, 1)] * 2,
    *[Moment(3, 1, SET)] * 2,
    *[Moment(3, 20, DISABLED)] * 3,
]


def wait_for(moment: Moment, host: SimulatedHost, console: Path) -> None:
    wait_until(lambda: len(host.requests) >= moment.requests, VM_SECONDS)
    wait_until(lambda: re.search(moment.console, console.read_text(errors="replace")), VM_SECONDS)
    time.sleep(random.uniform(0, moment.seconds))


def progress(root: Path, requested: int, accepted: int) -> str:
    """How far the machine got before the cut, as far as it shows from outside."""
    if not (root / UNITS / "multi-user.target.wants" / UNIT).is_symlink():
        return "disabled"
    if (root / "etc/hostname").read_bytes() == b"myvm\n":
        return "named"
    if accepted:
        return "Ready accepted"
    return "Ready not accepted" if requested else "nothing requested"


def assert_next_boot_puts_it_right(
    root: Path, host: SimulatedHost, reached: str, accepted: int
) -> None:
    host.accepted.clear()
    if reached == "disabled":
        assert accepted == 1
        assert_next_boot_is_silent(root, host)
    else:
        assert boot_container(root) == good_end("myvm")
        assert len(host.accepted) == 1


def test_power_cut_is_put_right_by_the_next_boot(
    moment: Moment, root: Path, host: SimulatedHost, record_property: Callable[..., None]
) -> None:
    with boot.running_container(root):
        wait_for(moment, host, root.parent / "console")
    time.sleep(0.5)  # a report may still be on its way
    accepted = len(host.accepted)
    reached = progress(root, len(host.requests), accepted)
    record_property("power cut", reached)
    assert_next_boot_puts_it_right(root, host, reached, accepted)


# ---- Virtual machines: a real kernel, and firmware that says that this is Azure

NETWORKD_ON = f"systemctl enable {NETWORKD}"
# Without a .network file of the image's own systemd-imds brings the network up.
IMDS_NETWORK = f"{NETWORKD_ON}\nrm /etc/systemd/network/50-azure.network"
# Keep IMDS to systemd's own client, where there is one: upstream's default, but not Debian's.
LOCKED = "systemd.imds.network=locked systemd.default_device_timeout_sec=600"
WITH_KERNEL = [name for name in RELEASES if "linux-image" in IMAGES[name].packages]
WITH_IMDS = [name for name in WITH_KERNEL if images.IMDS_CLIENT in IMAGES[name].packages]
# Debian 12 loses its power below, and Debian 13 has a second card in test_readme_boots.py.
VMS = [(name, False) for name in WITH_KERNEL if name not in ("debian-12", "debian-13")]
VMS += [(name, True) for name in WITH_IMDS]


@pytest.mark.parametrize("release, locked", VMS)
def test_virtual_machine_boots(
    emulation: Emulation, root: Path, host: SimulatedHost, locked: bool
) -> None:
    in_checkout(root, IMDS_NETWORK if locked else NETWORKD_ON)
    assert boot_vm(emulation, root, LOCKED if locked else "") == good_end("myvm")
    assert len(host.accepted) == 1
    *_, request = [one for one in host.requests if "osProfile/computerName" in one.target]
    assert "user-agent" not in request.headers, "it is systemd's client that has asked"


@pytest.mark.parametrize("release", ["debian-12"])
def test_power_cut_that_loses_what_was_not_written_is_put_right_by_the_next_boot(
    first_boot: int,
    emulation: Emulation,
    root: Path,
    host: SimulatedHost,
    record_property: Callable[..., None],
) -> None:
    require_tools("qemu-img")
    in_checkout(root, NETWORKD_ON)
    console, recovered = root.parent / "console", root.parent / "recovered"
    cuts: list[tuple[int, int, Path]] = []
    with boot.losing_power(emulation, root) as cut:
        for moment in VM_MOMENTS:
            wait_for(moment, host, console)
            cuts.append((len(host.requests), len(host.accepted), cut()))
    for requested, accepted, disk in cuts:
        boot.recover(disk, recovered)
        reached = progress(recovered, requested, accepted)
        record_property("power cut", reached)
        host.incarnation = 1
        in_checkout(recovered, f"systemctl disable {NETWORKD}")
        assert_next_boot_puts_it_right(recovered, host, reached, accepted)
        shutil.rmtree(recovered)
