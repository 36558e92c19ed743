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
    spreads = [
        [middle - min(figure["measured"]) for middle, figure in zip(middles, figures, strict=True)],
        [max(figure["measured"]) - middle for middle, figure in zip(middles, figures, strict=True)],
    ]
    places = range(len(figures))
    colours = [
        "#888888" if figure["met"] is None else "#2a7f62" if figure["met"] else "#b5482a"
        for figure in figures
    ]
    axes.barh(
        places,
        middles,
        xerr=spreads,
        color=colours,
        height=0.6,
        error_kw={"elinewidth": 0.8, "ecolor": "#333333"},
    )
    for place, middle, figure in zip(places, middles, figures, strict=True):
        against = "" if figure["faster"] else f", against {figure['against']}"
        axes.text(
            0, place - 0.42, f" {figure['name']}{against}: {middle:.2f} x", fontsize=7, va="bottom"
        )
        if figure["goal"]:
            axes.plot(
                [figure["goal"]] * 2, [place - 0.3, place + 0.3], color="black", linewidth=1.4
            )
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
    shapes = [
        (floors, "Times the floor under it: less is better"),
        (others, "Times faster than it: more is better"),
    ]
    shapes = [shape for shape in shapes if shape[0]]
    heights = [len(figures) for figures, *_ in shapes]
    if not shapes:
        return
    canvas, parts = pyplot.subplots(
        len(shapes), 1, figsize=(8, 1 + 0.42 * sum(heights)), height_ratios=heights, squeeze=False
    )
    for axes, shape in zip(parts[:, 0], shapes, strict=True):
        bars(axes, *shape)
    facts = found["facts"]
    canvas.supxlabel(
        f"{facts['processor']}; beside it: {facts['beside it']}. Bars: medians; black strokes: goals.",
        fontsize=7,
    )
    canvas.tight_layout()
    canvas.savefig(target, metadata={"Date": None})


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
