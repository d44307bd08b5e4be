"""Where everything starts: ``optod.connect()``."""

from __future__ import annotations

import os
from typing import Any, Iterator, List, Mapping, Optional, Sequence, Tuple, Union

import numpy as np

from optod import raw_streams, specs, tensors
from optod.admin import Admin, Artifacts, Events
from optod.jobs import Jobs
from optod.operations import Operations
from optod.orders import Orders
from optod.retry import RetryPolicy
from optod.session import Session
from optod.transport import Transport
from optod.v1 import admin_pb2, optimizer_pb2, search_pb2_grpc, session_pb2 as pb, session_pb2_grpc, trace_pb2_grpc, workflow_pb2_grpc

__all__ = ["connect", "Client", "Sessions"]

DEFAULT_ADDRESS = "127.0.0.1:7070"


def connect(address: Optional[str] = None, token: Optional[str] = None, timeout: float = 30.0, retry: RetryPolicy = RetryPolicy(),
            tls_ca: Optional[str] = None) -> "Client":
    """A client of the server at ``address``: HOST:PORT or unix:PATH; None = OPTOD_ADDRESS, else 127.0.0.1:7070.

    token: None = OPTOD_TOKEN, else none.  timeout: seconds of a unary call, all attempts together.  tls_ca: PEM file of the authority that signed the
    server's certificate; None = OPTOD_TLS_CA, else no TLS.  The connection is made by the first call.  ValueError: the address is neither form.
    """
    address = address or os.environ.get("OPTOD_ADDRESS") or DEFAULT_ADDRESS
    token = token if token is not None else os.environ.get("OPTOD_TOKEN", "")
    tls_ca = tls_ca or os.environ.get("OPTOD_TLS_CA")
    roots = None
    if tls_ca:
        with open(tls_ca, "rb") as file:
            roots = file.read()
    return Client(Transport.open(address, token, timeout, retry, roots))


class Client:
    """One connection to a server.  Thread-safe; a context manager.

    sessions, jobs, orders, operations, events, artifacts, admin: the services.  Every mutating call carries a request id that is made before the first attempt;
    UNAVAILABLE is tried again (4 attempts, 0.1 to 2 s), and the server answers a request id it has seen with the first answer.
    """

    def __init__(self, transport: Transport) -> None:
        self.transport = transport
        self.session_stub = session_pb2_grpc.SessionServiceStub(transport.channel)
        self.trace_stub = trace_pb2_grpc.TraceServiceStub(transport.channel)
        self.search_stub = search_pb2_grpc.SearchServiceStub(transport.channel)
        self.workflow_stub = workflow_pb2_grpc.WorkflowServiceStub(transport.channel)
        self.sessions = Sessions(self)
        self.operations = Operations(transport)
        self.jobs = Jobs(self)
        self.orders = Orders(self)
        self.events = Events(self)
        self.artifacts = Artifacts(self)
        self.admin = Admin(self)

    def optimizers(self, name: str = "") -> List[optimizer_pb2.OptimizerInfo]:
        """The server's table of optimizers ("" = all): hyperparameters with range and default, what a tell carries, memory, source."""
        return list(self.transport.call(self.session_stub.ListOptimizers, pb.ListOptimizersRequest(name=name)).optimizers)

    def info(self) -> admin_pb2.ServerInfo:
        """Version, who the caller is, services, checks."""
        return self.admin.info()

    @property
    def traffic(self) -> Tuple[int, int]:
        """Bytes of messages sent and received so far (unary calls and zeroth-order streams; without HTTP/2 frames)."""
        return self.transport.bytes_sent, self.transport.bytes_received

    def close(self) -> None:
        self.transport.close()

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()


