"Published tables, rerun: rows and functions of the study."
import math
from collections import Counter
from pathlib import Path

import pytest
import torch

from ebt_toy.data import SyntheticData
from ebt_toy.protocol import DRAWS, study_runs
from ebt_toy.published_tables import TABLE_MODELS, TRIVIAL, published_tables_scores, success_bound, success_rate, sums_data, trivial_answer
from ebt_toy.store import import_rows

tables = Path(__file__).parents[1]/'nbs'/'studies'/'published_tables.csv'

def test_published_tables_are_whole():
    rows = import_rows(tables)
    per_cell = Counter((r['task'], r['model'], r['num_steps']) for r in rows)
    assert {r['status'] for r in rows} == {'finished'} and {r['seed'] for r in rows} == set(DRAWS)
    trained = {k: n for k,n in per_cell.items() if k[1] not in TRIVIAL[k[0]]}
    assert {k[1] for k in trained} == set(TABLE_MODELS) and len({n for (_,_,n) in trained}) == 1
    for exact in (False, True): assert len({n for (t,*_),n in trained.items() if t.startswith('matrix') != exact}) == 1
    assert {t: [m for s,m,_ in per_cell if s == t and m in TRIVIAL[t]] for t in TRIVIAL} == TRIVIAL
    assert all(per_cell[t, m, 0] == len(DRAWS) for t,ms in TRIVIAL.items() for m in ms)
    assert all(r['bound'] == pytest.approx(success_bound(r['task']), rel=1e-3) for r in rows if r['task'] in ('sum', 'product'))

def test_a_trivial_answer_scores_what_its_row_says():
    for task,name in (('product', 'least squares'), ('matrix_inverse', 'polynomial of A')):
        [row] = [r for r in study_runs(import_rows(tables), task=task, model=name) if r['seed'] == DRAWS[0]]
        [scores] = published_tables_scores({k: row[k] for k in ('task', 'model', 'latent_dim', 'lr', 'num_steps', 'seed')}, [0])
        assert [scores[k] for k in ('id', 'hard')] == pytest.approx([row['id'], row['hard']], rel=1e-3)

@pytest.mark.parametrize('d', [4, 8, 12])
def test_right_weights_succeed_and_others_do_not(d):
    x,y = sums_data('product', 3, d, device='cpu').test_dataset.tensors
    s = d//4
    a,b = x.double()[:, :s].sum(1),x.double()[:, s - s//2:2*s - s//2].sum(1)
    torch.testing.assert_close(y[:, 0], (a*b).float())
    def error(off): return ((((1 - off)*a + off*(x.double().sum(1) - a))*((1 - off)*b + off*(x.double().sum(1) - b))) - a*b).pow(2).mean().item()
    assert error(1e-6) < success_bound('product', d)/50 and error(1e-4) > 50*success_bound('product', d)
    assert error(1e-5) == pytest.approx(success_bound('product', d), rel=0.2)

def test_trivial_answers_are_exact_where_they_can_be():
    g = torch.Generator().manual_seed(0)
    def inverse_like(n):           # y = 3I − 2A + A²/2, A symmetric: exact for the polynomial, and its columns repeat
        r = torch.randn(n, 4, 4, generator=g)
        a = r + r.mT
        return torch.utils.data.TensorDataset(a.flatten(1), (3*torch.eye(4) - 2*a + 0.5*a @ a).flatten(1))
    data = SyntheticData(inverse_like(300), inverse_like(50), inverse_like(50), 16, 16)
    x,y = data.test_dataset.tensors
    assert (trivial_answer('polynomial of A', data)(x) - y).abs().max() < 1e-4
    assert torch.equal(trivial_answer('copy of the input', data)(x), x.double())
    X,Y = (t.double() for t in data.train_dataset.tensors)
    upper = torch.cat([X[:, torch.triu(torch.ones(4, 4)).bool().flatten()], torch.ones(300, 1)], 1)      # no column twice
    least = (upper @ torch.linalg.lstsq(upper, Y).solution - Y).pow(2).mean()
    assert (trivial_answer('least squares', data)(X) - Y).pow(2).mean() == pytest.approx(least.item(), rel=1e-6)

def test_success_rate():
    runs = [dict(hard=v, bound=1.) for v in (0.5, 0.9, 1., 2., math.inf, math.nan)]
    s = success_rate(runs)
    assert (s['n'], s['of']) == (2, 6) and s['low'] < 2/6 < s['high']
