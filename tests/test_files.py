"ListOps files: whole or not at all, read back as written, and every fault named with its line"
import hashlib, os, pickle, signal, subprocess, sys, time, tracemalloc
from itertools import repeat

import pytest
import torch
from hypothesis import HealthCheck, given, settings, strategies as st

from ebt_toy import files
from ebt_toy.core import atomic_file
from ebt_toy.data import create_synthetic_data
from ebt_toy.files import FORMATS, FileError, detect_format, draw_rows, format_line, listops_command, read_data, read_dataset, read_file, read_ids, read_lines, read_rows, write_file
from ebt_toy.cli import listops_main
from ebt_toy.generate import Limits, draw_forest, numpy_generator
from ebt_toy.listops import ListOpsError, detokenize, evaluate, parse, render, tree_length

few = settings(max_examples=60, deadline=None, database=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
SMALL = '--size_train 40 --size_val 8 --size_test 8 --min_length 5 --max_length 40 --quiet'.split()

def sample(seed, n, **limits):
    "Expressions with their values"
    forest = draw_forest(n, numpy_generator(seed), **dict(min_length=1, max_length=300) | limits)
    return [(t, evaluate(t)) for t in forest]

@few
@given(st.integers(0, 10_000), st.integers(0, 30), st.sampled_from(list(FORMATS)), st.booleans(), st.booleans())
def test_what_is_written_is_read(tmp_path, seed, n, format, parens, as_text):
    rows = sample(seed, n) if n else []
    written = ((render(t, parens), y) for t,y in rows) if as_text else iter(rows)
    assert write_file(tmp_path/'a.tsv', written, format, parens, overwrite=True) == n
    if n or format == 'lra': assert list(read_file(tmp_path/'a.tsv')) == rows   # LRA's header tells the format of an empty one
    lines = (tmp_path/'a.tsv').read_bytes().split(b'\n')
    assert lines.pop() == b'' and len(lines) == n + (format == 'lra')
    assert any(b'(' in l for l in lines) == (parens and any(t.n_args[0] for t,_ in rows))
    if n:
        x,y = read_dataset(tmp_path/'a.tsv', parens=parens).tensors
        assert [detokenize(row) for row in x] == [render(t, parens) for t,_ in rows] and y.tolist() == [y for _,y in rows]
        assert (x.dtype, y.dtype) == (torch.uint8, torch.int64) and x.shape[1] == max(tree_length(t, parens) for t,_ in rows)

@few
@given(st.integers(0, 1000), st.booleans(), st.booleans(), st.integers(0, 3), st.booleans())
def test_marks_of_other_systems_change_nothing(tmp_path, seed, bom, crlf, blank, last):
    rows = sample(seed, 5)
    for format in FORMATS:
        write_file(tmp_path/'a.tsv', rows, format, overwrite=True)
        content = (tmp_path/'a.tsv').read_bytes() + b'\n'*blank
        if not last and not blank: content = content[:-1]
        if crlf: content = content.replace(b'\n', b'\r\n')
        (tmp_path/'a.tsv').write_bytes((b'\xef\xbb\xbf' if bom else b'') + content)
        assert list(read_file(tmp_path/'a.tsv')) == rows

def test_a_line_of_each_format():
    text = '( ( ( [MAX 2 ) 9 ) ] )'
    assert format_line(text, 9, 'lra') == text + '\t9' and format_line(text, 9, 'nangia') == '9\t' + text
    assert format_line('[MAX\t2\n 9 ]', 9, 'nangia') == '9\t[MAX 2 9 ]'
    with pytest.raises(ValueError, match="unknown format 'lar'; did you mean 'lra'"): format_line(text, 9, 'lar')

@pytest.mark.parametrize('content, lines', [(b'\xef\xbb\xbfone\r\ntwo\n\r\n\n', [(1, 'one'), (2, 'two')]), (b'one\ntwo', [(1, 'one'), (2, 'two')]), (b'', []), (b'\xef\xbb\xbf', [])])
def test_lines(tmp_path, content, lines):
    (tmp_path/'a.tsv').write_bytes(content)
    assert list(read_lines(tmp_path/'a.tsv')) == lines

@pytest.mark.parametrize('content, message', [(b'one\n\n\ntwo\n', 'line 2: expected a row, got an empty line'), (b'one\nt\xffo\n', 'line 2: expected text in UTF-8, got the byte 0xff at 1'),
                                              (b'\xef\xbb\xbft\xffo\n', 'line 1: expected text in UTF-8, got the byte 0xff at 1')])
def test_lines_that_are_refused(tmp_path, content, message):
    (tmp_path/'a.tsv').write_bytes(content)
    with pytest.raises(FileError, match=message): list(read_lines(tmp_path/'a.tsv'))

def test_rows_are_numbered_and_parsed_one_at_a_time(tmp_path):
    (tmp_path/'a.tsv').write_bytes(b'\xef\xbb\xbfSource\tTarget\r\n[SM 1 2 ]\t3\r\n[SM 1 2 ]\t4\r\n')
    assert detect_format(tmp_path/'a.tsv') == 'lra' and list(read_rows(tmp_path/'a.tsv')) == [(2, '[SM 1 2 ]', 3), (3, '[SM 1 2 ]', 4)]
    reader = read_file(tmp_path/'a.tsv')
    assert next(reader) == (parse('[SM 1 2 ]'), 3)     # what comes before the first bad line is fine
    with pytest.raises(FileError, match='line 3: expected the label 3'): next(reader)
    (tmp_path/'b.tsv').write_text('3\t[SM 1 2 ]\n')
    with pytest.raises(FileError, match="line 1: expected the header 'Source"): list(read_rows(tmp_path/'b.tsv', format='lra'))
    with pytest.raises(FileError, match='expected rows, got none'): (tmp_path/'c.tsv').write_text(HEAD), read_ids(tmp_path/'c.tsv')

def test_data_of_the_task_survive_three_files(tmp_path):
    made = create_synthetic_data('listops', size_train=50, size_val=10, size_test=10, vec_size=2)
    paths = [tmp_path/f'{split}.tsv' for split in ('train', 'val', 'test')]
    for path,ds in zip(paths, made): write_file(path, ((detokenize(row), y) for row,y in zip(ds.tensors[0], ds.tensors[1].tolist())), format='nangia')
    data = read_data(*paths, width=100)
    assert all(torch.equal(s, t) for before,after in zip(made[:3], data[:3]) for s,t in zip(before.tensors, after.tensors)) and data[3:] == made[3:]

def test_rows_do_not_depend_on_chunks_parentheses_or_the_size_of_training():
    limits = Limits(max_depth=4, max_args=4, min_length=5, max_length=30, parens=False)
    drawn = {split: list(rows) for split,rows in draw_rows(dict(train=300, val=20, test=20), limits, seed=3)}
    again = {split: list(rows) for split,rows in draw_rows(dict(train=40, val=20, test=20), limits, seed=3, parens=False, chunk=7)}
    assert {split: len(rows) for split,rows in drawn.items()} == dict(test=20, val=20, train=300)
    assert len({text for rows in drawn.values() for text,_ in rows}) == 340 and all(evaluate(text) == y for rows in drawn.values() for text,y in rows)
    for split in drawn: assert [parse(t) for t,_ in drawn[split][:40]] == [parse(t) for t,_ in again[split]]
    assert all(5 <= len(text.split()) <= 30 for text,_ in again['train'])

def test_the_command_as_a_function(tmp_path):
    small = dict(size_train=30, size_val=5, size_test=5, min_length=5, max_length=30, quiet=True)
    paths = listops_command(tmp_path, **small)
    with pytest.raises(ValueError, match='folder: expected no basic_train.tsv, basic_val.tsv, basic_test.tsv in'): listops_command(tmp_path, **small)
    before = [p.read_bytes() for p in paths]
    listops_command(tmp_path, **small, overwrite=True)
    assert [p.read_bytes() for p in paths] == before
    with pytest.raises(ValueError, match='min_length: expected at most 30'): listops_command(tmp_path, **small | dict(min_length=31))

HEAD = 'Source\tTarget\n'
@pytest.mark.parametrize('content, line, message', [
    ('', 1, 'got an empty file'), ('\n\n', 1, 'got an empty file'), ('Source\n[SM 1 ]\n', 1, "expected the header .* got 'Source'"),
    ('Target\tSource\n3\t[SM 3 ]\n', 1, 'expected the header'), ('[SM 3 ]\t3\n', 1, 'expected the header'), ('source\ttarget\n', 1, 'expected the header'),
    (HEAD + '[SM 3 ]\t3\n[SM 3 ]\n', 3, 'expected an expression, a tab and a digit'), (HEAD + '[SM 3 ]\t3\n\n[SM 3 ]\t3\n', 3, 'got an empty line'),
    (HEAD + '[SM 3 ]\t3\n[SM 3 4 ]\t3\n[SM\t1\n', 3, 'expected the label 7, .* got 3'), (HEAD + '[SM 3 ]\t3\n[SM 3\t3\n', 3, 'text ends inside .*token 2'),
    (HEAD + '[SM 3 ]\t3.0\n', 2, 'a tab and a digit'), (HEAD + '[SM 3 ]\t٣\n', 2, 'a tab and a digit'), (HEAD + '[SM 3 ]\t\n', 2, 'a tab and a digit'),
    (HEAD + '( ( [SM 3 ) ] \t3\n', 2, 'parentheses do not pair'), (HEAD + '[FIRST 3 4 ]\t3\n', 2, 'unknown token'), (HEAD + '\t3\n', 2, 'empty expression'),
    ('3\t[SM 3 ]\n[SM 3 ]\t3\n', 2, 'expected a digit, a tab and an expression'), ('3\t[SM 3 ]\n12\t[SM 3 ]\n', 2, 'expected a digit')], ids=repr)
def test_the_first_fault_is_named_with_its_line(tmp_path, content, line, message):
    (tmp_path/'a.tsv').write_text(content, encoding='utf-8')
    with pytest.raises(FileError, match=message) as e: list(read_file(tmp_path/'a.tsv'))
    assert (e.value.line, e.value.path) == (line, str(tmp_path/'a.tsv')) and f'a.tsv, line {line}: ' in str(e.value)
    assert isinstance(e.value, (ListOpsError, ValueError))
    with pytest.raises(FileError) as fast: read_ids(tmp_path/'a.tsv')   # goes by batches, and must find the same fault
    assert str(fast.value) == str(e.value)
    again = pickle.loads(pickle.dumps(e.value))
    assert (str(again), again.line, again.token) == (str(e.value), line, e.value.token)

@pytest.mark.parametrize('content', [b'\x89PNG\r\n\x1a\n\x00', 'Source\tTarget\n'.encode('utf-16'), HEAD.encode() + b'\xff\t3\n', b'\x00'*1000, bytes(range(256))], ids=repr)
def test_other_kinds_of_files_are_refused(tmp_path, content):
    (tmp_path/'a.tsv').write_bytes(content)
    for f in (lambda p: list(read_file(p)), read_dataset, read_ids, lambda p: read_data(p, p, p)):
        with pytest.raises(FileError, match='a.tsv, line [12]: expected'): f(tmp_path/'a.tsv')

@settings(few, max_examples=300)
@given(st.integers(0, 50), st.integers(0, 200), st.integers(0, 255), st.sampled_from(['replace', 'insert', 'cut']))
def test_a_changed_byte_is_found_or_harmless(tmp_path, seed, at, byte, change):
    rows = sample(seed, 3, max_length=30)
    write_file(tmp_path/'a.tsv', rows, 'nangia', parens=seed % 2 == 0, overwrite=True)
    content = (tmp_path/'a.tsv').read_bytes()
    at %= len(content)
    (tmp_path/'a.tsv').write_bytes(content[:at] + (b'' if change == 'cut' else bytes([byte]) + content[at + (change == 'replace'):]))
    try: found = list(read_file(tmp_path/'a.tsv'))
    except FileError as e:
        if str(e).endswith('empty file'): return
        with pytest.raises(FileError) as fast: read_ids(tmp_path/'a.tsv')
        assert str(fast.value) == str(e)
        return
    assert all(evaluate(t) == y for t,y in found)
    assert [detokenize(r) for r in read_ids(tmp_path/'a.tsv')[0]] == [render(t) for t,_ in found]

def test_rows_of_many_batches(tmp_path, monkeypatch):
    monkeypatch.setattr(files, 'BATCH', 7)
    rows = sample(1, 50)
    write_file(tmp_path/'a.tsv', ((render(t, parens=i % 3 == 0), y) for i,(t,y) in enumerate(rows)))   # with and without, mixed
    for limit in (1, 7, 20, None):
        ids,labels = read_ids(tmp_path/'a.tsv', limit=limit)
        assert [detokenize(r) for r in ids] == [render(t) for t,_ in rows][:limit] and labels.tolist() == [y for _,y in rows][:limit]
    wrong = [(t, (y + (i == 33))%10) for i,(t,y) in enumerate(rows)]
    write_file(tmp_path/'a.tsv', wrong, overwrite=True)
    with pytest.raises(FileError, match='line 35: expected the label'): read_ids(tmp_path/'a.tsv')
    assert read_ids(tmp_path/'a.tsv', verify=False)[1].tolist() == [y for _,y in wrong]

def test_deep_and_wide_rows(tmp_path):
    rows = [('[MAX '*20_000 + '7' + ' ]'*20_000, 7), ('[SM ' + '1 '*100_003 + ']', 3)]
    write_file(tmp_path/'a.tsv', rows, 'nangia')
    ids,labels = read_ids(tmp_path/'a.tsv', parens=False)
    assert [detokenize(r) for r in ids] == [text for text,_ in rows] and labels.tolist() == [7, 3]

def test_a_line_without_end_does_not_fill_the_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(files, 'MAX_LINE', 1000)
    (tmp_path/'a.tsv').write_bytes(b'3\t[SM 3 ]\n' + b'3\t' + b' '*5000)
    with pytest.raises(FileError, match='line 2: expected a line shorter than 1000 bytes'): list(read_rows(tmp_path/'a.tsv'))

def test_reading_and_writing_need_little_memory(tmp_path):
    row = sample(0, 1, min_length=200)[0]
    tracemalloc.start()
    n = write_file(tmp_path/'a.tsv', repeat(row, 3000))
    assert n == 3000 == sum(y == row[1] for _,y in read_file(tmp_path/'a.tsv', verify=False))
    assert tracemalloc.get_traced_memory()[1] < 1e6 < (tmp_path/'a.tsv').stat().st_size
    tracemalloc.stop()

def test_wrong_arguments_are_refused(tmp_path):
    row = parse('[SM 3 4 ]'),7
    for label in (-1, 10, 2.5, '7', None, True):
        with pytest.raises(ValueError, match='label: expected'): write_file(tmp_path/'a.tsv', [row, (row[0], label)])
        assert not (tmp_path/'a.tsv').exists()
    with pytest.raises(ValueError, match="unknown format"): write_file(tmp_path/'a.tsv', [row], 'csv')
    assert not list(tmp_path.iterdir())
    write_file(tmp_path/'a.tsv', [row])
    with pytest.raises(ValueError, match="unknown format"): list(read_file(tmp_path/'a.tsv', 'csv'))
    with pytest.raises(ValueError, match="exists"): write_file(tmp_path/'a.tsv', [row])
    with pytest.raises(FileNotFoundError): detect_format(tmp_path/'b.tsv')
    with pytest.raises(ValueError, match='width: expected at least 10, .* got 9'): read_dataset(tmp_path/'a.tsv', width=9)

# Whole or not at all

@pytest.mark.parametrize('error', [ValueError, KeyboardInterrupt, SystemExit, MemoryError])
def test_an_error_leaves_the_folder_as_it_was(tmp_path, error):
    def rows():
        yield '[SM 3 4 ]',7
        raise error
    (tmp_path/'a.tsv').write_text('before')
    with pytest.raises(error): write_file(tmp_path/'a.tsv', rows(), overwrite=True)
    assert [p.name for p in tmp_path.iterdir()] == ['a.tsv'] and (tmp_path/'a.tsv').read_text() == 'before'
    with atomic_file(tmp_path/'a.tsv') as f: f.write(b'after')
    assert (tmp_path/'a.tsv').read_text() == 'after' and (tmp_path/'a.tsv').stat().st_mode & 0o777 == 0o644

ENDLESS = """
import sys, itertools
from ebt_toy.files import write_file
def rows():
    for i in itertools.count():
        yield '[SM 3 4 ]',7
        if i == 20000: print('writing', flush=True)
write_file(sys.argv[1], rows(), overwrite=True)
"""

def test_a_killed_run_leaves_no_half_file(tmp_path):
    (tmp_path/'a.tsv').write_text('before')
    p = subprocess.Popen([sys.executable, '-c', ENDLESS, str(tmp_path/'a.tsv')], stdout=subprocess.PIPE, text=True)
    assert p.stdout.readline() == 'writing\n'
    p.send_signal(signal.SIGKILL)
    assert p.wait(30) == -signal.SIGKILL
    left = [f for f in tmp_path.iterdir() if f.name != 'a.tsv']
    assert (tmp_path/'a.tsv').read_text() == 'before'
    assert len(left) == 1 and left[0].name.startswith('.a.tsv.') and left[0].stat().st_size > 100_000   # it was in the middle

# The command

COMMAND = 'import sys; from ebt_toy.cli import listops_main; sys.exit(listops_main(sys.argv[1:]))'

def start(*args, **env): return subprocess.Popen([sys.executable, '-c', COMMAND, *map(str, args)], env=os.environ | env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
def digest(folder): return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.iterdir())}

