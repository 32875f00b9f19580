"Early stopping, best weights, several callbacks, loggers, tables, and going on from an earlier run: alone, for several seeds, and compiled."
import copy, csv, json, sys, types

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from ebt_toy import EBT, EnergyFunction, FeedForward, create_synthetic_data, fit, load, run_main, save, train_energy_model, train_feedforward
from ebt_toy.cli import main
from ebt_toy.controls import every_callback, log_to, stale_evaluations
from ebt_toy.core import generator, seeded
from ebt_toy.history import History, merge_histories
from ebt_toy.training import DivergedError, _score_all
from ebt_toy.update import mlp

QUIET = dict(report=None, progress=False)
WAYS = pytest.mark.parametrize('n, compile', [(1, False), (3, False), (1, True), (3, True)], ids=['plain', 'seeds', 'compiled', 'seeds compiled'])

@pytest.fixture(scope='module')
def splits():
    "Few noisy samples: the validation loss falls, then rises"
    data = create_synthetic_data('add', 24, 64, 16, vec_size=2)
    x,y = data.train_dataset.tensors
    return [TensorDataset(x.double(), (y + 0.3*torch.randn(y.shape, generator=generator(0))).double()), *(TensorDataset(*(t.double() for t in ds.tensors)) for ds in data[1:3])]

def nets(n): return [mlp(4, 2, 16, seed=s).double() for s in range(n)]
def ebts(n): return [EBT(EnergyFunction(4, 2, 8, seed=s), 2, 2, 0.5).double() for s in range(n)]
def weights(models): return torch.stack([torch.cat([p.detach().flatten() for p in m.parameters()]) for m in models])

def run(models, splits, **options):
    "The history, for several seeds even if there is one"
    options = dict(num_steps=100, lr=1e-2, batch_size=8, eval_every=10, compile=False, progress=False) | options
    return fit(models, *splits, seeds=list(range(len(models))), **options)

def losses(models, splits): return np.array([(m(splits[1].tensors[0]) - splits[1].tensors[1]).pow(2).mean().item() for m in models])

# Early stopping

@pytest.mark.parametrize('loss, stale', [([3.], 0), ([3., 2., 1.], 0), ([3., 2., 2.], 1), ([1., 2., 3., 4.], 3), ([np.nan, np.nan], 1), ([np.nan, 2.], 0), ([2., np.nan, np.inf], 2),
    ([[3., 3.], [2., 4.], [3., 2.]], 0), ([[3., np.nan], [4., np.nan]], 1)])
def test_stale_evaluations(loss, stale): assert stale_evaluations(loss) == stale

def test_patience_starts_anew():
    assert [stale_evaluations([1., 2., 3., 4.], before) for before in range(5)] == [3, 3, 2, 1, 0]

@WAYS
def test_patience(splits, recorded, n, compile):
    free = run(nets(n), splits, compile=compile, num_steps=150, eval_every=5, lr=0.02)
    low = np.minimum.accumulate(free['val_loss'])
    gains = [0, *(i for i in range(1, len(low)) if (low[i] < low[i - 1]).any())]
    expected = next(i for i in range(len(low)) if i - max(g for g in gains if g <= i) == 3)
    lines,models = [],nets(n)
    h = run(models, splits, compile=compile, num_steps=150, eval_every=5, lr=0.02, patience=3, report=lines.append)
    assert (h.status, h['step'][-1], h.settings['patience'], h.settings['compile']) == ('stopped', 5*expected, 3, compile) and expected < 30
    assert 'Stopped: 3 evaluations without a new minimum of the validation loss' in lines
    np.testing.assert_array_equal(h['val_loss'], free['val_loss'][:expected + 1])

def test_patience_that_never_runs_out(splits):
    a,b = nets(1),nets(1)
    h,lines = run(a, splits, num_steps=30),[]
    g = run(b, splits, num_steps=30, patience=10, report=lines.append)
    assert torch.equal(weights(a), weights(b)) and g.status == h.status == 'finished' and not any('Stopped' in l for l in lines)

# The best weights

