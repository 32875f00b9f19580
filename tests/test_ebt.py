"The energy-based model: every descent against the same thing written by hand, and what a bad request is answered with."
import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import grad, vmap

from ebt_toy import EBT, EnergyFunction, TokenEncoder, create_synthetic_data, predict, trace, train_energy_model
from ebt_toy import test_energy_model as score_energy_model   # under its own name pytest would take it for a test
from ebt_toy.core import generator
from ebt_toy.ebt import descend, inner_step, slope

def bowl(w): return lambda x,y: 0.5*(y - w*x).pow(2).sum(-1)

@pytest.fixture(scope='module')
def data(): return create_synthetic_data('add', size_train=200, vec_size=2)

@pytest.mark.parametrize('kind, expected', [('curved', 3.5), ('without y', 0.), ('constant', 0.)])
@pytest.mark.parametrize('context', [torch.enable_grad, torch.no_grad, torch.inference_mode])
def test_both_ways_to_a_slope(kind, expected, context):
    x,y0,w = torch.tensor([[2.]]),torch.tensor([[6.5]]),torch.tensor(1.5, requires_grad=True)
    f = {'curved': lambda y: bowl(w)(x, y).sum(), 'without y': lambda y: w*2, 'constant': lambda y: torch.tensor(3.)}[kind]
    with context(): ways = slope(f, y0),grad(f)(y0),vmap(lambda y: slope(f, y))(y0)
    assert [d.item() for d in ways] == [expected]*3
    with torch.no_grad(): assert not slope(f, y0).requires_grad

def test_a_slope_carries_gradients_to_the_weights():
    x,y0,w = torch.tensor([[2.]]),torch.tensor([[6.5]]),torch.tensor(1.5, requires_grad=True)
    dw, = torch.autograd.grad(slope(lambda y: bowl(w)(x, y).sum(), y0).sum(), w)
    assert dw.item() == -2.                          # ∂²E/∂w∂y = −x

def by_hand(energy, x, y, n_steps, step_size, grad_steps):
    for k in range(n_steps):
        if n_steps - k <= grad_steps and not y.requires_grad or n_steps - k > grad_steps: y = y.detach().requires_grad_()
        dy, = torch.autograd.grad(energy(x, y).sum(), y, create_graph=n_steps - k <= grad_steps)
        y = y - step_size*dy
    return y

def gradients(loss, model): return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.parameters())[:-1])])
def close(a, b, eps): torch.testing.assert_close(a, b, rtol=eps, atol=eps)

@pytest.fixture(scope='module')
def drawn():
    E = EnergyFunction(6, 3, latent_dim=16).double()
    return E,*(torch.randn(5, d, generator=generator(1, d), dtype=torch.float64) for d in (6, 3, 3))

@pytest.mark.parametrize('n_steps, grad_steps', [(1, 1), (2, 1), (10, 1), (3, 3), (10, 10), (10, 4)])
def test_predictions_and_gradients_are_those_by_hand(drawn, n_steps, grad_steps):
    E,x,target,y0 = drawn
    p,q = EBT(E, 3, n_steps, 0.7, grad_steps)(x, y0),by_hand(E, x, y0, n_steps, 0.7, grad_steps)
    close(p.data, q.data, 1e-12)
    close(gradients(F.mse_loss(p, target), E), gradients(F.mse_loss(q, target), E), 1e-12)

def test_the_last_bias_moves_nothing(drawn):
    E,x,_,y0 = drawn
    assert torch.autograd.grad(EBT(E, 3)(x, y0).sum(), list(E.parameters())[-1], allow_unused=True)[0] in (None, 0)

def test_the_same_prediction_without_gradients(drawn):
    E,x,_,y0 = drawn
    model = EBT(copy.deepcopy(E), 3)
    trained = model(x, y0).data
    model.eval()
    assert not model(x, y0).requires_grad
    for context in (torch.no_grad, torch.inference_mode):
        with context(): close(model(x, y0), trained, 1e-12)
    model,xs = model.float(),x.float()
    assert torch.equal(model(xs), model(xs)) and not torch.equal(model(xs, seed=1), model(xs))

