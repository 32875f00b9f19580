"Pictures: the numbers behind them in closed form, what is drawn is what was computed, and faults are refused"
import matplotlib
matplotlib.use('Agg')
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import TensorDataset

from ebt_toy.checkpoints import pretrained
from ebt_toy.core import generator, wilson
from ebt_toy.data import create_synthetic_data, get_task
from ebt_toy.ebt import EBT, trace, train_energy_model
from ebt_toy.ffn import FeedForward
from ebt_toy.listops import draw_tree
from ebt_toy.plots import (_splits, contour_levels, energy_line, energy_plane, error_range, inner_loop, judged_answers, plot_accuracy_by_depth,
                           plot_energy_error, plot_error_range, plot_inner_loop, plot_landscape, plot_landscape_training, plot_profile, plot_steps, spearman)
from ebt_toy.runner import run_main
from ebt_toy.saving import plot_results
from ebt_toy.models import predict

TASKS = ('add', 'multiply')

@pytest.fixture(scope='module')
def data(): return {t: create_synthetic_data(t, vec_size=2) for t in TASKS}
@pytest.fixture(scope='module')
def ebt(): return {t: pretrained(t, 'ebt') for t in TASKS}
@pytest.fixture(scope='module')
def ffn(): return {t: pretrained(t, 'ffn') for t in TASKS}
@pytest.fixture(scope='module')
def question(data): return [t[0] for t in data['add'].val_dataset.tensors]
@pytest.fixture
def ax():
    yield plt.figure(figsize=(3, 2)).subplots()
    plt.close('all')

class Bowl(nn.Module):
    def forward(self, x, y): return 0.5*(y - x).pow(2).sum(-1)

class Off(nn.Module):
    "A “model” that is off by the same amount everywhere"
    def __init__(self, by):
        super().__init__()
        self.by = by
    def forward(self, x): return get_task('add').truth(x) + self.by

def ring(n, radius=2.6):
    angle = torch.arange(n)*2*torch.pi/n + 0.3
    return radius*torch.stack([angle.cos(), angle.sin()], dim=-1)

def points(ax): return {l.get_label(): l.get_xydata() for l in ax.lines}
def close(a, b, eps): np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=0, atol=eps)

# Lines and planes

def test_an_entry_of_a_plane_is_the_energy_of_that_answer(ebt, question):
    (x,y),plane = question,energy_plane(ebt['add'], question[0])
    close(plane.energies[7, 41], ebt['add'].energy(x[None], torch.tensor([[plane.u[7], plane.v[41]]])).item(), 1e-6)
    i,j = np.unravel_index(plane.energies.argmin(), (61, 61))
    assert np.abs([plane.u[i] - y[0].item(), plane.v[j] - y[1].item()]).max() < 0.1    # the grid's spacing

def test_cuts_through_a_bowl():
    bowl,q = EBT(Bowl(), 3),torch.tensor([1., -1., 0.5])
    for at,apart in ((None, 0.), (torch.tensor([0., 0., 2.5]), 2.)):                  # without `at`, through the model's own answer
        cut = energy_plane(bowl, q, dims=(1, 0), at=at, size=7)
        close(cut.energies, 0.5*((cut.u[:, None] + 1)**2 + (cut.v - 1)**2 + apart**2), 1e-5)
    line = energy_line(bowl, q, dim=2, at=torch.tensor([0., 0., 9.]))
    close(line.energies, 0.5*(1 + 1 + (line.u - 0.5)**2), 1e-5)                        # `at` holds the first two; the third varies

def test_what_cannot_be_drawn_is_refused():
    bowl,q = EBT(Bowl(), 3),torch.tensor([1., -1., 0.5])
    for match,call in {
            r'dims: expected two different coordinates of y, each from 0 to 2, got \(0, 3\)': lambda: energy_plane(bowl, q, dims=(0, 3)),
            r'limits: expected \(low, high\), finite, low below high': lambda: energy_plane(bowl, q, limits=(1, -1)),
            r'at: expected an answer of shape \(3,\), got \(2,\)': lambda: energy_plane(bowl, q, at=torch.zeros(2)),
            r'x: expected one question, \(d_x,\) or \(1, d_x\), got \(2, 3\)': lambda: energy_plane(bowl, torch.zeros(2, 3)),
            'model: expected answers of at least 2 numbers, got output_dim=1': lambda: energy_plane(EBT(Bowl(), 1), q[:1]),
            'dim: expected a coordinate of y, from 0 to 2, got 3': lambda: energy_line(bowl, q, dim=3),
            'operand: expected a coordinate of x, from 0 to 3, got 4': lambda: error_range(Off(0.), get_task('add').truth, 4, operand=4),
            'limit: expected a finite number above 0, got -3': lambda: error_range(Off(0.), get_task('add').truth, 4, limit=-3),
            'limit: expected more than 1, the end of the training range, got 0.5': lambda: error_range(Off(0.), get_task('add').truth, 4, limit=0.5),
            'starts: expected a whole number of at least 1, got 0': lambda: judged_answers(EBT(Bowl(), 2), TensorDataset(torch.zeros(3, 2), torch.zeros(3, 2)), starts=0)}.items():
        with pytest.raises(ValueError, match=match): call()

