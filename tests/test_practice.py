"How the descent of training may differ: gradients in closed form, draws in their ranges, one seed as many, refusals."
import re

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings, strategies as st

from ebt_toy.core import generator
from ebt_toy.data import create_synthetic_data, with_tensors
from ebt_toy.ebt import EBT, EnergyFunction, hessian, implicit_step, trace, train_energy_model, walk_down
from ebt_toy.practice import inverses, solve_positive
from ebt_toy.energies import Bowl
from ebt_toy.runner import run_main

CHOICES = [dict(grad_steps=3), dict(grad_steps='all'), dict(grad_steps='implicit'), dict(loss_at='every'),
           dict(loss_at='every', grad_steps='all'), dict(min_steps=2), dict(step_spread=2.), dict(learn_step=True),
           dict(noise=0.1), dict(replay=0.5), dict(start='zeros'), dict(start='proposal'),
           dict(min_steps=2, step_spread=1.5, noise=0.05, replay=0.3, learn_step=True, start='proposal', loss_at='every')]
quiet = dict(report=None, progress=False)

@pytest.fixture(scope='module')
def data():
    d = create_synthetic_data('add', vec_size=2, size_train=300, size_val=32, size_test=32)
    return [with_tensors(ds, [t.double() for t in ds.tensors]) for ds in d[:3]] + list(d[3:])

def bowl64(seed): return Bowl(4, 2, 16, seed).double()
def apart(a, b): return max((p - q).abs().max().item() for p,q in zip(a.parameters(), b.parameters()))

def one_and_several(data, choice, **options):
    given = dict(energy=bowl64, n_optimization_steps=5, num_steps=40, latent_dim=16, batch_size=16) | quiet | choice | options
    if choice.get('start') == 'proposal': given['energy'] = lambda seed: EnergyFunction(4, 2, 16, seed)     # all in float32
    return train_energy_model(*data, **given, seed=1),train_energy_model(*data, **given, seeds=[0, 1])[1]

@pytest.mark.parametrize('choice', CHOICES, ids=str)
def test_one_seed_is_as_in_a_group(data, choice):
    alone,group = one_and_several(data, choice)
    assert apart(alone, group) < (1e-5 if choice.get('start') == 'proposal' else 1e-10)
    assert sum((p.grad is not None and p.grad.abs().sum() > 0) for p in alone.parameters()) > 2

@pytest.mark.parametrize('choice', [CHOICES[2], CHOICES[-1]], ids=str)
def test_compiled_is_as_plain(data, choice):
    data = [with_tensors(ds, [t.float() for t in ds.tensors]) for ds in data[:3]] + list(data[3:])
    given = dict(energy='bowl', n_optimization_steps=4, num_steps=30, latent_dim=16, batch_size=16) | quiet | choice
    plain,fast = (train_energy_model(*data, **given, compile=c) for c in (False, True))
    assert fast.history.settings['compile'] and apart(plain, fast) < 2e-5

@given(st.floats(0.1, 1.9), st.floats(0.5, 1.), st.integers(1, 12), st.integers(1, 12))
@settings(deadline=None, max_examples=25)
def test_the_last_k_steps_on_a_bowl(alpha, h, k, more):
    w,x = torch.tensor(1.5, dtype=torch.float64, requires_grad=True),torch.tensor([[2.]], dtype=torch.float64)
    def bowl(x, y): return h/2*(y - w*x).pow(2).sum(-1)
    model = EBT(bowl, 1, k + more, alpha, grad_steps=k).train()
    slope = torch.autograd.grad(model(x, torch.tensor([[6.5]], dtype=torch.float64)).sum(), w)[0].item()
    assert slope == pytest.approx(2*(1 - (1 - alpha*h)**k), abs=1e-9)

