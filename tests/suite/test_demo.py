"""demo.py, where it cannot run; test_readme.py has what it prints elsewhere."""

import subprocess
import sys

from world.sandbox import REPOSITORY

WITHOUT_PROC = ["unshare", "--mount", "sh", "-c", 'mount -t tmpfs none /proc; exec "$@"', "sh"]


def test_where_there_is_no_proc_it_says_what_it_needs(isolated: None) -> None:
    command = [*WITHOUT_PROC, sys.executable, f"{REPOSITORY}/tests/demo.py"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "demo.py: it needs Linux, with /proc\n"
