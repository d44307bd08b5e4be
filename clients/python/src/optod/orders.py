"""What another order of the training batches would have given, without training again (FUT, arXiv 2505.22042).

    study = client.orders.create({"kind": "sample_order", "model": {"builtin": "logistic"}, "batches": 8, "study": {"optimizer": "adam", "lr": 0.05}})
    study.wait()                                   # the job records the reference run and fills the terms
    study.estimate([3, 1, 0, 2, 5, 4, 7, 6])       # one order: value, reference value, distance
    study.estimates(orders)                        # thousands: an array of values
    study.search(generations=10).order             # the best order that a genetic search finds
    study.matrix().values                          # [T, T]: batch i at position j
    study.export("out.safetensors", order)         # the estimated parameters

An order is a sequence of T batch numbers (used in every epoch) or of epochs * T.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
from typing import Any, Callable, Dict, Iterable, Iterator, Mapping, Optional, Sequence, Union

import numpy as np

from optod import errors
from optod.jobs import Jobs, result_of
from optod.transport import translated
from optod.v1 import job_pb2, order_pb2 as pb, order_pb2_grpc

__all__ = ["Orders", "Study", "Estimate", "Search", "Matrix"]

PER_MESSAGE = 1024      # orders of a stream's message
Order = Sequence[int]


@dataclasses.dataclass(frozen=True)
class Estimate:
    """Of one order.  value: the metric by estimate.  reference_value: at the end of the reference run.  distance: 2-norm of the estimated parameters
    less the reference's.  seconds: of the estimate.  retrained, error, retrain_seconds: with ``retrain=True``; error is relative to taking the
    reference's parameters as the guess (0 = exact, 1 = no better than the guess)."""

    value: float
    reference_value: float
    distance: float
    seconds: float
    retrained: Optional[float] = None
    error: Optional[float] = None
    retrain_seconds: float = 0.0


@dataclasses.dataclass(frozen=True)
class Search:
    """order: int array [T].  best, mean: of the first generation and of each one made.  evaluations: estimates taken."""

    order: np.ndarray
    estimated: float
    retrained: Optional[float]
    best: np.ndarray
    mean: np.ndarray
    evaluations: int


@dataclasses.dataclass(frozen=True)
class Matrix:
    """values[i, j]: the metric when batch i stands at position j.  spots: (batch, position, estimated, retrained) of the cells trained for real, and
    how the two agree over them."""

    values: np.ndarray
    spots: np.ndarray
    pearson: float
    spearman: float
    l1: float
    mse: float
    seconds: float

    def draw(self, path: Union[str, pathlib.Path], title: str = "loss by batch and position") -> str:
        """A heat map: PNG where matplotlib is installed and the name ends so, else SVG. Returns the path written."""
        from optod.studies import charts_orders
        return charts_orders.heat_map(pathlib.Path(path), self.values, title)


def _metric(batches: Iterable[int], evaluations: Iterable[int], perplexity: bool) -> pb.OrderMetric:
    return pb.OrderMetric(batches=list(batches), evaluations=list(evaluations), perplexity=perplexity)


def _options(expansion: Optional[int], moments: str, loss: str, calibrate: bool = True) -> pb.OrderEstimateOptions:
    options = pb.OrderEstimateOptions(moments=_choice(pb.OrderEstimateOptions.Moments, "moments", moments), uncalibrated=not calibrate,
                                      loss=_choice(pb.OrderEstimateOptions.Loss, "loss", loss))
    if expansion is not None:
        options.expansion = expansion
    return options


def _choice(enum: Any, name: str, value: str) -> int:
    """The number of a lower-case name; ValueError lists the names."""
    try:
        return enum.Value(value.upper())
    except ValueError:
        known = ", ".join(key.lower() for key in enum.keys() if not key.endswith("_UNSPECIFIED"))
        raise ValueError(f"{name}: {value!r} is not one of {known}") from None


def _order(order: Order) -> pb.SampleOrder:
    return pb.SampleOrder(batches=[int(batch) for batch in order])


def _expected(expected: Optional[Mapping[str, Any]]) -> Dict[str, str]:
    """Options as the study's file writes them."""
    def text(value: Any) -> str:
        if isinstance(value, bool):
            return "true" if value else "false"
        if isinstance(value, (list, tuple, np.ndarray)):
            return ",".join(text(item) for item in value)
        return repr(float(value)) if isinstance(value, float) else str(value)
    return {key: text(value) for key, value in (expected or {}).items()}


