"Checkpoints: back bit for bit, whole or not at all, every fault a ValueError, and the shipped weights are what their code makes"
import json, math, os, pickle, random, shutil, socket, subprocess, sys, tarfile
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, Phase, example, given, settings, strategies as st
from torch import nn

import ebt_toy
from bounds import FULL, bounded
from ebt_toy import checkpoints
from ebt_toy.checkpoints import STEPS, load, make_pretrained, packed, pretrained, pretrained_steps, read_checkpoint, save, snapshots, unpacked
from ebt_toy.data import create_synthetic_data, scoring_for
from ebt_toy.ebt import EBT, EnergyFunction, train_energy_model
from ebt_toy.ebt import trace
from ebt_toy.encoder import TokenEncoder
from ebt_toy.energies import Bilinear, Bowl, Cauchy, Convex, Corrected, Quadratic, Residual
from ebt_toy.ffn import FeedForward, train_feedforward
from ebt_toy.models import predict
from ebt_toy.history import History
from ebt_toy.training import baselines, fit, score
from ebt_toy.update import mlp

few = settings(max_examples=60, deadline=None, database=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
root = Path(__file__).parents[1]
quiet = dict(num_steps=4, eval_every=2, report=None, progress=False)

class Valley(nn.Module):
    "An energy that is not the package's"
    def __init__(self, w=3., d=2):
        super().__init__()
        self.w,self.d = nn.Parameter(torch.full((d,), w)),d
    def forward(self, x, y): return 0.5*(y - self.w*x[:, :self.d]).pow(2).sum(-1)

def tiny(latent=4): return EBT(EnergyFunction(4, 2, latent), output_dim=2)
def content(tmp_path, model=None, **notes): return save(model or tiny(), tmp_path/'good.safetensors', **notes).read_bytes()
def header(data): return json.loads(data[8:8 + int.from_bytes(data[:8], 'little')])
def described(data): return header(data)['__metadata__']['ebt_toy']
def with_text(data, text): return safetensors.torch.save(safetensors.torch.load(data), {'ebt_toy': text})
def state(model): return {k: t.clone() for k,t in model.state_dict().items()}
def same(a, b): return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) and a[k].dtype == b[k].dtype for k in a)

def refused(path, data, match=None, **kwargs):
    "`data` is refused with a `ValueError` of one line that names the file; returns the message"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=match) as e: load(path, **kwargs)
    assert type(e.value) is ValueError and str(path) in str(e.value) and '\n' not in str(e.value)

# Round trips

def vectors(): return create_synthetic_data('add', 50, 8, 8, vec_size=2)
def listops(): return create_synthetic_data('listops', 20, 8, 8, vec_size=1, min_length=5)
def reader(seed): return TokenEncoder(8, n_layers=1, n_heads=2, levels=5, seed=seed)

@pytest.mark.parametrize('train, data, options', [
    (train_energy_model, vectors, dict(latent_dim=8, n_optimization_steps=3, step_size=0.3)), (train_feedforward, vectors, dict(latent_dim=8, activation='tanh')),
    (train_energy_model, listops, dict(latent_dim=8, encoder=reader)), (train_feedforward, listops, dict(latent_dim=8, encoder=reader))],
    ids=['ebt', 'ffn', 'ebt listops', 'ffn listops'])
@pytest.mark.parametrize('seeds', [None, [3, 4]])
def test_a_trained_model_comes_back_bit_for_bit(tmp_path, train, data, options, seeds):
    data = data()
    model = train(*data, **options, **quiet, seeds=seeds)
    if seeds: model = model[1]
    back = load(save(model, tmp_path/'a.safetensors', task='some', seed=7))
    x = data.test_dataset.tensors[0]
    assert torch.equal(predict(model, x, seed=5), predict(back, x, seed=5)) and same(state(model), state(back))
    assert type(back) is type(model) and back.history == model.history and back.notes == dict(task='some', seed=7) and not back.training
    assert all(p.requires_grad and p.device.type == 'cpu' for p in back.parameters())
    again = fit(back, *data[:3], num_steps=2)                     # it can be trained further
    assert math.isfinite(again['train_loss'][-1])

@few
@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 9), st.integers(1, 4), st.floats(1e-3, 5.), st.integers(1, 3), st.booleans())
def test_any_shape_and_precision(tmp_path, d_x, d_y, latent, n_steps, step_size, grad_steps, double):
    model = EBT(EnergyFunction(d_x, d_y, latent, seed=d_x), d_y, n_steps, step_size, grad_steps)
    if double: model.double()
    back = load(save(model, tmp_path/'a.safetensors'))
    assert back.config == model.config and same(state(model), state(back)) and back.history is None and back.notes == {}
    x = torch.linspace(-1, 1, 3*d_x, dtype=torch.float64 if double else torch.float32).view(3, d_x)
    assert torch.equal(predict(model, x), predict(back, x))

ENERGIES = EnergyFunction,Bowl,Bilinear,Quadratic,Cauchy,Residual,Convex,Corrected

@pytest.mark.parametrize('make', ENERGIES, ids=lambda e: e.__name__)
def test_each_energy_comes_back(tmp_path, make):
    model,x = EBT(make(3, 2, 8, seed=4), 2, 7, 0.3),torch.linspace(-1, 1, 15).view(5, 3)
    if 'rows' in model.energy.config: model.energy = make(3, 2, 8, seed=4, rows=3)
    back = load(save(model, tmp_path/'a.safetensors'))
    assert type(back.energy) is make and back.energy.config == model.energy.config and same(state(model), state(back))
    assert torch.equal(predict(model, x), predict(back, x))
    alone = load(save(model.energy, tmp_path/'b.safetensors'))
    assert torch.equal(alone(x, x[:, :2]), model.energy(x, x[:, :2]))

def test_how_a_model_descends_comes_back(tmp_path):
    model,x = EBT(Bowl(4, 2, 8), 2, 5, 0.3, learn_step=True, start='zeros', loss_at='every', noise=0.1, min_steps=3, step_spread=2.),torch.ones(3, 4)
    model.log_step.data += 0.7
    back = load(save(model, tmp_path/'a.safetensors'))
    assert (back.step_size, back.start, back.practice) == (model.step_size, 'zeros', model.practice) and back.step_size == pytest.approx(0.3*math.exp(0.7))
    assert torch.equal(predict(model, x), predict(back, x))
    again = EBT(Bowl(4, 2, 8), 2, 5, 0.3, learn_step=True, start='zeros', loss_at='every', noise=0.1, min_steps=3, step_spread=2.)
    assert load(tmp_path/'a.safetensors', again).step_size == model.step_size
    with pytest.raises(ValueError, match='expected model.config.loss_at'): load(tmp_path/'a.safetensors', EBT(Bowl(4, 2, 8), 2, 5, 0.3))
    assert set(checkpoints.describe(tiny())) == {'kind', 'config', 'energy', 'encoder'}          # as in files of earlier versions
    assert set(checkpoints.describe(tiny())['config']) == {'output_dim', 'n_optimization_steps', 'step_size', 'grad_steps'}

