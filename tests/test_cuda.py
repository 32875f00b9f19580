"What holds on a GPU: compiled and captured updates are the plain ones, on any device, and a capture that fails or is interrupted trains nothing. Skipped where there is no GPU."
import threading
from contextlib import closing, contextmanager
from itertools import islice

import pytest, torch
import torch.nn.functional as F

from ebt_toy import EBT, EnergyFunction, FeedForward, TokenEncoder, create_synthetic_data, engine, fit, update
from ebt_toy.core import random_states, seeded
from ebt_toy.engine import updates
from ebt_toy.budget import free_memory

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
each_device = pytest.mark.parametrize('device', [f'cuda:{i}' for i in range(torch.cuda.device_count())] or ['cuda:0'])
BUILD = dict(ebt=lambda s: EBT(EnergyFunction(4, 2, 8, s), 2, 3), ffn=lambda s: FeedForward(4, 2, 8, 'silu', s))
each_model = pytest.mark.parametrize('name', BUILD)

def data(device): return [t.double() for t in create_synthetic_data('add', 200, 8, 8, 2, device=device).train_dataset.tensors]
def models_on(device, name, seeds): return [BUILD[name](s).double().to(device) for s in seeds]
def weights(model): return torch.cat([p.detach().flatten() for p in model.parameters()])

def trained(models, device, seeds, compile, n=70):
    with closing(updates(models, *data(device), 16, 1e-2, F.mse_loss, seeds, compile)) as stream: list(islice(stream, n))
    return models

@each_device
@each_model
@pytest.mark.parametrize('seeds', [[3], [3, 0, 7]], ids=str)
def test_compiled_and_captured_like_plain(device, name, seeds):
    "Also on a device that is not the current one, where a capture would be empty"
    expected = [trained(models_on(device, name, [s]), device, [s], False)[0] for s in seeds]
    for a,b in zip(trained(models_on(device, name, seeds), device, seeds, True), expected): torch.testing.assert_close(weights(a), weights(b), rtol=1e-9, atol=1e-9)

@contextmanager
def failing(error):
    "Captures that fail after the warm-up"
    class Fail(torch.cuda.graph):
        def __enter__(self): raise error
    before,torch.cuda.graph = torch.cuda.graph,Fail
    try: yield
    finally: torch.cuda.graph = before

def test_a_capture_that_fails():
    expected = trained(models_on('cuda', 'ffn', [1]), 'cuda', [1], False)[0]
    with failing(RuntimeError('no capture today')), pytest.warns(UserWarning, match='without a CUDA graph.*no capture today'): got = trained(models_on('cuda', 'ffn', [1]), 'cuda', [1], True)[0]
    torch.testing.assert_close(weights(got), weights(expected), rtol=1e-9, atol=1e-9)

def test_a_capture_that_is_interrupted_trains_nothing():
    models = models_on('cuda', 'ffn', [1])
    with failing(KeyboardInterrupt()), pytest.raises(KeyboardInterrupt): trained(models, 'cuda', [1], True)
    assert torch.equal(weights(models[0]), weights(models_on('cuda', 'ffn', [1])[0]))

def test_other_threads_may_work_meanwhile():
    stop = threading.Event()
    def busy():
        while not stop.is_set(): torch.zeros(1000, device='cuda').sum().item()
    other = threading.Thread(target=busy)
    other.start()
    try: got = trained(models_on('cuda', 'ebt', [1]), 'cuda', [1], True)[0]
    finally: stop.set(), other.join()
    torch.testing.assert_close(weights(got), weights(trained(models_on('cuda', 'ebt', [1]), 'cuda', [1], False)[0]), rtol=1e-9, atol=1e-9)

def test_what_a_callback_changes_counts():
    def halve(model, history): model.step_size *= 0.5
    splits = [torch.utils.data.TensorDataset(*data('cuda'))]*3
    runs = [fit(models_on('cuda', 'ebt', [0])[0], *splits, num_steps=12, eval_every=4, lr=1e-2, compile=c, callback=halve, progress=False)['val_loss'] for c in (False, True)]
    assert abs(runs[0] - runs[1]).max() < 1e-8

def listops_weights(compile):
    "A model of texts after some updates: many tokens look the same row of the embedding up, and their gradients meet there"
    texts = create_synthetic_data('listops', 200, 8, 8, vec_size=2, device='cuda')
    model = FeedForward(32, 10, 32, encoder=TokenEncoder(32, 1, 2)).cuda()
    fit(model, *texts[:3], num_steps=30, lr=1e-2, compile=compile, progress=False)
    return weights(model)

@pytest.mark.parametrize('compile', [False, True])
def test_texts_are_trained_bit_for_bit(compile): assert torch.equal(listops_weights(compile), listops_weights(compile))

def test_free_memory_counts_what_pytorch_keeps():
    before = free_memory('cuda')
    kept = torch.zeros(2**26, device='cuda')
    del kept
    assert abs(free_memory('cuda') - before) < 2**25

def test_random_states():
    states = random_states('cuda')
    with seeded(0, device='cuda'): a = torch.randn(3, device='cuda')
    with seeded(0, device='cuda'): assert torch.equal(torch.randn(3, device='cuda'), a)
    assert random_states('cuda') == states

def test_groups_share_their_memory():
    "Eight groups of texts are captured in one pool"
    texts = create_synthetic_data('listops', 600, 8, 8, vec_size=4, device='cuda')
    model = FeedForward(32, 10, 32, encoder=TokenEncoder(32, 1, 2)).cuda()
    x,y = model.prepare(texts.train_dataset.tensors[0]),texts.train_dataset.tensors[1]
    pools = set()
    class Noted(torch.cuda.graph):
        def __init__(self, *args, pool=None, **kwargs): pools.add(pool), super().__init__(*args, pool=pool, **kwargs)
    before,torch.cuda.graph = torch.cuda.graph,Noted
    try:
        with closing(updates([model], x, y, 32, 1e-3, F.cross_entropy, [0], True)) as stream: list(islice(stream, 2*update.MAX_GROUPS))
    finally: torch.cuda.graph = before
    assert len(pools) == 1 and None not in pools
