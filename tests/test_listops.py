"Properties of ListOps: every text either parses and renders back, or is refused"
import gc, pickle

import matplotlib
matplotlib.use('Agg')
import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from ebt_toy.core import generator
from ebt_toy.listops import (OPERATORS, PAD, TOKEN_ID, VOCAB, ListOpsError, Tree, detokenize, draw_tree, evaluate, grow, node_values, parents,
                             draw_distinct, median, parse, positions, random_numbers, render, sum_mod, tokenize, tree_length)

digits = st.sampled_from('0123456789').map(lambda d: ((d,), (0,)))

def join(op_and_args):
    op,args = op_and_args
    return (op, *(n for a in args for n in a[0])),(len(args), *(n for a in args for n in a[1]))

trees = st.recursive(digits, lambda sub: st.tuples(st.sampled_from(list(OPERATORS)), st.lists(sub, min_size=1, max_size=6)).map(join), max_leaves=60).map(lambda t: Tree(*t))
soups = st.lists(st.sampled_from(VOCAB[1:]), max_size=25).map(' '.join)

def read(tokens):
    "The meaning of an expression, by recursion"
    token = next(tokens)
    if token == ']': return None
    if token not in OPERATORS: return int(token)
    args = []
    while (arg := read(tokens)) is not None: args.append(arg)
    return {'[MIN': min, '[MAX': max, '[MED': lambda a: int(np.median(a)), '[SM': lambda a: sum(a) % 10}[token](args)

def recursive_value(text): return read(t for t in text.split() if t not in '()')

def as_pairs(tokens):
    "The same from the parentheses alone: each pair applies its left half to its right half"
    token = next(tokens)
    if token != '(': return token
    left,right = as_pairs(tokens),as_pairs(tokens)
    assert next(tokens) == ')'
    if isinstance(left, str): return [left, right]
    if right != ']': return left + [right]
    op,*args = left
    return str(recursive_value(' '.join([op, *args, ']'])))

@given(trees, st.booleans())
def test_parse_inverts_render(tree, parens):
    text = render(tree, parens)
    assert parse(text) == tree
    assert tree_length(tree, parens) == len(text.split())
    assert detokenize(tokenize(text)) == text
    assert eval(repr(tree)) == tree

@given(trees)
def test_stack_evaluator_equals_both_recursive_ones(tree):
    value = evaluate(tree)
    assert value == evaluate(render(tree)) == evaluate(render(tree, parens=False)) == recursive_value(render(tree))
    assert str(value) == as_pairs(iter(render(tree).split()))

@given(trees)
def test_flat_rows_describe_one_tree(tree):
    up = parents(tree)
    assert up[0] == -1 and all(0 <= p < i for i,p in enumerate(up) if i)
    assert [up.count(i) for i in range(len(up))] == list(tree.n_args)
    x,y = zip(*positions(tree))
    assert [a for a,n in zip(x, tree.n_args) if not n] == list(range(tree.n_args.count(0)))
    assert all(y[i] == y[p] - 1 for i,p in enumerate(up) if i)
    assert len(set(zip(x, y))) == len(x)

def accepts_or_refuses(text):
    try: tree = parse(text)
    except ListOpsError as e:
        starts = [i for i,c in enumerate(text) if not c.isspace() and (i == 0 or text[i - 1].isspace())] + [len(text)]
        assert starts[e.token] == e.offset and f"token {e.token}, character {e.offset}" in str(e)
        return False
    assert render(tree, parens='(' in text).split() == text.split()
    assert evaluate(tree) == recursive_value(text)
    return True

@settings(max_examples=500)
@given(soups)
def test_token_soup(text): accepts_or_refuses(text)

@given(st.text(alphabet='[]()MINAXEDS 0123456789\n\t\x00é０', max_size=40))
def test_character_soup(text): accepts_or_refuses(text)

@settings(max_examples=500)
@given(trees, st.booleans(), st.data())
def test_mutated_text(tree, parens, data):
    words = render(tree, parens).split()
    i = data.draw(st.integers(0, len(words) - 1))
    j = data.draw(st.integers(0, len(words) - 1))
    token = data.draw(st.sampled_from(VOCAB[1:]))
    edit = data.draw(st.sampled_from(['delete', 'insert', 'replace', 'swap', 'cut']))
    if edit == 'delete': del words[i]
    elif edit == 'insert': words.insert(i, token)
    elif edit == 'replace': words[i] = token
    elif edit == 'swap': words[i],words[j] = words[j],words[i]
    else: words = words[:i]
    accepted = accepts_or_refuses(' '.join(words))
    assert not (accepted and edit == 'cut')   # a proper prefix is never an expression

