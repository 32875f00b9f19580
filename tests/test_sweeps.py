"Sweeps: what makes two runs the same, going on after a crash, failures, pools that break, and files that are refused."
import csv, os, pickle, shutil, signal, sqlite3, subprocess, sys, time
from concurrent.futures import BrokenExecutor, Executor, Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from fastcore.test import test_eq as eq

from ebt_toy import run_main, store
from ebt_toy.runner import recipe_names
from ebt_toy.store import export_rows, index_settings, open_store, put_units, read_store
from ebt_toy.sweeps import (format_table, full_settings, group_id, plot_sweep, processes, sweep, sweep_points, sweep_summary,
                            sweep_table)

tiny = dict(task='add', vec_size=2, size_train=64, size_val=8, size_test=8, num_steps=2, latent_dim=4, n_optimization_steps=2,
            compile=False, device='cpu')

def without(rows, *names): return [{k: v for k,v in r.items() if k not in names} for r in rows]

def trivial(settings, seeds): return [dict(score=settings['a']*100 + s) for s in seeds]

def counted(bad=()):
    "A function of settings and seeds that notes the units it computes"
    def run(settings, seeds):
        run.units += [(settings['a'], s) for s in seeds]
        if settings['a'] in run.bad: raise ValueError(f"a: expected another, got {settings['a']}")
        return trivial(settings, seeds)
    run.units,run.bad = [],set(bad)
    return run

# The grid

def test_grid_is_the_product():
    points = sweep_points(dict(a=[1, 2], b='x', c=range(3)))
    eq(points, [dict(a=a, b='x', c=c) for a in (1, 2) for c in range(3)])
    eq(sweep_points({}), [{}])

def test_sample_is_part_of_the_grid():
    space = dict(a=range(50), b=range(50))
    some = sweep_points(space, sample=40)
    grid = sweep_points(space)
    assert len({tuple(p.values()) for p in some}) == 40 and [p for p in grid if p in some] == some
    assert some == sweep_points(space, sample=40, sample_seed=0) != sweep_points(space, sample=40, sample_seed=1)
    eq(sweep_points(space, sample=10**6), grid)
    eq(len(sweep_points({n: range(1000) for n in 'abcdefghij'[:6]}, sample=3)), 3)      # 10¹⁸ points

# Identity

def ids(**given): return [group_id(s) for s in full_settings(given)]

def test_identity():
    base = dict(task='add', model_type='ebt', vec_size=2)
    same = [dict(reversed(base.items())), base | dict(step_size=1.), base | dict(step_size=1), base | dict(size_train=10000),
            base | dict(num_steps=None), base | dict(num_steps=10_000), base | dict(compile=False), base | dict(device='cpu'), base | dict(task_options={}),
            base | dict(ebt_config=dict(latent_dim=128)), base | dict(activation='relu', model_type=['ebt'])]
    for other in same: eq(ids(**other), ids(**base))
    differ = [{}, dict(vec_size=3), dict(seed=1), dict(step_size=1.5), dict(task='multiply'), dict(num_steps=10), dict(size_test=2),
              dict(model_type='ffn'), dict(task_options=dict(a=1)), dict(eval_every=3), dict(learn_step=True)]
    assert len({ids(**base | d)[0] for d in differ}) == len(differ)
    eq(ids(**base, num_epochs=7), ids(**base, num_steps=7))
    with pytest.raises(ValueError, match='two names'): ids(**base, num_steps=7, num_epochs=7)

@pytest.mark.parametrize('name', recipe_names())
def test_the_default_number_of_updates_is_no_other_unit(name):
    "A number that is left out, that is None, and that the training function then takes is one unit"
    base = dict(task='add', model_type=name, vec_size=2)
    [settings] = full_settings(base)
    results = run_main(**base, size_train=64, size_val=8, size_test=8, num_steps=None, eval_every=1, latent_dim=4, compile=False,
                       callback=lambda model, history: False, report=None, progress=False)
    eq(settings['num_steps'], results[name]['history'].settings['num_steps'])
    eq(ids(**base), ids(**base, num_steps=settings['num_steps']))
    eq(ids(**base), ids(**base, num_epochs=settings['num_steps']))
    eq(ids(**base | {f'{name}_config': dict(num_steps=None)}), ids(**base))

