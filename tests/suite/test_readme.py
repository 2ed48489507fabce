"""The README is true: what of it can be run without a boot; test_boots.py has the rest."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Dict, List, NamedTuple, Union

import pytest

from conftest import require, require_tools
from world import readme, sandbox
from world.host import Fault, SimulatedHost, Vm, body_fault, changed_body
from world.images import ASSET_TAG, DMI
from world.network import PLATFORM_ENDPOINTS, new_network

TEXT = Path(sandbox.REPOSITORY, "README.md").read_text()


def test_shell_blocks_have_no_syntax_error_and_others_are_text() -> None:
    require_tools("bash", "sh")
    for block in readme.blocks():
        if block.language != "text":
            subprocess.run([block.language, "-n", "-c", block.text], check=True)


def test_it_names_options_and_exit_statuses_that_the_help_has() -> None:
    command = [sys.executable, "-I", "-S", sandbox.SCRIPT, "--help"]
    said = subprocess.check_output(command, text=True)
    (options,) = re.findall(r"`sudo /usr/local/sbin/azure_provisioning\.py ([^`]+)`", TEXT)
    for option in re.findall("--[a-z-]+", options):
        assert option in said
    assert "exit status 1 (Ready was not accepted) or 3 (the name is not set)" in TEXT
    assert "  1    Ready was not accepted before" in said
    assert "  3    Ready was accepted, the host name is not set" in said


def test_links_within_the_page_lead_somewhere() -> None:
    prose = re.sub(r"^```.*?^```$", "", TEXT, flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ (.*)$", prose, re.MULTILINE)
    anchors = {re.sub(r"[^\w -]", "", one).lower().replace(" ", "-") for one in headings}
    assert set(re.findall(r"\]\(#([^)]*)\)", prose)) <= anchors


@pytest.mark.parametrize("file", ["azure_provisioning.py", "azure-provisioning.service"])
def test_what_travels_alone_names_its_licence(file: str) -> None:
    text = Path(sandbox.REPOSITORY, file).read_text()
    assert "# SPDX-License-Identifier: MIT\n" in text
    owner = "Copyright 2026 the azure-provisioning contributors\n"
    assert f"# {owner}" in text
    assert f"\n{owner}" in TEXT


def test_the_demo_prints_what_the_first_page_shows() -> None:
    varies = re.compile(r"^[0-9:]{8} |(?<=http://127\.0\.0\.1):[0-9]+", re.MULTILINE)
    command = [sys.executable, f"{sandbox.REPOSITORY}/tests/demo.py"]
    printed = subprocess.check_output(command, text=True)
    shown = readme.block("## See it run, and test it")
    assert varies.sub("", printed) == varies.sub("", shown)


# ---- Blocks that change a machine, pasted into a shell where one of their commands fails

SETTINGS = readme.block("### 1. Create the VM")
BUILDER = f"{SETTINGS}tree=/\n"  # what the root shell in the builder has
INSTALL = readme.block("### 3. Install")
# Directories that the blocks change, files that they expect, and all programs that they call.
CHANGED = ("etc", "home", "root", "usr/local", "usr/sbin", "var")
FILES = "etc/machine-id etc/hostname etc/systemd/system/ssh.service.d/host-keys.conf usr/sbin/sshd"
FILES += " home/builder/azure_provisioning.py home/builder/azure-provisioning.service"
PROGRAMS = "apt-get az cat chmod cloud-init find grep id install ln mkdir rm sed sh systemctl"
PROGRAMS += " truncate useradd"
# Counts the calls of all programs, and fails in the one whose number is in the file "fail".
STAND_IN = """\
#!/bin/sh
echo "${0##*/} $*" >>"$SCRATCH/calls"
number=$(/usr/bin/wc -l <"$SCRATCH/calls")
[ "$number" -ne "$(/bin/cat "$SCRATCH/fail")" ] || exit 1
case "${0##*/} $*" in
    "az group exists"*) echo false ;;
    "id builder") ;;
    id*) exit 1 ;;
    cat* | install* | mkdir*) PATH=/usr/bin:/bin; exec "${0##*/}" "$@" ;;
