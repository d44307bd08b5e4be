"""Programs written for the package ``opto`` (Trace, OpenTrace) run on optod:

    import optod.compat
    optod.compat.install()          # or: python -m optod.compat program.py arguments
    from opto import trace
    from opto.optimizers import OptoPrime
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import runpy
import sys
import types
from typing import Any, Dict, Optional, Sequence

from optod.trace import naming

__all__ = ["install", "uninstall", "MODULES"]

MODULES: Dict[str, str] = {
    "trace": "optod.trace", "optimizers": "optod.optimizers", "trainer": "optod.trainer", "utils.llm": "optod.llm",
    "features.flows": "optod.flows", "features.predefined_agents": "optod.predefined_agents",
}
"""Where the modules of ``opto`` are; what lies below one of them is looked up below its counterpart."""

_EMPTY = ("", "utils", "features")
_VERSION = {"opentrace": "0.2.0", "trace": "0.1.3"}
_finder: Optional["_Finder"] = None


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Gives the module of optod when one of opto is imported: the very same object, so that classes are the same too."""

    def __init__(self, package: str) -> None:
        self.package = package

    def _counterpart(self, name: str) -> Optional[str]:
        if name != self.package and not name.startswith(self.package + "."):
            return None
        rest = name[len(self.package) + 1:]
        for here, there in MODULES.items():
            if rest == here or rest.startswith(here + "."):
                return there + rest[len(here):]
        return ""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Optional[importlib.machinery.ModuleSpec]:
        there = self._counterpart(name)
        if there is None:
            return None
        rest = name[len(self.package) + 1:]
        if there == "" and rest not in (*_EMPTY, "version"):
            return None
        if there and importlib.util.find_spec(there) is None:
            return None
        return importlib.machinery.ModuleSpec(name, self, is_package=True)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> Any:
        there = self._counterpart(spec.name)
        if not there:
            made = types.ModuleType(spec.name)
            made.__path__ = []  # type: ignore[attr-defined]
            if spec.name.endswith(".version"):
                made.__version__ = _VERSION[naming.dialect()]  # type: ignore[attr-defined]
            return made
        module = importlib.import_module(there)
        return _Kept(module)

    def exec_module(self, module: Any) -> None:
        if not isinstance(module, _Kept):
            return
        name, kept = module.name, module.kept
        sys.modules[name] = kept
        # What the module has imported already is registered too: a later import of it must not set attributes of its parent, such as the
        # function `bundle` of opto.trace, which has the name of a module.
        for there, loaded in list(sys.modules.items()):
            if there.startswith(kept.__name__ + "."):
                sys.modules.setdefault(name + there[len(kept.__name__):], loaded)


class _Kept(types.ModuleType):
    """Stands in for a module while the import system writes its own attributes, so that the module's stay as they are."""

    def __init__(self, kept: types.ModuleType) -> None:
        super().__init__(kept.__name__)
        self.kept, self.name = kept, ""

    def __setattr__(self, key: str, value: Any) -> None:
        if key == "__spec__" and value is not None:
            object.__setattr__(self, "name", value.name)
        object.__setattr__(self, key, value)


def install(dialect: str = "opentrace", package: str = "opto") -> None:
    """Registers optod as the module ``opto``.

    dialect: "opentrace" (0.2) or "trace" (0.1), see optod.trace.naming.  RuntimeError when another ``opto`` was imported already.
    """
    global _finder
    naming.set_dialect(dialect)
    if _finder is not None:
        return
    if package in sys.modules:
        raise RuntimeError(f"compat: a module {package!r} is imported already; install() must come before the first import of it")
    _finder = _Finder(package)
    sys.meta_path.insert(0, _finder)


def uninstall() -> None:
    """Takes it back; modules that programs hold stay usable."""
    global _finder
    if _finder is None:
        return
    sys.meta_path.remove(_finder)
    for name in [n for n in sys.modules if n == _finder.package or n.startswith(_finder.package + ".")]:
        del sys.modules[name]
    _finder = None


def main(arguments: Sequence[str]) -> int:
    """Runs a program with the compatibility modules: ``[--dialect trace] (program.py | -m module) [arguments]``."""
    rest = list(arguments)
    dialect = "opentrace"
    if rest[:1] == ["--dialect"] and len(rest) > 1:
        dialect, rest = rest[1], rest[2:]
    if not rest:
        print("usage: python -m optod.compat [--dialect opentrace|trace] (program.py | -m module) [arguments]", file=sys.stderr)
        return 2
    install(dialect)
    if rest[0] == "-m":
        sys.argv = rest[1:]
        runpy.run_module(rest[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = rest
        sys.path.insert(0, rest[0].rpartition("/")[0] or ".")
        runpy.run_path(rest[0], run_name="__main__")
    return 0


if __name__ == "__main__":
    from optod import compat
    sys.exit(compat.main(sys.argv[1:]))
