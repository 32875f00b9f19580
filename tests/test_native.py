"Updates in C++: the same as PyTorch's, operation by operation and for whole trainings; cold and warm, one model and many; and what is left to PyTorch."
import os, subprocess, sys
from contextlib import closing
from itertools import islice

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from ebt_toy import EBT, EnergyFunction, FeedForward
from ebt_toy.energies import Bilinear, Bowl, Cauchy, Quartic, Residual
from ebt_toy.engine import choose_compile, choose_way, updates
from ebt_toy.native import MOST_MEMORY, Unwritable, native_update, update_source
from ebt_toy.update import Adam, mlp

pytestmark = pytest.mark.skipif(sys.platform != 'linux', reason="needs the C++ compiler and BLAS of Linux")

@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch): monkeypatch.setenv('TORCHINDUCTOR_CACHE_DIR', str(tmp_path))

def normal(*shape, seed=0): return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))

# Operations

W,X,R = normal(3, 20, 30),normal(40, 30, seed=1),torch.tensor([5, -1, 5, 0])
OPERATIONS = dict(
    arithmetic=lambda w, x: (2*w[0] - w[1]/3 + 1 - w[2]).mul(w[0]).add(w[1], alpha=0.3).sub(w[2], alpha=2),
    numbers=lambda w, x: 1/(1 + w.abs()) + 3 - (2 - w),
    functions=lambda w, x: torch.sigmoid(w) + F.silu(w) + w.relu() + w.exp() + w.pow(2) + w.pow(3) + (w.abs() + 1).sqrt() + (w.abs() + 1).rsqrt(),
    tanh=lambda w, x: w.mul(5).tanh() + w.mul(0.01).tanh() + w.mul(100).tanh(),
    extremes=lambda w, x: torch.sigmoid(w*100) + (-w.abs()*100).exp(),
    choices=lambda w, x: torch.where(w > 0.5, w, 2*w) + torch.where(x[:20] <= w[0], x[:20], w[1])*(w >= w[2]) + torch.where((w < 0)[:, :1], 1., w),
    clamps=lambda w, x: w.clamp(-1, 0.5) + w.clamp(min=0.1) + w.clamp(max=0.2),
    broadcast=lambda w, x: w + w[0, 0] + w[:, :, :1] + w[:, :1],
    transposed=lambda w, x: w.transpose(1, 2) + (w.transpose(1, 2)*2).contiguous() + w.permute(0, 2, 1).clone(),
    parts=lambda w, x: torch.cat([w[:, 3:5], w[:, :2]*2, w[:, -1:]], 1),
    stacked=lambda w, x: torch.stack([w[0], w[1]*2, w[2].exp()], 1) + torch.stack([w[0], w[0].t().contiguous().t()], -1)[:, None, :, 0],
    nested=lambda w, x: torch.cat([torch.cat([w[0], w[1]*2]), w[2]], 0),
    sums=lambda w, x: w.sum() + w.sum(0) + w.sum(1, keepdim=True)[:1, :, :] + w.mean(-1, keepdim=True)[:1] + w.mean() + w.transpose(0, 2).sum(0).sum(),
    norm=lambda w, x: w*w.norm() + w/w.flatten(1).norm(dim=1, keepdim=True)[:, :, None],
    products=lambda w, x: w[0] @ x.t() @ x + (x @ w[0].t()).t() @ x,
    batched=lambda w, x: torch.bmm(w, w.transpose(1, 2)) + torch.bmm(w[:, :, :1], w[:, :1, :20]) + (w.transpose(1, 2) @ w)[:, :20, :20],
    gates=lambda w, x: F.glu(w, 2) + F.glu(w.transpose(1, 2), 1).transpose(1, 2),
    powers=lambda w, x: w.pow(1) + w.pow(0)*w + w.abs().log1p(),
    outer=lambda w, x: w[0, :, :1] @ w[1, :1, :],
    narrow=lambda w, x: w[0, :1] @ x.t() @ x[:, :1] + w[0, :, 3:7] @ w[1, 3:7],
    ones=lambda w, x: torch.ones(5, 20) @ w[0] + torch.zeros(5, 30),
    eye=lambda w, x: torch.eye(20) @ w[0] + w[1, 0, 0]*torch.eye(30, dtype=w.dtype, device=w.device)[:20],
    layer=lambda w, x: F.linear(x, w[0], w[0, :, 0]),
    loss=lambda w, x: F.mse_loss(w[0], w[1]) + w.sum(),
    glued=lambda w, x: sum(torch.cat([x[:20, :10], w[0, :, :k]*k], 1) @ torch.cat([w[1, :10], w[2, :k]]) for k in (3, 4, 5)),
    common=lambda w, x: sum(torch.cat([x[:, :20]*2, x[:, 20:]*k], 1) @ w[1].t() for k in (3, 4, 5)),
    columns=lambda w, x: (x @ w[0].t())[:, 3:5] + (x @ w[1].t())[:, 18:] + (x @ w[2].t())[:, :2].exp(),
    several_columns=lambda w, x: (y := x @ w[0].t())[:, 3:5] + y[:, 5:7],
    copies=lambda w, x: torch.cat([(x @ w[0].t()).flatten(), w[1].exp().flatten(), w[2].sum(0), w[2].t().flatten(), w[0].sum(1)]),
    rows=lambda w, x: x[R_ARG[0]]*w[0, :4] if R_ARG else w[0, :4],
    known=lambda w, x: (w.sigmoid() + 1)*(w.sigmoid() + 1).add_(w.sigmoid()),
    whole=lambda w, x: torch.empty_like(w).fill_(2).sub_(w).mul_(w),
)
R_ARG = []

