"Training updates against a plain loop written by hand, in every form they take: one at a time, several seeds at once, compiled."
import copy, subprocess, sys, warnings
from contextlib import closing, contextmanager
from itertools import islice

import pytest, torch
import torch.nn.functional as F
from hypothesis import Phase, given, settings, strategies as st
from torch import nn
from torch.utils.data import TensorDataset

from ebt_toy import EBT, EnergyFunction, FeedForward, engine, fit, training, update
from ebt_toy.update import BLOCK, draws, group_order, length_groups, mlp, prepared, row_lengths, transformed
from ebt_toy.engine import adam_, adam_scales, compile_update, stacked, update_work, updates

N,D_X,D_Y,BATCH,LR = 40,3,2,8,1e-2
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5}
BUILD = {f'ebt{k}': lambda seed, k=k: EBT(EnergyFunction(D_X, D_Y, 8, seed), D_Y, k, 0.5) for k in (1, 2, 5, 10)}
BUILD |= dict(ffn=lambda seed: FeedForward(D_X, D_Y, 8, seed=seed))
any_seed = st.integers(0, 2**32 - 1)
few = settings(max_examples=3, deadline=None, database=None, phases=[Phase.generate])
each_precision = pytest.mark.parametrize('dtype', TOLERANCE, ids=str)
compiled_cases = pytest.mark.parametrize('name, seeds, dtype', [('ebt2', [3], torch.float64), ('ebt5', [0, 1, 7], torch.float32), ('ffn', [5, 2], torch.float64)], ids=str)

@contextmanager
def precision(dtype):
    "Models and data made within by `models_of`, `made` and `data` are of this type"
    global PRECISION
    PRECISION = dtype
    try: yield
    finally: PRECISION = torch.float32

PRECISION = torch.float32
def made(build, seed): return build(seed).to(PRECISION)

@pytest.fixture
def double():
    with precision(torch.float64): yield

def data(seed, n=N):
    "Random inputs and targets"
    g = torch.Generator().manual_seed(seed)
    return torch.randn(n, D_X, generator=g, dtype=PRECISION),torch.randn(n, D_Y, generator=g, dtype=PRECISION)

def splits(seed=0): return [TensorDataset(*data(seed + i, n)) for i,n in enumerate((N, 6, 6))]
def models_of(name, seeds): return [made(BUILD[name], s) for s in seeds]
def weights(model): return torch.cat([p.detach().flatten() for p in model.parameters()])
def slopes(model): return torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in model.parameters()])   # an energy's last bias has none
def assert_near(a, b, tol=1e-10): torch.testing.assert_close(a, b, rtol=tol, atol=tol)
def owns_memory(model): return all(p.untyped_storage().nbytes() == p.nbytes for p in model.parameters())

# The plain loop: `autograd.grad` for the descent, a graph on the last step alone, `torch.optim.Adam` for the weights

def answer(model, x, *noise):
    "A prediction, the inner loop written out"
    if not isinstance(model, EBT): return model(x)
    y, = noise
    for left in reversed(range(model.n_optimization_steps)):
        y = y.detach().requires_grad_()
        slope, = torch.autograd.grad(model.energy(x, y).sum(), y, create_graph=left == 0)
        y = y - model.step_size*slope
    return y

def by_hand(model, x, y, seed, n):
    "A copy of the model after `n` updates, with the last gradients, and the last loss"
    model = copy.deepcopy(model)
    opt = torch.optim.Adam(model.parameters(), lr=LR)
    stream = (inputs for block in draws(model, len(x), BATCH, seed) for inputs in zip(*block))
    for rows,*noise in islice(stream, n):
        opt.zero_grad()
        loss = F.mse_loss(answer(model, x[rows], *noise), y[rows])
        loss.backward()
        opt.step()
    return model,loss.detach()

def trained(models, x, y, seeds, n, compile=False):
    "The models after `n` updates of the engine"
    with closing(updates(models, x, y, BATCH, LR, F.mse_loss, seeds, compile)) as stream: list(islice(stream, n))
    return models

def first_update(models, x, y, seeds, run=None):
    "Losses and gradients of the first update: Adam's mean starts at 0, so that it then is the gradient times 1 − β₁"
    with stacked(models) as theta, torch.no_grad():
        state = [theta, torch.zeros_like(theta), torch.zeros_like(theta), x, y]
        drawn = [next(draws(m, len(x), BATCH, s)) for m,s in zip(models, seeds)]
        args = [*state, adam_scales(LR, 1, theta)[0], *(torch.stack([part[0] for part in parts]) for parts in zip(*drawn))]
        loss, = (run or engine._update_for(models[0], F.mse_loss, len(models), x))(*args)
        return loss,state[1]/(1 - engine.BETAS[0])

