"""A picture of results: a line for each adapter, with its accuracy and its forgetting under either regime."""

import statistics
from html import escape

LINE, TOP, BOTTOM, LEFT, PANEL, GAP = 26, 92, 56, 300, 330, 44
WIDTH = LEFT + 2 * PANEL + GAP + 24
# Ink, faint ink, rules, paper, SFT and GRPO. Spelt out in each rule, since few programs but browsers read variables of CSS.
LIGHT = ("#1f2328", "#59636e", "#d1d9e0", "#ffffff", "#b35900", "#0a5fd0")
DARK = ("#e6edf3", "#9198a1", "#3d444d", "#0d1117", "#f0a04b", "#6cb0ff")


def colours(ink, faint, rule, paper, sft, grpo):
    return (f"text {{ fill: {ink} }} .faint {{ fill: {faint} }} .paper {{ fill: {paper} }} .rule {{ stroke: {rule} }} "
            f".base {{ stroke: {faint} }} .sft {{ fill: {sft}; stroke: {sft} }} .grpo {{ fill: {grpo}; stroke: {grpo} }}")


STYLE = f"""
  text {{ font: 13px system-ui, -apple-system, "Segoe UI", Helvetica, sans-serif }}
  .head {{ font-weight: 600 }} .faint {{ font-size: 12px }} .end {{ text-anchor: end }} .middle {{ text-anchor: middle }}
  .base {{ stroke-dasharray: 4 3 }} .bar {{ stroke-width: 2; fill: none }}
  {colours(*LIGHT)}
  @media (prefers-color-scheme: dark) {{ {colours(*DARK)} }}
"""


def picture(base, rows):
    """The SVG file."""
    height = TOP + LINE * len(rows) + BOTTOM
    before = 100 * base["train_info"]["metrics"][-1]["test accuracy sampled"]
    accuracy = Panel(LEFT, "right answers drawn at temperature 1, %", rows, "test accuracy sampled", 100, [0, 100], before)
    forgetting = Panel(LEFT + PANEL + GAP, "forgetting, nats a token", rows, "forgetting", 1, [0], 0.0)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" role="img" '
        'aria-label="Accuracy and forgetting of every adapter under SFT and GRPO">',
        f"<style>{STYLE}</style>", f'<rect class="paper" width="{WIDTH}" height="{height}"/>',
        *legend(), f'<text class="faint end" x="{LEFT - 16}" y="{TOP - 14}">adapter, numbers trained</text>',
    ]
    for panel in (accuracy, forgetting):
        parts += panel.frame(height - BOTTOM)
    for index, row in enumerate(rows):
        y = TOP + LINE * index + LINE / 2
        parts.append(f'<text class="end" x="{LEFT - 16}" y="{y + 4:.1f}">{escape(row.title)}'
                     f'<tspan class="faint">, {row.trained:,}</tspan></text>')
        parts += accuracy.marks(row, y) + forgetting.marks(row, y)
    return "\n".join([*parts, "</svg>"]) + "\n"


def legend():
    y = 28
    yield f'<g class="sft">{shape("sft", 30, y)}</g><text x="42" y="{y + 4}">SFT</text>'
    yield f'<g class="grpo">{shape("grpo", 90, y)}</g><text x="102" y="{y + 4}">GRPO</text>'
    yield f'<line class="base" x1="158" x2="186" y1="{y}" y2="{y}"/><text x="194" y="{y + 4}">the untouched model</text>'
    yield f'<text class="faint" x="{LEFT + 60}" y="{y + 4}">marks are means over seeds, bars reach from the lowest to the highest seed</text>'


def shape(regime, x, y):
    """A square for SFT, a circle for GRPO."""
    if regime == "sft":
        return f'<rect x="{x - 4.5:.1f}" y="{y - 4.5:.1f}" width="9" height="9"/>'
    return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="5"/>'


class Panel:
    """An axis with the values of one key; `reach` are values that it takes in whatever the results are."""

    def __init__(self, left, title, rows, key, scale, reach, before):
        self.left, self.title, self.key, self.scale, self.before = left, title, key, scale, before
        found = [scale * value for row in rows for regime in row.runs for value in row.last(regime, key)]
        self.ticks = ticks(min(reach + found), max(reach + found))

    def x(self, value):
        low, high = self.ticks[0], self.ticks[-1]
        return self.left + PANEL * (value - low) / (high - low)

    def frame(self, bottom):
        yield f'<text class="head" x="{self.left}" y="{TOP - 36}">{escape(self.title)}</text>'
        for tick in self.ticks:
            x = self.x(tick)
            yield f'<line class="rule" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP - 6}" y2="{bottom + 6}"/>'
            yield f'<text class="faint middle" x="{x:.1f}" y="{bottom + 24}">{tick:g}</text>'
        x = self.x(self.before)
        yield f'<line class="base" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP - 6}" y2="{bottom + 6}"/>'

    def marks(self, row, middle):
        found = []
        for regime, above in (("sft", -5), ("grpo", 5)):
            values = [self.scale * value for value in row.last(regime, self.key)]
            if values:
                y, mean = middle + above, statistics.fmean(values)
                said = f"{row.title}, {regime.upper()}: {mean:.4g} ({min(values):.4g} to {max(values):.4g})"
                found.append(f'<g class="{regime}"><title>{escape(said)}</title><line class="bar" x1="{self.x(min(values)):.1f}" '
                             f'x2="{self.x(max(values)):.1f}" y1="{y:.1f}" y2="{y:.1f}"/>{shape(regime, self.x(mean), y)}</g>')
        return found


def ticks(low, high):
    """Four to eight round numbers from at most `low` to at least `high`."""
    if high <= low:
        high = low + 1.0
    step = next(size * 10.0 ** power for power in range(-6, 9) for size in (1, 2, 2.5, 5) if (high - low) / (size * 10.0 ** power) <= 6)
    first = int(low // step)
    last = -int(-high // step)
    return [round(step * number, 10) for number in range(first, last + 1)]
