"Ctrl-C at any moment, and output that cannot be written: one line, an exit code of its own, and nothing trained is lost"
import json, os, signal, subprocess, sys, time
from pathlib import Path

import numpy as np
import pytest
from torch import nn

import ebt_toy
from ebt_toy import cli, core, runner, saving
from ebt_toy.core import tell
from ebt_toy.cli import main
from ebt_toy.runner import paired_wins, register_model, run_main, summary
from ebt_toy.saving import save_results
from ebt_toy.history import History
from ebt_toy.training import fit

linux = pytest.mark.skipif(sys.platform != 'linux', reason="names devices of Linux")
SMALL = '--vec_size 2 --size_train 50 --size_val 8 --size_test 8 --num_steps 5 --latent_dim 8 --n_optimization_steps 2 --quiet'.split()
quick = dict(vec_size=2, size_train=50, size_val=8, size_test=8, report=None, progress=False, ebt_config=dict(num_steps=5, latent_dim=8), ffn_config=dict(num_steps=5, latent_dim=8))
WAYS = [[sys.executable, '-m', 'ebt_toy'], [str(Path(sys.executable).with_name('ebt_toy'))]]

def start(command, tmp_path, env={}, **kwargs):
    "A process with `tmp_path` as its working folder; a `sitecustomize.py` there is run before anything else"
    path = os.pathsep.join(filter(None, [str(tmp_path), os.environ.get('PYTHONPATH')]))
    env = {k: v for k,v in os.environ.items() if k != 'TORCHINDUCTOR_CACHE_DIR'} | dict(OMP_NUM_THREADS='1', PYTHONPATH=path) | env
    return subprocess.Popen(command, cwd=tmp_path, env=env, **dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) | kwargs)

def ended(p):
    "Exit code and both outputs"
    out,err = p.communicate(timeout=120)
    return p.returncode,out,err

# In the process

INTERRUPTED = 130,'ebt_toy: interrupted\n'

@pytest.mark.parametrize('way', WAYS, ids=['module', 'script'])
@pytest.mark.parametrize('name', ['numpy', 'torch._C', 'ebt_toy.files', 'ebt_toy.plots', 'ebt_toy.runner'])
def test_ctrl_c_while_importing(tmp_path, way, name):
    (tmp_path/'sitecustomize.py').write_text(f"import os, signal, sys\nsys.addaudithook(lambda event, args: os.kill(os.getpid(), signal.SIGINT) if event == 'import' and args[0] == {name!r} else None)\n")
    code,out,err = ended(start([*way, *SMALL], tmp_path))
    assert (code, err, out) == (*INTERRUPTED, '')

def test_ctrl_c_at_any_time(tmp_path):
    whole = time.monotonic()
    assert ended(start([*WAYS[0], *SMALL, '--save', 'whole'], tmp_path))[0] == 0
    whole = time.monotonic() - whole
    for i in range(6):
        p = start([*WAYS[0], *SMALL, '--num_steps', '300', '--save', str(i)], tmp_path)
        time.sleep(0.3 + i*whole/6)
        p.send_signal(signal.SIGINT)
        code,out,err = ended(p)
        assert (code, err) in ((*INTERRUPTED,), (0, '')), (i, code, err)
        assert (tmp_path/str(i)/'results.json').exists() == ('Saved to' in out)
        if code == 0: assert 'Saved to' in out      # it had finished

def test_ctrl_c_while_python_shuts_down(tmp_path):
    (tmp_path/'sitecustomize.py').write_text("import atexit, os, signal\natexit.register(os.kill, os.getpid(), signal.SIGINT)\n")
    assert ended(start([*WAYS[1], *SMALL], tmp_path))[::2] == (0, '')

PASSED = """
import sys
from ebt_toy import __main__
def run():
    try: exec('raise KeyboardInterrupt')
    except KeyboardInterrupt: return 130
__main__.cli.main = run
sys.exit(__main__.main())
"""

