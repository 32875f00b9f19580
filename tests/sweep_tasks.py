"Functions that workers of a sweep import, for the tests."
import os, signal, time

import torch

def slow(settings, seeds):
    with open(settings['log'], 'a') as f: f.writelines(f"{settings['a']} {s} {os.getpid()}\n" for s in seeds)
    time.sleep(float(os.environ.get('SLOW', 0)))
    return [dict(score=settings['a']*100 + s) for s in seeds]

def dying_once(settings, seeds):
    again = os.path.exists(settings['log']) and any(l.startswith(f"{settings['a']} ") for l in open(settings['log']))
    scores = slow(settings, seeds)
    if settings['a'] == settings['dies'] and not again: os.kill(os.getpid(), signal.SIGKILL)
    return scores

def napping(settings, seeds):
    with open(settings['log'], 'a') as f: f.write(f"{settings['a']} {os.getpid()}\n")
    time.sleep(settings['nap'])
    return [dict(score=settings['a']*100 + s) for s in seeds]

def about_worker(settings, seeds):
    return [dict(pid=os.getpid(), threads=torch.get_num_threads(), hears_ctrl_c=signal.getsignal(signal.SIGINT) is not signal.SIG_IGN) for s in seeds]

def dying(settings, seeds):
    if settings['a'] == 2: os.kill(os.getpid(), signal.SIGKILL)
    return [dict(score=settings['a']*100 + s) for s in seeds]
