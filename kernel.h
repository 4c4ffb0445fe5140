/* SPDX-License-Identifier: MIT */
/*
 * kernel.h - numbers of Linux' interfaces that the headers of the kernel or
 * of libc may be too old to have: those of Linux 4.14 are enough. What the
 * kernel that we run on is too old for is for the caller to find out.
 *
 * It must never have a number that the headers of Linux 4.14 have, or another
 * value than newer ones: tests/host/test_headers.py takes those away.
 */
#ifndef KERNEL_H
#define KERNEL_H

#include <linux/audit.h>
#include <linux/seccomp.h>
#include <stdint.h>
#include <sys/socket.h>
#include <sys/syscall.h>

/* Where there is but clone(), with its arguments. */
#ifndef SYS_fork
#define SYS_fork SYS_clone
#endif

/* Linux 5.0 */
#ifndef AUDIT_ARCH_RISCV64
#define AUDIT_ARCH_RISCV64 0xc00000f3U
#endif

/* Linux 5.1, for 32 bits: times that do not end in 2038. */
#if defined(SYS_fcntl64) && !defined(SYS_ppoll_time64)
#define SYS_clock_gettime64 403
#define SYS_clock_nanosleep_time64 407
#define SYS_ppoll_time64 414
#endif

/* What musl for 32 bits calls those with times that do. */
#ifdef SYS_clock_gettime32
#define SYS_clock_gettime SYS_clock_gettime32
#define SYS_clock_nanosleep SYS_clock_nanosleep_time32
#endif

/* Linux 5.9 and 5.13; from 5.1 on, numbers are the same on nearly all. */
#ifndef SYS_close_range
#define SYS_close_range 436
#endif
#ifndef SYS_landlock_restrict_self
#define SYS_landlock_create_ruleset 444
#define SYS_landlock_add_rule 445
#define SYS_landlock_restrict_self 446
#endif

/* Linux 6.5; parisc and sparc have another number. */
#ifndef SO_PASSPIDFD
#define SO_PASSPIDFD 76
#endif

/* Landlock, include/uapi/linux/landlock.h; Linux 5.13, more in later ones. */
enum {
    LANDLOCK_VERSION = 1,      /* flag */
    LANDLOCK_PATH_BENEATH = 1, /* rule type */
    LANDLOCK_READ_FILE = 1 << 2,
    LANDLOCK_READ_DIR = 1 << 3,
    LANDLOCK_REMOVE_FILE = 1 << 5,
    LANDLOCK_BIND_AND_CONNECT_TCP = 3, /* 4th version of the interface */
    LANDLOCK_SIGNALS = 1 << 1          /* 6th */
};

struct landlock_ruleset {
    uint64_t files;   /* rights that are refused unless a rule gives them */
    uint64_t network; /* what is refused of it */
    uint64_t scopes;  /* what is refused with processes outside */
};

struct landlock_path {
    uint64_t rights;
    int32_t directory;
} __attribute__((packed));

#endif
