"""Settings of a node, and the only module that reads the environment.

A value comes from a flag, else from ``RUNNEL_SECTION__KEY``, else from the TOML file, else from the default.
`nodes.settings_model` declares them; docs/settings.md is made from it by ``python -m nodes.settings --markdown``.
Driven by `nodes.cli` and, with plain values, by tests.
"""

from __future__ import annotations

import dataclasses
import difflib
import enum
import os
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Final

from nodes.exitcodes import ExitCode, NodeError
from nodes.settings_kinds import SECRET, Kind
from nodes.settings_model import HTTP_PORT_DEFAULT, Budgets, Settings

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

__all__ = ["FIELDS", "Budgets", "Field", "Loaded", "Origin", "Settings", "SettingsError", "load"]

PREFIX: Final = "RUNNEL_"
SEPARATOR: Final = "__"
FILE_SUFFIX: Final = "_file"
HOST_DEFAULT: Final = f"http://127.0.0.1:{HTTP_PORT_DEFAULT}"
SHARES_SUM_MAX: Final = 0.9
SECRET_FILE_BYTES_MAX: Final = 64 * 1024


class SettingsError(NodeError):
    """One or more settings cannot be used. ``problems`` has one sentence for each."""

    code: ClassVar[str] = "bad_config"
    exit_code: ClassVar[ExitCode] = ExitCode.CONFIG

    def __init__(self, *problems: str) -> None:
        super().__init__("; ".join(problems))
        self.problems = problems


class Origin(enum.StrEnum):
    """Where a value came from, weakest first."""

    DEFAULT = "default"
    FILE = "file"
    ENVIRONMENT = "env"
    FLAG = "flag"


@dataclass(frozen=True, slots=True)
class Field:
    """One declared setting."""

    section: str
    key: str
    kind: Kind
    default: Any
    doc: str

    @property
    def name(self) -> str:
        """As TOML and messages say it: ``http.listen``."""
        return f"{self.section}.{self.key}"

    @property
    def variable(self) -> str:
        """The environment variable: ``RUNNEL_HTTP__LISTEN``."""
        return f"{PREFIX}{self.section.upper()}{SEPARATOR}{self.key.upper()}"

    @property
    def is_secret(self) -> bool:
        return self.kind is SECRET


@dataclass(frozen=True, slots=True)
class Given:
    """A value as it was written, and where: ``place`` completes "in ..."."""

    value: object
    origin: Origin
    place: str


@dataclass(frozen=True, slots=True)
class Loaded:
    """Settings and where each value came from (``origins[name]``; absent means default)."""

    settings: Settings
    origins: Mapping[str, Origin]

    def value(self, field: Field) -> Any:
        return getattr(getattr(self.settings, field.section), field.key)

    def origin(self, field: Field) -> Origin:
        return self.origins.get(field.name, Origin.DEFAULT)


def fields() -> Iterator[Field]:
    """All settings in the order of their declaration."""
    for section in dataclasses.fields(Settings):
        for item in dataclasses.fields(getattr(Settings(), section.name)):
            yield Field(section.name, item.name, item.metadata["kind"], item.default, item.metadata["doc"])


FIELDS: Final[dict[str, Field]] = {item.name: item for item in fields()}


def load(
    config: Path | None = None,
    flags: Mapping[str, object] | None = None,
    environment: Mapping[str, str] | None = None,
) -> Loaded:
    """Read and check all settings. ``flags`` maps names ("http.listen") to values; None values are not given.

    ``environment`` None takes the process's; ``config`` None takes ``RUNNEL_CONFIG``, else no file.
    Raises SettingsError with every problem found, not only the first.
    """
    environment = os.environ if environment is None else environment
    config = config or (Path(environment[f"{PREFIX}CONFIG"]) if environment.get(f"{PREFIX}CONFIG") else None)
    problems: list[str] = []
    given: dict[str, Given] = {}
    if config is not None:
        given |= _from_file(config, problems)
    given |= _from_environment(environment, problems)
    given |= {name: Given(v, Origin.FLAG, "the flags") for name, v in (flags or {}).items() if v is not None}
    loaded = _build(given, problems)
    if not problems:
        problems += _conflicts(loaded)
    if problems:
        raise SettingsError(*problems)
    return loaded


def client_host() -> str:
    """The server's URL for commands that are clients: ``RUNNEL_HOST``, else this machine."""
    return os.environ.get(f"{PREFIX}HOST") or HOST_DEFAULT


def environment_without(names: Iterable[str]) -> dict[str, str]:
    """This process's environment without the variables of these settings: for a child that has them from elsewhere."""
    hidden = {FIELDS[name].variable for name in names}
    return {variable: value for variable, value in os.environ.items() if variable not in hidden}


def set_environment(variables: Mapping[str, str]) -> None:
    """Variables for a library that is told what to do by no other way, and for the processes that it starts."""
    os.environ.update(variables)


def history_path() -> Path:
    """Where the SQL prompt keeps its history: under ``XDG_STATE_HOME``, else ``~/.local/state``."""
    state = os.environ.get("XDG_STATE_HOME")
    return (Path(state) if state else Path.home() / ".local" / "state") / "runnel" / "sql_history"


