# SPDX-License-Identifier: MIT
"""The table that a benchmark prints: medians, spread, and the ratio to one row, taken round by round."""

import statistics


def show(title, unit, samples, base, digits=2, better='lower'):
    """samples: {name: [a figure per round]}; the ratio is name / base of the same round. Returns plain figures."""
    print('\n%s (%s; %s is better)' % (title, unit, better))
    width = max(map(len, samples))
    print('  %-*s %12s %22s %10s %18s' % (width, '', 'median', 'min .. max', 'ratio', 'of each round'))
    figures = {}
    for name, values in samples.items():
        ratios = [value / reference for value, reference in zip(values, samples[base])]
        figures[name] = {'median': statistics.median(values), 'min': min(values), 'max': max(values),
                         'ratio': statistics.median(ratios), 'ratio_min': min(ratios), 'ratio_max': max(ratios)}
        print('  %-*s %12.*f %22s %9.2fx %18s' % (
            width, name, digits, figures[name]['median'],
            '%.*f .. %.*f' % (digits, min(values), digits, max(values)), figures[name]['ratio'],
            '' if name == base else '%.2f .. %.2f' % (min(ratios), max(ratios))))
    return {'unit': unit, 'base': base, 'rows': figures}