def test_ctrl_c_that_passed_through_exec(tmp_path):
    assert ended(start([sys.executable, '-c', PASSED], tmp_path))[0] == 130      # not -2

@pytest.mark.parametrize('sign', ['SIGTERM', 'SIGHUP', 'SIGINT'])
def test_signals_in_training(tmp_path, sign):
    heard = lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL)       # under `nohup` it would rightly be ignored
    p = start([*WAYS[1], *SMALL, '--num_steps', '1000000', '--eval_every', '20', '--save', 'out', '--workers', '1'], tmp_path, preexec_fn=heard)
    for line in p.stdout:
        if line.startswith('Update') and ' 40 ' in line: break
    p.send_signal(getattr(signal, sign))
    code,out,err = ended(p)
    assert (code, err) == INTERRUPTED
    assert 'EBT Model Training Interrupted | Test MSE' in out and 'not trained: FFN' in out and 'EXPERIMENT SUMMARY' in out
    saved = json.loads((tmp_path/'out'/'results.json').read_text())
    assert saved['interrupted'] and list(saved['models']) == ['ebt'] and saved['models']['ebt']['status'] == 'interrupted'
    assert sorted(p.name for p in (tmp_path/'out').iterdir()) == ['ebt.csv', 'results.json', 'training.png']

SLOW = """
import sys, time
from ebt_toy import cli, runner
def scores(*args):
    print('scoring', flush=True)
    time.sleep(60)
runner._scores = scores
sys.exit(cli.main(sys.argv[1:]))
"""

def test_a_second_ctrl_c_ends_at_once(tmp_path):
    p = start([sys.executable, '-u', '-c', SLOW, *SMALL, '--num_steps', '1000000', '--eval_every', '20', '--workers', '1'], tmp_path)
    for line in p.stdout:
        if line.startswith('Update') and ' 40 ' in line: p.send_signal(signal.SIGINT)
        if line == 'scoring\n': break
    p.send_signal(signal.SIGINT)
    before = time.monotonic()
    code,_,err = ended(p)
    assert (code, err) == INTERRUPTED and time.monotonic() - before < 10

def interrupt_once(monkeypatch, name, at=1):
    "Let the `at`-th call of a function of the runner, or of what saves its results, end in Ctrl-C"
    homes,calls = [m for m in (cli, saving, runner) if hasattr(m, name)],[]
    real = getattr(homes[0], name)
    def f(*args, **kwargs):
        calls.append(name)
        if len(calls) == at: raise KeyboardInterrupt
        return real(*args, **kwargs)
    for m in homes: monkeypatch.setattr(m, name, f)
    return calls

@pytest.mark.parametrize('name', ['chosen_models', 'check_folder', 'get_device', '_check_models', '_rehearse', 'create_synthetic_data', 'Results'])
def test_ctrl_c_before_training(tmp_path, monkeypatch, capsys, name):
    assert interrupt_once(monkeypatch, name) is not None
    assert main([*SMALL, '--save', str(tmp_path/'out')]) == 130
    out,err = capsys.readouterr()
    assert err == INTERRUPTED[1] and 'SUMMARY' not in out and not list(tmp_path.glob('out/*'))

@pytest.mark.parametrize('name, at, trained', [('_trained_models', 1, 0), ('_trained_models', 2, 1), ('merge_histories', 1, 0), ('_scores', 1, 1), ('_scores', 2, 2), ('_outcome', 1, 1), ('summary', 1, 2), ('save_results', 1, 2), ('_png', 2, 2), ('_json', 1, 2)])
def test_ctrl_c_after_training_has_begun(tmp_path, monkeypatch, capsys, name, at, trained):
    interrupt_once(monkeypatch, name, at)
    assert main([*SMALL, '--save', str(tmp_path/'out')] + ['--seeds', '2']*(name == 'merge_histories')) == 130
    out,err = capsys.readouterr()
    assert err == INTERRUPTED[1] and out.count('SUMMARY') == 1 and out.count('Finished | Test MSE') == trained - (name == '_outcome')
    assert sorted(p.name for p in tmp_path.glob('out/*')) == [*['ebt.csv', 'ffn.csv'][:trained], *['results.json', 'training.png']*(trained > 0)]
    if trained:
        saved = json.loads((tmp_path/'out'/'results.json').read_text())
        assert saved['interrupted'] and [r['status'] for r in saved['models'].values() if r['test_mse'] is not None] == ['finished']*trained

