"""Real Debian root file systems: built once, kept in pytest's cache, never changed.

A test works on a disk, which is an overlay over an image: made at once, and gone afterwards.
"""

import contextlib
import fcntl
import os
import shlex
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from subprocess import DEVNULL, PIPE, STDOUT
from typing import Callable, NamedTuple, Optional

from world import readme
from world.sandbox import REPOSITORY

SSH = "openssh-server,curl"  # curl fetches Azure's SSH key
IMDS_CLIENT = "systemd-imds"
KERNEL = "initramfs-tools,linux-image-cloud-amd64,udev"  # for the virtual machines
PACKAGES = "dbus,systemd,systemd-sysv"
DMI, ASSET_TAG = "/sys/class/dmi/id", "7783-7084-3265-9085-8269-3286-77"  # Azure's
LEAVE_OUT = 'cd "$1/usr/share" && rm -rf doc info locale man'
# The images outlive what their distribution's index is valid for, and so may a mirror's copy of it.
APT_OPTIONS = ("Acquire::Retries 3", 'Acquire::Check-Valid-Until "false"')
MMDEBSTRAP = [
    *"mmdebstrap --variant=minbase --format=directory --quiet".split(),
    *(f"--aptopt={option}" for option in APT_OPTIONS),
    "--dpkgopt=force-unsafe-io",
]
APART = "unshare --mount --pid --fork --kill-child".split()  # packages look at what runs
MINIMAL, FULL = "python3-minimal", "python3"  # what the README says is enough, and what is usual


class Image(NamedTuple):
    suite: str
    python: str
    packages: str = ""  # besides PACKAGES


AGENTS = "cloud-init,netplan.io,waagent"  # as in Debian's images for Azure; never started
MANAGERS = "ifupdown,isc-dhcp-client,network-manager"  # a machine enables one of them
# Keep the table of what boots in tests/README.md in step with this.
IMAGES = {
    "debian-11": Image("bullseye", MINIMAL, "usrmerge"),
    "debian-11-split-usr": Image("bullseye", FULL),
    "debian-12": Image("bookworm", MINIMAL, f"{KERNEL},{SSH}"),
    "debian-12-agents": Image("bookworm", FULL, f"{AGENTS},{SSH}"),
    "debian-12-managers": Image("bookworm", MINIMAL, MANAGERS),
    "debian-13": Image("trixie", FULL, f"{KERNEL},{SSH}"),
    "debian-testing": Image("testing", MINIMAL, f"{KERNEL},{SSH},{IMDS_CLIENT}"),
}


def build(name: str, directory: Path) -> Path:
    """Return the root directory of the image *name*, which is built in *directory* if need be."""
    image = IMAGES[name]
    include = f"--include={PACKAGES},{image.python},{image.packages}"
    command = [*MMDEBSTRAP, f"--customize-hook={LEAVE_OUT}", include, image.suite, name]
    return build_once(directory / name, " ".join(command), command, directory)


# A Debian that has mkosi makes a disk of what the README's blocks have made. It uses that Debian's
# archive: by itself mkosi would also want that of debug symbols.
MAKE_DISK = """\
{mmdebstrap} --include=mkosi,qemu-utils trixie builder
apt=my-image/mkosi.sandbox/etc/apt
mkdir -p "$apt/sources.list.d"
sed 's:^deb:& [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg]:' \\
    builder/etc/apt/sources.list >"$apt/sources.list"
touch "$apt/sources.list.d/mkosi.sources"
cp --remove-destination /etc/resolv.conf builder/etc
mount --bind builder builder
mount --bind my-image builder/mnt
mount -t proc proc builder/proc
for name in dev sys; do mount --rbind "/$name" "builder/$name"; done
for name in run tmp; do mount -t tmpfs tmpfs "builder/$name"; done
exec chroot builder sh -euc "cd /mnt; $1"
"""


