"""TextGrad: criticism goes back along every edge of the graph, then each parameter is rewritten (Yuksekgonul et al., 2024).

One model call an edge, a merge and a parameter; the server makes them.
"""

from __future__ import annotations

from typing import Any, Callable, List, Optional, Union

from optod.optimizers.optoprime import OptoPrime
from optod.trace.nodes import ParameterNode

__all__ = ["TextGrad"]


class TextGrad(OptoPrime):
    """llm: None or the name of a server endpoint, as for OptoPrime; a callable is asked by ``optod.optimizers.textgrad_local``."""

    server_name = "textgrad"

    def __init__(self, parameters: List[ParameterNode], llm: Union[None, str, Callable] = None, *args: Any, objective: Optional[str] = None,
                 max_tokens: int = 4096, log: bool = False, **kwargs: Any) -> None:
        super().__init__(parameters, llm, *args, objective=objective, max_tokens=max_tokens, log=log, **kwargs)
