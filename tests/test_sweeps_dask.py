"A sweep on a real cluster of several processes, with a worker that is killed in the middle; needs the extra `distributed`."
import os, random, signal, threading, time
from pathlib import Path

import pytest
from fastcore.test import test_eq as eq

from ebt_toy.store import read_store
from ebt_toy.sweeps import sweep

distributed = pytest.importorskip('distributed')
import dask      # it comes with `distributed`

def local_cluster(n):
    "A cluster on the loopback address that gives workers all the time they need to come back"
    dask.config.set({'distributed.deploy.lost-worker-timeout': '1 hour'})
    return distributed.LocalCluster(n_workers=n, threads_per_worker=1, host='127.0.0.1', dashboard_address=None, silence_logs=50)

@pytest.fixture(scope='module')
def cluster():
    "Three workers on the loopback address that find the functions of these tests"
    path = os.pathsep.join([str(Path(__file__).parent), os.environ.get('PYTHONPATH', '')])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('PYTHONPATH', path), patch.syspath_prepend(str(Path(__file__).parent))
        with local_cluster(3) as cluster: yield cluster

def test_sweep_on_a_cluster(cluster, tmp_path):
    from sweep_tasks import dying_once
    space = dict(a=range(30), log=str(tmp_path/'log'), dies=7)
    with distributed.Client(cluster) as client:
        rows = sweep(space, seeds=2, run=dying_once, executor=client.get_executor(), store=tmp_path/'r.db')
    eq([(r['score'], r['status']) for r in rows], [(a*100 + s, 'finished') for a in range(30) for s in range(2)])
    started = [l.split() for l in (tmp_path/'log').read_text().splitlines()]
    assert len({pid for *_,pid in started}) > 1 and sum(a == '7' for a,*_ in started) == 4     # two units, twice
    eq(len(read_store(tmp_path/'r.db')), 60)

def test_a_unit_that_kills_every_worker_is_recorded(cluster, tmp_path):
    from sweep_tasks import dying
    with distributed.Client(cluster) as client: rows = sweep(dict(a=range(1, 4)), run=dying, executor=client.get_executor())
    eq([r['status'] for r in rows], ['finished', 'failed', 'finished'])
    assert 'KilledWorker' in rows[1]['error']

def sweep_under_fire(client, workers, folder, units, kills, seconds, seed=0):
    "Rows of a sweep whose workers are killed at random moments; what was started after each kill though it was stored by then; kills"
    from sweep_tasks import napping
    log,g,over,again,killed = folder/'log',random.Random(seed),threading.Event(),[],[]
    lines = lambda: [int(l.split()[0]) for l in log.read_text().splitlines()] if log.exists() else []
    marks = []
    def fire():
        while not over.is_set() and len(killed) < kills:
            time.sleep(g.uniform(0.2, 0.9)*seconds*units/kills/len(workers()))
            up = [w for w in workers() if w.process and w.process.status == distributed.Status.running]
            pids = [w.pid for w in up if w.pid]             # of worker processes of this cluster; one that dies as it starts is not replaced
            if not pids or not lines(): continue
            killed.append(g.choice(pids))
            try: os.kill(killed[-1], signal.SIGKILL)
            except ProcessLookupError: killed.pop(); continue
            marks.append(({r['a'] for r in read_store(folder/'r.db')}, len(lines())))
    thread = threading.Thread(target=fire)
    space = dict(a=range(units), log=str(log), nap=seconds)
    (folder/'r.db').exists() or sweep(space | dict(a=[-1]), run=napping, store=folder/'r.db')      # so that it can be read
    thread.start()
    try: rows = sweep(space, run=napping, executor=client.get_executor(), store=folder/'r.db')
    finally: over.set(), thread.join()
    started = lines()
    return rows,[a for stored,n in marks for a in started[n:] if a in stored],killed

def test_workers_killed_at_random_moments(cluster, tmp_path):
    "No unit that is in the store runs again, and the table is that of an undisturbed sweep"
    from sweep_tasks import napping
    with distributed.Client(cluster) as client:
        rows,again,killed = sweep_under_fire(client, lambda: list(cluster.workers.values()), tmp_path, units=60, kills=3, seconds=0.1)
    calm = sweep(dict(a=range(60), log=str(tmp_path/'other'), nap=0.), run=napping)
    plain = lambda rows: [(r['a'], r['model_seed'], r['score'], r['status'], r['error']) for r in rows]
    assert killed and not again
    eq(plain(rows), plain(calm))
    eq(len(read_store(tmp_path/'r.db')), 61)

def test_training_on_a_cluster(cluster):
    space = dict(task='add', vec_size=2, size_train=64, num_steps=2, latent_dim=4, model_type=['ebt', 'ffn'], compile=False, device='cpu')
    with distributed.Client(cluster) as client: there = sweep(space, seeds=2, executor=client.get_executor())
    here = sweep(space, seeds=2)
    for a,b in zip(there, here, strict=True): eq((a['model_type'], a['status'], pytest.approx(a['test_mse'], rel=1e-5)), (b['model_type'], b['status'], b['test_mse']))
