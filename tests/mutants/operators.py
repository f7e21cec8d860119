"""The mutants of a module: changes of its source, each at one place."""

from __future__ import annotations

import ast
import io
import tokenize
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

SWAPPED = {
    "==": "!=", "!=": "==", "is": "is not", "is not": "is", "in": "not in", "not in": "in",
    "and": "or", "or": "and", "<": "<=", "<=": "<", ">": ">=", ">=": ">",
    "+": "-", "-": "+", "*": "/", "/": "*", "//": "*", "%": "*", "**": "*",
    "<<": ">>", ">>": "<<", "&": "|", "|": "&", "^": "&",
    "+=": "-=", "-=": "+=", "*=": "/=", "/=": "*=",
}  # fmt: skip
NO_CONTEXT = '__import__("contextlib").nullcontext()'


@dataclass(frozen=True)
class Mutant:
    """A change at one place; known by its text, so that it stays the same when lines move."""

    module: str  # relative to the package, without ".py"
    function: str
    old: str  # the line
    new: str
    line: int = field(compare=False)
    reach: list[range] = field(compare=False)  # the lines that run it, the narrowest first
    source: str = field(compare=False, repr=False)  # the whole module, changed

    def compiles(self) -> bool:
        """Whether Python accepts it."""
        try:
            compile(self.source, self.module, "exec")
        except SyntaxError:
            return False
        return True

    def __str__(self) -> str:
        return f"{self.module} {self.function}: `{self.old}` -> `{self.new}`"


class Edit(NamedTuple):
    """Replaces the text from `start` to `end`."""

    start: int
    end: int
    text: str


class Scope(NamedTuple):
    """Where a node is."""

    names: tuple[str, ...]
    reach: list[range]
    runs_later: bool  # inside a function, not at import


def mutants_of(module: str, path: Path) -> list[Mutant]:
    """All mutants of a file."""
    source = path.read_text()
    names = Counter[tuple[str, str, str]]()
    mutants = []
    for (start, end, text), scope in dict(Places(source).edits()).items():
        changed = source[:start] + text + source[end:]
        line = source.count("\n", 0, start)
        old, new = (text.splitlines()[line].strip() for text in (source, changed))
        function = ".".join(scope.names) or "<module>"
        names[function, old, new] += 1
        if (number := names[function, old, new]) > 1:
            new += f"  # {number}"
        mutants.append(Mutant(module, function, old, new, line + 1, scope.reach, changed))
    return mutants


