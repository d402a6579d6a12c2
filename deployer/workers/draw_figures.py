"""Draw the pictures of a comparison for slides: PNG, 1600 x 900 pixels.

Request: {folder, foot, size: [width, height], fronts, strips}. `fronts` are scatter plots and
`strips` the latencies, or null; all positions are percent of the plot, y from the top, and offsets
of names are pixels of a plot of `size` (deployer/report/comparison_pictures.py makes them).
Response: {figures: [file names, in the order of the request]}.
"""

import os
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
# Its font cache has no place in the user's home.
os.environ["MPLCONFIGDIR"] = tempfile.mkdtemp(dir=Path.cwd())

import matplotlib
from _protocol import WorkerError, progress, run
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

INK, SOFT, LINE = "#1b1d21", "#5f646d", "#dcdcd6"
BLUE, AMBER = "#2f6bd8", "#e39a2d"
MARKERS = {"round": "o", "square": "s", "diamond": "D", "bar": "P"}
PLOT = (0.085, 0.155, 0.88, 0.70)
"""Left, bottom, width and height of a front's plot, as shares of the picture."""
SETTINGS = {
    "font.family": "DejaVu Sans",
    "font.size": 17,
    "text.parse_math": False,  # a name may hold a dollar sign
    "svg.fonttype": "none",
}


def main(request):
    folder = Path(request["folder"])
    pictures = [(front["file"], draw_front, front) for front in request["fronts"]]
    if request["strips"]:
        pictures.append((request["strips"]["file"], draw_strips, request["strips"]))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with matplotlib.rc_context(SETTINGS):
            for number, (name, draw, content) in enumerate(pictures, 1):
                figure = Figure(figsize=(16, 9), dpi=100, facecolor="white")
                draw(figure, content, request["size"])
                figure.text(0.02, 0.018, request["foot"], fontsize=11.5, color=SOFT)
                FigureCanvasAgg(figure).print_png(folder / name)
                progress(number, len(pictures))
    except OSError as error:
        raise WorkerError(
            f"the pictures cannot be written: {error.strerror or error}",
            "Free some space, or name a folder that can be written to.",
        ) from error
    return {"figures": [name for name, _, _ in pictures]}


def draw_front(figure, content, size):
    axes = figure.add_axes(PLOT)
    _heading(figure, content["title"])
    _percent_axes(axes, content["ticks"], content["levels"])
    axes.set_xlabel(content["across"], color=SOFT, labelpad=10)
    figure.text(0.02, 0.875, content["down"], color=SOFT, fontsize=17)
    if content["zero"] is not None:
        axes.axhline(content["zero"], color=SOFT, linewidth=1.2, linestyle=(0, (4, 4)))
        axes.text(-0.8, content["zero"], "0", ha="right", va="center", color=SOFT)
    axes.plot(*zip(*content["line"], strict=True), color=BLUE, linewidth=2.5, alpha=0.7)
    for point in content["points"]:
        _interval(axes, point)
    for point in content["points"]:
        _point(axes, point)
        _name(axes, point, size)
    _key(figure, content)


def _interval(axes, point):
    style = {"color": SOFT, "linewidth": 1.8, "alpha": 0.7, "zorder": 2}
    if point["across"]:
        start, length = point["across"]
        axes.plot([start, start + length], [point["y"]] * 2, **style)
    if point["down"]:
        start, length = point["down"]
        axes.plot([point["x"]] * 2, [start, start + length], **style)


def _point(axes, point):
    colour = BLUE if point["front"] else SOFT
    axes.plot(
        [point["x"]], [point["y"]], marker=MARKERS[point["shape"]],
        markersize=10 if point["shape"] == "diamond" else 13,
        markeredgewidth=2.4, markeredgecolor=colour, clip_on=False, zorder=4,
        markerfacecolor=colour if point["front"] else "white",
    )  # fmt: skip