def assert_like_by_hand(name, seeds, dtype, data_seed, n, compile=False):
    """The first loss and every gradient, and weights after `n` updates, agree with the plain loop. The latter in double precision
    only: Adam divides a gradient by its own size, so where it is nearly zero a rounding error of single precision decides the direction."""
    tol,made = TOLERANCE[dtype],[]
    def keep(*args): return made.append(compile_update(*args)) or made[-1]   # compiling takes seconds; once is enough
    with precision(dtype), pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine, 'compile_update', keep)
        patch.setattr(engine, '_native_runs', lambda *args: (None, 'PyTorch is tested'))
        x,y = data(data_seed)
        models = models_of(name, seeds)
        for m,s,t in zip(models_of(name, seeds), seeds, trained(models, x, y, seeds, n, compile)):
            if dtype == torch.float64: assert_near(weights(t), weights(by_hand(m, x, y, s, n)[0]), tol)
        expected = [by_hand(m, x, y, s, 1) for m,s in zip(models_of(name, seeds), seeds)]
        assert len(made) == compile
        loss,grad = first_update(models_of(name, seeds), x, y, seeds, *made)
        assert_near(loss, torch.stack([l for _,l in expected]), tol)
        assert_near(grad, torch.stack([slopes(m) for m,_ in expected]), tol)

@each_precision
@pytest.mark.parametrize('name', BUILD)
@few
@given(any_seed, any_seed)
def test_one_seed_like_by_hand(name, dtype, seed, data_seed):
    assert_like_by_hand(name, [seed], dtype, data_seed, 5)
    with precision(dtype):   # here the weights keep the gradient, and the loss can listen
        x,y,losses = *data(data_seed),[]
        model = made(BUILD[name], seed)
        with closing(updates([model], x, y, BATCH, LR, lambda p,t: losses.append(F.mse_loss(p, t)) or losses[-1], [seed])) as stream: next(stream)
        expected,loss = by_hand(made(BUILD[name], seed), x, y, seed, 1)
        assert_near(losses[0].detach(), loss, TOLERANCE[dtype])
        assert_near(slopes(model), slopes(expected), TOLERANCE[dtype])

@each_precision
@pytest.mark.parametrize('name', BUILD)
@few
@given(st.lists(any_seed, min_size=2, max_size=4), any_seed)
def test_several_seeds_like_by_hand(name, dtype, seeds, data_seed): assert_like_by_hand(name, seeds, dtype, data_seed, 5)

@compiled_cases
def test_compiled_like_by_hand(name, seeds, dtype): assert_like_by_hand(name, seeds, dtype, 11, 5, compile=True)

@pytest.mark.parametrize('seeds', [[1], [1, 2]], ids=str)
def test_over_the_end_of_a_block(double, seeds):
    x,y = data(0)
    for s,t in zip(seeds, trained(models_of('ebt2', seeds), x, y, seeds, BLOCK + 3)): assert_near(weights(t), weights(by_hand(made(BUILD['ebt2'], s), x, y, s, BLOCK + 3)[0]))

# Seeds side by side are the same as seeds alone

def run(models, seeds, **options):
    "Train on the small data with `fit`"
    options = dict(num_steps=12, batch_size=BATCH, lr=LR, compile=False, progress=False) | options
    return fit(models, *splits(), seeds=seeds, **options) if isinstance(models, list) else fit(models, *splits(), seed=seeds, **options)

@pytest.mark.parametrize('name', ['ebt2', 'ffn'])
def test_a_seed_in_a_group_is_the_seed_alone(double, name):
    seeds = [4, 0, 9]
    group = models_of(name, seeds)
    together = run(group, seeds)
    for i,s in enumerate(seeds):
        alone = made(BUILD[name], s)
        history = run(alone, s)
        assert_near(weights(group[i]), weights(alone))
        assert_near(torch.tensor(together.of_seed(i)['test_loss']), torch.tensor(history['test_loss']))
    assert (weights(group[0]) - weights(group[1])).abs().max() > 0.01   # else equality would prove nothing

