# What a live Python context needs beyond plain code: representations of values, `display`, figures, IPython. The runner
# holds it as text and runs it when something of it is first wanted. Given by the runner: MAIN, the user's module;
# EMIT(id, update, pairs), which tells the agent; CUT(text), which shortens one that is too long.
import base64, builtins, importlib.machinery, json, os, sys, types

# Bytes of all representations but the text.
LIMIT = 4 * 1024 * 1024
MOST = 14
# Bytes of a display's name.
NAME = 128
CHART = "application/vnd.e2b.chart+json"
DATA = "application/vnd.e2b.data+json"
# Larger tables and charts are shown, and not taken apart.
CELLS = 50_000
BACKEND = "offshoot_matplotlib"

METHODS = (
    ("text/html", "_repr_html_"), ("text/markdown", "_repr_markdown_"), ("image/svg+xml", "_repr_svg_"),
    ("image/png", "_repr_png_"), ("image/jpeg", "_repr_jpeg_"), ("application/pdf", "_repr_pdf_"),
    ("text/latex", "_repr_latex_"), ("application/json", "_repr_json_"),
    ("application/javascript", "_repr_javascript_"),
)


def finite(value):
    """As JSON can say it: no NaN, no infinity."""
    if isinstance(value, float):
        return value if value == value and abs(value) != float("inf") else None
    if isinstance(value, dict):
        return {str(key): finite(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(one) for one in value]
    return value


def wire_text(kind, made):
    """A representation as text: JSON written down, bytes in base64."""
    if isinstance(made, (bytes, bytearray)):
        return base64.b64encode(made).decode()
    if isinstance(made, str) and not kind.endswith("json"):
        return made.strip() if kind.startswith("image/") and kind != "image/svg+xml" else made
    return json.dumps(finite(made), allow_nan=False, default=str)


def offered(value):
    """What a value says of itself, by media type."""
    of, found = type(value), {}
    shell = running_shell()
    if shell is not None:
        made, _ = shell.display_formatter.format(value)
        found.update(made)
    elif hasattr(of, "_repr_mimebundle_"):
        try:
            made = value._repr_mimebundle_(include=None, exclude=None)
            found.update((made[0] if isinstance(made, tuple) else made) or {})
        except Exception:
            # Offered but not to be had: the other methods are asked.
            pass
    for kind, method in METHODS:
        if kind not in found and hasattr(of, method):
            try:
                made = getattr(value, method)()
            except Exception:
                continue
            made = made[0] if isinstance(made, tuple) else made
            if made is not None:
                found[kind] = made
    for extra in (figure, table):
        try:
            found.update(extra(value))
        except Exception as error:
            found.setdefault("text/plain", "%r (%s: %s)" % (value, type(error).__name__, error))
    return found


def pairs(value, found):
    """The text, and whatever else is not too large, as the agent wants it."""
    text = found.pop("text/plain", None)
    text = text if isinstance(text, str) else repr(value)
    left, kept, out = LIMIT, [], []
    for kind, made in found.items():
        usual = isinstance(kind, str) and 0 < len(kind) <= 128 and all("!" <= c <= "~" for c in kind)
        if made is None or not usual or len(kept) >= 2 * MOST:
            continue
        try:
            made = wire_text(kind, made)
        except (TypeError, ValueError):
            continue
        size = len(made.encode("utf-8", "backslashreplace"))
        if size > left:
            if len(out) < MOST:
                out.append("%s of %d bytes" % (kind, size))
            continue
        left -= size
        kept += [kind, made]
    note = "\n(left out, for all may be %d bytes together: %s)" % (LIMIT, ", ".join(out)) if out else ""
    return ["text/plain", CUT(text) + note] + kept


def represent(value):
    """For the value of an expression; `None` where it has shown itself."""
    if not isinstance(value, type) and hasattr(type(value), "_ipython_display_"):
        value._ipython_display_()
        return None
    return pairs(value, offered(value))


# display()

def checked(name):
    """A display's name: what is too long for one is refused, and not cut, which could make two names the same."""
    if not 0 < len(name.encode("utf-8", "backslashreplace")) <= NAME:
        raise ValueError("a display_id has 1 to %d bytes" % NAME)
    return name


class DisplayHandle:
    """A place where something is shown, and can be shown anew."""

    def __init__(self, display_id=None):
        self.display_id = checked(display_id) if isinstance(display_id, str) else os.urandom(16).hex()

    def __repr__(self):
        return "<DisplayHandle display_id=%s>" % self.display_id

    def display(self, obj, **options):
        display(obj, display_id=self.display_id, **options)

    def update(self, obj, **options):
        update_display(obj, display_id=self.display_id, **options)


def show(value, name=None, update=False, raw=False):
    if raw:
        found = pairs(value, dict(value))
    else:
        found = represent(value)
    if found is not None:
        EMIT(name or "", update, found)


def display(*objects, display_id=None, update=False, raw=False, clear=False, include=None, exclude=None,
            metadata=None, transient=None, **kwargs):
    """Shows each of the objects, in all forms they have."""
    handle = None
    if isinstance(display_id, str):
        checked(display_id)
    if update and not display_id:
        raise TypeError("display_id required for update_display")
    if display_id:
        handle = DisplayHandle(display_id)
    for one in objects:
        show(one, handle and handle.display_id, update, raw)
    return None if update else handle


def update_display(obj, *, display_id, **options):
    """Shows an object where another was shown."""
    display(obj, display_id=display_id, update=True, **options)


# Tables

def table(value):
    pandas = sys.modules.get("pandas")
    if pandas is None or not isinstance(value, getattr(pandas, "DataFrame", ())) or value.size > CELLS:
        return {}

    def plain(one):
        if one is None or isinstance(one, (bool, int, float, str)):
            return one
        if hasattr(one, "isoformat"):
            # What is no time has none.
            return one.isoformat() if one == one else None
        return one.item() if hasattr(one, "item") else str(one)

    columns = zip(value.columns, range(value.shape[1]))
    return {DATA: {str(name): [plain(one) for one in value.iloc[:, at].tolist()] for name, at in columns}}


# Figures

def figure(value):
    drawn = sys.modules.get("matplotlib.figure")
    if drawn is None or not isinstance(value, drawn.Figure):
        return {}
    import io
    picture = io.BytesIO()
    value.savefig(picture, format="png", bbox_inches="tight", facecolor=value.get_facecolor())
    found = {"image/png": picture.getvalue()}
    try:
        chart = charts.of_figure(value, CELLS)
    except Exception:
        # Drawn as no chart is that is known here: it has its picture.
        chart = None
    if chart is not None:
        found[CHART] = chart
    return found


def is_own_backend(matplotlib):
    return matplotlib.rcParams._get_backend_or_none() == "module://" + BACKEND if hasattr(
        matplotlib.rcParams, "_get_backend_or_none") else matplotlib.rcParams["backend"] == "module://" + BACKEND


def flush_figures(but=None):
    """Shows what is drawn and not yet shown, and puts it away."""
    helpers = sys.modules.get("matplotlib._pylab_helpers")
    if helpers is None or not helpers.Gcf.figs or not is_own_backend(sys.modules["matplotlib"]):
        return
    managers = helpers.Gcf.get_all_fig_managers()
    helpers.Gcf.destroy_all()
    for manager in managers:
        if manager.canvas.figure is not but:
            show(manager.canvas.figure)


def drop_figures():
    """Puts away what is drawn and not yet shown."""
    helpers = sys.modules.get("matplotlib._pylab_helpers")
    if helpers is not None and is_own_backend(sys.modules["matplotlib"]):
        helpers.Gcf.destroy_all()


def fill_backend(module):
    from matplotlib.backend_bases import FigureManagerBase
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    module.FigureCanvas, module.FigureManager = FigureCanvasAgg, FigureManagerBase
    module.show = lambda *args, **kwargs: flush_figures()


def chosen_backend(matplotlib):
    if not os.environ.get("MPLBACKEND"):
        matplotlib.rcParams["backend"] = "module://" + BACKEND


# Modules that are to know of us

class Filled:
    """Loads a module that is made here."""

    def create_module(self, spec):
        return None

    def exec_module(self, module):
        fill_backend(module)


class Followed:
    """Loads a module as its own loader would, and does something once that is done."""

    def __init__(self, loader, then):
        self.loader, self.then = loader, then

    def create_module(self, spec):
        return self.loader.create_module(spec)

    def exec_module(self, module):
        module.__spec__.loader = module.__loader__ = self.loader
        self.loader.exec_module(module)
        self.then(module)


def find(name, path):
    if name == BACKEND:
        return importlib.machinery.ModuleSpec(name, Filled())
    spec = importlib.machinery.PathFinder.find_spec(name, path)
    if spec is not None and spec.loader is not None:
        spec.loader = Followed(spec.loader, {"matplotlib": chosen_backend, "IPython": joined}[name])
    return spec


# IPython, where it is installed: its syntax, its commands, its display. Started when first needed.

made_shell = None


def running_shell():
    return made_shell


def counted(count):
    if made_shell is not None:
        made_shell.execution_count = count


def joined(ipython):
    """Whoever asks IPython for its shell gets one that runs in this context."""
    from IPython.core.interactiveshell import InteractiveShell
    own = InteractiveShell.initialized.__func__

    def initialized(cls):
        if made_shell is None and cls._instance is None:
            start_shell()
        return own(cls)

    InteractiveShell.initialized = classmethod(initialized)


def start_shell():
    global made_shell
    from IPython.core.displaypub import DisplayPublisher
    from IPython.core.interactiveshell import InteractiveShell
    from traitlets.config import Config

    class Publisher(DisplayPublisher):
        def publish(self, data, metadata=None, source=None, *, transient=None, update=False, **kwargs):
            name = (transient or {}).get("display_id")
            name = "" if name is None else checked(str(name))
            EMIT(name, bool(update and name), pairs(data, dict(data)))

        def clear_output(self, wait=False):
            pass

    class Shell(InteractiveShell):
        # Children write to our own output.
        system = InteractiveShell.system_raw

        def init_display_pub(self):
            self.display_pub = Publisher(parent=self, shell=self)

        def enable_matplotlib(self, gui=None):
            # Figures are shown where they are, whatever was asked for.
            return "inline", "module://" + BACKEND

        def enable_gui(self, gui=None):
            pass

        def init_virtualenv(self):
            pass

        def showtraceback(self, *args, **kwargs):
            # An error within one of its commands is the code's.
            raise sys.exc_info()[1]

    settings = Config()
    settings.HistoryManager.enabled = False
    settings.InteractiveShell.colors = "NoColor"
    settings.InteractiveShell.autocall = 0
    settings.InteractiveShell.banner1 = ""
    before = builtins.display
    # Its own registration asks whether there is one.
    made_shell = False
    try:
        made_shell = Shell.instance(config=settings, user_module=MAIN, user_ns=MAIN.__dict__)
    finally:
        made_shell = made_shell or None
        builtins.display = before
    MAIN.__dict__.setdefault("get_ipython", made_shell.get_ipython)
    return made_shell


def shell():
    """The shell, or none where IPython is not installed."""
    if made_shell is None:
        try:
            import IPython
        except ImportError:
            return None
        IPython.get_ipython()
    return made_shell


def transformed(source):
    """The code in plain Python, if it is IPython's."""
    one = shell()
    if one is None:
        return None
    changed = one.transform_cell(source)
    return changed if changed != source and changed != source + "\n" else None


charts = types.SimpleNamespace()
