"Does energy verify, and several right answers: rows and functions of the study."
from collections import Counter
from pathlib import Path

import pytest
import torch

from ebt_toy.data import create_synthetic_data
from ebt_toy.ebt import train_energy_model
from ebt_toy.models import predict
from ebt_toy.protocol import PILOT, study_runs
from ebt_toy.several_answers import distinct_answers, nearest_board, queens_boards, right_boards, several_answers_scores
from ebt_toy.store import import_rows
from ebt_toy.thinking import best_of
from ebt_toy.verify import ends_of_all, verify_scores

kept = Path(__file__).parents[1]/'nbs'/'studies'/'checking.csv'

def test_rows_of_verify_and_several_answers_are_whole():
    for name,cell in (('verify', ['task', 'model']), ('several_answers', ['task', 'model', 'loss'])):
        rows = import_rows(kept.with_name(f'{name}.csv'))
        groups = Counter(tuple(r[k] for k in cell) for r in rows)
        assert len(set(groups.values())) == 1 and {r['status'] for r in rows} == {'finished'}
        assert not {r['seed'] for r in rows} & {0, PILOT}

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

def test_nearest_boards_and_counts():
    boards = queens_boards(5)
    assert len(boards) == 10
    shown = boards.clone()
    shown[:, 10:] = 0                                                  # the first two rows
    for b,s in zip(boards, shown):
        fit = [o for o in boards if (o*s).sum() == 2]
        p = torch.randn(25, generator=torch.Generator().manual_seed(0))
        want = min(fit, key=lambda o: (p - o).pow(2).sum())
        assert torch.equal(nearest_board((p)[None], (b + s)[None])[0], want)
        assert right_boards(s[None], b[None]).item() and not right_boards(1 - b[None], b[None]).item()
    y = torch.tensor([0., 0.05, 1., 1.02, 3.])[:, None, None]
    assert distinct_answers(y, torch.ones(5, 1, dtype=torch.bool)).tolist() == [3]
    assert distinct_answers(y, torch.tensor([0, 1, 0, 1, 1], dtype=torch.bool)[:, None]).tolist() == [3]
    assert distinct_answers(y, torch.tensor([1, 1, 0, 0, 0], dtype=torch.bool)[:, None]).tolist() == [1]

@pytest.mark.parametrize('name,scores,cell,exact,near', [
    ('verify', verify_scores, dict(task='solve', model='FFN'), ('mse_id', 'mse_harder'), ('apart_auroc_harder', 'check_rank_id')),
    ('several_answers', several_answers_scores, dict(task='roots', model='FFN', loss='nearest'), ('id_mse', 'harder_mse'), ('id_solved',))])
def test_a_group_of_networks_gives_what_its_rows_say(name, scores, cell, exact, near):
    rows = study_runs(import_rows(kept.with_name(f'{name}.csv')), **cell)
    first = [r for r in rows if r['seed'] == rows[0]['seed']]
    settings = {k: first[0][k] for k in (*cell, 'seed', 'lr', 'num_steps', 'latent_dim', 'questions')}
    for row,found in zip(first, scores(settings, [r['model_seed'] for r in first])):
        for k in exact: assert found[k] == pytest.approx(row[k], rel=0.05)     # another processor rounds otherwise
        for k in near: assert found[k] == pytest.approx(row[k], abs=0.05)
        assert (found['n_params'], found['training_flops'], found['flops']) == (row['n_params'], row['training_flops'], row['flops'])
