"Forests: the same as trees one by one, drawn from the same distribution, whole, distinct and repeatable"
import hashlib, os, subprocess, sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from ebt_toy import generate
from ebt_toy.core import generator
from ebt_toy.data import create_synthetic_data, get_task
from ebt_toy.generate import (Forest, Limits, concat, digests, distinct, draw_forest, forest_of, forest_of_ids, forest_values, labels,
                              node_depths, numpy_generator, ood_limits, pad, stream, texts, token_ids, unpad)
from ebt_toy.listops import (OPERATOR_P, OPERATORS, VOCAB, ListOpsError, Tree, detokenize, evaluate, grow, node_values, parents, parse, positions,
                             random_numbers, render, tokenize, tree_length)

digits = st.sampled_from('0123456789').map(lambda d: ((d,), (0,)))

def join(op_and_args):
    op,args = op_and_args
    return (op, *(n for a in args for n in a[0])),(len(args), *(n for a in args for n in a[1]))

trees = st.recursive(digits, lambda sub: st.tuples(st.sampled_from(list(OPERATORS)), st.lists(sub, min_size=1, max_size=6)).map(join), max_leaves=40).map(lambda t: Tree(*t))
LRA = dict(min_length=500, max_length=2000, parens=False)

def closings(tree):
    "`]` after each node, read off the text"
    count = []
    for token in render(tree, parens=False).split():
        if token == ']': count[-1] += 1
        else: count.append(0)
    return count

def both_ways():
    "Evaluation level by level, and node by node"
    for level in (0, 10**9):
        with pytest.MonkeyPatch.context() as m:
            m.setattr(generate, 'LEVEL', level)
            yield level

def levels(tree): return [int(1 - y) for _,y in positions(tree)]

# A forest is its trees

@settings(deadline=None)
@given(st.lists(trees, max_size=8))
def test_a_forest_is_its_trees(ts):
    forest = forest_of(ts)
    assert list(forest) == ts and len(forest) == len(ts)
    assert forest.closes.tolist() == [c for t in ts for c in closings(t)]
    assert node_depths(forest).tolist() == [d for t in ts for d in levels(t)]
    for way in both_ways(): assert forest_values(forest).tolist() == [v for t in ts for v in node_values(t)], way
    assert labels(forest).tolist() == [evaluate(t) for t in ts]
    for parens in (True, False):
        written = [render(t, parens) for t in ts]
        ids,starts = token_ids(forest, parens)
        assert texts(forest, parens) == written
        assert ids.tolist() == [i for text in written for i in tokenize(text)]
        assert np.diff(starts).tolist() == [tree_length(t, parens) for t in ts]
    width = max([tree_length(t) for t in ts], default=1)
    assert [detokenize(row) for row in pad(*token_ids(forest), width)] == [render(t) for t in ts]
    assert [a == b for a,b in zip(digests(forest), digests(forest)[1:])] == [a == b for a,b in zip(ts, ts[1:])]

@settings(deadline=None)
@given(st.lists(trees, min_size=1, max_size=6), st.data())
def test_selecting_and_joining(ts, data):
    forest = forest_of(ts)
    which = data.draw(st.lists(st.integers(0, len(ts) - 1)))
    chosen = forest.take(np.array(which, int))
    assert list(chosen) == [ts[i] for i in which] and chosen.closes.tolist() == [c for i in which for c in closings(ts[i])]
    mask = np.array(data.draw(st.lists(st.booleans(), min_size=len(ts), max_size=len(ts))))
    assert list(forest.take(mask)) == [t for t,m in zip(ts, mask) if m]
    both = concat([forest, chosen])
    assert list(both) == [*ts, *chosen] and both.closes.tolist() == [*forest.closes, *chosen.closes]
    with pytest.raises(IndexError): forest[len(ts)]

def same(a, b): return all(np.array_equal(getattr(a, row), getattr(b, row)) and getattr(a, row).dtype == getattr(b, row).dtype for row in ('nodes', 'n_args', 'starts', 'closes'))

@settings(deadline=None)
@given(st.lists(trees, max_size=8), st.booleans(), st.sampled_from([np.int8, np.int64]), st.integers(0, 3))
def test_ids_and_rows_are_read_back(ts, parens, dtype, more):
    forest = forest_of(ts)
    ids,starts = token_ids(forest, parens)
    assert same(forest_of_ids(ids.astype(dtype), starts), forest)
    x = pad(ids, starts, int(np.diff(starts).max(initial=1)) + more)
    assert all(np.array_equal(a, b) and a.dtype == b.dtype for a,b in zip(unpad(x), (ids, starts)))
    assert not ts or torch.equal(pad(ids, starts), x[:,:x.shape[1] - more])

