"A run that goes on in a file: stopped at any place it ends as one that never stopped, and no file continues another run."
import os, re, signal, subprocess, sys, threading

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings, strategies as st
from torch import nn
from torch.utils.data import TensorDataset

from ebt_toy import EBT, EnergyFunction, controls, create_synthetic_data, fit, run_main, save, train_energy_model, train_feedforward, training
from ebt_toy.controls import read_run, signals_held, write_run
from ebt_toy.core import generator, seeded
from ebt_toy.data import Scoring
from ebt_toy.update import mlp

def splits_of(dtype=torch.float32):
    "Few noisy samples: the validation loss falls, then rises"
    data = create_synthetic_data('add', 24, 64, 16, vec_size=2)
    x,y = data.train_dataset.tensors
    noisy = TensorDataset(x, y + 0.3*torch.randn(y.shape, generator=generator(0)))
    return [TensorDataset(*(t.to(dtype) for t in ds.tensors)) for ds in (noisy, *data[1:3])]

SPLITS = splits_of()

def nets(n, first=0): return [mlp(4, 2, 16, seed=first + s) for s in range(n)]
def ebts(n): return [EBT(EnergyFunction(4, 2, 8, seed=s), 2, 2, 0.5) for s in range(n)]
def droppers(n):
    def one(s):
        with seeded(s, 'weights'): return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 2))
    return [one(s) for s in range(n)]

def run(models, splits=SPLITS, **options):
    options = dict(num_steps=100, lr=1e-2, batch_size=8, eval_every=20, compile=False, progress=False) | options
    return fit(models, *splits, seeds=list(range(len(models))), **options)

def tensors_of(models): return [t.detach().clone() for m in models for t in (*m.parameters(), *m.buffers())]

def assert_same(a, h, b, g):
    "Models and histories of two runs, bit for bit"
    assert all(map(torch.equal, tensors_of(a), tensors_of(b)))
    assert list(h.columns) == list(g.columns) and h.settings == g.settings and h.status == g.status
    for k in h.columns: np.testing.assert_array_equal(h[k], g[k])
    for s,t in zip(h.state, g.state, strict=True): assert s.done == t.done and torch.equal(s.m, t.m) and torch.equal(s.v, t.v)

class Crash(Exception): "The process dies, for all that `fit` can tell"

def stopped(make, after, path, **options):
    "A run that dies right after so many writes of its file; whether it came so far"
    def write(*args):
        write_run(*args)
        write.n += 1
        if write.n == after: raise Crash
    write.n = 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(controls, 'write_run', write)
        try: run(make(), checkpoint=path, **options)
        except Crash: return True
    return False

def check(make, path, stops, **options):
    "A run that dies several times ends as one that never does"
    whole = make()
    h = run(whole, **{k: v for k,v in options.items() if k != 'checkpoint_every'})
    for after in stops: stopped(make, after, path, **options)
    parts = make()
    assert_same(whole, h, parts, run(parts, checkpoint=path, **options))
    again = make()                                                 # an ended run is read, not trained
    assert_same(whole, h, again, run(again, checkpoint=path, **options))

# It ends the same

WAYS = pytest.mark.parametrize('n, compile', [(1, False), (3, False), (1, True), (3, True)], ids=['plain', 'seeds', 'compiled', 'seeds compiled'])

@WAYS
@pytest.mark.parametrize('make', [nets, ebts], ids=['nets', 'ebts'])
def test_stopped_and_resumed(recorded, tmp_path, make, n, compile):
    check(lambda: make(n), tmp_path/'r.st', [1, 2], compile=compile, checkpoint_every=23)

@given(every=st.integers(1, 130), stops=st.lists(st.integers(1, 12), max_size=3), n=st.sampled_from([1, 2]), eval_every=st.integers(7, 110),
       more=st.sampled_from([{}, dict(keep_best=True), dict(patience=2, keep_best=True), dict(schedule='cosine', warmup=30), dict(clip=0.1, weight_decay=0.1)]))
