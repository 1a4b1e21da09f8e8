/*
 * The workload of a lab guest: appends numbered, checksummed records to a raw disk and
 * acknowledges each over UDP only after O_DIRECT write + fdatasync, and can dirty memory at a
 * given rate meanwhile.
 *
 *   workload DISK GUEST OBSERVER_IP PORT RECORD_SIZE RECORDS_PER_S DIRTY_MIB_PER_S DIRTY_BUFFER_MIB
 *
 * On start it scans the whole disk and goes on after the last valid record under a new boot id.
 * It never wraps: on a full disk it stops writing and says so on the console.
 * Pacing is on CLOCK_MONOTONIC; lateness (a paused guest) is dropped, never caught up in a burst.
 */
#define _GNU_SOURCE
#include "record.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/ioctl.h>
#include <linux/fs.h>
#include <time.h>
#include <unistd.h>

#define NS_PER_S 1000000000ull
#define SCAN_CHUNK (1u << 20)
#define DISK_ALIGN 4096
#define IO_RETRY_NS 200000000ull
#define DIRTY_TICK_NS 10000000ull
#define PAGE 4096u

struct options {
    const char *disk, *guest, *observer;
    uint16_t port;
    uint32_t record_size, records_per_s, dirty_mib_per_s, dirty_buffer_mib;
};

static uint32_t crc_table[256];
static _Atomic uint32_t memory_faults;

static void crc_init(void)
{
    for (uint32_t n = 0; n < 256; n++) {
        uint32_t c = n;
        for (int bit = 0; bit < 8; bit++)
            c = c & 1 ? 0xedb88320u ^ (c >> 1) : c >> 1;
        crc_table[n] = c;
    }
}

static uint32_t crc32_of(const uint8_t *data, size_t length)
{
    uint32_t c = 0xffffffffu;
    for (size_t i = 0; i < length; i++)
        c = crc_table[(c ^ data[i]) & 0xff] ^ (c >> 8);
    return ~c;
}

static void die(const char *what)
{
    fprintf(stderr, "workload: %s: %s\n", what, strerror(errno));
    exit(1);
}

static uint64_t now_ns(clockid_t clock)
{
    struct timespec t;
    clock_gettime(clock, &t);
    return (uint64_t)t.tv_sec * NS_PER_S + (uint64_t)t.tv_nsec;
}

static void sleep_until_ns(uint64_t when)
{
    struct timespec t = { .tv_sec = (time_t)(when / NS_PER_S), .tv_nsec = (long)(when % NS_PER_S) };
    while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &t, NULL) == EINTR)
        ;
}

/* The next tick of a paced loop; after a pause the schedule starts anew, so nothing comes in a burst. */
static uint64_t next_tick(uint64_t due, uint64_t period)
{
    uint64_t now = now_ns(CLOCK_MONOTONIC);
    due += period;
    return due + 10 * period < now ? now + period : due;
}

/* getrandom alone may repeat in a guest that has no entropy yet; the wall clock and TSC do not. */
static void make_boot_id(uint8_t id[BOOT_ID_SIZE])
{
    uint64_t mix[2];
    if (getrandom(id, BOOT_ID_SIZE, 0) != BOOT_ID_SIZE)
        die("getrandom");
    memcpy(mix, id, sizeof mix);
    mix[0] ^= now_ns(CLOCK_REALTIME);
    mix[1] ^= __builtin_ia32_rdtsc();
    memcpy(id, mix, sizeof mix);
}

static int record_is_valid(const uint8_t *raw, uint32_t size, const char *guest, uint64_t seq)
{
    const struct record_head *head = (const struct record_head *)raw;
    uint32_t crc;
    if (memcmp(head->magic, "MIGRDREC", 8) != 0 || head->record_size != size || head->seq != seq)
        return 0;
    memcpy(&crc, raw + size - 4, 4);
    return strncmp(head->guest, guest, GUEST_NAME_MAX) == 0 && crc == crc32_of(raw, size - 4);
}

