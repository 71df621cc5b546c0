"""The command `tools/compare_inits.py`: ways to start new rows, measured before any training and after a little."""

from __future__ import annotations

import json
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import get_args

from colossal_llama2 import cli
from colossal_llama2.dataset.preparation import MixOptions, PrepareSettings, SpliceOptions, WorkOptions
from colossal_llama2.dataset.prepare_pretrain_dataset import main as prepare
from colossal_llama2.engine.plugins import Precision
from colossal_llama2.errors import InputError
from colossal_llama2.model import init_model
from colossal_llama2.model.belonging import CONFIG_FILE, check_belongs
from colossal_llama2.model.distilled_rows import DistillOptions, check_options
from colossal_llama2.outputs import whole_directory
from colossal_llama2.report.curves import draw_bars
from colossal_llama2.report.evaluate import Candidate, EvaluateSettings, align_columns, read_texts, score_model
from colossal_llama2.report.evaluation import Score, Text
from colossal_llama2.train import pretrain
from colossal_llama2.train.checkpoints import MODELING
from colossal_llama2.train.settings import (
    DataOptions,
    ModelOptions,
    OptimizerOptions,
    OutputOptions,
    ParallelOptions,
    TrainSettings,
)

RESULTS, PLOT = "compare_inits.json", "compare_inits.png"
BASE = "base, old tokens"
_SEEDED = ("distilled", "random")


@dataclass(frozen=True)
class CompareSettings:
    """Compare ways to start the rows of new tokens, in bits per byte of held-out text.

    Each way is measured as it comes out of init_model, and again after the same short training by train.py: same text,
    same steps, same seeds. The base model is measured beside them, in its old tokens and untrained.
    """

    source_model_and_tokenizer_path: Path
    """Folder of the model to expand, its own tokenizer inside."""
    target_tokenizer_path: Path
    """Folder of the expanded tokenizer."""
    data: tuple[Path, ...]
    """Held-out files of pretraining records; each is scored by itself."""
    output_dir: Path
    """Folder for compare_inits.json and compare_inits.png."""
    inits: tuple[str, ...] = ("random", "mean", "weighted", "distilled")
    """Ways to compare: an --init of init_model, or INIT/OUTPUT_INIT."""
    distill: DistillOptions = field(default_factory=DistillOptions)
    """How rows are distilled."""
    train_data: tuple[Path, ...] = ()
    """Files of pretraining records to train on; without any there is no measurement after training."""
    train_steps: int = 100
    """Optimizer steps of the short training."""
    train_rows: int = 8
    """Rows a step."""
    train_lr: float = 1e-3
    """Its peak learning rate."""
    train_length: int = 512
    """Tokens a row of it can hold."""
    mixed_precision: Precision = "fp32"
    """What it computes in."""
    seeds: tuple[int, ...] = (1, 2, 3)
    """Seeds: of rows at random or distilled, and of the order of the training text."""
    work_dir: Path | None = None
    """Folder to keep the models in (default: none is kept)."""
    device: str = "auto"
    """Where to score: auto, cpu, cuda, cuda:1 ..."""
    overwrite: bool = False
    """Replace the output folder if it exists."""


@dataclass(frozen=True)
class Way:
    """A way to start new rows, named as in --inits."""

    name: str
    init: str
    output_init: str

    @property
    def is_seeded(self) -> bool:
        """Tell whether its rows depend on the seed."""
        return self.init in _SEEDED or self.output_init in _SEEDED


@dataclass(frozen=True)
class Measured:
    """What one model came to: way (None for the base), seed, training steps, and the score of each file by name."""

    way: str | None
    seed: int
    steps: int
    init_seconds: float
    scores: dict[str, Score]


def main(settings: CompareSettings) -> None:
    """Measure the base, then way by way and seed by seed; write table, plot and JSON."""
    ways = _check(settings)
    texts = {path: read_texts(path) for path in settings.data}
    measured: list[Measured] = []
    with whole_directory(settings.output_dir, overwrite=settings.overwrite) as output, _work(settings) as work:
        scores = _scored(settings.source_model_and_tokenizer_path, texts, settings)
        measured.append(Measured(None, settings.seeds[0], 0, 0.0, scores))
        corpus = _prepare(settings, work) if settings.train_data else None
        for way in ways:
            scores_before: dict[str, Score] | None = None
            for seed in settings.seeds:
                cli.say(f"== {way.name}, seed {seed}")
                folder = work / f"{way.name.replace('/', '-')}-{seed}"
                seconds = _make_rows(way, seed, settings, folder / "model")
                if scores_before is None or way.is_seeded:
                    scores_before = _scored(folder / "model", texts, settings)
                measured.append(Measured(way.name, seed, 0, seconds, scores_before))
                if corpus is not None:
                    scores = _scored(_train(folder, corpus, seed, settings), texts, settings)
                    measured.append(Measured(way.name, seed, settings.train_steps, seconds, scores))
                if settings.work_dir is None:  # or the disk would have to hold every model at once
                    shutil.rmtree(folder)
        _write(settings, measured, output)
    cli.say(table(measured))