esac
"""
# All but the scratch directory is read-only, whatever a block may do.
PASTE = """\
mount --bind "$SCRATCH" "$SCRATCH"
for directory in etc home root usr/local usr/sbin var; do
    mount --bind "$SCRATCH/$directory" "/$directory"
done
mount -o remount,bind,ro / || [ -z "$ROOT" ]
cd "$SCRATCH/home/builder"
PATH="$SCRATCH/bin" exec "$1" "$SCRATCH/pasted"
"""
HARMLESS = "systemctl stop systemd-random-seed.service"
REMOVES = re.compile(r"^ *(rm|\$remove|find|az vm (deallocate|generalize)|az group delete)\b", re.M)


class Pasted(NamedTuple):
    out: str
    calls: List[str]
    changed: List[str]  # files that there are now, or that have another content


def snapshot(scratch: Path) -> Dict[str, bytes]:
    files = [path for name in (*CHANGED, "my-image") for path in (scratch / name).rglob("*")]
    return {str(file.relative_to(scratch)): file.read_bytes() for file in files if file.is_file()}


def paste(
    text: str, scratch: Path, program: str = "sh", fail: int = 0, lacks: str = "", refuses: str = ""
) -> Pasted:
    """Paste *text* where all programs are stand-ins; *lacks*, *refuses*: cannot have, or write."""
    files = [*FILES.split(), *(f"bin/{name}" for name in PROGRAMS.split())]
    for directory in CHANGED:
        (scratch / directory).mkdir(parents=True, exist_ok=True)
    for file in {*files} - {lacks}:
        (scratch / file).parent.mkdir(parents=True, exist_ok=True)
        (scratch / file).write_text(STAND_IN)
        (scratch / file).chmod(0o755)
    if refuses:
        Path(f"{scratch}{refuses}").unlink(missing_ok=True)
        Path(f"{scratch}{refuses}").mkdir(parents=True)
    (scratch / "calls").write_text("")
    (scratch / "fail").write_text(str(fail))
    (scratch / "pasted").write_text(f"{text}\necho The shell is open.\n")
    before = snapshot(scratch)
    command = ["unshare", "--mount", "/bin/sh", "-euc", PASTE, "sh", f"/bin/{program}"]
    env = {**os.environ, "SCRATCH": str(scratch)}
    done = subprocess.run(command, env=env, input="", capture_output=True, text=True, timeout=60)
    assert not re.search("not found|mount", done.stderr), done.stderr
    after = snapshot(scratch)
    changed = [name for name in {**before, **after} if before.get(name) != after.get(name)]
    return Pasted(done.stdout, (scratch / "calls").read_text().splitlines(), sorted(changed))


# Those in parentheses, each after what its shell has by then.
STOPPING = {
    "create": SETTINGS + readme.block("### 1. Create the VM", 1),
    "install": BUILDER + INSTALL,
    "from-scratch": INSTALL,
    "generalize": readme.block("### 4. Generalize"),
    "capture": SETTINGS + readme.block("### 5. Capture"),
}
ONLY_ON_AZURE = f"grep {ASSET_TAG} {DMI}/chassis_asset_tag"


@pytest.fixture
def scratch(isolated: None, tmp_path: Path) -> Path:
    require_tools("unshare", "bash")
    require(tmp_path.parts[1] not in CHANGED, "the scratch directory is in one that blocks change")
    return tmp_path


def test_what_removes_something_stops_at_its_first_error() -> None:
    removing = [one.text for one in readme.blocks() if REMOVES.search(one.text)]
    assert len(removing) == 3
    for text in removing:
        assert any(stopping.endswith(text) for stopping in STOPPING.values())


@pytest.mark.parametrize("program", ["bash", "sh"])
@pytest.mark.parametrize("name", STOPPING)
def test_a_pasted_block_stops_where_a_command_fails_and_leaves_the_shell_open(
    scratch: Path, name: str, program: str
) -> None:
    text = STOPPING[name]
    good = paste(text, scratch / "good", program)
    *_, said, still = good.out.splitlines()
    assert text.endswith(f"\necho '{said}'\n)\n")
    assert still == "The shell is open."
    assert (good.calls[0] == ONLY_ON_AZURE) == (name in ("install", "generalize"))
    tree = "/home/my-image/mkosi.extra" if name == "from-scratch" else ""
    where = {"units": f"{tree}/etc/systemd/system", "tree": tree, "": ""}
    written = re.findall(r'>"?\$?(units|tree|)(/[^."\s][^"\s]*)', text)
    attempts = [(number, "") for number in range(1, len(good.calls) + 1)]
    attempts += [(0, where[start] + file) for start, file in written]
    for attempt, (fail, refuses) in enumerate(attempts):
        bad = paste(text, scratch / str(attempt), program, fail=fail, refuses=refuses)
        if fail and good.calls[fail - 1] == HARMLESS:
            assert bad == good
            continue
        assert bad.calls == good.calls[: fail or len(bad.calls)], "it went on"
        assert bad.out.endswith("The shell is open.\n")
        assert said not in bad.out


def test_nothing_changes_where_the_user_for_azures_key_does_not_exist(scratch: Path) -> None:
    pasted = paste(f"{BUILDER}user=azureuser\n{INSTALL}", scratch)
    assert pasted == Pasted("The shell is open.\n", [ONLY_ON_AZURE, "id azureuser"], [])


def test_sshd_takes_azures_key_for_one_user_and_only_a_whole_one(scratch: Path) -> None:
    good = paste(BUILDER + INSTALL, scratch / "good")
    (fetch,) = [call for call in good.calls if call.endswith("azure-ssh-key.sh builder")]
    bad = paste(BUILDER + INSTALL, scratch / "bad", fail=good.calls.index(fetch) + 1)
    (file,) = {*good.changed} - {*bad.changed}
    text = (scratch / "good" / file).read_text()
    assert text == "Match User builder\nAuthorizedKeysFile /etc/ssh/azure_keys/%u\n"


def test_the_agents_may_be_gone_or_have_ended_with_warnings(scratch: Path) -> None:
    again = paste(BUILDER + INSTALL + INSTALL, scratch / "again", lacks="bin/cloud-init")
    assert again.out.count("All is installed.\n") == 2
    warned = paste(f"cloud-init() {{ return 2; }}\n{BUILDER}{INSTALL}", scratch / "warned", "bash")
    assert "All is installed.\n" in warned.out


def test_a_resource_group_that_is_there_already_is_left_alone(scratch: Path) -> None:
    pasted = paste("az() { echo true; }\n" + STOPPING["create"], scratch, "bash")
    assert pasted.out == "The shell is open.\n"


def test_no_ssh_host_key_is_removed_where_no_other_would_be_made(scratch: Path) -> None:
    lacks = "etc/systemd/system/ssh.service.d/host-keys.conf"
    pasted = paste(readme.block("### 4. Generalize"), scratch, lacks=lacks)
    assert pasted == Pasted("The shell is open.\n", [ONLY_ON_AZURE], [])


def test_from_scratch_it_changes_nothing_but_the_directory_of_the_image(scratch: Path) -> None:
    made = paste(INSTALL, scratch / "made")
    assert {call.split()[0] for call in made.calls} == {"cat", "chmod", "install", "ln", "mkdir"}
    assert [name for name in made.changed if not name.startswith("home/my-image/")] == []
    assert "home/my-image/mkosi.extra/usr/local/sbin/azure_provisioning.py" in made.changed
    script = (scratch / "made/home/my-image/mkosi.postinst.chroot").read_text()
    assert paste(script, scratch / "workstation") == Pasted("", [], []), "it must refuse"
    copied = "mkdir -p /usr/local/sbin; install azure_provisioning.py /usr/local/sbin/\n"
    units = "azure-provisioning azure-ssh-key systemd-networkd systemd-networkd-wait-online"
    called = ["id builder", f"systemctl enable {units}", "rm -f /etc/ssh/ssh_host_*"]
    assert paste(copied + script, scratch / "image").calls[2:] == called


# ---- The SSH key from IMDS

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIBvkvG7hEr4nWl2g/iKw9/uXN1WvRb5TylHIbawTbkyu me@home"
OLD_KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIIWnYJkdh1bv2NYQK3kYS552CnB3c0CCLi1eE5plHM+Z old"


def get_key(directory: Path) -> bool:
    """Run the README's script, with a directory of the test's in place of /etc/ssh."""
    require_tools("curl", "ssh-keygen", "sync")
    (text,) = re.findall("azure-ssh-key[.]sh\" <<'EOF'\n(.*?)^EOF$", INSTALL, re.M | re.DOTALL)
    assert text.count("/etc/ssh/") == 2
    (shell,) = re.findall("^ExecStart=(/bin/sh -eu) ", INSTALL, re.MULTILINE)
    command = [*shell.split(), "-c", text.replace("/etc/ssh/", f"{directory}/"), "sh", "builder"]
    env = {**os.environ, "http_proxy": "http://127.0.0.1:1"}
    return subprocess.run(command, env=env, capture_output=True, umask=0o022).returncode == 0


@pytest.mark.parametrize("key", [KEY, f"{KEY}\n", KEY.replace("AAAAI", "AAAAI\r\n") + "\r\n"])
def test_the_key_becomes_one_line_that_only_its_owner_can_write(
    isolated: None, tmp_path: Path, key: str
) -> None:
    vm = Vm(public_keys=(key, OLD_KEY))
    with new_network(), SimulatedHost(vm, *PLATFORM_ENDPOINTS):
        assert get_key(tmp_path)
    file = tmp_path / "azure_keys/builder"
    assert file.read_text() == f"{KEY}\n"
    assert [one.stat().st_mode & 0o777 for one in (file, file.parent)] == [0o644, 0o755]
    assert os.listdir(file.parent) == ["builder"]


NO_KEY: Dict[str, Union[str, Fault]] = {
    "none": "",
    "ill": "503",
    "cut-short": "truncated",
    "error-page": body_fault(b"<html><body>Please wait</body></html>", "text/html"),
    "empty": body_fault(b""),
    "half-a-key": changed_body(lambda body: body[:50]),
    "no-key-but-a-command": body_fault(b"$(touch pwned); touch pwned"),
}


@pytest.mark.parametrize("fault", NO_KEY.values(), ids=NO_KEY.keys())
def test_without_a_whole_key_nothing_changes(
    isolated: None, tmp_path: Path, fault: Union[str, Fault]
) -> None:
    vm = Vm(public_keys=(KEY,) if fault else ())
    file = tmp_path / "azure_keys/builder"
    with new_network(), SimulatedHost(vm, *PLATFORM_ENDPOINTS) as host:
        if fault:
            host.misbehave("public-key", fault)
        assert not get_key(tmp_path)
        assert not file.exists()
        file.write_text(f"{OLD_KEY}\n")
        assert not get_key(tmp_path)
        assert file.read_text() == f"{OLD_KEY}\n"
        assert len(host.requests) == 2
    assert not list(Path.cwd().glob("pwned"))


# ---- The shell client


BY_HAND = ["sh", "-c", readme.block("## The platform by hand")]


def test_the_platform_by_hand_reports_ready_and_shows_the_name(
    platform_host: SimulatedHost,
) -> None:
    require_tools("curl", "grep", "sed", "tr")
    vm = platform_host.vm = platform_host.vm._replace(container_id="a & <b>")
    other = b"<RoleInstance><InstanceId>other</InstanceId></RoleInstance></RoleInstanceList>"
    add = changed_body(lambda body: body.replace(b"</RoleInstanceList>", other))
    platform_host.misbehave("goalstate", add)
    out = subprocess.run(BY_HAND, stdout=subprocess.PIPE, text=True, check=True).stdout
    assert len(platform_host.accepted) == 1
    assert out.splitlines()[1:] == ["Health report: 200", vm.computer_name]


WITHOUT_INSTANCE = changed_body(lambda body: body.replace(b"InstanceId>", b"Other>"))


@pytest.mark.parametrize(
    "endpoint, fault, requests",
    [
        ("goalstate", "503", 1),
        ("goalstate", WITHOUT_INSTANCE, 1),
        ("health", "503", 2),
        ("computer-name", "503", 3),
    ],
)
def test_the_platform_by_hand_ends_at_the_first_error(
    platform_host: SimulatedHost, endpoint: str, fault: Union[str, Fault], requests: int
) -> None:
    require_tools("curl", "grep", "sed", "tr")
    platform_host.misbehave(endpoint, fault)
    assert subprocess.run(BY_HAND, check=False).returncode != 0
    assert len(platform_host.requests) == requests
