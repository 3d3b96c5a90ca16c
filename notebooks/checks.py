"""One check for each exercise: `check(your_function)` says in words which identity fails.

A check runs the function on seeded noises, compares it with identities of the equation, and tells
the usual mistakes by name: sign, s + 1, a missing sigma_t, phi for p, a mean over the batch. It
returns whether all hold. A function is known by its name, so keep the stub's.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable

import torch
from exercise import Exercise, same
from exercises_1_to_5 import EXERCISES as FIRST
from exercises_6_to_8 import EXERCISES as LATER
from exercises_9 import EXERCISES as LAST
from torch import Tensor

EXERCISES = FIRST | LATER | LAST


def check(function: Callable) -> bool:
    """Prints which identities of the exercise hold and which mistake was made; whether all hold."""
    name = function.__name__
    if name not in EXERCISES:
        print(f"No exercise is called {name}. Keep the name of the stub: {', '.join(EXERCISES)}.")
        return False
    exercise = EXERCISES[name]
    wanted = exercise.right(*exercise.inputs)
    complaint, found = _run(function, exercise.inputs)
    complaint = complaint or _shape(found, wanted)
    if not complaint:
        named = (text for text, wrong in exercise.mistakes if same(found, wrong(*exercise.inputs)))
        complaint = next(named, None) or _another_batch(function, exercise.inputs, found)
    if complaint:
        print(f"{name}{complaint}" if complaint[0] == " " else f"{name}: {complaint}")
        return False
    held = True
    for sentence, holds in [*exercise.limits, ("it is the formula", None)]:
        try:
            ok = same(found, wanted) if holds is None else bool(holds(function))
        except Exception as e:  # a limit may reach what the first inputs did not
            print(f"  {type(e).__name__}: {e}")
            ok = False
        print(f"  {'holds' if ok else 'FAILS'}: {sentence}")
        held = held and ok
    if held and (other := _wrong_at(function, exercise)):
        print(f"  FAILS: it is the formula at other numbers too; not at {other}. Is something made "
              "positive, cut off, or put in for the case above?")  # fmt: skip
        held = False
    if held and exercise.points and not _holds_for_points(function, exercise.inputs, wanted):
        print("  FAILS: it works for points (B, D) as for pictures (B, C, H, W). Do not fix the number "
              "of dimensions: x.reshape(-1, *[1] * (eps.ndim - 1)), .flatten(1).sum(1).")  # fmt: skip
        held = False
    print(f"{name}: all identities hold." if held else f"{name}: not yet.")
    return held


def _wrong_at(function: Callable, exercise: Exercise) -> str:
    """The numbers of the first further inputs at which the function is not the right one."""
    names = list(inspect.signature(exercise.right).parameters)
    for inputs in exercise.more:
        try:
            ok = same(function(*inputs), exercise.right(*inputs))
        except Exception:  # it ran on the first inputs
            ok = False
        if not ok:
            numbers = [f"{k} = {x:g}" for k, x in zip(names, inputs) if isinstance(x, int | float)]
            return ", ".join(numbers) or "other noises"
    return ""


def _run(function: Callable, inputs: tuple) -> tuple[str | None, object]:
    """(what goes wrong or None, what the function returns)"""
    kept = [x.clone() if isinstance(x, Tensor) else x for x in inputs]
    try:
        found = function(*kept)
    except NotImplementedError:
        return " is not written yet: put your line in place of the raise.", None
    except Exception as e:  # whatever a student's function raises
        shapes = " and ".join(str(tuple(x.shape)) for x in inputs if isinstance(x, Tensor))
        if "size of tensor" in str(e) or "shape" in str(e):
            return (f"shapes do not fit. The arguments have the shapes {shapes}. A number for each "
                    "sample, (B,), must become (B, 1, ...) before it multiplies or divides a noise: "
                    "x.reshape(-1, *[1] * (eps.ndim - 1))."), None  # fmt: skip
        return f" stops with {type(e).__name__}: {e}", None
    if not all(same(x, y) for x, y in zip(kept, inputs)):
        return "it changes its arguments in place. Make a new tensor: a + b, not a += b.", None
    return None, found


def _shape(found: object, wanted: object) -> str | None:
    if found is None:
        return "it returns nothing. Does it end with a return?"
    try:
        got = tuple(torch.as_tensor(found).shape)
    except (TypeError, ValueError, RuntimeError):
        return f"it returns a {type(found).__name__}, not numbers."
    want = tuple(torch.as_tensor(wanted).shape)
    if got != want:
        mixed = " Do not sum over the batch: .flatten(1).sum(1)." if len(got) < len(want) else ""
        return f"it returns the shape {got}; the answer has {want}.{mixed}"
    if not torch.as_tensor(found).isfinite().all():
        return "it returns NaN or infinity. Is there a division by zero?"
    return None


def _another_batch(function: Callable, inputs: tuple, whole: object) -> str | None:
    """A sentence if the first two samples alone give another answer than within their batch."""
    if not (isinstance(whole, Tensor) and whole.ndim) or not isinstance(inputs[0], Tensor):
        return None
    size = len(inputs[0])
    part = [x[:2].clone() if isinstance(x, Tensor) and len(x) == size else x for x in inputs]
    try:
        alone = function(*part)
    except Exception as e:  # it ran for the whole batch
        return f"it fails for a batch of another size than {size} ({type(e).__name__})."
    if not same(alone, whole[:2]):
        return "a mean or a sum goes over the batch. Each sample must be treated alone."
    return None


def _holds_for_points(function: Callable, inputs: tuple, wanted: object) -> bool:
    """Whether noises (B, D) give what the same numbers give as pictures (B, C, H, W)."""
    if not any(isinstance(x, Tensor) and x.ndim > 2 for x in inputs):
        return True
    flat = [x.flatten(1) if isinstance(x, Tensor) and x.ndim > 2 else x for x in inputs]
    try:
        return same(function(*flat), wanted.flatten(1) if wanted.ndim > 2 else wanted)
    except Exception:  # an index or a dimension that points do not have
        return False
