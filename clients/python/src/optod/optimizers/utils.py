"""Text for people, and replies in tags."""

from __future__ import annotations

import re
from typing import Any, Dict, List, Optional, Tuple

__all__ = ["print_color", "truncate_expression", "extract_xml_like_data", "extract_top_level_blocks", "extract_first_top_level_block",
           "strip_nested_blocks", "extract_reasoning_and_remainder"]

_COLORS = {"red": 91, "green": 92, "yellow": 93, "blue": 94, "magenta": 95, "cyan": 96}


def print_color(message: Any, color: Optional[str] = None, logger: Any = None) -> None:
    """Prints in a colour of the terminal; ``logger.log(message)`` gets it too."""
    code = f"\x1b[{_COLORS[color]}m" if color in _COLORS else ""
    print(f"{code}{message}\x1b[0m")
    if logger is not None:
        logger.log(message)


def truncate_expression(value: Any, limit: int) -> str:
    """At most ``limit`` characters of the value's text; what is cut is said."""
    text = str(value)
    return text if len(text) <= limit else text[:limit] + "...(skipped due to length limit)"


def _spans(text: str, tag: str) -> List[Tuple[int, int, int, int]]:
    """(start, start of the inside, end of the inside, end) of the outermost blocks of a tag."""
    found, depth, start, inside = [], 0, 0, 0
    for mark in re.finditer(f"<(/?){re.escape(tag)}>", text):
        if not mark.group(1):
            if depth == 0:
                start, inside = mark.start(), mark.end()
            depth += 1
        elif depth:
            depth -= 1
            if depth == 0:
                found.append((start, inside, mark.start(), mark.end()))
    return found


def extract_top_level_blocks(text: str, tag: str) -> List[str]:
    """What stands inside the outermost ``<tag>...</tag>`` blocks; nested ones are part of it."""
    return [text[inside:end] for _, inside, end, _ in _spans(text, tag)]


def extract_first_top_level_block(text: str, tag: str) -> Optional[str]:
    """The first of them; None when there is none."""
    blocks = extract_top_level_blocks(text, tag)
    return blocks[0] if blocks else None


def strip_nested_blocks(text: str, tag: str) -> str:
    """The text without its blocks of the tag."""
    parts, last = [], 0
    for start, _, _, end in _spans(text, tag):
        parts.append(text[last:start])
        last = end
    return "".join([*parts, text[last:]]).strip()


def extract_reasoning_and_remainder(text: str, tag: str = "reasoning") -> Tuple[str, str]:
    """(reasoning, what follows it).  Without the tag: ("", text); a block that is not closed takes everything."""
    first, opened, rest = text.partition(f"<{tag}>")
    if not opened:
        return "", text
    reasoning, closed, remainder = rest.partition(f"</{tag}>")
    return (reasoning.strip(), remainder) if closed else (rest, "")


def extract_xml_like_data(text: str, reasoning_tag: str = "reasoning", improved_variable_tag: str = "variable", name_tag: str = "name",
                          value_tag: str = "value") -> Dict[str, Any]:
    """{"reasoning": text, "variables": {name: value}} of a reply in tags.

    Variables count only behind the closed reasoning block, with both a name and a value; names and values are trimmed, a later duplicate wins.
    """
    reasoning, remainder = extract_reasoning_and_remainder(text, reasoning_tag)
    variables: Dict[str, str] = {}
    for block in extract_top_level_blocks(remainder, improved_variable_tag):
        name, value = extract_first_top_level_block(block, name_tag), extract_first_top_level_block(block, value_tag)
        if name is not None and value is not None and name.strip():
            variables[name.strip()] = value.strip()
    return {"reasoning": reasoning, "variables": variables}
