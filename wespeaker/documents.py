"""JSON and YAML: from outside plain values of bounded size, or one sentence; to outside with the version that wrote."""

from __future__ import annotations

import json
import os
from collections.abc import Hashable, Mapping
from typing import Any

import yaml

from wespeaker import __version__
from wespeaker.errors import InputError
from wespeaker.files import replacing

WRITTEN_BY = "wespeaker_q"  # key of the version that wrote a document
_MAX_DIGITS = 100  # of a whole number: to print one of many thousands is an error of Python


def parse_json(text: str, where: object) -> Any:
    """Return the value of a JSON document.

    Args:
        text: the document.
        where: what the error calls it, such as ``file:line``.

    Raises:
        InputError: it is not JSON, or nested deeper than Python can follow.

    """
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where} is not valid JSON: {error}; make it again, or remove it") from error


def write_json(path: str | os.PathLike[str], contents: Mapping[str, Any]) -> None:
    """Write a JSON object that begins with the version of this program; the file appears whole or not at all.

    Args:
        path: the file; its folder is made if it is not there.
        contents: the rest of the object, of values that JSON has.

    """
    text = json.dumps({WRITTEN_BY: __version__, **contents}, indent=2, ensure_ascii=False)
    with replacing(path) as temporary:
        # A byte of a file name that is no UTF-8 is '\udcXX' in Python; what this makes of it is the same in JSON.
        temporary.write_text(text + "\n", encoding="utf-8", errors="backslashreplace", newline="\n")


def parse_yaml(text: str, where: object) -> Any:
    """Return the value of a YAML document of plain values.

    Aliases are refused: nine lines of them can stand for a thousand million values, which the first loop over the
    document, or an error message that shows it, would write out. So is a key given twice, where YAML takes the last.

    Args:
        text: the document.
        where: what the error calls it.

    Raises:
        InputError: it is not such YAML.

    """
    try:
        return yaml.load(text, Loader=_PlainLoader)
    except yaml.YAMLError as error:
        raise InputError(f"{where} is not valid YAML: {' '.join(str(error).split())}") from error
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
        # PyYAML's answers to values that are not of their tag, as 2024-13-01 and !!bool maybe, and to deep nesting
        raise InputError(f"{where} is not valid YAML: {type(error).__name__} {error}") from error


class _PlainLoader(yaml.SafeLoader):
    """A safe loader without aliases, repeated keys and endless numbers."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        """Refuse an alias, compose anything else."""
        if self.check_event(yaml.AliasEvent):
            raise yaml.MarkedYAMLError(
                problem="aliases (*name) are not read; write the value again", problem_mark=self.peek_event().start_mark
            )
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        """Build the mapping after looking for repeated keys."""
        seen = set()
        for key_node, _ in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                raise yaml.MarkedYAMLError(problem="a key must be one word", problem_mark=key_node.start_mark)
            if key_node.value in seen:
                raise yaml.MarkedYAMLError(
                    problem=f"key {key_node.value!r} is given twice", problem_mark=key_node.start_mark
                )
            seen.add(key_node.value)
        return super().construct_mapping(node, deep)

    def construct_short_int(self, node: yaml.ScalarNode) -> int:
        """Build a whole number that can be printed."""
        if len(node.value) > _MAX_DIGITS:
            raise yaml.MarkedYAMLError(
                problem=f"a number of more than {_MAX_DIGITS} digits", problem_mark=node.start_mark
            )
        return self.construct_yaml_int(node)


_PlainLoader.add_constructor("tag:yaml.org,2002:int", _PlainLoader.construct_short_int)
