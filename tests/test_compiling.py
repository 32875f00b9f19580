"Compiling quickly: it leaves no trace in PyTorch's settings, and a C++ compiler that is too old, or none, costs speed but no results."
import gc, os, subprocess, sys

import pytest
import torch

from ebt_toy.engine import _quick_build, compile_update

TRAIN = '''
import sys, warnings
import torch
import torch.nn.functional as F
from ebt_toy import engine
from ebt_toy.engine import choose_way
if sys.argv[1] == 'pytorch': engine._native_runs = lambda *args: (None, 'as asked')
from ebt_toy.update import mlp
x,y = torch.randn(2, 32, 3, generator=torch.Generator().manual_seed(0))
with warnings.catch_warnings(record=True) as warned:
    warnings.simplefilter('always')
    way = choose_way([mlp(3, 3, 16)], x, y, 8, F.mse_loss, [0], 'auto')
print(way.compiled, sum('training goes on uncompiled' in str(w.message) for w in warned), way.how, sep='|')
'''

def compiled_with(tmp_path, script, by='any'):
    "What a fresh process with this C++ compiler answers: whether it compiled, and how many warnings there were"
    compiler = tmp_path/'c++'
    compiler.write_text('#!/bin/sh\n' + script)
    compiler.chmod(0o755)
    env = os.environ | dict(CXX=str(compiler), TORCHINDUCTOR_CACHE_DIR=str(tmp_path/'cache'))
    done = subprocess.run([sys.executable, '-c', TRAIN, by], env=env, capture_output=True, text=True)
    assert not done.returncode, done.stderr
    return done.stdout.strip()

@pytest.mark.skipif(os.name != 'posix', reason="the compiler is a shell script")
def test_a_compiler_that_does_not_know_the_instruction_set(tmp_path):
    old = 'echo "$@" >> "$0.log"\ncase "$*" in *-mavx*|*sve*) echo "unknown option" >&2; exit 1;; esac\nexec g++ "$@"\n'
    assert compiled_with(tmp_path, old, 'pytorch') == "True|0|PyTorch's, since: as asked"
    tries = (tmp_path/'c++.log').read_text()
    assert not torch.cpu._is_avx2_supported() or '-mavx' in tries      # the quick way was tried first

@pytest.mark.skipif(os.name != 'posix', reason="the compiler is a shell script")
def test_no_compiler_that_works(tmp_path):
    assert compiled_with(tmp_path, 'echo "broken" >&2; exit 1\n') == 'False|1|None'

def test_settings_are_put_back():
    from torch._inductor import codecache, config, cpu_vec_isa as isa
    def settings(): return codecache._worker_compile_cpp, isa.VecISA.check_build, [dict(vars(s)) for s in isa.supported_vec_isa_list]
    for cached in (isa.valid_vec_isa_list, isa.VecISA._VecISA__bool__impl): cached.cache_clear()
    before,options = settings(),config.get_config_copy()
    with _quick_build():
        assert settings() != before
        isa.pick_vec_isa()
    assert settings() == before and not isa.valid_vec_isa_list.cache_info().currsize     # what was assumed is forgotten
    assert not isa.VecISA._VecISA__bool__impl.cache_info().currsize
    def fail(*tensors): raise RuntimeError('untraceable')
    with pytest.raises(RuntimeError, match='untraceable'): compile_update(fail, [torch.ones(2)])
    assert config.get_config_copy() == options and gc.isenabled()