def test_points_lie_on_the_curve_and_roll_to_its_lowest_point(ax):
    one = create_synthetic_data('add', vec_size=1, size_train=1000)
    q,starts,moved = torch.tensor([0.5, 0.2]),torch.tensor([[-2.6], [-1.7], [2.2], [2.8]]),{}
    for updates in (1, 500):
        m = train_energy_model(*one, latent_dim=32, num_steps=updates, lr=3e-3, eval_every=updates, report=None, progress=False)
        path = trace(m, q.expand(4, -1), y0=starts)
        ax.clear()
        plot_profile(energy_line(m, q), path, torch.tensor([0.7]), ax=ax)
        drawn,curve = points(ax),ax.lines[0].get_xydata()
        close(drawn['first guess'], torch.stack([starts[:, 0], path.energies[0]], 1), 1e-6)
        close(np.interp(drawn['last guess'][:, 0], *curve.T), drawn['last guess'][:, 1], 2e-3)
        moved[updates] = (path.guesses[-1] - starts).abs().mean().item()
    assert abs(curve[curve[:, 1].argmin(), 0] - 0.7) < 0.05 and np.abs(drawn['last guess'][:, 0] - 0.7).max() < 0.05
    assert moved[1] < 0.3 < moved[500]

# Landscapes

def test_contours_of_a_round_bowl_are_equally_spaced():
    close(np.sqrt(2*contour_levels(0.5*np.linspace(0, 3, 200)**2)), np.arange(13)/4, 1e-6)
    assert (np.diff(contour_levels(np.full(9, 2.))) > 0).all()                        # a flat landscape has levels too
    assert contour_levels(np.array([0., 1., np.nan, np.inf]))[[0, -1]].tolist() == [0, 1]
    assert np.isfinite(contour_levels(np.array([-3e38, 3e38], dtype=np.float32))).all()

def test_a_landscape_shows_what_was_computed(ebt, ffn, question, ax):
    far = {}
    for task,q,color,span in zip(TASKS, (question[0], torch.tensor([1.9, -1.7, 1.6, 1.8])), ('C0', 'C1'), (3, 4)):
        path,point,other = trace(ebt[task], q.expand(8, -1), y0=ring(8)),get_task(task).truth(q[None])[0],predict(ffn[task], q[None])[0]
        ax.clear()
        plot_landscape(energy_plane(ebt[task], q, limits=(-span, span)), path.guesses, point, dict(FFN=other), ax=ax, color=color)
        drawn = points(ax)
        close(drawn['first guess'], ring(8), 0), close(drawn['last guess'], path.guesses[-1], 0)
        close(drawn['truth'], point[None], 0), close(drawn['FFN'], other[None], 0)
        assert np.isnan(ax.lines[0].get_xdata()).sum() == 8                           # eight paths in one line, a gap after each
        assert (ax.get_xlim(), ax.get_xlabel(), ax.lines[0].get_color()) == ((-span, span), 'answer y₁', color)
        far[task] = {n: np.linalg.norm(drawn[n] - drawn['truth'], axis=1).mean().item() for n in ('last guess', 'FFN')}
    assert far['add']['last guess'] < 0.01 and far['multiply']['last guess'] > 2*far['multiply']['FFN']

def test_paths_to_infinity_leave_the_picture_as_it_is():
    bowl,q = EBT(Bowl(), 2, step_size=3.),torch.tensor([0.5, 0.])
    wild = trace(bowl, q.expand(4, -1), n_steps=150, y0=ring(4)).guesses
    assert not torch.isfinite(wild[-1]).any()
    ax = plot_landscape(energy_plane(bowl, q), wild, truth=q, best=0)
    assert ax.get_xlim() == (-3, 3) and np.nanmax(np.abs(ax.lines[0].get_xydata())) < 1e3
    assert [t.get_text() for t in ax.get_legend().get_texts()] == ['first guess', 'last guess', 'ends lowest', 'truth']
    plt.close('all')

