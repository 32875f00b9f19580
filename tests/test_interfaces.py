"The interfaces people paste from: every call with the arguments it was promised, at small sizes."
import pytest
import torch
from torch.utils.data import TensorDataset

from ebt_toy.data import create_synthetic_data, register_task
from ebt_toy.ebt import test_energy_model as score_energy_model   # under its own name pytest would take it for a test
from ebt_toy.ebt import train_energy_model
from ebt_toy.ffn import train_feedforward
from ebt_toy.runner import run_main

device = torch.device('cuda' if torch.cuda.is_available() else 'cpu')
small = dict(size_train=300, size_val=32, size_test=32)

def test_run_main_with_custom_configuration():
    results = run_main(task='add', vec_size=10, **small, model_type='both',
        ebt_config={'n_optimization_steps': 10, 'step_size': 1, 'latent_dim': 128, 'batch_size': 64, 'num_epochs': 10, 'lr': 1e-3},
        ffn_config={'latent_dim': 128, 'batch_size': 128, 'num_epochs': 50, 'lr': 1e-4})
    ebt_model,ffn_model = results['ebt']['model'],results['ffn']['model']
    x,y = results.data.test_dataset.tensors
    for name,model in dict(ebt=ebt_model, ffn=ffn_model).items():
        assert (model(x) - y).pow(2).mean().item() == pytest.approx(results[name]['test_mse'], rel=0.2)
    assert results['ebt']['config']['num_steps'] == 10 and results['ffn']['config']['num_steps'] == 50

def test_data_then_both_models():
    train_dataset,val_dataset,test_dataset,input_dim,output_dim = create_synthetic_data(task='add', **small, vec_size=10, device=device)
    x_test,y_test = test_dataset.tensors
    assert torch.equal(y_test, x_test[:, :10] + x_test[:, 10:]) and x_test.abs().max() > 1
    shared = dict(train_dataset=train_dataset, val_dataset=val_dataset, test_dataset=test_dataset, input_dim=input_dim, output_dim=output_dim)
    energy_fn = train_energy_model(**shared, n_optimization_steps=10, step_size=1, num_epochs=30)
    test_mse = score_energy_model(energy_fn, n_optimization_steps=10, step_size=1)
    assert test_mse == energy_fn.history['test_loss'][-1] < energy_fn.history['test_loss'][0]
    model = train_feedforward(**shared, num_epochs=30)
    assert model(x_test).shape == y_test.shape and model.history['val_loss'][-1] < model.history['val_loss'][0]

def test_listops_as_promised():
    train_ds,val_ds,test_ds,input_dim,output_dim = create_synthetic_data(task='listops', **small, vec_size=10, device=device)
    x,y = train_ds.tensors
    assert x.shape == (300, 500) and y.shape == (300,) and 0 <= y.min() and y.max() <= 9 and x.max() < 18
    assert (input_dim, output_dim) == (500, 10)

def _create_subtraction_data(size_train, size_val, size_test, vec_size, device):
    "Written as a user would: three splits by hand, from the global random state"
    def split(n, scale, shift):
        v1,v2 = (torch.randn(n, vec_size, device=device)*scale - shift for _ in range(2))
        return TensorDataset(torch.cat([v1, v2], dim=1), v1 - v2)
    return split(size_train, 2, 1), split(size_val, 2, 1), split(size_test, 4, 2), vec_size*2, vec_size

def test_a_pasted_task_trains_by_name():
    register_task('subtract', _create_subtraction_data)
    results = run_main('subtract', 2, **small, ebt_config=dict(num_steps=20), ffn_config=dict(num_steps=20), report=None)
    again = run_main('subtract', 2, **small, ebt_config=dict(num_steps=20), ffn_config=dict(num_steps=20), report=None)
    assert results['ebt']['test_mse'] == again['ebt']['test_mse']
    x,y = results.data.train_dataset.tensors
    assert torch.equal(y, x[:, :2] - x[:, 2:]) and 'shell_mse' not in results['ebt']

def test_wrong_shapes_are_refused_by_name():
    data = create_synthetic_data('add', 20, 20, 20, vec_size=2)
    narrow = TensorDataset(data.val_dataset.tensors[0][:, :3], data.val_dataset.tensors[1])
    for train in (train_energy_model, train_feedforward):
        with pytest.raises(ValueError, match=r"val_dataset: expected x of shape \(n, input_dim=4\), got \(20, 3\)"): train(data.train_dataset, narrow, *data[2:], report=None)
        with pytest.raises(ValueError, match="lr: expected"): train(*data, lr=float('nan'), report=None)
        with pytest.raises(ValueError, match="batch_size: expected"): train(*data, batch_size=-2, report=None)

@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_cuda_is_refused_where_there_is_none():
    with pytest.raises(ValueError, match="device: expected a device of this machine, got 'cuda'"): run_main(device='cuda')
    with pytest.raises(ValueError, match="device: expected a device of this machine, got 'cuda'"): create_synthetic_data('add', device='cuda')

@pytest.mark.parametrize('bad, message', [
    (dict(lr=0), "lr: expected a finite number above 0, got 0"), (dict(batch_size=0), "batch_size: expected a whole number"),
    (dict(latent_dim=-1), "latent_dim: expected a whole number"), (dict(activation='silo'), "unknown activation 'silo'; did you mean 'silu'"),
    (dict(num_steps=1, num_epochs=1), "two names for the number of updates")])
def test_what_the_feedforward_network_refuses(bad, message):
    with pytest.raises(ValueError, match=message): train_feedforward(*create_synthetic_data('add', size_train=50), report=None, progress=False, **bad)

def test_widths_that_do_not_agree():
    data = create_synthetic_data('add', size_train=50)
    with pytest.raises(ValueError, match=r"train_dataset: expected y of shape \(n, output_dim=9\), got \(50, 10\)"): train_feedforward(*data[:3], 20, 9)
