"""The command line: options, messages, exit status, PID file, background.

What is expected here is what QEMU's own helper does, where it does that
right. The helper under test is the real program. No test may start it
without a socket path and a PID file of its own, except where the machine's
own /run is out of its sight.
"""
import os
import re
import select
import subprocess

import pytest

from launch import (accepts, as_user, children, lock_owner, needs_root,
                    place, status_of, stop, wait_until)
from prclient import Client

OPTIONS = ['-h, --help', '-V, --version', '-d, --daemon', '-f, --pidfile',
           '-k, --socket', '-T, --trace', '-u, --user', '-g, --group',
           '-q, --quiet', '-v, --verbose', '--single-process',
           '--max-clients', '--client-timeout', '--stop-timeout']


def fails(result, *words):
    """Exit status 1, and a message with these words, said by the helper."""
    assert result.status == 1, result
    assert result.out == '', result
    assert result.err.startswith('qemu-pr-helper: '), result
    for word in words:
        assert word in result.err, result


# Every option in every form. ----------------------------------------

@pytest.mark.parametrize('option', ['-h', '--help', '--he', '-qh', '-hV'])
def test_help_lists_every_option(place, option):
    result = place.run(option)
    assert result.status == 0 and result.err == ''
    for names in OPTIONS:
        assert re.search(r'^\s*%s\b' % names, result.out, re.M), names
    assert '/run/qemu-pr-helper.sock' in result.out
    assert '/run/qemu-pr-helper.pid' in result.out
    # Less than the 10 seconds after which libvirt kills.
    assert re.search(r'--stop-timeout=[^-]*\(default 8\)', result.out)
    assert not os.path.exists(place.socket)


@pytest.mark.parametrize('option', ['-V', '--version', '--vers', '-vV'])
def test_version_is_printed(place, option):
    result = place.run(option)
    assert result.status == 0 and result.err == ''
    assert re.match(r'\S*qemu-pr-helper .*\d', result.out)
    assert not os.path.exists(place.socket)


@pytest.mark.parametrize('form', [['-k', '%s'], ['-k%s'], ['--socket', '%s'],
                                  ['--socket=%s'], ['--so=%s'], ['--s', '%s'],
                                  ['-qk', '%s'], ['-k/nowhere', '-k', '%s']])
def test_socket_option(place, form):
    path = place.open_dir + '/other'
    process = place.begin(*[word.replace('%s', path) for word in form],
                          path='', wait=False)
    wait_until(lambda: accepts(path) or process.poll() is not None)
    assert place.serves(path)


@pytest.mark.parametrize('form', [['-f', '%s'], ['-f%s'], ['--pidfile=%s'],
                                  ['--pidfile', '%s'], ['--pid', '%s']])
def test_pidfile_option(place, form):
    process = place.begin(*[word.replace('%s', place.pid_file)
                            for word in form])
    wait_until(lambda: os.path.exists(place.pid_file)
               and lock_owner(place.pid_file) == process.pid)


@pytest.mark.parametrize('form', ['-d', '--daemon', '--dae', '-qd'])
def test_daemon_option(place, form):
    assert place.run(form, '-f', place.pid_file).status == 0
    assert place.serves()


@pytest.mark.parametrize('form', ['-u%s', '-u %s', '--user=%s', '--user %s',
                                  '--us=%s'])
def test_user_option(place, form):
    options = (form % 'no-such').split()
    fails(place.run(*options), "invalid user 'no-such'")


@pytest.mark.parametrize('form', ['-g%s', '-g %s', '--group=%s',
                                  '--group %s', '--gr=%s'])
def test_group_option(place, form):
    options = (form % 'no-such').split()
    fails(place.run(*options), "invalid group 'no-such'")


@pytest.mark.parametrize('value', ['', '-1', '4294967295', '4294967296',
                                   '99999999999999999999', '1x', '0x1', 'roo',
                                   'root:x', 'root ', 300 * 'r'])
@pytest.mark.parametrize('option', ['-u', '-g'])
def test_an_id_that_is_no_id_is_refused(place, option, value):
    fails(place.run(option, value), "invalid ", "'%s'" % value)


@pytest.mark.parametrize('form', ['-T%s', '-T %s', '--trace=%s', '--trace %s',
                                  '--tr=%s'])
def test_trace_option(place, form):
    options = (form % 'no=such').split()
    fails(place.run(*options), "Invalid parameter 'no'")


