"""Handwritten digits by a PyTorch model whose optimizer lives on the server, stopped half-way and taken up again.

    python torch_digits.py [--address HOST:PORT] [--optimizer adamw] [--seed N] [--json]

The first half trains and keeps a checkpoint (a session's name and a version); the second starts from nothing but that, as another process would, and
the losses are those of a run that never stopped. Needs torch and scikit-learn.
"""

import argparse
import json
import sys

import optod
import optod.torch
import torch
from sklearn.datasets import load_digits
from torch import nn

STEPS, BATCH = 120, 128


def data(seed):
    images, labels = load_digits(return_X_y=True)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
    x, y = torch.tensor(images, dtype=torch.float32)[order] / 16, torch.tensor(labels)[order]
    return (x[:1347], y[:1347]), (x[1347:], y[1347:])


def start(args):
    """Model, optimizer and schedule, as every process makes them."""
    torch.manual_seed(args.seed)
    model = nn.Sequential(nn.Linear(64, 48), nn.Tanh(), nn.Linear(48, 10))
    matrices = [(name, p) for name, p in model.named_parameters() if p.ndim == 2]
    biases = [(name, p) for name, p in model.named_parameters() if p.ndim == 1]
    groups = [{"params": matrices}, {"params": biases, "weight_decay": 0.0}]
    opt = optod.torch.RemoteOptimizer(groups, args.optimizer, lr=args.lr, address=args.address, model=model, overlap=args.optimizer == "adamw")
    return model, opt, torch.optim.lr_scheduler.CosineAnnealingLR(opt, STEPS)


def train(model, opt, schedule, part, steps, seed):
    x, y = part
    losses = []
    for step in steps:
        rows = torch.randint(0, len(x), (BATCH,), generator=torch.Generator().manual_seed(1000 * seed + step))
        opt.zero_grad()
        loss = nn.functional.cross_entropy(model(x[rows]), y[rows])
        loss.backward()
        opt.step(loss=loss.item())
        schedule.step()
        losses.append(loss.item())
    return losses


def accuracy(model, part):
    with torch.no_grad():
        return (model(part[0]).argmax(1) == part[1]).float().mean().item()


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--address", help="HOST:PORT or unix:PATH; default OPTOD_ADDRESS, else 127.0.0.1:7070")
    parser.add_argument("--optimizer", default="adamw", choices=["adamw", "adam", "sgd", "scale", "muon", "lamb"])
    parser.add_argument("--lr", type=float, default=0.02)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", action="store_true", help="one JSON document on stdout")
    args = parser.parse_args()
    torch.set_num_threads(1)
    train_part, test_part = data(args.seed)
    half = STEPS // 2
    try:
        model, opt, schedule = start(args)
        before = accuracy(model, test_part)
        whole = train(model, opt, schedule, train_part, range(half), args.seed)
        checkpoint = {"optimizer": opt.checkpoint(), "schedule": schedule.state_dict()}
        whole += train(model, opt, schedule, train_part, range(half, STEPS), args.seed)
        way = opt.transport[0]
        opt.close()
        again, opt, schedule = start(args)
        opt.load_state_dict(checkpoint["optimizer"])             # parameters come with it
        schedule.load_state_dict(checkpoint["schedule"])
        resumed = train(again, opt, schedule, train_part, range(half, STEPS), args.seed)
        opt.close()
    except optod.errors.Unavailable as error:
        print(f"torch_digits: no server answers: {error}", file=sys.stderr)
        return 3
    same = resumed == whole[half:]
    result = {"accuracy_before": before, "accuracy": accuracy(again, test_part), "loss": whole[-1], "transport": way, "resumed_equal": same,
              "sessions": [place["session"] for place in checkpoint["optimizer"]["optod"]]}
    print(json.dumps(result) if args.json else f"accuracy {before:.3f} -> {result['accuracy']:.3f} in {STEPS} steps by {args.optimizer} over {way}; "
          f"resumed half-way: {'the same losses, bit for bit' if same else 'OTHER LOSSES'}")
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
