"The studies: their rows, their command, and that a run gives what its row says."
import math
from collections import Counter
from itertools import combinations
from pathlib import Path
from statistics import median

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st

from ebt_toy import cli
from ebt_toy.checking import (STUDIED_MODELS, STUDIED_TASKS, LearnedEquation, SolvingFFN, best_network, checking_runs,
                              checking_scores)
from ebt_toy.core import generator
from ebt_toy.energies import Quadratic
from ebt_toy.protocol import (DRAWS, PILOT, RATES, chosen_rate, format_repetition, further_median, lowest, median_interval,
                              paired_ratio, repeated_medians, study_rows, study_runs)
from ebt_toy.store import export_rows, import_rows, read_store

kept = Path(__file__).parents[1]/'nbs'/'studies'/'checking.csv'

def test_rows_come_back_from_a_file(tmp_path):
    rows = [dict(task='add', n=3, x=0.25, sizes=[1, 2], more=dict(a=1)), dict(task='1e', x=math.inf, note='a, "b"\nc')]
    assert import_rows(export_rows(rows, tmp_path/'r.csv')) == rows
    with pytest.raises(ValueError): import_rows(tmp_path)

def test_kept_rows_are_whole():
    rows = import_rows(kept)
    groups = Counter((r['task'], r['vec_size'], r['model'], r['latent_dim'], r['num_steps']) for r in rows)
    assert {r['status'] for r in rows} == {'finished'} and all(n == 20 or n == 15 and d == 5 for (_,d,*_),n in groups.items())
    assert {r['model'] for r in rows} <= set(STUDIED_MODELS) and {(r['task'], r['vec_size']) for r in rows} <= set(STUDIED_TASKS.values())
    assert {r['seed'] for r in rows} == set(DRAWS) and len({(*k, r['lr']) for r in rows for k in [(r['task'], r['vec_size'], r['model'], r['latent_dim'])]}) == len(groups)

def test_a_run_gives_what_its_row_says():
    row = checking_runs(import_rows(kept), 'solve2', 'multiplying FFN')[0]
    settings = {k: row[k] for k in ('task', 'vec_size', 'seed', 'model', 'latent_dim', 'lr', 'num_steps')}
    [scores] = checking_scores(settings, [row['model_seed']])
    for k in ('val', 'mse_0', 'mse_1', 'mse_2'): assert scores[k] == pytest.approx(row[k], rel=0.1)     # the row is from a GPU, which draws other batches
    assert (scores['n_params'], scores['training_flops'], scores['flops']) == (row['n_params'], row['training_flops'], row['flops'])

def test_runs_and_the_best_network():
    rows = import_rows(kept)
    assert {r['latent_dim'] for r in checking_runs(rows, 'solve5', 'bowl energy')} == {512} and {r['latent_dim'] for r in checking_runs(rows, 'solve5', 'bowl energy', 128)} == {128}
    for task in ('divide', 'solve2', 'solve5'):
        best = median(r['mse_0'] for r in best_network(rows, task))
        assert all(best <= median(r['mse_0'] for r in runs) for m in ('FFN', 'gated FFN', 'multiplying FFN') for w in (128, 512) if (runs := checking_runs(rows, task, m, w)))

def test_pairs():
    r = paired_ratio([2., 4., 6., 8.], [1., 1., 1., 16.], per_draw=2)
    assert (r['median'], r['n'], r['of']) == (3., 3, 4) and 0.5 <= r['low'] <= 3 <= r['high'] <= 6

def test_intervals_cross_draws_and_seeds():
    "What depends on the seed alone, or on the draw alone, is as uncertain as so many seeds or draws"
    v = np.array([1., 2., 4., 8., 16.])
    assert median_interval(np.tile(v, 4)) == (1, 16) and median_interval(np.repeat(v, 5)) == (1, 16)
    assert median_interval(np.tile([1., 1., 1., 1., np.inf], 4))[1] in (1, np.inf) and median_interval([3.]*20) == (3, 3)
    with pytest.raises(ValueError, match='expected 5 runs on each draw, got 17 runs'): median_interval(range(17))

def scored_by_formula(settings, seeds):
    return [dict(val=abs(settings['lr'] - settings['best']), mse=s) for s in seeds]

def test_the_learning_rate_is_chosen_by_validation_on_a_draw_of_its_own(tmp_path):
    cells = [dict(best=lr, num_steps=n) for lr in RATES for n in (10, 20)]
    rows = study_rows(scored_by_formula, cells, seeds=3, store=tmp_path/'s.db', progress=False)
    assert len(rows) == 2*len(RATES)*len(DRAWS)*3 and all(r['lr'] == r['best'] and r['seed'] in DRAWS for r in rows) and PILOT not in DRAWS
    assert chosen_rate([dict(c, seed=PILOT, lr=lr) | dict(val=v) for c in cells[:1] for lr,v in zip(RATES, (float('inf'), 1.))], cells[0]) == RATES[1]
    assert len(study_runs(rows, best=RATES[0], num_steps=10)) == len(DRAWS)*3

def scored_until_stopped(settings, seeds):
    if settings['seed'] == PILOT and settings['lr'] == RATES[1]: raise KeyboardInterrupt
    return [dict(val=1.) for _ in seeds]

def test_a_study_ends_where_it_was_stopped():
    rows = study_rows(scored_until_stopped, [dict(a=1, num_steps=5)], progress=False)
    assert {r['status'] for r in rows} == {'finished', 'missing'} and {r['seed'] for r in rows} == {PILOT}

