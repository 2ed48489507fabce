"""The pure functions: what goes in, what comes out, what is refused."""

import json
import socket
import time
from typing import Dict, Tuple
from xml.etree import ElementTree
from xml.parsers.expat import ExpatError

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import azure_provisioning as script
from simulated_host import report_values

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
EXPECTED = script.GoalState("7", "container", "id._vm")


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
        goal_state().replace("utf-8", "utf-16").encode("utf-16"),
        goal_state().replace("utf-8", "iso-8859-1").encode("latin-1"),
        goal_state().replace("<GoalState>", '<GoalState xmlns="urn:x">').encode(),
        goal_state().replace("<", "<w:").replace("<w:/", "</w:").replace("<w:?", "<?").encode(),
    ],
    ids="plain BOM CRLF spaces comments references UTF-16 Latin-1 namespace prefix".split(),
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


def test_the_values_of_two_containers_never_mix() -> None:
    body = goal_state().replace("<RoleInstanceList>", "</Container><Container><RoleInstanceList>")
    with pytest.raises(ValueError, match="it has no InstanceId"):
        script.parse_goal_state(body.encode())


@pytest.mark.parametrize("name", ["Incarnation", "ContainerId", "InstanceId"])
@pytest.mark.parametrize("change", ["missing", "empty", "blank"])
def test_a_goal_state_without_one_of_the_values_is_refused(name: str, change: str) -> None:
    tree = ElementTree.fromstring(goal_state())
    (parent,) = tree.findall(f".//{name}/..")
    (element,) = parent.findall(name)
    if change == "missing":
        parent.remove(element)
    element.text = " \n\t " if change == "blank" else ""
    with pytest.raises(ValueError, match=f"it has no {name}"):
        script.parse_goal_state(ElementTree.tostring(tree))


@pytest.mark.parametrize(
    "declaration",
    [
        "<!DOCTYPE GoalState>",
        '<!DOCTYPE GoalState SYSTEM "file:///etc/passwd">',
        '<!DOCTYPE GoalState [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;">]>',
    ],
)
def test_a_document_type_declaration_is_refused(declaration: str) -> None:
    body = goal_state().replace("<GoalState>", declaration + "<GoalState>")
    with pytest.raises(ValueError, match="document type declaration"):
        script.parse_goal_state(body.encode())


@pytest.mark.parametrize("value", ["x" * 1001, "x<a/>" * 100_000, "\n" * 1_000_000])
def test_a_value_that_is_too_long_is_refused(value: str) -> None:
    with pytest.raises(ValueError, match="ContainerId is too long"):
        script.parse_goal_state(goal_state(container=value).encode())


@pytest.mark.parametrize(("depth", "refused"), [(47, False), (48, True), (100_000, True)])
def test_elements_nested_too_deeply_are_refused(depth: int, refused: bool) -> None:
    # In ContainerId, which is the third.
    body = goal_state(container="<a>" * depth + "</a>" * depth + "container").encode()
    if refused:
        with pytest.raises(ValueError, match="nested too deeply"):
            script.parse_goal_state(body)
    else:
        assert script.parse_goal_state(body) == EXPECTED


@pytest.mark.parametrize(
    "body", [b"", b"no XML", b"<html><body>503</body>", goal_state()[:-20].encode(), b"\x00\xff"]
)
def test_what_is_not_xml_is_refused(body: bytes) -> None:
    with pytest.raises(ExpatError):
        script.parse_goal_state(body)


@given(st.tuples(*[st.text(st.characters(exclude_categories=("Cs", "Cc")), min_size=1)] * 3))
@example(("1", "a&b<c>\"d'", "{0} \u20ac \U0001f600"))
def test_the_report_says_what_the_goal_state_said(values: Tuple[str, str, str]) -> None:
    report = script.build_health_report(script.GoalState(*values))
    assert report_values(report) == [*values, "Ready"]


def compute(computer_name: object = None, name: object = None) -> bytes:
    document: Dict[str, object] = {"osProfile": {"computerName": computer_name}, "name": name}
    return json.dumps(document).encode()


