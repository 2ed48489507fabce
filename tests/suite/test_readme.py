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

BLOCKS = readme.blocks()
SHELL = [block for block in BLOCKS if block.language in ("bash", "sh")]


def shell(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout


@pytest.mark.parametrize("block", SHELL, ids=lambda block: block.heading)
def test_shell_blocks_have_no_syntax_error(block: readme.Block) -> None:
    require_tools("bash", "sh")
    for program in {"bash", block.language}:
        assert shell(program, "-n", "-c", block.text) == ""


def test_all_blocks_of_the_guide_are_labelled() -> None:
    languages = {"bash", "sh", "text"}
    assert {block.language for block in BLOCKS} == languages


def test_it_names_options_and_exit_statuses_that_the_help_has() -> None:
    said = shell(sys.executable, "-I", "-S", sandbox.SCRIPT, "--help")
    text = Path(sandbox.REPOSITORY, "README.md").read_text()
    (command,) = re.findall(r"`sudo /usr/local/sbin/azure_provisioning\.py ([^`]+)`", text)
    for option in (*re.findall("--[a-z-]+", command), "--wireserver", "--imds", "--help"):
        assert option in said
    assert "exit status 1 (Ready was not accepted) or 3 (the name is not set)" in text
    assert "  1    Ready was not accepted before" in said
    assert "  3    Ready was accepted, the host name is not set" in said


def test_links_within_the_page_lead_somewhere() -> None:
    text = Path(sandbox.REPOSITORY, "README.md").read_text()
    prose = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ (.*)$", prose, re.MULTILINE)
    anchors = {re.sub(r"[^\w -]", "", one).lower().replace(" ", "-") for one in headings}
    assert set(re.findall(r"\]\(#([^)]*)\)", prose)) <= anchors


@pytest.mark.parametrize("file", ["azure_provisioning.py", "azure-provisioning.service"])
def test_what_travels_alone_names_its_licence(file: str) -> None:
    text = Path(sandbox.REPOSITORY, file).read_text()
    assert "# SPDX-License-Identifier: MIT\n" in text
    owner = "Copyright 2026 the azure-provisioning contributors\n"
    assert f"# {owner}" in text
    assert f"\n{owner}" in Path(sandbox.REPOSITORY, "README.md").read_text()


# ---- Blocks that remove something, pasted into a shell where one of their commands fails

# Directories that the blocks change, and files that they expect in them.
CHANGED = {
    "etc": ["machine-id", "hostname", "fstab", "hosts", "netplan/60.yaml", "systemd/system/x"],
    "home": ["builder/.bash_history"],
    "root": [".bash_history"],
    "usr/local/sbin": [],
    "var": ["log/syslog", "lib/cloud/x"],
}
# Counts the calls of all programs, and fails in the one whose number is in the file "fail".
STAND_IN = """\
#!/bin/sh
echo "${0##*/} $*" >>"$SCRATCH/calls"
number=$(/usr/bin/wc -l <"$SCRATCH/calls")
[ "$number" -ne "$(/bin/cat "$SCRATCH/fail")" ] || exit 1
case "$*" in *properties.state*) echo Registered ;; esac
"""
# All but the scratch directory is read-only, whatever a block may do.
PASTE = """\
mount --bind "$SCRATCH" "$SCRATCH"
for directory in etc home root usr/local/sbin var; do
    mount --bind "$SCRATCH/$directory" "/$directory"
done
mount -o remount,bind,ro / || [ -z "$ROOT" ]
PATH="$SCRATCH/bin" exec "$1" "$SCRATCH/pasted"
"""
PROGRAMS = {
    *("apt-get", "az", "azure-ssh-key", "cat", "chmod", "cloud-init", "find", "grep", "rm", "sed"),
    *("sleep", "systemctl", "truncate"),
}
REMOVES = re.compile(
    r"^(rm|apt-get purge|find|az vm (deallocate|generalize)|az group delete) |^: >"
)
# A failure of these is no error.
HARMLESS = ("systemctl stop systemd-random-seed.service",)


class Pasted(NamedTuple):
    out: str
    calls: List[str]


def removes(block: readme.Block) -> bool:
    return any(REMOVES.match(line) for line in block.text.splitlines())


REMOVING = [block for block in SHELL if removes(block)]
STOPPING = [block for block in SHELL if block.text.lstrip().startswith(("(", "unset HISTFILE\n("))]
FAILING = [block for block in STOPPING if block.heading != "## The platform by hand"]


def paste(
    block: readme.Block, scratch: Path, program: str, fail: int = 0, unwritable: str = ""
) -> Pasted:
    """Paste the block into a shell that has stand-ins for all programs, and nothing to lose."""
    for directory, files in CHANGED.items():
        (scratch / directory).mkdir(parents=True, exist_ok=True)
        for file in files:
            (scratch / directory / file).parent.mkdir(parents=True, exist_ok=True)
            (scratch / directory / file).write_text("# x\n")
    for directory in ("etc/ssh/sshd_config.d", "etc/systemd/network", "bin"):
        (scratch / directory).mkdir(parents=True, exist_ok=True)
    for name in PROGRAMS:
        (scratch / "bin" / name).write_text(STAND_IN)
        (scratch / "bin" / name).chmod(0o755)
    if unwritable:
        path = Path(f"{scratch}{unwritable}")
        path.unlink(missing_ok=True)
        path.mkdir()
    (scratch / "calls").write_text("")
    (scratch / "fail").write_text(str(fail))
    text = re.sub(
        f"^/usr/local/sbin/({'|'.join(PROGRAMS)})$", r"\1", block.text, flags=re.MULTILINE
    )
    (scratch / "pasted").write_text(f"{text}\necho The shell is open.\n")
    done = subprocess.run(
        ["unshare", "--mount", "/bin/sh", "-euc", PASTE, "sh", f"/bin/{program}"],
        env={**os.environ, "SCRATCH": str(scratch)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert "not found" not in done.stderr, done.stderr
    assert "mount" not in done.stderr, done.stderr
    return Pasted(done.stdout, (scratch / "calls").read_text().splitlines())


def last_words(block: readme.Block) -> str:
    *_, last = re.findall("^echo '(.*)'$", block.text, re.MULTILINE)
    return str(last)


def test_what_removes_something_stops_at_its_first_error() -> None:
    one_command = [block for block in REMOVING if len(block.text.splitlines()) == 1]
    assert [block for block in REMOVING if block not in [*STOPPING, *one_command]] == []
    assert len(REMOVING) == 5


def test_what_removes_something_in_the_vm_first_makes_sure_that_it_is_on_azure() -> None:
    guard = f"set -e\ngrep {ASSET_TAG} {DMI}/chassis_asset_tag "
    in_vm = [block for block in REMOVING if "az " not in block.text]
    assert len(in_vm) == 3
    for block in in_vm:
        assert re.match(f"(unset HISTFILE\n)?\\(\n{guard}", block.text)


@pytest.mark.parametrize("program", ["bash", "sh"])
@pytest.mark.parametrize(
    "block", FAILING, ids=lambda block: f"{block.heading}: {last_words(block)}"
)
def test_a_pasted_block_stops_where_a_command_fails_and_leaves_the_shell_open(
    isolated: None, tmp_path: Path, block: readme.Block, program: str
) -> None:
    require_tools("unshare", program)
    require(tmp_path.parts[1] not in CHANGED, "the scratch directory is in one that blocks change")
    good = paste(block, tmp_path / "good", program)
    assert good.out.endswith(f"{last_words(block)}\nThe shell is open.\n")
    assert good.calls
    for number, call in enumerate(good.calls, 1):
        bad = paste(block, tmp_path / str(number), program, fail=number)
        assert bad.out.endswith("The shell is open.\n")
        if call in HARMLESS:
            assert bad == good
        else:
            assert bad.calls == good.calls[:number], "it went on"
            assert last_words(block) not in bad.out
    for number, file in enumerate(re.findall(r">(/\S+)", block.text)):
        bad = paste(block, tmp_path / f"write-{number}", program, unwritable=file)
        assert bad.out.endswith("The shell is open.\n")
        assert bad.calls == good.calls[: len(bad.calls)]
        assert last_words(block) not in bad.out


def test_the_agents_are_removed_also_when_cloud_init_ended_with_warnings(
    isolated: None, tmp_path: Path
) -> None:
    require_tools("unshare")
    block = next(one for one in FAILING if "cloud-init status" in one.text)
    warned = block._replace(text=f"cloud-init() {{ return 2; }}\n{block.text}")
    assert last_words(block) in paste(warned, tmp_path, "bash").out


def test_a_registration_that_is_not_granted_does_not_count(isolated: None, tmp_path: Path) -> None:
    require_tools("unshare")
    block = next(one for one in FAILING if "az feature register" in one.text)
    pending = "az() { case $* in *state*) echo Pending;; esac; }\n"
    refused = block._replace(text=pending + block.text)
    assert last_words(block) not in paste(refused, tmp_path, "bash").out


def test_what_an_image_from_scratch_leaves_out_of_the_blocks_is_one_line_of_each() -> None:
    host_keys = readme.block("### 4. Generalize", 1).splitlines()
    assert len([line for line in host_keys if line.startswith("grep ")]) == 1
    assert readme.block("### How do I get in?").splitlines().count(GET_KEY) == 1


# ---- The SSH key from IMDS

GET_KEY = "/usr/local/sbin/azure-ssh-key"
KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIBvkvG7hEr4nWl2g/iKw9/uXN1WvRb5TylHIbawTbkyu me@home"
OLD_KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIIWnYJkdh1bv2NYQK3kYS552CnB3c0CCLi1eE5plHM+Z old"


@pytest.fixture
def get_key(tmp_path: Path) -> Path:
    """The README's script, with a directory of the test's in place of /etc/ssh."""
    require_tools("curl", "ssh-keygen", "sync")
    block = readme.block("### How do I get in?")
    (text,) = re.findall(r"azure-ssh-key <<'EOF'\n(.*?)^EOF$", block, re.MULTILINE | re.DOTALL)
    assert text.count("/etc/ssh/") == 2
    script = tmp_path / "azure-ssh-key"
    script.write_text(text.replace("/etc/ssh/", f"{tmp_path}/"))
    return script


def run_get_key(script: Path) -> bool:
    environment = {**os.environ, "http_proxy": "http://127.0.0.1:1"}
    done = subprocess.run(["sh", str(script)], env=environment, check=False, capture_output=True)
    return done.returncode == 0


@pytest.mark.parametrize("key", [KEY, f"{KEY}\n", KEY.replace("AAAAI", "AAAAI\r\n") + "\r\n"])
def test_the_key_becomes_one_line_that_only_its_owner_can_write(
    isolated: None, get_key: Path, key: str
) -> None:
    vm = Vm(public_keys=(key, OLD_KEY))
    with new_network(), SimulatedHost(vm, *PLATFORM_ENDPOINTS):
        assert run_get_key(get_key)
    file = get_key.parent / "azure_keys/builder"
    assert file.read_text() == f"{KEY}\n"
    assert [one.stat().st_mode & 0o777 for one in (file, file.parent)] == [0o644, 0o755]
    assert os.listdir(file.parent) == ["builder"]


def half(body: bytes) -> bytes:
    return body[:50]


NO_KEY: Dict[str, Union[str, Fault]] = {
    "none": "",
    "throttled": "429",
    "ill": "503",
    "cut-short": "truncated",
    "reset": "reset",
    "error-page": body_fault(b"<html><body>Please wait</body></html>", "text/html"),
    "empty": body_fault(b""),
    "half-a-key": changed_body(half),
    "no-key-but-a-command": body_fault(b"$(touch pwned); touch pwned"),
}


@pytest.mark.parametrize("before", ["", f"{OLD_KEY}\n"], ids=["new", "known"])
@pytest.mark.parametrize("fault", NO_KEY.values(), ids=NO_KEY.keys())
def test_without_a_whole_key_nothing_changes(
    isolated: None, get_key: Path, fault: Union[str, Fault], before: str
) -> None:
    file = get_key.parent / "azure_keys/builder"
    if before:
        file.parent.mkdir()
        file.write_text(before)
    vm = Vm(public_keys=(KEY,) if fault else ())
    with new_network(), SimulatedHost(vm, *PLATFORM_ENDPOINTS) as host:
        if fault:
            host.misbehave("public-key", fault)
        assert not run_get_key(get_key)
        assert [request.service for request in host.requests] == ["imds"]
    assert (file.read_text() if file.exists() else "") == before
    assert not list(Path.cwd().glob("pwned"))


# ---- The platform by hand

BY_HAND = readme.block("## The platform by hand")


@pytest.mark.parametrize(
    "endpoint, requests", [("goalstate", 1), ("health", 2), ("computer-name", 3)]
)
def test_the_platform_by_hand_ends_at_the_first_error(
    platform_host: SimulatedHost, endpoint: str, requests: int
) -> None:
    require_tools("curl")
    platform_host.misbehave(endpoint, "503")
    assert subprocess.run(["sh", "-c", BY_HAND], check=False).returncode != 0
    assert len(platform_host.requests) == requests


def test_the_platform_by_hand_reports_ready_and_shows_the_name(
    platform_host: SimulatedHost,
) -> None:
    require_tools("curl", "sed", "tr")
    platform_host.vm = platform_host.vm._replace(container_id="a & <b>")
    out = shell("sh", "-euc", BY_HAND)
    assert len(platform_host.accepted) == 1
    assert out == "web000011\n"


def test_the_platform_by_hand_takes_the_first_role_instance(platform_host: SimulatedHost) -> None:
    require_tools("curl", "sed", "tr")
    other = b"<RoleInstance><InstanceId>other</InstanceId></RoleInstance></RoleInstanceList>"
    add = changed_body(lambda body: body.replace(b"</RoleInstanceList>", other))
    platform_host.misbehave("goalstate", add)
    shell("sh", "-euc", BY_HAND)
    assert len(platform_host.accepted) == 1