/* The number of the record to write next: one after the last valid one anywhere on the disk. */
static uint64_t scan_disk(int fd, uint64_t disk_size, const struct options *o)
{
    uint8_t *chunk = aligned_alloc(DISK_ALIGN, SCAN_CHUNK);
    uint64_t next = 0;
    if (!chunk)
        die("scan buffer");
    for (uint64_t at = 0; at < disk_size;) {
        ssize_t got = pread(fd, chunk, SCAN_CHUNK, (off_t)at);
        if (got < 0 && errno == EINTR)
            continue;
        if (got <= 0)
            die("scan of the disk");
        for (uint64_t i = 0; i + o->record_size <= (uint64_t)got; i += o->record_size) {
            uint64_t seq = (at + i) / o->record_size;
            if (record_is_valid(chunk + i, o->record_size, o->guest, seq))
                next = seq + 1;
        }
        at += (uint64_t)got;
    }
    free(chunk);
    return next;
}

static void fill_record(uint8_t *raw, const struct options *o, const uint8_t *boot_id, uint64_t seq)
{
    struct record_head *head = (struct record_head *)raw;
    uint32_t crc;
    memset(raw, (int)(seq & 0xff), o->record_size);
    memset(head, 0, sizeof *head);
    memcpy(head->magic, "MIGRDREC", 8);
    head->record_size = o->record_size;
    strncpy(head->guest, o->guest, GUEST_NAME_MAX - 1);
    memcpy(head->boot_id, boot_id, BOOT_ID_SIZE);
    head->seq = seq;
    head->mono_ns = now_ns(CLOCK_MONOTONIC);
    crc = crc32_of(raw, o->record_size - 4);
    memcpy(raw + o->record_size - 4, &crc, 4);
}

/*
 * Writes and flushes one record, for ever if need be: the same bytes to the same place, so a
 * retry is harmless, and there is nothing better to do for a guest whose disk went away.
 */
static void write_record(int fd, const uint8_t *raw, uint32_t size, uint64_t seq)
{
    for (unsigned failures = 0;; failures++) {
        ssize_t put = pwrite(fd, raw, size, (off_t)(seq * size));
        if (put == (ssize_t)size && fdatasync(fd) == 0)
            return;
        if (failures % 25 == 0)
            fprintf(stderr, "workload: record %llu not written: %s\n", (unsigned long long)seq, strerror(errno));
        sleep_until_ns(now_ns(CLOCK_MONOTONIC) + IO_RETRY_NS);
    }
}

static void send_ack(int sock, const struct sockaddr_in *to, const struct options *o, const uint8_t *boot_id,
                     uint64_t seq)
{
    struct ack_packet ack;
    memset(&ack, 0, sizeof ack);
    memcpy(ack.magic, "MIGRDACK", 8);
    strncpy(ack.guest, o->guest, GUEST_NAME_MAX - 1);
    memcpy(ack.boot_id, boot_id, BOOT_ID_SIZE);
    ack.seq = seq;
    ack.mono_ns = now_ns(CLOCK_MONOTONIC);
    ack.memory_faults = memory_faults;
    ack.crc = crc32_of((const uint8_t *)&ack, sizeof ack - 4);
    /* A lost acknowledgement loses nothing: the audit then simply does not count the record as acked. */
    (void)sendto(sock, &ack, sizeof ack, MSG_DONTWAIT, (const struct sockaddr *)to, sizeof *to);
}

/*
 * Rewrites the buffer page by page, round and round. Every page holds the number of the round that
 * wrote it last, so a page that a migration forgot to send again is noticed one round later.
 */
static void *dirty_memory(void *arg)
{
    const struct options *o = arg;
    size_t size = (size_t)o->dirty_buffer_mib << 20, at = 0;
    uint64_t per_tick = ((uint64_t)o->dirty_mib_per_s << 20) * DIRTY_TICK_NS / NS_PER_S;
    uint64_t owed = 0, round = 0, due = now_ns(CLOCK_MONOTONIC);
    uint8_t *buffer = aligned_alloc(PAGE, size);
    if (!buffer)
        die("dirty buffer");
    memset(buffer, 0, size);
    for (;;) {
        for (owed += per_tick; owed >= PAGE; owed -= PAGE) {
            volatile uint64_t *page = (volatile uint64_t *)(buffer + at);
            if (*page != round) {
                if (memory_faults++ % 1000 == 0)
                    fprintf(stderr, "workload: page %zu holds round %llu, not %llu: memory was lost\n", at / PAGE,
                            (unsigned long long)*page, (unsigned long long)round);
            }
            *page = round + 1;
            at += PAGE;
            if (at == size) {
                at = 0;
                round++;
            }
        }
        sleep_until_ns(due = next_tick(due, DIRTY_TICK_NS));
    }
    return NULL;
}

