"Puzzles and questions with several right answers: drawn by a seed, checked by independent rules, trained in every way."
import itertools

import pytest
import torch
from torch import nn

from ebt_toy import EBT, create_synthetic_data, run_main, train_energy_model, train_feedforward
from ebt_toy.cli import main
from ebt_toy.core import generator
from ebt_toy.data import get_task
from ebt_toy.puzzles import (choices, recalled, same_signs, solutions, valid_prefix_sums, valid_queens, valid_sudoku, _queen_conflicts,
                             _sudoku_conflicts)
from ebt_toy.several import answers_found, nearest_on_circle, nearest_root, nearest_scoring, right_points, right_roots
from ebt_toy.training import score

QUIET = dict(report=None, progress=False)
PUZZLES = dict(prefix_sums=4, sudoku=8, queens=6)
SEVERAL = dict(roots=2, circle=2)
ALL = PUZZLES | SEVERAL

def made(name, train=60, val=40, test=40, seed=3, **options):
    return create_synthetic_data(name, train, val, test, vec_size=ALL[name], seed=seed, **options)

# Drawn by the task's own seed

@pytest.mark.parametrize('name', ALL)
def test_same_seed_same_data_whatever_the_sizes(name):
    state = torch.get_rng_state()
    a,b,c = made(name),made(name, train=30),made(name, seed=4)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(map(torch.equal, a.test_dataset.tensors, b.test_dataset.tensors))
    assert not torch.equal(a.test_dataset.tensors[0], c.test_dataset.tensors[0])

# Nearest right answers

def test_the_nearest_root_is_nearest():
    p,y = (torch.randn(200, 3, generator=generator(s), dtype=torch.float64) for s in (0, 1))
    signs = torch.tensor(list(itertools.product([-1., 1.], repeat=3)), dtype=torch.float64)
    least = torch.stack([(p - s*y.abs()).pow(2).mean(-1) for s in signs]).amin(0)
    scoring = nearest_scoring(nearest_root)
    torch.testing.assert_close(torch.stack([scoring.loss(a, b) for a,b in zip(p, y)]), least)
    torch.testing.assert_close(scoring.loss(p, -y), scoring.loss(p, y))

def test_no_point_of_the_circle_is_nearer():
    p,y = (torch.randn(50, 4, generator=generator(s), dtype=torch.float64) for s in (0, 1))
    found = nearest_on_circle(p, y)
    angle = torch.linspace(0, 2*torch.pi, 2001, dtype=torch.float64)
    around = torch.stack([angle.cos(), angle.sin()], dim=-1)
    for i in (0, 2):
        q,n,r = p[:, i:i + 2],found[:, i:i + 2],y[:, i:i + 2].norm(dim=1)
        torch.testing.assert_close(n.norm(dim=1), r)
        least = (q[:, None] - r[:, None, None]*around).norm(dim=-1).amin(1)
        far = (q - n).norm(dim=1)
        assert (far <= least + 1e-9).all() and (far > least - 0.01).all()

def test_the_centre_of_a_circle_is_wrong_and_has_a_finite_gradient():
    p,y = torch.zeros(3, 2, requires_grad=True),torch.tensor([[3., 4.]]).expand(3, 2)
    loss = nearest_scoring(nearest_on_circle).loss(p, y)
    g, = torch.autograd.grad(loss, p)
    assert loss.item() == 12.5 and g.isfinite().all()

@pytest.mark.parametrize('nearest', [nearest_root, nearest_on_circle])
def test_the_gradient_is_that_of_the_distance(nearest):
    "By finite differences, although the nearest answer is held fixed; and the same under `torch.func`"
    p,y = (torch.randn(4, 2, generator=generator(s), dtype=torch.float64) for s in (2, 3))
    loss = nearest_scoring(nearest).loss
    assert torch.autograd.gradcheck(lambda p: loss(p, y), p.requires_grad_())
    torch.testing.assert_close(torch.func.grad(loss)(p, y), torch.autograd.grad(loss(p, y), p)[0])

@pytest.mark.parametrize('name, check', [('roots', right_roots), ('circle', right_points)])
def test_targets_are_right_and_the_test_set_is_harder(name, check):
    data = made(name, hardness=3.)
    for ds in data[:3]:
        x,y = ds.tensors
        assert y.shape[1] == data.output_dim and check(x, y, 1e-5).all() and not check(x, 2*y, 1e-5).any()
    x = data.test_dataset.tensors[0]
    assert x.max() < 0.25 if name == 'roots' else 1 <= x.min() and x.max() > 2
    with pytest.raises(ValueError, match='hardness: expected a number above 1'): made(name, hardness=0.5)

def test_roots_of_both_signs_are_shown():
    y = made('roots', train=1000).train_dataset.tensors[1]
    assert 0.45 < (y > 0).float().mean() < 0.55