def test_ctrl_c_before_the_first_evaluation(monkeypatch):
    def stop(*args): raise KeyboardInterrupt
    monkeypatch.setattr(runner, '_rehearse', lambda *args: None)
    monkeypatch.setattr('ebt_toy.training._score_all', stop)
    lines = []
    results = run_main('add', **quick | dict(report=lines.append))
    r = results['ebt']
    assert (list(results), results.interrupted, r['status'], r['model'], r['flops'], len(r['history'])) == (['ebt'], True, 'interrupted', None, 0, 0)
    assert np.isnan(r['test_mse']) and results.ranking() == []
    assert 'EBT Model: interrupted before its first evaluation' in summary(results) and 'nan' not in '\n'.join(lines)

def test_ctrl_c_in_the_rehearsal(monkeypatch):
    real,calls = ebt_toy.training._score_all,[]
    def stop(*args):
        calls.append(args)
        if len(calls) == 1: raise KeyboardInterrupt      # which `fit` catches
        return real(*args)
    monkeypatch.setattr('ebt_toy.training._score_all', stop)
    with pytest.raises(KeyboardInterrupt): run_main('add', **quick)
    assert len(calls) == 1

@pytest.fixture
def plain():
    "A registered model that is trained one seed after another; the callback may end it as Ctrl-C does"
    def train(train_dataset, val_dataset, test_dataset, input_dim, output_dim, num_steps=5, seed=0, report=print, **options):
        model = nn.Linear(input_dim, output_dim)
        model.history = fit(model, train_dataset, val_dataset, test_dataset, num_steps, seed=seed, report=report, **options)
        return model
    register_model('plain', train)
    yield
    del runner._recipes['plain']

def test_ctrl_c_ends_all_seeds(plain):
    def stop(model, history):
        if history.settings['seed'] == 4: raise KeyboardInterrupt
    results = run_main('add', 2, 50, 8, 8, 'plain', seeds=[3, 4, 5], callback=stop, report=None, progress=False)
    r = results['plain']
    assert (results.interrupted, r['status'], len(r['models']), r['config']['seeds'], len(r['test_mse_seeds'])) == (True, 'interrupted', 2, [3, 4], 2)
    assert 'interrupted' in summary(results)

def test_models_with_different_numbers_of_seeds_are_compared_where_both_have_one(plain):
    def stop(model, history):
        if history.settings.get('seed') == 1 and len(history) == 3: raise KeyboardInterrupt
    results = run_main('add', **quick, model_type=['ffn', 'plain'], seeds=3, callback=stop)
    ffn,plain = (results[n]['test_mse_seeds'] for n in ('ffn', 'plain'))
    assert (len(ffn), len(plain)) == (3, 2) and paired_wins(results, 'ffn', 'plain') == (sum(a < b for a,b in zip(ffn, plain)), 2)
    assert 'of 2 seeds' in summary(results)

# What cannot be written

def saved(tmp_path, capsys, code, *args):
    "Last line of standard error of a run that saves; its report is whole"
    assert main([*SMALL, '--save', str(tmp_path/'out'), *args]) == code
    out,err = capsys.readouterr()
    assert 'Best Model:' in out and err.count('\n') <= 1
    return err

