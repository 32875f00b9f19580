"The command `ebt_toy explore` as users and intruders meet it: it answers on this machine and to its secret only, has few kernels, and leaves nothing behind."
import http.client, json, os, re, shutil, signal, socket, subprocess, sys, time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import pytest

import ebt_toy
from ebt_toy.cli import explore_main

command = [sys.executable, '-m', 'ebt_toy', 'explore']

def start(tmp_path, *args, cwd=None, **env):
    env = os.environ | dict(TMPDIR=str(tmp_path), HOME=str(tmp_path), OMP_NUM_THREADS='1') | {k: str(v) for k,v in env.items()}
    heard = lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL)       # under `nohup` it would rightly be ignored
    return subprocess.Popen([*command, *args], env=env, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=heard if hasattr(signal, 'SIGHUP') else None)

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

def ports(pid):
    "Ports on which a process listens"
    mine = {os.readlink(f) for f in Path(f'/proc/{pid}/fd').iterdir() if f.is_symlink()}
    lines = [l.split() for l in Path('/proc/net/tcp').read_text().splitlines()[1:]]
    return {int(l[1].split(':')[1], 16) for l in lines if l[3] == '0A' and f'socket:[{l[9]}]' in mine}

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
def started(tmp_path, *args, **env):
    "The command, and its link in parts"
    process = start(tmp_path, '--port', '0', *args, **env)
    try:
        line = process.stdout.readline()
        link = re.search(r'http://127\.0\.0\.1:\d+/\S+/', line)
        assert link, line
        yield process,urlsplit(link[0])
    finally:
        process.kill()
        process.wait()

def ask(link, path=None, method='GET', **headers):
    "Status and text of an answer"
    connection = http.client.HTTPConnection('127.0.0.1', link.port, timeout=120)
    connection.request(method, link.path if path is None else path, headers=dict(Host=link.netloc) | headers)
    answer = connection.getresponse()
    return answer.status,answer.read().decode(errors='replace')

def kernel_in(page): return re.search(r'"kernelId": "([0-9a-f-]+)"', page)[1]

@contextmanager
def running(tmp_path, *args, **env):
    "The command, its link, and all processes below it once the page was asked for"
    with started(tmp_path, *args, **env) as (process,link):
        status,page = ask(link)
        assert status == 200 and '<title>ebt_toy explorer</title>' in page
        assert not re.search(r'(?:src|href)="https?://', page)        # nothing from other hosts
        yield process,link,children(process.pid),page

def nothing_left(tmp_path, port, below):
    "No server, no kernel, no files"
    with socket.socket() as s: refused = s.connect_ex(('127.0.0.1', port)) != 0
    return refused and all(map(gone, below)) and not list(tmp_path.glob('ebt_toy_*'))

linux = pytest.mark.skipif(not Path('/proc/net/tcp').exists(), reason="reads Linux's list of processes")

def stopped_by(folder, sign):
    folder.mkdir()
    with running(folder) as (process,link,below,_):
        assert listening(link.port) == {'0100007F'}                        # 127.0.0.1 alone
        assert len(below) >= 2 and list(folder.glob('ebt_toy_*'))     # server and kernel
        process.send_signal(sign)
        assert process.wait(30) == (-sign if sign == signal.SIGKILL else 0)
        assert until(lambda: nothing_left(folder, link.port, below))

@linux
def test_serves_until_stopped(tmp_path):
    signs = signal.SIGINT,signal.SIGTERM,signal.SIGHUP,signal.SIGKILL
    with ThreadPoolExecutor(2) as pool: done = {sign.name: pool.submit(stopped_by, tmp_path/sign.name, sign) for sign in signs}
    assert {name: f.exception() for name,f in done.items()} == dict.fromkeys(done)

@linux
def test_says_when_the_server_ends_by_itself(tmp_path):
    with running(tmp_path) as (process,link,below,_):
        os.kill(min(below), signal.SIGTERM)
        out,err = process.communicate(timeout=30)
        assert process.returncode == 1 and err.startswith('ebt_toy explore: the server ended with exit code'), err
        assert until(lambda: nothing_left(tmp_path, link.port, below))

