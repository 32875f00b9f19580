"Ten thousand texts for the parser, most of them wrong, damaged files of them, and the time it takes, which must grow as the text does"
import gc, math, os, random, socket, time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, settings, strategies as st

from bounds import FULL, bounded
from ebt_toy import files
from ebt_toy.core import generator
from ebt_toy.files import FORMATS, FileError, detect_format, format_line, read_data, read_dataset, read_file, read_ids, read_lines, read_rows
from ebt_toy.listops import VOCAB, ListOpsError, Tree, detokenize, evaluate, grow, parse, random_numbers, render

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

# Damaged files, thousands of them with EBT_FUZZ=1

def file(r):
    "Rows in one of the formats, and the bytes of the file"
    format,texts = r.choice(list(FORMATS)),[' '.join(words) for words in r.choices(VALID, k=r.randint(1, 12))]
    lines = [FORMATS[format].header]*(format == 'lra') + [format_line(t, evaluate(t), format) for t in texts]
    return '\n'.join(lines).encode() + b'\n'

LONG = [b'1 '*200_000, b'[SM '*200_000, b'( '*200_000, b'[MAX '*50_000 + b'7' + b' ]'*50_000, b'\t'*100_000, b'\0'*100_000, b'7'*1_000_000, b'\n'*100_000, b' '*1_000_000, '\u2003é\U0001f600'.encode()*50_000]
PIECES = [b'\t', b'\n', b'\r', b'\r\n', b'\0', b'\xff', b'\xef\xbb\xbf', b'\xed\xa0\x80', b'Source\tTarget\n', b'[SM 3 ]\t3\n', b'3\t[SM 3 ]\n', b'\x0b', b'\x1c', '\u2028'.encode(), '٣'.encode(), b'(', b']', b'-1', b'1e3', b'10']

def damaged(data, r):
    "A file with a few faults"
    data = bytearray(data)
    for _ in range(r.randint(1, 3)):
        a,b = sorted(r.randrange(len(data) + 1) for _ in range(2))
        what = r.choice(['byte', 'byte', 'byte', 'piece', 'piece', 'piece', 'cut', 'end', 'repeat', 'lines', 'line', 'zeros', 'swap', 'encoding', 'long'])
        if what == 'byte': data[a:a + r.randint(0, 1)] = r.randbytes(r.randint(0, 1))
        if what == 'piece': data[a:a + r.randint(0, 3)] = r.choice(PIECES)
        if what == 'cut': del data[a:min(b, a + 40)]
        if what == 'end': del data[b:]
        if what == 'repeat': data[b:b] = data[a:b]
        if what == 'zeros': data[a:min(b, a + 512)] = bytes(min(b, a + 512) - a)
        if what == 'long': data[a:a] = r.choice(LONG)
        if what == 'encoding': data = bytearray(data.decode('latin-1').encode(r.choice(['utf-16', 'utf-32', 'utf-8-sig', 'cp037'])))
        lines = bytes(data).split(b'\n')
        if what == 'lines': r.shuffle(lines)
        if what == 'line': lines[r.randrange(len(lines))] = r.choice([b'', b' ', b'x', b'3', b'3\t', b'\t3', b'[SM 1 2 ]\t4', b'4\t[SM 1 2 ]'])
        if what == 'swap': lines = [b'\t'.join(line.split(b'\t')[::-1]) for line in lines]
        if what in ('lines', 'line', 'swap'): data = bytearray(b'\n'.join(lines))
    return bytes(data)

def result(f, path):
    "What a reader gives, or its error"
    try: return f(path)
    except FileError as e:
        assert e.path == str(path) and str(e).startswith(f'{path}, line {e.line}: ') and str(e).removeprefix(str(path)).isprintable() and len(str(e)) < 400 + len(str(path))
        return str(e)

@profile(3000 if FULL else 150)
@given(st.integers(0, 2**64))
def test_a_damaged_file_is_refused_or_right(tmp_path_factory, seed):
    path,r = tmp_path_factory.getbasetemp()/'damaged.tsv',random.Random(seed)
    path.write_bytes(damaged(file(r), r))
    with bounded(): slow = result(lambda p: list(read_file(p)), path)
    with bounded(): fast = result(read_ids, path)
    with bounded(): whole = result(read_dataset, path)
    if isinstance(slow, str) or not slow: assert fast == whole and (fast == slow or not slow and 'expected rows, got none' in fast)
    else:
        assert [detokenize(row) for row in fast[0]] == [render(t) for t,_ in slow] == [detokenize(row) for row in whole.tensors[0]]
        assert fast[1].tolist() == whole.tensors[1].tolist() == [y for _,y in slow] == [evaluate(t) for t,_ in slow]

