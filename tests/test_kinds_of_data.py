"Data that people bring: what its meaning is plain works, everything else is refused in one line that names the argument, before anything is trained."
import random
from functools import partial

import numpy as np
import pytest, torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import TensorDataset as TD

from ebt_toy import EBT, EnergyFunction, FeedForward, create_synthetic_data, fit, predict, pretrained, register_task, run_main, test_energy_model, trace, train_energy_model, train_feedforward
from ebt_toy.core import seeded
from ebt_toy.data import Scoring, accuracy, classification, regression

test_energy_model.__test__ = False   # a function of the library, not a test
quiet = dict(num_steps=2, report=None, progress=False)
each_training = pytest.mark.parametrize('train', [train_energy_model, train_feedforward])

def numbers(n, *shape, seed=0, dtype=torch.float32): return torch.rand(n, *shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)
def triple(x=lambda n: numbers(n, 3), y=lambda n: numbers(n, 2, seed=1)): return [TD(x(n), y(n)) for n in (16, 8, 8)]
def linear(seed=0, d=2):
    with seeded(seed): return nn.Linear(3, d)

# Precision

@each_training
@pytest.mark.parametrize('dtype', [torch.float64, torch.float16, torch.bfloat16], ids=str)
def test_numbers_of_another_precision_are_converted_and_it_is_said(train, dtype):
    data,lines = triple(lambda n: numbers(n, 3, dtype=dtype), lambda n: numbers(n, 2, seed=1, dtype=dtype)),[]
    model = train(*data, 3, 2, **quiet | dict(report=lines.append))
    same = train(*(TD(*(t.float() for t in d.tensors)) for d in data), 3, 2, **quiet)
    assert model.history.columns == same.history.columns and next(model.parameters()).dtype == torch.float32
    assert f"x and y of the train set: converted from {str(dtype)[6:]} to float32, the precision of the model" in lines

def test_a_model_in_double_precision_takes_single_data():
    model,lines = linear().double(),[]
    assert fit(model, *triple(), **quiet | dict(report=lines.append)).status == 'finished' and 'converted from float32 to float64' in lines[0]

def test_numbers_that_do_not_fit():
    with pytest.raises(ValueError, match='train_dataset: expected numbers that torch.float32 can hold'): fit(linear(), *triple(lambda n: numbers(n, 3, dtype=torch.float64)*1e300), **quiet)

def test_predict_converts():
    model,x = pretrained('add'),numbers(5, 4, dtype=torch.float64)
    assert torch.equal(predict(model, x), predict(model, x.float())) and torch.equal(predict(model, x.numpy()), predict(model, x.float()))
    assert torch.equal(predict(model, torch.ones(3, 4, dtype=torch.long)), predict(model, torch.ones(3, 4)))

# Shapes

@pytest.mark.parametrize('x, message', [(numbers(3, 5), r"x: expected rows that the model can read, got torch.float32 of shape \(3, 5\)"), (numbers(4), r"got shape \(4,\); for one question x\[None\]"),
    (numbers(0, 4), r"n of at least 1, got shape \(0, 4\)"), (numbers(2, 4).to_sparse(), "dense"), (numbers(2, 4)*1j, "real"), ([[1., 2., 3., 4.]], "got list")])
def test_questions_that_cannot_be_read(x, message):
    with pytest.raises(ValueError, match=message): predict(pretrained('add'), x)

def test_one_question(): assert predict(pretrained('add'), numbers(4)[None]).shape == (1, 2)

@pytest.mark.parametrize('i, name', [(0, 'train'), (1, 'val'), (2, 'test')])
def test_empty_sets(i, name):
    data = triple()
    data[i] = TD(numbers(0, 3), numbers(0, 2))
    with pytest.raises(ValueError, match=f'{name}_dataset: expected one row at least, got an empty set'): fit(linear(), *data, **quiet)

