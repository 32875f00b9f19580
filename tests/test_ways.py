"""A zoo of models, trained in every way: one after another, several seeds side by side, recorded and compiled. Each way gives what a
loop written by hand gives, state included, or refuses with a reason. `EBT_ZOO_EXAMPLES=200` draws more of them, `EBT_ZOO_COMPILE=1` compiles each kind."""
import copy, os, warnings
from contextlib import closing
from itertools import islice

import numpy as np
import pytest, torch
import torch.nn.functional as F
from hypothesis import HealthCheck, Phase, given, settings, strategies as st
from torch import nn
from torch.nn.utils import parametrizations
from torch.utils.data import TensorDataset

from ebt_toy import EBT, EnergyFunction, FeedForward, engine, fit, predict
from ebt_toy.core import seeded
from ebt_toy.update import draws, mlp
from ebt_toy.engine import choose_way, updates

N,D_X,D_Y,BATCH,LR,STEPS = 40,4,4,8,1e-3,5

class Net(nn.Module):
    "A small network; the zoo changes one thing each"
    def __init__(self):
        super().__init__()
        self.a,self.b,self.o = nn.Linear(D_X, 4),nn.Linear(4, 4),nn.Linear(4, D_Y)
        self.make()
    def make(self): pass
    def hidden(self, x): return torch.tanh(self.b(torch.tanh(self.a(x))))
    def forward(self, x): return self.o(self.hidden(x))

ZOO = dict(net=Net)
def kind(cls): return ZOO.setdefault(cls.__name__.lower(), cls)

@kind
class SharedModule(Net):
    def make(self): self.b = self.a
@kind
class SharedThrice(Net):
    def make(self): self.b = nn.Sequential(self.a, nn.Tanh(), self.a)
@kind
class TiedWeight(Net):
    def make(self): self.b.weight = self.a.weight
@kind
class TiedTransposed(Net):
    def forward(self, x): return F.linear(self.hidden(x), self.a.weight.T)
@kind
class TiedAcross(Net):
    def make(self): self.o.bias = self.a.bias
@kind
class LayerNormed(Net):
    def make(self): self.b = nn.Sequential(nn.LayerNorm(4), self.b)
@kind
class GroupNormed(Net):
    def make(self): self.b = nn.Sequential(self.b, nn.GroupNorm(2, 4))
@kind
class BatchNormed(Net):
    def make(self): self.b = nn.Sequential(self.b, nn.BatchNorm1d(4))
@kind
class BatchNormedWithoutMemory(Net):
    def make(self): self.b = nn.Sequential(self.b, nn.BatchNorm1d(4, track_running_stats=False))
@kind
class WeightNormed(Net):
    def make(self): parametrizations.weight_norm(self.b)
@kind
class SpectralNormed(Net):
    def make(self): parametrizations.spectral_norm(self.b)
@kind
class Orthogonal(Net):
    def make(self): parametrizations.orthogonal(self.b)
@kind
class OldWeightNormed(Net):
    def make(self):
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            nn.utils.weight_norm(self.b)
@kind
class Buffered(Net):
    def make(self): self.register_buffer('shift', torch.randn(4)*0.1)
    def forward(self, x): return super().forward(x) + self.shift
@kind
class SharedBuffer(Buffered):
    def make(self): super().make(), self.o.register_buffer('same', self.shift)
    def forward(self, x): return super().forward(x)*(1 + self.o.same)
@kind
class RunningMean(Net):
    def make(self): self.register_buffer('mean', torch.zeros(4))
    def forward(self, x):
        if self.training: self.mean.lerp_(x.detach().mean(0).to(self.mean), 0.1)
        return super().forward(x - self.mean)
@kind
class ReplacedBuffer(RunningMean):
    def forward(self, x):
        if self.training: self.mean = 0.9*self.mean + 0.1*x.detach().mean(0)
        return Net.forward(self, x - self.mean)
@kind
class Frozen(Net):
    def make(self): self.b.requires_grad_(False)
@kind
class FrozenBias(Net):
    def make(self): self.o.bias.requires_grad_(False)
@kind
class Lazy(Net):
    def make(self): self.b = nn.LazyLinear(4)
