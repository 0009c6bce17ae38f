"""YAML for settings, read within bounds: nothing in a file can surprise, stall or fill the memory.

Of YAML's features those are left that settings need: mappings, lists, text, numbers, true, false
and null. A key that stands twice, an alias, a tag or deep nesting is an error with its line.
"""

from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml

MAX_BYTES = 50_000
"""Reading so much takes less than a second."""

MAX_DEPTH = 20
MAX_NODES = 3_000
"""Names, values and collections of a file, counted together."""

LARGEST_INTEGER = 2**63 - 1
MAX_DIGITS = 30


class StrictLoader(yaml.SafeLoader):
    """SafeLoader without what can repeat, nest or grow."""

    depth = 0
    nodes = 0

    def fetch_flow_collection_start(self, token_class: type[yaml.Token]) -> None:
        if self.flow_level == MAX_DEPTH:  # the scanner looks far ahead of compose_node
            raise _fault(f"nested more than {MAX_DEPTH} deep", self)
        super().fetch_flow_collection_start(token_class)

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event = self.peek_event()
        if isinstance(event, yaml.AliasEvent):
            raise _fault(f"the alias *{event.anchor} is not supported, write it out", event)
        if getattr(event, "tag", None) is not None:
            raise _fault(f"the tag {event.tag} is not supported, leave it out", event)
        if self.depth == MAX_DEPTH:
            raise _fault(f"nested more than {MAX_DEPTH} deep", event)
        if self.nodes == MAX_NODES:
            raise _fault(f"more than {MAX_NODES:,} names and values", event)
        self.nodes += 1
        self.depth += 1
        try:
            return super().compose_node(parent, index)
        finally:
            self.depth -= 1

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if key.tag != "tag:yaml.org,2002:str":
                shown = repr(key.value) if isinstance(key, yaml.ScalarNode) else "a collection"
                raise _fault(f"a name must be text, got {shown}", key)
            if key.value in seen:
                raise _fault(f"{key.value} occurs twice here; keep one", key)
            seen.add(key.value)
        return super().construct_mapping(node, deep)

    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        if len(node.value) > MAX_DIGITS:  # takes long to read, or cannot be read
            raise _fault(f"the number {node.value[:MAX_DIGITS]}… is too large", node)
        if abs(number := super().construct_yaml_int(node)) > LARGEST_INTEGER:
            raise _fault(f"the number {node.value} is too large", node)
        return number


StrictLoader.add_constructor("tag:yaml.org,2002:int", StrictLoader.construct_yaml_int)
# Dates stay the text that they are.
StrictLoader.yaml_implicit_resolvers = {
    first: [(tag, regexp) for tag, regexp in resolvers if not tag.endswith(":timestamp")]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def load_yaml(text: str, origin: str) -> Any:
    """Read settings from text.

    >>> load_yaml("minutes: 5", "oven.yaml")
    {'minutes': 5}

    Args:
        text: At most MAX_BYTES of YAML.
        origin: The file or option it comes from, for messages.

    Raises:
        ValueError: It is not YAML, or has what settings do not need.
    """
    if len(text) > MAX_BYTES:
        raise ValueError(f"{origin} has {len(text):,} characters, at most {MAX_BYTES:,} are read")
    try:
        return yaml.load(text, StrictLoader)  # noqa: S506 - derives from SafeLoader
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        problem = error.problem or error.context
        raise ValueError(f"{origin} is not valid YAML, line {mark.line + 1}: {problem}") from error
    except yaml.YAMLError as error:
        raise ValueError(f"{origin} is not valid YAML: {error}") from error


def load_yaml_file(path: Path) -> Any:
    """Read settings from a file.

    Raises:
        ValueError: It cannot be read, is too large or not UTF-8, or load_yaml refuses it.
    """
    try:
        if not path.is_file() and path.exists():
            raise ValueError(f"{path} is no file")
        if (size := path.stat().st_size) > MAX_BYTES:
            raise ValueError(f"{path} has {size:,} bytes, at most {MAX_BYTES:,} are read")
        return load_yaml(path.read_text(encoding="utf-8-sig"), str(path))
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise ValueError(f"{path} is not UTF-8, line {line}: {error.reason}") from error


def _fault(problem: str, where: yaml.Event | yaml.Node | StrictLoader) -> yaml.MarkedYAMLError:
    mark = where.get_mark() if isinstance(where, StrictLoader) else where.start_mark
    return yaml.MarkedYAMLError(problem=problem, problem_mark=mark)