@given(trees, st.data())
def test_every_parenthesis_counts(tree, data):
    words = render(tree).split()
    where = [i for i,w in enumerate(words) if w in '()']
    if not where: return
    del words[data.draw(st.sampled_from(where))]
    assert not accepts_or_refuses(' '.join(words))

@pytest.mark.parametrize('bad, message', [
    ('', "empty expression (token 0, character 0)"), ('( )', "empty expression (token 2, character 3)"),
    ('[MIN 3 4', "text ends inside '[MIN' (token 3, character 8)"),
    ('[MIN 3 [MAX ] ]', "operator '[MAX' has no arguments (token 3, character 12)"),
    ('[MIN 3 ] 4', "trailing text '4' after a complete expression (token 3, character 9)"),
    ('] 3', "']' closes no operator (token 0, character 0)"), ('[min 3 ]', "unknown token '[min' (token 0, character 0)"),
    ('( ( ( [SM 2 ) 6 ) ]', "parentheses do not pair from the left: expected ')', got 'end of text' (token 9, character 19)"),
    ('( ( ( [SM 2 ) 6 ) ] ) )', "parentheses do not pair from the left: expected 'end of text', got ')' (token 10, character 22)"),
    ('( [SM ( 2 ( 6 ] ) ) )', "parentheses do not pair from the left: expected '(', got '[SM' (token 1, character 2)"),
    ('( 7 )', "parentheses do not pair from the left: expected '7', got '(' (token 0, character 0)")])
def test_each_fault_has_its_message(bad, message):
    with pytest.raises(ListOpsError) as e: parse(bad)
    assert str(e.value) == message

@pytest.mark.parametrize('text, value', [('( ( ( ( [SM 2 ) 6 ) 5 ) ] )', 3), ('( ( ( [MAX 2 ) ( ( ( [MIN 9 ) 4 ) ] ) ) ] )', 4), ('[MED 2 7 ]', 4), ('[MIN 8 ]', 8), ('0', 0), ('[MAX 2\n  [MIN 9 4 ]\n]', 4)])
def test_values_of_known_expressions(text, value): assert evaluate(text) == recursive_value(text) == value

def test_operators_against_numpy_and_text():
    rng = np.random.default_rng(0)
    for n in range(1, 200):
        digits = rng.integers(10, size=n).tolist()
        assert median(digits) == int(np.median(digits)) and sum_mod(digits) == int(str(sum(digits))[-1])

def test_a_small_tree():
    tree = Tree(('[MAX', '2', '[MIN', '9', '4'), (2, 0, 2, 0, 0))
    assert parents(tree) == [-1, 0, 0, 2, 2] and positions(tree) == [(0.75, 0), (0, -1), (1.5, -1), (1, -2), (2, -2)]
    assert parse('7') == Tree(('7',), (0,)) and parse('( ( [MED 7 ) ] )').n_args == (1, 0)

@pytest.mark.parametrize('ids, message', [([11, 3, 18], 'unknown token id 18 (token 2, character 7)'), ([3, PAD, 3], 'unknown token id 0 (token 1, character 2)')])
def test_an_unknown_id_is_named_with_its_place(ids, message):
    with pytest.raises(ListOpsError) as e: detokenize(ids)
    assert str(e.value) == message

@pytest.mark.parametrize('bad', [None, 7, b'[MIN 3 ]', ['7']])
def test_only_strings_parse(bad):
    for f in (parse, tokenize, evaluate):
        with pytest.raises(ListOpsError, match='expected a string'): f(bad)

@pytest.mark.parametrize('bad', [[18], [-1], [1.0], ['7'], [3, PAD, 3]])
def test_only_known_ids_read(bad):
    with pytest.raises(ListOpsError, match='unknown token id'): detokenize(bad)

def test_the_error_travels_between_processes():
    with pytest.raises(ListOpsError) as e: parse('[MIN 3 ] 4')
    same = pickle.loads(pickle.dumps(e.value))
    assert (str(same), same.token, same.offset) == (str(e.value), 3, 9)

def test_vocabulary():
    assert len(VOCAB) == len(set(VOCAB)) == 18 and PAD == 0 and VOCAB[PAD] not in TOKEN_ID
    assert detokenize(torch.zeros(5, dtype=torch.int64)) == ''

