"""Draw what run.py has measured: python picture.py RESULTS.json PICTURE.svg."""

from __future__ import annotations

import json
import statistics
import sys
from pathlib import Path
from typing import Any

from matplotlib import pyplot, rcParams


def bars(axes: Any, figures: list[dict[str, Any]], title: str) -> None:
    middles = [statistics.median(figure["measured"]) for figure in figures]
    both = list(zip(middles, figures, strict=True))
    spreads = [
        [middle - min(figure["measured"]) for middle, figure in both],
        [max(figure["measured"]) - middle for middle, figure in both],
    ]
    colours = {None: "#888888", True: "#2a7f62", False: "#b5482a"}
    colour, thin = [colours[each["met"]] for each in figures], {"elinewidth": 0.8, "ecolor": "#333"}
    axes.barh(range(len(figures)), middles, xerr=spreads, color=colour, height=0.6, error_kw=thin)
    for place, (middle, figure) in enumerate(both):
        against = "" if figure["faster"] else f", against {figure['against']}"
        text = f" {figure['name']}{against}: {middle:.2f} x"
        axes.text(0, place - 0.42, text, fontsize=7, va="bottom")
        if goal := figure["goal"]:
            axes.plot([goal, goal], [place - 0.3, place + 0.3], color="black", linewidth=1.4)
    axes.set_yticks([])
    axes.invert_yaxis()
    axes.set_title(title, fontsize=9, loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=7)


def main(source: Path, target: Path) -> None:
    rcParams["svg.hashsalt"] = "outreach_vault"  # the same numbers give the same file
    found = json.loads(source.read_text("utf-8"))
    compared = [figure for figure in found["figures"] if figure["theirs"]]
    floors = [figure for figure in compared if not figure["faster"]]
    others = [figure for figure in compared if figure["faster"]]
    floor, other = "Times its floor: less is better", "Times faster: more is better"
    shapes = [shape for shape in ((floors, floor), (others, other)) if shape[0]]
    if not shapes:
        return
    heights = [len(figures) for figures, _ in shapes]
    size = (8, 1 + 0.42 * sum(heights))
    canvas, parts = pyplot.subplots(
        len(shapes), 1, figsize=size, height_ratios=heights, squeeze=False
    )
    for axes, shape in zip(parts[:, 0], shapes, strict=True):
        bars(axes, *shape)
    facts = found["facts"]
    label = f"{facts['processor']}; beside it: {facts['beside it']}. Bars: medians; strokes: goals."
    canvas.supxlabel(label, fontsize=7)
    canvas.tight_layout()
    canvas.savefig(target, metadata={"Date": None})


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
