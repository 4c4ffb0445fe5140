/* SPDX-License-Identifier: MIT */
/*
 * multipath.h - a persistent reservation command on a dm-multipath map: the
 * interfaces between the files of this folder. Who calls whom:
 *
 *	(ask, workers -> worker) -> actions -> register -> holder, preempt
 *	    -> sweep -> map
 *	all of them -> multipathd
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
 *	5 a map is suspended in preempt_own() only; after SUSPENDED_WITHIN
 *	  nobody but the witness is asked before it is resumed
 *	6 map.deadline ends every wait
 *	7 map_fail() says why, and path_is_left_out() which path, in the log
 *
 * Nothing here may know a client, or send a command to a disk that is not,
 * at that moment, a path of the map.
 */
#ifndef MULTIPATH_H
#define MULTIPATH_H

#include "../protocol.h"
#include "commands.h"

/* How long a command may take, and parts of it. */
#define COMMAND_WITHIN (40 * SECOND)
#define CHANGE_WITHIN (10 * SECOND) /* of it, once no path is blocked */
/* Between two tries; see map_wait(). */
#define PAUSE_LEAST (SECOND / 100)
#define SUSPENDED_WITHIN (8 * SECOND)   /* while all I/O waits for us, */
#define RESUMED_WITHIN (4 * SECOND)     /* and to end that */
#define RESUME_WITHIN (15 * SECOND)     /* or it hangs in the kernel */
#define RESUME_AGAIN (2 * SECOND)       /* if it could not be resumed */
#define AFTERWARDS_WITHIN (16 * SECOND) /* to undo, after COMMAND_WITHIN */

enum { PATHS_MOST = 256 };

#define NOT_NOTED                                                              \
    "multipathd does not take note of the %s: see its log, and repeat it"
#define MAP_SUSPENDED                                                          \
    "map %.128s is suspended: no command on a map before it is resumed"

/* Room for 4,094 keys (64 hosts with 63 paths each), or some 600 statuses. */
enum { STATUS_SIZE = 8 + 8 * 4094 };

/* So much of a worker's answer comes before the payload. */
enum { ANSWER_HEAD = sizeof(enum refusal) + 1 + PROTOCOL_SENSE_SIZE };

/* What a path has made of a command. */
enum verdict {
    DUE,       /* it has not been sent, or shall be once more */
    NOT_TAKEN, /* nothing was done; that may change */
    DOWN,      /* likewise: its transport has given it up */
    STANDBY,   /* likewise, but multipathd says when */
    LOST,      /* no answer: it was done, or not */
    UNREADY,   /* likewise; that is the answer if no path has another */
    ASIDE,     /* left out, as the kernel sends it no I/O */
    DONE,
    CONFLICT,
    REFUSED /* with another status, which is the disk's word */
};

struct path {
    char name[32];        /* sdX */
    enum verdict verdict; /* of the command that goes to all, or any */
    bool is_changed;      /* by it; or perhaps: its answer leaves that open */
    bool is_reported;     /* as left out */
    bool had_key;         /* before the command that registers it; or perhaps */
    bool had_older;       /* key, before it was changed; or perhaps */
    bool is_late;         /* not used, when the last one had its turn */
    struct multipathd_path seen; /* by map_see() */
    char why[96];                /* it did not take the last command */
};

/* What the guest is going to be told. */
struct answer {
    uint8_t status;
    uint8_t sense[PROTOCOL_SENSE_SIZE];
    size_t payload;
    enum refusal refusal; /* the kernel's */
};

struct reservation {
    bool is_held;
    uint64_t key; /* 0 if all registrants hold it */
    uint8_t scope_type;
    uint32_t generation; /* PRGENERATION then */
};