def test_a_proposal_network_has_to_be_given(tmp_path):
    def make(seed): return EBT(Bowl(4, 2, 8, seed=seed), 2, start=mlp(4, 2, 8, 'silu', seed))
    model,x = make(1),torch.ones(3, 4)
    path = save(model, tmp_path/'a.safetensors')
    with pytest.raises(ValueError, match="expected model=.* cannot build 'Sequential'"): load(path)
    with pytest.raises(ValueError, match='expected model.proposal'): load(path, EBT(Bowl(4, 2, 8), 2))
    assert torch.equal(predict(load(path, make(2)), x), predict(model, x))
    ours = save(EBT(Bowl(4, 2, 8), 2, start=FeedForward(4, 2, 8)), tmp_path/'b.safetensors')
    with pytest.raises(ValueError, match="expected model=.* cannot build 'FeedForward'"): load(ours)

def test_what_was_changed_after_building_is_saved(tmp_path):
    model,x = tiny(),torch.ones(3, 4)
    model.n_optimization_steps,model.step_size = 3,0.25
    back = load(save(model, tmp_path/'a.safetensors'))
    assert (back.n_optimization_steps, back.step_size) == (3, 0.25) and torch.equal(predict(model, x), predict(back, x))

@pytest.mark.parametrize('given', [{}, dict(activation='product', n_layers=1), dict(activation='glu', n_layers=2)], ids=str)
def test_networks_of_other_units_and_depths(tmp_path, given):
    net,x = FeedForward(4, 2, 8, **given),torch.ones(3, 4)
    back = load(save(net, tmp_path/'a.safetensors'))
    assert torch.equal(predict(net, x), predict(back, x)) and back.config == net.config

def test_a_description_of_more_layers_than_weights_is_refused_at_once(tmp_path):
    net = FeedForward(4, 2, 8, n_layers=2)
    net.config['n_layers'] = 10**6
    with pytest.raises(ValueError, match='n_layers'): load(save(net, tmp_path/'a.safetensors'))

def test_parts_alone(tmp_path):
    x,y = torch.ones(3, 4),torch.ones(3, 2)
    energy,encoder = EnergyFunction(4, 2, 8, seed=1),TokenEncoder(8, 1, 2, opening=(3, 4), closing=(5,), silent=())
    assert torch.equal(load(save(energy, tmp_path/'a.safetensors'))(x, y), energy(x, y))
    back = load(save(encoder, tmp_path/'b.safetensors'))
    ids = torch.tensor([[3, 1, 5], [2, 0, 0]])
    assert back.config == encoder.config and torch.equal(predict(back, ids), predict(encoder, ids)) and isinstance(back.config['opening'], tuple)

def test_an_energy_of_ones_own(tmp_path):
    path,x = save(EBT(Valley().double(), 2, step_size=0.3), tmp_path/'a.safetensors'),torch.ones(3, 4, dtype=torch.float64)
    mine = EBT(Valley(0.), 2, step_size=0.3)
    held = mine.energy.w                                          # an optimizer, say, holds on to it
    assert load(path, mine) is mine and mine.energy.w is held and held.dtype == torch.float64 and held.tolist() == [3., 3.]
    assert torch.equal(predict(mine, x), predict(EBT(Valley().double(), 2, step_size=0.3), x))

def test_modules_of_any_kind(tmp_path):
    def net(): return nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Linear(3, 3), nn.Linear(3, 3))
    model = net()
    model[3].weight = model[2].weight                             # tied
    model(torch.randn(5, 2))                                      # moves the buffers, one of which counts in whole numbers
    other = net()
    other[3].weight = other[2].weight
    path = save(model, tmp_path/'a.safetensors')
    assert same(state(load(path, other)), state(model)) and other[3].weight is other[2].weight
    with pytest.raises(ValueError, match="cannot build 'Sequential'"): load(path)
    plain = EBT(lambda x,y: y.pow(2).sum(-1), 2)                  # nothing to save but the settings
    assert load(save(plain, tmp_path/'b.safetensors'), EBT(lambda x,y: y.pow(2).sum(-1), 2)).notes == {}

def test_a_class_that_borrows_a_name_is_not_taken_for_ours(tmp_path):
    theirs = type('EnergyFunction', (Valley,), {})
    path = save(EBT(theirs(), 2), tmp_path/'a.safetensors')
    with pytest.raises(ValueError, match="cannot build 'EnergyFunction'"): load(path)
    assert load(path, EBT(theirs(0.), 2)).energy.w.tolist() == [3., 3.]

# What the text keeps

plain = st.none()|st.booleans()|st.integers(-2**70, 2**70)|st.floats(allow_nan=False)|st.text()
names = st.text(max_size=5).filter(lambda k: k[:1] != '!')|st.sampled_from(['', ' !float', 'a!'])
values = st.recursive(plain, lambda v: st.lists(v, max_size=3)|st.lists(v, max_size=3).map(tuple)|st.dictionaries(names, v, max_size=3), max_leaves=10)

def typed(v):
    "A value with its types, also inside, so that (1,) is not [1] and 1 is not True"
    if isinstance(v, (list, tuple)): return type(v),[typed(e) for e in v]
    if isinstance(v, dict): return dict,[(typed(k), typed(e)) for k,e in v.items()]
    return type(v),repr(v)

@settings(few, max_examples=200)
@given(values)
@example({'loss': [0.1, math.inf, -0.0], 'ids': (1, (2,))})
def test_values_survive(value):
    text = json.dumps(packed(value), allow_nan=False)
    text.encode('ascii')
    assert typed(unpacked(json.loads(text))) == typed(value)

@few
@given(st.lists(st.floats(width=32), max_size=5), st.sampled_from(['float64', 'float32', 'int64', 'bool']))
def test_arrays_survive(values, dtype):
    a = np.array(values if dtype.startswith('float') else [v > 0 for v in values], dtype=dtype)
    back = unpacked(json.loads(json.dumps(packed(dict(a=a)), allow_nan=False)))['a']
    assert back.dtype == a.dtype and np.array_equal(back, a, equal_nan=dtype.startswith('float'))

@pytest.mark.parametrize('shape', [(), (1,), (0,), (0, 3), (3, 0), (2, 3), (1, 2, 0)], ids=str)
@pytest.mark.parametrize('dtype', ['float16', 'float32', '>f8', 'uint8', 'bool'])
def test_arrays_of_any_shape_survive(shape, dtype):
    a = np.arange(math.prod(shape)).reshape(shape).astype(dtype)
    np.testing.assert_array_equal(unpacked(json.loads(json.dumps(packed(a)))), a, strict=True)

