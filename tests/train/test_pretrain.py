"""The command: what it refuses, what it leaves behind, what a stage hands to the next."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from colossal_llama2 import cli
from colossal_llama2.errors import InputError
from colossal_llama2.train.pretrain import main
from colossal_llama2.train.settings import TrainSettings

FAST = ["--mixed_precision", "fp32", "--max_steps", 2, "--max_length", 48, "--save_interval", 0]


@pytest.fixture
def run_here(tiny_model_dir: Path, corpus_dir: Path, tmp_path: Path) -> Callable[..., int]:
    """Give a function that runs the command in this process, on one rank."""

    def run(*flags: object, pretrained: Path = tiny_model_dir, dataset: Path = corpus_dir) -> int:
        base = ["--pretrained", pretrained, "--dataset", dataset, "--save_dir", tmp_path / "out", *FAST]
        return main(cli.parse(TrainSettings, [str(argument) for argument in (*base, *flags)]))

    return run


def copy_of(model_dir: Path, target: Path) -> Path:
    shutil.copytree(model_dir, target)
    return target


def weights(folder: Path) -> dict[str, torch.Tensor]:
    tensors: dict[str, torch.Tensor] = {}
    for path in folder.glob("*.safetensors"):
        tensors |= load_file(path)
    return tensors


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        (["--dataset", "absent"], "does not exist"),
        (["--pretrained", "absent"], "absent"),
        (["--load_checkpoint", "absent"], "neither a checkpoint nor a model folder"),
        (["--load_checkpoint", "latest"], "no whole checkpoint"),
        (["--max_length", "47"], "pass --max_length 48"),
        (["--micro_batch_size", "0"], "--micro_batch_size is 0"),
        (["--accumulation_steps", "0"], "--accumulation_steps is 0"),
        (["--num_epochs", "0"], "--num_epochs is 0"),
        (["--max_steps", "0"], "--max_steps is 0"),
        (["--lr", "0"], "--lr is 0"),
        (["--lr", "nan"], "--lr is nan"),
        (["--weight_decay", "-1"], "--weight_decay is -1"),
        (["--weight_decay", "nan"], "--weight_decay is nan"),
        (["--lr", "inf"], "--lr is inf"),
        (["--adam_beta2", "1"], "--adam_beta2 is 1"),
        (["--adam_eps", "-1"], "--adam_eps is -1"),
        (["--gradient_clipping", "-1"], "--gradient_clipping"),
        (["--gradient_clipping", "nan"], "--gradient_clipping is nan"),
        (
            ["--tp", "2"],
            "--tp 2 with --plugin zero2, which holds every layer whole; leave --tp at 1, or pass --plugin 3d",
        ),
        (["--plugin", "gemini"], "gemini computes in fp16 or bf16 alone"),
        (["--plugin", "zero9"], "invalid choice"),
        (["--unknown", "1"], "unrecognized options"),
    ],
)
def test_a_mistake_is_named_and_nothing_is_written(
    run_here: Callable[..., int], tmp_path: Path, flags: list[str], complaint: str
) -> None:
    with pytest.raises(InputError, match=complaint):
        run_here(*flags)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_no_corpus_is_named(run_here: Callable[..., int], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not a prepared corpus"):
        run_here(dataset=tmp_path)


def test_a_corpus_of_another_tokenizer_is_refused(
    run_here: Callable[..., int], tiny_model_dir: Path, tmp_path: Path, piece_model_bytes: Callable[..., bytes]
) -> None:
    other = copy_of(tiny_model_dir, tmp_path / "other")
    (other / "tokenizer.model").write_bytes(piece_model_bytes(vocab_size=500))
    with pytest.raises(InputError, match="another tokenizer"):
        run_here(pretrained=other)


def test_it_leaves_a_complete_model_folder(run_here: Callable[..., int], tiny_model_dir: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    from colossal_llama2.tokenizer.loading import tokenizer_fingerprint

    assert run_here("--config_file", tmp_path / "settings" / "run.yaml") == 0
    saved = tmp_path / "out" / "modeling"
    model = AutoModelForCausalLM.from_pretrained(saved)
    assert model.dtype == torch.float32
    assert tokenizer_fingerprint(saved) == tokenizer_fingerprint(tiny_model_dir)
    before, after = weights(tiny_model_dir), weights(saved)
    assert before.keys() == after.keys()
    assert all(not torch.equal(before[name], after[name]) for name in before)
    with pytest.raises(InputError, match="holds an earlier run"):
        run_here()
    again = cli.parse(TrainSettings, ["--config", str(tmp_path / "settings" / "run.yaml")])
    assert again.data.max_steps == 2
    assert again == cli.parse(TrainSettings, ["--config", str(tmp_path / "out" / "settings.yaml")])
    mode = next(saved.glob("*.safetensors")).stat().st_mode & 0o777
    assert mode == (saved / "config.json").stat().st_mode & 0o777, "weights must be as readable as the rest"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("plugin", ["zero2", "gemini", "ddp"])
def test_the_first_stage_moves_embeddings_alone_and_the_dtype_stays(
    run_here: Callable[..., int], tiny_model_dir: Path, tmp_path: Path, dtype: torch.dtype, plugin: str
) -> None:
    """What is frozen comes out bit for bit, also when it was computed in narrower numbers."""
    base = copy_of(tiny_model_dir, tmp_path / "base")
    before = {name: tensor.to(dtype) for name, tensor in weights(base).items()}
    for path in base.glob("*.safetensors"):
        save_file({name: before[name] for name in load_file(path)}, path, metadata={"format": "pt"})
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps({**config, "dtype": str(dtype).removeprefix("torch.")}))
    flags = ["--freeze_non_embeds_params", "--mixed_precision", "bf16", "--lr", 1e-2, "--plugin", plugin]
    assert run_here(*flags, pretrained=base) == 0
    after = weights(tmp_path / "out" / "modeling")
    assert {tensor.dtype for tensor in after.values()} == {dtype}
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == {"model.embed_tokens.weight", "lm_head.weight"}


def test_the_next_stage_starts_from_the_weights_alone(
    run_here: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_here("--freeze_non_embeds_params", "--save_interval", 1) == 0
    for handed_over in ("modeling", "epoch-0_step-2/modeling"):
        stage = [
            "--load_checkpoint",
            tmp_path / "out" / handed_over,
            "--save_dir",
            tmp_path / handed_over.partition("/")[0],
        ]
        assert run_here(*stage) == 0
        first = json.loads(
            (tmp_path / handed_over.partition("/")[0] / "run" / "metrics.jsonl").read_text().splitlines()[0]
        )
        assert first["step"] == 1
    with pytest.raises(InputError, match="embeddings, not everything"):
        run_here("--load_checkpoint", tmp_path / "out" / "epoch-0_step-2", "--save_dir", tmp_path / "third")
    with pytest.raises(InputError, match="--seed 42, not 43"):
        run_here(
            *["--load_checkpoint", tmp_path / "out" / "epoch-0_step-2", "--save_dir", tmp_path / "third"],
            *["--freeze_non_embeds_params", "--seed", 43],
        )
    assert not (tmp_path / "third").exists()


def test_a_loss_that_is_no_number_stops_the_run_and_says_where(
    train_on: Callable[..., Any], tiny_model_dir: Path, tmp_path: Path
) -> None:
    broken = copy_of(tiny_model_dir, tmp_path / "broken")
    for path in broken.glob("*.safetensors"):
        tensors = load_file(path)
        tensors["lm_head.weight"][5] = float("nan")
        save_file(tensors, path, metadata={"format": "pt"})
    run = train_on(1, tmp_path / "out", "--pretrained", broken, "--mixed_precision", "fp32")
    assert run.code == 1
    assert "the loss of step 1 is nan" in run.output
    assert "row " in run.output
    assert "part-0000" in run.output
    assert "there is no checkpoint yet" in run.output
    assert not (tmp_path / "out" / "modeling").exists()


def test_metrics_are_what_they_say(run_here: Callable[..., int], tmp_path: Path, corpus_dir: Path) -> None:
    assert run_here("--micro_batch_size", 4) == 0
    first, second = (json.loads(line) for line in (tmp_path / "out" / "run" / "metrics.jsonl").read_text().splitlines())
    assert (first["step"], second["step"]) == (1, 2)
    assert 0 < first["learned_tokens"] < first["tokens"] < second["tokens"] <= 8 * 48
    assert math.isclose(first["tokens_per_second"] * first["seconds"], first["tokens"])
    assert 0 < first["mfu"] < 1.5
    assert first["memory"] > 1 << 20
    assert 0 <= first["data_seconds"] < first["seconds"]
    assert first["skipped"] is False


def lines(save_dir: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (save_dir / "run" / "metrics.jsonl").read_text().splitlines()]


def test_a_run_that_was_complete_makes_no_further_step(run_here: Callable[..., int], tmp_path: Path) -> None:
    """Killed while the finished model was being written: the checkpoint of the last step is there, the model is not."""
    assert run_here("--save_interval", 2) == 0
    before = weights(tmp_path / "out" / "modeling")
    shutil.rmtree(tmp_path / "out" / "modeling")
    assert run_here("--load_checkpoint", "latest") == 0
    assert [line["step"] for line in lines(tmp_path / "out")] == [1, 2]
    after = weights(tmp_path / "out" / "modeling")
    assert before.keys() == after.keys() != set()
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("micro_batch_size", [1, 7, 8])
def test_with_another_batch_size_the_rest_of_the_rows_is_trained_once(
    run_here: Callable[..., int], tmp_path: Path, micro_batch_size: int
) -> None:
    everything = ["--max_steps", "None", "--micro_batch_size", 4, "--save_interval", 10]
    assert run_here(*everything) == 0
    whole = lines(tmp_path / "out")
    assert len(whole) > 12, "nothing is left to train after the checkpoint"
    rest = ["--load_checkpoint", tmp_path / "out" / "epoch-0_step-10", "--save_dir", tmp_path / "rest"]
    assert run_here(*everything, *rest, "--micro_batch_size", micro_batch_size) == 0
    assert lines(tmp_path / "rest")[-1]["tokens"] == whole[-1]["tokens"]
    assert math.isclose(lines(tmp_path / "rest")[-1]["lr"], whole[-1]["lr"]), "the schedule does not end with the run"


def test_weights_of_another_shape_are_refused(
    run_here: Callable[..., int], tiny_model_dir: Path, tmp_path: Path
) -> None:
    other = copy_of(tiny_model_dir, tmp_path / "other")
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 3}))
    with pytest.raises(InputError, match="num_hidden_layers is 3, not 2"):
        run_here("--load_checkpoint", other)
    assert not (tmp_path / "out").exists()


def test_an_unknown_dtype_is_refused_before_a_run_not_after_it(
    run_here: Callable[..., int], tiny_model_dir: Path, tmp_path: Path
) -> None:
    other = copy_of(tiny_model_dir, tmp_path / "other")
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**config, "dtype": "float7"}))
    with pytest.raises(InputError, match="float7"):
        run_here(pretrained=other)
    assert not (tmp_path / "out").exists()