def _check(settings: CompareSettings) -> list[Way]:
    """Read the ways, and refuse what would fail after an hour."""
    if not settings.data or not settings.inits or not settings.seeds:
        raise InputError("nothing to do", remedy="give at least one of --data, --inits and --seeds")
    if len({path.name for path in settings.data}) < len(settings.data):
        raise InputError("two files of --data have one name", remedy="rename one: results go by the name")
    if (settings.output_dir / CONFIG_FILE).exists():
        raise InputError(
            "holds a model, which would be replaced", path=settings.output_dir, remedy="choose another output folder"
        )
    if settings.train_steps < 1 or settings.train_rows < 1:
        raise InputError("--train_steps and --train_rows must be 1 or more")
    methods = get_args(init_model.Method)
    ways = []
    for name in settings.inits:
        init, _, output_init = name.partition("/")
        if init not in methods or output_init not in (*methods, ""):
            raise InputError(
                f"--inits {name}", remedy=f"write {', '.join(methods)}, or two of them as INIT/OUTPUT_INIT"
            )
        ways.append(Way(name, init, output_init or "auto"))
    check_options(settings.distill, any("distilled" in (way.init, way.output_init) for way in ways))
    check_belongs(settings.source_model_and_tokenizer_path)
    for path in settings.train_data:
        if not path.is_file():
            raise InputError("no such file", path=path)
    return ways


@contextmanager
def _work(settings: CompareSettings) -> Iterator[Path]:
    if settings.work_dir is None:
        with tempfile.TemporaryDirectory(prefix="compare_inits-") as folder:
            yield Path(folder)
    else:
        settings.work_dir.mkdir(parents=True, exist_ok=True)
        yield settings.work_dir


def _prepare(settings: CompareSettings, work: Path) -> Path:
    prepare(
        PrepareSettings(
            data_input_dirs=",".join(map(str, settings.train_data)),
            tokenizer_dir=settings.target_tokenizer_path,
            data_cache_dir=work / "cache",
            data_jsonl_output_dir=work / "corpus-jsonl",
            data_arrow_output_dir=work / "corpus",
            splicing=SpliceOptions(max_length=settings.train_length),
            mix=MixOptions(num_spliced_dataset_bins=1),
            work=WorkOptions(num_workers=1),
            overwrite=True,
        )
    )
    return work / "corpus"


def _make_rows(way: Way, seed: int, settings: CompareSettings, target: Path) -> float:
    """Write a model whose rows start in this way; return the seconds it took."""
    distils = "distilled" in (way.init, way.output_init)
    started = time.perf_counter()
    init_model.main(
        init_model.Settings(
            settings.source_model_and_tokenizer_path,
            settings.target_tokenizer_path,
            target,
            way.init,  # type: ignore[arg-type]
            way.output_init,  # type: ignore[arg-type]
            distill=settings.distill if distils else DistillOptions(),
            seed=seed,
            overwrite=True,
        )
    )
    return time.perf_counter() - started


def _train(folder: Path, corpus: Path, seed: int, settings: CompareSettings) -> Path:
    """Train the model in a folder as `train.py` would, and return the finished one's."""
    options = TrainSettings(
        model=ModelOptions(folder / "model"),
        data=DataOptions(
            (corpus,),
            num_epochs=1_000_000,
            max_steps=settings.train_steps,
            micro_batch_size=settings.train_rows,
            max_length=settings.train_length,
        ),
        output=OutputOptions(folder / "trained", save_interval=0, log_interval=50, overwrite=True),
        optimizer=OptimizerOptions(lr=settings.train_lr, seed=seed),
        parallel=ParallelOptions(plugin="ddp", mixed_precision=settings.mixed_precision),
    )
    if pretrain.main(options):
        raise InterruptedError("the short training was stopped")
    return folder / "trained" / MODELING


def _scored(model_dir: Path, texts: dict[Path, list[Text]], settings: CompareSettings) -> dict[str, Score]:
    options = EvaluateSettings((model_dir,), settings.data, device=settings.device)
    return {path.name: score for path, score in score_model(Candidate(model_dir), texts, options).items()}


def table(measured: Sequence[Measured]) -> str:
    """Lay the means over the seeds out, a line a way, and behind each the smallest and the largest."""
    files = list(measured[0].scores)
    trained = max(one.steps for one in measured)
    when = [0, trained] if trained else [0]
    header = ["rows", *(f"{name}, {steps} steps" for name in files for steps in when)]
    lines = [[BASE, *(_cell(measured, None, steps, name) for name in files for steps in when)]]
    for way in dict.fromkeys(one.way for one in measured if one.way is not None):
        lines.append([way, *(_cell(measured, way, steps, name) for name in files for steps in when)])
    return align_columns([header, *lines])


def _cell(measured: Sequence[Measured], way: str | None, steps: int, name: str) -> str:
    values = [one.scores[name].bits_per_byte for one in measured if (one.way, one.steps) == (way, steps)]
    if not values:
        return "-"
    mean = f"{sum(values) / len(values):.4f}"
    return mean if max(values) == min(values) else f"{mean} ({min(values):.4f} to {max(values):.4f})"


def _write(settings: CompareSettings, measured: Sequence[Measured], output: Path) -> None:
    lines = []
    for one in measured:
        scores = {
            name: asdict(score)
            | {"bits_per_byte": score.bits_per_byte, "tokens_per_character": score.tokens_per_character}
            for name, score in one.scores.items()
        }
        lines.append(asdict(one) | {"scores": scores})
    (output / RESULTS).write_text(json.dumps({"measured": lines}, indent=1) + "\n", encoding="utf-8")
    (output / "settings.yaml").write_text(cli.as_yaml(settings), encoding="utf-8")
    panels = {}
    for name in measured[0].scores:
        bars: dict[str, list[list[float]]] = {BASE: [[measured[0].scores[name].bits_per_byte]]}
        for one in measured[1:]:
            assert one.way is not None
            heights = bars.setdefault(one.way, [[], []] if settings.train_data else [[]])
            heights[1 if one.steps else 0].append(one.scores[name].bits_per_byte)
        panels[name] = bars
    labels = ["before training", f"after {settings.train_steps} steps"] if settings.train_data else ["before training"]
    draw_bars(panels, labels, "bits per byte", output / PLOT)


if __name__ == "__main__":
    cli.run(CompareSettings, main)