@WAYS
def test_best_weights(splits, recorded, n, compile):
    models,lines = nets(n),[]
    h = run(models, splits, compile=compile, num_steps=100, lr=0.02, keep_best=True, report=lines.append)
    low = h['val_loss'].argmin(axis=0)
    np.testing.assert_allclose(losses(models, splits), h['val_loss'].min(axis=0), rtol=1e-9)
    assert h.settings['best_steps'] == h['step'][low].tolist() and (low < 10).all() and h.status == 'finished'
    assert f"Best weights kept: those of update {', '.join(map(str, h.settings['best_steps']))}" in lines
    assert [h.of_seed(i).settings['best_step'] for i in range(n)] == h.settings['best_steps']
    for m,step in zip(range(n), h.settings['best_steps']):      # they are what a run as short as that ends with
        alone = nets(n)
        run(alone, splits, compile=compile, num_steps=step, lr=0.02)
        torch.testing.assert_close(weights(alone)[m], weights(models)[m], rtol=1e-9, atol=1e-9)

@pytest.mark.parametrize('end', ['stop', 'interrupt', 'interrupt later', 'patience', 'diverge'])
@pytest.mark.parametrize('n', [1, 2])
def test_best_weights_however_a_run_ends(splits, n, end):
    def callback(models, history):
        if len(history) == 5 and end == 'stop': return False
        if len(history) == 5 and end == 'interrupt': raise KeyboardInterrupt
        if len(history) == 5 and end == 'diverge':
            for m in models: m[0].weight.data.fill_(np.nan)
    class Later(nn.Sequential):
        calls = 0
    models = nets(n)
    if end == 'interrupt later':
        def stop(*_):
            Later.calls += 1
            if Later.calls == 25: raise KeyboardInterrupt
        models[0][0].weight.register_hook(lambda g: stop())
    try: h = run(models, splits, num_steps=2000, eval_every=10, keep_best=True, callback=callback, patience=2 if end == 'patience' else None)
    except DivergedError as e: h = e.history
    assert h.status == dict(stop='stopped', patience='stopped', diverge='diverged').get(end, 'interrupted')
    np.testing.assert_allclose(losses(models, splits), np.nanmin(h['val_loss'], axis=0), rtol=1e-9)
    assert h.settings['best_steps'] == h['step'][np.nanargmin(h['val_loss'], axis=0)].tolist()

def test_a_seed_that_diverges_keeps_its_best(splits):
    def spoil(models, history):
        if len(history) == 3: models[1][0].weight.data.fill_(np.nan)
    models = nets(2)
    h = run(models, splits, keep_best=True, callback=spoil)
    assert np.isnan(h['val_loss'][-1, 1]) and h.settings['best_steps'][1] <= 20
    np.testing.assert_allclose(losses(models, splits), np.nanmin(h['val_loss'], axis=0), rtol=1e-9)

def test_buffers_belong_to_the_best_weights(splits):
    with seeded(0, 'weights'): model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 2)).double()
    h = fit(model, *splits, num_steps=100, batch_size=8, lr=0.05, keep_best=True, progress=False)
    np.testing.assert_allclose(losses([model.eval()], splits), h['val_loss'].min(), rtol=1e-9)
    assert model[1].num_batches_tracked == h.settings['best_step'] < 100

@pytest.mark.parametrize('train', [train_energy_model, train_feedforward])
def test_training_functions(train):
    data = create_synthetic_data('add', 20, 16, 16, vec_size=2)
    options = dict(latent_dim=8, num_steps=60, lr=1e-2, eval_every=5, compile=False, **QUIET)
    seen = []
    pair = train(*data, seeds=2, patience=2, keep_best=True, callback=[lambda *_: None, lambda m, h: seen.append(len(h))], **options)
    for m in pair:
        x,y = data.val_dataset.tensors
        assert _score_all([m], dict(val=(x, y)), m.scoring)['val_loss'][0] == pytest.approx(m.history['val_loss'].min(), rel=1e-4)
        assert m.history.settings['best_step'] == m.history['step'][m.history['val_loss'].argmin()]
    assert seen == list(range(1, len(pair[0].history) + 1)) and {m.history.status for m in pair} <= {'stopped', 'finished'}

