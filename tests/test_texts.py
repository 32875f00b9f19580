"Models that read texts: the same in groups of like length, side by side, compiled, and whatever company a row is in."
import copy
from contextlib import closing
from itertools import islice

import pytest, torch
import torch.nn.functional as F
from hypothesis import given, settings, strategies as st
from torch.utils.data import TensorDataset

from ebt_toy import EBT, EnergyFunction, FeedForward, TokenEncoder, fit, predict, run_main, test_energy_model, train_energy_model, update
from ebt_toy.engine import updates
from ebt_toy.update import draws, group_order, length_groups, prepared, row_lengths
from bounds import bounded
from ebt_toy import encoder
from ebt_toy.encoder import SILENT, nesting, rotate, without
from ebt_toy.generate import draw_forest, numpy_generator, pad, token_ids
from ebt_toy.listops import PAD, tokenize
from ebt_toy.models import encoder_for

test_energy_model.__test__ = False   # a function of the library, not a test
quick = settings(max_examples=15, deadline=None, database=None)

def reader(seed): return TokenEncoder(8, 1, 2, seed)
BUILD = dict(ffn=lambda seed: FeedForward(8, 10, 8, 'silu', seed, encoder=reader(seed)).double(),
             ebt=lambda seed: EBT(EnergyFunction(8, 10, 8, seed), 10, 3, encoder=reader(seed)).double())
each_model = pytest.mark.parametrize('name', BUILD)

def texts(n, seed=0, parens=True):
    "Random expressions of 7 to 61 tokens and random labels"
    forest = draw_forest(n, numpy_generator(seed), max_depth=4, max_args=4, min_length=7, max_length=61)
    return pad(*token_ids(forest, parens), 61),torch.randint(10, (n,), generator=torch.Generator().manual_seed(seed))

def weights(model): return torch.cat([p.detach().flatten() for p in model.parameters()])
def assert_near(a, b, tol=1e-10): torch.testing.assert_close(a, b, rtol=tol, atol=tol)

def trained(models, x, y, seeds, n, compile=False, batch_size=8):
    with closing(updates(models, prepared(models[0], x), y, batch_size, 1e-2, F.cross_entropy, seeds, compile)) as stream: list(islice(stream, n))
    return models

def by_hand(model, x, y, seed, n, batch_size=8):
    "A loop that knows of groups, and nothing of the engine's updates"
    model,x = copy.deepcopy(model),model.prepare(x)
    opt,groups = torch.optim.Adam(model.parameters(), lr=1e-2),length_groups(x, y, batch_size)
    streams = [(inputs for block in draws(model, len(gx), batch_size, seed, 'cpu', *[i]*(i > 0)) for inputs in zip(*block)) for i,(gx,_) in enumerate(groups)]
    for i in islice(group_order(len(groups)), n):
        rows,*noise = next(streams[i])
        opt.zero_grad()
        F.cross_entropy(model(F.pad(groups[i][0][rows], (0, 3)), *noise), groups[i][1][rows]).backward()    # more padding changes nothing
        opt.step()
    return model

@each_model
def test_one_by_one_and_side_by_side_like_by_hand(name):
    x,y = texts(50)
    expected = [weights(by_hand(BUILD[name](s), x, y, s, 12)) for s in (3, 0)]
    assert len(length_groups(x, y, 8)) > 1
    for s,e in zip((3, 0), expected): assert_near(weights(trained([BUILD[name](s)], x, y, [s], 12)[0]), e)
    for m,e in zip(trained([BUILD[name](s) for s in (3, 0)], x, y, [3, 0], 12), expected): assert_near(weights(m), e)
    assert (expected[0] - expected[1]).abs().max() > 0.01

def test_compiled_like_uncompiled():
    x,y = texts(15)                                   # one group, so that compiling takes seconds
    plain,compiled = (trained([BUILD['ebt'](1)], x, y, [1], 5, c)[0] for c in (False, True))
    assert_near(weights(compiled), weights(plain))