def test_a_history_that_diverged_survives(tmp_path):
    h = History(dict(step=[0, 10], val_loss=[math.inf, math.nan], each=[np.array([1., math.nan]), np.array([-math.inf, 2.])]), dict(lr=1e-3, seeds=(1, 2)), 'diverged', 1.5)
    back = load(save(tiny(), tmp_path/'a.safetensors', h, worst=math.nan)).history
    assert back['val_loss'][0] == math.inf and math.isnan(back['val_loss'][1]) and np.array_equal(back['each'], h['each'], equal_nan=True)
    assert (back.settings, back.status, back.seconds, len(back)) == (h.settings, 'diverged', 1.5, 2)
    assert math.isnan(read_checkpoint(tmp_path/'a.safetensors')[0]['notes']['worst'])
    json.loads(described((tmp_path/'a.safetensors').read_bytes()), parse_constant=lambda c: pytest.fail(f"{c} is no JSON"))
    assert len(load(save(tiny(), tmp_path/'b.safetensors', History())).history) == 0

def nested(n, inside): return inside(nested(n - 1, inside)) if n else 1

@pytest.mark.parametrize('inside, most', [(lambda v: [v], 199), (lambda v: (v,), 99), (lambda v: {'a': v}, 199)], ids=range(3))
def test_depth_has_one_limit_for_both_ways(tmp_path, inside, most):
    path = tmp_path/'a.safetensors'
    assert load(save(tiny(), path, a=nested(most, inside))).notes['a'] == nested(most, inside)
    for n in (most + 1, 400):
        with pytest.raises(ValueError, match='notes: expected at most 200 levels'): save(tiny(), path, a=nested(n, inside))

def test_deeper_texts_are_refused(tmp_path):
    good = content(tmp_path)
    for text in ('['*203 + ']'*203, '{"a":'*203 + '1' + '}'*203): refused(tmp_path/'bad.safetensors', with_text(good, json.dumps(json.loads(described(good)) | dict(notes=json.loads(text)))), '200 levels')

@pytest.mark.parametrize('value', [object(), {1, 2}, b'bytes', 1j, torch.ones(2), np.array(['a', None])], ids=lambda v: type(v).__name__)
def test_notes_that_json_cannot_say_are_refused(tmp_path, value):
    with pytest.raises(ValueError, match='notes: expected numbers'): save(tiny(), tmp_path/'a.safetensors', deep=[dict(x=value)])
    assert not list(tmp_path.iterdir())

@pytest.mark.parametrize('value', [{3: None}, {'!float': 'nan'}, {'!': 1}, {None: 1}], ids=repr)
def test_keys_that_json_cannot_hold_are_refused(tmp_path, value):
    with pytest.raises(ValueError, match="notes: expected texts without a leading '!' as keys, got"): save(tiny(), tmp_path/'a.safetensors', deep=[value])
    assert not list(tmp_path.iterdir())

def test_the_same_model_gives_the_same_bytes(tmp_path):
    model = tiny()
    assert content(tmp_path, model, task='add', seed=0) == content(tmp_path, model, task='add', seed=0)

# Whole or not at all

def test_a_failing_write_leaves_the_folder_as_it_was(tmp_path, monkeypatch):
    path = save(tiny(), tmp_path/'a.safetensors')
    before = path.read_bytes()
    def full(*args): raise OSError(28, 'No space left on device')
    for where,what in ((os, 'fsync'), (os, 'replace'), (safetensors.torch, 'save')):
        with monkeypatch.context() as m:
            m.setattr(where, what, full)
            with pytest.raises(OSError, match='No space'): save(tiny(8), path)
        assert [p.name for p in tmp_path.iterdir()] == ['a.safetensors'] and path.read_bytes() == before
    assert save(tiny(8), str(path)).read_bytes() != before

def test_bad_arguments_are_refused(tmp_path):
    for model in ([tiny()], None, lambda x: x):
        with pytest.raises(ValueError, match='model: expected a module, got'): save(model, tmp_path/'a.safetensors')
    for path in (tmp_path, tmp_path/'no'/'a.safetensors'):
        with pytest.raises(ValueError, match='path: expected a file in a folder that exists'): save(tiny(), path)
    path = save(tiny(), tmp_path/'a.safetensors')
    with pytest.raises(ValueError, match='model: expected a module'): load(path, 'ebt')
    with pytest.raises(ValueError, match='device: expected'): load(path, device='gpu')
    with pytest.raises(ValueError, match='got a folder'): load(tmp_path)
    with pytest.raises(FileNotFoundError, match='nothing.safetensors'): load(tmp_path/'nothing.safetensors')
    class Odd(nn.Linear):
        def get_extra_state(self): return 'not a tensor'
    before,holder = path.read_bytes(),nn.Module()
    holder.register_buffer('held', torch.eye(2).to_sparse())
    odd = {'got str as _extra_state': Odd(1, 1), 'got torch.sparse_coo as held': holder, 'got torch.strided as weight': nn.Linear(1, 1, device='meta'), 'got .* as weight': nn.LazyLinear(3)}
    for match,model in odd.items():
        with pytest.raises(ValueError, match=f'model: expected a state of dense tensors that have values, {match}'): save(model, path)
    with pytest.raises(ValueError, match='model: expected number types of safetensors, got torch.complex128'): save(nn.Linear(1, 1, dtype=torch.complex128), path)
    for history in ('add', dict(step=[0]), 3):
        with pytest.raises(ValueError, match='history: expected a History .* got'): save(tiny(), path, history)
    assert path.read_bytes() == before

@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float64, torch.float8_e4m3fn], ids=str)
def test_precisions(tmp_path, dtype):
    model = nn.Linear(2, 2).to(dtype)
    back = load(save(model, tmp_path/'a.safetensors'), nn.Linear(2, 2))
    assert all(a.dtype == dtype and torch.equal(a.detach().view(torch.uint8), b.detach().view(torch.uint8)) for a,b in zip(back.parameters(), model.parameters()))

def test_a_model_is_filled_whole_or_not_at_all(tmp_path, monkeypatch):
    path,mine = save(EBT(EnergyFunction(4, 2, 4, seed=1), 2), tmp_path/'a.safetensors'),tiny()
    before,to,calls = state(mine),torch.Tensor.to,[]
    def full(self, *args, **kwargs):
        calls.append(1)
        if len(calls) == 3: raise MemoryError('no room')
        return to(self, *args, **kwargs)
    monkeypatch.setattr(torch.Tensor, 'to', full)
    with pytest.raises(MemoryError, match='no room'): load(path, mine)
    assert same(state(mine), before) and not hasattr(mine, 'history')