def test_the_implicit_gradient_is_that_of_the_lowest_point():
    energy = bowl64(0)
    x,target = torch.randn(2, 7, 4, generator=generator(0), dtype=torch.float64)[0],torch.ones(7, 2, dtype=torch.float64)
    M,c = energy.given(x)
    lowest = -torch.linalg.solve(M.mT @ M, M.mT @ c[..., None])[..., 0]
    exact = torch.autograd.grad(F.mse_loss(lowest, target), energy.parameters(), retain_graph=True)
    ours = torch.autograd.grad(F.mse_loss(implicit_step(energy, x, lowest.detach()), target), energy.parameters())
    assert all(torch.allclose(a, b, rtol=1e-4, atol=1e-9) for a,b in zip(ours, exact))

@given(st.integers(1, 5), st.integers(0, 1000))
@settings(deadline=None, max_examples=25)
def test_inverses_of_symmetric_matrices(d, seed):
    g = generator(seed)
    Q = torch.linalg.qr(torch.randn(3, d, d, generator=g, dtype=torch.float64)).Q
    values = (0.05 + torch.rand(3, d, generator=g, dtype=torch.float64))*(1 - 2*torch.randint(0, 2, (3, d), generator=g))
    H = Q*values[:, None] @ Q.mT
    assert torch.allclose(inverses(H) @ H, torch.eye(d, dtype=torch.float64).expand(3, d, d), atol=1e-6)

@given(st.integers(1, 6), st.integers(0, 1000))
@settings(deadline=None, max_examples=25)
def test_positive_systems_and_their_gradients(d, seed):
    g = generator(seed)
    A,v = torch.randn(3, d + 2, d, generator=g, dtype=torch.float64),torch.randn(3, d, generator=g, dtype=torch.float64)
    H = (A.mT @ A + 0.1*torch.eye(d)).requires_grad_()
    ours,right = solve_positive(H, v),torch.linalg.solve(H, v)
    assert ours.shape == v.shape and torch.allclose(ours, right, rtol=1e-7, atol=1e-9)
    w = torch.randn(3, d, generator=g, dtype=torch.float64)
    a,b = (torch.autograd.grad((y*w).sum(), H)[0] for y in (ours, right))
    assert torch.allclose((a + a.mT), (b + b.mT), rtol=1e-5, atol=1e-8)      # elimination reads both halves, as if H were any matrix

def test_the_hessian_is_that_of_autograd():
    energy,x,y = EnergyFunction(3, 2, 8).double(),*torch.randn(2, 4, 3, generator=generator(1), dtype=torch.float64)
    y = y[:, :2]
    H = hessian(lambda y: energy(x, y), y)
    for i in range(4):
        alone = torch.autograd.functional.hessian(lambda v: energy(x[i:i + 1], v[None]).sum(), y[i])
        assert torch.allclose(H[i], alone, atol=1e-10)

def test_draws_keep_to_their_ranges():
    model = EBT(lambda x,y: y.pow(2).sum(-1), 3, 8, 0.5, min_steps=3, step_spread=4., noise=0.2)
    spread,wait,noise = model.training_draws(4000, generator(0))
    assert spread.shape == (4000, 1) and 0.25 <= spread.min() < 0.3 and 3.9 < spread.max() <= 4
    assert wait.unique().tolist() == [0, 1, 2, 3, 4, 5]          # 8 to 3 steps
    assert noise.shape == (4000, 7, 3) and abs(noise.std() - 0.2) < 0.01

def test_rows_wait_for_their_turn_and_noise_spares_the_last_step():
    def bowl(x, y): return 0.5*(y - x).pow(2).sum(-1)
    x,y0 = torch.zeros(3, 1),torch.ones(3, 1)
    halving = EBT(bowl, 1, 4, 0.5, min_steps=1).train()
    assert halving(x, y0, torch.tensor([0, 1, 3])).flatten().tolist() == [0.5**4, 0.5**3, 0.5]
    landing = EBT(bowl, 1, 4, 1., noise=3.).train()
    assert landing(x, y0, 3*torch.randn(3, 3, 1)).abs().max() == 0      # one step of size 1 lands, wherever it begins