def test_run_main_and_the_command(tmp_path, capsys):
    shared = dict(vec_size=2, size_train=20, size_val=16, size_test=16, latent_dim=16, num_steps=300, lr=1e-2, patience=1)
    results = run_main('add', **shared, model_type='ffn', eval_every=10, ffn_config=dict(keep_best=True), **QUIET)
    h,config = results['ffn']['history'],results['ffn']['config']
    assert (h.status, config['patience'], config['keep_best']) == ('stopped', 1, True) and results['ffn']['val_mse'] == pytest.approx(h['val_loss'].min(), rel=1e-5)
    given = [a for k,v in shared.items() for a in (f'--{k}', str(v))]
    assert main(['--model_type', 'ffn', '--eval_every', '10', '--keep_best', 'true', '--save', str(tmp_path), '--quiet', *given]) == 0
    assert f"Training Stopped | Test MSE: {results['ffn']['test_mse']:.6f}" in capsys.readouterr().out
    assert json.loads((tmp_path/'results.json').read_text())['models']['ffn']['config']['best_step'] == h.settings['best_step']
    assert main(['--model_type', 'ffn', '--keep_best', 'yes', *given]) == 2
    assert capsys.readouterr().err == "ebt_toy: task 'add', ffn: keep_best: expected True or False, got 'yes'\n"

def test_warmup_from_run_main():
    shared = dict(vec_size=2, size_train=20, size_val=8, size_test=8, latent_dim=8, num_steps=20, **QUIET)
    assert run_main('add', **shared, model_type='ffn', warmup=19)['ffn']['config']['warmup'] == 19
    with pytest.raises(ValueError, match="task 'add', ebt: warmup: expected a whole number from 0 to 19, got 20"): run_main('add', **shared, warmup=20)

@pytest.mark.parametrize('bad, message', [(dict(patience=0), 'patience: expected a whole number of at least 1, got 0'), (dict(patience=1.5), 'patience: expected a whole number'),
    (dict(keep_best=1), 'keep_best: expected True or False, got 1'), (dict(callback=3), 'callback: expected a function or a list of functions, got 3'),
    (dict(callback=[print, None]), 'callback: expected a function or a list of functions, got None'), (dict(history={}), 'history: expected a History, got dict')])
def test_what_is_refused(splits, bad, message):
    models = nets(1)
    with pytest.raises(ValueError, match=message): run(models, splits, **bad)
    assert torch.equal(weights(models), weights(nets(1)))

# Callbacks

@pytest.mark.parametrize('answers, goes_on', [([None, None], True), ([True, None], True), ([False, True], False), ([None, np.False_], False), ([0, ''], True)], ids=str)
def test_every_callback(answers, goes_on):
    calls = []
    assert every_callback([lambda m, h, a=a: (calls.append((m, h)), a)[1] for a in answers])(1, 2) is goes_on and calls == [(1, 2)]*len(answers)

def test_one_callback_or_none():
    assert every_callback(None) is every_callback([]) is None and every_callback([print]) is every_callback(print) is print

@pytest.mark.parametrize('compile', [False, True])
def test_callbacks_see_single_models(splits, recorded, compile):
    seen = []
    def note(model, history): seen.append((isinstance(model, nn.Module), history.settings['seed'], history['val_loss'].shape))
    h = fit(nets(1)[0], *splits, num_steps=20, seed=4, eval_every=10, compile=compile, callback=[note, lambda m, h: len(h) < 2, note], progress=False)
    assert seen == [(True, 4, (i,)) for i in (1, 1, 2, 2)] and h.status == 'stopped'

@WAYS
def test_log_to(splits, recorded, n, compile):
    logged = []
    h = run(nets(n), splits, num_steps=20, compile=compile, callback=log_to(lambda *entry: logged.append(entry)))
    assert [step for step,_ in logged] == [0, 10, 20] and all(type(v) is float for _,row in logged for v in row.values())
    assert [row[f'test_loss/seed{n - 1}'] for _,row in logged] == h['test_loss'][:, -1].tolist() and len(logged[0][1]) == 3*n
    logged.clear()
    one = fit(nets(1)[0], *splits, num_steps=20, eval_every=10, progress=False, callback=log_to(lambda step, row: logged.append(row) or False))
    assert [row['val_loss'] for row in logged] == one['val_loss'].tolist() and one.status == 'finished'

def test_log_to_refuses():
    with pytest.raises(ValueError, match="write: expected a function of a step and a dict, got 'wandb'"): log_to('wandb')