def test_loading_leaves_the_random_state_alone(tmp_path):
    path,before = save(tiny(), tmp_path/'a.safetensors'),torch.get_rng_state()
    load(path)
    assert torch.equal(torch.get_rng_state(), before) and torch.get_default_device().type == 'cpu'

def test_no_pickle(tmp_path, monkeypatch):
    model = train_energy_model(*vectors(), latent_dim=4, **quiet)
    def never(*args, **kwargs): pytest.fail("pickle was used")
    for where,what in ((pickle, 'load'), (pickle, 'loads'), (pickle, 'Unpickler'), (pickle, 'dump'), (pickle, 'dumps'), (pickle, 'Pickler'), (torch, 'load'), (torch, 'save')):
        monkeypatch.setattr(where, what, never)
    assert same(state(load(save(model, tmp_path/'a.safetensors'))), state(model))
    assert not {'pickle', 'dill', 'joblib'} & set(vars(checkpoints))

# Faults

def test_another_model_is_left_alone(tmp_path):
    good = content(tmp_path, EBT(Valley(), 2))
    w = safetensors.torch.load(good)
    def file(**weights): return safetensors.torch.save({k: t for k,t in (w | weights).items() if t is not None}, {'ebt_toy': described(good)})
    name = 'energy.w'
    faults = {"got missing 'energy.w'": file(**{name: None}), "got unexpected 'more'": file(more=torch.ones(1)),
              r'real numbers of shape \(2,\), got real ones of shape \(3,\)': file(**{name: torch.ones(3)}), 'got whole ones': file(**{name: torch.ones(2, dtype=torch.long)}),
              'got complex ones': file(**{name: torch.ones(2, dtype=torch.cfloat)}), 'got a safetensors file without': safetensors.torch.save(w), 'a whole safetensors file': good[:-1]}
    for match,data in faults.items():
        mine = EBT(Valley(0.), 2).train()
        before = state(mine)
        refused(tmp_path/'bad.safetensors', data, match, model=mine)
        assert same(state(mine), before) and not hasattr(mine, 'history') and not hasattr(mine, 'notes') and mine.training
    for mine,match in ((EBT(Valley(0.), 2, 3), 'n_optimization_steps 10, got 3'), (EBT(nn.Linear(2, 2), 2), "energy.kind 'Valley', got 'Linear'"),
                       (FeedForward(4, 2, 4), "model.kind 'EBT', got 'FeedForward'"), (EBT(Valley(0.), 2, encoder=reader(0)), 'model.encoder None, got')):
        before = state(mine)
        refused(tmp_path/'bad.safetensors', good, match, model=mine)
        assert same(state(mine), before)

@pytest.mark.parametrize('change, match', [
    (dict(format=2), 'expected format 1, got 2, written by a newer ebt_toy'), (dict(format=10**9, model='?', notes=0), 'written by a newer'),
    (dict(format=0), 'makes no sense'), (dict(format='1'), 'makes no sense'), (dict(format=None), 'makes no sense'), (dict(history=[]), 'makes no sense'), (dict(history={'x': 1}), 'makes no sense'),
    (dict(history=dict(columns=dict(step=3))), 'makes no sense'), (dict(notes=3), 'makes no sense'), (dict(notes={'!float': 'x'}), 'makes no sense'),
    (dict(notes={'!array': ['O', [1]]}), 'makes no sense'), (dict(notes={'!dict': [[[], 1]]}), 'makes no sense'), (dict(notes={'!float': 'nan', 'a': 1}), 'makes no sense'), (dict(model=None), 'description of a model'), (dict(model=[]), 'description of a model'),
    (dict(model={}), 'description of a model'), (dict(model=dict(kind='Other')), "cannot build 'Other'"), (dict(model=dict(kind=[], config={})), 'description of a model'),
    (dict(model=dict(kind='EBT', config={})), 'description of a model'), (dict(model=dict(kind='EnergyFunction', config=dict(input_dim=4, output_dim=2, latent_dim=4))), "missing 'net.0"),
    (dict(model=dict(kind='EnergyFunction', config=dict(input_dim=4, output_dim=2, latent_dim=10**12))), 'expected the'), (dict(model=dict(kind='EnergyFunction', config=dict(input_dim=10**40, output_dim=2))), 'expected the'),
    (dict(model=dict(kind='FeedForward', config=dict(input_dim=4, output_dim=2, latent_dim=10**7), encoder=None)), "missing 'net.0"),
    (dict(model=dict(kind='TokenEncoder', config=dict(n_layers=10**9))), 'n_layers: expected at most'), (dict(model=dict(kind='EnergyFunction', config=dict(input_dim=4, output_dim=2, surprise=1))), 'surprise')], ids=repr)
def test_a_bad_description(tmp_path, change, match):
    good = content(tmp_path)
    refused(tmp_path/'bad.safetensors', with_text(good, json.dumps(json.loads(described(good)) | change)), match)

@pytest.mark.parametrize('text', ['', '3', 'null', '[]', '{}', '"x"', '{"format": 1}', '[' * 100_000, '{"a":' * 50_000, '{"format": ' + '9'*5000 + '}', '{"format": NaN}', '\x00'], ids=lambda t: t[:12])
def test_a_text_that_is_no_description(tmp_path, text): refused(tmp_path/'bad.safetensors', with_text(content(tmp_path), text), 'makes no sense')

@settings(few, max_examples=300)
@given(st.binary(max_size=300))
@example(b'')
@example(b'\xff'*8)
@example((2**63).to_bytes(8, 'little') + b'{}')
@example((2**40).to_bytes(8, 'little') + b'{}')
@example((2).to_bytes(8, 'little') + b'{}')
@example((2).to_bytes(8, 'little') + b'[]')
@example((4).to_bytes(8, 'little') + b'null')
@example((22).to_bytes(8, 'little') + b'{"__metadata__": null}')
@example((19).to_bytes(8, 'little') + b'{"__metadata__": 3}')
def test_random_bytes(tmp_path, data): refused(tmp_path/'bad.safetensors', data)

@few
@given(st.floats(0, 1, exclude_max=True))
def test_a_file_cut_short(tmp_path, where):
    good = content(tmp_path)
    refused(tmp_path/'bad.safetensors', good[:int(where*len(good))], 'a whole safetensors file')
    refused(tmp_path/'bad.safetensors', good + b'x', 'a whole safetensors file')