@settings(max_examples=8, deadline=None, phases=[Phase.explicit, Phase.generate], suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_stopped_anywhere(tmp_path_factory, every, stops, n, eval_every, more):
    check(lambda: nets(n), tmp_path_factory.mktemp('run')/'r.st', stops, checkpoint_every=every, eval_every=eval_every, **more)

def test_double_precision(tmp_path):
    check(lambda: [m.double() for m in nets(3)], tmp_path/'r.st', [5, 3], checkpoint_every=9, splits=splits_of(torch.float64), num_steps=150)

def test_seeds_in_groups(tmp_path, monkeypatch):
    monkeypatch.setattr(training, 'seeds_at_once', lambda *_: 2)
    check(lambda: nets(5), tmp_path/'r.st', [3, 4, 5], keep_best=True)         # it dies in each of the three groups
    assert stopped(lambda: nets(5), 7, tmp_path/'s.st')
    monkeypatch.setattr(training, 'seeds_at_once', lambda *_: 5)               # more memory by now: the groups stay
    assert stopped(lambda: nets(5), 1, tmp_path/'s.st') and read_run(tmp_path/'s.st')[0]['size'] == 2

def test_global_random_numbers_and_buffers(tmp_path):
    "Dropout draws from the global state; batch normalization keeps statistics"
    def seeded_run(path, after=None, seed=1):
        torch.manual_seed(seed)
        if after: return stopped(lambda: droppers(1), after, path)
        models = droppers(1)
        return models,run(models, **dict(checkpoint=path) if path else {})
    a,h = seeded_run(None)
    assert seeded_run(tmp_path/'r.st', 3)
    b,g = seeded_run(tmp_path/'r.st', seed=2)
    assert_same(a, h, b, g)

def test_no_random_state_is_touched_without_need(tmp_path):
    assert stopped(lambda: nets(1), 2, tmp_path/'r.st')
    torch.manual_seed(5)
    before = torch.get_rng_state()
    run(nets(1), checkpoint=tmp_path/'r.st')
    assert torch.equal(before, torch.get_rng_state()) and read_run(tmp_path/'r.st')[0]['random'] is None

def test_texts(tmp_path):
    class Reader(nn.Module):
        def __init__(self):
            super().__init__()
            self.ids,self.out = nn.Embedding(6, 4, padding_idx=0),nn.Linear(4, 2)
            for p in self.parameters(): p.data = torch.randn(p.shape, generator=generator(0))
        def forward(self, x): return self.out(self.ids(x).mean(1))
    lengths = torch.randint(1, 20, (80,), generator=generator(0))
    x = (1 + torch.randint(5, (80, 20), generator=generator(1)))*(torch.arange(20) < lengths[:, None])
    check(lambda: [Reader()], tmp_path/'r.st', [3, 4], splits=[TensorDataset(x, (lengths > 10).long())]*3, checkpoint_every=7)

def test_one_model_and_its_callback(tmp_path):
    "The callback gets single models, and a run that it ended stays ended"
    seen = []
    def note(model, history): seen.append((isinstance(model, nn.Module), int(history['step'][-1]))); return history['step'][-1] < 60
    for _ in range(2):
        model = nets(1)[0]
        h = fit(model, *SPLITS, num_steps=100, eval_every=20, compile=False, checkpoint=tmp_path/'r.st', callback=note, progress=False)
        assert h.status == 'stopped' and h.state[0].done == 60
    assert seen == [(True, s) for s in (0, 20, 40, 60)]

def test_an_ended_run_goes_on_with_more_updates(tmp_path):
    "Its file brings the state of Adam into a new session"
    whole = nets(2)
    run(whole, num_steps=150)
    run(nets(2), checkpoint=tmp_path/'r.st')
    parts = nets(2)
    first = run(parts, checkpoint=tmp_path/'r.st')
    run(parts, num_steps=50, history=first)
    assert all(map(torch.equal, tensors_of(whole), tensors_of(parts)))

def test_it_goes_on_in_the_same_session(tmp_path):
    "The models may be those that the interrupted run left"
    whole,parts,stop = nets(2),nets(2),[True]
    h = run(whole, keep_best=True)
    def ctrl_c(models, history):
        if history['step'][-1] == 40 and stop.pop(): os.kill(os.getpid(), signal.SIGINT)
    options = dict(keep_best=True, checkpoint=tmp_path/'r.st', callback=ctrl_c)
    assert run(parts, **options).status == 'interrupted'
    stop.append(False)
    assert_same(whole, h, parts, run(parts, **options))

def test_reports(tmp_path):
    lines = []
    stopped(lambda: nets(1), 3, tmp_path/'r.st')
    run(nets(1), checkpoint=tmp_path/'r.st', report=lines.append)
    run(nets(1), checkpoint=tmp_path/'r.st', report=lines.append)
    assert [l for l in lines if 'r.st' in l] == [f'{w} update {n}, as in {tmp_path/"r.st"}' for w,n in (('Goes on from', 60), ('Ended at', 100))]

def test_training_functions(tmp_path):
    data = create_synthetic_data('add', 64, 16, 16, vec_size=2)
    options = dict(num_steps=30, latent_dim=4, eval_every=10, compile=False, report=None, progress=False)
    for train in (train_energy_model, train_feedforward):
        def power_cut(model, history):
            if history['step'][-1] == 20: raise Crash
        path = tmp_path/f'{train.__name__}.st'
        with pytest.raises(Crash): train(*data, callback=power_cut, checkpoint=path, checkpoint_every=7, **options)
        a,b = train(*data, **options),train(*data, checkpoint=path, checkpoint_every=7, **options)
        assert all(map(torch.equal, tensors_of([a]), tensors_of([b]))) and b.history.settings == a.history.settings

def test_run_main(tmp_path):
    options = dict(vec_size=2, size_train=64, num_steps=30, latent_dim=4, eval_every=10, compile=False, report=None, progress=False)
    def power_cut(model, history):
        if 'ffn' in seen and history['step'][-1] == 20: raise Crash
        if history['step'][-1] == 30: seen.append('ffn')
    seen = []
    with pytest.raises(Crash): run_main(callback=power_cut, checkpoints=tmp_path/'new'/'folder', **options)
    whole,parts = run_main(**options),run_main(checkpoints=tmp_path/'new'/'folder', **options)
    assert [p.name for p in sorted((tmp_path/'new'/'folder').iterdir())] == ['ebt.safetensors', 'ffn.safetensors']
    for n in ('ebt', 'ffn'): assert parts[n]['test_mse'] == whole[n]['test_mse'] and parts[n]['status'] == 'finished'
    with pytest.raises(ValueError, match='checkpoints: expected a folder'): run_main(checkpoints=tmp_path/'new'/'folder'/'ebt.safetensors', **options)
    with pytest.raises(ValueError, match='with num_steps 30, got 31'): run_main(checkpoints=tmp_path/'new'/'folder', **options | dict(num_steps=31))

# Signals

@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM], ids=str)
def test_signals_wait_for_the_end_of_an_update(tmp_path, number):
    "At any place in an update, here in the backward pass; the run writes once more and ends"
    class Ended(BaseException): pass
    def end(*_): raise Ended
    before = signal.signal(signal.SIGTERM, end)
    try:
        models,calls = nets(1),[]
        def strike(grad):
            calls.append(1)
            if len(calls) == 37: os.kill(os.getpid(), number)
        models[0][2].weight.register_hook(strike)
        if number == signal.SIGTERM:
            with pytest.raises(Ended): run(models, checkpoint=tmp_path/'r.st')
        else: assert run(models, checkpoint=tmp_path/'r.st').status == 'interrupted'
        assert signal.getsignal(signal.SIGTERM) is end
    finally: signal.signal(signal.SIGTERM, before)
    done = read_run(tmp_path/'r.st')[0]['groups'][0]['done']
    assert done in (36, 37)                                    # before it, a trial of an update
    whole,parts = nets(1),nets(1)
    assert_same(whole, run(whole), parts, run(parts, checkpoint=tmp_path/'r.st'))

