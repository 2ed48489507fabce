#!/usr/bin/env python3
"""Change the script in every way that cosmic-ray knows; each change must make a test fail.

Usage: mutants.py [WORKERS]

Runs in copies of the checkout, so that nothing here is changed meanwhile. Prints the mutants that
survive, but for those in NOT_COUNTED; the exit status is 0 if there is none.
"""

import shutil
import sqlite3
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import List, NamedTuple, Tuple

from world.sandbox import REPOSITORY

WORKERS = 3  # most of the time is waiting
CONFIG = """\
[cosmic-ray]
module-path = "azure_provisioning.py"
timeout = 1500
test-command = "sh check.sh"
[cosmic-ray.distributor]
name = "local"
"""
# First what looks at that function, then all else that looks at the script; not what boots.
CHECK = """\
export PYTHONS='{{"this": "{python}"}}'
line=$(diff original.py azure_provisioning.py | sed -n '1s/[^0-9].*//p')
case $(sed -n "1,${{line:-1}}s/^def \\([a-z_]*\\).*/\\1/p" original.py | tail -n 1) in
    parse_goal_state | build_health_report | make_host_name) first=parsing ;;
    parse_answer | cut_body | join_chunks) first=answers ;;
    fetch | set_host_name | verify_host_name) first=host_name ;;
    parse_arguments | main) first='parsing command_line' ;;
    *) first=pauses ;;
esac
test() {{
    timeout --kill-after=5 "$1" {python} -m pytest -q -x -p no:cacheprovider -n"$2" "$3" \\
        $(printf 'tests/suite/test_%s.py ' $4)
}}
test 100 0 --oracle-cases=400 "$first" &&
test 200 2 --oracle-cases=400 'answers parsing command_line pauses first_boot host_name' &&
test 300 4 --walks=40 'faults trouble walks real_system memory'
"""


class Mutant(NamedTuple):
    line: int
    old: str
    new: str


NOT_MADE = "cosmic-ray could not make it"
# (a line, what becomes of it): why it does not count.
NOT_COUNTED: dict[Tuple[str, str], str] = {
    (NOT_MADE, "core/ExceptionReplacer"): "of (A, B) only A; tried by hand, all killed",
    (
        'framing = set() if lines == head.splitlines() else {b"a line that ends otherwise"}',
        'framing = set() if lines <= head.splitlines() else {b"a line that ends otherwise"}',
    ): "where they differ, a line of the former has more",
    (
        'if framing == {b"transfer-encoding:chunked"}:',
        'if framing <= {b"transfer-encoding:chunked"}:',
    ): "it is never empty here",
    (
        'stream, body, size = io.BytesIO(data), b"", 1',
        'stream, body, size = io.BytesIO(data), b"", 2',
    ): "anything but 0 does",
    (
        'if option == "--timeout" and not (seconds and 0 < float(text) <= 86400):',
        'if option == "--timeout" and not (seconds and 0 != float(text) <= 86400):',
    ): "the pattern has no sign",
    (
        'if option in DEFAULTS and not (url and 0 < int(url.group(1) or "80") < 65536):',
        'if option in DEFAULTS and not (url and 0 != int(url.group(1) or "80") < 65536):',
    ): "the pattern has no sign",
}


def copy_checkout(directory: Path) -> None:
    listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    files = subprocess.run(listed, cwd=REPOSITORY, capture_output=True, text=True, check=True)
    for file in files.stdout.splitlines():
        (directory / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(Path(REPOSITORY, file), directory / file)


def prepare(directory: Path, worker: int, workers: int) -> None:
    """Make a copy of the checkout with a cosmic-ray session of one worker's mutants."""
    copy_checkout(directory)
    (directory / "check.sh").write_text(CHECK.format(python=sys.executable))
    shutil.copy(directory / "azure_provisioning.py", directory / "original.py")
    (directory / "config.toml").write_text(CONFIG)
    cosmic_ray(directory, "init").wait()
    with sqlite3.connect(directory / "session.sqlite") as session:
        rows = session.execute(
            "SELECT job_id FROM mutation_specs ORDER BY operator_name, occurrence"
        )
        others = [row for rank, row in enumerate(rows.fetchall()) if rank % workers != worker]
        for table in ("mutation_specs", "work_items"):
            session.executemany(f"DELETE FROM {table} WHERE job_id = ?", others)


def cosmic_ray(directory: Path, command: str) -> "subprocess.Popen[bytes]":
    program = Path(sys.executable).parent / "cosmic-ray"
    return subprocess.Popen([program, command, "config.toml", "session.sqlite"], cwd=directory)


def survivors(directory: Path) -> Tuple[int, List[Mutant]]:
    """Return how many mutants were tested, and those that no test caught."""
    with sqlite3.connect(directory / "session.sqlite") as session:
        rows = session.execute(
            "SELECT start_pos_row, operator_name, test_outcome, diff"
            " FROM work_results NATURAL JOIN mutation_specs"
        ).fetchall()
    found = []
    for line, operator, result, diff in rows:
        if result == "INCOMPETENT":
            found.append(Mutant(line, NOT_MADE, operator))
        elif result == "SURVIVED":
            marks = ("+++", "---")
            changed = [t for t in diff.splitlines() if t[:1] in "+-" and not t.startswith(marks)]
            old, new = (
                " ".join(text[1:].strip() for text in changed if text[0] == sign) for sign in "-+"
            )
            found.append(Mutant(line, old, new))
    return len(rows), found


def main() -> int:
    workers = int(sys.argv[1]) if sys.argv[1:] else WORKERS
    with tempfile.TemporaryDirectory() as directory:
        shards = [Path(directory, str(worker)) for worker in range(workers)]
        for worker, shard in enumerate(shards):
            prepare(shard, worker, workers)
        unchanged = Path(directory, "unchanged")
        shutil.copytree(shards[0], unchanged)
        check = subprocess.Popen(["sh", "check.sh"], cwd=unchanged)
        for process in [cosmic_ray(shard, "exec") for shard in shards]:
            process.wait()
        if check.wait():
            sys.exit("the tests fail without a change, too: all this says nothing")
        results = [survivors(shard) for shard in shards]
    tested = sum(count for count, _ in results)
    alive = sorted(mutant for _, found in results for mutant in found)
    not_counted = [mutant for mutant in alive if (mutant.old, mutant.new) in NOT_COUNTED]
    rest = [mutant for mutant in alive if mutant not in not_counted]
    for mutant in rest:
        print(f"line {mutant.line}:\n  - {mutant.old}\n  + {mutant.new}")
    print(f"{tested} mutants: {len(not_counted)} do not count, {len(rest)} survived")
    return 1 if rest or not tested else 0


if __name__ == "__main__":
    sys.exit(main())
