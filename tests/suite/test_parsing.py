"""The pure functions on documents, names and arguments: what comes out, what is refused."""

from typing import Tuple
from xml.etree import ElementTree

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import azure_provisioning as script
from world.host import report_values

GOAL_STATE = """\
<?xml version="1.0" encoding="utf-8"?>
<GoalState>
  <Version>2012-11-30</Version>
  <Incarnation>{incarnation}</Incarnation>
  <Container>
    <ContainerId>{container}</ContainerId>
    <RoleInstanceList>
      <RoleInstance><InstanceId>{instance}</InstanceId><State>Started</State></RoleInstance>
    </RoleInstanceList>
  </Container>
</GoalState>
"""
EXPECTED = ["7", "container", "id._vm"]


def goal_state(
    incarnation: str = "7", container: str = "container", instance: str = "id._vm"
) -> str:
    return GOAL_STATE.format(incarnation=incarnation, container=container, instance=instance)


@pytest.mark.parametrize(
    "body",
    [
        goal_state().encode(),
        b"\xef\xbb\xbf" + goal_state().encode(),
        goal_state().replace("\n", "\r\n").encode(),
        goal_state(" \r\n 7\t", "\n container \n", " id._vm\r\n").encode(),
        goal_state("<!-- a -->7", "con<!-- b -->tainer", "<![CDATA[id._vm]]>").encode(),
        goal_state("&#55;", "container", "id&#46;_vm").encode(),
        goal_state().replace("<GoalState>", '<GoalState xmlns="urn:x">').encode(),
        goal_state().replace("<", "<w:").replace("<w:/", "</w:").replace("<w:?", "<?").encode(),
        goal_state().replace("<Version>", "<A><Incarnation>8</Incarnation></A><Version>").encode(),
    ],
    ids="plain BOM CRLF spaces comments references namespace prefix elsewhere".split(),
)
def test_a_goal_state_is_read_however_it_is_written(body: bytes) -> None:
    assert script.parse_goal_state(body) == EXPECTED


@pytest.mark.parametrize("element", ["Incarnation", "Container", "ContainerId", "RoleInstance"])
def test_of_repeated_elements_the_first_counts(element: str) -> None:
    tree = ElementTree.fromstring(goal_state())
    (parent,) = tree.findall(f".//{element}/..")
    (first,) = parent.findall(element)
    again = ElementTree.fromstring(goal_state("8", "other", "other"))
    parent.insert(list(parent).index(first) + 1, again.findall(f".//{element}")[0])
    assert script.parse_goal_state(ElementTree.tostring(tree)) == EXPECTED


@pytest.mark.parametrize("kind", script.GOAL_STATE_VALUES)
@pytest.mark.parametrize("change", ["missing", "empty", "blank", "nested"])
def test_a_goal_state_without_one_of_the_values_is_refused(kind: str, change: str) -> None:
    name = kind.rpartition("/")[2]
    tree = ElementTree.fromstring(goal_state())
    (parent,) = tree.findall(f".//{name}/..")
    (element,) = parent.findall(name)
    if change == "missing":
        parent.remove(element)
    if change == "nested":
        ElementTree.SubElement(element, "a").text = element.text
    element.text = " \n\t " if change == "blank" else ""
    with pytest.raises(ValueError, match=f"it has no {kind}; it begins with"):
        script.parse_goal_state(ElementTree.tostring(tree))


def test_a_document_type_declaration_is_refused() -> None:
    body = goal_state().replace("<GoalState>", "<!DOCTYPE GoalState><GoalState>")
    with pytest.raises(ValueError, match="document type declaration"):
        script.parse_goal_state(body.encode())


@pytest.mark.parametrize(
    "body",
    [
        *[b"", b"no XML", b"<html><body>503</body>", goal_state()[:-20].encode(), b"\x00\xff"],
        b"<Error><Incarnation>7</Incarnation></Error>",
        b"<html><body>" + b"x" * 80 + b"</body></html>",
    ],
)
def test_of_what_is_no_goal_state_the_first_80_bytes_are_shown(body: bytes) -> None:
    with pytest.raises(ValueError, match="; it begins with b['\"]") as raised:
        script.parse_goal_state(body)
    assert str(raised.value).endswith(ascii(body[:80]))
    assert "it has no Incarnation" not in str(raised.value), "that would mislead"


@given(st.tuples(*[st.text(st.characters(exclude_categories=("Cs", "Cc")), min_size=1)] * 3))
@example(("1", "a&b<c>\"d'", "{0} \u20ac \U0001f600"))
def test_the_report_says_what_the_goal_state_said(values: Tuple[str, str, str]) -> None:
    assert report_values(script.build_health_report(list(values))) == [*values, "Ready"]


# ---- Names

