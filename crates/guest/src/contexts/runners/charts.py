# What a matplotlib figure shows, as numbers and words, in the form E2B's clients read.
def charts_of():
    import re

    def number(value):
        try:
            value = round(float(value), 10)
        except (TypeError, ValueError):
            return str(value)
        return value if value == value and abs(value) != float("inf") else None

    def unit(label):
        found = re.search(r"[(\[]([^()\[\]]+)[)\]]\s*$", label or "")
        return found.group(1) if found else None

    def scale(axis):
        from matplotlib import category, dates
        converter = axis.get_converter() if hasattr(axis, "get_converter") else axis.converter
        if isinstance(converter, category.StrCategoryConverter):
            return "categorical"
        if isinstance(converter, (dates.DateConverter, dates._SwitchableDateConverter)):
            return "datetime"
        return axis.get_scale()

    def along(axis):
        """From a value on an axis to what it stands for."""
        kind = scale(axis)
        if kind == "datetime":
            from matplotlib import dates
            return lambda value: dates.num2date(value).isoformat() if number(value) is not None else None
        if kind == "categorical":
            names = {at: name for name, at in axis.units._mapping.items()} if axis.units else {}
            return lambda value: names.get(round(float(value)), number(value))
        return number

    def values(axis, given):
        """As they were given, in the axis' own numbers."""
        converted = axis.convert_units(given)
        into = along(axis)
        return [into(value) for value in converted]

    def plane(ax):
        x, y = ax.get_xlabel() or None, ax.get_ylabel() or None
        return {"title": ax.get_title() or None, "x_label": x, "y_label": y, "x_unit": unit(x), "y_unit": unit(y)}

    def grid(ax):
        found = {}
        for name, axis in (("x", ax.xaxis), ("y", ax.yaxis)):
            into = along(axis)
            found[name + "_ticks"] = [into(at) for at in axis.get_ticklocs()]
            found[name + "_tick_labels"] = [label.get_text() for label in axis.get_ticklabels()]
            found[name + "_scale"] = scale(axis)
        return found

    def points(ax, label, xs, ys):
        return {"label": label, "points": [list(p) for p in zip(values(ax.xaxis, xs), values(ax.yaxis, ys))]}

    def lines(ax, drawn):
        found = [points(ax, line.get_label(), line.get_xdata(orig=True), line.get_ydata(orig=True)) for line in drawn]
        return {"type": "line", **plane(ax), **grid(ax), "elements": found}

    def scatter(ax, drawn):
        found = []
        for cloud in drawn:
            offsets = cloud.get_offsets()
            found.append(points(ax, cloud.get_label(), offsets[:, 0], offsets[:, 1]))
        return {"type": "scatter", **plane(ax), **grid(ax), "elements": found}

    def bars(ax):
        from matplotlib.container import BarContainer
        found, label_of = [], {}
        for axis in (ax.xaxis, ax.yaxis):
            label_of[axis] = {number(at): label.get_text()
                              for at, label in zip(axis.get_ticklocs(), axis.get_ticklabels())}
        for group in ax.containers:
            if not isinstance(group, BarContainer):
                continue
            lying = group.orientation == "horizontal"
            axis = ax.yaxis if lying else ax.xaxis
            into = along(axis)
            for bar in group.patches:
                middle = bar.get_y() + bar.get_height() / 2 if lying else bar.get_x() + bar.get_width() / 2
                label = label_of[axis].get(number(middle)) or str(into(middle))
                value = number(bar.get_width() if lying else bar.get_height())
                found.append({"label": label, "group": group.get_label(), "value": value})
        return {"type": "bar", **plane(ax), "elements": found}

    def pie(ax, wedges):
        found = []
        for wedge in wedges:
            angle = round(abs(wedge.theta2 - wedge.theta1), 4)
            found.append({"label": wedge.get_label(), "angle": angle, "radius": number(wedge.r)})
        return {"type": "pie", "title": ax.get_title() or None, "elements": found}

    def boxes(ax, drawn):
        """Lines of a box plot come in the order: box, two whiskers, two caps, median, outliers."""
        from matplotlib.lines import Line2D
        from matplotlib.patches import PathPatch
        found, at = [], 0
        shapes = [(shape, shape.get_path().vertices if isinstance(shape, PathPatch) else
                   shape.get_xydata()) for shape in drawn]
        first = next((i for i, (shape, _) in enumerate(shapes) if is_box(shape)), None)
        if first is None:
            return None
        starts = [i for i, (shape, _) in enumerate(shapes) if is_box(shape)]
        for start, end in zip(starts, starts[1:] + [len(shapes)]):
            box, rest = shapes[start][1], [vertices for _, vertices in shapes[start + 1:end]]
            if len(rest) < 5:
                return None
            # Whiskers run along the values: the other coordinate of one stays the same.
            way = 0 if rest[0][0][1] == rest[0][-1][1] and rest[0][0][0] != rest[0][-1][0] else 1
            caps = sorted(number(cap[0][way]) for cap in rest[2:4])
            outliers = [number(value) for flier in rest[5:] for value in flier[:, way]]
            centre = (box[:, 1 - way].min() + box[:, 1 - way].max()) / 2
            axis = ax.yaxis if way == 0 else ax.xaxis
            labels = {number(at): label.get_text()
                      for at, label in zip(axis.get_ticklocs(), axis.get_ticklabels())}
            found.append({
                "label": labels.get(number(centre)) or str(number(centre)), "min": caps[0],
                "first_quartile": number(box[:, way].min()), "median": number(rest[4][0][way]),
                "third_quartile": number(box[:, way].max()), "max": caps[1], "outliers": outliers,
            })
        return {"type": "box_and_whisker", **plane(ax), "elements": found}

    def is_box(shape):
        from matplotlib.patches import PathPatch
        if isinstance(shape, PathPatch):
            return True
        data = shape.get_xydata()
        return len(data) == 5 and tuple(data[0]) == tuple(data[-1]) and shape.get_linestyle() != "None"

    def of_axes(ax):
        from matplotlib.collections import PathCollection
        from matplotlib.container import BarContainer
        from matplotlib.lines import Line2D
        from matplotlib.patches import PathPatch, Rectangle, Wedge
        from matplotlib.text import Text
        drawn = [child for child in ax._children if not isinstance(child, Text)]
        every = lambda *kinds: bool(drawn) and all(isinstance(child, kinds) for child in drawn)
        chart = None
        if every(Wedge):
            chart = pie(ax, drawn)
        elif every(PathCollection):
            chart = scatter(ax, drawn)
        elif any(isinstance(group, BarContainer) for group in ax.containers) and every(Rectangle, Line2D):
            chart = bars(ax)
        elif every(PathPatch, Line2D) and any(is_box(child) for child in drawn):
            chart = boxes(ax, drawn)
        if chart is None and every(Line2D):
            chart = lines(ax, drawn)
        return chart or {"type": "unknown", "title": ax.get_title() or None, "elements": []}

    def size(child):
        """How many points something drawn has, without a look at any."""
        for points in ("get_xdata", "get_offsets"):
            if hasattr(child, points):
                return len(getattr(child, points)())
        return 1

    def of_figure(figure, most):
        """None where there is nothing, or more of it than that many points."""
        axes = figure.get_axes()
        if not any(ax.has_data() for ax in axes):
            return None
        if sum(size(child) for ax in axes for child in ax._children) > most:
            return None
        if len(axes) == 1:
            return of_axes(axes[0])
        title = figure._suptitle.get_text() if figure._suptitle else None
        return {"type": "superchart", "title": title, "elements": [of_axes(ax) for ax in axes]}

    return of_figure


charts.of_figure = charts_of()
