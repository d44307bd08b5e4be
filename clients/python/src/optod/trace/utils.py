"""Small functions on nodes and texts."""

from __future__ import annotations

from typing import Any, Callable, Dict, Iterable

__all__ = ["contain", "sum_feedback", "for_all_methods", "parse_eqs_to_dict", "dedent", "escape_json_nested_quotes", "remove_non_ascii"]


def contain(container_of_nodes: Iterable, node: Any) -> bool:
    """Whether the very node is there; ``in`` compares values."""
    return any(node is n for n in container_of_nodes)


def sum_feedback(nodes: Iterable) -> Any:
    """The feedback of all the nodes, added up."""
    return sum(given for n in nodes for entries in n.feedback.values() for given in entries)


def for_all_methods(decorator: Callable) -> Callable:
    """Class decorator that decorates every method but the dunder ones."""

    def decorate(cls: type) -> type:
        for name, attribute in list(vars(cls).items()):
            if callable(attribute) and not name.startswith("__"):
                setattr(cls, name, decorator(attribute))
        return cls

    return decorate


def parse_eqs_to_dict(text: str) -> Dict[str, str]:
    """``x = 1`` lines as {name: text}; a line without ``=`` continues the one before, backquotes are dropped."""
    found: Dict[str, str] = {}
    key = None
    for line in text.split("\n"):
        if "=" in line:
            name, value = line.split("=", 1)
            key = name.strip()
            found[key] = value.replace("`", "")
        elif line and key is not None:
            found[key] += "\n" + line.replace("`", "")
    return found


def dedent(text: str) -> str:
    """Every line without its leading and trailing space."""
    return "\n".join(line.strip() for line in text.split("\n"))


def escape_json_nested_quotes(json_str: str) -> str:
    """Escapes quotes inside the values of ``{"name": "...", "value": "..."}``: a quote is structural beside a key, a colon, a comma or a brace.

    A backslash that begins no JSON escape is dropped.
    """
    out: list = []
    inside = False
    for i, char in enumerate(json_str):
        before = json_str[i - 1] if i > 0 else ""
        if char != '"':
            if before == "\\" and char not in "\\nbfrt" and out and out[-1] == "\\":
                out.pop()
            out.append(char)
            continue
        after = json_str[i + 1] if i + 1 < len(json_str) else ""
        opens = before == ":" or (before == " " and json_str[i - 2:i - 1] == ":")
        closes = after in ("}", ",")
        if opens or closes or json_str[i + 1:i + 5] == "name" or json_str[i + 1:i + 6] == "value":
            out.append(char)
            inside = (inside or opens) and not closes
        elif inside and json_str[i - 2:i] == "\\\\":
            out.pop()
            out.append(char)
        else:
            out.append('\\"' if inside and before != "\\" else char)
    return "".join(out)


def remove_non_ascii(json_txt: str) -> str:
    """The text without unprintable characters (new lines and tabs stay), quotes escaped as above."""
    return "".join(c for c in escape_json_nested_quotes(json_txt) if c in "\n\t\b\r\f" or c.isprintable())
