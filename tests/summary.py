"""Adds up what tests/run.sh left in its results folder; prints failures by name, then `N passed, N failed[, N skipped]`."""
import pathlib
import re
import sys
import xml.etree.ElementTree as ET


def junit(path):
    """(passed, failed names, skipped names) of a JUnit file."""
    passed, failed, skipped = 0, [], []
    for case in ET.parse(path).getroot().iter("testcase"):
        name = f"{case.get('classname') or ''}::{case.get('name')}"
        if case.find("failure") is not None or case.find("error") is not None or case.get("status") == "fail":
            failed.append(name)
        elif case.find("skipped") is not None or case.get("status") in ("notrun", "disabled"):
            skipped.append(name)
        else:
            passed += 1
    return passed, failed, skipped


def golden(path):
    """The same of optod-golden's output."""
    lines = path.read_text().splitlines()
    match = re.fullmatch(r"(\d+) passed, (\d+) failed", lines[-1]) if lines else None
    if not match:
        return 0, [f"{path.stem}: no closing line"], []
    failed = [f"{path.stem}: {line}" for line in lines[:-1] if line.strip()][: int(match[2])]
    failed += [f"{path.stem}: unnamed"] * (int(match[2]) - len(failed))
    return int(match[1]), failed, []


def main():
    folder = pathlib.Path(sys.argv[1])
    passed, failed, skipped = 0, [], []
    parts = []
    for name in ("ctest.xml", "python.xml", "e2e.xml"):
        path = folder / name
        parts.append(junit(path) if path.exists() else (0, [f"{name}: the runner left no result"], []))
    parts += [golden(path) for path in sorted(folder.glob("golden-*.txt"))]
    for kills in ("kill9", "search_kill9"):
        code = folder / f"{kills}.rc"
        if code.exists():
            ok = code.read_text().strip() == "0"
            parts.append((1 if ok else 0, [] if ok else [f"{kills}: see {kills}.txt"], []))
    for p, f, s in parts:
        passed += p
        failed += f
        skipped += s
    for name in failed:
        print("FAILED", name)
    for name in skipped:
        print("skipped", name)
    print(f"{passed} passed, {len(failed)} failed" + (f", {len(skipped)} skipped" if skipped else ""))
    return 1 if failed or passed == 0 else 0


if __name__ == "__main__":
    sys.exit(main())
