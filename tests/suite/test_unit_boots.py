"""Accidents of the machine, as an image builder makes them, and the unit under a real systemd.

All of them share one boot: its witness makes each, starts the unit again, and tells.
"""

import shlex
from pathlib import Path
from typing import NamedTuple

import test_boots
from test_boots import UNIT, add_drop_in, each_release, good_end, write
from world.boot import WITNESS, boot_container
from world.host import SimulatedHost

installed, root, host = test_boots.installed, test_boots.root, test_boots.host

# Each starts with the unit enabled and the machine called localhost, and must be seen to be there.
PRELUDE = r"""
set -eu
fails() { if "$@" 2>/dev/null; then exit 1; fi; }

begin() {
    stored=/etc/hostname
    echo localhost >/etc/hostname
    hostname localhost
    systemctl reset-failed
    systemctl --quiet enable azure-provisioning.service
}
try() {
    systemctl start azure-provisioning.service || true
    for property in Result ExecMainStatus UnitFileState; do
        set -- "$@" "$(systemctl show --value --property=$property azure-provisioning.service)"
    done
    echo "$@" "$(cat /proc/sys/kernel/hostname) $(cat $stored)"
}
"""
AFTER_THE_BOOT = "systemctl is-system-running --wait; sh /accidents.sh >/accidents"


class Accident(NamedTuple):
    happens: str  # shell commands
    is_over: str
    ends: str = "success 0 disabled myvm myvm"


SCRIPT = "/usr/local/sbin/azure_provisioning.py"
# A kernel does not execute what may get a capability that the unit may not.
CAP_NET_BIND_SERVICE = "0100000200040000000000000000000000000000"  # =ep
XATTR, CAPABILITY = 'python3 -c "import os; os', "'/usr/bin/python3', 'security.capability'"
LINK = "stored=/var/lib/hostname; rm -f $stored; ln -sf $stored /etc/hostname"
UNLINK = "rm /etc/hostname"
ACCIDENTS = {
    "/tmp is read-only": Accident(
        "mount -t tmpfs -o ro tmpfs /tmp; fails touch /tmp/file", "umount /tmp"
    ),
    "/home is a FUSE mount whose server is dead": Accident(
        """
        exec 3<>/dev/fuse
        mount -i -t fuse -o fd=3,rootmode=40000,user_id=0,group_id=0 dead /home
        exec 3<&-; fails ls /home""",
        "umount /home",
    ),
    "/run has no free inode": Accident(
        """
        inodes=$(stat -f -c %c /run)
        mount -o remount,nr_inodes=$((inodes - $(stat -f -c %d /run))) /run
        fails touch /run/file""",
        "mount -o remount,nr_inodes=$inodes /run",
    ),
    "/etc is read-only": Accident(
        "mount -t overlay -o lowerdir=/srv:/etc overlay /etc; fails touch /etc/file",
        "umount --lazy /etc",
        ends="exit-code 3 enabled myvm localhost",
    ),
    "script and directories are another user's": Accident(
        f"chown 1000 / /etc /usr/local/sbin {SCRIPT}; chmod 700 /etc /usr/local/sbin {SCRIPT}",
        f"chown 0 / /etc /usr/local/sbin {SCRIPT}; chmod 755 /etc /usr/local/sbin {SCRIPT}",
    ),
    "python3 has a file capability": Accident(
        f"{XATTR}.setxattr({CAPABILITY}, bytes.fromhex('{CAP_NET_BIND_SERVICE}'))\"",
        f'{XATTR}.removexattr({CAPABILITY})"',
    ),
    "python3 is a wrapper": Accident(
        r"""
        python=$(readlink -f /usr/bin/python3)
        rm /usr/bin/python3
        echo "#!/bin/sh\nexec ionice -c 3 setarch -R unshare -m chroot / $python \"\$@\"" >/wrapper
        install -m 755 /wrapper /usr/bin/python3
        """,
        "ln -sf $python /usr/bin/python3",
    ),
    "a file that is made is for its owner only": Accident(
        """
        rm /etc/hostname
        mkdir /run/systemd/system/azure-provisioning.service.d
        echo '[Service]\nUMask=077' >/run/systemd/system/azure-provisioning.service.d/umask.conf
        systemctl daemon-reload
        """,
        """
        [ "$(stat -c %a /etc/hostname)" = 644 ]
        rm -r /run/systemd/system/azure-provisioning.service.d
        systemctl daemon-reload
        """,
    ),
    "/etc/hostname may not be written": Accident("chmod 444 /etc/hostname", ""),
    "/etc/hostname is another user's": Accident(
        "chown 1000 /etc/hostname; chmod 600 /etc/hostname", UNLINK
    ),
    "/etc/hostname is a bind mount": Accident(
        "touch /bound; mount --bind /bound /etc/hostname", "umount /etc/hostname"
    ),
    "/etc/hostname is a link to a file that lasts": Accident(f"{LINK}; touch $stored", UNLINK),
    "/etc/hostname is a link that each boot makes anew": Accident(LINK, UNLINK),
    "none": Accident("", ""),
}


@each_release
def test_unit_reports_ready_and_sets_the_name_after_each_accident_of_the_machine(
    root: Path, host: SimulatedHost
) -> None:
    accidents = [PRELUDE]
    for name, one in ACCIDENTS.items():
        accidents += ["begin", one.happens, f"try {shlex.quote(name + ':')}", one.is_over]
    write(
        root,
        "accidents.sh",
        "\n".join([*accidents, f"systemd-analyze --man=no verify {UNIT} 2>&1"]),
    )
    write(root, "witness.sh", f"{AFTER_THE_BOOT}\n{WITNESS}")
    add_drop_in(root, "[Service]\nTimeoutStartSec=20\n")  # none may take minutes
    report = boot_container(root, "--bind=/dev/fuse")
    told = (root / "accidents").read_text().splitlines()
    assert told == [f"{name}: {one.ends}" for name, one in ACCIDENTS.items()]
    assert len(host.accepted) == len(ACCIDENTS) + 1, "the first boot, and each once"
    assert report._replace(journal=[]) == good_end("myvm", [])
