"""Emitted C++ → syntax trees. Only what the renderer writes is read; all else is refused.

The text is a list of functions `template <class Q> inline void name(Q& q) { … }` between two
includes. Inside are declarations of constants, calls of the machine `q`, lambdas, and, in `step`,
loops and branches on numbers that are the same for all workers.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import attrs

from quire.verify.value import NoMeaning


@attrs.frozen
class Number:
    """A literal; `value` is a float where the text has a point or an exponent."""

    value: int | float


@attrs.frozen
class Name:
    word: str


@attrs.frozen
class Unary:
    op: str
    of: Expr


@attrs.frozen
class Binary:
    op: str
    left: Expr
    right: Expr


@attrs.frozen
class Choice:
    condition: Expr
    yes: Expr
    no: Expr


@attrs.frozen
class Apply:
    """`what(args)`; `what` is "q.load", "real", "phase_3" …; `kind` a template's argument."""

    what: str
    args: tuple[Expr, ...]
    kind: str = ""


@attrs.frozen
class Item:
    """`of[at]` of a table of numbers, or the field `of.at` (a word)."""

    of: str
    at: Expr | str


@attrs.frozen(eq=False)
class Lambda:
    params: tuple[str, ...]
    body: tuple[Statement, ...]


Expr = Number | Name | Unary | Binary | Choice | Apply | Item | Lambda


@attrs.frozen(eq=False)
class Let:
    name: str
    value: Expr


@attrs.frozen(eq=False)
class Table:
    name: str
    values: tuple[int, ...]


@attrs.frozen(eq=False)
class Do:
    call: Expr


@attrs.frozen(eq=False)
class Return:
    value: Expr


@attrs.frozen(eq=False)
class For:
    """`for (index_t name = 0; name < count; ++name)`"""

    name: str
    count: Expr
    body: tuple[Statement, ...]


@attrs.frozen(eq=False)
class If:
    condition: Expr
    yes: tuple[Statement, ...]
    no: tuple[Statement, ...]


Statement = Let | Table | Do | Return | For | If


def walk(x: Any) -> Iterator[Any]:
    """All statements and expressions in `x`, a tree or a tuple of them, outer ones first."""
    if isinstance(x, tuple):
        for y in x:
            yield from walk(y)
    elif attrs.has(type(x)):
        yield x
        for field in attrs.fields(type(x)):
            yield from walk(getattr(x, field.name))


_TOKENS = re.compile(
    r"\s+|(?P<number>(?:\d+\.\d*(?:e[-+]?\d+)?|\d+e[-+]?\d+|\d+)f?)|(?P<word>[A-Za-z_]\w*)"
    r"|(?P<sign>::|&&|\|\||==|!=|<=|>=|\+\+|\[\[|\]\]|[-+*/%<>!?:(){}\[\],;.=&])"
)
_HEAD = re.compile(r'\A(?://[^\n]*\n)*#include "native\.hpp"\n')
_FUNCTION = re.compile(r"template <class Q>\ninline void (\w+)\(Q& q\) \{\n(.*?)\n\}\n", re.S)
_TAIL = '#include "entry.hpp"\n'

_LEVELS = (("||",), ("&&",), ("==", "!="), ("<", "<=", ">", ">="), ("+", "-"), ("*", "/", "%"))


def functions(text: str) -> Mapping[str, tuple[Statement, ...]]:
    """The functions of a translation unit by name. Raises NoMeaning for any other text."""
    head = _HEAD.match(text)
    if head is None or not text.endswith(_TAIL):
        raise NoMeaning("the source does not begin and end with the runtime's headers")
    found: dict[str, tuple[Statement, ...]] = {}
    at, end = head.end(), len(text) - len(_TAIL)
    while at < end:
        if text[at] == "\n":
            at += 1
            continue
        match = _FUNCTION.match(text, at, end)
        if match is None or match[1] in found:
            raise NoMeaning(f"no function is read at: {text[at : at + 60]!r}")
        found[match[1]] = _Parser(match[2], match[1]).body()
        at = match.end()
    return found


