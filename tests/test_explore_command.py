"The command `ebt_toy explore` as a user meets it: it answers on this machine only, and leaves nothing behind."
import os, re, shutil, signal, socket, subprocess, sys, time, urllib.request
from contextlib import contextmanager
from pathlib import Path

import pytest

import ebt_toy

command = [sys.executable, '-m', 'ebt_toy', 'explore']

def start(tmp_path, *args):
    env = os.environ | dict(TMPDIR=str(tmp_path), HOME=str(tmp_path), OMP_NUM_THREADS='1')
    heard = lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL)       # under `nohup` it would rightly be ignored
    return subprocess.Popen([*command, *args], env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=heard if hasattr(signal, 'SIGHUP') else None)

def children(pid):
    "All processes below one, by Linux's own account"
    parents = {int(p.parent.name): int(re.sub(r'.*\) \S ', '', p.read_text().split('\n')[0]).split()[0]) for p in Path('/proc').glob('[0-9]*/stat') if os.access(p, os.R_OK)}
    below = {pid}
    while new := {c for c,p in parents.items() if p in below} - below: below |= new
    return below - {pid}

def listening(port):
    "Addresses, in hexadecimal, on which somebody listens at a port"
    lines = [l.split() for f in ('tcp', 'tcp6') if Path(f'/proc/net/{f}').exists() for l in Path(f'/proc/net/{f}').read_text().splitlines()[1:]]
    return {l[1].split(':')[0] for l in lines if l[3] == '0A' and int(l[1].split(':')[1], 16) == port}

def gone(pid):
    "Has a process ended?"
    try: return ') Z ' in Path(f'/proc/{pid}/stat').read_text()
    except (FileNotFoundError, ProcessLookupError): return True

def until(happened, seconds=20):
    "Wait for something; did it happen in time?"
    end = time.monotonic() + seconds
    while not (done := happened()) and time.monotonic() < end: time.sleep(0.1)
    return done

@contextmanager
def running(tmp_path, *args):
    "The command, its link, and all processes below it once the page was asked for"
    process = start(tmp_path, '--port', '0', *args)
    try:
        line = process.stdout.readline()
        link = re.search(r'http://127\.0\.0\.1:(\d+)/', line)
        assert link, line
        page = urllib.request.urlopen(link[0], timeout=60).read().decode()
        assert '<title>ebt_toy explorer</title>' in page
        assert not re.search(r'(?:src|href)="https?://', page)        # nothing from other hosts
        yield process,int(link[1]),children(process.pid)
    finally:
        process.kill()
        process.wait()

def nothing_left(tmp_path, port, below):
    "No server, no kernel, no files"
    with socket.socket() as s: refused = s.connect_ex(('127.0.0.1', port)) != 0
    return refused and all(map(gone, below)) and not list(tmp_path.glob('ebt_toy_*'))

linux = pytest.mark.skipif(not Path('/proc/net/tcp').exists(), reason="reads Linux's list of processes")

@linux
@pytest.mark.parametrize('sign', ['SIGINT', 'SIGTERM', 'SIGHUP', 'SIGKILL'])
def test_serves_until_stopped(tmp_path, sign):
    sign = getattr(signal, sign)
    with running(tmp_path) as (process,port,below):
        assert listening(port) == {'0100007F'}                        # 127.0.0.1 alone
        assert len(below) >= 2 and list(tmp_path.glob('ebt_toy_*'))   # server and kernel
        process.send_signal(sign)
        assert process.wait(30) == (-sign if sign == signal.SIGKILL else 0)
        assert until(lambda: nothing_left(tmp_path, port, below))

@linux
def test_says_when_the_server_ends_by_itself(tmp_path):
    with running(tmp_path) as (process,port,below):
        os.kill(min(below), signal.SIGTERM)
        out,err = process.communicate(timeout=30)
        assert process.returncode == 1 and err.startswith('ebt_toy explore: the server ended with exit code'), err
        assert until(lambda: nothing_left(tmp_path, port, below))

ASKED = """import subprocess, sys
from pathlib import Path
import ebt_toy
from ebt_toy.serve import _voila
env = _voila(Path('page')/'explorer.ipynb', 8866)[1]
of_kernel = subprocess.run([sys.executable, '-c', 'import ebt_toy; print(ebt_toy.__file__)'], env=env, cwd='/', capture_output=True, text=True)
print(ebt_toy.__file__, of_kernel.stdout)"""

def test_shows_the_package_it_belongs_to(tmp_path):
    copied = shutil.copytree(Path(ebt_toy.__file__).parent, tmp_path/'elsewhere'/'ebt_toy')
    done = subprocess.run([sys.executable, '-c', ASKED], env=os.environ | dict(PYTHONPATH=str(copied.parent)), cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.stdout.split() == [str(copied/'__init__.py')]*2, done.stderr

def refusal(tmp_path, *args, **env):
    done = subprocess.run([*command, *args], env=os.environ | dict(TMPDIR=str(tmp_path)) | env, capture_output=True, text=True, timeout=60)
    assert done.stdout == '' and len(done.stderr.splitlines()) == 1, done.stderr
    return done.returncode,done.stderr

def test_taken_port_is_refused(tmp_path):
    with socket.create_server(('127.0.0.1', 0)) as s:
        code,said = refusal(tmp_path, '--port', str(s.getsockname()[1]))
    assert code == 2 and 'port: expected one that is free' in said

def test_says_how_to_install_what_is_missing(tmp_path):
    (tmp_path/'sitecustomize.py').write_text("import importlib.util as u\nfind = u.find_spec\nu.find_spec = lambda name, *a: None if name == 'voila' else find(name, *a)\n")
    code,said = refusal(tmp_path, PYTHONPATH=os.pathsep.join(filter(None, [str(tmp_path), os.environ.get('PYTHONPATH')])))
    assert code == 2 and 'voila: expected to be installed' in said and 'pip install' in said

def test_is_named_in_the_help():
    done = subprocess.run([sys.executable, '-m', 'ebt_toy', '--help'], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and 'ebt_toy explore' in done.stdout
