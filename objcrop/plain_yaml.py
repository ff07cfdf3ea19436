"""YAML as people write options in it: plain data, or one sentence about what is wrong.

`yaml.safe_load` takes a key twice and keeps the last, lets aliases multiply a few lines into gigabytes, and raises a
dozen kinds of errors on values that are no date or number. Options need neither aliases nor depth.
"""

from __future__ import annotations

from typing import Any

import yaml

from objcrop.errors import ObjcropError, shown

LARGEST = 1 << 20  # characters


class _Plain(yaml.SafeLoader):
    """PyYAML's safe loader without aliases and without keys that stand twice."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError(f"it holds an alias, *{self.peek_event().anchor}, which options do not need")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        twice = next((key for at, key in enumerate(keys) if key in keys[:at]), None)
        if twice is not None:
            raise yaml.YAMLError(f"{shown(twice)} stands in it twice")
        return super().construct_mapping(node, deep)


def read_yaml(content: str, where: str) -> Any:
    """Return what a YAML text says: dicts, lists, strings, numbers, dates, None.

    Args:
        content: the text.
        where: what it is, for the sentence.

    Raises:
        ObjcropError: it is no YAML, or holds aliases or a key twice.
    """
    try:
        if len(content) > LARGEST:
            raise ValueError(f"more than {LARGEST} characters")
        return yaml.load(content, _Plain)
    except RecursionError:
        raise ObjcropError(f"{where} is not YAML that options can be read from (nested too deep).") from None
    except Exception as error:  # the constructors of dates, numbers and binary text raise whatever they meet
        said = " ".join(str(error).split())
        reason = said if len(said) <= 300 else f"{said[:300]}…"
        raise ObjcropError(f"{where} is not YAML that options can be read from ({reason}).") from None
