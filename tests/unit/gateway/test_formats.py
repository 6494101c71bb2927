"""The door's formats and the engine's are the same ones."""

from __future__ import annotations

from engine.formats import ResultFormat
from nodes.gateway.doors.influx.query import ACCEPTED, CONTENT_TYPES, FORMATS, read_format


def test_every_format_has_the_engines_content_type() -> None:
    assert {name: kind.decode() for name, (_, kind) in CONTENT_TYPES.items()} == {
        str(format): format.content_type for format in ResultFormat
    }


def test_every_word_means_a_format_of_the_engine() -> None:
    words = {read_format(word, None) for word in FORMATS} | set(ACCEPTED.values())
    assert words == {str(format) for format in ResultFormat}