def test_a_second_signal_does_not_wait():
    with pytest.raises(KeyboardInterrupt), signals_held() as came:
        signal.raise_signal(signal.SIGINT)
        assert came == [signal.SIGINT]
        try: signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt: came.clear(); raise
        pytest.fail("it should have come through")

def test_ignored_signals_stay_ignored_and_threads_hear_none():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with signals_held() as came: signal.raise_signal(signal.SIGINT)
        assert came == [] and signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally: signal.signal(signal.SIGINT, before)
    heard = []
    def elsewhere():
        with signals_held(): heard.append(signal.getsignal(signal.SIGINT))
    thread = threading.Thread(target=elsewhere)
    thread.start(), thread.join()
    assert heard == [before]

# What is refused

@pytest.fixture(scope='module')
def half(tmp_path_factory):
    "The file of a run that died at update 40"
    path = tmp_path_factory.mktemp('half')/'r.st'
    assert stopped(lambda: nets(2), 2, path)
    return path

def other_data(i):
    ds = SPLITS[i]
    splits = list(SPLITS)
    splits[i] = TensorDataset(ds.tensors[0], ds.tensors[1] + 1)
    return dict(splits=splits)

other_scoring = Scoring(loss=nn.functional.l1_loss, metric=nn.functional.l1_loss, metric_name='MAE', higher_is_better=False)

