"""Batches of a data set."""

from __future__ import annotations

from typing import Any, Dict, List, Optional, Tuple

import numpy as np

__all__ = ["DataLoader"]


class DataLoader:
    """Iterates over ``(inputs, infos)`` batches.

    dataset: {"inputs": [...], "infos": [...]} of equal length.  batch_size: examples a batch; the last one of an epoch is filled up from the next.
    randomize: a fresh order each epoch; replacement: drawn with replacement.  shuffle: False keeps the order of the epoch before.  seed: of the draws,
    None = NumPy's global state.  n_epochs: epochs begun before the current one.
    """

    def __init__(self, dataset: Dict[str, list], batch_size: int = 1, randomize: bool = True, replacement: bool = False, shuffle: bool = True,
                 seed: Optional[int] = None) -> None:
        if not isinstance(dataset, dict):
            raise AssertionError("dataset: must be a dict")
        if "inputs" not in dataset or "infos" not in dataset:
            raise AssertionError("dataset: must have the keys 'inputs' and 'infos'")
        if len(dataset["inputs"]) != len(dataset["infos"]):
            raise AssertionError("dataset: inputs and infos must have the same length")
        if batch_size < 1:
            raise ValueError(f"batch_size: {batch_size} is less than 1")
        self.dataset = dataset
        self.batch_size, self.randomize, self.replacement, self.shuffle = batch_size, randomize, replacement, shuffle
        self._random = np.random if seed is None else np.random.RandomState(seed)
        self.n_epochs, self._i, self._exhausted = -1, 0, False
        self._indices: Any = list(range(len(dataset["inputs"])))
        self._start_new_epoch()

    def _start_new_epoch(self) -> None:
        if self.shuffle:
            self._indices = self._update_indices()
        self._i, self._exhausted = 0, False
        self.n_epochs += 1

    def _update_indices(self) -> Any:
        n = len(self.dataset["inputs"])
        return self._random.choice(n, size=n, replace=self.replacement) if self.randomize else np.arange(n)

    def __iter__(self) -> "DataLoader":
        return self

    def __next__(self) -> Tuple[List[Any], List[Any]]:
        if self._exhausted or self._i >= len(self._indices):
            self._start_new_epoch()
            raise StopIteration
        xs: List[Any] = []
        infos: List[Any] = []
        while len(xs) < self.batch_size:
            if self._i >= len(self._indices):
                self._start_new_epoch()
                self._exhausted = True
            chosen = self._indices[self._i:self._i + self.batch_size - len(xs)]
            xs += [self.dataset["inputs"][i] for i in chosen]
            infos += [self.dataset["infos"][i] for i in chosen]
            self._i += len(chosen)
        return xs, infos

    def sample(self) -> Tuple[List[Any], List[Any]]:
        """The next batch, over the ends of epochs."""
        try:
            batch = next(self)
        except StopIteration:
            batch = next(self)
        self._exhausted = False
        return batch

    def __getstate__(self) -> dict:
        """Without the data set, which is given again after loading."""
        return {k: v for k, v in self.__dict__.items() if k not in ("dataset", "_random")}

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)
        self._random = np.random

    def __deepcopy__(self, memo: dict) -> "DataLoader":
        made = type(self).__new__(type(self))
        memo[id(self)] = made
        made.__dict__.update(self.__dict__)
        made._indices = list(self._indices)
        return made
