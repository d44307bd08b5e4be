"""The cases of test_python_torch.py; imported only where PyTorch is."""

import copy

import numpy as np
import optod
import optod.torch
import pytest
import torch
import torch_reference as reference
from live_server import LiveServer
from torch import nn

torch.set_num_threads(1)
STEPS = 12


class Net(nn.Module):
    """Names that SCALE tells apart: an embedding, hidden matrices, a head, vectors."""

    def __init__(self, width=24, vocabulary=17):
        super().__init__()
        self.embed_tokens = nn.Embedding(vocabulary, width)
        self.mlp = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width)
        self.lm_head = nn.Linear(width, vocabulary)

    def forward(self, tokens):
        return self.lm_head(self.norm(torch.tanh(self.mlp(self.embed_tokens(tokens)))))


class Plain(nn.Module):
    """Linear and convolution layers with biases only."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3)
        self.fc = nn.Linear(4 * 36, 10)

    def forward(self, x):
        return self.fc(torch.tanh(self.conv(x)).flatten(1))


def net(kind=Net, dtype=torch.float32, seed=0):
    torch.manual_seed(seed)
    return kind().to(dtype)


def batch(step, kind=Net):
    generator = torch.Generator().manual_seed(1000 + step)
    if kind is Net:
        tokens = torch.randint(0, 17, (32,), generator=generator)
        return tokens, (tokens * 5 + 3) % 17
    return torch.randn(16, 1, 8, 8, generator=generator), torch.randint(0, 10, (16,), generator=generator)


def loss_of(model, step, kind=Net):
    x, y = batch(step, kind)
    if kind is not Net:
        x = x.to(next(model.parameters()).dtype)
    return nn.functional.cross_entropy(model(x), y)


def train(model, opt, steps, first=0, kind=Net, each=None):
    losses = []
    for step in range(first, first + steps):
        opt.zero_grad()
        loss = loss_of(model, step, kind)
        loss.backward()
        opt.step()
        if each:
            each(step)
        losses.append(loss.item())
    return losses


def same(a, b, rtol=0.0, atol=0.0):
    for (name, p), (_, q) in zip(a.named_parameters(), b.named_parameters()):
        if rtol == atol == 0:
            assert torch.equal(p, q), f"{name}: {(p - q).abs().max()}"
        else:
            torch.testing.assert_close(p, q, rtol=rtol, atol=atol, msg=lambda text: f"{name}: {text}")


# ---- the same as torch's own

TORCH = [
    ("sgd", torch.optim.SGD, dict(lr=0.5), {}),
    ("sgd", torch.optim.SGD, dict(lr=0.1, momentum=0.9), {}),
    ("sgd", torch.optim.SGD, dict(lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.01), {}),
    ("adam", torch.optim.Adam, dict(lr=0.01), {}),
    ("adamw", torch.optim.AdamW, dict(lr=0.01, weight_decay=0.1), {}),
]


@pytest.mark.parametrize("dtype,tolerance", [(torch.float32, 3e-6), (torch.float64, 1e-13)], ids=["float32", "float64"])
@pytest.mark.parametrize("name,local,hyper,_", TORCH, ids=[f"{row[0]}-{i}" for i, row in enumerate(TORCH)])
def test_as_torch(server, name, local, hyper, _, dtype, tolerance):
    ours, theirs = net(dtype=dtype), net(dtype=dtype)
    with optod.torch.RemoteOptimizer(ours, name, address=server.address, **hyper) as opt:
        a = train(ours, opt, STEPS)
        b = train(theirs, local(theirs.parameters(), **hyper, **({"foreach": False})), STEPS)
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=0)
        same(ours, theirs, tolerance * 30, tolerance * 30)
        assert opt.transport == ["shared-memory"]


def test_sgd_is_bit_equal_to_torch(server):
    """Without momentum and with a rate whose product is exact; at other rates torch rounds once (fused multiply-add), the server twice."""
    ours, theirs = net(), net()
    with optod.torch.RemoteOptimizer(ours, "sgd", lr=0.5, address=server.address) as opt:
        assert train(ours, opt, STEPS) == train(theirs, torch.optim.SGD(theirs.parameters(), lr=0.5, foreach=False), STEPS)
    same(ours, theirs)


# ---- the same as the papers' rules

RULES = [
    ("scale", Net, reference.Scale, dict(lr=0.02), {}),
    ("sgd-sai", Net, reference.SgdSai, dict(lr=0.003), {}),
    ("adahessian", Plain, reference.AdaHessian, dict(lr=0.1), {}),
    ("mkor", Plain, reference.Mkor, dict(lr=0.05, inv_freq=2), {}),
]


@pytest.mark.parametrize("name,kind,local,hyper,_", RULES, ids=[row[0] for row in RULES])
def test_as_the_papers_rule(server, name, kind, local, hyper, _):
    ours, theirs = net(kind), net(kind)
    remote = optod.torch.RemoteOptimizer(ours, name, address=server.address, seed=7, **hyper)
    rule = local(theirs.named_parameters(), **hyper)
    statistics = optod.torch.LayerStatistics(theirs) if name == "mkor" else None
    a, b = [], []
    for step in range(STEPS):
        for model, opt, losses in ((ours, remote, a), (theirs, rule, b)):
            opt.zero_grad()
            loss = loss_of(model, step, kind)
            loss.backward(create_graph=name == "adahessian")
            losses.append(loss.item())
        if name == "adahessian":
            found = optod.torch.hessian_z([p.grad for p in theirs.parameters()], list(theirs.parameters()), 7, step + 1)
            rule.step(hessian_z=dict(zip([n for n, _ in theirs.named_parameters()], found)))
        elif name == "mkor":
            rule.step(statistics=statistics.take())
        else:
            rule.step()
        remote.step()
    np.testing.assert_allclose(a, b, rtol=2e-5)
    same(ours, theirs, 1e-4, 1e-5)
    remote.close()


def test_update_each_needs_a_graph_on_refresh_steps_only(server):
    model = net(Plain)
    with optod.torch.RemoteOptimizer(model, "adahessian", lr=0.1, update_each=3, address=server.address) as opt:
        needed = []
        for step in range(7):
            opt.zero_grad()
            needed.append(opt.needs_graph)
            loss_of(model, step, Plain).backward(create_graph=opt.needs_graph)
            opt.step()
            assert all(p.grad is None or not p.grad.requires_grad for p in model.parameters())
    assert needed == [True, False, False, True, False, False, True]


def test_kfac_takes_rows(server):
    model = net(Plain)
    with optod.torch.RemoteOptimizer(model, "kfac", lr=0.05, factor_every=2, inv_every=2, address=server.address) as opt:
        losses = [loss.item() if hasattr(loss, "item") else loss for loss in train(model, opt, 6, kind=Plain)]
    assert all(np.isfinite(losses))


# ---- transports and forms

@pytest.mark.parametrize("where", ["tcp", "unix"])
@pytest.mark.parametrize("shared", [True, False], ids=["memory", "chunks"])
@pytest.mark.parametrize("overlap", [False, True], ids=["after", "overlap"])
def test_every_way_gives_the_same_bits(server, unix_server, where, shared, overlap):
    address = server.address if where == "tcp" else unix_server.address
    models = [net(), net()]
    ways = [dict(address=server.address, shared_memory=False), dict(address=address, shared_memory=shared, overlap=overlap)]
    losses = []
    for model, way in zip(models, ways):
        with optod.torch.RemoteOptimizer(model, "adamw", lr=0.01, **way) as opt:
            losses.append(train(model, opt, 6))
            assert opt.transport == ["shared-memory" if way["shared_memory"] else "chunks"]
    assert losses[0] == losses[1]
    same(*models)


def test_overlap_notices_second_passes_clipping_and_missing_gradients(server):
    def run(overlap):
        model = net()
        with optod.torch.RemoteOptimizer(model, "sgd", lr=0.1, address=server.address, overlap=overlap, shared_memory=False) as opt:
            for step in range(4):
                opt.zero_grad()
                loss_of(model, step).backward()
                if step == 1:
                    loss_of(model, step + 50).backward()                       # accumulation
                if step == 2:
                    nn.utils.clip_grad_norm_(model.parameters(), 0.01)         # in place
                if step == 3:
                    model.norm.weight.grad = None
                opt.step()
        return model
    same(run(True), run(False))


def test_parameters_without_gradient_stand_still(server):
    ours, theirs = net(), net()
    with optod.torch.RemoteOptimizer(ours, "adamw", lr=0.01, address=server.address) as opt:
        other = torch.optim.AdamW(theirs.parameters(), lr=0.01, foreach=False)
        for step in range(4):
            for model, o in ((ours, opt), (theirs, other)):
                o.zero_grad()
                loss_of(model, step).backward()
                if step % 2:
                    model.lm_head.weight.grad = None
                o.step()
    same(ours, theirs, 1e-5, 1e-6)


@pytest.mark.parametrize("shared", [True, False], ids=["memory", "chunks"])
def test_bf16_on_the_wire_keeps_float32_on_the_server(server, shared):
    model = net()
    with optod.torch.RemoteOptimizer(model, "sgd", lr=0.1, wire="bf16", shared_memory=shared, address=server.address) as opt:
        for step in range(3):
            before = {n: torch.from_numpy(v) for n, v in opt.sessions[0].pull().items()} if step else dict(model.named_parameters())
            before = {n: p.detach().clone() for n, p in before.items()}
            opt.zero_grad()
            loss_of(model, step).backward()
            grads = {n: p.grad.clone() for n, p in model.named_parameters()}
            opt.step()
            for name, value in opt.sessions[0].pull().items():
                want = before[name] - 0.1 * grads[name].bfloat16().float()
                torch.testing.assert_close(torch.from_numpy(value), want, rtol=1e-6, atol=1e-7)
                assert torch.equal(dict(model.named_parameters())[name], torch.from_numpy(value).bfloat16().float())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
def test_half_precision_parameters(server, dtype):
    model = net(dtype=dtype)
    with optod.torch.RemoteOptimizer(model, "adamw", lr=0.01, address=server.address) as opt:
        losses = train(model, opt, 6)
        for name, value in opt.sessions[0].pull().items():
            here = dict(model.named_parameters())[name].detach().view(torch.int16).numpy()
            np.testing.assert_array_equal(here, np.asarray(value).view(np.int16))
    assert np.isfinite(losses).all()


# ---- what a torch.optim.Optimizer does

SCHEDULERS = [
    ("StepLR", lambda o: torch.optim.lr_scheduler.StepLR(o, 3, 0.5)),
    ("CosineAnnealingLR", lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, STEPS)),
    ("LambdaLR from 0", lambda o: torch.optim.lr_scheduler.LambdaLR(o, lambda t: min(1.0, t / 4))),
    ("OneCycleLR", lambda o: torch.optim.lr_scheduler.OneCycleLR(o, 0.1, total_steps=STEPS + 1, cycle_momentum=False)),
]


@pytest.mark.parametrize("name,make", SCHEDULERS, ids=[row[0] for row in SCHEDULERS])
def test_schedulers_change_the_rate_of_the_next_step(server, name, make):
    ours, theirs = net(), net()
    with optod.torch.RemoteOptimizer(ours, "sgd", lr=0.5, address=server.address) as opt:
        local = torch.optim.SGD(theirs.parameters(), lr=0.5, foreach=False)
        a, b = make(opt), make(local)
        train(ours, opt, STEPS, each=lambda _: a.step())
        train(theirs, local, STEPS, each=lambda _: b.step())
        rates = [version.lr for version in opt.sessions[0].history()][1:]
    same(ours, theirs, 1e-5, 1e-6)
    assert len(set(rates)) > 2


def groups(model):
    decay = [(n, p) for n, p in model.named_parameters() if p.ndim > 1]
    rest = [(n, p) for n, p in model.named_parameters() if p.ndim <= 1]
    return [dict(params=decay, weight_decay=0.1), dict(params=rest, weight_decay=0.0, lr=0.02)]


def test_groups_have_their_own_options(server):
    ours, theirs = net(), net()
    with optod.torch.RemoteOptimizer(groups(ours), "adamw", lr=0.01, address=server.address) as opt:
        train(ours, opt, STEPS)
        assert [len(s.layout.names) for s in opt.sessions] == [3, 4]
        plain = [{**g, "params": [p for _, p in g["params"]]} for g in groups(theirs)]
        train(theirs, torch.optim.AdamW(plain, lr=0.01, foreach=False), STEPS)
    same(ours, theirs, 1e-5, 1e-6)


def test_a_group_may_have_another_optimizer_and_come_later(server):
    model = net()
    matrices = [(n, p) for n, p in model.named_parameters() if n == "mlp.weight"]
    rest = [(n, p) for n, p in model.named_parameters() if n != "mlp.weight"]
    with optod.torch.RemoteOptimizer(matrices, "muon", lr=0.02, address=server.address) as opt:
        opt.add_param_group(dict(params=rest, optimizer="adamw", lr=0.01))
        losses = train(model, opt, 30)
        assert [s.info.optimizer.name for s in opt.sessions] == ["muon", "adamw"]
    assert losses[-1] < losses[0] * 0.8


def test_closures(server):
    model = net()
    with optod.torch.RemoteOptimizer(model, "sgd", lr=0.1, address=server.address) as opt:
        def closure():
            opt.zero_grad()
            loss = loss_of(model, 0)
            loss.backward()
            return loss
        first, second = opt.step(closure), opt.step(closure)
        assert second < first
        assert [v.loss for v in opt.sessions[0].history()][1:] == [first.item(), second.item()]


# ---- checkpoints

def test_a_new_process_goes_on_bit_for_bit(server, tmp_path):
    whole = net()
    with optod.torch.RemoteOptimizer(groups(whole), "adamw", lr=0.01, address=server.address) as opt:
        schedule = torch.optim.lr_scheduler.StepLR(opt, 3, 0.5)
        train(whole, opt, 5, each=lambda _: schedule.step())
        torch.save({"opt": opt.state_dict(), "model": whole.state_dict(), "schedule": schedule.state_dict()}, tmp_path / "c.pt")
        want = train(whole, opt, 5, first=5, each=lambda _: schedule.step())
    again = net(seed=5)
    with optod.torch.RemoteOptimizer(groups(again), "adamw", lr=0.01, address=server.address) as opt:
        schedule = torch.optim.lr_scheduler.StepLR(opt, 3, 0.5)
        saved = torch.load(tmp_path / "c.pt", weights_only=True)
        again.load_state_dict(saved["model"])
        opt.load_state_dict(saved["opt"])
        schedule.load_state_dict(saved["schedule"])
        assert train(again, opt, 5, first=5, each=lambda _: schedule.step()) == want
    same(whole, again)
    cold = net(seed=5)
    cold.load_state_dict(saved["model"])
    with optod.torch.RemoteOptimizer(groups(cold), "adamw", lr=0.01, address=server.address) as opt:
        assert train(cold, opt, 5, first=5) != want


def test_checkpoint_pins_a_fork(server):
    model = net()
    durability = optod.Durability("on-checkpoint", snapshot_every=1000)
    with optod.torch.RemoteOptimizer(model, "adamw", lr=0.01, address=server.address, durability=durability) as opt:
        train(model, opt, 3)
        pinned = opt.checkpoint()
        at = copy.deepcopy(model)
        want = train(model, opt, 4, first=3)
        assert pinned["optod"][0]["session"] != opt.sessions[0].name
        opt.load_state_dict(pinned)
        same(model, at)
        assert train(model, opt, 4, first=3) == want


def test_a_session_is_taken_up_by_name(server):
    model, other = net(), net(seed=3)
    with optod.torch.RemoteOptimizer(model, "adamw", lr=0.01, address=server.address) as opt:
        train(model, opt, 3)
        name = opt.sessions[0].name
    with optod.torch.RemoteOptimizer(other, "adamw", lr=0.01, address=server.address, session=name) as opt:
        same(model, other)
        train(other, opt, 1, first=3)
        assert opt.sessions[0].refresh().seq == 4


# ---- what goes wrong

BAD_CONSTRUCTIONS = [
    ("unknown", dict(optimizer="adamx"), optod.errors.NotFound, "adam"),
    ("zeroth", dict(optimizer="zo-sgd"), ValueError, "is zeroth-order"),
    ("hyper", dict(optimizer="sgd", beta1=0.9), TypeError, "sgd has no hyperparameter beta1; it has"),
    ("range", dict(optimizer="sgd", lr=-1.0), optod.errors.InvalidArgument, "lr"),
    ("wire", dict(optimizer="sgd", wire="int8"), ValueError, "wire: 'int8'"),
    ("overlap", dict(optimizer="adahessian", overlap=True), ValueError, "known after backward only"),
]


@pytest.mark.parametrize("name,options,error,text", BAD_CONSTRUCTIONS, ids=[row[0] for row in BAD_CONSTRUCTIONS])
def test_bad_construction(server, name, options, error, text):
    with pytest.raises(error, match=text):
        optod.torch.RemoteOptimizer(net(), address=server.address, **options)


def test_integers_and_sparse_gradients_are_refused(server):
    with pytest.raises(ValueError, match="parameter 'p': dtype torch.complex64 cannot be stepped"):
        optod.torch.RemoteOptimizer([("p", torch.zeros(3, dtype=torch.complex64, requires_grad=True))], "sgd", address=server.address)
    table = nn.Embedding(5, 3, sparse=True)
    with optod.torch.RemoteOptimizer(table, "sgd", address=server.address) as opt:
        table(torch.tensor([1])).sum().backward()
        with pytest.raises(RuntimeError, match="parameter 'weight': its gradient is sparse"):
            opt.step()


def test_missing_gradients_graph_and_statistics(server):
    model = net(Plain)
    with optod.torch.RemoteOptimizer(model, "sgd", address=server.address) as opt:
        with pytest.raises(RuntimeError, match="no parameter has a gradient"):
            opt.step()
    with optod.torch.RemoteOptimizer(model, "adahessian", address=server.address) as opt:
        loss_of(model, 0, Plain).backward()
        with pytest.raises(RuntimeError, match="create_graph=True"):
            opt.step()
    with pytest.raises(ValueError, match="needs statistics of the layers; give the module"):
        optod.torch.RemoteOptimizer(model.named_parameters(), "mkor", address=server.address)
    with optod.torch.RemoteOptimizer(model, "mkor", address=server.address) as opt:
        for p in model.parameters():
            p.grad = torch.ones_like(p)
        with pytest.raises(RuntimeError, match="no layer statistics were seen"):
            opt.step()


def test_changed_parameters_and_hyperparameters_are_noticed(server):
    model = net()
    with optod.torch.RemoteOptimizer(model, "adamw", lr=0.01, address=server.address) as opt:
        train(model, opt, 1)
        with torch.no_grad():
            model.mlp.weight.clamp_(-0.1, 0.1)
        with pytest.raises(RuntimeError, match="'mlp.weight' was changed since the last step"):
            train(model, opt, 1)
        opt.rebase()
        train(model, opt, 1)
        opt.param_groups[0]["weight_decay"] = 0.5
        with pytest.raises(ValueError, match="weight_decay was changed from 0.01 to 0.5"):
            train(model, opt, 1)


def test_nan_changes_nothing(server):
    model = net()
    with optod.torch.RemoteOptimizer(model, "adamw", lr=0.01, address=server.address) as opt:
        train(model, opt, 2)
        before = copy.deepcopy(model)
        loss_of(model, 9).backward()
        model.mlp.weight.grad[0, 0] = float("nan")
        with pytest.raises(optod.errors.InvalidArgument, match="mlp.weight: element 0 is NaN"):
            opt.step()
        same(model, before)
        train(model, opt, 1, first=2)
        assert opt.sessions[0].refresh().seq == 3


def test_a_closed_session_says_so(server):
    model = net()
    with optod.torch.RemoteOptimizer(model, "sgd", lr=0.1, address=server.address) as opt:
        train(model, opt, 1)
        opt.sessions[0].update(state="closed")
        with pytest.raises(optod.errors.FailedPrecondition, match="is closed"):
            train(model, opt, 1)


def test_somebody_else_moved_the_session(server):
    model = net()
    with optod.torch.RemoteOptimizer(model, "sgd", lr=0.1, address=server.address) as opt:
        train(model, opt, 2)
        opt.sessions[0].rollback(1)
        with pytest.raises(optod.errors.Aborted, match="base_version: 2 is not the head 1"):
            train(model, opt, 1)
        with pytest.raises(optod.errors.Aborted, match="the head is version 1, the parameters here are of version 2; resync"):
            train(model, opt, 1)
        opt.resync()
        assert opt.sessions[0].head_version == 1
        train(model, opt, 1)


def test_load_state_dict_refuses_what_is_not_its_own(server):
    model = net()
    with optod.torch.RemoteOptimizer(model, "adamw", lr=0.01, address=server.address) as opt:
        train(model, opt, 1)
        state = opt.state_dict()
        with pytest.raises(ValueError, match="no state of a RemoteOptimizer"):
            opt.load_state_dict(torch.optim.AdamW(model.parameters()).state_dict())
    with optod.torch.RemoteOptimizer(model, "adamw", lr=0.01, weight_decay=0.3, address=server.address) as opt:
        with pytest.raises(ValueError, match="hyperparameters differ: weight_decay 0.01 there, 0.3 here"):
            opt.load_state_dict(state)
    with optod.torch.RemoteOptimizer(model, "sgd", lr=0.01, address=server.address) as opt:
        with pytest.raises(ValueError, match="a group of adamw; this one is sgd"):
            opt.load_state_dict(state)


# ---- servers that go away

@pytest.mark.parametrize("how", ["kill", "stop"])
@pytest.mark.parametrize("shared", [True, False], ids=["memory", "chunks"])
def test_a_restart_between_steps_is_not_noticed(own_server, how, shared):
    ours, theirs = net(), net()
    with optod.torch.RemoteOptimizer(ours, "adamw", lr=0.01, address=own_server.address, shared_memory=shared) as opt:
        a = train(ours, opt, 4)
        own_server.kill() if how == "kill" else own_server.stop()
        own_server.start()
        a += train(ours, opt, 4, first=4)
        with optod.torch.RemoteOptimizer(theirs, "adamw", lr=0.01, address=own_server.address) as other:
            assert a == train(theirs, other, 8)
        assert opt.sessions[0].refresh().seq == 8
    same(ours, theirs)


def test_an_answer_that_is_lost_does_not_step_twice(server):
    model, other = net(), net()
    with optod.torch.RemoteOptimizer(model, "adamw", lr=0.01, address=server.address, shared_memory=False) as opt:
        train(model, opt, 2)
        channel = opt._members[0].rule.stream._channel
        read, lost = channel.read, []

        def read_nothing():
            answer = read()
            if answer.WhichOneof("message") == "applied" and not lost:
                lost.append(answer.applied.seq)
                raise optod.errors.Unavailable("the answer is lost")
            return answer
        channel.read = read_nothing
        train(model, opt, 2, first=2)
        assert lost == [3] and opt.sessions[0].refresh().seq == 4
    with optod.torch.RemoteOptimizer(other, "adamw", lr=0.01, address=server.address) as opt:
        train(other, opt, 4)
    same(model, other)


def test_steps_that_were_not_durable_are_named_and_resync_goes_on(own_server):
    model = net()
    durability = optod.Durability("every-n", n=3)
    with optod.torch.RemoteOptimizer(model, "adamw", lr=0.01, address=own_server.address, durability=durability) as opt:
        train(model, opt, 5)
        assert opt.results[0].durable_version <= 3
        own_server.kill()
        own_server.start()
        with pytest.raises(optod.torch.LostSteps, match="came back at step 3; 2 later steps were acknowledged but not yet durable"):
            train(model, opt, 1, first=5)
        with pytest.raises(optod.torch.LostSteps, match="the server is at step 3, the parameters here are of step 5; resync"):
            train(model, opt, 1, first=5)
        opt.resync()
        assert opt.sessions[0].head_version == 3
        train(model, opt, 3, first=3)
        assert opt.sessions[0].refresh().seq == 6


# ---- curvature and statistics by themselves

def test_hutchinson_is_the_diagonal_in_the_mean(server):
    """A quadratic 0.5 p'Ap: the mean of z * (A z) over draws goes to diag(A), and one draw's deviation is the off-diagonal's."""
    torch.manual_seed(0)
    root = torch.randn(6, 6, dtype=torch.float64)
    a = root @ root.T
    p = torch.zeros(6, dtype=torch.float64, requires_grad=True)
    (g,) = torch.autograd.grad(0.5 * p @ a @ p, p, create_graph=True)
    mean = optod.torch.hessian_z([g], [p], seed=3, step=1, samples=4096)[0]
    deviation = torch.sqrt((a**2).sum(dim=1) - a.diagonal()**2) / 64
    assert ((mean - a.diagonal()).abs() < 5 * deviation).all()
    assert ((mean / a.diagonal() - 1).abs() < 0.05).all()


