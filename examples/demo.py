"""The whole road on a small corpus, on the CPU, on two ranks: `make demo`.

A tiny English model is trained, then taught Chinese: pieces, rows, corpus, three stages. Beside it the same base model
goes on with its old vocabulary for the same training time. Everything lands in `demo-run/`, which every run replaces.
"""

from __future__ import annotations

import os
import shutil
import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from colossal_llama2.report.curves import Run, draw_losses, read_run  # noqa: E402
from examples import demo_ingredients as ingredients  # noqa: E402
from examples import demo_outcome as outcome  # noqa: E402
from examples.demo_commands import run_command, run_tool, say  # noqa: E402

CORPUS = Path("examples/corpus")
RUN = Path("demo-run")
HELD_OUT = {language: CORPUS / f"{language}_heldout.jsonl" for language in ("chinese", "english")}

CONTEXT = 512
LOSSES, BITS, SUMMARY = RUN / "loss.png", RUN / "bits_per_byte.png", RUN / "summary.json"
REPLAY_SHARE = 4  # one English document in four accompanies the Chinese ones in the first two stages
PROMPTS = ("秋天的一个早晨，", "One morning in winter, Mara")


@dataclass(frozen=True)
class Stage:
    """A training stage: its name, its corpus, its length, how it learns, and flags of its own."""

    name: str
    corpus: str
    steps: int
    lr: float
    warmup_steps: int
    flags: tuple[str, ...] = ()


BASE = Stage("base", "english", 250, 3e-3, 20)
STAGES = (
    Stage("align", "bilingual", 24, 3e-3, 3, ("--freeze_non_embeds_params",)),
    Stage("inject", "bilingual", 120, 2e-3, 10),
    Stage("replay", "replay", 60, 1.5e-3, 5),
)