def test_identity_has_the_version_and_the_function(monkeypatch):
    before = group_id(dict(a=1)),group_id(dict(a=1), trivial)
    monkeypatch.setattr('ebt_toy.__version__', '0.0.1')
    assert len({*before, group_id(dict(a=1)), group_id(dict(a=1), trivial)}) == 4

def test_a_model_of_ones_own():
    "Its settings may have functions as defaults, and its task a number of updates by its other name"
    from ebt_toy import data, register_model, register_task, runner, train_feedforward
    from ebt_toy.data import get_task
    def train_mine(train, val, test, input_dim, output_dim, make=sorted, latent_dim=4, num_steps=None, num_epochs=None, **options):
        return train_feedforward(train, val, test, input_dim, output_dim, latent_dim=latent_dim, num_epochs=num_epochs, num_steps=num_steps, **options)
    try:
        register_model('mine', train_mine)
        register_task('short', get_task('add').make, settings=dict(num_epochs=3))
        given = dict(task='short', model_type='mine', vec_size=2, size_train=64, compile=False)
        [settings] = full_settings(given)
        eq((settings['num_steps'], settings['make']), (3, sorted))
        [row] = sweep(given)
        eq(row['status'], 'finished')
    finally: del runner._recipes['mine'], data._tasks['short']

def test_a_setting_of_one_model_makes_no_second_run_of_the_other():
    rows = sweep(dict(a=[1]), run=trivial)
    eq(len(rows), 1)
    settings = [s for p in sweep_points(dict(model_type=['ebt', 'ffn'], n_optimization_steps=[1, 2])) for s in full_settings(p)]
    eq(len({group_id(s) for s in settings}), 3)

@pytest.mark.parametrize('space,message', [
    (dict(vecsize=2), "did you mean 'vec_size'"), (dict(task='add', model_type='ffn', step_size=[1, 2]), "unknown setting 'step_size'"),
    (dict(energy=[len]), 'energy: expected numbers'), (dict(step_size=[float('nan')]), 'step_size: expected numbers'),
    (dict(vec_size=[]), 'vec_size: expected at least one'), (dict(compile=[True, False]), 'compile, device: expected one value'),
    (dict(model_type='eb'), "unknown model 'eb'"), (dict(task='ad'), "unknown task 'ad'")])
def test_refusals(space, message):
    with pytest.raises(ValueError, match=message): sweep(space)

def test_refusals_with_a_function_of_ones_own():
    with pytest.raises(ValueError, match="got 'status'"): sweep(dict(status=1), run=trivial)
    with pytest.raises(ValueError, match='run: expected'): sweep(dict(a=1), run=3)
    with pytest.raises(ValueError, match='seeds: expected'): sweep(dict(a=1), seeds=[1, 1], run=trivial)

# Training

def test_scores_are_those_of_run_main():
    rows = sweep(tiny | dict(model_type='both'), seeds=[3, 5])
    results = run_main(**tiny, seeds=[3, 5], report=None, progress=False)
    eq([(r['model_type'], r['model_seed']) for r in rows], [('ebt', 3), ('ebt', 5), ('ffn', 3), ('ffn', 5)])
    for name in ('test_mse', 'val_mse', 'shell_mse'):
        eq([r[name] for r in rows], [v for n in ('ebt', 'ffn') for v in results[n][f'{name}_seeds']])
    assert all(r['status'] == 'finished' and r['step_size' if r['model_type'] == 'ebt' else 'n_layers'] in (1., 3) for r in rows)

def test_failures_do_not_stop_the_rest():
    rows = sweep(tiny | dict(model_type='ebt', step_size=[-1., 1., 1e30], num_steps=5), seeds=2)
    eq([r['status'] for r in rows], ['failed']*2 + ['finished']*2 + ['diverged']*2)
    assert 'step_size: expected' in rows[0]['error'] and 'finite' in rows[4]['error'] and rows[2]['error'] is None
    text = sweep_summary(rows)
    assert text.startswith('6 units: 2 failed, 2 finished, 2 diverged') and '✗ failed: step_size=-1.0, seeds 0, 1: ValueError' in text

