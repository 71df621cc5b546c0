"""`tools/doctor.py`: asks every host at once whether a run could start there, and says what to do where not."""

from __future__ import annotations

import json
import os
import subprocess
import time
import uuid
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from colossal_llama2.engine.nodes import findings, frames
from colossal_llama2.engine.nodes.findings import Finding
from colossal_llama2.engine.nodes.hostfile import Host, read_hostfile
from colossal_llama2.engine.nodes.remote import ROOT, Ssh, is_here, module_command
from colossal_llama2.errors import InputError

_PROBE = "colossal_llama2.engine.nodes.probe"
_PROBE_SECONDS = 90


@dataclass(frozen=True)
class DoctorSettings:
    """Check that a run can start on every host of a hostfile, or on this machine alone.

    Nothing is started and nothing is left behind. Exits with 1 when a row of the table is bad.
    """

    hostfile: Path | None = None
    """Hosts to look at, all at once (default: this machine alone)."""
    nproc_per_node: int | None = None
    """Ranks wanted on every host (default: slots=N of the hostfile)."""
    pretrained: Path | None = None
    """Model folder that every host must see."""
    dataset: tuple[Path, ...] = ()
    """Prepared corpora that every host must see."""
    save_dir: Path | None = None
    """Folder of the checkpoints: writable everywhere, and the same folder everywhere."""
    master_addr: str = ""
    """Address under which the others reach the first host (default: its name in the hostfile)."""
    master_port: int = 0
    """Port on the first host that must be free and reachable (default: any free one)."""
    ssh_config: Path | None = None
    """Configuration file for ssh (default: ssh's own)."""
    connect_seconds: int = 10
    """How long a host may take to answer ssh."""


@dataclass
class Patient:
    """A host, and what it answered.

    Attributes:
        host: which one.
        answer: to the first request; None when there was none.
        problem: why there was none.
        exit_code: of the command that asked.
        clock_ahead: its clock minus this machine's, in seconds, to about the time that ssh takes.
        marks: answer to the second request.
    """

    host: Host
    answer: dict[str, Any] | None = None
    problem: str = ""
    exit_code: int | None = None
    clock_ahead: float = 0.0
    marks: dict[str, Any] = field(default_factory=dict)

    @property
    def mark(self) -> str:
        """The file it left in the save folder, if it could."""
        save = (self.answer or {}).get("save") or {}
        return str(save.get("mark", ""))


def main(settings: DoctorSettings) -> int:
    """Look at every host and print the table; return 0, or 1 when something is bad."""
    if settings.ssh_config is not None and not settings.ssh_config.is_file():
        raise InputError("no such file", path=settings.ssh_config, remedy="name a configuration file of ssh")
    hosts = [Host("localhost")] if settings.hostfile is None else read_hostfile(settings.hostfile)
    began = time.monotonic()
    found = examine(settings, hosts)
    print(findings.table(found))
    bad = sum(not finding.ok for finding in found)
    print(f"{len(hosts)} hosts, {len(found)} checks, {bad} bad, {time.monotonic() - began:.1f} s")
    return 1 if bad else 0


def examine(settings: DoctorSettings, hosts: Sequence[Host]) -> list[Finding]:
    """Ask all hosts at once, twice: what they are like, and then what they see of one another."""
    patients = [Patient(host) for host in hosts]
    ssh = Ssh(settings.ssh_config and settings.ssh_config.absolute(), settings.connect_seconds)
    token = uuid.uuid4().hex[:8]
    with ThreadPoolExecutor(len(patients)) as pool:
        list(pool.map(lambda patient: _look(patient, settings, ssh, token), patients))
        alive = [patient for patient in patients if patient.answer is not None]
        port_problem = _second_round(alive, hosts[0], settings, ssh, pool) if alive else ""
    found = [findings.reachable(patient.host, patient.problem, patient.exit_code) for patient in patients]
    if alive:
        found += _judge(settings, alive, port_problem)
    return [*found, *(findings.environment(os.environ) if settings.hostfile is not None else [])]