def test_a_landscape_in_the_making(question):
    (x,y),moments = question,{step: pretrained('add', step=step) for step in (0, 30, 100, 1000, 10_000)}
    fig = plot_landscape_training(moments, x, y, y0=ring(8))
    assert [a.get_title() for a in fig.axes] == ['0 updates', '30 updates', '100 updates', '1,000 updates', '10,000 updates']
    for a in fig.axes:
        close(points(a)['first guess'], ring(8), 0)
        assert a.get_xlim() == (-3, 3)
    away = [np.linalg.norm(points(a)['last guess'] - y.numpy(), axis=1).mean() for a in fig.axes]
    planes = {step: energy_plane(m, x) for step,m in moments.items()}
    assert away[0] > 2 and away[-1] < 0.01 and np.ptp(planes[0].energies) < 0.1*np.ptp(planes[10_000].energies)
    lowest = {step: np.array([p.u[k] for k in np.unravel_index(p.energies.argmin(), p.energies.shape)]) for step,p in planes.items()}
    assert np.hypot(*lowest[30]) < np.linalg.norm(lowest[30] - y.numpy()) and np.linalg.norm(lowest[100] - y.numpy()) < 0.2    # 30: nearer to 0, the mean answer
    given = plt.figure()
    assert plot_landscape_training({0: moments[0]}, x, fig=given) is given and len(given.axes) == 1
    plt.close('all')

# Along the inner loop

def test_steps_with_holes(ax):
    holes = np.array([[1., 4., np.nan], [0.1, np.inf, np.nan], [0., 0.5, np.nan]])
    plot_steps(holes, ax, log=True)
    close(ax.lines[1].get_ydata(), [2.5, 0.1, 0.3], 1e-9)                             # medians of what there is; 0 is drawn as 0.1
    close(plot_steps(holes, ax, best=1).lines[-1].get_ydata()[[0, 2]], [4, 0.5], 1e-9)
    assert plot_steps(np.zeros((3, 2)), ax, log=True).get_yscale() == 'linear'        # nothing above zero

def test_steps_of_the_sum(ebt, question, ax):
    x,y = question
    path = trace(ebt['add'], x.expand(8, -1), n_steps=20, y0=ring(8))
    plot_steps(path.energies, ax, trained=10)
    close(ax.lines[1].get_ydata(), np.median(path.energies, axis=1), 1e-6)
    assert (len(ax.lines), ax.get_yscale()) == (3, 'linear') and (np.diff(ax.lines[1].get_ydata())[:5] < 0).all()
    ax.clear()
    assert plot_steps((path.guesses - y).norm(dim=-1), ax, trained=10, log=True).get_yscale() == 'log'

def test_the_inner_loop_on_data(ebt, data):
    axes = plot_inner_loop(ebt['multiply'], data['multiply'])
    mse = {name: inner_loop(ebt['multiply'], d).errors.mean(1) for name,d in _splits(data['multiply']).items()}
    xs,ys = data['multiply'].test_dataset.tensors
    close(mse['OOD'][10], F.mse_loss(ebt['multiply'](xs), ys).item(), 1e-6)           # at the tenth step it is the model's prediction
    drawn = {l.get_label(): l.get_ydata() for l in axes[0].lines}
    for name in mse:
        close(drawn[f'{name}, mean'], mse[name], 1e-9)
        assert mse[name][5] > 1.2*mse[name][10] and abs(mse[name][40]/mse[name][10] - 1) < 0.03
    plt.close('all')

def test_the_inner_loop_of_classes():
    xs,labels,slow = torch.randn(50, 2, generator=generator(0)),torch.arange(50)%2,EBT(Bowl(), 2, n_optimization_steps=3, step_size=0.1)
    close(inner_loop(slow, TensorDataset(xs, labels)).errors[3], F.cross_entropy(slow(xs), labels, reduction='none').detach(), 1e-5)

# Across the range

def test_the_band_over_seeds(ax):
    "Off by 0.1, 0.3 and 0.2: a median of 0.04 in a band from 0.01 to 0.09"
    plot_error_range(dict(off=[Off(0.1), Off(0.3), Off(0.2)]), get_task('add').truth, 4, ax=ax)
    for line in ax.lines[:3]: close(line.get_ydata(), 0.04, 1e-6)
    for band in ax.collections[:3]: close([f(band.get_paths()[0].vertices[:, 1]) for f in (np.min, np.max)], [0.01, 0.09], 1e-5)
    assert [l.get_xdata()[[0, -1]].tolist() for l in ax.lines[:3]] == [[-1, 1], [-3, -1], [1, 3]]
    assert [l.get_color() for l in ax.lines[:3]] == ['C0', 'C1', 'C1']

def test_every_model_has_a_band_in_three_parts(ax):
    models = {n: [FeedForward(4, 2, 4, seed=s) for s in range(5)] for n in 'abc'}
    assert len(plot_error_range(models, get_task('multiply').truth, 4, ax=ax).collections) == 9

