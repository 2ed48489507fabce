"""The README is true: what of it can be run without a boot; test_readme_boots.py has the rest."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple, Union

import pytest

from conftest import require, require_tools
from world import readme, sandbox
from world.host import Fault, SimulatedHost, Vm, body_fault, changed_body
from world.images import ASSET_TAG, DMI, GENERALIZE, HOST_KEYS, INSTALL, NETWORK, PROJECT, SSH_KEY
from world.network import PLATFORM_ENDPOINTS, new_network

TEXT = Path(sandbox.REPOSITORY, "README.md").read_text()
WORDS = " ".join(TEXT.split())


def test_it_and_its_shell_blocks_are_short() -> None:
    assert len(TEXT.splitlines()) <= 450
    assert len(TEXT.split()) <= 4000
    assert max(one.text.count("\n") for one in readme.blocks() if "sh" in one.language) <= 25


def test_shell_blocks_have_no_syntax_error() -> None:
    require_tools("bash", "sh")
    assert {one.language for one in readme.blocks()} == {"bash", "ini", "sh", "text"}
    for block in readme.blocks():
        if block.language in ("bash", "sh"):
            subprocess.run([block.language, "-n", "-c", block.text], check=True)


def test_it_names_options_and_exit_statuses_that_the_help_has() -> None:
    command = [sys.executable, "-I", "-S", sandbox.SCRIPT, "--help"]
    said = subprocess.check_output(command, text=True)
    (options,) = re.findall(r"`sudo /usr/local/sbin/azure_provisioning\.py ([^`]+)`", WORDS)
    for option in re.findall("--[a-z-]+", options):
        assert option in said
    assert "exit status 1 (Ready was not accepted) or 3 (the name is not set)" in WORDS
    assert "  1    Ready was not accepted " in said
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


def test_the_demo_begins_as_the_first_page_shows() -> None:
    port = re.compile(r"(?<=http://127\.0\.0\.1):[0-9]+")
    command = [sys.executable, f"{sandbox.REPOSITORY}/tests/demo.py"]
    printed = subprocess.check_output(command, text=True)
    shown = readme.block("## See it run, and test it")
    assert port.sub("", printed).startswith(port.sub("", shown))


# ---- Blocks that change something, pasted into a shell where one of their commands fails

SETTINGS = readme.block("### 1. Create the VM")
# Directories that the blocks change in a VM, and all programs that they call.
CHANGED = ("etc", "home", "root", "usr/local", "usr/sbin", "var")
PROGRAMS = "apt-get az cat cloud-init find grep install ln mkdir rm sed sh systemctl truncate"
# Counts the calls of all programs, and fails in the one whose number is in the file "fail".
STAND_IN = """\
#!/bin/sh
echo "${0##*/} $*" >>"$SCRATCH/calls"
number=$(/usr/bin/wc -l <"$SCRATCH/calls")
[ "$number" -ne "$(/bin/cat "$SCRATCH/fail")" ] || exit 1
case "${0##*/} $*" in
    "az group exists"*) echo false ;;
    *7783-*) ;;
    cat* | grep* | install* | ln* | mkdir*) PATH=/usr/bin:/bin; exec "${0##*/}" "$@" ;;
esac
"""
# All but the scratch directory is read-only, whatever a block may do.
PASTE = """\
mount --bind "$SCRATCH" "$SCRATCH"
for directory in etc home root usr/local usr/sbin var; do
    mount --bind "$SCRATCH/vm/$directory" "/$directory"
done
mount -o remount,bind,ro / || [ -z "$ROOT" ]
cd "$SCRATCH/checkout"
PATH="$SCRATCH/bin" exec "$1" "$SCRATCH/pasted"
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


