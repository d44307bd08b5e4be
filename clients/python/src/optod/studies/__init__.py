"""Small reproductions of the papers behind the optimizers, on this machine, through a server: ``optoctl reproduce NAME``.

    plan: settings x learning rates x seeds ──► runs (a process a core, kept in OUT/runs.jsonl) ──► table, curves, acceptance figures

    scale, sgd-sai   a character-level language model on tinyshakespeare     language_model.py, scale.py, sgd_sai.py
    adahessian       logistic regression, a small CNN on digits, a quadratic  adahessian.py
    mkor             an autoencoder; cost of factor updates by width          mkor.py
    trace            OptoPrime, OPRO, TextGrad beside Adam on random          trace.py: trace_numeric.py, arithmetic.py, trace_bbh.py,
                     arithmetic graphs; prompts on BIG-Bench Hard             model_server.py (a language model and a cassette)
    zo-bench         fine-tuning jobs: optimizers x schemes x tasks            zo_bench.py
    fut              estimates of another sample order, as jobs of a server   fut.py, fut_models.py, charts_orders.py

runner.py runs the gradient studies and zo-bench, trace.py and fut.py their own; report.py and charts.py serve all. Models and gradients are plain NumPy (models.py), so
nothing but the package is needed; every update is the server's. zo-bench trains in the server's own jobs (optod-worker).
"""