def test_a_study_is_repeated_with_other_seeds(tmp_path, monkeypatch, capsys):
    def study(tasks=('one', 'two'), num_steps=5, **options):
        return study_rows(scored_at_random, [dict(task=t, num_steps=num_steps) for t in tasks], **options)
    monkeypatch.setitem(cli.STUDIES, 'checking', study)
    monkeypatch.setitem(cli.STUDIES, 'recipe', lambda num_steps=5, **options: study(**options))
    first = tmp_path/'first.csv'
    assert cli.main(['study', 'checking', '--quiet', '--export', str(first)]) == 0
    other = ['--draws', '3001,3002', '--pilot', '3000', '--seeds', '7,8', '--quiet', '--store', str(tmp_path/'s.db')]
    assert cli.main(['study', 'checking', *other, '--tasks', 'two', '--num_steps', '5', '--against', str(first)]) == 0
    assert '1 of 1 medians (100%) lie in the range' in capsys.readouterr().out
    rows = read_store(tmp_path/'s.db')
    assert {r['task'] for r in rows} == {'two'} and {(r['seed'], r['model_seed']) for r in rows if r['seed'] != 3000} == {(d, s) for d in (3001, 3002) for s in (7, 8)}
    assert {r['seed'] for r in rows} == {3000, 3001, 3002} and {r['lr'] for r in rows if r['seed'] != 3000} == {RATES[0]}
    (tmp_path/'other.csv').write_text('a,b\n1,2\n')
    for args,why in [(['checking', '--against', str(tmp_path/'other.csv')], 'against: expected the rows of a study, got'),
                     (['recipe', '--tasks', 'one'], "tasks: expected none, since recipe runs whole, got 'one'"),
                     (['checking', '--tasks', 'tow'], "unknown task 'tow'; did you mean 'two'"),
                     (['checking', '--draws', '1;2'], "draws: expected whole numbers with commas between them, got '1;2'"),
                     (['checking', '--draws', '1000'], 'draws: expected other seeds than that of the pilots, 1000, got [1000]'),
                     (['checking', '--num_steps', '6', '--quiet', '--against', str(first)], 'again: expected runs of a cell that the study has')]:
        assert cli.main(['study', *args]) == 2
        assert why in capsys.readouterr().err

def scored_at_random(settings, seeds):
    return [dict(val=settings['lr'], mse=np.random.default_rng([settings['seed'], s]).uniform(1, 2), lost=float('nan'), same=1., n=s) for s in seeds]

def test_a_repetition_that_differs_is_found():
    cells = [dict(width=w, lr=1e-3, num_steps=10) for w in range(3)]
    first,again = study_rows(scored_at_random, cells, progress=False),study_rows(scored_at_random, cells, 5, draws=[1], progress=False)
    for r in again: r['mse'] = float('nan') if r['width'] == 2 else r['mse']*(1 if r['width'] else 100)
    found = repeated_medians(first, again[::-1])
    assert [(r['cell']['width'], r['score'], r['inside']) for r in found] == [(0, 'mse', False), (1, 'mse', True), (2, 'mse', False)]
    told = format_repetition(found, most=1)
    assert told.startswith('1 of 3 medians (33%)') and told.endswith('and 1 more') and 'now inf' in told

@given(st.lists(st.floats(allow_nan=False), min_size=1, max_size=40), st.integers(1, 30), st.floats(0.5, 0.99))
def test_the_range_of_a_further_median(values, n, level):
    low,high,p = further_median(values, n, level)
    assert low <= high and level <= p <= 1 and {low, high} <= {*values, float('inf'), -float('inf')}
    assert further_median(values[::-1], n, level) == (low, high, p)

def test_the_range_of_a_further_median_by_counting():
    "Each way in which old and new values can be ordered, counted one by one"
    for N,n in (4, 1), (5, 3), (6, 2), (7, 3), (4, 4):
        low,high,p = further_median(range(N), n, 0.5)
        inside = []
        for places in combinations(range(N + n), n):
            old = [i for i in range(N + n) if i not in places]
            inside.append(old[int(low)] <= np.median(places) <= old[int(high)])
        assert np.isclose(np.mean(inside), p) if n % 2 else np.mean(inside) >= p

def test_the_learned_equation_takes_gauss_newton_steps():
    "Slopes as autograd finds them, and a step that ends at the lowest point of the linearized residual"
    model,(x,y) = LearnedEquation(4, 2, 8, seed=1).double(),torch.randn(2, 5, 4, dtype=torch.float64, generator=generator(0))
    y = y[:, :2]
    new = model.step(x, y)
    for i in range(5):
        r = lambda v: model.net.residual(x[i:i + 1], v[None])[0]
        J = torch.autograd.functional.jacobian(r, y[i])
        step = torch.linalg.solve(J.T @ J + 0.01*torch.eye(2), J.T @ r(y[i]))
        assert torch.allclose(new[i], y[i] - step, rtol=1e-8)
    assert [n for n,_ in model.named_parameters()] == [n for n,_ in Quadratic(4, 2, 8).named_parameters(prefix='net')]

def test_the_solving_network_ends_where_the_bowl_is_lowest():
    model,x = SolvingFFN(4, 2, 16, seed=0).double(),torch.randn(6, 4, dtype=torch.float64, generator=generator(0))
    y = model(x).detach().requires_grad_()
    slope, = torch.autograd.grad(model.bowl(x, y).sum(), y)
    assert slope.abs().max() < 1e-4

def test_lowest():
    groups = [[dict(e=v, name=n) for v in vs] for n,vs in dict(a=[1, 9, 9], b=[3, 3, 3]).items()]
    assert lowest([[], *groups], 'e')[0]['name'] == 'b'

def test_the_command_knows_its_studies(capsys):
    assert cli.main(['study', 'cheking']) == 2
    assert "unknown study 'cheking'; did you mean 'checking'" in capsys.readouterr().err