def paste(
    text: str, scratch: Path, program: str = "sh", fail: int = 0, refuses: str = ""
) -> Pasted:
    """Paste *text* where all programs are stand-ins, and one file cannot be written."""
    files = {f"bin/{name}": STAND_IN for name in PROGRAMS.split()}
    files.update({f"{root}/etc/passwd": "builder:x:1000:\n" for root in ("vm", "tree")})
    files.update({f"checkout/{name}": name for name in PROJECT})
    files.update({"calls": "", "fail": str(fail), "pasted": f"{text}\necho The shell is open.\n"})
    directories = [f"{root}/{name}" for name in (*CHANGED, "var/log") for root in ("vm", "tree")]
    for directory in [*directories, "bin", "checkout", *([refuses] if refuses else [])]:
        (scratch / directory).mkdir(parents=True, exist_ok=True)
    for file, content in files.items():
        (scratch / file).write_text(content)
        (scratch / file).chmod(0o755)
    before = look(scratch)
    command = ["unshare", "--mount", "/bin/sh", "-euc", PASTE, "sh", f"/bin/{program}"]
    env = {**os.environ, "SCRATCH": str(scratch)}
    done = subprocess.run(command, env=env, input="", capture_output=True, text=True, timeout=60)
    assert not re.search("not found|mount", done.stderr), done.stderr
    changed = {name: text for name, text in look(scratch).items() if before.get(name) != text}
    return Pasted(done.stdout, done.stderr, (scratch / "calls").read_text().splitlines(), changed)


IN_IMAGE = [INSTALL, NETWORK, HOST_KEYS, SSH_KEY, GENERALIZE]
# Each after what its shell has by then.
STOPPING = [
    (f"root={root} user=builder\n{text}", "bash" if root == "/" else "sh")
    for text in IN_IMAGE
    for root in ROOTS
    if (text, root) != (GENERALIZE, ROOTS[-1])  # there is nothing in it
]
CREATE = SETTINGS + readme.block("### 1. Create the VM", 1)
REMOVE_AGENTS = SETTINGS + readme.block("### 3. Install")
CAPTURE = SETTINGS + readme.block("### 5. Capture")
STOPPING += [(text, "bash") for text in (CREATE, REMOVE_AGENTS, CAPTURE)]


@pytest.fixture
def scratch(isolated: None, tmp_path: Path) -> Path:
    require_tools("unshare", "bash")
    require(tmp_path.parts[1] not in CHANGED, "the scratch directory is in one that blocks change")
    return tmp_path


def test_what_makes_or_removes_something_stops_where_a_command_fails() -> None:
    pasted = "".join(text for text, _ in STOPPING)
    for block in readme.blocks():
        if re.search(r"^ *(rm|install|az group|az vm generalize)\b", block.text, re.M):
            assert block.text in pasted


@pytest.mark.parametrize("text, program", STOPPING)
def test_a_pasted_block_stops_where_a_command_fails_and_can_be_pasted_again(
    scratch: Path, text: str, program: str
) -> None:
    good = paste(text, scratch / "good", program)
    said, still = end = good.out.splitlines()[-2:]
    assert text.splitlines()[-1].startswith("echo ")
    assert still == "The shell is open."
    again = paste(text, scratch / "good", program)
    assert (again.out, again.files) == (good.out, {}), "pasted twice it does something else"
    for number, call in enumerate(good.calls, 1):  # each over what the ones before have left
        bad = paste(text, scratch / "bad", program, fail=number)
        if call == HARMLESS:
            assert bad.out == good.out
            continue
        assert bad.calls == good.calls[:number], "it went on"
        assert (bad.out.splitlines()[-1], said in bad.out) == (still, False)
    assert paste(text, scratch / "bad", program).out.splitlines()[-2:] == end
    assert look(scratch / "bad") == look(scratch / "good")
    for file in good.files:
        bad = paste(text, scratch / f"no-{Path(file).name}", program, refuses=file)
        assert (bad.out.splitlines()[-1], said in bad.out) == (still, False)


@pytest.mark.parametrize("text", IN_IMAGE)
def test_a_block_for_an_image_says_why_it_stops_where_root_is_not_right(
    scratch: Path, text: str
) -> None:
    unset = paste(f"user=builder\n{text}", scratch / "unset", "bash")
    assert "root: is not set: / in the VM, else a directory\n" in unset.err
    here = paste(f"root=/. user=builder\n{text}", scratch / "here", fail=1)
    assert here.err == "root is /, and this is not Azure: set another\n"
    assert here.calls == [f"grep {ASSET_TAG} {DMI}/chassis_asset_tag"]
    for pasted in (unset, here):
        assert (pasted.out, pasted.files) == ("The shell is open.\n", {})


