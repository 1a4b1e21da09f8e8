"""Why a command ends early: an exit code, a sentence, all reasons, and what to type next."""

from __future__ import annotations

from dataclasses import dataclass, field

from migrd.cli.exits import Exit


@dataclass(eq=False)
class CliError(Exception):
    """`document` is what `-o json` prints: the daemon's problem document, or one in the same shape."""

    code: Exit
    detail: str
    reasons: tuple[str, ...] = ()
    hint: str = ""
    document: dict[str, object] = field(default_factory=dict)
    document_shown: bool = False  # -o json has its one document on stdout already: only the words are missing

    def __str__(self) -> str:
        return self.detail

    def as_document(self) -> dict[str, object]:
        if self.document:
            return self.document
        kind = self.code.name.lower()
        reasons = list(self.reasons)
        return {"type": kind, "title": kind, "status": None, "detail": self.detail, "reasons": reasons}


class Unreachable(CliError):  # noqa: N818 - an answer about the daemon
    """No answer. `sent`: the request may have reached the daemon all the same."""

    def __init__(self, url: str, why: str, *, sent: bool, changes: bool) -> None:
        lost = sent and changes
        detail = f"{url} does not answer: {why}"
        hint = (
            "the request may have been accepted: look with `migrctl ops`"
            if lost
            else "is it running? `systemctl status migrd`; another address: --url or MIGRD_URL"
        )
        super().__init__(Exit.UNREACHABLE, detail, hint=hint)


class Interrupted(CliError):  # noqa: N818 - what the operator wanted
    """Ctrl-C before there was an answer. `accepted`: may the daemon have begun it? None: not known."""

    def __init__(self, *, accepted: bool | None) -> None:
        look = "look with `migrctl ops`, stop it with `migrctl op cancel ID`"
        match accepted:
            case True:
                detail = "interrupted before the daemon answered: the request may have been accepted"
                hint = look
            case False:
                detail, hint = "interrupted; nothing was begun", ""
            case None:
                detail, hint = "interrupted", f"if this asked for work, it may have been accepted: {look}"
        kind = "interrupted"
        document: dict[str, object] = {"type": kind, "title": kind, "status": None, "detail": detail}
        document["reasons"] = [hint] if hint else []
        super().__init__(Exit.FAILED, detail, (), hint, document)


class Detached(CliError):  # noqa: N818 - what the operator wanted
    """Ctrl-C while waiting: the operation goes on."""

    def __init__(self, operation_id: str, what: str) -> None:
        super().__init__(
            Exit.FAILED,
            f"detached; {operation_id} ({what}) goes on",
            hint=f"watch it: `migrctl op watch {operation_id}`; stop it: `migrctl op cancel {operation_id}`",
        )