@each_model
def test_a_seed_in_a_group_is_the_seed_alone(name):
    splits = [TensorDataset(*texts(n, i)) for i,n in enumerate((40, 10, 10))]
    run = lambda model, **seed: fit(model, *splits, num_steps=6, batch_size=8, compile=False, progress=False, **seed)
    group = [BUILD[name](s) for s in (4, 9)]
    together = run(group, seeds=[4, 9])
    for i,s in enumerate((4, 9)):
        alone = BUILD[name](s)
        assert_near(torch.tensor(run(alone, seed=s)['val_loss']), torch.tensor(together.of_seed(i)['val_loss']))
        assert_near(weights(group[i]), weights(alone))

@each_model
@quick
@given(seed=st.integers(0, 2**32 - 1), n=st.integers(1, 40), extra=st.integers(0, 20))
def test_a_prediction_depends_on_its_row_alone(name, seed, n, extra):
    model,(x,_) = BUILD[name](0).eval(),texts(n, seed)
    y0 = [torch.randn(n, 10, dtype=torch.float64)] if name == 'ebt' else []
    p = model(x, *y0).detach()
    assert_near(model(F.pad(x, (0, extra)), *y0).detach(), p)
    assert_near(model(texts(n, seed, parens=False)[0], *y0).detach(), p)
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    assert_near(model(x[order], *(y[order] for y in y0)).detach(), p[order])
    assert_near(model(x[:1], *(y[:1] for y in y0)).detach(), p[:1])
    if name == 'ffn': assert_near(predict(model, x, batch_size=7), p)

@quick
@given(st.integers(1, 60), st.integers(1, 20), st.integers(0, 2**32 - 1))
def test_groups_hold_every_row_once(n, batch_size, seed):
    x,_ = texts(n, seed)
    groups = length_groups(x, torch.arange(n), batch_size)
    assert torch.cat([g for _,g in groups]).sort().values.tolist() == list(range(n))
    assert all(len(g) >= min(n, batch_size) for _,g in groups) and len(groups) <= update.MAX_GROUPS
    for gx,g in groups:
        assert gx.shape[1] == row_lengths(gx).max() and torch.equal(gx, x[g, :gx.shape[1]]) and torch.equal(row_lengths(gx), row_lengths(x)[g])

def test_the_context_is_computed_once_a_prediction():
    calls = []
    class Counted(TokenEncoder):
        def forward(self, x): return calls.append(len(x)) or super().forward(x)
    model,(x,y) = EBT(EnergyFunction(8, 10, 8), 10, 7, encoder=Counted(8, 1, 2)),texts(5)
    F.cross_entropy(model(x), y).backward()
    assert calls == [5] and model.encoder.token.weight.grad.abs().max() > 0

def test_labels_without_texts():
    g = torch.Generator().manual_seed(0)
    xs = [torch.randn(n, 4, generator=g) for n in (400, 50, 50)]
    data = [TensorDataset(x, (x[:, 0] > 0).long() + (x[:, 1] > 0).long()) for x in xs]
    model = train_energy_model(*data, 4, 3, num_steps=150, latent_dim=16, lr=1e-2, report=None, progress=False, compile=False)
    assert test_energy_model(model) > 0.8 and test_energy_model(model) == pytest.approx((predict(model, xs[2]).argmax(-1) == data[2].tensors[1]).double().mean().item())

def test_run_main_on_listops():
    lines,small = [],dict(num_steps=6, latent_dim=8, encoder=reader)
    r = run_main('listops', 2, 60, 20, 20, ebt_config=small, ffn_config=small, seeds=2, report=lines.append, progress=False, task_options=dict(ood='depth', max_depth=4, min_length=7))
    said = '\n'.join(lines)
    assert set(r) == {'ebt', 'ffn'} and all(0 <= r[n]['test_accuracy'] <= 1 and len(r[n]['test_accuracy_seeds']) == 2 for n in r)
    assert 'Out-of-Distribution: deeper' in said and 'EBT Model Test accuracy' in said
    assert r['ebt']['n_params'] > sum(p.numel() for p in reader(0).parameters())
    again = run_main('listops', 2, 60, 20, 20, ebt_config=small, ffn_config=small, seeds=2, report=None, progress=False, task_options=dict(ood='depth', max_depth=4, min_length=7))
    assert [again[n]['test_accuracy_seeds'] for n in r] == [r[n]['test_accuracy_seeds'] for n in r]
    with pytest.raises(ValueError, match="unknown ood 'width'"): run_main('listops', 2, 60, 20, 20, task_options=dict(ood='width'), report=None)

