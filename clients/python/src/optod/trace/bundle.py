"""``bundle``: makes a function an operator.  Calls take nodes (or plain values) and give one node; what happened inside is one step of the graph."""

from __future__ import annotations

import copy
import inspect
import sys
import types
from typing import Any, Callable, Dict, List, Optional, Tuple

from optod.trace import failures, source
from optod.trace.broadcast import detach_inputs, recursive_conversion, to_data
from optod.trace.errors import ExecutionError, TraceMissingInputsError
from optod.trace.modules import Module
from optod.trace.naming import GRAPH, USED_NODES
from optod.trace.nodes import NO_INPUTS, ExceptionNode, Node, ParameterNode, get_op_name, message, node, root
from optod.trace.recursion import plain_twin
from optod.trace.utils import contain

__all__ = ["bundle", "FunModule", "ExecutionError", "TraceMissingInputsError", "trace_nodes", "to_data", "wrap_node", "detach_inputs",
           "disable_external_dependencies_check"]

NO_KWARGS: Dict[str, Any] = {}
_EVAL = "[eval] Runs the code in __code on the other arguments."
ALLOW_EXTERNAL_DEPENDENCIES: Optional[bool] = None


def disable_external_dependencies_check(allow_external_dependencies: Optional[bool]) -> None:
    """Overrides ``allow_external_dependencies`` of every operator; None: each its own."""
    global ALLOW_EXTERNAL_DEPENDENCIES
    ALLOW_EXTERNAL_DEPENDENCIES = allow_external_dependencies


def bundle(description: Optional[str] = None, traceable_code: bool = False, _process_inputs: bool = True, trainable: bool = False,
           catch_execution_error: bool = True, allow_external_dependencies: bool = False, overwrite_python_recursion: bool = False,
           projections: Optional[list] = None, output_name: Optional[str] = None) -> Callable:
    """Decorator: the function becomes an operator.

    description: ``[tag] words`` for the model; None = ``[qualified name] docstring``.  traceable_code: the body gets copies of the nodes, so that
    what it does is a graph of its own.  _process_inputs: False passes the arguments as they are.  trainable: the source is a parameter.
    catch_execution_error: a failure becomes an ExceptionNode, raised as ExecutionError; False lets it pass.
    allow_external_dependencies: the body may read nodes that are not inputs.  overwrite_python_recursion: recursive calls inside go to the plain
    function.  projections: of the code parameter.  output_name: base name of results.
    """
    caller = sys._getframe(1)
    names = None if caller.f_locals is caller.f_globals else dict(caller.f_locals)
    place = (caller.f_code.co_filename, caller.f_lineno)

    def decorator(fun: Callable) -> "FunModule":
        return FunModule(fun, description, traceable_code, _process_inputs, trainable, catch_execution_error, allow_external_dependencies,
                         overwrite_python_recursion, _ldict=names, projections=projections, output_name=output_name, _place=place)

    return decorator


class trace_nodes:
    """``with trace_nodes() as used:`` collects the nodes whose data is read."""

    def __enter__(self) -> set:
        used: set = set()
        self._token = USED_NODES.set((*USED_NODES.get(), used))
        return used

    def __exit__(self, *_: Any) -> None:
        USED_NODES.reset(self._token)


class _Signature:
    """How arguments become inputs; worked out once for each function."""

    def __init__(self, fun: Callable) -> None:
        self.signature = inspect.signature(fun)
        parameters = list(self.signature.parameters.values())
        kinds = inspect.Parameter
        self.varargs = next((p.name for p in parameters if p.kind is kinds.VAR_POSITIONAL), None)
        self.varkw = next((p.name for p in parameters if p.kind is kinds.VAR_KEYWORD), None)
        self.positional = [p.name for p in parameters if p.kind in (kinds.POSITIONAL_ONLY, kinds.POSITIONAL_OR_KEYWORD)]
        self.defaults = {p.name: p.default for p in parameters if p.default is not kinds.empty}
        self.simple = len(self.positional) == len(parameters)
        self.needed = [n for n in self.positional if n not in self.defaults]

    def bind(self, args: tuple, kwargs: dict) -> Tuple[Dict[str, Any], tuple, dict]:
        """(argument -> value in the order of the signature, with defaults), then args and kwargs that call the function the same way."""
        if self.simple and not kwargs and len(args) <= len(self.positional) and len(args) >= len(self.needed):
            bound = dict(zip(self.positional, args))
            for name in self.positional[len(args):]:
                bound[name] = self.defaults[name]
            return bound, tuple(bound.values()), {}
        found = self.signature.bind(*args, **kwargs)
        found.apply_defaults()
        bound = {}
        for name, value in found.arguments.items():
            if name == self.varargs:
                bound.update({f"args_{i}": v for i, v in enumerate(value)})
            elif name == self.varkw:
                bound.update(value)
            else:
                bound[name] = value
        return bound, found.args, found.kwargs


