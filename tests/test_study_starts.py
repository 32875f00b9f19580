"Where a descent starts: rows, ways of training, and what an energy can hold."
from collections import Counter
from pathlib import Path

import pytest
import torch
from hypothesis import given, strategies as st

from ebt_toy.checking import STARTED_MODELS, STUDIED_MODELS, STUDIED_TASKS, checking_runs, checking_scores, checking_study
from ebt_toy.data import create_synthetic_data
from ebt_toy.ebt import trace
from ebt_toy.energies import Cauchy
from ebt_toy.protocol import DRAWS, trained_by_rules
from ebt_toy.starts import STARTED_TASKS
from ebt_toy.store import import_rows

def _kept(name): return import_rows(Path(__file__).parents[1]/'nbs'/'studies'/f'{name}.csv')

def test_kept_rows_of_starts_are_whole():
    rows = _kept('starts')
    groups = Counter((r['task'], r['vec_size'], r['model'], r['lr']) for r in rows)
    assert set(groups.values()) == {20} and {r['seed'] for r in rows} == set(DRAWS) and {r['status'] for r in rows} == {'finished'}
    assert {r['model'] for r in rows} <= set(STARTED_MODELS) and len({g[:3] for g in groups}) == len(groups)
    assert {STUDIED_TASKS[t] for t in STARTED_TASKS} == {g[:2] for g in groups if g[2] == 'Cauchy energy, from zero, noise'}

def test_the_hundred_pairs_have_draws_and_seeds_of_their_own():
    rows = _kept('starts_100')
    for task in ('divide', 'solve'):
        some = [r for r in rows if r['task'] == task]
        assert len(some) == len({r['model_seed'] for r in some}) == 100 and not {r['seed'] for r in some} & {1000, *DRAWS}

def test_a_run_gives_what_its_row_says():
    row = checking_runs(_kept('starts'), 'square', 'Cauchy energy, from zero, noise')[0]
    settings = {k: row[k] for k in ('task', 'vec_size', 'seed', 'model', 'latent_dim', 'lr', 'num_steps')}
    [scores] = checking_scores(settings, [row['model_seed']])
    assert scores['n_params'] == row['n_params'] and scores['training_flops'] == row['training_flops']
    assert scores['flops_200'] == pytest.approx(row['flops_200'], rel=1e-3)      # kept with four digits
    for k in ('val', 'mse_0_10', 'mse_0_200', 'id_200'): assert 0.4 < scores[k]/row[k] < 2.5      # rounding differs from CPU to CPU

def test_models_begin_where_they_were_trained_to():
    data = create_synthetic_data('apply', 64, 16, 16, vec_size=2)
    for name in STARTED_MODELS:
        [model] = trained_by_rules(STUDIED_MODELS[name], data, dict(latent_dim=8, lr=1e-3, num_steps=2), [0])
        first = trace(model, data.val_dataset.tensors[0]).guesses[0]
        assert (first.abs().sum() == 0) == ('from zero' in name) and model.practice.noise == (0.01 if 'noise' in name else 0)

def test_an_unknown_model_is_refused():
    with pytest.raises(ValueError, match="unknown model 'bowl energi'; did you mean 'bowl energy'"): checking_study(['sort'], models=['bowl energi'])

@given(st.floats(-2, 2), st.floats(-2, 2))
def test_a_quadratic_residual_holds_the_cube_root(x, y):
    "Two rows whose sum of squares has the slope y³ − x, as weights of the Cauchy energy"
    energy = Cauchy(1, 1, 1).double()
    with torch.no_grad():
        for p in energy.parameters(): p.zero_()
        energy.a.weight[0, 1] = energy.b.weight[0, 1] = 1                       # the product y·y
        energy.c.weight[0, 0],energy.d.bias[0] = 2**-0.5,-2**-0.5               # (y² − 1)/√2
        energy.d.weight[1] = torch.tensor([-1., 1.])                            # y − x
    x,y = (torch.tensor([[v]], dtype=torch.float64) for v in (x, y))
    y.requires_grad_(True)
    [slope] = torch.autograd.grad(energy(x, y).sum(), y)
    rest = 1 + 0.5*((y*y - 1)**2/2 + (y - x)**2)                                # of the logarithm
    assert (slope*rest).item() == pytest.approx((y**3 - x).item(), abs=1e-9)