@pytest.mark.parametrize('x, y, message', [
    (lambda n: numbers(n, 3), lambda n: numbers(n), r"train_dataset: expected y of shape \(n, output_dim\), got \(16,\); y\[:, None\] has one number per row"),
    (lambda n: numbers(n, 3), lambda n: torch.ones(n, 2, dtype=torch.long), r"train_dataset: expected labels of shape \(n,\), or floating-point y.*got torch.int64 of shape \(16, 2\)"),
    (lambda n: numbers(n), lambda n: numbers(n, 2), r"train_dataset: expected x of shape \(n, input_dim\), got \(16,\)"),
    (lambda n: numbers(n, 3)*1j, lambda n: numbers(n, 2), "train_dataset: expected dense real numbers in x, got complex ones"),
    (lambda n: numbers(n, 3).to_sparse(), lambda n: numbers(n, 2), "train_dataset: expected dense real numbers in x, got sparse ones"),
    (lambda n: numbers(n, 3)/0, lambda n: numbers(n, 2), "train_dataset: expected finite numbers, got NaN or infinity in x")])
def test_what_is_refused(x, y, message):
    with pytest.raises(ValueError, match=message): fit(linear(), *triple(x, y), **quiet)

# Labels and ids

@pytest.mark.parametrize('dtype', [torch.bool, torch.uint8, torch.int16, torch.int32], ids=str)
def test_labels_of_any_type(dtype):
    def labels(n): return torch.arange(n) % 2
    expected = train_feedforward(*triple(y=labels), 3, 2, **quiet).history.columns
    assert train_feedforward(*triple(y=lambda n: labels(n).to(dtype)), 3, 2, **quiet).history.columns == expected

@pytest.mark.parametrize('dtype', [torch.uint8, torch.int8, torch.int16, torch.int32], ids=str)
def test_ids_of_any_type(dtype):
    data = create_synthetic_data('listops', 40, 8, 8, vec_size=2)
    small = [TD(ds.tensors[0].to(dtype), ds.tensors[1]) for ds in data[:3]]
    class Reader(nn.Module):
        "A user's own, which embeds what it is given"
        def __init__(self): super().__init__(); self.e,self.o = nn.Embedding(18, 4),nn.Linear(4, 10)
        def forward(self, x): return self.o(self.e(x).mean(1))
    with seeded(0): a,b = Reader(),Reader()
    b.load_state_dict(a.state_dict())
    assert fit(a, *data[:3], **quiet).columns == fit(b, *small, **quiet).columns
    assert torch.equal(predict(a, small[2].tensors[0]), predict(a, data.test_dataset.tensors[0]))

def quick_task(labels, **options):
    def make(a, b, c, v, d):
        x = [torch.randn(n, 2) for n in (a, b, c)]
        return *(TD(t, labels(t)) for t in x), 2, 2
    return register_task('quick', make, **options)

def test_a_task_of_labels_needs_no_scoring():
    quick_task(lambda x: x[:, 0] > 0)
    r = run_main('quick', 2, 64, 8, 8, 'ffn', ffn_config=dict(num_steps=2), report=None, progress=False)
    assert 0 <= r['ffn']['test_accuracy'] <= 1 and r.scoring is classification
    assert run_main('add', 2, 64, 8, 8, 'ffn', ffn_config=dict(num_steps=2), report=None, progress=False).scoring is regression

@pytest.mark.parametrize('rows', [2, 64])
def test_scoring_for_numbers_on_labels_is_refused(rows):
    "Even where rows and classes are as many, so that the shapes would broadcast"
    quick_task(lambda x: (x[:, 0] > 0).long(), scoring=regression)
    with pytest.raises(ValueError, match='scoring: expected one for labels'): run_main('quick', 2, rows, rows, rows, 'ffn', ffn_config=dict(num_steps=2), report=None, progress=False)
    with pytest.raises(ValueError, match='scoring: expected a loss that is one number'): fit(linear(), *triple(), scoring=Scoring(lambda p,y: (p - y)**2, F.mse_loss, 'MSE', False), **quiet)
    with pytest.raises(ValueError, match=r'model: expected a prediction of shape \(n, 2\) or wider'): fit(linear(d=1), *triple(y=lambda n: torch.arange(n) % 2), **quiet)