@pytest.mark.parametrize('form', ['-v', '--verbose', '--verb', '-vv', '-qv'])
def test_verbose_names_the_client_that_misbehaves(place, form):
    place.begin(form)
    with place.client() as client:
        client.send(bytes(16))          # no descriptor, no such command
        assert client.closed()
    if form == '-qv':                   # quiet wins
        assert stop(place.processes[0]) == 0
        assert place.log() == ''
        return
    who = 'pid %d uid %d' % (os.getpid(), os.geteuid())
    wait_until(lambda: who in place.log())
    line = [line for line in place.log().splitlines() if who in line][0]
    assert line.startswith('qemu-pr-helper: ')


def test_without_verbose_a_client_that_misbehaves_is_not_logged(place):
    process = place.begin()
    with place.client() as client:
        client.send(bytes(16))
        assert client.closed()
    assert stop(process) == 0
    assert 'pid %d ' % os.getpid() not in place.log()


@pytest.mark.parametrize('form', ['-q', '--quiet', '--qui'])
def test_quiet_silences_warnings(place, form):
    for order in ([form, '-T', 'no-such'], ['-T', 'no-such', form]):
        process = place.begin(*order, preexec_fn=as_user())
        assert place.serves()
        assert stop(process) == 0
    assert place.log() == ''


def test_no_control_character_reaches_the_log(place):
    process = place.begin('-T', 'no\x1bsuch\nevent')
    assert stop(process) == 0
    assert "'no?such?event'" in place.log()


def test_quiet_does_not_silence_errors(place):
    fails(place.run('-q', path=place.dir + '/no/where'), place.dir)


@pytest.mark.parametrize('form', ['--single-process', '--single'])
def test_single_process_serves_in_main(place, form):
    process = place.begin(form)
    with place.client() as client:
        assert client.features is not None
        assert children(process.pid) == []


@pytest.mark.parametrize('form', ['--max-clients=1', '--max-clients 1',
                                  '--max 1'])
def test_max_clients_option(place, form):
    place.begin(*form.split())
    with place.client() as first, place.client() as second:
        assert first.closed()
        second.sock.setblocking(False)
        with pytest.raises(BlockingIOError):
            second.sock.recv(1)


@pytest.mark.parametrize('form', ['--client-timeout=1', '--client-timeout 1',
                                  '--client 1'])
def test_client_timeout_option(place, form):
    place.begin(*form.split())
    with Client(place.socket, hello=False, timeout=15) as client:
        client.read(4)
        assert client.closed()


@pytest.mark.parametrize('form', ['--stop-timeout=5', '--stop-timeout 0',
                                  '--stop 86400'])
def test_stop_timeout_option(place, form):
    process = place.begin(*form.split())
    with place.client():
        assert stop(process) == 0


@pytest.mark.parametrize('value', ['', ' 1', 'x', '1x', '-1', '+1', '1.5',
                                   '0x10', '4294967297',
                                   '18446744073709551617'])
@pytest.mark.parametrize('option', ['--max-clients', '--client-timeout',
                                    '--stop-timeout'])
def test_a_number_that_is_no_number_is_refused(place, option, value):
    fails(place.run('%s=%s' % (option, value)), option, "'%s'" % value)


@pytest.mark.parametrize('option', ['--max-clients', '--client-timeout'])
def test_nought_is_refused_where_it_makes_no_sense(place, option):
    fails(place.run(option, '0'), option, "'0'")


# What is wrong with a command line. ----------------------------------------

@pytest.mark.parametrize('option, word', [
    ('--bogus', 'bogus'), ('-x', 'x'), ('--ver', 'ver'), ('-k', 'k'),
    ('-f', 'f'), ('-u', 'u'), ('-g', 'g'), ('-T', 'T'),
    ('--socket', 'socket'), ('--pidfile', 'pidfile'), ('--user', 'user'),
    ('--group', 'group'), ('--trace', 'trace'),
    ('--max-clients', 'max-clients'), ('--help=1', 'help'),
    ('--daemon=1', 'daemon'), ('--quiet=1', 'quiet'),
    ('--single-process=1', 'single-process')])
def test_a_wrong_option_is_named_and_points_to_help(place, option, word):
    result = place.run(option)
    first, last = result.err.splitlines()
    assert result.status == 1 and result.out == ''
    assert re.match(r'\S*qemu-pr-helper: .*\b%s\b' % word, first), result
    assert re.match(r'qemu-pr-helper: Try .*--help', last), result
    assert not os.path.exists(place.socket)


