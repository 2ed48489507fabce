"""The README is true: what of it can be run without a boot; test_readme_boots.py has the rest."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple, Union

import pytest

from conftest import require, require_tools
from world import readme, sandbox
from world.host import Fault, SimulatedHost, Vm, body_fault, changed_body
from world.images import ASSET_TAG, DMI, GENERALIZE, HOST_KEYS, INSTALL, NETWORK, PROJECT, SSH_KEY

TEXT = Path(sandbox.REPOSITORY, "README.md").read_text()
WORDS = " ".join(TEXT.split())


def test_readme_and_its_shell_blocks_are_short() -> None:
    assert len(TEXT.splitlines()) <= 450
    assert len(TEXT.split()) <= 4000
    assert max(one.text.count("\n") for one in readme.blocks() if "sh" in one.language) <= 25


def test_readme_names_options_and_exit_statuses_that_the_help_has() -> None:
    command = [sys.executable, "-I", "-S", sandbox.SCRIPT, "--help"]
    said = subprocess.check_output(command, text=True)
    (options,) = re.findall(r"`sudo /usr/local/sbin/azure_provisioning\.py ([^`]+)`", WORDS)
    for option in re.findall("--[a-z-]+", options):
        assert option in said
    assert "exit status 1 (Ready was not accepted) or 3 (the name is not set)" in WORDS
    assert "  1    Ready was not accepted " in said
    assert "  3    Ready was accepted, the host name is not set" in said


def test_readme_links_to_headings_that_it_has() -> None:
    prose = re.sub(r"^```.*?^```$", "", TEXT, flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ (.*)$", prose, re.MULTILINE)
    anchors = {re.sub(r"[^\w -]", "", one).lower().replace(" ", "-") for one in headings}
    assert set(re.findall(r"\]\(#([^)]*)\)", prose)) <= anchors


@pytest.mark.parametrize("file", PROJECT)
def test_readme_has_the_licence_that_a_file_names_when_it_travels_alone(file: str) -> None:
    owner = "Copyright 2026 the azure-provisioning contributors\n"
    assert f"\n{owner}" in TEXT
    names = f"# SPDX-License-Identifier: MIT\n# {owner}"
    assert names in Path(sandbox.REPOSITORY, file).read_text()


def test_readme_shows_how_the_demo_begins() -> None:
    port = re.compile(r"(?<=http://127\.0\.0\.1):[0-9]+")
    command = [sys.executable, f"{sandbox.REPOSITORY}/tests/demo.py"]
    printed = subprocess.check_output(command, text=True)
    shown = readme.block("## See it run, and test it")
    assert port.sub("", printed).startswith(port.sub("", shown))


# ---- Blocks that change something, pasted into a shell where one of their commands fails

SETTINGS = readme.block("### 1. Create the VM")
# Directories that the blocks change in a VM. All but the scratch directory is read-only, whatever a
# block may do.
CHANGED = "etc home root usr/local usr/sbin var"
PASTE = f"""\
mount --bind "$SCRATCH" "$SCRATCH"
for directory in {CHANGED}; do mount --bind "$SCRATCH/vm/$directory" "/$directory"; done
mount -o remount,bind,ro / || [ -z "$ROOT" ]
cd "$SCRATCH/checkout"
PATH= exec /bin/bash "$SCRATCH/pasted"
"""
# Functions for all programs that the blocks call; the call with the number $FAIL fails.
STAND_INS = """\
call() {
    echo "$*" >>"$SCRATCH/calls"
    [ "$(PATH=/usr/bin:/bin wc -l <"$SCRATCH/calls")" -ne "$FAIL" ] || return 1
    case "$*" in
        "az group exists"*) echo false ;;
        *7783-*) ;;
        cat* | grep* | install* | ln* | mkdir*) PATH=/usr/bin:/bin command "$@" ;;
    esac
}
for name in apt-get az cat cloud-init find grep install ln mkdir rm sed sh systemctl truncate; do
    eval "$name() { call $name \\"\\$@\\"; }"
