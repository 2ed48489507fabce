"""parse_goal_state, build_health_report, make_host_name: what comes out, what is refused."""

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
EXPECTED = {"Incarnation": "7", "ContainerId": "container", "InstanceId": "id._vm"}


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
        goal_state("other<a>other</a>7", "<a/>container", "other<a>b</a> id._vm").encode(),
        goal_state("&#55;", "container", "id&#46;_vm").encode(),
        goal_state().replace("<GoalState>", '<GoalState xmlns="urn:x">').encode(),
        goal_state().replace("<", "<w:").replace("<w:/", "</w:").replace("<w:?", "<?").encode(),
        goal_state().replace("<Version>", "<A><Incarnation>8</Incarnation></A><Version>").encode(),
    ],
    ids="plain BOM CRLF spaces comments children references namespace prefix elsewhere".split(),
)
def test_parse_goal_state_reads_one_however_it_is_written(body: bytes) -> None:
    assert script.parse_goal_state(body) == EXPECTED


@pytest.mark.parametrize("element", ["Incarnation", "Container", "ContainerId", "RoleInstance"])
def test_parse_goal_state_takes_the_first_of_repeated_elements(element: str) -> None:
    tree = ElementTree.fromstring(goal_state())
    (parent,) = tree.findall(f".//{element}/..")
    (first,) = parent.findall(element)
    again = ElementTree.fromstring(goal_state("8", "other", "other"))
    parent.insert(list(parent).index(first) + 1, again.findall(f".//{element}")[0])
    assert script.parse_goal_state(ElementTree.tostring(tree)) == EXPECTED


@pytest.mark.parametrize("kind", script.GOAL_STATE)
@pytest.mark.parametrize("change", ["missing", "empty", "blank", "nested"])
def test_parse_goal_state_refuses_one_without_a_value(kind: str, change: str) -> None:
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


@pytest.mark.parametrize(
    "body",
    [
        *[b"", b"no XML", b"<html><body>503</body>", goal_state()[:-20].encode(), b"\x00\xff"],
        b"<Error><Incarnation>7</Incarnation></Error>",
        b"<html><body>" + b"x" * 80 + b"</body></html>",
    ],
)
def test_parse_goal_state_refuses_anything_else_and_shows_80_bytes(body: bytes) -> None:
    with pytest.raises(ValueError, match="; it begins with b['\"]") as raised:
        script.parse_goal_state(body)
    assert str(raised.value).endswith(ascii(body[:80]))
    assert "it has no Incarnation" not in str(raised.value), "that would mislead"


@given(st.tuples(*[st.text(st.characters(exclude_categories=("Cs", "Cc")), min_size=1)] * 3))
@example(("1", "a&b<c>\"d'", "{0} \u20ac \U0001f600"))
def test_build_health_report_says_what_the_goal_state_said(values: tuple[str, str, str]) -> None:
    report = script.build_health_report(dict(zip(EXPECTED, values)))
    assert report_values(report) == [*values, "Ready"]


# ---- Names

KEPT = ["head01.test.local", "a.b", "x" * 64, "1.2.3", "a--b", "X.y-z", "myvm", "MyVM", "7"]


@pytest.mark.parametrize("name", KEPT)
def test_make_host_name_keeps_a_valid_one_to_the_letter(name: str) -> None:
    for body in (name, f" {name}\r\n", f"\ufeff{name}"):
        assert script.make_host_name(body.encode()) == (name, name)


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
def test_make_host_name_makes_one_of_any_other_name(name: str, expected: str) -> None:
    assert script.make_host_name(f"{name}\r\n".encode()) == (name, expected)


@pytest.mark.parametrize(
    "body",
    [
        *[b"Service Unavailable", b"The request is invalid: retry", b"invalid:retry", b"x" * 256],
        *[b"one\ntwo", b"one\r\ntwo", b"one\rtwo", "one\u2028two".encode(), "one\xa0two".encode()],
        *[b"web\x0011", b"\x1b[31mred", b"web\x7f11", "web\x8511".encode(), b"caf\xe91"],
        *[b"a<b", b"a>b", b"a{b", b'"web"', b"<html>"],
    ],
)
def test_make_host_name_refuses_what_no_name_looks_like(body: bytes) -> None:
    with pytest.raises(ValueError, match="the answer is no name: '"):
        script.make_host_name(body)


@pytest.mark.parametrize("body", [b"", b" ", b"\r\n", b"\xef\xbb\xbf", b"\xef\xbb\xbf\r\n\t "])
def test_make_host_name_takes_nothing_for_there_is_none(body: bytes) -> None:
    with pytest.raises(script.Absent, match="the answer is empty"):
        script.make_host_name(body)


@pytest.mark.parametrize("name", ["..", "-", "___", "\u00e9"])
def test_make_host_name_refuses_a_name_of_which_nothing_is_left(name: str) -> None:
    with pytest.raises(ValueError, match="no host name can be made of"):
        script.make_host_name(name.encode())


@given(st.text(st.characters(codec="utf-8")))
def test_make_host_name_makes_a_valid_one_or_none(name: str) -> None:
    try:
        _, host_name = script.make_host_name(name.encode())
    except (ValueError, script.Absent):
        return
    assert 1 <= len(host_name) <= 64
    assert host_name.isascii()
    for label in host_name.split("."):
        assert label.replace("-", "a").isalnum()
        assert label.strip("-") == label
    assert script.make_host_name(host_name.encode()) == (host_name, host_name)
