"""What every step is told: inheritance, hand-over, references, and a line for every mistake."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from colossal_llama2.align.road import read_road
from colossal_llama2.align.road_steps import Road
from colossal_llama2.errors import InputError

HEAD = "pretrained: base\nroad_dir: out\n"


def road(tmp_path: Path, text: str) -> Road:
    path = tmp_path / "road.yaml"
    path.write_text(text, encoding="utf-8")
    return read_road(path)


def steps(*each: str) -> str:
    return "stages:\n" + "".join(f"  - {{{text}}}\n" for text in each)


def test_settings_are_inherited_and_typed_as_flags_are(tmp_path: Path) -> None:
    head = HEAD + "lr: 1e-4\nplugin: gemini\nnproc_per_node: 4\nmax_length: 77\nuse_grad_checkpoint: yes\n"
    found = road(
        tmp_path,
        head
        + steps(
            "name: c, tool: prepare_pretrain_dataset, data_input_dirs: text",
            "name: a, stage: pretrain, dataset: $c, max_steps: 3, save_interval: 0",
            "name: b, stage: sft, dataset: [x, y], lr: 2.5e-5, plugin: zero2, nproc_per_node: 1,\n"
            "     use_grad_checkpoint: no",
        ),
    )
    corpus, first, second = found.steps
    assert corpus.settings.splicing.max_length == 77
    assert corpus.settings.data_jsonl_output_dir is None
    assert (corpus.settings.data_cache_dir, corpus.launch) == (Path("out/cache"), None)
    assert first.settings.optimizer.lr == 1e-4
    assert (first.settings.parallel.plugin, first.settings.data.max_length) == ("gemini", 77)
    assert (first.settings.data.max_steps, first.settings.model.use_grad_checkpoint) == (3, True)
    assert first.launch is not None
    assert first.launch.nproc_per_node == 4
    assert second.settings.optimizer.lr == 2.5e-5
    assert (second.settings.parallel.plugin, second.settings.model.use_grad_checkpoint) == ("zero2", False)
    assert second.settings.data.dataset == (Path("x"), Path("y"))
    assert second.launch is not None
    assert second.launch.nproc_per_node == 1
    assert [step.settings.output.save_dir for step in (first, second)] == [Path("out/a"), Path("out/b")]


def test_models_are_handed_over(tmp_path: Path) -> None:
    found = road(
        tmp_path,
        HEAD
        + steps(
            "name: t, tool: init_tokenizer, expand_tokens_file: p.jsonl",
            "name: m, tool: init_model",
            "name: c, tool: prepare_pretrain_dataset, data_input_dirs: text",
            "name: a, stage: pretrain, dataset: $c",
            "name: r, stage: reward, dataset: d",
            "name: s, stage: sft, dataset: $c/part-00000",
            "name: other, stage: sft, dataset: d, from: a",
            "name: beside, stage: sft, dataset: d, pretrained: $m",
            "name: lora, stage: sft, dataset: d, lora_rank: 4, lora_merge: true",
            "name: last, stage: sft, dataset: d",
        ),
    )
    by_name = {step.name: step for step in found.steps}
    assert by_name["t"].settings.source_tokenizer_dir == Path("base")
    model = by_name["m"].settings
    assert (model.source_model_and_tokenizer_path, model.target_tokenizer_path) == (Path("base"), Path("out/t"))
    assert by_name["c"].settings.tokenizer_dir == Path("out/m")
    starts = {name: step.settings.model.pretrained for name, step in by_name.items() if step.launch is not None}
    assert starts == {
        "a": Path("out/m"),
        "r": Path("out/a/modeling"),
        "s": Path("out/a/modeling"),  # what scores is no model to go on with
        "other": Path("out/a/modeling"),
        "beside": Path("out/m"),
        "lora": Path("out/beside/modeling"),
        "last": Path("out/lora/modeling"),
    }
    assert by_name["s"].settings.data.dataset == (Path("out/c/part-00000"),)
    assert by_name["s"].needs == ("a", "c")
    assert found.made_from(["m"]) == set(by_name) - {"t"}
    assert found.made_from(["lora"]) == {"lora", "last"}
    assert found.made_from([]) == set()


STEP = "name: a, stage: pretrain, dataset: d"


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        (HEAD + "lrr: 1\n" + steps(STEP), 3, "unknown setting 'lrr'; did you mean lr?"),
        (HEAD + "neftune_alpha: 5\n" + steps(STEP), 3, "no step of this road has neftune_alpha"),
        (HEAD + "save_dir: x\n" + steps(STEP), 3, "save_dir is set by the road itself"),
        ("pretrained: base\n" + steps(STEP), None, "has no `road_dir:`"),
        ("road_dir: out\n" + steps(STEP), 3, "step a has no pretrained, and nothing before it makes one"),
        (HEAD + steps("name: a, stage: pretrane, dataset: d"), 4, "no stage 'pretrane'; did you mean pretrain?"),
        (HEAD + steps("name: z, tool: pretrain", STEP), 4, "there is no tool 'pretrain'"),
        (HEAD + "lr: fast\n" + steps(STEP), 3, "could not convert string to float: 'fast'"),
        (HEAD + steps("name: a, stage: pretrain,\n     dataset: d,\n     plugin: zero9"), 6, "invalid choice 'zero9'"),
        (HEAD + steps("name: a, stage: pretrain,\n     dataset: d,\n     lr: [1, 2]"), 6, "unrecognized options: 2"),
        (HEAD + steps("name: a, stage: pretrain,\n     dataset: d,\n     use_flash_attn: 3"), 6, "unrecognized"),
        (HEAD + steps("name: a, stage: pretrain,\n     dataset: d,\n     nproc_per_node: x"), 6, "nproc_per_node"),
        (HEAD + steps("name: a, stage: pretrain"), 4, "missing --dataset"),
        (HEAD + steps(STEP + ", lora_rang: 3"), 4, "pretrain has no setting 'lora_rang'; did you mean lora_rank?"),
        (HEAD + steps(STEP + ", load_checkpoint: latest"), 4, "load_checkpoint is set by the road itself"),
        (HEAD + steps(STEP + ", from: b", "name: b, stage: sft, dataset: d"), 4, "a names b, which comes later"),
        (HEAD + steps("name: a, stage: pretrain, dataset: $a"), 4, "step a names itself"),
        (HEAD + steps(STEP, "name: b, stage: sft, dataset: $aa"), 5, "'aa', no step of this road; did you mean a?"),
        (HEAD + steps(STEP + ", from: x, pretrained: y"), 4, "both `from` and pretrained"),
        (HEAD + steps("name: r, stage: reward, dataset: d", "name: s, stage: sft, dataset: d, from: r"), 5,
         "makes no language model"),
        (HEAD + steps(STEP + ", lora_rank: 4", "name: b, stage: sft, dataset: d"), 5, r"is an adapter .*\(line 4\)"),
        (HEAD + steps(STEP + ", lora_rank: 4", "name: b, stage: sft, dataset: d, from: a"), 5, "is an adapter"),
        (HEAD + steps(STEP + ", lora_rank: 4", "name: b, stage: sft, dataset: d, pretrained: $a"), 5, "is an adapter"),
        (HEAD + steps("name: t, tool: init_tokenizer", STEP), 4, "has no expand_tokens_file"),
    ],
)  # fmt: skip
def test_a_mistake_names_its_line(tmp_path: Path, text: str, line: int | None, words: str) -> None:
    with pytest.raises(InputError) as error:
        road(tmp_path, text)
    assert error.value.line == line, error.value

    assert re.search(words if "\\" in words else re.escape(words), str(error.value)), error.value


@settings(deadline=None, max_examples=10)
@given(lr=st.floats(1e-9, 10, allow_subnormal=False), steps_done=st.integers(1, 10**9), seed=st.integers(0, 2**31))
def test_numbers_survive_the_way_through_the_file(
    tmp_path_factory: pytest.TempPathFactory, lr: float, steps_done: int, seed: int
) -> None:
    text = HEAD + f"lr: {lr!r}\nseed: {seed}\n" + steps(f"{STEP}, max_steps: {steps_done}")
    (step,) = road(tmp_path_factory.getbasetemp(), text).steps
    assert (step.settings.optimizer.lr, step.settings.optimizer.seed) == (lr, seed)
    assert step.settings.data.max_steps == steps_done