def test_errors_before_help_or_version_win(place):
    fails(place.run('-u', 'no-such', '-V'), 'invalid user')
    fails(place.run('-h', path='relative'), 'must be absolute')
    assert place.run('-V', '--bogus').status == 0


@pytest.mark.parametrize('extra', [['extra'], ['extra', '-q', 'more'],
                                   ['--', '--bogus', '-V']])
def test_arguments_that_are_no_options_are_ignored(place, extra):
    place.begin(*extra)
    assert place.serves()


def test_options_after_other_arguments_count(place):
    assert 'qemu-pr-helper' in place.run('extra', '-V').out


@pytest.mark.parametrize('path', ['relative', './s', '../s', '@abstract'])
def test_the_socket_path_must_be_absolute(place, path):
    fails(place.run(path=path, cwd=place.open_dir),
          'socket path must be absolute')
    assert os.listdir(place.open_dir) == []


def test_the_socket_path_must_not_be_empty(place):
    fails(place.run('-k', '', path='', cwd=place.open_dir),
          'socket path must be absolute')


def path_of_length(place, length):
    return (place.open_dir + '/' + length * 'a')[:length]


def test_a_socket_path_of_107_bytes_fits(place):
    path = path_of_length(place, 107)
    process = place.begin(path=path)
    assert place.serves(path)
    assert stop(process) == 0
    assert os.listdir(place.open_dir) == []


@pytest.mark.parametrize('length', [108, 109, 200])
def test_a_socket_path_of_108_bytes_is_refused_not_truncated(place, length):
    path = path_of_length(place, length)
    fails(place.run(path=path), path, 'too long')
    assert os.listdir(place.open_dir) == []


def test_a_missing_directory_is_an_error(place):
    path = place.dir + '/no/s'
    fails(place.run(path=path), path, 'No such file or directory')


def test_a_file_that_is_no_socket_is_an_error_and_stays(place):
    kinds = {'file': lambda p: open(p, 'w').close(), 'dir': os.mkdir,
             'fifo': os.mkfifo,
             'link': lambda p: os.symlink(place.dir, p),
             'dangling': lambda p: os.symlink(place.dir + '/no', p)}
    for kind, make in kinds.items():
        path = place.dir + '/' + kind       # where only we can write
        make(path)
        before = os.lstat(path)
        fails(place.run(path=path), path)
        after = os.lstat(path)
        assert (before.st_ino, before.st_mode) == (after.st_ino,
                                                   after.st_mode)
    assert not os.path.exists(place.dir + '/no')


# Tracing. ----------------------------------------

@pytest.mark.parametrize('option', ['help', 'enable=help', '?'])
def test_trace_help_lists_the_events_and_exits(place, option):
    result = place.run('-T', option)
    assert result.status == 0 and result.err == ''
    assert result.out.splitlines() == [
        'client_connect', 'client_end', 'request', 'pr_in', 'pr_out', 'path',
        'multipathd']
    assert not os.path.exists(place.socket)


def test_help_in_a_file_of_trace_events_lists_them_and_exits(place):
    path = place.open_dir + '/events'
    with open(path, 'w') as f:
        f.write('pr_in\nhelp\n')
    result = place.run('-T', 'events=' + path)
    assert result.status == 0 and 'multipathd\n' in result.out, result


@pytest.mark.parametrize('option', ['no-such', 'enable=no-such'])
def test_an_unknown_trace_event_is_only_a_warning(place, option):
    place.begin('-T', option)
    assert place.serves()
    assert ("qemu-pr-helper: warning: trace event 'no-such' does not exist"
            in place.log())


def test_each_trace_option_counts(place):
    place.begin('-T', 'first', '-T', 'second')
    assert "'first'" in place.log() and "'second'" in place.log()


@pytest.mark.parametrize('option', ['', '*', 'enable=*', 'no*,file=%s/t',
                                    'events=/dev/null', 'file=%s/t'])
def test_a_trace_option_that_is_right_is_no_error(place, option):
    place.begin('-T', option.replace('%s', place.open_dir))
    assert place.serves()
    assert 'trace event' not in place.log()


@pytest.mark.parametrize('option, name', [
    ('file=%s/a,,b', 'a,b'), ('*,file=%s/a,,b,,', 'a,b,'),
    ('file=%s/,,,events=/dev/null', ',')])
def test_a_comma_in_a_trace_option_is_written_twice(place, option, name):
    place.begin('-T', option.replace('%s', place.open_dir))
    assert place.serves()
    assert name in os.listdir(place.open_dir)