@pytest.mark.parametrize('name', ['ebt2', 'ffn'])
def test_groups_change_nothing(double, name, monkeypatch):
    seeds,lines = [4, 0, 9, 2, 5],[]
    whole,parts = models_of(name, seeds),models_of(name, seeds)
    expected = run(whole, seeds)
    cost = update_work(parts[0], *splits()[0].tensors, BATCH, F.mse_loss).bytes
    monkeypatch.setattr(training, 'free_memory', lambda device: 2*-(-len(seeds)*cost//3))   # half of it holds a third of the seeds
    history = run(parts, seeds, report=lines.append)
    assert '5 seeds, 2 at a time; medians below' in lines
    assert history.settings == expected.settings and history.columns.keys() == expected.columns.keys()
    for k in history.columns: assert_near(torch.tensor(history[k]), torch.tensor(expected[k]))
    for a,b in zip(parts, whole): assert_near(weights(a), weights(b))

class Own(nn.Module):
    "A user's own: a buffer and a frozen weight, different in each seed"
    def __init__(self, seed):
        super().__init__()
        self.net = nn.Sequential(nn.LayerNorm(D_X), update.mlp(D_X, D_Y, 8, 'tanh', seed))
        self.frozen = nn.Parameter(torch.full((D_Y,), 1. + seed), requires_grad=False)
        self.register_buffer('shift', torch.full((D_Y,), 0.1*seed))
    def forward(self, x): return self.frozen*self.net(x) + self.shift

@pytest.mark.parametrize('compile', [False, True])
def test_frozen_things_stay_as_they_are(double, compile):
    seeds = [3, 0, 1]
    group,(x,y) = [made(Own, s) for s in seeds],data(0)
    before = copy.deepcopy(group)
    trained(group, x, y, seeds, 6, compile)
    for s,m,old in zip(seeds, group, before):
        assert torch.equal(m.frozen, old.frozen) and torch.equal(m.shift, old.shift) and not m.frozen.requires_grad
        assert_near(weights(m), weights(trained([made(Own, s)], x, y, [s], 6)[0]))
        assert_near(weights(m), weights(by_hand(old, x, y, s, 6)[0]))

# Adam

def laid_out(t, layout):
    "A tensor of the same shape in another memory layout; expanded ones repeat their first row"
    if layout == 'transposed': return t.mT.contiguous().mT if t.dim() > 1 else t
    if layout == 'expanded': return t[:1].expand_as(t)
    return torch.stack([t, t], dim=-1)[..., 0] if layout == 'strided' else t

@settings(few, max_examples=60)
@given(st.lists(st.integers(1, 5), min_size=1, max_size=3), st.floats(1e-6, 1.), st.floats(-12, 4), st.lists(st.sampled_from(['plain', 'transposed', 'expanded', 'strided']), min_size=1, max_size=6),
       st.sampled_from(['plain', 'transposed', 'strided']), st.sampled_from(list(TOLERANCE)), any_seed)
def test_adam_like_torch(shape, lr, size, layouts, own_layout, dtype, seed):
    g = torch.Generator().manual_seed(seed)
    theta = laid_out(torch.randn(shape, generator=g, dtype=dtype), own_layout)
    p = nn.Parameter(theta.clone())
    opt,m,v = torch.optim.Adam([p], lr=lr),torch.zeros_like(theta),torch.zeros_like(theta)
    for layout,scales in zip(layouts, adam_scales(lr, 1, theta)):
        p.grad = laid_out(10**size*torch.randn(shape, generator=g, dtype=dtype), layout)
        opt.step()
        adam_(theta, m, v, p.grad, scales)
        assert_near(theta, p.detach(), TOLERANCE[dtype])

def test_adam_scales_go_on_from_block_to_block():
    like = torch.zeros(1, dtype=torch.float64)
    assert torch.equal(adam_scales(LR, BLOCK + 1, like), adam_scales(LR, 1, like, 2*BLOCK)[BLOCK:])

# Whose memory it is, and what is left as it was

@pytest.mark.parametrize('error', [None, ValueError, KeyboardInterrupt])
def test_models_get_their_memory_back(error):
    models = models_of('ffn', [0, 1, 2])
    before = [weights(m) for m in models]
    try:
        with stacked(models) as theta:
            assert not any(map(owns_memory, models))
            theta += 1
            if error: raise error
    except (ValueError, KeyboardInterrupt) as e: assert type(e) is error
    theta.zero_()
    assert all(map(owns_memory, models))
    for m,w in zip(models, before): assert torch.equal(weights(m), w + 1)

def test_ctrl_c_in_a_group():
    models,seeds = models_of('ebt2', [0, 1, 2]),[0, 1, 2]
    def stop(models, history):
        if history['step'][-1] >= 4: raise KeyboardInterrupt
    history = run(models, seeds, eval_every=2, callback=stop)
    assert history.status == 'interrupted' and list(history['step']) == [0, 2, 4] and history['val_loss'].shape == (3, 3)
    assert all(map(owns_memory, models))
    expected = models_of('ebt2', seeds)
    run(expected, seeds, num_steps=4)
    for m,e in zip(models, expected): assert torch.equal(weights(m), weights(e))

@pytest.mark.parametrize('seeds, compile', [([0], False), ([0, 1, 2], False), ([0, 1], True)], ids=str)
def test_global_state_is_left_alone(seeds, compile):
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(threads + 1)
        state,seen = torch.get_rng_state(),[]
        run(models_of('ffn', seeds), seeds, compile=compile, callback=lambda *_: seen.append(torch.get_num_threads()))
        assert torch.equal(torch.get_rng_state(), state) and torch.get_num_threads() == threads + 1
        assert set(seen) == {1}   # small work is done on one thread
    finally: torch.set_num_threads(threads)

# What cannot be done

class Normalised(nn.Sequential):
    "A network with BatchNorm"
    def __init__(self, seed): super().__init__(update.mlp(D_X, 4, 8, 'tanh', seed), nn.BatchNorm1d(4), update.mlp(4, D_Y, 8, 'tanh', seed))

def test_batchnorm_is_not_compiled():
    model = Normalised(0)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match="compile: expected a model that computes the same when compiled, but forward changes model.1.running_mean; 'auto' trains it uncompiled"): run(model, 0, compile=True)
    for k,v in model.state_dict().items(): assert torch.equal(v, before[k])

def test_batchnorm_trains_one_seed_after_another():
    models,lines = [Normalised(s) for s in (0, 1)],[]
    run(models, [0, 1], report=lines.append)
    assert 'One seed after another: forward changes model.1.running_mean' in lines
    for s,m in enumerate(models):
        alone = Normalised(s)
        run(alone, s)
        assert all(torch.equal(v, w) for v,w in zip(m.state_dict().values(), alone.state_dict().values()))

def test_batchnorm_trains_alone_and_uncompiled():
    model = Normalised(0)
    history = run(model, 0, num_steps=60)
    assert history.status == 'finished' and history['train_loss'][-1] < history['train_loss'][0]
    assert model[1].num_batches_tracked == 60

@pytest.mark.parametrize('error', [RuntimeError('no compiler\nat all'), pytest.param(AssertionError(), id='no-words')], ids=repr)
def test_training_goes_on_where_compiling_fails(double, monkeypatch, error):
    def fail(*args): raise error
    seeds = [2, 1]
    expected,models = models_of('ebt2', seeds),models_of('ebt2', seeds)
    run(expected, seeds)
    monkeypatch.setattr(engine, 'compile_update', fail)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        run(models, seeds, compile=True)
    assert [w.category for w in caught] == [UserWarning]
    assert f'uncompiled, since the update could not be compiled: {type(error).__name__}' in str(caught[0].message) and 'at all' not in str(caught[0].message)
    for m,e in zip(models, expected): assert torch.equal(weights(m), weights(e))

# Less usual models and moments

class Hidden(Own):
    "The buffer is not part of the state that is saved"
    def __init__(self, seed):
        super().__init__(seed)
        self.register_buffer('shift', torch.full((D_Y,), 0.1*seed), persistent=False)

class Tied(nn.Module):
    "Two layers share a weight"
    def __init__(self, seed):
        super().__init__()
        self.net = update.mlp(D_X, D_X, D_X, 'tanh', seed)
        self.net[4].weight = self.net[2].weight
        self.out = update.mlp(D_X, D_Y, 4, 'tanh', seed)
    def forward(self, x): return self.out(self.net(x))

@pytest.mark.parametrize('build', [Hidden, Tied])
def test_unusual_modules_in_a_group(double, build):
    seeds,(x,y) = [3, 0],data(0)
    for s,m in zip(seeds, trained([made(build, s) for s in seeds], x, y, seeds, 6)): assert_near(weights(m), weights(by_hand(made(build, s), x, y, s, 6)[0]))

def test_a_callback_that_returns_false_ends_a_group(double):
    models,seeds = models_of('ebt2', [0, 1, 2]),[0, 1, 2]
    history = run(models, seeds, eval_every=2, callback=lambda models,history: history['step'][-1] < 4)
    assert history.status == 'stopped' and list(history['step']) == [0, 2, 4]
    x,y = data(0)
    for s,m,e in zip(seeds, models, models_of('ebt2', seeds)): assert_near(weights(m), weights(by_hand(e, x, y, s, 4)[0]))

def test_models_that_differ_only_in_settings():
    models = [EBT(EnergyFunction(D_X, D_Y, 8, 0), D_Y, k) for k in (1, 5)]
    try: run(models, [0, 1])
    except ValueError: return   # refusing them is as good
    alone = EBT(EnergyFunction(D_X, D_Y, 8, 0), D_Y, 5)
    run(alone, 1)
    assert_near(weights(models[1]), weights(alone), 1e-5)

def test_ctrl_c_in_the_first_of_several_groups(monkeypatch):
    cost = update_work(made(BUILD['ffn'], 0), *splits()[0].tensors, BATCH, F.mse_loss).bytes
    monkeypatch.setattr(training, 'free_memory', lambda device: 2*cost)   # one seed at a time
    def stop(*_): raise KeyboardInterrupt
    models = training.train_models(lambda s,*_: BUILD['ffn'](s), splits(), seeds=[0, 1], num_steps=2, batch_size=BATCH, compile=False, callback=stop)
    assert models[0].history.status == 'interrupted'

def test_double_precision_without_a_default():
    x = torch.randn(5, D_X, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert BUILD['ebt2'](0).double()(x).dtype == torch.float64

def test_a_callback_may_take_gradients():
    def norm(models, history): F.mse_loss(models[0](splits()[0].tensors[0]), splits()[0].tensors[1]).backward()
    run(models_of('ffn', [0, 1]), [0, 1], callback=norm)

# Batches, guesses and groups

def test_an_mlp_depends_on_its_seed():
    assert torch.equal(mlp(20, 10)[0].weight, mlp(20, 10)[0].weight) and not torch.equal(mlp(20, 10, seed=1)[0].weight, mlp(20, 10)[0].weight)

def test_draws_cover_the_data_and_repeat():
    class Noisy(nn.Linear):
        def initial_guess(self, n, g): return torch.randn(n, self.out_features, generator=g)
    rows,noise = next(draws(Noisy(20, 10), 4096, 128, seed=0))
    assert rows.shape == (64, 128) and noise.shape == (64, 128, 10)
    assert torch.equal(rows.flatten()[:4096].sort().values, torch.arange(4096))
    again = next(draws(Noisy(20, 10), 4096, 128, seed=0))
    assert torch.equal(again[0], rows) and torch.equal(again[1], noise)
    assert abs(noise.std() - 1) < 0.01

def test_prepared_and_transformed():
    class Doubling(nn.Module):
        def prepare(self, x): return 2*x
        def forward(self, x):
            self.seen = transformed()
            return x.sum(-1)
    model = Doubling()
    assert [prepared(m, torch.ones(1)).item() for m in (model, nn.Linear(1, 1))] == [2, 1]
    for f,seen in [(model, False), (torch.func.vmap(model), True), (torch.func.grad(lambda x: model(x).sum()), True)]:
        f(torch.ones(2, 1))
        assert model.seen is seen

def test_groups_of_texts_are_whole():
    lengths = (5 + 395*torch.rand(1000, generator=torch.Generator().manual_seed(0))**2).long()
    texts = (torch.arange(400) < lengths[:, None]).long()*(1 + torch.arange(1000)[:, None])   # text i repeats the token i + 1
    groups = length_groups(texts, torch.arange(1000), 64)
    assert torch.equal(torch.cat([y for _,y in groups]).sort().values, torch.arange(1000))    # every text is in one group, whole, with its label
    for x,y in groups: assert torch.equal(x[:, 0], 1 + y) and torch.equal(row_lengths(x), lengths[y])
    assert sorted(islice(group_order(8), 16)) == sorted(2*list(range(8)))
    padding = lambda tensors: 1 - sum(row_lengths(t).sum().item() for t in tensors)/sum(t.numel() for t in tensors)
    assert padding([texts]) > 0.5 and padding([x for x,_ in groups]) < 0.2

@pytest.mark.parametrize('compile', [False, True])
def test_a_stream_that_is_never_closed_lets_python_end(compile):
    code = f"""
import torch, torch.nn.functional as F
from ebt_toy.engine import updates
model = torch.nn.Linear(3, 2)
stream = updates([model], torch.ones(9, 3), torch.ones(9, 2), 4, 1e-3, F.mse_loss, [0], {compile})
for _ in range(3): next(stream)
"""
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