def test_replayed_rows_go_on_from_where_a_descent_ended():
    def bowl(x, y): return 0.5*(y - x).pow(2).sum(-1)
    x,y0 = torch.zeros(3, 1),torch.ones(3, 1)
    halving = EBT(bowl, 1, 4, 0.5, replay=0.5).train()
    assert halving(x, y0, torch.tensor([[True], [False], [True]])).flatten().tolist() == [0.5**8, 0.5**4, 0.5**8]
    assert halving.eval()(x, y0).flatten().tolist() == [0.5**4]*3
    [goes_on] = EBT(bowl, 1, 4, replay=0.3).training_draws(5000, generator(0))
    assert abs(goes_on.float().mean() - 0.3) < 0.03

def test_replay_of_all_rows_is_a_longer_descent(data):
    x,y = (t[:8] for t in data[0].tensors)
    y0,energy = torch.randn(8, 2, generator=generator(1), dtype=torch.float64),bowl64(0)
    def gradients(model, *drawn):
        return torch.autograd.grad(F.mse_loss(model.train()(x, y0, *drawn), y), list(energy.parameters()))
    ways = zip(gradients(EBT(energy, 2, 5, replay=1.), torch.ones(8, 1, dtype=torch.bool)), gradients(EBT(energy, 2, 10)))
    for a,b in ways: assert torch.equal(a, b)

def test_choices_that_change_nothing(data):
    def bits(**choice): return list(one_and_several(data, choice, num_steps=10)[0].parameters())
    usual = bits()
    for same in (dict(min_steps=5), dict(step_spread=1), dict(noise=0), dict(replay=0), dict(grad_steps=1), dict(start='normal')):
        assert all(map(torch.equal, usual, bits(**same))), same
    assert all(map(torch.equal, bits(n_optimization_steps=1), bits(n_optimization_steps=1, loss_at='every')))
    assert all(map(torch.equal, bits(n_optimization_steps=1), bits(n_optimization_steps=1, grad_steps='all')))

def test_predictions_begin_where_the_model_says(data):
    x = data[1].tensors[0].float()
    floats = [with_tensors(ds, [t.float() for t in ds.tensors]) for ds in data[:3]] + list(data[3:])
    zeros,proposing = (train_energy_model(*floats, start=s, num_steps=5, latent_dim=8, **quiet) for s in ('zeros', 'proposal'))
    assert trace(zeros, x).guesses[0].abs().max() == 0
    assert torch.equal(trace(proposing, x).guesses[0], proposing.proposal(x).detach())
    assert torch.allclose(proposing(x), trace(proposing, x).guesses[-1], atol=1e-6)

@pytest.mark.parametrize('wrong, said', [
    (dict(grad_steps='most'), "grad_steps"), (dict(grad_steps=0), "grad_steps"), (dict(loss_at='first'), "loss_at"),
    (dict(grad_steps=3, loss_at='every'), "1 or 'all'"), (dict(grad_steps='implicit', learn_step=True), "implicit"),
    (dict(min_steps=11), "at most 10"), (dict(min_steps=0), "min_steps"), (dict(step_spread=0.5), "1 or more"),
    (dict(noise=-1.), "noise"), (dict(replay=1.5), "replay: expected a share"), (dict(replay=-0.1), "replay"), (dict(start='ones'), "start")], ids=str)
def test_refusals(data, wrong, said):
    with pytest.raises(ValueError, match=re.escape(said)): train_energy_model(*data, **wrong, num_steps=1, **quiet)

def test_the_report_says_which_steps_carry_gradients(data):
    def first_line(**choice):
        lines = []
        train_energy_model(*data, num_steps=1, latent_dim=4, report=lines.append, progress=False, **choice)
        return lines[0]
    assert "First-order" in first_line() and "last 3 of 10" in first_line(grad_steps=3)
    assert "all 10" in first_line(grad_steps='all') and "Implicit" in first_line(grad_steps='implicit')

