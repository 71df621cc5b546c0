"""What cannot work is refused in one line, before anything is written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from colossal_llama2 import cli
from colossal_llama2.align.direct import Dpo, Orpo, Simpo
from colossal_llama2.align.direct_settings import DpoSettings, KtoSettings, OrpoSettings, SimpoSettings
from colossal_llama2.align.kto import Kto
from colossal_llama2.errors import InputError
from colossal_llama2.train.opening import open_run

STAGES: dict[str, tuple[Any, Any]] = {
    "dpo": (Dpo, DpoSettings),
    "simpo": (Simpo, SimpoSettings),
    "orpo": (Orpo, OrpoSettings),
    "kto": (Kto, KtoSettings),
}


@pytest.fixture
def refused(tiny_model_dir: Path, tmp_path: Path) -> Callable[..., str]:
    """Give a function that opens a run and returns why it is refused."""

    def why(stage: str, dataset: Path, *flags: object) -> str:
        made, settings_type = STAGES[stage]
        save_dir = tmp_path / "out"
        named = ["--pretrained", tiny_model_dir, "--dataset", dataset, "--save_dir", save_dir, *flags]
        with pytest.raises(InputError) as error:
            open_run(made(cli.parse(settings_type, [str(part) for part in named])))
        assert not save_dir.exists()
        return str(error.value)

    return why


@pytest.mark.parametrize(
    ("stage", "flags", "sentence"),
    [
        ("dpo", ["--beta", 0], "--beta is 0"),
        ("dpo", ["--beta", "nan"], "--beta is nan"),
        ("dpo", ["--label_smoothing", 0.5], "--label_smoothing is 0.5"),
        ("dpo", ["--dpo_loss", "ipo", "--label_smoothing", 0.1], "which has none"),
        ("dpo", ["--reference", "adapter_off"], "there is no adapter without --lora_rank"),
        (
            "dpo",
            ["--reference", "adapter_off", "--lora_rank", 4, "--lora_train_embeddings", "yes"],
            "embeddings learn beside the adapter",
        ),
        ("dpo", ["--plugin", "3d", "--pp", 2, "--accumulation_steps", 2], "--pp 2"),
        ("simpo", ["--gamma", -1], "--gamma is -1"),
        ("simpo", ["--new_rows_interval", 5], "--new_rows_interval"),
        ("orpo", ["--orpo_lambda", "inf"], "--orpo_lambda is inf"),
        ("orpo", ["--freeze_non_embeds_params", "--stop_when_flat"], "--stop_when_flat"),
        ("kto", ["--undesirable_weight", -0.5], "--undesirable_weight is -0.5"),
        ("kto", ["--plugin", "gemini_auto"], "gemini_auto"),
    ],
)
def test_flags_that_cannot_work(
    refused: Callable[..., str], preference_dir: Path, stage: str, flags: list[object], sentence: str
) -> None:
    assert sentence in refused(stage, preference_dir, "--max_length", 64, *flags)


def test_sets_of_another_kind(
    refused: Callable[..., str], sft_dir: Path, preference_dir: Path, labelled_dir: Path, tmp_path: Path
) -> None:
    fits = ["--max_length", 64]
    for stage in STAGES:
        assert "is a set of --type sft" in refused(stage, sft_dir, *fits)
    for stage in ("dpo", "simpo", "orpo"):
        assert "no row with a better and a worse answer" in refused(stage, labelled_dir, *fits)
    assert "--max_length is 32" in refused("dpo", preference_dir, "--max_length", 32)


def test_kto_needs_both_kinds(refused: Callable[..., str], all_good_dir: Path) -> None:
    assert "answers that are all good" in refused("kto", all_good_dir, "--max_length", 64)
