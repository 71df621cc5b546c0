"""The command: a folder that the other commands take, figures that are those of the folder, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from colossal_llama2.errors import InputError
from colossal_llama2.model.quantizing import Method
from colossal_llama2.report.evaluate import EvaluateSettings
from colossal_llama2.report.evaluate import main as evaluate
from colossal_llama2.report.plan_inference import PlanInferenceSettings
from colossal_llama2.report.plan_inference import main as plan_inference
from colossal_llama2.report.quantize import main
from colossal_llama2.report.quantize_settings import QuantizeSettings

METHODS: tuple[Method, ...] = ("int8", "int4-gptq", "nf4")


def write(path: Path, texts: list[str]) -> Path:
    lines = (json.dumps({"source": "", "target": text, "category": "a"}) + "\n" for text in texts)
    path.write_text("".join(lines), encoding="utf-8")
    return path


@pytest.fixture
def settings(tmp_path: Path, tiny_model_dir: Path) -> Callable[..., QuantizeSettings]:
    """Give a function that makes settings for the tiny model, with what is to be different."""
    calibration = write(tmp_path / "calibration.jsonl", [f"the quick fox jumps over {n} dogs" * 4 for n in range(12)])
    evaluation = write(tmp_path / "evaluation.jsonl", ["seven wizards vex quietly " * 3, "今天天气很好" * 5])

    def made(method: Method, **changes: Any) -> QuantizeSettings:
        base = QuantizeSettings(tiny_model_dir, tmp_path / "out", method, calibration, evaluation, device="cpu")
        return replace(base, **{"calibration_samples": 4, "calibration_length": 32, **changes})

    return made


@pytest.mark.parametrize("method", [pytest.param(m, marks=[] if m == "nf4" else pytest.mark.long) for m in METHODS])
def test_the_folder_says_what_evaluation_finds(
    settings: Callable[..., QuantizeSettings], tmp_path: Path, method: Method, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = settings(method)
    main(asked)
    printed = capsys.readouterr().out
    record = json.loads((asked.output / "quantization.json").read_text(encoding="utf-8"))
    assert asked.evaluation is not None
    scores = tmp_path / "scores.json"
    evaluate(EvaluateSettings((asked.model, asked.output), (asked.evaluation,), output=scores, device="cpu"))
    before, after = (line["bits_per_byte"] for line in json.loads(scores.read_text(encoding="utf-8"))["scores"])
    assert record["before"]["bits_per_byte"] == pytest.approx(before)
    assert record["after"]["bits_per_byte"] == pytest.approx(after)
    assert before != after
    assert f"{before:.4f} -> {after:.4f} ({100 * (after / before - 1):+.2f}%)" in printed
    assert record["after"]["weight_bytes"] == (asked.output / "model.safetensors").stat().st_size
    assert record["peak_memory_bytes"]["host"] > 10**8
    bits = record["bits_per_weight"]["of_rounded_matrices"]
    assert (8 if method == "int8" else 4) < bits < 11  # tables of 1,088 bytes weigh on matrices this small
    calibrated = {"file": "calibration.jsonl", "rows": 4, "tokens_of_a_row": 32, "seed": 42}
    assert method != "int4-gptq" or record["calibration"].items() >= calibrated.items()
    card = (asked.output / "README.md").read_text(encoding="utf-8")
    assert f"Method: {method}" in card
    assert "in its original precision" in card
    assert str(tmp_path) not in card + json.dumps(record)
    assert "settings.yaml" in {path.name for path in asked.output.iterdir()}


def test_the_same_seed_gives_the_same_bytes(settings: Callable[..., QuantizeSettings], tmp_path: Path) -> None:
    written = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        main(settings("int4-gptq", output=tmp_path / name, evaluation=None, seed=seed))
        written.append((tmp_path / name / "model.safetensors").read_bytes())
    assert written[0] == written[1] != written[2]


def test_groups_that_do_not_fit_are_said(
    settings: Callable[..., QuantizeSettings], capsys: pytest.CaptureFixture[str]
) -> None:
    main(settings("int4-gptq", evaluation=None))
    captured = capsys.readouterr()
    assert "groups of 128 do not divide every matrix; groups of 32 in 12, 64 in 2 matrices instead" in captured.err
    assert "bits per byte were not measured" in captured.out


def test_mistakes_are_refused_and_nothing_is_written(settings: Callable[..., QuantizeSettings]) -> None:
    wrong = {
        "rounds by a text": settings("int4-gptq", calibration=None),
        "--group_size is for int4-gptq": settings("nf4", group_size=64),
        "--group_size is 2": settings("int4-gptq", group_size=2),
        "--calibration_samples is 0": settings("int4-gptq", calibration_samples=0),
        "--calibration_length is 129": settings("int4-gptq", calibration_length=129),
        "--calibration_length is 1 ": settings("int4-gptq", calibration_length=1),
        "are in the calibration text": settings("int8", evaluation=settings("int8").calibration),
        "would replace": settings("int8", output=settings("int8").model, overwrite=True),
        "no such folder": settings("int8", model=Path("absent")),
    }
    for message, asked in wrong.items():
        with pytest.raises(InputError, match=message):
            main(asked)
        assert not (settings("int8").output).exists()
    main(settings("int8", evaluation=None))
    with pytest.raises(InputError, match="exists already"):
        main(settings("int8"))
    with pytest.raises(InputError, match="cannot be quantised again"):
        main(settings("nf4", model=settings("int8").output, output=settings("int8").output.with_name("twice")))


def test_the_source_s_card_and_other_files_come_along(
    settings: Callable[..., QuantizeSettings], tmp_path: Path, tiny_model_dir: Path
) -> None:
    import shutil

    source = tmp_path / "source"
    shutil.copytree(tiny_model_dir, source)
    (source / "README.md").write_text("# Mine", encoding="utf-8")
    (source / "LICENSE").write_text("free", encoding="utf-8")
    asked = settings("int8", model=source, evaluation=None)
    main(asked)
    assert (asked.output / "README_source.md").read_text(encoding="utf-8") == "# Mine"
    assert (asked.output / "LICENSE").read_text(encoding="utf-8") == "free"
    assert "README_source.md" in (asked.output / "README.md").read_text(encoding="utf-8")


def test_the_plan_has_a_line_for_each_format(tiny_model_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan_inference(PlanInferenceSettings(tiny_model_dir))
    printed = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[0] for line in printed[1:]] == ["as stored", "int8", "int4-gptq", "nf4"]
    assert all(line.split()[-2] == "0.50" for line in printed[1:])
    base = PlanInferenceSettings(tiny_model_dir)
    wrong = {
        "tokens": replace(base, tokens=0),
        "rows": replace(base, rows=0),
        "group_size": replace(base, group_size=4),
    }
    for name, asked in wrong.items():
        with pytest.raises(InputError, match=f"--{name} is"):
            plan_inference(asked)
