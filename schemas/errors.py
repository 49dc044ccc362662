"""Every error a person can meet, as one small tree.

TargetsmithError
├── RunFileError        the run file (or what it names), or the command line is wrong: fix it   exit 2
│   ├── CorpusError     a corpus file is missing, empty, of an unknown kind or unreadable       exit 2
│   ├── TokenizerError  a tokenizer that cannot be seen exactly as bytes, or is not BPE         exit 2
│   └── TeacherError    a model that cannot be loaded, or that fails its self-check             exit 2
├── OutputError         the output folder: no room, not writable, damaged, or foreign           exit 1
│   └── FingerprintMismatch  the output belongs to another run; the message lists what differs  exit 1
├── WorkError           actors died too often, or no actor could start                          exit 1
├── QuarantineError     more bad documents than [quarantine] of the run file allows             exit 3
├── IdentityError       a probability identity is broken (sum > 1, NaN, negative): a bug, or a
│                       broken teacher; the message carries the numbers                         exit 1
└── BadDocument         one document cannot be scored: it goes to quarantine, the run goes on   (never exits)

A message says, in this order: where, what was found, what was wanted, what to do next.
Commands catch `TargetsmithError`, print the message without a traceback and exit with `exit_code`.
"""


class TargetsmithError(Exception):
    """Base of all errors meant for people. `exit_code` is what a command exits with."""

    exit_code = 1


class RunFileError(TargetsmithError):
    """The run file or the command line is wrong, or something that it names does not exist or cannot be used."""

    exit_code = 2


class CorpusError(RunFileError):
    """A corpus path is missing, empty, unreadable, or of a kind that is not known."""


class TokenizerError(RunFileError):
    """A tokenizer that is not BPE, or whose tokens cannot be given exact bytes."""


class TeacherError(RunFileError):
    """A teacher that cannot be loaded or that fails the start-up self-check."""


class OutputError(TargetsmithError):
    """The output folder cannot be written, is damaged, or is not an output of this program."""


class FingerprintMismatch(OutputError):
    """The output folder was begun with other inputs or settings; the message lists each difference."""


class WorkError(TargetsmithError):
    """The cluster could not do the work: actors kept dying, or none could start."""


class QuarantineError(TargetsmithError):
    """More documents in quarantine than the run file allows: something else than single documents is wrong."""

    exit_code = 3


class IdentityError(TargetsmithError):
    """A probability identity is broken. Raised with the numbers; nothing is ever clamped instead."""


class BadDocument(TargetsmithError):
    """One document cannot be scored. `reason` is a fixed word of `schemas.reasons.REASONS`; the run goes on."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail

    def __reduce__(self):  # two-argument exceptions do not survive pickling between Ray processes otherwise
        return (type(self), (self.reason, self.detail))