def is_expression(ids):
    try: return parse(detokenize([i for i in ids if i < 16])) is not None
    except ListOpsError: return False

tokens_in_rows = st.lists(st.lists(st.sampled_from([1, 10, 11, 14, 15, 15, 16, 17]), max_size=6), min_size=1, max_size=3)

@settings(deadline=None, max_examples=2000)
@given(tokens_in_rows)
def test_only_expressions_are_read(rows):
    found = forest_of_ids(np.array(sum(rows, []), np.int8), np.cumsum([0, *map(len, rows)]))
    assert (found is not None) == all(map(is_expression, rows))
    if found is not None: assert same(found, forest_of([parse(detokenize([i for i in row if i < 16])) for row in rows]))

@pytest.mark.parametrize('rows', [*(('7', bad, '[SM 1 2 ]') for bad in ('[SM 1 2', '1 2', '] 1 [SM', '[SM ]', ']', '[SM 1 [MAX ] ]', '[SM 1 ] ]', '[SM 1 ] [SM 1 ]', '( )')),
                                  ('[SM 1', '2 ]'), ('[SM 1', '] 2')], ids=str)     # the last two: right together, wrong one by one
def test_known_rows_that_are_no_expressions(rows):
    ids = [tokenize(t) for t in rows]
    assert forest_of_ids(np.array(sum(ids, [])), np.cumsum([0, *map(len, ids)])) is None

def test_one_wrong_token_among_many():
    "Every change of one token: refused exactly where the parser refuses it"
    ids,starts = token_ids(forest_of([parse(t) for t in ('[SM 5 [MAX 2 [MIN 9 4 ] 3 ] ]', '7', '[MED [SM 1 ] ]')]), parens=False)
    for at in range(len(ids)):
        for token in range(-1, len(VOCAB) + 1):
            changed = ids.copy()
            changed[at] = token
            rows = np.split(changed, starts[1:-1])
            assert (forest_of_ids(changed, starts) is not None) == (0 < token < len(VOCAB) and all(map(is_expression, rows)))

def value_to(tree, depth, guesses):
    "Values of all nodes, one expression at a time; operators below `depth` count as a guess"
    up,level,values = parents(tree),levels(tree),[None]*len(tree.nodes)
    for i in range(len(values) - 1, -1, -1):
        node = tree.nodes[i]
        if node not in OPERATORS: values[i] = int(node)
        elif level[i] > depth: values[i] = guesses[list(OPERATORS).index(node)]
        else: values[i] = OPERATORS[node]([v for v,p in zip(values, up) if p == i])
    return values

@settings(deadline=None)
@given(st.lists(trees, max_size=6), st.integers(0, 7), st.lists(st.integers(0, 9), min_size=4, max_size=4))
def test_values_down_to_a_depth(ts, depth, guesses):
    forest = forest_of(ts)
    for _ in both_ways():
        found = forest_values(forest, depth, np.array(guesses))
        assert found.dtype == np.int8 and found.tolist() == [v for t in ts for v in value_to(t, depth, guesses)]
    deepest = int(node_depths(forest).max(initial=1))
    assert np.array_equal(forest_values(forest, deepest, guesses), forest_values(forest))

def test_bad_depths_guesses_and_rows_are_refused():
    forest = forest_of([parse('[SM 1 2 ]')])
    for options,message in [((1,), 'guesses: expected 4 digits .* got None'), ((1, [1, 2]), 'guesses: expected 4'), ((-1, [0]*4), 'depth: expected .* got -1')]:
        with pytest.raises(ValueError, match=message): forest_values(forest, *options)
    for x in (torch.rand(2, 5), torch.full((2, 5), 18), torch.full((2, 5), -1), torch.zeros(5, dtype=torch.int64)):
        with pytest.raises(ValueError, match='x: expected rows of token ids, .* in 0 to 17, got'): unpad(x)
    for width in (0, 9, 10.5):
        with pytest.raises(ValueError, match='width: expected'): pad(*token_ids(forest), width=width)

