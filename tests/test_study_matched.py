"Two plain tasks: rows and functions of the study."
from collections import Counter
from functools import partial
from pathlib import Path

import pytest
from torch.nn.functional import mse_loss
from torch.utils.data import TensorDataset

from ebt_toy.ebt import train_energy_model
from ebt_toy.ffn import train_feedforward
from ebt_toy.matched import matched_scores, matched_sets
from ebt_toy.models import predict
from ebt_toy.protocol import DRAWS, study_runs
from ebt_toy.store import import_rows
from ebt_toy.training import score

kept = Path(__file__).parents[1]/'nbs'/'studies'/'matched.csv'

def test_kept_rows_of_the_matched_study_are_whole():
    rows = import_rows(kept)
    groups = Counter((r['task'], r['step'], r['model']) for r in rows)
    wanted = {('a', 'EBT'), ('a', 'FFN, ReLU'), ('b', 'FFN'), ('c', 'EBT'), ('c', 'FFN'), ('e', 'EBT'), ('f', 'FFN')}
    wanted |= {('g', m) for m in ('bilinear energy', 'Cauchy energy', 'multiplying FFN', 'gated FFN')}
    assert set(groups) == {(t, *w) for t in ('add', 'multiply') for w in wanted} and len(set(groups.values())) == 1
    assert {r['status'] for r in rows} == {'finished'} and {r['seed'] for r in rows} == set(DRAWS) and set(groups.values()) == {20}
    def cost(step, model, name): return next(r[name] for r in rows if (r['step'], r['model']) == (step, model))
    for pair in ((('e', 'EBT'), ('c', 'FFN')), (('e', 'EBT'), ('f', 'FFN'))):
        a,b = (cost(*who, 'training_flops') for who in pair)
        assert a == pytest.approx(b, rel=0.01)
    assert cost('e', 'EBT', 'flops_10') == pytest.approx(cost('f', 'FFN', 'flops'), rel=0.01)
    assert cost('g', 'gated FFN', 'n_params') == pytest.approx(cost('c', 'EBT', 'n_params'), rel=0.02)

def test_sets_of_the_matched_study():
    data,sets = matched_sets('multiply', 5, vec_size=3, size=200)
    limits = {k: x.abs().max().item() for k,(x,_,_) in sets.items()}
    assert limits['id'] <= 1 < limits['box'] == limits['shell'] <= 2 < limits['far'] <= 3
    for x,y,where in sets.values():
        v1,v2 = x.chunk(2, dim=1)
        assert (v1*v2 == y).all() and where.shape == y.shape
    v1,v2 = sets['shell'][0].chunk(2, dim=1)
    assert (sets['shell'][2] == ((v1.abs() > 1)|(v2.abs() > 1))).all() and sets['box'][2].all()
    assert sets['box'][0] is data.test_dataset.tensors[0] and sets['id'][0] is data.val_dataset.tensors[0]

def test_errors_of_the_matched_study_are_those_of_the_library():
    given = dict(task='add', vec_size=2, seed=5, step='a', latent_dim=8, lr=1e-3, num_steps=3)
    for name,train in (('FFN', partial(train_feedforward, activation='silu')), ('EBT', train_energy_model)):
        [scores] = matched_scores(given | dict(model=name), [7])
        data,sets = matched_sets('add', 5, vec_size=2)
        model = train(*data, latent_dim=8, lr=1e-3, num_steps=3, seed=7, report=None, progress=False)
        end = '_10' if name == 'EBT' else ''
        for k in ('id', 'box', 'far'): assert scores[k + end] == pytest.approx(score(model, TensorDataset(*sets[k][:2]), mse_loss), rel=1e-3)
        inside = ~sets['shell'][2]
        share = inside.float().mean().item()
        p,(x,y) = predict(model, sets['box'][0]),sets['box'][:2]
        assert scores['box' + end] == pytest.approx((1 - share)*scores['shell' + end] + share*mse_loss(p[inside], y[inside]).item(), rel=1e-3)

def test_a_row_of_the_matched_study_repeats():
    row = study_runs(import_rows(kept), task='multiply', step='f', model='FFN')[0]
    settings = {k: row[k] for k in ('task', 'vec_size', 'seed', 'step', 'model', 'latent_dim', 'lr', 'num_steps')}
    [scores] = matched_scores(settings, [row['model_seed']])
    for k in ('val', 'id', 'box', 'shell', 'far'): assert scores[k] == pytest.approx(row[k], rel=0.25)   # another processor rounds otherwise, and the rate is constant
    assert (scores['n_params'], scores['training_flops'], scores['flops']) == (row['n_params'], row['training_flops'], row['flops'])