KEPT = ["head01.test.local", "a.b", "x" * 64, "1.2.3", "a--b", "X.y-z", "myvm", "MyVM", "7"]


@pytest.mark.parametrize("name", KEPT)
def test_a_valid_host_name_is_kept_to_the_letter(name: str) -> None:
    for body in (name, f" {name}\r\n", f"\ufeff{name}"):
        assert script.make_host_name(body.encode()) == name


@pytest.mark.parametrize(
    "name, expected",
    [
        ("web_11", "web-11"),
        ("web__11", "web-11"),
        ("a_-b", "a--b"),
        ("a..b", "a.b"),
        (".a.", "a"),
        ("-a-.-b-", "a.b"),
        ("a._.b", "a.b"),
        ("(my)vm.", "my-vm"),
        ("a;b$(reboot)`c`", "a-b-reboot-c"),
        ("--help", "help"),
        ("a}b'c", "a-b-c"),
        ("caf\u00e9-\u0661", "caf"),
        ("x" * 255, "x" * 64),
        ("x" * 63 + "_" + "y" * 100, "x" * 63),
        ("x" * 62 + "-.y", "x" * 62 + ".y"),
        ("x" * 63 + ".y", "x" * 63),
        ("x" * 62 + "--y", "x" * 62),
    ],
)
def test_of_any_other_name_a_host_name_is_made(name: str, expected: str) -> None:
    assert script.make_host_name(name.encode()) == expected


@pytest.mark.parametrize(
    "body",
    [
        *[b"Service Unavailable", b"The request is invalid: retry", b"invalid:retry", b"x" * 256],
        *[b"one\ntwo", b"one\r\ntwo", b"one\rtwo", "one\u2028two".encode(), "one\xa0two".encode()],
        *[b"web\x0011", b"\x1b[31mred", b"web\x7f11", "web\x8511".encode(), b"caf\xe91"],
        *[b"a<b", b"a>b", b"a{b", b'"web"', b"<html>"],
    ],
)
def test_what_no_name_looks_like_is_refused(body: bytes) -> None:
    with pytest.raises(ValueError, match="the answer is no name: '"):
        script.make_host_name(body)


@pytest.mark.parametrize("body", [b"", b" ", b"\r\n", b"\xef\xbb\xbf", b"\xef\xbb\xbf\r\n\t "])
def test_nothing_is_an_answer_that_says_there_is_no_name(body: bytes) -> None:
    with pytest.raises(script.Absent, match="the answer is empty"):
        script.make_host_name(body)


@pytest.mark.parametrize("name", ["..", "-", "___", "\u00e9"])
def test_a_name_of_which_nothing_is_left_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="no host name can be made of"):
        script.make_host_name(name.encode())


@given(st.text(st.characters(codec="utf-8")))
def test_every_host_name_is_valid_or_refused(name: str) -> None:
    try:
        host_name = script.make_host_name(name.encode())
    except (ValueError, script.Absent):
        return
    assert 1 <= len(host_name) <= 64
    assert host_name.isascii()
    for label in host_name.split("."):
        assert label.replace("-", "a").isalnum()
        assert label.strip("-") == label
    assert script.make_host_name(host_name.encode()) == host_name


# ---- Arguments


@pytest.mark.parametrize(
    "url", ["http://10.0.0.1", "http://localhost:80", "http://h:1", "http://h:65535"]
)
def test_an_endpoint_is_http_host_and_port(url: str) -> None:
    for text in (url, url + "/"):
        assert script.parse_arguments([f"--imds={text}"]) == {"--imds": url}


@pytest.mark.parametrize(
    "url",
    [
        *[
            "",
            "h",
            "https://h",
            "http://",
            "http://h:",
            "http://h:0",
            "http://h:65536",
            "http://h:99999",
            "http://h:x",
        ],
        *["http://h/path", "http://h?q", "http://u@h", "http://h h", "http://h\n", "http://h//"],
        *["http://[::1]", "http://\u00e9", "http://\u0661", "file:///etc/passwd"],
    ],
)
def test_any_other_endpoint_is_refused(url: str) -> None:
    with pytest.raises(ValueError) as raised:  # noqa: PT011
        script.parse_arguments([f"--imds={url}"])
    assert str(raised.value) == f"--imds takes http://HOST[:PORT], not {url!a}"


@pytest.mark.parametrize("text", ["", "soon", "-1", "0", "1e3", "86400.01", "http://h"])
def test_any_other_timeout_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="--timeout takes more than 0, at most 86400 seconds, not"):
        script.parse_arguments([f"--timeout={text}"])


@pytest.mark.parametrize("text", ["0.001", "1", "86400"])
def test_a_timeout_may_be_anything_up_to_a_day(text: str) -> None:
    assert script.parse_arguments(["--timeout", text]) == {"--timeout": text}