struct map {
    dev_t device;
    char name[16]; /* dm-N */
    char alias[ALIAS_SIZE];
    struct suspension *suspension;
    struct multipathd multipathd;
    struct multipathd_key key; /* that our paths have, or are given */
    int64_t deadline;
    int64_t end;   /* the last deadline, for what has to be put right */
    int64_t pause; /* us, the next one in map_wait() */
    struct answer answer;
    struct path paths[PATHS_MOST];
    unsigned count;
    struct path *answered; /* the last command for any path; or NULL */
    struct answer unready; /* if no path has a better one */
    struct path *lost;     /* had no answer to that command; or NULL */
    struct path *last;     /* whose key is changed last, if any is to be */
    struct path *witness;  /* the first that got the key, and must keep it */
    bool is_doubtful;      /* somebody may have removed it */
    bool is_status_told;   /* to multipathd, or perhaps: see status_tell() */
    uint32_t generation;   /* PRGENERATION in keys_read(), plus ours since */
    struct reservation reservation; /* when it was read */
    struct path *holder;            /* if that is HOLDER_PATH */
    bool has_twin;                  /* with our key: not to be preempted */
    enum multipathd_said hold;      /* what multipathd thought; DONE: is told */
};

/* What we register with: the APTPL of the last REGISTER counts for the disk. */
static inline uint8_t flags_of(const struct map *map)
{
    return map->key.aptpl ? APTPL : 0;
}

/* A command for a path. */
struct request {
    uint8_t cdb[10];
    uint8_t *data;
    size_t length;
    uint8_t own_list[LIST_SIZE]; /* for those that are not the client's */
};

/* Through which path a reservation that has our key is held. */
enum holder {
    HOLDER_UNKNOWN, /* the answer says why */
    HOLDER_OTHER,   /* no path of ours; or there is no such reservation */
    HOLDER_PATH,
    HOLDER_GONE /* one of ours that is left out, or not in the map any more */
};

/* actions.c: which service action it is, and those that are in no other. */
/* Carries out a command on a map, which must be locked if it may change it. */
void multipath_execute(struct pr_command *, const char *socket_path,
                       struct suspension *);

/* map.c: the map, its paths, and which of them may be left out. */
/*
 * Lets one command at a time change something on a map: it locks the byte that
 * has the map's number, of a file that all share who do this (-1: nobody else
 * does). Who dies gives that back. False: it was not to be had in time.
 */
bool map_lock(int lock, dev_t, int64_t deadline);
/* Returns why the device is refused, if it is. Its paths are not listed yet. */
enum refusal map_begin(struct map *, dev_t, const char *socket_path,
                       struct suspension *);
/* Adds the paths that have come; those that have gone stay, see path_look(). */
bool map_list(struct map *);
/* Waits a little, each time longer. False: the deadline is over. */
bool map_wait(struct map *, int64_t deadline);
/*
 * Says why in the log. False, as what has failed returns that; who goes on
 * gives another answer in the end.
 */
bool map_fail(struct map *, const char *format, ...)
    __attribute__((format(printf, 2, 3)));
/* Makes the answer a status without sense data; or CHECK CONDITION with it. */
void map_answer(struct map *, uint8_t status);
void map_check(struct map *, uint8_t key, uint8_t asc);
/* Asks multipathd which paths it has failed, or seen fail. */
void map_see(struct map *);
/*
 * May the command do without this path, which has not taken it? Only if the
 * kernel sends it no I/O, and multipathd knows that: so that it will see it
 * come back, and register it. Says so in the log, once.
 */
bool path_is_left_out(struct map *, struct path *);
/* Makes up a PERSISTENT RESERVE OUT that is not the client's. */
void request_set(struct request *, unsigned action, uint8_t scope_type,
                 uint64_t key, uint64_t action_key, uint8_t flags);
bool is_register(const struct request *); /* either of the two */
/*
 * Sends it once, but for unit attentions; the answer is in the map. A target
 * may want a registration for ALL_TG_PT to be changed in that way only (LIO
 * does), which is tried; but of the client's commands that is for it to know.
 */
enum verdict path_send(struct map *, struct path *, struct request *);
/*
 * Is the path registered with our key (DONE) or not (CONFLICT)? The answer
 * stays, unless the path refuses to tell.
 */
enum verdict path_prove(struct map *, struct path *);

/* sweep.c: a command on any path, or on all. */
/*
 * Makes all paths due for a command; but what is left out so far, or may hang
 * as dm has failed it, only when the others have had their turn.
 */
void all_due(struct map *);
unsigned count_of(const struct map *, enum verdict); /* of its paths */
/* Gives a path that is due its verdict. False: no other path is visited. */
typedef bool visit(struct map *, struct path *, struct request *);
/*
 * Visits all paths that are due, also those that come meanwhile, turn by turn
 * until none is. What is left out is tried once more in the end, as it may
 * have come back without multipathd's notice; but it must not be the first
 * that is registered, or settled. False: a visit has ended it, or the answer is
 * why not.
 */
