"Data: what a task may return, and what it may not."
import pytest
import torch
from torch.utils.data import TensorDataset

from ebt_toy import create_synthetic_data, fit, predict, register_task
from ebt_toy.core import generator
from ebt_toy.data import DictDataset, inputs_and_targets, outside_range, uniform

def broken(change):
    def make(size_train, size_val, size_test, vec_size, device): return change(create_synthetic_data('add', size_train, size_val, size_test, vec_size, device))
    register_task('broken', make)

def with_nan(data):
    data.val_dataset.tensors[1][0, 0] = float('nan')
    return data

@pytest.mark.parametrize('change, message', [
    (with_nan, "task 'broken', val set: expected finite numbers, got NaN or infinity in y"),
    (lambda d: d._replace(train_dataset=d.val_dataset), "task 'broken', train set: expected 30 samples, got 10"),
    (lambda d: d._replace(output_dim=7), r"expected y of shape \(n, output_dim=7\), got \(30, 3\)"),
    (lambda d: d._replace(input_dim=7), r"expected x of shape \(n, input_dim=7\), got \(30, 6\)"),
    (lambda d: d[:3], r"expected \(train, val, test, input_dim, output_dim\), got tuple of 3"),
    (lambda d: d._replace(test_dataset=TensorDataset(d.test_dataset.tensors[0], torch.full((10,), 5))), "expected labels in 0 to 2, got 5 to 5"),
    (lambda d: d._replace(val_dataset=TensorDataset(*(t[:0] for t in d.val_dataset.tensors))), "val set: expected one row at least, got an empty set"),
    (lambda d: d._replace(test_dataset=[1]), "expected a TensorDataset")])
def test_a_task_that_goes_wrong(change, message):
    broken(change)
    with pytest.raises(ValueError, match=message): create_synthetic_data('broken', 30, 10, 10, vec_size=3)

@pytest.mark.parametrize('request_, message', [
    (dict(task='additon'), "unknown task 'additon'; did you mean 'add'"), (dict(task='add', size_val=0), "size_val: expected a whole number"),
    (dict(task='add', vec_size=-3), "vec_size: expected a whole number"), (dict(task='add', sead=1), "unknown option of task 'add' 'sead'; did you mean 'seed'")])
def test_bad_requests(request_, message):
    with pytest.raises(ValueError, match=message): create_synthetic_data(**request_)

def test_numbers_are_even_and_bounded():
    even = uniform(10_000, 1, 1, generator(0))
    assert even.abs().max() <= 1 and abs(even.var().item() - 1/3) < 0.01
    assert not outside_range(create_synthetic_data('add').train_dataset.tensors[0]).any()

# x of several tensors

class Product(torch.nn.Module):
    "Reads two inputs, by place or by name"
    def __init__(self):
        super().__init__()
        self.out = torch.nn.Linear(2, 2)
    def forward(self, x):
        a,b = x.values() if isinstance(x, dict) else x
        return self.out(a*b)

def splits(kind):
    def one(name, n):
        a,b = (uniform(n, 2, 1., generator(0, name, i)) for i in range(2))
        return DictDataset(dict(a=a, b=b), a*b) if kind is dict else TensorDataset(a, b, a*b)
    return [one(*s) for s in (('train', 300), ('val', 50), ('test', 50))]

@pytest.mark.parametrize('kind', [tuple, dict])
@pytest.mark.parametrize('options', [dict(compile=False), dict(compile=True)], ids=str)
def test_several_inputs_train_in_every_way(recorded, kind, options):
    def made(s):
        torch.manual_seed(s)
        return Product()
    data = splits(kind)
    alone = [made(s) for s in range(2)]
    for m,s in zip(alone, range(2)): h = fit(m, *data, num_steps=30, lr=0.05, seed=s, compile=False)
    together = [made(s) for s in range(2)]
    history = fit(together, *data, num_steps=30, lr=0.05, seeds=range(2), **options)
    for m,n in zip(alone, together): torch.testing.assert_close(m.out.weight, n.out.weight, rtol=1e-4, atol=1e-5)
    assert history['val_loss'][-1].max() < history['val_loss'][0].min()
    x,y = inputs_and_targets(data[2])
    assert isinstance(x, kind) and predict(together[0], x).shape == y.shape