def test_reached_from_run_main():
    small = dict(size_train=64, size_val=8, size_test=8, vec_size=2, num_steps=3, latent_dim=8, **quiet)
    r = run_main('add', model_type='ebt', noise=0.1, min_steps=2, grad_steps='all', **small)
    assert r['ebt']['config']['noise'] == 0.1 and r['ebt']['config']['grad_steps'] == 'all'

def test_recorded_energies_are_those_of_the_predictions():
    def bowl(x, y): return 0.5*(y - x).pow(2).sum(-1)
    far = torch.nn.Linear(2, 2)
    torch.nn.init.zeros_(far.weight), torch.nn.init.constant_(far.bias, 5.)
    model,x = EBT(bowl, 2, 3, 0.1, start=far),torch.randn(6, 2, generator=generator(0))
    row,path = model.monitor(x, torch.zeros(6, 2)),trace(model, x)
    assert row['energy_start'] == pytest.approx(path.energies[0].mean().item()) and row['energy_start'] > 10
    assert row['energy_end'] == pytest.approx(path.energies[-1].mean().item())

def test_rules_refuse_noise_and_leave_gradients_as_they_were():
    def bowl(x, y): return 0.5*(y - x).pow(2).sum(-1)
    model,x = EBT(bowl, 1, 3),torch.zeros(2, 1)
    with pytest.raises(ValueError, match="noise: expected rule='fixed'"): trace(model, x, rule='backtracking', noise=0.5)
    walk = walk_down(bowl, x, x + 1, 5, 0.1, rule='backtracking')
    next(walk)
    assert torch.is_grad_enabled()

def test_training_mode_draws_what_it_needs():
    model = EBT(EnergyFunction(2, 2, 8), 2, 4, noise=0.1, min_steps=2, step_spread=2.).train()
    x = torch.randn(5, 2, generator=generator(0))
    assert torch.equal(model(x), model(x)) and not torch.equal(model(x), model(x, seed=1))

def test_all_steps_are_all_steps_after_their_number_was_changed():
    model = EBT(EnergyFunction(2, 2, 8), 2, 2, grad_steps='all').train()
    model.n_optimization_steps = 6
    other = EBT(model.energy, 2, 6, grad_steps='all').train()
    x,y0 = torch.randn(2, 5, 2, generator=generator(0))
    grads = [torch.autograd.grad(m(x, y0).sum(), model.energy.net[0].weight)[0] for m in (model, other)]
    assert torch.equal(*grads)

def test_parts_that_do_not_fit_are_refused(data):
    with pytest.raises(ValueError, match='proposes'): EBT(EnergyFunction(2, 2, 8), 2, 3, start=torch.nn.Linear(2, 1))(torch.ones(3, 2))
    for wrong,said in ((dict(start=torch.nn.Linear(4, 2)), 'start'), (dict(learn_step=True, weight_decay=0.1), 'weight_decay'),
                       (dict(grad_steps=11), 'at most 10')):
        with pytest.raises(ValueError, match=said): train_energy_model(*data, **wrong, num_steps=1, **quiet)

def test_decay_reaches_every_weight_in_every_way(data):
    energy = lambda seed: EnergyFunction(4, 2, 16, seed).double()
    given = dict(energy=energy, weight_decay=0.5, num_steps=30, batch_size=16, n_optimization_steps=3) | quiet
    alone,group = train_energy_model(*data, **given, seed=1),train_energy_model(*data, **given, seeds=[0, 1])[1]
    start = EnergyFunction(4, 2, 16, 1).double().net[-1].bias
    assert apart(alone, group) < 1e-10 and abs(alone.energy.net[-1].bias.item()) < abs(start.item())