class FunModule(Module):
    """An operator.  Call it like the function; the parameters are those of ``bundle``.

    info: what is known of the function (fun, fun_name, doc, signature, source, line_number, file); a result's ``info`` adds the call.
    parameter: the code as a ParameterNode when ``trainable``, else None.  A method is bound to its instance when it is read from it, with a node
    that stands for the instance as first input and, when trainable, a parameter of its own.
    """

    def __init__(self, fun: Callable, description: Optional[str] = None, traceable_code: bool = False, _process_inputs: bool = True,
                 trainable: bool = False, catch_execution_error: bool = True, allow_external_dependencies: bool = False,
                 overwrite_python_recursion: bool = False, _ldict: Optional[dict] = None, projections: Optional[list] = None,
                 output_name: Optional[str] = None, _place: Optional[Tuple[str, int]] = None) -> None:
        if not callable(fun):
            raise AssertionError("fun: must be a callable")
        self._fun = fun
        self._ldict = _ldict or {}
        self.info = self._describe(fun, trainable, _place)
        self.description = f"[{self.info['fun_name']}] {self.info['doc']}".rstrip() if description is None else description
        self._tag = get_op_name(self.description)
        self.traceable_code = traceable_code
        self._process_inputs = _process_inputs
        self.catch_execution_error = catch_execution_error
        self.allow_external_dependencies = allow_external_dependencies
        self.overwrite_python_recursion = overwrite_python_recursion or trainable
        self.output_name = output_name
        self.parameter: Optional[ParameterNode] = None
        self._signature = _Signature(fun)
        self._is_async = inspect.iscoroutinefunction(fun)
        self._compiled: Tuple[Optional[str], Any] = (None, None)
        self._twin: Optional[Callable] = None
        self._self_node: Optional[Node] = None
        self._origin: "FunModule" = self
        if trainable:
            self.parameter = ParameterNode(self.info["source"], name="__code", projections=projections,
                                           constraint="The code should start with:\n" + source.signature_text(self.info["source"]))
            self.info["fun_name"] = "eval"

    @staticmethod
    def _describe(fun: Callable, trainable: bool, place: Optional[Tuple[str, int]]) -> Dict[str, Any]:
        code = getattr(fun, "__code__", None)
        file = code.co_filename if code is not None else None
        try:
            text, line = source.of_function(fun, place[1] if place is not None and place[0] == file else None)
        except (OSError, TypeError) as error:
            if trainable:
                raise ValueError(f"bundle: the source of {fun!r} cannot be read ({error}), so it cannot be trained") from error
            text, line = "", 0
        name = getattr(fun, "__qualname__", type(fun).__name__).replace("<locals>.", "")
        return dict(fun=fun, fun_name=name, _fun_name=getattr(fun, "__name__", name), doc=inspect.getdoc(fun) or "",
                    signature=inspect.signature(fun), source=text, line_number=line, file=file, error_comment=None, traceback=None, output=None,
                    inputs={"args": [], "kwargs": {}}, external_dependencies=None)

    # ---- what it is

    @property
    def trainable(self) -> bool:
        return self.parameter is not None

    @property
    def name(self) -> str:
        """The tag of the description."""
        return self._tag

    def parameters_dict(self) -> Dict[str, ParameterNode]:
        return {} if self.parameter is None else {"parameter": self.parameter}

    def _copy(self, parameter: Optional[ParameterNode], self_node: Optional[Node]) -> "FunModule":
        made = object.__new__(type(self))
        made.__dict__.update(self.__dict__)
        made.parameter, made._self_node = parameter, self_node
        return made

    def copy(self) -> "FunModule":
        """Another operator on the same code parameter."""
        return self._copy(self.parameter, self._self_node)

    def detach(self) -> "FunModule":
        """Another operator with a copy of the code parameter."""
        return copy.deepcopy(self)

    def __deepcopy__(self, memo: dict) -> "FunModule":
        memo[id(self)] = made = self._copy(None, None)
        made.parameter = copy.deepcopy(self.parameter, memo)
        made._self_node = copy.deepcopy(self._self_node, memo)
        return made

    def __get__(self, instance: Any, owner: Any) -> "FunModule":
        if instance is None:
            return self
        key, own = "__TRACE_RESERVED_bundle_" + self._tag, "__TRACE_RESERVED_self_node"
        kept = instance.__dict__
        bound = kept.get(key)
        if bound is None or bound._origin is not self._origin:
            if own not in kept:
                kept[own] = node(instance)
            bound = kept[key] = self._copy(copy.deepcopy(self.parameter), kept[own])
        return bound

    # ---- calling it

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The result as a node; of an async function, an awaitable of it."""
        if self._self_node is not None:
            args = (self._self_node, *args)
        fun = self._fun if self.parameter is None and not self.overwrite_python_recursion else self._function()
        inputs, args, kwargs = self._wrap_inputs(args, kwargs)
        if self._is_async or self.parameter is not None and inspect.iscoroutinefunction(fun):
            return self._forward_async(fun, inputs, args, kwargs)
        used: set = set()
        token = USED_NODES.set((*USED_NODES.get(), used))
        try:
            output = fun(*args, **kwargs)
        except Exception as error:
            if not self.catch_execution_error:
                raise
            failure = error
        else:
            failure = None
        finally:
            USED_NODES.reset(token)
        if failure is not None:
            self._raise(failure, inputs)
        return self._result(output, inputs, args, kwargs, used)

    async def _forward_async(self, fun: Callable, inputs: Dict[str, Node], args: Any, kwargs: Any) -> Any:
        with trace_nodes() as used:
            try:
                output = await fun(*args, **kwargs)
            except Exception as error:
                if not self.catch_execution_error:
                    raise
                failure = error
            else:
                failure = None
        if failure is not None:
            self._raise(failure, inputs)
        return self._result(output, inputs, args, kwargs, used)

    def _wrap_inputs(self, args: tuple, kwargs: dict) -> Tuple[Dict[str, Node], Any, Any]:
        """(inputs of the result, args, kwargs that the function is called with).

        Values become nodes named after their parameter; the function gets the nodes' values, copies of the nodes when its code is traceable, and the
        arguments as they were given when inputs are not processed.
        """
        signature = self._signature
        if signature.simple and not kwargs and len(args) == len(signature.positional) and self._process_inputs:
            inputs: Dict[str, Node] = {}
            values = []
            for name, value in zip(signature.positional, args):
                if isinstance(value, Node):
                    inputs[name] = value
                    values.append(value.detach() if self.traceable_code else value._data)
                elif isinstance(value, FunModule):
                    inputs[name] = value.parameter if value.parameter is not None else root(value, name)
                    values.append(value)
                else:
                    inputs[name] = made = root(value, name)
                    values.append(made.detach() if self.traceable_code else value)
            return inputs, values, NO_KWARGS
        return self._wrap_any_inputs(*signature.bind(args, kwargs))

    def _wrap_any_inputs(self, bound: Dict[str, Any], call_args: tuple, call_kwargs: dict) -> Tuple[Dict[str, Node], Any, Any]:
        inputs: Dict[str, Node] = {}
        made: Dict[int, Node] = {}
        for key, value in bound.items():
            if isinstance(value, Node):
                inputs[key] = value
            elif isinstance(value, FunModule) and value.parameter is not None:
                inputs[key] = value.parameter
            else:
                inputs[key] = made[id(value)] = root(value, None if key.startswith("args_") and key not in self._signature.positional else key)
        if not self._process_inputs:
            return inputs, call_args, call_kwargs

        def given(value: Any) -> Any:
            if isinstance(value, FunModule):
                return value
            at = made.get(id(value), value)
            return at.detach() if self.traceable_code else at._data

        return inputs, [given(v) for v in call_args], {k: given(v) for k, v in call_kwargs.items()}

    def _result(self, output: Any, inputs: Dict[str, Node], args: Any, kwargs: Any, used: set) -> Node:
        external = [n for n in used if not contain(inputs.values(), n)] if used else []
        allowed = self.allow_external_dependencies if ALLOW_EXTERNAL_DEPENDENCIES is None else ALLOW_EXTERNAL_DEPENDENCIES
        if external and not allowed:
            missing = [(n.name, n._data) for n in external]
            raise TraceMissingInputsError(f"Not all nodes used in the operator {self._fun} are inputs of its result. Missing {missing}")
        return self._message(output, inputs, (output, args, kwargs, external))

    def _message(self, output: Any, inputs: Dict[str, Node], call: tuple) -> Node:
        base, description = self._tag if self.output_name is None else self.output_name, self.description
        if self.parameter is not None:
            inputs["__code"] = self.parameter
            base, description = "eval", _EVAL
        return message(self, output, inputs if GRAPH.TRACE else NO_INPUTS, base, description, call)

    def _raise(self, error: Exception, inputs: Dict[str, Node]) -> None:
        base = self._tag
        code_file = code = None
        if self.parameter is not None:
            base, code_file, code = "eval", self._file_of_code(), self.parameter._data
            inputs["__code"] = self.parameter
        comment, trace = failures.describe(error, code_file, code)
        info = {**self.info, "error_comment": comment, "traceback": trace}
        made = ExceptionNode(error, inputs=inputs if GRAPH.TRACE else {}, name="exception_" + base, info=info,
                             description=f"[exception] The operator {self.info['fun_name']} raised an exception.")
        raise ExecutionError(made) from error

    # ---- the function

    def _function(self) -> Callable:
        if self.parameter is not None:
            return self._compile(self.parameter._data)
        if not self.overwrite_python_recursion:
            return self._fun
        if self._twin is None:
            self._twin = plain_twin(self._fun)
        return self._twin

    def _file_of_code(self) -> str:
        return f"<{self.parameter.name}>"  # type: ignore[union-attr]

    def _compile(self, text: str) -> Callable:
        """The function that the code parameter defines: the one of the original name, else the first."""
        try:
            if self._compiled[0] != text:
                self._compiled = (text, compile(text, self._file_of_code(), "exec"))
            names = dict(self._fun.__globals__)
            names.update(self._ldict)
            names.update(_closure(self._fun))
            before = set(names)
            made: dict = {}
            exec(self._compiled[1], names, made)
            names.update(made)
            fun = made.get(self.info["_fun_name"])
            if fun is None:
                fun = next((v for v in made.values() if isinstance(v, types.FunctionType) and v.__code__.co_filename == self._file_of_code()), None)
            if fun is None:
                raise NameError(f"the code defines no function {self.info['_fun_name']}")
            del before
            return fun
        except Exception as error:
            self._raise_code_error(error, text)
            raise AssertionError("not reached")

    def _raise_code_error(self, error: Exception, text: str) -> None:
        """A text that does not define the function: an exception node whose only input is the code."""
        message_text = failures.message_of(error)
        line = error.lineno if isinstance(error, SyntaxError) else _line_in(error, self._file_of_code())
        comment = failures.mark_line(text, line or 1, message_text) + f"\n{message_text}"
        info = {**self.info, "error_comment": comment, "traceback": "Error in the definition of trainable code.\n" + comment}
        parameter = self.parameter
        assert parameter is not None
        made = ExceptionNode(error, inputs={"code": parameter} if GRAPH.TRACE else {}, name="exception_" + parameter._base, info=info,
                             description=f"[exception] The code parameter {parameter.py_name} has an error.")
        raise ExecutionError(made) from error


def _closure(fun: Callable) -> Dict[str, Any]:
    """What the function sees of enclosing functions, as it stands now."""
    found = {}
    for name, cell in zip(fun.__code__.co_freevars, fun.__closure__ or ()):  # type: ignore[attr-defined]
        try:
            found[name] = cell.cell_contents
        except ValueError:      # not filled yet
            continue
    return found


def _line_in(error: BaseException, file: str) -> Optional[int]:
    lines: List[int] = []
    at = error.__traceback__
    while at is not None:
        if at.tb_frame.f_code.co_filename == file:
            lines.append(at.tb_lineno)
        at = at.tb_next
    return lines[-1] if lines else None


wrap_node = recursive_conversion(lambda n: n, node)
