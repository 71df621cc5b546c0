"""The whole road as one stage file, from an expanded tokenizer to a model that answers in the chat template.

    python benchmarks/whole_road.py --data_dir DIR [--output FILE.json]

DIR holds ``pretrain/{zh,en}``, ``pieces_zh_20k.jsonl``, ``sft``, ``preference`` and ``rlhf_prompts``. A small base
model is made first (`small_base.py`): Llama-shaped, English in pieces of its own. Everything after that is one
``train.py --stages`` on two ranks: tokenizer, rows, corpus, three sets, align, inject, replay, sft, reward, ppo. So
small a model that has read so little says nothing of sense; what is shown is that the road holds from end to end, what
each step took and came to, and that the last model answers in the chat template which its own folder carries.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.machine import describe_machine
from benchmarks.small_base import make_base, split_texts
from colossal_llama2 import cli
from colossal_llama2.align.road import read_road
from colossal_llama2.errors import InputError
from colossal_llama2.jsonl import read_jsonl

ROOT = Path(__file__).resolve().parents[1]
_NEEDED = ("pretrain", "pieces_zh_20k.jsonl", "sft", "preference", "rlhf_prompts")
_QUESTIONS = ("你好，请介绍一下你自己。", "Give three tips for staying healthy.")
_ROAD = """\
pretrained: {base}
road_dir: {work}/road
nproc_per_node: 2
plugin: zero2
mixed_precision: fp32
max_length: 512
num_epochs: 100
num_spliced_dataset_bins: 4
num_workers: 1
save_interval: 50
keep_checkpoints: 1
log_interval: 20
prepare:
  - {{name: tokenizer, tool: init_tokenizer, expand_tokens_file: {work}/pieces.jsonl, sample_file: {sample}}}
  - {{name: rows, tool: init_model, init: weighted}}
  - {{name: corpus, tool: prepare_pretrain_dataset, data_input_dirs: '{chinese},{english}', holdout: 1%}}
  - name: chats
    tool: prepare_dataset
    type: sft
    data_input_dirs: '{data}/sft/alpaca_zh_demo.jsonl,{data}/sft/alpaca_en_demo.jsonl'
    chat_template: llama2
    holdout: 2%
  - {{name: pairs, tool: prepare_dataset, type: preference, data_input_dirs: {data}/preference, chat_template: llama2,
     holdout: 5%, bad_records: skip}}
  - {{name: prompts, tool: prepare_dataset, type: prompt, data_input_dirs: {data}/rlhf_prompts, chat_template: llama2,
     max_length: 256}}
stages:
  - {{name: align, stage: pretrain, dataset: $corpus, freeze_non_embeds_params: true, max_steps: {align}, lr: 3e-3}}
  - {{name: inject, stage: pretrain, dataset: $corpus, max_steps: {inject}, lr: 2e-3}}
  - {{name: replay, stage: pretrain, dataset: $corpus, max_steps: {align}, lr: 1e-3}}
  - {{name: sft, stage: sft, dataset: $chats, eval_dataset: $chats/holdout, max_steps: {inject}, lr: 2e-3}}
  - {{name: reward, stage: reward, dataset: $pairs, eval_dataset: $pairs/holdout, max_steps: {align}, lr: 5e-4,
     micro_batch_size: 2}}
  - {{name: ppo, stage: ppo, from: sft, dataset: $prompts, ptx_dataset: $corpus, ptx_batch_size: 2, rollout_batch: 16,
     generation_batch: 8, micro_batch_size: 4, max_new_tokens: 48, max_steps: 4, save_interval: 2, log_interval: 1,
     lr: 2e-5, critic_lr: 1e-4}}
