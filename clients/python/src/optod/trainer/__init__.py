"""Training of traced programs over a data set: guides say how good a response is, algorithms look for better parameters.

    from optod import trainer
    trainer.train(model=agent, train_dataset={"inputs": xs, "infos": ys}, guide="ExactMatch", algorithm="MinibatchAlgorithm", num_epochs=2)

Names and behaviour are those of ``opto.trainer`` (see optod.compat). A program that is a declared workflow needs no process to train it:
``trainer.search_on_server(...)`` leaves the search to the server.
"""

from optod.trainer.loader import DataLoader
from optod.trainer.guide import ExactMatch, Guide, LLMJudge, NumericMatch, RegexMatch
from optod.trainer.on_server import search_on_server
from optod.trainer.train import resume, train

__all__ = ["DataLoader", "Guide", "ExactMatch", "RegexMatch", "NumericMatch", "LLMJudge", "train", "resume", "search_on_server"]
