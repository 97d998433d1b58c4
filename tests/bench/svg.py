# SPDX-License-Identifier: MIT
"""A line chart as SVG, small and without a library: axes with round numbers, labels, a legend, one palette for light
pages and one for dark ones (the reader's own setting decides)."""

import math
from xml.sax.saxutils import escape

WIDTH, HEIGHT = 760, 420
LEFT, RIGHT, TOP, BOTTOM = 74, 28, 84, 62  # around the plot
TEXT = 13  # pixels; a letter is about 0.6 of it wide
LIGHT = ('#1f6fd0', '#c9560c', '#1d8a57', '#8347c9')
DARK = ('#6cb0ff', '#ff9d5c', '#5fd39b', '#c39bff')

STYLE = """
svg { font: %dpx system-ui, -apple-system, "Segoe UI", "DejaVu Sans", sans-serif }
.page { fill: #ffffff; stroke: #d8dee4 } .ink { fill: #1f2328 } .soft { fill: #57606a }
.grid { stroke: #e4e8ec } .axis { stroke: #8c959f } .line { fill: none; stroke-width: 2.2; stroke-linejoin: round }
%s
@media (prefers-color-scheme: dark) {
.page { fill: #0d1117; stroke: #30363d } .ink { fill: #e6edf3 } .soft { fill: #9aa4af }
.grid { stroke: #21262d } .axis { stroke: #6e7681 }
%s
}
"""


def _palette(colours):
    return '\n'.join('.s%d { stroke: %s } .d%d { fill: %s }' % (n, each, n, each) for n, each in enumerate(colours))


def ticks(highest, about=5):
    """Round numbers from 0 to the first one at or above highest."""
    step = 10 ** math.floor(math.log10(highest / about)) if highest > 0 else 1
    step *= next(factor for factor in (1, 2, 2.5, 5, 10) if highest <= step * factor * about)
    return [n * step for n in range(math.ceil(highest / step - 1e-9) + 1)]


def number(value):
    return format(round(value, 6), ',g') if value < 1e6 else '%gM' % (value / 1e6)


class _Axis:
    """From a value to a place on the page."""

    def __init__(self, values, low, high, log=False):
        self._scale = (lambda value: math.log2(value)) if log else (lambda value: value)
        # A logarithmic axis is marked where there are points.
        self.marks = sorted(set(values)) if log else ticks(max(values) or 1)
        first, last = self._scale(self.marks[0]), self._scale(self.marks[-1])
        self._low, self._first, self._each = low, first, (high - low) / ((last - first) or 1)

    def __call__(self, value):
        return self._low + (self._scale(value) - self._first) * self._each


def _path(points, steps):
    parts = ['M%.1f %.1f' % points[0]]
    for x, y in points[1:]:
        parts.append('H%.1f V%.1f' % (x, y) if steps else 'L%.1f %.1f' % (x, y))
    return ' '.join(parts)


def chart(title, x, y, series, log_x=False, steps=False, **_):
    """x and y: the axes' labels, units included; series: {name: [(x, y), ...]}, as many as there are colours.

    steps: a value holds until the next; no marks at the points."""
    points = [point for of_name in series.values() for point in of_name]
    across = _Axis([point[0] for point in points], LEFT, WIDTH - RIGHT, log_x)
    up = _Axis([point[1] for point in points], HEIGHT - BOTTOM, TOP)
    out = ['<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" width="%d" height="%d" role="img">' % (
        WIDTH, HEIGHT, WIDTH, HEIGHT), '<title>%s</title>' % escape(title),
        '<style>%s</style>' % (STYLE % (TEXT, _palette(LIGHT), _palette(DARK))),
        '<rect class="page" x="0.5" y="0.5" width="%d" height="%d" rx="8"/>' % (WIDTH - 1, HEIGHT - 1)]

    def text(left, top, words, kind='soft', anchor='start', more=''):
        out.append('<text class="%s" x="%.1f" y="%.1f" text-anchor="%s"%s>%s</text>' % (
            kind, left, top, anchor, more, escape(words)))

    text(LEFT, 32, title, 'ink', more=' font-size="16" font-weight="600"')
    for mark in up.marks:
        at = up(mark)
        out.append('<line class="%s" x1="%d" x2="%d" y1="%.1f" y2="%.1f"/>' % (
            'grid' if mark else 'axis', LEFT, WIDTH - RIGHT, at, at))
        text(LEFT - 8, at + 4, number(mark), anchor='end')
    for mark in across.marks:
        at, ground = across(mark), HEIGHT - BOTTOM
        out.append('<line class="axis" x1="%.1f" x2="%.1f" y1="%d" y2="%d"/>' % (at, at, ground, ground + 5))
        text(at, ground + 21, number(mark), anchor='middle')
    text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 16, x, anchor='middle')
    text(0, 0, y, anchor='middle', more=' transform="translate(20 %.1f) rotate(-90)"' % ((TOP + HEIGHT - BOTTOM) / 2))

    legend = LEFT
    for at, (name, of_name) in enumerate(series.items()):
        places = [(across(a), up(b)) for a, b in of_name]
        out.append('<path class="line s%d" d="%s"/>' % (at, _path(places, steps)))
        for place in () if steps else places:
            out.append('<circle class="d%d" cx="%.1f" cy="%.1f" r="3.6"/>' % (at, *place))
        out.append('<path class="line s%d" d="M%.1f 58 h20"/>' % (at, legend))
        text(legend + 26, 62, name, 'ink')
        legend += 26 + len(name) * TEXT * 0.6 + 18
    return '\n'.join(out + ['</svg>', ''])
