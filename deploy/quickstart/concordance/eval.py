"""Prints a table of every book's longest word at fixed column widths, and judges it as a reader would: cut entries and idle space are bad.

Data: Debian's packages bible-kjv and bible-kjv-text (66 books, public domain). Score: share of rows printed whole, less 0.01 for every
column of blank space that no row needs, never below 0. The lines before the last one say what is wrong: they are the feedback.
"""
import collections
import json
import os
import re
import subprocess


def rows():
    """[(longest word of a book, where it first stands, how often the whole Bible has it)], in the order of the books."""
    text = subprocess.run(["bible", "-f", "Ge1:1-Rev22:21"], capture_output=True, text=True, check=True).stdout
    count, longest = collections.Counter(), {}
    for line in text.splitlines():
        place, _, verse = line.partition(" ")
        book = re.match(r"\d?[A-Za-z]+", place)
        for word in re.findall(r"[A-Za-z]+", verse):
            count[word.lower()] += 1
            if book and len(word) > len(longest.get(book.group(), ("",))[0]):
                longest[book.group()] = (word, place)
    return [(word, place, str(count[word.lower()])) for word, place in longest.values()]


COLUMNS = ["word_width", "place_width", "count_width"]


def judge(table, widths):
    """(score, rows printed whole, blank columns that no row needs, what to tell the reader of the table)"""
    whole = sum(all(len(entry) <= width for entry, width in zip(row, widths)) for row in table)
    idle, remarks = 0, []
    for name, width, entries in zip(COLUMNS, widths, zip(*table)):
        widest = max(entries, key=len)
        if width < len(widest):
            remarks.append(f"{name} {width} is too narrow: '{widest}' is cut, {name} should be {len(widest)}.")
        elif width > len(widest):
            remarks.append(f"{name} {width} is too wide: no entry is longer than '{widest}', {name} should be {len(widest)}.")
            idle += width - len(widest)
        else:
            remarks.append(f"{name} {width} is right.")
    return round(max(0.0, whole / len(table) - 0.01 * idle), 4), whole, idle, remarks


def main():
    table = rows()
    widths = [int(os.environ[f"OPTOD_PARAM_{name.upper()}"]) for name in COLUMNS]
    for row in table[:3]:
        print("|".join(entry[:width].ljust(width) for entry, width in zip(row, widths)))
    score, whole, idle, remarks = judge(table, widths)
    print("\n".join(remarks))
    print(json.dumps({"score": score, "rows_whole": whole, "idle": idle}))


if __name__ == "__main__":
    main()
