"Several right answers: rows and functions of the study."
from collections import Counter
from pathlib import Path

import pytest
import torch

from ebt_toy.protocol import DRAWS, column, study_runs
from ebt_toy.several import distinct_answers
from ebt_toy.several_answers import SEVERAL_RIGHT, nearest_board, queens_boards, queens_data, right_boards, several_answers_scores
from ebt_toy.store import import_rows

kept = Path(__file__).parents[1]/'nbs'/'studies'/'several_answers.csv'

def test_rows_of_several_answers_are_whole():
    rows = import_rows(kept)
    groups = Counter((r['task'], r['model'], r['loss']) for r in rows)
    assert set(groups.values()) == {20} and {r['status'] for r in rows} == {'finished'}
    assert {t for t,*_ in groups} == set(SEVERAL_RIGHT) and {r['seed'] for r in rows} == set(DRAWS)

def test_claims_of_the_study():
    rows = import_rows(kept)
    def values(task, model, name, loss='nearest'): return column(study_runs(rows, task=task, model=model, loss=loss), name)
    for task in ('roots', 'circle'):
        assert (values(task, 'FFN', 'id_found') <= 1).all() and (values(task, 'FFN', 'id_solved', 'mean') < values(task, 'FFN', 'id_solved')).all()
    for r in rows:
        for k in r:
            if k.endswith(('coverage', 'coverage_200')) or '_solved' in k: assert r[k] is None or 0 <= r[k] <= 1, k

def test_nearest_boards():
    boards = queens_boards(5)
    assert len(boards) == 10
    shown = boards.clone()
    shown[:, 10:] = 0                                                  # the first two rows
    for b,s in zip(boards, shown):
        fit = [o for o in boards if (o*s).sum() == 2]
        p = torch.randn(25, generator=torch.Generator().manual_seed(0))
        want = min(fit, key=lambda o: (p - o).pow(2).sum())
        assert torch.equal(nearest_board(p[None], (b + s)[None])[0], want)
        assert right_boards(s[None], b[None]).item() and not right_boards(1 - b[None], b[None]).item()

def test_pairs_of_the_test_set_are_never_shown():
    data = queens_data(5, 3, 100, 'cpu')
    known,val,new = ({tuple(r) for r in ds.tensors[0].tolist()} for ds in data[:3])
    assert val <= known and not known & new
    again = queens_data(5, 3, 100, 'cpu')
    assert all(torch.equal(a, b) for x,y in zip(data[:3], again[:3]) for a,b in zip(x.tensors, y.tensors))

def test_distinct_answers():
    y = torch.tensor([0., 0.05, 1., 1.02, 3.])[:, None, None]
    def count(*which): return distinct_answers(y, torch.tensor(which, dtype=torch.bool)[:, None]).tolist()
    assert count(1, 1, 1, 1, 1) == [3] and count(0, 1, 0, 1, 1) == [3] and count(1, 1, 0, 0, 0) == [1] and count(0, 0, 0, 0, 0) == [0]

def test_a_group_of_networks_gives_what_its_rows_say():
    rows = study_runs(import_rows(kept), task='roots', model='FFN', loss='nearest')
    first = [r for r in rows if r['seed'] == rows[0]['seed']]
    settings = {k: first[0][k] for k in ('task', 'model', 'loss', 'seed', 'lr', 'num_steps', 'latent_dim', 'questions')}
    for row,found in zip(first, several_answers_scores(settings, [r['model_seed'] for r in first])):
        for k in ('id_mse', 'harder_mse'): assert found[k] == pytest.approx(row[k], rel=0.05)      # another processor rounds otherwise
        assert found['id_solved'] == pytest.approx(row['id_solved'], abs=0.05)
        assert (found['n_params'], found['training_flops'], found['flops']) == (row['n_params'], row['training_flops'], row['flops'])