@pytest.mark.parametrize('option', ['no=such', 'enable=x,no=1'])
def test_an_unknown_trace_parameter_is_an_error(place, option):
    fails(place.run('-T', option), "Invalid parameter 'no'")


def test_a_missing_trace_events_file_is_an_error(place):
    path = place.dir + '/no-such'
    result = place.run('-T', 'events=' + path)
    assert result.status == 1
    assert re.match('qemu-pr-helper: ?%s: No such' % path, result.err)


def test_a_trace_events_file_that_cannot_be_read_is_an_error(place):
    fails(place.run('-T', 'events=' + place.dir), place.dir, 'directory')


def test_a_trace_file_is_made_as_the_umask_says(place):
    path = place.open_dir + '/t'
    process = place.begin('-T', 'client_*,file=' + path,
                          preexec_fn=lambda: os.umask(0o027))
    assert place.serves()
    assert stop(process) == 0
    assert os.stat(path).st_mode & 0o7777 == 0o640
    assert 'client_connect' in content(path)


def test_a_trace_file_in_the_background(place):
    """Its path is one from where the helper was started."""
    result = place.run('-d', '-f', place.pid_file, '-T', 'client_*,file=t',
                       cwd=place.open_dir)
    assert (result.status, result.out) == (0, '')
    # An ordinary user is warned, and nobody is told anything else.
    assert 'no CAP_SYS_RAWIO' in result.err or result.err == ''
    assert result.err.count('\n') < 2
    assert place.serves()
    wait_until(lambda: 'client_end' in content(place.open_dir + '/t'))


def test_a_trace_file_that_cannot_be_written_is_an_error(place):
    path = place.dir + '/no/file'
    fails(place.run('-T', 'file=' + path), path)


# The PID file. ----------------------------------------

def content(path):
    with open(path) as f:
        return f.read()


@pytest.mark.parametrize('umask', [0, 0o077])
def test_pid_file_mode_content_and_lock(place, umask):
    process = place.begin('-f', place.pid_file,
                          preexec_fn=lambda: os.umask(umask))
    wait_until(lambda: os.path.exists(place.pid_file)
               and content(place.pid_file) != '')
    with place.client():                # sessions come and go
        assert lock_owner(place.pid_file) == process.pid
    wait_until(lambda: children(process.pid) == [])
    assert content(place.pid_file) == '%d\n' % process.pid
    assert os.stat(place.pid_file).st_mode & 0o7777 == 0o600
    assert lock_owner(place.pid_file) == process.pid
    assert stop(process) == 0
    assert content(place.pid_file) == '%d\n' % process.pid
    assert lock_owner(place.pid_file) == 0


def test_a_pid_file_left_behind_is_used_again(place):
    with open(place.pid_file, 'w') as f:
        f.write('12345678901234567890\nand more\n')
    process = place.begin('-f', place.pid_file)
    wait_until(lambda: content(place.pid_file) == '%d\n' % process.pid)


def test_a_second_instance_on_the_same_pid_file_fails(place):
    first = place.begin('-f', place.pid_file)
    wait_until(lambda: os.path.exists(place.pid_file)
               and lock_owner(place.pid_file) == first.pid)
    other = place.open_dir + '/other'
    for path in (other, place.socket):
        fails(place.run('-f', place.pid_file, path=path), place.pid_file)
        assert content(place.pid_file) == '%d\n' % first.pid
        assert lock_owner(place.pid_file) == first.pid
        assert place.serves()
    assert not os.path.exists(other)


def test_a_pid_file_that_cannot_be_made_is_an_error(place):
    path = place.dir + '/no/p'
    fails(place.run('-f', path), path, 'No such file or directory')


def test_a_pid_file_is_no_link_to_another(place):
    """Its directory may belong to those who are served."""
    dear, path = place.dir + '/dear', place.dir + '/p'
    with open(dear, 'w') as f:
        f.write('dear')
    os.symlink(dear, path)
    fails(place.run('-f', path), path, 'ymbolic link')
    assert content(dear) == 'dear'


def test_a_pid_file_in_a_directory_that_is_not_writable(place):
    path = place.dir + '/p'
    if os.geteuid() != 0:
        os.chmod(place.dir, 0o555)
    try:
        fails(place.run('-f', path, preexec_fn=as_user()), path,
              'Permission denied')
    finally:
        os.chmod(place.dir, 0o755)


def test_no_pid_file_without_the_option(place):
    out = place.run('-h').out
    default = re.search(r"(/\S+/run/qemu-pr-helper\.pid)", out).group(1)

    def now():
        return os.path.exists(default) and os.stat(default)
    before = now()
    place.begin()
    assert place.serves()
    assert now() == before
    assert os.listdir(place.open_dir) == ['s']