def test_long_rows_are_worked_on_in_pieces(monkeypatch):
    forest = draw_forest(300, numpy_generator(0), min_length=1)
    whole = forest_values(forest),token_ids(forest),texts(forest)
    monkeypatch.setattr('ebt_toy.generate.PIECE', 100)
    again = forest_values(forest),token_ids(forest),texts(forest)
    assert (whole[0] == again[0]).all() and all((a == b).all() for a,b in zip(whole[1], again[1])) and whole[2] == again[2]

def test_deep_and_wide_expressions():
    deep,wide = parse('[MIN '*3000 + '3' + ' ]'*3000),parse('[MED ' + '1 7 '*50_000 + ']')
    forest = forest_of([deep, parse('7'), wide])
    assert node_depths(forest).max() == 3001 and labels(forest).tolist() == [3, 7, 4]
    assert texts(forest) == [render(deep), '7', render(wide)]
    assert same(forest_of_ids(*token_ids(forest)), forest)

# What is drawn

def test_twenty_thousand_labels_and_texts():
    forest = draw_forest(20_000, numpy_generator(3))
    found,written = labels(forest),texts(forest)
    for i,tree in enumerate(forest):
        assert evaluate(tree) == found[i]
        if i % 10 == 0: assert render(tree) == written[i] and 50 <= tree_length(tree) <= 500
    assert (forest.closes == Forest(forest.nodes, forest.n_args, forest.starts).closes).all()

def test_lra_lengths():
    forest = draw_forest(300, numpy_generator(3), **LRA)
    assert all(500 <= tree_length(t, parens=False) <= 2000 for t in forest) and node_depths(forest).max() <= 10
    assert labels(forest).tolist() == [evaluate(t) for t in forest]

def p_of(statistic, df): return torch.special.gammaincc(torch.tensor(df/2., dtype=torch.float64), torch.tensor(statistic/2., dtype=torch.float64)).item()

def alike(a, b):
    "p of chi-squared for two samples of small whole numbers"
    counts = np.array([np.bincount(v, minlength=1 + max(a.max(), b.max())) for v in (a, b)])
    counts = counts[:, counts.sum(0) >= 20]
    expected = counts.sum(0)*counts.sum(1, keepdims=True)/counts.sum()
    return p_of(((counts - expected)**2/expected).sum(), counts.shape[1] - 1)

@pytest.mark.parametrize('limits', [dict(min_length=1, max_length=300, max_depth=4, max_args=4), dict(min_length=20, max_length=200, max_depth=6, max_args=7)])
def test_distributed_as_the_specification(limits):
    draws = random_numbers(generator(5))
    options = {k: v for k,v in limits.items() if k != 'min_length'}
    attempts = (grow(draws, **options) for _ in range(10**9))
    grown = [t for t,_ in zip((t for t in attempts if t is not None and tree_length(t) >= limits['min_length']), range(6000))]
    old,new = forest_of(grown),draw_forest(20_000, numpy_generator(5), **limits)
    def traits(f):
        first = f.starts[:-1]
        return dict(size=np.diff(f.starts)//4, operators=np.add.reduceat(f.n_args > 0, first, dtype=int), levels=np.maximum.reduceat(node_depths(f), first),
                    root=f.nodes[first], arguments=f.n_args[first], widest=np.maximum.reduceat(f.n_args, first), last=f.nodes[f.starts[1:] - 1], label=labels(f))
    a,b = traits(old),traits(new)
    p = {name: alike(a[name], b[name]) for name in a}
    assert min(p.values()) > 1e-3, p

def law(most, levels=10, widest=10):
    "Probabilities of the lengths 0 to `most`, without parentheses, of expressions with up to 10 levels and arguments, where they have no more than `levels` and `widest`"
    p = np.zeros(most + 1)
    p[1] = 1 if levels == 10 else 1 - OPERATOR_P       # the lowest of ten levels holds digits only
    for _ in range(levels - 1):
        power,mixed = p,np.zeros(most + 1)
        for n in range(2, widest + 1):
            power = np.convolve(power, p)[:most + 1]
            mixed += power/9
        p = np.append([0, 0], OPERATOR_P*mixed[:-2])
        p[1] = 1 - OPERATOR_P
    return p

