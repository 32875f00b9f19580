"""How long training takes: the plain loop most people write beside this library's, for one seed and for many.

    python benchmarks/bench_training.py                    # on CUDA where there is one
    python benchmarks/bench_training.py --device cpu --seeds 1 8 32 100 --quickstart --out cpu.json
    python benchmarks/bench_training.py --quick            # does it run at all?
    python benchmarks/bench_training.py --jax --quickstart # beside what a JAX user would write; needs jax and optax

All variants take turns within each repeat, so that whatever slows the machine down meets them alike. Each figure is
the median over repeats. What is measured in a process of its own: cold and warm compiling, peak memory, and, with
`--quickstart`, the whole default comparison. Measure on a machine that does nothing else.
"""
import argparse, importlib.util, json, os, platform, resource, statistics, subprocess, sys, tempfile, time
from contextlib import closing, contextmanager
from functools import partial
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader

import ebt_toy
from ebt_toy import EBT, EnergyFunction, FeedForward, create_synthetic_data
from ebt_toy.core import device_name, get_device
from ebt_toy.update import count_params
from ebt_toy.engine import update_work, updates
from ebt_toy.runner import default_config
from ebt_toy.budget import threads_for

TASK,VEC_SIZE,SIZE_TRAIN = 'add',10,10_000
CONFIGS = {m: default_config(m) for m in ('ebt', 'ffn')}       # batch size, inner steps, width and lr, as users get them
BUDGET = dict(ebt=10_000, ffn=50_000)                          # updates of the default comparison
QUICK = dict(seeds=[1, 2], repeats=2, updates=6)
WARM_UP = 3                                                    # updates that are not timed

# The plain loop

class Plain(nn.Module):
    "Three hidden layers, the way one would write them"
    def __init__(self, d_in, d_out, latent_dim, act):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(d_in, latent_dim), act(), nn.Linear(latent_dim, latent_dim), act(), nn.Linear(latent_dim, latent_dim), act(), nn.Linear(latent_dim, d_out))
    def forward(self, *parts): return self.net(torch.cat(parts, dim=-1))

def forever(loader):
    "Batches, pass after pass"
    while True: yield from loader

def plain_ebt(data, device, batch_size, lr, latent_dim, n_optimization_steps, step_size, **_):
    "Yields after each update of an energy-based model in plain PyTorch"
    energy = Plain(data.input_dim + data.output_dim, 1, latent_dim, nn.SiLU).to(device)
    opt = torch.optim.Adam(energy.parameters(), lr=lr)
    for x,target in forever(DataLoader(data.train_dataset, batch_size=batch_size, shuffle=True)):
        y = torch.randn_like(target)
        for k in range(n_optimization_steps):
            y = y.detach().requires_grad_()
            slope, = torch.autograd.grad(energy(x, y).sum(), y, create_graph=k == n_optimization_steps - 1)
            y = y - step_size*slope
        loss = F.mse_loss(y, target)
        opt.zero_grad()
        loss.backward()
        opt.step()
        yield

def plain_ffn(data, device, batch_size, lr, latent_dim, **_):
    "Yields after each update of a feedforward network in plain PyTorch"
    model = Plain(data.input_dim, data.output_dim, latent_dim, nn.ReLU).to(device)
    opt = torch.optim.Adam(model.parameters(), lr=lr)
    for x,target in forever(DataLoader(data.train_dataset, batch_size=batch_size, shuffle=True)):
        loss = F.mse_loss(model(x), target)
        opt.zero_grad()
        loss.backward()
        opt.step()
        yield

PLAIN = dict(ebt=plain_ebt, ffn=plain_ffn)

# Ours

def build(name, data, device, seed):
    "One of our models with default settings"
    c = CONFIGS[name]
    if name == 'ffn': return FeedForward(data.input_dim, data.output_dim, c['latent_dim'], c['activation'], seed).to(device)
    return EBT(EnergyFunction(data.input_dim, data.output_dim, c['latent_dim'], seed), data.output_dim, c['n_optimization_steps'], c['step_size']).to(device)