@pytest.mark.parametrize('options, what', [(dict(num_steps=101), 'num_steps 100, got 101'), (dict(lr=0.02), 'lr 0.01, got 0.02'), (dict(batch_size=9), 'batch_size 8, got 9'),
    (dict(eval_every=10), 'eval_every 20, got 10'), (dict(schedule='cosine'), "schedule None, got 'cosine'"), (dict(keep_best=True), 'keep_best None, got True'), (dict(patience=3), 'patience None, got 3'),
    (dict(clip=1.), 'clip None, got 1.0'), (dict(weight_decay=0.1), 'weight_decay None, got 0.1'), (other_data(0), 'train_dataset'), (other_data(1), 'val_dataset'), (other_data(2), 'test_dataset'),
    (dict(scoring=other_scoring), 'scoring')], ids=lambda v: v if isinstance(v, str) else '')
def test_another_run_is_refused(half, options, what):
    before = half.read_bytes(),half.stat().st_mtime_ns
    with pytest.raises(ValueError, match=re.escape(what)) as e: run(nets(2), checkpoint=half, **options)
    assert '\n' not in str(e.value) and str(half) in str(e.value) and (half.read_bytes(), half.stat().st_mtime_ns) == before

@pytest.mark.parametrize('make, what', [(lambda: nets(2, first=1), 'weights with which'), (lambda: nets(3), 'seeds'), (lambda: [mlp(4, 2, 17, seed=s) for s in range(2)], 'update_flops'),
    (lambda: [mlp(4, 2, 16, 'tanh', seed=s) for s in range(2)], 'model'), (lambda: ebts(2), 'update_flops')], ids=['weights', 'seeds', 'width', 'activation', 'kind'])
def test_another_model_is_refused(half, make, what):
    before = half.read_bytes()
    with pytest.raises(ValueError, match=what): run(make(), checkpoint=half)
    assert half.read_bytes() == before

def test_a_setting_without_weights_counts(tmp_path):
    make = lambda a: [EBT(EnergyFunction(4, 2, 8, seed=0), 2, 2, a)]
    assert stopped(lambda: make(0.5), 2, tmp_path/'r.st')
    with pytest.raises(ValueError, match="'0.5', got '0.6'"): run(make(0.6), checkpoint=tmp_path/'r.st')

def test_other_files_are_refused(half, tmp_path, monkeypatch):
    data = half.read_bytes()
    middle = len(data)*2//3
    kinds = dict(empty=b'', text=b'hello', cut=data[:-9], longer=data + b'x', bit=data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1:], start=data[:300], model=save(nets(1)[0], tmp_path/'m.st').read_bytes())
    for name,content in kinds.items():
        path = tmp_path/name
        path.write_bytes(content)
        with pytest.raises(ValueError, match='checkpoint: expected the file of a run') as e: run(nets(2), checkpoint=path)
        assert '\n' not in str(e.value) and path.read_bytes() == content
    monkeypatch.setattr(controls, 'RUN_FORMAT', 2)
    with pytest.raises(ValueError, match='one of format 1 in place of 2'): run(nets(2), checkpoint=half)

