"""`--student` and `--view` of a command -> the product of the output that they mean, or what the output has instead."""

from __future__ import annotations

from collections.abc import Sequence

from engine.dataset.store import Out
from jobs.look.options import View
from schemas.errors import RunFileError
from schemas.products import BYTES, HIDDEN, STUDENT, TEACHER, student_product


def choose(out: Out, products: Sequence[str], student: str | None, view: View | None, *, first: bool = False) -> str:
    """The product that `--student` and `--view` name. first: take the first student where several could be meant.

    Without options: the student where there is one, else the only product. RunFileError says what the run has.
    """
    if student is not None and view not in (None, "student"):
        raise RunFileError(
            f"--student {student} with --view {view}: that view has no students; leave out one of the two"
        )
    students = [name for name in products if name.startswith(STUDENT)]
    listed = ", ".join(sorted(products))
    if view in (TEACHER, BYTES, HIDDEN):
        if view not in products:
            raise RunFileError(
                f"{out}: no {view} view here, this run has {listed}; [targets] {view} = true stores it, in a new output"
            )
        return view
    if student is not None:
        if student_product(student) not in products:
            named = ", ".join(name.removeprefix(STUDENT) for name in students) or f"no student, but {listed}"
            raise RunFileError(f"{out}: no student {student!r} here; this run has {named}")
        return student_product(student)
    candidates = students if students or view == "student" else products
    if len(candidates) == 1 or (candidates and first):
        return candidates[0]
    how = "--student NAME" if students else "--view teacher, --view bytes or --view hidden"
    raise RunFileError(f"{out}: this run has {listed}; say which by {how}")
