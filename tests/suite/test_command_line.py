"""The command line: what it takes, what it refuses, what it says; no network in any of these."""

import subprocess
import sys
from typing import Any, Callable

import pytest

import azure_provisioning as script
from conftest import MEASURED_FLAGS
from world import sandbox

# The script as it is: a mistake in it must not send anything to Azure's addresses.
pytestmark = pytest.mark.usefixtures("isolated")


def call(*arguments: str, python: str = sys.executable) -> tuple[int, str, str]:
    command = [python, *MEASURED_FLAGS, sandbox.SCRIPT, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=20)
    return done.returncode, done.stdout, done.stderr


WRONG = [
    *[["--timeout", "nan"], ["--timeout"], ["--imds", "h\nh"], ["--imds", "caf\u00e9"]],
    *[["--no-such-option"], ["--dry-run=yes"], ["-x"], ["--help", "one\n\x1b", "two"]],
]


@pytest.mark.parametrize("arguments", WRONG, ids=ascii)
def test_main_answers_wrong_usage_with_one_line_and_status_2(arguments: list[str]) -> None:
    status, out, err = call(*arguments)
    assert (status, out) == (2, "")
    (line,) = err.splitlines()
    assert line.startswith("azure_provisioning.py: ")
    assert line.endswith(" (try --help)")
    assert line.isascii()


@pytest.mark.parametrize("option", ["--help", "-h"])
def test_usage_fits_one_screen_and_explains_every_option_and_status(option: str) -> None:
    status, out, err = call(option)
    assert (status, err) == (0, "")
    lines = out.splitlines()
    assert len(lines) <= 23
    assert max(map(len, lines)) <= 79
    for text in ["--dry-run", "--timeout", "--wireserver", "--imds", "--version", "--help"]:
        assert text in out
    for number in (0, 1, 2, 3, 130):
        assert f"\n  {number} " in out
    for url in script.DEFAULTS.values():
        assert url in out


def test_version_is_printed_on_every_python(python: str) -> None:
    assert call("--version", python=python) == (0, script.__version__ + "\n", "")


# ---- main, with its steps replaced

Steps = dict[str, list[Any]]  # what each was called with


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> Steps:
    called: Steps = {}
    answers = {"report_ready": None, "find_name": ("web_1", "web-1"), "set_host_name": None}

    def stand_in(step: str) -> Callable[..., object]:
        return lambda *arguments: called.update({step: list(arguments)}) or answers[step]

    for step in answers:
        monkeypatch.setattr(script, step, stand_in(step))
    monkeypatch.setattr(sys, "argv", ["azure_provisioning.py"])
    return called


WIRESERVER, IMDS = "http://168.63.129.16", "http://169.254.169.254"


def test_main_reports_ready_and_then_sets_the_name_it_finds(
    steps: Steps, capfd: pytest.CaptureFixture[str]
) -> None:
    assert script.main() == 0
    assert list(steps.items()) == [
        ("report_ready", [WIRESERVER, 1200, False]),
        ("find_name", [IMDS, 300]),
        ("set_host_name", ["web-1"]),
    ]
    assert capfd.readouterr().out == "Host name web-1 set; IMDS has 'web_1'\n"


def test_main_says_what_a_name_was_made_of_unless_it_was_kept(
    steps: Steps, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    for name, said in (("a.b", ""), ("(a.b", "; IMDS has '(a.b'")):
        monkeypatch.setattr(script, "find_name", lambda *_, name=name: (name, ".".join("ab")))
        assert script.main() == 0
        assert capfd.readouterr().out == f"Host name a.b set{said}\n"


def test_main_in_a_dry_run_sets_no_name(
    steps: Steps, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["", "--dry-run", "--timeout=7", "--imds=http://h"])
    assert script.main() == 0
    assert steps == {"report_ready": [WIRESERVER, 7, True], "find_name": ["http://h", 7]}
    assert capfd.readouterr().out == "Would set the host name web-1; IMDS has 'web_1'\n"


@pytest.mark.parametrize(
    "step, status", [("report_ready", 1), ("find_name", 3), ("set_host_name", 3)]
)
@pytest.mark.parametrize("error", [script.GaveUp(), KeyboardInterrupt()])
def test_main_ends_at_the_step_that_gave_up(
    steps: Steps,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    step: str,
    status: int,
    error: BaseException,
) -> None:
    def give_up(*_: object) -> None:
        raise error

    monkeypatch.setattr(script, step, give_up)
    gave_up = isinstance(error, script.GaveUp)
    assert script.main() == (status if gave_up else 130)
    assert capfd.readouterr() == ("", "" if gave_up else "Interrupted\n")
    assert len(steps) == ["report_ready", "find_name", "set_host_name"].index(step)


@pytest.mark.parametrize("module", ["getopt", "re"])
def test_main_needs_no_parser_of_options_in_the_unit(
    steps: Steps, module: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    assert script.main() == 0


# ---- The file


def test_import_takes_only_what_ready_needs() -> None:
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); import azure_provisioning;"
        "late = ['typing', 'json', 'subprocess', 'argparse', 'logging', 'getopt', 'ssl', 'http',"
        " 'email', 'xml', 'encodings.idna', 're', 'contextlib', 'signal'];"
        "print(*[name for name in late if sys.modules.get(name)])"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", code, sandbox.REPOSITORY],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "\n"


# ---- parse_arguments

ENDPOINTS = ["http://10.0.0.1", "http://localhost:80", "http://h:1/", "http://h:65535"]
NO_ENDPOINTS = ["", "h", "https://h", "http://", "http://h:", "http://h:0", "http://h:65536"]
NO_ENDPOINTS += ["http://h:99999", "http://h:x", "http://h/path", "http://h?q", "http://u@h"]
NO_ENDPOINTS += ["http://h h", "http://h\n", "http://h//", "http://[::1]", "http://\u0661"]
NO_TIMEOUTS = ["", "soon", "-1", "0", "1e3", "86400.01", "inf", "1_0", "+1", "\u0661", "1\n2"]


@pytest.mark.parametrize("url", ENDPOINTS)
def test_parse_arguments_takes_an_endpoint(url: str) -> None:
    assert script.parse_arguments([f"--imds={url}"])["--imds"] == url.rstrip("/")


@pytest.mark.parametrize("url", NO_ENDPOINTS)
def test_parse_arguments_refuses_any_other_endpoint(url: str) -> None:
    with pytest.raises(ValueError) as raised:  # noqa: PT011
        script.parse_arguments([f"--imds={url}"])
    assert str(raised.value) == f"--imds takes http://HOST[:PORT], not {url!a}"


@pytest.mark.parametrize("text", ["0.001", "1", "86400"])
def test_parse_arguments_takes_a_timeout_of_up_to_a_day(text: str) -> None:
    assert script.parse_arguments(["--timeout", text])["--timeout"] == text


@pytest.mark.parametrize("text", NO_TIMEOUTS)
def test_parse_arguments_refuses_any_other_timeout(text: str) -> None:
    with pytest.raises(ValueError, match="--timeout takes more than 0, at most 86400 seconds, not"):
        script.parse_arguments([f"--timeout={text}"])
