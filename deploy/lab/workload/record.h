/*
 * The on-disk record and the acknowledgement of the lab's guest workload.
 *
 * labkit/audit_records.py parses the same two layouts: change both together.
 * Everything is little-endian and packed; sizes are bytes.
 *
 * Record n lives at byte n * record_size of the disk, and nowhere else, so that a lost, stale or
 * misplaced write is visible from the disk alone.
 */
#ifndef MIGRD_LAB_RECORD_H
#define MIGRD_LAB_RECORD_H

#include <stdint.h>

#define GUEST_NAME_MAX 32
#define BOOT_ID_SIZE 16

struct __attribute__((packed)) record_head {
    char magic[8]; /* "MIGRDREC" */
    uint32_t record_size;
    uint32_t reserved;
    char guest[GUEST_NAME_MAX]; /* NUL padded */
    uint8_t boot_id[BOOT_ID_SIZE];
    uint64_t seq;
    uint64_t mono_ns; /* the guest's CLOCK_MONOTONIC when the record was made */
};
/* Then a pattern up to record_size - 4, then the CRC-32 (IEEE) of everything before it. */

struct __attribute__((packed)) ack_packet {
    char magic[8]; /* "MIGRDACK" */
    char guest[GUEST_NAME_MAX];
    uint8_t boot_id[BOOT_ID_SIZE];
    uint64_t seq;     /* this record is on stable storage */
    uint64_t mono_ns; /* the guest's CLOCK_MONOTONIC after the flush */
    uint32_t memory_faults; /* pages of the dirty buffer that did not hold what was written there */
    uint32_t crc;     /* CRC-32 of everything before it */
};

#endif