READERS = dict(read_lines=lambda p: list(read_lines(p)), detect_format=detect_format, read_rows=lambda p: list(read_rows(p, 'lra')), read_file=lambda p: list(read_file(p)),
               read_ids=read_ids, read_dataset=read_dataset, read_data=lambda p: read_data(p, p, p))

@pytest.mark.parametrize('make, what', [(os.mkfifo, 'a pipe'), (os.mkdir, 'a folder'), (lambda p: os.symlink('/dev/zero', p), 'a device'), (lambda p: socket.socket(socket.AF_UNIX).bind(str(p)), 'a socket')], ids=lambda v: str(v)[:10])
@pytest.mark.parametrize('read', READERS)
def test_what_is_no_file_is_not_opened(tmp_path, monkeypatch, read, make, what):
    monkeypatch.chdir(tmp_path)
    make(Path('other'))
    with bounded(), pytest.raises(ValueError, match=f'^other: expected a file, got {what}$'): READERS[read]('other')

def test_a_link_to_a_file_is_a_file(tmp_path):
    (tmp_path/'a.tsv').write_text('3\t[SM 3 ]\n')
    (tmp_path/'link').symlink_to('a.tsv')
    assert list(read_file(tmp_path/'link')) == [(parse('[SM 3 ]'), 3)]

def test_a_pipe_in_the_place_of_a_file_does_not_block(tmp_path, monkeypatch):
    "It may come there between the first look and the opening"
    (tmp_path/'a.tsv').write_text('3\t[SM 3 ]\n')
    os.mkfifo(tmp_path/'pipe')
    seen,stat_ = os.stat(tmp_path/'a.tsv'),os.stat
    monkeypatch.setattr(os, 'stat', lambda p, **kw: seen if p == tmp_path/'pipe' else stat_(p, **kw))
    with bounded(), pytest.raises(ValueError, match='expected a file, got a pipe'): detect_format(tmp_path/'pipe')

def test_a_file_without_line_ends_needs_little_memory(tmp_path):
    (tmp_path/'a.tsv').touch()
    os.truncate(tmp_path/'a.tsv', 10**10)
    with bounded(), pytest.raises(FileError, match='line 1: expected a line shorter than'): read_ids(tmp_path/'a.tsv')

def test_long_rows_are_taken_a_few_at_a_time(tmp_path):
    "Rows of several megabytes: no more than a few are held as text"
    (tmp_path/'a.tsv').write_text('\n'.join(['1\t[MIN ' + '1 '*(2*10**6) + ']']*12 + ['2\t[MIN 1 ]']))
    with bounded(60, 400e6), pytest.raises(FileError, match='line 13: expected the label 1'): read_ids(tmp_path/'a.tsv', parens=False)

# Time

SHAPES = {'deep': lambda n: Tree(('[MAX', '[SM')*(n//4) + ('7',), (1,)*(n//4*2) + (0,)),
          'wide': lambda n: Tree(('[SM', *'123456789'*(n//9)), (n//9*9, *(0,)*(n//9*9)))}

def seconds(f, repeats):
    "Of this process, the best of a few runs: time that other processes take from a long run does not count"
    best = math.inf
    for _ in range(repeats):
        start = time.process_time()
        f()
        best = min(best, time.process_time() - start)
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

@pytest.mark.parametrize('row', ['[MAX '*100_000 + '7' + ' ]'*100_000, '[MAX 1 '*50_000 + '7' + ' 3 ]'*50_000, '('], ids=lambda t: t[:8])
def test_deep_rows_are_read_as_fast_as_they_are_parsed(tmp_path, row):
    if row[0] == '(': row = render(SHAPES['deep'](50_000))
    (tmp_path/'a.tsv').write_text(f'{evaluate(row)}\t{row}\n')
    read_ids(tmp_path/'a.tsv')
    assert seconds(lambda: read_ids(tmp_path/'a.tsv'), 3) < 3*seconds(lambda: list(read_file(tmp_path/'a.tsv')), 3)

@pytest.mark.parametrize('wrong', ['( '*500_000, '[SM '*500_000, '[SM 1 '*250_000, '1 '*500_000, '] '*500_000, '( '*250_000 + ') '*250_000,
                                   '[MIN 1 2 ] '*100_000, '[SM'*300_000, ' '*1_000_000, '( ( [SM 1 ) ] ) ( '*60_000])
def test_long_wrong_texts_are_refused_in_time(wrong):
    start = time.process_time()
    with pytest.raises(ListOpsError): parse(wrong)
    assert time.process_time() - start < 10