def test_a_lack_of_memory_is_a_result():
    def hungry(settings, seeds): raise MemoryError('too\nlarge')
    [row] = sweep(dict(a=1), run=hungry)
    eq((row['status'], row['error']), ('failed', 'MemoryError: too large'))

def test_early_stopping_is_not_shared_between_seeds():
    "With `patience` all seeds of one call stop together: a unit would depend on its company"
    seen = []
    def note(settings, seeds): seen.append(seeds); return trivial(settings, seeds)
    sweep(dict(a=1, patience=[None, 2]), seeds=3, run=note)
    eq(seen, [[0, 1, 2], [0], [1], [2]])

# Going on

def test_finished_units_are_skipped(tmp_path):
    run,path = counted(),tmp_path/'r.db'
    first = sweep(dict(a=[1, 2]), seeds=2, run=run, store=path)
    eq(run.units, [(1, 0), (1, 1), (2, 0), (2, 1)])
    eq(sweep(dict(a=[1, 2]), seeds=2, run=run, store=path), first)
    eq(len(run.units), 4)
    more = sweep(dict(a=[3, 2.]), seeds=[1, 2], run=run, store=path)
    eq(run.units[4:], [(3, 1), (3, 2), (2., 2)])
    eq([r['score'] for r in more], [301, 302, 201, 202])
    eq(without(read_store(path, a=2, model_seed=[0, 1]), 'version'), first[2:])

def test_retry_failed(tmp_path):
    run,path = counted(bad=[2]),tmp_path/'r.db'
    again = lambda **how: sweep(dict(a=[1, 2]), run=run, store=path, **how)
    eq([r['status'] for r in again()], ['finished', 'failed'])
    eq([r['status'] for r in again()], ['finished', 'failed'])
    eq(run.units, [(1, 0), (2, 0)])
    run.bad = set()
    rows = again(retry_failed=True)
    eq(([r['status'] for r in rows], rows[1]['score'], run.units[2:]), (['finished']*2, 200, [(2, 0)]))
    eq(len(read_store(path)), 2)

def test_ctrl_c_keeps_what_is_there(tmp_path):
    def run(settings, seeds):
        if settings['a'] == 2: raise KeyboardInterrupt
        return trivial(settings, seeds)
    rows = sweep(dict(a=[1, 2, 3]), run=run, store=tmp_path/'r.db')
    eq([r['status'] for r in rows], ['finished', 'missing', 'missing'])
    eq(len(read_store(tmp_path/'r.db')), 1)

script = '''
import os, sys, time
from ebt_toy.sweeps import processes, sweep
from sweep_tasks import slow
if __name__ == '__main__':
    sweep(dict(a=range(100), log=sys.argv[2]), seeds=2, run=slow, store=sys.argv[1], executor=processes(2) if 'pool' in sys.argv else None)
'''

def started(tmp_path, *args):
    (tmp_path/'main.py').write_text(script)
    env = os.environ | dict(SLOW=str(0.2 if 'pool' in args else 0.05*('slow' in args)), PYTHONPATH=os.pathsep.join([str(Path(__file__).parent), os.environ.get('PYTHONPATH', '')]))
    return subprocess.Popen([sys.executable, tmp_path/'main.py', tmp_path/'r.db', tmp_path/'log', *args], env=env)

def alive(pid):
    try: return 'Z' not in Path(f'/proc/{pid}/stat').read_text().rsplit(')', 1)[1].split()[0]
    except OSError: return False

