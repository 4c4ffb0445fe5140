"""Fixtures of the multipath tests: multipathd, the helper on the map, a rival.

Must leave no path offline, and no key on the disk or with multipathd, for the
test that comes next. Nothing here may need more of the machine than
tests/lib/multipath.sh has made; without that the tests are skipped.
"""
import os
import shutil

import pytest

from cluster import (FILE, NAME, PATHS, Helper, Multipathd, Relay, Rival, reset,
                     set_state)


@pytest.fixture(scope='module', autouse=True)
def needed():
    if not os.path.exists('/sys/module/dm_multipath'):
        pytest.skip('not inside tests/lib/multipath.sh')
    for program in 'multipathd', 'mpathpersist', 'kpartx', 'dmsetup':
        if not shutil.which(program):
            pytest.skip('not installed: ' + program)


class Daemons:
    """One multipathd at a time."""
    now, defaults = None, None

    def get(self, defaults):
        running = self.now and self.now.process.poll() is None
        if not running or self.defaults != defaults:
            self.stop()
            self.now, self.defaults = Multipathd(defaults), defaults
            self.now.start()
        return self.now

    def stop(self):
        if self.now:
            self.now.stop()


@pytest.fixture(scope='module')
def daemons():
    daemons = Daemons()
    yield daemons
    daemons.stop()


@pytest.fixture
def multipathd(daemons, request):
    """With keys in a file, or what a test is parametrized with."""
    running = daemons.get(getattr(request, 'param', FILE))
    reset(running)
    yield running
    for path in PATHS:
        set_state(path, 'running')


@pytest.fixture
def serve(start):
    """A function that starts a helper, and returns it with a subject."""
    opened = []

    def begin(*options, **kwargs):
        helper = start(None, *options, **kwargs)
        client = helper.client()
        subject = Helper(client)
        opened.append((helper, client, subject))
        return helper, subject

    yield begin
    for helper, client, subject in opened:
        subject.close()
        client.close()
        assert helper.crashes() == []


@pytest.fixture
def us(multipathd, serve):
    """The helper under test on the map, and multipathd runs."""
    return serve()[1]


@pytest.fixture
def rival():
    return Rival()


@pytest.fixture
def relay():
    """A function that puts a Relay before multipathd; gone after the test.
    Until then multipathd is to be found by its abstract name only."""
    relays = []
    if os.path.exists(NAME):
        os.rename(NAME, NAME + '.hidden')

    def begin(path, **kwargs):
        relays.append(Relay(path, **kwargs))
        return relays[-1]

    yield begin
    for one in relays:
        one.close()
    if os.path.exists(NAME + '.hidden'):
        os.rename(NAME + '.hidden', NAME)
