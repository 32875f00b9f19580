"Longer and safer descents: closed forms, one way against another, and what may never happen."
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import nn
from torch.utils.data import TensorDataset

from ebt_toy import create_synthetic_data, train_energy_model
from ebt_toy.confidence import auroc, bootstrap, confidence, disagreement, doubts, plot_confidence, rank_correlation
from ebt_toy.core import generator
from ebt_toy.data import accuracy, uniform
from ebt_toy.ebt import EBT, EnergyFunction, Trajectory, _rules, descend, trace
from ebt_toy.energies import Bilinear, Bowl
from ebt_toy.models import predict
from ebt_toy.thinking import (best_of, newton_step, plot_thinking, plot_thinking_map, settle, prediction_flops, thinking_curve,
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
    data = create_synthetic_data('divide', size_train=1000, size_val=50, size_test=50, vec_size=1)
    options = dict(latent_dim=16, num_steps=200, eval_every=200, lr=1e-2, schedule='cosine', clip=1., compile=False)
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
    assert len(set(rest.steps.tolist())) > 1 or rule not in ('fixed', 'backtracking')
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

def test_a_curve_by_another_metric():
    x = normal(30, 2)
    usual,same = (thinking_curve(Halving(), TensorDataset(x, x), (1, 3), metric=m) for m in (None, nn.functional.mse_loss))
    for a,b in zip(usual, same): assert [a[k] for k in ('mean', 'median', 'low')] == pytest.approx([b[k] for k in ('mean', 'median', 'low')])
    labels = TensorDataset(x, x.argmax(1))
    rows = thinking_curve(Halving(), labels, (1, 3), metric=accuracy)       # the way to x keeps its order
    assert [r['mean'] for r in rows] == [1, 1] and plot_thinking(dict(a=rows), x='steps', label='right').get_ylabel() == 'right'
    with pytest.raises(ValueError, match='numbers in y, or a metric for labels'): thinking_curve(Halving(), labels, (1,))

def test_a_step_of_a_bilinear_check_costs_what_its_layers_do():
    "Twice the multiplications forward; backward only what leads to y: c, b and d transposed"
    model,x = EBT(Bilinear(2, 1, 8), 1),normal(10, 2)
    forward = 2*(2*8 + 3*8 + 8*2 + 3*2)
    assert forward < prediction_flops(model, x)[1] <= 2*forward
    assert prediction_flops(model, x, "backtracking")[1] > prediction_flops(model, x)[1]

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

# Confidence

@given(st.integers(2, 12).flatmap(lambda n: st.tuples(*(st.lists(st.integers(-3, 3), min_size=n, max_size=n),)*2)))
def test_auroc_counts_pairs(ab):
    d,wrong = ab[0],[v > 0 for v in ab[1]]
    pairs = [(a, b) for a,v in zip(d, wrong) if v for b,w in zip(d, wrong) if not w]
    if not pairs: assert math.isnan(auroc(d, wrong))
    else:
        assert auroc(d, wrong) == pytest.approx(sum((a > b) + 0.5*(a == b) for a,b in pairs)/len(pairs))
        assert auroc([-a for a in d], wrong) == pytest.approx(1 - auroc(d, wrong))

@given(st.permutations(range(9)), st.permutations(range(9)))
def test_rank_correlation_in_closed_form(a, b):
    "Without ties 1 − 6 Σ d²/(n³ − n); and only the order counts"
    expected = 1 - 6*sum((x - y)**2 for x,y in zip(a, b))/(9**3 - 9)
    assert rank_correlation(a, b) == pytest.approx(expected) == pytest.approx(rank_correlation(np.exp(a), np.power(b, 3)))

def test_both_measures_are_those_of_scipy():
    stats = pytest.importorskip('scipy.stats')
    g = np.random.default_rng(0)
    a,b = g.integers(0, 10, 50),g.integers(0, 10, 50)
    assert rank_correlation(a, b) == pytest.approx(stats.spearmanr(a, b).statistic)
    u = stats.mannwhitneyu(a[b > 5], a[b <= 5]).statistic
    assert auroc(a, b > 5) == pytest.approx(u/((b > 5).sum()*(b <= 5).sum()))

def test_what_has_no_value_is_nan():
    nan = math.nan
    found = [rank_correlation([1, nan], [1, 2]), rank_correlation([1, 1], [1, 2]), auroc([nan, 1, 2], [True, False, True]),
             auroc([1, 2], [False, False]), *bootstrap(lambda i: nan, 5)]
    assert all(map(math.isnan, found))
    assert auroc([math.inf, 1, 2], [True, False, False]) == 1.

def test_a_bootstrap_interval_is_about_as_wide_as_theory_has_it():
    v = np.random.default_rng(0).normal(size=400)
    low,high = bootstrap(lambda i: v[i].mean(), 400, 1000)
    assert low < v.mean() < high and (high - low)/(2*1.96*v.std()/20) == pytest.approx(1, abs=0.1)
    assert bootstrap(lambda i: v[i].mean(), 400, 50, seed=1) == bootstrap(lambda i: v[i].mean(), 400, 50, seed=1)
    assert bootstrap(lambda i: v[i].mean(1), 400, 50, together=True) == pytest.approx(bootstrap(lambda i: v[i].mean(), 400, 50))

def bowl(n_steps=5, **kw): return EBT(Ellipse(4., 0.5), 2, n_steps, 0.2, **kw)

def test_doubts_on_a_bowl_in_closed_form():
    x = normal(20, 2)
    y,d = doubts(bowl(), x, shake=0.3)
    assert torch.equal(y, predict(bowl(), x))
    lam,left = torch.tensor([4., 0.5]),y - x
    torch.testing.assert_close(d['energy'], 0.5*(lam*left**2).sum(1))
    torch.testing.assert_close(d['slope'], (lam*left).norm(dim=1))
    torch.testing.assert_close(d['newton'], left.norm(dim=1), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(d['flatness'], torch.full((20,), 2.))
    torch.testing.assert_close(d['spread'], best_of(bowl(), x, 8).spread)
    shrink = (1 - 0.2*lam)**5
    moved = shrink*(left + 0.3*normal_shake(20)) - left
    torch.testing.assert_close(d['shaken'], moved.norm(dim=1), rtol=1e-4, atol=1e-5)

def normal_shake(n): return torch.randn(n, 2, generator=generator(0, 'shake'))

def test_a_perfect_doubt_and_a_blind_one():
    "On a bowl with its bottom in the right place the Newton step is the error; the flatness is the same for all"
    x = normal(60, 2)
    rows = {r['signal']: r for r in confidence(bowl(), TensorDataset(x, x), 0.3, rounds=30)}
    assert 0 < rows['newton']['wrong'] < 1 and rows['newton']['auroc'] == 1. == pytest.approx(rows['newton']['rank'], abs=1e-3)
    assert rows['newton']['auroc_low'] == rows['newton']['auroc_high'] == 1.
    for r in rows.values(): assert not r['auroc'] < r['auroc_low'] and not r['auroc'] > r['auroc_high']

def test_answers_that_ran_off_have_infinite_doubt():
    wide = EBT(lambda x, y: 0.5*(x*y*y).sum(1), 1, 120, 1.)         # x > 2 diverges
    x = torch.tensor([[0.5]]*5 + [[4.]]*5)
    y,d = doubts(wide, x)
    assert all(v[:5].isfinite().all() and v[5:].isinf().all() for v in d.values()) and not y[5:].isfinite().any()
    assert all(r['auroc'] == 1. for r in confidence(wide, TensorDataset(x, 0*x), 1., rounds=5))

def test_disagreement_of_models():
    "Two members that differ by c are |c|/2 from their mean; or a module says it itself"
    class Shifted(nn.Module):
        def __init__(self, c): super().__init__(); self.c = c
        def forward(self, x): return x + self.c
        def spread(self, x): return self.c*torch.ones_like(x)
    x = normal(4, 2)
    torch.testing.assert_close(disagreement([Shifted(0.), Shifted(3.)], x), torch.full((4,), 3*2**0.5/2))
    torch.testing.assert_close(disagreement(Shifted(3.), x), torch.full((4,), 3*2**0.5))
    assert 'ensemble' in doubts(bowl(), x, Shifted(3.))[1] and 'ensemble' not in doubts(bowl(), x)[1]
    assert 'spread' not in doubts(bowl(start='zeros'), x)[1]

@pytest.mark.parametrize('bad, message', [(dict(tolerance=0), 'tolerance: expected a finite number above 0'), (dict(n_starts=0), 'n_starts: expected a whole number'),
    (dict(model=nn.Linear(2, 2)), 'model: expected an EBT, got Linear'), (dict(shake=-1), 'shake: expected a finite number above 0'), (dict(labels=True), 'dataset: expected numbers in y, got labels')])
def test_confidence_refuses(bad, message):
    bad = dict(bad)
    y = torch.zeros(3, dtype=torch.long) if bad.pop('labels', False) else torch.zeros(3, 2)
    with pytest.raises(ValueError, match=message):
        confidence(**dict(model=bowl(), dataset=TensorDataset(torch.zeros(3, 2), y), tolerance=1.) | bad)

def test_the_figure_shows_each_value():
    rows = confidence(bowl(), TensorDataset(normal(20, 2), normal(20, 2)), 0.3, rounds=5)
    ax = plot_confidence(dict(ID=rows, OOD=rows), value='rank')
    assert [t.get_text() for t in ax.get_yticklabels()] == [r['signal'] for r in rows]
    np.testing.assert_allclose(ax.lines[0].get_xdata(), [r['rank'] for r in rows])

def test_rows_that_are_lost_are_not_at_rest():
    def bowl(x, y): return 0.5*x[:, 0]*(y[:, 0])**2
    x = torch.tensor([[0.5], [5.]]).repeat(10, 1)
    few,many = thinking_curve(EBT(bowl, 1), TensorDataset(x, torch.zeros(20, 1)), (10, 400))
    assert many['moving'] == pytest.approx(0.5) and many['low'] < 1e-6 and many['high'] == float('inf') and few['high'] > 1

def test_the_lowest_energy_is_a_finite_one():
    def hole(x, y): return (y.clamp(max=1)**2 - (y - 1).clamp(min=0)**2)[:, 0]
    best = best_of(EBT(hole, 1, 300, 0.5), torch.zeros(4, 1), 16)
    assert best.answer.isfinite().all() and best.energy.isfinite().all()

def test_what_is_done_once_counts_once():
    energy,x = Bowl(2, 1, 16),normal(10, 2)
    once,step = prediction_flops(EBT(energy, 1), x)
    network = 2*(2*16 + 16*16*2 + 16*4)
    assert once == network and step < 2*2*2*2 + 1
