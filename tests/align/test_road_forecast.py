"""What a dry run says: counts by hand, and the same arithmetic as a run's own."""

from __future__ import annotations

from pathlib import Path

from colossal_llama2.align.road import read_road
from colossal_llama2.align.road_forecast import Forecast, Pace, _flops
from colossal_llama2.align.road_records import look
from colossal_llama2.align.road_sets import read_set
from colossal_llama2.model.pretrained import load_for_training
from colossal_llama2.train.flops import step_flops


def forecast(tmp_path: Path, model: Path, dataset: Path, pace: Pace, *stages: str) -> str:
    path = tmp_path / "road.yaml"
    head = f"pretrained: {model}\nroad_dir: {tmp_path / 'out'}\nmax_length: 64\nnproc_per_node: 2\n"
    lines = "".join(f"  - {{name: s{n}, dataset: {dataset}, {text}}}\n" for n, text in enumerate(stages))
    path.write_text(f"{head}stages:\n{lines}", encoding="utf-8")
    road = read_road(path)
    return "\n".join(Forecast(road, look(road), pace).lines())


def test_rows_steps_and_tokens_are_counted(tmp_path: Path, tiny_model_dir: Path, sft_dir: Path) -> None:
    known = read_set(sft_dir)
    assert known is not None
    assert known.rows is not None
    assert known.tokens is not None
    assert known.type == "sft"
    steps = -(-known.rows // 4)
    said = forecast(
        tmp_path,
        tiny_model_dir,
        sft_dir,
        Pace(tokens_per_second=100.0),
        "stage: sft, num_epochs: 3, micro_batch_size: 2",
        "stage: sft, num_epochs: 3, max_steps: 1",
    )
    assert f"{known.rows:,} rows" in said
    assert f"{steps * 3} steps of 4 rows, on 2 ranks" in said
    assert f"tokens   {known.tokens * 3:,}" in said
    assert "1 steps of 2 rows" in said
    assert f"tokens   {round(2 * known.tokens / known.rows)}" in said
    assert "as told" in said
    assert f"; for the size of {tiny_model_dir}" in said  # the second starts from what is not there yet
    parts = [read_set(part) for part in sorted(sft_dir.glob("part-*"))]
    assert sum(part.rows or 0 for part in parts if part is not None) == known.rows


def test_the_arithmetic_is_that_of_a_run(tmp_path: Path, tiny_model_dir: Path, sft_dir: Path) -> None:
    path = tmp_path / "road.yaml"
    for options in ("", ", freeze_non_embeds_params: true"):
        path.write_text(
            f"pretrained: {tiny_model_dir}\nroad_dir: {tmp_path / 'out'}\n"
            f"stages:\n  - {{name: a, stage: pretrain, dataset: {sft_dir}{options}}}\n",
            encoding="utf-8",
        )
        model = load_for_training(tiny_model_dir, "fp32", False)
        if options:
            for name, parameter in model.named_parameters():
                parameter.requires_grad_("embed" in name or "lm_head" in name)
        assert _flops(read_road(path).steps[0].settings, 1) == step_flops(model)


def test_the_time_is_the_arithmetic_over_the_speed(tmp_path: Path, tiny_model_dir: Path, sft_dir: Path) -> None:
    known = read_set(sft_dir)
    assert known is not None
    assert known.rows
    assert known.tokens
    said = forecast(tmp_path, tiny_model_dir, sft_dir, Pace(mfu=0.5, device_tflops=2e-4), "stage: sft, num_epochs: 1")
    average = round(known.tokens / known.rows)
    arithmetic = step_flops(load_for_training(tiny_model_dir, "fp32", False)).of(average, [average])
    seconds = arithmetic * known.tokens / average / (0.5 * 2 * 2e8)
    assert 0.5 < seconds < 120
    assert f"about {seconds:.0f} s (at 50% of 2 x 0.2 GFLOP/s, as told)" in said


def test_what_samples_is_not_predicted(tmp_path: Path, tiny_model_dir: Path, sft_dir: Path) -> None:
    said = forecast(tmp_path, tiny_model_dir, sft_dir, Pace(), "stage: ppo, reward_function: m:f, rollout_batch: 8")
    assert "rollouts of 8 prompts" in said
    assert "not predicted: most of it is writing answers" in said
    assert said.endswith("0 s, and 1 of unknown length")
