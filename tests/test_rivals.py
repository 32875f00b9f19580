"Models without an energy: closed forms, one way of training against another, and each from the runner and the command line."
import pytest
import torch
from torch import nn
from torch.func import functional_call, vmap

from ebt_toy import EBT, FeedForward, create_synthetic_data, fit, predict, run_main, train_feedforward
from ebt_toy.cli import main
from ebt_toy.core import generator, seeded
from ebt_toy.rivals import (NAU, NMU, Arithmetic, Ensemble, Recurrent, matched_width, model_costs, resting_step, train_arithmetic,
                            train_ensemble, train_fixed_point, train_recurrent)
from ebt_toy.update import activations, mlp

QUIET = dict(report=None, progress=False)
KINDS = dict(recurrent=(train_recurrent, dict(n_optimization_steps=3, latent_dim=8)), last_two=(train_recurrent, dict(n_optimization_steps=3, latent_dim=8, keep=0.3, grad_steps=2)),
             fixed_point=(train_fixed_point, dict(n_optimization_steps=3, latent_dim=8)), implicit=(train_fixed_point, dict(n_optimization_steps=3, latent_dim=8, grad_steps='implicit')),
             ensemble=(train_ensemble, dict(members=3, latent_dim=8, lr=1e-3)), nau_nmu=(train_arithmetic, dict(lr=1e-3)),
             glu=(train_feedforward, dict(activation='glu', latent_dim=8, lr=1e-3)), product=(train_feedforward, dict(activation='product', latent_dim=8, n_layers=1, lr=1e-3)))

def drawn(*shape, stream=0): return torch.randn(*shape, generator=generator(0, stream), dtype=torch.float64)

# Equal costs

def test_costs_in_closed_form():
    "One hidden layer: its weights, two matrix products per answer, three times as many in an update of 8 less the one that leads to x"
    data,w = create_synthetic_data('add', 64, 8, 8, vec_size=1),5
    costs = model_costs(train_feedforward, data, latent_dim=w, n_layers=1, batch_size=8)
    assert costs['weights'] == 2*w + w + w + 1 and costs['answer'] == 2*(2*w + w)
    assert costs['update'] == 8*2*(3*(2*w + w) - 2*w)

@pytest.mark.parametrize('cost', ['weights', 'update', 'answer'])
def test_a_matched_width_is_the_nearest(cost):
    data = create_synthetic_data('add', 64, 8, 8, vec_size=1)
    def at(w): return model_costs(train_feedforward, data, latent_dim=w)[cost]
    for target in (1, at(6), at(9) + 1, (at(11) + at(12))/2 + 1):
        w = matched_width(train_feedforward, data, cost, target, widest=16)
        assert all(abs(at(w) - target) <= abs(at(v) - target) for v in (max(1, w - 1), w + 1))
    with pytest.raises(ValueError, match="target: expected at most"): matched_width(train_feedforward, data, cost, 1e9, widest=16)
    with pytest.raises(ValueError, match="unknown cost"): matched_width(train_feedforward, data, 'price', 10)

# Networks

def test_defaults_of_networks_keep_their_bits():
    "Against the network as it was before it had a number of layers: three hidden ones, drawn one after another"
    for act in ('relu', 'silu'):
        with seeded(5, 'weights'): layers = [nn.Linear(a, b) for a,b in ((7, 16), (16, 16), (16, 16), (16, 3))]
        new = mlp(7, 3, 16, act, 5)
        kinds = [type(m) for m in new]
        assert kinds == [k for _ in range(3) for k in (nn.Linear, activations[act])] + [nn.Linear]
        for p,q in zip(new.parameters(), (p for l in layers for p in l.parameters())): assert torch.equal(p, q)
        for p,q in zip(new.parameters(), FeedForward(7, 3, 16, act, 5).net.parameters()): assert torch.equal(p, q)

@pytest.mark.parametrize('n_layers', [1, 2, 4])
@pytest.mark.parametrize('activation', sorted(activations))
def test_networks_by_hand(activation, n_layers):
    net = mlp(4, 3, 6, activation, seed=1, n_layers=n_layers).double()
    linear = [m for m in net if isinstance(m, nn.Linear)]
    assert len(linear) == n_layers + 1 and all(l.in_features == 6 for l in linear[1:])
    h = x = drawn(5, 4)
    for l in linear[:-1]:
        h = h @ l.weight.T + l.bias
        if activation == 'product': h = h[:, :6]*h[:, 6:]
        elif activation == 'glu': h = h[:, :6]/(1 + (-h[:, 6:]).exp())
        else: h = activations[activation]()(h)
    torch.testing.assert_close(net(x), h @ linear[-1].weight.T + linear[-1].bias)

