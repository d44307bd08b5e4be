"""RemoteOptimizer against local optimizers, on a real server (torch_cases.py). Without PyTorch one test says that they were skipped."""

import importlib.util

import pytest

if importlib.util.find_spec("torch") is not None:
    from torch_cases import *  # noqa: F401,F403
else:
    def test_skipped_because_pytorch_is_not_installed():
        pytest.skip("needs PyTorch: OPTOD_TORCH_PYTHON=/path/to/python tests/run.sh, or pip install torch into build/venv")
