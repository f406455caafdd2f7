"""`doctor`: what this installation can run a model on, and how to repair it where it cannot."""

from __future__ import annotations

from ..report.json import document
from .output import Console


def run_doctor(console: Console, timeout: float | None) -> int:
    """`bnfold doctor`: returns the exit code, 1 where something is wrong."""
    from ..check.doctor import TIMEOUT, diagnose

    with console.progress(1) as step:
        step("probing")
        found = diagnose(timeout=TIMEOUT if timeout is None else timeout)
    if console.json:
        console.document(document(doctor=found.to_dict()))
        return found.exit_code
    rows = [("Python", found.python), *found.packages.items()]
    if found.version is not None:
        rows.append(("imported", f"onnxruntime {found.version}"))
    rows.extend((state.short, str(state)) for state in found.providers)
    wide = max(len(name) for name, _ in rows)
    lines = [f"{name:<{wide}}  {text}".rstrip() for name, text in rows]
    for problem in found.problems:
        lines.extend(["", problem.sentence, *(f"    {command}" for command in problem.commands)])
    console.say("\n".join([*lines, ""]))
    count = len(found.problems)
    if not count:
        ready = ", ".join(state.short for state in found.providers if state.loads and state.ran)
        console.verdict("FINE", f"models can be checked on {ready}.", good=True)
    else:
        console.verdict("WRONG", f"{count} problem{'' if count == 1 else 's'} with this installation.", good=False)
    return found.exit_code