def test_the_path_ends_where_forward_ends_and_falls_as_it_should():
    model,x = EBT(EnergyFunction(6, 3), 3),torch.randn(50, 6, generator=generator(2))
    close(trace(model, x).guesses[-1], model(x).data, 1e-6)
    precise = copy.deepcopy(model).double()
    path = trace(precise, x.double(), n_steps=30, step_size=0.01)
    assert path.guesses.shape == (31, 50, 3) and (path.energies.diff(dim=0) < 0).all()
    steepness = (path.guesses[1] - path.guesses[0])/0.01
    close((path.energies[1] - path.energies[0])/(-0.01*steepness.pow(2).sum(-1)), torch.ones(50, dtype=torch.float64), 0.02)
    seen = model.monitor(x, model.initial_guess(50, generator(0)))
    assert seen['energy_end'] < seen['energy_start']

def test_noise_settles_at_the_spread_it_should():
    "A step keeps 1 − α of the offset and adds variance σ², so the spread ends where v = (1 − α)²v + σ²"
    shaken = trace(EBT(bowl(1.5), 1, step_size=0.5), torch.full((20_000, 1), 2.), n_steps=20, noise=0.1).guesses[-1]
    assert abs(shaken.mean().item() - 3) < 0.005 and abs(shaken.var().item()/(0.1**2/(1 - 0.5**2)) - 1) < 0.05
    with pytest.raises(ValueError, match='noise: expected a finite number above 0, got -1'): trace(EBT(bowl(1.), 1), torch.zeros(1, 1), noise=-1)

def test_without_a_record_the_same_end(drawn):
    E,x,_,y0 = drawn
    assert torch.equal(descend(E, x, y0, 5, 0.5, record=False).guesses[-1].data, descend(E, x, y0, 5, 0.5).guesses[-1].data)
    assert descend(E, x, y0, 5, 0.5, record=False).energies is None

def test_classes_and_texts():
    "y is the logits of a distribution; an encoder reads x once; the gradients are those by hand"
    texts = create_synthetic_data('listops', 400, 100, 100, vec_size=1, min_length=7, max_args=3)
    reader = train_energy_model(*texts, encoder=lambda seed: TokenEncoder(32, 1, 2, seed), latent_dim=64, num_steps=150, lr=3e-3, report=None,
                                progress=False, compile=False)
    xs,ys = texts.val_dataset.tensors
    right = trace(reader, xs, n_steps=20).guesses.softmax(-1)[:, torch.arange(100), ys].mean(1)
    assert right[0] < 0.15 < right[10]
    assert torch.equal(reader(xs).argmax(-1), trace(reader, xs).guesses[-1].argmax(-1))
    accuracy = (predict(reader, xs).argmax(-1) == ys).float().mean().item()
    assert abs(score_energy_model(reader, test_dataset=texts.val_dataset) - accuracy) < 1e-6
    precise = copy.deepcopy(reader).double().train()
    y0 = torch.randn(100, 10, generator=generator(4), dtype=torch.float64)
    ways = [precise(xs, y0),by_hand(precise.energy, precise.encoder(xs), y0, 10, 1., 1)]
    weights = [q for q in precise.parameters() if q.ndim > 1]
    close(*[torch.cat([g.flatten() for g in torch.autograd.grad(F.cross_entropy(p, ys), weights)]) for p in ways], 1e-10)

@pytest.mark.parametrize('request_, message', [
    (lambda d: EBT(EnergyFunction(4, 2), 2, step_size=0), "step_size: expected a finite number above 0, got 0"),
    (lambda d: score_energy_model(EBT(EnergyFunction(4, 2), 2), 3, float('inf'), d.test_dataset), "step_size: expected a finite number above 0, got inf"),
    (lambda d: EBT(EnergyFunction(4, 2), 2, n_optimization_steps=0), "n_optimization_steps: expected a whole number"),
    (lambda d: score_energy_model(EnergyFunction(4, 2)), "test_dataset: expected a TensorDataset"),
    (lambda d: train_energy_model(*d[:3], 5, 2, num_steps=1, report=None), r"expected x of shape \(n, input_dim=5\), got \(200, 4\)"),
    (lambda d: inner_step(lambda x,y: y**2, torch.zeros(1, 1), torch.zeros(1, 1), 1.), r"energy: expected one number per row, shape \(1,\), got \(1, 1\)"),
    (lambda d: train_energy_model(*d, energy=lambda x,y: y**2, num_steps=1, report=None, progress=False), r"energy: expected one number per row, shape \(2,\), got \(2, 2\)")])
def test_bad_requests(data, request_, message):
    with pytest.raises(ValueError, match=message): request_(data)

def test_an_unknown_keyword_is_answered_by_the_function_called(data):
    with pytest.raises(TypeError, match="unknown argument of train_energy_model 'sead'; did you mean 'seed'"): train_energy_model(*data, sead=1)
