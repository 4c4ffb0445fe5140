"""summary.py DIRECTORY SUITE...: what the suites of tests/run.sh came to.

Each SUITE has left a log, an exit status and pytest's XML results. A test
counts once: as failed if it failed in any suite, else as passed if it passed
in any, else as skipped. A suite that did not get to its end is one more
failure, and so is, with CI=true, the skip of a test whose reason begins with
"not installed:". A suite that this machine cannot run has left the reason.

Must print the line "N passed, N failed, N skipped" last, whatever happened,
and exit 1 unless nothing failed.
"""
import os
import sys
import xml.etree.ElementTree as ElementTree


def outcomes(path):
    """(test, outcome, reason) of each test in pytest's XML results."""
    for case in ElementTree.parse(path).iter('testcase'):
        test = '%s.%s' % (case.get('classname'), case.get('name'))
        if case.find('failure') is not None or case.find('error') is not None:
            yield test, 'failed', ''
        elif case.find('skipped') is not None:
            reason = case.find('skipped').get('message')
            strict = os.environ.get('CI') == 'true'
            if strict and reason.startswith('not installed:'):
                yield test, 'failed', reason
            else:
                yield test, 'skipped', reason
        else:
            yield test, 'passed', ''


def main(directory, suites):
    order = ['skipped', 'passed', 'failed']
    tests = {}
    for suite in suites:
        base = os.path.join(directory, suite)
        if os.path.exists(base + '.skipped'):
            with open(base + '.skipped') as f:
                tests[suite] = 'skipped', f.read().strip()
            continue
        try:
            with open(base + '.log', errors='replace') as f:
                print('--- %s ---\n%s' % (suite, f.read()))
            with open(base + '.status') as f:
                status = int(f.read())
            results = list(outcomes(base + '.xml'))
        except (OSError, ValueError, ElementTree.ParseError) as error:
            results = [(suite, 'failed', str(error))]
        else:
            failures = [r for r in results if r[1] == 'failed']
            if status not in (0, 1) or status == 1 and not failures:
                results.append((suite, 'failed', 'exit status %d' % status))
        for test, outcome, reason in results:
            old = tests.get(test, ('skipped', reason))
            tests[test] = max(old, (outcome, reason),
                              key=lambda o: order.index(o[0]))
    for wanted in ('skipped', 'failed'):
        for test, (outcome, reason) in sorted(tests.items()):
            if outcome == wanted:
                print('%s %s: %s' % (wanted.upper(), test, reason))
    count = [outcome for outcome, _ in tests.values()].count
    print('%d passed, %d failed, %d skipped'
          % (count('passed'), count('failed'), count('skipped')))
    return 1 if count('failed') else 0


if __name__ == '__main__':
    sys.exit(main(sys.argv[1], sys.argv[2:]))