ASKED = """import subprocess, sys
from pathlib import Path
import ebt_toy
from ebt_toy.serve import page_server
env = page_server('page', 8866)[2]
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

# Who gets in

def kernels(process):
    "Processes of kernels below one"
    commands = {}
    for pid in children(process.pid):
        try: commands[pid] = Path(f'/proc/{pid}/cmdline').read_bytes()
        except OSError: pass                                          # gone meanwhile
    return {pid for pid,c in commands.items() if b'ipykernel_launcher' in c}

UPGRADE = {'Connection': 'Upgrade', 'Upgrade': 'websocket', 'Sec-WebSocket-Version': '13', 'Sec-WebSocket-Key': 'dGhlIHNhbXBsZSBub25jZQ=='}

def shake(link, path, **headers):
    "Status of an attempt to open a websocket"
    with socket.create_connection(('127.0.0.1', link.port), timeout=30) as s:
        lines = [f'GET {path} HTTP/1.1', *(f'{k}: {v}' for k,v in (dict(Host=link.netloc) | UPGRADE | headers).items()), '', '']
        s.sendall('\r\n'.join(lines).encode())
        return int(s.recv(100).split()[1])

def works(link, page):
    "The page is whole, and its browser would get through to the kernel"
    assert 'application/vnd.jupyter.widget-view+json' in page and '"disabledExtensions": []' in page and 'Traceback' not in page
    assert shake(link, f'{link.path}api/kernels/{kernel_in(page)}/channels', Origin=f'http://{link.netloc}') == 101

ROUTES = ['', 'explorer.ipynb', 'voila/render/explorer.ipynb', 'voila/static/voila.js', 'voila/templates/lab/static/voila.js', 'voila/files/open.png', 'voila/api/shutdown/{kernel}',
          'voila/api/themes/x', 'voila/labextensions/x', 'voila/tree', 'voila/query/{kernel}', 'api', 'api/kernels', 'api/kernels/{kernel}', 'api/kernels/{kernel}/channels', 'api/contents',
          'api/sessions', 'api/terminals', 'static/x', 'login', 'logout', 'favicon.ico']

@linux
def test_nothing_without_the_secret_and_works_without_a_home(tmp_path):
    with running(tmp_path, HOME='/dev/null/none') as (process,link,below,page):
        works(link, page)
        kernel,secret = kernel_in(page),link.path.strip('/')
        assert len(secret) == 24 and not any(secret.encode() in Path(f'/proc/{p}/cmdline').read_bytes() for p in {process.pid, *below})
        assert [f.stat().st_mode & 0o777 for f in tmp_path.glob('ebt_toy_*')] == [0o700]
        paths = [r.format(kernel=kernel) for r in ROUTES]
        wrong = '/' + 'A'*(len(link.path) - 2) + '/'
        for path in [*('/' + p for p in paths), *(wrong + p for p in paths), link.path[:-2], '/' + link.path, link.path.lower(), '/%2e%2e' + link.path, 'http://evil.example' + link.path]:
            for method in ('GET', 'POST', 'DELETE', 'HEAD', 'OPTIONS'):
                status,text = ask(link, path, method)
                assert status == 403 and link.path not in text and ('incomplete' in text or method == 'HEAD'), (method, path, status)
            assert shake(link, path) == 403, path
        channels = f'{link.path}api/kernels/{kernel}/channels?session_id=a'
        for host in ('evil.example', f'evil.example:{link.port}', '127.0.0.1.evil.example', 'localhost:1:2', f'[::ffff:127.0.0.1]:{link.port}', '0.0.0.0'):
            for path in (link.path, f'{link.path}api/kernels/{kernel}', f'{link.path}voila/static/voila.js'):
                status,text = ask(link, path, Host=host)
                assert status == 403 and link.path not in text, (host, path)
            assert shake(link, channels, Host=host) == 403, host
        for origin in ('http://evil.example', f'http://evil.example:{link.port}', f'http://127.0.0.1:{link.port + 1}', 'null'): assert shake(link, channels, Origin=origin) == 403, origin
        assert len(kernels(process)) == 1                             # nobody else got one
        assert shake(link, channels, Origin=f'http://{link.netloc}') == 101
        for host in (f'localhost:{link.port}', '127.0.0.1', 'LOCALHOST:9999'): assert ask(link, f'{link.path}api/kernels/{kernel}', Host=host)[0] == 200, host     # a tunnel may have another port
        assert ask(link, f'{link.path}voila/static/voila.js', 'HEAD')[0] == 200

# Whatever else the user has set up

def upset(folder):
    "Settings of Jupyter, Voila and IPython that would break the page; returns the variables that lead there"
    voila = json.dumps(dict(Voila=dict(port=1, base_url='/x/', token='abc', ip='0.0.0.0'), VoilaConfiguration=dict(template='none', extension_allowlist=['none'])))
    files = {'config/voila.json': voila, 'voila.json': voila, '.jupyter/voila.json': voila, '.jupyter/jupyter_config.py': 'raise SystemExit(1)', 'config/labconfig/page_config.json':
        '{"disabledExtensions": {"@jupyter-widgets/jupyterlab-manager": true}}', 'data/voila/templates/lab/index.html.j2': '{% none %}', '.ipython/profile_default/startup/0.py': 'raise SystemExit(1)'}
    for name,text in files.items():
        (folder/name).parent.mkdir(parents=True, exist_ok=True)
        (folder/name).write_text(text)
    return dict(HOME=folder, JUPYTER_CONFIG_DIR=folder/'config', JUPYTER_CONFIG_PATH=folder/'config', JUPYTER_PATH=folder/'data', JUPYTER_TOKEN='abc', cwd=folder)

@linux
def test_works_with_any_settings_behind_a_proxy(tmp_path):
    with running(tmp_path, '--base_url', '/user/me/', **upset(tmp_path/'upset')) as (_,link,_,page):
        works(link, page)
        assert link.path.startswith('/user/me/') and f'"baseUrl": "{link.path}"' in page
        within = f'api/kernels/{kernel_in(page)}'
        for path in (link.path, link.path.removeprefix('/user/me')): assert ask(link, path + within)[0] == 200      # some proxies take the path off
        assert [ask(link, path)[0] for path in ('/user/me/', '/user/me', '/user/you' + link.path.removeprefix('/user/me'))] == [403]*3

@linux
def test_knows_the_name_of_its_proxy(tmp_path):
    process = start(tmp_path, '--port', '0', '--base_url', 'https://Hub.example/a-b/')
    try:
        link = urlsplit(re.search(r'https://\S+', process.stdout.readline())[0])
        assert link.netloc == 'hub.example' and link.path.startswith('/a-b/')
        port = next(p for pid in children(process.pid) for p in ports(pid))
        here = link._replace(netloc=f'127.0.0.1:{port}')
        status,page = ask(here, Host='hub.example')
        channels = f'{link.path}api/kernels/{kernel_in(page)}/channels'
        assert status == 200
        assert [shake(here, channels, Host=host, Origin='https://hub.example') for host in ('hub.example', here.netloc)] == [101]*2    # proxies may rewrite the host
        assert shake(here, channels, Host='hub.example', Origin='https://evil.example') == 403
    finally:
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0

@pytest.mark.parametrize('wrong', ['hub.example', 'proxy/', '//hub.example/', 'ftp://hub.example/', 'https://', '/a b/', '/a?b', 'https://hub.example/#a', '/(a)/', '"><script>'])
def test_refuses_what_is_no_base_url(capsys, wrong):
    assert explore_main(['--base_url', wrong]) == 2
    out,err = capsys.readouterr()
    assert out == '' and len(err.splitlines()) == 1 and 'base_url: expected a path' in err

# How many

@contextmanager
def connected(link, kernel):
    "A websocket to a kernel, like that of an open page"
    with socket.create_connection(('127.0.0.1', link.port)) as s:
        lines = [f'GET {link.path}api/kernels/{kernel}/channels?session_id=a HTTP/1.1', f'Host: {link.netloc}', *(f'{k}: {v}' for k,v in UPGRADE.items()), '', '']
        s.sendall('\r\n'.join(lines).encode())
        assert s.recv(12) == b'HTTP/1.1 101'
        yield

HURRIED = """import runpy
from pathlib import Path
run = runpy.run_path
def run_path(path, *args, **kwargs):
    found = run(path, *args, **kwargs)
    found['FewKernels'].patience = property(lambda _: float(Path({!r}).read_text()))
    return found