def ours(name, data, device, seeds, compile):
    "Yields after each update of this library's, for any number of seeds"
    models,c = [build(name, data, device, s) for s in range(seeds)],CONFIGS[name]
    return updates(models, *data.train_dataset.tensors, c['batch_size'], c['lr'], F.mse_loss, list(range(seeds)), compile)

class Variant(NamedTuple):
    "One way to train one model"
    model: str   # 'ebt' or 'ffn'
    kind: str    # 'plain', 'eager' or 'compiled'
    seeds: int   # Trained at once

def variants(models, seeds):
    "All that is compared: plain and eager at one seed, compiled at every number of seeds"
    return [v for m in models for v in (Variant(m, 'plain', 1), Variant(m, 'eager', 1), *(Variant(m, 'compiled', n) for n in seeds))]

def stream_of(v, data, device):
    "The updates of a variant"
    return PLAIN[v.model](data, device, **CONFIGS[v.model]) if v.kind == 'plain' else ours(v.model, data, device, v.seeds, v.kind == 'compiled')

@contextmanager
def conditions(v, data):
    "The thread rule of `fit` for ours, PyTorch's default for the plain loop; and gradient mode, which a stream that waits must not set for the others"
    work = float('inf') if v.kind == 'plain' else v.seeds*count_params(build(v.model, data, 'cpu', 0))*CONFIGS[v.model]['batch_size']
    with threads_for(work), torch.set_grad_enabled(v.kind != 'compiled'): yield

# Clocks

def make_data(device): return create_synthetic_data(TASK, SIZE_TRAIN, vec_size=VEC_SIZE, device=device)

def sync(device):
    "Wait for the GPU, where there is one"
    if torch.device(device).type == 'cuda': torch.cuda.synchronize(device)

def timed(f, device):
    "Seconds that `f()` takes"
    sync(device)
    start = time.perf_counter()
    f()
    sync(device)
    return time.perf_counter() - start

def advance(stream, n):
    "Make `n` updates"
    for _ in islice(stream, n): pass

def updates_a_repeat(v, wanted):
    "Fewer updates for many seeds, since each takes longer"
    return max(2, round(wanted/v.seeds**0.5)) if v.kind == 'compiled' else wanted

def product_seconds(name, threads, n, device):
    "Seconds a product of batch and hidden layer takes, with so many threads"
    width,before = CONFIGS[name]['latent_dim'],torch.get_num_threads()
    a,b = torch.randn(CONFIGS[name]['batch_size'], width, device=device),torch.randn(width, width, device=device)
    out = a @ b
    torch.set_num_threads(threads)
    try: return timed(lambda: [torch.mm(a, b, out=out) for _ in range(n)], device)/n
    finally: torch.set_num_threads(before)

def product_flops(name): return 2*CONFIGS[name]['batch_size']*CONFIGS[name]['latent_dim']**2

def measure(chosen, data, device, repeats, wanted, products=2000):
    "Seconds an update of every variant, and seconds a product, by turns"
    streams = {v: stream_of(v, data, device) for v in chosen}
    floors = [(m, t) for m in dict.fromkeys(v.model for v in chosen) for t in dict.fromkeys((1, torch.get_num_threads()))]
    for v,s in streams.items():
        with conditions(v, data): advance(s, WARM_UP)
    seconds,product = {v: [] for v in chosen},{f: [] for f in floors}
    for r in range(repeats):
        for v,s in streams.items():
            n = updates_a_repeat(v, wanted)
            with conditions(v, data):
                advance(s, 1)                     # the last variant's threads and caches are not this one's
                seconds[v].append(timed(partial(advance, s, n), device)/n)
        for f in floors: product[f].append(product_seconds(*f, products, device))
        print(f"repeat {r + 1} of {repeats}", file=sys.stderr)
    for v,s in streams.items():
        with conditions(v, data): s.close()
    return seconds,product