def _judge(settings: DoctorSettings, alive: Sequence[Patient], port_problem: str) -> list[Finding]:
    first = alive[0]
    assert first.answer is not None
    found: list[Finding] = []
    marks = [patient.mark for patient in alive if patient.mark]
    for patient in alive:
        host, answer = patient.host, patient.answer
        assert answer is not None
        found += findings.same_software(host, answer, first.host, first.answer)
        found.append(findings.gpus(host, answer, first.answer, settings.nproc_per_node or host.slots))
        found.append(findings.clock(host, patient.clock_ahead))
        found += [findings.input_folder(host, path, answer, first.host, first.answer) for path in _inputs(settings)]
        if settings.save_dir is not None:
            found += findings.save_folder(
                host, answer, patient.marks.get("seen", []), marks, _weights(settings, answer)
            )
        found.append(findings.connection(host, patient is first, port_problem, patient.marks.get("connection", "")))
    return sorted(found, key=lambda finding: findings.ORDER.index(finding.check))


def _look(patient: Patient, settings: DoctorSettings, ssh: Ssh, token: str) -> None:
    save_dir = "" if settings.save_dir is None else str(settings.save_dir.absolute())
    mark = f".doctor-{token}-{patient.host.label.replace('/', '_')}"
    request = {"look": {"inputs": [str(path) for path in _inputs(settings)], "save_dir": save_dir, "mark": mark}}
    patient.answer, patient.problem, patient.exit_code = _ask(patient.host, request, ssh)
    if patient.answer is not None:
        patient.clock_ahead = patient.answer["time"] - time.time()
        save = patient.answer["save"]
        if save and not save["problem"]:
            save["mark"] = str(Path(save["folder"]) / mark)


def _second_round(
    alive: Sequence[Patient], master: Host, settings: DoctorSettings, ssh: Ssh, pool: ThreadPoolExecutor
) -> str:
    """Let the first host listen, the others call it, and everybody look for everybody's mark; return its problem."""
    marks = [(patient, patient.mark) for patient in alive if patient.mark]
    listener = subprocess.Popen(
        module_command(master, _PROBE, ssh),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        cwd=ROOT,
    )
    try:
        said = pool.submit(_start_listening, listener, settings.master_port).result(timeout=_PROBE_SECONDS)
        address = settings.master_addr or ("127.0.0.1" if master.name == "localhost" else master.name)
        reach = [address, said["port"]] if "port" in said else None
        request = {"marks": {"marks": [mark for _, mark in marks], "master": reach}}
        answers = list(pool.map(lambda patient: _ask(patient.host, request, ssh)[0] or {}, alive))
        for patient, answer in zip(alive, answers, strict=True):
            patient.marks = answer
    except (OSError, TimeoutError) as error:
        said = {"problem": str(error) or "no answer in time"}
    finally:
        list(pool.map(lambda pair: _ask(pair[0].host, {"remove": pair[1]}, ssh), marks))
        listener.kill()  # what runs on the host ends when its standard input does
        listener.communicate()
    return "" if "port" in said else str(said.get("problem", "the first host does not answer"))


def _start_listening(listener: subprocess.Popen[bytes], port: int) -> dict[str, Any]:
    """Tell the first host to listen; return what it says, past whatever its login scripts print."""
    assert listener.stdin is not None
    assert listener.stdout is not None
    listener.stdin.write(json.dumps({"listen": port}).encode() + b"\n")
    listener.stdin.flush()
    for line in listener.stdout:
        said = frames.decode(line) or {}
        if "port" in said or "problem" in said:
            return said
    return {}


def _ask(host: Host, request: dict[str, Any], ssh: Ssh) -> tuple[dict[str, Any] | None, str, int | None]:
    """Run the probe on a host; return its answer, or what went wrong and the exit code."""
    try:
        done = subprocess.run(
            module_command(host, _PROBE, ssh),
            input=json.dumps(request).encode() + b"\n",
            capture_output=True,
            check=False,
            timeout=ssh.connect_seconds + _PROBE_SECONDS,
            cwd=ROOT if is_here(host) else None,
        )
    except subprocess.TimeoutExpired:
        return None, "no answer in time", None
    except OSError as error:
        return None, str(error), None
    answers = [frame["answer"] for line in done.stdout.splitlines() if "answer" in (frame := frames.decode(line) or {})]
    answer = answers[-1] if answers else None  # login scripts may print lines of their own
    lines = done.stderr.decode("utf-8", errors="replace").strip().splitlines()
    return answer, "" if answer is not None else (lines[-1] if lines else "nothing was said"), done.returncode


def _inputs(settings: DoctorSettings) -> list[Path]:
    named = [*([] if settings.pretrained is None else [settings.pretrained]), *settings.dataset]
    return [path.absolute() for path in named]


def _weights(settings: DoctorSettings, answer: dict[str, Any]) -> int:
    if settings.pretrained is None:
        return 0
    return int(answer["inputs"][str(settings.pretrained.absolute())].get("weights", 0))
