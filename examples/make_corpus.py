"""Write the bundled bilingual corpus: the same invented country described in English and in Chinese.

`grammar/world.yaml` holds the facts, `grammar/english.yaml` and `grammar/chinese.yaml` the sentences that tell them,
`grammar/handwritten.yaml` texts written by hand. Both languages draw from the same facts, never from each other's
sentences. Running this again gives the same bytes.
"""

from __future__ import annotations

import argparse
import json
import random
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import yaml

HERE = Path(__file__).resolve().parent
LANGUAGES = {"english": "en", "chinese": "zh"}
# Bytes of text in the training part, and documents held out.
TRAINING_BYTES = {"english": 220_000, "chinese": 180_000}
HELD_OUT = 70
HELD_OUT_BY_HAND = 2
QUESTION_SHARE = 0.25

_CHOICE = re.compile(r"\[([^\[\]]*)\]")
_SENTENCE_START = re.compile(r"((?:^|[.!?]\"? )\"?|(?<=[^,] )\")([a-z])")
_ARTICLE = re.compile(r"\b([Aa]) (?=[aeiou])")
_EN = """zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen
eighteen nineteen""".split()  # noqa: SIM905
_EN_TENS = "zero ten twenty thirty forty fifty sixty seventy eighty ninety".split()  # noqa: SIM905
_ZH = "零一二三四五六七八九"


class World:
    """The facts of `world.yaml` in one language, with every reference between tables followed."""

    def __init__(self, language: str) -> None:
        tables = yaml.safe_load((HERE / "grammar" / "world.yaml").read_text(encoding="utf-8"))
        short = LANGUAGES[language]
        self.number: Callable[[int], str] = english_number if short == "en" else chinese_number
        # Before a measure word Chinese says 两, not 二.
        self.count: Callable[[int], str] = english_number if short == "en" else chinese_count
        self.tables: dict[str, dict[str, Any]] = {
            table: {key: SimpleNamespace(**_plain(entry), **entry[short]) for key, entry in entries.items()}
            for table, entries in tables.items()
        }
        self._link(short)

    def _link(self, short: str) -> None:
        towns, goods, people = self.tables["towns"], self.tables["goods"], self.tables["people"]
        for position, town in enumerate(towns.values()):
            town.position = position
            town.good = goods[town.good]
            town.good.town = town
            town.season = self.tables["seasons"][town.season].name
        for person in people.values():
            female = person.sex == "f"
            pronouns = ("she", "her", "her") if female else ("he", "him", "his")
            person.he, person.him, person.his = pronouns if short == "en" else ("她" if female else "他",) * 3
            person.town = towns[person.town]
            person.friend = people[person.friend]
            person.animal = self.tables["animals"][person.animal]
            person.dish = self.tables["dishes"][person.dish]
        for dish in self.tables["dishes"].values():
            dish.season = self.tables["seasons"][dish.season].name

    def cast(self, rng: random.Random) -> dict[str, Any]:
        """Draw who and what a document is about; names are those the templates use."""
        tables = self.tables
        person = rng.choice(list(tables["people"].values()))
        home = person.town
        stranger = rng.choice([p for p in tables["people"].values() if p not in (person, person.friend)])
        away = rng.choice([t for t in tables["towns"].values() if t is not home])
        animal = rng.choice([a for a in tables["animals"].values() if a is not person.animal])
        season = rng.choice(list(tables["seasons"].values()))
        good = rng.choice(list(tables["goods"].values()))
        dishes = [d for d in tables["dishes"].values() if d.season == season.name]
        things = {
            "p": person, "q": person.friend, "r": stranger, "t": home, "u": away, "g": home.good, "h": away.good,
            "k": good, "d": person.dish, "a": person.animal, "b": animal, "s": season,
            "f": rng.choice(list(tables["signs"].values())), "sd": rng.choice(dishes),
        }  # fmt: skip
        return things | self._numbers(rng, home, away, good, animal)

    def _numbers(self, rng: random.Random, home: Any, away: Any, good: Any, animal: Any) -> dict[str, str]:
        n, few, few2 = rng.randint(2, 9), rng.randint(3, 8), rng.randint(2, 6)
        x, y = rng.sample(range(2, 30), 2)
        english = self.number is english_number
        # A road is equally long in both directions.
        days = abs(home.position - away.position) % 5 + 1
        after = rng.randint(1, 3)
        words: dict[str, str] = {
            "n": self.count(n), "few": self.count(few), "few2": self.count(few2),
            "blegs": self.count(few2 * animal.legs),
            "x": self.number(x), "y": self.number(y), "sum": self.number(x + y),
            "cmp": ("greater" if x > y else "smaller") if english else ("大" if x > y else "小"),
            "days": (f"{self.count(days)} {'day' if days == 1 else 'days'}" if english else f"{self.count(days)}天"),
            "after": (
                f"after {self.count(after)} {'hour' if after == 1 else 'hours'}"
                if english else f"过了{self.count(after)}个钟头"
            ),
        }  # fmt: skip
        for name, price in (("g", home.good.price), ("k", good.price)):
            total = n * price
            paid = (total // 10 + 1) * 10
            words |= {
                f"{name}total": self.count(total),
                f"{name}pay": self.count(paid),
                f"{name}change": self.count(paid - total),
            }
        return words


class Writer:
    """Turns templates of one language into records, drawing everything from one random stream."""

    def __init__(self, language: str, seed: int) -> None:
        self.rng = random.Random(f"{language}-{seed}")
        self.world = World(language)
        self.language, self.english = language, language == "english"
        grammar = yaml.safe_load((HERE / "grammar" / f"{language}.yaml").read_text(encoding="utf-8"))
        self.documents: list[dict[str, Any]] = grammar["documents"]
        self.questions: list[dict[str, str]] = grammar["questions"]

    def record(self) -> dict[str, str]:
        """Write one record: a question with its answer, or a document without a source."""
        cast = self.world.cast(self.rng)
        if self.rng.random() < QUESTION_SHARE:
            return self._question(cast)
        kind = self.rng.choices(self.documents, [kind["weight"] for kind in self.documents])[0]
        text = "".join(self._line(line, cast) for line in kind["lines"])
        return {"source": "", "target": self._tidy(text), "category": f"{self.language}_{kind['category']}"}

    def _question(self, cast: dict[str, Any]) -> dict[str, str]:
        chosen = self.rng.choice(self.questions)
        ask, say = (self._tidy(self._fill(chosen[part], cast)) for part in ("ask", "say"))
        source = f"Question: {ask}\nAnswer: " if self.english else f"问：{ask}\n答："
        return {"source": source, "target": say, "category": f"{self.language}_questions"}

    def _line(self, line: str, cast: dict[str, Any]) -> str:
        if line.startswith("? "):
            if self.rng.random() < 0.4:
                return ""
            line = line[2:]
        return self._fill(line, cast)

    def _fill(self, template: str, cast: dict[str, Any]) -> str:
        chosen = _CHOICE.sub(lambda match: self.rng.choice(match[1].split("|")), template)
        world = self.world
        spelled = {name: _Spelled(thing, world.count) for name, thing in cast.items() if not isinstance(thing, str)}
        return chosen.format_map(cast | spelled)

    def _tidy(self, text: str) -> str:
        text = text.strip()
        if self.english:
            text = _SENTENCE_START.sub(lambda match: match[1] + match[2].upper(), _ARTICLE.sub(r"\1n ", text))
        return text


class _Spelled:
    """A thing of the world whose small numbers are read as words, and whose years and populations stay digits."""

    def __init__(self, thing: Any, count: Callable[[int], str]) -> None:
        self._thing, self._count = thing, count

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._thing, name)
        if isinstance(value, SimpleNamespace):
            return _Spelled(value, self._count)
        return self._count(value) if isinstance(value, int) and value < 100 else value