def build_from_scratch(directory: Path) -> Path:
    """Return the fixed VHD that comes of the README's "From scratch" part."""
    configuration, build = (readme.block("## From scratch", number) for number in range(2))
    faster = "console=ttyS0 mitigations=off norandmaps"  # in emulation
    configuration = configuration.replace("console=ttyS0", faster)
    script = MAKE_DISK.format(mmdebstrap=shlex.join(MMDEBSTRAP))
    blocks = "\n".join([INSTALL, NETWORK, HOST_KEYS])

    place = directory / "from-scratch"
    image = place / "my-image"

    def prepare() -> None:
        paste_for(image / "mkosi.extra", blocks)
        (image / "mkosi.conf").write_text(configuration)

    project = [Path(REPOSITORY, name).read_text() for name in PROJECT]
    recipe = "\n".join([script, configuration, build, blocks, *project])
    build_once(place, recipe, [*APART, "sh", "-euc", script, "sh", build], place, prepare)
    return image / "image.vhd"


def build_once(
    place: Path,
    recipe: str,
    command: list[str],
    cwd: Path,
    prepare: Callable[[], None] = lambda: None,
) -> Path:
    """Return the *place*, which *command* makes. Workers share it: one builds, the others wait."""
    stamp = place.with_name(f"{place.name}.recipe")
    with open(place.with_name(f"{place.name}.lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not stamp.exists() or stamp.read_text() != recipe:
            stamp.unlink(missing_ok=True)
            shutil.rmtree(place, ignore_errors=True)
            prepare()
            outside = f"--net={os.environ['OUTER_NETWORK']}"  # to download, and for nothing else
            # Another run waits for the lock even if this one is killed.
            run("nsenter", outside, *command, cwd=cwd, pass_fds=[lock.fileno()])
            stamp.write_text(recipe)
    return place


@contextlib.contextmanager
def fresh_disk(image: Path, directory: Path) -> Iterator[Path]:
    """Return the root directory, below *directory*, of a new disk with the content of *image*."""
    directory.mkdir()
    run("mount", "-t", "tmpfs", "tmpfs", str(directory))
    try:
        for name in ("upper", "work", "root"):
            (directory / name).mkdir()
        root = directory / "root"
        # Paths relative to the image's: commas and colons in them would need escapes.
        layers = f"lowerdir=.,upperdir={directory}/upper,workdir={directory}/work"
        run("mount", "-t", "overlay", "-o", layers, "overlay", str(root), cwd=image)
        yield root
    finally:
        run("umount", "--recursive", str(directory))


PROJECT = ("azure_provisioning.py", "azure-provisioning.service")
INSTALL, GENERALIZE = readme.block("## Install it"), readme.block("### 4. Generalize")
NETWORK, HOST_KEYS = readme.block("### The network"), readme.block("### SSH host keys")
SSH_KEY = readme.block("### Azure's SSH key")
ALL = "\n".join([INSTALL, NETWORK, HOST_KEYS, SSH_KEY, GENERALIZE])


def install(root: Path) -> None:
    """Make the disk one of an image that has the project, as the README says."""
    run("chroot", str(root), "useradd", "--create-home", "builder")
    paste_for(root, f"user=builder\n{ALL}")


def paste_for(root: Path, blocks: str) -> None:
    """Run the README's blocks on a directory, and on nothing else of this machine."""
    root.mkdir(parents=True, exist_ok=True)
    only = 'mount --rbind "$1" "$1"; mount -o remount,bind,ro /; cd "$2"; root=$1; eval "$3"'
    arguments = (str(root), REPOSITORY, blocks)
    run("unshare", "--mount", "sh", "-euc", only, "sh", *arguments)


def in_checkout(root: Path, commands: str) -> None:
    """Run shell *commands* in a chroot of the disk, in the checkout's top directory."""
    mounts = 'mount --bind "$1" "$2/mnt"; mount -t proc proc "$2/proc"; mount -t tmpfs sys "$2/sys"'
    # The README's blocks change "/" only where it is Azure's.
    tag = f'mkdir -p "$2{DMI}"; echo {ASSET_TAG} >"$2{DMI}/chassis_asset_tag"'
    script = f'{mounts}; {tag}; exec chroot "$2" sh -euxc "cd /mnt; $3"'
    run(*APART, "sh", "-euc", script, "sh", REPOSITORY, str(root), commands)


def run(*command: str, cwd: Optional[Path] = None, pass_fds: Sequence[int] = ()) -> None:
    """Run a command; when it fails, tell what it printed."""
    done = subprocess.run(
        command, cwd=cwd, pass_fds=pass_fds, stdin=DEVNULL, stdout=PIPE, stderr=STDOUT, text=True
    )
    if done.returncode != 0:
        raise RuntimeError(f"{command} ended with {done.returncode}: {done.stdout}")
