"""Agents, sagas, and the actors that run them. Imports only `cuebook.events`."""

from cuebook.actors.agent import Agent, Approval, Handler, PermanentError, Retry, Task, handler
from cuebook.actors.saga import (
    Run,
    RunAbortedError,
    Saga,
    StepExpiredError,
    TaskFailedError,
    days,
    hours,
    minutes,
    saga,
)

__all__ = [
    "Agent",
    "Approval",
    "Handler",
    "PermanentError",
    "Retry",
    "Run",
    "RunAbortedError",
    "Saga",
    "StepExpiredError",
    "Task",
    "TaskFailedError",
    "days",
    "handler",
    "hours",
    "minutes",
    "saga",
]
