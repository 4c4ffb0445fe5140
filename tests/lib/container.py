"""A container runtime, as much of one as it takes to run the image in its pod.

    container.py ROOT JSON COMMAND...

Runs COMMAND in ROOT as runc would in a pod: in mount, UTS, IPC, network and
cgroup namespaces of its own, with /proc, /sys and what is to be mounted, and
nothing else of the machine. JSON is what differs from pod to pod, see DEFAULTS.
With a process namespace of its own COMMAND is a child, otherwise it takes this
process. The directories to mount on must be in ROOT.

default_seccomp() is a kubelet's seccomp profile RuntimeDefault, and may be had
by itself. It is containerd 2's list of system calls, for x86-64.

Must run as root of a machine that is there for tests (lib/uml.sh), but for
default_seccomp(); must never have less in a container's way than runc has.
"""
import ctypes
import errno
import json
import os
import re
import signal
import struct
import sys

# uid: of COMMAND. capabilities: those left, None: all. mounts: [source,
# target] each. read_only: the root. devices: it may open all. pids: most
# processes, None: any number. own_users: a user namespace of its own, its root
# being BASE outside.
DEFAULTS = {'uid': 0, 'capabilities': None, 'mounts': [], 'read_only': False,
            'devices': True, 'pids': None, 'seccomp': False,
            'no_new_privs': False, 'own_processes': True, 'own_users': False}
BASE, USERS = 65536, 65536

# What containerd gives to any container, by number: CAP_CHOWN, DAC_OVERRIDE,
# FOWNER, FSETID, KILL, SETGID, SETUID, SETPCAP, NET_BIND_SERVICE, NET_RAW,
# SYS_CHROOT, MKNOD, AUDIT_WRITE, SETFCAP.
USUAL_CAPABILITIES = [0, 1, 3, 4, 5, 6, 7, 8, 10, 13, 18, 27, 29, 31]
SYS_RAWIO = 17

# Allowed with any arguments. process_vm_readv, process_vm_writev and ptrace:
# since Linux 4.8; ioperm and iopl: with CAP_SYS_RAWIO; chroot: with
# CAP_SYS_CHROOT. Names of other machines' calls are left out.
ALLOWED = '''
accept accept4 access adjtimex alarm arch_prctl bind brk cachestat capget
capset chdir chmod chown chroot clock_adjtime clock_getres clock_gettime
clock_nanosleep close close_range connect copy_file_range creat dup dup2 dup3
epoll_create epoll_create1 epoll_ctl epoll_ctl_old epoll_pwait epoll_pwait2
epoll_wait epoll_wait_old eventfd eventfd2 execve execveat exit exit_group
faccessat faccessat2 fadvise64 fallocate fanotify_mark fchdir fchmod fchmodat
fchmodat2 fchown fchownat fcntl fdatasync fgetxattr flistxattr flock fork
fremovexattr fsetxattr fstat fstatfs fsync ftruncate futex futex_requeue
futex_wait futex_waitv futex_wake futimesat get_robust_list get_thread_area
getcpu getcwd getdents getdents64 getegid geteuid getgid getgroups getitimer
getpeername getpgid getpgrp getpid getppid getpriority getrandom getresgid
getresuid getrlimit getrusage getsid getsockname getsockopt gettid gettimeofday
getuid getxattr getxattrat inotify_add_watch inotify_init inotify_init1
inotify_rm_watch io_cancel io_destroy io_getevents io_pgetevents io_setup
io_submit ioctl ioperm iopl ioprio_get ioprio_set kill landlock_add_rule
landlock_create_ruleset landlock_restrict_self lchown lgetxattr link linkat
listen listmount listxattr listxattrat llistxattr lremovexattr lseek lsetxattr
lsm_get_self_attr lsm_list_modules lsm_set_self_attr lstat madvise
map_shadow_stack membarrier memfd_create memfd_secret mincore mkdir mkdirat
mknod mknodat mlock mlock2 mlockall mmap modify_ldt mprotect mq_getsetattr
mq_notify mq_open mq_timedreceive mq_timedsend mq_unlink mremap mseal msgctl
msgget msgrcv msgsnd msync munlock munlockall munmap name_to_handle_at
nanosleep newfstatat open openat openat2 pause pidfd_open pidfd_send_signal
pipe pipe2 pkey_alloc pkey_free pkey_mprotect poll ppoll prctl pread64 preadv
preadv2 prlimit64 process_mrelease process_vm_readv process_vm_writev pselect6
ptrace pwrite64 pwritev pwritev2 read readahead readlink readlinkat readv
recvfrom recvmmsg recvmsg remap_file_pages removexattr removexattrat rename
renameat renameat2 restart_syscall rmdir rseq rt_sigaction rt_sigpending
rt_sigprocmask rt_sigqueueinfo rt_sigreturn rt_sigsuspend rt_sigtimedwait
rt_tgsigqueueinfo sched_get_priority_max sched_get_priority_min
sched_getaffinity sched_getattr sched_getparam sched_getscheduler
sched_rr_get_interval sched_setaffinity sched_setattr sched_setparam
sched_setscheduler sched_yield seccomp select semctl semget semop semtimedop
sendfile sendmmsg sendmsg sendto set_robust_list set_thread_area
set_tid_address setfsgid setfsuid setgid setgroups setitimer setpgid
setpriority setregid setresgid setresuid setreuid setrlimit setsid setsockopt
setuid setxattr setxattrat shmat shmctl shmdt shmget shutdown sigaltstack
signalfd signalfd4 socketpair splice stat statfs statmount statx symlink
symlinkat sync sync_file_range syncfs sysinfo tee tgkill time timer_create
timer_delete timer_getoverrun timer_gettime timer_settime timerfd_create
timerfd_gettime timerfd_settime times tkill truncate umask uname unlink
unlinkat uretprobe utime utimensat utimes vfork vmsplice wait4 waitid write
writev
'''.split()
HEADER = '/usr/include/x86_64-linux-gnu/asm/unistd_64.h'
AUDIT_ARCH_X86_64 = 0xc000003e
LOAD, IF_EQUAL, IF_GREATER, IF_ANY_BIT, RETURN = 0x20, 0x15, 0x25, 0x45, 0x06
ALLOW, ERROR = 0x7fff0000, 0x00050000
AF_ALG, AF_VSOCK = 38, 40

MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_REMOUNT = 1, 2, 4, 8, 32
MS_BIND, MS_REC, MNT_DETACH = 0x1000, 0x4000, 2
NEWNS, NEWCGROUP, NEWUTS, NEWIPC = 0x20000, 0x2000000, 0x4000000, 0x8000000
NEWUSER, NEWPID, NEWNET = 0x10000000, 0x20000000, 0x40000000
NAMESPACES = NEWNS | NEWCGROUP | NEWUTS | NEWIPC | NEWUSER | NEWPID | NEWNET
PR_SET_PDEATHSIG, PR_SET_SECCOMP, PR_CAPBSET_DROP = 1, 22, 24
PR_SET_NO_NEW_PRIVS, SECCOMP_MODE_FILTER = 38, 2

libc = ctypes.CDLL(None, use_errno=True)


def call(name, *arguments):
    """A function of libc's; an exception if it fails."""
    arguments = [a.encode() if isinstance(a, str) else a for a in arguments]
    arguments = [ctypes.c_ulong(a) if isinstance(a, int) else a
                 for a in arguments]
    if getattr(libc, name)(*arguments) < 0:
        raise OSError(ctypes.get_errno(), name)


# Of the system calls that this machine's headers know.
NUMBER = {}
if os.uname().machine == 'x86_64' and os.path.exists(HEADER):
    with open(HEADER) as f:
        NUMBER = {name: int(number) for name, number in re.findall(
            r'#define __NR_(\w+) (\d+)', f.read())}


