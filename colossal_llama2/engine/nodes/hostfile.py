"""The hostfile: which machines a run is spread over.

One host a line, in the order of their node ranks; the first one is the master::

    line    = [entry] [comment]
    entry   = [user "@"] host [":" port] {option}
    host    = name | IPv4 address | "[" IPv6 address "]" | IPv6 address (then no ":" port)
    option  = "slots=" ranks of that host | "port=" port of its ssh server
    comment = "#" and everything after it

Blank lines, a byte order mark and Windows line ends do not matter. A port is given in one of the two ways, not in both.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from colossal_llama2.errors import InputError

_NAME = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_.-]*[A-Za-z0-9_])?")
_USER = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")
_OPTIONS = ("slots", "port")
_LARGEST = {"slots": 1024, "port": 65535}


@dataclass(frozen=True)
class Host:
    """A machine of the hostfile.

    Attributes:
        name: host name or address, as ssh takes it (an IPv6 address without brackets).
        user: who logs in there, None for ssh's own choice.
        port: of its ssh server, None for ssh's own choice.
        slots: how many ranks it has room for, None when the file does not say.
        line: of the file, from 1; 0 for a host that comes from no file.
    """

    name: str
    user: str | None = None
    port: int | None = None
    slots: int | None = None
    line: int = 0

    @property
    def label(self) -> str:
        """What tells it from the others: the name, and the port where one is given."""
        if self.port is None:
            return self.name
        return f"[{self.name}]:{self.port}" if ":" in self.name else f"{self.name}:{self.port}"

    @property
    def ssh_target(self) -> str:
        """User and host as ssh takes them."""
        return self.name if self.user is None else f"{self.user}@{self.name}"


def read_hostfile(path: Path) -> list[Host]:
    """Read a hostfile.

    Raises:
        InputError: it cannot be read, names no host, or has a line that is not of the grammar above.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise InputError(
            f"cannot be read ({error.strerror})", path=path, remedy="write one host name a line, see hostfile.example"
        ) from None
    except UnicodeDecodeError:
        raise InputError("is not UTF-8 text", path=path, remedy="write one host name a line") from None
    return parse_hostfile(text, path)


def parse_hostfile(text: str, path: Path) -> list[Host]:
    """Parse the text of a hostfile; `path` is for the messages.

    Raises:
        InputError: see `read_hostfile`.
    """
    hosts: list[Host] = []
    lines: dict[str, int] = {}
    for number, raw in enumerate(re.split(r"\r\n|\r|\n", text), start=1):
        words = raw.partition("#")[0].split()
        if not words:
            continue
        host = _parse_entry(words, path, number)
        key = host.label.lower()
        if key in lines:
            raise InputError(
                f"{host.label} stands in line {lines[key]} already",
                path=path,
                line=number,
                remedy="name a host once; slots=N says how many ranks it takes",
            )
        lines[key] = number
        hosts.append(host)
    if not hosts:
        raise InputError("names no host", path=path, remedy="write one host name a line")
    return hosts


def spell_hostfile(hosts: Sequence[Host]) -> str:
    """Write hosts as a hostfile that parses back to them."""
    return "".join(_spell(host) + "\n" for host in hosts)


def plain_hostfile(hosts: Sequence[Host], path: Path) -> tuple[str, int | None]:
    """Write hosts as the bare list that `colossalai run` understands, and return the ssh port they share.

    Raises:
        InputError: a host needs what that command cannot be told: a user, or a port of its own.
    """
    for host in hosts:
        if host.user is not None:
            raise InputError(
                f"`colossalai run` takes {host.user}@ for a part of the host name",
                path=path,
                line=host.line,
                remedy="write User into ~/.ssh/config, or start with tools/launch.py",
            )
        if host.port != hosts[0].port:
            raise InputError(
                "`colossalai run` knows one ssh port for all hosts",
                path=path,
                line=host.line,
                remedy="write Port into ~/.ssh/config, or start with tools/launch.py",
            )
    return "".join(f"{host.name}\n" for host in hosts), hosts[0].port


def ranks_per_host(hosts: Sequence[Host], nproc_per_node: int | None, path: Path) -> int:
    """Return how many ranks every host gets: `nproc_per_node`, or the slots that all of them have.

    Raises:
        InputError: neither is there, or the slots do not allow it.
    """
    slots = {host.slots for host in hosts}
    if nproc_per_node is None:
        if len(slots) != 1 or None in slots:
            raise InputError(
                "the hosts do not all say the same slots=N",
                path=path,
                remedy="pass --nproc_per_node N: torchrun starts the same number of ranks on every host",
            )
        return max(number for number in slots if number)
    for host in hosts:
        if host.slots is not None and host.slots < nproc_per_node:
            raise InputError(
                f"{host.label} has slots={host.slots} and --nproc_per_node is {nproc_per_node}",
                path=path,
                line=host.line,
                remedy=f"pass --nproc_per_node {host.slots} or less",
            )
    return nproc_per_node


def _spell(host: Host) -> str:
    user = "" if host.user is None else f"{host.user}@"
    name = f"[{host.name}]" if ":" in host.name else host.name
    port = "" if host.port is None else f":{host.port}"
    slots = "" if host.slots is None else f" slots={host.slots}"
    return f"{user}{name}{port}{slots}"


def _parse_entry(words: list[str], path: Path, line: int) -> Host:
    user, at, rest = words[0].rpartition("@")
    if at and not _USER.fullmatch(user):
        raise InputError(f"{user!r} is not a user name", path=path, line=line, remedy="write user@host")
    name, port_text = _split_port(rest)
    _check_name(name, path, line)
    values: dict[str, int] = {}
    if port_text is not None:
        values["port"] = _number("port", port_text, path, line)
    for word in words[1:]:
        option, equals, text = word.partition("=")
        if not equals or option not in _OPTIONS:
            raise InputError(
                f"unknown option {word!r}",
                path=path,
                line=line,
                remedy="a host takes slots=N and port=N, one host a line",
            )
        if option in values:
            raise InputError(f"{option} is given twice", path=path, line=line, remedy="give it once")
        values[option] = _number(option, text, path, line)
    return Host(name, user if at else None, values.get("port"), values.get("slots"), line)


def _split_port(text: str) -> tuple[str, str | None]:
    if text.startswith("["):
        name, closing, after = text[1:].partition("]")
        if ":" not in name or not closing or (after and not after.startswith(":")):
            return text, None  # refused below for what it is
        return name, after[1:] if after else None
    if text.count(":") == 1:
        name, _, port = text.partition(":")
        return name, port
    return text, None


def _check_name(name: str, path: Path, line: int) -> None:
    if ":" in name and not name.startswith("["):
        try:
            ipaddress.IPv6Address(name)
        except ValueError:
            raise InputError(
                f"{name!r} is not an IPv6 address", path=path, line=line, remedy="write [address]:port or host:port"
            ) from None
    elif not _NAME.fullmatch(name):
        raise InputError(
            f"{name!r} is not a host name", path=path, line=line, remedy="write a name or an address, one host a line"
        )


def _number(option: str, text: str, path: Path, line: int) -> int:
    largest = _LARGEST[option]
    if not (text.isascii() and text.isdecimal() and len(text) <= 9 and 1 <= int(text) <= largest):
        raise InputError(
            f"{option} is {text!r}", path=path, line=line, remedy=f"give a whole number from 1 to {largest}"
        )
    return int(text)