class _Parser:
    def __init__(self, text: str, where: str) -> None:
        self.where = where
        self.tokens: list[tuple[str, str]] = []
        at = 0
        while at < len(text):
            match = _TOKENS.match(text, at)
            if match is None:
                raise NoMeaning(f"{where}: {text[at : at + 30]!r} is not read")
            if match.lastgroup:
                self.tokens.append((match.lastgroup, match[0]))
            at = match.end()
        self.at = 0

    # --- tokens ------------------------------------------------------------------------------

    def peek(self, ahead: int = 0) -> str:
        k = self.at + ahead
        return self.tokens[k][1] if k < len(self.tokens) else ""

    def next(self) -> str:
        word = self.peek()
        self.at += 1
        return word

    def take(self, *words: str) -> None:
        for word in words:
            if self.next() != word:
                seen = " ".join(w for _, w in self.tokens[max(0, self.at - 8) : self.at])
                raise NoMeaning(f"{self.where}: {word!r} expected at the end of {seen!r}")

    def accept(self, word: str) -> bool:
        if self.peek() == word:
            self.at += 1
            return True
        return False

    def word(self) -> str:
        kind, word = self.tokens[self.at] if self.at < len(self.tokens) else ("", "")
        if kind != "word":
            raise NoMeaning(f"{self.where}: a name expected, not {word!r}")
        self.at += 1
        return word

    # --- statements --------------------------------------------------------------------------

    def body(self) -> tuple[Statement, ...]:
        found: list[Statement] = []
        while self.at < len(self.tokens):
            found += self.statement()
        return tuple(found)

    def block(self) -> tuple[Statement, ...]:
        self.take("{")
        found: list[Statement] = []
        while not self.accept("}"):
            if not self.peek():
                raise NoMeaning(f"{self.where}: a block that does not end")
            found += self.statement()
        return tuple(found)

    def statement(self) -> list[Statement]:
        match self.peek():
            case "using":
                return self._using()
            case "(" if self.peek(1) == "void":
                self.take("(", "void", ")")
                self.word()
                self.take(";")
                return []
            case "const":
                self.take("const", "auto")
                name = self.word()
                self.take("=")
                value = self.expression()
                self.take(";")
                return [Let(name, value)]
            case "static":
                return [self._table()]
            case "return":
                self.next()
                value = self.expression()
                self.take(";")
                return [Return(value)]
            case "for":
                return [self._for()]
            case "if":
                return [self._if()]
        call = self.expression()
        if not isinstance(call, Apply):
            raise NoMeaning(f"{self.where}: a statement that is no call")
        self.take(";")
        return [Do(call)]

    def _using(self) -> list[Statement]:
        self.take("using")
        name = self.next()
        known = {"real": "real", "index_t": "index"}
        self.take("[[", "maybe_unused", "]]", "=", "typename", "Q", "::")
        if known.get(name) != self.next():
            raise NoMeaning(f"{self.where}: an unknown type {name}")
        self.take(";")
        return []

    def _table(self) -> Table:
        self.take("static", "constexpr", "index_t")
        name = self.word()
        self.take("[", "]", "=", "{")
        values = []
        while not self.accept("}"):
            sign = -1 if self.accept("-") else 1
            if not self.peek().isdigit():
                raise NoMeaning(f"{self.where}: a table of what is no number")
            values.append(sign * int(self.next()))
            self.accept(",")
        self.take(";")
        return Table(name, tuple(values))

    def _for(self) -> For:
        self.take("for", "(", "index_t")
        name = self.word()
        self.take("=", "0", ";", name, "<")
        count = self.expression()
        self.take(";", "++", name, ")")
        return For(name, count, self.block())

    def _if(self) -> If:
        self.take("if", "(")
        condition = self.expression()
        self.take(")")
        yes = self.block() if self.peek() == "{" else tuple(self.statement())
        no = self.block() if self.accept("else") else ()
        return If(condition, yes, no)

    # --- expressions -------------------------------------------------------------------------

    def expression(self) -> Expr:
        condition = self.binary(0)
        if not self.accept("?"):
            return condition
        yes = self.expression()
        self.take(":")
        return Choice(condition, yes, self.expression())

    def binary(self, level: int) -> Expr:
        if level == len(_LEVELS):
            return self.unary()
        left = self.binary(level + 1)
        while self.peek() in _LEVELS[level]:
            left = Binary(self.next(), left, self.binary(level + 1))
        return left

    def unary(self) -> Expr:
        if self.peek() in ("-", "!"):
            return Unary(self.next(), self.unary())
        return self.primary()

    def primary(self) -> Expr:
        kind, word = self.tokens[self.at] if self.at < len(self.tokens) else ("", "")
        if kind == "number":
            self.at += 1
            return _number(word, self.where)
        if word == "(":
            self.take("(")
            inner = self.expression()
            self.take(")")
            return inner
        if word == "[":
            return self._lambda()
        name = self.word()
        if self.accept("."):
            return self._member(name)
        if self.peek() == "(":
            return Apply(name, self.arguments())
        if self.accept("["):
            at = self.expression()
            self.take("]")
            return Item(name, at)
        return Name(name)

    def _member(self, name: str) -> Expr:
        if name == "q" and self.accept("template"):
            what = self.word()
            self.take("<")
            words, open_ = [], 1
            while open_:
                words.append(self.next())
                open_ += {"<": 1, ">": -1}.get(words[-1], 0)
                if len(words) > 8:
                    raise NoMeaning(f"{self.where}: an unknown type {words}")
            kind = re.sub(r" ?(::|<|>) ?", r"\1", " ".join(words[:-1]))
            return Apply(f"q.{what}", self.arguments(), kind)
        field = self.word()
        if self.peek() == "(":
            return Apply(f"{name}.{field}", self.arguments())
        return Item(name, field)

    def _lambda(self) -> Lambda:
        self.take("[", "&", "]", "(")
        params = []
        while not self.accept(")"):
            self.take("auto")
            params.append(self.word())
            self.accept(",")
        return Lambda(tuple(params), self.block())

    def arguments(self) -> tuple[Expr, ...]:
        self.take("(")
        found: list[Expr] = []
        while not self.accept(")"):
            found.append(self.expression())
            if self.peek() != ")":
                self.take(",")
        return tuple(found)


def _number(word: str, where: str) -> Number:
    """A literal. `1.5f` is read as the decimal number that is written."""
    if word.isdigit():
        if int(word) >= 1 << 63:
            raise NoMeaning(f"{where}: {word} is no 64-bit number")
        return Number(int(word))
    if not word.endswith("f"):
        raise NoMeaning(f"{where}: {word} is no float literal")
    return Number(float(word[:-1]))