@pytest.mark.parametrize('name', OPERATIONS)
def test_like_pytorch(name):
    R_ARG[:] = [R]
    def f(w, x, r, place):
        R_ARG[:] = [r]
        out = OPERATIONS[name](w, x)
        place.copy_(out)
        return [out.sum().reshape(1)]
    f(W, X, R, out := torch.empty(OPERATIONS[name](W, X).shape))
    args = [W.clone(), X, R, torch.empty_like(out)]
    value, = native_update(lambda w, x, r, place: f(w[0], x, r, place[0]), [a[None] if i in (0, 3) else a for i,a in enumerate(args)],
                           [True, False, False, True])(*(a[None] if i in (0, 3) else a for i,a in enumerate(args)))
    assert torch.allclose(args[3], out, rtol=2e-5, atol=2e-5) and torch.equal(args[0], W)
    assert torch.allclose(value, out.sum(), rtol=1e-4, atol=1e-3)

def test_weights_that_change_on_the_way():
    "A product with new weights is another product, whichever parts it has in common with one before"
    def f(w, x):
        a,b = x*2,x*3
        first = torch.cat([a, b], 1) @ w
        w.mul_(first.sum())
        second = torch.cat([a, b + 1], 1) @ w
        w.add_(second.sum())
        return [(first + second + torch.cat([a, w[:3, :3].t()], 1) @ w).sum().reshape(1)]
    w,x = normal(6, 4),normal(3, 3, seed=1)
    expected,new = f(one := w.clone(), x)[0],w.clone()[None]
    value, = native_update(lambda w, x: f(w[0], x), [new.clone(), x], [True, False])(new, x)
    assert torch.allclose(new[0], one, rtol=1e-4) and torch.allclose(value, expected, rtol=1e-4)

def test_not_a_number_stays_one():
    w = torch.tensor([[float('nan'), float('inf'), -float('inf'), 200., -200.]])
    def f(w): return [w.copy_(torch.cat([w[:, :1].relu(), w[:, 1:].exp()], 1)).sum(1)]
    value, = native_update(f, [w], [True])(w)
    assert value.isnan().all() and w[0, 0].isnan() and torch.equal(w[0, 1:], torch.tensor([float('inf'), 0, float('inf'), 0]))