# Answers found

class Listed(nn.Module):
    "Starts fall to the nearest of listed answers"
    def __init__(self, answers): super().__init__(); self.answers = answers
    def initial_guess(self, n, g): return torch.rand(n, 1, generator=g)
    def forward(self, x, y0=None): return self.answers[(y0*len(self.answers)).long()[:, 0]]

def test_each_answer_counts_once():
    x = torch.zeros(3, 1)
    answers = torch.tensor([[0., 0.], [1., 0.], [1.05, 0.], [5., 5.], [torch.nan, 0.]])
    assert answers_found(Listed(answers), x, n=100, tol=0.1).tolist() == [3, 3, 3]
    assert answers_found(Listed(answers), x, n=100, tol=0.01).tolist() == [4, 4, 4]
    assert answers_found(Listed(answers), x, n=100, tol=10.).tolist() == [1, 1, 1]
    assert answers_found(Listed(answers), x, n=100, check=lambda x, y: y[:, 0] > 2).tolist() == [1, 1, 1]
    assert answers_found(Listed(answers), x, n=1).max() <= 1

def test_a_check_as_an_energy_finds_every_root():
    wells = EBT(lambda x, y: (y*y - x).pow(2).sum(-1)/4, 3, n_optimization_steps=200, step_size=0.1)
    assert answers_found(wells, torch.tensor([[0.4, 0.6, 1.]]), n=100, check=right_roots).tolist() == [8]
    assert answers_found(nn.Linear(3, 3), torch.rand(4, 3)).tolist() == [1]*4
    with pytest.raises(ValueError, match='tol: expected a finite number above 0'): answers_found(wells, torch.rand(1, 3), tol=0.)

# Puzzles: rules

def test_prefix_sums_are_parities():
    for ds in made('prefix_sums')[:3]:
        x,y = ds.tensors
        assert torch.equal(y, 1 - 2*(x.cumsum(1) % 2)) and valid_prefix_sums(x, y).all()
    slip = y*torch.where(torch.arange(8) == 5, -1., 1.)
    assert not valid_prefix_sums(x, slip).any() and not valid_prefix_sums(x, 0.9*y).any()

def test_training_strings_are_short_and_lie_anywhere():
    data = made('prefix_sums', train=2000, test=2000)
    def spans(x): return {(r.nonzero().max() - r.nonzero().min() + 1).item() for r in x}
    (train,_),(test,_) = data.train_dataset.tensors,data.test_dataset.tensors
    assert spans(train) == {1, 2, 3, 4} and spans(test) == {5, 6, 7, 8} and (train.mean(0) > 0).all()

def test_solutions_against_brute_force():
    boards = [s for s in itertools.permutations(range(6)) if all(abs(s[i] - s[j]) != j - i for i,j in itertools.combinations(range(6), 2))]
    assert sorted(map(tuple, choices(solutions(_queen_conflicts(6), 6), 6).tolist())) == boards
    grids = solutions(_sudoku_conflicts(), 4)
    assert len(grids.unique(dim=0)) == 288 and valid_sudoku(grids).all()

def test_the_rules_refuse_what_breaks_them():
    grid = torch.tensor([[0, 1, 2, 3, 2, 3, 0, 1, 1, 0, 3, 2, 3, 2, 1, 0]])
    one_hot = nn.functional.one_hot(grid, 4).float().flatten(1)
    assert valid_sudoku(one_hot).item() and valid_sudoku(3*one_hot - 7).item()
    cyclic = (torch.arange(4)[:, None] + torch.arange(4)) % 4                       # right rows and columns, wrong blocks
    for wrong in (cyclic, torch.arange(4).expand(4, 4), torch.arange(4).expand(4, 4).T):
        assert not valid_sudoku(nn.functional.one_hot(wrong.flatten(), 4).float().flatten()[None]).item()
    queens = lambda cols: nn.functional.one_hot(torch.tensor(cols), len(cols)).float().flatten()[None]
    assert valid_queens(queens([1, 3, 0, 2])).item()
    for cols in ([0, 1, 2, 3], [1, 3, 1, 3], [0, 2, 3, 1]): assert not valid_queens(queens(cols)).item()

