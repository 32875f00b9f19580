"The baselines of ListOps: rules that read rows as the specification does, exact as far as they claim, and blind to test labels"
import numpy as np
import pytest
import torch
from torch.utils.data import TensorDataset

from ebt_toy.data import get_task
from ebt_toy.generate import forest_values, labels, listops_data, node_depths
from ebt_toy.ladder import accuracy_by_depth, count_values, listops_baselines, listops_rules, middle_mode, plot_baselines, row_forests, tree_depths
from ebt_toy.listops import PAD, TOKEN_ID, detokenize, evaluate, node_values, parse, tokenize

def ids(*texts): return torch.tensor([(t := tokenize(text)) + [PAD]*(40 - len(t)) for text in texts])

SMALL = TensorDataset(ids('[MAX 2 [MIN 9 4 ] ]', '[MAX 3 3 ]', '[SM 1 2 ]'), torch.tensor([4, 3, 3]))
X = ids('[SM 5 [MAX 2 [MIN 9 4 ] 3 ] [MED 1 8 6 7 ] ]', '7', '( ( ( [MAX 2 ) ( ( ( [MIN 9 ) 4 ) ] ) ) ] )')

@pytest.fixture(scope='module')
def data(): return listops_data(size_train=400, size_val=2, size_test=800, vec_size=6, device='cpu', max_depth=6, min_length=10)

def test_rows_are_read_as_by_the_parser(data):
    x,y = data.test_dataset.tensors
    forest, = row_forests(x)
    assert list(forest) == [parse(detokenize(row)) for row in x] and labels(forest).tolist() == y.tolist()
    assert forest_values(forest).tolist() == [v for row in x for v in node_values(parse(detokenize(row)))]
    plain = torch.tensor([[t for t in row if t < TOKEN_ID['(']] + [PAD]*sum(t >= TOKEN_ID['('] for t in row) for row in x.tolist()])
    assert list(next(row_forests(plain))) == list(forest)     # parentheses make no difference

def test_long_data_are_read_in_pieces(): assert [len(f) for f in row_forests(X.repeat(500, 1))] == [1024, 476]

@pytest.mark.parametrize('x, message', [*((ids('[SM 1 2 ]', bad, '7'), message) for bad,message in {
    '[SM 1 2': 'row 1: text ends inside', '] 1 [SM': 'row 1: .* closes no operator', '1 2': 'row 1: trailing text', '[SM ]': 'row 1: .* no arguments'}.items()),
    (torch.cat([X[:1].repeat(1500, 1), torch.zeros_like(X[:1])]), 'row 1500: empty expression'), (torch.zeros(2, 5, dtype=torch.int64), 'row 0: empty expression'),
    (torch.full((2, 5), 0.5), 'x: expected rows of token ids, .* got torch.float32'), (torch.full((2, 5), 18), 'x: expected rows of token ids, .* in 0 to 17')], ids=lambda v: v if isinstance(v, str) else "")
def test_rows_that_are_no_expressions_are_refused(x, message):
    with pytest.raises(ValueError, match=message): list(row_forests(x))

def test_counts_by_hand():
    counts = count_values(SMALL)
    assert counts.labels.tolist() == [0, 0, 0, 2, 1, 0, 0, 0, 0, 0] and counts.by_root[11].tolist() == [0, 0, 0, 1, 1, 0, 0, 0, 0, 0]
    assert counts.by_operator.sum(1).tolist() == [1, 2, 0, 1]               # [MIN, [MAX, [MED, [SM

def test_guesses(data):
    guesses = [middle_mode(c) for c in count_values(data.train_dataset).by_operator]
    assert [guesses[0], guesses[1], guesses[3]] == [0, 9, 4] and guesses[2] in (4, 5)

def test_answers_by_hand():
    unseen = ids('[MAX 1 [MIN 2 7 ] ]', '[MED 5 5 ]', '[SM 4 [SM 9 9 ] ]')
    answers = {name: rule(unseen).tolist() for name,rule in listops_rules(SMALL).items()}
    assert answers['majority class'] == answers['root operator'] == [3, 3, 3]          # [MED is new, so it gets the majority class
    assert answers['2 levels exact'] == [evaluate(detokenize(row)) for row in unseen]

def test_k_levels_exact_is_exact_where_there_are_no_more_levels_of_operators(data):
    "and it is not always right below; a lone digit has no operators"
    x,y = data.test_dataset.tensors
    forest, = row_forests(x)
    operators = np.maximum.reduceat(node_depths(forest)*(forest.n_args > 0), forest.starts[:-1])     # levels of operators of each expression
    for k in range(1, 6):
        right = (listops_rules(data.train_dataset, levels=(k,))[f"{k} level{'s'*(k > 1)} exact"](x) == y).numpy()
        assert right[operators <= k].all() and (k == 5 or not right[operators > k].all())

def test_the_baselines_climb(data):
    found = listops_baselines(data, levels=range(1, 6))
    assert found['5 levels exact'] == 1.            # max_depth is 6, and the lowest level has digits only
    assert found['1 level exact'] > found['root operator'] > found['majority class']
    assert found['majority class'] == (data.test_dataset.tensors[1] == data.train_dataset.tensors[1].mode().values).float().mean().item()
    assert get_task('listops').baselines(data) == listops_baselines(data)

def test_by_depth(data):
    x,y = data.test_dataset.tensors
    rules = listops_rules(data.train_dataset)
    found = {name: accuracy_by_depth(rule(x), data.test_dataset) for name,rule in rules.items()}
    assert [found['3 levels exact'][d][0] for d in (2, 3, 4)] == [1., 1., 1.] and found['3 levels exact'][6][0] < 1
    assert sum(n for _,n in found['root operator'].values()) == len(y)
    logits = torch.nn.functional.one_hot(rules['root operator'](x), 10).float()
    assert accuracy_by_depth(logits, data.test_dataset) == found['root operator']
    assert tree_depths(ids('7', '[SM 1 2 ]', '[SM 1 [SM 1 ] ]')).tolist() == [1, 2, 3]
    with pytest.raises(ValueError, match='predictions: expected 800, one for each expression, got 3'): accuracy_by_depth(y[:3], data.test_dataset)

def test_the_picture_shows_every_rule_and_model():
    import matplotlib
    matplotlib.use('Agg')
    import matplotlib.pyplot as plt
    found = {'majority class': .177, 'root operator': .371, '1 level exact': .597}
    ax = plot_baselines(found, {'Transformer': .3637, 'S4': .5960})
    assert [b.get_width() for b in ax.patches] == pytest.approx([100*a for a in found.values()]) and len(ax.lines) == 2
    plt.close('all')
