"""Client of optod, an optimization server for gradients, scalars and words.

    import optod
    client = optod.connect()                                     # OPTOD_ADDRESS, OPTOD_TOKEN
    session = client.sessions.create("adamw", {"w": w}, lr=1e-3)
    w = session.tell_gradients({"w": grad}, return_values=True).values["w"]

Reading order: client, session, gradients (first order), worker and zo (zeroth order), recording (trace), errors.
"""

from optod import errors, zo
from optod.client import Client, connect
from optod.errors import OptodError
from optod.gradients import GradientStream
from optod.recording import node
from optod.results import TellResult
from optod.retry import RetryPolicy
from optod.session import Session
from optod.specs import Budget, Durability, Parameter, Schedule
from optod.worker import ZoStep, ZoWorker

__version__ = "0.1.0"
__all__ = ["Budget", "Client", "Durability", "GradientStream", "OptodError", "Parameter", "RetryPolicy", "Schedule", "Session", "TellResult",
           "ZoStep", "ZoWorker", "connect", "errors", "node", "zo"]