@kind
class Nested(Net):
    def make(self): self.b = nn.ModuleDict(dict(one=nn.ModuleList([nn.Linear(4, 4), nn.Sequential(nn.Linear(4, 4))]), two=nn.Linear(4, 4)))
    def hidden(self, x): return torch.tanh(self.b['two'](self.b['one'][1](self.b['one'][0](torch.tanh(self.a(x))))))
@kind
class LooseParameters(Net):
    def make(self): self.scale,self.many = nn.Parameter(torch.tensor(1.5)),nn.ParameterDict(dict(u=nn.Parameter(torch.ones(4)), v=nn.Parameter(torch.zeros(1, 4))))
    def forward(self, x): return self.scale*super().forward(x)*self.many['u'] + self.many['v']
@kind
class Unused(Net):
    def make(self): self.never = nn.Linear(3, 3)
@kind
class Counter(Net):
    t = 0
    def forward(self, x):
        if self.training: self.t += 1
        return super().forward(x)*min(1, 0.1*self.t)
@kind
class CounterInAList(Net):
    def make(self): self.seen = dict(calls=[0])
    def forward(self, x):
        self.seen['calls'][0] += self.training
        return super().forward(x)*min(1, 0.1*self.seen['calls'][0])
@kind
class LateSwitch(Net):
    t = 0
    def forward(self, x):
        self.t += self.training
        return super().forward(x)*(1 if self.t < 4 else 2)
CALLS = dict.fromkeys(range(3), 0)
@kind
class CounterOutside(Net):
    "Its state lies where no look at the model finds it"
    def forward(self, x):
        CALLS[0] += self.training
        return super().forward(x)*(1 + CALLS[0] % 5)
@kind
class Remembers(Net):
    def forward(self, x):
        self.last = super().forward(x)
        return self.last
@kind
class Dropping(Net):
    def make(self): self.b = nn.Sequential(self.b, nn.Dropout(0.5))
@kind
class NumpyNoise(Net):
    def forward(self, x): return super().forward(x) + np.random.randn()*0.1
@kind
class OwnGenerator(Net):
    def make(self): self.g = torch.Generator().manual_seed(0)
    def forward(self, x): return super().forward(x) + 0.1*torch.randn(4, generator=self.g)
@kind
class Branch(Net):
    def forward(self, x): return super().forward(x) if x.sum() > 0 else -super().forward(x)
@kind
class ThroughNumpy(Net):
    def forward(self, x): return super().forward(x)*float(np.abs(x.detach().numpy()).mean())
@kind
class Where(Net):
    def forward(self, x): return torch.where(x.sum(1, keepdim=True) > 0, super().forward(x), -super().forward(x))
@kind
class Hooked(Net):
    def make(self): self.a.register_forward_hook(lambda m, i, o: 0.5*o)
@kind
class GradientHooked(Net):
    def make(self): self.b.weight.register_hook(lambda g: 0.1*g)
@kind
class Attending(Net):
    def make(self): self.b = nn.MultiheadAttention(4, 2, batch_first=True)
    def hidden(self, x): return self.b(*[torch.tanh(self.a(x))[:, None]]*3, need_weights=False)[0][:, 0]
@kind
class Recurrent(Net):
    def make(self): self.b = nn.GRU(1, 4, batch_first=True)
    def hidden(self, x): return self.b(x[..., None])[0][:, -1]
@kind
class Convolved(Net):
    def make(self): self.b = nn.Sequential(nn.Unflatten(1, (1, 4)), nn.Conv1d(1, 2, 3, padding=1), nn.Flatten(), nn.Linear(8, 4))
@kind
class InPlace(Net):
    def make(self): self.b = nn.Sequential(self.b, nn.ReLU(inplace=True))
@kind
class WritesIntoX(Net):
    def forward(self, x): return super().forward(x.mul_(0.5))
@kind
class OwnBackward(Net):
    def make(self): self.b = nn.Bilinear(4, 4, 4)
    def hidden(self, x): return self.b(torch.tanh(self.a(x)), x)

class TiedEnergy(nn.Module):
    "One layer reads x and y"
    def __init__(self): super().__init__(); self.l = nn.Linear(D_X, 4)
    def forward(self, x, y): return (self.l(x) - torch.tanh(self.l(y))).pow(2).sum(-1) + 0.1*y.pow(2).sum(-1)
