"""Compared answers whose truth is known: random words, some liked and some not, the better answer with more of them.

How long an answer is was drawn apart from that, so that who learns the truth does not see it.
"""

from __future__ import annotations

import json
import random
from pathlib import Path

from benchmarks.tiny_inputs import WORDS
from colossal_llama2.dataset.prepare_dataset import PrepareSetSettings
from colossal_llama2.dataset.prepare_dataset import main as prepare

LIKED, DISLIKED, PLAIN = WORDS[:3], WORDS[3:6], WORDS[6:]
SHORTEST, LONGEST, MARKED = 6, 24, 4


def prepare_compared_words(work: Path, tokenizer_dir: Path, pairs: int, seed: int, mistaken: float = 0.0) -> Path:
    """Draw pairs, the share `mistaken` of them labelled the wrong way round; prepare them with one in ten held back.

    Returns:
        The prepared set, a folder in `work`.
    """
    draw = random.Random(seed)
    with (work / "pairs.jsonl").open("w", encoding="utf-8") as file:
        for number in range(pairs):
            better, worse = _pair(draw)
            if mistaken and draw.random() < mistaken:
                better, worse = worse, better
            prompt = f"{number} " + " ".join(draw.choices(PLAIN, k=4))
            file.write(json.dumps({"prompt": prompt, "chosen": better, "rejected": worse}) + "\n")
    prepare(
        PrepareSetSettings(
            type="preference",
            data_input_dirs=str(work / "pairs.jsonl"),
            tokenizer_dir=tokenizer_dir,
            data_arrow_output_dir=work / "set",
            chat_template="llama2",
            max_length=128,
            holdout="10%",
            num_workers=1,
        )
    )
    return work / "set"


def _pair(draw: random.Random) -> tuple[str, str]:
    """Draw two answers of different worth, the better one first; their lengths are drawn apart from it."""
    while True:
        (first, one), (second, other) = (_answer(draw) for _ in range(2))
        if one != other:
            return (first, second) if one > other else (second, first)


def _answer(draw: random.Random) -> tuple[str, int]:
    liked = draw.randint(0, MARKED)
    marked = draw.choices(LIKED, k=liked) + draw.choices(DISLIKED, k=MARKED - liked)
    words = marked + draw.choices(PLAIN, k=draw.randint(SHORTEST, LONGEST) - MARKED)
    draw.shuffle(words)
    return " ".join(words), liked