bool paths_visit(struct map *map, visit *how, struct request *request);
/* Sets the answer if no path has done it. Returns false. */
bool answer_undone(struct map *);
/*
 * Answers CONFLICT, as any disk does to a command with another key than the one
 * that the initiator, here this host, is registered with (0: with none).
 */
void key_conflict(struct map *, uint64_t key, uint64_t registered);
/*
 * Returns who has answered; or NULL, and the answer is CONFLICT or NOT READY,
 * of all paths that are not left out, or that it has failed. A conflict is not
 * the answer to PERSISTENT RESERVE OUT unless it is everybody's: nothing was
 * done, and the path may have come back without having been registered yet. Nor
 * is NOT READY, for which others may be (LIO says it for some conflicts).
 */
struct path *any_send(struct map *, struct request *);
/*
 * Sends PERSISTENT RESERVE IN to that path, or to any (NULL). False: nobody
 * answered, or not with all that it says there is; that is the answer.
 */
bool in_read(struct map *, struct path *, uint8_t action, uint8_t *data,
             size_t length);
/* Reads it. False: nobody answered, or with an error: that is the answer. */
bool reservation_read(struct map *);
/*
 * Returns how many registrations have the key, and sets map.generation, as that
 * path says or any one (NULL). -1: nobody does, and the answer is why.
 */
int keys_read(struct map *, struct path *, uint64_t key);
/*
 * Before anything is changed: waits until no path is blocked or in
 * transition, or is one that multipathd has yet to notice the end of. A key
 * that is changed on one path and, for seconds, not on the other lets a rival
 * preempt the one and miss the other.
 */
bool settle(struct map *);
/*
 * Sends the command to every path that is DUE, also those that come
 * meanwhile, until each has taken it, says CONFLICT or is left out. False:
 * one refuses, or time is up, which is the answer.
 */
bool sweep(struct map *, struct request *);
/*
 * Has the witness had the key all the time (DONE), or has somebody removed it
 * (CONFLICT)? Anything else: cannot tell. But for DONE the answer says so.
 */
enum verdict witness_ask(struct map *);
/*
 * Takes a key away that could not be put everywhere, or that somebody has
 * removed elsewhere: only where it is, and nothing comes back in its place.
 * Returns whether it is off all paths. The answer stays.
 */
bool keys_take_off(struct map *, uint64_t key, uint8_t flags);
/* holder.c: finds who holds the reservation, if it was made with our key. */
enum holder holder_find(struct map *);
/* preempt.c: where other paths of ours lose their key. */
/*
 * Sends a PREEMPT that takes our own key away. Returns the path that it was
 * done through if all paths have their key again, else NULL: it is in the
 * answer what came of it.
 */
struct path *preempt_own(struct map *, struct request *);
/* Has a live path take over the reservation that was read last, by PREEMPT. */
struct path *take_over(struct map *);
/*
 * Somebody has died who had suspended the map, or hangs: does what is left to
 * do. The paths get their keys back first; but if somebody else has the lock,
 * they have to wait, and I/O has not. Only the path that was the witness can
 * be that still, as others may have been registered since: if it is not, all
 * lose the key; if there was none yet, nothing was registered. The lock has to
 * be waited for as long as patience says.
 */
void multipath_recover(const char *socket_path, int lock, struct suspension *,
                       int64_t patience);

/* worker.c: what comes with a command on the queue, as in SCM_RIGHTS. */
enum { MAP, ANSWER, DESCRIPTORS };
struct supervisor;
/*
 * Enters stage 6 of privdrop.c: for a map that is suspended, or else (NULL) for
 * a command on the queue, which may leave its map so, in our own place.
 */
__attribute__((noreturn)) void worker_run(const struct supervisor *,
                                          struct suspension *,
                                          struct suspension *own);

/* register.c: carries these out on all paths, and tells multipathd. */
void map_register(struct map *, struct request *);
/*
 * It is done also if all answers are lost, but the key is gone. Nothing of ours
 * may be left, not even on a path that multipathd has registered meanwhile.
 */
void map_clear(struct map *, struct request *);

#endif
