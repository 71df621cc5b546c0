"""tools/doctor.py: what it finds on hosts that the stand-in for ssh plays, and how it judges answers made by hand."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from colossal_llama2.engine.nodes import findings, probe
from colossal_llama2.engine.nodes.doctor import DoctorSettings, examine, main
from colossal_llama2.engine.nodes.hostfile import Host, read_hostfile

A, B = Host("a"), Host("b")
ANSWER: dict[str, Any] = {
    "python": "3.11.7",
    "packages": {"torch": "2.13.0", "transformers": "5.23.0", "colossalai": "0.5.0"},
    "code": "abc",
    "gpus": ["H100, 81559", "H100, 81559"],
    "torch_gpus": 2,
    "inputs": {"/m": {"problem": "", "hash": "1", "weights": 100}},
    "save": {"folder": "/s", "problem": "", "free": 601},
}


def test_two_hosts_that_are_well(stub_ssh: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "hostfile").write_text("chatty-a # prints a greeting\nnode-b\n")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    before = sorted(tmp_path.rglob("*"))
    settings = DoctorSettings(
        hostfile=tmp_path / "hostfile",
        pretrained=tmp_path / "model",
        save_dir=tmp_path / "not" / "made" / "yet",
        master_addr="127.0.0.1",
    )
    began = time.monotonic()
    found = examine(settings, read_hostfile(tmp_path / "hostfile"))
    assert time.monotonic() - began < 60
    by_host = [finding for finding in found if finding.check != "environment"]
    assert [finding for finding in by_host if not finding.ok] == []
    assert {finding.check for finding in by_host} == set(findings.ORDER) - {"environment"}
    assert {finding.host for finding in by_host} == {"chatty-a", "node-b"}
    assert "shared" in next(finding.found for finding in by_host if finding.check == "save folder")
    assert sorted(tmp_path.rglob("*")) == sorted([*before, stub_ssh]), "nothing is left behind"


def test_what_is_wrong_is_named_with_its_remedy(
    stub_ssh: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRICK", '"; touch gone; "')
    (tmp_path / "hostfile").write_text("node-a\ndead-b\n")
    settings = DoctorSettings(
        hostfile=tmp_path / "hostfile", dataset=(tmp_path / "no corpus",), master_addr="127.0.0.1"
    )
    assert main(settings) == 1
    lines = capsys.readouterr().out.splitlines()
    bad = [line for line in lines if " BAD " in line]
    assert len(bad) == 3, lines
    assert bad[0].startswith("ssh") and "No route to host" in bad[0] and "ssh dead-b true" in bad[0]  # noqa: PT018
    assert bad[1].startswith("input") and "does not exist" in bad[1]  # noqa: PT018
    assert bad[2].startswith("environment") and "TRICK" in bad[2] and "touch" not in bad[2]  # noqa: PT018
    assert lines[-1].startswith("2 hosts, ")


def test_a_port_that_is_taken(tmp_path: Path) -> None:
    import socket

    with socket.create_server(("", 0)) as taken:
        found = examine(DoctorSettings(master_port=taken.getsockname()[1]), [Host("localhost")])
    (port,) = [finding for finding in found if finding.check == "master port"]
    assert not port.ok
    assert "in use" in port.found


@pytest.mark.parametrize(
    ("change", "check", "word"),
    [
        ({"python": "3.12.1"}, "python", "3.11.7, as on a"),
        ({"packages": {**ANSWER["packages"], "torch": "2.11.0"}}, "packages", "torch 2.11.0, not 2.13.0"),
        ({"packages": {**ANSWER["packages"], "torch": None}}, "packages", "torch missing, not 2.13.0"),
        ({"code": "def"}, "code", "from a"),
    ],
)
def test_software_that_differs(change: dict[str, Any], check: str, word: str) -> None:
    found = findings.same_software(B, {**ANSWER, **change}, A, ANSWER)
    (bad,) = [finding for finding in found if not finding.ok]
    assert bad.check == check
    assert word in bad.found + bad.remedy
    assert all(finding.ok for finding in findings.same_software(B, ANSWER, A, ANSWER))


def test_gpus() -> None:
    none = {**ANSWER, "gpus": [], "torch_gpus": None}
    assert findings.gpus(B, ANSWER, ANSWER, 2).ok
    assert findings.gpus(B, none, none, 2).ok
    for answer, ranks in (
        (ANSWER, 3),
        (none, 2),
        ({**ANSWER, "torch_gpus": 0}, 2),
        ({**ANSWER, "gpus": ["A100"] * 2}, 2),
    ):
        assert not findings.gpus(B, answer, ANSWER, ranks).ok
    assert "2 x H100, 81559 MiB" in findings.gpus(B, ANSWER, ANSWER, 3).found


def test_clock_inputs_folders_and_disk() -> None:
    assert findings.clock(A, 0.3).ok
    assert "3.0 s behind" in findings.clock(A, -3.0).found
    assert not findings.clock(A, -3.0).ok
    other = {**ANSWER, "inputs": {"/m": {"problem": "", "hash": "2"}}}
    assert findings.input_folder(B, "/m", ANSWER, A, ANSWER).ok
    assert "is another one" in findings.input_folder(B, "/m", other, A, ANSWER).found
    assert all(finding.ok for finding in findings.save_folder(A, ANSWER, ["x", "y"], ["x", "y"], 100))
    assert not findings.save_folder(A, ANSWER, ["x"], ["x", "y"], 100)[0].ok
    assert not findings.save_folder(A, ANSWER, ["x"], ["x"], 101)[1].ok, "606 bytes are needed and 601 are free"


def test_where_the_way_to_a_host_ends() -> None:
    judged = {
        (255, "Permission denied (publickey)."): "ssh",
        (1, "/x/python: No module named colossal_llama2"): "code",
        (127, "bash: line 1: /x/python: No such file or directory"): "python",
        (1, "bash: line 1: cd: /x: No such file or directory"): "code",
    }
    for (code, problem), check in judged.items():
        found = findings.reachable(A, problem, code)
        assert (found.check, found.ok) == (check, False)
        assert found.remedy


def test_variables_that_colossalai_run_would_trip_over() -> None:
    (bad,) = findings.environment({"OK": "a b=c/d", "Q": 'say "x"', "C": "$(id)", "T": "`id`", "D": "$HOME"})
    assert "C, D, Q, T" in bad.found
    assert findings.environment({"OK": "a b"})[0].ok


def test_the_hash_is_that_of_the_code(tmp_path: Path) -> None:
    (tmp_path / "colossal_llama2").mkdir()
    (tmp_path / "colossal_llama2" / "a.py").write_text("1")
    first = probe.code_hash(tmp_path)
    (tmp_path / "notes.txt").write_text("x")
    assert probe.code_hash(tmp_path) == first
    (tmp_path / "colossal_llama2" / "a.py").write_text("2")
    assert probe.code_hash(tmp_path) != first
    json.dumps(probe.look({"inputs": [], "save_dir": "", "mark": ""}))