@pytest.mark.parametrize('name', ['results.json', 'training.png', 'ebt.csv'])
def test_a_folder_where_a_file_should_be(tmp_path, capsys, name):
    (tmp_path/'out'/name).mkdir(parents=True)
    assert f"ebt_toy: could not write to '{tmp_path/'out'}': {name} (" in saved(tmp_path, capsys, 3)
    assert {p.name for p in (tmp_path/'out').iterdir() if p.is_file()} == {'ebt.csv', 'ffn.csv', 'results.json', 'training.png'} - {name}

def test_a_full_disk(tmp_path, capsys, monkeypatch):
    def full(fd): raise OSError(28, 'No space left on device')
    monkeypatch.setattr(core.os, 'fsync', full)
    assert saved(tmp_path, capsys, 3).endswith("ebt.csv, ffn.csv, training.png, results.json (No space left on device)\n")
    assert not list((tmp_path/'out').iterdir())

@linux
@pytest.mark.parametrize('save', [[], ['--save', 'out']], ids=['', 'save'])
def test_output_that_cannot_be_written(tmp_path, save):
    with open('/dev/full', 'w') as full: code,_,err = ended(start([*WAYS[1], *SMALL, *save], tmp_path, stdout=full))
    assert (code, err) == (3, "ebt_toy: [Errno 28] No space left on device: '<stdout>'\n")
    assert (tmp_path/'out'/'results.json').exists() == bool(save)

@pytest.mark.parametrize('save', [[], ['--save', 'out']], ids=['', 'save'])
def test_a_pipe_that_is_closed(tmp_path, save):
    p = start([*WAYS[1], *SMALL, *save], tmp_path)
    assert p.stdout.readline() == '='*80 + '\n'
    p.stdout.close()
    assert (p.stderr.read(), p.wait(60)) == ('', 141)
    assert (tmp_path/'out'/'results.json').exists() == bool(save)

@pytest.mark.parametrize('args', [['--help'], ['listops', '--help']], ids=' '.join)
def test_help_into_a_pipe_that_is_closed(tmp_path, args):
    p = start([*WAYS[1], *args], tmp_path)
    p.stdout.close()
    assert p.stderr.read() == '' and p.wait(60) in (0, 141)     # argparse may keep the error to itself

@pytest.mark.parametrize('encoding', ['cp1252', 'ascii', 'utf-8'])
def test_output_of_any_encoding(tmp_path, encoding):
    code,out,err = ended(start([*WAYS[1], *SMALL], tmp_path, env=dict(PYTHONIOENCODING=encoding), encoding=encoding))
    assert (code, err) == (0, '') and f"{'✓' if encoding == 'utf-8' else '?'} FFN Model Training Finished" in out
    p = start([sys.executable, '-c', "import ebt_toy; ebt_toy.run_main('add', 2, 50, 8, 8, 'ffn', ffn_config=dict(num_steps=5), progress=False)"], tmp_path, env=dict(PYTHONIOENCODING=encoding), encoding=encoding)
    assert 'FFN Model Training Finished' in ended(p)[1]

@pytest.mark.parametrize('closed', [(1,), (2,), (0, 1, 2)], ids=str)
def test_streams_that_are_closed(tmp_path, closed):
    shut = lambda: [os.close(fd) for fd in closed]
    p = start([*WAYS[1], *SMALL, '--save', 'out'], tmp_path, preexec_fn=shut)
    assert ended(p)[0] == 0
    assert sorted(p.name for p in (tmp_path/'out').iterdir()) == ['ebt.csv', 'ffn.csv', 'results.json', 'training.png']

def test_no_streams_at_all(tmp_path, monkeypatch):
    for name in ('stdout', 'stderr'): monkeypatch.setattr(sys, name, None)
    tell('to nobody')
    assert run_main('add', **quick | dict(report=print))['ffn']['status'] == 'finished'
    assert main([*SMALL, '--save', str(tmp_path)]) == 0 and (tmp_path/'results.json').exists()

NOWHERE = "import tempfile\ndef none(): raise FileNotFoundError(2, 'No usable temporary directory found')\ntempfile._get_default_tempdir = none\n"