# Tables

def history(): return History(dict(step=[0, 10], val_loss=[np.array([1., np.nan]), np.array([0.5, 2.])]), dict(seeds=[7, 9]), 'finished')

@pytest.mark.parametrize('one', [False, True])
def test_csv(tmp_path, one):
    h = history().of_seed(1) if one else history()
    path = h.to_csv(tmp_path/'run.csv')
    with open(path, newline='') as f: rows = list(csv.reader(f))
    assert rows == [['seed', 'step', 'val_loss'], *[['7', '0', '1.0'], ['7', '10', '0.5']]*(not one), ['9', '0', 'nan'], ['9', '10', '2.0']]
    assert list(tmp_path.iterdir()) == [path]

def test_csv_is_whole_or_nothing(tmp_path, monkeypatch):
    (tmp_path/'run.csv').write_text('mine')
    def full(fd): raise OSError(28, 'No space left on device')
    monkeypatch.setattr('ebt_toy.core.os.fsync', full)
    with pytest.raises(OSError, match='No space'): history().to_csv(tmp_path/'run.csv')
    assert [p.read_text() for p in tmp_path.iterdir()] == ['mine']
    for bad in (tmp_path, tmp_path/'nowhere'/'a.csv'):
        with pytest.raises(ValueError, match='path: expected a file in a folder that exists'): history().to_csv(bad)

def test_frame(monkeypatch):
    monkeypatch.setitem(sys.modules, 'pandas', None)
    with pytest.raises(ValueError, match='to_frame: expected pandas, which is not installed'): history().to_frame()
    monkeypatch.setitem(sys.modules, 'pandas', types.SimpleNamespace(DataFrame=lambda rows, columns: (rows, columns)))
    rows,columns = history().of_seed(0).to_frame()
    assert columns == ['seed', 'step', 'val_loss'] and rows == [dict(seed=7, step=0, val_loss=1.), dict(seed=7, step=10, val_loss=0.5)]

def test_a_real_frame():
    pandas = pytest.importorskip('pandas')
    frame = history().to_frame()
    assert isinstance(frame, pandas.DataFrame) and frame.shape == (4, 3) and frame[frame.seed == 9].val_loss.iloc[1] == 2

def test_merging():
    h = history()
    h.settings['best_steps'],h.state = [10, 0],['a', 'b']
    back = merge_histories([h.of_seed(0), h.of_seed(1)])
    assert back.settings == h.settings and back.state == h.state and h.of_seed(1).settings == dict(seed=9, best_step=0)
    assert merge_histories([h.of_seed(0), history().of_seed(1)]).state is None
    stopped = h.of_seed(0)
    stopped.status = 'stopped'
    assert merge_histories([stopped, h.of_seed(1)]).status == 'stopped'

# Going on

@WAYS
@pytest.mark.parametrize('make, control', [(ebts, {}), (nets, dict(clip=0.5, weight_decay=0.1))], ids=['guesses', 'controls'])
def test_going_on(splits, recorded, make, n, compile, control):
    whole,parts = make(n),make(n)
    h = run(whole, splits, num_steps=90, eval_every=90, compile=compile, **control)      # more than one block of updates
    first = run(parts, splits, num_steps=50, eval_every=25, compile=compile, **control)
    before,columns = [copy.deepcopy(s) for s in first.state],copy.deepcopy(first.columns)
    both = run(parts, splits, num_steps=40, eval_every=20, compile=compile, history=first, **control)
    if n == 1 and not compile: assert torch.equal(weights(whole), weights(parts))
    torch.testing.assert_close(weights(whole), weights(parts), rtol=1e-9, atol=1e-9)
    assert both['step'].tolist() == [0, 25, 50, 60, 80, 90] and both.settings['num_steps'] == 90 and both.status == 'finished'
    np.testing.assert_allclose(both['val_loss'][-1], h['val_loss'][-1], rtol=1e-8)
    assert all(torch.equal(a.m, b.m) and a.done == b.done == 50 for a,b in zip(before, first.state))     # the earlier history stays as it was
    assert first.columns['step'] == columns['step'] and [s.done for s in both.state] == [90]*n and both.seconds > first.seconds

