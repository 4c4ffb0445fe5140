"""How the demos are told: numbered steps, one screen at a time and in colours
on a terminal, all at once elsewhere.

A demo has two halves. One runs in User-mode Linux and prints its story (tell(),
step(), say()); the first thing that is not as it should be ends it with a
sentence. The other, outside(), starts that and shows what it prints.

Must never wait for somebody who is not at a terminal, and must leave no process
behind.
"""
import os
import re
import subprocess
import sys
import textwrap
import threading

SCREEN = '\f\n'     # the end of one
steps = 0


class Wrong(Exception):
    """What is not as it should be, as a sentence without its full stop."""


def say(text, indent='', more=0):
    """Lines that are too long go on with so much more indent."""
    for line in text.splitlines():
        words = line.lstrip()
        first = indent + line[:len(line) - len(words)]
        print(textwrap.fill(words, 79, initial_indent=first,
                            subsequent_indent=first + ' ' * more,
                            break_on_hyphens=False))
    sys.stdout.flush()


def step(title):
    global steps
    if steps:
        print(SCREEN, end='')
    steps += 1
    say('%d. %s' % (steps, title), more=3)


def tell(play):
    """The exit status."""
    try:
        play()
    except Exception as error:
        print()
        say('FAILED in step %d: %s.' % (
            steps, error if isinstance(error, Wrong) else repr(error)))
        return 1
    return 0


COLOURS = (('^[0-9]+\\. ', '1'), ('^   \\$ ', '36'), ('^FAILED', '1;31'),
           ('refused', '31'), (': written$', '32'))


def coloured(line):
    for pattern, code in COLOURS:
        if re.search(pattern, line):
            return '\033[%sm%s\033[0m\n' % (code, line.rstrip('\n'))
    return line


def wait():
    """Until Enter; False for the end."""
    answer = input('-- Enter goes on, q ends: ')
    print('\033[A\033[K', end='')      # that line has had its time
    return not answer.startswith('q')


def show(lines, is_terminal, has_colours):
    """All of it, or False if somebody has had enough."""
    for line in lines:
        if line != SCREEN:
            print(coloured(line) if has_colours else line, end='', flush=True)
            continue
        print(flush=True)
        if is_terminal and not wait():
            return False
    return True


def outside(command, stdin=subprocess.DEVNULL):
    """Shows the story that this command tells; its exit status."""
    has_colours = (os.isatty(1) and 'NO_COLOR' not in os.environ
                   and os.environ.get('TERM', 'dumb') != 'dumb')
    # User-mode Linux would take a terminal for its own.
    teller = subprocess.Popen(command, stdin=stdin, stdout=subprocess.PIPE,
                              stderr=subprocess.PIPE, text=True)
    threading.Thread(target=sys.stderr.writelines, args=[teller.stderr],
                     daemon=True).start()
    try:
        if show(teller.stdout, os.isatty(0) and os.isatty(1), has_colours):
            status = teller.wait()
            if status > 1:
                print('FAILED: %s.' % {
                    77: 'the archive does not give Debian sid',
                    124: 'it took too long',
                    125: 'no kernel could be booted'}.get(
                        status, 'the story broke off'))
            return status
        status = 0
    except (KeyboardInterrupt, EOFError, BrokenPipeError):
        sys.stdout = open(os.devnull, 'w')      # for what is left to flush
        status = 130
    teller.terminate()
    teller.wait()
    return status
