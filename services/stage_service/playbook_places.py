"""Where things stand in a playbook that parsed: stages, roles, rules, clocks, each with line and column."""

from __future__ import annotations

from services.contracts.yaml_source import Node, Problem, read_yaml


class Places:
    """The nodes of a playbook's text by what they are; what is noted at one is in `problems`."""

    def __init__(self, text: str, file: str) -> None:
        root = read_yaml(text, file)
        self._top = root.mapping()
        self.problems: list[Problem] = root.problems

    def each(self, key: str) -> dict[str, Node]:
        """Give the members of a mapping at the top (``stages``, ``roles``) by their key."""
        return self._top[key].mapping() if key in self._top else {}

    def items(self, key: str) -> list[Node]:
        """Give the items of a list at the top (``rules``, ``clocks``), in the file's order."""
        return self._top[key].items() if key in self._top else []

    def at(self, *keys: str) -> Node:
        """Give what stands under `keys`, or the innermost there is of it."""
        node = self._top[keys[0]]
        for key in keys[1:]:
            inner = node.mapping()
            if key not in inner:
                break
            node = inner[key]
        return node


def part(node: Node, key: str) -> Node:
    """Give the member `key` of a mapping, or the mapping itself where it has none."""
    return node.mapping().get(key, node)
