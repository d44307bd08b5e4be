"""Where optod-worker is, and how to run it. Tests that need it are skipped where the build has none (no LibTorch)."""
import os
import pathlib
import subprocess

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[3]
BIN = pathlib.Path(os.environ.get("OPTOD_BIN_DIR", ROOT / "build" / "bin"))
WORKER = BIN / "optod-worker"

needs_worker = pytest.mark.skipif(not WORKER.exists(), reason="optod-worker is not built (no LibTorch)")


def run_worker(*args, check=True):
    """Runs optod-worker with one thread (bits do not depend on the load) and returns the finished process."""
    done = subprocess.run([str(WORKER), *map(str, args)], capture_output=True, text=True, timeout=600)
    if check and done.returncode != 0:
        raise AssertionError(f"optod-worker {args[0]}: {done.stderr}")
    return done