@pytest.mark.parametrize('f', [
    lambda w: [w.cumsum(1).sum(1)], lambda w: [torch.rand_like(w).sum(1)], lambda w: [(w*w.sum().item()).sum(1)],
    lambda w: [w.double().sum(1)], lambda w: [(w + OUTSIDE).sum(1)], lambda w: [w[:, :2].mul_(2).sum(1)],
    lambda w: [w.sum(1) if w.sum() > 0 else w.sum(1)], lambda w: [w.pow(0.5).sum(1)], lambda w: [w.fill_(1.).sum(1)]])
def test_left_to_pytorch(f):
    with pytest.raises(Unwritable): update_source(f, [torch.ones(1, 3)])
OUTSIDE = torch.ones(1)

def test_arguments_are_left_to_pytorch():
    for a in (torch.ones(1, 3).double(), torch.ones(3, 2).t(), torch.ones(1, 3, device='meta')):
        with pytest.raises((Unwritable, NotImplementedError)): update_source(lambda w: [w.sum(1)], [a])
    with pytest.raises(Unwritable, match='bytes'): update_source(lambda w: [((w*2).t() @ w).sum(1)[:1]], [torch.ones(1, int(MOST_MEMORY**0.5))])

def test_arguments_are_checked():
    w,rows = torch.ones(2, 3, 4),torch.zeros(2, 5, dtype=torch.long)
    run = native_update(lambda w, r: [w[0][r[0]].sum().reshape(1)], [w, rows], [True, True])
    assert torch.equal(run(w, rows)[0], torch.full((2,), 20.))
    for bad in (w.double(), w[:1], w.transpose(1, 2).contiguous().transpose(1, 2)):
        with pytest.raises(ValueError, match='args: expected tensors like those'): run(bad, rows)
    with pytest.raises(IndexError): run(w, rows + 3)

def test_an_update_whose_first_arguments_are_known():
    def f(w, x, z): return [w.add_(x*z).sum().reshape(1)]
    w,x = normal(1, 3),normal(3, seed=1)
    run,one,other = native_update(f, [w, x, x], [True, False, False]),w.clone(),w.clone()
    step = run.bound(one, x.clone())
    for z in (x, 2*x, 3*x): step(z), run(other, x, z)
    assert torch.equal(one, other) and not torch.equal(one, w)
    for bad in ((), (x, x), (x.double(),), (x[:2],)):
        with pytest.raises(ValueError, match='args: expected tensors like those'): step(*bad)
    with pytest.raises(ValueError): run.bound(w[0])

# Trainings

def energy(seed): return EBT(EnergyFunction(3, 2, 16, seed), 2, 4, 1.)
KINDS = dict(ebt=energy, ffn=lambda s: FeedForward(3, 2, 16, 'relu', s), silu=lambda s: mlp(3, 2, 16, 'silu', s), tanh=lambda s: mlp(3, 2, 16, 'tanh', s),
             practised=lambda s: EBT(Bowl(3, 2, 16, s), 2, 4, 0.3, min_steps=2, replay=0.5, noise=0.1, step_spread=2.),
             product=lambda s: mlp(3, 2, 16, 'product', s), glu=lambda s: mlp(3, 2, 16, 'glu', s),
             **{f.__name__: lambda s, f=f: EBT(f(3, 2, 16, s), 2, 4, 0.3) for f in (Bowl, Bilinear, Cauchy, Quartic, Residual)})

def trained(kind, seeds, compile, n=20, lr=1e-3, threads=1, how=None):
    x,y = normal(50, 3, seed=5),normal(50, 2, seed=6)
    models,before = [KINDS[kind](s) for s in seeds],torch.get_num_threads()
    way = choose_way(models, x, y, 8, F.mse_loss, seeds, compile, lr)
    if compile: assert way.how == 'a C++ compiler'
    torch.set_num_threads(threads)
    try:
        with closing(updates(models, x, y, 8, lr, F.mse_loss, seeds, way=way)) as stream: list(islice(stream, n))
    finally: torch.set_num_threads(before)
    return torch.stack([nn.utils.parameters_to_vector(m.parameters()).detach() for m in models])

