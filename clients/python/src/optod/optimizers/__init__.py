"""Optimizers of traced programs.  The server (OPTOD_ADDRESS, or a private one) renders the prompt, asks the model, reads its reply and keeps the versions.

    optimizer = OptoPrime(model.parameters())
    optimizer.zero_feedback()
    optimizer.backward(output, "should be larger")
    optimizer.step()

Names and behaviour are those of ``opto.optimizers`` (see optod.compat).
"""

from optod.optimizers.optimizer import AbstractOptimizer, Optimizer
from optod.optimizers.optoprime import OptoPrime
from optod.optimizers.optoprimemulti import OptoPrimeMulti
from optod.optimizers.optoprime_v2 import OptoPrimeV2
from optod.optimizers.opro import OPRO
from optod.optimizers.opro_v2 import OPROv2
from optod.optimizers.textgrad import TextGrad

OptoPrimeV1 = OptoPrime

__all__ = ["AbstractOptimizer", "Optimizer", "OptoPrime", "OptoPrimeV1", "OptoPrimeMulti", "OptoPrimeV2", "OPRO", "OPROv2", "TextGrad"]