@settings(few, max_examples=250)
@given(st.integers(0, 10**6), st.integers(0, 255), st.sampled_from(['replace', 'insert', 'cut']), st.booleans())
def test_a_changed_byte_is_refused_or_gives_a_model(tmp_path, at, byte, change, in_text):
    good = content(tmp_path, seed=1)
    old = described(good).encode() if in_text else good
    at %= len(old) if in_text else 8 + int.from_bytes(good[:8], 'little')
    new = old[:at] + (b'' if change == 'cut' else bytes([byte]) + old[at + (change == 'replace'):])
    if change == 'cut': new += old[at + 1:]
    if in_text:
        try: new = with_text(good, new.decode())
        except UnicodeDecodeError: return
    path = tmp_path/'bad.safetensors'
    path.write_bytes(new)
    try: model = load(path)
    except ValueError as e: assert str(path) in str(e) and '\n' not in str(e)
    else: assert isinstance(model, EBT) and model.energy.net[0].weight.shape == (4, 6)

@pytest.mark.parametrize('name', ['a\nb', 'a\u2028b', '\r'], ids=repr)
def test_a_message_is_one_line_whatever_the_file_says(tmp_path, name):
    good = content(tmp_path)
    refused(tmp_path/'bad.safetensors', safetensors.torch.save(safetensors.torch.load(good) | {name: torch.ones(1)}, {'ebt_toy': described(good)}), 'got unexpected')
    for change in (dict(format=9, library=name), dict(model=dict(kind=name)), dict(history=name), dict(notes=name)):
        message = with_text(good, json.dumps(json.loads(described(good)) | change))
        refused(tmp_path/'bad.safetensors', message)

def test_a_bad_history(tmp_path):
    good,whole = content(tmp_path),dict(columns=dict(step=[0], val_loss=[1.]), settings={}, status='finished', seconds=1.)
    for change in (dict(columns=dict(step=[0], val_loss=[1., 2.])), dict(columns=dict(step='a')), dict(columns=dict(val_loss=[1.])), dict(columns=3), dict(settings=3), dict(more=1)):
        refused(tmp_path/'bad.safetensors', with_text(good, json.dumps(json.loads(described(good)) | dict(history=whole | change))), 'makes no sense')

# What a file may cost

@pytest.mark.parametrize('make, what', [(os.mkfifo, 'a pipe'), (os.mkdir, 'a folder'), (lambda p: os.symlink('/dev/zero', p), 'a device'), (lambda p: os.symlink('/dev/tty', p), 'a device'),
                                        (lambda p: socket.socket(socket.AF_UNIX).bind(str(p)), 'a socket')], ids=lambda v: str(v)[:10])
def test_what_is_no_file_is_not_opened(tmp_path, monkeypatch, make, what):
    monkeypatch.chdir(tmp_path)                                   # a socket's name is short
    make(Path('other'))
    for read in (load, read_checkpoint):
        with bounded(), pytest.raises(ValueError, match=f'^other: expected a file, got {what}$'): read('other')

def test_a_link_to_a_file_is_a_file(tmp_path):
    (tmp_path/'link').symlink_to(save(tiny(), tmp_path/'a.safetensors'))
    assert same(state(load(tmp_path/'link')), state(tiny()))

def raw(header, data=b'', length=None):
    "A file from the text of its header"
    header = header.encode()
    return (len(header) if length is None else length).to_bytes(8, 'little') + header + data

def test_a_header_is_not_longer_than_its_file(tmp_path):
    good = content(tmp_path)
    for n in (2**63, 2**40, len(good), len(good) - 7):
        with bounded(): refused(tmp_path/'bad.safetensors', n.to_bytes(8, 'little') + good[8:], f'got {len(good):,} bytes .*a header of {n:,} bytes')

def test_no_more_is_read_than_the_tensors_fill(tmp_path):
    path = tmp_path/'bad.safetensors'
    path.write_bytes(content(tmp_path))
    os.truncate(path, 10**11)                                     # takes no room on the disk
    with bounded(), pytest.raises(ValueError, match='got 100,000,000,000 bytes that are not one'): load(path)