def test_a_model_is_tested_by_the_scoring_it_was_trained_with():
    absolute = Scoring(F.l1_loss, F.l1_loss, 'MAE', False)
    model = train_energy_model(*triple(), 3, 2, scoring=absolute, **quiet)
    assert test_energy_model(model) == model.history['test_loss'][-1] != F.mse_loss(predict(model, model.test_dataset.tensors[0]), model.test_dataset.tensors[1]).item()

# Energies

class Detached(nn.Module):
    def __init__(self): super().__init__(); self.a = nn.Linear(3, 2)
    def forward(self, x, y): return (y - self.a(x)).detach().pow(2).sum(-1)

@pytest.mark.parametrize('options', [{}, dict(seeds=2), dict(compile=True)], ids=str)
@pytest.mark.parametrize('energy', [Detached, lambda: Rounded(), lambda: (lambda x,y: (y*0).sum(-1))], ids=['detached', 'rounded', 'constant'])
def test_energies_without_a_slope(energy, options):
    with pytest.raises(ValueError, match='model: expected (predictions that depend on its )?trainable weights'): train_energy_model(*triple(), 3, 2, energy=energy, **quiet, **options)

class Rounded(Detached):
    "Its slope in y is zero wherever it has one"
    def forward(self, x, y): return (y.round() - self.a(x)).pow(2).sum(-1)*0 + y.round().sum(-1) + self.a(x).sum(-1)

class Writing(nn.Module):
    def __init__(self): super().__init__(); self.net = EnergyFunction(3, 2, 8)
    def forward(self, x, y): return self.net(x.mul_(0.9), y)

def test_an_energy_that_writes_leaves_the_data_alone():
    data = triple()
    before = [t.clone() for d in data for t in d.tensors]
    model = train_energy_model(*data, 3, 2, energy=Writing, **quiet)
    predict(model, data[2].tensors[0]), trace(model, data[2].tensors[0]), test_energy_model(model)
    assert all(torch.equal(a, b) for a,b in zip(before, (t for d in data for t in d.tensors)))

def own(seed): return EnergyFunction(3, 2, 8, seed)

def test_a_given_energy_stays_as_it_was():
    mine = own(0)
    first,again = (train_energy_model(*triple(), 3, 2, energy=mine, **quiet) for _ in range(2))
    assert first.history.columns == again.history.columns and first.energy is not mine
    assert all(torch.equal(a, b) for a,b in zip(mine.parameters(), own(0).parameters()))

@pytest.mark.parametrize('energy', [own, lambda: EnergyFunction(3, 2, 8, torch.randint(1000, ()).item()), partial(EnergyFunction, 3, 2, 8)])
def test_each_seed_gets_an_energy_of_its_own(energy):
    models = train_energy_model(*triple(), 3, 2, energy=energy, seeds=[4, 5], **quiet)
    alone = train_energy_model(*triple(), 3, 2, energy=energy, seed=5, **quiet)
    assert models[0].history['train_loss'][0] != models[1].history['train_loss'][0]
    torch.testing.assert_close(torch.tensor(models[1].history['val_loss']), torch.tensor(alone.history['val_loss']))

def test_one_energy_for_several_seeds_is_refused():
    with pytest.raises(ValueError, match='energy: expected a function such as `lambda seed: ...` for several seeds, got one EnergyFunction'): train_energy_model(*triple(), 3, 2, energy=own(0), seeds=2, **quiet)

@each_training
def test_seeds_may_be_a_number(train):
    assert [m.history.settings['seed'] for m in train(*triple(), 3, 2, seeds=2, **quiet)] == [0, 1]
    with pytest.raises(ValueError, match='seeds: expected different seeds'): train(*triple(), 3, 2, seeds=[1, 1], **quiet)
    with pytest.raises(ValueError, match='seeds: expected a whole number'): train(*triple(), 3, 2, seeds=0, **quiet)

# Where guesses come from