@pytest.mark.parametrize('name, boards, width', [('sudoku', solutions(_sudoku_conflicts(), 4), 4), ('queens', solutions(_queen_conflicts(6), 6), 6)])
def test_questions_have_one_solution_and_hard_ones_no_given_to_spare(name, boards, width):
    data = made(name)
    def completions(x): return ((boards[None] >= x[:, None]).all(-1)).sum(1)
    for ds in data[:3]:
        x,y = ds.tensors
        assert (completions(x) == 1).all() and (x <= y).all() and (valid_sudoku if name == 'sudoku' else valid_queens)(y).all()
    x = data.test_dataset.tensors[0]
    for given in range(x.shape[1]//width):
        less = x.clone()
        less[:, given*width:(given + 1)*width] = 0
        assert (completions(less) > 1)[(less != x).any(1)].all()
    assert data.train_dataset.tensors[0].sum(1).min() > x.sum(1).max()

@pytest.mark.parametrize('name, bad', [('sudoku', 5), ('sudoku', 17), ('queens', 3), ('queens', 11)])
def test_sizes_that_make_no_puzzle_are_refused(name, bad):
    with pytest.raises(ValueError, match=f'vec_size: expected .*, got {bad}'): create_synthetic_data(name, 10, 10, 10, vec_size=bad)

# Scored by whole answers

@pytest.mark.parametrize('name', PUZZLES)
def test_the_metric_is_the_share_entirely_right(name):
    scoring,y = get_task(name).scoring,made(name).val_dataset.tensors[1]
    assert scoring.metric(2*y + 0.1*y.sign(), y) == 1 and scoring.higher_is_better
    wrong = y.clone()
    wrong[:10] = -wrong[:10] if name == 'prefix_sums' else wrong[:10].roll(1, 1)
    assert scoring.metric(wrong, y).item() == pytest.approx(0.75)
    assert scoring.metric(torch.full_like(y, torch.nan), y) == 0
    one = y.clone()
    one[:, 0] = -9 if name == 'prefix_sums' else 9.
    right = y[:, 0] == (-1 if name == 'prefix_sums' else 1)
    assert scoring.metric(one, y).item() == pytest.approx(right.float().mean().item())

@pytest.mark.parametrize('name', ['sudoku', 'queens'])
def test_no_solution_of_the_test_set_is_shown_in_training(name):
    for seed in (0, 1):
        data = made(name, train=500, test=200, seed=seed)
        train,val,test = ({tuple(y) for y in choices(ds.tensors[1], 4 if name == 'sudoku' else 6).tolist()} for ds in data[:3])
        assert not test & (train | val) and len(train) > (150 if name == 'sudoku' else 2)
        assert get_task(name).baselines(data)['nearest training question'] == 0

def test_recall_answers_known_questions():
    data = made('sudoku', train=200)
    known = data._replace(test_dataset=data.train_dataset)
    assert torch.equal(recalled(known), data.train_dataset.tensors[1])
    assert same_signs(torch.tensor([[1., -2.], [1., 0.]]), torch.tensor([[1., -1.], [1., 1.]])) == 0.5

# Trained in every way

@pytest.mark.parametrize('name', ALL)
def test_each_task_in_a_run_and_by_itself(name):
    config = dict(num_steps=3, latent_dim=8, batch_size=16)
    sizes = dict(vec_size=ALL[name], size_train=50, size_val=20, size_test=20)
    r = run_main(name, **sizes, ebt_config=config, ffn_config=config, compile=False, **QUIET)
    key = f'test_{r.metric}'
    assert set(r.baselines) >= {'training mean', 'least squares'} and len(r.baselines) == 3
    for n,train in dict(ebt=train_energy_model, ffn=train_feedforward).items():
        alone = train(*r.data, **r[n]['config'] | dict(scoring=r.scoring, compile=False) | QUIET)
        assert score(alone, r.data.test_dataset, r.scoring.metric) == pytest.approx(r[n][key], abs=1e-6) and r[n]['status'] == 'finished'
        for p,q in zip(alone.parameters(), r[n]['model'].parameters()): torch.testing.assert_close(p, q)

@pytest.mark.parametrize('name', SEVERAL)
@pytest.mark.parametrize('compile', [False, True])
def test_the_nearest_answer_in_every_way(recorded, name, compile):
    options = dict(latent_dim=8, n_optimization_steps=3, num_steps=8, scoring=get_task(name).scoring, **QUIET)
    data = made(name)
    alone = [train_energy_model(*data, **options, seed=s, compile=False) for s in range(2)]
    together = train_energy_model(*data, **options, seeds=2, compile=compile)
    assert together[0].history.settings['compile'] == compile
    for a,b in zip(alone, together):
        for p,q in zip(a.parameters(), b.parameters()): torch.testing.assert_close(p, q, rtol=1e-3, atol=2e-5)

@pytest.mark.parametrize('name', ['sudoku', 'roots'])
def test_from_the_command_line(name, capsys):
    main(['--task', name, '--vec_size', str(ALL[name]), '--size_train', '40', '--num_steps', '2', '--latent_dim', '8', '--model_type', 'ffn'])
    assert ('Solved' if name == 'sudoku' else 'Nearest MSE') in capsys.readouterr().out
