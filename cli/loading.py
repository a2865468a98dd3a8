"""Finding what a user names as MODULE:NAME. Each way it can fail says what is wrong and what is there instead."""

from __future__ import annotations

import difflib
import importlib
import inspect
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from pydantic import PydanticUserError

from cuebook.actors.agent import Agent
from cuebook.actors.saga import Saga
from cuebook.events.errors import ConfigurationError

__all__ = ["load_agents", "load_fake", "load_sagas"]


def load_agents(specs: Sequence[str]) -> list[type[Agent]]:
    """The agent classes named by `specs`, checked. Raises ConfigurationError."""
    agents = [_load(spec, "agent", _is_agent) for spec in specs]
    for spec, agent in zip(specs, agents, strict=True):
        with _blamed_on(spec):
            for handler in agent.handlers().values():
                handler.spec()
    return agents


def load_sagas(specs: Sequence[str]) -> list[Saga[Any, Any]]:
    """The sagas named by `specs`, checked. Raises ConfigurationError."""
    sagas: list[Saga[Any, Any]] = [_load(spec, "saga", _is_saga) for spec in specs]
    for spec, saga in zip(specs, sagas, strict=True):
        with _blamed_on(spec):
            saga.input_type  # noqa: B018 - looking is the check
            saga.output_type  # noqa: B018
    return sagas


async def load_fake(spec: str, agent: type[Agent]) -> Agent:
    """What `spec` makes when it is called with nothing: an object of the agent's class, or of one derived from it.

    Raises ConfigurationError.
    """
    made = _load(spec, "fake", lambda value: callable(value) and _is_own(value, spec))()
    made = await made if inspect.isawaitable(made) else made
    if not isinstance(made, agent):
        raise ConfigurationError(
            f"{spec} makes {_what(made)}, and no {agent.__name__}",
            remedy=f"derive a class from {agent.__name__}, or return an object of it with its effects stubbed",
        )
    return made


@contextmanager
def _blamed_on(spec: str) -> Iterator[None]:
    """What is wrong with the types of an agent or a saga is said with its name."""
    try:
        yield
    except ConfigurationError as error:
        raise ConfigurationError(f"{spec}: {error}", remedy=error.remedy) from error
    except (NameError, TypeError, PydanticUserError) as error:
        raise ConfigurationError(
            f"{spec}: its types cannot be used: {error}", remedy="annotate with models that can be imported at run time"
        ) from error


def _is_agent(value: Any) -> bool:
    return inspect.isclass(value) and issubclass(value, Agent) and value is not Agent


def _is_own(value: Any, spec: str) -> bool:
    """Whether something is of that module, and not only imported there."""
    return getattr(value, "__module__", "") == spec.partition(":")[0]


def _is_saga(value: Any) -> bool:
    return isinstance(value, Saga)


def _load(spec: str, kind: str, fits: Any) -> Any:
    module_name, colon, name = spec.partition(":")
    if not module_name or (colon and not name):
        raise ConfigurationError(f"{spec!r} names no {kind}", remedy=f"write MODULE:NAME, such as desk.{kind}s:{kind}")
    module = _import(module_name)
    there = [key for key, value in vars(module).items() if fits(value)]
    if not colon:
        raise ConfigurationError(f"{spec!r} is a module; which {kind} of it?", remedy=_choice(module_name, there, kind))
    value: Any = module
    for part in name.split("."):
        value = getattr(value, part, None)
    if value is None:
        near = difflib.get_close_matches(name, there, 1, 0.5)
        remedy = f"did you mean {module_name}:{near[0]}?" if near else _choice(module_name, there, kind)
        raise ConfigurationError(f"module {module_name} has no {name!r}", remedy=remedy)
    if not fits(value):
        raise ConfigurationError(
            f"{spec} is {_what(value)}, not {_article(kind)}", remedy=_choice(module_name, there, kind)
        )
    return value


def _import(name: str) -> ModuleType:
    here = str(Path.cwd())
    if here not in sys.path:  # a console script has its own folder there, not the one people are in
        sys.path.insert(0, here)
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and (name == error.name or name.startswith(f"{error.name}.")):
            raise ConfigurationError(
                f"there is no module {name!r}", remedy=f"looked in {here} and the installed packages; see PYTHONPATH"
            ) from error
        raise ConfigurationError(
            f"module {name} needs {error.name!r}, which is not installed",
            remedy="install it where cuebook is installed",
        ) from error
    except Exception as error:
        # The author must see where; nothing of ours is on the way.
        frames = traceback.extract_tb(error.__traceback__)
        own = next((frame for frame in reversed(frames) if "importlib" not in frame.filename), frames[-1])
        where = f"{error.filename}:{error.lineno}" if isinstance(error, SyntaxError) else f"{own.filename}:{own.lineno}"
        raise ConfigurationError(
            f"module {name} cannot be imported: {type(error).__name__}: {error}", remedy=f"correct {where}"
        ) from error


_HOW = {
    "agent": "a subclass of cuebook.actors.Agent",
    "fake": "a class derived from the agent's, or a function that returns an object of it",
    "saga": "an async function decorated with @saga()",
}


def _choice(module_name: str, there: list[str], kind: str) -> str:
    if there:
        return "there is " + ", ".join(f"{module_name}:{name}" for name in sorted(there))
    return f"{module_name} has no {kind}: {_article(kind)} is {_HOW[kind]}"


def _what(value: Any) -> str:
    if _is_agent(value):
        return "an agent"
    if _is_saga(value):
        return "a saga"
    if inspect.isclass(value):
        return "another class"
    if inspect.iscoroutinefunction(value):
        return "an async function without @saga()"
    return f"a {type(value).__name__}"


def _article(kind: str) -> str:
    return f"{'an' if kind[0] in 'aeiou' else 'a'} {kind}"