def test_one_product_layer_is_a_quadratic_form():
    "Its third differences along any line are 0"
    net = mlp(4, 2, 8, 'product', n_layers=1).double()
    t = torch.linspace(-5, 5, 21, dtype=torch.float64)[:, None]
    assert net(drawn(1, 4) + t*drawn(1, 4, stream=1)).diff(n=3, dim=0).abs().max() < 1e-9 < net(t*drawn(1, 4)).diff(n=2, dim=0).abs().max()

@pytest.mark.parametrize('bad', [0, 1.5, True])
def test_bad_numbers_of_layers(bad):
    with pytest.raises(ValueError, match='n_layers: expected a whole number of at least 1'): FeedForward(4, 2, n_layers=bad)

# In every way

@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('compile', [False, True])
def test_each_rival_in_every_way(recorded, kind, compile):
    "One seed, several side by side, and recorded as for the compiler"
    train,options = KINDS[kind]
    data = create_synthetic_data('multiply', size_train=300, vec_size=2)
    options = options | dict(num_steps=8, batch_size=64, **QUIET)
    alone = [train(*data, **options, seed=s, compile=False) for s in range(2)]
    together = train(*data, **options, seeds=2, compile=compile)
    assert together[0].history.settings['compile'] == compile
    for a,b in zip(alone, together):
        for p,q in zip(a.parameters(), b.parameters()): torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-5)
    first,second = (next(m.parameters()) for m in alone)
    assert (first - second).abs().max() > 0.01                     # seeds differ

@pytest.mark.parametrize('kind', KINDS)
def test_each_rival_learns(kind):
    train,options = KINDS[kind]
    data = create_synthetic_data('add', size_train=1000, vec_size=1)
    model = train(*data, **options | dict(num_steps=300, lr=1e-2, compile=False, **QUIET))
    losses = model.history['val_loss']
    assert losses[-1] < 0.1*losses[0] and not model.training

# Steps without an energy

def linear_map(grad_steps='all', n=40, keep=0.2, d=3):
    "y ← κy + Ax + By + c, which contracts"
    model = Recurrent(2, d, n, keep=keep, grad_steps=grad_steps).double()
    model.net = nn.Linear(2 + d, d).double()
    model.net.weight.data[:],model.net.bias.data[:] = 0.2*drawn(d, 2 + d),0.2*drawn(d, stream=1)
    return model

def test_the_path_of_a_linear_map():
    model,x = linear_map(),drawn(5, 2, stream=2)
    w,c = model.net.weight.data,model.net.bias.data
    J = w[:, 2:] + 0.2*torch.eye(3, dtype=torch.float64)
    rest = torch.linalg.solve(torch.eye(3, dtype=torch.float64) - J, (x @ w[:, :2].T + c).T).T
    guesses = model.path(x, 7, seed=4).guesses
    for k in range(8): torch.testing.assert_close(guesses[k], rest + (guesses[0] - rest) @ torch.linalg.matrix_power(J.T, k))
    assert model.path(x, 7).energies is None and len(model.path(x).guesses) == 41

def test_a_path_ends_in_the_prediction():
    model,x = Recurrent(4, 2, 6, 8),drawn(5, 4).float()
    torch.testing.assert_close(model.path(x, seed=3).guesses[-1], predict(model, x, seed=3))
    assert (Recurrent(4, 2, start='zeros').path(x).guesses[0] == 0).all() and model.path(x).guesses[0].std() > 0.3

def gradients(model, x, y0):
    model.zero_grad()
    model.train()(x, y0).pow(2).sum().backward()
    return torch.cat([p.grad.flatten() for p in model.parameters()])

