"""The modules of opto: the same objects, in any order of imports, in a process of its own each."""

import subprocess
import sys

import pytest

HEAD = "import optod.compat; optod.compat.install({dialect!r})\n"


def run(code, dialect="opentrace", arguments=()):
    return subprocess.run([sys.executable, "-c", HEAD.format(dialect=dialect) + code, *arguments], capture_output=True, text=True, timeout=120)


PROGRAMS = {
    "the same objects": "import opto.trace, optod.trace\nfrom opto.trace.nodes import Node\nassert opto.trace is optod.trace and Node is optod.trace.Node",
    "bundle stays a function": "from opto import trace\nfrom opto.trace.bundle import TraceMissingInputsError\nimport opto.trace.bundle\n"
                               "assert callable(trace.bundle) and not hasattr(trace.bundle, 'FunModule')",
    "the submodule first": "from opto.trace.bundle import bundle, ExecutionError\nfrom opto import trace\nassert trace.bundle is bundle",
    "as names": "import opto.trace.operators as ops, opto.optimizers as o\nassert ops.add and o.OptoPrime",
    "nested modules": "from opto.trace.propagators.graph_propagator import GraphPropagator\nfrom opto.trace.projections import BlackCodeFormatter\n"
                      "from opto.trainer.algorithms.priority_search import PrioritySearch\nfrom opto.utils.llm import LLM, DummyLLM\n"
                      "from opto.optimizers.optoprime_v2 import OptoPrimeV2, extract_xml_like_data\nfrom opto.optimizers.utils import print_color",
    "specs stay": "import opto.trace, optod.trace\nassert optod.trace.__name__ == 'optod.trace' and optod.trace.__spec__.name == 'optod.trace'",
    "twice is once": "optod.compat.install()\nimport opto.trace",
    "not found": "try:\n    import opto.nothing\nexcept ModuleNotFoundError as e:\n    assert 'opto.nothing' in str(e)\nelse:\n    raise SystemExit('found')",
    "uninstalled": "import opto.trace\noptod.compat.uninstall()\nimport sys\nassert not any(m.startswith('opto.') for m in sys.modules)",
    "version": "from opto.version import __version__\nassert __version__ == '0.2.0'",
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_imports(name):
    done = run(PROGRAMS[name])
    assert done.returncode == 0, done.stderr


def test_the_dialect_is_chosen_at_installation():
    done = run("from opto.trace import node\nfrom opto.version import __version__\nprint(node(1, description='w').description, __version__)", "trace")
    assert done.stdout.split("\n")[0] == "[Node] w 0.1.3"
    assert "none of" in run("", "other").stderr


def test_a_real_opto_that_was_imported_is_not_replaced():
    done = subprocess.run([sys.executable, "-c", "import sys, types; sys.modules['opto'] = types.ModuleType('opto')\nimport optod.compat\noptod.compat.install()"],
                          capture_output=True, text=True, timeout=120)
    assert "imported already" in done.stderr


def test_programs_are_run_from_the_command_line(tmp_path):
    (tmp_path / "helper.py").write_text("value = 5\n")
    program = tmp_path / "program.py"
    program.write_text("import sys, helper\nfrom opto.trace import node\nprint(__name__, sys.argv[1:], (node(helper.value) + 1).data)\n")
    done = subprocess.run([sys.executable, "-m", "optod.compat", str(program), "a", "b"], capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "__main__ ['a', 'b'] 6", done.stderr
    usage = subprocess.run([sys.executable, "-m", "optod.compat"], capture_output=True, text=True, timeout=120)
    assert usage.returncode == 2 and "usage:" in usage.stderr
