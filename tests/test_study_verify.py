"Does energy verify: rows and functions of the study."
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from ebt_toy.data import create_synthetic_data
from ebt_toy.ebt import train_energy_model
from ebt_toy.models import predict
from ebt_toy.protocol import DRAWS, study_runs
from ebt_toy.store import import_rows
from ebt_toy.thinking import best_of
from ebt_toy.verify import (VERIFIED, VERIFIED_MODELS, _best_of_starts, _from_one, _from_others, _measures, ends_of_all, energy_of_all,
                            verify_scores)

kept = Path(__file__).parents[1]/'nbs'/'studies'/'verify.csv'

def test_rows_of_verify_are_whole():
    rows = import_rows(kept)
    groups = Counter((r['task'], r['model']) for r in rows)
    assert set(groups.values()) == {20} and {r['status'] for r in rows} == {'finished'}
    assert set(groups) == {(t, m) for t in VERIFIED for m in VERIFIED_MODELS} and {r['seed'] for r in rows} == set(DRAWS)

def test_several_energies_as_one_give_the_answers_of_each():
    data = create_synthetic_data('divide', vec_size=2, size_train=200, size_val=20, size_test=20, seed=5)
    models = train_energy_model(*data, energy='cauchy', seeds=2, num_steps=5, latent_dim=8, report=None, progress=False)
    x = data.test_dataset.tensors[0]
    ends = ends_of_all(models, x, 3, (4, 10))
    for own,m in zip(ends[10], models):
        torch.testing.assert_close(own[0], predict(m, x), rtol=1e-4, atol=1e-5)
        best = best_of(m, x, 3)
        energies = torch.stack([m.energy(x, y) for y in own])
        torch.testing.assert_close(own[energies.argmin(0), torch.arange(20)], best.answer, rtol=1e-4, atol=1e-5)

def test_a_height_per_question_changes_the_energy_and_no_other_signal():
    data = create_synthetic_data('solve', vec_size=2, size_train=200, size_val=20, size_test=20, seed=5)
    models = train_energy_model(*data, energy='bowl', seeds=2, num_steps=5, latent_dim=8, report=None, progress=False)
    x = data.test_dataset.tensors[0].expand(2, -1, -1)
    f = energy_of_all(models)
    def raised(x, y): return f(x, y) + x.pow(2).sum(-1).repeat(1, len(y)//x[..., 0].numel()).flatten()
    with torch.no_grad():
        ends = ends_of_all(models, x[0], 4, [5])[5]
        own,high = (_from_one(e, x, ends, 1., 5) for e in (f, raised))
    for name,v in own.items():
        if name != 'energy': torch.testing.assert_close(high[name], v, rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(high['energy'] - own['energy'], x.pow(2).sum(-1))

def test_other_models_are_the_others():
    y = torch.randn(4, 6, 2, generator=torch.Generator().manual_seed(0))
    found = _from_others(y)
    for i in range(4):
        others = y[[j for j in range(4) if j != i]]
        mean = others.mean(0)
        torch.testing.assert_close(found['apart'][i], (y[i] - mean).norm(dim=-1))
        torch.testing.assert_close(found['ensemble'][i], (others - mean).pow(2).sum(-1).mean(0).sqrt())

def test_measures_of_the_error_itself_and_of_its_reverse():
    error = np.random.default_rng(0).uniform(size=100)
    found = _measures(dict(same=error, reverse=-error, silent=np.zeros(100)), error)
    best = np.sort(error)
    assert found['same_rank'] == pytest.approx(1) and found['same_auroc'] == 1
    assert found['reverse_rank'] == pytest.approx(-1) and found['reverse_auroc'] == 0 and found['silent_auroc'] == 0.5
    assert found['same_kept'] == pytest.approx((best[:90]**2).mean()/(best**2).mean())
    assert found['reverse_kept'] == pytest.approx((best[10:]**2).mean()/(best**2).mean())

def test_the_lowest_of_some_starts():
    error,energy = torch.tensor([[4., 1.], [2., 8.]]),torch.tensor([[0., 0.], [1., torch.nan]])
    assert _best_of_starts(error, energy) == dict(random=3.75, lowest=2.5, oracle=1.5)

def test_claims_of_the_study():
    rows = import_rows(kept)
    def values(task, model, name): return np.array([r[name] for r in study_runs(rows, task=task, model=model)])
    for task in ('divide', 'solve'):
        for model in ('bowl energy', 'Cauchy energy'):
            assert values(task, model, 'newton_auroc_harder_10').min() > 0.95           # on the way
            assert np.median(values(task, model, 'mse_harder_10')/values(task, model, 'mse_harder_200')) > 20
        for model in ('bowl energy', 'Cauchy energy', 'MLP energy'):
            energy,apart,check = (values(task, model, f'{s}_auroc_harder_200') for s in ('energy', 'apart', 'check'))
            assert 0.25 < np.median(energy) < 0.8 < 0.9 < np.median(check)              # arrived
            assert np.median(apart - energy) > 0.05
            ratio = values(task, model, 'random_harder_200')/values(task, model, 'lowest_harder_200')
            assert 0.98 < np.median(ratio) < 1.02
    luck = values('roots', 'Cauchy energy', 'energy_rank_harder_200')
    assert luck.min() < -0.5 and luck.max() > 0.5
    for r in rows:
        for at in ('id', 'harder'):
            for k in (10, 200) if r['model'] != 'FFN' else ():
                assert r[f'oracle_{at}_{k}'] <= r[f'lowest_{at}_{k}']*(1 + 1e-6)

def test_a_group_of_networks_gives_what_its_rows_say():
    rows = study_runs(import_rows(kept), task='solve', model='FFN')
    first = [r for r in rows if r['seed'] == rows[0]['seed']]
    settings = {k: first[0][k] for k in ('task', 'model', 'seed', 'lr', 'num_steps', 'latent_dim', 'questions')}
    for row,found in zip(first, verify_scores(settings, [r['model_seed'] for r in first])):
        for k in ('mse_id', 'mse_harder'): assert found[k] == pytest.approx(row[k], rel=0.05)     # another processor rounds otherwise
        for k in ('apart_auroc_harder', 'check_rank_id'): assert found[k] == pytest.approx(row[k], abs=0.05)
        assert (found['n_params'], found['training_flops'], found['flops']) == (row['n_params'], row['training_flops'], row['flops'])
