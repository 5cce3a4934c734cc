# The inside of a live Python context. Descriptors given by the agent:
#   13 control: a line comes in, `run` or before the first one `warm` and `renew`; answers go out, each a line of its kind
#      and the lengths of its texts, then those
#   14 the code to run, a file the agent rewrites before each `run`
#   15 one line for each reseeding asked for by signal
# User code runs in a module of its own, so that nothing here is in its way.
def _offshoot(CONTROL=13, CODE=14, ACKS=15):
    import ast, builtins, inspect, linecache, os, signal, sys, traceback, types

    LIMIT = 256 * 1024
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
    loop = None
    lines = b""

    def interrupt(number, frame):
        # Late ones, for code that has ended meanwhile, are nobody's.
        if running:
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

    def reseed(number, frame):
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
        return b" ".join([kind.encode()] + [b"%d" % len(blob) for blob in blobs]) + b"\n" + b"".join(blobs)

    def send(data):
        while data:
            data = data[os.write(CONTROL, data):]

    def cut(text):
        return text if len(text) <= LIMIT // 4 else "%s... (%d more characters)" % (
            text[:LIMIT // 4], len(text) - LIMIT // 4)

    def next_line():
        nonlocal lines
        while b"\n" not in lines:
            data = os.read(CONTROL, 4096)
            if not data:
                os._exit(0)
            lines += data
        line, lines = lines.split(b"\n", 1)
        return line

    plain = frozenset((bool, bytes, complex, dict, float, frozenset, int, list, range, set, str, tuple))

    def represent(value):
        found = ["text/plain", cut(repr(value))]
        left = LIMIT
        if type(value) in plain or isinstance(value, type):
            return found
        import base64
        for kind, method in (("text/html", "_repr_html_"), ("text/markdown", "_repr_markdown_"),
                             ("image/svg+xml", "_repr_svg_"), ("image/png", "_repr_png_"),
                             ("image/jpeg", "_repr_jpeg_"), ("text/latex", "_repr_latex_"),
                             ("application/json", "_repr_json_")):
            try:
                made = getattr(value, method)() if hasattr(type(value), method) else None
                if isinstance(made, tuple):
                    made = made[0]
                if isinstance(made, (dict, list)):
                    import json
                    made = json.dumps(made)
                elif isinstance(made, bytes):
                    made = base64.b64encode(made).decode()
            except Exception:
                # Offered but not to be had: text/plain is there.
                continue
            if isinstance(made, str) and len(made.encode("utf-8", "replace")) <= left:
                left -= len(made.encode("utf-8", "replace"))
                found += [kind, made]
        return found

    def without_own_frames(shown):
        pending, seen = [shown], set()
        while pending:
            one = pending.pop()
            if one is None or id(one) in seen:
                continue
            seen.add(id(one))
            theirs = [frame for frame in one.stack if frame.filename != __file__]
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
        flags = ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
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
        return value

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

    count = 0
    while True:
        order = next_line()
        if order in (b"warm", b"renew"):
            # One that fails in this is of no use, and ends.
            warm() if order == b"warm" else renew()
            send(b"end\n")
            continue
        if order != b"run":
            continue
        count += 1
        name = "<code %d>" % count
        value, failed = None, None
        try:
            running = True
            source = read_code()
            linecache.cache[name] = (len(source), None, source.splitlines(True), name)
            value = execute(source, name, main.__dict__)
            if value is not None:
                builtins._ = value
                answer = represent(value)
            running = False
        except BaseException as error:
            running = False
            failed = error
        conclusion = b""
        try:
            if isinstance(failed, SystemExit):
                flush()
                code = failed.code
                if isinstance(code, str):
                    print(code, file=sys.stderr, flush=True)
                os._exit(code & 255 if isinstance(code, int) else 0 if code is None else 1)
            if failed is not None:
                shown = traceback.TracebackException.from_exception(failed)
                text = "".join(without_own_frames(shown).format())
                message = "".join(traceback.format_exception_only(type(failed), failed)[-1:]).strip()
                kind = type(failed).__name__
                message = message[len(kind) + 2:] if message.startswith(kind + ": ") else str(failed)
                conclusion = packed("error", cut(kind)[:200], cut(message), cut(text))
            elif value is not None:
                conclusion = packed("value", *answer)
        except Exception as error:
            conclusion = packed("error", type(error).__name__, "the error itself cannot be shown", "")
        flush()
        failed = value = answer = None
        send(conclusion + b"end\n")


_offshoot()
