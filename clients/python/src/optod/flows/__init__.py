"""Conversations with a language model as traced programs."""

from optod.flows.compose import ChatHistory, TracedLLM

__all__ = ["TracedLLM", "ChatHistory"]