def english_number(value: int) -> str:
    """Spell a number from 0 to 99."""
    if value < 20:
        return _EN[value]
    tens, ones = divmod(value, 10)
    return _EN_TENS[tens] + (f"-{_EN[ones]}" if ones else "")


def chinese_number(value: int) -> str:
    """Spell a number from 0 to 99 in Chinese."""
    tens, ones = divmod(value, 10)
    if not tens:
        return _ZH[ones]
    return ("" if tens == 1 else _ZH[tens]) + "十" + (_ZH[ones] if ones else "")


def chinese_count(value: int) -> str:
    """Spell a number as it stands before a measure word: 两 for 2."""
    return "两" if value == 2 else chinese_number(value)


def make_language(language: str, seed: int) -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    """Write one language: (training records, held-out records), with no document in both and none twice."""
    by_hand = yaml.safe_load((HERE / "grammar" / "handwritten.yaml").read_text(encoding="utf-8"))[language]
    written = [
        {"source": "", "target": entry["text"], "category": f"{language}_{entry['category']}"} for entry in by_hand
    ]
    training, held_out = written[:-HELD_OUT_BY_HAND], written[-HELD_OUT_BY_HAND:]
    writer = Writer(language, seed)
    seen = {text_of(record) for record in written}
    size = sum(len(text_of(record).encode()) for record in training)
    while len(held_out) < HELD_OUT or size < TRAINING_BYTES[language]:
        record = writer.record()
        text = text_of(record)
        if text in seen:
            continue
        seen.add(text)
        if len(held_out) < HELD_OUT:
            held_out.append(record)
        else:
            training.append(record)
            size += len(text.encode())
    writer.rng.shuffle(training)
    return training, held_out


def text_of(record: dict[str, str]) -> str:
    """Return everything a reader of the record sees."""
    return record["source"] + record["target"]


def main() -> None:
    """Write the four files of `examples/corpus`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, default=HERE / "corpus")
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    arguments.output_dir.mkdir(parents=True, exist_ok=True)
    for language in LANGUAGES:
        for suffix, records in zip(("", "_heldout"), make_language(language, arguments.seed), strict=True):
            path = arguments.output_dir / f"{language}{suffix}.jsonl"
            lines = (json.dumps(record, ensure_ascii=False) + "\n" for record in records)
            path.write_text("".join(lines), encoding="utf-8", newline="\n")
            print(f"{path.name}: {len(records)} documents, {path.stat().st_size} bytes")


def _plain(entry: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in entry.items() if name not in LANGUAGES.values()}


if __name__ == "__main__":
    main()