def test_the_same_bytes_in_every_process(tmp_path):
    runs = [start(tmp_path/h, *SMALL, '--seed', 3, PYTHONHASHSEED=h) for h in ('1', '2')]
    for p in runs: assert (p.communicate(timeout=120)[1], p.returncode) == ('', 0)
    assert digest(tmp_path/'1') == digest(tmp_path/'2') and list(digest(tmp_path/'1')) == ['basic_test.tsv', 'basic_train.tsv', 'basic_val.tsv']
    listops_main([str(tmp_path/'other'), *SMALL, '--seed', '4'])
    assert not set(digest(tmp_path/'1').values()) & set(digest(tmp_path/'other').values())

@pytest.mark.parametrize('format, names', [('lra', 'basic_{}.tsv'), ('nangia', '{}.tsv')])
@pytest.mark.parametrize('parens', [True, False])
def test_files_of_the_command(tmp_path, capsys, format, names, parens):
    assert listops_main([str(tmp_path/'new'/'folder'), *SMALL, '--format', format, '--max_depth', '4', '--max_args', '3'] + ['--no_parens']*(not parens)) == 0
    said = capsys.readouterr().out
    trees = []
    for split,n in dict(train=40, val=8, test=8).items():
        path = tmp_path/'new'/'folder'/names.format(split)
        rows = list(read_file(path, format))
        assert len(rows) == n and f'{path}: {n} expressions\n' in said and ('(' in path.read_text()) == parens
        trees += [t for t,_ in rows]
    assert len(set(trees)) == 56
    assert all(5 <= tree_length(t, parens=False) <= 40 and max(t.n_args) <= 3 for t in trees)