class Sessions:
    """``client.sessions``."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._call = client.transport.call
        self._stub = client.session_stub

    def create(self, optimizer: str, params: Optional[Mapping[str, np.ndarray]] = None, *, layout: Optional[Mapping[str, Any]] = None,
               no_decay: Sequence[str] = (), parameters: Optional[Mapping[str, Any]] = None,
               hyperparameters: Optional[Mapping[str, Any]] = None, schedule: Optional[specs.Schedule] = None, seed: int = 0,
               clip_norm: float = 0.0, clip_value: float = 0.0, groups: Sequence[Mapping[str, Any]] = (), non_finite: str = "refuse",
               llm: str = "", id: str = "", durability: Optional[specs.Durability] = None,
               budget: Optional[specs.Budget] = None, direction: Optional[str] = None, labels: Optional[Mapping[str, str]] = None,
               display_name: str = "", request_id: str = "", validate_only: bool = False, **hyper: Any) -> Session:
        """A new session.

            create("adamw", {"w": w, "b": b}, lr=1e-3, weight_decay=0.01)            # first order
            create("zo-sgd", layout={"w": ((1_000_000_000,), "f32")}, lr=1e-6)       # zeroth order, layout only: the server holds no values
            create("optoprime", parameters={"k": optod.Parameter(5, min=1, max=20)}) # trace

        params: {name: array}, the initial values, in layout order.  layout: {name: (shape, dtype)} or arrays, when values are pushed later or
        never.  no_decay: tensors that weight decay skips.  parameters: of a trace session, {name: value or Parameter}.  Hyperparameters go as
        keywords or in ``hyperparameters``; ``client.optimizers(name)`` lists them.  seed: of every random draw, in [0, 2**64).  clip_norm: joint
        2-norm of the gradients, 0 = none.  clip_value: limit of every entry, 0 = none.  groups: hyperparameters of chosen tensors,
        [{"tensors": "*.bias", "lr": 1e-4, "weight_decay": 0}]; the first that matches counts.  non_finite: "refuse" a gradient with NaN or Inf, or
        "skip" the step.  direction: of scores, "maximize" (default) or "minimize".  validate_only: check, create nothing.

        InvalidArgument: unknown optimizer (the text names the nearest), a hyperparameter out of range, a bad layout.  AlreadyExists: the id is taken.
        """
        request = pb.CreateSessionRequest(
            session_id=id, direction=specs.direction_number(direction), labels=labels or {}, display_name=display_name, request_id=request_id,
            validate_only=validate_only,
            optimizer=specs.optimizer_message(optimizer, {**(hyperparameters or {}), **hyper}, schedule, seed, clip_norm, llm, groups, non_finite,
                                              clip_value))
        inline = False
        if params is not None or layout is not None:
            made = tensors.Layout.of(layout if layout is not None else params, no_decay)  # type: ignore[arg-type]
            request.layout.CopyFrom(made.index)
            if params is not None:
                values = made.arrays(params, "params")
                inline = made.total_bytes <= tensors.UNARY_BYTES // 2
                if inline:
                    request.initial.extend(tensors.tensor(spec.name, value, spec.dtype) for spec, value in zip(made.index.tensors, values))
        for name, value in (parameters or {}).items():
            parameter = value if isinstance(value, specs.Parameter) else specs.Parameter(value)
            request.parameters.append(parameter.message(name))
        if durability is not None:
            request.durability.CopyFrom(durability.message())
        if budget is not None:
            request.budget.CopyFrom(budget.message())
        session = Session(self._client, self._call(self._stub.CreateSession, request))
        if params is not None and not inline and not validate_only:
            session.push(params)
        return session

    def import_state(self, path: Union[str, os.PathLike], *, id: str = "", optimizer: str = "", hyperparameters: Optional[Mapping[str, Any]] = None,
                     allow_non_finite: bool = False, durability: Optional[specs.Durability] = None, budget: Optional[specs.Budget] = None,
                     labels: Optional[Mapping[str, str]] = None, display_name: str = "", request_id: str = "", **hyper: Any) -> Session:
        """A new session that goes on from a file of ``Session.export_state``: the same tells give the same parameters, bit for bit.

        optimizer: refuse a file of another one.  Hyperparameters (keywords or ``hyperparameters``) replace the file's.  allow_non_finite: let NaN and
        Inf in.  InvalidArgument names the tensor or the key of the file that is wrong; nothing is created then.
        """
        header = pb.ImportStateHeader(session_id=id, optimizer=optimizer, allow_non_finite=allow_non_finite, labels=labels or {},
                                      display_name=display_name, request_id=request_id)
        for name, value in {**(hyperparameters or {}), **hyper}.items():
            header.hyperparameters[name].CopyFrom(specs.hyper_value(name, value))
        if durability is not None:
            header.durability.CopyFrom(durability.message())
        if budget is not None:
            header.budget.CopyFrom(budget.message())
        return Session(self._client, raw_streams.import_state(self._client.transport, header, np.fromfile(path, np.uint8)))

    def get(self, name: str) -> Session:
        """By users/U/sessions/S, sessions/S or S (the caller's own). NotFound."""
        return Session(self._client, self._call(self._stub.GetSession, pb.GetSessionRequest(name=name)))

    def list(self, parent: str = "", show_deleted: bool = False, page_size: int = 0) -> Iterator[Session]:
        """Newest first; pages are fetched as needed.  parent: users/U, "" = the caller, users/- = all (admins)."""
        request = pb.ListSessionsRequest(parent=parent, show_deleted=show_deleted, page_size=page_size)
        while True:
            page = self._call(self._stub.ListSessions, request)
            for info in page.sessions:
                yield Session(self._client, info)
            if not page.next_page_token:
                return
            request.page_token = page.next_page_token

    def update(self, name: str, **changes: Any) -> Session:
        """See Session.update."""
        return self.get(name).update(**changes)

    def delete(self, name: str, etag: str = "") -> Session:
        """Soft; ``undelete`` within 7 days brings it back."""
        return Session(self._client, self._call(self._stub.DeleteSession, pb.DeleteSessionRequest(name=name, etag=etag)))

    def undelete(self, name: str) -> Session:
        return Session(self._client, self._call(self._stub.UndeleteSession, pb.UndeleteSessionRequest(name=name)))

    def fork(self, name: str, version: Optional[int] = None, id: str = "") -> Session:
        """See Session.fork."""
        return self.get(name).fork(version, id)

    def rollback(self, name: str, version: int) -> Session:
        """See Session.rollback."""
        return self.get(name).rollback(version)

    def export(self, name: str, path: Any = None) -> Optional[bytes]:
        """See Session.export."""
        return self.get(name).export(path)
