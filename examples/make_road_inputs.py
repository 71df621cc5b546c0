"""What `examples/road_demo.yaml` starts from: a random model with an English tokenizer, and three small sets.

    python examples/make_road_inputs.py [--output_dir runs/road-demo/inputs]

The conversations ask about the towns of the invented land that the bundled corpus tells of, in both languages, so that
what is asked for was read before. Preferences set the short right answer against that of another town, or against
one that does not stop.
"""

from __future__ import annotations

import json
import random
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from colossal_llama2 import cli  # noqa: E402
from examples import demo_ingredients as ingredients  # noqa: E402

CONTEXT = 512
_QUESTIONS = {
    "zh": {
        "place": ("{name}在哪里？", "{name}在{fact}。"),
        "river": ("流过{name}的是哪条河？", "流过{name}的是{fact}。"),
        "crop": ("{name}的人种什么？", "{name}的人种{fact}。"),
        "day": ("{name}哪一天赶集？", "{name}在{fact}赶集。"),
        "feast": ("{name}过什么节？", "{name}过的是{fact}。"),
        "mark": ("到了{name}先看见什么？", "到了{name}，先看见{fact}。"),
        "soil": ("{name}的土怎么样？", "{name}的土{fact}。"),
    },
    "en": {
        "place": ("Where is {name}?", "{name} lies {fact}."),
        "river": ("Which river flows past {name}?", "{fact} flows past {name}."),
        "crop": ("What do the people of {name} grow?", "The people of {name} grow {fact}."),
        "day": ("On which day is the market of {name}?", "The market of {name} is on {fact}."),
        "feast": ("Which feast is kept in {name}?", "In {name} they keep {fact}."),
        "mark": ("What does one see first in {name}?", "In {name} one first sees {fact}."),
        "soil": ("How is the soil of {name}?", "The soil of {name} is {fact}."),
    },
}


@dataclass(frozen=True)
class RoadInputs:
    """Make what the road of the demo starts from."""

    output_dir: Path = Path("runs/road-demo/inputs")
    """Folder to write to; what an earlier call left there is replaced."""


@dataclass(frozen=True)
class _Question:
    question: str
    answer: str
    others: list[str]


def main(settings: RoadInputs) -> None:
    """Write the model, and the sets as jsonl."""
    shutil.rmtree(settings.output_dir, ignore_errors=True)
    settings.output_dir.mkdir(parents=True)
    english = ingredients.texts(ROOT / "examples" / "corpus" / "english.jsonl")
    ingredients.make_base_tokenizer(english, settings.output_dir / "tokenizer")
    ingredients.make_random_model(settings.output_dir / "tokenizer", CONTEXT, settings.output_dir / "model")
    asked = list(_questions())
    random.Random(1).shuffle(asked)
    sets = {
        "chats": [{"instruction": each.question, "output": each.answer} for each in asked],
        "pairs": list(_pairs(asked)),
        "prompts": [{"prompt": each.question} for each in asked],
    }
    for name, records in sets.items():
        lines = (json.dumps(record, ensure_ascii=False) + "\n" for record in records)
        (settings.output_dir / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")


def _questions() -> Iterator[_Question]:
    world = yaml.safe_load((ROOT / "examples" / "grammar" / "world.yaml").read_text(encoding="utf-8"))
    towns: list[dict[str, Any]] = list(world["towns"].values())
    for language, facts in _QUESTIONS.items():
        for fact, (question, answer) in facts.items():
            for town in towns:
                name = town[language]["name"]
                said = [answer.format(name=name, fact=other[language][fact]) for other in towns]
                right = answer.format(name=name, fact=town[language][fact])
                others = [text[:1].upper() + text[1:] for text in said if text != right]
                yield _Question(question.format(name=name), right[:1].upper() + right[1:], others)


def _pairs(asked: list[_Question]) -> Iterator[dict[str, str]]:
    draw = random.Random(2)
    for number, each in enumerate(asked):
        wrong = draw.choice(each.others) if number % 4 else each.answer + "".join(draw.sample(each.others, 3))
        yield {"prompt": each.question, "chosen": each.answer, "rejected": wrong}


if __name__ == "__main__":
    cli.run(RoadInputs, main)