@pytest.mark.skipif(not Path('/proc/self/stat').exists(), reason="looks for processes in /proc")
def test_kill_9_loses_nothing(tmp_path):
    "A sweep is killed in the middle; its workers end too; no finished unit is lost or runs twice"
    lines = lambda: (tmp_path/'log').read_text().splitlines() if (tmp_path/'log').exists() else []
    pids = lambda: {int(l.split()[2]) for l in lines()}
    p = started(tmp_path, 'pool')
    while p.poll() is None and len(pids()) < 2: time.sleep(0.01)
    p.kill(), p.wait()
    workers,end = pids(),time.monotonic() + 5
    while any(map(alive, workers)) and time.monotonic() < end: time.sleep(0.02)
    assert len(workers) == 2 and not any(map(alive, workers))
    kept,before = {(r['a'], r['model_seed']) for r in read_store(tmp_path/'r.db')},len(lines())
    assert 0 < len(kept) < 200
    done = len(lines())
    p = started(tmp_path, 'pool')
    while p.poll() is None and len(pids()) < 3: time.sleep(0.01)
    p.send_signal(signal.SIGINT)
    eq(p.wait(20), 0)                  # the sweep returns what it has
    assert not any(map(alive, pids())) and done < len(lines()) < 200
    kept,before = {(r['a'], r['model_seed']) for r in read_store(tmp_path/'r.db')},len(lines())
    eq(started(tmp_path).wait(), 0)
    again = [tuple(map(int, l.split()[:2])) for l in lines()[before:]]
    everything = {(a, s) for a in range(100) for s in range(2)}
    eq(sorted(again), sorted(everything - kept))
    eq(sorted((r['a'], r['model_seed'], r['score']) for r in read_store(tmp_path/'r.db')), sorted((a, s, a*100 + s) for a,s in everything))

def test_two_sweeps_do_not_fill_one_store(tmp_path):
    "The second one is refused in one line, readers are not; the claim ends with its process, even if that is killed"
    path,space = tmp_path/'r.db',dict(a=range(100), log=str(tmp_path/'mine'))
    p = started(tmp_path, 'slow')
    while p.poll() is None and not (tmp_path/'log').exists(): time.sleep(0.01)
    run = counted()
    with pytest.raises(ValueError, match='store: expected one that no other sweep is filling') as e: sweep(space, run=run, store=path)
    assert '\n' not in str(e.value) and not run.units and len(read_store(path)) < 200 and p.poll() is None
    p.kill(), p.wait()
    def nested(settings, seeds):
        for other in (path, tmp_path/'..'/tmp_path.name/'r.db'):
            with pytest.raises(ValueError, match='no other sweep'): sweep(dict(a=1), run=trivial, store=other)
        return trivial(settings, seeds)
    for _ in range(2): eq([r['status'] for r in sweep(dict(a=[1, 2]), run=nested, store=path)], ['finished']*2)
    eq(store._ours, set())

# Executors

def test_pools(tmp_path, monkeypatch):
    "One pool for several checks, since starting one takes seconds"
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    monkeypatch.setenv('PYTHONPATH', os.pathsep.join([str(Path(__file__).parent), os.environ.get('PYTHONPATH', '')]))
    from sweep_tasks import about_worker, dying
    space = tiny | dict(model_type=['ebt', 'ffn'], num_steps=[2, 3])
    with processes(1, threads=1)() as pool:
        there,here = sweep(space, seeds=2, executor=pool),sweep(space, seeds=2)
        eq(without(there, 'seconds'), without(here, 'seconds'))
        [row] = sweep(dict(a=1), run=about_worker, executor=pool)
        assert row['pid'] != os.getpid() and row['threads'] == 1 and not row['hears_ctrl_c']
    rows = sweep(dict(a=[0, 1, 2, 3, 4]), run=dying, executor=processes(1), store=tmp_path/'r.db')
    eq([r['status'] for r in rows], ['finished']*2 + ['crashed'] + ['finished']*2)
    eq((rows[2]['error'], rows[4]['score']), ("its process died", 400))

def test_any_executor_will_do():
    with ThreadPoolExecutor(3) as pool: rows = sweep(dict(a=range(50)), seeds=3, run=trivial, executor=pool)
    eq([r['score'] for r in rows], [a*100 + s for a in range(50) for s in range(3)])

def test_what_cannot_be_sent_is_refused():
    class Sends(Executor):
        def submit(self, f, *args):
            future = Future()
            try: f,args = pickle.loads(pickle.dumps((f, args)))
            except Exception as e: future.set_exception(e)
            else: future.set_result(f(*args))
            return future
    eq(sweep(dict(a=[1, 2]), run=trivial, executor=Sends())[1]['score'], 200)
    with pytest.raises(ValueError, match='run: expected a function at the top level'): sweep(dict(a=1), run=counted(), executor=Sends())

def test_a_broken_pool_is_refused():
    class Broken(Executor):
        def submit(self, f, *args): raise BrokenExecutor('gone')
    for executor in (Broken(), Broken):
        with pytest.raises(ValueError, match='executor: expected a pool'): sweep(dict(a=1), run=trivial, executor=executor)

