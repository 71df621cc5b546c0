"""A small ssh server for measurements: one key may log in, commands run as this user, no terminal, no forwarding.

    python benchmarks/loopback_sshd.py PORT HOST_KEY AUTHORIZED_KEYS

Like OpenSSH's it leaves a command alone when the connection ends, and only closes its pipes.
"""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path
from typing import IO

import paramiko


class _Server(paramiko.ServerInterface):
    def __init__(self, allowed: set[str]) -> None:
        self._allowed = allowed

    def get_allowed_auths(self, username: str) -> str:
        return "publickey"

    def check_auth_publickey(self, username: str, key: paramiko.PKey) -> int:
        return paramiko.AUTH_SUCCESSFUL if key.get_base64() in self._allowed else paramiko.AUTH_FAILED  # type: ignore[attr-defined,no-any-return]

    def check_channel_request(self, kind: str, chanid: int) -> int:
        return paramiko.OPEN_SUCCEEDED  # type: ignore[attr-defined,no-any-return]

    def check_channel_exec_request(self, channel: paramiko.Channel, command: bytes) -> bool:
        threading.Thread(target=_serve_command, args=(channel, command.decode()), daemon=True).start()
        return True


def _serve_command(channel: paramiko.Channel, command: str) -> None:
    process = subprocess.Popen(
        ["/bin/bash", "-c", command], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stderr is not None
    threading.Thread(target=_feed, args=(channel, process.stdin), daemon=True).start()
    pumps = [
        threading.Thread(target=_pump, args=(process.stdout, channel.sendall)),
        threading.Thread(target=_pump, args=(process.stderr, channel.sendall_stderr)),
    ]
    for pump in pumps:
        pump.start()
    code = process.wait()
    for pump in pumps:
        pump.join()
    with suppress(OSError, EOFError):
        channel.send_exit_status(code)
        channel.close()


def _feed(channel: paramiko.Channel, stdin: IO[bytes]) -> None:
    with suppress(OSError, EOFError):
        while data := channel.recv(65536):
            stdin.write(data)
            stdin.flush()
    with suppress(OSError):
        stdin.close()


def _pump(stream: IO[bytes], send: object) -> None:
    assert callable(send)
    with suppress(OSError, EOFError):
        while data := stream.read1(65536):  # type: ignore[attr-defined]
            send(data)
    stream.close()


def _serve_connection(connection: socket.socket, host_key: paramiko.PKey, allowed: set[str]) -> None:
    transport = paramiko.Transport(connection)
    transport.add_server_key(host_key)
    with suppress(paramiko.SSHException, EOFError, OSError):
        transport.start_server(server=_Server(allowed))
        channels: list[paramiko.Channel] = []  # paramiko closes a channel that nobody refers to
        while transport.is_active():
            channels += filter(None, [transport.accept(1)])


def main(port: int, host_key_file: Path, authorized_keys_file: Path) -> None:
    """Serve until killed."""
    host_key = paramiko.RSAKey.from_private_key_file(str(host_key_file))
    allowed = {line.split()[1] for line in authorized_keys_file.read_text().splitlines() if line.strip()}
    listener = socket.create_server(("", port), backlog=20)
    while True:
        connection, _ = listener.accept()
        threading.Thread(target=_serve_connection, args=(connection, host_key, allowed), daemon=True).start()


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]))
