"""Going along a road with steps that only pretend: what is skipped, resumed, begun anew, refused and discarded."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from colossal_llama2.align.road import read_road
from colossal_llama2.align.road_records import Found, locked, look
from colossal_llama2.align.road_steps import Road, Step
from colossal_llama2.align.road_walk import walk
from colossal_llama2.engine.running_state import FILE_NAME
from colossal_llama2.errors import InputError

TEXT = """\
pretrained: base
road_dir: {folder}
lr: 1e-4
stages:
  - name: corpus
    tool: prepare_pretrain_dataset
    data_input_dirs: text
  - name: first
    stage: pretrain
    dataset: $corpus
  - name: beside
    stage: sft
    dataset: chats
    from: first
  - name: last
    stage: sft
    dataset: chats
    from: first
    save_interval: 5
"""


class Pretended:
    """Does steps by writing what tells them done; one of them ends otherwise."""

    def __init__(self, fails_at: str = "", code: int = 0, leaves: str = "") -> None:
        self.done: list[tuple[str, tuple[str, ...]]] = []
        self._fails_at, self._code, self._leaves = fails_at, code, leaves

    def __call__(self, step: Step, flags: Sequence[str]) -> int:
        self.done.append((step.name, tuple(flags)))
        made = step.folder / self._leaves if step.name == self._fails_at else step.whole
        made.parent.mkdir(parents=True, exist_ok=True)
        made.write_text("{}")
        return self._code if step.name == self._fails_at else 0


def read(tmp_path: Path, *changes: tuple[str, str]) -> Road:
    text = TEXT.replace("{folder}", str(tmp_path / "out"))
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    path = tmp_path / "road.yaml"
    path.write_text(text, encoding="utf-8")
    return read_road(path)


def go(road: Road, run: Pretended, redo: Sequence[str] = ()) -> int:
    every = [step.name for step in road.steps if step.name in road.made_from(redo)]
    return walk(road, look(road, every), every, run)


def states(road: Road) -> list[str]:
    return [found.state for found in look(road).values()]


def test_everything_is_done_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    road, first, second = read(tmp_path), Pretended(), Pretended()
    assert states(road) == ["waiting"] * 4
    assert go(road, first) == 0
    assert first.done == [("corpus", ()), ("first", ()), ("beside", ()), ("last", ())]
    assert states(road) == ["done"] * 4
    assert "last/modeling" in capsys.readouterr().out
    assert go(road, second) == 0
    assert second.done == []
    assert capsys.readouterr().out.count("done already") == 4
    record = json.loads((tmp_path / "out" / "road" / "first.json").read_text())
    assert record["state"] == "done"
    assert record["settings"]["pretrained"] == "base"
    assert record["settings"]["dataset"] == ["road_dir/corpus"]


@pytest.mark.parametrize(
    ("leaves", "state", "flags"),
    [
        (f"epoch-0_step-5/{FILE_NAME}", "resume", ("--load_checkpoint", "latest")),
        ("run/metrics.jsonl", "again", ("--overwrite",)),
    ],
)
def test_what_was_broken_off_is_gone_on_with(tmp_path: Path, leaves: str, state: str, flags: tuple[str, ...]) -> None:
    road = read(tmp_path)
    assert go(road, Pretended("first", 143, leaves)) == 143
    assert states(road) == ["done", state, "waiting", "waiting"]
    run = Pretended()
    assert go(read(tmp_path, ("save_interval: 5", "save_interval: 7")), run) == 0
    assert run.done == [("first", flags), ("beside", ()), ("last", ())]


def test_a_step_that_was_whole_when_its_road_was_killed_is_done(tmp_path: Path) -> None:
    road = read(tmp_path)
    assert go(road, Pretended("first", 137, "modeling/config.json")) == 137
    assert states(road) == ["done", "done", "waiting", "waiting"]


def test_the_code_of_a_step_that_fails_is_the_roads(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = Pretended("beside", 2, "x")
    assert go(read(tmp_path), run) == 2
    assert [name for name, _ in run.done] == ["corpus", "first", "beside"]
    assert "ends at step beside with exit code 2" in capsys.readouterr().out


def test_other_settings_are_refused_with_line_and_choice(tmp_path: Path) -> None:
    assert go(read(tmp_path), Pretended()) == 0
    with pytest.raises(InputError, match=r"first was begun with lr 0\.0001, and now it is 0\.1") as error:
        look(read(tmp_path, ("lr: 1e-4", "lr: 0.1")))
    assert error.value.line == 3
    assert "--redo first" in str(error.value)
    with pytest.raises(InputError, match="last was begun with dataset chats, and now it is other") as error:
        look(read(tmp_path, ("dataset: chats\n    from: first\n    save", "dataset: other\n    from: first\n    save")))
    assert error.value.line == 17


def test_what_is_redone_is_discarded_with_all_that_is_made_of_it(tmp_path: Path) -> None:
    road = read(tmp_path)
    assert go(road, Pretended()) == 0
    keep = tmp_path / "out" / "corpus" / "manifest.json"
    old = tmp_path / "out" / "first" / "epoch-0_step-1"
    old.mkdir()
    run = Pretended("beside", 1, "x")
    changed = read(tmp_path, ("dataset: $corpus", "dataset: $corpus\n    max_steps: 7"))
    assert go(changed, run, redo=["first"]) == 1
    assert run.done == [("first", ()), ("beside", ())]
    assert keep.exists()
    assert not old.exists()
    assert not (tmp_path / "out" / "last").exists()
    assert states(changed) == ["done", "done", "again", "waiting"]
    assert not [path for path in (tmp_path / "out").iterdir() if path.name.startswith(".")]


def test_an_output_that_was_removed_is_made_again_where_it_is_needed_alone(tmp_path: Path) -> None:
    road = read(tmp_path)
    assert go(road, Pretended()) == 0
    (tmp_path / "out" / "corpus" / "manifest.json").unlink()
    assert states(road) == ["gone", "done", "done", "done"]
    (tmp_path / "out" / "first" / "modeling" / "config.json").unlink()
    assert states(road) == ["gone", "gone", "done", "done"]
    (tmp_path / "out" / "road" / "last.json").unlink()
    (tmp_path / "out" / "last" / "modeling" / "config.json").unlink()
    (tmp_path / "out" / "last" / "modeling").rmdir()
    assert states(road) == ["again", "again", "done", "waiting"]


def test_what_no_road_put_there_is_left_alone(tmp_path: Path) -> None:
    mine = tmp_path / "out" / "first" / "mine.txt"
    mine.parent.mkdir(parents=True)
    mine.write_text("mine")
    with pytest.raises(InputError, match="something lies that this road did not put there") as error:
        look(read(tmp_path))
    assert error.value.line == 8
    assert mine.exists()
    run = Pretended()
    assert go(read(tmp_path), run, redo=["first"]) == 0
    assert not mine.exists()


def test_a_step_that_leaves_nothing_behind_is_a_failure(tmp_path: Path) -> None:
    road = read(tmp_path)
    with pytest.raises(RuntimeError, match=r"manifest\.json is not there"):
        walk(road, dict.fromkeys([step.name for step in road.steps], Found("waiting")), (), lambda step, flags: 0)


def test_two_roads_do_not_share_a_folder(tmp_path: Path) -> None:
    road = read(tmp_path)
    with locked(road), pytest.raises(InputError, match="another road is at work"), locked(road):
        pass
    with locked(road):
        pass


def test_a_record_of_another_version_is_refused(tmp_path: Path) -> None:
    record = tmp_path / "out" / "road" / "first.json"
    record.parent.mkdir(parents=True)
    record.write_text('{"version": 99}')
    with pytest.raises(InputError, match="version 99"):
        look(read(tmp_path))
    record.write_text("{")
    with pytest.raises(InputError, match="not a road's record"):
        look(read(tmp_path))