def test_a_larger_training_set_leaves_the_others_alone(tmp_path):
    small,large = (listops_command(tmp_path/str(n), n, 8, 8, min_length=5, max_length=40, quiet=True) for n in (10, 30))
    text = [[p.read_bytes() for p in paths] for paths in (small, large)]
    assert text[0][1:] == text[1][1:] and text[1][0].startswith(text[0][0])

@pytest.mark.parametrize('args, message', [
    (['--size_train', '0'], 'size_train: expected a whole number'), (['--size_val', 'x'], 'size_val'), (['--format', 'tsv'], "unknown format 'tsv'"),
    (['--max_args', '1'], 'max_args: expected'), (['--min_length', '41'], 'min_length: expected at most 40'), (['--seed', '-1'], 'seed: expected'),
    (['--max_depth', '1'], 'asked for'), (['--nonsense', '1'], 'unrecognized arguments')])
def test_bad_input_is_exit_code_2(tmp_path, capsys, args, message):
    assert listops_main([str(tmp_path/'a'), *SMALL, *args]) == 2
    out,err = capsys.readouterr()
    assert out == '' and err.startswith('ebt_toy listops: ') and message in err and 'Traceback' not in err
    assert not (tmp_path/'a').exists() or not list((tmp_path/'a').iterdir())

