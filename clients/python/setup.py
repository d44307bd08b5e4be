"""Build steps of the package: the stubs of optod/v1 are generated from protos/ into the wheel (or into src/ for an editable install)."""

import importlib.metadata
import pathlib
import re
import shutil

from setuptools import setup
from setuptools.command.build_py import build_py
from setuptools.command.sdist import sdist

HERE = pathlib.Path(__file__).resolve().parent


def protos() -> pathlib.Path:
    """The folder that holds optod/v1/*.proto: beside this file in an sdist, at the top of the source tree otherwise."""
    for folder in (HERE / "protos", HERE.parent.parent / "protos"):
        if (folder / "optod" / "v1").is_dir():
            return folder
    raise SystemExit("setup.py: protos/optod/v1 is neither beside setup.py nor two folders up")


def generate(target: pathlib.Path) -> None:
    import grpc_tools
    from grpc_tools import protoc

    root = protos()
    sources = sorted(str(path) for path in (root / "optod" / "v1").glob("*.proto"))
    well_known = pathlib.Path(grpc_tools.__file__).parent / "_proto"
    package = target / "optod" / "v1"
    package.mkdir(parents=True, exist_ok=True)
    arguments = ["protoc", f"-I{root}", f"-I{well_known}", f"--python_out={target}", f"--pyi_out={target}", f"--grpc_python_out={target}"]
    if protoc.main(arguments + sources) != 0:
        raise SystemExit("setup.py: protoc failed")
    (package / "__init__.py").write_text('"""Generated messages and stubs of the wire protocol; the .proto files are the manual."""\n')


class BuildWithStubs(build_py):
    def run(self):
        super().run()
        generate(HERE / "src" if getattr(self, "editable_mode", False) else pathlib.Path(self.build_lib))


class SdistWithProtos(sdist):
    def make_release_tree(self, base_dir, files):
        super().make_release_tree(base_dir, files)
        shutil.copytree(protos(), pathlib.Path(base_dir) / "protos", dirs_exist_ok=True,
                        ignore=lambda _, names: [n for n in names if n.endswith(".txt")])


def dependencies() -> list:
    """numpy, and the versions of grpcio and protobuf that run what the installed grpcio-tools generates."""
    try:
        wanted = importlib.metadata.requires("grpcio-tools") or []
    except importlib.metadata.PackageNotFoundError:
        wanted = []
    pinned = [line for line in wanted if re.match(r"(grpcio|protobuf)\b(?!-)", line) and ";" not in line]
    return ["numpy>=1.24"] + (pinned or ["grpcio>=1.60", "protobuf>=4.25"])


setup(cmdclass={"build_py": BuildWithStubs, "sdist": SdistWithProtos}, install_requires=dependencies())
