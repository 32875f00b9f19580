"Bounds on what reading a file may cost: seconds of the processor, and memory beyond what was held before"
import os, resource, signal, sys, time
from contextlib import contextmanager
from pathlib import Path

FULL = bool(os.environ.get('EBT_FUZZ'))   # fuzz with thousands of files instead of dozens
SECONDS,BYTES,PATIENCE = 2,200e6,300

def memory(what):
    "Bytes held now (`VmRSS`), or at most since `forget` (`VmHWM`); where there is no /proc, at most since the start"
    try: status = Path('/proc/self/status').read_text()
    except OSError: return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss*(1 if sys.platform == 'darwin' else 1024)
    return next(1024*int(line.split()[1]) for line in status.splitlines() if line.startswith(what))

def forget():
    "Let the peak of memory begin anew"
    try: Path('/proc/self/clear_refs').write_text('5')
    except OSError: pass

class Cost: seconds,bytes = 0.,0

@contextmanager
def measured():
    "What the block costs; one that waits for something is ended"
    def stop(*_): raise AssertionError(f"still waiting after {PATIENCE} s")
    before,cost,old = memory('VmRSS'),Cost(),signal.signal(signal.SIGALRM, stop)
    forget()
    start = time.process_time()
    signal.alarm(PATIENCE)
    try: yield cost
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, old)
        cost.seconds,cost.bytes = time.process_time() - start,memory('VmHWM') - before

@contextmanager
def bounded(seconds=SECONDS, most=BYTES):
    "The block may take so many seconds and bytes at most"
    with measured() as cost: yield cost
    assert cost.seconds < seconds and cost.bytes < most, f"{cost.seconds:.2f} s, {cost.bytes/1e6:.0f} MB"
