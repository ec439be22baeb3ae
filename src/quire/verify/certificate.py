"""The file that carries a proof: what was proved, of what, by which claims."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import attrs

from quire.capture.program import Program
from quire.verify.check import solve, versions
from quire.verify.claims import CertificateError, Claim, Verdict
from quire.verify.laws import LAWS
from quire.verify.shard.laws import SHARD_LAWS

FORMAT = 1


@attrs.frozen
class Certificate:
    """`program` is the hash of the original's graph, `source` the applied program or the kernel as
    it runs, `plan` the plan, or the kernel's tables, as JSON. `solvers` are the
    versions that discharged the claims."""

    verdict: Verdict
    reason: str
    program: str
    plan: str
    source: str
    claims: tuple[Claim, ...]
    solvers: dict[str, str]
    rounding: tuple[tuple[str, str], ...] = ()
    sizes: tuple[tuple[str, int, int | None], ...] = ()
    seconds: float = 0.0
    over: str = "all part sizes"
    """What else than inputs and lengths it holds for."""

    def save(self, path: str | Path) -> Path:
        """Write the certificate as JSON, with a SHA-256 digest over all of it."""
        body = _body(self)
        text = json.dumps({**body, "digest": _digest(body)}, indent=1, sort_keys=True)
        Path(path).write_text(text + "\n", encoding="utf-8")
        return Path(path)

    @property
    def texts(self) -> list[Claim]:
        return [c for c in self.claims if c.smt2]

    @property
    def about(self) -> str:
        """What was proved, or why it was not, in one line."""
        if self.verdict != "proved":
            return " ".join(self.reason.split())
        ranges = "".join(f", {n} in {lo} … {hi or '∞'}" for n, lo, hi in self.sizes)
        if self._has("mesh"):
            what = "outputs" + (" and gradients" if self._has("gradient") else "")
            return f"{what} equal on every rank, for all inputs and parameters{ranges}"
        return f"equal for all inputs and {self.over}{ranges}"

    def _has(self, kind: str) -> bool:
        return any(c.kind == kind for c in self.claims)

    def explain(self) -> str:
        """The verdict and what it rests on, for people."""
        kinds: dict[str, int] = {}
        for claim in self.claims:
            kinds[claim.kind] = kinds.get(claim.kind, 0) + 1
        rows = [f"{self.verdict}: {self.about}"]
        rows += [f"  rounding, {name}: {said}" for name, said in self.rounding]
        rows += [f"  {count} claims: {kind}" for kind, count in sorted(kinds.items())]
        rows += [f"  {c.id}: {c.verdict}: {c.reason}" for c in self.claims if c.verdict != "proved"]
        return "\n".join(rows)


def load(path: str | Path) -> Certificate:
    """The certificate in a file. Raises CertificateError if a byte of it was changed."""
    try:
        body = json.loads(Path(path).read_bytes().decode("utf-8"))
        digest = body.pop("digest")
        if body["format"] != FORMAT:
            raise ValueError(f"format {body['format']}")
        intact = digest == _digest(body)
    except (ValueError, KeyError, UnicodeDecodeError, AttributeError) as error:
        raise _damaged(path, str(error)) from error
    if not intact:
        raise _damaged(path, "its digest is not that of its content")
    body.pop("format")
    claims = tuple(Claim(**{**c, "depends_on": tuple(c["depends_on"])}) for c in body.pop("claims"))
    rounding = tuple((a, b) for a, b in body.pop("rounding"))
    sizes = tuple((a, b, c) for a, b, c in body.pop("sizes"))
    return Certificate(claims=claims, rounding=rounding, sizes=sizes, **body)


def verify(path: str | Path, solver: str = "z3", *, seconds: float = 10.0) -> Certificate:
    """Check a certificate again from its file alone: its digest, that claims depend only on
    earlier ones, that the lemmas are those of this version, and every text with the solver(s).

    `solver` is "z3", "cvc5" or "both". The result's verdict is "proved" only if all agree.
    Raises CertificateError.
    """
    if solver not in ("z3", "cvc5", "both"):
        raise CertificateError(f"no solver {solver!r}", allowed="z3, cvc5, both")
    found = load(path)
    known: set[str] = set()
    for claim in found.claims:
        if not set(claim.depends_on) <= known:
            raise _damaged(path, f"{claim.id} depends on a later claim")
        known.add(claim.id)
    needed = (*LAWS, *SHARD_LAWS) if found._has("mesh") else LAWS
    lemmas = {o for law in needed for o in law.obligations}
    if not lemmas <= {c.smt2 for c in found.claims}:
        raise _damaged(path, "a lemma is missing")
    claims = list(found.claims)
    used = {}
    for name in ("z3", "cvc5") if solver == "both" else (solver,):
        used[name] = versions()[name]
        texts = [c.smt2 for c in claims if c.smt2]
        answers = iter(solve(texts, name, seconds=seconds))
        claims = [_answered(c, name, next(answers)) if c.smt2 else c for c in claims]
    verdict, reason = found.verdict, found.reason
    bad = [c for c in claims if c.smt2 and c.verdict != "proved"]
    if bad and verdict == "proved":
        verdict, reason = "unknown", f"{bad[0].id}: {bad[0].reason}"
    return attrs.evolve(found, claims=tuple(claims), solvers=used, verdict=verdict, reason=reason)


def _answered(claim: Claim, solver: str, answer: str) -> Claim:
    if answer == "unsat":
        return claim
    return attrs.evolve(claim, verdict="unknown", reason=f"{solver} says {answer}")


def program_hash(program: Program) -> str:
    """SHA-256 over the graph: every node's name, op, arguments and facts."""
    rows = []
    for node in program.graph.nodes:
        facts = [(str(i.shape), str(i.dtype)) for i in program.infos.get(node, ())]
        rows.append((node.name, node.op, str(node.target), str(node.args), str(node.kwargs), facts))
    rows.append([(i.node.name, i.kind, i.target) for i in program.inputs])
    rows.append([(str(s.name), s.lo, s.hi) for s in program.symbols])
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()


def _body(c: Certificate) -> dict[str, Any]:
    return {"format": FORMAT, **json.loads(json.dumps(attrs.asdict(c)))}


def _digest(body: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def _damaged(path: str | Path, why: str) -> CertificateError:
    return CertificateError(
        f"{path} is no whole certificate: {why}",
        allowed="files written by Certificate.save, unchanged",
        fix="prove again: quire.chunk(…) or quire.shard(…) .certificate.save(path)",
    )
