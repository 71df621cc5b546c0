"""The hostfile: its grammar, what is refused and where, and the bare list that `colossalai run` gets."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from colossal_llama2.engine.nodes.hostfile import (
    Host,
    parse_hostfile,
    plain_hostfile,
    ranks_per_host,
    read_hostfile,
    spell_hostfile,
)
from colossal_llama2.errors import InputError

HERE = Path("hostfile")
WORDS = st.text("aZ09_", min_size=1, max_size=5)
NAMES = st.lists(WORDS, min_size=1, max_size=3).map("-.".join) | st.ip_addresses().map(str)
PORTS = st.none() | st.integers(1, 65535)
HOSTS = st.builds(
    Host,
    name=NAMES,
    user=st.none() | WORDS,
    port=PORTS,
    slots=st.none() | st.integers(1, 1024),
)
FILES = st.lists(HOSTS, min_size=1, max_size=6, unique_by=lambda host: host.label.lower())
COMMENTS = st.text(st.characters(blacklist_characters="\r\n", blacklist_categories=["Cs"]), max_size=15)


def without_lines(hosts: list[Host]) -> list[Host]:
    return [Host(host.name, host.user, host.port, host.slots) for host in hosts]


@given(FILES)
def test_what_is_spelled_is_read_back(hosts: list[Host]) -> None:
    assert without_lines(parse_hostfile(spell_hostfile(hosts), HERE)) == hosts


@given(FILES, COMMENTS, st.sampled_from(["\n", "\r\n", "\r"]), st.data())
def test_comments_blanks_and_line_ends_do_not_matter(
    hosts: list[Host], comment: str, end: str, data: st.DataObject
) -> None:
    lines: list[str] = []
    places: list[int] = []
    for line in spell_hostfile(hosts).splitlines():
        lines += data.draw(st.lists(st.sampled_from(["", "  \t", "#" + comment]), max_size=2))
        lines.append(
            "  " + line.replace(" ", " \t ") + data.draw(st.sampled_from(["", "  ", " # " + comment, "#" + comment]))
        )
        places.append(len(lines))
    found = parse_hostfile(end.join(lines), HERE)
    assert without_lines(found) == hosts
    assert [host.line for host in found] == places


@given(st.text(max_size=60))
def test_any_text_is_hosts_or_a_mistake_with_its_line(text: str) -> None:
    try:
        hosts = parse_hostfile(text, HERE)
    except InputError as error:
        said = str(error)
        hosts = []
    else:
        said = ""
    assert bool(hosts) != said.startswith("hostfile"), "hosts, or the file and line that holds none"
    if hosts:
        for host in hosts:
            assert not host.ssh_target.startswith("-"), "ssh would take it for an option"


def test_every_form(tmp_path: Path) -> None:
    path = tmp_path / "hostfile"
    path.write_bytes(
        b"\xef\xbb\xbf# the cluster\r\n\r\nnode-1\r\nnode-2 slots=8 # the big one\r\nme@node-3\r\nnode-4:2222\r\n"
        b"node-5 port=2222 slots=4\r\n[fd00::1]:2222\r\nfd00::2\r\n[fd00::3]\r\n10.0.0.7\r\n"
    )
    hosts = read_hostfile(path)
    assert without_lines(hosts) == [
        Host("node-1"),
        Host("node-2", slots=8),
        Host("node-3", user="me"),
        Host("node-4", port=2222),
        Host("node-5", port=2222, slots=4),
        Host("fd00::1", port=2222),
        Host("fd00::2"),
        Host("fd00::3"),
        Host("10.0.0.7"),
    ]
    assert [host.label for host in hosts][3:6] == ["node-4:2222", "node-5:2222", "[fd00::1]:2222"]


@pytest.mark.parametrize(
    ("text", "line", "what"),
    [
        ("", None, "names no host"),
        ("# nothing\n\n", None, "names no host"),
        ("a\nb\n\nA # again\n", 4, "A stands in line 1 already"),
        ("a\nb slots=x\n", 2, "slots is 'x'"),
        ("a slots=0", 1, "slots is '0'"),
        ("a slots=", 1, "slots is ''"),
        ("a slots=٣", 1, "slots is '٣'"),
        ("a port=70000", 1, "port is '70000'"),
        ("a:ssh", 1, "port is 'ssh'"),
        ("a:", 1, "port is ''"),
        ("a:22 port=22", 1, "port is given twice"),
        ("a slots=1 slots=1", 1, "slots is given twice"),
        ("a gpus=8", 1, "unknown option 'gpus=8'"),
        ("a b", 1, "unknown option 'b'"),
        ("a,b", 1, "is not a host name"),
        ("-oProxyCommand=x", 1, "is not a host name"),
        ("$(id)", 1, "is not a host name"),
        ("@a", 1, "is not a user name"),
        ("-x@a", 1, "is not a user name"),
        ("[fd00::g]", 1, "is not an IPv6 address"),
        ("[fd00::1", 1, "is not a host name"),
        ("[fd00::1]22", 1, "is not a host name"),
        ("[a]:22", 1, "is not a host name"),
        ("a:1:2", 1, "is not an IPv6 address"),
    ],
)
def test_mistakes_name_their_line(text: str, line: int | None, what: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_hostfile(text, HERE)
    assert what in str(caught.value)
    assert caught.value.line == line


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        read_hostfile(tmp_path / "none")
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="not UTF-8"):
        read_hostfile(tmp_path / "binary")


def test_the_bare_list() -> None:
    hosts = parse_hostfile("# c\na slots=8\n\nb # d\n", HERE)
    assert plain_hostfile(hosts, HERE) == ("a\nb\n", None)
    assert plain_hostfile(parse_hostfile("a:22\nb port=22\n", HERE), HERE) == ("a\nb\n", 22)


@pytest.mark.parametrize("text", ["a\nme@b\n", "a\nb:2222\n"])
def test_what_the_bare_list_cannot_say(text: str) -> None:
    with pytest.raises(InputError, match="launch") as caught:
        plain_hostfile(parse_hostfile(text, HERE), HERE)
    assert caught.value.line == 2


def test_ranks_per_host() -> None:
    assert ranks_per_host(parse_hostfile("a slots=4\nb slots=4", HERE), None, HERE) == 4
    assert ranks_per_host(parse_hostfile("a\nb slots=4", HERE), 3, HERE) == 3
    for text, nproc in (("a slots=4\nb", None), ("a slots=4\nb slots=2", None), ("a\nb slots=2", 4)):
        with pytest.raises(InputError, match="nproc_per_node"):
            ranks_per_host(parse_hostfile(text, HERE), nproc, HERE)
