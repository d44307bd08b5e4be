"""``TracedLLM``: a conversation whose system prompt can be trained; every answer depends on the prompt and on what was said before."""

from __future__ import annotations

import itertools
from typing import Any, Callable, Dict, Iterator, List, Optional, Union

from optod import llm as models
from optod.trace.bundle import bundle
from optod.trace.modules import model
from optod.trace.nodes import Node, node

__all__ = ["ChatHistory", "TracedLLM"]

_numbers = itertools.count()


class ChatHistory:
    """Messages of user and assistant, texts or nodes.  max_len: beyond it the first message and the latest ones are kept."""

    def __init__(self, max_len: int = 50) -> None:
        self.messages: List[Dict[str, Any]] = []
        self.max_len = max_len

    def __len__(self) -> int:
        return len(self.messages)

    def __iter__(self) -> Iterator[Dict[str, Any]]:
        return iter(self.messages)

    def add(self, content: Union[Node, str], role: str) -> None:
        """ValueError for a role other than user and assistant."""
        if role not in ("user", "assistant"):
            raise ValueError(f"role: {role!r} is neither 'user' nor 'assistant'")
        self.messages.append({"role": role, "content": content})
        if len(self.messages) > self.max_len:
            rest = self.messages[-(self.max_len - 1):] if self.max_len > 1 else []
            self.messages = [self.messages[0], *rest]

    def append(self, message: Dict[str, Any]) -> None:
        self.add(message["content"], message["role"])

    def get_messages(self) -> List[Dict[str, str]]:
        """With texts only."""
        return [{"role": m["role"], "content": m["content"].data if isinstance(m["content"], Node) else m["content"]} for m in self.messages]

    def get_messages_as_node(self, llm_name: str = "") -> List[Node]:
        names = {"user": "user_query", "assistant": "assistant_response"}
        return [m["content"] if isinstance(m["content"], Node) else node(m["content"], name="_".join(filter(None, [llm_name, names[m["role"]]])))
                for m in self.messages]


@model
class TracedLLM:
    """system_prompt: text or node.  llm: a model, None = optod.llm.LLM().  chat_history_on: what was said before is told again.  trainable: the prompt is."""

    def __init__(self, system_prompt: Union[str, Node, None] = None, llm: Optional[Callable] = None, chat_history_on: bool = False, trainable: bool = False,
                 model_name: Optional[str] = None) -> None:
        self.system_prompt = node("You are a helpful assistant." if system_prompt is None else system_prompt,
                                  **({} if isinstance(system_prompt, Node) and not trainable else {"name": "system_prompt"}),
                                  description="the system prompt of the assistant", trainable=trainable)
        self.llm = llm or models.LLM()
        self.chat_history, self.chat_history_on = ChatHistory(), chat_history_on
        self.model_name = model_name or f"TracedLLM{next(_numbers)}_"

    def forward(self, user_query: Any, chat_history_on: Optional[bool] = None) -> Node:
        """The answer, which depends on the system prompt, what was said before (when it is on) and the query."""
        remembered = self.chat_history_on if chat_history_on is None else chat_history_on
        query = user_query if isinstance(user_query, Node) else node(user_query, name=f"{self.model_name}user_query")
        messages = [{"role": "system", "content": self.system_prompt.data}, *(self.chat_history.get_messages() if remembered else []),
                    {"role": "user", "content": query.data}]
        answer = models.reply_text(self.llm(messages=messages))

        @bundle("[call_llm] The assistant's answer to the conversation.", output_name=f"{self.model_name}response")
        def call_llm(*messages):
            return answer

        before = self.chat_history.get_messages_as_node(self.model_name) if remembered else []
        response = call_llm(self.system_prompt, *before, query)
        self.chat_history.add(query, "user")
        self.chat_history.add(response, "assistant")
        return response

    def chat(self, user_query: Any) -> Node:
        return self.forward(user_query)
