"""Find every CPython of this machine that the script must run on."""

import glob
import os
import subprocess

PLACES = [
    *(os.path.join(directory, "python3*") for directory in os.get_exec_path()),
    os.path.expanduser("~/.pyenv/versions/*/bin/python3"),
]
PROBE = (
    "import platform, sys;"
    "print(platform.python_implementation(), *sys.version_info[:3], sys.executable, sep='\\n')"
)


def find() -> dict[str, str]:
    """Return one executable for each CPython 3.6 or newer, by version ("3.11.7"), oldest first."""
    found: dict[tuple[int, ...], str] = {}
    for path in sorted(path for place in PLACES for path in glob.glob(place)):
        has_suffix = os.path.basename(path)[len("python3") :].strip(".0123456789")  # -config
        if has_suffix or not os.access(path, os.X_OK):
            continue
        # A pyenv shim fails here for a version that is not selected, and else tells the real place.
        probe = subprocess.run([path, "-ISc", PROBE], capture_output=True, text=True, check=False)
        if probe.stdout.startswith("CPython\n"):
            *version, executable = probe.stdout.splitlines()[1:]
            key = tuple(map(int, version))
            if key >= (3, 6):
                found.setdefault(key, executable)
    return {".".join(map(str, key)): found[key] for key in sorted(found)}