def test_files_that_are_there_are_kept(tmp_path, capsys):
    (tmp_path/'basic_val.tsv').write_text('mine')
    assert listops_main([str(tmp_path), *SMALL]) == 2 and 'expected no basic_val.tsv in' in capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == ['basic_val.tsv'] and (tmp_path/'basic_val.tsv').read_text() == 'mine'
    assert listops_main([str(tmp_path), *SMALL, '--overwrite']) == 0 and len(list(read_file(tmp_path/'basic_val.tsv'))) == 8
    assert listops_main([str(tmp_path/'basic_val.tsv'), *SMALL]) == 2 and 'folder: expected one to write to' in capsys.readouterr().err

def test_help(capsys):
    with pytest.raises(SystemExit) as e: listops_main(['--help'])
    said = capsys.readouterr().out
    assert e.value.code == 0 and 'ebt_toy listops' in said and 'not counting parentheses' in said

def test_ctrl_c_is_exit_code_130_and_leaves_nothing(tmp_path):
    p = start(tmp_path/'a', '--size_test', 10**7, '--min_length', 5, '--max_length', 60)
    while p.poll() is None and not ((tmp_path/'a').exists() and any(f.stat().st_size for f in (tmp_path/'a').iterdir())): time.sleep(0.05)
    p.send_signal(signal.SIGINT)
    err = p.communicate(timeout=60)[1]
    assert p.returncode == 130 and 'interrupted' in err and 'Traceback' not in err
    assert not list((tmp_path/'a').iterdir())