# Processes of their own

def resident():
    "Largest resident set of this process in bytes; Linux's own record, since `getrusage` there also counts the process that started it"
    try: return next(int(line.split()[1])*1024 for line in Path('/proc/self/status').read_text().splitlines() if line.startswith('VmHWM'))
    except (OSError, StopIteration): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss*(1 if sys.platform == 'darwin' else 1024)

def peak(device):
    "Peak memory of this process in bytes: on a GPU what PyTorch allocated there"
    return torch.cuda.max_memory_allocated(device) if torch.device(device).type == 'cuda' else resident()

def probe(v, device):
    "What a fresh process finds: time to the first update, and memory before and at the peak"
    data = make_data(device)
    sync(device)
    before,start = peak(device),time.perf_counter()
    with conditions(v, data), closing(stream_of(v, data, device)) as stream:      # which compiles
        next(stream)
        sync(device)
        first = time.perf_counter() - start
        advance(stream, WARM_UP)
        sync(device)
    return dict(first_update_s=first, memory_before=before, memory_peak=peak(device))

def quickstart(device, tiny, workers=1):
    "The default comparison, without its report; or a tiny one"
    few = {f'{m}_config': dict(num_steps=QUICK['updates']) for m in PLAIN} if tiny else {}
    ebt_toy.run_main(device=device, report=None, progress=False, workers=workers, **few)
    return {}

def in_process(job, cache, device):
    "A job in a fresh process with its own compiler cache: what it found, and its wall-clock time from start to end"
    start = time.perf_counter()
    done = subprocess.run([sys.executable, os.path.abspath(__file__), '--device', str(device), '--job', job], stdout=subprocess.PIPE, text=True, check=True,
                          env=os.environ | dict(TORCHINDUCTOR_CACHE_DIR=cache))
    return json.loads(done.stdout.splitlines()[-1]) | dict(wall_s=time.perf_counter() - start)

def cold_and_warm(job, device, times=2):
    "The same job as often in fresh processes that share a compiler cache, empty at first"
    with tempfile.TemporaryDirectory(prefix='bench-cache-') as cache: return [in_process(job, cache, device) for _ in range(times)]

def probes(v, device): return cold_and_warm(f'{v.model}/{v.kind}/{v.seeds}', device, 1 + (v.kind == 'compiled'))

def run_job(job, device):
    "What a fresh process is asked to do; the answer is its last line"
    if job.split('/')[0] in ('quickstart', 'tiny'):
        what,workers = (job + '/1').split('/')[:2]
        return print(json.dumps(quickstart(device, what == 'tiny', workers if workers == 'auto' else int(workers))))
    model,kind,seeds = job.split('/')
    print(json.dumps(probe(Variant(model, kind, int(seeds)), device)))

# JAX

RIVAL = Path(__file__).with_name('jax_rival.py')

def need_jax():
    "End with a line that says what to install"
    missing = [m for m in ('jax', 'optax') if importlib.util.find_spec(m) is None]
    if missing: raise SystemExit(f"--jax needs {' and '.join(missing)}: pip install jax optax (perhaps in an environment of its own, with this package)")

