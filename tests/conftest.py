"What all tests share: a command that one starts hears Ctrl-C, also where pytest runs in the background, with SIGINT ignored; and recordings."
import signal, warnings

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx

from ebt_toy import engine
from ebt_toy.native import Unwritable

signal.signal(signal.SIGINT, signal.default_int_handler)

@pytest.fixture
def recorded(monkeypatch):
    "Recordings are replayed as they are, not compiled, which takes seconds each"
    def record(update, args):
        with torch.no_grad(): return make_fx(update)(*(a.clone() for a in args))
    def refuse(*args): raise Unwritable('recorded')
    monkeypatch.setattr(engine, 'native_update', refuse)
    monkeypatch.setattr(engine, 'compile_update', record)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        yield
