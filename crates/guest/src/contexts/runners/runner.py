# The inside of a live Python context. Descriptors given by the agent:
#   13 control: a line comes in, `run`, ahead of one `lend`, or before the first one `warm`, `renew` and `settle`, each with
#      its number; answers go out, each a line of its kind, that number and the lengths of its texts, then those. A
#      display has a serial number too, and `told` with it comes in once what was written before it is taken: until then
#      nothing more is written
#   14 what the order is about, a file the agent rewrites before each: the code to run; for `lend` variables of the
#      environment that are the next code's only, for `settle` the directory and variables that stay, all ended by NULs
#   15 one line for each reseeding asked for by signal
# User code runs in a module of its own, so that nothing here is in its way. What few pieces of code need is in LIBRARY,
# and costs nothing until then.
def _offshoot(CONTROL=13, CODE=14, ACKS=15):
    import _thread, ast, builtins, inspect, linecache, os, signal, sys, traceback, types

    TEXT = 64 * 1024
    WARM = "/etc/offshoot/warm.py"
    for fd in (CONTROL, CODE, ACKS):
        os.set_inheritable(fd, False)
    try:
        os.close(12)
    except OSError:
        pass
    main = types.ModuleType("__main__")
    main.__builtins__ = builtins
    sys.modules["__main__"] = main
    sys.argv = [""]
    sys.path[0] = ""
    sys.stdout.reconfigure(line_buffering=True, errors="backslashreplace")
    sys.stderr.reconfigure(line_buffering=True, errors="backslashreplace")
    running = False
    # Both are this thread's while no code runs: what another thread shows then waits for the next code, as output does.
    # A thread goes through the gate first, so that many of them do not keep the end of the code from being told.
    gate, sending = _thread.allocate_lock(), _thread.allocate_lock()
    gate.acquire()
    sending.acquire()
    own_thread = holder = _thread.get_ident()
    getpid, own_pid = os.getpid, os.getpid()
    waiting = interrupted = False
    number = serial = 0
    shown = True
    lent = None
    loop = None
    lines = b""

    def interrupt(*_):
        # Late ones, for code that has ended meanwhile, are nobody's; one in the middle of an answer waits for its end.
        nonlocal interrupted
        if running:
            interrupted = holder == own_thread and not waiting
            if not interrupted:
                raise KeyboardInterrupt

    def renew():
        modules = sys.modules
        if "random" in modules:
            modules["random"].seed(os.urandom(64))
        if "_ssl" in modules:
            modules["_ssl"].RAND_add(os.urandom(64), 64.0)
        if "numpy.random" in modules:
            words = os.urandom(64)
            modules["numpy.random"].seed(
                [int.from_bytes(words[at:at + 4], "little") for at in range(0, 64, 4)])

    def reseed(*_):
        try:
            renew()
            said = "ok"
        except BaseException as error:
            said = "%s: %s" % (type(error).__name__, error)
        os.write(ACKS, (" ".join(said.split())[:500] + "\n").encode("utf-8", "replace"))

    signal.signal(signal.SIGINT, interrupt)
    signal.signal(signal.SIGRTMAX - 3, reseed)

    def packed(kind, *texts):
        blobs = [text.encode("utf-8", "backslashreplace") for text in texts]
        head = "%s %s" % (kind, " ".join(str(len(blob)) for blob in blobs))
        return head.encode() + b"\n" + b"".join(blobs)

    def send(data):
        while data:
            data = data[os.write(CONTROL, data):]

    # By the bytes it is sent as.
    def cut(text):
        said = text[:TEXT].encode("utf-8", "backslashreplace")
        if len(text) <= TEXT and len(said) <= TEXT:
            return text
        return "%s... (%d characters in all)" % (said[:TEXT].decode("utf-8", "ignore"), len(text))

    # What was written before comes before it, and what is written after it behind it. A child that goes on with the code
    # has nobody to show things to: the context is its parent's. Neither has a destructor in the middle of an answer.
    def emit(name, update, found):
        nonlocal holder, interrupted, serial, waiting
        me = _thread.get_ident()
        if not shown or getpid() != own_pid or holder == me:
            return
        import select
        flush()
        with gate:
            pass
        with sending:
            try:
                holder = me
                serial += 1
                send(packed("display %d %d" % (number, serial), name, "1" if update else "", *found))
                told = b"told %d" % serial
                while told != next_line(False):
                    waiting = me == own_thread
                    if waiting and interrupted:
                        break
                    select.select([CONTROL], [], [])
                    waiting = False
                    receive()
            finally:
                waiting, holder = False, None
        if interrupted and me == own_thread:
            interrupted = False
            raise KeyboardInterrupt

    library = None
    making = _thread.RLock()

    def more():
        nonlocal library
        with making:
            if library is None:
                made = types.ModuleType("offshoot_display")
                made.__dict__.update(MAIN=main, EMIT=emit, CUT=cut)
                exec(compile(LIBRARY, __file__, "exec"), made.__dict__)
                library = made
        return library

    def display(*objects, **options):
        """Shows objects in all forms they have: text, HTML, pictures."""
        return more().display(*objects, **options)

    def no_input(prompt=""):
        raise EOFError("input() has nobody to ask: code in a context has no standard input")

    class Finder:
        # Modules that are made to show themselves here.
        @staticmethod
        def find_spec(name, path=None, target=None):
            if name in ("matplotlib", "IPython", "offshoot_matplotlib"):
                return more().find(name, path)

    builtins.display = display
    builtins.input = no_input
    sys.meta_path.insert(0, Finder)

    def receive():
        nonlocal lines
        data = os.read(CONTROL, 4096)
        if not data:
            os._exit(0)
        lines += data

    def next_line(wait):
        nonlocal lines
        while wait and b"\n" not in lines:
            receive()
        if b"\n" not in lines:
            return None
        line, lines = lines.split(b"\n", 1)
        return line

    plain = frozenset((bool, bytes, complex, dict, float, frozenset, int, list, range, set, str, tuple))

    def represent(value):
        if type(value) in plain or isinstance(value, type):
            return ["text/plain", cut(repr(value))]
        return more().represent(value)

    def without_own_frames(shown):
        pending, seen = [shown], set()
        while pending:
            one = pending.pop()
            if one is None or id(one) in seen:
                continue
            seen.add(id(one))
            theirs = [frame for frame in one.stack
                      if frame.filename != __file__ and "/IPython/" not in frame.filename]
            one.stack = traceback.StackSummary.from_list(theirs)
            pending += [one.__cause__, one.__context__, *(getattr(one, "exceptions", None) or ())]
        return shown

    def execute(source, name, space):
        nonlocal loop
        # Most code that is one expression, without a tree of it.
        if "\n" not in source and ";" not in source and "=" not in source:
            try:
                only = compile(source, name, "eval")
            except SyntaxError:
                pass
            else:
                return eval(only, space)
        # As in a notebook: the value of an expression that ends so is not wanted.
        quiet = source.rstrip().endswith(";")
        flags = ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
        if "get_ipython" in source:
            more().shell()
        try:
            tree = compile(source, name, "exec", ast.PyCF_ONLY_AST | flags)
        except SyntaxError:
            source = more().transformed(source)
            if source is None:
                raise
            tree = compile(source, name, "exec", ast.PyCF_ONLY_AST | flags)
        last = None
        if tree.body and isinstance(tree.body[-1], ast.Expr):
            last = ast.Expression(tree.body.pop().value)
        value = None
        for part, mode in ((tree, "exec"), (last, "eval")):
            if part is None:
                continue
            code = compile(part, name, mode, flags)
            value = eval(code, space)
            if code.co_flags & inspect.CO_COROUTINE:
                if loop is None:
                    import asyncio
                    loop = asyncio.new_event_loop()
                    asyncio.set_event_loop(loop)
                value = loop.run_until_complete(value)
        return None if quiet else value

    def flush():
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except Exception:
                # User code may have put anything there, or closed it.
                pass

    def read_code():
        # Not by a file object: a restored VM pays for each piece of the interpreter that it runs first.
        data = part = os.pread(CODE, 65536, 0)
        while len(part) == 65536:
            part = os.pread(CODE, 65536, len(data))
            data += part
        return data.decode()

    def words():
        return [word.decode() for word in read_code().encode().split(b"\0")[:-1]]

    # As `os.environ` has them; `None` is none.
    def lend(pairs):
        before = {}
        for pair in pairs:
            name, value = pair.split("=", 1)
            before[name] = os.environ.get(name)
            os.environ[name] = value
        return before

    def give_back(before):
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value

    def settle(directory, *pairs):
        os.chdir(directory)
        lend(pairs)

    def warm():
        # All that the first code of most needs. None of it is to be seen in its variables.
        for name in ("collections", "datetime", "json", "math", "random", "re", "ssl", "subprocess"):
            try:
                __import__(name)
            except ImportError:
                pass
        read_code()
        for source in ("print(end='')\n41 + 1", "41 + 1"):
            represent(execute(source, "<warm>", {"__builtins__": builtins}))
        flush()
        # And what the image knows of its users' code. What it shows and says is for nobody.
        nonlocal shown
        try:
            with open(WARM, encoding="utf-8") as file:
                source = file.read()
        except FileNotFoundError:
            return
        import gc
        with open(os.devnull, "w") as nowhere:
            streams, shown = (sys.stdout, sys.stderr), False
            sys.stdout = sys.stderr = nowhere
            try:
                execute(source, WARM, {"__builtins__": builtins, "__name__": "warm"})
                if "matplotlib.pyplot" in sys.modules:
                    more().flush_figures()
            finally:
                (sys.stdout, sys.stderr), shown = streams, True
        # What stays for ever is looked at no more: neither time nor memory of its own goes into it.
        gc.collect()
        gc.freeze()

    # What the library does with the figures that are open, where there can be any.
    def figures(do, *given):
        if "matplotlib.pyplot" in sys.modules:
            getattr(more(), do)(*given)

    def said_of(error):
        return "".join(without_own_frames(traceback.TracebackException.from_exception(error)).format())

    def leave(error):
        """Ends this process as Python ends with that error, or with none."""
        status = 0 if error is None else 1
        try:
            flush()
            if isinstance(error, SystemExit):
                code = error.code
                status = code & 255 if isinstance(code, int) else 0 if code is None else 1
                if isinstance(code, str):
                    print(code, file=sys.stderr, flush=True)
            elif error is not None:
                sys.stderr.write(said_of(error))
                flush()
        finally:
            os._exit(status)

    orders = {b"warm": warm, b"renew": renew, b"settle": lambda: settle(*words())}
    count = 0
    while True:
        order, _, number = next_line(True).partition(b" ")
        # An answer that the code's end came before.
        if order == b"told":
            continue
        number = int(number)
        end = b"end %d\n" % number
        if order in orders:
            # One that fails in this is of no use, and is ended.
            try:
                orders[order]()
                said = b""
            except BaseException as error:
                said = packed("error %d" % number, cut(type(error).__name__), cut(str(error)), "")
            send(said + end)
            continue
        if order == b"lend":
            lent = lend(words())
            send(end)
            continue
        if order != b"run":
            continue
        count += 1
        name = "<code %d>" % count
        value = failed = answer = None
        interrupted, holder = False, None
        sending.release()
        gate.release()
        try:
            running = True
            try:
                source = read_code()
                linecache.cache[name] = (len(source), None, source.splitlines(True), name)
                if library is not None:
                    library.counted(count)
                value = execute(source, name, main.__dict__)
                if value is not None and getpid() == own_pid:
                    builtins._ = value
                    answer = represent(value)
            except KeyboardInterrupt:
                raise
            except BaseException as error:
                failed = error
            if getpid() == own_pid:
                try:
                    figures("flush_figures", value)
                except Exception as error:
                    if failed is None:
                        raise
                    print("A figure cannot be shown: %r" % error, file=sys.stderr)
            running = False
        except BaseException as error:
            running = False
            failed = error
            if isinstance(error, KeyboardInterrupt) and getpid() == own_pid:
                try:
                    figures("drop_figures")
                except Exception as another:
                    print("Figures cannot be put away: %r" % another, file=sys.stderr)
        # A child of the code that has come to the code's end has nothing to do here.
        if getpid() != own_pid or isinstance(failed, SystemExit):
            leave(failed)
        conclusion = b""
        if lent is not None:
            give_back(lent)
            lent = None
        try:
            if failed is not None:
                text = said_of(failed)
                message = "".join(traceback.format_exception_only(type(failed), failed)[-1:]).strip()
                kind = type(failed).__name__
                message = message[len(kind) + 2:] if message.startswith(kind + ": ") else str(failed)
                conclusion = packed("error %d" % number, cut(kind)[:200], cut(message), cut(text))
            elif answer is not None:
                conclusion = packed("value %d" % number, *answer)
        except Exception as error:
            kind = cut(type(error).__name__)[:200]
            conclusion = packed("error %d" % number, kind, "the error itself cannot be shown", "")
        flush()
        failed = value = answer = None
        gate.acquire()
        sending.acquire()
        holder = own_thread
        send(conclusion + end)

_offshoot()
