"""`doctor`: what this installation can run a model on, and how to repair it where it cannot."""

from __future__ import annotations

from typing import Any

from .output import Console


def run_doctor(console: Console, timeout: float | None) -> int:
    """`bnfold doctor`: returns the exit code, 1 where something is wrong."""
    console.clear_of()
    from ..check.doctor import TIMEOUT, diagnose

    with console.progress(1) as step:
        step("probing")
        found = diagnose(timeout=TIMEOUT if timeout is None else timeout)
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
        word, sentence = "FINE", f"models can be checked on {ready}."
    else:
        word, sentence = "WRONG", f"{count} problem{'' if count == 1 else 's'} with this installation."

    def parts() -> dict[str, Any]:
        return {"doctor": found.to_dict()}

    return console.finish("doctor", word, sentence, found.exit_code, parts)