class Orders:
    """``client.orders``: studies of the sample order."""

    def __init__(self, client: Any) -> None:
        self._transport = client.transport
        self._jobs = Jobs(client)
        self._stub = order_pb2_grpc.OrderServiceStub(client.transport.channel)

    def create(self, spec: Mapping[str, Any], id: str = "", request_id: str = "") -> "Study":
        """Submits the job that makes a study; see optim/order_job/spec.h for its fields.  kind may be left out.

        InvalidArgument: the field and what is wrong with it.  Unimplemented: this server runs no jobs.
        """
        job = self._jobs.submit({"kind": "sample_order", **spec}, id, request_id)
        return Study(self, job.name)

    def get(self, name: str) -> "Study":
        """The study of a job: users/U/jobs/J, jobs/J or J.  No call is made."""
        return Study(self, name)


class Study:
    """One study, by its job's name.  Metrics: the mean loss over ``batches`` (training) and ``evaluations`` (held-out sets; neither given: set 0), or
    its exponential with perplexity=True.  expansion: 0 no curvature, 1, 2; None = the most that is stored.  moments: replay or reference.
    loss: forward (a pass of the model an order) or linear (none).  expected: options that must be what is recorded.

    Errors of all questions.  InvalidArgument: an order that is no permutation, a number out of range.  FailedPrecondition: nothing recorded yet, a
    term missing, other options than expected.  Unavailable: the study's process died and did so again at every retry.
    """

    def __init__(self, orders: Orders, name: str) -> None:
        self._orders, self.name = orders, name
        self._transport, self._stub = orders._transport, orders._stub

    # ---- the job

    @property
    def job(self) -> job_pb2.Job:
        """Its state now."""
        return self._orders._jobs.get(self.name)

    def wait(self, timeout: Optional[float] = None, progress: Optional[Callable[[job_pb2.Job], None]] = None) -> Dict[str, Any]:
        """Waits until the job has succeeded; returns its result.  JobFailed, DeadlineExceeded as ``client.jobs.wait``."""
        return result_of(self._orders._jobs.wait(self.name, timeout, progress))

    @property
    def result(self) -> Dict[str, Any]:
        """Of a job that has succeeded: parameters, terms_bytes, precompute_seconds, estimate, search, matrix, retrain_checks, ..."""
        return json.loads(self.job.result_json)

    def cancel(self) -> job_pb2.Job:
        return self._orders._jobs.cancel(self.name)

    # ---- questions

    def info(self, expected: Optional[Mapping[str, Any]] = None, decode_errors: bool = False) -> pb.OrderStudy:
        """Options, sizes, precision, what is filled, cost, reference loss."""
        return self._transport.call(self._stub.GetStudy,
                                    pb.GetStudyRequest(study=self.name, expected=_expected(expected), decode_errors=decode_errors), timeout=600.0)

    def estimate(self, order: Order, *, batches: Iterable[int] = (), evaluations: Iterable[int] = (), perplexity: bool = False,
                 expansion: Optional[int] = None, moments: str = "replay", loss: str = "forward", retrain: bool = False,
                 calibrate: bool = True, expected: Optional[Mapping[str, Any]] = None, timeout: float = 3600.0) -> Estimate:
        """One order.  retrain: train it for real, too.  calibrate=False: without what the study's probe runs taught."""
        request = pb.EstimateOrderRequest(study=self.name, order=_order(order), metric=_metric(batches, evaluations, perplexity),
                                          options=_options(expansion, moments, loss, calibrate), expected=_expected(expected), retrain=retrain)
        answer = self._transport.call(self._stub.EstimateOrder, request, timeout=timeout)
        return Estimate(answer.value, answer.reference_value, answer.distance, answer.seconds,
                        answer.retrained if answer.HasField("retrained") else None, answer.error if answer.HasField("error") else None,
                        answer.retrain_seconds)

    def estimates(self, orders: Iterable[Order], *, batches: Iterable[int] = (), evaluations: Iterable[int] = (), perplexity: bool = False,
                  expansion: Optional[int] = None, moments: str = "replay", loss: str = "forward", calibrate: bool = True,
                  expected: Optional[Mapping[str, Any]] = None) -> np.ndarray:
        """Any number of orders: float64 array of their values, in order.  calibrate: as of `estimate`."""
        def requests() -> Iterator[pb.EstimateOrdersRequest]:
            head = pb.EstimateOrdersRequest(study=self.name, metric=_metric(batches, evaluations, perplexity),
                                            options=_options(expansion, moments, loss, calibrate), expected=_expected(expected))
            some: list = []
            for order in orders:
                some.append(_order(order))
                if len(some) == PER_MESSAGE:
                    head.orders.extend(some)
                    yield head
                    head, some = pb.EstimateOrdersRequest(), []
            if some or head.study:
                head.orders.extend(some)
                yield head
        values: list = []
        for answer in translated(self._transport.stream(self._stub.EstimateOrders, requests())):
            values.extend(answer.values)
        return np.asarray(values, np.float64)

    def search(self, *, method: str = "genetic", population: int = 0, generations: int = 0, tournament: int = 0, crossover: Optional[float] = None,
               mutation: Optional[float] = None, elitism: Optional[int] = None, seed: int = 0, start: Iterable[Order] = (),
               batches: Iterable[int] = (), evaluations: Iterable[int] = (), perplexity: bool = False, expansion: Optional[int] = None,
               moments: str = "replay", loss: str = "forward", retrain_best: bool = True, expected: Optional[Mapping[str, Any]] = None,
               progress: Optional[Callable[[int, int], None]] = None) -> Search:
        """The order with the lowest estimate that a search finds.  method: genetic or local.  0 and None: the server's defaults (population 32,
        generations 50, ...).  progress(generation, generations)."""
        request = pb.SearchOrdersRequest(
            study=self.name, method=_choice(pb.SearchOrdersRequest.Method, "method", method), population=population, generations=generations,
            tournament=tournament, seed=seed, start=[_order(order) for order in start], metric=_metric(batches, evaluations, perplexity),
            options=_options(expansion, moments, loss), retrain_best=retrain_best, expected=_expected(expected))
        for name, value in (("crossover", crossover), ("mutation", mutation), ("elitism", elitism)):
            if value is not None:
                setattr(request, name, value)
        for answer in translated(self._transport.stream(self._stub.SearchOrders, request)):
            if progress is not None:
                progress(answer.generation, answer.generations)
            if answer.HasField("result"):
                r = answer.result
                return Search(np.asarray(r.order.batches), r.estimated, r.retrained if r.HasField("retrained") else None, np.asarray(r.best),
                              np.asarray(r.mean), r.evaluations)
        raise errors.Unavailable("study: the search ended without a result")

    def matrix(self, *, generalisation: bool = False, spot_checks: int = 0, seed: int = 0, base: Optional[Order] = None,
               batches: Iterable[int] = (), evaluations: Iterable[int] = (), perplexity: bool = False, expansion: Optional[int] = None,
               moments: str = "replay", expected: Optional[Mapping[str, Any]] = None) -> Matrix:
        """Memorisation (measured on the moved batch), or generalisation (on the metric's data): [T, T].  spot_checks: cells trained for real."""
        request = pb.EstimateMatrixRequest(study=self.name, generalisation=generalisation, spot_checks=spot_checks, seed=seed,
                                           metric=_metric(batches, evaluations, perplexity), options=_options(expansion, moments, "forward"),
                                           expected=_expected(expected))
        if base is not None:
            request.base.CopyFrom(_order(base))
        answer = None
        for answer in translated(self._transport.stream(self._stub.EstimateMatrix, request)):
            pass
        if answer is None or not answer.batches:
            raise errors.Unavailable("study: the matrix ended without a result")
        spots = np.asarray([(s.batch, s.position, s.estimated, s.retrained) for s in answer.spots], np.float64).reshape(-1, 4)
        return Matrix(np.asarray(answer.values).reshape(answer.batches, answer.batches), spots, answer.pearson, answer.spearman, answer.l1, answer.mse,
                      answer.seconds)

    def export(self, path: Union[str, pathlib.Path], order: Optional[Order] = None, *, trajectory: bool = False, format: str = "",
               expansion: Optional[int] = None, moments: str = "replay", expected: Optional[Mapping[str, Any]] = None) -> int:
        """Writes the estimated parameters of ``order`` (None: the reference run's own) to a file; returns its bytes.  trajectory: [P + 1, n], before
        every position and after the last.  format: safetensors or npy; "" = by the name."""
        path = pathlib.Path(path)
        kind = format or ("npy" if path.suffix == ".npy" else "safetensors")
        request = pb.ExportOrderRequest(study=self.name, trajectory=trajectory, format=_choice(pb.ExportOrderRequest.Format, "format", kind),
                                        options=_options(expansion, moments, "forward"), expected=_expected(expected))
        if order is not None:
            request.order.CopyFrom(_order(order))
        size, total = 0, -1
        partial = path.with_name(path.name + ".part")
        with open(partial, "wb") as file:
            for chunk in translated(self._transport.stream(self._stub.ExportOrder, request)):
                file.write(chunk.data)
                size, total = size + len(chunk.data), chunk.total_bytes
        if size != total:
            partial.unlink()
            raise errors.DataLoss(f"export: {size} of {total} bytes came")
        partial.replace(path)
        return size
