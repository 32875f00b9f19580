"The recipe and its gradients: rows and functions of the study."
from collections import Counter
from pathlib import Path

import pytest
import torch

from ebt_toy.gradients import WAYS, gradients_scores, weight_gradient
from ebt_toy.protocol import DRAWS
from ebt_toy.recipe import INGREDIENTS, recipe_scores
from ebt_toy.store import import_rows

def _kept(name): return import_rows(Path(__file__).parents[1]/'nbs'/'studies'/f'{name}.csv')

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
