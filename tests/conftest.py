"""What pytest does for all tests: paths, fixtures, progress.

Each folder beside this one holds the tests that need the same surroundings;
what they share is in lib/.
"""
import os
import sys

import pytest

TESTS = os.path.dirname(os.path.abspath(__file__))
# Some tests go on from those of the host.
sys.path[:0] = [os.path.join(TESTS, 'lib'), os.path.join(TESTS, 'host')]

import sim                                                  # noqa: E402
from helper import Helper, program                          # noqa: E402


# What is told while the tests run: a line in the file PROGRESS for each file
# of tests that is done. With PART=1/2 every other test is another process'.
@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items):
    part, parts = map(int, os.environ.get('PART', '1/1').split('/'))
    items[:] = items[part - 1::parts]
    for item in items:
        path = item.nodeid.split('::')[0]
        counts = PROGRESS.setdefault(path, {'left': 0})
        counts['left'] += 1


PROGRESS = {}


def pytest_runtest_logreport(report):
    path = report.nodeid.split('::')[0]
    counts = PROGRESS[path]
    if report.when == 'call' or report.outcome != 'passed':
        counts[report.outcome] = counts.get(report.outcome, 0) + 1
    if report.when == 'teardown':
        counts['left'] -= 1
    if counts['left'] == 0 and os.environ.get('PROGRESS'):
        counts['left'] = -1
        with open(os.environ['PROGRESS'], 'a') as f:
            f.write('%s: %s: %s\n' % (
                os.environ.get('SUITE'), path,
                ', '.join('%d %s' % (counts[name], name) for name
                          in ('passed', 'failed', 'skipped')
                          if name in counts)))


HELPERS = pytest.StashKey()


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item):
    """What the helpers of a test that fails have said is part of why."""
    report = (yield).get_result()
    if report.failed:
        for helper in item.stash.get(HELPERS, ()):
            report.sections.append(('log of ' + helper.path, helper.log()))


@pytest.fixture
def start(tmp_path, request):
    """A function that starts a helper; all are killed after the test."""
    helpers = request.node.stash[HELPERS] = []

    def begin(binary=None, *options, **kwargs):
        directory = tmp_path / str(len(helpers))
        directory.mkdir()
        helper = Helper(str(directory), binary
                        or program('HELPER', 'qemu-pr-helper'),
                        options, **kwargs)
        helpers.append(helper)
        if kwargs.get('wait', True):
            helper.wait_sessions(0)     # whoever looked if it is ready
        return helper

    yield begin
    for helper in helpers:
        if helper.process.poll() is None:
            helper.process.kill()
            helper.process.wait()
        helper.log_file.close()


@pytest.fixture
def target(tmp_path):
    """The simulated disk; give a helper its .env to connect the two."""
    return sim.Target(tmp_path / 'sim')


@pytest.fixture
def disks(tmp_path):
    """Opens simulated disks by number of the nexus."""
    opener = sim.Disks(tmp_path)
    yield opener
    opener.close()