def test_trained_models_across_the_range(ebt, ffn, ax):
    curve = {}
    for task in TASKS:
        ax.clear()
        plot_error_range(dict(EBT=ebt[task], FFN=ffn[task]), get_task(task).truth, 4, ax=ax)
        for n,m in (('EBT', ebt), ('FFN', ffn)):
            sweep,errors = error_range(m[task], get_task(task).truth, 4)
            c = curve[task, n] = dict(zip(sweep.round(3).tolist(), errors.mean(1).tolist()))
            close(next(l for l in ax.lines if l.get_label() == n).get_ydata(), [v for s,v in c.items() if abs(s) <= 1], 1e-9)
            assert min(c[-3], c[3]) > 50*c[0]
    for s in (-3, 3): assert curve['multiply', 'EBT'][s] > 10*curve['multiply', 'FFN'][s]
    assert curve['multiply', 'EBT'][0] < curve['multiply', 'FFN'][0]
    ratio = np.array([curve['add', 'EBT'][s]/curve['add', 'FFN'][s] for s in curve['add', 'EBT']])
    assert 0.7 < ratio.min() < 1 < ratio.max() < 6

def test_training_curves_of_several_seeds(ax):
    small = dict(latent_dim=4, num_steps=4)
    results = run_main('multiply', vec_size=2, size_train=50, seeds=5, ebt_config=small, ffn_config=small, report=None, progress=False)
    plot_results(results, ax)
    for n,r in results.items():
        loss,line = r['history']['test_loss'],next(l for l in ax.lines if l.get_label() == f'{n.upper()} test (OOD)')
        close(line.get_ydata(), np.median(loss, axis=1), 1e-9)
        assert (line.get_color(), loss.shape[1]) == ('C1', 5)

# Energy and error

def test_rank_correlation():
    a,b = np.array([3., 1., 1., 10.]),np.array([0.2, 0.1, 0.5, 0.4])
    close(spearman(a, b), np.corrcoef([3, 1.5, 1.5, 4], [2, 1, 4, 3])[0, 1], 1e-9)
    close(spearman(np.stack([a, b]), np.stack([np.exp(a), -b**3])), [1, -1], 1e-9)
    assert np.isnan(spearman(np.ones(4), b))

def test_an_energy_that_is_the_error():
    "Where E = ½‖y − x‖² judges the task y = x of two numbers, energy is the mean squared error, and ρ = 1 at every step"
    xs,slow = torch.randn(50, 2, generator=generator(0)),EBT(Bowl(), 2, n_optimization_steps=3, step_size=0.1)
    j = judged_answers(slow, TensorDataset(xs, xs), starts=8)
    close(j.energies, j.errors, 1e-5), close(spearman(j.energies, j.errors), np.ones((4, 50)), 1e-9), close(j.errors[3], 0.9**6*j.errors[0], 1e-4)

def test_low_energy_and_being_right(ebt, data):
    axes = plot_energy_error(ebt['multiply'], data['multiply'])
    judged = {(t, n): judged_answers(ebt[t], d) for t in TASKS for n,d in _splits(data[t]).items()}
    across = [spearman(j.energies[-1, :, 0], j.errors[-1, :, 0]) for j in judged.values()]
    assert max(across) - min(across) > 0.5
    for (task,name),j in judged.items():
        w = np.nanmedian(spearman(j.energies, j.errors), axis=1)
        line = next(l for l in axes[1].lines if l.get_label() == f'{name}, median')
        if task == 'multiply': close(line.get_ydata(), w, 1e-5)
        assert line.get_color() == dict(ID='C0', OOD='C1')[name]
        assert w[:4].min() > 0.95 and abs(w[10]) < 0.2                                # it judges unfinished answers, not finished ones
        chosen = [np.take_along_axis(j.errors[s], j.energies[s].argmin(1)[:, None], 1).mean()/j.errors[s].mean() for s in (0, 10)]
        assert chosen[0] < 0.14 and chosen[1] > 0.99                                  # so the best of 32 is no better than any
    plt.close('all')

# ListOps

def test_accuracy_by_depth(ax):
    results = {'rule': {2: (1., 709), 3: (1., 440), 4: (0.6, 1227)}, 'FFN': {2: (0.6, 709), 3: (0.4, 440), 4: (0.35, 1227)}}
    plot_accuracy_by_depth(results, ax)
    for c,r in zip(ax.containers, results.values()):
        close(c.lines[0].get_ydata(), [100*a for a,_ in r.values()], 1e-9)
        bars = np.array([b[:, 1] for b in c.lines[2][0].get_segments()])
        close(bars, [[100*e for e in wilson(round(a*n), n)] for a,n in r.values()], 1e-9)
    assert [t.get_text() for t in ax.get_xticklabels()] == ['2\n709', '3\n440', '4\n1,227']

def test_a_tree_shows_the_value_of_each_operator(ax):
    draw_tree('[MAX 2 [MIN 4 7 ] [SM 3 [MED 1 9 5 ] ] ]', ax)
    assert sorted(t.get_text() for t in ax.texts if t.get_gid() == 'value') == ['4', '5', '8', '8']