def test_gradients_of_a_linear_map():
    "All steps and the implicit function theorem agree at rest; one step is something else; all agree with a rest point solved for"
    x,y0 = drawn(5, 2, stream=2),drawn(5, 3, stream=3)
    full,implicit,one = (gradients(linear_map(g), x, y0) for g in ('all', 'implicit', 1))
    model = linear_map()
    w,c = model.net.weight,model.net.bias
    M = 0.8*torch.eye(3, dtype=torch.float64) - w[:, 2:]
    torch.linalg.solve(M, (x @ w[:, :2].T + c).T).T.pow(2).sum().backward()
    exact = torch.cat([w.grad.flatten(), c.grad])
    torch.testing.assert_close(full, exact, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(implicit, exact, rtol=1e-6, atol=1e-9)
    assert (one - exact).norm() > 0.1*exact.norm()

def test_gradients_of_a_network_at_rest():
    "The same for a network; and the last k steps come nearer to all of them, the larger k is"
    x,y0 = drawn(5, 2, stream=2),drawn(5, 3, stream=3)
    def of(grad_steps): return gradients(Recurrent(2, 3, 60, 8, keep=0.5, grad_steps=grad_steps).double(), x, y0)
    full = of('all')
    torch.testing.assert_close(of('implicit'), full, rtol=1e-6, atol=1e-8)
    far = [(of(k) - full).norm().item() for k in (1, 3, 6, 12, 60)]
    assert far == sorted(far, reverse=True) and far[0] > 1e-3*full.norm() and far[-1] == 0

def test_the_gradients_do_not_change_the_answer():
    x,y0 = drawn(5, 2).float(),drawn(5, 3).float()
    models = [Recurrent(2, 3, 7, 8, grad_steps=g).train() for g in ('all', 1, 4, 'implicit')]
    for m in models[1:]: assert torch.equal(m(x, y0), models[0](x, y0))
    assert torch.equal(models[0].eval()(x, y0), models[1].train()(x, y0)) and not models[0](x, y0).requires_grad

def test_gradients_reach_the_encoder():
    class Reader(nn.Linear):
        dim = 2
    x,y0 = drawn(5, 4),drawn(5, 3)
    def of(grad_steps):
        with seeded(0): reader = Reader(4, 2).double()
        model = Recurrent(2, 3, 60, 8, keep=0.5, grad_steps=grad_steps, encoder=reader).double()
        gradients(model, x, y0)
        return reader.weight.grad
    torch.testing.assert_close(of('implicit'), of('all'), rtol=1e-6, atol=1e-8)

def test_a_resting_step_under_transforms():
    "Many models at once: `vmap` over weights gives what each gives"
    x,y0 = drawn(5, 2),drawn(5, 3)
    models = [Recurrent(2, 3, 20, 8, keep=0.5, grad_steps='implicit', seed=s).double().train() for s in range(3)]
    params,_ = torch.func.stack_module_state(models)
    def loss(p): return functional_call(models[0], p, (x, y0)).pow(2).sum()
    together = vmap(torch.func.grad(loss))(params)
    for i,m in enumerate(models):
        gradients(m, x, y0)
        for n,p in m.named_parameters(): torch.testing.assert_close(together[n][i], p.grad, rtol=1e-6, atol=1e-9)

@pytest.mark.parametrize('bad, message', [(dict(keep=1.5), 'keep: expected a number from 0 to 1, got 1.5'), (dict(keep=True), 'keep: expected a number from 0 to 1, got True'),
    (dict(start='proposal'), "unknown start 'proposal'"), (dict(grad_steps='each'), "unknown grad_steps 'each'"), (dict(grad_steps=0), 'grad_steps: expected a whole number of at least 1'),
    (dict(n_optimization_steps=0), 'n_optimization_steps: expected a whole number'), (dict(activation='relo'), "did you mean 'relu'")])
def test_bad_settings(bad, message):
    with pytest.raises(ValueError, match=message): Recurrent(2, 1, **bad)

def test_an_unknown_setting_gets_the_nearest():
    data = create_synthetic_data('add', 20, 5, 5, vec_size=1)
    for train,wrong,right in ((train_recurrent, 'kep', 'keep'), (train_ensemble, 'member', 'members'), (train_arithmetic, 'latent', 'latent_dim')):
        with pytest.raises(TypeError, match=f"did you mean '{right}'"): train(*data, **{wrong: 1})

# Ensembles

@pytest.mark.parametrize('dtype, close', [(torch.float64, 1e-4), (torch.float32, 1e-3)])
def test_a_member_is_trained_as_if_alone(dtype, close):
    data = create_synthetic_data('multiply', size_train=300, vec_size=2)
    data = [torch.utils.data.TensorDataset(*(t.to(dtype) for t in ds.tensors)) for ds in data[:3]]
    few = dict(num_steps=30, batch_size=32, lr=1e-3, compile=False, progress=False)
    ensemble,same = (Ensemble(4, 2, 3, 8, 'silu', seed=2).to(dtype) for _ in range(2))
    start = [p.detach().clone() for p in same.parameters()]
    fit(ensemble, *data, **few)
    for net in same.nets: fit(net, *data, **few)
    for p,q,r in zip(ensemble.parameters(), same.parameters(), start):
        torch.testing.assert_close(p, q, rtol=0, atol=close)
        assert (p - r).abs().max() > 10*close

def test_mean_and_spread():
    model,x = Ensemble(4, 2, 3, 8),drawn(5, 4).float()
    each = torch.stack([net(x) for net in model.nets])
    assert len(model.train()(x)) == 3 and all(map(torch.equal, model(x), each))
    torch.testing.assert_close(predict(model, x), each.mean(0))
    torch.testing.assert_close(model.spread(x), (each - each.mean(0)).pow(2).mean(0).sqrt())
    assert model.training and (model.spread(x) > 0).all()
    others = Ensemble(4, 2, 3, 8, seed=1)
    firsts = [net[0].weight for m in (model, others) for net in m.nets]
    assert all((p - q).abs().max() > 0.1 for i,p in enumerate(firsts) for q in firsts[:i])     # no two members are alike
    with pytest.raises(ValueError, match='members: expected at least 2, got 1'): Ensemble(4, 2, 1)

# Units for arithmetic

def test_arithmetic_written_down():
    "(a + b)·(c − d), with weights beyond the bounds, which are clamped"
    model,x = Arithmetic(4, 1, 2).double(),100*drawn(50, 4)
    model.add.weight.data[:],model.multiply.weight.data[:] = torch.tensor([[1., 9., 0., 0.], [0., 0., 1., -1.]]),torch.tensor([[1., 3.]])
    torch.testing.assert_close(model(x)[:, 0], (x[:, 0] + x[:, 1])*(x[:, 2] - x[:, 3]))
    model.multiply.weight.data[:] = torch.tensor([[-2., 1.]])
    torch.testing.assert_close(model(x)[:, 0], x[:, 2] - x[:, 3])

def test_layers_by_hand():
    nau,nmu,x = NAU(3, 2).double(),NMU(3, 2).double(),drawn(5, 3)
    x[0, 0] = 0                                                          # a zero makes no exception
    nau.weight.data[0, 0],nmu.weight.data[0, 0] = -4.,4.
    w,v = nau.weight.clamp(-1, 1),nmu.weight.clamp(0, 1)
    torch.testing.assert_close(nau(x), x @ w.T)
    by_hand = torch.stack([(v[o, 0]*x[:, 0] + 1 - v[o, 0])*(v[o, 1]*x[:, 1] + 1 - v[o, 1])*(v[o, 2]*x[:, 2] + 1 - v[o, 2]) for o in range(2)], 1)
    torch.testing.assert_close(nmu(x), by_hand)
    grads = [torch.autograd.grad(y.pow(2).sum(), nmu.weight)[0] for y in (nmu(x), by_hand)]
    assert grads[1][0, 0] == 0 != grads[0][0, 0]                         # it can come back from beyond its bound
    grads[0][0, 0] = 0
    torch.testing.assert_close(*grads)
    assert (NMU(50, 50).weight.data - 0.5).abs().max() <= 0.25 and NAU(1, 1).weight.abs() <= 0.5

def test_arithmetic_finds_the_rule():
    data = create_synthetic_data('multiply', size_train=2000, vec_size=2)
    models = train_arithmetic(*data, num_steps=800, lr=1e-2, schedule='cosine', seeds=4, compile=False, **QUIET)
    assert sorted(m.history.rows()[-1]['test_loss'] for m in models)[1] < 1e-6

# From the runner and the command line

RIVALS = ('recurrent', 'fixed_point', 'ensemble', 'nau_nmu')

def test_from_run_main_and_the_command(capsys):
    shared = dict(vec_size=2, size_train=100, size_val=20, size_test=20, num_steps=10, latent_dim=8, n_optimization_steps=4)
    names = ['ebt', 'ffn', *RIVALS]
    results = run_main('divide', **shared, model_type=names, ensemble_config=dict(members=2), fixed_point_config=dict(grad_steps='implicit'), clip=1., report=None, progress=False)
    assert list(results) == names and results['ensemble']['config']['members'] == 2 and len(results['ensemble']['model'].nets) == 2
    assert [results[n]['config'][k] for n,k in (('recurrent', 'grad_steps'), ('recurrent', 'keep'), ('fixed_point', 'grad_steps'), ('fixed_point', 'keep'))] == ['all', 1., 'implicit', 0.]
    assert results['recurrent']['model'].n_optimization_steps == 4 and results['recurrent']['config']['activation'] == 'silu'
    line = f"--task divide --model_type {','.join(RIVALS)} --members 2 --clip 1.0 --quiet"
    assert main([*line.split(), *(a for k,v in shared.items() for a in (f'--{k}', str(v)))]) == 0
    out = capsys.readouterr().out
    for title,name in (('Recurrent', 'recurrent'), ('Ensemble', 'ensemble'), ('NAU-NMU', 'nau_nmu')):
        assert f"{title} Model Training Finished | Test MSE: {results[name]['test_mse']:.6f}" in out
    assert 'Fixed point Model Training Finished' in out

def test_several_seeds_from_run_main():
    results = run_main('divide', vec_size=2, size_train=100, size_val=20, size_test=20, num_steps=5, latent_dim=8, seeds=2, model_type=list(RIVALS), report=None, progress=False)
    for name in RIVALS: assert len(results[name]['test_mse_seeds']) == 2 and results[name]['status'] == 'finished'
