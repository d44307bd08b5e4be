"""PyTorch: an optimizer that lives on a server, and what its rules need to know of a model.

    opt = optod.torch.RemoteOptimizer(model, "scale", lr=1e-3)     # a torch.optim.Optimizer

Needs the package torch (2.1 or newer), which optod does not install.
"""

try:
    import torch as _torch
except ImportError as error:
    raise ImportError("optod.torch needs PyTorch 2.1 or newer (pip install torch); optod.numpy does the same with NumPy arrays") from error

from optod.remote import LostSteps
from optod.torch.curvature import hessian_z, rademacher
from optod.torch.optimizer import RemoteOptimizer
from optod.torch.statistics import LayerStatistics

__all__ = ["RemoteOptimizer", "LayerStatistics", "LostSteps", "hessian_z", "rademacher"]
