"""Find every CPython of this machine that the script must run on, and take one from an image."""

import glob
import os
import subprocess
from pathlib import Path

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


# Its own libraries, since the image is newer than the machine.
FROM_IMAGE = """\
#!/bin/sh
exec {loader} --library-path {loader.parent} --argv0 {python} {python} "$@"
"""


def from_image(root: Path, program: Path) -> str:
    """Make *program* run the Python of the image at *root*, on this machine; return its path."""
    (loader,) = root.glob("usr/lib/*-linux-gnu/ld-linux-*.so.*")
    program.write_text(FROM_IMAGE.format(loader=loader, python=root / "usr/bin/python3"))
    program.chmod(0o755)
    return str(program)
