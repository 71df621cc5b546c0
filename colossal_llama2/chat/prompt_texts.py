"""The words that are put to the model: text files with named sections and {places} to fill in."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from colossal_llama2.errors import InputError

MakingKind = Literal["conversations", "instructions", "preferences", "prompts"]
PROMPTS_DIR: Final = Path(__file__).parent / "prompts"
_CHINESE: Final = ("zh", "zh-cn", "zh-hans", "chinese", "mandarin", "simplified chinese", "中文", "汉语", "简体中文")
_HEADING: Final = re.compile(r"^=== (\w+) ===$")
_PLACE: Final = re.compile(r"\{(\w+)\}")
# The places that a section must have, behind them those that it may have.
_SECTIONS: Final[dict[MakingKind, dict[str, tuple[tuple[str, ...], tuple[str, ...]]]]] = {
    "conversations": {
        "user": (("topic", "end"), ("persona", "language")),
        "opening": ((), ("topic", "persona", "language")),
        "assistant": ((), ("topic", "language")),
    },
    "instructions": {
        "generate": (("examples", "count"), ("language",)),
        "classify": (("instruction",), ("language",)),
        "input_first": (("instruction",), ("examples", "language")),
        "output_first": (("instruction",), ("examples", "language")),
    },
    "preferences": {"judge": (("conversation", "answers", "count"), ("lowest", "highest", "language"))},
    "prompts": {"generate": (("examples", "count"), ("language",))},
}


@dataclass(frozen=True)
class PromptTexts:
    """The sections of a prompt file.

    Attributes:
        text: the whole file, for the journal's digest.
        sections: each section's text by its name.
        language: what the words call the language to write in.
        chinese: whether that is Chinese.
    """

    text: str
    sections: Mapping[str, str]
    language: str
    chinese: bool

    def fill(self, section: str, **values: str | int) -> str:
        """Return a section with its places filled; braces that come in with a value are left alone."""
        return _PLACE.sub(lambda place: str(values[place[1]]), self.sections[section])


def load_prompts(kind: MakingKind, language: str, path: Path | None) -> PromptTexts:
    """Return the words for a kind of making: the package's own, or those of a file.

    Raises:
        InputError: the file cannot be read, a section is missing or unknown, or a place is.
    """
    chinese = language.strip().casefold() in _CHINESE
    if path is None:
        path = PROMPTS_DIR / f"{kind}.{'zh' if chinese else 'en'}.txt"
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise InputError(f"cannot be read ({error.strerror})", path=path) from None
    except UnicodeDecodeError:
        raise InputError("not UTF-8", path=path, remedy="convert the file to UTF-8") from None
    sections: dict[str, list[str]] = {}
    current: list[str] | None = None
    for number, line in enumerate(text.splitlines(), 1):
        heading = _HEADING.match(line.rstrip())
        if heading:
            if heading[1] in sections:
                raise InputError(f"the section {heading[1]} stands twice", path=path, line=number)
            _check_heading(heading[1], kind, path, number)
            current = sections.setdefault(heading[1], [])
        elif current is not None:
            current.append(line)
        elif line.strip():
            raise InputError("stands before the first section", path=path, line=number, remedy="write `=== NAME ===`")
    whole = {name: "\n".join(lines).strip() for name, lines in sections.items()}
    _check_places(whole, kind, path)
    return PromptTexts(text, whole, "中文" if chinese and path.parent == PROMPTS_DIR else language.strip(), chinese)


def _check_heading(name: str, kind: MakingKind, path: Path, line: int) -> None:
    if name not in _SECTIONS[kind]:
        known = ", ".join(_SECTIONS[kind])
        raise InputError(f"--kind {kind} has no section {name}", path=path, line=line, remedy=f"it has {known}")


def _check_places(sections: Mapping[str, str], kind: MakingKind, path: Path) -> None:
    for name, (required, optional) in _SECTIONS[kind].items():
        if not sections.get(name):
            raise InputError(f"has no section {name}", path=path, remedy=f"write `=== {name} ===` and the text below")
        places = set(_PLACE.findall(sections[name]))
        missing = [place for place in required if place not in places]
        unknown = sorted(places.difference(required, optional))
        if missing or unknown:
            what = f"lacks {{{missing[0]}}}" if missing else f"has {{{unknown[0]}}}, which nothing fills"
            known = ", ".join(f"{{{place}}}" for place in (*required, *optional))
            raise InputError(f"the section {name} {what}", path=path, remedy=f"its places are {known}")
