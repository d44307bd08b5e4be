"""Algorithms that look for better parameters."""

from optod.trainer.algorithms.algorithm import AbstractAlgorithm, AlgorithmBase, Trainer
from optod.trainer.algorithms.basic_algorithms import BasicSearchAlgorithm, Minibatch, MinibatchAlgorithm
from optod.trainer.algorithms.beamsearch_algorithm import BeamsearchAlgorithm
from optod.trainer.algorithms.priority_search import PrioritySearch
from optod.trainer.algorithms.classical_algorithms import BeamSearch, ParetobasedPS, SequentialSearch, SequentialUpdate
from optod.trainer.algorithms.UCBsearch import UCBSearchAlgorithm

__all__ = ["AbstractAlgorithm", "AlgorithmBase", "Trainer", "Minibatch", "MinibatchAlgorithm", "BasicSearchAlgorithm", "BeamsearchAlgorithm",
           "PrioritySearch", "SequentialUpdate", "SequentialSearch", "BeamSearch", "ParetobasedPS", "UCBSearchAlgorithm"]
