"The command line as a user meets it, in processes of its own; and repeatability across processes."
import json, os, signal, subprocess, sys

import pytest

from ebt_toy.cli import explore_main, listops_main, main

SMALL = '--size_train 200 --vec_size 2 --latent_dim 16'.split()

def run(*args, hash_seed='0', **kwargs):
    env = os.environ | dict(PYTHONHASHSEED=hash_seed)
    return subprocess.run([sys.executable, '-m', 'ebt_toy', *args], capture_output=True, text=True, env=env, timeout=300, **kwargs)

def test_report_and_saved_files(tmp_path):
    done = run(*SMALL, '--num_steps', '60', '--save', str(tmp_path/'out'))
    assert done.returncode == 0, done.stderr
    for part in ('Running experiments on task: ADD', '[1/3]', '[2/3] Training EBT Model', '[3/3] Training FFN Model', 'First-order', 'Energy:', 'Best Model:'):
        assert part in done.stdout
    saved = json.loads((tmp_path/'out'/'results.json').read_text())
    assert saved['models']['ebt']['config']['num_steps'] == 60
    assert f"EBT Model Test MSE: {saved['models']['ebt']['test_mse']:.6f}" in done.stdout
    assert sorted(p.name for p in (tmp_path/'out').iterdir()) == ['ebt.csv', 'ffn.csv', 'results.json', 'training.png']
    assert (tmp_path/'out'/'training.png').read_bytes().startswith(b'\x89PNG')

@pytest.mark.parametrize('args, message', [
    (['--task', 'adds'], "unknown task 'adds'; did you mean 'add'"),
    (['--lr', 'nan'], "lr: expected a finite number above 0, got nan"),
    (['--size_train', '0'], "size_train: expected a whole number of at least 1, got 0"),
    (['--vec_size', 'ten'], "vec_size"),
    (['--device', 'cuda:99'], "device: expected a device of this machine"),
    (['--ebt_config', 'lr'], "expected key=value"),
    (['--task', 'listops', '--vec_size', '0'], "vec_size: expected a whole number of at least 1, got 0"),
    (['--task', 'listops', '--task_options', 'ood=width'], "unknown ood 'width'"),
    (['listops'], "folder"),
    (['listops', '/dev/null/x'], "/dev/null/x"),
    (['--num_steps', '5', '--num_epochs', '5'], "two names for the number of updates"),
    (['--seed', '-1'], "seed: expected a non-negative integer"),
    (['--save', '/dev/null/x'], "folder: expected one that can be written to"),
    (['extra'], "extra")])
def test_bad_value_is_one_line_and_exit_code_2(args, message):
    done = run(*args)
    assert (done.returncode, done.stdout) == (2, '')
    assert message in done.stderr and done.stderr.count('\n') == 1

def test_listops_from_the_files_to_the_report(tmp_path):
    small = '--size_train 20 --size_val 5 --size_test 5 --min_length 20 --max_length 60'.split()
    done = run('listops', str(tmp_path/'new'), *small)
    assert done.returncode == 0 and sorted(p.name for p in (tmp_path/'new').iterdir()) == [f'basic_{s}.tsv' for s in ('test', 'train', 'val')]
    done = run('--task', 'listops', '--task_options', 'ood=length', '--vec_size', '2', *'--size_train 60 --size_val 10 --size_test 10 --num_steps 3 --latent_dim 8 --batch_size 8 --quiet'.split())
    assert done.returncode == 0, done.stderr
    for part in ('Test Samples: 10 (Out-of-Distribution: longer)', '1 level exact, Test accuracy:', 'EBT Model Test accuracy:'): assert part in done.stdout

def test_same_seed_same_numbers_in_every_process():
    strip = lambda text: [l for l in text.splitlines() if 'Update' in l or 'MSE' in l and 'TFLOP' not in l]
    a,b = (run(*SMALL, '--num_steps', '40', '--seed', '3', hash_seed=h) for h in ('1', '2'))
    assert strip(a.stdout) == strip(b.stdout) and len(strip(a.stdout)) > 20
    assert strip(run(*SMALL, '--num_steps', '40', '--seed', '4').stdout) != strip(a.stdout)

def test_losses_are_bit_identical_in_two_processes():
    code = "import ebt_toy as e; r = e.run_main('multiply', 2, 200, report=None, ebt_config=dict(num_steps=30), ffn_config=dict(num_steps=30)); print([r[m]['history'][c].tobytes().hex() for m in r for c in ('val_loss', 'test_loss')])"
    out = [subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, env=os.environ | dict(PYTHONHASHSEED=h), check=True).stdout for h in ('1', '2')]
    assert out[0] == out[1] and len(out[0]) > 500

def test_ctrl_c_ends_in_order():
    with subprocess.Popen([sys.executable, '-u', '-m', 'ebt_toy', *SMALL, '--num_steps', '1000000', '--eval_every', '20', '--workers', '1'], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as p:
        for line in p.stdout:
            if line.startswith('Update') and ' 40 ' in line: break
        p.send_signal(signal.SIGINT)
        rest = p.stdout.read()
        err = p.stderr.read()
    assert p.returncode == 130 and 'Traceback' not in err
    assert 'EBT Model Training Interrupted' in rest and 'EXPERIMENT SUMMARY' in rest and '[3/3]' not in rest

def test_installed_command():
    done = subprocess.run(['ebt_toy', '--help'], capture_output=True, text=True)
    assert done.returncode == 0
    for option in ('--task', '--model_type', '--num_steps', '--n_optimization_steps', '--step_size', '--save', '--seed', '--device'):
        assert option in done.stdout

@pytest.mark.parametrize('line', ['--task addd', '--num_steps 0', '--lr -1 --model_type ebt', '--vec_size x', '--ebt_config stepsize=1', '--step_size 1 --model_type ffn',
                                  '--device abacus', '--ffn_config lr', '--nonsense 1', '--seeds 0', '--compile maybe'])
def test_bad_values_in_this_process(capsys, line):
    assert main(line.split()) == 2
    out,err = capsys.readouterr()
    assert out == '' and err.count('\n') == 1

def test_listops_in_this_process(capsys, tmp_path):
    args = f'{tmp_path}/new --size_train 30 --size_val 5 --size_test 5 --min_length 5 --max_length 30 --format nangia --no_parens --quiet'.split()
    assert listops_main(args) == 0
    assert capsys.readouterr() == (''.join(f'{tmp_path}/new/{s}.tsv: {n} expressions\n' for s,n in [('train', 30), ('val', 5), ('test', 5)]), '')
    assert listops_main(args) == 2                               # they are there now
    capsys.readouterr()
    assert listops_main('nowhere --format tsv'.split()) == 2
    assert capsys.readouterr().err == "ebt_toy listops: unknown format 'tsv' (known: lra, nangia)\n"
    assert listops_main('nowhere --max_args many'.split()) == 2

def test_explore_refuses_a_port_that_is_no_number(capsys):
    assert explore_main(['--port', 'eight']) == 2 and "invalid int value: 'eight'" in capsys.readouterr().err

def test_help_lists_what_is_registered():
    from ebt_toy.cli import _epilog
    for name in ('divide', 'sudoku', 'roots', 'recurrent', 'ensemble', 'bilinear', 'convex'): assert name in _epilog()