def test_signs_are_a_function_of_seed_step_tensor_and_sample():
    like = torch.zeros(1000)
    first = optod.torch.rademacher(1, 2, 3, 0, like)
    assert set(first.tolist()) == {-1.0, 1.0} and abs(first.mean()) < 0.15
    assert torch.equal(first, optod.torch.rademacher(1, 2, 3, 0, like))
    for other in ((2, 2, 3, 0), (1, 3, 3, 0), (1, 2, 4, 0), (1, 2, 3, 1)):
        assert not torch.equal(first, optod.torch.rademacher(*other, like))


def test_statistics_are_the_definitions():
    model = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3))
    means, rows = optod.torch.LayerStatistics(model, clipping=0.5), optod.torch.LayerStatistics(model, rows=True)
    x = torch.randn(7, 2, 5)
    hidden = torch.tanh(model[0](x).detach())
    model(x)                                        # no backward: forgotten
    y = model(x)
    y.retain_grad()
    (y.square().sum(-1).mean()).backward()
    got, full = means.take(), rows.take()
    assert sorted(got) == ["act/0", "act/2", "pgrad/0", "pgrad/2"]
    torch.testing.assert_close(got["act/0"], x.reshape(14, 5).clamp(-0.5, 0.5).mean(0))
    torch.testing.assert_close(got["act/2"], hidden.reshape(14, 4).clamp(-0.5, 0.5).mean(0))
    torch.testing.assert_close(got["pgrad/2"], (14 * y.grad.reshape(14, 3)).clamp(-0.5, 0.5).mean(0))
    torch.testing.assert_close(full["pgrad/2"], y.grad.reshape(14, 3))
    torch.testing.assert_close(full["act/0"], x.reshape(14, 5))
    with pytest.raises(RuntimeError, match="layer '0': no backward pass"):
        means.take(["0"])
    with torch.no_grad():
        model(x)
    assert means.take() == {}


def test_statistics_of_a_convolution():
    conv = nn.Conv2d(2, 3, 3, padding=1, stride=2)
    stats = optod.torch.LayerStatistics(nn.Sequential(conv), clipping=0)
    x = torch.randn(4, 2, 6, 6)
    y = stats.layers["0"](x)
    y.retain_grad()
    y.square().sum((1, 2, 3)).mean().backward()
    got = stats.take()
    patches = nn.functional.unfold(x, 3, padding=1, stride=2)
    torch.testing.assert_close(got["act/0"], patches.mean(2).mean(0))
    torch.testing.assert_close(got["pgrad/0"], (4 * y.grad.sum((2, 3)) / 9).mean(0))
    # With one place an image the outer product of the means of one image is its gradient.
    assert got["act/0"].shape == (18,) and got["pgrad/0"].shape == (3,)


def test_the_example_resumes(server):
    import json
    import subprocess
    import sys
    from live_server import ROOT
    example = ROOT / "clients" / "python" / "examples" / "torch_digits.py"
    done = subprocess.run([sys.executable, str(example), "--address", server.address, "--json"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["resumed_equal"] and result["accuracy"] > 0.9 > result["accuracy_before"]
