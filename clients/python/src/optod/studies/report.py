"""What every study shares: runs that are kept, claims that are judged, tables of text."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import pathlib
import threading
from typing import Any, Dict, Mapping, Optional, Sequence

__all__ = ["Claim", "Store", "key_of", "columns", "judged"]

VERSION = 1      # of the runs: raise it when a change makes old results incomparable


@dataclasses.dataclass(frozen=True)
class Claim:
    """text: what is claimed.  figure, limit: as measured and as wanted.  met: None = reported, not judged."""

    text: str
    figure: str
    limit: str
    met: Optional[bool]


def key_of(study: str, config: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps([VERSION, study, config], sort_keys=True).encode()).hexdigest()[:20]


class Store:
    """Runs that are done, in OUT/runs.jsonl; a study that was interrupted goes on.  ``add`` may be called by several threads."""

    def __init__(self, folder: pathlib.Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._path = folder / "runs.jsonl"
        self._lock = threading.Lock()
        self.runs: Dict[str, Dict[str, Any]] = {}
        if self._path.exists():
            for line in self._path.read_text().splitlines():
                try:
                    row = json.loads(line)
                    self.runs[row["key"]] = row["run"]
                except (ValueError, KeyError):
                    continue        # a line cut short by an interruption: the run is made again

    def add(self, key: str, config: Mapping[str, Any], run: Dict[str, Any]) -> None:
        with self._lock:
            self.runs[key] = run
            with open(self._path, "a") as file:
                file.write(json.dumps({"key": key, "config": config, "run": run}) + "\n")


def columns(rows: Sequence[Sequence[str]]) -> str:
    """Rows of equal length, the first one the titles, as aligned text."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows)


def judged(claims: Sequence[Claim]) -> str:
    words = {True: "met", False: "NOT MET", None: "reported"}
    return "\n".join(f"  {words[c.met]:<9} {c.text}: {c.figure}" + (f"  (wanted {c.limit})" if c.limit else "") for c in claims)
