"""The pure functions: what goes in, what comes out, what is refused."""

import encodings
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


@pytest.mark.parametrize("part", ["<a/>", "<a>", " a=''", "="])
def test_a_goal_state_of_too_many_parts_is_refused(part: str) -> None:
    """Whatever they are, before expat takes memory for each."""
    fits = goal_state(container="container<!--" + "=" * 2478 + "-->").encode()
    assert fits.count(b"<") + fits.count(b"=") == 2500
    assert script.parse_goal_state(fits) == EXPECTED
    with pytest.raises(ValueError, match="too many elements and attributes"):
        script.parse_goal_state(fits.replace(b"-->", part.encode() + b"-->"))


@pytest.mark.parametrize("name", ["incarnation", "container", "instance"])
def test_a_value_has_at_most_1000_characters(name: str) -> None:
    fits = "\U0001f600" * 1000
    assert fits in script.parse_goal_state(goal_state(**{name: f" {fits} "}).encode())
    with pytest.raises(ValueError, match="it has no .* of at most 1000 characters; it begins"):
        script.parse_goal_state(goal_state(**{name: fits + "x"}).encode())


@pytest.mark.parametrize("encoding", ["cp1252", "utf-7", "rot13", "utf_8", "x" * 99, "ascii"])
def test_a_goal_state_in_another_encoding_is_refused(encoding: str) -> None:
    """Python would import what there is for each name, and keep the name."""
    known = dict(encodings._cache)
    body = goal_state().replace("utf-8", encoding).encode()
    with pytest.raises(ValueError, match="it has an unknown encoding; it begins with"):
        script.parse_goal_state(body)
    assert encodings._cache == known


@pytest.mark.parametrize("encoding", ["UTF-8", "utf-8", "us-ascii", "ISO-8859-1"])
def test_a_goal_state_may_be_in_what_the_parser_knows(encoding: str) -> None:
    assert script.parse_goal_state(goal_state().replace("utf-8", encoding).encode())


def test_text_below_a_value_is_no_part_of_it() -> None:
    body = goal_state(container="con<a>other<b>other</b></a>tainer<a/>").encode()
    assert script.parse_goal_state(body) == EXPECTED


@pytest.mark.parametrize(
    "body", [b"", b"no XML", b"<html><body>503</body>", goal_state()[:-20].encode(), b"\x00\xff"]
)
def test_what_is_not_xml_is_refused(body: bytes) -> None:
    with pytest.raises(ValueError, match="; it begins with b['\"]") as raised:
        script.parse_goal_state(body)
    assert str(raised.value).endswith(ascii(body[:80])), "what came instead is shown"


@given(st.tuples(*[st.text(st.characters(exclude_categories=("Cs", "Cc")), min_size=1)] * 3))
@example(("1", "a&b<c>\"d'", "{0} \u20ac \U0001f600"))
def test_the_report_says_what_the_goal_state_said(values: Tuple[str, str, str]) -> None:
    report = script.build_health_report(script.GoalState(*values))
    assert report_values(report) == [*values, "Ready"]


@pytest.mark.parametrize(
    "body, expected",
    [
        (b"web000011", "web000011"),
        (b" web000011\r\n", "web000011"),
        (b"\xef\xbb\xbfweb000011", "web000011"),
        (b"x" * 255, "x" * 255),
        (b" " * 9000 + b"x" * 255, "x" * 255),
        (b"caf\xe9", "caf\ufffd"),
        (b"two words", "two words"),
        (b"a}b>c", "a}b>c"),
    ],
)
def test_a_name_is_all_of_the_text_but_white_space_around_it(body: bytes, expected: str) -> None:
    assert script.parse_name(body) == expected


@pytest.mark.parametrize(
    "body",
    [
        b"x" * 256,
        b"one\ntwo",
        b"one\r\ntwo",
        b"one\rtwo",
        "one\u2028two".encode(),
        b"a<b",
        b"{}",
        b'"web"',
        b"<html>",
    ],
)
def test_what_no_name_looks_like_is_refused(body: bytes) -> None:
    with pytest.raises(ValueError, match="the answer is no name: '"):
        script.parse_name(body)


@pytest.mark.parametrize("body", [b"", b" ", b"\r\n", b"\xef\xbb\xbf", b"\xef\xbb\xbf\r\n\t "])
def test_nothing_is_an_answer_that_says_there_is_no_name(body: bytes) -> None:
    with pytest.raises(script.Failure, match="the answer is empty") as raised:
        script.parse_name(body)
    assert raised.value.absent


KEPT = ["head01.test.local", "a.b", "x" * 64, "x" * 63 + ".", "1.2.3", "a--b", "X.y-z"]


@pytest.mark.parametrize("name", KEPT)
def test_what_the_kernel_and_hostnamectl_take_is_kept_to_the_letter(name: str) -> None:
    assert script.make_host_name(name) == name.rstrip(".")


@pytest.mark.parametrize(
    "name, expected",
    [
        ("myvm", "myvm"),
        ("MyVM", "MyVM"),
        ("web_11", "web-11"),
        ("web__11", "web-11"),
        ("a_-b", "a--b"),
        ("a..b", "a.b"),
        (".a.", "a"),
        ("-a-.-b-", "a.b"),
        ("a._.b", "a.b"),
        ("web_11.test_1", "web-11.test-1"),
        ("(my) vm.", "my-vm"),
        ("vm.example.com", "vm.example.com"),
        ("-x-", "x"),
        ("7", "7"),
        ("vm\n", "vm"),
        ("vm\r\n", "vm"),
        ("a;b$(reboot)`c`", "a-b-reboot-c"),
        ("--help", "help"),
        ("a\0b", "a-b"),
        ("caf\u00e9-\u0661", "caf"),
        ("x" * 300, "x" * 64),
        ("x" * 63 + "_" + "y" * 300, "x" * 63),
        ("x" * 62 + "-.y", "x" * 62 + ".y"),
        ("x" * 63 + ".y", "x" * 63),
        ("x" * 62 + "--y", "x" * 62),
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
    assert 1 <= len(label) <= 64
    assert label.isascii()
    for part in label.split("."):
        assert part.replace("-", "a").isalnum()
        assert part.strip("-") == part
    assert script.make_host_name(label) == label


@pytest.mark.parametrize(
    "url",
    ["http://10.0.0.1", "http://localhost:80", "http://h:1", "http://h:65535"],
)
def test_an_endpoint_is_http_host_and_port(url: str) -> None:
    for text in (url, url + "/"):
        assert script.parse_arguments([f"--imds={text}"]).imds == url


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
        "http://[::1]",
        "http://\u00e9",
        "http://\u0661",
        "file:///etc/passwd",
    ],
)
def test_any_other_endpoint_is_refused(url: str, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as raised:
        script.parse_arguments([f"--imds={url}"])
    assert raised.value.code == 2
    said = f"azure_provisioning.py: --imds takes http://HOST[:PORT], not {url!a} (try --help)\n"
    assert capfd.readouterr() == ("", said)
