"""The command prints a plan, its verdict and what would fit, and tells mistakes in one line."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from colossal_llama2 import cli
from colossal_llama2.engine.memory_plan import MemoryPlan
from colossal_llama2.errors import InputError
from colossal_llama2.train.plan import PlanSettings, main, predict_run, request_of_run
from colossal_llama2.train.settings import TrainSettings

ROOT = Path(__file__).parents[2]


def plan(capsys: pytest.CaptureFixture[str], *flags: object) -> tuple[int, str]:
    code = main(cli.parse(PlanSettings, [str(flag) for flag in flags]))
    return code, capsys.readouterr().out


def test_a_plan_that_fits(tiny_model_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, output = plan(
        capsys, "--pretrained", tiny_model_dir, "--nproc", 8, "--max_length", 128, "--device_memory", 80
    )
    lines = output.splitlines()
    assert code == 0
    assert lines[0].startswith("61,600 parameters, 61,600 of them trained; zero2, 8 ranks, fp16, 1 x 128 tokens")
    for kind in ("weights", "optimizer", "activations", "logits", "allocated"):
        assert any(line.startswith(kind) for line in lines), kind
    assert sum(line.startswith("fits: ") for line in lines) == 1
    assert any(line.startswith("host memory of a machine with 8 ranks") for line in lines)
    assert any(line.startswith("ddp ") for line in lines)


def test_a_plan_that_does_not_fit_is_still_a_plan(tiny_model_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ("--pretrained", tiny_model_dir, "--device_memory", 0.5)
    code, output = plan(capsys, *flags)
    assert code == 0
    assert "does not fit: " in output
    assert "nothing fits: " in output
    assert plan(capsys, *flags, "--check")[0] == 1


def test_everything_is_there_for_machines(
    tiny_model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "plan.json"
    plan(capsys, "--pretrained", tiny_model_dir, "--max_length", 64, "--json", target, "--device_memory", 80)
    with pytest.raises(InputError, match="exists already"):
        plan(capsys, "--pretrained", tiny_model_dir, "--json", target)
    content = json.loads(target.read_text())
    assert content["fits"] is True
    assert content["plan"]["parameters"] == 61_600
    assert content["plan"]["allocated"] == max(
        sum(value for value in moment.values() if isinstance(value, int)) for moment in content["plan"]["moments"]
    )
    assert content["alternatives"]


def test_a_machine_too_small_is_a_reason_when_it_is_named(
    tiny_model_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, output = plan(capsys, "--pretrained", tiny_model_dir, "--device_memory", 80, "--host_memory", 1)
    assert "the device has room" in output
    assert "the machine has not" in output


def test_expanded_models_train_their_embeddings_beside_adapters(
    tiny_model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.json").write_bytes((tiny_model_dir / "config.json").read_bytes())
    flags = ("--pretrained", tmp_path, "--lora_rank", 4, "--lora_targets", "q_proj", "--device_memory", 80)
    adapters = 2 * 4 * (32 + 32)
    assert f" {adapters:,} of them trained" in plan(capsys, *flags)[1]
    (tmp_path / "expansion.json").write_text("{}")
    assert f" {adapters + 2 * 640 * 32:,} of them trained" in plan(capsys, *flags)[1]
    assert f" {adapters:,} of them trained" in plan(capsys, *flags, "--lora_train_embeddings", "no")[1]


@pytest.mark.parametrize(
    ("hidden", "layers", "flags"),
    [
        (4096, 32, "--nproc 8 --device_memory 80 --micro_batch_size 2"),
        (4096, 32, "--device_memory 139 --micro_batch_size 2 --checkpoint_layers 12"),
        (
            5120,
            40,
            "--plugin zero2_cpu --offload_fraction 0.5 --checkpoint_layers 20 --device_memory 139 --host_memory 128",
        ),
    ],
)
def test_the_worked_examples_are_what_the_tool_prints(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], hidden: int, layers: int, flags: str
) -> None:
    config = {
        "model_type": "llama",
        "vocab_size": 69120,
        "hidden_size": hidden,
        "intermediate_size": {4096: 11008, 5120: 13824}[hidden],
        "num_hidden_layers": layers,
        "num_attention_heads": layers,
        "dtype": "float16",
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    common = ["--pretrained", tmp_path, "--mixed_precision", "bf16", "--use_flash_attn"]
    _, output = plan(capsys, *common, *flags.split())
    documented = (ROOT / "docs" / "memory.md").read_text(encoding="utf-8")
    assert flags in documented
    assert output in documented


def test_layers_of_another_kind_are_told(
    tmp_path: Path, tiny_model_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "phi3", "num_hidden_layers": 2, "pad_token_id": 0}')
    assert "phi3 has others: a rough guide" in plan(capsys, "--pretrained", tmp_path)[1]
    assert "a rough guide" not in plan(capsys, "--pretrained", tiny_model_dir)[1]


def test_a_run_is_planned_from_its_own_settings(tiny_model_dir: Path, tmp_path: Path) -> None:
    flags = [
        "--pretrained",
        tiny_model_dir,
        "--dataset",
        tmp_path,
        "--save_dir",
        tmp_path / "run",
        "--plugin",
        "gemini",
    ]
    flags += ["--mixed_precision", "bf16", "--micro_batch_size", 3, "--accumulation_steps", 2, "--max_length", 96]
    flags += ["--use_grad_checkpoint", "--freeze_non_embeds_params"]
    request = request_of_run(cli.parse(TrainSettings, [str(flag) for flag in flags]), nproc=4)
    expected = ["--pretrained", tiny_model_dir, "--nproc", 4, *flags[6:]]
    assert request == cli.parse(PlanSettings, [str(flag) for flag in expected]).request


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (("--device_memory", 0), "--device_memory is 0"),
        (("--host_memory", -1), "--host_memory is -1"),
        (("--ranks_per_node", 0), "--ranks_per_node is 0"),
        (("--plugin", "3d", "--nproc", 3, "--tp", 2), "3 ranks cannot be divided by"),
        (("--plugin", "gemini", "--mixed_precision", "fp32"), "computes in fp16 or bf16 alone"),
    ],
)
def test_mistakes_are_told(tiny_model_dir: Path, flags: tuple[object, ...], reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        main(cli.parse(PlanSettings, ["--pretrained", str(tiny_model_dir), *map(str, flags)]))


def test_the_tool_leaves_one_error_line(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(ROOT / "tools" / "plan.py"), "--pretrained", str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.splitlines() == [
        f"error: {tmp_path}: not a model folder (no config.json); name a folder saved by transformers"
    ]


def test_a_run_that_the_planner_cannot_follow_is_not_refused_for_it(tiny_model_dir: Path) -> None:
    flags = ["--pretrained", tiny_model_dir, "--dataset", "corpus", "--save_dir", "out", "--mixed_precision", "bf16"]
    flags += ["--lora_rank", 2, "--lora_targets"]
    plans = [
        predict_run(cli.parse(TrainSettings, [str(flag) for flag in (*flags, targets)]), 2, 48)
        for targets in ("q_proj", "self_attn.q_proj")  # train.py takes the longer name as well
    ]
    assert isinstance(plans[0], MemoryPlan)
    assert plans[0].request.training.max_length == 48
    assert isinstance(plans[1], str)
    assert "self_attn.q_proj" in plans[1]