def test_sshd_takes_azures_key_only_for_a_user_who_exists_and_after_a_first_fetch(
    scratch: Path,
) -> None:
    pasted = paste(f"root=../tree user=azureuser\n{SSH_KEY}", scratch / "user")
    assert pasted.err == "../tree/etc/passwd has no azureuser: make that user, or set another one\n"
    assert pasted.files == {}
    pasted = paste(f"sh() {{ return 1; }}\nroot=/ user=builder\n{SSH_KEY}", scratch / "key", "bash")
    assert list(pasted.files) == ["vm/usr/local/lib/azure-ssh-key.sh"]


def test_the_agents_may_have_ended_with_warnings(scratch: Path) -> None:
    warned = paste(f"cloud-init() {{ return 2; }}\n{REMOVE_AGENTS}", scratch, "bash")
    assert "The agents are removed.\n" in warned.out


def test_a_resource_group_that_is_there_already_is_left_alone(scratch: Path) -> None:
    pasted = paste(f"az() {{ echo true; }}\n{CREATE}", scratch, "bash")
    assert pasted.out == "The shell is open.\n"
    assert "az group delete --name builder\n" in pasted.err


def test_no_ssh_host_key_is_removed_where_no_other_would_be_made(scratch: Path) -> None:
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
    return subprocess.run(
        command, env=env, stdout=subprocess.PIPE, text=True, umask=0o022, check=False
    )


@pytest.mark.parametrize(
    "keys",
    [KEY, f"{KEY}\n", BROKEN_KEY, f"{KEY}\n{OTHER_KEY}\n", f"{BROKEN_KEY}{OTHER_KEY}\r\n"],
    ids=["one", "line-end", "broken", "several", "several-broken"],
)
def test_the_first_key_becomes_one_line_and_is_kept(
    isolated: None, tmp_path: Path, keys: str
) -> None:
    vm = Vm(public_keys=(keys, OTHER_KEY))
    with new_network(), SimulatedHost(vm, *PLATFORM_ENDPOINTS) as host:
        assert get_key(tmp_path).stdout == f"{KEY}\n"
        assert get_key(tmp_path).stdout == f"{KEY}\n"
        assert len(host.requests) == 1
    file = tmp_path / "azure_keys/builder"
    assert file.read_text() == f"{KEY}\n"
    assert [one.stat().st_mode & 0o777 for one in (file, file.parent)] == [0o644, 0o755]
    assert os.listdir(file.parent) == ["builder"]


CERTIFICATE = (
    b"-----BEGIN CERTIFICATE-----\r\nMIIDXTCCAkWgAwIBAgIJ\r\n-----END CERTIFICATE-----\r\n"
)
NO_KEY: dict[str, Union[str, Fault]] = {
    "none": "",
    "ill": "503",
    "cut-short": "truncated",
    "error-page": body_fault(b"<html><body>Please wait</body></html>", "text/html"),
    "empty": body_fault(b""),
    "half-a-key": changed_body(lambda body: body[:50]),
    "x509": body_fault(CERTIFICATE),
    "no-key-but-a-command": body_fault(b"$(touch pwned); touch pwned"),
}


@pytest.mark.parametrize("fault", NO_KEY.values(), ids=NO_KEY.keys())
def test_without_a_whole_key_none_is_kept(
    isolated: None, tmp_path: Path, fault: Union[str, Fault]
) -> None:
    vm = Vm(public_keys=(KEY,) if fault else ())
    with new_network(), SimulatedHost(vm, *PLATFORM_ENDPOINTS) as host:
        if fault:
            host.misbehave("public-key", fault)
        done = get_key(tmp_path)
    assert (done.returncode != 0, done.stdout) == (True, "")
    assert not (tmp_path / "azure_keys/builder").exists()
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
