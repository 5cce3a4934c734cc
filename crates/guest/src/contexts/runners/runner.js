// The inside of a live JavaScript context. Descriptors given by the agent:
//   13 control: a line comes in, `run`, ahead of one `lend`, or before the first one `warm`, `renew` and `settle`, each with
//      its number; answers go out, each a line of its kind, that number and the lengths of its texts, then those. A
//      display has a serial number too, and `told` with it comes in once what was written before it is taken: until then
//      nothing more is written
//   14 what the order is about, a file the agent rewrites before each: the code to run; for `lend` variables of the
//      environment that are the next code's only, for `settle` the directory and variables that stay, all ended by NULs
//   15 one line for each reseeding asked for by signal
// Code runs as in the developer tools' console: `let` and `const` persist and may be declared again, `await` works, and
// `import` by `offshootImports`.
(() => {
  'use strict';
  const fs = require('fs'), net = require('net'), util = require('util'), vm = require('vm');
  const crypto = require('crypto');
  const { Session } = require('inspector');
  const TEXT = 64 * 1024, LIMIT = 4 * 1024 * 1024, MOST = 14, NAME = 128, HELD = 64;
  const CONTROL = 13, CODE = 14, ACKS = 15;
  fs.closeSync(12);

  // The engine's own generator cannot be reseeded, and keeps values in advance: this one can (xoshiro128**).
  const state = new Uint32Array(4);
  const rotate = (x, k) => (x << k) | (x >>> (32 - k));
  const word = () => {
    const result = Math.imul(rotate(Math.imul(state[1], 5), 7), 9), t = state[1] << 9;
    state[2] ^= state[0]; state[3] ^= state[1]; state[1] ^= state[2]; state[0] ^= state[3];
    state[2] ^= t;
    state[3] = rotate(state[3], 11);
    return result >>> 0;
  };
  const random = { random() { return ((word() >>> 5) * 67108864 + (word() >>> 6)) / 9007199254740992; } }.random;
  Object.defineProperty(Math, 'random', { value: random, writable: true, enumerable: false, configurable: true });
  state.set(new Uint32Array(crypto.randomBytes(16).buffer.slice(0, 16)));

  // OpenSSL's own state can be reached by native code only.
  let native = null, nativeProblem = null;
  try {
    const module_ = { exports: {} };
    process.dlopen(module_, process.env.OFFSHOOT_RESEED);
    native = module_.exports;
  } catch (error) {
    nativeProblem = `the add-on that reseeds OpenSSL cannot be loaded: ${error.message}`;
  }
  delete process.env.OFFSHOOT_RESEED;

  const renew = () => {
    if (native === null) throw new Error(nativeProblem);
    const entropy = fs.openSync('/dev/urandom', 'r');
    const bytes = Buffer.alloc(80);
    try { fs.readSync(entropy, bytes, 0, 80, null); } finally { fs.closeSync(entropy); }
    native.reseed(bytes.subarray(0, 64));
    state.set(new Uint32Array(bytes.buffer.slice(bytes.byteOffset + 64, bytes.byteOffset + 80)));
    // Up to 128 UUIDs are kept in advance: use them up.
    for (let i = 0; i < 128; i++) crypto.randomUUID();
  };
  const reseed = () => {
    try {
      renew();
      fs.writeSync(ACKS, 'ok\n');
    } catch (error) {
      fs.writeSync(ACKS, `${error.message.split('\n').join(' ').slice(0, 500)}\n`);
    }
  };

  // An interrupt in the middle of a write would leave node's own stream waiting for ever, and all later output in it:
  // here nothing is kept from one write to the next.
  const clock = new Int32Array(new SharedArrayBuffer(4));
  const writeAll = (fd, bytes) => {
    for (let at = 0; at < bytes.length;) {
      try {
        at += fs.writeSync(fd, bytes, at);
      } catch (error) {
        if (error.code !== 'EAGAIN') throw error;
        Atomics.wait(clock, 0, 0, 1);
      }
    }
  };
  for (const [name, fd] of [['stdout', 1], ['stderr', 2]]) {
    const { get } = Object.getOwnPropertyDescriptor(process, name);
    const made = () => {
      const stream = get.call(process);
      if (!Object.hasOwn(stream, 'write')) {
        stream.write = (chunk, encoding, done) => {
          const text = typeof encoding === 'string' ? encoding : 'utf8';
          writeAll(fd, typeof chunk === 'string' ? Buffer.from(chunk, text) : chunk);
          const then = typeof encoding === 'function' ? encoding : done;
          if (typeof then === 'function') process.nextTick(then);
          return true;
        };
      }
      return stream;
    };
    Object.defineProperty(process, name, { get: made, configurable: true, enumerable: true });
  }

  // Written in one call of libuv's that waits until all is: an interrupt of the code that shows something cannot cut an
  // answer in its middle, or leave node's own stream waiting.
  const control = new net.Socket({ fd: CONTROL, readable: true, writable: true });
  const { WriteWrap } = process.binding('stream_wrap');
  const write = (kind, texts) => {
    const blobs = texts.map((text) => Buffer.from(String(text)));
    const bytes = Buffer.concat([Buffer.from([kind, ...blobs.map((b) => b.length)].join(' ') + '\n'), ...blobs]);
    const request = Object.assign(new WriteWrap(), { oncomplete() {}, handle: control._handle, buffer: bytes });
    control._handle.setBlocking(true);
    const problem = control._handle.writeBuffer(request, bytes);
    control._handle.setBlocking(false);
    // The agent has left.
    if (problem !== 0) process.exit(0);
  };
  let number = 0, serial = 0, lines = '';
  const send = (kind, ...texts) => write(`${kind} ${number}`, texts);
  const nextLine = () => {
    const at = lines.indexOf('\n'), line = lines.slice(0, at);
    if (at >= 0) lines = lines.slice(at + 1);
    return at >= 0 ? line : null;
  };
  // What is shown while no code runs is the next code's, as output is: so much of it is held, the last of it.
  const held = [];
  let running = false;
  const buffer = Buffer.alloc(4096);
  const show = (texts) => {
    if (!running) {
      held.push(texts);
      while (held.length > HELD || held.flat().reduce((sum, text) => sum + text.length, 0) > LIMIT) held.shift();
      return;
    }
    serial += 1;
    write(`display ${number} ${serial}`, texts);
    for (const told = `told ${serial}`; ;) {
      const line = nextLine();
      if (line === told) return;
      if (line !== null) continue;
      try {
        const count = fs.readSync(CONTROL, buffer);
        if (count === 0) process.exit(0);
        lines += buffer.toString('latin1', 0, count);
      } catch (error) {
        if (error.code !== 'EAGAIN') throw error;
        Atomics.wait(clock, 0, 0, 1);
      }
    }
  };
  // By the bytes it is sent as. One that is cut in the middle of a character leaves that out.
  const cut = (text) => {
    const said = Buffer.from(text.slice(0, TEXT));
    if (text.length <= TEXT && said.length <= TEXT) return text;
    const kept = said.subarray(0, TEXT).toString().replace(/\ufffd+$/, '');
    return `${kept}... (${text.length} characters in all)`;
  };
  // What a thrown object says of itself may throw in its turn.
  const said = (tell, most = TEXT) => {
    try {
      return cut(String(tell())).slice(0, most);
    } catch {
      return '(it cannot be shown)';
    }
  };

  // The text, and whatever else is not too large. A value may say itself how it looks, by the method Deno's notebooks ask.
  const look = Symbol.for('Jupyter.display');
  const pairs = (value, found) => {
    const left = { bytes: LIMIT }, kept = [], out = [];
    for (const [kind, made] of Object.entries(found)) {
      if (kind === 'text/plain' || made === undefined || made === null || !/^[!-~]{1,128}$/.test(kind)) continue;
      if (kept.length >= 2 * MOST) break;
      const text = made instanceof Uint8Array ? Buffer.from(made).toString('base64')
        : typeof made === 'string' && !kind.endsWith('json') ? made : JSON.stringify(made);
      if (text === undefined) continue;
      const size = Buffer.byteLength(text);
      if (size > left.bytes) {
        if (out.length < MOST) out.push(`${kind} of ${size} bytes`);
        continue;
      }
      left.bytes -= size;
      kept.push(kind, text);
    }
    const note = out.length === 0 ? '' : `\n(left out, for all may be ${LIMIT} bytes together: ${out.join(', ')})`;
    const text = typeof found['text/plain'] === 'string' ? found['text/plain'] : util.inspect(value);
    return ['text/plain', cut(text) + note, ...kept];
  };
  const method = (value) => {
    const own = value !== null && (typeof value === 'object' || typeof value === 'function') ? value[look] : undefined;
    return typeof own === 'function' ? own : null;
  };
  const represent = async (value) => {
    const own = method(value);
    return pairs(value, own === null ? {} : await own.call(value));
  };
  // Shown when the call returns, but where a value has to be waited for.
  const display = async (value, { id, update = false, mime } = {}) => {
    if (update && id === undefined) throw new TypeError('only what was shown with an `id` can be updated');
    const name = id === undefined ? '' : String(id), size = Buffer.byteLength(name);
    // Not cut, which could make two names the same.
    if (id !== undefined && (size === 0 || size > NAME)) throw new RangeError(`an \`id\` has 1 to ${NAME} bytes`);
    const given = mime !== undefined ? { [mime]: value } : method(value) === null ? {} : undefined;
    show([name, update ? '1' : '', ...given === undefined ? await represent(value) : pairs(value, given)]);
  };
  for (const [kind, mime] of Object.entries({
    html: 'text/html', markdown: 'text/markdown', svg: 'image/svg+xml', png: 'image/png', jpeg: 'image/jpeg',
    latex: 'text/latex', json: 'application/json' })) {
    display[kind] = (value, options = {}) => display(value, { ...options, mime });
  }
  Object.defineProperty(globalThis, 'display', { value: display, writable: true, enumerable: false, configurable: true });

  const session = new Session();
  session.connect();
  let taken;
  const take = (value) => { taken = value; };
  // A remote object is turned into the value itself by a call on it with that function as `this`.
  const key = Symbol('offshoot');
  const post = (method, params) => new Promise((resolve, reject) => {
    session.post(method, params, (error, result) => error ? reject(error) : resolve(result));
  });
  const real = async (remote) => {
    if (remote.objectId === undefined) {
      if (remote.unserializableValue !== undefined) return vm.runInThisContext(`(${remote.unserializableValue})`);
      return remote.type === 'undefined' ? undefined : remote.value;
    }
    Object.defineProperty(globalThis, key, { value: take, configurable: true, enumerable: false });
    try {
      await post('Runtime.callFunctionOn', {
        objectId: remote.objectId,
        functionDeclaration: 'function () { "use strict"; const key = Object.getOwnPropertySymbols(globalThis)' +
          '.find((s) => s.description === "offshoot"); globalThis[key](this); }' });
      return taken;
    } finally {
      taken = undefined;
      delete globalThis[key];
    }
  };

  // Frames of this file and of the machinery below it are not the code's.
  const shorten = (stack) => stack.split('\n')
    .filter((line) => !/^\s+at .*(offshoot-runner|node:internal|node:inspector|node:vm)/.test(line)).join('\n');

  let interrupted = null;
  process.on('SIGINT', () => { if (interrupted !== null) interrupted(); });
  process.on('SIGUSR2', reseed);

  // What the code came to: an answer, or none, and its value, if it has one.
  const evaluate = async (code, name) => {
    let stop;
    const stopped = new Promise((resolve) => { stop = resolve; });
    interrupted = () => stop('interrupted');
    // What the inspector names is kept for as long as its group is.
    const objectGroup = `offshoot-${name}`;
    const release = () => post('Runtime.releaseObjectGroup', { objectGroup });
    let pending = null;
    try {
      Object.defineProperty(globalThis, key, { configurable: true, enumerable: false, value: () => {
        delete globalThis[key];
        pending = post('Runtime.evaluate', {
          expression: `${offshootImports(code)}\n//# sourceURL=${name}`, replMode: true, awaitPromise: true, silent: true,
          objectGroup });
      } });
      // While the code holds the thread, a SIGINT ends it; while it awaits, the handler above.
      vm.runInThisContext(
        'globalThis[Object.getOwnPropertySymbols(globalThis).find((s) => s.description === "offshoot")]()',
        { filename: 'offshoot-runner', breakOnSigint: true });
      const result = await Promise.race([pending, stopped]);
      if (result === 'interrupted') throw Object.assign(new Error('interrupted'), { code: 'ERR_SCRIPT_EXECUTION_INTERRUPTED' });
      const value = await real(result.exceptionDetails ? result.exceptionDetails.exception : result.result);
      if (result.exceptionDetails) {
        const thrown = value, at = result.exceptionDetails;
        if (util.types.isNativeError(thrown) || thrown instanceof Error) {
          const trace = () => {
            const stack = shorten(String(thrown.stack));
            return stack.includes(name) ? stack : `${stack}\n    at ${name}:${at.lineNumber + 1}:${at.columnNumber + 1}`;
          };
          return { answer: ['error', said(() => thrown.name, 200), said(() => thrown.message), said(trace)] };
        }
        return { answer: ['error', 'Uncaught', said(() => util.inspect(thrown)), ''] };
      }
      if (value === undefined) return { answer: null };
      return { answer: ['value', ...await represent(value)], value };
    } catch (error) {
      return { answer: error?.code === 'ERR_SCRIPT_EXECUTION_INTERRUPTED'
        ? ['error', 'Interrupted', 'the code was interrupted', '']
        : ['error', said(() => error.name, 200), said(() => error.message), ''] };
    } finally {
      interrupted = null;
      // What code that was interrupted comes to later is nobody's.
      if (pending !== null) pending.then(release, release);
      await release();
    }
  };

  const words = () => fs.readFileSync(`/proc/self/fd/${CODE}`, 'utf8').split('\0').slice(0, -1);
  // What the names were before; `undefined` is none.
  const lend = (pairs) => new Map(pairs.map((pair) => {
    const at = pair.indexOf('='), name = pair.slice(0, at), before = process.env[name];
    process.env[name] = pair.slice(at + 1);
    return [name, before];
  }));
  let lent = new Map();
  const giveBack = () => {
    for (const [name, value] of lent) {
      if (value === undefined) delete process.env[name];
      else process.env[name] = value;
    }
    lent = new Map();
  };

  let count = 0;
  const orders = {
    lend: async () => {
      lent = lend(words());
      send('end');
    },
    settle: async () => {
      const [directory, ...pairs] = words();
      try {
        process.chdir(directory);
        lend(pairs);
      } catch (error) {
        send('error', said(() => error.name, 200), said(() => error.message), '');
      }
      send('end');
    },
    run: async () => {
      const code = fs.readFileSync(`/proc/self/fd/${CODE}`, 'utf8');
      count += 1;
      running = true;
      for (const texts of held.splice(0)) show(texts);
      const { answer, value } = await evaluate(code, `code-${count}`);
      giveBack();
      if (value !== undefined) globalThis._ = value;
      running = false;
      if (answer !== null) send(...answer);
      send('end');
    },
    // What the first code needs, and nothing that is to be seen in its variables.
    warm: async () => {
      fs.readFileSync(`/proc/self/fd/${CODE}`, 'utf8');
      process.stdout.write('');
      await evaluate('41 + 1', 'warm');
      send('end');
    },
    renew: async () => { renew(); send('end'); },
  };

  process.on('uncaughtException', (error) => { console.error(error); });
  process.on('unhandledRejection', (error) => { console.error(error); });
  control.on('data', (data) => {
    lines += data.toString('latin1');
    for (let line = nextLine(); line !== null; line = nextLine()) {
      const [order, which] = line.split(' ');
      // `told` is of a display that was interrupted.
      if (!Object.hasOwn(orders, order)) continue;
      number = Number(which);
      // One that fails in what is not the code's is of no use, and ends.
      orders[order]().catch(() => process.exit(1));
    }
  });
  control.on('end', () => process.exit(0));
})();
//# sourceURL=offshoot-runner
