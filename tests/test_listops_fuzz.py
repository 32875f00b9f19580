"Ten thousand texts for the parser, most of them wrong, and its time, which must grow as the text does"
import gc, math, time

import pytest
from hypothesis import HealthCheck, Phase, given, settings, strategies as st

from ebt_toy.data import generator
from ebt_toy.listops import VOCAB, ListOpsError, Tree, evaluate, grow, parse, random_numbers, render

TOKENS = VOCAB[1:]
def profile(n): return settings(max_examples=n, deadline=None, database=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck))

def accepts(text):
    "Does `text` parse? Then it must render back to its own tokens; otherwise the error is a `ListOpsError` that points at a token"
    try: tree = parse(text)
    except ListOpsError as e:
        assert 0 <= e.token <= len(text.split()) and 0 <= e.offset <= len(text) and e.problem in str(e)
        return False
    assert render(tree, parens='(' in text).split() == text.split()
    assert evaluate(tree) in range(10)
    return True

# A store of valid expressions to mutate, small and large, so that each example costs one draw of numbers and no tree building

def valid(n=300):
    draws = random_numbers(generator(0, 'fuzz'))
    trees = (grow(draws, max_depth=6, max_args=5, max_length=400) for _ in iter(int, 1))
    found = [t for t,_ in zip((t for t in trees if t is not None and t.n_args[0]), range(n))]
    return [render(t, parens).split() for t in found for parens in (True, False)]

VALID = valid()
places = st.floats(0, 1, exclude_max=True)
edits = st.tuples(st.sampled_from(['delete', 'insert', 'replace', 'swap', 'cut', 'repeat', 'reverse', 'splice']), places, places, st.sampled_from(TOKENS), st.sampled_from(VALID))

def edit(words, kind, a, b, token, other):
    "One mutation of a list of tokens"
    if not words: return [token]
    i,j = int(a*len(words)),int(b*len(words))
    if kind == 'delete': return words[:i] + words[i + 1:]
    if kind == 'insert': return words[:i] + [token] + words[i:]
    if kind == 'replace': return words[:i] + [token] + words[i + 1:]
    if kind == 'cut': return words[:i]
    lo,hi = sorted((i, j))
    if kind == 'repeat': return words[:hi] + words[lo:hi] + words[hi:]
    if kind == 'reverse': return words[:lo] + words[lo:hi][::-1] + words[hi:]
    if kind == 'splice': return words[:i] + other[int(b*len(other)):]
    words = list(words)
    words[i],words[j] = words[j],words[i]
    return words

@profile(4000)
@given(st.sampled_from(VALID), st.lists(edits, min_size=1, max_size=3))
def test_mutated_expressions(words, mutations):
    for m in mutations: words = edit(words, *m)
    accepts(' '.join(words))

@profile(2000)
@given(st.lists(st.sampled_from(TOKENS), max_size=40), st.sampled_from([' ', '\n', '\t  ', '\u2003']))
def test_tokens_in_any_order(words, blank): accepts(blank.join(words))

@profile(1000)
@given(st.lists(st.sampled_from(['(', ')', '[SM', ']', '1']), max_size=14).map(' '.join))
def test_brackets_in_any_order(text): accepts(text)

@profile(1500)
@given(st.text(alphabet='[]()MINAXEDS 0123456789\n\t\r\x00\x0b\x1c\x85\u00a0\u2028é٣０', max_size=60))
def test_characters_like_those_of_expressions(text): accepts(text)

@profile(1500)
@given(st.text(max_size=60))
def test_any_text(text): accepts(text)

@profile(500)
@given(st.sampled_from(VALID), places, st.characters())
def test_one_strange_character(words, a, char):
    text = ' '.join(words)
    i = int(a*len(text))
    accepts(text[:i] + char + text[i:])

def test_valid_ones_are_accepted(): assert all(accepts(' '.join(words)) for words in VALID) and len({len(w) for w in VALID}) > 50

# Time

SHAPES = {'deep': lambda n: Tree(('[MAX', '[SM')*(n//4) + ('7',), (1,)*(n//4*2) + (0,)),
          'wide': lambda n: Tree(('[SM', *'123456789'*(n//9)), (n//9*9, *(0,)*(n//9*9)))}

def seconds(f, repeats):
    "The best of a few runs"
    best = math.inf
    for _ in range(repeats):
        start = time.perf_counter()
        f()
        best = min(best, time.perf_counter() - start)
    return best

def slope(sizes, times):
    "How time grows: 1 is linear, 2 quadratic"
    return math.log(times[-1]/times[0])/math.log(sizes[-1]/sizes[0])

@pytest.mark.parametrize('shape, parens', [('deep', True), ('wide', True), ('deep', False)], ids=str)
def test_time_is_linear(shape, parens):
    texts = [render(SHAPES[shape](n//3 if parens else n), parens) for n in (10_000, 100_000, 1_000_000)]
    sizes = [len(t.split()) for t in texts]
    assert abs(sizes[-1]/1e6 - 1) < 0.01 and abs(sizes[0]/1e4 - 1) < 0.01
    gc.collect()
    gc.disable()
    try: times = [seconds(lambda: parse(t), r) for t,r in zip(texts, (9, 4, 2))]
    finally: gc.enable()
    assert 0.8 < slope(sizes, times) < 1.25, times
    assert times[-1] < 10, times

@pytest.mark.parametrize('wrong', ['( '*500_000, '[SM '*500_000, '[SM 1 '*250_000, '1 '*500_000, '] '*500_000, '( '*250_000 + ') '*250_000,
                                   '[MIN 1 2 ] '*100_000, '[SM'*300_000, ' '*1_000_000, '( ( [SM 1 ) ] ) ( '*60_000])
def test_long_wrong_texts_are_refused_in_time(wrong):
    start = time.perf_counter()
    with pytest.raises(ListOpsError): parse(wrong)
    assert time.perf_counter() - start < 10