class CountedEnergy(TiedEnergy):
    calls = 0
    def forward(self, x, y):
        self.calls += 1
        return super().forward(x, y)*min(1, self.calls/20)
ZOO |= dict(feedforward=lambda: FeedForward(D_X, D_Y, 8), ebt=lambda: EBT(EnergyFunction(D_X, D_Y, 8), D_Y, 3), ebt_two=lambda: EBT(EnergyFunction(D_X, D_Y, 8), D_Y, 4, 0.5, grad_steps=2),
            tied_energy=lambda: EBT(TiedEnergy(), D_Y, 3, 0.3), counted_energy=lambda: EBT(CountedEnergy(), D_Y, 2, 0.3))
REFUSED = {'batchnormed', 'spectralnormed', 'runningmean', 'replacedbuffer', 'counter', 'counterinalist', 'lateswitch', 'counteroutside', 'remembers', 'dropping', 'numpynoise', 'owngenerator',
           'branch', 'throughnumpy', 'hooked', 'gradienthooked', 'oldweightnormed', 'recurrent', 'counted_energy'}   # what a recording cannot hold
if os.environ.get('EBT_ZOO_COMPILE') is None: COMPILED = ['sharedmodule', 'tiedtransposed', 'tied_energy']
else: COMPILED = sorted(ZOO)

def member(name, seed, dtype):
    "A model of a kind, its lazy parts in shape"
    CALLS[0] = 0
    with seeded(seed):
        model = ZOO[name]()
        if name == 'lazy': model(torch.zeros(1, D_X))
    return model.to(dtype)

def data(seed, dtype):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(N, D_X, generator=g, dtype=dtype),torch.randn(N, D_Y, generator=g, dtype=dtype)

def by_hand(model, x, y, seed):
    "The plain loop"
    with seeded(99):
        CALLS[0] = 0
        opt = torch.optim.Adam(model.parameters(), lr=LR)
        model.train()
        stream = (inputs for block in draws(model, N, BATCH, seed) for inputs in zip(*block))
        for rows,*noise in islice(stream, STEPS):
            opt.zero_grad()
            F.mse_loss(model(x[rows], *noise), y[rows]).backward()
            opt.step()
    return model

def trained(models, x, y, seeds, compile):
    with seeded(99):
        CALLS[0] = 0
        way = choose_way(models, x, y, BATCH, F.mse_loss, seeds, compile)
        CALLS[0] = 0
        with closing(updates(models, x, y, BATCH, LR, F.mse_loss, seeds, way=way)) as stream: list(islice(stream, STEPS))
    return way

def state(model):
    "All there is to compare: weights and buffers by name, and every other fact about the model"
    facts = {k: v for k,v in engine._facts(model).items() if k != 'model.last' and not isinstance(v, tuple)}
    return model.state_dict(),facts

def assert_same(a, b, x, dtype, rounding=None):
    """Weights, buffers and facts, in single precision predictions and buffers, up to ten times what rounding does: Adam divides a
    gradient by its size, so where one is nearly zero (that of a bias before a normalization is) a rounding error decides the step."""
    rounding = rounding or {}
    tol = {torch.float64: 1e-10, torch.float32: 1e-5}[dtype]
    (weights,facts),(expected,wanted) = state(a),state(b)
    assert weights.keys() == expected.keys() and facts == wanted
    own = dict(a.named_parameters())
    for k,v in weights.items():
        if dtype == torch.float64 or k not in own: torch.testing.assert_close(v, expected[k], rtol=tol, atol=tol + 10*rounding.get(k, rounding.get('prediction', 0.)))
    p,q = predicted(a, x),predicted(b, x)
    torch.testing.assert_close(p, q, rtol=tol, atol=tol*max(1, float(q.abs().max())) + 10*rounding.get('prediction', 0.))

def predicted(model, x):
    with seeded(1): return predict(copy_of(model), x)

