"""The default comparison as a JAX user would write it: `jit` of a `scan` over updates, `vmap` over seeds, Adam of optax.

    python benchmarks/jax_rival.py quickstart              # both models, start to end
    python benchmarks/jax_rival.py serve ebt 8 100         # reads numbers of chunks of 100 updates, answers with seconds

`bench_training.py --jax` runs it in processes of its own. It uses neither PyTorch nor this library, so that it starts as fast as JAX can.
"""
import sys, time

import numpy as np
import jax, jax.numpy as jnp, optax

VEC_SIZE,SIZE_TRAIN,WIDTH,EVALUATIONS = 10,10_000,128,10
MODELS = dict(ebt=dict(batch_size=64, lr=1e-3, updates=10_000), ffn=dict(batch_size=128, lr=1e-4, updates=50_000))
INNER_STEPS,STEP_SIZE = 10,1.

def questions(seed, n, scale=1.):
    "Two vectors and their sum"
    x = np.random.default_rng(seed).uniform(-scale, scale, (n, 2*VEC_SIZE)).astype(np.float32)
    return jnp.asarray(x),jnp.asarray(x[:, :VEC_SIZE] + x[:, VEC_SIZE:])

def init(key, d_in, d_out):
    "Four layers, as PyTorch begins them"
    sizes = [d_in, WIDTH, WIDTH, WIDTH, d_out]
    keys = jax.random.split(key, 8).reshape(4, 2, *key.shape)
    def layer(ks, a, b): return [jax.random.uniform(k, s, minval=-a**-0.5, maxval=a**-0.5) for k,s in zip(ks, ((a, b), (b,)))]
    return [layer(k, a, b) for k,a,b in zip(keys, sizes, sizes[1:])]

def net(params, z, act):
    "The network"
    for w,b in params[:-1]: z = act(z @ w + b)
    return z @ params[-1][0] + params[-1][1]

def ffn(params, x, key): return net(params, x, jax.nn.relu)

def ebt(params, x, key):
    "Down the energy, first-order: weight gradients through the last step alone"
    def step(y, params):
        return y - STEP_SIZE*jax.grad(lambda y: net(params, jnp.concatenate([x, y], 1), jax.nn.silu).sum())(y)
    fixed,y = jax.lax.stop_gradient(params),jax.random.normal(key, (len(x), VEC_SIZE))
    y,_ = jax.lax.scan(lambda y, _: (step(y, fixed), None), y, None, INNER_STEPS - 1)
    return step(y, params)

def training(name, seeds, chunk):
    "The state of all seeds, a function that makes `chunk` updates of all, and one that scores them"
    predict,c = dict(ebt=ebt, ffn=ffn)[name],MODELS[name]
    opt,(x,y) = optax.adam(c['lr']),questions(0, SIZE_TRAIN)
    def loss(params, x, y, key): return ((predict(params, x, key) - y)**2).mean()
    def update(state, _):
        params,opt_state,key = state
        key,pick,guess = jax.random.split(key, 3)
        rows = jax.random.randint(pick, (c['batch_size'],), 0, SIZE_TRAIN)
        value,grad = jax.value_and_grad(loss)(params, x[rows], y[rows], guess)
        change,opt_state = opt.update(grad, opt_state)
        return (optax.apply_updates(params, change), opt_state, key),value
    def begin(key):
        params = init(key, (2 + (name == 'ebt'))*VEC_SIZE, 1 if name == 'ebt' else VEC_SIZE)
        return params,opt.init(params),key
    def run(state): return jax.lax.scan(update, state, None, chunk)
    def score(state, x, y): return loss(state[0], x, y, state[2])
    if seeds == 1: return begin(jax.random.key(0)),jax.jit(run),jax.jit(score)
    keys = jnp.stack([jax.random.key(s) for s in range(seeds)])
    return jax.vmap(begin)(keys),jax.jit(jax.vmap(run)),jax.jit(jax.vmap(score, (0, None, None)))

def quickstart(fraction=1.):
    "Train and score both models; a smaller fraction of the updates is for a try"
    for name,c in MODELS.items():
        state,run,score = training(name, 1, max(1, int(fraction*c['updates'])//EVALUATIONS))
        for _ in range(EVALUATIONS):
            state,_ = run(state)
            scores = [float(score(state, *questions(s, 256, scale))) for s,scale in ((1, 1.), (2, 2.))]
        print(f"{name}: validation {scores[0]:.6f}, test {scores[1]:.6f}", flush=True)

def serve(name, seeds, chunk):
    "Seconds of the first call, then of as many chunks as each line asks for"
    state,run,_ = training(name, seeds, chunk)
    def timed(n):
        nonlocal state
        start = time.perf_counter()
        for _ in range(n): state,_ = run(state)
        jax.block_until_ready(state)
        return time.perf_counter() - start
    print(timed(1) - timed(1), flush=True)     # less the updates themselves
    for line in sys.stdin: print(timed(int(line)), flush=True)

if __name__ == '__main__':
    if sys.argv[1] == 'quickstart': quickstart(*map(float, sys.argv[2:]))
    else: serve(sys.argv[2], *map(int, sys.argv[3:]))
