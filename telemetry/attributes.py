"""Every attribute that our spans carry. docs/telemetry.md explains them, and a test holds both together.

Names are those of the semantic conventions of OpenTelemetry for messaging and for generative AI where these have one,
else they begin with `cuebook.`. None carries what a task is about: inputs, outputs and messages of errors stay in the
log. Source: opentelemetry.io/docs/specs/semconv, messaging and gen-ai, 1.37.
"""

from __future__ import annotations

from typing import Final

__all__ = ["ALL"]

SYSTEM: Final = "messaging.system"
OPERATION: Final = "messaging.operation.name"
OPERATION_TYPE: Final = "messaging.operation.type"
DESTINATION: Final = "messaging.destination.name"
MESSAGE_ID: Final = "messaging.message.id"
CONVERSATION_ID: Final = "messaging.message.conversation_id"
BATCH_COUNT: Final = "messaging.batch.message_count"
GEN_AI_OPERATION: Final = "gen_ai.operation.name"
AGENT_NAME: Final = "gen_ai.agent.name"
AGENT_ID: Final = "gen_ai.agent.id"
ERROR_TYPE: Final = "error.type"
SPACE: Final = "cuebook.space"
RUN_ID: Final = "cuebook.run.id"
SAGA: Final = "cuebook.saga.name"
SAGA_VERSION: Final = "cuebook.saga.version"
STEP: Final = "cuebook.step"
STEP_TYPE: Final = "cuebook.step.type"
HANDLER: Final = "cuebook.handler"
ATTEMPT: Final = "cuebook.attempt"
PRIORITY: Final = "cuebook.priority"
UNDOES: Final = "cuebook.undoes"
OUTCOME: Final = "cuebook.outcome"
ACTION: Final = "cuebook.action"
LINK: Final = "cuebook.link"
PROJECTIONS: Final = "cuebook.projections"
SEQUENCE: Final = "cuebook.sequence"

ALL: Final = frozenset(
    value for name, value in list(globals().items()) if name.isupper() and name != "ALL" and isinstance(value, str)
)