def _name(axes, point, size):
    """The name at its offset, which is in pixels of a plot of `size`."""
    width, height = size
    place = point["slide"]
    x = point["x"] + 100 * place["dx"] / width
    y = point["y"] + 100 * place["dy"] / height
    if place["leader"]:
        end = [place["leader"][0] * 100 / width, place["leader"][1] * 100 / height]
        axes.plot(
            [point["x"], point["x"] + end[0]], [point["y"], point["y"] + end[1]],
            color=SOFT, linewidth=1.2, alpha=0.7, zorder=3,
        )  # fmt: skip
    axes.text(
        x, y, point["shown"], ha="right" if place["ends"] else "left", va="center",
        color=INK if point["front"] else SOFT, fontsize=15, clip_on=False, zorder=5,
        fontweight="bold" if point["front"] else "normal",
    )  # fmt: skip


def _key(figure, content):
    """Which shape is which engine, and what the line means, above the plot to the right."""
    x = 0.965
    for engine, shape in reversed(content["engines"]):
        written = figure.text(x, 0.935, engine, ha="right", color=SOFT, fontsize=15)
        box = written.get_window_extent(FigureCanvasAgg(figure).get_renderer())
        x = box.x0 / 1600 - 0.012
        figure.text(
            x, 0.936, {"round": "●", "square": "■", "diamond": "◆", "bar": "✚"}[shape],
            ha="right", color=SOFT, fontsize=14,
        )  # fmt: skip
        x -= 0.022
    figure.text(0.965, 0.875, content["line_means"], ha="right", color=BLUE, fontsize=15)


def draw_strips(figure, content, size):
    _heading(figure, content["title"])
    plots = content["plots"]
    names = [row[0] for row in plots[0]["rows"]]
    longest = max(map(len, names))
    small = 15 if len(names) <= 14 else 11
    left = 0.03 + min(0.2, longest * small * 0.62 / 1600 + 0.01)
    width = (0.975 - left) / len(plots) - 0.025
    for number, plot in enumerate(plots):
        axes = figure.add_axes((left + number * (width + 0.035), 0.13, width, 0.70))
        _strips(axes, plot, names if number == 0 else None, small)
    figure.text(0.965, 0.935, content["means"], ha="right", color=SOFT, fontsize=14)
    figure.text(0.965, 0.893, f"▬ {content['loaded']}", ha="right", color=AMBER, fontsize=15)
    figure.text(0.965 - 0.0115 * (len(content["loaded"]) + 4), 0.893, f"▬ {content['alone']}",
                ha="right", color=BLUE, fontsize=15)  # fmt: skip


def _strips(axes, plot, names, small):
    count = len(plot["rows"])
    _percent_axes(axes, plot["ticks"], ())
    axes.set_ylim(count, 0)
    axes.set_title(plot["title"], loc="left", color=INK, fontsize=17, pad=12)
    for row, (_, alone, loaded) in enumerate(plot["rows"]):
        axes.axhline(row, color=LINE, linewidth=1, zorder=0)
        _band(axes, alone, row + 0.32, BLUE)
        _band(axes, loaded, row + 0.68, AMBER)
    if names:
        axes.set_yticks([row + 0.5 for row in range(count)], names, fontsize=small, color=INK)


def _band(axes, band, y, colour):
    if band is None:
        return
    axes.plot([band["start"], band["start"] + band["length"]], [y, y], color=colour, linewidth=2)
    axes.plot(
        [band["middle"], band["middle"] + band["half"]], [y, y], color=colour, linewidth=9,
        solid_capstyle="butt",
    )  # fmt: skip
    axes.plot([band["median"]] * 2, [y - 0.16, y + 0.16], color=INK, linewidth=2.4)


def _heading(figure, title):
    figure.text(0.02, 0.93, title, fontsize=27, fontweight="bold", color=INK)


def _percent_axes(axes, ticks, levels):
    """Axes from 0 to 100, y from the top, with the given ticks and nothing else."""
    axes.set_xlim(0, 100)
    axes.set_ylim(100, 0)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(LINE)
    axes.tick_params(length=0, labelcolor=SOFT)
    axes.set_xticks([t["at"] for t in ticks], [t["label"] for t in ticks])
    axes.set_yticks([t["at"] for t in levels], [t["label"] for t in levels])
    axes.grid(axis="y" if levels else "x", color=LINE, linewidth=1)
    axes.set_axisbelow(True)


if __name__ == "__main__":
    run(main)