def default_seccomp(no_new_privs=True):
    """From here on, and in what is executed. What is not allowed is EPERM;
    what is newer than the list, ENOSYS, as runc does it."""
    known = [NUMBER[name] for name in ALLOWED if name in NUMBER]
    program = []

    def add(code, value, if_true=0, if_false=0):
        program.append(struct.pack('HBBI', code, if_true, if_false, value))

    def judge(name, *verdict):
        """Those with arguments; what the verdict falls through to is EPERM."""
        add(IF_EQUAL, NUMBER[name], 0, len(verdict) + 2)
        add(LOAD, 16)                               # the first one's low half
        for step in verdict:
            add(*step)
        add(RETURN, ERROR | errno.EPERM)

    add(LOAD, 4)                                    # the architecture
    add(IF_EQUAL, AUDIT_ARCH_X86_64, 1, 0)
    add(RETURN, ERROR | errno.EPERM)
    add(LOAD, 0)                                    # the number
    add(IF_GREATER, max(known), 0, 1)
    add(RETURN, ERROR | errno.ENOSYS)
    for value in known:
        add(IF_EQUAL, value, 0, 1)
        add(RETURN, ALLOW)
    judge('clone3', (RETURN, ERROR | errno.ENOSYS))
    judge('clone', (IF_ANY_BIT, NAMESPACES, 1, 0), (RETURN, ALLOW))
    judge('socket', (IF_EQUAL, AF_ALG, 2, 0), (IF_EQUAL, AF_VSOCK, 1, 0),
          (RETURN, ALLOW))
    judge('personality', (IF_EQUAL, 0, 4, 0), (IF_EQUAL, 8, 3, 0),
          (IF_EQUAL, 0x20000, 2, 0), (IF_EQUAL, 0x20008, 1, 0),
          (IF_EQUAL, 0xffffffff, 0, 1), (RETURN, ALLOW))
    add(RETURN, ERROR | errno.EPERM)

    code = ctypes.create_string_buffer(b''.join(program))
    whole = ctypes.create_string_buffer(struct.pack(
        'HxxxxxxP', len(program), ctypes.addressof(code)))
    if no_new_privs:
        call('prctl', PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    call('prctl', PR_SET_SECCOMP, SECCOMP_MODE_FILTER, whole, 0, 0)


def write(path, text):
    with open(path, 'w') as f:
        f.write(text)


def enter_cgroup(hierarchy, kind, **limits):
    """One of its own, with these limits, for this process and its children."""
    top = '/run/cgroup/' + hierarchy
    if not os.path.exists(top):
        os.makedirs(top)
        call('mount', hierarchy, top, kind, 0,
             hierarchy if kind == 'cgroup' else None)
    if kind == 'cgroup2':
        write(top + '/cgroup.subtree_control', '+' + hierarchy)
    group = '%s/container%d' % (top, os.getpid())
    os.mkdir(group)
    for name, value in limits.items():
        write('%s/%s.%s' % (group, hierarchy, name), value)
    write(group + '/cgroup.procs', str(os.getpid()))


def enter_users():
    """A user namespace; another process writes whom its users are."""
    (ready, say_ready), (done, say_done) = os.pipe(), os.pipe()
    ours = os.getpid()
    if os.fork() == 0:
        os.read(ready, 1)
        for name in 'uid_map', 'gid_map':
            write('/proc/%d/%s' % (ours, name), '0 %d %d' % (BASE, USERS))
        os.write(say_done, b'.')
        os._exit(0)
    call('unshare', NEWUSER)
    os.write(say_ready, b'.')
    os.read(done, 1)
    os.wait()
    for fd in ready, say_ready, done, say_done:
        os.close(fd)
    os.setgroups([])
    os.setresgid(0, 0, 0)
    os.setresuid(0, 0, 0)


def enter_root(root, options):
    """To ROOT, with what is mounted there, and away from all else."""
    call('mount', root, root, None, MS_BIND | MS_REC, None)
    safe = MS_NOSUID | MS_NODEV | MS_NOEXEC
    call('mount', 'proc', root + '/proc', 'proc', safe, None)
    call('mount', 'sysfs', root + '/sys', 'sysfs', safe | MS_RDONLY, None)
    for source, target in options['mounts']:
        call('mount', source, root + target, None, MS_BIND | MS_REC, None)
    os.chdir(root)
    call('syscall', NUMBER['pivot_root'], '.', '.')
    call('umount2', '.', MNT_DETACH)
    os.chdir('/')
    if options['read_only']:
        call('mount', None, '/', None, MS_REMOUNT | MS_BIND | MS_RDONLY, None)


def give_up(options):
    """What COMMAND shall not have, by exec at the latest."""
    capabilities = options['capabilities']
    for capability in range(64):
        if capabilities is not None and capability not in capabilities:
            libc.prctl(PR_CAPBSET_DROP, capability, 0, 0, 0)
    if options['seccomp']:
        default_seccomp(options['no_new_privs'])
    elif options['no_new_privs']:
        call('prctl', PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    os.setgroups([])
    os.setgid(0)            # as runc, whoever the user is
    os.setuid(options['uid'])


def main(root, options, *command):
    options = {**DEFAULTS, **json.loads(options)}
    if options['pids'] is not None:     # this process waits outside
        enter_cgroup('pids', 'cgroup2',
                     max=str(options['pids'] + options['own_processes']))
    if not options['devices']:          # but /dev/null and its like
        enter_cgroup('devices', 'cgroup', deny='a', allow='c 1:* rw')
    if options['own_users']:
        enter_users()
    call('unshare', NAMESPACES & ~NEWUSER & (
        ~0 if options['own_processes'] else ~NEWPID))
    child = os.fork() if options['own_processes'] else 0
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    enter_root(root, options)
    give_up(options)
    if options['own_processes']:
        call('prctl', PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    os.execve(command[0], command, {'PATH': '/usr/sbin:/usr/bin:/sbin:/bin'})


if __name__ == '__main__':
    sys.exit(main(*sys.argv[1:]))