def test_lengths_levels_and_widths_follow_the_exact_law():
    "Within the default limits; and the test finds a difference where there is one"
    assert law(20, levels=2)[4:13] == pytest.approx(OPERATOR_P/9*(1 - OPERATOR_P)**np.arange(2, 11))   # one operator, all of its arguments digits
    fewest,most = Limits().plain
    within = lambda **narrower: law(most, **narrower)[fewest:].sum()
    exact = dict(length=np.where(np.arange(most + 1) < fewest, 0, law(most)), levels=np.diff([0, *(within(levels=d) for d in range(1, 11))], prepend=0),
                 widest=np.diff([0, *(within(widest=m) for m in range(1, 11))], prepend=0))
    assert [p.sum()/exact['length'].sum() for p in exact.values()] == pytest.approx([1, 1, 1])
    def p_for(f):
        first,p = f.starts[:-1],{}
        found = dict(length=np.diff(token_ids(f, parens=False)[1]), levels=np.maximum.reduceat(node_depths(f), first), widest=np.maximum.reduceat(f.n_args, first))
        for name,values in found.items():
            seen,expected = np.bincount(values, minlength=len(exact[name])),len(f)*exact[name]/exact[name].sum()
            enough = expected >= 5
            p[name] = p_of(((seen - expected)**2/np.where(enough, expected, 1))[enough].sum(), enough.sum() - 1)
        return p
    p = p_for(draw_forest(60_000, numpy_generator(2)))
    assert min(p.values()) > 1e-3, p
    assert p_for(draw_forest(20_000, numpy_generator(2), max_args=9))['length'] < 1e-4

def test_free_expressions_follow_their_closed_forms():
    free = draw_forest(40_000, numpy_generator(1), max_depth=4, min_length=1, max_length=10_000)
    assert (np.diff(free.starts) == 1).mean() == pytest.approx(0.75, abs=4*(0.75*0.25/len(free))**0.5)
    assert np.bincount(node_depths(free))[1:]/len(free) == pytest.approx(((2 + 10)/8)**np.arange(4), abs=0.12)

def test_one_at_a_time_has_the_same_distribution():
    draws = random_numbers(generator(0))
    attempts = (grow(draws, max_length=500) for _ in range(10**9))
    old = forest_of([t for t,_ in zip((t for t in attempts if t is not None and tree_length(t) >= 50), range(3000))])
    a,b = (np.diff(token_ids(f)[1]) for f in (old, draw_forest(60_000, numpy_generator(2))))
    grid = np.union1d(a, b)                            # the largest gap between the two cumulative distributions (Kolmogorov and Smirnov)
    gap = np.abs(np.searchsorted(np.sort(a), grid, 'right')/len(a) - np.searchsorted(np.sort(b), grid, 'right')/len(b)).max()
    lam,k = gap*(len(a)*len(b)/(len(a) + len(b)))**0.5,np.arange(1, 101)
    assert lam < 0.3 or 2*((-1.)**(k - 1)*np.exp(-2*(k*lam)**2)).sum() > 1e-3

def test_limits_count_tokens():
    assert Limits().plain == (18, 167) and (Limits().tokens(18), Limits().tokens(167)) == (52, 499)
    assert Limits(**LRA).plain == (500, 2000)

def test_exact_probabilities_of_small_expressions():
    "Every expression of at most 2 levels and 2 arguments has a known probability"
    forest = draw_forest(50_000, numpy_generator(6), max_depth=2, max_args=2, min_length=1, max_length=10)
    count = {}
    for text in texts(forest, parens=False): count[text] = count.get(text, 0) + 1
    law = {d: (1 - OPERATOR_P)/10 for d in '0123456789'} | {f'{op} {a} {b} ]': OPERATOR_P/4/100 for op in OPERATORS for a in range(10) for b in range(10)}
    assert set(count) <= set(law)
    expected = np.array(list(law.values()))*len(forest)
    seen = np.array([count.get(t, 0) for t in law])
    assert p_of(((seen - expected)**2/expected).sum(), len(law) - 1) > 1e-3

def test_mean_size_of_levels():
    forest = draw_forest(30_000, numpy_generator(7), max_depth=4, max_args=6, min_length=1, max_length=10_000)
    assert np.bincount(node_depths(forest))[1:]/len(forest) == pytest.approx(((2 + 6)/8)**np.arange(4), abs=0.06)

# Distinct, and the same everywhere

