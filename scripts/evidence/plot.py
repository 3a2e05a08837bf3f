"""Draws a table of the study as an SVG picture: a row of dots for each row of the table, one dot for each seed and a line at their mean.

    plot.py docs/evidence/a.json docs/evidence/a.svg "k-NN, mean" "linear, mean"
"""

import html
import json
import pathlib
import statistics
import sys

COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7")  # Okabe and Ito's, told apart by the color-blind
INK, PALE = "#7a7a7a", "#7a7a7a40"  # legible on white and on black
LEFT, WIDTH, ROW, TOP, BOTTOM = 330, 460, 26, 30, 34


def ticks(low: float, high: float) -> list[float]:
    step = next(step for step in (1, 2, 5, 10, 20) if (high - low) / step <= 8)
    return [step * i for i in range(int(low // step), int(high // step) + 2) if low <= step * i <= high]


def draw(figures: dict[str, dict[str, dict[str, float]]], measures: list[str]) -> str:
    values = {(row, measure): [of[measure] for of in seeds.values()] for row, seeds in figures.items() for measure in measures}
    every = [value for of in values.values() for value in of]
    low, high = min(every) - 1, max(every) + 1
    x = lambda value: LEFT + (value - low) / (high - low) * WIDTH
    height = TOP + ROW * len(figures) + BOTTOM
    text = lambda at, y, said, anchor="start", color=INK: f'<text x="{at:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{color}">{html.escape(said)}</text>'
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {LEFT + WIDTH + 20} {height}" font-family="sans-serif" font-size="13">']
    for i, (measure, color) in enumerate(zip(measures, COLORS)):
        parts.append(text(LEFT + 120 * i, 16, f"\u25cf {measure}", color=color))
    for tick in ticks(low, high):
        parts.append(f'<line x1="{x(tick):.1f}" x2="{x(tick):.1f}" y1="{TOP}" y2="{height - BOTTOM}" stroke="{PALE}"/>')
        parts.append(text(x(tick), height - BOTTOM + 16, f"{tick:g}", "middle"))
    parts.append(text(LEFT + WIDTH, height - 4, "top-1 accuracy, percent", "end"))
    for i, row in enumerate(figures):
        y = TOP + ROW * (i + 0.5)
        parts.append(text(LEFT - 12, y + 4, row, "end"))
        for measure, color in zip(measures, COLORS):
            of = values[row, measure]
            mean = x(statistics.mean(of))
            parts.append(f'<line x1="{mean:.1f}" x2="{mean:.1f}" y1="{y - 8:.1f}" y2="{y + 8:.1f}" stroke="{color}" stroke-width="2"/>')
            parts += [f'<circle cx="{x(value):.1f}" cy="{y:.1f}" r="4" fill="{color}" fill-opacity="0.6"/>' for value in of]
    return "\n".join([*parts, "</svg>"]) + "\n"


def main() -> None:
    if len(sys.argv) < 4:
        sys.exit(__doc__)
    source, out, *measures = sys.argv[1:]
    pathlib.Path(out).write_text(draw(json.loads(pathlib.Path(source).read_text()), measures))


if __name__ == "__main__":
    main()