def test_unknown_token_is_refused():
    splits = [TensorDataset(torch.full((4, 5), 18), torch.zeros(4, dtype=torch.long))]*3
    with pytest.raises(ValueError, match='x: expected token ids in 0 to 17, got 18 to 18'): train_energy_model(*splits, 5, 10, num_steps=1, report=None)

def test_wrong_sizes_are_refused():
    with pytest.raises(ValueError, match='dim: expected an even multiple of n_heads=4, got 20'): TokenEncoder(20)
    for name in ('dim', 'n_layers', 'n_heads', 'n_tokens', 'levels'):
        with pytest.raises(ValueError, match=f'{name}: expected a whole number of at least 1, got 0'): TokenEncoder(**{name: 0})

def test_rotated_vectors_match_by_distance_alone():
    q,k = torch.randn(2, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    match = rotate(q.expand(12, 8)) @ rotate(k.expand(12, 8)).T
    for d in range(-11, 12): assert_near(match.diagonal(d), match.diagonal(d)[0].expand(12 - abs(d)), 1e-12)
    assert_near(match.diagonal()[0], q @ k, 1e-12)
    assert match.diagonal(1)[0] != match.diagonal(-1)[0]          # before is not behind

def test_a_context_depends_on_order_and_nesting():
    encoder = reader(0).double()
    def context(text): return encoder(torch.tensor([tokenize(text)])).detach()
    for a,b in (('[MAX 2 9 ]', '[MAX 9 2 ]'), ('[MED 1 [MIN 2 3 ] 4 ]', '[MED 1 [MIN 2 3 4 ] ]')): assert (context(a) - context(b)).abs().max() > 1e-3

def test_a_model_makes_its_own_encoder_where_none_is_given():
    x,_ = texts(3)
    assert type(encoder_for(x)) is TokenEncoder and encoder_for(x, lambda seed: TokenEncoder(16, 1, seed=seed)).dim == 16

# Any type of whole number, and no more memory than it takes

WHOLE = [torch.uint8, torch.int8, torch.int16, torch.uint16, torch.int32, torch.uint32, torch.int64, torch.uint64]
tokens = st.integers(1, 8).flatmap(lambda width: st.lists(st.lists(st.integers(0, 17), min_size=width, max_size=width), max_size=7).map(lambda rows: torch.tensor(rows, dtype=torch.long).view(-1, width)))

@settings(quick, max_examples=100)
@given(tokens, st.sampled_from(WHOLE), st.sampled_from([1, 20, 2**20]))
def test_rows_of_any_whole_type_are_read_alike(x, dtype, at_once):
    left = [[t for t in row if t not in (PAD, *SILENT)] for row in x.tolist()]
    width = max([1, *map(len, left)])
    model = reader(0).eval()
    with pytest.MonkeyPatch.context() as m:
        m.setattr(encoder, 'AT_ONCE', at_once)
        for found in (without(x.to(dtype), SILENT), model.prepare(x.to(dtype))): assert found.tolist() == [row + [PAD]*(width - len(row)) for row in left] and found.shape == (len(x), width)
        assert torch.equal(nesting(x.to(dtype)), nesting(x))
        assert_near(model(x.to(dtype)).detach(), model(x).detach())
    assert model.prepare(x.byte()).dtype == torch.uint8

@pytest.mark.parametrize('x', [torch.zeros(2, 3), torch.zeros(2, 3, dtype=torch.bool), torch.zeros(2, 3, dtype=torch.cfloat), torch.zeros(3, dtype=torch.long)], ids=lambda x: str(x.dtype))
def test_what_are_no_rows_of_ids_is_refused(x):
    with pytest.raises(ValueError, match='x: expected rows of token ids, got torch'): reader(0).prepare(x)

def test_bad_ids_are_refused():
    for name in ('opening', 'closing', 'silent'):
        for ids in ((-1,), (1.5,), ('a',)):
            with pytest.raises(ValueError, match=f'{name}: expected token ids, got'): TokenEncoder(8, 1, 2, **{name: ids})

def test_preparing_takes_little_more_than_its_result():
    x = torch.randint(18, (12_000, 2000), dtype=torch.uint8)          # 24 MB, from which about 20 remain
    with bounded(60, 2*x.nbytes): assert without(x, SILENT).dtype == torch.uint8