def _build(given: Mapping[str, Given], problems: list[str]) -> Loaded:
    values: dict[str, dict[str, Any]] = {}
    for name, item in given.items():
        field = FIELDS[name]
        try:
            values.setdefault(field.section, {})[field.key] = field.kind.read(item.value)
        except ValueError as error:
            written = "" if field.is_secret else f" {item.value!r}"
            problems.append(f"{name} ={written} in {item.place}: {error}; write {field.kind.allowed}")
    base = Settings()
    sections = {name: dataclasses.replace(getattr(base, name), **keys) for name, keys in values.items()}
    return Loaded(dataclasses.replace(base, **sections), {name: item.origin for name, item in given.items()})


def _conflicts(loaded: Loaded) -> list[str]:
    """What is wrong with values that are each right by themselves."""
    settings, problems = loaded.settings, []
    if not settings.http.listen.is_loopback and "auth.mode" not in loaded.origins:
        problems.append(
            f"http.listen = {settings.http.listen} can be reached from other machines, and there is no "
            f'access control yet; if that is meant, write auth.mode = "off" ({FIELDS["auth.mode"].variable}=off), '
            "or listen on 127.0.0.1"
        )
    if settings.memory.memtable_share + settings.memory.query_share > SHARES_SUM_MAX:
        problems.append(f"memory.memtable_share + memory.query_share is more than {SHARES_SUM_MAX}; lower one of them")
    if settings.log.collect_grace <= settings.query.timeout:
        problems.append("log.collect_grace must be longer than query.timeout, or a running query could lose its files")
    if bool(settings.store.s3_access_key) != bool(settings.store.s3_secret_key):
        problems.append("store.s3_access_key and store.s3_secret_key must be given together")
    return problems


def _from_file(path: Path, problems: list[str]) -> dict[str, Given]:
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        problems.append(f"cannot read the settings file {path}: {error.strerror}")
        return {}
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        problems.append(f"{path} is not valid TOML: {error}")
        return {}
    given: dict[str, Given] = {}
    for section, keys in document.items():
        if not isinstance(keys, dict):
            problems.append(f"{section!r} in {path} stands outside a section; {_nearest_hint(section)}")
            continue
        for key, value in keys.items():
            _take(f"{section}.{key}", Given(value, Origin.FILE, str(path)), given, problems)
    return given


def _from_environment(environment: Mapping[str, str], problems: list[str]) -> dict[str, Given]:
    """Names with ``__`` are settings. Others are left alone (Kubernetes sets RUNNEL_PORT for a service named runnel),
    except those that would be a setting with the right number of underscores."""
    almost = {f"{PREFIX}{item.section}_{item.key}".upper(): item for item in FIELDS.values()}
    given: dict[str, Given] = {}
    for variable, value in environment.items():
        if not variable.startswith(PREFIX):
            continue
        section, separator, key = variable.removeprefix(PREFIX).partition(SEPARATOR)
        if separator:
            _take(f"{section}.{key}".lower(), Given(value, Origin.ENVIRONMENT, variable), given, problems)
        elif variable in almost:
            problems.append(f"{variable} has one underscore too few; write {almost[variable].variable}")
    return given


def _take(name: str, item: Given, given: dict[str, Given], problems: list[str]) -> None:
    """Put one written value under its setting, reading the file that a ``_file`` key names."""
    field, item_of = FIELDS.get(name), item
    if field is None and name.endswith(FILE_SUFFIX):
        field = FIELDS.get(name.removesuffix(FILE_SUFFIX))
        field = field if field is not None and field.is_secret else None
        if field is not None:
            text = _read_secret(name, item, problems)
            item_of = dataclasses.replace(item, value=text)
    if field is None:
        problems.append(f"unknown setting {name!r} in {item.place}; {_nearest_hint(name)}")
    elif field.name in given:
        problems.append(f"{field.name} is given twice in {item.place}; keep one of it and its {FILE_SUFFIX} form")
    else:
        given[field.name] = item_of


def _read_secret(name: str, item: Given, problems: list[str]) -> str:
    path = Path(str(item.value))
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not text"
        problems.append(f"cannot read {path}, which {name} in {item.place} names: {reason}")
        return ""
    if len(text) > SECRET_FILE_BYTES_MAX:
        problems.append(f"{path}, which {name} in {item.place} names, is too large for a secret")
        return ""
    return text.strip()


def _nearest_hint(name: str) -> str:
    near = difflib.get_close_matches(name, FIELDS, n=1, cutoff=0.5)
    if not near:
        tail = name.rpartition(".")[2]
        near = [known for known in FIELDS if known.endswith(f".{tail}")]
    return f"did you mean {near[0]}?" if near else "`runnel config show` lists them all"


def main(arguments: list[str]) -> int:
    """``python -m nodes.settings --markdown`` prints docs/settings.md."""
    from nodes.settings_docs import markdown

    if arguments != ["--markdown"]:
        sys.stderr.write("usage: python -m nodes.settings --markdown\n")
        return ExitCode.USAGE
    sys.stdout.write(markdown())
    return ExitCode.OK


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
