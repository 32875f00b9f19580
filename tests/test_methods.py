"Tasks, energies, step rules and training controls: closed forms, one way against another, and what may never happen."
import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import nn

from ebt_toy import EBT, create_synthetic_data, fit, run_main, thinking_curve, trace, train_energy_model
from ebt_toy.cli import main
from ebt_toy.core import generator
from ebt_toy.data import get_task, uniform
from ebt_toy.ebt import _energies, _rules, descend
from ebt_toy.energies import Bilinear
from ebt_toy.pairs import NUMBERWISE

QUIET = dict(report=None, progress=False)
RULES = sorted(_rules)

# Tasks

@pytest.mark.parametrize('name', [*NUMBERWISE, 'apply', 'solve', 'sort', 'matrix_add', 'matrix_complete', 'matrix_inverse'])
def test_tasks_repeat_and_know_their_truth(name):
    a,b = (create_synthetic_data(name, 40, 30, 20, vec_size=3, seed=5) for _ in range(2))
    for s,t in zip(a[:3], b[:3]): assert all(map(torch.equal, s.tensors, t.tensors))
    assert not torch.equal(a.train_dataset.tensors[0][:20], a.test_dataset.tensors[0])
    if truth := get_task(name).truth:
        for ds in a[:3]: torch.testing.assert_close(truth(ds.tensors[0]), ds.tensors[1], rtol=1e-3, atol=1e-4)

@pytest.mark.parametrize('name, check', [
    ('divide', lambda x, y: y*x[:, 3:] - x[:, :3]), ('sqrt', lambda x, y: y*y - x), ('cbrt', lambda x, y: y**3 - x),
    ('square', lambda x, y: x*x - y), ('cube', lambda x, y: x**3 - y),
    ('solve', lambda x, y: (x[:, :9].unflatten(-1, (3, 3)) @ y[..., None])[..., 0] - x[:, 9:]),
    ('matrix_inverse', lambda x, y: x.view(-1, 3, 3) @ y.view(-1, 3, 3) - torch.eye(3))])
def test_answers_pass_an_independent_check(name, check):
    for ds in create_synthetic_data(name, 200, 50, 50, vec_size=3)[:3]: assert check(*ds.tensors).abs().max() < 1e-3

@pytest.mark.parametrize('hardness', [1.5, 4.])
def test_hardness_moves_the_test_set_alone(hardness):
    a,b = create_synthetic_data('divide', 50, 50, 500, hardness=hardness),create_synthetic_data('divide', 50, 50, 500)
    assert torch.equal(a.train_dataset.tensors[0], b.train_dataset.tensors[0])
    smallest = a.test_dataset.tensors[0][:, 10:].abs().min()
    assert 0.5/hardness <= smallest < 0.5/hardness*1.05
    with pytest.raises(ValueError, match='hardness: expected a number above 1, got 1'): create_synthetic_data('divide', hardness=1.)

# Energies

@pytest.mark.parametrize('energy', sorted(_energies))
@pytest.mark.parametrize('compile', [False, True])
def test_each_energy_in_every_way(recorded, energy, compile):
    data = create_synthetic_data('divide', size_train=300, vec_size=2)
    options = dict(energy=energy, latent_dim=8, n_optimization_steps=3, step_size=0.3, num_steps=12, lr=1e-3, **QUIET)
    alone = [train_energy_model(*data, **options, seed=s, compile=False) for s in range(2)]
    together = train_energy_model(*data, **options, seeds=2, compile=compile)
    assert together[0].history.settings['compile'] == compile
    for a,b in zip(alone, together):
        for p,q in zip(a.parameters(), b.parameters()): torch.testing.assert_close(p, q, rtol=1e-3, atol=2e-5)

@pytest.mark.parametrize('energy', ['bowl', 'corrected'])
def test_what_is_read_once_gives_the_same_energy(energy):
    e = _energies[energy](4, 2, 8, seed=0).double()
    x,y = (torch.randn(5, d, generator=generator(0, d), dtype=torch.float64) for d in (4, 2))
    torch.testing.assert_close(e.of(e.given(x), y), e(x, y))
    plain = descend(lambda x, y: e(x, y), x, y, 5, 0.3)
    torch.testing.assert_close(descend(e, x, y, 5, 0.3).guesses, plain.guesses, rtol=1e-12, atol=1e-12)