def test_nothing_is_read_for_a_model_of_another_size(tmp_path):
    path,w = tmp_path/'bad.safetensors',state(EnergyFunction(4, 2, 4)) | {'net.0.weight': torch.ones(10**11//4, dtype=torch.float32, device='meta')}
    text,end = json.dumps(json.loads(described(content(tmp_path, EnergyFunction(4, 2, 4))))),0
    header = {'__metadata__': {'ebt_toy': text}}
    for k,t in w.items(): header[k],end = dict(dtype='F32', shape=list(t.shape), data_offsets=[end, end + t.nbytes]),end + t.nbytes
    path.write_bytes(raw(json.dumps(header)))
    os.truncate(path, path.stat().st_size + end)
    with bounded(), pytest.raises(ValueError, match=r'net.0.weight: expected real numbers of shape \(4, 6\), got real ones of shape \(25000000000,\)'): load(path)

@pytest.mark.parametrize('layers, match', [(10**9, 'n_layers: expected at most 1666'), (20_000, 'n_layers: expected at most 1666'), (1666, 'expected the weights of this model .19996., got missing')])
@pytest.mark.parametrize('names', [lambda n: [f'w{i}' for i in range(n)], lambda n: [f'blocks.{i}.norms.0.weight' for i in range(n)]], ids=['any', 'blocks'])
def test_layers_are_not_built_for_names_alone(tmp_path, names, layers, match):
    config = dict(dim=2, n_heads=1, n_layers=layers)
    text = json.dumps(dict(format=1, library='0', model=dict(kind='TokenEncoder', config=config), notes={}, history=None))
    empty = dict(dtype='F32', shape=[0], data_offsets=[0, 0])
    with bounded(): refused(tmp_path/'bad.safetensors', raw(json.dumps({'__metadata__': {'ebt_toy': text}} | {k: empty for k in names(20_000)})), match)

def test_many_layers_are_loaded_in_time(tmp_path):
    times = []
    for n in (25, 200):
        path = save(TokenEncoder(2, n, 1), tmp_path/'a.safetensors')
        with bounded() as cost: assert len(load(path).blocks) == n
        times.append(cost.seconds)
    assert times[1] < 24*times[0]                                 # eight times as many

@pytest.mark.parametrize('part', ['{"!dict": [' + ','.join(f'[{k*(2**61 - 1)}, 0]' for k in range(20_000)) + ']}', '{"!dict": [[1, 2], [1, 3], [1.0, 2]]}', '[' + '[],'*2_000_000 + '0]', '{"a": 1, "a": 2}',
    '[' + '{"a":0},'*900_000 + '0]', '"' + 'x'*10**7 + '"', '{"!array": ["<f8", [1000000000000], [0]]}', '{"!array": ["f8,' + 'f8,'*100_000 + 'f8", [1], [0]]}', '{"!array": [["a", "f8"], [1], [0]]}',
    '{"!array": ["<f8", [1], ["1"]]}', '{"!tuple": "abc"}', '{"!float": "1"}', '{"!float": true}', 'NaN', '-Infinity', '['*10**6, '9'*5000], ids=lambda t: t[:20])
def test_notes_that_save_does_not_write(tmp_path, part):
    good = content(tmp_path)
    text = json.dumps(json.loads(described(good)) | dict(notes=dict(a='@@'))).replace('"@@"', part)
    with bounded(): refused(tmp_path/'bad.safetensors', with_text(good, text))

def test_the_largest_notes_stay_within_bounds(tmp_path):
    "What costs most of all that is accepted"
    for value in ([{}]*(2**17 - 500), list(range(10**6)), 'x'*(2**23 - 5000)):
        path = save(tiny(), tmp_path/'a.safetensors', a=value)
        with bounded(): assert load(path).notes['a'] == value

@pytest.mark.parametrize('value', [[[]]*2**17, 'x'*2**23], ids=['parts', 'bytes'])
def test_what_could_not_be_read_back_is_not_written(tmp_path, value):
    with pytest.raises(ValueError, match='^notes, history: expected values that can be read back'): save(tiny(), tmp_path/'a.safetensors', a=value)
    for columns in (dict(step=[0, 1], val_loss=[0.]), dict(step=[0], val_loss=['a']), dict(step=[0], val_loss=[None])):
        with pytest.raises(ValueError, match='history: expected'): save(tiny(), tmp_path/'a.safetensors', History(columns))
    assert not list(tmp_path.iterdir())

def test_messages_are_short_and_can_be_printed(tmp_path):
    good,long = content(tmp_path),'\ud800\x1b' + 'x'*10**5
    model = json.loads(described(good))['model']
    changes = [dict(model=dict(kind=long)), dict(model=model | dict(config=model['config'] | {long: 1})), dict(format=2, library=long), dict(notes={'!dict': [[long, 1], [{}, 2]]})]
    for data in [with_text(good, json.dumps(json.loads(described(good)) | c)) for c in changes] + [safetensors.torch.save(state(tiny()) | {long[1:]: torch.ones(1)}, {'ebt_toy': described(good)})]:
        for given in (None, tiny()):
            (tmp_path/'bad.safetensors').write_bytes(data)
            with pytest.raises(ValueError) as e: load(tmp_path/'bad.safetensors', given)
            text = str(e.value).removeprefix(str(tmp_path))
            assert text.isprintable() and len(text) < 500 and text.encode()

@pytest.mark.parametrize('change, match', [(lambda m: m['config'].update(output_dim=3), 'output_dim: expected 2, as in energy.output_dim, got 3'), (lambda m: m['energy']['config'].update(input_dim=5), 'input_dim: expected 8, as in encoder.dim, got 5'),
    (lambda m: m.update(energy=None), 'energy: expected EnergyFunction, got None'), (lambda m: m.update(encoder=m['energy']), 'encoder: expected TokenEncoder, got EnergyFunction'),
    (lambda m: m['config'].update(step_size=math.inf), 'step_size: expected'), (lambda m: m['config'].update(n_optimization_steps=3.), 'n_optimization_steps: expected'),
    (lambda m: m['encoder']['config'].update(n_layers=1.), 'n_layers: expected'), (lambda m: m['encoder']['config'].update(opening={'!tuple': ['a']}), 'opening: expected')], ids=range(8))
def test_sizes_of_a_description_fit_together(tmp_path, change, match):
    good = content(tmp_path, EBT(EnergyFunction(8, 2, 4), 2, encoder=reader(0)))
    about = json.loads(described(good))
    change(about['model'])
    refused(tmp_path/'bad.safetensors', with_text(good, json.dumps(about).replace('Infinity', '1e999')), match)

# Damaged files, thousands of them with EBT_FUZZ=1

def bases():
    "Whole files of every kind: header, description and weights"
    history = History(dict(step=[0, 10], val_loss=[math.inf, 0.5], each=[np.array([1., math.nan]), np.array([2., 3.])]), dict(lr=1e-3, seeds=(1, 2)), 'diverged', 1.5)
    models = [tiny(), EBT(Bilinear(4, 2, 4), 2, learn_step=True), FeedForward(4, 2, 4), EBT(EnergyFunction(8, 2, 4), 2, encoder=reader(0)), FeedForward(8, 2, 4, encoder=reader(1)), reader(2)]
    notes = dict(task='add', ids=(1, (2,)), odd=dict(b=None), a=np.arange(3))
    text = lambda m: json.dumps(dict(format=1, library='0', model=packed(checkpoints.describe(m)), notes=packed(notes), history=packed(vars(history))))
    return [(checkpoints._file_bytes(m, text(m))) for m in models]

PARTS = ['NaN', '-Infinity', '1e999', '-1', '0', '-0.0', '0.5', '3.0', '2', '20000', '1000000000000', str(2**63), '9'*4000, '9'*5000, 'true', 'null', '""', '"\\ud800"', '"a\\nb"', '"!array"', '[]', '{}', '[0]', '[-1]',
         '{"!float": "nan"}', '{"!float": "1"}', '{"!tuple": []}', '{"!tuple": "ab"}', '{"!array": ["<f8", [1000000000000], [0]]}', '{"!array": ["<f8", [0, 1000000000000], []]}', '{"!array": ["O", [1], [{}]]}',
         '{"!array": ["<f8", [2], [1, 2]]}', '{"!dict": [[1, 2], [1, 3]]}', '{"a": 1, "a": 2}', '{"!dict": [' + ','.join(f'[{k*(2**61 - 1)}, 0]' for k in range(5000)) + ']}',
         *('['*n + ']'*n for n in (50, 900, 3000, 100_000)), '{"a":'*2000 + '0' + '}'*2000, '[' + '0,'*300_000 + '0]', '[' + '[],'*100_000 + '0]', '[' + '{},'*300_000 + '0]', '"' + 'x'*2_000_000 + '"', '[' + '1e9,'*200_000 + '0]']

def places(value, found):
    "Every list and dictionary in a value, with a place in it"
    for k,v in value.items() if isinstance(value, dict) else enumerate(value):
        found.append((value, k))
        if isinstance(v, (dict, list)): places(v, found)
    return found

def worse(value, r):
    "JSON with one thing changed for the worse"
    value = json.loads(json.dumps(value))
    holder,k = r.choice(places(value, []))
    what = r.choice(['part', 'part', 'part', 'cut', 'twice', 'swap', 'rename'])
    if what == 'cut': del holder[k]
    elif what == 'swap':
        other,j = r.choice(places(value, []))
        if isinstance(holder[k], (dict, list)): holder[k] = 3
        else: other[j] = holder[k]
    elif what == 'rename' and isinstance(holder, dict): holder['seed'] = holder.pop(k)
    elif what == 'twice' and isinstance(holder, dict): holder['@@'] = holder[k]
    else: holder[k] = '@@'
    return json.dumps(value).replace('"@@":', json.dumps(k) + ':' if isinstance(k, str) else '"a":').replace('"@@"', r.choice(PARTS))

def damaged(data, r):
    "A file with a fault"
    n = 8 + int.from_bytes(data[:8], 'little')
    head,tail,what = header(data),data[n:],r.choice(['text', 'text', 'text', 'header', 'header', 'bytes', 'bytes', 'head bytes', 'text bytes', 'length', 'many'])
    if what == 'length': return r.choice([0, 1, n - 9, n, len(data), 2**31, 2**63, r.randrange(n)]).to_bytes(8, 'little') + data[8:]
    if what == 'header': return raw(worse(head, r), tail)
    if what == 'many':
        head |= {f'{r.choice(["", "encoder."])}blocks.{i}.{r.choice(["out.bias", "x"])}': dict(dtype='F32', shape=[0], data_offsets=[len(tail)]*2) for i in range(r.randrange(3000))}
        return raw(json.dumps(head).replace('n_layers\\": 1', f'n_layers\\": {r.randrange(3000)}'), tail)
    if what == 'text': return raw(json.dumps(head | {'__metadata__': {'ebt_toy': worse(json.loads(described(data)), r)}}), tail)
    target = bytearray(described(data).encode() if what == 'text bytes' else data)
    for _ in range(r.randint(1, 3)):
        at = r.randrange(n if what == 'head bytes' else len(target) or 1)
        size = r.choice([1, 1, 1, 8, 100])
        target[at:at + r.choice([0, size])] = r.choice([b'', bytes(size), r.randbytes(size), bytes(target[at:at + size])*2])
    return raw(json.dumps(head | {'__metadata__': {'ebt_toy': target.decode('latin-1')}}), tail) if what == 'text bytes' else bytes(target)

BASES = bases()

@settings(max_examples=2500 if FULL else 120, deadline=None, database=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck))
@given(st.sampled_from(BASES), st.integers(0, 2**64))
def test_a_damaged_file_is_refused_or_gives_a_model(tmp_path, good, seed):
    path = tmp_path/'bad.safetensors'
    path.write_bytes(damaged(good, random.Random(seed)))
    with bounded():
        try: model = load(path)
        except ValueError as e:
            text = str(e).removeprefix(str(path))
            assert type(e) is ValueError and text != str(e) and text.isprintable() and len(text) < 600
            return
    bits = lambda weights: {k: (t.dtype, t.shape, t.numpy().tobytes()) for k,t in weights.items()}     # NaN is not equal to itself
    weights = bits(safetensors.torch.load(path.read_bytes()))
    assert bits(state(model)) == weights and math.isfinite(len(model.history or ()))
    again = load(save(model, path, old=model.notes))              # what was read can be kept
    assert bits(state(again)) == weights and typed(packed(again.notes['old'])) == typed(packed(model.notes))

KILLED = """
import os, random, signal, sys, time
from pathlib import Path
from ebt_toy import EBT, EnergyFunction, load, save
path,r = Path(sys.argv[1]),random.Random(0)
models = [EBT(EnergyFunction(4, 2, width), 2) for width in (64, 200)]
whole = {save(m, path, width=i).read_bytes() for i,m in enumerate(models)}
during = seen = 0
for _ in range(int(sys.argv[2])):
    before = set(os.listdir(path.parent))
    pid = os.fork()
    if not pid:
        while True:
            for i,m in enumerate(models): save(m, path, width=i)
    time.sleep(0.02 + r.random()/20)
    os.kill(pid, signal.SIGKILL)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
    assert path.read_bytes() in whole and load(path).notes['width'] in (0, 1)
    during += len(set(os.listdir(path.parent)) - before) > 0
print(during)
"""

def test_killed_while_saving(tmp_path):
    done = subprocess.run([sys.executable, '-c', KILLED, str(tmp_path/'a.safetensors'), '30'], capture_output=True, text=True, env=os.environ | dict(OMP_NUM_THREADS='1'))
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 3                                   # so many kills hit a file half written

# Snapshots

def test_snapshots_are_the_model_of_that_moment(tmp_path):
    data,options = vectors(),dict(latent_dim=4, report=None, progress=False)
    train_energy_model(*data, **options, num_steps=9, eval_every=3, callback=snapshots(tmp_path/'new'/'run', (3, 9), 's{step}', task='add'))
    assert sorted(p.name for p in (tmp_path/'new'/'run').iterdir()) == ['s3.safetensors', 's9.safetensors']
    back,other = load(tmp_path/'new'/'run'/'s3.safetensors'),train_energy_model(*data, **options, num_steps=3)
    assert same(state(back), state(other)) and back.history['step'].tolist() == [0, 3] and back.notes == dict(task='add')

def test_snapshots_of_seeds(tmp_path):
    data,options = vectors(),dict(latent_dim=4, num_steps=4, eval_every=2, report=None, progress=False)
    models = train_feedforward(*data, **options, seeds=[5, 6], callback=snapshots(tmp_path, [2, 4], '{seed}_{step}'))
    assert sorted(p.stem for p in tmp_path.iterdir()) == ['5_2', '5_4', '6_2', '6_4']
    for s,m in zip((5, 6), models):
        back = load(tmp_path/f'{s}_4.safetensors')
        assert same(state(back), state(m)) and back.history.columns == m.history.columns and back.history.settings['seed'] == s
    with pytest.raises(ValueError, match='name: expected {seed} in it'): train_feedforward(*data, **options, seeds=[5, 6], callback=snapshots(tmp_path, [0]))

@pytest.mark.parametrize('steps', [[1], [2, 3], [6], [-2], [0.5]])
def test_steps_that_would_be_missed(tmp_path, steps):
    with pytest.raises(ValueError, match=r'steps: expected 0, multiples of eval_every=2, or the last update 5; got'):
        train_energy_model(*vectors(), latent_dim=4, num_steps=5, eval_every=2, report=None, progress=False, callback=snapshots(tmp_path, steps))
    assert not list(tmp_path.iterdir())

def test_snapshots_agree_with_their_histories(tmp_path):
    data = vectors()
    model = train_energy_model(*data, latent_dim=4, num_steps=20, eval_every=10, report=None, progress=False, callback=snapshots(tmp_path, [0, 10, 20], task='add'))
    saved = [load(p) for p in sorted(tmp_path.iterdir())]
    assert [int(m.history['step'][-1]) for m in saved] == [0, 10, 20] and same(state(saved[-1]), state(model))
    for m in saved: assert score(m, data.test_dataset, scoring_for(data.test_dataset.tensors[1]).loss) == pytest.approx(m.history['test_loss'][-1], rel=1e-5)

# What is shipped

DIVIDE = 0,100,300,1000,3000
shipped = [(t, m, s) for t in ('add', 'multiply', 'divide') for m in ('ebt', 'ffn') for s in (DIVIDE if t == 'divide' else STEPS)]
folder = Path(ebt_toy.__file__).parent/'weights'

def test_what_there_is():
    assert sorted(p.name for p in folder.iterdir()) == sorted(f'{t}_{m}_{s:06d}.safetensors' for t,m,s in shipped)
    assert sum(p.stat().st_size for p in folder.iterdir()) < 1.5e6
    assert all(pretrained_steps(t, m) == list(DIVIDE if t == 'divide' else STEPS) for t,m,_ in shipped)
    for args,match in ((('ad',), "did you mean 'add'"), (('listops',), 'known: add, divide, multiply'), (('add', 'mlp'), 'known: ebt, ffn'), (('add', 'ebt', 5), 'step: expected one of 0, 30, .* got 5')):
        with pytest.raises(ValueError, match=match): pretrained(*args)

def test_what_the_notebook_claims_of_the_shipped_models():
    flops = {(t, m): {pretrained(t, m, s).history.settings['update_flops'] for s in STEPS} for t in ('add', 'multiply') for m in ('ebt', 'ffn')}
    assert flops['add', 'ebt'] == flops['multiply', 'ebt'] and flops['add', 'ffn'] == flops['multiply', 'ffn'] and all(len(f) == 1 for f in flops.values())
    for task in ('add', 'multiply'):
        data = create_synthetic_data(task, vec_size=2)
        simple = baselines(data)
        assert simple['least squares'] < 1e-6 if task == 'add' else simple['least squares'] == pytest.approx(simple['training mean'], abs=0.05)
        for model in ('ebt', 'ffn'):                                # both learned what they were trained on
            first,last = (score(pretrained(task, model, s), data.val_dataset, scoring_for(data.val_dataset.tensors[1]).metric) for s in (0, STEPS[-1]))
            assert last < first/10

def test_the_shipped_division_thinks():
    ebt,ffn,data = pretrained('divide'),pretrained('divide', 'ffn'),create_synthetic_data('divide', vec_size=2)
    def mse(y, dataset): return (y - dataset.tensors[1]).pow(2).mean().item()
    for d in (data.val_dataset, data.test_dataset): assert mse(predict(ebt, d.tensors[0]), d) < mse(predict(ffn, d.tensors[0]), d)
    assert mse(predict(ebt, data.val_dataset.tensors[0]), data.val_dataset) < 1e-4             # in distribution, ten steps
    ten,many = (mse(trace(ebt, data.test_dataset.tensors[0], n).guesses[-1], data.test_dataset) for n in (10, 200))
    assert ten > 0.05 and many < ten/1000
    assert 8*sum(p.numel() for p in ebt.parameters()) < sum(p.numel() for p in ffn.parameters())

@pytest.mark.parametrize('task, model, step', shipped)
def test_shipped_models_load_and_say_how_they_were_made(task, model, step):
    m = pretrained(task, model, step)
    last = pretrained_steps(task, model)[-1]
    assert type(m) is dict(ebt=EBT, ffn=FeedForward)[model] and m.history['step'][-1] == step and {'torch', 'device'} <= set(m.notes)
    assert {k: m.notes[k] for k in ('task', 'model_type', 'vec_size', 'size_train', 'seed')} == dict(task=task, model_type=model, vec_size=2, size_train=10_000, seed=0)
    assert m.notes['command'] == checkpoints._COMMAND.format('seed=0' + ", tasks=('divide',)"*(task == 'divide'))
    assert f'{last:,} updates' in m.notes['about'] and m.history.settings['num_steps'] == last
    data = create_synthetic_data(task, vec_size=2)
    for s,(x,y) in dict(val=data.val_dataset.tensors, test=data.test_dataset.tensors).items():
        assert (predict(m, x) - y).pow(2).mean().item() == pytest.approx(m.history[f'{s}_loss'][-1], rel=1e-3)
    assert m.history.status == ('finished' if step == last else 'running')
    assert step != last or same(state(m), state(pretrained(task, model)))

@pytest.mark.parametrize('tasks, steps, command', [(('add', 'multiply'), (0, 30), "tasks=('add', 'multiply'), steps=(0, 30))"), (('divide',), (0, 100), "tasks=('divide',), steps=(0, 100))")])
def test_their_code_makes_the_shipped_weights(tmp_path, tasks, steps, command):
    paths = make_pretrained(tmp_path, tasks=tasks, steps=steps)
    assert len(paths) == 4*len(tasks)
    for p in paths:
        mine,theirs = load(p),load(folder/p.name)
        for a,b in zip(mine.parameters(), theirs.parameters()): torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)   # another CPU rounds differently
        step = int(p.stem[-6:])
        assert step == 0 or not same(state(mine), state(load(folder/f'{p.stem[:-6]}000000.safetensors')))
        differ = {k for k in mine.notes|theirs.notes if mine.notes.get(k) != theirs.notes.get(k)}
        assert {'command', 'about'} <= differ <= {'command', 'about', 'torch', 'device'}                # the notes say what was asked for
        assert command in mine.notes['command'] and f'{steps[-1]} updates' in mine.notes['about']
    with pytest.raises(ValueError, match="unknown pretrained task 'divid'; did you mean 'divide'"): make_pretrained(tmp_path, tasks=('divid',))

