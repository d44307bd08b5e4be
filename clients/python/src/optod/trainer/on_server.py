"""``search_on_server``: a trainer's search over a declared workflow, run by the server; nothing of it lives in this process."""

from __future__ import annotations

from typing import Any, Dict, Mapping, Optional

from optod.private import default_client
from optod.searches import Search

__all__ = ["search_on_server", "ALGORITHMS"]

# Trainers of optod.trainer.algorithms, and what the server calls the same loop.
ALGORITHMS = {"MinibatchAlgorithm": "minibatch", "BasicSearchAlgorithm": "minibatch", "BeamsearchAlgorithm": "beam", "BeamSearch": "beam",
              "UCBSearchAlgorithm": "ucb", "PrioritySearch": "priority", "ParetobasedPS": "pareto"}


def search_on_server(*, parameters: Mapping[str, Any], workflow: str, train_dataset: Dict[str, list], validate_dataset: Optional[Dict[str, list]] = None,
                     algorithm: str = "MinibatchAlgorithm", optimizer: str = "optoprime", optimizer_kwargs: Optional[Mapping[str, Any]] = None,
                     client: Any = None, **spec: Any) -> Search:
    """Starts the search and returns it; ``wait`` waits for its end, ``optod.connect().sessions.get(...)`` finds it again from another process.

    parameters: {name: value or optod.Parameter}.  workflow: YAML or JSON; its {{item.input}} and {{item.info}} are one pair of the data set.
    algorithm: a trainer's name, or one of the server's (minibatch, beam, ucb, priority, pareto).  spec: as for ``Session.search``.
    client: None = the server of OPTOD_ADDRESS, else a private one (whose executor must be ``sandbox`` to run workflows).
    AssertionError: a data set is not {"inputs": [...], "infos": [...]}.
    """
    from optod.trainer.train import dataset_check
    rows = []
    for dataset in (train_dataset, validate_dataset or {"inputs": [], "infos": []}):
        dataset_check(dataset)
        rows += [{"input": one, "info": info} for one, info in zip(dataset["inputs"], dataset["infos"])]
    session = (client or default_client()).sessions.create(optimizer, parameters=dict(parameters), hyperparameters=dict(optimizer_kwargs or {}))
    try:
        return session.search(ALGORITHMS.get(algorithm, algorithm), workflow=workflow, rows=rows,
                              validation_tasks=len(rows) - len(train_dataset["inputs"]), **spec)
    except Exception:
        session.delete()        # a refused search leaves no session behind
        raise