@pytest.mark.parametrize(
    "body, expected",
    [
        (compute("computer", "vm"), "computer"),
        (compute("computer"), "computer"),
        (compute("", "vm"), "vm"),
        (compute(" \n", "vm"), "vm"),
        (compute(None, "vm"), "vm"),
        (b'{"name": "vm"}', "vm"),
        (b'{"name": "vm", "osProfile": null}', "vm"),
        (b'\xef\xbb\xbf{"name": "vm"}', "vm"),
        (b'{"name": "vm", "n": ' + b"9" * 5000 + b"}", "vm"),
        (b'{"name": "vm", "n": NaN}', "vm"),
        (b'{"name": "\\ud800"}', "\ud800"),
        (b'{"name": "one", "name": "two"}', "two"),
    ],
)
def test_the_computer_name_comes_before_the_name_of_the_vm(body: bytes, expected: str) -> None:
    assert script.parse_compute_document(body) == expected


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html>",
        b"[]",
        b'"vm"',
        b"null",
        b"1",
        b"{}",
        b"\xff",
        compute(),
        compute(7, "vm"),
        compute(["computer"], "vm"),
        compute("", 7),
        b'{"name": "vm", "osProfile": []}',
        b'{"name": "vm", "osProfile": "computer"}',
    ],
)
def test_json_of_another_shape_is_refused(body: bytes) -> None:
    with pytest.raises(ValueError, match="."):
        script.parse_compute_document(body)


@pytest.mark.parametrize(
    "name, expected",
    [
        ("myvm", "myvm"),
        ("MyVM", "MyVM"),
        ("web_11", "web-11"),
        ("web__11", "web-11"),
        ("a_-b", "a--b"),
        ("(my) vm.", "my-vm"),
        ("vm.example.com", "vm-example-com"),
        ("-x-", "x"),
        ("7", "7"),
        ("vm\n", "vm"),
        ("vm\r\n", "vm"),
        ("a;b$(reboot)`c`", "a-b-reboot-c"),
        ("--help", "help"),
        ("a\0b", "a-b"),
        ("caf\u00e9-\u0661", "caf"),
        ("x" * 300, "x" * 63),
        ("x" * 62 + "_" + "y" * 300, "x" * 62),
    ],
)
def test_a_name_becomes_a_host_name(name: str, expected: str) -> None:
    assert script.make_host_name(name) == expected


@pytest.mark.parametrize("name", ["", " ", "..", "-", "___", "\u00e9", "\ud800"])
def test_a_name_of_which_nothing_is_left_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="no host name can be made of"):
        script.make_host_name(name)


@given(st.text())
def test_every_host_name_is_valid_or_refused(name: str) -> None:
    try:
        label = script.make_host_name(name)
    except ValueError:
        assert not any(character.isascii() and character.isalnum() for character in name)
        return
    assert 1 <= len(label) <= 63
    assert label.isascii()
    assert label.replace("-", "a").isalnum()
    assert label.strip("-") == label
    assert script.make_host_name(label) == label


@pytest.mark.parametrize(
    "status, header, expected",
    [
        (503, "5", 5),
        (429, "5", 5),
        (500, "5", 1),
        (503, "0", 1),
        (503, "60", 60),
        (503, "61", 60),
        (503, "9" * 5000, 60),
        (503, "-5", 1),
        (503, "2.5", 1),
        (503, "1e9", 1),
        (503, "\u00b2", 1),
        (503, "", 1),
        (503, "Wed, 21 Oct 2026 07:28:00 GMT", 1),
    ],
)
def test_a_retry_after_in_seconds_is_honoured_up_to_a_minute(
    status: int, header: str, expected: float
) -> None:
    assert script.retry_delay(status, header) == expected


@pytest.mark.parametrize(
    "url",
    ["http://10.0.0.1", "http://localhost:80", "http://[::1]:8080", "http://h:1", "http://h:65535"],
)
def test_an_endpoint_is_http_host_and_port(url: str) -> None:
    assert script.parse_endpoint(url) == url
    assert script.parse_endpoint(url + "/") == url


@pytest.mark.parametrize(
    "url",
    [
        "",
        "h",
        "https://h",
        "http://",
        "http://h:",
        "http://h:0",
        "http://h:65536",
        "http://h:x",
        "http://h/path",
        "http://h?q",
        "http://u@h",
        "http://h h",
        "http://h\n",
        "http://h//",
        "http://[h]",
        "http://\u00e9",
        "http://\u0661",
        "file:///etc/passwd",
    ],
)
def test_any_other_endpoint_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="is not http://HOST"):
        script.parse_endpoint(url)


def test_an_answer_may_have_64_kib_besides_its_body() -> None:
    assert script.BoundedSocket.budget == (1024 + 64) * 1024


@pytest.mark.parametrize("more", [0, 1])
def test_what_is_over_the_budget_is_refused_to_the_byte(more: int) -> None:
    ours, theirs = socket.socketpair()
    with theirs, script.BoundedSocket(fileno=ours.detach()) as bounded:
        bounded.deadline, bounded.budget = time.monotonic() + 5, 7
        theirs.send(b"x" * (7 + more))
        if more:
            with pytest.raises(ValueError, match="longer than 1 MiB"):
                bounded.recv_into(bytearray(100))
        else:
            assert bounded.recv_into(bytearray(100)) == 7