runpy.run_path = run_path
"""

def hurried(folder, seconds):
    "A file with the seconds that a page may be out of reach, and variables under which the server looks there; tests in a browser wait for the usual 20 s"
    folder.mkdir()
    (folder/'patience').write_text(str(seconds))
    (folder/'sitecustomize.py').write_text(HURRIED.format(str(folder/'patience')))
    return folder/'patience',dict(PYTHONPATH=os.pathsep.join(filter(None, [str(folder), os.environ.get('PYTHONPATH')])))

@linux
def test_few_kernels_and_each_ends_with_its_page(tmp_path):
    patience,env = hurried(tmp_path/'hurried', 60)
    with started(tmp_path, **env) as (process,link):
        with ThreadPoolExecutor(9) as pool: answers = list(pool.map(lambda _: ask(link), range(9)))
        assert sorted(s for s,_ in answers) == [200]*4 + [503]*5
        assert all('All places are taken' in text and 'Close one' in text for s,text in answers if s == 503)
        assert len(kernels(process)) == 4
        one,two = [kernel_in(text) for status,text in answers if status == 200][:2]
        with connected(link, one):
            assert ask(link, f'{link.path}voila/api/shutdown/{two}', 'POST')[0] == 204      # what a page does that is closed
            assert ask(link)[0] == 200                                # a place for another
            assert len(kernels(process)) == 4
            patience.write_text('2')
            assert until(lambda: len(kernels(process)) == 1, 60)      # no browser opened the others
            time.sleep(4)
            assert ask(link, f'{link.path}api/kernels/{one}')[0] == 200
        assert until(lambda: not kernels(process), 40)

@linux
def test_aborted_pages_leave_no_kernels(tmp_path):
    with started(tmp_path) as (process,link):
        for wait in (0.05, 0.3, 0.8, 1.4, 2, 2.8):
            with socket.create_connection(('127.0.0.1', link.port)) as s:
                s.sendall(f'GET {link.path} HTTP/1.1\r\nHost: {link.netloc}\r\n\r\n'.encode())
                time.sleep(wait)
            assert len(kernels(process)) <= 4
        assert until(lambda: not kernels(process), 15)
        assert ask(link)[0] == 200