def test_plain_numbers_come_back():
    def run(settings, seeds): return [dict(a=np.float32(0.5), b=np.int64(s), c=float('inf')) for s in seeds]
    rows = sweep({}, run=run, seeds=np.arange(2))
    eq([(r['a'], r['b'], r['c'], type(r['model_seed'])) for r in rows], [(0.5, s, float('inf'), int) for s in range(2)])

def test_ten_thousand_trivial_units(tmp_path):
    start = time.perf_counter()
    rows = sweep(dict(a=range(10_000)), run=trivial, store=tmp_path/'r.db')
    assert len(rows) == 10_000 and time.perf_counter() - start < 10

# The store

def filled(path, n):
    with open_store(path) as db:
        index_settings(db, ['a', 'b'])
        scores = '{"test_mse": 0.5, "val_mse": 0.25}'
        with db:
            db.executemany('INSERT INTO groups VALUES (?, ?, ?, ?)',
                           ((i, f'id{i}', '0.2.0', f'{{"a": {i//100}, "b": {i%100}, "task": "add"}}') for i in range(n)))
            db.executemany('INSERT INTO units VALUES (?, ?, ?, ?, ?, ?)', ((i, 0, 'finished', 1., None, scores) for i in range(n)))

def test_a_large_store_answers_fast(tmp_path):
    filled(tmp_path/'r.db', 100_000)
    start = time.perf_counter()
    rows = read_store(tmp_path/'r.db', a=[3, 700], b=range(50, 60), status='finished')
    assert time.perf_counter() - start < 0.5
    eq([(r['a'], r['b']) for r in rows], [(a, b) for a in (3, 700) for b in range(50, 60)])

def test_filters(tmp_path):
    path = tmp_path/'r.db'
    settings = [dict(a=1, b=None, c=dict(x=[1, 2])), dict(a=1.5, b='it’s'), dict(a=True, b="'; DROP TABLE units; --")]
    with open_store(path) as db:
        for i,s in enumerate(settings): put_units(db, f'id{i}', '0.2.0', s, [(0, 'finished', 1., None, '{"y": NaN}')])
    a_of = lambda **f: [r['a'] for r in read_store(path, **f)]
    eq(a_of(), [1, 1.5, True])
    eq((a_of(b=None, a=1), a_of(a=1.5), a_of(b="'; DROP TABLE units; --"), a_of(b=['it’s', None])), ([1], [1.5], [True], [1, 1.5]))
    eq((a_of(c=dict(x=[1, 2])), a_of(status='failed'), a_of(a=9), a_of(a=[])), ([1], [], [], []))
    with pytest.raises(ValueError, match="unknown setting 'e'"): a_of(e=1)
    with pytest.raises(ValueError, match='a name as in Python'): a_of(**{"a') OR ('1": 1})

def tables(path, statements):
    with sqlite3.connect(path) as db: db.executescript(statements)
    db.close()