"""


@dataclass(frozen=True)
class WholeRoad:
    """Go the whole road on real text and write down what each step took."""

    data_dir: Path
    """Folder with pretrain/, pieces_zh_20k.jsonl, sft/, preference/ and rlhf_prompts/."""
    output: Path = ROOT / "benchmarks" / "results" / "whole_road.json"
    """Where the result is written."""
    work_dir: Path | None = None
    """Where the road is gone; one that was broken off goes on there (default: a temporary folder)."""
    base_steps: int = 20
    """Steps of 4,096 tokens that the base model is trained before the road."""
    steps: int = 40
    """Steps of 1,024 tokens of inject and sft; align, replay and reward have half of it."""
    num_pieces: int = 3000
    """How many pieces of the list are taken, from its beginning."""


def main(settings: WholeRoad) -> int:
    """Go the road; return 1 when a promise is broken."""
    for name in _NEEDED:
        if not (settings.data_dir / name).exists():
            raise InputError("does not exist", path=settings.data_dir / name, remedy="see --help for what it must hold")
    with tempfile.TemporaryDirectory() as temporary:
        work = (settings.work_dir or Path(temporary)).absolute()
        work.mkdir(parents=True, exist_ok=True)
        os.environ["OMP_NUM_THREADS"] = "1"
        texts = split_texts(settings.data_dir, work / "texts", most_held_out=200_000)
        base = make_base(texts, work / "base", settings.base_steps, tied=False)
        lines = (settings.data_dir / "pieces_zh_20k.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
        (work / "pieces.jsonl").write_text("".join(lines[: settings.num_pieces]), encoding="utf-8")
        road_file = work / "road.yaml"
        places = {"chinese": texts.adaptation["chinese"], "english": texts.adaptation["english"]}
        sample, data = texts.held_out["chinese"], settings.data_dir.absolute()
        lengths = {"inject": settings.steps, "align": max(1, settings.steps // 2)}
        road = _ROAD.format(base=base, work=work, data=data, sample=sample, **places, **lengths)
        road_file.write_text(road, encoding="utf-8")
        began = time.perf_counter()
        _run("train.py", "--stages", road_file, "--dry_run")
        _run("train.py", "--stages", road_file)
        seconds = time.perf_counter() - began
        _run("train.py", "--stages", road_file)  # nothing is left to do
        result = {"machine": describe_machine(), "ranks": 2, "seconds": round(seconds, 1), **_tell(road_file)}
    settings.output.write_text(json.dumps(result, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=2, ensure_ascii=False))
    return 0 if result["all_answers_by_template"] else 1


def _run(script: str, *arguments: object) -> None:
    subprocess.run([sys.executable, str(ROOT / script), *map(str, arguments)], check=True, cwd=ROOT)


def _tell(road_file: Path) -> dict[str, Any]:
    """Gather what every step took and came to, and let the models of sft and ppo answer."""
    road = read_road(road_file)
    steps, answers = [], {}
    for step in road.steps:
        record = json.loads((road.road_dir / "road" / f"{step.name}.json").read_text(encoding="utf-8"))
        told: dict[str, Any] = {"name": step.name, "kind": step.kind.name, "seconds": record["seconds"]}
        if step.launch is not None:
            told |= _figures(step.folder / "run" / "metrics.jsonl")
        if step.kind.name in ("sft", "ppo"):
            answers[step.name] = [_answer(step.made, question) for question in _QUESTIONS]
        steps.append(told)
    given = [answer for each in answers.values() for answer in each]
    by_template = all(answer["rendered"].count("[INST]") == 1 and answer["answer"].strip() for answer in given)
    return {"steps": steps, "all_answers_by_template": by_template, "answers": answers}


def _figures(metrics: Path) -> dict[str, Any]:
    lines = [line for _, line in read_jsonl(metrics)]
    first, last = lines[0], lines[-1]
    found = {"steps": last["step"], "tokens": last["tokens"], "loss": [first["loss"], last["loss"]]}
    further = {name: value for name, value in last.items() if name.startswith(("eval_", "reward", "kl", "ptx"))}
    return found | {name: value for name, value in further.items() if isinstance(value, (int, float))}


def _answer(model_dir: Path, question: str) -> dict[str, Any]:
    """Ask by the template that lies in the model's own folder, as anybody would who gets that folder."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(model_dir)
    model: Any = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32)
    messages = [{"role": "user", "content": question}]
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    torch.manual_seed(0)
    written = model.generate(**ids, max_new_tokens=120, do_sample=True, temperature=0.7, top_p=0.9)
    answer = written[0, ids["input_ids"].shape[1] :].tolist()
    return {
        "rendered": tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False),
        "answer": tokenizer.decode(answer, skip_special_tokens=True),
        "tokens": len(answer),
        "ended_by_itself": answer[-1] == tokenizer.eos_token_id,
    }


if __name__ == "__main__":
    cli.run(WholeRoad, main)
