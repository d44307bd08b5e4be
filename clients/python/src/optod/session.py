"""A session: parameters and an optimizer on the server.  ask -> tell -> new version, for gradients, losses and words."""

from __future__ import annotations

import os
from typing import Any, Dict, Iterator, List, Mapping, Optional, Sequence, Union

import numpy as np
from google.protobuf import field_mask_pb2

from optod import raw_streams, specs, tensors
from optod.gradients import GradientStream
from optod.recording import Recording
from optod.searches import Searches
from optod.results import TellResult, tell_result
from optod.transport import new_request_id, translated
from optod.v1 import session_pb2 as pb
from optod.worker import ZoWorker

__all__ = ["Session", "Versions"]


class Versions:
    """``session.versions``: iterate (newest first), ``len()``, and ``[number]`` (with all values of a trace version)."""

    def __init__(self, session: "Session") -> None:
        self._session = session

    def __iter__(self) -> Iterator[pb.Version]:
        return self._session.list_versions()

    def __len__(self) -> int:
        return self._session.refresh().info.version_count

    def __getitem__(self, number: int) -> pb.Version:
        request = pb.GetVersionRequest(name=f"{self._session.name}/versions/{number}")
        return self._session.transport.call(self._session.stub.GetVersion, request)


class Session(Recording, Searches):
    """One session.  Made by ``client.sessions``.  Thread-safe, except that concurrent first-order tells race for the head as any writers do.

    name: users/U/sessions/S.  info: the Session message as last seen (its comments in session.proto are the manual); ``refresh()`` renews it.
    """

    def __init__(self, client: Any, info: pb.Session) -> None:
        self.client = client
        self.transport = client.transport
        self.stub = client.session_stub
        self.info = info
        self.name = info.name
        self._head = info.head_version

    # ---- what it is

    def __repr__(self) -> str:
        return f"<optod.Session {self.name} {self.info.optimizer.name} head={self._head} seq={self.info.seq}>"

    @property
    def id(self) -> str:
        return self.name.rsplit("/", 1)[-1]

    @property
    def layout(self) -> tensors.Layout:
        """Names, shapes, dtypes and order of the tensors."""
        if not hasattr(self, "_layout"):
            self._layout = tensors.Layout(self.info.layout)
        return self._layout

    @property
    def head_version(self) -> int:
        """The head as this object last saw it."""
        return self._head

    @property
    def seq(self) -> int:
        """Updates applied, as of the last ``refresh()``."""
        return self.info.seq

    def note_head(self, version: int) -> None:
        """Called by streams and workers that saw the head move."""
        self._head = version

    def refresh(self) -> "Session":
        """Reads the session's fields again. NotFound when it is gone."""
        return self._take(self.transport.call(self.stub.GetSession, pb.GetSessionRequest(name=self.name)))

    def _take(self, info: pb.Session) -> "Session":
        self.info, self._head = info, info.head_version
        return self

    # ---- life cycle

    def update(self, *, labels: Optional[Mapping[str, str]] = None, display_name: Optional[str] = None,
               budget: Optional[specs.Budget] = None, state: Optional[str] = None, etag: str = "") -> "Session":
        """Changes what is given. state: "active" or "closed" (read-only). Aborted when ``etag`` is given and stale."""
        changed, mask = pb.Session(name=self.name, etag=etag), []
        if labels is not None:
            changed.labels.update(labels)
            mask.append("labels")
        if display_name is not None:
            changed.display_name = display_name
            mask.append("display_name")
        if budget is not None:
            changed.budget.CopyFrom(budget.message())
            mask.append("budget")
        if state is not None:
            changed.state = pb.Session.State.Value(state.upper())
            mask.append("state")
        request = pb.UpdateSessionRequest(session=changed, update_mask=field_mask_pb2.FieldMask(paths=mask))
        return self._take(self.transport.call(self.stub.UpdateSession, request))

    def delete(self, etag: str = "") -> "Session":
        """Soft: refused for ask and tell, restorable for 7 days by ``undelete``."""
        return self._take(self.transport.call(self.stub.DeleteSession, pb.DeleteSessionRequest(name=self.name, etag=etag)))

    def undelete(self) -> "Session":
        return self._take(self.transport.call(self.stub.UndeleteSession, pb.UndeleteSessionRequest(name=self.name)))

    def fork(self, version: Optional[int] = None, id: str = "", request_id: str = "", seed: Optional[int] = None) -> "Session":
        """A new session that starts at a version of this one (None = the head). O(1): stored data is shared.

        seed: zeroth order, of the fork's own directions; None = it goes on with those of this session.
        """
        request = pb.ForkSessionRequest(session=self.name, version=version, session_id=id, request_id=request_id, seed=seed)
        return Session(self.client, self.transport.call(self.stub.ForkSession, request))

    def rollback(self, version: int, etag: str = "", request_id: str = "") -> "Session":
        """Makes ``version`` the head; nothing is deleted, later steps grow a new branch. O(1)."""
        request = pb.RollbackRequest(session=self.name, version=version, etag=etag, request_id=request_id)
        return self._take(self.transport.call(self.stub.Rollback, request))

    def export(self, path: Union[str, os.PathLike, None] = None) -> Optional[bytes]:
        """The whole session as a JSON Lines archive: written to ``path``, or returned."""
        parts = translated(self.transport.stream(self.stub.ExportSession, pb.ExportSessionRequest(session=self.name)))
        if path is None:
            return b"".join(part.data for part in parts)
        with open(path, "wb") as file:
            for part in parts:
                file.write(part.data)
        return None

    # ---- versions

    @property
    def versions(self) -> Versions:
        """The tree of all versions: iterate, ``len()``, ``[number]``."""
        return Versions(self)

    def list_versions(self, branch_only: bool = False, oldest_first: bool = False, page_size: int = 1000) -> Iterator[pb.Version]:
        """All versions, newest first; branch_only: those on the way from the head to version 0 (newest first only). Pages are fetched as needed."""
        request = pb.ListVersionsRequest(session=self.name, page_size=page_size, branch_only=branch_only, oldest_first=oldest_first)
        while True:
            page = self.transport.call(self.stub.ListVersions, request)
            yield from page.versions
            if not page.next_page_token:
                return
            request.page_token = page.next_page_token

    def history(self) -> List[pb.Version]:
        """What led to the head: its branch, version 0 first."""
        return list(self.list_versions(branch_only=True))[::-1]

    # ---- parameters

    def push(self, params: Mapping[str, np.ndarray], request_id: str = "") -> str:
        """Uploads initial values of all tensors, in 1 MiB chunks.  Returns the SHA-256 of the flat buffer, which the server has checked.

        ValueError: a tensor is missing or has another shape or dtype.  FailedPrecondition: a step was already made.
        """
        arrays = self.layout.arrays(params, "params")
        done = raw_streams.push(self.transport, self.name, request_id or new_request_id(), arrays)
        self.info.has_values = True
        return done.sha256

    def pull(self, version: Optional[int] = None, names: Sequence[str] = ()) -> Dict[str, np.ndarray]:
        """Parameters of a version (None = the head) as {name: writable array}.  names: globs over tensor names.

        bf16 comes as ml_dtypes.bfloat16 when that package is installed, else as its bits in uint16.
        """
        request = pb.PullParametersRequest(session=self.name, version=version, tensors=list(names))
        header, flat = raw_streams.pull(self.transport, "PullParameters", request)
        if version is None:
            self._head = header.version
        return self.layout.views(flat, header.index)

    def pull_state(self) -> Dict[str, np.ndarray]:
        """Optimizer state of the head: {"m/<tensor>": array, ...}."""
        header, flat = raw_streams.pull(self.transport, "PullState", pb.PullStateRequest(session=self.name))
        self._head = header.version
        return self.layout.views(flat, header.index)

    def export_state(self, path: Union[str, os.PathLike], version: Optional[int] = None) -> int:
        """Parameters ("params/<tensor>"), optimizer state ("state/m/<tensor>", ...), counters and settings of a version (None = the head) as one
        safetensors file, put in place of ``path`` at once.  Returns the version.  ``client.sessions.import_state`` goes on from it, bit for bit; the
        package `safetensors` and ``optod.safetensors_file.read`` open it.  FailedPrecondition: the server holds no values.
        """
        partial = f"{os.fspath(path)}.partial"
        with open(partial, "wb") as file:
            done = raw_streams.export_state(self.transport, pb.ExportStateRequest(session=self.name, version=version), file.write)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
        return done

    def import_state(self, path: Union[str, os.PathLike], *, etag: str = "", allow_non_finite: bool = False, request_id: str = "") -> "Session":
        """Goes on from a file of ``export_state``: its parameters, optimizer state and step count become a new version, the head, durable at once.
        Optimizer, hyperparameters and what came before stay (``rollback`` goes back to it).  First order only.

        etag: of the session as last read; another one is Aborted.  InvalidArgument: the file is of another optimizer or other tensors, or its state
        does not fit; nothing changes then.  FailedPrecondition: zeroth order, closed, or no values yet.
        """
        header = pb.ImportStateHeader(session=self.name, etag=etag, allow_non_finite=allow_non_finite, request_id=request_id)
        return self._take(raw_streams.import_state(self.transport, header, np.fromfile(path, np.uint8)))

    def memory(self) -> pb.MemoryReport:
        """Bytes of parameters, optimizer state and working memory, tensor by tensor: see MemoryReport in session.proto."""
        return self.transport.call(self.stub.DescribeMemory, pb.DescribeMemoryRequest(session=self.name))

    # ---- ask and tell

    def ask(self, count: int = 0, *, worker: str = "", lease: Optional[float] = None, wait: Optional[float] = None,
            known_version: Optional[int] = None, with_point: bool = False, with_values: bool = False) -> pb.AskResponse:
        """What to evaluate: probes (zeroth order), points (trace, first order).  lease, wait: seconds. See AskRequest in session.proto."""
        request = pb.AskRequest(session=self.name, count=count, worker=worker, known_version=known_version, with_point=with_point,
                                with_values=with_values)
        if lease is not None:
            request.lease.CopyFrom(specs.seconds(lease))
        if wait is not None:
            request.wait.CopyFrom(specs.seconds(wait))
        answer = self.transport.call(self.stub.Ask, request, timeout=self.transport.timeout + (wait or 0.0))
        self._head = answer.head_version
        return answer

    def tell_gradients(self, gradients: Mapping[str, np.ndarray], loss: Optional[float] = None, *, base_version: Optional[int] = None,
                       seq: int = 0, return_values: bool = False, extra: Optional[Mapping[str, np.ndarray]] = None,
                       lr: Optional[float] = None, request_id: str = "") -> TellResult:
        """One first-order update.

        gradients: {name: array of the tensor's shape}, in the parameter's dtype or float32; tensors left out have no gradient in this step.
        loss: kept with the version.  base_version: where the gradients were taken; None = the head this object last saw.  seq: Session.seq + 1
        to have order checked, 0 = not checked.  extra: what the optimizer's tell_inputs name beyond "grad".  lr: of this step, in place of the session's
        own and its schedule.  return_values: the new parameters come back in ``values``.  Everything at most 4 MiB a call; use ``gradient_stream`` beyond.

        Aborted: the head is another version; ask again.  InvalidArgument: names the tensor and what is wrong with it.
        """
        tell = pb.GradientTell(base_version=self._head if base_version is None else base_version, loss=loss, return_values=return_values,
                               lr=[] if lr is None else [lr])
        tell.gradients.extend(self._message(name, value) for name, value in gradients.items())
        tell.extra.extend(tensors.tensor(name, value) for name, value in (extra or {}).items())
        return self._tell(pb.TellRequest(session=self.name, request_id=request_id, seq=seq, gradients=tell))

    def _message(self, name: str, value: Any) -> Any:
        """bf16 and fp8 may come as bits; the layout knows."""
        spec = self.layout.specs.get(name)
        raw = np.asarray(value)
        as_bits = spec is not None and raw.dtype == tensors.numpy_dtype(spec.dtype)
        return tensors.tensor(name, raw, spec.dtype if as_bits else None)

    def tell_losses(self, results: Mapping[str, Sequence[float]], request_id: str = "") -> TellResult:
        """Zeroth order: {probe_id: (loss_plus, loss_minus)}, any number, any order; a probe told twice counts once."""
        tell = pb.LossTell(results=[pb.ProbeResult(probe_id=probe, loss_plus=pair[0], loss_minus=pair[1]) for probe, pair in results.items()])
        return self._tell(pb.TellRequest(session=self.name, request_id=request_id, losses=tell))

    def tell_score(self, score: float, version: Optional[int] = None, feedback: str = "", request_id: str = "") -> TellResult:
        """The score of a version (None = the head this object last saw), with what happened in words."""
        tell = pb.ScoreTell(version=self._head if version is None else version, score=score, feedback=feedback)
        return self._tell(pb.TellRequest(session=self.name, request_id=request_id, score=tell))

    def _tell(self, request: pb.TellRequest) -> TellResult:
        result = tell_result(self.transport.call(self.stub.Tell, request))
        self._head = result.head_version
        return result

    # ---- streams

    def gradient_stream(self, return_values: bool = True, dtype: Any = None, **options: Any) -> GradientStream:
        """First-order steps on tensors of any size over one stream. dtype: of the gradients on the wire; None = the parameters'. options: see
        GradientStream."""
        return GradientStream(self, return_values, dtype, **options)

    def worker(self, params: Optional[Mapping[str, np.ndarray]] = None, **options: Any) -> ZoWorker:
        """A zeroth-order worker that holds the parameters here (see ZoWorker). params: those of version 0; needed when the server has none."""
        return ZoWorker(self, params, **options)