def test_portions_do_not_matter():
    whole = texts(next(stream(900, seed=8, chunk=900)))
    for chunk in (1, 100, 899, 10_000): assert texts(concat(list(stream(900, seed=8, chunk=chunk)))) == whole
    assert texts(concat(list(stream(200, seed=8)))) == whole[:200]
    assert len(set(whole)) == 900 and texts(concat(list(stream(200, seed=8, part=1)))) != whole[:200]
    assert texts(distinct(900, numpy_generator(8, 0), set())) == whole

def test_what_was_seen_is_not_drawn_again():
    limits,seen = dict(max_depth=2, max_args=2, min_length=10, max_length=10),set()
    parts = [distinct(n, numpy_generator(9, n), seen, **limits) for n in (150, 200, 50)]
    assert len(set(sum(map(texts, parts), []))) == len(seen) == 400
    with pytest.raises(ValueError, match='asked for 3 new expressions of 10 to 10 tokens .* found 0 beside 400 drawn before; 100000'): distinct(3, numpy_generator(1), seen, **limits)
    fresh = set()
    with pytest.raises(ValueError, match='asked for 401 .* found 400 beside 0'): distinct(401, numpy_generator(1), fresh, **limits)
    with pytest.raises(ValueError, match='asked for 401 .* found 400 beside 0'): list(stream(401, 0, 100, **limits))

@pytest.mark.parametrize('options, message', [(dict(max_args=1), 'max_args'), (dict(min_length=0), 'min_length'), (dict(min_length=300, max_length=200), 'min_length: expected at most 199'),
    (dict(min_length=501), 'min_length: expected at most 499, the longest that fits in 500 tokens, got 501'), (dict(min_depth=11), 'min_depth: expected at most 10, the most that is drawn, got 11'), (dict(min_widest=11), 'min_widest'), (dict(max_depth=30, min_depth=20, max_length=100), 'max_length: expected at least 172')])
def test_limits_no_expression_meets(options, message):
    with pytest.raises(ValueError, match=message): draw_forest(1, numpy_generator(0), **options)

DIGEST = """
import hashlib, sys
import ebt_toy.generate
from ebt_toy.data import create_synthetic_data
data = create_synthetic_data('listops', size_train=200, size_val=50, size_test=50, vec_size=4, seed=5)
print(hashlib.sha256(b''.join(t.numpy().tobytes() for ds in data[:3] for t in ds.tensors)).hexdigest())
"""

def test_the_same_bytes_in_every_process():
    def run(hash_seed): return subprocess.Popen([sys.executable, '-c', DIGEST], env={**os.environ, 'PYTHONHASHSEED': hash_seed}, stdout=subprocess.PIPE, text=True)
    first,second = [p.communicate(timeout=120)[0].strip() for p in [run('1'), run('2')]]
    before,again = torch.get_rng_state(),create_synthetic_data('listops', size_train=200, size_val=50, size_test=50, vec_size=4, seed=5)
    assert torch.equal(torch.get_rng_state(), before)
    here = hashlib.sha256(b''.join(t.numpy().tobytes() for ds in again[:3] for t in ds.tensors)).hexdigest()
    assert len(first) == 64 and first == second == here

@pytest.mark.parametrize('options', [{}, dict(vec_size=1, min_length=1, max_args=3, max_depth=4), dict(vec_size=2, min_length=90), dict(max_depth=3, max_args=5, min_length=10)])
def test_data_are_whole_and_distinct(options):
    data = create_synthetic_data('listops', size_train=300, size_val=60, size_test=60, seed=1, **options)
    rows = torch.cat([ds.tensors[0] for ds in data[:3]])
    labels = torch.cat([ds.tensors[1] for ds in data[:3]])
    texts = [detokenize(r) for r in rows]
    assert rows.shape == (420, options.get('vec_size', 10)*50) and rows.dtype == labels.dtype == torch.int64
    assert len(set(texts)) == 420
    for text,label in zip(texts, labels.tolist()):
        tree = parse(text)
        assert render(tree) == text and evaluate(tree) == label
        assert options.get('min_length', 50) <= len(text.split()) <= data.input_dim
        assert max(tree.n_args) <= options.get('max_args', 10)
        assert 1 - min(y for _,y in positions(tree)) <= options.get('max_depth', 10)

def test_a_larger_training_set_leaves_the_others_alone():
    a,b,c = (create_synthetic_data('listops', size_train=n, size_val=30, size_test=30, vec_size=2, seed=s) for n,s in [(40, 0), (80, 0), (40, 1)])
    for i in (1, 2):
        for s,t in zip(a[i].tensors, b[i].tensors): assert torch.equal(s, t)
    assert torch.equal(a[0].tensors[0], b[0].tensors[0][:40])
    assert not torch.equal(a[2].tensors[0], c[2].tensors[0])

