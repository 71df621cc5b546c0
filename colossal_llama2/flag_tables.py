"""The flags of a command as a Markdown table, written from the settings themselves so that it cannot drift."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints


def flag_table(settings_type: type[Any]) -> str:
    """Return the table of a command's flags: name and aliases, kind of value, default, help."""
    lines = ["| flag | value | default | what it does |", "| --- | --- | --- | --- |"]
    for name, hint, field, text in _flags(settings_type):
        spelled = " / ".join(f"`{flag}`" for flag in (f"--{name}", *_aliases(hint)))
        lines.append(f"| {spelled} | {_kind(hint)} | {_default(field)} | {text.replace('|', chr(92) + '|')} |")
    return "\n".join(lines) + "\n"


def _flags(settings_type: type[Any]) -> Iterator[tuple[str, Any, dataclasses.Field[Any], str]]:
    hints = get_type_hints(settings_type, include_extras=True)
    texts = _field_docstrings(settings_type)
    for field in dataclasses.fields(settings_type):
        plain = _plain(hints[field.name])
        if dataclasses.is_dataclass(plain) and isinstance(plain, type):
            yield from _flags(plain)
        else:
            yield field.name, hints[field.name], field, texts.get(field.name, "")


def _field_docstrings(settings_type: type[Any]) -> dict[str, str]:
    """Read the string under each field, which Python itself throws away."""
    definition = ast.parse(textwrap.dedent(inspect.getsource(settings_type))).body[0]
    assert isinstance(definition, ast.ClassDef)
    texts: dict[str, str] = {}
    for field, text in zip(definition.body, definition.body[1:], strict=False):
        if (
            isinstance(field, ast.AnnAssign)
            and isinstance(field.target, ast.Name)
            and isinstance(text, ast.Expr)
            and isinstance(text.value, ast.Constant)
        ):
            texts[field.target.id] = " ".join(str(text.value.value).split())
    return texts


def _plain(hint: Any) -> Any:
    while get_origin(hint) is Annotated:
        hint = get_args(hint)[0]
    return hint


def _aliases(hint: Any) -> tuple[str, ...]:
    if get_origin(hint) is not Annotated:
        return ()
    return tuple(alias for mark in hint.__metadata__ for alias in getattr(mark, "aliases", None) or ())


def _kind(hint: Any) -> str:
    hint = _plain(hint)
    parts = [part for part in get_args(hint) if part is not type(None)]
    if get_origin(hint) is Literal:
        return ", ".join(f"`{choice}`" for choice in parts)
    if get_origin(hint) is tuple:
        return _kind(parts[0]) + " ..."
    if parts and type(None) in get_args(hint):
        return _kind(parts[0])
    names = {bool: "switch", Path: "path", str: "text", int: "number", float: "number"}
    return names.get(hint, getattr(hint, "__name__", str(hint)))


def _default(field: dataclasses.Field[Any]) -> str:
    value = field.default
    if value is dataclasses.MISSING:
        return "required" if field.default_factory is dataclasses.MISSING else ""
    if value is None or value in ("", ()):
        return ""
    return "off" if value is False else "on" if value is True else f"`{value}`"
