"""A picture of results: a line for each adapter, with its accuracy and its forgetting under either regime."""

import statistics
from html import escape

LINE, TOP, BOTTOM, LEFT, PANEL, GAP = 26, 92, 56, 300, 330, 44
WIDTH = LEFT + 2 * PANEL + GAP + 24
STYLE = """
  svg { --ink: #1f2328; --faint: #59636e; --rule: #d1d9e0; --paper: #ffffff; --sft: #b35900; --grpo: #0a5fd0 }
  @media (prefers-color-scheme: dark) {
    svg { --ink: #e6edf3; --faint: #9198a1; --rule: #3d444d; --paper: #0d1117; --sft: #f0a04b; --grpo: #6cb0ff }
  }
  .paper { fill: var(--paper) }
  text { font: 13px system-ui, -apple-system, "Segoe UI", sans-serif; fill: var(--ink) }
  .head { font-weight: 600 } .faint { fill: var(--faint); font-size: 12px } .end { text-anchor: end } .middle { text-anchor: middle }
  .rule { stroke: var(--rule) } .base { stroke: var(--faint); stroke-dasharray: 4 3 }
  .sft { fill: var(--sft); stroke: var(--sft) } .grpo { fill: var(--grpo); stroke: var(--grpo) }
  .bar { stroke-width: 2; fill: none }
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
        parts.append(f'<text class="end" x="{LEFT - 16}" y="{y + 4:.1f}">{escape(row.title)}<tspan class="faint"> {escape(short(row))} '
                     f"{row.trained:,}</tspan></text>")
        parts += accuracy.marks(row, y) + forgetting.marks(row, y)
    return "\n".join([*parts, "</svg>"]) + "\n"


def short(row):
    """The modules of an adapter where they are not all linear layers."""
    return "" if row.modules == "all-linear" else {"q_proj, v_proj": "q, v"}.get(row.modules, row.modules)


def legend():
    y = 28
    yield f'<g class="sft">{shape("sft", 30, y)}</g><text x="42" y="{y + 4}">SFT</text>'
    yield f'<g class="grpo">{shape("grpo", 90, y)}</g><text x="102" y="{y + 4}">GRPO</text>'
    yield f'<line class="base" x1="158" x2="186" y1="{y}" y2="{y}"/><text x="194" y="{y + 4}">the untouched model</text>'
    yield f'<text class="faint" x="{LEFT}" y="{y + 4}">marks are means over seeds, bars reach from the lowest to the highest seed</text>'


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
