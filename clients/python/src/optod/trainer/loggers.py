"""Where an algorithm tells how it goes: ``log(name, data, step)``."""

from __future__ import annotations

from typing import Any

__all__ = ["BaseLogger", "ConsoleLogger", "TensorboardLogger", "WandbLogger", "NullLogger", "DefaultLogger"]

_COLORS = {"green": 92, "red": 91, "blue": 94}


class BaseLogger:
    def __init__(self, log_dir: str = "./logs", **kwargs: Any) -> None:
        self.log_dir = log_dir

    def log(self, name: str, data: Any, step: int, **kwargs: Any) -> None:
        raise NotImplementedError(f"{type(self).__name__}.log")


class NullLogger(BaseLogger):
    """Says nothing."""

    def log(self, name: str, data: Any, step: int, **kwargs: Any) -> None:
        pass


class ConsoleLogger(BaseLogger):
    """Prints; ``color`` is "green", "red" or "blue"."""

    def log(self, name: str, data: Any, step: int, **kwargs: Any) -> None:
        code = _COLORS.get(kwargs.get("color", ""))
        text = f"{name}: {data}"
        print(f"[Step {step}] " + (f"\x1b[{code}m{text}\x1b[0m" if code else text))


class TensorboardLogger(ConsoleLogger):
    """Needs tensorboardX or torch."""

    def __init__(self, log_dir: str = "./logs", verbose: bool = True, **kwargs: Any) -> None:
        super().__init__(log_dir, **kwargs)
        self.verbose = verbose
        try:
            from tensorboardX import SummaryWriter
        except ImportError:
            from torch.utils.tensorboard import SummaryWriter
        self.writer = SummaryWriter(log_dir)

    def log(self, name: str, data: Any, step: int, **kwargs: Any) -> None:
        if self.verbose:
            super().log(name, data, step, **kwargs)
        (self.writer.add_text if isinstance(data, str) else self.writer.add_scalar)(name, data, step)


class WandbLogger(ConsoleLogger):
    """Needs wandb."""

    def __init__(self, log_dir: str = "./logs", verbose: bool = True, project: Any = None, **kwargs: Any) -> None:
        super().__init__(log_dir)
        self.verbose = verbose
        import wandb
        self.wandb = wandb
        if not wandb.run:
            wandb.init(project=project, dir=log_dir, **kwargs)

    def log(self, name: str, data: Any, step: int, **kwargs: Any) -> None:
        if self.verbose:
            super().log(name, data, step, **kwargs)
        self.wandb.log({f"{name}_text" if isinstance(data, str) else name: data}, step=step)


DefaultLogger = ConsoleLogger
