"""demo.py, as somebody runs it who has just seen the README."""

import subprocess
import sys

from world.sandbox import REPOSITORY

DEMO = [sys.executable, f"{REPOSITORY}/tests/demo.py"]
WITHOUT_PROC = ["unshare", "--mount", "sh", "-c", 'mount -t tmpfs none /proc; exec "$@"', "sh"]


def test_it_shows_one_vm_from_the_goal_state_to_its_name() -> None:
    done = subprocess.run(DEMO, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    assert "has the VM web_11, with the computer name web000011.\n" in done.stdout
    assert "999999999999._web_11\n" in done.stdout
    assert done.stdout.endswith(" host name is web000011, /etc/hostname has web000011\n")


def test_where_there_is_no_proc_it_says_what_it_needs(isolated: None) -> None:
    done = subprocess.run([*WITHOUT_PROC, *DEMO], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "demo.py: it needs Linux, with /proc\n"
