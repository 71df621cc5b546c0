"""From a frozen dataclass to a command: flags by tyro, settings from YAML, one line for a user's mistake."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import itertools
import os
import sys
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Generic, TypeVar, get_args, get_origin, get_type_hints

import tyro
import yaml

from colossal_llama2 import failing, quiet
from colossal_llama2.errors import InputError

Settings = TypeVar("Settings")

EXIT_FAILURE = 1
EXIT_USER_MISTAKE = 2
_SECONDS_FOR_THE_FIRST_RANK = 3.0
_CONFIG_FLAG = "--config"
_CONFIG_HELP = "--config FILE.yaml reads any of these by the same names; a flag wins over the file."


@dataclasses.dataclass(frozen=True)
class Command(Generic[Settings]):
    """What a command line is parsed into, and what is run with it; `note` is told at the head of its help."""

    settings_type: type[Settings]
    main: Callable[[Settings], int | None]
    note: str = ""


def run(
    settings_type: type[Settings],
    main: Callable[[Settings], int | None],
    leave: Callable[[int], Any] = sys.exit,
) -> None:
    """Parse the command line into `settings_type`, run `main`, and leave the process; see `run_chosen`."""
    run_chosen(lambda arguments: Command(settings_type, main), leave)


def run_chosen(choose: Callable[[Sequence[str]], Command[Any]], leave: Callable[[int], Any] = sys.exit) -> None:
    """Let the command line choose a command, parse it, run the command's `main`, and leave the process.

    Exit codes: what `main` returns (0 for None), 2 after one ``error:`` line for an `InputError` or an impossible
    command line, 1 after a traceback for anything else. Of several ranks only the first one speaks. `leave` ends the
    process with the code.
    """
    quiet.cut_pipes_quietly()
    quiet.hush_libraries()
    try:
        command = choose(sys.argv[1:])
        settings = parse(command.settings_type, sys.argv[1:], command.note)
        code = command.main(settings) or 0
    except InputError as error:
        _complain(error)
        code = EXIT_USER_MISTAKE
    except KeyboardInterrupt:
        _say("interrupted")
        code = 130
    except Exception as error:
        failing.report_failure(error)
        code = EXIT_FAILURE
    sys.stdout.flush()
    sys.stderr.flush()
    leave(code)


def chosen(name: str, arguments: Sequence[str], choices: Collection[str], default: str) -> str:
    """Return the value of one flag before anything else is parsed, from the flags or from ``--config``'s file.

    Raises:
        InputError: it is not among the choices, or the file cannot be read.
    """
    own, config_file = _take_config_flag(list(arguments))
    entries = [] if config_file is None else list(_read_yaml(config_file))
    flat = [*(part for _, entry in entries for part in entry), *own]
    value = default
    for argument, following in itertools.pairwise([*flat, ""]):
        flag, equals, given = argument.partition("=")
        if flag == f"--{name}":
            value = given if equals else following
    if value not in choices:
        raise InputError(f"--{name} is {value!r}", remedy=f"give one of {', '.join(choices)}")
    return value


def parse(settings_type: type[Settings], arguments: Sequence[str], note: str = "") -> Settings:
    """Build the settings from flags, and from the YAML file that ``--config`` names; a flag wins over the file.

    Args:
        settings_type: what to build.
        arguments: the command line without the program's name.
        note: a paragraph for the help.

    Raises:
        InputError: an unknown, missing or malformed flag or YAML entry.
        SystemExit: with code 0, after printing help.
    """
    own, config_file = _take_config_flag(list(arguments))
    names = {name for name, _ in flags(settings_type)}
    _refuse_other_spellings(own, names)
    from_file = [] if config_file is None else _known_entries(config_file, names)
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            return tyro.cli(
                settings_type,
                args=[*from_file, *own],
                description="\n\n".join(filter(None, ((settings_type.__doc__ or "").strip(), note, _CONFIG_HELP))),
                use_underscores=True,
                console_outputs=is_speaking_rank() or not {"-h", "--help"} & set(own),
                config=(tyro.conf.OmitArgPrefixes,),
            )
    except SystemExit as leave:
        if leave.code in (0, None):
            raise
        what, remedy = _condense(complaint.getvalue())
        raise InputError(what, remedy=remedy) from None


def flags(settings_type: type[Any]) -> Iterator[tuple[str, dataclasses.Field[Any]]]:
    """Yield (name, field) of every flag, nested groups flattened in order."""
    hints = get_type_hints(settings_type, include_extras=True)
    for field in dataclasses.fields(settings_type):
        group = _as_dataclass(hints[field.name])
        if group is not None:
            yield from flags(group)
        else:
            yield field.name, field


def as_yaml(settings: Any) -> str:
    """Write settings as the YAML that ``--config`` reads back to the same settings."""
    return yaml.safe_dump(dict(_flat_values(settings)), sort_keys=False, allow_unicode=True, width=10_000)


def is_speaking_rank() -> bool:
    """Tell whether this process may print: the only one, or the first of those a launcher started."""
    return os.environ.get("RANK", "0") == "0"


def say(message: str) -> None:
    """Print a line on standard output, from one rank only."""
    if is_speaking_rank():
        print(message, flush=True)


def warn(message: str) -> None:
    """Print a line on standard error, from one rank only."""
    _say(f"warning: {message}")


def comma_separated(value: str) -> list[str]:
    """Split ``A,B,C``; blanks around the parts do not count."""
    return [part.strip() for part in value.split(",") if part.strip()]


def _complain(error: InputError) -> None:
    """Let the first rank speak, and torchrun know; that ends all ranks when one has left, so the others wait.

    A rank that is still there after that has found something the first one has not, and says so itself.
    """
    failing.leave_word(f"error: {error}", "")
    if not is_speaking_rank():
        time.sleep(_SECONDS_FOR_THE_FIRST_RANK)
        print(f"error: rank {os.environ['RANK']}: {error}", file=sys.stderr, flush=True)
    _say(f"error: {error}")


def _say(message: str, stream: Any = None) -> None:
    if is_speaking_rank():
        print(message, file=stream or sys.stderr, flush=True)


def _take_config_flag(arguments: list[str]) -> tuple[list[str], Path | None]:
    config_file: Path | None = None
    own: list[str] = []
    rest = iter(arguments)
    for argument in rest:
        name, equals, value = argument.partition("=")
        if name != _CONFIG_FLAG:
            own.append(argument)
            continue
        chosen = value if equals else next(rest, "")
        if not chosen:
            raise InputError("--config needs a file", remedy="write --config FILE.yaml")
        config_file = Path(chosen)
    return own, config_file


def _refuse_other_spellings(arguments: list[str], names: set[str]) -> None:
    """Hold users to the documented spelling: tyro would also take ``--max-steps`` for ``--max_steps``."""
    for argument in arguments:
        flag = argument.partition("=")[0]
        if flag.startswith("--") and "-" in flag[2:] and flag[2:].replace("-", "_") in names:
            raise InputError(f"unknown flag {flag}", remedy=f"write --{flag[2:].replace('-', '_')}")


def _known_entries(path: Path, names: set[str]) -> list[str]:
    arguments: list[str] = []
    for (name, line), entry in _read_yaml(path):
        if name not in names:
            raise InputError(f"unknown setting {name!r}", path=path, line=line, remedy="see --help")
        arguments += entry
    return arguments


def _read_yaml(path: Path) -> Iterator[tuple[tuple[str, int], list[str]]]:
    """Yield name and line of each entry of a YAML mapping, and the flag it stands for."""
    root = compose_yaml(path)
    for key, value in [] if root is None else root.value:
        line = key.start_mark.line + 1
        yield (str(key.value), line), yaml_flag(key.value, value, path, line)


def compose_yaml(path: Path) -> yaml.MappingNode | None:
    """Read a file's YAML mapping as nodes, which know their lines; None for an empty file.

    Raises:
        InputError: it cannot be read, or is something else.
    """
    try:
        root = yaml.compose(path.read_text(encoding="utf-8-sig"), Loader=yaml.SafeLoader)
    except OSError as error:
        raise InputError(f"cannot be read ({error.strerror})", path=path) from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        line = None if mark is None else mark.line + 1
        raise InputError(f"not YAML ({getattr(error, 'problem', error)})", path=path, line=line) from None
    if root is not None and not isinstance(root, yaml.MappingNode):
        raise InputError("not a mapping", path=path, line=1, remedy="write one `name: value` a line")
    return root


def yaml_flag(name: str, value: yaml.Node, path: Path, line: int) -> list[str]:
    """Return the flag that an entry stands for, scalars left as text so that ``1e-4`` is parsed as the flag would be.

    Raises:
        InputError: it holds a mapping.
    """
    if isinstance(value, yaml.SequenceNode):
        return [f"--{name}", *(str(item.value) for item in value.value)]
    if not isinstance(value, yaml.ScalarNode):
        raise InputError(f"{name} holds a mapping", path=path, line=line, remedy="give it a value or a list")
    if value.tag.endswith(":null"):
        return [f"--{name}", "None"]
    if value.tag.endswith(":bool"):
        return [f"--{name}" if value.value.lower() in ("true", "yes", "on") else f"--no_{name}"]
    return [f"--{name}", str(value.value)]


def _flat_values(settings: Any) -> Iterator[tuple[str, Any]]:
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        if dataclasses.is_dataclass(value):
            yield from _flat_values(value)
        elif isinstance(value, (tuple, list)):
            yield field.name, [str(item) if isinstance(item, Path) else item for item in value]
        elif value is not None or field.default is not None:
            yield field.name, str(value) if isinstance(value, Path) else value


def _as_dataclass(hint: Any) -> type[Any] | None:
    while get_origin(hint) is Annotated:
        hint = get_args(hint)[0]
    return hint if isinstance(hint, type) and dataclasses.is_dataclass(hint) else None


def _condense(box: str) -> tuple[str, str]:
    """Take the sentence out of tyro's framed complaint, and its suggestion as the remedy."""
    sections: list[list[str]] = [[]]
    for raw in box.splitlines():
        line = raw.strip("│╭╮╰╯ ").strip()
        if line and not line.strip("─-"):
            sections.append([])
        elif line and not raw.startswith("╭"):
            sections[-1].append(line)
    if not box.lstrip().startswith("╭") and len(sections) > 1:
        sections.pop(0)  # without a UTF-8 terminal there is no frame, and the title is a section of its own
    sentence, hints = sections[0], sections[1:]
    what = " ".join(sentence).removesuffix(".")
    if what.startswith("Missing from"):
        what = "missing " + ", ".join(line.split()[0] for line in sentence if line.startswith("-"))
    near = [lines[1].split()[0].rstrip(",") for lines in hints if len(lines) > 1 and lines[0].startswith("Perhaps")]
    return what[:1].lower() + what[1:], f"did you mean {near[0]}?" if near else "see --help"