@pytest.mark.parametrize('ways', [(False, True), (True, False)], ids=str)
def test_going_on_another_way(splits, recorded, ways):
    whole,parts = ebts(1),ebts(1)
    run(whole, splits, num_steps=40)
    first = run(parts, splits, num_steps=25, compile=ways[0])
    run(parts, splits, num_steps=15, compile=ways[1], history=first)
    torch.testing.assert_close(weights(whole), weights(parts), rtol=1e-9, atol=1e-9)

def test_going_on_alone_after_seeds(splits):
    whole,parts = nets(3),nets(3)
    run(whole, splits, num_steps=40)
    first = run(parts, splits, num_steps=25)
    h = fit(parts[2], *splits, num_steps=15, lr=1e-2, batch_size=8, seed=2, history=first.of_seed(2), compile=False, progress=False)
    torch.testing.assert_close(weights(whole)[2], weights(parts)[2], rtol=1e-9, atol=1e-9)
    assert h.settings['seed'] == 2 and h['val_loss'].shape == h['step'].shape

def test_going_on_with_texts():
    class Reader(nn.Module):
        def __init__(self, seed):
            super().__init__()
            self.ids,self.out = nn.Embedding(6, 4, padding_idx=0),nn.Linear(4, 2)
            for p in self.parameters(): p.data = torch.randn(p.shape, generator=generator(seed), dtype=torch.float64)
        def forward(self, x): return self.out(self.ids(x).mean(1))
    lengths = torch.randint(1, 20, (80,), generator=generator(0))
    x = (1 + torch.randint(5, (80, 20), generator=generator(1)))*(torch.arange(20) < lengths[:, None])
    texts = [TensorDataset(x, (lengths > 10).long())]*3
    whole,parts = Reader(0),Reader(0)
    options = dict(lr=1e-2, batch_size=8, compile=False, progress=False)
    fit(whole, *texts, num_steps=50, **options)
    fit(parts, *texts, num_steps=20, history=fit(parts, *texts, num_steps=30, **options), **options)
    assert torch.equal(weights([whole]), weights([parts]))

@pytest.mark.parametrize('end', ['stop', 'interrupt', 'at once'])
@pytest.mark.parametrize('n', [1, 2])
def test_going_on_from_a_run_that_ended_early(splits, n, end):
    def callback(models, history):
        if history['step'][-1] == (0 if end == 'at once' else 30):
            if end == 'interrupt': raise KeyboardInterrupt
            return False
    whole,parts = nets(n),nets(n)
    h = run(whole, splits, num_steps=60)
    first = run(parts, splits, num_steps=1000, callback=callback)
    done = first.state[0].done
    both = run(parts, splits, num_steps=60 - done, history=first)
    assert done == (0 if end == 'at once' else 30) and torch.allclose(weights(whole), weights(parts), rtol=1e-10) and both['step'].tolist() == h['step'].tolist()

def test_going_on_twice_and_with_another_rate(splits):
    whole,parts = nets(1),nets(1)
    run(whole, splits, num_steps=60)
    h = run(parts, splits, num_steps=10)
    for more in (20, 30): h = run(parts, splits, num_steps=more, history=h)
    assert torch.equal(weights(whole), weights(parts)) and h['step'].tolist() == list(range(0, 61, 10))
    other = run(parts, splits, num_steps=1, lr=1., history=h)
    assert other['step'][-1] == 61 and (weights(parts) - weights(whole)).abs().max() > 0.1

def test_going_on_after_the_best_weights(splits):
    whole,parts,on = nets(2),nets(2),nets(2)
    a = run(whole, splits, num_steps=100, lr=0.02, keep_best=True)
    first = run(parts, splits, num_steps=70, lr=0.02, keep_best=True)
    b = run(parts, splits, num_steps=30, lr=0.02, keep_best=True, history=first)
    torch.testing.assert_close(weights(whole), weights(parts), rtol=1e-10, atol=1e-10)
    assert a.settings['best_steps'] == b.settings['best_steps'] == a['step'][a['val_loss'].argmin(axis=0)].tolist() and (a['val_loss'].argmin(axis=0) < 7).any()
    run(plain := nets(2), splits, num_steps=60)
    last = run(on, splits, num_steps=20, history=run(on, splits, num_steps=40, keep_best=True))      # from the last weights, not from the best
    torch.testing.assert_close(weights(on), weights(plain), rtol=1e-10, atol=1e-10)
    assert 'best_steps' not in last.settings and 'keep_best' not in last.settings

