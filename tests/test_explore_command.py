"The command `ebt_toy explore` as a user meets it: it answers on this machine only, and leaves nothing behind."
import os, re, signal, socket, subprocess, sys, urllib.request
from pathlib import Path

import pytest

command = [sys.executable, '-m', 'ebt_toy', 'explore']

def start(tmp_path, *args):
    env = os.environ | dict(TMPDIR=str(tmp_path), HOME=str(tmp_path), OMP_NUM_THREADS='1')
    return subprocess.Popen([*command, *args], env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

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

@pytest.mark.parametrize('sign', [signal.SIGINT, signal.SIGTERM])
def test_serves_until_stopped(tmp_path, sign):
    process = start(tmp_path, '--port', '0')
    try:
        line = process.stdout.readline()
        link = re.search(r'http://127\.0\.0\.1:(\d+)/', line)
        assert link, line
        page = urllib.request.urlopen(link[0], timeout=60).read().decode()
        assert '<title>ebt_toy explorer</title>' in page
        assert not re.search(r'(?:src|href)="https?://', page)        # nothing from other hosts
        if Path('/proc/net/tcp').exists():
            assert listening(int(link[1])) == {'0100007F'}            # 127.0.0.1 alone
            below = children(process.pid)
            assert below
        process.send_signal(sign)
        assert process.wait(30) == 0
        with socket.socket() as s: assert s.connect_ex(('127.0.0.1', int(link[1])))
        if Path('/proc/net/tcp').exists(): assert not [p for p in below if Path(f'/proc/{p}').exists() and 'Z' not in Path(f'/proc/{p}/stat').read_text()]
        assert not list(tmp_path.glob('tmp*'))
    finally:
        process.kill()
        process.wait()

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