def rival(*args, threads, cache=None, **options):
    "A process that runs the rival on so many cores"
    cores = sorted(os.sched_getaffinity(0))[:threads]
    kept = dict(JAX_COMPILATION_CACHE_DIR=cache, JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS='0') if cache else {}
    return subprocess.Popen([sys.executable, RIVAL, *map(str, args)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=os.environ | dict(JAX_PLATFORMS='cpu') | kept,
                            preexec_fn=partial(os.sched_setaffinity, 0, cores), **options)

class JaxVariant(NamedTuple):
    "One way in which JAX trains one model"
    model: str
    threads: int
    seeds: int

def measure_jax(models, seeds, data, repeats, wanted):
    "Seconds of the first call, and seconds an update of all seeds, of JAX and ours by turns"
    ours_ = [Variant(m, 'compiled', n) for m in models for n in seeds]
    theirs = [JaxVariant(m, t, n) for m in models for n in seeds for t in dict.fromkeys((1, len(os.sched_getaffinity(0))))]
    first,seconds,streams,procs = {},{v: [] for v in ours_ + theirs},{},{}
    for v in theirs:
        procs[v] = rival('serve', v.model, v.seeds, updates_a_repeat(Variant(v.model, 'compiled', v.seeds), wanted), threads=v.threads)
        first[v] = float(procs[v].stdout.readline())
    for v in ours_:
        first[v],streams[v] = [p['first_update_s'] for p in probes(v, 'cpu')],stream_of(v, data, 'cpu')
        with conditions(v, data): advance(streams[v], WARM_UP)
    for r in range(repeats):
        for v in seconds:
            if v in procs:
                print(1, file=procs[v].stdin, flush=True)
                seconds[v].append(float(procs[v].stdout.readline())/updates_a_repeat(Variant(v.model, 'compiled', v.seeds), wanted))
                continue
            n = updates_a_repeat(v, wanted)
            with conditions(v, data):
                advance(streams[v], 1)
                seconds[v].append(timed(partial(advance, streams[v], n), 'cpu')/n)
        print(f"JAX, repeat {r + 1} of {repeats}", file=sys.stderr)
    for p in procs.values(): p.communicate()
    for v,s in streams.items():
        with conditions(v, data): s.close()
    return first,seconds

def jax_report(first, seconds):
    "Milliseconds per update and seed, and the first call"
    threads = sorted({v.threads for v in seconds if isinstance(v, JaxVariant)})
    head = ['model', 'seeds', *(f'JAX, {t} thread{"s"*(t > 1)}: ms' for t in threads), 'ours: ms', *(f'JAX, {t} thr.: 1st s' for t in threads), 'ours: 1st cold s', 'ours: 1st warm s']
    ms = lambda v: 1e3*statistics.median(seconds[v])/v.seeds
    def row(v):
        others = [JaxVariant(v.model, t, v.seeds) for t in threads]
        return [v.model, v.seeds, *map(ms, others), ms(v), *(first[o] for o in others), *first[v]]
    return "Milliseconds per update and seed; seconds of the first call\n" + table(head, [row(v) for v in seconds if isinstance(v, Variant)])

def quickstart_jax(quick):
    "Seconds of the default comparison from start to end: ours in one process and in several, and JAX's; each with an empty cache and again"
    def theirs(threads, cache):
        start,fraction = time.perf_counter(),[0.01]*quick
        with rival('quickstart', *fraction, threads=threads, cache=cache) as p: p.communicate()
        return time.perf_counter() - start
    found = {}
    for workers in ('1', 'auto'):
        found[f'ours, workers={workers}'] = [r['wall_s'] for r in cold_and_warm(f'{"tiny" if quick else "quickstart"}/{workers}', 'cpu')]
    for t in dict.fromkeys((1, len(os.sched_getaffinity(0)))):
        with tempfile.TemporaryDirectory(prefix='bench-jax-') as cache: found[f'JAX, {t} thread{"s"*(t > 1)}'] = [theirs(t, cache) for _ in range(2)]
    return found

def quickstart_jax_report(found): return "Default comparison, seconds from start to end\n" + table(['', 'cold', 'warm'], [[k, *v] for k,v in found.items()])

# The report

def row_of(v, seconds, product, found, data):
    "All figures of one variant"
    s,plain = statistics.median(seconds[v]),statistics.median(seconds[Variant(v.model, 'plain', 1)])
    work = update_work(build(v.model, data, data.train_dataset.tensors[0].device, 0), *data.train_dataset.tensors, CONFIGS[v.model]['batch_size'], F.mse_loss)
    floors = {t: work.flops*statistics.median(p)/product_flops(v.model) for (m,t),p in product.items() if m == v.model}
    return v._asdict() | dict(ms=1e3*s, updates_per_s=1/s, ms_a_seed=1e3*s/v.seeds, budget_s_a_seed=s/v.seeds*BUDGET[v.model], times_plain=plain*v.seeds/s,
        flops=work.flops, floor_ms={t: 1e3*f for t,f in floors.items()}, times_floor={t: s/v.seeds/f for t,f in floors.items()},
        first_cold_s=found[0]['first_update_s'], first_warm_s=found[1]['first_update_s'] if len(found) > 1 else None,
        peak_mib=found[-1]['memory_peak']/2**20, grown_mib=(found[-1]['memory_peak'] - found[-1]['memory_before'])/2**20)

def cell(x): return '-' if x is None else x if isinstance(x, str) else str(x) if isinstance(x, int) else f'{x:.3g}' if abs(x) < 1000 else f'{x:,.0f}'

def table(head, rows):
    "Aligned plain text"
    lines = [head] + [[cell(x) for x in r] for r in rows]
    widths = [max(map(len, column)) for column in zip(*lines)]
    return '\n'.join('  '.join(x.rjust(w) for x,w in zip(line, widths)) for line in lines)

def report(rows):
    "The table of all variants"
    threads = list(rows[0]['floor_ms'])
    head = ['model', 'kind', 'seeds', 'ms/update', 'updates/s', 'ms/update/seed', 'budget s/seed', 'speed-up a seed', *(f'x floor ({t} thr.)' for t in threads), '1st cold s', '1st warm s', 'peak MiB', 'grown MiB']
    keys = ['model', 'kind', 'seeds', 'ms', 'updates_per_s', 'ms_a_seed', 'budget_s_a_seed', 'times_plain']
    return table(head, [[*(r[k] for k in keys), *(r['times_floor'][t] for t in threads), *(r[k] for k in ('first_cold_s', 'first_warm_s', 'peak_mib', 'grown_mib'))] for r in rows])

def floor_lines(rows):
    "What an update would take if it were nothing but matrix products"
    return [f"{r['model']}: {r['flops']/1e6:.4g} MFLOP an update; floor " + ', '.join(f"{f:.3g} ms at {r['flops']/f/1e6:.3g} GFLOP/s ({t} thread{'s'*(t > 1)})" for t,f in r['floor_ms'].items()) for r in rows if r['kind'] == 'plain']

def compare_quickstart(rows, device, quick):
    "The whole default comparison: real runs in fresh processes against the plain loops, extrapolated"
    plain = {r['model']: r['budget_s_a_seed'] for r in rows if r['kind'] == 'plain'}
    cold,warm = (r['wall_s'] for r in cold_and_warm('tiny' if quick else 'quickstart', device))
    return dict(plain_extrapolated_s=plain, plain_total_s=sum(plain.values()), run_main_cold_s=cold, run_main_warm_s=warm)

def quickstart_lines(q):
    "The default comparison in words"
    parts = ' + '.join(f"{s:.1f} s ({m}: median x {BUDGET[m]:,} updates)" for m,s in q['plain_extrapolated_s'].items())
    ratio = lambda k: f"{q[k]:.1f} s, {q['plain_total_s']/q[k]:.2f} times as fast"
    return [f"Default comparison, plain loops, EXTRAPOLATED, without evaluation or start-up: {parts} = {q['plain_total_s']:.1f} s",
            f"Default comparison, run_main() in a fresh process, import and compiling included: empty cache {ratio('run_main_cold_s')}; cache found {ratio('run_main_warm_s')}"]

def about(device):
    "Machine and versions"
    return dict(device=device_name(device), cpu=device_name('cpu'), cores=os.cpu_count(), threads=torch.get_num_threads(), gpu=torch.cuda.get_device_name(device) if torch.device(device).type == 'cuda' else None,
                system=platform.platform(), python=platform.python_version(), torch=torch.__version__, ebt_toy=ebt_toy.__version__, load_average=os.getloadavg())

def parse():
    "The options"
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('--device', help='left out: CUDA where there is one')
    p.add_argument('--seeds', type=int, nargs='+', help='numbers of seeds to train at once, compiled; left out: 1 8 32, and 256 on a GPU')
    p.add_argument('--repeats', type=int, default=7)
    p.add_argument('--updates', type=int, default=100, help='timed in each repeat; divided by the square root of the seeds')
    p.add_argument('--models', nargs='+', choices=list(PLAIN), default=list(PLAIN))
    p.add_argument('--quickstart', action='store_true', help='also time the whole default comparison, twice')
    p.add_argument('--jax', action='store_true', help='instead of the plain loops, beside JAX on the CPU, by turns')
    p.add_argument('--quick', action='store_true', help='tiny, to see whether it runs; the figures mean nothing')
    p.add_argument('--out', type=Path, help='JSON file for all figures')
    p.add_argument('--job', help=argparse.SUPPRESS)
    return p.parse_args()

def main():
    "Measure, print, write"
    args = parse()
    device = get_device(args.device)
    if args.job: return run_job(args.job, device)
    seeds = args.seeds or [1, 8, 32] + [256]*(device.type == 'cuda')
    if args.quick: seeds,args.repeats,args.updates = args.seeds or QUICK['seeds'],QUICK['repeats'],QUICK['updates']
    if args.quickstart and set(args.models) != set(PLAIN): raise SystemExit("--quickstart: expected all models, got --models " + ' '.join(args.models))
    if args.jax: return main_jax(args, seeds)
    machine,data,chosen = about(device),make_data(device),variants(args.models, seeds)
    if device.type == 'cpu' and machine['load_average'][0] > 0.5: print(f"WARNING: load average {machine['load_average'][0]:.2f}: something else is running, and these figures cannot be trusted", file=sys.stderr)
    seconds,product = measure(chosen, data, device, args.repeats, args.updates, 50 if args.quick else 2000)
    found = {v: probes(v, device) for v in chosen}
    rows = [row_of(v, seconds, product, found[v], data) for v in chosen]
    result = dict(machine=machine, settings=dict(task=TASK, vec_size=VEC_SIZE, size_train=SIZE_TRAIN, budget=BUDGET, configs=CONFIGS, seeds=seeds, repeats=args.repeats, updates=args.updates, warm_up=WARM_UP), rows=rows,
                  raw=[v._asdict() | dict(updates_a_repeat=updates_a_repeat(v, args.updates), seconds_an_update=s, probes=found[v]) for v,s in seconds.items()],
                  raw_products=[dict(model=m, threads=t, seconds=s) for (m,t),s in product.items()])
    print('\n'.join([f"{k}: {v}".replace('\n', ', ') for k,v in machine.items() if v is not None]), report(rows), *floor_lines(rows), sep='\n')
    if args.quickstart:
        result['quickstart'] = compare_quickstart(rows, device, args.quick)
        print(*quickstart_lines(result['quickstart']), sep='\n')
    if args.out: args.out.write_text(json.dumps(result, indent=1, default=repr) + '\n')

def main_jax(args, seeds):
    "The comparison with JAX"
    need_jax()
    machine,data = about('cpu'),make_data('cpu')
    print('\n'.join(f"{k}: {v}" for k,v in machine.items() if v is not None))
    first,seconds = measure_jax(args.models, seeds, data, args.repeats, args.updates)
    print(jax_report(first, seconds), flush=True)
    found = quickstart_jax(args.quick) if args.quickstart else None
    if found: print(quickstart_jax_report(found))
    if args.out:
        named = lambda d: [dict(who=type(v).__name__, **v._asdict(), value=x) for v,x in d.items()]
        args.out.write_text(json.dumps(dict(machine=machine, first=named(first), seconds=named(seconds), quickstart=found), indent=1, default=repr) + '\n')

if __name__ == '__main__': main()
