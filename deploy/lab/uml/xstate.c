/* Lets a UML kernel run on a processor whose register state is larger than that kernel knows (AMX).
 *
 * Linux 6.1's UML saves and restores the registers of its processes with a buffer of fixed size, 2696 bytes: all
 * states up to PKRU. PTRACE_SETREGSET of NT_X86_XSTATE takes nothing but a whole buffer ("A whole standard-format
 * XSAVE buffer is needed", arch/x86/kernel/fpu/regset.c) and answers EFAULT on a machine that also has the tiles of
 * AMX (Intel since Sapphire Rapids): UML's first process ends in a panic. Newer UML asks the machine for the size.
 *
 * Loaded into linux.uml with LD_PRELOAD, this stands in front of ptrace(2) and hands over a whole buffer, the rest of
 * it zero. What lies behind the 2696 bytes is tile state, which no process in a lab's host may use: it would have to
 * ask with arch_prctl(ARCH_REQ_XCOMP_PERM), which UML does not know. On other machines nothing is changed.
 */
#define _GNU_SOURCE
#include <elf.h>
#include <errno.h>
#include <stdarg.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#ifndef NT_X86_XSTATE
#define NT_X86_XSTATE 0x202
#endif

enum { MOST = 64 * 1024 };

static unsigned char whole[MOST] __attribute__((aligned(64))); /* one kernel, one thread that traces */
static size_t whole_size;                                      /* of this machine; 0 = not asked yet */

static long raw(long request, pid_t pid, void *addr, void *data)
{
    return syscall(SYS_ptrace, request, pid, addr, data);
}

static size_t size_of_this_machine(pid_t pid)
{
    struct iovec all = { whole, MOST };
    size_t size = raw(PTRACE_GETREGSET, pid, (void *)NT_X86_XSTATE, &all) == 0 ? all.iov_len : 0;
    memset(whole, 0, MOST);
    return size;
}

long ptrace(enum __ptrace_request request, ...)
{
    va_list arguments;
    va_start(arguments, request);
    pid_t pid = va_arg(arguments, pid_t);
    void *addr = va_arg(arguments, void *);
    void *data = va_arg(arguments, void *);
    va_end(arguments);

    if (request >= PTRACE_PEEKTEXT && request <= PTRACE_PEEKUSER) { /* as glibc: the word is the result */
        long word;
        long done = raw(request, pid, addr, &word);
        if (done < 0)
            return done;
        errno = 0;
        return word;
    }
    if (request != PTRACE_SETREGSET || addr != (void *)NT_X86_XSTATE)
        return raw(request, pid, addr, data);
    if (whole_size == 0)
        whole_size = size_of_this_machine(pid);
    struct iovec *part = data;
    if (part->iov_len >= whole_size)
        return raw(request, pid, addr, data);
    memcpy(whole, part->iov_base, part->iov_len);
    struct iovec padded = { whole, whole_size };
    return raw(request, pid, addr, &padded);
}