static uint32_t number(const char *text, uint32_t low, uint32_t high, const char *what)
{
    char *end;
    unsigned long value = strtoul(text, &end, 10);
    if (*text == '\0' || *end != '\0' || value < low || value > high) {
        fprintf(stderr, "workload: %s must be %u to %u, not '%s'\n", what, low, high, text);
        exit(2);
    }
    return (uint32_t)value;
}

static struct options parse(int argc, char **argv)
{
    struct options o;
    if (argc != 9) {
        fprintf(stderr, "usage: workload DISK GUEST OBSERVER_IP PORT RECORD_SIZE RECORDS_PER_S "
                        "DIRTY_MIB_PER_S DIRTY_BUFFER_MIB\n");
        exit(2);
    }
    o.disk = argv[1];
    o.guest = argv[2];
    o.observer = argv[3];
    o.port = (uint16_t)number(argv[4], 1, 65535, "the port");
    o.record_size = number(argv[5], 512, 4096, "the record size");
    o.records_per_s = number(argv[6], 1, 1000, "the rate");
    o.dirty_mib_per_s = number(argv[7], 0, 100000, "the dirty rate");
    o.dirty_buffer_mib = number(argv[8], 1, 65536, "the dirty buffer");
    if (o.record_size != 512 && o.record_size != 4096) {
        fprintf(stderr, "workload: the record size must be 512 or 4096\n");
        exit(2);
    }
    return o;
}

/* Not connected: on a connected socket an ICMP error (no observer yet) would eat the next acknowledgement. */
static struct sockaddr_in observer_address(const struct options *o)
{
    struct sockaddr_in to = { .sin_family = AF_INET, .sin_port = htons(o->port) };
    if (inet_pton(AF_INET, o->observer, &to.sin_addr) != 1) {
        fprintf(stderr, "workload: '%s' is not an IPv4 address\n", o->observer);
        exit(2);
    }
    return to;
}

int main(int argc, char **argv)
{
    struct options o = parse(argc, argv);
    struct sockaddr_in to = observer_address(&o);
    uint8_t boot_id[BOOT_ID_SIZE], *raw;
    uint64_t disk_size = 0, seq, due;
    pthread_t thread;
    int fd, sock;

    setvbuf(stdout, NULL, _IOLBF, 0);
    crc_init();
    make_boot_id(boot_id);
    fd = open(o.disk, O_RDWR | O_DIRECT | O_CLOEXEC);
    if (fd < 0 || ioctl(fd, BLKGETSIZE64, &disk_size) != 0)
        die(o.disk);
    raw = aligned_alloc(DISK_ALIGN, DISK_ALIGN);
    if (!raw)
        die("record buffer");
    sock = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (sock < 0)
        die("socket");
    seq = scan_disk(fd, disk_size, &o);
    printf("workload: %s goes on at record %llu of %llu\n", o.guest, (unsigned long long)seq,
           (unsigned long long)(disk_size / o.record_size));
    if (o.dirty_mib_per_s > 0 && pthread_create(&thread, NULL, dirty_memory, &o) != 0)
        die("thread");
    for (due = now_ns(CLOCK_MONOTONIC); seq < disk_size / o.record_size; seq++) {
        fill_record(raw, &o, boot_id, seq);
        write_record(fd, raw, o.record_size, seq);
        send_ack(sock, &to, &o, boot_id, seq);
        sleep_until_ns(due = next_tick(due, NS_PER_S / o.records_per_s));
    }
    printf("workload: the disk is full after %llu records\n", (unsigned long long)seq);
    for (;;)
        pause();
}