def test_every_flipped_bit_is_seen(half, tmp_path):
    data,path = half.read_bytes(),tmp_path/'r.st'
    for i in torch.randint(len(data)*8, (60,), generator=generator(0)).tolist():
        path.write_bytes(data[:i//8] + bytes([data[i//8] ^ 1 << i % 8]) + data[i//8 + 1:])
        with pytest.raises(ValueError, match='checkpoint: expected the file of a run'): read_run(path)

def test_places_and_arguments(tmp_path):
    for path in (tmp_path, tmp_path/'none'/'r.st', ''):
        with pytest.raises(ValueError, match='checkpoint: expected a'): run(nets(1), checkpoint=path)
    with pytest.raises(ValueError, match='checkpoint_every: expected'): run(nets(1), checkpoint=tmp_path/'r.st', checkpoint_every=0)
    first = run(nets(1))
    with pytest.raises(ValueError, match='checkpoint: expected a run from its beginning'): run(nets(1), checkpoint=tmp_path/'r.st', history=first)
    assert not list(tmp_path.iterdir())

def test_a_full_disk(tmp_path, monkeypatch):
    "The file stays as it was, and a run goes on from there once there is room"
    path = tmp_path/'r.st'
    assert stopped(lambda: nets(1), 2, path)
    before = path.read_bytes()
    with monkeypatch.context() as patch:
        def full(fd): raise OSError(28, 'No space left on device')
        patch.setattr(os, 'fsync', full)
        with pytest.raises(OSError, match='No space'): run(nets(1), checkpoint=path)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]
    whole,parts = nets(1),nets(1)
    assert_same(whole, run(whole), parts, run(parts, checkpoint=path))

def test_a_warning_of_what_the_file_does_not_hold(tmp_path):
    class Counter(nn.Linear):
        calls = 0
        def forward(self, x): self.calls = self.calls + 1; return super().forward(x)
    with seeded(0): model = Counter(4, 2)
    model.calls = 0
    with pytest.warns(UserWarning, match='does not hold model.calls'): run([model], checkpoint=tmp_path/'r.st')

# The real thing

SCRIPT = '''
"Forks a process that trains, and kills it; then lets one end, and trains once without a file: `FOLDER KILLS`"
import os, random, signal, sys, time, traceback
from pathlib import Path
import torch
from ebt_toy import create_synthetic_data, fit
from ebt_toy.update import mlp

def train(end, **file):
    data = create_synthetic_data('add', 200, 64, 64, vec_size=2)
    models = [mlp(4, 2, 16, seed=s) for s in range(2)]
    h = fit(models, *data[:3], seeds=2, num_steps=600, eval_every=60, lr=1e-2, compile=False, progress=False, keep_best=True, **file)
    columns = {k: [e.tolist() for e in v] for k,v in h.columns.items() if k != 'step'}
    torch.save([[p.data for m in models for p in m.parameters()] + [t for s in h.state for t in (s.m, s.v)], columns, h.settings], end)

def child(*args, **kwargs):
    if pid := os.fork(): return pid
    try: train(*args, **kwargs)
    except BaseException: traceback.print_exc(), os._exit(1)
    os._exit(0)

folder,kills = Path(sys.argv[1]),int(sys.argv[2])
path,g = folder/'r.st',random.Random(0)
written = lambda: path.stat().st_mtime_ns if path.exists() else 0
for i in range(kills):
    before,pid = written(),child(folder/'parts', checkpoint=path, checkpoint_every=20)
    while written() == before: time.sleep(0.002)        # it goes on, and comes to its first write
    time.sleep(g.uniform(0, 1/kills))
    os.kill(pid, signal.SIGKILL)
    ended = os.waitpid(pid, 0)[1]
    print(i, 'killed' if ended == signal.SIGKILL else f'ended with {ended}', flush=True)
    if ended != signal.SIGKILL: break
for pid in child(folder/'parts', checkpoint=path, checkpoint_every=20),child(folder/'whole'): assert os.waitpid(pid, 0)[1] == 0
'''

@pytest.mark.skipif(not hasattr(os, 'fork'), reason="forks processes")
def test_kill_9(tmp_path):
    (tmp_path/'main.py').write_text(SCRIPT)
    done = subprocess.run([sys.executable, tmp_path/'main.py', tmp_path, os.environ.get('KILLS', '3')], text=True, stdout=subprocess.PIPE)
    assert done.returncode == 0 and done.stdout.startswith('0 killed')
    print(done.stdout)
    parts,whole = (torch.load(tmp_path/name, weights_only=False) for name in ('parts', 'whole'))
    assert all(map(torch.equal, parts[0], whole[0])) and parts[1:] == whole[1:]
