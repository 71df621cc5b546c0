"""A road as it is written: every refusal names its line."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from colossal_llama2.align.road_file import read_road_file
from colossal_llama2.errors import InputError

GOOD = """\
pretrained: base
road_dir: out
lr: 1e-4
prepare:
  - name: corpus
    tool: prepare_pretrain_dataset
    data_input_dirs: text
stages:
  - name: align
    stage: pretrain
    dataset: [$corpus, more]
    freeze_non_embeds_params: true
  - stage: sft
    name: chat
    dataset: chats
"""


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "road.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_a_file_is_read_with_its_lines(tmp_path: Path) -> None:
    file = read_road_file(written(tmp_path, GOOD))
    assert [(step.name, step.kind, step.is_tool, step.line) for step in file.steps] == [
        ("corpus", "prepare_pretrain_dataset", True, 5),
        ("align", "pretrain", False, 9),
        ("chat", "sft", False, 13),
    ]
    assert {name: (entry.line, entry.arguments) for name, entry in file.head.items()} == {
        "pretrained": (1, ("--pretrained", "base")),
        "road_dir": (2, ("--road_dir", "out")),
        "lr": (3, ("--lr", "1e-4")),
    }
    align = file.steps[1].entries
    assert align["dataset"].arguments == ("--dataset", "$corpus", "more")
    assert align["freeze_non_embeds_params"].arguments == ("--freeze_non_embeds_params",)


@pytest.mark.parametrize(
    ("old", "new", "line", "words"),
    [
        ("road_dir: out", "road_dir: [out", 3, "not YAML"),
        ("lr: 1e-4", "lr: {a: 1}", 3, "holds a mapping"),
        ("road_dir: out", "lr: 2e-4", 3, "lr is set twice, first in line 2"),
        ("    name: chat", "    name: align", 13, "the name align is taken in line 9"),
        ("    name: chat", "    name: a/b", 14, "cannot be the name of a step"),
        ("    name: chat", "    name: cache", 14, "cannot be the name of a step"),
        ("    name: chat\n", "", 13, "without a name"),
        ("    stage: pretrain\n", "", 9, "needs one `stage: KIND` or `tool: NAME`"),
        ("    stage: pretrain", "    stage: pretrain\n    tool: init_model", 9, "needs one"),
        ("    tool: prepare_pretrain_dataset", "    stage: sft", 5, "needs one `tool: NAME`"),
        ("  - name: corpus", "  - corpus\n  - name: corpus", 5, "not a step"),
        ("stages:", "steps:", None, "has no `stages:`"),
    ],
)
def test_a_mistake_names_its_line(tmp_path: Path, old: str, new: str, line: int | None, words: str) -> None:
    assert old in GOOD
    path = written(tmp_path, GOOD.replace(old, new))
    with pytest.raises(InputError, match=words.replace("(", r"\(")) as error:
        read_road_file(path)
    assert (error.value.path, error.value.line) == (path, line)
    assert str(error.value).startswith(f"{path}:{line}: " if line else f"{path}: ")


@pytest.mark.parametrize("text", ["", "road_dir: a\n", "stages: []\n", "stages: 3\n", "- a\n"])
def test_a_file_without_stages_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(InputError):
        read_road_file(written(tmp_path, text))


@settings(deadline=None, max_examples=30)
@given(
    names=st.lists(st.from_regex(r"[A-Za-z][A-Za-z0-9_-]{0,6}", fullmatch=True), min_size=1, max_size=4, unique=True),
    values=st.dictionaries(
        st.from_regex(r"x_[a-z]{1,5}", fullmatch=True),
        st.one_of(st.integers(), st.text(st.characters(categories=["L", "N", "P", "Zs"]), max_size=12)),
        max_size=4,
    ),
)
def test_what_is_written_comes_back_as_text(
    tmp_path_factory: pytest.TempPathFactory, names: list[str], values: dict[str, int | str]
) -> None:
    path = tmp_path_factory.getbasetemp() / "any-road.yaml"
    stages = [{"name": f"s{name}", "stage": "pretrain", **values} for name in names]
    path.write_text(yaml.safe_dump({"stages": stages}, allow_unicode=True), encoding="utf-8")
    file = read_road_file(path)
    assert [step.name for step in file.steps] == [stage["name"] for stage in stages]
    lines = path.read_text(encoding="utf-8").splitlines()
    for step in file.steps:
        assert {name: entry.value for name, entry in step.entries.items()} == {k: str(v) for k, v in values.items()}
        for name, entry in step.entries.items():
            assert lines[entry.line - 1].lstrip("- ").startswith(f"{name}:")