# In the background. ----------------------------------------

def background(place, *options, **popen):
    """The daemon's pid, after the caller's process has returned."""
    result = place.run('-qd', '-f', place.pid_file, *options, **popen)
    assert result == (0, '', ''), result
    return int(content(place.pid_file))


def test_the_daemon_is_there_when_its_parent_returns(place):
    for _ in range(10):
        pid = background(place)
        assert accepts(place.socket)
        assert lock_owner(place.pid_file) == pid
        assert place.serves()
        os.kill(pid, 15)
        assert os.waitpid(pid, 0) == (pid, 0)
        assert not os.path.exists(place.socket)
        assert content(place.pid_file) == '%d\n' % pid


def test_the_daemon_has_a_session_and_no_terminal(place):
    pid = background(place)
    assert os.getsid(pid) != os.getsid(0)
    assert os.getpgid(pid) != os.getpgid(0)
    with open('/proc/%d/stat' % pid) as f:
        assert f.read().rpartition(')')[2].split()[4] == '0'
    assert place.orphans() == [pid]


def test_the_daemon_lets_go_of_its_callers_output(place):
    for stream in ('stdout', 'stderr'):
        reader, writer = os.pipe()
        options = {stream: writer}
        assert place.run('-qd', '-f', place.pid_file + stream, **options,
                         path=place.socket + stream).status == 0
        os.close(writer)
        wait_until(lambda: select.select([reader], [], [], 0)[0])
        assert os.read(reader, 1) == b''
        os.close(reader)
        assert place.serves(place.socket + stream)


@needs_root
def test_the_daemon_is_in_the_root_directory_with_null_streams(place):
    with open(place.log_path, 'w+') as file:
        pid = background(place, cwd=place.open_dir, stdin=file)
    assert os.readlink('/proc/%d/cwd' % pid) == '/'
    for fd in range(2):                         # and 2 is for syslog
        assert os.readlink('/proc/%d/fd/%d' % (pid, fd)) == '/dev/null'
    assert os.readlink('/proc/%d/fd/2' % pid).startswith('socket:')


def test_the_daemon_starts_with_closed_streams(place):
    background(place, preexec_fn=lambda: os.closerange(0, 2))
    assert place.serves()


START_ERRORS = {
    'directory': lambda place: dict(path=place.dir + '/no/s'),
    'relative': lambda place: dict(path='relative'),
    'live socket': lambda place: dict(path=place.open_dir + '/live'),
    'pid file': lambda place: dict(options=['-f', place.dir + '/no/p']),
    'locked': lambda place: dict(options=['-f', place.open_dir + '/locked']),
    'user': lambda place: dict(options=['-u', 'no-such']),
    'power': lambda place: dict(options=['-u', '1'], preexec_fn=as_user()),
}


@pytest.mark.parametrize('error', START_ERRORS)
def test_start_up_errors_reach_the_caller_of_the_daemon(place, error):
    locked = place.open_dir + '/locked'
    place.begin('-f', locked, path=place.open_dir + '/live')
    wait_until(lambda: os.path.exists(locked) and content(locked) != '')
    popen = START_ERRORS[error](place)
    options = ['-d', '-f', place.pid_file] + popen.pop('options', [])
    orphans = place.orphans()
    fails(place.run(*options, **popen))
    assert place.orphans() == orphans
    assert not accepts(place.socket)
    assert place.serves(place.open_dir + '/live')


def test_without_d_the_started_process_is_the_helper(place):
    process = place.begin()
    assert status_of(process.pid)['PPid'] == [str(os.getpid())]
    with place.client():
        assert process.poll() is None


@needs_root
def test_the_defaults_are_in_run(place):
    """In a mount namespace with a /run of its own."""
    private = ['unshare', '-m', 'sh', '-c',
               'mount -t tmpfs none /run && exec "$@"', 'sh']
    if subprocess.run(private + ['true'], capture_output=True).returncode:
        pytest.skip('needs root that may have a mount namespace')
    result = subprocess.run(private + [place.binary, '-d'],
                            stdin=subprocess.DEVNULL, timeout=20)
    assert result.returncode == 0
    [pid] = place.orphans()
    run = '/proc/%d/root/run/qemu-pr-helper' % pid
    assert content(run + '.pid') == '%d\n' % pid
    assert lock_owner(run + '.pid') == pid
    assert place.serves(run + '.sock')
