"""Train both models on ListOps of the Long-Range Arena's setting (500 to 2000 tokens, 10 levels, 10 arguments) and put them on the ladder.

    python benchmarks/train_listops.py --device cuda --minutes 25 --out lra.json    # as long as it takes, at most 25 minutes a model and seed
    python benchmarks/train_listops.py --device cpu --quick                         # does it run at all?

There are as many expressions as updates need, so that each is seen about once, as if drawn on the fly. Both models have
the same encoder, batches, learning rate and number of updates. Tested on the plain test set and on longer, deeper and
wider expressions, beside what shallow rules score on each.
"""
import argparse, json, platform, time
from functools import partial
from pathlib import Path

import torch

from ebt_toy import TokenEncoder, create_synthetic_data, listops_baselines, predict, train_energy_model, train_feedforward
from ebt_toy.core import device_name, get_device
from ebt_toy.update import count_params

LRA = dict(vec_size=120, min_length=1498)     # 500 to 2000 tokens without parentheses are 1498 to 5998 with them
KINDS = {None: 'plain', 'length': 'longer', 'depth': 'deeper', 'args': 'wider'}
QUICK = dict(vec_size=10, min_length=50, size_train=200, size_test=50, num_steps=4, batch_size=16, dim=16, layers=1, seeds=1, minutes=1.)

def time_limit(minutes):
    "A callback that ends training in good order, as Ctrl-C would, once the time is up"
    end = time.perf_counter() + 60*minutes
    def check(model, history):
        if time.perf_counter() > end: raise KeyboardInterrupt
    return check

def train(name, data, seed, a):
    "One trained model"
    encoder = lambda seed: TokenEncoder(a.dim, a.layers, seed=seed)
    shared = dict(num_steps=a.num_steps, batch_size=a.batch_size, lr=a.lr, seed=seed, encoder=encoder, eval_every=max(1, a.num_steps//50), callback=time_limit(a.minutes))
    f = train_energy_model if name == 'ebt' else partial(train_feedforward, activation='silu')
    return f(*data, **shared)

def score(model, dataset):
    "Accuracy on a data set"
    x,y = dataset.tensors
    return (predict(model, x).argmax(-1) == y).float().mean().item()

def main(argv=None):
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--device', default=None, help="cpu, cuda, ...; left out: CUDA when there is one")
    p.add_argument('--minutes', type=float, default=25., help="limit of training, a model and seed")
    p.add_argument('--size_train', type=int, default=300_000, help="expressions to train on")
    p.add_argument('--size_test', type=int, default=2000, help="expressions in each test set")
    p.add_argument('--num_steps', type=int, default=None, help="updates; left out: each expression is seen once")
    p.add_argument('--batch_size', type=int, default=32, help="expressions an update")
    p.add_argument('--lr', type=float, default=5e-4, help="Adam's learning rate")
    p.add_argument('--dim', type=int, default=128, help="numbers a token")
    p.add_argument('--layers', type=int, default=6, help="blocks of the encoder")
    p.add_argument('--seeds', type=int, default=1, help="models of each kind")
    p.add_argument('--out', type=Path, default=None, help="JSON file to write")
    p.add_argument('--quick', action='store_true', help="tiny sizes, to see whether it runs")
    p.set_defaults(**LRA)
    a = p.parse_args(argv)
    if a.quick: vars(a).update(QUICK)
    if a.num_steps is None: a.num_steps = a.size_train//a.batch_size
    device = get_device(a.device)
    make = partial(create_synthetic_data, 'listops', size_val=a.size_test, size_test=a.size_test, vec_size=a.vec_size, min_length=a.min_length)
    start = time.perf_counter()
    data = make(size_train=a.size_train, device=device)
    tests = {None: data.test_dataset} | {k: make(size_train=1, device=device, ood=k).test_dataset for k in KINDS if k}
    print(f"{a.size_train:,} expressions to train on and {len(tests)} test sets in {time.perf_counter() - start:.0f} s")
    results = dict(settings={k: v for k,v in vars(a).items() if k != 'out'}, device=device_name(device), torch=torch.__version__, python=platform.python_version(),
                   ladder={KINDS[k]: listops_baselines(data._replace(test_dataset=ds)) for k,ds in tests.items()}, models=[])
    for k,rungs in results['ladder'].items(): print(f"{k}: " + ', '.join(f"{rule} {v:.1%}" for rule,v in rungs.items()))
    for name in ('ffn', 'ebt'):
        for seed in range(a.seeds):
            m = train(name, data, seed, a)
            h,scores = m.history,{KINDS[k]: score(m, ds) for k,ds in tests.items()}
            results['models'].append(dict(model=name, seed=seed, status=h.status, updates=int(h['step'][-1]), seconds=h.seconds, weights=count_params(m), accuracy=scores))
            print(f"{name}, seed {seed}: {h.status} after {h['step'][-1]:,} updates, {h.seconds/60:.1f} min; " + ', '.join(f"{k} {v:.1%}" for k,v in scores.items()))
            if a.out: a.out.write_text(json.dumps(results, indent=2) + '\n')
    return results

if __name__ == '__main__': main()
