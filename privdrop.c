/* SPDX-License-Identifier: MIT */
/*
 * privdrop.c - the steps down in privilege, and here the third of them.
 *
 *   stage               gives up                may still
 *   1 main()            nothing                 all that who started it may:
 *                                               open log, trace and PID file,
 *                                               bind the socket
 *   2 descriptor_high() the two highest numbers the same
 *                       of descriptors
 *   3 privdrop()        all capabilities but    open what its user may open,
 *                       CAP_SYS_RAWIO; groups,  send SCSI commands
 *                       with -u and -g the ids;
 *                       core dumps, ptrace, and
 *                       what an exec would give
 *   4 sandbox_main()    calls that no process   fork the others, signal them,
 *                       makes; files but those  remove its socket
 *                       in /sys and /dev
 *   5 session_begin()   the listener, calls but serve its one client: SG_IO on
 *                       some 20, numbers from   what that sends, ask for a
 *                       the queue's up, life    worker
 *                       after its parent
 *   6 worker_run()      the listener, calls but open devices and talk to
 *                       a session's and some 10 multipathd, for one command
 *
 * 5 and 6 come after 4, each in a child; --single-process has neither, nor 2.
 *
 * SG_IO lets PERSISTENT RESERVE OUT pass for no less than CAP_SYS_RAWIO
 * (drivers/scsi/scsi_ioctl.c in the kernel, scsi_cmd_allowed()).
 *
 * It must never go on with a user or group other than the one asked for,
 * nor with another capability. A step that was done for us already is no
 * failure: a container may start us with CAP_SYS_RAWIO and nothing else.
 */
#include "start.h"

#include <grp.h>
#include <linux/capability.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

/*
 * The inode of the user namespace in which the kernel looks for the capability
 * (USER_NS_INIT_INO, linux/nsfs.h). In another one it counts for nothing.
 */
#define FIRST_USER_NAMESPACE 0xeffffffd

static bool bounding_set_empty(void)
{
    unsigned long capability;
    int set;

    for (capability = 0;
         (set = prctl(PR_CAPBSET_READ, capability, 0, 0, 0)) >= 0; capability++)
        if (set > 0 && prctl(PR_CAPBSET_DROP, capability, 0, 0, 0) < 0)
            return false;
    return true;
}

/*
 * Without -u and -g, a step that needs a capability which we were not given is
 * logged: for root this is a warning, and no surprise for a user.
 */
static void step_failed(const char *step, bool must)
{
    if (must)
        fatal("cannot %s:", step);
    log_at(geteuid() == 0 ? LOG_NORMAL : LOG_VERBOSE, "cannot %s:", step);
}

void privdrop(uid_t uid, gid_t gid)
{
    bool must = uid != (uid_t)-1 || gid != (gid_t)-1;
    struct __user_cap_header_struct own = { _LINUX_CAPABILITY_VERSION_3, 0 };
    struct __user_cap_data_struct had[2], keep[2] = { { 0 } };
    struct stat st;

    if (syscall(SYS_capget, &own, had) < 0)
        fatal("cannot read capabilities:");
    keep[0].permitted = had[0].permitted & (UINT32_C(1) << CAP_SYS_RAWIO);
    keep[0].effective = keep[0].permitted;
    if (keep[0].permitted == 0)
        log_warning("no CAP_SYS_RAWIO: the kernel will refuse to send "
                    "reservations");
    else if (stat("/proc/self/ns/user", &st) == 0
             && st.st_ino != FIRST_USER_NAMESPACE)
        log_warning("CAP_SYS_RAWIO is only that of a user namespace: no "
                    "reservation can be sent: start it outside of any "
                    "(Kubernetes: hostUsers: true; no rootless podman)");

    if (!bounding_set_empty())
        step_failed("empty the capability bounding set", must);
    if (getgroups(0, NULL) != 0 && setgroups(0, NULL) != 0)
        step_failed("clear the supplementary groups", must);
    if (gid != (gid_t)-1 && setresgid(gid, gid, gid) < 0)
        fatal("cannot change the group id to %u:", gid);
    if (uid != (uid_t)-1
        && (prctl(PR_SET_KEEPCAPS, 1, 0, 0, 0) < 0
            || setresuid(uid, uid, uid) < 0
            || prctl(PR_SET_KEEPCAPS, 0, 0, 0, 0) < 0))
        fatal("cannot change the user id to %u:", uid);
    /* An empty inheritable set empties the ambient one too. */
    if (syscall(SYS_capset, &own, keep) < 0)
        fatal("cannot drop capabilities:");
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0)
        fatal("cannot set no_new_privs:");
    if (setrlimit(RLIMIT_CORE, &(struct rlimit){ 0, 0 }) < 0
        || prctl(PR_SET_DUMPABLE, 0, 0, 0, 0) < 0)
        fatal("cannot forbid core dumps:");
}