def make_other(path, kind):
    if kind == 'text': path.write_text('no database at all '*100)
    if kind == 'empty': path.touch()
    if kind == 'application': tables(path, "CREATE TABLE a(b); PRAGMA user_version=1; PRAGMA journal_mode=WAL")
    if kind in ('version', 'damaged', 'cut'): filled(path, 2000)
    if kind == 'version': tables(path, "PRAGMA user_version=2")
    content = bytearray(path.read_bytes())
    if kind == 'damaged': content[20_000:60_000] = b'\7'*40_000
    if kind == 'cut': content = content[:len(content)//2]
    path.write_bytes(content)

@pytest.mark.parametrize('kind', 'text empty application version damaged cut'.split())
def test_other_files_are_refused_and_stay(tmp_path, kind):
    path,run = tmp_path/'r.db',counted()
    make_other(path, kind)
    before = path.read_bytes()
    for use in (lambda: sweep(dict(a=1), run=run, store=path), lambda: read_store(path)):
        with pytest.raises(ValueError, match='^store: expected [^\n]*$'): use()
    eq((path.read_bytes() == before, [p.name for p in tmp_path.iterdir()], run.units), (True, ['r.db'], []))

def test_refused_places(tmp_path):
    for path in (tmp_path, tmp_path/'none'/'r.db'):
        with pytest.raises(ValueError, match='store: expected'): sweep(dict(a=1), run=trivial, store=path)
    with pytest.raises(ValueError, match='store: expected a file'): read_store(tmp_path/'r.db')
    assert not list(tmp_path.iterdir())

def test_full_disk(tmp_path, monkeypatch):
    "No room for more pages: one line, and the store keeps what it held"
    path = tmp_path/'r.db'
    rows = sweep(dict(a=range(20)), run=trivial, store=path)
    connect = store._connect
    def small(path, to_write):
        db = connect(path, to_write)
        db.execute('PRAGMA max_page_count=12')
        return db
    monkeypatch.setattr(store, '_connect', small)
    with pytest.raises(OSError, match='full; it keeps what it held before'): sweep(dict(a=range(5000)), run=trivial, store=path)
    monkeypatch.undo()
    kept = read_store(path)
    assert 20 <= len(kept) < 5000
    eq(without(kept[:20], 'version'), rows)
    eq(len(sweep(dict(a=range(5000)), run=trivial, store=path)), 5000)

def test_a_crash_while_the_log_is_copied(tmp_path):
    "The header may be newer than the rest of the file; the rest is in the log"
    path,part = tmp_path/'r.db',tmp_path/'part.db'
    with open_store(path) as db:
        for i in range(200): put_units(db, f'id{i}', '0.2.0', dict(a=i, pad='x'*500), [(0, 'finished', 1., None, '{}')])
        old = path.read_bytes()
        shutil.copy(tmp_path/'r.db-wal', tmp_path/'part.db-wal')
    new = path.read_bytes()
    assert len(new) > len(old) and new[:4096] != old[:4096]
    part.write_bytes(new[:4096] + old[4096:])
    eq([r['a'] for r in read_store(part)], list(range(200)))

def test_a_store_is_read_while_a_sweep_writes(tmp_path):
    seen = []
    def run(settings, seeds):
        if settings['a']: seen.append(len(read_store(tmp_path/'r.db')))
        return trivial(settings, seeds)
    sweep(dict(a=range(4)), run=run, store=tmp_path/'r.db')
    eq(seen, [1, 2, 3])

# Tables and figures

def test_table_and_figure():
    rows = [dict(k=k, m=m, model_seed=s, y=10.**k + s, status='finished', seconds=0., error=None) for k in (1, 2, 3) for m in 'ab' for s in range(3)]
    rows.append(dict(k=1, m='a', model_seed=3, status='diverged', seconds=0., error='x'))
    table = sweep_table(rows, ['k', 'm'], 'y')
    eq(table[0], dict(k=1, m='a', units=4, failed=1, median=11., lowest=10., highest=12.))
    eq(len(table), 6)
    eq([len(l) for l in format_table(table).splitlines()], [len(format_table(table).splitlines()[0])]*7)
    ax = plot_sweep(rows, 'k', 'y', by='m')
    eq([c.lines[0].get_xydata().tolist() for c in ax.containers], [[[1, 11], [2, 101], [3, 1001]]]*2)
    eq((ax.get_xscale(), ax.get_yscale(), [t.get_text() for t in ax.get_legend().texts]), ('linear', 'log', ['m = a', 'm = b']))
    ax = plot_sweep(rows, 'm', 'y')
    eq([t.get_text() for t in ax.get_xticklabels()], ['a', 'b'])
    with pytest.raises(ValueError, match="unknown setting or score 'z'"): sweep_table(rows, 'z', 'y')

def test_csv_reads_back(tmp_path):
    rows = sweep(dict(a=[1, 2], c=[{'x': 1}]), seeds=2, run=trivial)
    with open(export_rows(rows, tmp_path/'r.csv'), newline='') as f: back = list(csv.DictReader(f))
    eq([(r['a'], r['c'], r['model_seed'], r['score']) for r in back], [(str(r['a']), '{"x": 1}', str(r['model_seed']), str(r['score'])) for r in rows])
    with pytest.raises(ValueError, match='path: expected a name in'): export_rows(rows, tmp_path/'r.txt')

def test_frame():
    pandas = pytest.importorskip('pandas')
    rows = sweep(dict(a=[1, 2]), seeds=2, run=trivial)
    frame = store.rows_to_frame(rows)
    eq((isinstance(frame, pandas.DataFrame), frame['score'].tolist()), (True, [100, 101, 200, 201]))

def test_parquet_reads_back(tmp_path):
    pandas,_ = pytest.importorskip('pandas'),pytest.importorskip('pyarrow')
    def run(settings, seeds): return [dict(score=0.5, **dict(more=1) if settings['a'] == 2 else {}) for s in seeds]
    rows = sweep(dict(a=[1, 2, 'all'], b=[1, 2.5], c=[{'x': 1}], d=[None, True]), run=run)
    back = pandas.read_parquet(export_rows(rows, tmp_path/'r.parquet'))
    eq((back['a'].tolist(), back['b'].tolist()), ([str(r['a']) for r in rows], [r['b'] for r in rows]))
    eq((back['c'][0], back['more'].isna().sum(), len(back)), ('{"x": 1}', 8, 12))

# The command

def test_command(tmp_path, capsys):
    from ebt_toy.cli import main, parse_space
    eq(parse_space(['--task', 'add,divide', '--lr=1e-3,0.01', '--ebt_config', 'rule=fixed,latent_dim=4', '--task_options', 'a=1']),
       dict(task=['add', 'divide'], lr=[1e-3, 0.01], ebt_config=[dict(rule='fixed', latent_dim=4)], task_options=[dict(a=1)]))
    mine = tmp_path/'mine.py'
    mine.write_text("import torch\nfrom ebt_toy import register_elementwise\nregister_elementwise('subtract', torch.sub)")
    grid = '--task add,subtract --model_type ffn --vec_size 2 --size_train 64 --num_steps 2 --latent_dim 4 --compile no --quiet'.split()
    args = ['sweep', str(tmp_path/'r.db'), '--seeds', '2', '--seed', '5', '--module', str(mine), '--export', str(tmp_path/'r.csv'), *grid]
    eq(main(args), 0)
    out = capsys.readouterr().out
    assert out.startswith('4 units: 4 finished') and 'subtract         ffn      2       0' in out
    rows = read_store(tmp_path/'r.db')
    eq([(r['task'], r['seed'], r['model_seed']) for r in rows], [(t, 5, s) for t in ('add', 'subtract') for s in (0, 1)])
    eq(len((tmp_path/'r.csv').read_text().splitlines()), 5)
    seconds = [r['seconds'] for r in rows]
    eq(main(args), 0)
    eq([r['seconds'] for r in read_store(tmp_path/'r.db')], seconds)          # nothing ran again
    eq(main([*args[:-1], '--num_steps', '0']), 1)
    assert '✗ failed: task=add, seeds 0, 1: ValueError' in capsys.readouterr().out
    eq(main(['sweep', str(tmp_path/'r.csv')]), 2)
    assert capsys.readouterr().err == f"ebt_toy sweep: store: expected a store of version 1, got a file that is no SQLite database: '{tmp_path}/r.csv'\n"

def test_several_grids_are_one_sweep(tmp_path):
    def run(settings, seeds): return [dict(score=sum(settings.values()) + s) for s in seeds]
    grids = [dict(a=[1, 2]), dict(a=2, b=[3, 4]), dict(a=[2, 5])]
    rows = sweep(grids, seeds=2, run=run, store=tmp_path/'s.db', progress=False)
    eq([(r['a'], r.get('b'), r['model_seed'], r['score']) for r in rows],
       [(a, b, s, a + (b or 0) + s) for a,b in ((1, None), (2, None), (2, 3), (2, 4), (5, None)) for s in range(2)])   # a=2 once
    eq(sweep_points(grids), [dict(a=1), dict(a=2), dict(a=2, b=3), dict(a=2, b=4), dict(a=2), dict(a=5)])
    with pytest.raises(ValueError, match='unknown setting'): sweep([dict(task='add'), dict(taks='add')])

def test_what_is_no_executor_is_named():
    for bad in (3, 'x', lambda: 3):
        with pytest.raises(ValueError, match='executor: expected a pool with `submit`'): sweep(dict(a=[1]), run=trivial, executor=bad, progress=False)
