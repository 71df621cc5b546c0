"""Write docs/flags.md: every flag of every command (`make docs`)."""

from __future__ import annotations

import inspect
from pathlib import Path

from colossal_llama2.align.road import RoadSettings
from colossal_llama2.align.stages import DEFAULT, STAGES
from colossal_llama2.chat.generate import GenerateSettings
from colossal_llama2.chat.making_settings import GenerateDatasetSettings
from colossal_llama2.chat.serving.settings import ServeSettings
from colossal_llama2.chat.terminal.chat import ChatSettings
from colossal_llama2.dataset.inspect_dataset import InspectSettings
from colossal_llama2.dataset.prepare_dataset import PrepareSetSettings
from colossal_llama2.dataset.prepare_pretrain_dataset import PrepareSettings
from colossal_llama2.engine.nodes.doctor import DoctorSettings
from colossal_llama2.engine.nodes.launch import LaunchSettings
from colossal_llama2.engine.nodes.plain import PlainSettings
from colossal_llama2.flag_tables import flag_table
from colossal_llama2.model import init_model
from colossal_llama2.model.merge_lora import MergeSettings
from colossal_llama2.report.advise_vocabulary import AdviceSettings
from colossal_llama2.report.compare_inits import CompareSettings
from colossal_llama2.report.evaluate import EvaluateSettings
from colossal_llama2.report.plan_inference import PlanInferenceSettings
from colossal_llama2.report.quantize_settings import QuantizeSettings
from colossal_llama2.tokenizer import init_tokenizer
from colossal_llama2.tokenizer.mine_pieces import MineSettings
from colossal_llama2.train.plan import PlanSettings

TARGET = Path(__file__).parents[1] / "docs" / "flags.md"
COMMANDS = {
    "tools/advise_vocabulary.py": AdviceSettings,
    "tools/mine_pieces.py": MineSettings,
    "tools/init_tokenizer.py": init_tokenizer.Settings,
    "tools/init_model.py": init_model.Settings,
    "tools/prepare_pretrain_dataset.py": PrepareSettings,
    "tools/prepare_dataset.py": PrepareSetSettings,
    "tools/inspect_dataset.py": InspectSettings,
    **{
        "train.py" if name == DEFAULT else f"train.py --stage {name}": settings_type
        for name, (settings_type, _, _) in STAGES.items()
    },
    "train.py --stages": RoadSettings,
    "tools/plan.py": PlanSettings,
    "tools/merge_lora.py": MergeSettings,
    "tools/quantize.py": QuantizeSettings,
    "tools/plan_inference.py": PlanInferenceSettings,
    "tools/launch.py": LaunchSettings,
    "tools/doctor.py": DoctorSettings,
    "tools/plain_hostfile.py": PlainSettings,
    "tools/generate.py": GenerateSettings,
    "tools/serve.py": ServeSettings,
    "tools/chat.py": ChatSettings,
    "tools/generate_dataset.py": GenerateDatasetSettings,
    "tools/evaluate.py": EvaluateSettings,
    "tools/compare_inits.py": CompareSettings,
}


def page() -> str:
    """Return docs/flags.md as it should be."""
    head = (
        "# Flags\n\nWritten by `make docs` from the settings themselves. Every command also takes `--config FILE.yaml` "
        "with the same names; a flag wins over the file. Switches are turned off with `--no_` before the name.\n"
    )
    tables = [
        f"\n## {command}\n\n{inspect.cleandoc(settings.__doc__ or '')}\n\n{flag_table(settings)}"
        for command, settings in COMMANDS.items()
    ]
    return head + "".join(tables)


if __name__ == "__main__":
    TARGET.write_text(page(), encoding="utf-8")
