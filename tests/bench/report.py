# SPDX-License-Identifier: MIT
"""REPORT.md and its charts, of figures that were taken."""

import os

from tests.bench import svg
from tests.bench.figures import spread
from tests.bench.targets import LIMITS, TARGETS, text_of

HERE = os.path.dirname(os.path.abspath(__file__))
CHARTS = os.path.join(HERE, 'charts')

HEAD = """# How fast dbpool is

Written by `./tests/bench/run --report`; do not edit. Every figure is a median over the rounds of one run, with the
lowest and highest round beside it. Candidates take turns, each round begins with another, and a ratio is taken within
each round, so a machine that is slower for a while does not tilt it. All of it, server, workers and load generator, ran on one machine.
"""


def _row(*cells):
    return '| %s |' % ' | '.join(str(cell).replace('|', '\\|') for cell in cells)


def _with_unit(text, unit):
    return text + (unit if unit == 'x' else ' ' + unit if unit else '')


def _machine(data):
    about = data['machine']
    yield '## Machine\n'
    yield '%s, %d processors (%s), %s of memory, Linux %s; %s, load average before: %s; %d rounds, %d s.\n' % (
        about['system'], about['processors'], about['processor'], about['memory'], about['kernel'], about['date'],
        about['load before'], data['rounds'], data['seconds'])
    yield ', '.join('%s %s' % pair for pair in about['versions'].items()) + '.\n'


def _targets(data):
    yield '## Wanted and reached\n'
    yield _row('what', 'wanted', 'measured', 'lowest .. highest', 'reached')
    yield _row(*['---'] * 5)
    signs = {'<=': 'at most ', '>=': 'at least '}
    for key, target in TARGETS.items():
        got = data['reached'].get(key)
        wanted = signs[target.sense] + _with_unit(text_of(target.bound), target.unit)
        if target.bound == 0:
            wanted = '0'
        if got is None:
            yield _row(target.what, wanted, 'not measured', '', '')
        else:
            yield _row(target.what, wanted, _with_unit(text_of(got['value']), target.unit),
                       spread(got['min'], got['max']), 'yes' if got['met'] else '**no**')
    yield ''
    notes = [(TARGETS[key].what, got['note']) for key, got in data['reached'].items() if got['note']]
    if notes:
        yield from ('- %s: %s.' % note for note in notes)
        yield ''


def _missed(data):
    missed = {key: got for key, got in data['reached'].items() if not got['met']}
    yield '## Not reached\n'
    for key, got in missed.items():
        target = TARGETS[key]
        yield ('- %s: %s instead of %s. %s' % (
            target.what, _with_unit(text_of(got['value']), target.unit), _with_unit(text_of(target.bound), target.unit),
            LIMITS.get(key, ''))).rstrip()
    yield from ('- Not measured, because it failed: %s.' % failure for failure in data['failed'])
    if not missed and not data['failed']:
        yield 'Nothing: all that was measured is within its bound.'
    yield ''


def _charts(data):
    os.makedirs(CHARTS, exist_ok=True)
    if data['curves']:
        yield '## Charts\n'
    for curve in data['curves']:
        with open(os.path.join(CHARTS, curve['name'] + '.svg'), 'w') as f:
            f.write(svg.chart(**curve))
        yield '![%s](charts/%s.svg)\n' % (curve['title'], curve['name'])
    for flame in data['flames']:
        with open(os.path.join(CHARTS, flame['name'] + '.svg'), 'w') as f:
            f.write(svg.flame(**flame))
        yield '![%s](charts/%s.svg)\n' % (flame['title'], flame['name'])


def _tables(data):
    yield '## All figures\n'
    for table in data['tables']:
        yield '**%s** (%s; %s is better; `tests/bench/run %s`)\n' % (
            table['title'], table['unit'], table['better'], table['bench'])
        heads = ['', 'median', 'lowest .. highest']
        if table['base']:
            heads += ['against %s' % table['base'], 'of each round']
        yield _row(*heads)
        yield _row(*['---'] * len(heads))
        for name, row in table['rows'].items():
            cells = [name, text_of(row['median']), spread(row['min'], row['max'])]
            if table['base']:
                cells += ['', ''] if name == table['base'] else [
                    text_of(row['ratio']) + 'x', spread(row['ratio_min'], row['ratio_max'])]
            yield _row(*cells)
        yield ''


def write(data):
    """Writes them; the report's path."""
    path = os.path.join(HERE, 'REPORT.md')
    with open(path, 'w') as f:
        f.write('\n'.join([HEAD, *_machine(data), *_targets(data), *_missed(data), *_charts(data), *_tables(data)]))
    return path
