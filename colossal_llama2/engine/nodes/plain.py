"""`tools/plain_hostfile.py`: a hostfile as `colossalai run` can read it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from colossal_llama2.engine.nodes.hostfile import plain_hostfile, ranks_per_host, read_hostfile
from colossal_llama2.outputs import whole_file


@dataclass(frozen=True)
class PlainSettings:
    """Check a hostfile, and write it as the bare list of names that `colossalai run` takes.

    That command takes a comment for a host name and knows neither users nor ports. Prints the flag for the ssh port
    if the hosts have one of their own.
    """

    hostfile: Path
    """Hosts, see docs/launching.md."""
    output: Path
    """File to write the bare list to; replaced when it is there."""
    nproc_per_node: int | None = None
    """Ranks on every host, held against slots=N."""


def main(settings: PlainSettings) -> int:
    """Write the list; the mistakes of the hostfile are raised with their lines."""
    hosts = read_hostfile(settings.hostfile)
    if settings.nproc_per_node is not None:
        ranks_per_host(hosts, settings.nproc_per_node, settings.hostfile)
    text, port = plain_hostfile(hosts, settings.hostfile)
    with whole_file(settings.output, overwrite=True) as work:
        work.write_text(text, encoding="utf-8")
    if port is not None:
        print(f"--ssh-port={port}")
    return 0