@pytest.mark.parametrize('ask', [predict, lambda m,x: m(x).detach(), lambda m,x: trace(m, x).guesses.movedim(1, 0)], ids=['predict', 'forward', 'trace'])
@pytest.mark.parametrize('n', [1, 10, 16, 700, 1025])
def test_a_guess_depends_on_its_place_alone(ask, n):
    model,x = EBT(EnergyFunction(3, 2, 8), 2).double(),numbers(1500, 3, dtype=torch.float64)
    torch.testing.assert_close(ask(model, x)[:n], ask(model, x[:n]), rtol=1e-12, atol=1e-12)

def test_guesses_of_texts_keep_their_places():
    x = create_synthetic_data('listops', 40, 8, 8, vec_size=2).train_dataset.tensors[0]
    class Echo(nn.Module):
        def initial_guess(self, n, g): return torch.randn(n, 2, generator=g)
        def forward(self, x, z): return z
    assert torch.equal(predict(Echo(), x)[:9], predict(Echo(), x[:9])) and torch.equal(predict(Echo(), x), predict(Echo(), x, batch_size=3))

# Random states and defaults

def noisy(draw):
    def make(a, b, c, v, d):
        x = [torch.tensor(draw(n*v), dtype=torch.float32).view(n, v) for n in (a, b, c)]
        return *(TD(t, 2*t) for t in x), v, v
    return make

@pytest.mark.parametrize('draw', [lambda n: np.random.rand(n), lambda n: [random.random() for _ in range(n)], lambda n: torch.rand(n).tolist()], ids=['numpy', 'python', 'torch'])
def test_quick_tasks_are_repeatable(draw):
    register_task('noisy', noisy(draw))
    states = np.random.get_state()[1].copy(),random.getstate(),torch.get_rng_state()
    a,b,c = (create_synthetic_data('noisy', 20, 5, 5, 3, seed=s).train_dataset.tensors[0] for s in (0, 0, 1))
    assert torch.equal(a, b) and not torch.equal(a, c)
    assert (np.random.get_state()[1] == states[0]).all() and random.getstate() == states[1] and torch.equal(torch.get_rng_state(), states[2])

def test_a_task_that_cannot_be_repeated_is_refused():
    register_task('noisy', noisy(lambda n: np.random.default_rng().random(n)))
    with pytest.raises(ValueError, match="task 'noisy': expected the same data for the same seed"): run_main('noisy', 2, 20, 5, 5, 'ffn', report=None)

def test_data_of_a_fixed_size():
    data = create_synthetic_data('add', 30, 10, 10, vec_size=2)
    register_task('fixed', lambda a,b,c,v,d: tuple(data))
    few = dict(model_type='ffn', ffn_config=dict(num_steps=2), report=None, progress=False)
    by_name = run_main('fixed', 2, 30, 10, 10, **few)
    brought = run_main('add', data=data, **few)
    assert by_name['ffn']['test_mse'] == brought['ffn']['test_mse'] and brought.settings['size_train'] == 30 and 'shell_mse' in brought['ffn']
    with pytest.raises(ValueError, match="task 'fixed', train set: expected 31 samples, got 30"): run_main('fixed', 2, 31, 10, 10, **few)
    with pytest.raises(ValueError, match=r"data: expected \(train, val, test, input_dim, output_dim\)"): run_main('add', data=data[:3], **few)

def test_a_default_of_double_precision_changes_nothing():
    def results():
        data = create_synthetic_data('add', 64, 16, 16, vec_size=2)
        texts = create_synthetic_data('listops', 20, 8, 8, vec_size=1, min_length=7, max_args=3)
        models = [train(*data, latent_dim=8, **quiet) for train in (train_energy_model, train_feedforward)]
        return data.test_dataset.tensors[0],texts.train_dataset.tensors[0],[m.history.columns['test_loss'] for m in models],trace(models[0], data.test_dataset.tensors[0]).guesses
    expected = results()
    torch.set_default_dtype(torch.float64)
    try: got = results()
    finally: torch.set_default_dtype(torch.float32)
    for a,b in zip(got, expected): assert a == b if isinstance(a, list) else a.dtype == b.dtype and torch.equal(a, b)
