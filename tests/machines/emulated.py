"""pytest's plugin for helpers that run under qemu-user: see cross.sh.

Skips the tests of what qemu-user does not do. It must skip nothing else, and
give the reason; whatever fails for any other reason is a bug of the helper's.
"""
import pytest

# It receives with a buffer of twice the program's size, and leaves open what
# does not fit into the program's.
KEEPS = 'qemu-user keeps descriptors that the program has no room for'

THREADS = 'qemu-user needs processes of its own'

SKIPPED = {
    'test_newcomers_are_served_although_no_process_can_be_forked': THREADS,
    'test_command_is_carried_out_although_no_process_can_be_forked': THREADS,
    'test_more_clients_than_the_limit_at_once':
        'qemu-user is too slow to tell who has been idle for longer',
    'test_more_than_one_descriptor_closes': KEEPS,
    'test_two_control_messages_with_a_descriptor_each_close': KEEPS,
    'test_5000_connects_leave_nothing_behind':
        'a minute for 5000 forks of qemu-user, which are the same everywhere',
}


def pytest_collection_modifyitems(items):
    for item in items:
        reason = SKIPPED.get(item.originalname)
        if reason:
            item.add_marker(pytest.mark.skip(reason=reason))
