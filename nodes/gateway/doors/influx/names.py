"""Database names as InfluxDB 3 checks them (`validate_db_name` in its http.rs), with its words."""

from __future__ import annotations

from typing import Final

from nodes.gateway.faults import BadName

NAME_CHARACTERS_MAX: Final = 511
RETENTION_SEPARATOR: Final = "/"
SAME_AS_DATABASE: Final = frozenset({"", "''", "autogen", "default"})
"""Retention policies that 1.x clients name and that mean the database itself."""

_LETTERS: Final = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789")
_INNER: Final = _LETTERS | {"_", "-", RETENTION_SEPARATOR}

EMPTY: Final = "db name cannot be empty"
TOO_LONG: Final = f"db name too long: max {NAME_CHARACTERS_MAX}"
BAD_START: Final = "db name did not start with a number or letter"
BAD_CHARACTER: Final = (
    "invalid character in database or rp name: must be ASCII, containing only letters, numbers, underscores, or hyphens"
)
BAD_RETENTION: Final = (
    "db name with invalid retention policy, if providing a retention policy name, must be of form '<db_name>/<rp_name>'"
)


def check_database_name(name: str) -> str:
    """The name, if InfluxDB would take it. BadName with InfluxDB's words otherwise."""
    if not name:
        raise BadName(EMPTY)
    if len(name) > NAME_CHARACTERS_MAX:
        raise BadName(TOO_LONG)
    if name[0] not in _LETTERS:
        raise BadName(BAD_START)
    if not _INNER.issuperset(name):
        raise BadName(BAD_CHARACTER)
    if name.count(RETENTION_SEPARATOR) > 1 or name.endswith(RETENTION_SEPARATOR):
        raise BadName(BAD_RETENTION)
    return name


def database_of(database: str, retention_policy: str) -> str:
    """The database that a v1 (db, rp) pair means: ``db`` itself, or ``db/rp`` with rp in lower case."""
    policy = retention_policy.lower()
    name = database if policy in SAME_AS_DATABASE else f"{database}{RETENTION_SEPARATOR}{policy}"
    return check_database_name(name)
