/* SPDX-License-Identifier: MIT */
/*
 * multipath.h - a persistent reservation command on a dm-multipath map: the
 * interfaces between the files of this folder. Who calls whom:
 *
 *	workers -> worker -> actions -> (register, preempt) -> sweep -> send
 *	send -> map, all of them -> multipathd
 *
 * A registration belongs to one path (I_T nexus), so a map is registered if
 * all its paths are; a reservation is held through one of them. The guest
 * sees one disk. What GOOD means, and who keeps it so:
 *
 *	1 every path that the kernel may use has the key: sweep() ends well
 *	  only when each has taken it or path_is_left_out() lets it be
 *	2 no path keeps a key that was given up: likewise, with key 0
 *	3 who holds a reservation is asked of the disk: holder_find(); what all
 *	  registrants hold is released once
 *	4 a key that a rival removed stays removed: what is written while the
 *	  others have it already, stays only if witness_ask() says so
 *	  afterwards; undone is nothing but a new key, by keys_take_off()
 *	5 a map is suspended in preempt_own() only, for SUSPENDED_WITHIN
 *	6 map.deadline ends every wait
 *	7 map_fail() says why, and path_is_left_out() which path, in the log
 *
 * Nothing here may know a client, or send a command to a disk that is not,
 * at that moment, a path of the map.
 */
#ifndef MULTIPATH_H
#define MULTIPATH_H

#include "../prhelper.h"

/* How long a command may take, and parts of it; see map_extend(), too. */
#define COMMAND_WITHIN (40 * SECOND)
#define SETTLE_WITHIN (30 * SECOND) /* before anything is changed */
/* Between two tries; see map_wait(). */
#define PAUSE_LEAST (SECOND / 100)
#define SUSPENDED_WITHIN (8 * SECOND)   /* while all I/O waits for us */
#define AFTERWARDS_WITHIN (16 * SECOND) /* to undo, to resume */
#define RESUME_WITHIN (15 * SECOND)     /* or it hangs in the kernel */

enum {
    PATHS_MOST = 256,
    LIST_SIZE = 24 /* parameter list, SPC-4 6.16.3; its offsets and flags: */
};
enum { LIST_FLAGS = 20, SPEC_I_PT = 0x08, ALL_TG_PT = 0x04, APTPL = 0x01 };

enum { /* of a worker's answer, before the payload */
       ANSWER_HEAD = sizeof(const char *) + 1 + PROTOCOL_SENSE_SIZE
};

enum { /* service actions of PERSISTENT RESERVE OUT, SPC-4 6.16.2 */
       REGISTER,
       RESERVE,
       RELEASE,
       CLEAR,
       PREEMPT,
       PREEMPT_AND_ABORT,
       REGISTER_AND_IGNORE
};

enum { /* types of reservations, SPC-4 6.15.3.3 */
       WRITE_EXCLUSIVE = 1,
       EXCLUSIVE_ACCESS = 3,
       WRITE_EXCLUSIVE_ALL_REGISTRANTS = 7 /* and 8: exclusive access */
};

/* What a path makes of a command. */
enum verdict {
    DUE,       /* it has not been sent, or shall be once more */
    NOT_TAKEN, /* nothing was done; that may change */
    LOST,      /* no answer: it was done, or not */
    ASIDE,     /* left out, as the kernel sends it no I/O */
    DONE,
    CONFLICT,
    REFUSED /* with another status, which is the disk's word */
};

struct path {
    char name[32]; /* sdX */
    int fd;        /* -1: not open. It keeps device from becoming another */
    dev_t device;
    enum verdict verdict; /* of the command that goes to all paths */
    enum verdict said;    /* to the last command for any path */
    bool is_answered;     /* by the device, that is, not by its transport */
    bool is_lost;         /* it may have been done here */
    bool is_new;          /* it has got the key, or refused it too late */
    bool had_key;         /* before, for sure */
    bool is_down;         /* its transport has given it up */
    bool is_reported;     /* as left out */
    struct multipathd_path seen; /* by map_see() */
    char why[96];                /* it did not take the last command */
};