def test_an_unknown_energy_is_refused():
    with pytest.raises(ValueError, match="unknown energy 'bilnear'; did you mean 'bilinear'"):
        train_energy_model(*create_synthetic_data('divide', 50), energy='bilnear', **QUIET)

# Step rules

def product_check():
    check = Bilinear(2, 1, 1, rows=1)
    for p in check.parameters(): p.data.zero_()
    check.a.weight.data[0, 1] = check.b.weight.data[0, 2] = check.c.weight.data[0, 0] = 1.
    check.d.weight.data[0, 0] = -1.
    return check

@pytest.mark.parametrize('rule', RULES)
def test_no_row_of_a_wide_set_diverges(rule):
    "Divisors from 0.1 to 4: fixed steps of 1 leap out of the valley on those above √2"
    g = generator(0)
    v2 = torch.exp(torch.log(torch.tensor(0.1)) + torch.log(torch.tensor(40.))*torch.rand(500, 1, generator=g))
    x,y0 = torch.cat([uniform(500, 1, 1., g), v2], dim=1),torch.randn(500, 1, generator=g)
    way = descend(product_check(), x, y0, 60, 1., rule=rule)
    assert torch.isfinite(way.guesses).all() and (way.energies.diff(dim=0) <= 0).all()
    fixed = descend(product_check(), x, y0, 60, 1.).guesses[-1].abs()[:, 0]
    assert ((fixed > 1e3)|~torch.isfinite(fixed))[v2[:, 0] > 1.6].all()
    reached = (way.guesses[-1] - x[:, :1]/x[:, 1:]).abs()[:, 0]
    assert reached[v2[:, 0] > 0.5].max() < 0.02

@settings(max_examples=40, deadline=None)
@given(st.sampled_from(RULES), st.sampled_from(sorted(_energies)), st.integers(0, 10**6), st.floats(0.01, 100))
def test_no_rule_ever_raises_an_energy(rule, energy, seed, step_size):
    e = _energies[energy](3, 2, 8, seed=seed % 100)
    x,y0 = (10*torch.randn(6, d, generator=generator(seed, d)) for d in (3, 2))
    way = descend(e, x, y0, 6, step_size, rule=rule)
    assert torch.isfinite(way.guesses).all() and (way.energies.diff(dim=0) <= 1e-6*way.energies[:-1].abs()).all()

def test_newton_is_at_the_bottom_of_a_bowl_in_one_step():
    A = torch.tensor([[3., 1.], [1., 2.]])
    way = descend(lambda x, y: 0.5*((y - x) @ A*(y - x)).sum(1), torch.ones(4, 2), torch.randn(4, 2, generator=generator(0)), 1, 1., rule='newton')
    torch.testing.assert_close(way.guesses[-1], torch.ones(4, 2), rtol=1e-4, atol=1e-4)

def test_rules_are_known_by_name():
    model = EBT(product_check(), 1)
    with pytest.raises(ValueError, match="unknown rule 'newtn'; did you mean 'newton'"): trace(model, torch.ones(1, 2), rule='newtn')

def test_a_thinking_curve_is_what_evaluation_finds():
    data = create_synthetic_data('divide', size_train=300, size_test=100, vec_size=2)
    model = train_energy_model(*data, energy='bilinear', latent_dim=8, num_steps=30, **QUIET)
    x,y = data.test_dataset.tensors
    for r in thinking_curve(model, data.test_dataset, (1, 10, 30)):
        error = (trace(model, x, r['steps']).guesses[-1] - y).pow(2).mean(1)
        assert abs(r['mean']/error.mean().item() - 1) < 1e-4 and abs(r['median']/error.median().item() - 1) < 0.2
        assert r['flops'] == pytest.approx(r['steps']*thinking_curve(model, data.test_dataset, (1,))[0]['flops'])

# Training controls

def test_an_energy_and_all_controls_compiled():
    "As above, but with the compiler itself"
    data = create_synthetic_data('divide', size_train=300, vec_size=2)
    options = dict(energy='bowl', latent_dim=8, n_optimization_steps=3, step_size=0.3, num_steps=12, lr=1e-3, **CONTROLS, **QUIET)
    ways = [train_energy_model(*data, **options, compile=c) for c in (False, True)]
    assert ways[1].history.settings['compile']
    for p,q in zip(*(m.parameters() for m in ways)): torch.testing.assert_close(p, q, rtol=1e-3, atol=2e-5)

