"""`uml/xstate.c` between a tracer and the kernel: a short buffer of registers, as UML has it, is taken."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from labkit import uml_image

TRACER = """
#define _GNU_SOURCE
#include <elf.h>
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

static unsigned char before[65536], after[65536];

int main(void)
{
    pid_t child = fork();
    if (child == 0) {
        ptrace(PTRACE_TRACEME, 0, 0, 0);
        raise(SIGSTOP);
        _exit(7);
    }
    waitpid(child, 0, 0);
    struct iovec part = { before, 2696 }; /* what Linux 6.1's UML has room for */
    if (ptrace(PTRACE_GETREGSET, child, (void *)0x202, &part) < 0)
        return printf("get: %s\\n", strerror(errno)), 1;
    before[160] ^= 0x5a; /* xmm0: FXSAVE area, Intel SDM vol. 1, 10.5.1 */
    before[512] |= 2;    /* XSTATE_BV: the SSE state is there */
    part.iov_len = 2696;
    if (ptrace(PTRACE_SETREGSET, child, (void *)0x202, &part) < 0)
        return printf("set: %s\\n", strerror(errno)), 1;
    struct iovec again = { after, sizeof after };
    ptrace(PTRACE_GETREGSET, child, (void *)0x202, &again);
    if (after[160] != before[160])
        return printf("a register was not set\\n"), 1;
    errno = 0;
    long word = ptrace(PTRACE_PEEKUSER, child, 0, 0);
    if (word == -1 && errno)
        return printf("peek: %s\\n", strerror(errno)), 1;
    int status;
    ptrace(PTRACE_CONT, child, 0, 0);
    waitpid(child, &status, 0);
    return WIFEXITED(status) && WEXITSTATUS(status) == 7 ? 0 : 2;
}
"""


@pytest.fixture(scope="module")
def tracer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("tracer")
    (directory / "tracer.c").write_text(TRACER)
    program = directory / "tracer"
    subprocess.run(["gcc", "-o", program, directory / "tracer.c"], check=True)
    return program


def test_a_short_buffer_of_registers_is_taken_on_every_processor(tracer: Path, tmp_path: Path) -> None:
    library = uml_image.build_xstate(tmp_path)
    done = subprocess.run(
        [tracer], env={"LD_PRELOAD": str(library)}, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, "")
