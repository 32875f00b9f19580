"Longer and safer descents: closed forms, one way against another, and what may never happen."
import math

import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import nn
from torch.utils.data import TensorDataset

from ebt_toy import create_synthetic_data, train_energy_model
from ebt_toy.core import generator
from ebt_toy.data import uniform
from ebt_toy.ebt import EBT, EnergyFunction, Trajectory, _rules, descend, hessian, trace
from ebt_toy.energies import Bilinear
from ebt_toy.models import predict
from ebt_toy.thinking import (best_of, newton_step, plot_thinking, plot_thinking_map, settle, step_flops, thinking_curve,
                              thinking_map)

QUIET = dict(report=None, progress=False)
RULES = sorted(_rules)

def normal(*shape, seed=0, dtype=torch.float32): return torch.randn(*shape, generator=generator(seed), dtype=dtype)

class Ellipse(nn.Module):
    "½ Σ λ (y − x)², its curvatures λ given"
    def __init__(self, *curvatures):
        super().__init__()
        self.register_buffer('curvatures', torch.tensor(curvatures))
    def forward(self, x, y): return 0.5*(self.curvatures*(y - x)**2).sum(1)

# Newton's step and rules

def test_newton_step_is_the_way_to_the_bottom_and_away_from_a_top():
    y,x = normal(5, 2),normal(5, 2, seed=1)
    torch.testing.assert_close(newton_step(lambda y: Ellipse(3., 0.2)(x, y), y), y - x, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(newton_step(lambda y: -Ellipse(3., 0.2)(x, y), y), x - y, rtol=1e-4, atol=1e-5)

def energies(kind, seed):
    "Energies of 2 numbers, by kind, and the ranges their rows may reach"
    g = generator(seed)
    if kind == 'quadratic':
        A = torch.randn(6, 2, 2, generator=g)*10**(2*torch.rand(6, 1, 1, generator=g) - 1)
        return lambda x, y: 0.5*((A @ (y - x)[..., None])**2).sum((1, 2))
    if kind == 'double well':
        a,tilt = 10**(3*torch.rand(6, generator=g) - 1.5),torch.randn(6, generator=g)
        return lambda x, y: (a[:, None]*(y*y - 1)**2).sum(1) + tilt*(x*y).sum(1)
    mlp = EnergyFunction(2, 2, 8, seed=seed % 1000)
    return lambda x, y: mlp(x, y) + (0.05*(y**2).sum(1) if kind == 'mlp' else 0)       # or without any lowest point

@settings(max_examples=25, deadline=None)
@given(st.sampled_from(RULES), st.sampled_from(['quadratic', 'double well', 'mlp', 'bottomless']), st.integers(0, 10**6),
       st.floats(0.01, 100))
def test_no_rule_raises_an_energy_and_no_row_diverges(rule, kind, seed, step_size):
    e,x,y0 = energies(kind, seed),normal(6, 2, seed=seed),3*normal(6, 2, seed=seed + 1)
    way = descend(e, x, y0, 20, step_size, rule=rule)
    before,after = way.energies[:-1],way.energies[1:]
    assert torch.isfinite(way.guesses).all() and torch.isfinite(way.energies).all()
    assert (after <= before + 1e-6*before.abs()).all()
    if kind != 'bottomless': assert way.guesses.abs().max() < 1e3

@pytest.mark.parametrize('rule', RULES)
def test_an_energy_without_a_bottom_stays_finite(rule):
    way = descend(lambda x, y: -y.sum(1) - y.pow(3).sum(1), torch.zeros(3, 1), torch.ones(3, 1), 120, 1., rule=rule)
    assert torch.isfinite(way.guesses).all() and (way.energies.diff(dim=0) <= 0).all()

@pytest.fixture(scope='module')
def divider():
    data = create_synthetic_data('divide', size_train=2000, size_val=200, size_test=200, vec_size=1)
    options = dict(latent_dim=16, num_steps=300, lr=1e-2, schedule='cosine', clip=1., compile=False)
    return train_energy_model(*data, energy='bilinear', **options, **QUIET),data

def test_wide_divisors_in_a_trained_check(divider):
    "Fixed steps of 1 leap out of the valley on about half of the rows; no rule does on any"
    g = generator(0)
    size = torch.exp(math.log(0.1) + math.log(40.)*torch.rand(200, 1, generator=g))
    x = torch.cat([uniform(200, 1, 1., g), size*(1 - 2*torch.randint(0, 2, (200, 1), generator=g))], dim=1)
    def lost(rule):
        end = trace(divider[0], x, 60, rule=rule).guesses[-1].abs()
        return (~(end < 100)).float().mean().item()
    shares = {rule: lost(rule) for rule in ['fixed', *RULES]}
    assert 0.1 < shares.pop('fixed') < 0.7 and not any(shares.values()), shares

# settle

@pytest.mark.parametrize('alpha, curvature', [(0.1, 1.), (0.5, 1.), (0.25, 2.)])
def test_steps_until_rest_in_closed_form(alpha, curvature):
    "The slope shrinks by 1 − αλ per step"
    model,x = EBT(Ellipse(curvature), 1, step_size=alpha).double(),torch.zeros(50, 1, dtype=torch.float64)
    rest = settle(model, x, 1e-4)
    first = trace(model, x, 1).guesses[0].abs()[:, 0]*curvature
    expected = (torch.log(1e-4/first)/math.log(1 - alpha*curvature)).ceil().clamp(min=0)
    assert (rest.steps == expected).all()
    torch.testing.assert_close(rest.slope, first*(1 - alpha*curvature)**expected, rtol=1e-4, atol=0)

@pytest.mark.parametrize('rule', ['fixed', *RULES])
def test_settled_answers_are_those_of_the_path(divider, rule):
    model,data = divider
    x = data.test_dataset.tensors[0][:40]
    rest,way = settle(model, x, 1e-2, 30, rule),trace(model, x, 30, rule=rule)
    assert len(set(rest.steps.tolist())) > 1 or rule == 'newton'
    torch.testing.assert_close(rest.answer, way.guesses[rest.steps, torch.arange(40)], rtol=0, atol=0)
    assert ((rest.slope < 1e-2) | (rest.steps == 30)).all()

def test_rows_that_never_rest():
    rest = settle(EBT(Ellipse(3.), 1), torch.zeros(4, 1), 1e-3, 500)        # 1 − αλ = −2: diverges
    assert (rest.steps == 500).all() and not (rest.slope < 1e-3).any()
    assert (settle(EBT(Ellipse(3.), 1), torch.zeros(4, 1), 1e9).steps == 0).all()
    with pytest.raises(ValueError, match='tol: expected a finite number above 0, got 0'): settle(EBT(Ellipse(3.), 1), torch.zeros(4, 1), 0)

# best_of

def test_best_of_is_the_lowest_of_its_starts(divider):
    model,data = divider
    x = data.test_dataset.tensors[0][:50]
    assert torch.equal(best_of(model, x, 1).answer, predict(model, x)) and not best_of(model, x, 1).spread.any()
    several = [best_of(model, x, n, 3) for n in (1, 2, 4, 8)]
    for a,b in zip(several, several[1:]): assert (b.energy <= a.energy).all()
    with torch.no_grad(): torch.testing.assert_close(model.energy(x, several[-1].answer), several[-1].energy)
    assert several[-1].energy.sum() < several[0].energy.sum()

def test_spread_in_closed_form():
    "Two starts a and b that do not move are |a − b|/2 from their mean"
    still = EBT(lambda x, y: 0*y.sum(1), 2)
    best = best_of(still, torch.zeros(6, 3), 2, seed=3)
    other = torch.randint(2**31, (1,), generator=generator(3, 'starts')).item()
    a,b = (predict(still, torch.zeros(6, 3), seed=s) for s in (3, other))
    torch.testing.assert_close(best.spread, (a - b).norm(dim=1)/2)

def test_a_diverged_start_is_never_the_best():
    cliff = EBT(lambda x, y: torch.where(y > 0, -y**3*1e3, y**2)[:, 0], 1, 40, 0.1)
    best = best_of(cliff, torch.zeros(30, 1), 12)
    assert torch.isfinite(best.answer).all() and not torch.isfinite(best.spread).all()

def test_best_of_needs_random_starts():
    with pytest.raises(ValueError, match="start='normal'.*got start='zeros'"):
        best_of(EBT(Ellipse(1.), 1, start='zeros'), torch.zeros(2, 1), 3)

# Curves, maps and models without an energy

class Halving(nn.Module):
    "y ← y/2 + x/2, by a product with a matrix"
    def path(self, x, n_steps, seed=0):
        y = [torch.zeros_like(x)]
        for _ in range(n_steps): y.append((y[-1] + x) @ (0.5*torch.eye(x.shape[1])))
        return Trajectory(torch.stack(y), None)

def test_the_curve_of_a_model_without_an_energy():
    x = normal(30, 2)
    rows = thinking_curve(Halving(), TensorDataset(x, x), (5, 1, 2))
    assert [r['steps'] for r in rows] == [1, 2, 5] and all(math.isnan(r['energy']) and math.isnan(r['slope']) for r in rows)
    for r in rows:
        assert r['mean'] == pytest.approx(x.pow(2).mean().item()/4**r['steps'], rel=1e-4)
        assert r['flops'] == r['steps']*2*2*2 and r['low'] <= r['median'] <= r['high']
    with pytest.raises(ValueError, match='expected a model with an energy, got Halving'):
        thinking_curve(Halving(), TensorDataset(x, x), (1,), rule='newton')

def test_a_step_of_a_bilinear_check_costs_what_its_layers_do():
    "Twice the multiplications forward; backward only what leads to y: c, b and d transposed"
    model,x = EBT(Bilinear(2, 1, 8), 1),normal(10, 2)
    forward = 2*(2*8 + 3*8 + 8*2 + 3*2)
    assert forward < step_flops(model, x) <= 2*forward
    assert step_flops(model, x, 'backtracking') > step_flops(model, x)

def test_a_map_holds_a_curve_per_model():
    data = create_synthetic_data('divide', size_train=200, size_val=50, size_test=50, vec_size=1)
    def train(*data, n_optimization_steps):
        return train_energy_model(*data, n_optimization_steps=n_optimization_steps, energy='bilinear', latent_dim=4, num_steps=20, **QUIET)
    rows = thinking_map(train, data, (3, 1), (1, 4), rule='backtracking')
    assert [(r['train_steps'], r['steps']) for r in rows] == [(1, 1), (1, 4), (3, 1), (3, 4)]
    alone = thinking_curve(train(*data, n_optimization_steps=3), data.test_dataset, (1, 4), 'backtracking')
    assert [r['mean'] for r in rows[2:]] == [r['mean'] for r in alone]
    ax = plot_thinking_map([*rows[:3], rows[3] | dict(mean=math.inf)])
    assert [t.get_text() for t in ax.texts][-1] == 'inf'

def test_labels_of_a_curve_do_not_collide():
    def rows(shift): return [dict(steps=n, flops=shift*n, mean=1/n, median=1/n) for n in (10, 20, 50, 100, 200)]
    ax = plot_thinking(dict(a=rows(100), b=rows(110), c=rows(10**4), FFN=(500, 0.1)))
    ax.figure.draw_without_rendering()
    boxes = [t.get_window_extent() for t in ax.texts]
    assert {'10', '200'} <= {t.get_text() for t in ax.texts} and len(boxes) >= 8
    assert not any(a.overlaps(b) for i,a in enumerate(boxes) for b in boxes[:i])
    assert not plot_thinking(dict(a=rows(1)), x='steps').texts
