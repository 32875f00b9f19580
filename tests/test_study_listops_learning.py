"What the models learn of ListOps: rows and functions of the study."
import itertools
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from ebt_toy.ladder import count_values
from ebt_toy.listops_learning import _bracketings, _data_shown, _fillings, _leading, _likeliest, _listops_sets, listops_scores
from ebt_toy.protocol import PILOT
from ebt_toy.store import import_rows

kept = Path(__file__).parents[1]/'nbs'/'studies'/'listops_learning.csv'

def test_kept_rows_of_listops_are_whole():
    rows = import_rows(kept)
    groups = Counter((r['model'], r['brackets']) for r in rows)
    assert set(groups) == set(itertools.product(('EBT', 'FFN'), ('kept', 'dropped'))) and len(set(groups.values())) == 1
    assert {r['num_steps'] for r in rows} == {3000} and len({(r['model'], r['brackets'], r['seed'], r['model_seed']) for r in rows}) == len(rows)
    assert {r['status'] for r in rows} == {'finished'} and PILOT not in {r['seed'] for r in rows}
    for r in rows:
        assert ('steps_plain' in r) == (r['model'] == 'EBT') and sum(n for *_,n in r['depth_plain']) == r['size_test']
        assert r['plain'] == pytest.approx(sum(a*n for _,a,n in r['depth_plain'])/r['size_test'], abs=2e-4)
        if r['model'] == 'EBT': assert r['steps_plain'][5] == pytest.approx(r['plain'], abs=0.02) == r['starts_plain'][0]
    for rules in (by_set for r in rows for by_set in r['rules'].values()): assert rules['1 level exact'] > rules['majority class']

def test_a_run_of_listops_scores_what_its_rows_have():
    settings = dict(brackets='dropped', vec_size=10, size_train=64, size_test=20, seed=3, lr=1e-3, num_steps=2)
    [e],[f] = (listops_scores(settings | dict(model=m), [0]) for m in ('EBT', 'FFN'))
    row = {r['model']: r for r in import_rows(kept)}
    for m,found in (('EBT', e), ('FFN', f)):
        assert set(found) == set(row[m]) - set(settings) - {'model', 'model_seed', 'status', 'seconds', 'error', 'version'}
    assert e['rules'] == f['rules'] and all(0 <= a <= 1 for k in ('plain', 'longer', 'deeper', 'wider') for a in (e[k], f[k]))

def all_bracketings(operator, most, open=1):
    "By brute force: the numbers of arguments with which these nodes fill so many open places"
    found = []
    for some in itertools.product(range(2, most + 1), repeat=sum(operator)):
        n_args = np.zeros(len(operator), int)
        n_args[np.flatnonzero(operator)] = some
        places = open + np.cumsum(n_args - 1)
        if (places[:-1] > 0).all() and places[-1] == 0: found.append(tuple(n_args))
    return found

@pytest.mark.parametrize('most', [4, 10])
def test_bracketings_are_equally_likely(most):
    operator = np.array([1, 0, 1, 0, 0, 1, 0, 1, 0, 0, 0, 0], bool)
    every,n = all_bracketings(operator, most),4000
    trees = _bracketings(np.where(operator, 10, 5).astype(np.int8), n, np.random.default_rng(0), most)
    counts = Counter(map(tuple, trees.n_args.reshape(n, -1)))
    assert set(counts) == set(every) and len(every) > 5
    expected = n/len(every)
    assert all(abs(c - expected) < 5*expected**0.5 for c in counts.values())

def test_ways_count_bracketings():
    operator = np.array([1, 0, 1, 0, 1, 0, 0, 0], bool)
    rows = _fillings(operator, 10)
    for i in range(len(operator)):          # only ratios within a row count
        counts = np.array([len(all_bracketings(operator[i:], 10, places)) for places in range(1, len(operator) + 1)])
        assert rows[i, 0] == 0 and rows[i, 1:len(operator) + 1] == pytest.approx(counts/counts.max())

def test_rules_without_brackets():
    data,tests = _listops_sets(3, 10, 300, 20)
    counts,(x,y) = count_values(data.train_dataset),data.test_dataset.tensors
    shown = _data_shown(data, 'dropped')
    assert shown.train_dataset.tensors[0].shape[1] == shown.test_dataset.tensors[0].shape[1] == shown.input_dim < data.input_dim
    assert not any((shown.test_dataset.tensors[0] == t).any() for t in (15, 16, 17))
    unique = torch.tensor([[12, 4, 9, 3, 15] + [0]*3])            # one operator alone: one tree
    assert _leading(counts, unique).tolist() == _likeliest(unique).tolist() == [8]
    assert (_likeliest(x, n=50) == y).float().mean() >= (_leading(counts, x) == y).float().mean() - 0.1
