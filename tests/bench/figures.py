# SPDX-License-Identifier: MIT
"""What the benchmarks found: printed as they go, kept as plain data for --json and --report."""

import statistics
import sys

from tests.bench.targets import TARGETS, is_met, text_of


def turns(rounds, candidates, warm_up=True):
    """{name: [a figure per round]}: each of {name: function} once per round, in turn, and each round begins with another:
    who comes after whom makes a difference of some percent (what the one before left to the kernel, say)."""
    samples = {name: [] for name in candidates}
    names = list(candidates)
    for number in range(-1 if warm_up else 0, rounds):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            value = candidates[name]()
            if number >= 0:
                samples[name].append(value)
        sys.stderr.write('.')
        sys.stderr.flush()
    return samples


def ratios(samples, name, base):
    """Round by round, so that a machine that slows down in between does not matter."""
    return [value / reference for value, reference in zip(samples[name], samples[base])]


class Figures:
    def __init__(self):
        self.tables = []  # {'bench', 'title', 'unit', 'better', 'base', 'rows': {name: {...}}}
        self.reached = {}  # key of TARGETS -> {'value', 'min', 'max', 'met', 'note'}
        self.curves = []  # what svg.chart() takes
        self.flames = []  # what svg.flame() takes
        self.bench = None

    def begin(self, name, title):
        self.bench = name
        sys.stderr.write('\n%s: %s ' % (name, title))
        sys.stderr.flush()

    def table(self, title, unit, samples, base=None, better='lower'):
        """samples: {name: [a figure per round]}. With base: the ratio of each row to it."""
        table = {'bench': self.bench, 'title': title, 'unit': unit, 'better': better, 'base': base, 'rows': {}}
        for name, values in samples.items():
            row = {'median': statistics.median(values), 'min': min(values), 'max': max(values)}
            if base is not None:
                of_rounds = ratios(samples, name, base)
                row.update(ratio=statistics.median(of_rounds), ratio_min=min(of_rounds), ratio_max=max(of_rounds))
            table['rows'][name] = row
        self.tables.append(table)
        _print_table(table)

    def reach(self, key, values, note=None):
        """values: the figure of each round."""
        target = TARGETS[key]
        value = statistics.median(values)
        self.reached[key] = {'value': value, 'min': min(values), 'max': max(values), 'met': is_met(target, value),
                             'note': note}
        print('  %s %s: %s %s (%s .. %s), wanted %s %s%s' % (
            'reached' if self.reached[key]['met'] else 'MISSED ', target.what, text_of(value), target.unit,
            text_of(min(values)), text_of(max(values)), target.sense, text_of(target.bound),
            '; ' + note if note else ''))

    def curve(self, name, title, x, y, series, **options):
        """series: {name: [(x, y), ...]}; x and y: the axes' labels."""
        self.curves.append(dict(options, name=name, title=title, x=x, y=y,
                                series={key: [list(point) for point in points] for key, points in series.items()}))

    def flame(self, name, title, stacks):
        """stacks: [[[outermost, ..., innermost], samples], ...]"""
        self.flames.append({'name': name, 'title': title, 'stacks': stacks})

    def data(self):
        return {'tables': self.tables, 'reached': self.reached, 'curves': self.curves, 'flames': self.flames}


def spread(low, high):
    return '%s .. %s' % (text_of(low), text_of(high))


def _print_table(table):
    width = max(map(len, table['rows']))
    print('\n%s (%s; %s is better)' % (table['title'], table['unit'], table['better']))
    for name, row in table['rows'].items():
        line = '  %-*s %9s %20s' % (width, name, text_of(row['median']), spread(row['min'], row['max']))
        if 'ratio' in row:
            line += ' %8sx %16s' % (
                text_of(row['ratio']), '' if name == table['base'] else spread(row['ratio_min'], row['ratio_max']))
        print(line.rstrip())
    sys.stdout.flush()
