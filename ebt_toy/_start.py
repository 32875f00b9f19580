"""What the command needs before the imports, which take a second or two: Ctrl-C in one line, and standard streams that are open.

Written by hand, and imported first by `ebt_toy/__init__.py`; uses the standard library alone."""
import os, signal, sys

def is_command():
    "Was Python started as `ebt_toy` or `python -m ebt_toy`?"
    argv = getattr(sys, 'argv', None) or ['']
    if argv[0] == '-m': return sys.orig_argv[-len(argv)].removeprefix('-m') == 'ebt_toy'   # the package is imported before its `__main__`
    return os.path.splitext(os.path.basename(argv[0]))[0] == 'ebt_toy'

def end(*_):
    "Handle a signal: one line, and out"
    try: os.write(2, b'ebt_toy: interrupted\n')
    finally: os._exit(130)

def begin():
    "Until the command itself takes over: end on Ctrl-C, and keep files from being opened in place of a stream that is closed"
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler: signal.signal(signal.SIGINT, end)
    for fd in range(3):
        try: os.fstat(fd)
        except OSError: os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