@pytest.mark.parametrize('options, message', [
    (dict(max_depth=0), 'max_depth'), (dict(max_depth=2.5), 'max_depth'), (dict(max_args=1), 'max_args'), (dict(min_length=0), 'min_length'),
    (dict(min_length=500), 'min_length: expected at most 499'), (dict(vec_size=1), 'min_length: expected at most 49'),
    (dict(max_depth=1, min_length=1), 'asked for 20 new expressions of 1 to 500 tokens with max_depth=1 and max_args=10, found 0 beside 10'),
    (dict(max_depth=2), 'asked for 5 new expressions of 50 to 500 tokens with max_depth=2'), (dict(max_dept=3), "unknown option of task 'listops' 'max_dept'; did you mean 'max_depth'"), (dict(seed=-1), 'seed')])
def test_impossible_requests_are_refused(options, message):
    with pytest.raises(ValueError, match=message): create_synthetic_data('listops', **{**dict(size_train=20, size_val=5, size_test=5), **options})

@pytest.mark.parametrize('ood', ['length', 'depth', 'args'])
def test_test_sets_beyond_training(ood):
    data = create_synthetic_data('listops', 400, 100, 200, vec_size=3, seed=2, max_depth=5, max_args=6, min_length=20, ood=ood)
    sets = [[parse(detokenize(row)) for row in ds.tensors[0]] for ds in data[:3]]
    measure = dict(length=tree_length, depth=lambda t: max(levels(t)), args=lambda t: max(t.n_args))
    limit = dict(length=150, depth=5, args=6)
    for name,f in measure.items():
        assert max(f(t) for ts in sets[:2] for t in ts) <= limit[name]
        tested = [f(t) for t in sets[2]]
        assert limit[name] < min(tested) and max(tested) <= 2*limit[name] if name == ood else max(tested) <= limit[name]
    assert data.input_dim == data.train_dataset.tensors[0].shape[1] == data.test_dataset.tensors[0].shape[1] == (300 if ood == 'length' else 150)
    for ts,ds in zip(sets, data): assert [evaluate(t) for t in ts] == ds.tensors[1].tolist()

def test_test_sets_begin_where_training_ends():
    "As large as they come: training reaches its limits, and each test set lies beyond one of them and twice as far at most"
    most = dict(length=500, levels=10, widest=10)
    def traits(**limits):
        f = distinct(2000, numpy_generator(7), set(), **limits)
        return dict(length=np.diff(token_ids(f)[1]), levels=np.maximum.reduceat(node_depths(f), f.starts[:-1]), widest=np.maximum.reduceat(f.n_args, f.starts[:-1]))
    trained = traits()
    assert all(trained[name].max() <= most[name] for name in most) and (trained['length'] < 200).mean() > 0.6
    for ood,name in dict(length='length', depth='levels', args='widest').items():
        tested = traits(**vars(ood_limits(ood, Limits())))
        for other in most: assert (most[other] < tested[other].min() and tested[other].max() <= 2*most[other]) if other == name else tested[other].max() <= most[other]
    with pytest.raises(ValueError, match="unknown ood 'lenght'; did you mean 'length'"): ood_limits('lenght', Limits())

def test_labels_are_uneven():
    f = distinct(2000, numpy_generator(7), set())
    root,label = f.nodes[f.starts[:-1]],labels(f)
    table = np.array([np.bincount(label[root == op], minlength=10) for op in range(10, 14)])
    assert {0, 9} == set(table.sum(0).argsort()[-2:].tolist()) and 0.1 < table.sum(0).max()/2000 < table.max(1).sum()/2000 < 0.5

def test_what_the_test_set_is():
    kind = get_task('listops').test_kind
    assert kind() == kind(max_depth=3) == 'In-Distribution' and len({kind(ood=o) for o in (None, 'length', 'depth', 'args')}) == 4
    with pytest.raises(ValueError, match="unknown ood 'size'"): create_synthetic_data('listops', 5, 5, 5, ood='size')
    with pytest.raises(ValueError, match='max_length: expected at least 91 tokens for 11 levels'): create_synthetic_data('listops', 5, 5, 5, vec_size=1, min_length=1, ood='depth')