/* What the guest is going to be told. */
struct answer {
    uint8_t status;
    uint8_t sense[PROTOCOL_SENSE_SIZE];
    size_t payload;
};

struct map {
    dev_t device;
    char name[16]; /* dm-N */
    char alias[ALIAS_SIZE];
    struct suspension *suspension;
    struct multipathd multipathd;
    int64_t deadline;
    int64_t end;   /* of all, see map_extend() */
    int64_t pause; /* us, the next one in map_wait() */
    struct answer answer;
    const char *refusal; /* the kernel's; NULL: none */
    struct path paths[PATHS_MOST];
    unsigned count;
    bool is_lost;         /* an answer to the last command for any path */
    unsigned left_out;    /* paths, of that command */
    struct path *witness; /* the first that got the key, and must keep it */
    bool is_doubtful;     /* somebody may have removed it */
    uint32_t generation;  /* PRGENERATION, when keys_read() was called */
};

/* A command for a path. */
struct request {
    uint8_t cdb[10];
    uint8_t *data;
    size_t length;
    uint8_t own_list[LIST_SIZE]; /* for those that are not the client's */
};

struct reservation {
    bool is_held;
    uint64_t key; /* 0 if all registrants hold it */
    uint8_t scope_type;
};

/* Through which path a reservation that has our key is held. */
enum holder {
    HOLDER_UNKNOWN, /* the answer says why */
    HOLDER_OTHER,   /* no path of ours; or there is no such reservation */
    HOLDER_PATH,
    HOLDER_GONE /* one of ours that is left out */
};

/* worker.c; never returns. */
void worker_run(const struct server *, struct suspension *, bool is_resumer)
    __attribute__((noreturn));

/* map.c: the map, its paths, and which of them may be left out. */
extern const char map_none[]; /* map_begin(): it is no multipath map */
const char *map_begin(struct map *, dev_t, const char *socket_path,
                      struct suspension *);
bool map_list(struct map *);
void map_close(struct map *);
bool map_wait(struct map *, int64_t deadline);
void map_extend(struct map *);
void map_fail(struct map *, const char *format, ...)
    __attribute__((format(printf, 2, 3)));
void map_answer(struct map *, uint8_t status);
enum verdict path_look(const struct map *, struct path *);
void map_see(struct map *);
bool path_is_left_out(struct map *, struct path *);
void alias_renew(dev_t, char alias[ALIAS_SIZE]);
bool is_word(const char *text);

/* send.c: a command on one path, or on any. */
void request_set(struct request *, unsigned action, uint8_t scope_type,
                 uint64_t key, uint64_t action_key, uint8_t flags);
bool is_register(const struct request *);
enum verdict path_send(struct map *, struct path *, const struct request *);
enum verdict path_register(struct map *, struct path *, const struct request *);
enum verdict path_prove(struct map *, struct path *,
                        const struct multipathd_key *);
struct path *any_send(struct map *, const struct request *);
bool reservation_read(struct map *, struct reservation *);
bool keys_read(struct map *, uint64_t key, unsigned *count);

/* sweep.c: on all. */
void all_due(struct map *);
unsigned count_of(const struct map *, enum verdict);
void answer_undone(struct map *);
bool settle(struct map *);
bool sweep(struct map *, struct request *, const struct multipathd_key *,
           int64_t deadline);
enum verdict witness_ask(struct map *, const struct multipathd_key *);
void keys_take_off(struct map *, uint64_t key, uint8_t flags);
enum holder holder_find(struct map *, const struct multipathd_key *,
                        struct reservation *, struct path **);

/* preempt.c: where other paths of ours lose their registration. */
struct path *preempt_own(struct map *, const struct request *,
                         const struct multipathd_key *);
struct path *take_over(struct map *, const struct multipathd_key *,
                       uint8_t scope_type);
bool hold_announce(struct map *, enum multipathd_flag *was);
void hold_settle(struct map *, enum multipathd_flag was, bool holds,
                 const struct multipathd_key *);

/* register.c */
void map_register(struct map *, const struct multipathd_key *old,
                  struct request *);
void map_clear(struct map *, const struct multipathd_key *,
               const struct request *);

#endif
