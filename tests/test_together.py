"Models and seeds that train at the same time, in processes of their own: the same results, in the same order, and the fallback."
import os, signal, subprocess, sys, time
from functools import partial

import pytest
import torch

from ebt_toy import ebt, runner
from ebt_toy.ffn import train_feedforward
from ebt_toy.pools import end_processes, processes
from ebt_toy.runner import _n_workers, register_model, run_main

SMALL = dict(vec_size=2, size_train=100, latent_dim=8, num_steps=20, progress=False, compile=False, device='cpu')

def assert_same(a, b):
    "Two runs with the same models, bit for bit, and the same results, but for the time"
    assert list(a) == list(b)
    for n in a:
        assert list(a[n]) == list(b[n])
        for k in set(a[n]) - {'model', 'models', 'history', 'seconds'}: assert a[n][k] == b[n][k], (n, k)
        assert repr(a[n]['history'].columns) == repr(b[n]['history'].columns)
        for p,q in zip(a[n]['models'], b[n]['models'], strict=True):
            assert all(map(torch.equal, p.state_dict().values(), q.state_dict().values()))
            assert p.scoring == q.scoring and not p.training and not q.training

@pytest.fixture
def there(monkeypatch):
    "Names of the models that were trained in this process"
    here,trained = [],runner._trained
    monkeypatch.setattr(runner, '_trained', lambda name, *args: here.append(name) or trained(name, *args))
    return here

def test_same_bits_and_the_same_report(there):
    lines = [], []
    alone = run_main('sort', **SMALL, report=lines[0].append)
    assert there == ['ebt', 'ffn']
    together = run_main('sort', **SMALL, report=lines[1].append, workers=2)
    assert there == ['ebt', 'ffn']                # neither was trained here
    assert_same(alone, together)
    timeless = [[l for l in ls if ' s; Val' not in l and 'SUMMARY' not in l] for ls in lines]
    assert timeless[0] == timeless[1]
    assert together['ebt']['model'].test_dataset is together.data.test_dataset

def test_parts_of_the_seeds(there):
    options = SMALL | dict(model_type='ebt', seeds=[3, 5, 4], report=None)
    together = run_main(**options, workers=2)
    assert not there and len(together['ebt']['models']) == 3
    one,two = run_main(**options | dict(seeds=[3])),run_main(**options | dict(seeds=[5, 4]))      # the two parts
    scores = [s for r in (one, two) for s in r['ebt']['test_mse_seeds']]
    assert together['ebt']['test_mse_seeds'] == scores and together['ebt']['history'].settings['seeds'] == [3, 5, 4]

def test_what_was_registered_here_is_trained_here(there, monkeypatch):
    monkeypatch.setattr(runner, '_recipes', dict(runner._recipes))
    local = lambda *data, **options: train_feedforward(*data, **options)     # cannot travel
    register_model('local', local), register_model('wide', partial(train_feedforward, latent_dim=9))
    register_model('ffn', partial(train_feedforward, activation='silu'))     # travels, in place of the library's
    options = SMALL | dict(model_type=['local', 'ffn'], report=None)
    del options['latent_dim'], options['num_steps']
    options |= dict(local_config={}, ffn_config=dict(num_steps=20))
    together = run_main(**options | dict(model_type=['wide', 'ffn'], wide_config=dict(num_steps=20)), workers=2)
    assert not there and together['wide']['model'].net[0].out_features == 9
    register_model('local', partial(local, num_steps=20))
    both = run_main(**options, workers=2)
    assert there == ['local']
    assert_same(both, run_main(**options))

def test_other_surroundings_are_noticed(there, monkeypatch):
    def other(*args, **options): return ebt.EnergyFunction(*args, **options)
    monkeypatch.setitem(ebt._energies, 'mlp', other)      # the processes would take the library's
    run_main(**SMALL, report=None, workers=2)
    assert there == ['ebt', 'ffn']

def test_errors_are_those_of_one_process():
    with pytest.raises(ValueError, match='workers: expected a whole number of at least 1, got 0'): run_main(**SMALL, workers=0)
    with pytest.raises(ValueError, match='workers'): run_main(**SMALL, workers='all')
    bad = run_main(**SMALL, ebt_config=dict(lr=1e30), report=None, workers=2)
    assert bad['ebt']['status'] == 'diverged' and bad['ebt']['model'] is None and bad['ffn']['status'] == 'finished'

@pytest.mark.parametrize('steps,n', [((10_000, 50_000), 2), ((None, None), 2), ((10_000, 100), 1), ((100, 100), 0)])
def test_auto_needs_long_trainings(monkeypatch, steps, n):
    monkeypatch.setattr(runner, 'n_cores', lambda: 2)
    configs = {i: dict(num_steps=s) for i,s in enumerate(steps)}
    options = dict(callback=None, checkpoints=None)
    assert _n_workers('auto', configs, None, 'cpu', options) == n
    assert _n_workers('auto', configs, None, 'cpu', options | dict(callback=print)) == 1       # a callback needs this process
    assert _n_workers(8, configs, None, 'cpu', options | dict(checkpoints='folder')) == 1      # and so does a file to go on from
    assert _n_workers(8, configs, 3, 'cpu', options) == 6                                      # no more than there are seeds to train

SCRIPT = '''
import sys
from ebt_toy import run_main
r = run_main(vec_size=2, size_train=100, latent_dim=8, num_steps=10**7, eval_every=100, compile=False, device='cpu', workers=2,
             report=lambda line: print(line, flush=True))
print('kept', *(f"{n} {x['status']} {len(x['history']) > 0} {x['model'] is not None}" for n,x in r.items()), sep='|')
'''

@pytest.mark.skipif(os.name != 'posix', reason="sends a signal to a process group")
@pytest.mark.parametrize('whole_group', [True, False])
def test_ctrl_c_keeps_both(tmp_path, whole_group):
    "As in a terminal, which tells all processes, and as in Jupyter; the script needs no guard around its work"
    (tmp_path/'script.py').write_text(SCRIPT)
    run = subprocess.Popen([sys.executable, tmp_path/'script.py'], stdout=subprocess.PIPE, text=True, start_new_session=True,
                           preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler))
    try:
        for line in run.stdout:
            if line.startswith('Update     200'): break
        time.sleep(1)                     # the other one has begun too
        (os.killpg if whole_group else os.kill)(run.pid, signal.SIGINT)
        assert run.communicate(timeout=60)[0].splitlines()[-1] == 'kept|ebt interrupted True True|ffn interrupted True True'
    finally:
        run.kill()

def test_processes_end():
    with processes(1)() as pool:
        pool.submit(abs, 0).result()
        started, = pool._processes.values()
        end_processes(pool, now=True)
        started.join(10)
        assert started.exitcode