@pytest.mark.parametrize('lr', [1e-3, Adam(1e-3, clip=0.1, weight_decay=0.1), Adam(lambda t: 1e-3/t)], ids=['plain', 'clip', 'schedule'])
@pytest.mark.parametrize('kind', KINDS)
def test_like_the_plain_way(kind, lr):
    plain,native = trained(kind, [3], False, lr=lr),trained(kind, [3], True, lr=lr)
    start = nn.utils.parameters_to_vector(KINDS[kind](3).parameters()).detach()
    assert (native - plain).norm() < 1e-3*(plain - start).norm()

@pytest.mark.parametrize('kind', ['ebt', 'ffn'])
def test_the_same_bits_alone_and_together(kind):
    alone = torch.cat([trained(kind, [s], True) for s in range(5)])
    assert torch.equal(alone, trained(kind, list(range(5)), True)) and torch.equal(alone, trained(kind, list(range(5)), True, threads=2))

FRESH = '''
import sys, torch, torch.nn.functional as F
from contextlib import closing
from itertools import islice
from ebt_toy.energies import Bilinear, Bowl, Cauchy, Quartic, Residual
from ebt_toy.engine import choose_compile, choose_way, updates
from ebt_toy.update import mlp
g = torch.Generator().manual_seed(0)
x,y,model = torch.randn(50, 3, generator=g),torch.randn(50, 2, generator=g),mlp(3, 2, 16)
way = choose_way([model], x, y, 8, F.mse_loss, [0], True)
with closing(updates([model], x, y, 8, 1e-3, F.mse_loss, [0], way=way)) as stream: list(islice(stream, 50))
print(way.how, model[0].weight.sum().item().hex(), [m for m in ('torch._dynamo', 'torch._inductor') if m in sys.modules])
'''

def test_cold_and_warm(tmp_path):
    "A fresh process finds the library, gets the same bits, and never imports PyTorch's compiler; a broken file is replaced"
    def run(): return subprocess.run([sys.executable, '-c', FRESH], capture_output=True, text=True, check=True).stdout.strip()
    def files(): return {f: f.stat().st_mtime_ns for f in (tmp_path/'ebt_toy').iterdir()}
    cold,made = run(),files()
    assert run() == cold and files() == made and len(made) == 1 and cold.startswith('a C++ compiler') and cold.endswith('[]')
    file, = made
    whole = file.read_bytes()
    for broken in (b'', b'broken', whole[:-1], whole[:5000] + b'x' + whole[5001:]):
        file.write_bytes(broken)
        assert run() == cold and file.stat().st_size > 1000

def test_another_text_has_another_name(tmp_path):
    w = torch.ones(1, 2)
    for k in (2., 3., 2.): assert native_update(lambda w: [(k*w).sum(1)], [w], [True])(w)[0].item() == 2*k
    assert len(list((tmp_path/'ebt_toy').iterdir())) == 2

def test_a_wrong_result_is_noticed(monkeypatch):
    from ebt_toy import native
    monkeypatch.setitem(native._formulas, 'relu', '{0}')
    x,y = normal(50, 3, seed=5),normal(50, 2, seed=6)
    way = choose_way([KINDS['ffn'](0)], x, y, 8, F.mse_loss, [0], True)
    assert way.compiled and way.how == "PyTorch's, since: its losses would differ in C++"

def test_quick_is_in_cpp_or_not_at_all():
    assert choose_compile('auto', 100, 1000)[0] is False and choose_compile('auto', 100, 3000)[0] == 'quick' and choose_compile('auto', 100, 30_000)[0] == 'auto'
    x,y = normal(50, 3, seed=5),normal(50, 2, seed=6)
    assert choose_way([KINDS['ffn'](0)], x, y, 8, F.mse_loss, [0], 'quick').how == 'a C++ compiler'
    gelu = [nn.Sequential(nn.Linear(3, 4), nn.GELU(), nn.Linear(4, 2)) for _ in range(2)]
    for models in (gelu, gelu[:1]):
        way = choose_way(models, x, y, 8, F.mse_loss, list(range(len(models))), 'quick')
        assert not way.compiled and (way.runs is None) == (len(models) == 1)
