"""What cannot work is found before anything runs, in whatever step it is; and the examples can be gone."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from colossal_llama2.align import stages
from colossal_llama2.align.road import RoadSettings, main, read_road
from colossal_llama2.align.road_checks import _SAMPLING, _STAGES, Checker
from colossal_llama2.align.road_records import look
from colossal_llama2.errors import InputError

ROOT = Path(__file__).parents[2]


def check(tmp_path: Path, text: str, base: Path | str = "base", existence: bool = True) -> None:
    path = tmp_path / "road.yaml"
    head = f"pretrained: {base}\nroad_dir: {tmp_path / 'out'}\nmax_length: 64\nstages:\n"
    path.write_text(head + "".join(f"  - {{{line}}}\n" for line in text.strip().splitlines()), encoding="utf-8")
    road = read_road(path)
    Checker(road, look(road), existence).check()


CORPUS = "name: c, tool: prepare_pretrain_dataset, data_input_dirs: text"


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("name: a, stage: pretrain, dataset: d, lr: -1", 5, "--lr is -1"),
        ("name: a, stage: pretrain, dataset: d\nname: b, stage: sft, dataset: d, neftune_alpha: -1", 6, "neftune"),
        ("name: a, stage: pretrain, dataset: d, plugin: zero2, tp: 2", 5, "tp"),
        ("name: a, stage: pretrain, dataset: d, plugin: 3d, tp: 2, nproc_per_node: 3", 5, "3 ranks cannot be divided"),
        (f"{CORPUS}, holdout: 1%, max_length: 128\nname: a, stage: pretrain, dataset: $c", 6, "rows of up to 128"),
        (f"{CORPUS}\nname: a, stage: pretrain, dataset: $c, eval_dataset: $c/holdout", 6, "sets nothing aside"),
        (f"{CORPUS}\nname: a, stage: sft, dataset: $c", 6, "is a set of type pretrain, and this stage reads sft"),
        (f"{CORPUS}\nname: a, stage: reward, dataset: $c", 6, "this stage reads preference"),
        (f"{CORPUS}\nname: a, stage: ppo, dataset: $c, reward_function: m:f", 6, "this stage reads prompt"),
        ("name: p, tool: prepare_dataset, type: prompt, data_input_dirs: x\nname: a, stage: ppo, dataset: $p", 6,
         "nothing pays for answers"),
        ("name: t, tool: init_tokenizer, expand_tokens_file: p\nname: m, tool: init_model\n"
         "name: c, tool: prepare_pretrain_dataset, data_input_dirs: x, tokenizer_dir: {base}\n"
         "name: a, stage: pretrain, dataset: $c", 8, "is encoded with another tokenizer"),
        ("name: t, tool: init_tokenizer, expand_tokens_file: p\nname: m, tool: init_model\n"
         "name: r, stage: reward, dataset: d, pretrained: {base}\n"
         "name: a, stage: ppo, dataset: d, pretrained: $m", 8, "has another tokenizer"),
        ("name: a, stage: ppo, dataset: d, reward_function: m:f, rollout_batch: 7, nproc_per_node: 2", 5, "rollout"),
        ("name: a, stage: grpo, dataset: d", 5, "pays for answers"),
        ("name: a, stage: distill, dataset: d", 5, "without --teacher"),
    ],
)  # fmt: skip
def test_what_cannot_work_names_its_line(
    tmp_path: Path, text: str, line: int, words: str, tiny_model_dir: Path
) -> None:
    with pytest.raises(InputError) as error:
        check(tmp_path, text.replace("{base}", str(tiny_model_dir)), tiny_model_dir, existence=False)
    assert error.value.line == line, error.value
    assert re.search(re.escape(words), str(error.value)), error.value


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("name: a, stage: pretrain, dataset: nowhere", 5, "--dataset nowhere does not exist"),
        ("name: c, tool: prepare_pretrain_dataset, data_input_dirs: 'x*'", None, ""),
        ("name: b, stage: sft, dataset: {out}/c\nname: c, tool: prepare_dataset, type: sft, data_input_dirs: {here}", 5,
         "is made by step c, which comes later"),
        ("name: a, stage: pretrain, dataset: {here}, hostfile: nowhere", 5, "nowhere"),
    ],
)  # fmt: skip
def test_what_is_not_there_names_its_line(
    tmp_path: Path, text: str, line: int | None, words: str, tiny_model_dir: Path
) -> None:
    text = text.replace("{out}", str(tmp_path / "out")).replace("{here}", str(tiny_model_dir))
    with pytest.raises(InputError) as error:
        check(tmp_path, text, tiny_model_dir)
    assert line is None or error.value.line == line, error.value
    assert words in str(error.value)


def test_every_stage_has_its_own_checks() -> None:
    assert set(stages.STAGES) == {*_STAGES, *_SAMPLING}


def test_a_road_is_not_started_under_torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(InputError, match="is started under torchrun"):
        main(RoadSettings(Path("road.yaml")))


def test_the_7b_road_can_be_gone_where_its_files_are() -> None:
    road = read_road(ROOT / "examples" / "road_7b.yaml")
    Checker(road, look(road), existence=False).check()
    assert [step.kind.name for step in road.steps if step.launch is not None] == [
        *["pretrain"] * 3, "sft", "reward", "ppo"
    ]  # fmt: skip


def test_the_demos_road_passes_a_dry_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from examples.make_road_inputs import RoadInputs
    from examples.make_road_inputs import main as make_inputs

    monkeypatch.chdir(tmp_path)
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    make_inputs(RoadInputs())
    settings = RoadSettings(Path("examples/road_demo.yaml"), dry_run=True, tokens_per_second=2000)
    assert main(settings) == 0
    said = capsys.readouterr().out
    assert "2. base (pretrain): to be done" in said
    assert "weights  pretrained runs/road-demo/road/sft/modeling, reward_model runs/road-demo/road/reward/mod" in said
    assert "at most 250 steps of 2 rows, on 2 ranks" in said
    assert "about 02:08 or less (at --tokens_per_second 2,000, as told" in said  # 250 x 2 x 512 tokens
    assert "GiB of every device predicted" in said
    assert not (tmp_path / "runs" / "road-demo" / "road").exists()