def main() -> int:
    """Walk the road from beginning to end; return 0 if the adapted model is what it should be, else 1."""
    started = time.perf_counter()
    os.chdir(ROOT)
    os.environ.update(OMP_NUM_THREADS="1", TOKENIZERS_PARALLELISM="false")
    shutil.rmtree(RUN, ignore_errors=True)
    lay_out_data()

    say("1. A base model that knows English only")
    english = ingredients.texts(CORPUS / "english.jsonl")
    ingredients.make_base_tokenizer(english, RUN / "tokenizer-english")
    ingredients.make_random_model(RUN / "tokenizer-english", CONTEXT, RUN / "model-random")
    prepare("english", RUN / "model-random", "english")
    train(BASE, RUN / "model-random")
    base = RUN / "base" / "modeling"

    say("2. A vocabulary for Chinese")
    ingredients.learn_chinese_pieces(ingredients.texts(CORPUS / "chinese.jsonl"), RUN / "pieces.jsonl")
    expand_tokenizer(base)
    make_rows(base)

    say("3. The corpus, in the new vocabulary")
    prepare("bilingual", RUN / "tokenizer-expanded", "chinese", "english_part")
    prepare("replay", RUN / "tokenizer-expanded", "chinese", "english")

    say("4. Three stages")
    model = RUN / "model-expanded"
    for stage in STAGES:
        train(stage, model)
        model = RUN / stage.name / "modeling"

    say("5. For comparison: the base model goes on with its old vocabulary, for the same training time")
    control = plan_control()
    prepare("bilingual-old", base, "chinese", "english_part")
    train(control, base, save_interval=-(-control.steps // len(STAGES)))

    say("6. What came out")
    measured = evaluate(control)
    draw_losses({"adapted": stage_runs(), "old vocabulary": [read_run("control", RUN / "control" / "run")]}, LOSSES)
    outcome.draw_bits_per_byte(measured, BITS)
    samples = {"adapted": {prompt: generate(model, prompt) for prompt in PROMPTS}}
    samples["control"] = {PROMPTS[0]: generate(RUN / control.name / "modeling", PROMPTS[0])}
    seconds = time.perf_counter() - started
    shortfalls = outcome.judge(measured)
    outcome.write_summary(measured, samples, shortfalls, seconds, SUMMARY)
    print(f"\n{outcome.table(measured)}\n\n{outcome.story(measured)}")
    print(f"Curves: {LOSSES}, {BITS}. Everything in figures: {SUMMARY}. It took {seconds / 60:.1f} minutes.")
    for sentence in shortfalls:
        print(f"error: {sentence}", file=sys.stderr)
    return 1 if shortfalls else 0


def lay_out_data() -> None:
    """Put the bundled corpus into one folder a sub-dataset, and a part of the English for replay beside it."""
    for language in HELD_OUT:
        (RUN / "data" / language).mkdir(parents=True)
        shutil.copy(CORPUS / f"{language}.jsonl", RUN / "data" / language)
    (RUN / "data" / "english_part").mkdir()
    part = (CORPUS / "english.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)[::REPLAY_SHARE]
    (RUN / "data" / "english_part" / "english.jsonl").write_text("".join(part), encoding="utf-8")


def expand_tokenizer(base: Path) -> None:
    """Add the pieces to the base tokenizer."""
    run_tool(
        "tools/init_tokenizer.py",
        *("--source_tokenizer_dir", base),
        *("--target_tokenizer_dir", RUN / "tokenizer-expanded"),
        *("--expand_tokens_file", RUN / "pieces.jsonl"),
        *("--sample_file", HELD_OUT["chinese"]),
    )


def make_rows(base: Path) -> None:
    """Give the model rows for the new pieces, from what it knows of their parts."""
    run_tool(
        "tools/init_model.py",
        *("--source_model_and_tokenizer_path", base),
        *("--target_tokenizer_path", RUN / "tokenizer-expanded"),
        *("--target_model_path", RUN / "model-expanded"),
    )


def prepare(name: str, tokenizer: Path, *parts: str) -> None:
    """Splice sub-datasets into full rows, in four buckets."""
    run_tool(
        "tools/prepare_pretrain_dataset.py",
        *("--data_input_dirs", ",".join(str(RUN / "data" / part) for part in parts)),
        *("--tokenizer_dir", tokenizer),
        *("--data_cache_dir", RUN / "cache"),
        *("--data_jsonl_output_dir", RUN / "corpus" / f"{name}-jsonl"),
        *("--data_arrow_output_dir", RUN / "corpus" / name),
        *("--max_length", CONTEXT),
        *("--num_spliced_dataset_bins", 4),
    )


def train(stage: Stage, model: Path, save_interval: int = 0) -> None:
    """Train on two ranks with ZeRO-2, a row a rank and step."""
    launcher = ("torch.distributed.run", "--standalone", "--nproc_per_node", 2)
    run_command(
        [sys.executable, "-m", *map(str, launcher), "train.py"],
        *("--pretrained", model),
        *("--dataset", RUN / "corpus" / stage.corpus),
        *("--plugin", "zero2"),
        *("--save_dir", RUN / stage.name),
        *("--tensorboard_dir", RUN / stage.name / "run"),
        *("--save_interval", save_interval),
        *("--num_epochs", 100),
        *("--max_steps", stage.steps),
        *("--lr", stage.lr),
        *("--warmup_steps", stage.warmup_steps),
        *("--max_length", CONTEXT),
        *("--mixed_precision", "fp32"),
        *("--log_interval", 20),
        *stage.flags,
    )


def plan_control() -> Stage:
    """Give the unadapted model as many steps as fit into the time that the three stages took, and rather more.

    Steps are counted at the pace of the base model's fastest tenth, so that a machine busy with other things does not
    shorten the control's training.
    """
    spent = sum(sum(run.seconds) for run in stage_runs())
    step = statistics.quantiles(read_run("base", RUN / "base" / "run").seconds, n=10)[0]
    steps = steps_in(spent, step)
    print(f"The three stages trained for {spent:.0f} s; at {step:.3f} s a step that is {steps} steps of the old model.")
    return Stage("control", "bilingual-old", steps, BASE.lr, BASE.warmup_steps)


def steps_in(seconds: float, seconds_per_step: float) -> int:
    """Return how many steps fit into a time, at least one."""
    return max(1, round(seconds / seconds_per_step))


def stage_runs() -> list[Run]:
    """Read what the three stages logged."""
    return [read_run(stage.name, RUN / stage.name / "run") for stage in STAGES]


def evaluate(control: Stage) -> list[outcome.Measured]:
    """Measure every model on the held-out texts, in one go."""
    adapted = [RUN / "model-expanded", *(RUN / stage.name / "modeling" for stage in STAGES)]
    names = ["expanded", *(stage.name for stage in STAGES)]
    spent = [0.0, *outcome.running_total([sum(run.seconds) for run in stage_runs()])]
    points = [outcome.Point("base", "base", RUN / "base" / "modeling", 0.0)]
    points += [outcome.Point("adapted", *point) for point in zip(names, adapted, spent, strict=True)]
    seconds = outcome.running_total(read_run("control", RUN / "control" / "run").seconds)
    for folder in sorted((RUN / "control").glob("epoch-*_step-*"), key=step_of):
        if step_of(folder) < control.steps:
            name = f"after {step_of(folder)} steps"
            points.append(outcome.Point("control", name, folder / "modeling", seconds[step_of(folder) - 1]))
    points.append(
        outcome.Point(
            "control", f"after {control.steps} steps", RUN / "control" / "modeling", seconds[control.steps - 1]
        )
    )
    run_tool(
        "tools/evaluate.py",
        *("--model", *(point.model for point in points)),
        *("--data", *HELD_OUT.values()),
        *("--output", RUN / "evaluation.json"),
    )
    return outcome.read_measures(points, {str(path): name for name, path in HELD_OUT.items()}, RUN / "evaluation.json")


def step_of(checkpoint: Path) -> int:
    """Return the step a checkpoint folder is named after."""
    return int(checkpoint.name.rpartition("-")[2])


def generate(model: Path, prompt: str) -> str:
    """Let a model go on with a prompt, and return what it wrote."""
    return run_tool(
        "tools/generate.py",
        *("--model", model),
        *("--prompt", prompt),
        *("--max_new_tokens", 80),
        *("--temperature", 0.5),
        *("--seed", 1),
        keep_output=True,
    )


if __name__ == "__main__":
    sys.exit(main())
