# SPDX-License-Identifier: MIT
"""A line chart and a flame graph as SVG, small and without a library: axes with round numbers, labels, a legend, one
palette for light pages and one for dark ones (the reader's own setting decides)."""

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


def _page(width, height, title):
    """(what the file has so far, a function that adds text)"""
    out = ['<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" width="%d" height="%d" role="img">' % (
        width, height, width, height), '<title>%s</title>' % escape(title),
        '<style>%s</style>' % (STYLE % (TEXT, _palette(LIGHT), _palette(DARK))),
        '<rect class="page" x="0.5" y="0.5" width="%d" height="%d" rx="8"/>' % (width - 1, height - 1)]

    def text(left, top, words, kind='soft', anchor='start', more=''):
        out.append('<text class="%s" x="%.1f" y="%.1f" text-anchor="%s"%s>%s</text>' % (
            kind, left, top, anchor, more, escape(words)))

    text(LEFT, 32, title, 'ink', more=' font-size="16" font-weight="600"')
    return out, text


def chart(title, x, y, series, log_x=False, steps=False, **_):
    """x and y: the axes' labels, units included; series: {name: [(x, y), ...]}, as many as there are colours.

    steps: a value holds until the next; no marks at the points."""
    points = [point for of_name in series.values() for point in of_name]
    out, text = _page(WIDTH, HEIGHT, title)
    across = _Axis([point[0] for point in points], LEFT, WIDTH - RIGHT, log_x)
    up = _Axis([point[1] for point in points], HEIGHT - BOTTOM, TOP)
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


# ---- flame graph (Brendan Gregg's, upside down: the outermost call at the top) ----

FLAME_WIDTH, MARGIN, ROW = 1100, 20, 19
LEAST = 0.004  # of all: what is narrower is left out
KINDS = (('the driver', ('MySQLdb.', 'pymysql.')), ('dbpool', ('dbpool.',)), ('Django', ('django.', 'asgiref.')),
         ('gevent, uWSGI, the standard library, the view', ('',)))


def _kind(name):
    return next(at for at, (_, beginnings) in enumerate(KINDS) if name.startswith(beginnings))


def _rows(stacks, total):
    """[(depth, first sample, samples, name), ...]: equal calls side by side are one."""
    found = []

    def level(members, depth, first):
        groups = {}
        for stack, n in members:
            if len(stack) > depth:
                groups.setdefault(stack[depth], []).append((stack, n))
        for name in sorted(groups):
            width = sum(n for _, n in groups[name])
            if width >= LEAST * total:
                found.append((depth, first, width, name))
                level(groups[name], depth + 1, first)
            first += width

    level(stacks, 0, 0)
    return found


def flame(title, stacks, **_):
    """stacks: [[[outermost, ..., innermost], samples], ...]; names are 'module:function'."""
    total = sum(n for _, n in stacks) or 1
    rows = _rows(stacks, total)
    height = 84 + ROW * (1 + max((row[0] for row in rows), default=0)) + MARGIN
    out, text = _page(FLAME_WIDTH, height, title)
    each, legend = (FLAME_WIDTH - 2 * MARGIN) / total, LEFT
    for at, (name, _) in enumerate(KINDS):
        out.append('<rect class="d%d" fill-opacity="0.45" x="%.1f" y="50" width="14" height="14"/>' % (at, legend))
        text(legend + 20, 62, name, 'ink')
        legend += 20 + len(name) * TEXT * 0.55 + 22
    for depth, first, width, name in rows:
        left, top, wide = MARGIN + first * each, 76 + depth * ROW, width * each
        out.append('<g><title>%s: %.1f %%</title><rect class="d%d" fill-opacity="0.45" x="%.1f" y="%d" width="%.1f" '
                   'height="%d"/>' % (escape(name), 100 * width / total, _kind(name), left, top, max(wide - 0.7, 0.3),
                                      ROW - 1))
        short = name.rpartition('.')[2]
        room = int((wide - 6) / (TEXT * 0.5))
        if room > 3:
            text(left + 3, top + 13, short if len(short) <= room else short[:room - 1] + '\u2026', 'ink',
                 more=' font-size="11"')
        out.append('</g>')
    return '\n'.join(out + ['</svg>', ''])