@pytest.mark.parametrize('parens', [True, False])
def test_a_hundred_thousand_levels(parens):
    levels = 100_000
    ops = [list(OPERATORS)[i % 4] for i in range(levels)]
    tree = Tree((*ops, '7'), (1,)*levels + (0,))
    text = render(tree, parens)
    again = parse(text)
    assert again == tree and hash(again) == hash(tree) and evaluate(again) == 7
    assert len(repr(again)) > levels and pickle.loads(pickle.dumps(again)) == tree
    assert parents(tree)[-1] == levels - 1 and positions(tree)[-1] == (0, -levels)
    with pytest.raises(ListOpsError, match='ends inside' if not parens else 'do not pair|ends inside'): parse(text[:-2])
    del tree, again
    gc.collect()

def test_a_hundred_thousand_arguments():
    text = '[SM ' + '1 '*100_003 + ']'
    assert evaluate(text) == 3 and evaluate(render(parse(text))) == 3

def test_growth_follows_the_rule():
    draws = random_numbers(generator(0))
    grown = [grow(draws, max_depth=3, max_args=4) for _ in range(20_000)]
    assert abs(np.mean([t.n_args[0] > 0 for t in grown]) - 0.25) < 0.015
    counts = np.bincount([n for t in grown for n in t.n_args], minlength=5)
    assert counts[1] == 0 and len(counts) == 5 and np.ptp(counts[2:]) < 0.1*counts[2:].mean()
    names = [t.nodes[0] for t in grown]
    for group in (OPERATORS, '0123456789'):
        share = np.array([names.count(n) for n in group])/sum(n in group for n in names)
        assert np.abs(share - 1/len(group)).max() < 0.03
    assert {int(-min(y for _,y in positions(t))) for t in grown} == {0, 1, 2}

def test_a_limit_drops_trees_and_changes_none():
    free = [grow(random_numbers(generator(seed)), max_depth=5) for seed in range(300)]
    limited = [grow(random_numbers(generator(seed)), max_depth=5, max_length=100) for seed in range(300)]
    assert limited == [t if tree_length(t) <= 100 else None for t in free] and 0 < limited.count(None) < 100

def test_distinct_trees_until_there_are_no_more():
    seen,limits = set(),dict(max_depth=2, max_args=2, min_length=10, max_length=10)
    first,more = (draw_distinct(n, seen, random_numbers(generator(n)), **limits) for n in (90, 310))
    assert len(set(first)) == 90 and len(set(first + more)) == len(seen) == 4*10*10   # four operators on two digits: these are all there are
    with pytest.raises(ValueError, match='asked for 1 new expressions of 10 to 10 tokens .* found 0 beside 400 drawn before'):
        draw_distinct(1, seen, random_numbers(generator(5)), **limits)

def test_what_is_cut_is_another_question():
    "Expressions as long as those of the Long-Range Arena, cut to 500 tokens: no expressions any more, and closed by guesswork mostly of another value"
    draws,trees = random_numbers(generator(2)),[]
    while len(trees) < 50:
        tree = grow(draws, max_length=3*2000 - 2)
        if tree is not None and tree_length(tree, parens=False) >= 500: trees.append(tree)
    def closed(tree):
        plain = [t for t in render(tree).split()[:500] if t not in '()']
        while plain[-1] in OPERATORS: plain.pop()
        return ' '.join(plain + [']']*(sum(t in OPERATORS for t in plain) - plain.count(']')))
    for tree in trees:
        with pytest.raises(ListOpsError, match='text ends inside'): parse(detokenize(tokenize(render(tree))[:500]))
    assert np.mean([evaluate(closed(t)) == evaluate(t) for t in trees]) < 0.5

def test_a_drawing_shows_every_node_and_result():
    import matplotlib.pyplot as plt
    fig,ax = plt.subplots()
    tree = parse('[SM 5 [MAX 2 [MIN 9 4 ] 3 ] [MED 1 8 6 7 ] ]')
    assert draw_tree(tree, ax) is ax
    assert [t.get_text() for t in ax.texts if t.get_gid() == 'node'] == [n.lstrip('[') for n in tree.nodes]
    assert [int(t.get_text()) for t in ax.texts if t.get_gid() == 'value'] == [v for v,n in zip(node_values(tree), tree.n_args) if n]
    assert len(ax.lines) == len(tree.nodes)   # one above each node
    assert [t.get_text() for t in draw_tree('7').texts] == ['7']
    plt.close('all')
