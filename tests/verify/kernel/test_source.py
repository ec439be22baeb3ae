"""What is read of C++, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest

from quire.verify.kernel.source import Apply, Binary, Do, Let, Name, Number, functions
from quire.verify.value import NoMeaning

WHOLE = """// A kernel
#include "native.hpp"

template <class Q>
inline void step(Q& q) {{
{}
}}

#include "entry.hpp"
"""


def body(text: str) -> Any:
    return functions(WHOLE.format(text))["step"]


def test_binds_as_cpp_does() -> None:
    (let,) = body("const auto v1 = 1 + 2 * 3 < 4 && 5 == 6;")
    assert isinstance(let, Let)
    less = Binary("<", Binary("+", Number(1), Binary("*", Number(2), Number(3))), Number(4))
    assert let.value == Binary("&&", less, Binary("==", Number(5), Number(6)))


def test_subtraction_is_taken_from_the_left() -> None:
    (let,) = body("const auto v1 = 7 - 3 - 1;")
    assert let.value == Binary("-", Binary("-", Number(7), Number(3)), Number(1))


def test_calls_with_template_arguments() -> None:
    let, call = body("const auto s1 = q.template array<const quire::bf16>(4); q.store(s1, 0, 1);")
    assert let.value == Apply("q.array", (Number(4),), "const quire::bf16")
    assert isinstance(call, Do) and call.call == Apply(
        "q.store", (Name("s1"), Number(0), Number(1))
    )


@pytest.mark.parametrize(
    "text",
    [
        'asm volatile("");',
        "s1[0] = 1;",
        "while (true) {}",
        "q.store(s1, 0, 1.5);",
        "goto end;",
        "auto v1 = 1;",
        "const auto v1 = [&](int i) { return i; };",
        "using real = double;",
        "static constexpr index_t t1[] = {f(1)};",
        "const auto v1 = 99999999999999999999;",
        "q.store(s1, 0, 1)",
        "/* */ q.wait();",
    ],
)
def test_refuses(text: str) -> None:
    with pytest.raises(NoMeaning):
        body(text)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('#include "native.hpp"', '#include "native.hpp"\n#define sum prod'),
        ('#include "native.hpp"', '#include "other.hpp"'),
        ("template <class Q>", "int x;\ntemplate <class Q>"),
        ('#include "entry.hpp"', 'static int y;\n#include "entry.hpp"'),
    ],
)
def test_refuses_what_stands_between(old: str, new: str) -> None:
    text = WHOLE.format("q.wait();")
    assert functions(text)
    with pytest.raises(NoMeaning):
        functions(text.replace(old, new, 1))