CONTROLS = dict(schedule='cosine', warmup=5, clip=0.5, weight_decay=0.1)

@pytest.mark.parametrize('control', [*({k: v} for k,v in CONTROLS.items()), CONTROLS], ids=lambda c: '+'.join(c))
@pytest.mark.parametrize('compile', [False, True])
def test_controls_are_those_of_pytorch(recorded, control, compile):
    "Against a loop by hand, in double precision; a first loss of 1e3 makes sure that clipping does something"
    data = create_synthetic_data('add', size_train=200, vec_size=2)
    data = [torch.utils.data.TensorDataset(*(t.double() for t in ds.tensors)) for ds in data[:3]]
    def made():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2)).double()
    from ebt_toy.update import draws
    hand,n = made(),40
    opt = (torch.optim.AdamW if 'weight_decay' in control else torch.optim.Adam)(hand.parameters(), lr=0.01, weight_decay=control.get('weight_decay', 0.))
    x,y = data[0].tensors
    rows = (r for block in draws(hand, 200, 64, 3) for r in block[0])
    for t in range(1, n + 1):
        rate = 0.01
        warm = control.get('warmup', 0)
        if 'schedule' in control: rate *= 0.5*(1 + torch.cos(torch.tensor(torch.pi*max(0, t - warm)/(n - warm), dtype=torch.float64)).item())
        if warm: rate *= min(1, t/warm)
        opt.param_groups[0]['lr'] = rate
        r = next(rows)
        opt.zero_grad()
        (hand(x[r]) - y[r]).pow(2).mean().backward()
        if 'clip' in control: nn.utils.clip_grad_norm_(hand.parameters(), control['clip'])
        opt.step()
    model = made()
    h = fit(model, *data, num_steps=n, lr=0.01, seed=3, compile=compile, progress=False, **control)
    for p,q in zip(model.parameters(), hand.parameters()): torch.testing.assert_close(p, q, rtol=1e-9, atol=1e-9)
    assert {k: h.settings[k] for k in control} == control
    plain = made()
    fit(plain, *data, num_steps=n, lr=0.01, seed=3, progress=False, compile=False)
    assert not torch.allclose(plain[0].weight, model[0].weight, atol=1e-6)      # it did something

@pytest.mark.parametrize('bad, message', [(dict(schedule='cosin'), "unknown schedule 'cosin'; did you mean 'cosine'"), (dict(warmup=10), 'warmup: expected a whole number from 0 to 9, got 10'),
    (dict(clip=0), 'clip: expected a finite number above 0, got 0'), (dict(weight_decay=-1), 'weight_decay: expected a finite number above 0')])
def test_bad_controls(bad, message):
    with pytest.raises(ValueError, match=message): fit(nn.Linear(4, 2), *create_synthetic_data('add', 50, vec_size=2)[:3], num_steps=10, **bad)

def test_from_run_main_and_the_command(capsys):
    shared = dict(vec_size=2, size_train=100, size_val=20, size_test=20, num_steps=20, latent_dim=8)
    results = run_main('divide', **shared, model_type='ebt', ebt_config=dict(energy='bilinear'), clip=1., schedule='cosine', task_options=dict(hardness=3.), report=None, progress=False)
    assert results['ebt']['config']['energy'] == 'bilinear' and results['ebt']['config']['clip'] == 1.
    line = '--task divide --model_type ebt --ebt_config energy=bilinear --clip 1.0 --schedule cosine --task_options hardness=3.0 --quiet'
    assert main([*line.split(), *(a for k,v in shared.items() for a in (f'--{k}', str(v)))]) == 0
    out = capsys.readouterr().out
    assert f"EBT Model Training Finished | Test MSE: {results['ebt']['test_mse']:.6f}" in out and 'harder, 3×' in out

@pytest.mark.parametrize('name', [*NUMBERWISE, 'apply', 'solve', 'sort'])
def test_a_test_set_is_never_easier(name):
    with pytest.raises(ValueError, match='hardness: expected a number above 1, got 0.5'): create_synthetic_data(name, 20, 5, 5, hardness=0.5)
