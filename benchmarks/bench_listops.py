"""How fast ListOps expressions are drawn: one at a time beside whole forests.

    python benchmarks/bench_listops.py --out listops.json
    python benchmarks/bench_listops.py --quick            # does it run at all?

Three ways to the same samples, each the text with parentheses and the value: `recursive`, nested pairs made, measured,
written and evaluated by functions that call themselves, with NumPy's median, the way the Long-Range Arena (LRA) does;
`one by one`, this library's `grow`, `render` and `evaluate`; `forest`, its `draw_forest`, `texts` and `labels`. A fourth
makes token ids instead of text. They take turns within each repeat; figures are medians over repeats. Settings: `lra`,
500 to 2000 tokens without parentheses, and `task`, 50 to 500 tokens with them, as `vec_size=10` has it; 10 levels and
10 arguments in both. Streams of distinct samples run in processes of their own, which report their peak memory.
Measure on a machine that does nothing else.
"""
import argparse, json, os, platform, random, resource, statistics, subprocess, sys, time
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from tqdm.auto import tqdm

import ebt_toy
from ebt_toy.core import generator
from ebt_toy.generate import Limits, distinct, draw_forest, labels, numpy_generator, ood_limits, stream, texts, token_ids
from ebt_toy.listops import OPERATOR_P, OPERATORS, evaluate, grow, random_numbers, render, tree_length

SETTINGS = dict(lra=Limits(min_length=500, max_length=2000, parens=False), task=Limits())
SAMPLES = dict(lra=(40, 40, 2000), task=(150, 1000, 20_000))      # in a repeat: recursive, one by one, forest
STREAMS = dict(lra=100_000, task=1_000_000)                       # distinct samples with ids and labels
NAMES = list(OPERATORS)

# One at a time

def median(values): return int(np.median(values))
RESULT = {**OPERATORS, '[MED': median}

def nested(rng, limits, depth=1):
    "A random expression as nested pairs"
    if depth == limits.max_depth or rng.random() >= OPERATOR_P: return str(rng.randrange(10))
    pair = rng.choice(NAMES)
    for _ in range(rng.randint(2, limits.max_args)): pair = (pair, nested(rng, limits, depth + 1))
    return (pair, ']')

def length(pair): return 1 if isinstance(pair, str) else length(pair[0]) + length(pair[1])
def text(pair): return pair if isinstance(pair, str) else f'( {text(pair[0])} {text(pair[1])} )'

def value(pair):
    "A digit; for what is not yet complete its operator and the arguments so far"
    if isinstance(pair, str): return int(pair) if pair.isdigit() else pair
    left,right = value(pair[0]),value(pair[1])
    if isinstance(left, str): return left,[right]
    return RESULT[left[0]](left[1]) if right == ']' else (left[0], left[1] + [right])

def recursive(limits, seed):
    "Text and value, the way LRA makes them"
    rng,(fewest,most) = random.Random(seed),limits.plain
    while True:
        pair = nested(rng, limits)
        if fewest <= length(pair) <= most: yield text(pair),value(pair)

def one_by_one(limits, seed):
    "Text and value from this library's specification"
    draws,(fewest,most) = random_numbers(generator(seed)),limits.plain
    while True:
        tree = grow(draws, limits.max_depth, limits.max_args, 3*most - 2)
        if tree is not None and tree_length(tree, parens=False) >= fewest: yield render(tree),evaluate(tree)

# By turns

def timed(f):
    "Seconds that `f()` takes, and its result"
    start = time.perf_counter()
    result = f()
    return time.perf_counter() - start,result

def ways(name, limits, seed, scale):
    "Each way to make samples: how many, and the function that does"
    few,some,many = (max(2, round(n*scale)) for n in SAMPLES[name])
    forest = lambda write: (lambda f: (write(f), labels(f)))(draw_forest(many, numpy_generator(seed), **vars(limits)))
    return dict(recursive=(few, lambda: [*islice(recursive(limits, seed), few)]), one_by_one=(some, lambda: [*islice(one_by_one(limits, seed), some)]),
                forest=(many, lambda: forest(texts)), forest_ids=(many, lambda: forest(token_ids)))

def check(name, limits):
    "The samples of each way are whole and their values right"
    for source in (recursive(limits, 0), one_by_one(limits, 0)):
        for t,v in islice(source, 5): assert evaluate(t) == v
    forest = draw_forest(50, numpy_generator(0), **vars(limits))
    assert [evaluate(t) for t in texts(forest)] == labels(forest).tolist()

def measure(name, limits, repeats, scale):
    "Samples per second of each way, repeat by repeat"
    check(name, limits)
    for n,f in ways(name, limits, 10_000, scale/10).values(): f()
    speeds = {}
    for seed in tqdm(range(repeats), desc=name, leave=False, disable=not sys.stderr.isatty()):
        for way,(n,f) in ways(name, limits, seed, scale).items(): speeds.setdefault(way, []).append(n/timed(f)[0])
    return speeds