done
"""
HARMLESS = "systemctl stop systemd-random-seed.service"
# What $root is: the VM itself, a root file system, or what an image builder copies over one.
ROOTS = ("/", "../tree", "../overlay")


class Pasted(NamedTuple):
    out: str
    err: str
    calls: list[str]
    files: dict[str, str]  # that there are now, or that have another content


def look(scratch: Path) -> dict[str, str]:
    files = [path for name in ("vm", "tree", "overlay") for path in (scratch / name).rglob("*")]
    return {str(file.relative_to(scratch)): file.read_text() for file in files if file.is_file()}


def paste(text: str, scratch: Path, fail: int = 0, refuses: str = "") -> Pasted:
    """Paste *text* where all programs are stand-ins, and one file cannot be written."""
    files = {"calls": "", "pasted": f"{STAND_INS}{text}\necho The shell is open.\n"}
    files.update({f"{root}/etc/passwd": "builder:x:1000:\n" for root in ("vm", "tree")})
    files.update({f"checkout/{name}": name for name in PROJECT})
    names = [*CHANGED.split(), "var/log"]
    directories = [f"{root}/{name}" for root in ("vm", "tree") for name in names]
    for directory in [*directories, "checkout", *refuses.splitlines()]:
        (scratch / directory).mkdir(parents=True, exist_ok=True)
    for file, content in files.items():
        (scratch / file).write_text(content)
    before = look(scratch)
    command = ["unshare", "--mount", "/bin/sh", "-euc", PASTE]
    env = {**os.environ, "SCRATCH": str(scratch), "FAIL": str(fail)}
    done = subprocess.run(command, env=env, input="", capture_output=True, text=True, timeout=60)
    assert not re.search("not found|mount", done.stderr), done.stderr
    changed = {name: text for name, text in look(scratch).items() if before.get(name) != text}
    return Pasted(done.stdout, done.stderr, (scratch / "calls").read_text().splitlines(), changed)


IN_IMAGE = [INSTALL, NETWORK, HOST_KEYS, SSH_KEY, GENERALIZE]
CREATE = SETTINGS + readme.block("### 1. Create the VM", 1)
REMOVE_AGENTS = SETTINGS + readme.block("### 3. Install")
CAPTURE = SETTINGS + readme.block("### 5. Capture")
# Each after what its shell has by then.
STOPPING = [f"root={root} user=builder\n{text}" for text in IN_IMAGE for root in ROOTS]
STOPPING.remove(f"root={ROOTS[-1]} user=builder\n{GENERALIZE}")  # there is nothing in it
STOPPING += [CREATE, REMOVE_AGENTS, CAPTURE]


@pytest.fixture
def scratch(isolated: None, tmp_path: Path) -> Path:
    require_tools("unshare", "bash")
    require(
        tmp_path.parts[1] not in CHANGED.split(),
        "the scratch directory is in one that blocks change",
    )
    return tmp_path


def test_block_that_makes_or_removes_something_is_among_those_that_stop() -> None:
    for block in readme.blocks():
        if re.search(r"^ *(rm|install|az group|az vm generalize)\b", block.text, re.M):
            assert any(block.text in text for text in STOPPING)


@pytest.mark.parametrize("text", STOPPING)
def test_block_stops_where_a_command_fails_and_can_be_pasted_again(
    scratch: Path, text: str
) -> None:
    good = paste(text, scratch / "good")
    said, still = end = good.out.splitlines()[-2:]
    assert text.splitlines()[-1].startswith("echo ")
    assert still == "The shell is open."
    again = paste(text, scratch / "good")
    assert (again.out, again.files) == (good.out, {}), "pasted twice it does something else"
    for number, call in enumerate(good.calls, 1):  # each over what the ones before have left
        bad = paste(text, scratch / "bad", fail=number)
        if call == HARMLESS:
            assert bad.out == good.out
            continue
        assert bad.calls == good.calls[:number], "it went on"
        assert (bad.out.splitlines()[-1], said in bad.out) == (still, False)
    assert paste(text, scratch / "bad").out.splitlines()[-2:] == end
    assert look(scratch / "bad") == look(scratch / "good")
    for file in good.files:
        bad = paste(text, scratch / f"no-{Path(file).name}", refuses=file)
        assert (bad.out.splitlines()[-1], said in bad.out) == (still, False)


@pytest.mark.parametrize("text", IN_IMAGE)
def test_block_for_an_image_says_why_it_stops_where_root_is_not_right(
    scratch: Path, text: str
) -> None:
    unset = paste(f"user=builder\n{text}", scratch / "unset")
    assert "root: is not set: / in the VM, else a directory\n" in unset.err
    here = paste(f"root=/. user=builder\n{text}", scratch / "here", fail=1)
    assert here.err == "root is /, and this is not Azure: set another\n"
    assert here.calls == [f"grep {ASSET_TAG} {DMI}/chassis_asset_tag"]
    for pasted in (unset, here):
        assert (pasted.out, pasted.files) == ("The shell is open.\n", {})


def test_block_for_the_ssh_key_wants_a_user_who_exists_and_a_first_fetch(scratch: Path) -> None:
    pasted = paste(f"root=../tree user=azureuser\n{SSH_KEY}", scratch / "user")
    assert pasted.err == "../tree/etc/passwd has no azureuser: make that user, or set another one\n"
    assert pasted.files == {}
    pasted = paste(f"sh() {{ return 1; }}\nroot=/ user=builder\n{SSH_KEY}", scratch / "key")
    assert list(pasted.files) == ["vm/usr/local/lib/azure-ssh-key.sh"]


def test_block_that_installs_the_unit_takes_a_path_with_dots(tmp_path: Path) -> None:
    """As for mkosi; systemctl's own --root= does not, from systemd 252 on."""
    require_tools("systemctl")
    for name in ("image", "checkout"):
        (tmp_path / name).mkdir()
    for name in PROJECT:
        shutil.copy(Path(sandbox.REPOSITORY, name), tmp_path / "checkout")
    block = ["sh", "-c", f"root=../image\n{INSTALL}"]
    subprocess.run(block, cwd=tmp_path / "checkout", check=True)
    wanted = tmp_path / "image/etc/systemd/system/multi-user.target.wants"
    assert (wanted / PROJECT[1]).is_symlink()