def test_going_on_keeps_what_is_best_already(splits):
    model = nets(1)
    first = run(model, splits, num_steps=40)
    before = weights(model)
    h = run(model, splits, num_steps=20, lr=1., history=first, keep_best=True)      # far too large: it only gets worse
    assert torch.equal(weights(model), before) and h.settings['best_steps'] == [40]

def test_going_on_with_patience(splits):
    model = nets(1)
    first = run(model, splits, num_steps=2000, patience=2)
    assert first.status == 'stopped'
    on = run(model, splits, num_steps=500, patience=2, history=first)
    assert len(on) >= len(first) + 2      # patience starts anew

@pytest.mark.parametrize('options, message', [(dict(batch_size=4), r"the same batch_size \(4\), got 8"), (dict(schedule='cosine'), "constant learning rate without warm-up"), (dict(warmup=2), "constant learning rate")])
def test_going_on_is_refused(splits, options, message):
    models = nets(2)
    first = run(models, splits, num_steps=20)
    before = weights(models)
    with pytest.raises(ValueError, match='history: expected a.*' + message): run(models, splits, num_steps=10, history=first, **options)
    assert torch.equal(weights(models), before)

def test_histories_that_do_not_fit(splits):
    models = nets(2)
    first = run(models, splits, num_steps=20)
    def refused(message, models=models, history=first):
        with pytest.raises(ValueError, match=message): run(models, splits, num_steps=10, history=history)
    refused(r"history: expected a run with the same seeds \(\[0\]\), got \[0, 1\]", models[:1])
    refused("history: expected a model with 12 trainable weights", [nn.Linear(5, 2).double() for _ in range(2)])
    refused("history: expected one that `fit` returned in this session", history=History(first.columns, first.settings))
    ahead = merge_histories([run(nets(1), splits, num_steps=5), first.of_seed(1)])
    refused(r"history: expected seeds with equally many updates, got \[5, 20\]", history=ahead)
    odd = merge_histories([first])
    odd.columns['val_accuracy'] = odd.columns['val_loss']
    refused(r"history: expected the columns \['train_loss', 'val_loss', 'test_loss'\], got", history=odd)
    with pytest.raises(DivergedError) as e: run(nets(1), splits, lr=1e200)
    refused("history: expected a run whose loss stayed finite, got one that diverged", nets(1), e.value.history)

def test_files_hold_no_state(splits, tmp_path):
    model = nets(1)[0]
    h = fit(model, *splits, num_steps=20, keep_best=True, patience=5, progress=False)
    back = load(save(model, tmp_path/'a.safetensors', h), nets(1)[0])
    assert back.history.settings == h.settings and back.history.state is None and h.state[0].done == 20
    with pytest.raises(ValueError, match='history: expected one that `fit` returned in this session'): fit(back, *splits, history=back.history)
    assert copy.deepcopy(h).state[0].done == 20

def test_going_on_needs_the_model_as_the_run_left_it():
    data = create_synthetic_data('add', vec_size=1, size_train=64, size_val=8, size_test=8)
    few = dict(num_steps=4, batch_size=8, compile=False, progress=False)
    a,b = FeedForward(2, 1, 8, seed=0),FeedForward(2, 1, 8, seed=9)
    h = fit(a, *data[:3], **few)
    fit(b, *data[:3], **few)
    with pytest.raises(ValueError, match='as that run left it'): fit(b, *data[:3], **few, history=h)
    fit(a, *data[:3], **few, history=h)
    with pytest.raises(ValueError, match='as that run left it'): fit(a, *data[:3], **few, history=h)      # it has gone on since

def test_trained_models_go_on_side_by_side():
    data = create_synthetic_data('add', vec_size=1, size_train=64, size_val=8, size_test=8)
    few,lines = dict(num_steps=4, batch_size=8, latent_dim=8, report=None, progress=False),[]
    models = train_feedforward(*data, **few, seeds=2)
    fit(models, *data[:3], num_steps=4, batch_size=8, seeds=2, report=lines.append, progress=False)
    assert not any('One seed after another' in line for line in lines)