def test_an_installed_package_brings_them(tmp_path):
    pytest.importorskip('setuptools')
    copy,installed = tmp_path/'copy',tmp_path/'installed'
    copy.mkdir()
    for name in ('settings.ini', 'setup.py', 'MANIFEST.in', 'README.md', 'LICENSE'): shutil.copy(root/name, copy)
    shutil.copytree(root/'ebt_toy', copy/'ebt_toy', ignore=shutil.ignore_patterns('__pycache__'))
    for args in (['build', '--build-lib', str(installed)], ['sdist']): subprocess.run([sys.executable, 'setup.py', '-q', *args], cwd=copy, check=True, capture_output=True)
    there = sorted(p.name for p in folder.iterdir())
    assert sorted(p.name for p in (installed/'ebt_toy'/'weights').iterdir()) == there
    with tarfile.open(next((copy/'dist').glob('*.tar.gz'))) as t: assert sorted(Path(n).name for n in t.getnames() if n.endswith('.safetensors')) == there
    code = "import ebt_toy; print(ebt_toy.__file__); print(len(ebt_toy.pretrained('multiply', 'ffn').history))"
    done = subprocess.run([sys.executable, '-c', code], cwd=tmp_path, env=os.environ | dict(PYTHONPATH=str(installed)), capture_output=True, text=True)
    assert done.stdout.splitlines() == [str(installed/'ebt_toy'/'__init__.py'), str(len(pretrained('multiply', 'ffn').history))]