def test_block_that_removes_the_agents_lets_them_have_warnings(scratch: Path) -> None:
    warned = paste(f"cloud-init() {{ return 2; }}\n{REMOVE_AGENTS}", scratch)
    assert "The agents are removed.\n" in warned.out


def test_block_that_creates_the_vm_leaves_a_group_alone_that_is_there(scratch: Path) -> None:
    pasted = paste(f"az() {{ echo true; }}\n{CREATE}", scratch)
    assert pasted.out == "The shell is open.\n"
    assert "az group delete --name builder\n" in pasted.err


def test_block_that_generalizes_leaves_host_keys_where_none_would_be_made(scratch: Path) -> None:
    (scratch / "tree/usr/sbin").mkdir(parents=True)
    (scratch / "tree/usr/sbin/sshd").touch()
    pasted = paste(f"root=../tree\n{GENERALIZE}", scratch)
    assert pasted.err == 'sshd would have no host keys: paste "SSH host keys" first\n'
    assert (pasted.calls, pasted.files) == ([], {})


# ---- The SSH key from IMDS

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIBvkvG7hEr4nWl2g/iKw9/uXN1WvRb5TylHIbawTbkyu me@home"
OTHER_KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIIWnYJkdh1bv2NYQK3kYS552CnB3c0CCLi1eE5plHM+Z old"
BROKEN_KEY = KEY.replace("AAAAI", "AAAAI\r\n") + "\r\n"


def get_key(directory: Path) -> "subprocess.CompletedProcess[str]":
    """Run the README's script as sshd would, with a directory of the test's as /etc/ssh."""
    require_tools("awk", "curl", "ssh-keygen", "sync")
    (text,) = re.findall("azure-ssh-key[.]sh\" <<'EOF'\n(.*?)^EOF$", SSH_KEY, re.M | re.DOTALL)
    assert text.count("/etc/ssh/") == 2
    (shell,) = re.findall("AuthorizedKeysCommand (/bin/sh -eu) ", SSH_KEY)
    command = [*shell.split(), "-c", text.replace("/etc/ssh/", f"{directory}/"), "sh", "builder"]
    env = {**os.environ, "http_proxy": "http://127.0.0.1:1"}
    return subprocess.run(command, env=env, stdout=subprocess.PIPE, text=True, umask=0o022)


