"The studies: their rows, their command, and that a run gives what its row says."
import math
from collections import Counter
from pathlib import Path

import pytest
import torch

from ebt_toy import cli
from ebt_toy.checking import STUDIED_MODELS, STUDIED_TASKS, checking_scores, checking_study
from ebt_toy.gradients import WAYS, gradients_scores, weight_gradient
from ebt_toy.protocol import DRAWS, PILOT, RATES, chosen_rate, lowest, paired_ratio, study_rows, study_runs
from ebt_toy.recipe import INGREDIENTS, recipe_scores
from ebt_toy.store import export_rows, import_rows

kept = Path(__file__).parents[1]/'nbs'/'studies'/'checking.csv'

def test_rows_come_back_from_a_file(tmp_path):
    rows = [dict(task='add', n=3, x=0.25, sizes=[1, 2], more=dict(a=1)), dict(task='1e', x=math.inf, note='a, "b"\nc')]
    assert import_rows(export_rows(rows, tmp_path/'r.csv')) == rows
    with pytest.raises(ValueError): import_rows(tmp_path)

def test_kept_rows_are_whole():
    rows = import_rows(kept)
    groups = Counter((r['task'], r['vec_size'], r['model'], r['num_steps']) for r in rows)
    assert set(groups.values()) == {20} and {r['status'] for r in rows} == {'finished'}
    assert {r['model'] for r in rows} <= set(STUDIED_MODELS) and {(r['task'], r['vec_size']) for r in rows} <= set(STUDIED_TASKS.values())
    assert not {r['seed'] for r in rows} & {0, 1000}          # neither the draw of first looks nor that of the learning rates

def test_a_run_gives_what_its_row_says():
    row = study_runs(import_rows(kept), 'solve2', 'multiplying FFN')[0]
    settings = {k: row[k] for k in ('task', 'vec_size', 'seed', 'model', 'lr', 'num_steps')}
    [scores] = checking_scores(settings, [row['model_seed']])
    for k in ('val', 'mse_0', 'mse_1', 'mse_2'): assert scores[k] == pytest.approx(row[k], rel=0.02)     # another processor rounds otherwise
    assert (scores['n_params'], scores['training_flops'], scores['flops']) == (row['n_params'], row['training_flops'], row['flops'])

def test_pairs():
    r = paired_ratio([2., 4., 6., 8.], [1., 1., 1., 16.])
    assert (r['median'], r['n'], r['of']) == (3., 3, 4) and 0.5 <= r['low'] <= 3 <= r['high'] <= 6

def scored_by_formula(settings, seeds):
    return [dict(val=abs(settings['lr'] - settings['best']), error=s) for s in seeds]

def test_the_learning_rate_is_chosen_by_validation_on_a_draw_of_its_own(tmp_path):
    cells = [dict(best=lr, num_steps=n) for lr in RATES for n in (10, 20)]
    rows = study_rows(scored_by_formula, cells, seeds=3, store=tmp_path/'s.db', progress=False)
    assert len(rows) == 4*len(DRAWS)*3 and all(r['lr'] == r['best'] and r['seed'] in DRAWS for r in rows) and PILOT not in DRAWS
    assert chosen_rate([dict(c, seed=PILOT, lr=lr) | dict(val=v) for c in cells[:1] for lr,v in zip(RATES, (float('inf'), 1.))], cells[0]) == RATES[1]
    assert len(study_runs(rows, best=RATES[0], num_steps=10)) == len(DRAWS)*3

def scored_until_stopped(settings, seeds):
    if settings['seed'] == PILOT and settings['lr'] == RATES[1]: raise KeyboardInterrupt
    return [dict(val=1.) for _ in seeds]

def test_a_study_ends_where_it_was_stopped():
    rows = study_rows(scored_until_stopped, [dict(a=1, num_steps=5)], progress=False)
    assert {r['status'] for r in rows} == {'finished', 'missing'} and {r['seed'] for r in rows} == {PILOT}

def test_lowest():
    groups = [[dict(e=v, name=n) for v in vs] for n,vs in dict(a=[1, 9, 9], b=[3, 3, 3]).items()]
    assert lowest([[], *groups], 'e')[0]['name'] == 'b'

def test_the_command_knows_its_studies(capsys):
    assert cli.main(['study', 'cheking']) == 2
    assert "unknown study 'cheking'; did you mean 'checking'" in capsys.readouterr().err

def _kept(name): return import_rows(kept.with_name(f'{name}.csv'))

def test_kept_rows_of_the_recipe_are_whole():
    rows = _kept('recipe')
    groups = Counter((r['task'], r['energy'], r['ingredient'], r['n_steps']) for r in rows)
    assert set(groups.values()) == {20} and {r['seed'] for r in rows} == set(DRAWS) and {r['status'] for r in rows} == {'finished'}
    assert {(t, 'bowl', i, 10) for t in ('divide', 'solve', 'multiply') for i in INGREDIENTS} <= set(groups)

def test_kept_rows_of_the_gradients_are_whole():
    rows = _kept('gradients')
    groups = Counter((r['task'], r['way'], r['n_steps']) for r in rows)
    assert set(groups.values()) == {20} and {r['seed'] for r in rows} == set(DRAWS)
    assert {r['way'] for r in rows if r['status'] == 'diverged'} <= {'implicit'}
    assert {(t, w, 10) for t in ('add', 'divide', 'solve') for w in WAYS} <= set(groups)

def test_what_a_row_of_the_recipe_says_of_data_and_costs_is_found_again():
    for row in (r for r in _kept('recipe') if (r['task'], r['seed'], r['model_seed'], r['energy']) == ('multiply', DRAWS[0], 0, 'bowl')):
        settings = {k: row[k] for k in ('task', 'energy', 'ingredient', 'n_steps', 'seed', 'lr')} | dict(num_steps=2)
        [scores] = recipe_scores(settings, [0])
        assert (scores['update_flops'], scores['n_params']) == (row['update_flops'], row['n_params'])
        assert (scores['mean_rule'], scores['linear_rule']) == pytest.approx((row['mean_rule'], row['linear_rule']), rel=1e-3)

def test_a_run_of_the_gradients_gives_what_its_row_says():
    [row] = [r for r in _kept('gradients') if (r['task'], r['way'], r['seed'], r['model_seed']) == ('divide', 'last 2 steps', DRAWS[0], 0)]
    names = 'task', 'vec_size', 'energy', 'way', 'n_steps', 'step_size', 'seed', 'lr', 'num_steps'
    [scores] = gradients_scores({k: row[k] for k in names}, [0])
    for k in ('hard_10', 'hard_200', 'id_50'):      # another device draws other batches and guesses
        assert 0.4 < scores[k]/row[k] < 2.5

def test_weight_gradients_through_the_last_steps_have_the_lengths_of_the_closed_form():
    g,K = torch.Generator().manual_seed(0),10
    class Line(torch.nn.Module):
        "¼(y − wx)²: curvature ½"
        def __init__(self):
            super().__init__()
            self.w = torch.nn.Parameter(torch.tensor(0.5, dtype=torch.float64))
        def forward(self, x, y): return 0.25*(y - self.w*x).pow(2).sum(-1)
    x,y,y0 = (torch.randn(8, 1, generator=g, dtype=torch.float64) for _ in range(3))
    found = {w: weight_gradient(Line(), x, y, y0, way, K, 0.6) for w,way in WAYS.items()}
    lengths = {'last step': 1, 'last 2 steps': 2, 'last 5 steps': 5, 'all steps': K}
    for way,k in lengths.items(): assert (found[way]/found['implicit']).item() == pytest.approx(1 - 0.7**k)
