"""``python -m optod.studies NAME``: what ``optoctl reproduce NAME`` runs."""

import os
import sys

for _name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_name, "1")      # a run is one process on one core; small matrices gain nothing from threads

from optod.studies import adahessian, mkor, runner, scale, sgd_sai, trace, zo_bench

if __name__ == "__main__":
    if "trace" in sys.argv[1:2]:
        sys.exit(trace.main(sys.argv[2:]))
    if sys.argv[1:2] == ["fut"]:     # jobs of the server, not steps from here: nothing to plan or keep
        from optod.studies import fut
        sys.exit(fut.main(sys.argv[2:]))
    sys.exit(runner.main({study.NAME: study for study in (scale, sgd_sai, adahessian, mkor, zo_bench)}))