class Places:
    """The places of a module that can be changed."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.lines = source.splitlines(keepends=True)
        self.starts = [0]
        for line in self.lines:
            self.starts.append(self.starts[-1] + len(line))
        self.tokens = [
            (self.starts[token.start[0] - 1] + token.start[1], token.string)
            for token in tokenize.generate_tokens(io.StringIO(source).readline)
            if token.type in (tokenize.NAME, tokenize.OP) and token.string not in ("(", ")")
        ]
        self.tree = ast.parse(source)

    def edits(self) -> Iterator[tuple[Edit, Scope]]:
        """Each edit, and where it is."""
        return self._inside(self.tree, Scope((), [range(1, len(self.lines) + 1)], False))

    def _inside(self, node: ast.AST, scope: Scope) -> Iterator[tuple[Edit, Scope]]:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            reach = [range(node.lineno, (node.end_lineno or 0) + 1), *scope.reach]
            later = isinstance(node, ast.FunctionDef)
            scope = Scope((*scope.names, node.name), reach, later)
        here = scope
        if isinstance(node, ast.stmt) and scope.runs_later:
            here = scope._replace(reach=[lines_of(node), *scope.reach])
        for edit in self._own(node):
            yield edit, here
        for child in children(node):
            yield from self._inside(child, scope if isinstance(child, ast.stmt) else here)

    def _own(self, node: ast.AST) -> Iterator[Edit]:
        """The edits of this node, not of those that it contains."""
        yield from self._of_operators(node)
        yield from self._of_conditions(node)
        if is_optional(node):
            yield Edit(*self._span(node), "pass")
        if isinstance(node, ast.withitem) and node.optional_vars is None:
            yield Edit(*self._span(node.context_expr), NO_CONTEXT)

    def _of_operators(self, node: Any) -> Iterator[Edit]:
        match node:
            case ast.Compare():
                yield from self._swapped(node.left, *node.comparators)
            case ast.BoolOp():
                yield from self._swapped(*node.values)
            case ast.BinOp() if not is_text(node.left) and not is_text(node.right):
                yield from self._swapped(node.left, node.right)
            case ast.AugAssign():
                yield from self._swapped(node.target, node.value)
            case ast.UnaryOp(op=ast.Not()):
                start, _ = self._span(node)
                yield Edit(start, start + len("not "), "")
            case ast.Constant(value=bool()):
                yield Edit(*self._span(node), str(not node.value))
            case ast.Constant(value=(int() | float()) as number):
                yield Edit(*self._span(node), repr(number + 1))

    def _of_conditions(self, node: ast.AST) -> Iterator[Edit]:
        match node:
            case ast.If(test=test) | ast.While(test=test) | ast.IfExp(test=test):
                yield from self._negated(test)
            case ast.comprehension(ifs=tests):
                for test in tests:
                    yield from self._negated(test)
            case ast.Return(value=ast.expr() as value) if is_bool(value):
                yield from self._negated(value)

    def _span(self, node: Any) -> tuple[int, int]:
        start = self._offset(node.lineno, node.col_offset)
        return start, self._offset(node.end_lineno, node.end_col_offset)

    def _offset(self, line: int, column: int) -> int:
        """The offset of a position of `ast`, which counts bytes."""
        return self.starts[line - 1] + len(self.lines[line - 1].encode()[:column].decode())

    def _swapped(self, *operands: ast.AST) -> Iterator[Edit]:
        """Swaps the operator between each operand and the next."""
        for left, right in pairwise(operands):
            low, high = self._span(left)[1], self._span(right)[0]
            first = bisect_left(self.tokens, (low, ""))
            found = self.tokens[first : bisect_left(self.tokens, (high, ""))]
            operator = " ".join(text for _, text in found)
            if operator in SWAPPED:
                start, last = found[0][0], found[-1]
                yield Edit(start, last[0] + len(last[1]), SWAPPED[operator])

    def _negated(self, test: ast.expr) -> Iterator[Edit]:
        """Negates a condition, unless the swap of its operator does that."""
        flips = ast.Eq | ast.NotEq | ast.Is | ast.IsNot | ast.In | ast.NotIn
        match test:
            case ast.UnaryOp(op=ast.Not()):
                return
            case ast.Compare(ops=[operator]) if isinstance(operator, flips):
                return
        start, end = self._span(test)
        yield Edit(start, end, f"(not ({self.source[start:end]}))")


def lines_of(statement: Any) -> range:
    """The lines of a statement, without those of the statements that it contains."""
    inner = [part.lineno for part in getattr(statement, "body", [])]
    end = max(inner[0] - 1, statement.lineno) if inner else statement.end_lineno
    return range(statement.lineno, end + 1)


def children(node: Any) -> Iterator[ast.AST]:
    """The nodes in which mutants are made: no declarations, assertions and texts of messages."""
    match node:
        case ast.JoinedStr() | ast.Assert() | ast.If(test=ast.Name(id="TYPE_CHECKING")):
            return
        case ast.Call(func=ast.Name(id="explain")):
            return
        case ast.Raise(exc=ast.Call(func=error)):
            yield error  # not the message
            return
    skipped = {"annotation", "returns", "decorator_list"}
    for name, value in ast.iter_fields(node):
        parts = value if isinstance(value, list) else [value]
        for part in parts if name not in skipped else ():
            # `strict` guards against mistakes of the caller, of which there should be none
            if isinstance(part, ast.AST) and getattr(part, "arg", "") != "strict":
                yield part


def is_text(node: ast.AST) -> bool:
    """Whether an operand is text, to which only `+` applies."""
    return isinstance(node, ast.JoinedStr) or (
        isinstance(node, ast.Constant) and isinstance(node.value, str)
    )


def is_optional(node: ast.AST) -> bool:
    """Whether a statement can be left out, so that each name stays defined."""
    parts = ast.Attribute | ast.Subscript
    match node:
        case ast.Expr(value=ast.Call()) | ast.AugAssign() | ast.Break() | ast.Continue():
            return True
        case ast.Assign(targets=targets):
            return all(isinstance(target, parts) for target in targets)
        case ast.AnnAssign(target=target, value=ast.expr()):
            return isinstance(target, parts)
    return False


def is_bool(value: ast.AST) -> bool:
    """Whether an expression is plainly a boolean."""
    if isinstance(value, ast.Call) and isinstance(value.func, ast.Name):
        return value.func.id in {"any", "all", "isinstance", "hasattr", "bool", "callable"}
    return isinstance(value, ast.BoolOp | ast.Compare)
