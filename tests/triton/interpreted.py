"""Triton's interpreter as the checks use it: quicker, and with a record of the branches taken."""

from __future__ import annotations

import ast
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import triton.language as tl
from triton.runtime import interpreter

import vaefast

KERNELS = Path(vaefast.__file__).parent / "backends" / "triton"


class Branch(NamedTuple):
    """An arm of an `if`, or a second round of a loop ("again"), of a kernel."""

    file: str
    line: int
    column: int
    arm: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}:{self.column} {self.arm}"


_taken: set[tuple] = set()
_rounds: dict[tuple, int] = {}


def install() -> None:
    """Before the first launch."""
    interpreter._patch_lang = _patch_once(interpreter._patch_lang)
    interpreter.FunctionRewriter.ast_transformer = _Recorder()
    transform = interpreter.FunctionRewriter._transform_ast

    def recorded(self, source: str) -> ast.AST:
        file = Path(self.filename)
        self.ast_transformer.file = file if KERNELS in file.parents else None
        self.ast_transformer.above = self.def_file_lineno - 1
        return transform(self, source)

    interpreter.FunctionRewriter._transform_ast = recorded
    # Names of the interpreter are put among those of each kernel's module.
    interpreter._taken_branch = _taken.add
    interpreter._start_loop = lambda key: _rounds.__setitem__(key, 0)
    interpreter._next_round = _count


def _patch_once(patch):
    """The language is patched at each call of a device function, which takes half of all the time
    and changes nothing after the first; and is taken back after each launch."""
    done: set[frozenset[int]] = set()

    def patched(function):
        modules = frozenset(id(m) for m in function.__globals__.values() if m in (tl, tl.core))
        if modules not in done:
            done.add(modules)
            patch(function)
        return interpreter._LangPatchScope()

    return patched


def _count(key: tuple) -> None:
    _rounds[key] += 1
    if _rounds[key] == 2:
        _taken.add(key)


class _Recorder(interpreter.ASTTransformer):
    """Writes into each function what notes the arms that it takes."""

    file: Path | None = None
    above = 0

    def _key(self, node: ast.AST, arm: str) -> Branch:
        return _branch(self.file, node, arm, self.above)

    def visit_If(self, node):
        node = self.generic_visit(node)
        if self.file is not None:
            node.body.insert(0, ast.Expr(_call("_taken_branch", self._key(node, "if"))))
            node.orelse.insert(0, ast.Expr(_call("_taken_branch", self._key(node, "else"))))
        return node

    def visit_IfExp(self, node):
        node = self.generic_visit(node)
        if self.file is not None:
            # The note is None, and so not what `or` gives.
            node.body = ast.BoolOp(
                ast.Or(), [_call("_taken_branch", self._key(node, "if")), node.body]
            )
            node.orelse = ast.BoolOp(
                ast.Or(), [_call("_taken_branch", self._key(node, "else")), node.orelse]
            )
        return node

    def visit_For(self, node):
        node = self.generic_visit(node)
        if self.file is None:
            return node
        key = self._key(node, "again")
        node.body.insert(0, ast.Expr(_call("_next_round", key)))
        return [ast.copy_location(ast.Expr(_call("_start_loop", key)), node), node]


def _call(name: str, key: Branch) -> ast.Call:
    # A plain tuple, which equals its Branch: a Constant takes no other.
    return ast.Call(ast.Name(name, ast.Load()), [ast.Constant(tuple(key))], [])


def _branch(file: Path, node: ast.AST, arm: str, above: int = 0) -> Branch:
    name = str(file.relative_to(KERNELS))
    return Branch(name, node.lineno + above, node.col_offset, arm)


def missed(files: Iterable[str]) -> list[str]:
    """The branches of the files' kernels that no launch of this process took."""
    return sorted(
        str(branch)
        for name in files
        for branch in _branches(KERNELS / name)
        if branch not in _taken
    )


def _branches(file: Path) -> Iterable[Branch]:
    for function in ast.parse(file.read_text()).body:
        if isinstance(function, ast.FunctionDef) and any(
            "triton.jit" in ast.unparse(d) for d in function.decorator_list
        ):
            for node in ast.walk(function):
                if isinstance(node, ast.If | ast.IfExp):
                    yield from (_branch(file, node, arm) for arm in ("if", "else"))
                elif isinstance(node, ast.For):
                    yield _branch(file, node, "again")
