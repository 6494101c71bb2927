"""docs/settings.md and what `runnel config show` prints, made from the declared settings.

Pure. Driven by `nodes.settings` (``--markdown``) and `nodes.cli.config`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from nodes.exitcodes import MEANINGS
from nodes.settings import FIELDS, Field, Loaded
from nodes.settings_model import Settings

if TYPE_CHECKING:
    from collections.abc import Iterator

INTRODUCTION: Final = """\
# Settings

<!-- Made by `python -m nodes.settings --markdown`; a test compares. Change nodes/settings_*.py instead. -->

A value comes from a flag, else from the environment, else from the TOML file that `--config FILE` (or
`RUNNEL_CONFIG`) names, else from the default. `runnel config show` prints each value and where it came from;
`runnel config check` only says what is wrong. A name that does not exist is an error.

- In TOML a setting is a key in a section: `[http]`, then `listen = "127.0.0.1:8181"`.
- In the environment it is `RUNNEL_SECTION__KEY`, with two underscores: `RUNNEL_HTTP__LISTEN=127.0.0.1:8181`.
- Sizes take `B`, `KiB` `MiB` `GiB` `TiB` (powers of 1024) and `KB` `MB` `GB` `TB` (powers of 1000); a bare number is
  bytes. Durations take `ms`, `s`, `min` (or `m`), `h`, `d`; a bare number is seconds.
- Lists are separated by commas (`10.0.0.1:7946,10.0.0.2:7946`); in TOML they may be arrays of texts.
- Secrets never print. Each can be read from a file: `RUNNEL_STORE__S3_SECRET_KEY_FILE=/run/secrets/key`, or the key
  `s3_secret_key_file` in TOML.
- `RUNNEL_HOST` is the server that client commands (`runnel sql`, `write`, `status`, `files`, `compact`, `health`,
  `cluster status`) talk to.
"""


def markdown() -> str:
    """The whole of docs/settings.md."""
    parts = [INTRODUCTION]
    for section in dict.fromkeys(field.section for field in FIELDS.values()):
        title = (type(getattr(Settings(), section)).__doc__ or "").strip()
        parts.append(f"\n## [{section}]\n\n{title}\n\n| setting | default | values | meaning |\n|---|---|---|---|\n")
        parts += [_row(field) for field in FIELDS.values() if field.section == section]
    parts.append("\n## Exit codes\n\n| code | meaning |\n|---|---|\n")
    parts += [f"| {code.value} | {meaning} |\n" for code, meaning in MEANINGS.items()]
    parts.append("| 128 + n | A second signal n (SIGTERM, SIGINT) ended the process at once. |\n")
    return "".join(parts)


def shown(loaded: Loaded) -> Iterator[tuple[Field, str, str]]:
    """For each setting: the field, its value as text (secrets hidden), its origin."""
    for field in FIELDS.values():
        yield field, field.kind.show(loaded.value(field)), loaded.origin(field).value


def shown_json(loaded: Loaded) -> dict[str, dict[str, Any]]:
    """By name: ``value`` (plain numbers for sizes and durations, secrets hidden) and ``origin``."""
    return {
        field.name: {"value": _plain(loaded.value(field)), "origin": loaded.origin(field).value}
        for field in FIELDS.values()
    }


def _plain(value: object) -> object:
    if isinstance(value, tuple):
        return [str(item) for item in value]
    return value if value is None or isinstance(value, (bool, int, float)) else str(value)


def _row(field: Field) -> str:
    default = field.kind.show(field.default)
    cells = (f"`{field.key}`", f"`{default}`" if default else "", field.kind.allowed, field.doc)
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |\n"