@pytest.mark.parametrize(
    "keys",
    [KEY, f"{KEY}\n", BROKEN_KEY, f"{KEY}\n{OTHER_KEY}\n", f"{BROKEN_KEY}{OTHER_KEY}\r\n"],
    ids=["one", "line-end", "broken", "several", "several-broken"],
)
def test_ssh_key_is_the_first_in_one_line_and_is_kept(
    platform_host: SimulatedHost, tmp_path: Path, keys: str
) -> None:
    platform_host.vm = Vm(public_keys=(keys, OTHER_KEY))
    assert get_key(tmp_path).stdout == f"{KEY}\n"
    assert get_key(tmp_path).stdout == f"{KEY}\n"
    assert len(platform_host.requests) == 1
    file = tmp_path / "azure_keys/builder"
    assert file.read_text() == f"{KEY}\n"
    assert [one.stat().st_mode & 0o777 for one in (file, file.parent)] == [0o644, 0o755]
    assert os.listdir(file.parent) == ["builder"]


CERTIFICATE = b"-----BEGIN CERTIFICATE-----\r\nMIIDXTCC\r\n-----END CERTIFICATE-----\r\n"
NO_KEY: dict[str, Union[str, Fault]] = {
    "none": "404",
    "cut-short": "truncated",
    "half-a-key": changed_body(lambda body: body[:50]),
    "x509": body_fault(CERTIFICATE),
    "no-key-but-a-command": body_fault(b"$(touch pwned); touch pwned"),
}


@pytest.mark.parametrize("fault", NO_KEY.values(), ids=NO_KEY.keys())
def test_ssh_key_that_is_not_whole_is_not_kept(
    platform_host: SimulatedHost, tmp_path: Path, fault: Union[str, Fault]
) -> None:
    platform_host.vm = Vm(public_keys=(KEY,))
    platform_host.misbehave("public-key", fault)
    done = get_key(tmp_path)
    assert (done.returncode != 0, done.stdout) == (True, "")
    assert not (tmp_path / "azure_keys/builder").exists()
    assert not list(Path.cwd().glob("pwned"))


# ---- The shell client


def run_by_hand() -> "subprocess.CompletedProcess[str]":
    require_tools("curl", "grep", "sed", "tr")
    command = ["sh", "-c", readme.block("## The platform by hand")]
    return subprocess.run(command, stdout=subprocess.PIPE, text=True)


def test_block_for_the_platform_by_hand_reports_ready_and_shows_the_name(
    platform_host: SimulatedHost,
) -> None:
    vm = platform_host.vm = Vm(container_id="a & <b>")
    other = b"<RoleInstance><InstanceId>other</InstanceId></RoleInstance></RoleInstanceList>"
    add = changed_body(lambda body: body.replace(b"</RoleInstanceList>", other))
    platform_host.misbehave("goalstate", add)
    done = run_by_hand()
    said = done.stdout.splitlines()[1:]
    assert (done.returncode, said) == (0, ["Health report: 200", vm.computer_name])
    assert len(platform_host.accepted) == 1


WITHOUT_INSTANCE = changed_body(lambda body: body.replace(b"InstanceId>", b"Other>"))


@pytest.mark.parametrize(
    "endpoint, fault, requests",
    [("goalstate", WITHOUT_INSTANCE, 1), ("health", "503", 2), ("computer-name", "503", 3)],
)
def test_block_for_the_platform_by_hand_ends_at_the_first_error(
    platform_host: SimulatedHost, endpoint: str, fault: Union[str, Fault], requests: int
) -> None:
    platform_host.misbehave(endpoint, fault)
    assert run_by_hand().returncode != 0
    assert len(platform_host.requests) == requests
