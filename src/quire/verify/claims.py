"""What is claimed of an applied program, and how each claim came out."""

from __future__ import annotations

from typing import Literal

import attrs

from quire.errors import QuireError

Verdict = Literal["proved", "refuted", "unknown"]


@attrs.frozen
class Claim:
    """One statement. `smt2` is its negation as SMT-LIB 2, unsatisfiable if it holds; a claim
    without text is decided by `rule` from those it depends on."""

    id: str
    kind: str
    text: str
    rule: str
    smt2: str = ""
    depends_on: tuple[str, ...] = ()
    verdict: Verdict = "proved"
    reason: str = ""


class RefutedError(QuireError):
    """The applied program does not compute what the original does.

    `certificate` holds the claims; `witness` the text of a script that fails when run.
    """

    def __init__(self, found: str, *, certificate: object, witness: str = "", **rest: str) -> None:
        self.certificate, self.witness = certificate, witness
        super().__init__(found, **rest)


class UnprovedError(QuireError):
    """Equality was neither shown nor refuted. `certificate` says what is missing."""

    def __init__(self, found: str, *, certificate: object, **rest: str) -> None:
        self.certificate = certificate
        super().__init__(found, **rest)


class CertificateError(QuireError):
    """A certificate that is damaged, or that does not belong to this program."""