# Streams, in processes of their own

def resident():
    "Largest resident set of this process in bytes; Linux's own record, since `getrusage` there also counts the process that started it"
    try: return next(int(line.split()[1])*1024 for line in Path('/proc/self/status').read_text().splitlines() if line.startswith('VmHWM'))
    except (OSError, StopIteration): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss*(1 if sys.platform == 'darwin' else 1024)

def run_stream(name, n, chunk):
    "Distinct samples with ids and labels, nothing of which is kept: seconds, tokens, and memory before, at a tenth and at the end"
    found = dict(samples=0, tokens=0, memory_before=resident())
    def all_of_it():
        for forest in stream(n, 0, chunk, progress=True, **vars(SETTINGS[name])):
            ids,starts = token_ids(forest)
            labels(forest)
            found['samples'] += len(forest)
            found['tokens'] += len(ids)
            if found['samples'] >= n/10: found.setdefault('memory_tenth', resident())
    found['seconds'] = timed(all_of_it)[0]
    return found | dict(memory_peak=resident(), chunk=chunk)

def in_process(name, n, chunk):
    "The same in a fresh process"
    done = subprocess.run([sys.executable, os.path.abspath(__file__), '--job', f'{name}/{n}/{chunk}'], stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])

def beyond(n):
    "Seconds that test sets outside of training take"
    return {ood: timed(lambda: distinct(n, numpy_generator(0), set(), **vars(ood_limits(ood, Limits()))))[0] for ood in ('length', 'depth', 'args')}

# The report

def about():
    "Machine and versions"
    from ebt_toy.core import device_name
    return dict(cpu=device_name('cpu'), cores=os.cpu_count(), threads=torch.get_num_threads(), system=platform.platform(), python=platform.python_version(),
                numpy=np.__version__, torch=torch.__version__, ebt_toy=ebt_toy.__version__, load_average=os.getloadavg())

def rows_of(speeds):
    "Median speed of each way, and how it compares with the other two within each repeat"
    ratio = lambda way,base: statistics.median(a/b for a,b in zip(speeds[way], speeds[base]))
    return {way: dict(samples_per_s=statistics.median(s), times_recursive=ratio(way, 'recursive'), times_one_by_one=ratio(way, 'one_by_one')) for way,s in speeds.items()}

def lines(result):
    "All of it as text"
    yield from (f"{k}: {v}" for k,v in result['machine'].items())
    yield f"{'setting':8} {'way':12} {'samples/s':>10} {'x recursive':>12} {'x one by one':>13}"
    for name,rows in result['speed'].items():
        for way,r in rows.items(): yield f"{name:8} {way:12} {r['samples_per_s']:10,.0f} {r['times_recursive']:12.1f} {r['times_one_by_one']:13.1f}"
    for name,s in result['streams'].items():
        yield (f"stream {name}: {s['samples']:,} distinct samples, {s['tokens']:,} tokens, ids and labels, {s['seconds']:.1f} s; MiB before {s['memory_before']/2**20:.0f}, "
               f"after a tenth {s['memory_tenth']/2**20:.0f}, at the peak {s['memory_peak']/2**20:.0f}")
    yield f"test sets of {result['beyond_size']:,} beyond training: " + ', '.join(f"{k} {s:.2f} s" for k,s in result['beyond_s'].items())

def parse():
    "The options"
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('--repeats', type=int, default=7)
    p.add_argument('--chunk', type=int, default=1000, help='samples in a portion of the streams')
    p.add_argument('--quick', action='store_true', help='tiny, to see whether it runs; the figures mean nothing')
    p.add_argument('--out', type=Path, help='JSON file for all figures')
    p.add_argument('--job', help=argparse.SUPPRESS)
    return p.parse_args()

def main():
    "Measure, print, write"
    args = parse()
    if args.job:
        name,n,chunk = args.job.split('/')
        return print(json.dumps(run_stream(name, int(n), int(chunk))))
    repeats,scale,share,size = (2, 0.05, 0.002, 50) if args.quick else (args.repeats, 1, 1, 2000)
    machine = about()
    if machine['load_average'][0] > 0.5: print(f"WARNING: load average {machine['load_average'][0]:.2f}: something else is running, and these figures cannot be trusted", file=sys.stderr)
    raw = {name: measure(name, limits, repeats, scale) for name,limits in SETTINGS.items()}
    result = dict(machine=machine, settings={name: vars(limits) for name,limits in SETTINGS.items()}, repeats=repeats, speed={name: rows_of(s) for name,s in raw.items()},
                  streams={name: in_process(name, max(10, round(n*share)), args.chunk) for name,n in STREAMS.items()}, beyond_size=size, beyond_s=beyond(size), raw_samples_per_s=raw)
    print(*lines(result), sep='\n')
    if args.out: args.out.write_text(json.dumps(result, indent=1) + '\n')

if __name__ == '__main__': main()