def rounding_of(name, seed, x, y, dtype):
    "How far rounding moves the plain loop itself: weights and predictions after initial weights that differ in their last digit"
    a,b = (by_hand(nudge(member(name, seed, dtype), by), x, y, seed) for by in (0., 1.))
    def apart(p, q): return float((p - q).detach().abs().max().nan_to_num(0., 0., 0.)) if p.numel() else 0.
    moved = {k: apart(p, q) for (k,p),q in zip(a.named_parameters(), b.parameters())}
    return moved | dict(prediction=apart(predicted(a, x), predicted(b, x)))

def nudge(model, by):
    "Weights that differ by `by` units in the last place"
    with torch.no_grad():
        for p in model.parameters(): p.mul_(1 + by*torch.finfo(p.dtype).eps)
    return model

def copy_of(model):
    try: return copy.deepcopy(model)
    except RuntimeError: return model       # old-style weight norm keeps a tensor that cannot be copied

def check(name, seeds, dtype, data_seed, compile):
    "Each model as by hand, or refused; how it went"
    x,y = data(data_seed, dtype)
    models = [member(name, s, dtype) for s in seeds]
    try: way = trained(models, x, y, seeds, compile)
    except ValueError as e:
        assert len(str(e)) > 20 and '\n' not in str(e)
        for m,s in zip(models, seeds): assert_same(m, member(name, s, dtype), x, dtype)     # and left as it was
        return 'refused'
    one_state = name in ('counteroutside', 'dropping', 'numpynoise') and len(seeds) > 1     # what all models share
    for m,s in zip(models, seeds):
        if not one_state: assert_same(m, by_hand(member(name, s, dtype), x, y, s), x, dtype, rounding_of(name, s, x, y, dtype))
    return 'plain' if way.runs is None else 'compiled' if way.compiled else 'side by side'

def seen(name, way, n, compile):
    "The outcome that is right for a kind"
    if n == 1 and not compile: assert way == 'plain'
    elif name in REFUSED: assert way in ('plain', 'refused')
    else: assert way == ('compiled' if compile else 'side by side')

@pytest.mark.parametrize('name', ZOO)
@pytest.mark.parametrize('n, compile', [(1, False), (3, False), (1, 'auto'), (2, 'auto'), (1, True)], ids=str)
def test_every_kind_in_every_way(recorded, name, n, compile): seen(name, check(name, list(range(3, 3 + n)), torch.float64, 0, compile), n, compile)

@settings(max_examples=int(os.environ.get('EBT_ZOO_EXAMPLES', 40)), deadline=None, database=None, phases=[Phase.generate], suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(sorted(ZOO)), st.lists(st.integers(0, 2**31), min_size=1, max_size=3, unique=True), st.sampled_from([torch.float32, torch.float64]), st.integers(0, 2**31), st.sampled_from([False, 'auto', True]))
def test_the_zoo(recorded, name, seeds, dtype, data_seed, compile): seen(name, check(name, seeds, dtype, data_seed, compile), len(seeds), compile)

@pytest.mark.parametrize('name', COMPILED)
def test_compiled(name): seen(name, check(name, [3], torch.float64, 0, 'auto'), 1, 'auto')

# Changed under way

def splits(): return [TensorDataset(*data(i, torch.float64)) for i in range(3)]

def halved(model): model.step_size = 0.5*model.step_size
def set_weight(model): model.energy.net[0].weight.data = torch.full_like(model.energy.net[0].weight, 0.01)
def set_in_place(model): model.energy.net[0].weight.data.fill_(0.01)
def frozen(model): model.energy.net[2].requires_grad_(False)
def longer(model): model.n_optimization_steps += 1
CHANGES = [halved, set_weight, set_in_place, frozen, longer]

@pytest.mark.parametrize('change', CHANGES, ids=lambda f: f.__name__)
@pytest.mark.parametrize('at', [0, 4], ids='at{}'.format)
@pytest.mark.parametrize('n, compile', [(2, False), (1, True)], ids=str)
def test_what_a_callback_changes_counts(recorded, change, at, n, compile):
    def callback(models, history):
        if history['step'][-1] == at:
            for m in models if isinstance(models, list) else [models]: change(m)
    def run(models, **options): return fit(models, *splits(), num_steps=12, batch_size=BATCH, lr=1e-2, eval_every=4, callback=callback, progress=False, **options)
    def build(seed): return EBT(EnergyFunction(D_X, D_Y, 8, seed), D_Y, 3).double()
    models = [build(s) for s in range(n)]
    history = run(models, seeds=range(n), compile=compile) if n > 1 else run(models[0], compile=compile)
    for s in range(n):
        alone = build(s)
        expected = run(alone, seed=s, compile=False)
        np.testing.assert_allclose(history['val_loss'].reshape(4, n)[:, s], expected['val_loss'], rtol=1e-8)
        assert_same(models[s], alone, data(0, torch.float64)[0], torch.float64)