def test_no_folder_for_temporary_files(tmp_path):
    (tmp_path/'sitecustomize.py').write_text(NOWHERE)
    code,out,err = ended(start([*WAYS[1], *SMALL], tmp_path, env=dict(HOME=os.devnull)))
    assert (code, err) == (0, '') and 'Best Model:' in out

# Where it is saved

def test_an_earlier_run_is_replaced(tmp_path):
    both,ffn = run_main('add', **quick),run_main('add', **quick | dict(model_type='ffn'))
    save_results(both, tmp_path)
    (tmp_path/'mine.csv').write_text('of somebody else')
    save_results(ffn, tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ['ffn.csv', 'mine.csv', 'results.json', 'training.png']
    (tmp_path/'other.csv').write_text('outside')
    (tmp_path/'in').mkdir()
    (tmp_path/'in'/'results.json').write_text('{"models": {"../other": {}, "ebt": {}}}')     # names no file of another folder
    save_results(ffn, tmp_path/'in')
    assert (tmp_path/'other.csv').exists() and (tmp_path/'in'/'ffn.csv').exists()

def test_an_interrupted_run_without_results_leaves_an_earlier_one(tmp_path, monkeypatch, capsys):
    assert main([*SMALL, '--save', str(tmp_path)]) == 0
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    interrupt_once(monkeypatch, '_trained_models')
    assert main([*SMALL, '--save', str(tmp_path)]) == 130
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before

def strict(text):
    def refuse(name): raise AssertionError(f"{name} is no JSON")
    return json.loads(text, parse_constant=refuse)

def test_json_is_strict(tmp_path, capsys):
    assert main([*SMALL, '--lr', '1e30', '--ffn_config', 'lr=0.001', '--seeds', '2', '--save', str(tmp_path)]) == 1
    assert 'warn' not in capsys.readouterr().err.lower()
    models = strict((tmp_path/'results.json').read_text())['models']
    assert (models['ebt']['status'], models['ebt']['test_mse'], models['ebt']['test_mse_seeds']) == ('diverged', None, [None, None])
    assert models['ffn']['test_mse'] > 0
    plain = saving._plain(dict(a=[np.float32(0.5), np.int64(3), float('inf')], b=(1, 2), c=None, d=True))
    assert plain == dict(a=[0.5, 3, None], b='(1, 2)', c=None, d=True)

def test_home_and_empty_names(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv('HOME', str(tmp_path))
    monkeypatch.setenv('USERPROFILE', str(tmp_path))
    assert main([*SMALL, '--save', '~/run']) == 0 and (tmp_path/'run'/'ffn.csv').exists()
    assert main(['listops', '~/texts', *'--size_train 5 --size_val 2 --size_test 2 --min_length 5 --max_length 20 --quiet'.split()]) == 0
    assert len(ebt_toy.read_dataset('~/texts/basic_train.tsv')) == 5
    assert ebt_toy.save(nn.Linear(2, 2), '~/model') == tmp_path/'model' and 'weight' in ebt_toy.load('~/model', nn.Linear(2, 2)).state_dict()
    ebt_toy.snapshots('~/kept', [0])(nn.Linear(2, 2), History(dict(step=[0]), dict(eval_every=1, num_steps=1, seed=0)))
    assert (tmp_path/'kept'/'000000.safetensors').exists() and not Path('~').exists()
    capsys.readouterr()
    for args in (['--save', ''], ['listops', '']):
        assert main(args) == 2
        out,err = capsys.readouterr()
        assert out == '' and err.endswith("folder: expected a name, got ''\n") and err.count('\n') == 1

def test_listops_of_one_column(capsys):
    assert main('--task listops --vec_size 1 --size_train 20 --size_val 4 --size_test 4 --num_steps 2 --quiet'.split()) in (0, 2)
    assert capsys.readouterr().err.count('\n') <= 1