def test_replaced_parameters_are_refused():
    def callback(model, history): model.a = nn.Linear(D_X, 4).double()
    with pytest.raises(ValueError, match='callback: expected to leave a model the parameters it has'): fit(member('net', 0, torch.float64), *splits(), num_steps=2, callback=callback, progress=False)

def test_parts_keep_their_modes():
    model = member('batchnormed', 0, torch.float64)
    model.b.eval()
    predict(model, data(0, torch.float64)[0])
    assert model.training and not model.b.training and not model.b[1].training

@pytest.mark.parametrize('place', [torch.no_grad, torch.inference_mode, lambda: torch.autocast('cpu', torch.bfloat16)], ids=['no_grad', 'inference_mode', 'autocast'])
def test_where_nothing_would_be_learned(place):
    model = member('net', 0, torch.float32)
    with place(), pytest.raises(ValueError, match=r'fit: expected to be called outside torch\.'): fit(model, *splits(), num_steps=2, progress=False)
    assert_same(model, member('net', 0, torch.float32), data(0, torch.float32)[0], torch.float32)

def test_shared_models_are_refused():
    model = member('net', 0, torch.float64)
    with pytest.raises(ValueError, match='models: expected separate weights for every seed'): fit([model, model], *splits(), seeds=2, num_steps=2, progress=False)

def test_the_report_says_what_happened(monkeypatch):
    def fail(*args): raise RuntimeError('no compiler here')
    monkeypatch.setattr(engine, 'compile_update', fail)
    lines = []
    with pytest.warns(UserWarning, match='training goes on uncompiled, since the update could not be compiled: RuntimeError no compiler here'):
        history = fit(member('net', 0, torch.float64), *splits(), num_steps=2, compile=True, report=lines.append, progress=False)
    assert history.settings['compile'] is False and 'Not compiled: the update could not be compiled: RuntimeError no compiler here' in lines

# What stands in the way

def way(*models, **options):
    x,y = data(0, torch.float32)
    return choose_way(list(models), x, y, BATCH, F.mse_loss, list(range(len(models))), **options)

@pytest.mark.parametrize('models, options, message', [
    ([mlp(D_X, D_Y, 8), mlp(D_X, D_Y, 9)], {}, 'expected the same architecture and precision for every seed'),
    ([nn.Identity()], dict(compile=True), 'expected trainable weights, got none'),
    ([nn.Sequential(nn.Linear(D_X, D_Y), nn.Dropout()) for _ in range(2)], {}, 'expected no draws from the global random state'),
    ([nn.Sequential(nn.Linear(D_X, D_Y), nn.BatchNorm1d(D_Y))], dict(compile=True), 'but forward changes model.1.running_mean')], ids=['different', 'identity', 'dropout', 'batchnorm'])
def test_refusals_of_a_fast_way(models, options, message):
    with pytest.raises(ValueError, match=message): way(*models, **options)

def test_why_several_seeds_train_one_after_another():
    assert way(member('counter', 0, torch.float32), member('counter', 1, torch.float32)).why == 'forward changes model.t'
    assert way(*(nn.Sequential(nn.Linear(D_X, D_Y), nn.LayerNorm(D_Y, eps=e)) for e in (1e-5, 1e-6))).why == 'model.1.eps is not the same for every seed'

def test_one_warning_where_the_control_flow_depends_on_data():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        with closing(updates([member('branch', 0, torch.float32)], *data(0, torch.float32), BATCH, LR, F.mse_loss, [0], compile=True)) as stream: list(islice(stream, 3))
    assert len(caught) == 1 and 'training goes on uncompiled' in str(caught[0].message)
